#!/usr/bin/env bash
# The fair frontier: ACR against the mean distance that training really used, SmoothAdv and DRF.
#
#   docs/results/frontier.sh MNIST_FOLDER RUN_FOLDER
#   python docs/results/frontier.py RUN_FOLDER docs/results/frontier.png > docs/results/frontier.json
#
# A sweep of EPSILONS for each method and seed of SEEDS ("0 1 2"), seed by seed, so that the report can
# be asked for after each; sigma 1.0, all else as in decide.sh, whose runs are those of epsilon 1. JOBS
# (2) sweeps go side by side, of one thread each; interrupted, the same command goes on. 30 runs of some
# ten minutes of one core.
# PRECISION (fp32) is the arithmetic; FLAGS are more flags of sweep, such as --device cuda.
set -euo pipefail
export OMP_NUM_THREADS=1
if [ "$1" = one ]; then # MNIST_FOLDER RUN_FOLDER WHICH SEED
  sweep=$3/$4-$5
  trap 'echo "$sweep failed, see $sweep.log" >&2' ERR
  flags=(--drf)
  [ "$4" = drf ] || flags=(--no-drf)
  drf-fast sweep --out "$sweep" --resume --vary "epsilon=${EPSILONS:-0.5,0.75,1.25,1.5,2}" \
    --seeds "$5" --method smoothadv "${flags[@]}" --data mnist --data-dir "$2" \
    --train-images 20000 --sigma 1.0 --epochs 8 --num-samples 2 --steps 4 --lr 0.02 \
    --precision "${PRECISION:-fp32}" --memory-format channels_last --threads 1 --n 1000 --skip 10 \
    ${FLAGS:-} >>"$sweep.log" 2>&1
  exit
fi
data=$(realpath "$1") runs=$2
mkdir -p "$runs"
for seed in ${SEEDS:-0 1 2}; do
  printf "%s $seed\n" smoothadv drf
done | xargs -P "${JOBS:-2}" -L 1 "$0" one "$data" "$runs"
