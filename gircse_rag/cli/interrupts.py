"""Signals that end a command: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (a closed terminal).

    the first signal           raises Interrupted in the main thread: stores close, temporary files are deleted
    during an import           raises it soon after: inside a native library's import it can abort the process
    dropped on its way         raised again: some finalizers and callbacks drop exceptions
    another, a second later    exits at once, like kill -9, for a store that does not answer
    after the command          exits at once

The exit code is 128 + the signal's number. This module imports only what Python's start needs too, so that it is in
place before the commands are imported, which takes a second.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_REPEAT_SECONDS = 0.25
"""Time after which an exception that was dropped is raised again."""
_PATIENCE_SECONDS = 1.0
"""Signals within this time of the first are ignored: `timeout` and job schedulers send several at once."""


class Interrupted(KeyboardInterrupt):
    """A signal ends the command. A KeyboardInterrupt, because libraries expect and pass on that."""


class Interrupts:
    """Handles the signals of one command; the next command needs a new object.

    Attributes:
        received: number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._repeating = False
        self._ended = False

    def run(self, command: Callable[[], None], *, restore: bool = False) -> NoReturn:
        """Run `command` and exit: after a signal with 128 + its number, else with the command's code, or 0.

        Args:
            command: runs in the main thread, or else without handling signals.
            restore: put the program's own handlers back at the end, for a program that catches SystemExit.
        """
        report, before = sys.unraisablehook, {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler in (signal.SIG_DFL, signal.default_int_handler):  # nohup ignores SIGHUP
                try:
                    signal.signal(number, self._handle)
                except ValueError:  # not in the main thread
                    break
        sys.unraisablehook = lambda dropped: None if self._is_expected(dropped) else report(dropped)
        try:
            command()
        except BaseException:
            if self.received is None:
                raise
        finally:
            self._ended = True
            if restore:
                sys.unraisablehook = report
                for number, handler in before.items():
                    if signal.getsignal(number) == self._handle:
                        signal.signal(number, handler)
        sys.exit(0 if self.received is None else 128 + self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        repeating, self._repeating = self._repeating, False
        if self._ended:
            if not repeating:
                os._exit(128 + number)
        elif self.received is None:
            self.received, self._received_at = number, time.monotonic()
            # Unlike threading, this takes no lock, which the interrupted code might hold.
            _thread.start_new_thread(self._repeat, (signal.Signals(number),))
            if not _is_importing(frame):
                raise Interrupted
        elif repeating:
            if not _is_unwinding() and not _is_importing(frame):
                raise Interrupted
        elif time.monotonic() - self._received_at > _PATIENCE_SECONDS:
            os._exit(128 + self.received)

    def _repeat(self, number: signal.Signals) -> None:
        while True:
            time.sleep(_REPEAT_SECONDS)
            if self._ended:
                return
            self._repeating = True
            _thread.interrupt_main(number)  # no real signal: Ray's shutdown, for one, puts back a handler that kills

    def _is_expected(self, dropped: Any) -> bool:
        return self.received is not None and issubclass(dropped.exc_type, KeyboardInterrupt)


def _is_unwinding() -> bool:
    """Whether the main thread is already ending: handling Interrupted, or an exception that followed from it."""
    error = sys.exception()
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the interrupted code is part of an import."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


current = Interrupts()
"""The signals of the command that runs, or ran last."""


def run(command: Callable[[], None], *, restore: bool) -> NoReturn:
    """Run a command as `Interrupts.run` does, as the current one."""
    global current
    current = Interrupts()
    current.run(command, restore=restore)
