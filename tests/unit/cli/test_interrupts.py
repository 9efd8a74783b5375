from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from gircse_rag.cli import main
from gircse_rag.cli.interrupts import repeat_dropped_interrupts


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    handler, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    sys.unraisablehook = sys.__unraisablehook__  # not pytest's, which collects what it gets
    yield
    assert sys.unraisablehook is sys.__unraisablehook__
    signal.signal(signal.SIGINT, handler)
    sys.unraisablehook = hook


class Interrupted:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class Broken:
    def __del__(self) -> None:
        raise ValueError("broken finalizer")


def wait_in_python(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_an_interrupt_in_a_finalizer_is_raised_again(capsys: pytest.CaptureFixture[str]) -> None:
    with repeat_dropped_interrupts():
        Interrupted()  # Python drops the KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            wait_in_python(20)
        wait_in_python(0.3)  # once only
    assert capsys.readouterr().err == ""


def test_every_command_can_be_interrupted_in_a_finalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*_: object, **__: object) -> None:
        Interrupted()
        wait_in_python(20)

    monkeypatch.setattr("gircse_rag.cli.app.app", command)
    with pytest.raises(KeyboardInterrupt):
        main([])


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with repeat_dropped_interrupts():
        Interrupted()
        wait_in_python(0.3)


def test_other_dropped_exceptions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with repeat_dropped_interrupts():
        Broken()
    assert "broken finalizer" in capsys.readouterr().err
