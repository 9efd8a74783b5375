"""Progress on stderr: a bar on a terminal, else a line every ten seconds, so that a log shows that work goes on."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_PER_LINE = 10.0
Update = Callable[[int, int], None]
"""`update(done, total)`."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


@contextlib.contextmanager
def progress(title: str) -> Iterator[Update]:
    """Yield `update(done, total)`, which shows progress on stderr, with rate and time left."""
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield _make_line_printer(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _make_line_printer(title: str) -> Update:
    started = last = time.monotonic()
    first: int | None = None

    def update(done: int, total: int) -> None:
        nonlocal last, first
        first = done if first is None else first  # a resumed run begins above 0
        now = time.monotonic()
        if now - last < SECONDS_PER_LINE or sys.stderr is None:
            return
        last = now
        speed = (done - first) / (now - started)
        left = f", {(total - done) / speed:.0f} s left" if speed and total > done else ""
        print(f"{title}: {done} of {total}, {speed:.1f}/s{left}", file=sys.stderr, flush=True)

    return update
