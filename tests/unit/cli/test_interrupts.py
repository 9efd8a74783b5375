from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gircse_rag.cli import interrupts, main
from gircse_rag.cli.app import run as run_command
from gircse_rag.cli.interrupts import SIGNALS, Interrupted, Interrupts


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    saved, hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.unraisablehook = sys.__unraisablehook__  # not pytest's, which collects what it gets
    yield
    for number, handler in saved.items():
        signal.signal(number, handler)
    sys.unraisablehook = hook


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the codes of os._exit, which here only ends the command."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    return codes


def run(command: Callable[[], None], *, of: Interrupts | None = None) -> int:
    """Return the exit code of a command under a new `Interrupts`."""
    with pytest.raises(SystemExit) as caught:
        (of or Interrupts()).run(command)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def wait(seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


class RaisesInFinalizer:
    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_command_and_cleans_up(number: int) -> None:
    cleaned = []

    def command() -> None:
        try:
            signal.raise_signal(number)
            wait()
        finally:
            cleaned.append(True)

    assert run(command) == 128 + number and cleaned


def test_an_import_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception inside the import of a native library such as torch can abort the process."""
    lines = ["import signal, time", "signal.raise_signal(signal.SIGTERM)", "time.sleep(0.6)", "imported = True"]
    (tmp_path / "imported_late.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    found = []

    def command() -> None:
        import imported_late  # type: ignore[import-not-found]

        found.append(imported_late.imported)
        wait()

    assert run(command) == 128 + signal.SIGTERM and found == [True]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("drop", ["finalizer", "import"])
def test_a_dropped_interrupt_is_raised_again(number: int, drop: str, capsys: pytest.CaptureFixture[str]) -> None:
    raised = []

    def command() -> None:
        if drop == "finalizer":
            RaisesInFinalizer(number)
        else:
            with contextlib.suppress(BaseException):
                signal.raise_signal(number)
        try:
            wait()
        except Interrupted:
            raised.append(True)
            raise

    assert run(command) == 128 + number and raised
    assert capsys.readouterr().err == ""


def test_an_interrupt_that_became_another_error_is_not_reported_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interrupts, "current", current := Interrupts())

    def app(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("gircse_rag.cli.app.app", app)
    assert run(lambda: run_command([]), of=current) == 143
    assert capsys.readouterr().err == ""


def test_cleaning_up_is_not_interrupted(exits: list[int]) -> None:
    """By a repeated exception, or by a second signal of the same moment."""
    cleaned = []

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            try:
                raise OSError("a failure while cleaning up")
            except OSError:
                wait(0.7)
            cleaned.append(True)

    assert run(command) == 130 and cleaned and not exits


def test_a_second_signal_exits_at_once_if_cleaning_up_takes_long(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_PATIENCE_SECONDS", 0.1)

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            wait(0.2)
            signal.raise_signal(signal.SIGINT)
            wait()

    assert run(command) == 143 and exits == [143]


def test_a_signal_after_the_command_exits_at_once(exits: list[int]) -> None:
    assert run(lambda: sys.exit(1)) == 1
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    assert exits == [143]


def test_a_program_that_calls_the_command_gets_its_handlers_back() -> None:
    def handler(*_: object) -> None:
        pass

    signal.signal(signal.SIGHUP, handler)
    handlers, hook = [signal.getsignal(number) for number in SIGNALS], sys.unraisablehook
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            interrupts.run(lambda: signal.raise_signal(signal.SIGTERM), restore=True)
        assert caught.value.code == 143
        assert [signal.getsignal(number) for number in SIGNALS] == handlers and sys.unraisablehook is hook
    with pytest.raises(SystemExit) as caught:
        interrupts.run(lambda: wait(0.5), restore=True)  # the end of the first is not raised again in this one
    assert caught.value.code == 0 and interrupts.current.received is None
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0


def test_a_command_may_run_in_another_thread(capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(SystemExit) as caught:
        pool.submit(main, ["--version"]).result()
    assert caught.value.code == 0 and capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_signal_the_command_decides() -> None:
    assert run(lambda: None) == 0
    assert run(lambda: sys.exit(4)) == 4
    with pytest.raises(ZeroDivisionError):
        Interrupts().run(lambda: print(1 / 0))


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    assert run(lambda: signal.raise_signal(signal.SIGHUP)) == 0


class Broken:
    def __del__(self) -> None:
        raise ValueError("broken finalizer")


def test_other_dropped_exceptions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: print(Broken())) == 0
    assert "broken finalizer" in capsys.readouterr().err
