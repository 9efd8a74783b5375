"""The weighted mean of adapters, as a checkpoint folder; docs/checkpoint.md says why.

    python benchmarks/training_average.py OUT FOLDER=SHARE FOLDER=SHARE ... [--rank R]

All else is that of the first folder. Without --rank the sum is exact, at the sum of the ranks; with it, each matrix is
cut by a singular value decomposition.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.training_h100.module import averaged


def average(out: Path, parts: list[tuple[Path, float]], rank: int | None) -> None:
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder, _ in parts]
    rank = rank or sum(config["r"] for config in configs)
    shutil.copytree(parts[0][0], out)
    weights = {name: value.bfloat16() for name, value in averaged(parts, rank).items()}
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {**configs[0], "r": rank, "lora_alpha": rank}  # the products are what is added to the weights
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--rank", type=int)
    given = parser.parse_args()
    split = [part.rsplit("=", 1) for part in given.parts]
    average(given.out, [(Path(folder), float(share)) for folder, share in split], given.rank)
