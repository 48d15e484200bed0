#!/usr/bin/env bash
# Measures everything about inference anew and writes the documents: benchmarks/inference.sh LIGHT_PYTHON [DATA]
# LIGHT_PYTHON is the interpreter of an environment with `pip install .` alone, DATA the data set (or PETSEG_DATA).
# Results are put in place at the end, so that each of them names a clean commit.
set -euo pipefail
light=$(realpath -s "${1:?the python of an environment without torch}")
export PETSEG_DATA=${2:-${PETSEG_DATA:?name the data set}}
cd "$(dirname "$0")/.."
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT

python -m petseg bench --size 128,256 --threads 1,2 --out "$found/inference.json"
python benchmarks/predict_speed.py --python "$light" --out "$found/predict_speed.json"
python benchmarks/indices.py --out "$found/indices.json"
python scripts/quantise.py --test --out "$found/int8.json"
cp "$found"/*.json results/benchmarks/
python scripts/update_docs.py
