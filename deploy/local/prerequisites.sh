#!/usr/bin/env bash
# Checks for what Driftline's development needs: Python 3.11+, and for a real Kafka Java 17+ and Maven. As root on Debian or
# Ubuntu it installs what is missing; elsewhere it says what to install and exits with status 1.
#
#   prerequisites.sh            all three
#   prerequisites.sh --python   Python only; prints the interpreter's name on standard output
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.14 python3; do
        # Run, not only looked up: pyenv's shims exist for versions that are not active, and Debian ships Python without
        # ensurepip.
        if [[ -n $candidate ]] && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

java_major() {
    # `openjdk version "17.0.15"`; releases before 9 call themselves 1.8.
    java -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p'
}

has_java() {
    local major
    command -v java >/dev/null && major=$(java_major) && [[ -n $major && $major -ge 17 ]]
}

# To be asked once apt has its lists, which a fresh container has not.
java_package() {
    # 17 first: the default is older on Ubuntu 22.04.
    if apt-cache show openjdk-17-jre-headless >/dev/null 2>&1; then
        echo openjdk-17-jre-headless
    else
        echo default-jre-headless
    fi
}

python_only=false
if [[ ${1:-} == --python ]]; then
    python_only=true
fi

packages=()
missing=()
needs_java=false
if ! find_python >/dev/null; then
    packages+=(python3 python3-venv)
    missing+=("Python 3.11 or newer with its venv module")
fi
if ! $python_only; then
    if ! has_java; then
        needs_java=true
        missing+=("Java 17 or newer")
    fi
    if ! command -v mvn >/dev/null; then
        packages+=(maven)
        missing+=("Maven")
    fi
fi

if [[ ${#missing[@]} -gt 0 ]]; then
    say "Not found on PATH:$(printf ' [%s]' "${missing[@]}")"
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        if $needs_java; then
            packages+=(openjdk-17-jre-headless)
        fi
        say "Install this and run the command again:"
        say "  Debian, Ubuntu: sudo apt-get install ${packages[*]}"
        say "  macOS:          brew install python@3.11 openjdk@17 maven"
        say "A Python elsewhere can be named: make PYTHON=/path/to/python3.11 …"
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update >&2
    if $needs_java; then
        packages+=("$(java_package)")
    fi
    say "Installing ${packages[*]}"
    apt-get install --yes --no-install-recommends "${packages[@]}" >&2
    if ! find_python >/dev/null; then
        say "This distribution's Python is older than 3.11. Install a newer one and name it:"
        say "  make PYTHON=/path/to/python3.11 …"
        exit 1
    fi
    if ! $python_only && ! has_java; then
        say "This distribution's Java is older than 17. Install Java 17 or newer and put it first on PATH."
        exit 1
    fi
fi

if $python_only; then
    find_python
fi
