import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from integrations.fixtures import smollm2, tiny_embedder, tiny_folder, watched  # noqa: F401
