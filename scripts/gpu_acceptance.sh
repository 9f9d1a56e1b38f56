#!/usr/bin/env bash
# What gpubench does on a machine with an NVIDIA GPU, from a plain checkout and without network, in three calls of at
# most 10 minutes each:
#
#   scripts/gpu_acceptance.sh first|second|third [FOLDER]
#
# FOLDER (default: $OUT, else gpu-acceptance) gets two files: verdicts-CALL.txt, one line for each part, and
# gpu-acceptance-CALL.tar.gz, with all that the parts wrote. Each part has a hard limit of its own (SIGINT, so that it can
# write what it has; SIGKILL 5 s later) and needs no other part. The exit code is 1 unless every part is ok.
#
# Needs PYTHON (default python3) with gpubench's requirements and pytest; pytest-xdist, if it is there, makes the tests
# faster. Of these, images with PyTorch often lack msgspec: carry its wheel.
# PARTS, a pattern such as 'tests.*|facts', runs some parts only. DEVICE=cpu SIZE=tiny tries the script without a GPU.
# LIMIT and SECONDS_MAX shorten it. DRY_RUN=1 prints the parts, their limits and command lines.
set -uo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CALL=${1:-}
[[ $CALL =~ ^(first|second|third)$ ]] || { echo "usage: $0 first|second|third [FOLDER]" >&2; exit 2; }
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda:0}
SIZE=${SIZE:-base}
PARTS=${PARTS:-.*}
SECONDS_MAX=${SECONDS_MAX:-585} # of the whole; a part that does not fit any more has less, or none
LIMIT=${LIMIT:-600} # no part has more seconds than that
DRY_RUN=${DRY_RUN:-}
export PYTHONUNBUFFERED=1
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} # a checkout is not installed, and scripts begin in their own folder
failed=0

if [[ -z $DRY_RUN ]]; then
    FOLDER=${2:-${OUT:-gpu-acceptance}}
    mkdir -p "$FOLDER" || exit 2
    FOLDER=$(cd "$FOLDER" && pwd)
    WORK=$(mktemp -d)
    : >"$FOLDER/verdicts-$CALL.txt"
    pack() {
        tar -czf "$FOLDER/gpu-acceptance-$CALL.tar.gz" -C "$WORK" . && rm -rf "$WORK"
    }
    trap pack EXIT
    trap 'exit 143' TERM INT
    exec < /dev/null
else
    WORK=WORK
fi
cd "$ROOT" || exit 2

part() { # part NAME SECONDS COMMAND...: runs one part within its limit, and judges what it wrote
    local name=$1 limit=$2 begun=$SECONDS code=0
    shift 2
    [[ $name =~ ^($PARTS)$ ]] || return 0
    if [[ -n $DRY_RUN ]]; then
        printf '%s %s' "$name" "$limit"
        printf ' %q' "$@"
        echo
        return 0
    fi
    local left=$((SECONDS_MAX - SECONDS - 10))
    if ((left < 10)); then
        echo "SKIPPED $name: no time was left" | tee -a "$FOLDER/verdicts-$CALL.txt"
        failed=1
        return 0
    fi
    ((limit <= left)) || limit=$left
    ((limit <= LIMIT)) || limit=$LIMIT
    timeout --signal=INT --kill-after=5 "$limit" "$@" >"$WORK/$name.out" 2>"$WORK/$name.log" || code=$?
    "$PYTHON" scripts/gpu_verdicts.py "$WORK" "$name" "$code" "$((SECONDS - begun))" |
        tee -a "$FOLDER/verdicts-$CALL.txt" || failed=1
    cp "$FOLDER/verdicts-$CALL.txt" "$WORK"
}

gpubench() { # gpubench NAME SECONDS ARGUMENTS...
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$PYTHON" -m gpubench "$@" --device "$DEVICE"
}

corpus() { # corpus KIND SECONDS: a part of that name, whose models share the time
    part "corpus-$1" "$2" "$PYTHON" scripts/gpu_corpus.py "$1" "$WORK" --device "$DEVICE" --size "$SIZE" \
        --limit $(($2 - 4))
}

tests() { # tests NAME SECONDS ARGUMENTS...: the inductor of each test compiles by itself, as many tests run at once
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" env TORCHINDUCTOR_COMPILE_THREADS=1 "$PYTHON" -m pytest -q -p no:cacheprovider \
        --junitxml "$WORK/$name.xml" "$@"
}

parallel=()
"$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n $(($(nproc) < 12 ? $(nproc) : 12)))

first() {
    gpubench doctor 20 doctor --format json
    part facts 20 "$PYTHON" scripts/gpu_facts.py "$WORK/facts.json" --device "$DEVICE"
    corpus eager 105
    corpus compiled 45
    tests tests-toggles 105 "${parallel[@]}" -k 'not max-autotune' tests/gpu/test_toggles_gpu.py
    tests tests-trace 25 tests/gpu/test_trace_gpu.py tests/gpu/test_memory_gpu.py
    gpubench compare-resnet50 145 compare-opts resnet50 --size "$SIZE" --batch-size 128 --allow contaminated \
        --set precision=tf32,bf16-autocast --set channels_last=on --set compile=default --strategy ladder \
        --final-rounds 0 --output "$WORK/compare-resnet50.json"
    gpubench compare-unet3d 70 compare-opts unet3d --size "$SIZE" --mode training --allow contaminated \
        --set precision=fp16-autocast --set optimizer=fused --strategy each --final-rounds 0 \
        --output "$WORK/compare-unet3d.json"
    gpubench sweep-resnet50 35 batch-sweep resnet50 --size "$SIZE" --sizes 32 256 --rounds 1 --max-memory 6GiB \
        --allow contaminated --output "$WORK/sweep-resnet50.json"
}

second() {
    part calibration 90 "$PYTHON" benchmarks/calibration.py measure "$WORK/calibration.json" "resnet50/$SIZE" 1
    gpubench final-resnet50 115 compare-opts resnet50 --size "$SIZE" --set precision=bf16-autocast --strategy each \
        --final-rounds 3 --allow contaminated --output "$WORK/final-resnet50.json"
    gpubench compare-vae 105 compare-opts vae --size "$SIZE" --preset quick --strategy each --final-rounds 0 \
        --allow contaminated --output "$WORK/compare-vae.json"
    gpubench max-autotune 130 compare-opts resnet50 --size "$SIZE" --set compile=max-autotune --strategy each \
        --fix precision=bf16-autocast --final-rounds 0 --allow contaminated --output "$WORK/max-autotune.json"
    part agreement 50 "$PYTHON" benchmarks/agreement.py 4
    gpubench ab 70 ab --a examples/my_model.py:denoiser --b examples/my_model.py:denoiser --time-limit 20s \
        --inconclusive-ok --format json --output "$WORK/ab"
}

third() {
    tests tests-numerics 180 "${parallel[@]}" tests/gpu/test_numerics_gpu.py
    tests tests-steps 180 "${parallel[@]}" tests/gpu/test_steps_gpu.py tests/gpu/test_memory_toggles_gpu.py
    tests tests-tiles 180 "${parallel[@]}" tests/gpu/test_tiles_and_norms_gpu.py tests/gpu/test_environment_gpu.py
}

"$CALL"
exit $failed
