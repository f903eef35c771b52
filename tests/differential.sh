#!/bin/sh
# Random small models of every type, saved by the real `transformers`, loaded here, and the other way round: all logits
# must agree. Needs Python with torch, transformers and safetensors; without them it says so and does nothing.
#
#   PYTHON=venv/bin/python tests/differential.sh [COUNT [SEED]]
#
# COUNT (200) models of each type are read here; a quarter of them is saved here and read there.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import torch, transformers, safetensors' 2>/dev/null; then
    echo "skipped: $PYTHON has no torch, transformers and safetensors"
    exit 0
fi
folder=${FOLDER:-$(mktemp -d)}
[ -n "${FOLDER:-}" ] || trap 'rm -rf "$folder"' EXIT
"$PYTHON" tests/differential.py make "$folder" "${1:-200}" "${2:-1}"
cargo run --release --quiet --example logits -- "$folder" >"$folder.txt"
"$PYTHON" tests/differential.py compare "$folder" "$folder.txt"
