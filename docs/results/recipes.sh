#!/usr/bin/env bash
# Every recipe for 50 steps on real images, those of CIFAR-10 with ResNet-20:
#
#   docs/results/recipes.sh MNIST_FOLDER CIFAR_CLASS_FOLDERS RUN_FOLDER [FLAG OF TRAIN ...]
#
# Prints loss and accuracy of the last 25 steps of each, or what went wrong. BATCH (256) images make a
# step; JOBS (2) recipes run side by side. Those of CAT-RS come last, with Gaussian training's network of
# the same images as teacher, and 100 of its votes an image.
set -euo pipefail
if [ "$1" = one ]; then
  name=$2 mnist=$3 cifar=$4 runs=$5
  shift 5
  batch=${BATCH:-256} images=$((25 * ${BATCH:-256}))
  case $name in
    mnist-*) flags=(--data-dir "$mnist") ;;
    *)
      images=$((images < 2400 ? images : 2400)) # of 3,000 in class folders every fifth is for tests
      flags=(--data imagefolder --data-dir "$cifar" --arch resnet20 --normalize cifar10)
      ;;
  esac
  [[ $name != *-catrs* ]] || flags+=(--catrs-teacher "$runs/${name%%-*}-gaussian" --catrs-n 100)
  log=$runs/$name.log
  drf-fast train --recipe "$name" --sigma 0.5 "${flags[@]}" --max-steps 50 --certify-images 0 \
    --batch-size "$batch" --train-images "$images" \
    --out "$runs/$name" --force "$@" >"$log" 2>&1 && verdict=done || verdict=FAILED
  tail -n 100 "$log" | { grep -E "^epoch |drf-fast:" || tail -n 1 "$log"; } |
    tail -n 1 | sed "s/^epoch [^:]*: //; s/^/$name $verdict: /"
  exit
fi
mnist=$(realpath "$1") cifar=$(realpath "$2") runs=$3
shift 3
mkdir -p "$runs"
for catrs in False True; do # its teachers first
  python3 -c "from drf_fast.config import recipes
print(*(name for name in recipes.NAMES if ('catrs' in name) == $catrs), sep='\n')" |
    xargs -P "${JOBS:-2}" -I '{}' "$0" one '{}' "$mnist" "$cifar" "$runs" "$@"
done
