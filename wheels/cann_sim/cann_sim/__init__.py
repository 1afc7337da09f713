"""A simulated CANN: the folder it is installed in, and the environment that makes a process use it.

`python -m cann_sim env` prints shell exports that make the unmodified torch_npu wheel use it; after that, no module of
this package needs to be imported.
"""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"


def home() -> Path:
    """Return the CANN-shaped tree: set_env.sh, lib64/, bin/npu-smi, opp/, runtime/, compiler/."""
    return Path(__file__).resolve().parent / "tree"


class MixedTreesError(RuntimeError):
    """Another CANN tree is on the library path; the message is its folder."""


def environ(inherited: dict[str, str]) -> dict[str, str]:
    """Return the variables that make `home()` the CANN of a process; paths in `inherited` are kept after ours.

    Raises `MixedTreesError` if LD_LIBRARY_PATH has another CANN tree: a process would load from it what ours lacks.
    """
    root = home()
    for part in inherited.get("LD_LIBRARY_PATH", "").split(":"):
        if part and (Path(part) / "libascendcl.so").exists() and not Path(part).samefile(root / "lib64"):
            raise MixedTreesError(part)

    def prepend(name: str, *folders: Path) -> str:
        ours = list(map(str, folders))
        return ":".join(
            ours + [part for part in inherited.get(name, "").split(":") if part and part not in ours]
        )

    return {
        "ASCEND_HOME_PATH": str(root),
        "ASCEND_TOOLKIT_HOME": str(root),
        "ASCEND_OPP_PATH": str(root / "opp"),
        "ASCEND_AICPU_PATH": str(root),
        "LD_LIBRARY_PATH": prepend("LD_LIBRARY_PATH", root / "lib64"),
        "PYTHONPATH": prepend("PYTHONPATH", root / "python" / "site-packages"),
        "PATH": prepend("PATH", root / "bin", root / "tools" / "profiler" / "bin"),
        # Importing torch_npu starts torch.compile's workers; the simulated device has no compiler that they could run.
        "TORCHINDUCTOR_COMPILE_THREADS": inherited.get("TORCHINDUCTOR_COMPILE_THREADS", "1"),
    }
