# Sourced by the other scripts: says in one line what a build needs and does not find.
need() {
    command -v "$1" > /dev/null && return
    echo "headwater: $1 is missing; $2" >&2
    exit 1
}
[ -x "$HOME/.cargo/bin/cargo" ] && PATH="$HOME/.cargo/bin:$PATH"
need cargo "install a Rust toolchain (1.89 or newer) with rustup"
need cc "install a C compiler (Debian: apt-get install gcc g++)"
need c++ "install a C++ compiler (Debian: apt-get install g++)"
need make "install make"
need perl "install perl: it configures the OpenSSL that is built in"
