#!/usr/bin/env bash
# Which reading is DRF? The sweeps behind docs/results.md; each goes on where it stopped.
#
#   docs/results/reading.sh MNIST_FOLDER RUN_FOLDER PART ...
#
#   baseline                 the hard ball, gradients normalised by image and by batch
#   baseline-wide            the hard ball at the mean distance of excess-image-epoch, lambda0 = 0.5
#   prox-image ...           FORM-GRADNORM: lambda0 in 0.5, 1, 2, lambda changed at every step
#   prox-image-rate ...      the rate zeta in 0.001, 0.005, 0.02, 0.1
#   prox-image-kappa ...     kappa in 10, 100, 300, 1000
#   prox-image-epoch ...     as the first, lambda changed once an epoch; -epoch-rate, -epoch-kappa
#   report                   of claims 1 and 2: paired differences, JSON, for what has been run
#
# JOBS (2) parts run side by side, of one thread each; SEEDS (0) are the training seeds.
set -euo pipefail
if [ "$1" != one ]; then
  data=$(realpath "$1") runs=$2
  shift 2
  mkdir -p "$runs"
  printf '%s\n' "$@" | xargs -P "${JOBS:-2}" -I '{}' "$0" one "$data" "$runs" '{}'
  exit
fi
data=$2 runs=$3 part=$4
export OMP_NUM_THREADS=1
if [ "$part" = report ]; then
  cd "$runs"
  differ() { drf-fast report "$2/certificates.tsv" "$3/certificates.tsv" --compare --no-paper \
    --format json >"$1.json"; }
  half="excess-image-epoch/lambda0=0.5_seed=0"
  differ half-minus-baseline "baseline/grad-norm=image_seed=0" "$half"
  differ half-minus-wide "baseline-wide/epsilon=1.3_seed=0" "$half"
  for reading in *; do
    [ -d "$reading/lambda0=2_seed=0" ] || continue
    differ "claim1-$reading" "baseline/grad-norm=image_seed=0" "$reading/lambda0=1_seed=0"
    differ "claim2-$reading" "$reading/lambda0=0.5_seed=0" "$reading/lambda0=2_seed=0"
  done
  exit
fi
IFS=- read -r form norm what <<<"$part"
flags=(--drf --form "$form" --grad-norm "$norm")
# Without updates at every step lambda0 lasts, and 1 is the hard ball at any rate.
case $what in
  epoch*) flags+=(--lambda-every epoch) lambda0=0.5 ;;
  *) flags+=(--lambda-every 1) lambda0=1 ;;
esac
case $part in
  baseline-wide) flags=(--no-drf --vary epsilon=1.3) ;;
  baseline) flags=(--no-drf --vary grad-norm=image,batch) ;;
  *-rate) flags+=(--lambda0 "$lambda0" --vary lambda-lr=0.001,0.005,0.02,0.1) ;;
  *-kappa) flags+=(--lambda0 "$lambda0" --vary kappa=10,100,300,1000) ;;
  *) flags+=(--vary lambda0=0.5,1,2) ;;
esac
drf-fast sweep --out "$runs/$part" --resume --method smoothadv "${flags[@]}" --data mnist \
  --data-dir "$data" --train-images 20000 --sigma 1.0 --epochs 8 --num-samples 2 --steps 4 \
  --lr 0.02 --precision bf16 --memory-format channels_last --threads 1 \
  --seeds "${SEEDS:-0}" --n 1000 --skip 10
