#!/usr/bin/env bash
# The paper's protocol at full size: trains and certifies what docs/results.md begins with.
#
#   docs/results/full.sh MNIST_FOLDER RUN_FOLDER
#   python docs/results/full.py RUN_FOLDER > docs/results/full.json
#
# Each of METHODS (all eight) is trained by its recipe, nothing shortened: 90 epochs of 60,000 images,
# m = 4, T = 10, batch 256, one seed (SEED, 0) at SIGMA (1.0). Then every 5th test image (SKIP, 5) is
# certified at n = 100,000, and all 10,000 at n = 1,000.
# METHOD-published is the method as published code reads the recipe: batches split into m steps, the
# learning rate dropped an epoch late, momentum without Nesterov.
#
# JOBS (2) networks side by side, of THREADS (1) each; interrupted, at any place, the same command
# goes on. PRECISION (bf16) is the arithmetic; on a processor without it fp32 is faster. BATCH
# (auto) are the rows of a forward pass in certification; FLAGS are more flags of both commands, such
# as --device cuda.
set -Eeuo pipefail
export OMP_NUM_THREADS=${THREADS:-1}
if [ "$1" = one ]; then # MNIST_FOLDER RUN_FOLDER METHOD
  name=${SIGMA:-1.0}-$4-${SEED:-0}
  run=$3/$name recipe=${4%-published} flags=()
  trap 'echo "$run failed, see $run.log" >&2' ERR
  if [ "$recipe" != "$4" ]; then flags=(--split-batches --late-drop --no-nesterov); fi
  precision=(--precision "${PRECISION:-bf16}" --memory-format channels_last)
  # shellcheck disable=SC2086  # FLAGS are several words
  drf-fast train --out "$run" --resume --recipe "mnist-$recipe" "${flags[@]}" \
    --sigma "${SIGMA:-1.0}" --seed "${SEED:-0}" --data-dir "$2" --threads "$OMP_NUM_THREADS" \
    --certify-images 0 "${precision[@]}" ${FLAGS:-} >>"$run.log" 2>&1
  certify() { # FOLDER OF THE LOGS, FLAGS
    mkdir -p "$1"
    # shellcheck disable=SC2086
    drf-fast certify "$run" --out "$1/$name.tsv" --resume --data-dir "$data" "${@:2}" \
      "${precision[@]}" --batch-size "${BATCH:-auto}" ${FLAGS:-} >>"$run.log" 2>&1
  }
  data=$2
  certify "$3/n100000" --n 100000 --skip "${SKIP:-5}"
  certify "$3/n1000" --n 1000
  exit
fi
data=$(realpath "$1") runs=$2
mkdir -p "$runs"
printf '%s\n' ${METHODS:-gaussian stability macer smoothmix smoothadv smoothadv-drf consistency consistency-drf} |
  xargs -P "${JOBS:-2}" -I '{}' "$0" one "$data" "$runs" '{}'
