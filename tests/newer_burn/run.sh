#!/bin/sh
# Builds and runs a project on a newer Burn that uses gradmem, and says how long that took: about six minutes on 2 cores.
set -eu
cd "$(dirname "$0")"
start=$(date +%s)
cargo check --quiet
checked=$(date +%s)
cargo run --quiet
cargo run --quiet --bin nested
echo "crates: $(grep -c '^name = ' Cargo.lock), cargo check: $((checked - start)) s, cargo run: $(($(date +%s) - checked)) s"
