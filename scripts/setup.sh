#!/bin/sh
# Makes the virtual environment and installs the package into it with the extras named in $EXTRAS, at the versions
# that constraints.txt pins. Every failure that a fresh machine is likely to meet ends in one line that names the way out.
#
# Reads: VENV (folder of the environment), EXTRAS (such as cpu,dev), PYTHON (an interpreter to prefer), MIN_FREE_MB.
set -eu

VENV="${VENV:-.venv}"
EXTRAS="${EXTRAS:-cpu,dev}"
# The tested set unpacks to about 1.9 GB with a CPU build of torch; pip needs room for the wheels beside it.
MIN_FREE_MB="${MIN_FREE_MB:-3000}"
LOG="$VENV/setup.log"

fail() {
    printf '\nsetup: %s\n' "$*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

describe_pythons() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        version=$("$candidate" --version 2>/dev/null) && printf '%s is %s; ' "$candidate" "$version"
    done
    return 0
}

free_megabytes() {
    df -Pm . | awk 'NR == 2 { print $4 }'
}

if [ ! -x "$VENV/bin/python" ] || ! is_new_enough "$VENV/bin/python"; then
    python=$(find_python) || fail "no Python 3.11 or newer among the usual names ($(describe_pythons)looked no further)." \
        "Install one, or name it: make setup PYTHON=/path/to/python3.11"
    "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 || fail "$python has no venv module." \
        "Install it (on Debian and Ubuntu: apt install python3-venv), or name another Python: make setup PYTHON=..."
    free=$(free_megabytes)
    [ "$free" -ge "$MIN_FREE_MB" ] || fail "$free MB are free here and the packages need about $MIN_FREE_MB MB." \
        "Free some, or put the environment elsewhere: make setup VENV=/bigger/disk/venv"
    printf 'setup: making %s with %s\n' "$VENV" "$("$python" --version)"
    "$python" -m venv "$VENV" || fail "$python could not make $VENV. Check that the folder can be written to."
fi

printf 'setup: installing parhelion[%s] into %s (minutes the first time)\n' "$EXTRAS" "$VENV"
rm -f "$LOG"
# pip would compile what it installs on one core.
if "$VENV/bin/python" -m pip install --disable-pip-version-check --no-compile --log "$LOG" -c constraints.txt -e ".[$EXTRAS]"; then
    rm -f "$LOG"
    # Files that are for another Python do not compile, and need not.
    "$VENV/bin/python" -m compileall -q -j 0 "$VENV/lib" >/dev/null 2>&1 || true
    exit 0
fi

if grep -q 'No space left on device' "$LOG" 2>/dev/null; then
    fail "the disk filled up ($(free_megabytes) MB are free here). Free about $MIN_FREE_MB MB and run it again;" \
        "TMPDIR=/bigger/disk moves pip's temporary files."
fi
if grep -Eq 'NewConnectionError|NameResolutionError|ConnectTimeoutError|Max retries exceeded|Failed to establish' "$LOG" 2>/dev/null; then
    fail "pip could not reach a package index. Check the network or proxy (HTTPS_PROXY)," \
        "or point pip at a mirror: PIP_INDEX_URL=https://... make setup, or at a folder of wheels: PIP_FIND_LINKS=/wheels PIP_NO_INDEX=1."
fi
if grep -Eq 'No matching distribution|Could not find a version' "$LOG" 2>/dev/null; then
    fail "the package index lacks a version that constraints.txt pins (see above). Use a fuller index (PIP_INDEX_URL=...)," \
        "or a Python that the tested set has wheels for (3.11): make setup PYTHON=python3.11"
fi
fail "pip failed; its full log is $LOG"
