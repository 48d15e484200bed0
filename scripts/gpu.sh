#!/usr/bin/env bash
# One card, twelve minutes. First: python scripts/pack.py --data FOLDER --out pets.tar, with --side 288 for the last runs
#
#   PACK=pets.tar OUT=out scripts/gpu.sh tests default students networks study speed      # the parts that are named, in order
#   PACK=pets.tar OUT=out SMALL=1 scripts/gpu.sh students networks                # trained tiny: try it on a CPU first
#
# OUT gets log.txt, and weights and JSON as each part ends. A part that fails or overruns is logged, and the next begins.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} work=${WORK:-/tmp/petseg-gpu} total=${SECONDS_ALL:-560}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export PETSEG_DATA=$work/pets PETSEG_CACHE=$work/cache
mkdir -p "$OUT" "$work/pets"
[ -d "$work/pets/annotations" ] || tar xf "$PACK" -C "$work/pets"
small=(); [ -n "${SMALL:-}" ] && small=(--set epochs=1 --set size=32 --set ramp=[] --set fraction=0.02)

log() { echo "[$SECONDS s] $*" | tee -a "$OUT/log.txt"; }

limited() { # LIMIT COMMAND...: for as long as it may and as time is left; Ctrl-C's signal leaves a run that can be kept
    local limit=$1 left=$((total - SECONDS)) began=$SECONDS code=0; shift
    [ "$limit" -gt "$left" ] && limit=$left
    [ "$limit" -lt 8 ] && { log "LEFT OUT, no time: $*"; return 1; }
    timeout -s INT -k 10 "$limit" "$@" >>"$OUT/log.txt" 2>&1 || code=$?
    log "took $((SECONDS - began)) s, exit code $code: ${*:2:6}"
    return "$code"
}

run() { # NAME LIMIT RECIPE ARGUMENTS...: trains, and keeps weights and scores on validation
    local name=$1 limit=$2; shift 2
    limited "$limit" "$python" -m petseg train "$@" "${small[@]}" --out "$work/runs/$name"
    limited 40 "$python" -m petseg evaluate "$work/runs/$name" --split val
    limited 20 "$python" scripts/pack.py --run "$work/runs/$name" --out "$work/$name.tar" && mv "$work/$name.tar" "$OUT"
}

tests() { limited 90 env CUBLAS_WORKSPACE_CONFIG=:4096:8 "$python" -m pytest tests/test_gpu.py -p no:cacheprovider -rs --tb=short; }

default() { # the shipped default model, on from its weights at 320 px, with the camera's faults halved
    local key faults=(); for key in light=0.1 blur=0.06 shrink=0.1 noise=0.08 jpeg=0.2; do faults+=(--set "train.augment.$key"); done
    local tuned=(--set size=320 --set epochs="${EPOCHS:-40}" --set learning_rate=1e-3 --set batch_size=48)
    run unet_lite2 600 pretrained --init unet_lite2 "${tuned[@]}" "${faults[@]}"
}

students() { # the shipped U-Net and SegNet, on from their weights, taught by the default model, both at once
    taught unet & taught segnet & wait
}

taught() { # MODEL
    run "$1_taught" 700 taught --model "$1" --init "$1_base" --set compile=true
    [ -f "$OUT/$1_taught.tar" ] || run "$1_eager" 700 taught --model "$1" --init "$1_base" # where it cannot be compiled
}

networks() { # the comparison's seven at 192 px, four at a time
    local model number=0
    while read -r model; do
        run "network$number" 300 networks --model "$model" --set size=192 &
        number=$((number + 1)); ((number % 4)) || wait
    done < <("$python" -c 'import tomllib; print(*tomllib.load(open("petseg/recipes/networks.toml", "rb"))["models"], sep="\n")')
    wait
}

study() { # what a study of small images gets done in the time, sixteen runs at once
    limited 500 "$python" -m petseg study ${STUDY:+"$STUDY"} --jobs "${JOBS:-16}" --out "$work/study"
    tar cf "$OUT/study.tar" --exclude='*.safetensors' -C "$work" study # `petseg study --out` goes on from it
}

speed() {
    limited 120 "$python" benchmarks/train_speed.py --out "$OUT/train_speed.json"
    limited 60 "$python" -m petseg compare --recipe speedrun --set protocol=official --out "$work/speedrun"
    cp "$work/speedrun/comparison.json" "$OUT/speedrun.json"
}

log "began $(date -u +%FT%TZ): $*; $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1 | head -1)"
for part in "$@"; do "$part"; done
log "ended; $(ls "$OUT" | tr '\n' ' ')"
