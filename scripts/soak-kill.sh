#!/bin/sh
# Kills the daemon at least HEADWATER_SOAK_KILLS times (default 1000) on both logs, in rounds with a seed each, and prints what
# happened as a Markdown table. Every round is audited; the first one that fails ends the run with its output.
set -eu
cd "$(dirname "$0")/.."
wanted=${HEADWATER_SOAK_KILLS:-1000}
per_round=${HEADWATER_KILLS:-50}
seed=${HEADWATER_SEED:-$(date +%s)}
cargo test --test blackbox --no-run
output=$(mktemp)
trap 'rm -f "$output"' EXIT
echo "First seed: $seed"
echo
echo "| seed | what happened, one line per log |"
echo "|---|---|"
done=0
while [ "$done" -lt "$wanted" ]; do
    if ! HEADWATER_SEED=$seed HEADWATER_KILLS=$per_round cargo test -q --test blackbox -- --nocapture kills_lose >"$output" 2>&1; then
        cat "$output"
        exit 1
    fi
    sed -n "s/^kill: seed $seed: Kills { \(.*\) }$/| $seed | \1 |/p" "$output"
    # Both logs count.
    done=$((done + 2 * per_round))
    seed=$((seed + 1))
done
echo
echo "$done kills that hit uncommitted work, nothing lost and nothing repeated."
