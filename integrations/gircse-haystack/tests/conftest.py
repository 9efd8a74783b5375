"""Fixtures shared by all integrations come from `integrations/fixtures.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from integrations.fixtures import smollm2, tiny_embedder, tiny_folder  # noqa: F401
