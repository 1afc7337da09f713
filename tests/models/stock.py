"""mmdet as it was published, beside ours: the installed package without our patches."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from pathlib import Path

PATCHES = Path(__file__).parents[2] / "patches" / "mmdet"


def stock_mmdet(folder: Path) -> Path:
    """Copy the installed mmdet to `folder`/mmdet and take our patches off; `folder` then goes onto PYTHONPATH."""
    installed = importlib.metadata.distribution("mmdet").locate_file("mmdet")
    shutil.copytree(str(installed), folder / "mmdet", ignore=shutil.ignore_patterns("__pycache__", "configs"))
    (folder / "mmdet" / ".mim" / "configs").symlink_to(Path(str(installed)) / ".mim" / "configs")
    for patch in sorted(PATCHES.glob("*.patch"), reverse=True):
        subprocess.run(["git", "apply", "--reverse", "--unidiff-zero", patch], cwd=folder, check=True)
    return folder
