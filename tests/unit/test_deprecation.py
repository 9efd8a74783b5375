"""Old names of arguments still work, with a DeprecationWarning; giving both names is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gircse_rag.deprecation import rename_keys, renamed_arguments
from gircse_rag.errors import InputError
from gircse_rag.evaluation import evaluate
from gircse_rag.training import icr_loss
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.unrolled import UnrolledRefinement
from tests import tiny


@renamed_arguments(colour="color", grey="gray")
def paint(wall: str, *, color: str = "white", gray: float = 0.0) -> tuple[str, str, float]:
    """Paint a wall."""
    return wall, color, gray


def test_an_old_argument_name_warns_at_the_caller() -> None:
    with pytest.warns(DeprecationWarning, match="colour is now called color") as caught:
        assert paint("north", colour="red") == ("north", "red", 0.0)  # type: ignore[call-arg]
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]
    assert (paint.__name__, paint.__doc__) == ("paint", "Paint a wall.")


@pytest.mark.filterwarnings("error")
def test_new_names_do_not_warn() -> None:
    assert paint("north", color="red", gray=0.5) == ("north", "red", 0.5)
    assert rename_keys({"color": "red"}, {"colour": "color"}) == {"color": "red"}


def test_both_names_are_an_error() -> None:
    with pytest.raises(InputError, match="color and its old name colour are both given; drop colour"):
        paint("north", color="red", colour="blue")  # type: ignore[call-arg]


def test_each_old_key_is_renamed_in_a_copy() -> None:
    values = {"colour": "red", "grey": 0.5, "wall": "north"}
    with pytest.warns(DeprecationWarning, match="is now called"):
        renamed = rename_keys(values, {"colour": "color", "grey": "gray"})
    assert renamed == {"color": "red", "gray": 0.5, "wall": "north"}
    assert "colour" in values


def test_icr_loss_still_accepts_not_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, passages = torch.randn(2, 3, 8, generator=generator), torch.randn(4, 3, 8, generator=generator)
    mask = torch.tensor([[False, False, True, False], [False, False, False, False]])
    expected = icr_loss(queries, passages, false_negatives=mask)
    with pytest.warns(DeprecationWarning, match="not_negatives is now called false_negatives"):
        loss = icr_loss(queries, passages, not_negatives=mask)  # type: ignore[call-arg]
    assert loss.total == expected.total != icr_loss(queries, passages).total


def test_training_still_accepts_level_gradients() -> None:
    values = {"output": "run", "data": ["rows.jsonl"], "tasks": "tasks.json", "rows": 10, "level_gradients": True}
    with pytest.warns(DeprecationWarning, match="level_gradients is now called clip_text_gradients"):
        assert TrainConfig.of(values).clip_text_gradients
    with pytest.raises(InputError, match="both given"):
        TrainConfig.of({**values, "clip_text_gradients": True})
    with pytest.warns(DeprecationWarning, match="level_gradients is now called clip_text_gradients"):
        module = UnrolledRefinement(tiny.model(), level_gradients=True)  # type: ignore[call-arg]
    assert module.clip_text_gradients


def test_evaluate_still_accepts_folder(tmp_path: Path) -> None:
    (tmp_path / "sts").mkdir()
    rows = ["score\tsentence1\tsentence2", "5\ta cat\ta cat", "1\ta cat\ta dog", "0\ta cat\tthe sea"]
    (tmp_path / "sts" / "small.tsv").write_text("\n".join(rows) + "\n")

    def embed(texts: list[str], role: str, instruction: str | None, steps: tuple[int, ...]) -> np.ndarray:
        vectors = [[1.0 + text.count("c"), 1.0 + text.count("g"), 1.0 + text.count("s")] for text in texts]
        return np.repeat(np.array(vectors, dtype=np.float32)[:, None], len(steps), axis=1)

    expected = evaluate(embed, tmp_path, (1,))
    with pytest.warns(DeprecationWarning, match="folder is now called data"):
        report = evaluate(embed, folder=tmp_path, steps=(1,))  # type: ignore[call-arg]
    assert report.sets[0].scores == expected.sets[0].scores
