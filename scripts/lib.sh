# shellcheck shell=bash
# Sourced by scripts/demo and scripts/test: finds a Python, makes a virtual environment, installs the project into it.
# Needs nothing but bash and that Python: whatever else a script would use (digests, archives) Python does.

stop() { # one line that says what is missing and what to do; 2 is the exit code for it
    echo "$(basename "$0"): $*" >&2
    exit 2
}

require_machine() { # the host library and the CPU kernels are x86-64 code for Linux
    case "$OSTYPE/$HOSTTYPE" in
        linux-gnu/x86_64) ;;
        *) stop "x86-64 Linux with glibc is needed, and this is $HOSTTYPE $OSTYPE" ;;
    esac
}

find_python() { # prints the first Python that is new enough
    local candidate found=""
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        found="$found $candidate"
    done
    [ -z "$found" ] || stop "Python 3.11 or newer is needed, which none of these is:$found"
    stop "Python 3.11 or newer is needed, and there is none; on Debian and Ubuntu: apt-get install python3 python3-venv"
}

require_venv() { # $1: a Python. Debian and Ubuntu keep what `venv` needs in a package of its own
    "$1" -c 'import ensurepip, venv; ensurepip.version()' 2>/dev/null && return
    local package
    package="$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $package" >&2
        apt-get update -qq >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
        "$1" -c 'import ensurepip, venv; ensurepip.version()' 2>/dev/null && return
        stop "$package is installed, and $1 still cannot make virtual environments"
    fi
    stop "$1 lacks the venv module; run: sudo apt-get install -y $package"
}

source_digest() { # $1: a Python, then files and folders. Prints a digest of the sources among them
    local python="$1"
    shift
    "$python" - "$@" <<'PYTHON'
import hashlib, pathlib, sys
digest = hashlib.sha256()
for top in map(pathlib.Path, sys.argv[1:]):
    for file in [top] if top.is_file() else sorted(top.rglob("*")):
        if file.suffix in {".py", ".c", ".h", ".toml"}:
            digest.update(f"{file}\0{file.stat().st_size}\0".encode() + file.read_bytes())
print(digest.hexdigest())
PYTHON
}

unless_stamped() { # $1: a file, $2: a digest, then a command: runs it unless the file says that this was done for $2
    local stamp="$1" digest="$2"
    shift 2
    [ "$(cat "$stamp" 2>/dev/null)" != "$digest" ] || return 0
    rm -f "$stamp"
    "$@"
    echo "$digest" >"$stamp"
}

make_venv() { # $1: a folder. Makes a virtual environment there, unless a working one is there
    local python
    "$1/bin/python" -m pip --version >/dev/null 2>&1 && return
    require_machine
    python="$(find_python)"
    require_venv "$python"
    echo "making $1 with $("$python" --version)" >&2
    "$python" -m venv --clear "$1"
}
