#!/usr/bin/env bash
# Drains one backlog by pg_recvlogical to /dev/null and by headwater into each log, in turn, and prints how they compare.
#
# ROWS    rows of the backlog (default 1000000), in transactions of 100
# ROUNDS  how often each drains it (default 3)
# LOGS    which logs (default "embedded kafka")
#
# Figures of a shared machine are only good beside each other: the ratio of one round is what counts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/need.sh
rows=${ROWS:-1000000} rounds=${ROUNDS:-3} logs=${LOGS:-embedded kafka}
work=$(mktemp -d "${TMPDIR:-/tmp}/headwater-bench-XXXXXX")
chmod 755 "$work"
daemon= broker=
stop_all() {
    [ -z "$daemon" ] || kill -9 "$daemon" 2> /dev/null || true
    [ -z "$broker" ] || kill -9 "$broker" 2> /dev/null || true
    as_server "$bin/pg_ctl" -D "$work/pg/data" -m immediate stop > /dev/null 2>&1 || true
    rm -rf "$work"
}

bin=$(scripts/postgres-path.sh)
for program in psql pg_recvlogical; do
    [ -x "$bin/$program" ] || { echo "bench: $bin has no $program; install PostgreSQL with its client programs"; exit 1; }
done
cargo build --release --quiet --bin headwater
headwater=$PWD/target/release/headwater

# PostgreSQL refuses to run as root.
as_server() { if [ "$(id -u)" = 0 ]; then (cd "$work" && setpriv --reuid=postgres --regid=postgres --clear-groups "$@"); else "$@"; fi; }
sql() { "$bin/psql" -XqAt -h 127.0.0.1 -p "$pg_port" -U postgres -d postgres -v ON_ERROR_STOP=1 "$@"; }
free_port() { local port; while :; do port=$((20000 + RANDOM % 20000)); (exec 3<> /dev/tcp/127.0.0.1/$port) 2> /dev/null || { echo $port; return; }; done; }
now_ms() { date +%s%3N; }

start_postgres() {
    pg_port=$(free_port)
    mkdir "$work/pg"
    [ "$(id -u)" != 0 ] || chown postgres "$work/pg"
    as_server "$bin/initdb" -D "$work/pg/data" -U postgres -A trust -E UTF8 --locale=C --no-sync > /dev/null
    settings="port = $pg_port
listen_addresses = '127.0.0.1'
unix_socket_directories = '$work/pg'
wal_level = logical
max_wal_size = 16GB
checkpoint_timeout = 30min
shared_buffers = 512MB
max_replication_slots = 40
max_wal_senders = 40
synchronous_commit = off"
    as_server sh -c "printf '%s\n' \"$settings\" >> '$work/pg/data/postgresql.conf'"
    as_server "$bin/pg_ctl" -D "$work/pg/data" -w -l "$work/pg/log" start > /dev/null
}

load() {
    sql << SQL
CREATE TABLE bench (id int8 PRIMARY KEY, customer int8, status text, total numeric(12,2), note text, qty int4, active bool,
                    created timestamptz, updated timestamp, code varchar(32));
CREATE PUBLICATION bench FOR TABLE bench;
CREATE PROCEDURE load(n int) LANGUAGE plpgsql AS \$\$ BEGIN FOR t IN 0 .. n / 100 - 1 LOOP
  INSERT INTO bench SELECT i, i % 10000, 'status-' || i % 7, i * 1.25, 'a note of some length that pads the row to size ' || i, i % 100,
    i % 2 = 0, timestamptz '2026-01-02 03:04:05.123456+00' + i * interval '1 second', '2026-01-02 03:04:05.123456', 'code-' || i
  FROM generate_series(t * 100 + 1, t * 100 + 100) i; COMMIT; END LOOP; END \$\$;
SQL
    # Every drain has a slot of its own, made before the load, so that all read the same log.
    local round log
    for round in $(seq "$rounds"); do
        for log in recv $logs; do sql -c "SELECT pg_create_logical_replication_slot('${log}_$round', 'pgoutput')" > /dev/null; done
    done
    sql -c "CALL load($rows)"
    sql -c "CHECKPOINT"
}

start_kafka() {
    jars=$(scripts/kafka-path.sh)
    kafka_port=$(free_port)
    local controller=$(free_port) java=(java -Xms256m -Xmx512m -XX:+UseG1GC "-Dlog4j2.configurationFile=$PWD/scripts/kafka/log4j2.xml" -cp "$jars/*")
    cat > "$work/kafka.properties" << P
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$kafka_port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$kafka_port
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$work/kafka
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
auto.create.topics.enable=false
P
    "${java[@]}" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c "$work/kafka.properties" > "$work/kafka.format" 2>&1
    setsid "${java[@]}" kafka.Kafka "$work/kafka.properties" > "$work/kafka.log" 2>&1 < /dev/null &
    broker=$!
    local deadline=$((SECONDS + 60))
    until grep -q "Kafka Server started" "$work/kafka.log"; do
        [ $SECONDS -lt $deadline ] || { tail -5 "$work/kafka.log"; exit 1; }
        sleep 0.2
    done
}

drain_recv() {
    local began=$(now_ms)
    "$bin/pg_recvlogical" -h 127.0.0.1 -p "$pg_port" -U postgres -d postgres -S "recv_$1" --start -o proto_version=1 \
        -o publication_names=bench --endpos="$end" -F 0 -f /dev/null
    echo $(($(now_ms) - began))
}

# Prints milliseconds, CPU in microseconds per row, and peak memory in KiB.
drain_headwater() {
    local log=$1 round=$2 name=$1$2 dir=$work/$1$2 port=$(free_port)
    mkdir "$dir"
    local where="{ kind: embedded, path: $dir/log }"
    [ "$log" = embedded ] || where="{ kind: kafka, bootstrap_servers: [\"127.0.0.1:$kafka_port\"] }"
    cat > "$dir/headwater.yaml" << Y
log: $where
http: { listen: 127.0.0.1:$port }
connectors:
  $name:
    source: { kind: postgres, url: "postgres://postgres@127.0.0.1:$pg_port/postgres", tables: [public.bench],
              slot: ${log}_$round, publication: bench }
Y
    local began=$(now_ms) status
    "$headwater" -c "$dir/headwater.yaml" run > "$dir/output" 2>&1 &
    daemon=$!
    until status=$("$headwater" -c "$dir/headwater.yaml" status --format json 2> /dev/null) &&
        [[ $status == *"\"events\":$rows,"* ]]; do
        kill -0 $daemon 2> /dev/null || { tail -5 "$dir/output" >&2; exit 1; }
        sleep 0.1
    done
    local took=$(($(now_ms) - began)) ticks
    ticks=$(awk '{ print $14 + $15 }' "/proc/$daemon/stat")
    echo "$took $((ticks * 1000000 / $(getconf CLK_TCK) * 100 / rows)) $(awk '/VmHWM/ { print $2 }' "/proc/$daemon/status")"
    kill $daemon
    wait $daemon || true
    daemon=
    rm -rf "$dir/log"
}

trap stop_all EXIT
start_postgres
load
end=$(sql -c "SELECT pg_current_wal_flush_lsn()")
case " $logs " in *" kafka "*) start_kafka ;; esac
bytes=$(sql -c "SELECT round(avg(length(b::text))) FROM (SELECT b FROM bench b LIMIT 1000) b")
echo "$rows rows of 10 columns, $bytes bytes as text, 100 rows per transaction; $("$bin/postgres" --version); $("$headwater" --version);"
echo "$(nproc) cores shared by server, walsender, broker and headwater; default commit limits; embedded log synced at each commit"
printf '%-7s %-10s %9s %9s %7s %12s %9s\n' round drain seconds rows/s ratio "CPU µs/row" "peak MiB"
for round in $(seq "$rounds"); do
    recv=$(drain_recv "$round")
    printf '%-7s %-10s %9.2f %9d %7s\n' "$round" recvlogical "${recv}e-3" $((rows * 1000 / recv)) 1.00
    for log in $logs; do
        read -r took cpu rss <<< "$(drain_headwater "$log" "$round")"
        printf '%-7s %-10s %9.2f %9d %7.2f %12.2f %9d\n' "$round" "$log" "${took}e-3" $((rows * 1000 / took)) \
            "$((recv * 100 / took))e-2" "${cpu}e-2" $((rss / 1024))
    done
done
