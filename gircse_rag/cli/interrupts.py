"""Ctrl-C that is not lost: Python drops a KeyboardInterrupt raised inside a `__del__` method, such as `regex` has."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

_interrupted = False


def install() -> None:
    """Remember SIGINT as well as raising KeyboardInterrupt, unless the process ignores it or has its own handler."""
    global _interrupted
    _interrupted = False
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)
        sys.unraisablehook = _report_dropped


def check() -> None:
    """Raise KeyboardInterrupt after a SIGINT, even if its own exception was dropped. Call it with each progress."""
    if _interrupted:
        raise KeyboardInterrupt


def _handle(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    signal.default_int_handler(number, frame)


def _report_dropped(dropped: Any) -> None:
    """Print an exception that Python dropped; not an interrupt, because `check` raises it again."""
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
