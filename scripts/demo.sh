#!/usr/bin/env bash
# Builds the release binary, finds or gets a database server, and runs the demo. Arguments go to `headwater demo`.
#
# SOURCE  what the shop runs on: postgres (default), mariadb or mysql; --source says the same
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/need.sh
source=${SOURCE:-postgres}
[ -z "${SOURCE:-}" ] || set -- --source "$source" "$@"
for ((at = 1; at <= $#; at++)); do
    case ${!at} in
        --source) next=$((at + 1)) && source=${!next:-} ;;
        --source=*) source=${!at#*=} ;;
    esac
done
binary=${CARGO_TARGET_DIR:-target}/release/headwater
[ -x "$binary" ] || echo "building headwater; the first time takes some minutes (Kafka client, OpenSSL and SQLite are compiled too)"
cargo build --release --quiet --bin headwater
case $source in
    mariadb) HEADWATER_MARIADB_BASE=$(scripts/mysql-path.sh mariadb) && export HEADWATER_MARIADB_BASE ;;
    mysql) HEADWATER_MYSQL_BASE=$(scripts/mysql-path.sh mysql) && export HEADWATER_MYSQL_BASE ;;
    *) HEADWATER_PG_BIN=$(scripts/postgres-path.sh) && export HEADWATER_PG_BIN ;;
esac
exec "$binary" demo "$@"
