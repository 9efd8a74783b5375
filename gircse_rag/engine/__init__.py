"""The paged engine: continuous batching, a paged KV cache and prefix sharing for generative embeddings.

* policy, without torch: Scheduler (which rows next), BlockManager (in which blocks), Sequence
* tensors: ModelRunner (the forward, the soft tokens), KVCache, the attention plans, the fused modules
* Engine: one step of both
"""

import os

# Two caches of compiled kernels, oneDNN's and that of PyTorch's layer above it, keep 1024 each by default, one a shape.
# Shapes of packed forwards hardly repeat, so they only grew: by 300 MB in 1,400 documents, and by 180 MB in 1,000. As
# small as this the speed is the same. Both are read at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
