"""The `gircse` command: thin wrappers around the library. Results go to stdout, everything else to stderr.

    app.py           registers the commands; turns errors into exit codes
    options.py       options shared by several commands
    output.py        writes results to stdout, notes and progress to stderr
    embedding.py     embed, explain
    ingesting.py     ingest
    searching.py     search
    questions.py     questions one after the other
    migrating.py     migrate
    verifying.py     verify
    adapting.py      adapt
    comparing.py     compare-instructions
    training.py      train
    evaluation.py    eval
    serving.py       export, serve
    mcp.py           mcp
    environment.py   models, instructions, doctor
    interrupts.py    Ctrl-C, SIGTERM and SIGHUP
    progress.py      ProgressBackend, which reports every embedded text

No module here imports torch, transformers or qdrant-client at its top, so that `gircse --help` starts fast.
"""

from __future__ import annotations

from gircse_rag.cli import interrupts


def main(arguments: list[str] | None = None) -> None:
    """Run the command in `arguments` (None: in sys.argv) and exit."""

    def command() -> None:
        from gircse_rag.cli.app import run

        run(arguments)

    interrupts.run(command, restore=arguments is not None)


__all__ = ["main"]
