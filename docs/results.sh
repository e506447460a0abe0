#!/usr/bin/env bash
# The runs behind docs/results.md. Usage: docs/results.sh MNIST_FOLDER RUN_FOLDER
# Interrupted, the same command goes on where it stopped. One thread a run, so that results do not
# depend on the number of cores; SEEDS=0 and SEEDS=1 may run side by side.
set -euo pipefail
data=$(realpath "$1") runs=$2
mkdir -p "$runs"
export OMP_NUM_THREADS=1

for seed in ${SEEDS:-0 1}; do
  for name in gaussian smoothadv smoothadv+drf; do
    case $name in
      gaussian) method=(--method gaussian) ;;
      smoothadv) method=(--method smoothadv --no-drf --steps 4 --epsilon 1.0) ;;
      smoothadv+drf) method=(--method smoothadv --drf --steps 4 --epsilon 1.0) ;;
    esac
    folder="$runs/$name-seed$seed"
    drf-fast train --out "$folder" --resume --data mnist --data-dir "$data" --train-images 20000 \
      --sigma 1.0 --num-samples 2 --epochs 8 --batch-size 64 --lr 0.05 --precision bf16 \
      --memory-format channels_last --seed "$seed" --certify-images 0 "${method[@]}"
    drf-fast certify "$folder" --out "$runs/$name-seed$seed.tsv" --resume --data-dir "$data" \
      --skip 25 --n 2000 --precision bf16 --memory-format channels_last --batch-size 256
  done
done
cd "$runs"
drf-fast report ./*.tsv --format json --no-paper >results.json
drf-fast report ./*.tsv --format markdown --no-paper
