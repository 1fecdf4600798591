#!/bin/sh
# Measures the GPU's kernels, with torch beside them where it is installed.
#
# Needs one prebuilt binary and no network:
#   cargo build --release -p mortise-gpu        # on any machine of this kind
#   tests/bench/gpu.sh [--adapter N] [--small]  # where the GPU is
#
# MORTISE_GPU_BENCH names the binary when it is elsewhere; PYTHON the
# interpreter that has torch. The last line of output is one JSON object.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
binary=${MORTISE_GPU_BENCH:-$root/target/release/mortise-gpu-bench}
python=${PYTHON:-python3}
if [ ! -x "$binary" ]; then
    echo "no $binary: build it with cargo build --release -p mortise-gpu" >&2
    exit 1
fi
ours=$("$binary" "$@" | tail -n 1)
if command -v "$python" >/dev/null 2>&1; then
    printf '%s\n' "$ours" | "$python" "$root/tests/bench/gpu_torch.py"
else
    echo "no $python: torch is not measured" >&2
    printf '%s\n' "$ours"
fi
