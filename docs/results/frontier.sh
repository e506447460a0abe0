#!/usr/bin/env bash
# The fair frontier: ACR against the mean distance that training really used, SmoothAdv and DRF.
#
#   docs/results/frontier.sh MNIST_FOLDER RUN_FOLDER
#   python docs/results/frontier.py RUN_FOLDER docs/results/frontier.png > docs/results/frontier.json
#
# Runs of decide.sh at sigma 1.0 with other EPSILONS, seed by seed, so that the report can be asked for
# early; in the same RUN_FOLDER its runs are those of epsilon 1. 36 runs of some ten minutes of one
# core; interrupted, the same command goes on. SEEDS, and JOBS, PRECISION and FLAGS as there.
set -euo pipefail
decide=$(dirname "$(realpath "$0")")/decide.sh
data=$(realpath "$1") runs=$2
mkdir -p "$runs"
for seed in ${SEEDS:-0 1 2}; do
  for epsilon in ${EPSILONS:-0.5 0.75 1 1.25 1.5 2}; do
    printf "1.0 %s $seed $epsilon\n" baseline prox
  done
done | xargs -P "${JOBS:-2}" -L 1 "$decide" one "$data" "$runs"
