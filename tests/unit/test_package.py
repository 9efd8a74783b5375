from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import gircse_rag
from gircse_rag.errors import MissingExtraError, require
from gircse_rag.install_hint import install_command

HEAVY = "{'torch', 'transformers', 'peft', 'qdrant_client', 'numpy'}"


@pytest.mark.parametrize(
    "module", ["gircse_rag", "gircse_rag.spec", "gircse_rag.prompts", "gircse_rag.checkpoint.bundled"]
)
def test_importing_the_package_imports_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_signals_are_handled_before_anything_slow_is_imported() -> None:
    program = "import sys, gircse_rag.cli; print(sorted({'typer', 'rich', 'asyncio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_engine_limits_kernel_caches_unless_the_user_did() -> None:
    program = "import os, gircse_rag.engine; print(*map(os.environ.get, {names}))"
    names = ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"]
    for own, expected in [({}, "128 32"), ({"LRU_CACHE_CAPACITY": "1000"}, "128 1000")]:
        env = {key: value for key, value in os.environ.items() if key not in names} | own
        command = [sys.executable, "-c", program.format(names=names)]
        assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip() == expected


def test_every_public_name_exists() -> None:
    for name in gircse_rag.__all__:
        assert getattr(gircse_rag, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = gircse_rag.Nothing


def test_a_missing_extra_error_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=re.escape(install_command("train"))):
        require("no_such_module_anywhere", "train")
    assert require("json", "train").__name__ == "json"
