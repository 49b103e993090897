#!/usr/bin/env bash
# Makes .venv at the top of the checkout and installs mer-hf there with the `dev` extra, at the versions of
# constraints.txt. demo.sh and test.sh call it first; when nothing has changed since the last time it returns at once.
set -euo pipefail

root="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
constraints="$root/scripts/constraints.txt"
stamp="$venv/.mer_hf_stamp"        # fingerprint of the last complete install; an interrupted one leaves none
location="$venv/.mer_hf_location"  # where .venv was made: the programs in its bin/ name that place
needed_gb=12                       # 7.5 GB installed (torch with CUDA is 5.5) and the wheels while pip unpacks them
network_trouble='connection (broken|refused)|failed to establish|name resolution|timed out|proxyerror|sslerror|versions: none'
log=""

say() { printf 'mer-hf set-up: %s\n' "$*" >&2; }

die() { # message, remedy
    say "error: $1"
    say "remedy: $2"
    exit 1
}

# What an install depends on: the Python series and two files. Python computes it, so that no sha256sum is needed and a
# .venv whose interpreter is gone gives nothing.
fingerprint() {
    "$venv/bin/python" -I -S - "$root/pyproject.toml" "$constraints" 2>/dev/null <<'PYTHON'
import hashlib, pathlib, sys

digest = hashlib.sha256(sys.implementation.cache_tag.encode())
for name in sys.argv[1:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PYTHON
}

is_current() { [[ -f "$stamp" && "$(<"$stamp")" == "$(fingerprint)" ]] && ! has_moved; }

has_moved() { [[ -f "$location" && "$(<"$location")" != "$venv" ]]; }

is_supported_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3; do
        # Run it rather than look for it: version managers leave names on PATH that only print an error.
        if is_supported_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found (tried python3.11, python3.12, python3.13 and python3)" \
        "install one, for example 'apt-get install python3.11 python3.11-venv' on Debian 12, and run this again"
}

remove_unusable_venv() {
    [[ -e "$venv" || -L "$venv" ]] || return 0
    if has_moved; then
        say "the checkout was moved or copied, which breaks .venv; making it anew"
    elif ! is_supported_python "$venv/bin/python" || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        say ".venv is broken: its Python does not run, is older than 3.11 or has no pip; making it anew"
    else
        return 0
    fi
    rm -rf "$venv"
}

check_disk() {
    local free_kb
    free_kb="$(df -Pk "$root" | awk 'NR == 2 { print $4 }')"
    if [[ "$free_kb" =~ ^[0-9]+$ ]] && ((free_kb < needed_gb * 1024 * 1024)); then
        die "not enough disk: $((free_kb / 1024 / 1024)) GB free in $root, a first install needs about $needed_gb GB" \
            "free some space, or move the checkout to a larger disk"
    fi
}

create_venv() {
    local python
    python="$(find_python)"
    say "creating .venv with $("$python" --version 2>&1)"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv "$venv" || die "$python -m venv failed" "read the message above"
    elif "$python" -c 'import pip, venv' 2>/dev/null; then
        # Debian keeps ensurepip in a package of its own; the system's pip can fill the environment just as well.
        "$python" -m venv --without-pip "$venv" || die "$python -m venv failed" "read the message above"
        run_pip "$python" -m pip --python "$venv/bin/python" install --no-user pip
    else
        die "$python has neither ensurepip nor pip, so it cannot fill a virtual environment" \
            "on Debian or Ubuntu: apt-get install $(basename "$python")-venv"
    fi
    printf '%s\n' "$venv" >"$location"
}

# An install that was killed can leave a package with its metadata but not all its files, which pip takes for
# installed. pip writes INSTALLER after the files, so metadata without it is not to be believed.
remove_half_installed() {
    local metadata
    for metadata in "$venv"/lib/python*/site-packages/*.dist-info; do
        [[ ! -d "$metadata" || -e "$metadata/INSTALLER" ]] || rm -rf "$metadata"
    done
}

run_pip() { # a pip command; its output goes through, and is read for a remedy when it fails
    log="$(mktemp)"
    if ! PIP_DISABLE_PIP_VERSION_CHECK=1 "$@" 2>&1 | tee "$log"; then
        explain_pip_failure
    fi
    rm -f "$log"
}

explain_pip_failure() {
    if grep -qiE 'no space left|disk quota exceeded' "$log"; then
        die "the disk filled up during the install" \
            "free some space; pip unpacks in ${TMPDIR:-/tmp}: if that is small, set TMPDIR to a larger folder"
    elif grep -qiE "$network_trouble" "$log"; then
        die "pip could not reach the package index" \
            "check the network and 'pip config list', then run this again: it goes on where it stopped"
    elif grep -qiE 'no matching distribution|could not find a version' "$log"; then
        die "the package index has no fitting build of one of the packages" \
            "use 64-bit Linux with Python 3.11, where these versions were tested, and an index that has all of PyPI"
    fi
    die "pip failed" "read its last lines above, then run this again: it goes on where it stopped"
}

install() {
    local pip=("$venv/bin/python" -m pip)
    say "installing; the first time this downloads about 3 GB and takes some minutes"
    # setuptools first and no build isolation: torch needs it anyway, and so the build uses the pinned version.
    run_pip "${pip[@]}" install --no-user --progress-bar off -c "$constraints" setuptools
    run_pip "${pip[@]}" install --no-user --progress-bar off -c "$constraints" --no-build-isolation -e "${root}[dev]"
    "$venv/bin/python" -c 'import torch, torchaudio' >&2 ||
        die "the packages are installed, but torch and torchaudio do not load" \
            "remove .venv and run this again; '.venv/bin/python mer_hf/doctor.py' says more"
}

main() {
    is_current && return
    # One install at a time, also when demo.sh and test.sh are started together. Not every system has flock.
    exec 9<"$root/pyproject.toml"
    if command -v flock >/dev/null && ! flock -n 9; then
        say "waiting for another set-up of this checkout to finish"
        flock 9
    fi
    is_current && return
    SECONDS=0
    trap 'rm -f "$log"' EXIT
    remove_unusable_venv
    if [[ ! -e "$venv" ]]; then
        check_disk
        create_venv
    fi
    rm -f "$stamp"
    remove_half_installed
    install
    fingerprint >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "done in $SECONDS s"
}

main
