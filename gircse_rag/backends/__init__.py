"""Where refinement runs. All backends implement the protocol of `gircse_rag/backend.py`.

paged       the engine (gircse_rag/engine), shared by any number of threads; the default
reference   the paper's loop, one text at a time: the yardstick of the others
loading     a name -> one of these, with the tokenizer and the spec
lazy        loads another backend when it is first used
vllm/       vLLM in this process, or a running `gircse serve`
"""
