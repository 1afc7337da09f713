"""Find this machine's CANN tree and NPU device nodes, and choose between real and simulated NPUs."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ascendet.errors import AscendetError

# The driver's device nodes that every program needs in addition to those of its NPUs.
MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")
NpuKind = Literal["real", "sim"]
_FS = Path("/")


@dataclass(frozen=True, kw_only=True)
class CannTree:
    """An installed CANN toolkit; `version` is None if the tree does not say it."""

    home: Path
    version: str | None


def find_cann(root: Path = _FS) -> CannTree | None:
    """Return the CANN toolkit of this machine (`root` replaces `/`), or None.

    CANN 8.5 renamed `ascend-toolkit/latest` to `cann` and `cann-<version>`, and images have one or both. If
    ASCEND_HOME_PATH is set, its tree is tried first.
    """
    ascend = root / "usr/local/Ascend"
    candidates = [
        ascend / "cann",
        *sorted(ascend.glob("cann-*"), reverse=True),
        ascend / "ascend-toolkit/latest",
    ]
    if root == _FS and os.environ.get("ASCEND_HOME_PATH"):
        candidates.insert(0, Path(os.environ["ASCEND_HOME_PATH"]))
    for home in candidates:
        if (home / "lib64/libascendcl.so").exists():
            return CannTree(home=home, version=_cann_version(home))
    return None


def _cann_version(home: Path) -> str | None:
    names = (f"{platform.machine()}-linux/ascend_toolkit_install.info", "version.info", "version.cfg")
    for file in (home / name for name in names):
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            # `version=8.5.0`, or in version.cfg `runtime_running_version=[<internal version>:8.5.0]`.
            found = re.search(r"version=(?:\[[^\]:]*:)?(\d+\.\d+[.\w]*)", text, re.IGNORECASE)
            if found:
                return found[1]
    named = re.search(r"(\d+\.\d+\.\w+)$", home.resolve().name)
    return named[1] if named else None


def set_env_script(home: Path) -> Path | None:
    """Return the `set_env.sh` of a CANN tree, or None; in some versions it is beside the tree, not in it."""
    for script in (home / "set_env.sh", home.parent / "set_env.sh"):
        if script.is_file():
            return script
    return None


def device_nodes(root: Path = _FS) -> list[Path]:
    """Return the NPUs' device nodes, `/dev/davinci0` and so on, sorted by number."""
    nodes = [node for node in (root / "dev").glob("davinci*") if re.fullmatch(r"davinci\d+", node.name)]
    return sorted(nodes, key=lambda node: int(node.name.removeprefix("davinci")))


def npu_kind(root: Path = _FS) -> NpuKind:
    """Return which NPUs to use, as the variable `NPU` says; `auto` means real ones if they are usable, else simulated.

    Raises
    ------
    AscendetError
        `npu-unknown`: NPU is not auto, real or sim. `npu-missing`: NPU=real, but this machine has no usable NPU.
    """
    wanted = os.environ.get("NPU") or "auto"
    if wanted not in ("auto", "real", "sim"):
        raise AscendetError(
            "npu-unknown",
            "NPU must be auto, real or sim",
            expected="auto, real or sim",
            found=wanted,
            hint="NPU=auto",
        )
    if wanted == "sim":
        return "sim"
    tree, nodes = find_cann(root), device_nodes(root)
    if tree and nodes:
        return "real"
    if wanted == "real":
        found = f"CANN tree: {tree.home if tree else 'none'}; device nodes: {len(nodes)}"
        raise AscendetError(
            "npu-missing",
            "NPU=real, but this machine has no usable NPU",
            expected="a CANN toolkit and /dev/davinci*",
            found=found,
            hint="make doctor, or NPU=sim for the simulated devices",
        )
    return "sim"
