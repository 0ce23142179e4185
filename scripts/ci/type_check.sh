#!/usr/bin/env bash
# Checks the types of an application that knows nothing but the installed wheel.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export PIP_DISABLE_PIP_VERSION_CHECK=1
"$python" -m pip wheel -qq --no-deps --build-constraint constraints.txt --wheel-dir "$work" .
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -qq --no-index --no-deps "$work"/*.whl
cp tests/typing_sample/application.py "$work"

# Outside the checkout and without its settings, so that only the wheel's types count.
cd "$work"
"$python" -m mypy --config-file= --cache-dir="$work/cache" --strict --warn-unreachable \
    --enable-error-code=unused-awaitable --python-executable="$work/venv/bin/python" application.py
