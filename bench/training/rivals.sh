#!/usr/bin/env bash
# Install programs that `python -m bench.training` compares ours with, each in an environment of its own, pinned.
#
#   bench/training/rivals.sh [FOLDER]      .rivals if left out; about 2 GB
#
# Only what was seen to run here is in the list: a program whose environment is missing is left out of the comparison.
set -euo pipefail
cd "$(dirname "$0")/../.."
FOLDER=${1:-.rivals}
TORCH=$(grep -E '^torch==' constraints.txt)
unset PYTHONDONTWRITEBYTECODE

install() { # NAME PACKAGE...
  local python=$FOLDER/$1/bin/python
  [ -e "$FOLDER/$1/.done" ] && return
  "${PYTHON:-python3}" -m venv --clear "$FOLDER/$1"
  "$python" -m pip install --quiet "$TORCH" "${@:2}"
  "$python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' \
    || { echo "pip found PyTorch for CUDA; point PIP_EXTRA_INDEX_URL to PyTorch's CPU wheels" >&2; exit 1; }
  # Builds of these that pip finds do not load beside PyTorch for the CPU; nothing here needs them.
  "$python" -m pip uninstall --quiet --yes torchvision torchaudio
  touch "$FOLDER/$1/.done"
}

install llamafactory llamafactory==0.9.5 transformers==5.6.0 peft==0.18.1 trl==0.24.0 datasets==4.0.0
