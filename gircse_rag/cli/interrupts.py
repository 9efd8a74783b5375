"""Ctrl-C that is not lost: Python drops a KeyboardInterrupt raised inside a `__del__` method, such as `regex` has."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DELAY = 0.05
"""Seconds until a dropped interrupt is raised again: by then the `__del__` method has ended."""


@contextmanager
def repeat_dropped_interrupts() -> Iterator[None]:
    """In this block, raise a KeyboardInterrupt that Python drops again, in the main thread."""
    report = sys.unraisablehook

    def handle(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            report(dropped)
            return
        timer = threading.Timer(_DELAY, _thread.interrupt_main)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = handle
    try:
        yield
    finally:
        sys.unraisablehook = report
