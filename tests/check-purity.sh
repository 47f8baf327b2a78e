#!/usr/bin/env bash
# The protocol crate does no I/O, reads no clock and draws no random numbers. This fails when it gains any of them:
# by a dependency (the whole tree of normal ones), or by what its sources name.
# `tests/check-purity.sh --prove` plants a violation of each kind in a copy and expects each to be found.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

impure_crates='tokio|async-std|smol|mio|quinn|quinn-proto|quinn-udp|socket2|hyper|tonic|rand|rand_core|getrandom|fastrand|rustix|nix|rocksdb|rustls|parking_lot|crossbeam.*|rayon|time|chrono|tracing-subscriber|polling'
impure_names='std::(net|fs|thread|process|env)|(^|[^A-Za-z0-9_:])(net|fs|thread|process|env)::|Instant|SystemTime|RandomState|HashMap|HashSet|OsRng|ThreadRng|unsafe |println!|dbg!'
# … and in a braced import: use std::{fs, fmt};
impure_names="$impure_names"'|std::[{]([^}]*[ ,])?(net|fs|thread|process|env)[ ,}]'

check_tree() { # names of crates on standard input
    local found
    found="$(grep -xE "$impure_crates" || true)"
    [ -z "$found" ] || { echo "federation-proto depends on: $(echo $found)"; return 1; }
}

check_sources() { # a directory; test modules are left out
    local found
    found="$(find "$1" -name '*.rs' ! -name '*tests.rs' ! -path '*/tests/*' -print0 | sort -z | xargs -0 awk -v pattern="$impure_names" '
        FNR == 1 { tests = 0; held = "" }
        /^#\[cfg\((all\()?test/ { tests = 1 }
        { line = $0; sub(/\/\/.*/, "", line) }
        !tests && line ~ pattern { print FILENAME ":" FNR ": " $0 }
    ' 2>/dev/null || true)"
    [ -z "$found" ] || { echo "federation-proto names what a pure crate must not:"; echo "$found"; return 1; }
}

if [ "${1:-}" = --prove ]; then
    planted="$(mktemp -d)"
    trap 'rm -rf "$planted"' EXIT
    for line in 'use std::net::UdpSocket;' 'let now = std::time::Instant::now();' 'use std::{fs, fmt};' \
        'let t = SystemTime::now();' 'use std::collections::HashMap;' 'std::thread::sleep(d);' $'use std::{\n    fs::File,\n};' '    let s = thread::spawn(f);'; do
        printf '//! A module.\nfn f() {}\n%s\n' "$line" > "$planted/planted.rs"
        if check_sources "$planted" >/dev/null; then echo "not found: $line"; exit 1; fi
    done
    printf '//! Instant is only named here.\nfn f() { link::x() } // HashMap\n#[cfg(test)]\nmod tests { use std::fs; }\n' > "$planted/planted.rs"
    check_sources "$planted" || { echo "found what is allowed"; exit 1; }
    for name in tokio rand getrandom socket2; do
        if printf 'bytes\n%s\n' "$name" | check_tree >/dev/null; then echo "not found: $name"; exit 1; fi
    done
    echo "every planted violation is found"
    exit 0
fi

cd "$root"
names="$(cargo tree -p seaway-federation-proto -e normal --prefix none --no-dedupe -f '{p}' | awk '{print $1}' | sort -u)"
[ "$(echo "$names" | grep -c .)" -gt 3 ] || { echo "cargo tree named no dependencies"; exit 1; }
status=0
echo "$names" | check_tree || status=1
check_sources federation-proto/src || status=1
[ "$status" -eq 0 ] && echo "federation-proto is pure ($(echo "$names" | grep -c .) crates, $(find federation-proto/src -name '*.rs' | wc -l) files)"
exit "$status"
