"""Questions that are made from documents: which, from where, and that the model must agree."""

from __future__ import annotations

import numpy as np
import pytest

from gircse_rag.adaptation.corpus import Corpus
from gircse_rag.adaptation.self_pairs import KINDS, SelfPair, agree, as_questions, describe, make_pairs
from gircse_rag.documents import Document
from tests.stand_in import StandIn

HANDBOOK = """\
# Travel

A per diem is a fixed sum for each day of a trip, paid without receipts. It covers meals. It does not cover the hotel.

## Booking a flight

Ask your manager before you book. The agency books all flights longer than two hours. Keep the boarding pass until the \
end of the month.

## Questions and answers

Q: May I upgrade to first class?
A: Only if the trip takes more than eight hours and your manager agrees in writing.

Q: Who pays the taxi?
A: You pay it, and get the money back with the next salary if you keep the receipt.

```sh
echo Is this a question? No, it is code, and code is never asked about in this test.
```
"""


def read(*documents: Document) -> Corpus:
    embedder = StandIn(max_length=512)
    return Corpus.read(list(documents), embedder.tokenizer, embedder.spec)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read(
        Document("travel.md", HANDBOOK, markdown=True),
        Document(
            "pay.txt",
            "How salaries are paid\n\nThe bank sends all salaries on the last working day of a month. Bonuses follow "
            "in March of the next year.",
        ),
        Document(
            "code.py",
            "def f():\n    return 1  # is this a question? yes it is and it has many words\n",
            language="python",
        ),
    )


def of_kind(corpus: Corpus, kind: str) -> list[SelfPair]:
    return [pair for pair in make_pairs(corpus) if pair.kind == kind]


def test_a_heading_asks_for_its_section(corpus: Corpus) -> None:
    (pair,) = [pair for pair in of_kind(corpus, "heading") if pair.question == "Booking a flight"]
    assert pair.answer.startswith("Ask your manager") and "Booking" in corpus.chunks[pair.chunk]


def test_a_title_asks_for_the_body(corpus: Corpus) -> None:
    (pair,) = of_kind(corpus, "title")
    assert pair.question == "How salaries are paid" and pair.answer.startswith("The bank sends")


def test_a_given_title_is_used() -> None:
    (pair,) = of_kind(
        read(Document("a", "one two three four five six seven eight nine", {"title": "Some numbers"})), "title"
    )
    assert (pair.question, pair.answer) == ("Some numbers", "one two three four five six seven eight nine")


def test_a_question_asks_for_the_text_up_to_the_next_one(corpus: Corpus) -> None:
    (pair,) = of_kind(corpus, "faq")
    assert pair.question == "May I upgrade to first class?"
    assert pair.answer == "Only if the trip takes more than eight hours and your manager agrees in writing."


def test_a_term_asks_for_its_definition(corpus: Corpus) -> None:
    assert [pair.question for pair in of_kind(corpus, "definition")] == ["what is per diem?"]
    listed = read(Document("a", "* **Escrow**: money that a third party holds until both sides did their part."))
    assert [pair.question for pair in of_kind(listed, "definition")] == ["what is Escrow?"]
    vague = read(Document("a", "This is a sentence that has many words and defines no term of any kind."))
    assert not of_kind(vague, "definition")


def test_a_crop_is_not_in_its_answer(corpus: Corpus) -> None:
    crops = of_kind(corpus, "crop")
    assert crops
    for pair in crops:
        assert pair.question not in pair.answer and pair.question.split()[-1] in corpus.chunks[pair.chunk]


def test_code_is_not_asked_about(corpus: Corpus) -> None:
    own = corpus.members(corpus.documents.index("code.py"))
    pairs = make_pairs(corpus)
    assert pairs and not any(pair.chunk in own or "code" in pair.question for pair in pairs)


def test_a_question_with_two_sources_is_left_out() -> None:
    texts = [f"An overview\n\nThis text is number {i} of two texts with one title." for i in range(2)]
    assert not of_kind(read(*(Document(f"{i}.txt", text) for i, text in enumerate(texts))), "title")
    assert len(of_kind(read(Document("0.txt", texts[0])), "title")) == 1


def test_the_seed_and_the_limit_choose(corpus: Corpus) -> None:
    assert make_pairs(corpus) == make_pairs(corpus)
    kinds = [KINDS.index(pair.kind) for pair in make_pairs(corpus, limit=4)]
    assert len(kinds) == 4 and kinds == sorted(kinds) and KINDS.index("crop") not in kinds


def test_questions_train_with_the_answer(corpus: Corpus) -> None:
    pairs = make_pairs(corpus)
    questions = as_questions(corpus, pairs)
    assert [question.answer for question in questions] == [pair.answer for pair in pairs]
    assert all(corpus.owners[next(iter(q.chunks))] in q.documents for q in questions)


def test_the_model_must_rank_the_own_chunk_high() -> None:
    pairs = [SelfPair("faq", "which?", 7, "this"), SelfPair("faq", "who?", 9, "he"), SelfPair("crop", "how?", 7, "so")]
    dense = np.array([[0.9, 0.5, 0.4, 0.1], [0.9, 0.5, 0.4, 0.1], [0.1, 0.2, 0.3, 0.4]])
    agreed = agree(pairs, dense, np.array([7, 8, 11, 9]))
    assert agreed == [True, False, False]
    said = describe(pairs, agreed)
    assert [(kind.kind, kind.made, kind.agreed, kind.question) for kind in said] == [
        ("faq", 2, 1, "which?"),
        ("crop", 1, 0, "how?"),
    ]
