#!/usr/bin/env bash
# Runs on any machine with an NVIDIA GPU, from a plain checkout: the GPU tests, then the main commands on real sizes.
# Reports and logs are left in the folder named by the first argument (default: gpu-acceptance). Python: $PYTHON.
# SECONDS_MAX (default 540) bounds the whole; a part that does not fit any more is skipped and named. PARTS, a pattern
# such as 'tests|doctor|compare-resnet50.*', runs some parts only, so that several calls can share the work.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=$(mkdir -p "${1:-gpu-acceptance}" && cd "${1:-gpu-acceptance}" && pwd)
SECONDS_MAX=${SECONDS_MAX:-540}
PARTS=${PARTS:-.*}
export PYTHONUNBUFFERED=1
failed=0

part() { # part NAME SECONDS COMMAND...: runs a part if its time is left, and keeps its output
    local name=$1 limit=$2 left=$((SECONDS_MAX - SECONDS)); shift 2
    [[ $name =~ ^($PARTS)$ ]] || return 0
    if ((left < 20)); then echo "SKIPPED $name: ${left} s left"; failed=1; return; fi
    ((limit < left)) || limit=$left
    echo "=== $name (at ${SECONDS} s, limit ${limit} s)"
    if timeout "$limit" "$@" >"$OUT/$name.out" 2>"$OUT/$name.log"; then
        echo "ok $name"
    else
        echo "FAILED $name with exit code $?"; tail -n 15 "$OUT/$name.log" "$OUT/$name.out"; failed=1
    fi
}

part tests 200 "$PYTHON" -m pytest -q -m gpu tests -p no:cacheprovider
part doctor 60 "$PYTHON" -m gpubench doctor
for workload in resnet50 vae unet3d; do
    for mode in inference training; do
        part "compare-$workload-$mode" 400 "$PYTHON" -m gpubench compare-opts "$workload" --mode "$mode" \
            --output "$OUT/$workload-$mode.json"
    done
done
part batch-sweep 90 "$PYTHON" -m gpubench batch-sweep resnet50 --sizes 1 2 4 8 16 32 64 128 256 \
    --fix precision=bf16-autocast --output "$OUT/resnet50-batch-sweep.json"
part tile-sweep 90 "$PYTHON" -m gpubench tile-sweep vae --sizes 256 512 1024 --overlaps 32 64 --resolution 2048 \
    --fix precision=bf16-autocast --output "$OUT/vae-tile-sweep.json"
part agreement 60 "$PYTHON" benchmarks/agreement.py
part studies 240 "$PYTHON" benchmarks/studies.py "$OUT/studies.json" resnet50 60 20
part intervals 30 "$PYTHON" benchmarks/intervals.py "$OUT/studies.json"
part check 30 "$PYTHON" -m gpubench check "$OUT"/resnet50-inference.json --baseline "$OUT"/resnet50-inference.json --inconclusive-ok
part ab 200 "$PYTHON" -m gpubench ab --a examples/my_model.py:denoiser --b examples/my_model.py:denoiser \
    --output "$OUT/ab" --inconclusive-ok
part calibration 300 "$PYTHON" benchmarks/calibration.py measure "$OUT/calibration.json" resnet50 4
part calibration-table 60 "$PYTHON" benchmarks/calibration.py table "$OUT/calibration.json"
part recommend 20 "$PYTHON" -m gpubench recommend "$OUT"/*-inference.json
exit $failed
