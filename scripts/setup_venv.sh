#!/bin/sh
# setup_venv.sh demo|test|dev: makes .venv hold the project and what that purpose needs.
# Does nothing when that was done before with the same settings and interpreter.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd -P)
python=.venv/bin/python

# Each purpose contains the ones after it. The providers are tested, the demo needs none.
case ${1:-} in
    dev) extra=all providers=providers purposes="dev test demo" ;;
    test) extra=all providers=providers purposes="test demo" ;;
    demo) extra=notebook providers='' purposes="demo" ;;
    *) echo "usage: setup_venv.sh demo|test|dev" >&2; exit 2 ;;
esac

# An existing .venv is kept if it works and PYTHON does not ask for another interpreter.
keep='
import os, sys
import pip
assert sys.version_info >= (3, 11)
base = os.path.realpath(sys._base_executable)
assert all(os.path.realpath(wanted) == base for wanted in sys.argv[1:])
'
wanted=
if [ -n "${PYTHON:-}" ]; then
    wanted=$(sh scripts/find_python.sh)
fi
# A moved checkout leaves scripts and links behind that point to the old place.
if [ "$(cat .venv/abe-root 2>/dev/null || echo "$here")" != "$here" ] ||
    ! $python -c "$keep" ${wanted:+"$wanted"} 2>/dev/null; then
    wanted=${wanted:-$(sh scripts/find_python.sh)}
    echo "Creating .venv with $wanted"
    "$wanted" -m venv --clear .venv
    echo "$here" >.venv/abe-root
fi

state="$($python -VV) $(cat pyproject.toml constraints.txt providers/*/pyproject.toml | cksum)"
if [ "$(cat ".venv/abe-$1" 2>/dev/null)" = "$state" ]; then
    exit
fi

echo "Installing the project and what '$1' needs into .venv"
pip="$python -m pip --disable-pip-version-check -qq"
# Dependency groups need a newer pip than some interpreters bring.
$pip install -c constraints.txt pip
purpose=$1
set -- -e ".[$extra]"
for file in ${providers:+"$providers"/*/pyproject.toml}; do
    set -- "$@" -e "${file%/pyproject.toml}"
done
$pip install -c constraints.txt --build-constraint constraints.txt "$@" --group "$purpose"
for purpose in $purposes; do
    echo "$state" >".venv/abe-$purpose"
done
