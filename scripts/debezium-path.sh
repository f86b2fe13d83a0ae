#!/usr/bin/env bash
# Prints a directory with Kafka Connect (`libs`) and Debezium's connectors (`plugins/postgres`, `plugins/mysql`, `plugins/mariadb`), for
# the benchmark. The first call fetches them with Maven (about 140 MB) into a cache outside the tree.
#
# HEADWATER_CACHE   where the cache is (default: $XDG_CACHE_HOME/headwater or ~/.cache/headwater)
set -euo pipefail

# Of each connector the newest release that Maven has whole.
releases="postgres:3.7.0 mysql:3.6.1 mariadb:3.5.0"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HEADWATER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/headwater}
target=$cache/debezium-3.7.0

die() {
    echo "debezium-path: $*" >&2
    exit 1
}

# This also sees to Java and Maven.
"$here/kafka-path.sh" > /dev/null
mkdir -p "$cache"
exec 9> "$cache/debezium.lock"
flock 9

# fetch POM DIRECTORY [SED]: the jars of a project file become a directory, which exists only when it is complete.
fetch() {
    [ ! -d "$target/$2" ] || return 0
    command -v mvn > /dev/null || die "the command mvn is missing; install Maven (Debian: apt-get install maven)"
    local work
    work=$(mktemp -d "$cache/debezium.XXXXXX")
    sed "${3:-}" "$here/kafka/$1.xml" > "$work/pom.xml"
    if ! (cd "$work" && mvn -q -B dependency:copy-dependencies -DoutputDirectory="$work/whole" -DincludeScope=runtime) > "$work/log" 2>&1; then
        local why
        why=$(grep -m1 ERROR "$work/log" || tail -n1 "$work/log")
        rm -rf "$work"
        die "Maven could not fetch $2: $why"
    fi
    # Connect gives these itself; a second copy in the plugin's folder clashes with its own.
    [ "$2" = libs ] || rm -f "$work"/whole/{kafka-clients,connect-api,connect-json,slf4j-api,jakarta.ws.rs-api}-*.jar
    mkdir -p "$(dirname "$target/$2")"
    mv "$work/whole" "$target/$2"
    rm -rf "$work"
}

fetch connect libs
for release in $releases; do
    name=${release%%:*}
    fetch debezium "plugins/$name" "s/NAME/$name/; s/VERSION/${release##*:}/"
done
echo "$target"
