#!/bin/sh
# Draws the pictures of the default run: docs/default_run.png, certificate and attack in one figure,
# docs/show.png, test images, and docs/page.png, the page (with selenium, Chromium and chromedriver).
set -e
docs=$(dirname "$0") run=${1:-runs/default}
[ -d "$run" ] || drf-fast train --out "$run"
drf-fast attack "$run" --epsilons 0.5,1,1.5 --max-images 100 --num-samples 16 --steps 15 \
    --restarts 1 --ddn-steps 20 --resume
drf-fast report "$run" --plot "$docs/default_run.png" --html "$run/page.html" --force
drf-fast show "$run" --images 5 --out "$docs/show.png" --force
python "$docs/screenshot.py" "$run/page.html" "$docs/page.png"
