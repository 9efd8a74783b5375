import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from integrations.fixtures import recording_backend, smollm2, tiny_embedder, tiny_folder  # noqa: F401
