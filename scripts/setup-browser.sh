#!/usr/bin/env bash
# Gets a Chromium for the tests of the page that `longreel watch` shows, where apt has one. Says nothing where there is
# one already; where there is none to be had it says so, and those tests are skipped.
#
#   scripts/setup-browser.sh
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

for name in chromium chromium-browser google-chrome; do # as in tests/page/devtools.rs
    command -v "$name" >/dev/null && exit 0
done

skip() { say "no Chromium ($*): the tests of the page in a browser are skipped"; exit 0; }

command -v apt-get >/dev/null || skip "no apt here: install one by your own means"
as_root=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || skip "root installs it: apt-get install --no-install-recommends chromium"
    as_root=(sudo "${as_root[@]}")
fi
say "installing chromium, for the tests of the page"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1 </dev/null; }
apt update || true # with the lists that are there
apt install -y --no-install-recommends chromium || skip "$(tail -n 1 "$log")"
