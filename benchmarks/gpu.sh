#!/bin/sh
# Everything that is to be quoted about a GPU, in less than 8 minutes: sh benchmarks/gpu.sh [PYTHON]
# Needs the extra `train` beside torch for the GPU at hand.
set -eu
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
device=${DEVICE:-cuda}
command -v nvidia-smi && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
timeout 60 "$python" -m pytest -q -p no:cacheprovider tests/app/encoders/test_encoder_contract.py -k "torch or kernels"
timeout 200 "$python" -m benchmarks.encode --device "$device" --model modernbert --rounds 3 \
    --kinds ours:bf16 ours:f16 torch torch-bf16
timeout 120 "$python" -m benchmarks.encode --device "$device" --model embedded --rounds 3 --kinds ours:bf16 torch-bf16
timeout 90 "$python" -m benchmarks.encode --device "$device" --model xlmr --rounds 2 --kinds ours:bf16 torch-bf16
