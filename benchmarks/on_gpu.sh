#!/usr/bin/env bash
# Everything that needs a GPU, within nine minutes, the most telling first:
#
#     pip install -e '.[test]'
#     benchmarks/on_gpu.sh OUT
#
# Each part writes OUT/PART.txt as it runs and one line of OUT/summary.txt when it ends, so that a
# machine that is taken away loses nothing. A part that fails or runs out of time stops no other.
# GPU_SECONDS is the time for all of them (of more than nine minutes each part has its share), PYTHON
# the interpreter to use.
set -u
[ $# -eq 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python}
seconds=${GPU_SECONDS:-540}
end=$((SECONDS + seconds))
PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin" # compute-sanitizer
failed=0
: > "$out/summary.txt"

# part NAME LIMIT COMMAND...: at most LIMIT seconds of nine minutes, and no more than are left
part() {
    local name=$1 limit=$2 left=$((end - SECONDS)) began=$SECONDS status
    [ "$seconds" -le 540 ] || limit=$((limit * seconds / 540))
    shift 2
    if [ "$left" -lt 1 ]; then
        status="no time left"
        failed=1
    else
        # After SIGINT pytest still tells the reasons of failures.
        PYTHONUNBUFFERED=1 timeout -s INT -k 15 $((limit < left ? limit : left)) "$@" \
            > "$out/$name.txt" 2>&1
        case $? in
            0) status=ok ;;
            124 | 137) status="out of time" failed=1 ;;
            *) status=failed failed=1 ;;
        esac
    fi
    echo "$name: $status, $((SECONDS - began)) s" | tee -a "$out/summary.txt"
    sync "$out/summary.txt" 2> /dev/null
}

# drf_fast.kernels is there where the package is installed, not in a mere source tree.
part device 60 "$python" -c 'import torch, triton, drf_fast.kernels
print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)'
part self_test 120 "$python" -m drf_fast doctor --self-test
part times 60 "$python" benchmarks/gpu_times.py
# Verbose and one line a test: what failed is named as it fails. Most of the time goes into compiling.
processes=$(nproc 2> /dev/null || echo 8)
[ "$processes" -le 16 ] || processes=16 # each has a context on the GPU, half a gigabyte
any_backend=(tests/operations/test_{smooth_ce,consistency_loss,macer_loss,loss_backward,noise}.py
    tests/operations/test_{noisy_levels,adversary_step,attack,ops}.py)
DRF_FAST_TEST_KERNELS=cuda part kernel_tests 180 "$python" -m pytest -v --tb=short \
    -p no:cacheprovider -n "$processes" tests/kernels "${any_backend[@]}"
# Only files with tests that need a GPU: collecting all others takes a quarter of the time.
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | grep -v test_on_gpu)
part gpu_tests 90 "$python" -m pytest -v --tb=short -p no:cacheprovider -n 4 -m gpu "${files[@]}"
part training 60 "$python" -m drf_fast train --device cuda --max-steps 300 --out "$out/run" --force
part certification 60 "$python" -m drf_fast certify "$out/run" --device cuda --max-images 50 \
    --out "$out/certificates.tsv" --force
for tool in memcheck racecheck initcheck; do
    # Without --error-exitcode findings exit with 0. In torch's memory cache tensors are adjacent.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 part "$tool" 60 compute-sanitizer --tool "$tool" \
        --error-exitcode 1 "$python" -m drf_fast doctor --self-test
done
exit $failed
