#!/usr/bin/env bash
# Table 1 at reduced cost: trains and certifies what docs/results.md reports.
#
#   docs/results/table1.sh train   MNIST_FOLDER RUN_FOLDER    all networks, most telling ones first
#   docs/results/table1.sh certify MNIST_FOLDER RUN_FOLDER    all 10,000 test images at n = 1,000
#   docs/results/table1.sh deep    MNIST_FOLDER RUN_FOLDER    every 20th at n = 100,000
#   docs/results/table1.sh report  MNIST_FOLDER RUN_FOLDER    tables and JSON
#   docs/results/table1.sh gap     MNIST_FOLDER RUN_FOLDER    Fig. 2 and its JSON
#
# BATCH are the rows of a forward pass in certification (auto; on a GPU 16384).
# Interrupted, the same command goes on where it stopped. JOBS (2) runs go side by side, of one
# thread each, so that their bits do not depend on the number of cores.
set -euo pipefail
command=$1 data=$(realpath "$2") runs=$3
mkdir -p "$runs"
export OMP_NUM_THREADS=1

jobs() { # SIGMA METHOD SEED, one a line
  for seed in 0 1 2; do
    for sigma in 1.0 0.5; do
      for method in smoothadv smoothadv-drf consistency consistency-drf; do
        echo "$sigma $method $seed"
      done
      [ "$seed" = 0 ] && printf "$sigma %s 0\n" gaussian stability macer smoothmix
    done
  done
}

train() { # SIGMA METHOD SEED
  local flags=()
  case $2 in
    macer) flags=(--lr 0.005) ;; # at 0.02 it collapses when the margin term comes in
    smoothmix) flags=(--num-samples 2 --steps 4 --mix-warmup 1) ;;
    smoothadv* | consistency*) flags=(--num-samples 2 --steps 4 --warmup-epochs 1) ;;
  esac
  drf-fast train --out "$runs/$1-$2-$3" --resume --recipe "mnist-$2" --sigma "$1" --seed "$3" \
    --data-dir "$data" --epochs 5 --lr-drops 0.6 0.8 --batch-size 64 --lr 0.02 \
    --precision bf16 --memory-format channels_last --certify-images 0 "${flags[@]}"
}

certify() { # LOG N SKIP SIGMA METHOD SEED
  drf-fast certify "$runs/$4-$5-$6" --out "$1/$4-$5-$6.tsv" --resume --data-dir "$data" --n "$2" \
    --skip "$3" --precision bf16 --memory-format channels_last --batch-size "${BATCH:-auto}"
}

case $command in
  train) jobs | xargs -P "${JOBS:-2}" -L 1 "$0" train1 "$data" "$runs" ;;
  train1) train "${@:4}" ;;
  certify)
    mkdir -p "$runs/n1000"
    jobs | xargs -P "${JOBS:-2}" -L 1 "$0" certify1 "$data" "$runs" "$runs/n1000" 1000 1
    ;;
  deep)
    mkdir -p "$runs/n100000"
    jobs | grep "smoothadv.* 0" |
      xargs -P "${JOBS:-2}" -L 1 "$0" certify1 "$data" "$runs" "$runs/n100000" 100000 20
    ;;
  certify1) [ ! -f "$runs/$7-$8-$9/checkpoint.pt" ] || certify "${@:4}" ;;
  report)
    cd "$runs" # so that names in the JSON are short
    for logs in n1000 n100000; do
      drf-fast report "$logs"/*.tsv --format json >"$logs.json"
      drf-fast report "$logs"/*.tsv --table1 --format markdown
      for sigma in 1.0 0.5; do
        for base in smoothadv consistency; do
          pair=("$logs/$sigma-$base"-?.tsv "$logs/$sigma-$base-drf"-?.tsv)
          [ ! -f "${pair[-1]}" ] || drf-fast report "${pair[@]}" --compare --no-paper \
            --format json >"$logs-$sigma-$base.json"
        done
      done
    done
    ;;
  gap)
    cd "$runs"
    gap=(drf-fast gap 1.0-smoothadv-0 1.0-smoothadv-drf-0 1.0-gaussian-0 --data-dir "$data")
    "${gap[@]}" --json >fig2.json
    "${gap[@]}" --plot fig2.png --force
    ;;
  *) echo "expected train, certify, deep, report or gap, got $command" >&2 && exit 2 ;;
esac
