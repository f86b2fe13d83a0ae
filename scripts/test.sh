#!/usr/bin/env bash
# Every check and test, suite by suite, each with its time. The last line sums the test runner's own counts.
#
# HEADWATER_SEED    replays the kill test and the simulation's single seed
# HEADWATER_KILLS   kills per log that must count (default 10; 4 on MariaDB and MySQL, of which each has one of the logs below 30)
# HEADWATER_HUGE_ROWS  rows of the transaction larger than memory (default 500000)
# HEADWATER_SEEDS   seeds of the simulation (default 10000)
# HEADWATER_TRACES  seeds per server in the traces that its models are compared with (default 20)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/need.sh

# Everything that the tests start keeps its files here, so that what is left behind can be found.
work=$(mktemp -d "${TMPDIR:-/tmp}/headwater-tests-XXXXXX")
chmod 755 "$work"
export TMPDIR=$work
log=$work/output
trap 'rm -rf "$work"' EXIT
: > "$log"

suite() {
    local name=$1 began=$SECONDS
    shift
    echo "== $name"
    local status=0
    "$@" 2>&1 | tee -a "$log" || status=$?
    echo "== $name: $((SECONDS - began)) s"
    [ "$status" = 0 ] || failed="${failed:+$failed, }$name"
}
failed=

# The servers are found or fetched before the clock of the suites that need them runs. postgres-path.sh has the list of versions.
majors=() running=()
while read -r major bin; do
    majors+=("$major")
    export "HEADWATER_PG_BIN_$major=$bin"
done < <(scripts/postgres-path.sh --all)
if [ "${#majors[@]}" = 0 ]; then echo "no PostgreSQL to test with"; exit 1; fi
on() { local bin=HEADWATER_PG_BIN_$1; export HEADWATER_PG_BIN=${!bin}; }
oldest=${majors[0]} newest=${majors[${#majors[@]} - 1]}

while read -r flavour base; do
    flavour=${flavour^^}
    export "HEADWATER_${flavour}_BASE=$base"
done < <(scripts/mysql-path.sh --all)
# Newer versions, where they can be had; the script says of each that cannot that nothing ran on it.
found=$(scripts/mysql-path.sh --newer)
newer=()
while read -r flavour base; do
    [ -z "$flavour" ] || newer+=("HEADWATER_${flavour^^}_BASE=$base")
done <<< "$found"

# Suites of the PostgreSQL source that every version has to pass; the others start the version that they are about.
on_each=" suite stops slots publications rows ddl types login backfill backfill_states "
each=() rest=(--lib)
for file in connectors/postgres/tests/*.rs; do
    name=$(basename "$file" .rs)
    if [[ "$on_each" == *" $name "* ]]; then each+=(--test "$name"); else rest+=(--test "$name"); fi
done

# All versions at once: much of their time is waiting. Their output is shown one after the other.
versions() {
    local major status=0
    for major in "${majors[@]}"; do
        (
            on "$major"
            began=$SECONDS bad=0
            cargo test --quiet --no-fail-fast -p headwater-postgres "${each[@]}" > "$work/postgres-$major" 2>&1 || bad=1
            echo "== PostgreSQL $major: $((SECONDS - began)) s" >> "$work/postgres-$major"
            exit $bad
        ) &
        running+=("$!")
    done
    for major in "${!running[@]}"; do wait "${running[$major]}" || status=1; done
    for major in "${majors[@]}"; do cat "$work/postgres-$major"; done
    return $status
}

# Everything that needs a server also on the newer ones, at the same time.
binlogs() {
    local status=0 running=
    if [ "${#newer[@]}" != 0 ]; then
        (
            began=$SECONDS bad=0
            # This build of MariaDB lacks the plugin that has the keys of an encrypted binlog.
            env "${newer[@]}" cargo test --quiet --no-fail-fast -p headwater-mysql --test servers -- \
                --skip mariadb::an_encrypted_binlog > "$work/mysql-newer" 2>&1 || bad=1
            echo "== ${newer[*]}: $((SECONDS - began)) s" >> "$work/mysql-newer"
            exit $bad
        ) &
        running=$!
    fi
    cargo test --quiet --no-fail-fast -p headwater-mysql || status=1
    if [ -n "$running" ]; then
        wait "$running" || status=1
        cat "$work/mysql-newer"
    fi
    return $status
}

suite "Kafka $(basename "$(scripts/kafka-path.sh)")" true
suite "format and lints" scripts/lint.sh
suite "build" cargo test --workspace --no-run --quiet
suite "simulation (${HEADWATER_SEEDS:-10000} seeds)" cargo test --lib --quiet simulation -- --nocapture
on "$oldest"
suite "models against traces of PostgreSQL $oldest, Kafka and the embedded log" cargo test --lib --quiet traces:: -- --nocapture
suite "contract" cargo test --quiet --no-fail-fast -p headwater-connector
suite "PostgreSQL source on ${majors[*]}" versions
on "$newest"
suite "PostgreSQL source, the rest" cargo test --quiet --no-fail-fast -p headwater-postgres "${rest[@]}"
suite "MySQL source on MariaDB and MySQL" binlogs
suite "units and logs" cargo test --lib --quiet -- --skip simulation --skip traces::
suite "black box on PostgreSQL $newest" cargo test --test blackbox --quiet -- --skip kills_lose
on "$oldest"
suite "events on PostgreSQL $oldest" cargo test --test blackbox --quiet -- ingest
suite "kill (${HEADWATER_KILLS:-10} kills per log, on MariaDB and MySQL ${HEADWATER_KILLS:-4})" cargo test --test blackbox -- --nocapture --test-threads 1 kills_lose

# A test that leaves a process behind has failed, whatever it said. The daemons are started with relative paths, so it is
# their working directory that gives them away and not their command line.
left() {
    local place pid
    pgrep -fa -- "$work" | grep -v -e pgrep -e test.sh || true
    for place in /proc/[0-9]*/cwd; do
        [[ $(readlink "$place" 2> /dev/null) == "$work"/* ]] || continue
        pid=${place//[!0-9]/}
        echo "$pid $(tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null)"
    done
}
# What stops a server when its test is gone looks for that a few times per second.
for _ in $(seq 50); do
    left=$(left)
    [ -n "$left" ] || break
    sleep 0.2
done
if [ -n "$left" ]; then
    echo "processes left behind:"
    echo "$left"
    failed="${failed:+$failed, }processes left behind"
fi
if [ -n "$failed" ]; then echo "failed: $failed"; fi
awk '/^test result: / { for (i = 1; i <= NF; i++) { if ($(i + 1) ~ /^passed/) passed += $i; if ($(i + 1) ~ /^failed/) bad += $i } }
     END { printf "%d passed, %d failed\n", passed, bad }' "$log"
[ -z "$failed" ]
