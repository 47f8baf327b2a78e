# Sourced by deploy/demo.sh and tests/run.sh: what a fresh Debian machine lacks, and the one target directory.
#
# RocksDB takes minutes to build, so everything uses one target directory that outlives a checkout, one profile
# (release) and one selection of packages (--workspace).

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/seaway/target}"

say() { printf '%s\n' "$*" >&2; }

# Installs Debian packages, or says which are missing and how to get them.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    [ "${#missing[@]}" -eq 0 ] && return 0
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        say "Installing ${missing[*]} …"
        apt-get update -qq >&2 || true
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 && return 0
    fi
    say "Missing: ${missing[*]}. Install with: sudo apt-get install ${missing[*]}"
    return 1
}

need_toolchain() {
    [ -x "$HOME/.cargo/bin/cargo" ] && PATH="$HOME/.cargo/bin:$PATH"
    if ! command -v cargo >/dev/null; then
        say "Missing: a Rust toolchain (1.95 or newer). Install with: curl https://sh.rustup.rs -sSf | sh"
        return 1
    fi
    local wanted=()
    command -v cc >/dev/null && command -v c++ >/dev/null && command -v make >/dev/null || wanted+=(build-essential)
    # bindgen loads libclang to read RocksDB's header.
    if ! find /usr/lib /usr/local/lib "${LIBCLANG_PATH:-/nonexistent}" -name 'libclang*.so*' 2>/dev/null | grep -q .; then
        wanted+=(libclang-dev)
    fi
    [ "${#wanted[@]}" -eq 0 ] || need_packages "${wanted[@]}"
}

build_seaway() {
    say "Building into $CARGO_TARGET_DIR (the first time takes some 15 minutes on two cores, most of it RocksDB) …"
    cargo build --release --workspace
}
