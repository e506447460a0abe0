#!/usr/bin/env bash
# The fair frontier: ACR against the mean distance that training really used, SmoothAdv and DRF.
#
#   docs/results/frontier.sh MNIST_FOLDER RUN_FOLDER
#   python docs/results/frontier.py RUN_FOLDER docs/results/frontier.png > docs/results/frontier.json
#
# Two sweeps side by side, of one thread each: epsilon in EPSILONS, seeds in SEEDS (0,1,2), sigma 1.0,
# all else as in decide.sh. Interrupted, the same command goes on. 36 runs of some ten minutes of one
# core. PRECISION (fp32) is the arithmetic; FLAGS are more flags of sweep, such as --device cuda.
set -euo pipefail
export OMP_NUM_THREADS=1
if [ "$1" = one ]; then # MNIST_FOLDER RUN_FOLDER WHICH
  trap 'echo "$3/$4 failed, see $3/$4.log" >&2' ERR
  flags=(--drf)
  [ "$4" = drf ] || flags=(--no-drf)
  drf-fast sweep --out "$3/$4" --resume --vary "epsilon=${EPSILONS:-0.5,0.75,1,1.25,1.5,2}" \
    --seeds "${SEEDS:-0,1,2}" --method smoothadv "${flags[@]}" --data mnist --data-dir "$2" \
    --train-images 20000 --sigma 1.0 --epochs 8 --num-samples 2 --steps 4 --lr 0.02 \
    --precision "${PRECISION:-fp32}" --memory-format channels_last --threads 1 --n 1000 --skip 10 \
    ${FLAGS:-} >>"$3/$4.log" 2>&1
  exit
fi
data=$(realpath "$1") runs=$2
mkdir -p "$runs"
printf '%s\n' smoothadv drf | xargs -P "${JOBS:-2}" -I '{}' "$0" one "$data" "$runs" '{}'
