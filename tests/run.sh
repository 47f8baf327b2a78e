#!/usr/bin/env bash
# Everything that is checked, in one command, on a fresh machine too. Closing line: "N passed, N failed", and "N skipped" where this machine
# lacks what something needs; what that was stands above it.
#   tests/run.sh            all
#   tests/run.sh NAME...    only these steps (see the calls of `step` below)
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root" || exit 1
. deploy/prepare.sh

passed=0 failed=0 failures=() skips=()
only=("$@")
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# step NAME COMMAND...: runs it and counts it; test binaries that it runs are counted test by test.
step() {
    local name="$1" log="$scratch/$1.log" began=$SECONDS status good bad
    shift
    if [ "${#only[@]}" -gt 0 ] && [[ " ${only[*]} " != *" $name "* ]]; then return 0; fi
    printf '\n== %s\n' "$name"
    "$@" 2>&1 | tee "$log"
    status="${PIPESTATUS[0]}"
    good="$(sed -n 's/^test result:.* \([0-9]*\) passed.*/\1/p' "$log" | paste -sd+ | bc_or_zero)"
    bad="$(sed -n 's/^test result:.* \([0-9]*\) failed.*/\1/p' "$log" | paste -sd+ | bc_or_zero)"
    local before=${#skips[@]}
    mapfile -t -O "$before" skips < <(grep -a '^SKIPPED: ' "$log" | sort -u)
    if [ "$good" -gt 0 ]; then good=$((good - (${#skips[@]} - before))); fi
    if [ "$status" -eq 0 ]; then
        passed=$((passed + (good > 0 ? good : 1)))
        printf -- '-- %s: passed, %d s\n' "$name" $((SECONDS - began))
    else
        passed=$((passed + good))
        failed=$((failed + (bad > 0 ? bad : 1)))
        failures+=("$name")
        printf -- '-- %s: FAILED, %d s\n' "$name" $((SECONDS - began))
    fi
}

bc_or_zero() {
    local sum
    read -r sum || true
    echo $((${sum:-0}))
}

lint() { cargo clippy --release --workspace --all-targets -- -D warnings; }
# Links to private items are for those who read the sources.
document() {
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --release --workspace --no-deps
}
# What a test skips it writes into this file: the output of tests that pass is not shown.
run_tests() {
    export SEAWAY_SKIPPED="$scratch/skipped"
    : > "$SEAWAY_SKIPPED"
    local status=0
    cargo test --release --workspace --no-fail-fast || status=$?
    cat "$SEAWAY_SKIPPED"
    return $status
}

# Licences, sources and bans need no network; advisories need their database.
dependencies() {
    local tools
    tools="$(dirname "$CARGO_TARGET_DIR")/tools"
    PATH="$PATH:$tools/bin"
    if ! command -v cargo-deny >/dev/null; then
        say "Installing cargo-deny into $tools …"
        CARGO_TARGET_DIR="$tools/target" cargo install --quiet --locked --debug --root "$tools" cargo-deny || {
            say "cargo-deny is missing; install it with: cargo install --locked cargo-deny"
            return 1
        }
        rm -rf "$tools/target"
    fi
    cargo deny --workspace check --hide-inclusion-graph licenses bans sources || return 1
    if timeout 60 cargo deny fetch db >/dev/null 2>&1; then
        cargo deny --workspace check --disable-fetch --hide-inclusion-graph advisories
    else
        echo "SKIPPED: advisories: their database cannot be reached from here"
    fi
}

need_toolchain || exit 1
for component in rustfmt clippy; do
    cargo "${component/rust/}" --version >/dev/null 2>&1 || rustup component add "$component" || exit 1
done

step format cargo fmt --all -- --check
step build build_seaway
step lint lint
step document document
step purity-proof tests/check-purity.sh --prove
step purity tests/check-purity.sh
step dependencies dependencies
step tests run_tests
step demo deploy/demo.sh --check

printf '\n'
[ "${#failures[@]}" -eq 0 ] || printf 'Failed: %s\n' "${failures[*]}"
printf '%s\n' "${skips[@]+"${skips[@]}"}"
printf '%d passed, %d failed' "$passed" "$failed"
[ "${#skips[@]}" -eq 0 ] || printf ', %d skipped' "${#skips[@]}"
printf '\n'
[ "$failed" -eq 0 ]
