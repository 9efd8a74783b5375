"""The paged engine: continuous batching, a paged KV cache and prefix sharing for generative embeddings.

* policy, without torch: Scheduler (which rows next), BlockManager (in which blocks), Sequence
* tensors: ModelRunner (the forward, the soft tokens), KVCache, the attention plans, the fused modules
* Engine: one step of both
"""

import os

# oneDNN keeps 1024 compiled kernels by default, one a shape; shapes of packed forwards hardly repeat, and these grew to
# 300 MB in 1,400 documents. With 128 the speed is the same. Read by oneDNN at its first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
