"""Child processes that tests interrupt."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
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
