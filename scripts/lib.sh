# shellcheck shell=bash
# Shared by the scripts: sourced, not run.

say() { printf '\033[1m%s\033[0m\n' "$*"; }

die() { printf '%s\n' "$*" >&2; exit 1; }

# install_missing PROGRAM:PACKAGE...  Installs Debian packages for programs that are not there.
install_missing() {
    local missing=() pair program
    for pair in "$@"; do
        program=${pair%%:*}
        [ -e "$program" ] && continue
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null 2>&1 || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        die "missing on this system: ${missing[*]} (the names of Debian's packages). Install them and start again."
    fi
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || die "not root and no sudo: run  apt-get install ${missing[*]}  as root, then start again."
        root=(sudo)
    fi
    say "Installing ${missing[*]}"
    # Services of these packages are not wanted: tests start their own, unprivileged copies.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null && "${root[@]}" chmod +x "$policy" && made=1
    fi
    local log status=0
    log=$(mktemp)
    { "${root[@]}" apt-get update -qq && "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || status=$?
    [ -n "$made" ] && "${root[@]}" rm -f "$policy"
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$log" >&2
        die "apt-get failed (the end of its output is above)"
    fi
    rm -f "$log"
}

need_cargo() {
    command -v cargo >/dev/null 2>&1 || die "cargo is missing: install Rust 1.91 or newer (Debian: apt-get install rustup && rustup default stable)"
}
