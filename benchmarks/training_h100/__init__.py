"""Training on a GPU with the shapes fixed: `python -m benchmarks.training_h100 COMMAND --help`.

One short loan of a GPU holds several trainings, so a step is a CUDA graph (graphed.py): a graph has
one shape, so tasks of like lengths share one. Batches are tokenised ahead in a thread, and another
process scores adapters while the next run trains. DATA is laid out like shared/data. Settings are chosen by development
rows and STS-B dev alone, never by rows of eval/.
"""
