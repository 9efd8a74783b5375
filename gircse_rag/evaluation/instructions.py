"""Default instructions of the known evaluation sets, and of each task for other sets.

They are those suggested in the README of the evaluation sets. Retrieval applies them to queries only, every other task
to all texts. The report lists the instruction of each set.
"""

from __future__ import annotations

from collections.abc import Mapping

SET_INSTRUCTIONS: Mapping[str, str] = {
    "retrieval/cranfield": (
        "Given an aerodynamics research question, retrieve abstracts of papers that help to answer it"
    ),
    "retrieval/cosqa_dev": "Given a web search query about programming, retrieve Python functions that implement it",
    "retrieval/xquad_en": "Given a question, retrieve passages that answer it",
    "retrieval/covid_faq": "Given a question about COVID-19, retrieve the answer",
    "classification/banking77": "Given an online banking query, find the corresponding intent",
    "classification/clinc150_intent": "Given a request to a voice assistant, find its exact intent",
    "classification/clinc150_domain": "Given a request to a voice assistant, find its general domain",
    "classification/trec_coarse": "Given a question, find the broad type of its answer",
    "classification/trec_fine": "Given a question, find the exact type of its answer",
    "clustering/clinc150:domain": "Identify the general domain of a request to a voice assistant",
    "clustering/clinc150:intent": "Identify the exact intent of a request to a voice assistant",
    "clustering/stackoverflow": "Identify the programming topic or tool of a question title",
}

TASK_INSTRUCTIONS: Mapping[str, str] = {
    "retrieval": "Given a question, retrieve passages that answer it",
    "sts": "Retrieve semantically similar text",
    "classification": "Identify the category of the text",
    "clustering": "Identify the topic of the text",
}


def instruction_for(name: str, overrides: Mapping[str, str]) -> str:
    """Return the caller's instruction for set `name` (`task/set`), else that of the set, else that of its task."""
    return overrides.get(name) or SET_INSTRUCTIONS.get(name) or TASK_INSTRUCTIONS[name.partition("/")[0]]
