"""Small tmpfs mounts, for tests of full disks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


class SmallDisks:
    """Mounts small file systems in new folders below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mounted: list[Path] = []

    def mount(self, size: str) -> Path:
        """Mount a file system of this size, such as "3m". Skips the test if mounting is not permitted."""
        place = self._folder / f"disk{len(self._mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root on Linux may mount a small file system")
        self._mounted.append(place)
        return place

    def resize(self, place: Path, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)

    def unmount(self) -> None:
        for place in self._mounted:
            subprocess.run(["umount", "--lazy", place], check=True)
