"""The `gircse` command: thin wrappers around the library. Results go to stdout, everything else to stderr.

    app.py           registers the commands; turns errors into exit codes
    options.py       options shared by several commands
    output.py        writes results to stdout, notes and progress to stderr
    embedding.py     embed, explain
    ingesting.py     ingest
    searching.py     search
    migrating.py     migrate
    training.py      train
    evaluation.py    eval
    serving.py       export, serve
    environment.py   models, doctor
    interrupts.py    Ctrl-C, SIGTERM and SIGHUP
    progress.py      ProgressBackend, which reports every embedded text

No module here imports torch, transformers or qdrant-client at its top, so that `gircse --help` starts fast.
"""

from __future__ import annotations

from gircse_rag.cli import interrupts


def main() -> None:
    """Run the command in sys.argv and exit."""
    interrupts.current.run(_run)


def _run() -> None:
    from gircse_rag.cli.app import run

    run()


__all__ = ["main"]
