#!/usr/bin/env bash
# Format, clippy, and, where cargo-deny is installed, licences, sources and duplicates of the dependencies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/need.sh
cargo fmt --all -- --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
if command -v cargo-deny > /dev/null; then cargo deny --all-features check licenses bans sources; fi
