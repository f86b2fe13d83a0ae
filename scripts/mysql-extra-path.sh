#!/usr/bin/env bash
# mysql-extra-path.sh mariadb|mysql sql|binlog: prints the path of a client program of that server, for the benchmark: the one that runs
# SQL, or the one that reads the binlog.
# mysql-extra-path.sh mariadb keys:             prints the path of the plugin that has the keys of encrypted files, for a test.
#
# It is beside the server that scripts/mysql-path.sh finds, on the PATH, or is fetched: the package that has Debian's MariaDB server has none
# of these.
#
# HEADWATER_CACHE  where downloads are kept (default: ~/.cache/headwater, for root /var/cache/headwater)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ "$(id -u)" = 0 ]; then default_cache=/var/cache/headwater; else default_cache=${XDG_CACHE_HOME:-$HOME/.cache}/headwater; fi
cache=${HEADWATER_CACHE:-$default_cache}

case ${1:-}-${2:-} in
  mariadb-sql) name=mariadb package=mariadb-client-core ;;
  mariadb-binlog) name=mariadb-binlog package=mariadb-client ;;
  mariadb-keys) name=file_key_management.so package=mariadb-server ;;
  mysql-sql) name=mysql package=mysql-client-core ;;
  mysql-binlog) name=mysqlbinlog package=mysql-client ;;
  *) echo "usage: mysql-extra-path.sh mariadb|mysql sql|binlog|keys" >&2; exit 2 ;;
esac

# MariaDB has programs under MySQL's names.
fits() {
  [[ $1 == *.so ]] && [ -e "$1" ] && return 0
  [ -x "$1" ] || return 1
  local text
  text=$("$1" --no-defaults --version) || return 1
  case $name in mariadb*) return 0 ;; *) [[ $text != *MariaDB* && $text != *"Ver 3."* ]] ;; esac
}

found() {
  local file
  for file in "$base/bin/$name" "$base/lib/mysql/plugin/$name" "$base/lib/plugin/$name" "$(command -v "$name" || true)" \
    "$cache/$package/usr/bin/$name" "$cache/$package/usr/lib/mysql/plugin/$name"; do
    if [ -n "$file" ] && fits "$file"; then printf '%s\n' "$file"; return 0; fi
  done
  return 1
}

# Only unpacked: what is installed on the machine stays as it is.
fetch() {
  command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null || return 1
  mkdir -p "$cache"
  local fresh
  fresh=$(mktemp -d "$cache/fresh.XXXXXX")
  (cd "$fresh" && { apt-get download -qq "$package" || { apt-get update -qq && apt-get download -qq "$package"; }; }) >&2 2> /dev/null &&
    dpkg-deb -x "$fresh"/*.deb "$fresh/whole" && chmod -R a+rX "$fresh" && rm -rf "${cache:?}/$package" && mv "$fresh/whole" "$cache/$package"
  rm -rf "$fresh"
}

base=$("$here/mysql-path.sh" "$1")
if found; then exit 0; fi
fetch || true
if found; then exit 0; fi
echo "mysql-extra-path: no $name: install the package $package, or the server with all that belongs to it" >&2
exit 1
