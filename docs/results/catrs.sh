#!/usr/bin/env bash
# CAT-RS without DRF and with it, seed 0, and their teacher, Gaussian training at sigma 0.25:
#
#   docs/results/catrs.sh RUN_FOLDER                with the settings of the default run, and that run
#                                                   itself, for catrs-default.json
#   docs/results/catrs.sh RUN_FOLDER MNIST_FOLDER   on the schedule of table1.sh, for n1000-catrs.json
#
# The JSON is written into RUN_FOLDER and belongs beside this file. Certified are, at n = 1,000, every
# 4th test image of the first, all of the second, at each of SIGMAS (1.0 0.5) and in PRECISION (bf16;
# where a processor lacks it fp32 is faster). JOBS (2) networks side by side, of one thread each;
# interrupted, the same command goes on.
set -Eeuo pipefail
export OMP_NUM_THREADS=1
one() { # SIGMA NAME, FLAGS OF TRAIN
  local name=$1-$2-0
  trap 'echo "$runs/$name failed, see $runs/$name.log" >&2' ERR
  drf-fast train --out "$runs/$name" --resume --sigma "$1" --precision "$precision" \
    --memory-format channels_last --certify-images 0 --save-every 100 "${@:3}" >>"$runs/$name.log" 2>&1
  [ "$2" = teacher ] ||
    drf-fast certify "$runs/$name" --out "$runs/n1000/$name.tsv" --resume --n 1000 --skip "$skip" \
      "${where[@]}" --precision "$precision" --memory-format channels_last \
      --batch-size "${BATCH:-auto}" >>"$runs/$name.log" 2>&1
}
network() { # SIGMA METHOD
  local teacher=(--catrs-teacher "$runs/0.25-teacher-0") flags=(--method catrs)
  [[ $2 = *-drf ]] || flags+=(--no-drf)
  [ -z "$data" ] || flags=(--recipe "mnist-$2" --num-samples 2 --steps 4 --catrs-n 100 "${short[@]}")
  case $2 in
    teacher) one "$1" teacher --method gaussian "${short[@]}" ;;
    smoothadv-drf) one "$1" "$2" ;;
    *) one "$1" "$2" "${flags[@]}" "${teacher[@]}" ;;
  esac
}
if [ "$1" = network ]; then # RUN_FOLDER MNIST_FOLDER SIGMA METHOD
  runs=$2 data=$3 skip=4 precision=fp32 where=() short=()
  if [ -n "$data" ]; then
    skip=1 precision=${PRECISION:-bf16} where=(--data-dir "$data")
    short=(--data mnist "${where[@]}" --epochs 5 --lr-drops 0.6 0.8 --batch-size 64 --lr 0.02)
  fi
  network "$4" "$5"
  exit
fi
runs=$1 data=${2:+$(realpath "$2")} sigmas=0.5 methods="catrs catrs-drf smoothadv-drf" report=catrs-default flags=(--compare)
if [ -n "$data" ]; then
  sigmas=${SIGMAS:-1.0 0.5} methods="catrs catrs-drf" report=n1000-catrs flags=()
fi
mkdir -p "$runs/n1000"
"$0" network "$runs" "$data" 0.25 teacher
for sigma in $sigmas; do
  for method in $methods; do
    printf '%s\0' network "$runs" "$data" "$sigma" "$method"
  done
done | xargs -0 -n 5 -P "${JOBS:-2}" "$0"
cd "$runs" # so that names in the JSON are short
drf-fast report n1000/*.tsv --no-paper "${flags[@]}" --format json >"$report.json"
