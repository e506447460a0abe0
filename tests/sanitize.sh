#!/usr/bin/env bash
# Builds the C++ core with AddressSanitizer and UndefinedBehaviorSanitizer into a temporary folder
# and runs the tests of the operations on it. Linux, with GCC.
#
#   tests/sanitize.sh [ARGUMENT OF PYTEST ...]     PYTHON=python3 CXX=g++
#
# The Python must have what 'pip install .[test]' installs; the installed drf_fast is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
compiler=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -R drf_fast kernels csrc tests setup.py pyproject.toml README.md LICENSE "$work"
rm -f "$work"/drf_fast/_C.* "$work"/drf_fast/_CUDA.* "$work"/drf_fast/_build.json
cd "$work"

# Through CXX, because both the compiler and the linker need the flags. -O1 keeps the loops close to
# the source.
export CXX="$compiler -fsanitize=address,undefined -fno-sanitize-recover=all"
CXXFLAGS="-O1 -g -fno-omit-frame-pointer" DRF_FAST_BUILD_EXT=1 DRF_FAST_CUDA_ARCHS=none \
  "$python" setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log >&2; exit 1; }
export -n CXX

# Python is not instrumented, so the runtimes must be there before it; libstdc++ too, or else the
# sanitizer does not find the throw that it intercepts. Python itself does not free everything.
libraries=()
for library in libasan.so libubsan.so libstdc++.so.6; do
  libraries+=("$("$compiler" -print-file-name="$library")")
done
export LD_PRELOAD="${libraries[*]}"
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$work" PYTHONDONTWRITEBYTECODE=1

# The core built here is the one in use, and a read past the end of a tensor is seen.
overrun='
import sys, torch
from drf_fast.backends.native import library
core = library.load()
assert core.__file__.startswith(sys.argv[1]), core.__file__
rows = int(sys.argv[2])
logits, counts = torch.zeros(8, 10), torch.zeros(1, 10, dtype=torch.int64)
core.vote(logits.data_ptr(), "float32", rows, 10, counts.data_ptr(), 1, 1)
'
"$python" -c "$overrun" "$work" 8
if "$python" -c "$overrun" "$work" 9 2>overrun.log || ! grep -q heap-buffer-overflow overrun.log; then
  echo "expected AddressSanitizer to report a read past the end, got:" >&2
  cat overrun.log >&2
  exit 1
fi

tests=(tests/operations/test_{noise,native_}*.py)
for operation in vote clopper_pearson_lower certified_radius smooth_ce consistency_loss macer_loss \
  adversary_step max_pool_relu; do
  tests+=("tests/operations/test_$operation.py")
done
"$python" -m pytest -q -p no:cacheprovider --timeout 1800 -m 'not (proofs or exhaustive)' \
  "${tests[@]}" "$@"
