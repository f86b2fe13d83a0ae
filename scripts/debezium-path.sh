#!/usr/bin/env bash
# Prints a directory with Kafka Connect (`libs`) and Debezium's PostgreSQL connector (`plugins/postgres`), for the benchmark.
# The first call fetches them with Maven (about 80 MB) into a cache outside the tree.
#
# HEADWATER_CACHE   where the cache is (default: $XDG_CACHE_HOME/headwater or ~/.cache/headwater)
set -euo pipefail

version=3.7.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HEADWATER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/headwater}
target=$cache/debezium-$version

die() {
    echo "debezium-path: $*" >&2
    exit 1
}

# This also sees to Java and Maven.
"$here/kafka-path.sh" > /dev/null
mkdir -p "$cache"
exec 9> "$cache/debezium.lock"
flock 9

if [ ! -d "$target" ]; then
    command -v mvn > /dev/null || die "the command mvn is missing; install Maven (Debian: apt-get install maven)"
    work=$(mktemp -d "$cache/debezium.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fetch() {
        mkdir -p "$work/$1"
        cp "$here/kafka/$1.xml" "$work/$1/pom.xml"
        (cd "$work/$1" && mvn -q -B dependency:copy-dependencies -DoutputDirectory="$work/whole/$2" -DincludeScope=runtime) \
            > "$work/log" 2>&1 || die "Maven could not fetch $1: $(grep -m1 ERROR "$work/log" || tail -n1 "$work/log")"
    }
    fetch connect libs
    fetch debezium plugins/postgres
    # Connect gives these itself; a second copy in the plugin's folder clashes with its own.
    rm -f "$work"/whole/plugins/postgres/{kafka-clients,connect-api,connect-json,slf4j-api,jakarta.ws.rs-api}-*.jar
    # The rename is atomic: the directory exists only when it is complete.
    mv "$work/whole" "$target"
fi
echo "$target"
