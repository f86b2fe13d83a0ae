#!/usr/bin/env bash
# The simulation over many seeds, in portions, so that a stop loses little. A failure names its seed and ends the run.
#
# HEADWATER_SEEDS        how many (default 1000000)
# HEADWATER_FIRST_SEED   where to begin (default 0)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

total=${HEADWATER_SEEDS:-1000000}
first=${HEADWATER_FIRST_SEED:-0}
end=$((first + total))
began=$SECONDS

cargo test --lib --no-run --quiet
while [ "$first" -lt "$end" ]; do
    count=$((end - first < 20000 ? end - first : 20000))
    echo "== $count seeds from $first"
    HEADWATER_FIRST_SEED=$first HEADWATER_SEEDS=$count cargo test --lib --quiet simulation::every_seed -- --nocapture
    first=$((first + count))
done
echo "$total seeds in $((SECONDS - began)) s, none failed"
