"""The weighted mean of adapters, as a checkpoint folder (PEFT's `add_weighted_adapter`); docs/training.md says why.

    python benchmarks/training_average.py OUT FOLDER=SHARE FOLDER=SHARE ... [--rank R]

All else is that of the first folder. Without --rank the sum is exact, at the sum of the ranks; with it, each matrix is
cut by a singular value decomposition.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from peft import PeftModel

from gircse_rag.checkpoint import load_hf
from gircse_rag.training.saving import save_adapter


def average(out: Path, parts: list[tuple[Path, float]], rank: int | None) -> None:
    base, _ = load_hf("smollm2-135m-base", dtype=torch.float32)
    names = [f"part{index}" for index in range(len(parts))]
    model = PeftModel.from_pretrained(base, str(parts[0][0]), adapter_name=names[0])
    for name, (folder, _) in zip(names[1:], parts[1:], strict=True):
        model.load_adapter(str(folder), name)
    kind = {"combination_type": "svd", "svd_rank": rank} if rank else {"combination_type": "cat"}
    model.add_weighted_adapter(names, [share for _, share in parts], "default", **kind)
    model.set_adapter("default")
    for name in names:
        model.delete_adapter(name)
    shutil.copytree(parts[0][0], out)
    save_adapter(out, model, "smollm2-135m-base", torch.bfloat16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--rank", type=int)
    given = parser.parse_args()
    split = [part.rsplit("=", 1) for part in given.parts]
    average(given.out, [(Path(folder), float(share)) for folder, share in split], given.rank)
