#!/usr/bin/env bash
# Measures inference anew, but for cold starts, and writes the documents: benchmarks/inference.sh [DATA]
# DATA is the data set (or PETSEG_DATA).
# Results are put in place at the end, so that each of them names a clean commit.
set -euo pipefail
export PETSEG_DATA=${1:-${PETSEG_DATA:?name the data set}}
cd "$(dirname "$0")/.."
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT

python -m petseg bench --size 128,256 --threads 1,2 --out "$found/inference.json"
python benchmarks/predict_speed.py --out "$found/predict_speed.json"
python benchmarks/indices.py --out "$found/indices.json"
python scripts/quantise.py --test --out "$found/int8.json"
cp "$found"/*.json results/benchmarks/
python scripts/update_docs.py
