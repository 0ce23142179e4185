#!/usr/bin/env bash
# Builds sdist and wheel into dist/, checks their contents, and uses the wheel without dependencies.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export PIP_DISABLE_PIP_VERSION_CHECK=1
rm -rf dist
PIP_CONSTRAINT=$root/constraints.txt "$python" -m build --outdir dist . >"$work/log" 2>&1 ||
    { cat "$work/log"; exit 1; }
"$python" scripts/ci/check_dist.py dist

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -qq --no-index --no-deps dist/*.whl
cp scripts/ci/smoke.py "$work"
cd "$work"
"$work/venv/bin/python" -I -W error smoke.py
