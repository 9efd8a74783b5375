from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from gircse_rag.cli import interrupts

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    sys.unraisablehook = sys.__unraisablehook__
    interrupts.install()


class InterruptingFinalizer:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_a_finalizer_is_raised_at_the_next_check() -> None:
    interrupts.install()
    InterruptingFinalizer()  # Python drops the KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


def test_an_interrupt_elsewhere_is_raised_at_once() -> None:
    interrupts.install()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_install_forgets_an_earlier_interrupt() -> None:
    interrupts.install()
    InterruptingFinalizer()
    interrupts.install()
    interrupts.check()


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.install()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
