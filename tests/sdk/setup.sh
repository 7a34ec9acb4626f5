#!/usr/bin/env bash
# Fetch the SDKs that the tests run beside the one in .venv: openai 2.x for Python, openai for Node. Once.
set -euo pipefail
cd "$(dirname "$0")"
ROOT=../..
OLD=$ROOT/.openai2
PINNED="openai==2.54.0"

if [ "$(cat $OLD/.pinned 2>/dev/null)" != "$PINNED" ]; then
  rm -rf $OLD
  env -u PYTHONDONTWRITEBYTECODE $ROOT/.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $OLD "$PINNED"
  echo "$PINNED" > $OLD/.pinned
fi

command -v npm >/dev/null || { echo "the tests run OpenAI's SDK for Node: install Node.js with npm" >&2; exit 1; }
if ! cmp -s package.json node_modules/.pinned; then
  npm install --silent --no-audit --no-fund --no-package-lock
  cp package.json node_modules/.pinned
fi
