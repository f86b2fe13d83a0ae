#!/usr/bin/env bash
# Builds the release binary, finds or gets a PostgreSQL, and runs the demo. Arguments go to `headwater demo`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/need.sh
binary=${CARGO_TARGET_DIR:-target}/release/headwater
[ -x "$binary" ] || echo "building headwater; the first time takes some minutes (Kafka client, OpenSSL and SQLite are compiled too)"
cargo build --release --quiet --bin headwater
HEADWATER_PG_BIN=$(scripts/postgres-path.sh)
export HEADWATER_PG_BIN
exec "$binary" demo "$@"
