"""`gircse ...`: thin commands over the library. Results go to stdout, everything else to stderr.

    app.py           the commands, one place for errors and exit codes
    options.py       options that several commands share
    output.py        stdout for results, stderr for the rest
    embedding.py     embed, explain
    ingesting.py     ingest
    searching.py     search
    migrating.py     migrate
    training.py      train
    evaluation.py    eval
    serving.py       export, serve
    environment.py   models, doctor
    watched.py       progress of a backend

No module here imports torch, transformers or qdrant-client at its top: `gircse --help` answers at once.
"""

from __future__ import annotations

from gircse_rag.cli.app import main

__all__ = ["main"]
