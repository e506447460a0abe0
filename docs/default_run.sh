#!/bin/sh
# Draws docs/default_run.png: certificate and attack of the default run in one figure.
set -e
run=${1:-runs/default}
[ -d "$run" ] || drf-fast train --out "$run"
drf-fast attack "$run" --epsilons 0.5,1,1.5 --max-images 100 --num-samples 16 --steps 15 \
    --restarts 1 --ddn-steps 20 --resume
drf-fast report "$run" --plot "$(dirname "$0")/default_run.png" --force
