"""What a report says, and that it survives JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gircse_rag.adaptation.report import Adapted, Change, Moved, Wording, advise, next_commands
from gircse_rag.adaptation.scoring import Interval
from gircse_rag.adaptation.self_pairs import MadePairs

LINE = Change("dense", 5, "ndcg@10", Interval(0.5, 0.4, 0.6), Interval(0.7, 0.6, 0.8), Interval(0.2, 0.1, 0.3))
HYBRID = replace(LINE, kind="hybrid", after=Interval(0.8, 0.7, 0.9))
BARE = Wording(None, Interval(0.6, 0.5, 0.7), Interval(0, 0, 0))


def say(
    gain: tuple[float, float, float] = (0.2, 0.1, 0.3), lead: float = 0.1, share: float = 1, strange: float = 0
) -> str:
    wording = Wording("Find it", Interval(0.7, 0.6, 0.8), Interval(lead, lead - 0.05, lead + 0.05))
    changes = [replace(LINE, gain=Interval(*gain)), HYBRID]
    return " ".join(advise(changes, [wording, BARE], 5, share, (0.91, 0.9), strange))


def test_a_clear_gain() -> None:
    said = say()
    assert "+20.0 (+10.0 to +30.0)" in said and "hybrid at K = 5" in said and "0.910 before, 0.900 after" in said
    assert "chance" not in said and "bare question" not in said and "language" not in said


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (say(gain=(0.02, -0.01, 0.05)), "may be chance"),
        (say(gain=(-0.05, -0.09, -0.01)), "keep the original model"),
        (say(lead=-0.1), "The bare question ranks better than the instruction 'Find it'"),
        (say(lead=-0.01), "The bare question may rank better"),
        (say(share=0), "no model was written"),
        (say(strange=0.8), "80% of the questions share no word with any document"),
    ],
)
def test_what_is_wrong_is_said(said: str, expected: str) -> None:
    assert expected in said


def test_markdown_names_what_changed() -> None:
    adapted = Adapted(
        folder=Path("my-model"),
        model="base",
        changed=True,
        share=0.5,
        changes=[LINE, HYBRID],
        moved=[Moved("up?", 9, 1), Moved("more up?", 4, 3), Moved("down?", 2, 5), Moved("same?", 1, 1)],
        wordings=[Wording("Find it", LINE.after, LINE.gain), BARE],
        probes=(0.9, 0.9),
        counts=dict.fromkeys(
            ("documents", "chunks", "pool", "questions", "train", "validation", "held_out", "rows"), 7
        ),
        split_by="document",
        made=[MadePairs("faq", 3, 2, "May I?", "No | yes")],
        skipped=["pair 1: bad"],
        advice=["Good."],
        commands=next_commands(Path("my-model"), "base", changed=True),
        seconds=1.0,
    )
    assert [moved.question for moved in adapted.better()] == ["up?", "more up?"]
    assert [moved.question for moved in adapted.worse()] == ["down?"]
    assert adapted.change(kind="hybrid") == HYBRID
    text = adapted.to_markdown()
    for part in (
        "| dense | 5 | ndcg@10 | 50.0 (40.0 to 60.0) |",
        "rank 9 to 1: up?",
        "rank 2 to 5: down?",
        "pair 1: bad",
    ):
        assert part in text
    assert "none: the bare question" in text and "gircse migrate OLD NEW --model my-model" in text
    assert Adapted.of(json.loads(json.dumps(adapted.to_dict()))) == adapted
