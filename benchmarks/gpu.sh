#!/bin/sh
# On a machine with a CUDA GPU, from the repository's root: the engine's GPU tests, then its benchmark. JSON in $1.
out=${1:-gpu-results}
mkdir -p "$out"
python -c "import torch, inspect; from torch.nn.attention.varlen import varlen_attn; print(torch.__version__, inspect.signature(varlen_attn))"
python -m pytest tests/unit/engine tests/unit/backends/test_paged.py -q -x --deselect tests/unit/engine/test_policy.py 2>&1 | tail -30
timeout 240 python benchmarks/bench_gpu.py "$out/smollm2.json" smollm2-135m
timeout 240 python benchmarks/bench_gpu.py "$out/qwen7b.json" qwen2.5-7b
