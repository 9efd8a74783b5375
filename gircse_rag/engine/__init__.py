"""The paged engine: continuous batching, a paged KV cache and prefix sharing for generative embeddings.

* policy, without torch: Scheduler (which rows come next), BlockManager (which blocks hold them), Sequence
* tensors: ModelRunner (the forward, the soft tokens), KVCache, the attention plans, Decoder, Vocabulary
* Engine: one step of both
"""

import os

# Caches of compiled kernels: oneDNN's, and that of PyTorch's layer above oneDNN. Each keeps up to 1024 kernels, one per
# shape, but shapes of packed forwards rarely repeat: the caches grew by 300 MB in 1,400 documents and by 180 MB in
# 1,000. These limits do not cost speed. Both variables are read at the first matrix product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
