#!/usr/bin/env bash
# Drains the same backlogs of PostgreSQL, MariaDB and MySQL by the database's own clients, by headwater into each log and by Debezium, in
# turn; of PostgreSQL it also measures latency, restart and idle memory. What to leave out or change is said by variables: see benches/main.rs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/need.sh
scripts/kafka-path.sh > /dev/null
[ "${DEBEZIUM:-on}" = off ] || scripts/debezium-path.sh > /dev/null
exec cargo bench --quiet --bench bench
