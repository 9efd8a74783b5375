"""Adapt a model to one's own documents and questions.

adapt         the run from documents and pairs to a model and a report: `adapt`
pairs         questions with their answers, from files and evaluation sets
self_pairs    questions with their answers, made from the documents
corpus        chunks of the documents, and which of them answer a question
split         training, validation and held-out questions, apart by document
lexical       BM25
candidates    the chunks that are embedded, and hard negatives among them
vectors       vectors kept on disk
rows          training rows
wordings      paraphrases of an instruction
probes        sentences that show and prevent forgetting
plan          settings from the data's size and the time
training      a trainer with checks, early stopping and a teacher
scoring       nDCG, MRR and hit@1 with intervals
report        the result as data, Markdown and a plot
"""

from gircse_rag.adaptation.pairs import Pair, read_pairs
from gircse_rag.adaptation.progress import Progress
from gircse_rag.adaptation.report import Adapted
from gircse_rag.adaptation.run import adapt

__all__ = ["Adapted", "Pair", "Progress", "adapt", "read_pairs"]
