#!/usr/bin/env bash
# Prints the directory that holds the jars of Apache Kafka, for tests, benchmarks and the demo.
# The first call fetches them with Maven (54 MB) into a cache outside the tree.
#
# HEADWATER_CACHE   where the cache is (default: $XDG_CACHE_HOME/headwater or ~/.cache/headwater)
set -euo pipefail

version=4.3.1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HEADWATER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/headwater}
target=$cache/kafka-$version

die() {
    echo "kafka-path: $*" >&2
    exit 1
}

# Installs a Debian package if that is possible without asking, else says in one line what is missing.
need() {
    local command=$1 package=$2
    command -v "$command" > /dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null \
        || die "the command $command is missing; install it (Debian: apt-get install $package)"
    # A build machine may never have read the package lists.
    { apt-get install -y -qq --no-install-recommends "$package" \
        || { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$package"; }; } > /dev/null 2>&1 \
        || die "the command $command is missing and apt-get install $package failed"
}

mkdir -p "$cache" || die "the cache directory $cache cannot be created"

# Two processes may call this at once: the second waits and then finds the jars.
exec 9> "$cache/kafka.lock"
flock 9

need java default-jre-headless
if [ ! -d "$target" ]; then
    need mvn maven
    work=$(mktemp -d "$cache/kafka.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # The build file is copied, so that Maven leaves nothing in the tree.
    cp "$here/kafka/pom.xml" "$work/pom.xml"
    (cd "$work" && mvn -q -B dependency:copy-dependencies -DoutputDirectory="$work/jars" -DincludeScope=runtime) \
        > "$work/log" 2>&1 || die "Maven could not fetch Kafka $version: $(grep -m1 ERROR "$work/log" || tail -n1 "$work/log")"
    # The rename is atomic: the directory exists only when it is complete.
    mv "$work/jars" "$target"
fi
echo "$target"
