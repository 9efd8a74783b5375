"""The instruction of each known evaluation set, and one per kind of task for sets of your own.

The texts are the suggestions of the evaluation sets' README. Retrieval puts them on the query alone; every other task
on each text. What was used is written into the report, set by set.
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
    """The caller's instruction for set `name`, else the set's own, else its task's (`name` is `task/set`)."""
    return overrides.get(name) or SET_INSTRUCTIONS.get(name) or TASK_INSTRUCTIONS[name.partition("/")[0]]
