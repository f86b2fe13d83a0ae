#!/bin/sh
# The long run: kills on both logs, then the simulation where its script is there.
set -eu
cd "$(dirname "$0")"
./soak-kill.sh
if [ -x ./soak-simulation.sh ]; then ./soak-simulation.sh; fi
