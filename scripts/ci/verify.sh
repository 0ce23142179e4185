#!/usr/bin/env bash
# verify.sh [FOLDER]: builds sdist and wheel of a distribution (default: the core) into dist/,
# checks their contents, and uses the wheel in an empty environment.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
folder=${1:-.}
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export PIP_DISABLE_PIP_VERSION_CHECK=1
rm -rf dist
PIP_CONSTRAINT=$root/constraints.txt "$python" -m build --outdir dist "$folder" >"$work/log" 2>&1 ||
    { cat "$work/log"; exit 1; }
"$python" scripts/ci/check_dist.py dist "$folder"

"$python" -m venv "$work/venv"
pip="$work/venv/bin/python -m pip install -qq"
if [ "$folder" = . ]; then
    $pip --no-index --no-deps dist/*.whl
    smoke=smoke.py
else
    "$python" -m pip wheel -qq --no-deps --build-constraint constraints.txt --wheel-dir "$work" .
    $pip -c constraints.txt "$work"/*.whl dist/*.whl
    smoke=smoke_provider.py
fi
cp "scripts/ci/$smoke" "$work"
cd "$work"
"$work/venv/bin/python" -I -W error "$smoke" "$(basename "$folder")"
