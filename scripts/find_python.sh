#!/bin/sh
# Prints the path of the newest Python that can run the project; PYTHON names another to take.
# With --all: one of each fitting version, as "3.13 /path", newest first.
set -eu

# A name on PATH proves little: version-manager shims fail when run, and some distributions
# ship Python without ensurepip. So every candidate is run.
probe='
import sys
version = "%d.%d" % sys.version_info[:2]
if sys.version_info < (3, 11):
    print("old " + version)
    sys.exit()
try:
    import ensurepip, ssl, sqlite3, venv
except ImportError as error:
    print("incomplete", version, error.name)
    sys.exit()
print("fits", version, getattr(sys, "_base_executable", None) or sys.executable)
'

# Sets verdict, version and detail: the interpreter's path, or the module it lacks.
ask() {
    verdict='' version='' detail=''
    read -r verdict version detail <<EOF
$("$1" -c "$probe" </dev/null 2>/dev/null || true)
EOF
}

fail() {
    echo "$*" >&2
    exit 1
}

if [ -n "${PYTHON:-}" ] && [ "${1:-}" != --all ]; then
    ask "$PYTHON"
    case $verdict in
        fits) echo "$detail" ;;
        old) fail "PYTHON=$PYTHON is Python $version; 3.11 or newer is needed." ;;
        incomplete) fail "PYTHON=$PYTHON lacks $detail; on Debian or Ubuntu install python$version-venv." ;;
        *) fail "PYTHON=$PYTHON cannot be run." ;;
    esac
    exit
fi

# One candidate a line, newest version first; within a version PATH comes before pyenv.
candidates() {
    for name in python3.14 python3.13 python3.12 python3.11 python3 python; do
        (
            IFS=:
            for folder in $PATH; do echo "$folder/$name"; done
        )
        for folder in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/"${name#python}".*/bin; do
            echo "$folder/$name"
        done
    done
}

seen='' advice=''
while read -r candidate; do
    [ -x "$candidate" ] || continue
    ask "$candidate"
    case $verdict,$version in
        fits,3.1[1-4])
            case " $seen " in *" $version "*) continue ;; esac
            seen="$seen $version"
            [ "${1:-}" = --all ] || { echo "$detail"; exit; }
            echo "$version $detail"
            ;;
        incomplete,*)
            advice=${advice:-"$candidate lacks $detail; on Debian or Ubuntu install python$version-venv."}
            ;;
    esac
done <<EOF
$(candidates)
EOF

[ -n "$seen" ] || fail "${advice:-No Python 3.11 to 3.14 found. On Debian or Ubuntu install python3.11-venv.}" \
    "PYTHON=/path/to/python names another."
