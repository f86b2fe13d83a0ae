#!/bin/sh
# Kills the daemon at least HEADWATER_SOAK_KILLS times (default 1000) on all databases and logs together, in rounds with a seed each, and prints
# what happened as a Markdown table. Every round is audited; the first one that fails ends the run with its output.
set -eu
cd "$(dirname "$0")/.."
wanted=${HEADWATER_SOAK_KILLS:-1000}
per_round=${HEADWATER_KILLS:-50}
seed=${HEADWATER_SEED:-$(date +%s)}
# Each database has both logs; from 30 kills on also MariaDB and MySQL, which share them in shorter runs.
if [ "$per_round" -ge 30 ]; then runs=6; else runs=4; fi
cargo test --test blackbox --no-run
output=$(mktemp)
trap 'rm -f "$output"' EXIT
echo "First seed: $seed"
echo
echo "| seed | database and log | kills that hit uncommitted work | of a daemon in mid-work | events audited | what happened |"
echo "|---|---|---|---|---|---|"
done=0
while [ "$done" -lt "$wanted" ]; do
    if ! HEADWATER_SEED=$seed HEADWATER_KILLS=$per_round cargo test -q --test blackbox -- --nocapture kills_lose >"$output" 2>&1; then
        cat "$output"
        exit 1
    fi
    # A log that was not audited has no line, and then the round shows nothing. The harness may print a dot in front.
    rows=$(sed -n 's/^\.*kill: | /| /p' "$output")
    if [ "$(printf '%s\n' "$rows" | grep -c '^| ')" -ne "$runs" ]; then
        cat "$output"
        echo "seed $seed: not every log was audited" >&2
        exit 1
    fi
    printf '%s\n' "$rows"
    done=$((done + runs * per_round))
    seed=$((seed + 1))
done
echo
echo "$done kills that hit uncommitted work, nothing lost and nothing repeated."
