#!/usr/bin/env bash
# verify.sh [FOLDER]: builds sdist and wheel of a distribution, or of the core and every provider,
# into dist/, checks their contents, and uses the wheels in empty environments: the core alone,
# providers together with the core, each on a broker that it brings for tests.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ $# = 0 ]; then
    set -- .
    for file in providers/*/pyproject.toml; do
        [ ! -f "$file" ] || set -- "$@" "${file%/pyproject.toml}"
    done
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1
rm -rf dist
mkdir dist
build() { # FOLDER NAME: makes its sdist, and from that its wheel
    PIP_CONSTRAINT=$root/constraints.txt "$python" -m build --outdir "$work/$2" "$1" \
        >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
}
providers=()
for folder; do
    name=$(basename "$folder")
    [ "$name" = . ] && name=core || providers+=("$name")
    build "$folder" "$name"
    "$python" scripts/ci/check_dist.py "$work/$name" "$folder"
    cp "$work/$name"/* dist
done

environment() { # NAME REQUIREMENT...: makes an environment that holds nothing else
    "$python" -m venv "$work/$1"
    "$work/$1/bin/python" -m pip install -qq -c constraints.txt "${@:2}"
    "$work/$1/bin/python" -m pip check
}
smoke() { # NAME SCRIPT [ARGUMENT...]: runs it in an environment, away from the checkout
    cp "scripts/ci/$2" "$work"
    (cd "$work" && "$1/bin/python" -I -W error "${@:2}")
}

if [ -d "$work/core" ]; then
    environment alone --no-index "$work"/core/*.whl
    smoke alone smoke.py
else
    build . core
fi
if [ ${#providers[@]} -gt 0 ]; then
    wheels=()
    for name in "${providers[@]}"; do
        wheels+=("$(echo "$work/$name"/*.whl)[testing]")
    done
    environment together "$work"/core/*.whl "${wheels[@]}"
    for name in "${providers[@]}"; do
        smoke together smoke_provider.py "$name"
    done
    smoke together smoke_together.py "${providers[@]}"
fi
