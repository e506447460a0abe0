#!/usr/bin/env bash
# Which reading of DRF is the default? The runs of the rule in docs/results.md, and their report:
#
#   docs/results/decide.sh MNIST_FOLDER RUN_FOLDER
#   python docs/results/decide.py RUN_FOLDER > docs/results/decide.json
#
# JOBS (2) runs go side by side, of one thread each; interrupted, the same command goes on where it
# stopped. PRECISION (fp32) is the arithmetic of training and certification. A run takes some ten
# minutes of one core; there are 25, the seeds one by one, so that the report can be asked for early.
# FLAGS are more flags of train and certify: "--device cuda" (JOBS=1) makes it seconds a run.
set -euo pipefail
export OMP_NUM_THREADS=1
if [ "$1" = one ]; then # MNIST_FOLDER RUN_FOLDER SIGMA KIND SEED [EPSILON]
  epsilon=${7:-1} run=$3/$4-$5-$6
  [ "$epsilon" = 1 ] || run+=-$epsilon
  trap 'echo "$run failed, see $run.log" >&2' ERR
  case $5 in
    baseline) flags=(--no-drf) ;;
    udr) flags=(--drf --form udr --lambda-every 10 --lambda0 1) ;;
    *) flags=(--drf --form "$5" --lambda-every 1 --lambda0 1) ;;
  esac
  drf-fast train --out "$run" --resume --method smoothadv "${flags[@]}" --grad-norm image \
    --data mnist --data-dir "$2" --train-images 20000 --sigma "$4" --epsilon "$epsilon" \
    --epochs 8 --num-samples 2 --steps 4 --lr 0.02 --precision "${PRECISION:-fp32}" --memory-format channels_last \
    --threads 1 --seed "$6" --certify-images 0 ${FLAGS:-} >>"$run.log" 2>&1
  drf-fast certify "$run" --out "$run.tsv" --resume --data-dir "$2" --n 1000 --skip 10 \
    --precision "${PRECISION:-fp32}" --memory-format channels_last --batch-size 256 \
    ${FLAGS:-} >>"$run.log" 2>&1
  exit
fi
data=$(realpath "$1") runs=$2
mkdir -p "$runs"
pairs() { # SIGMA SEED ...
  for seed in "${@:2}"; do
    printf "$1 %s $seed\n" baseline prox shrink
  done
}
{
  pairs 1.0 0 1 2 3 4
  pairs 0.5 0 1 2
  echo 1.0 udr 0
} | xargs -P "${JOBS:-2}" -L 1 "$0" one "$data" "$runs"
