from pathlib import Path

import pytest

from gircse_rag.files import atomic_write


def test_the_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text("old")
    with atomic_write(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_block_keeps_the_old_file_and_removes_the_scratch_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "kept.json"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as scratch:
        scratch.write_text("ha")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "never"):
        pass
    assert not list(tmp_path.iterdir())
