"""Child processes that tests interrupt, and forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

# A shell starts background jobs with SIGINT ignored, and every child inherits that. `preexec_fn` could restore it too,
# but is unsafe in a process with threads.
_RESTORE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def interruptible(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a process that receives SIGINT, even if the tests run as a background job.

    `command` begins with the path of a program; `options` are those of `subprocess.Popen`.
    """
    return subprocess.Popen([sys.executable, "-c", _RESTORE, *command], **options)


def run_in_fork(check: Callable[[], object], seconds: float = 60) -> None:
    """Call `check` in a fork of this process; an error there, or no end in time, is an error here."""
    child = os.fork()
    if not child:
        try:
            check()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)
