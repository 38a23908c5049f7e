#!/usr/bin/env bash
# Gets a machine ready to build and run longreel: says nothing and changes nothing where all is there.
#
#   scripts/setup.sh
#
# On Debian and its kin it installs what is missing with apt, as root or through sudo. Elsewhere it only looks, and says
# what is missing. Rust and Python are looked for, never installed: how to have them is everybody's own choice.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# What needs what (`cargo tree -i NAME`):
packages=(
    gcc libc6-dev                                             # the linker; mimalloc's and ffmpeg-sys-next's C
    g++                                                       # tests: the CUDA kernels, run on the CPU
    pkg-config                                                # finds the two below
    libavcodec-dev libavformat-dev libavutil-dev libswscale-dev # ffmpeg-next: reading and writing videos
    libclang-dev                                              # bindgen, which reads FFmpeg's headers
    libopenmpi-dev openmpi-bin                                # the feature mpi and its tests: ranks as processes
    strace                                                    # tests: kills at chosen system calls
    iproute2 shellcheck                                       # tests of scripts; two hosts on one machine
    strace                                                    # make faults: ends processes at chosen system calls
    ffmpeg                                                    # the command, for the scripts that make datasets
    ca-certificates                                           # crates and hubs are fetched over https
    python3-venv                                              # make check-cuda, make bench and benches/quality.py: packages from PyPI
)

# ---- Rust and Python ----------------------------------------------------------------------------------------------

wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
how="install Rust $wanted or newer, for one by https://rustup.rs, and open a new shell"
command -v cargo >/dev/null || die "no cargo on the PATH: $how"
# rustup leaves its shims in place without any toolchain behind them: only running it tells.
version=$(rustc --version 2>/dev/null | awk '{print $2}') || true
[ -n "$version" ] || die "rustc does not run: $how"
[ "$(printf '%s\n' "$wanted" "${version%%-*}" | sort -V | head -n 1)" = "$wanted" ] ||
    die "rustc is $version, longreel needs $wanted: $how (rustup update, where you have it)"

python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null ||
    die "no Python 3.9 or newer as python3: the scripts of this repository need it (apt-get install python3)"

# ---- packages -----------------------------------------------------------------------------------------------------

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    missing=()
    for tool in cc c++ pkg-config ffmpeg; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    for library in libavcodec libavformat libavutil libswscale; do
        pkg-config --exists "$library" 2>/dev/null || missing+=("$library (with headers)")
    done
    [ ${#missing[@]} -eq 0 ] ||
        die "no apt here, so please install by your own means: $(printf '%s, ' "${missing[@]}")and libclang"
    exit 0
fi

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

by_hand="run as root: apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
as_root=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "packages are missing, and there is neither root nor sudo. Please $by_hand"
    if ! sudo -n true 2>/dev/null; then # a password will be asked for, if somebody is there to give it
        [ -t 0 ] || die "packages are missing, and sudo wants a password. Please $by_hand"
        say "sudo will ask for your password, to install packages"
        sudo -v || die "sudo did not let us. Please $by_hand"
    fi
    as_root=(sudo "${as_root[@]}")
fi

say "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Another apt may be at work, as on a machine just started: wait for it.
apt() { "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1 </dev/null; }
apt update || say "apt-get update failed; going on with the lists that are there"
if ! apt install -y --no-install-recommends "${missing[@]}"; then
    tail -n 20 "$log" >&2
    die "apt-get could not install them (above: the end of what it said). Please $by_hand"
fi
