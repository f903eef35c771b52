#!/bin/sh
# What we save, read by the real `transformers`: every backbone's logits must agree. Needs Python with torch and
# transformers (`PYTHON=… tests/read_by_transformers.sh`); without them it says so and does nothing.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import torch, transformers' 2>/dev/null; then
    echo "skipped: $PYTHON has no torch and transformers"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cargo run --release --quiet --example save_models -- "$folder"
exec "$PYTHON" tests/read_by_transformers.py "$folder"
