#!/usr/bin/env bash
# Which reading is DRF? The sweeps behind docs/results.md; each goes on where it stopped.
#
#   docs/results/reading.sh PART MNIST_FOLDER RUN_FOLDER
#
# PART, in the order in which they are of use:
#   baseline                 the hard ball, gradients normalised by image and by batch
#   prox-image ...           FORM-GRADNORM: lambda0 in 0.5, 1, 2, lambda changed at every step
#   prox-image-epoch ...     the same, lambda changed once an epoch
#   prox-image-rate ...      the rate zeta in 0.001 ... 0.1
#   prox-image-kappa ...     kappa in 10 ... 1000
# SEEDS (0,1,2) are the training seeds.
set -euo pipefail
part=$1 data=$(realpath "$2") runs=$3
IFS=- read -r form norm what <<<"$part"
case $part in
  baseline) flags=(--no-drf --vary grad-norm=image,batch) ;;
  *) flags=(--drf --form "$form" --grad-norm "$norm") ;;
esac
case $what in
  epoch) flags+=(--lambda-every epoch --vary lambda0=0.5,1,2) ;;
  rate) flags+=(--vary lambda-lr=0.001,0.005,0.02,0.1) ;;
  kappa) flags+=(--vary kappa=10,100,300,1000) ;;
  "") [ "$part" = baseline ] || flags+=(--vary lambda0=0.5,1,2) ;;
esac
drf-fast sweep --out "$runs/$part" --resume --method smoothadv "${flags[@]}" --data mnist \
  --data-dir "$data" --train-images 20000 --sigma 1.0 --epochs 8 --num-samples 2 --steps 4 \
  --lr 0.02 --precision bf16 --memory-format channels_last --threads "${THREADS:-1}" \
  --seeds "${SEEDS:-0,1,2}" --n 1000 --skip 10
