"""The checks of paths on ATC's command line, and the name of the file that it writes."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from cann_sim.atc.errors import AtcError

# Linux's PATH_MAX
LONGEST = 4096


def checked_input(path: str, option: str) -> Path:
    """Return the path of a file that can be read.

    Raises `AtcError`: E10004 for an empty path, E13000 where nothing is, E13001 without permission.
    """
    if not path:
        raise AtcError("E10004", parameter=option)
    found = Path(path)
    if not found.exists():
        raise AtcError("E13000", path=path, reason=f"--{option} names no file that exists")
    if not found.is_file():
        raise AtcError("E13001", file=path, reason="it is a folder")
    if not os.access(found, os.R_OK):
        raise AtcError("E13001", file=path, reason="no permission to read it")
    return found


def checked_output(path: str, option: str, *, suffix: str = "") -> Path:
    """Return the path of a file that can be written, with `suffix` behind it; its folder need not exist yet.

    Raises `AtcError`: E10004 for an empty path, E10021 for a long one, E10022 for a folder, E13004 without permission.
    """
    if not path:
        raise AtcError("E10004", parameter=option)
    if len((path + suffix).encode()) >= LONGEST:
        raise AtcError("E10021", parameter=option, found=len((path + suffix).encode()), size=LONGEST - 1)
    if path.endswith(("/", "\\")) or Path(path + suffix).is_dir():
        raise AtcError("E10022", parameter=option, filename=path)
    wanted = Path(path + suffix)
    folder = next(parent for parent in wanted.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise AtcError("E13004", file=wanted, reason=f"{folder} is no folder that can be written to")
    return wanted


def checked_host(os_name: str, cpu: str) -> str:
    """Return the architecture of the machine that will run the model, this one's if none is named.

    Raises `AtcError` E10001 for a system or processor without an operator package.
    """
    if os_name not in ("", "linux"):
        raise AtcError("E10001", parameter="--host_env_os", value=os_name, reason="it must be linux")
    if cpu not in ("", "x86_64", "aarch64"):
        raise AtcError("E10001", parameter="--host_env_cpu", value=cpu, reason="it must be x86_64 or aarch64")
    return cpu or platform.machine()


def om_name(output: str, *, ranges: bool, cpu: str) -> str:
    """Return the name of the OM that ATC writes for `--output`.

    A model whose shapes vary in a range holds tiling code for its host, so the host is part of its name; static models
    and models with gears run on any host.

    >>> om_name("vit", ranges=False, cpu="aarch64"), om_name("vit", ranges=True, cpu="aarch64")
    ('vit.om', 'vit_linux_aarch64.om')
    """
    return f"{output}_linux_{cpu}.om" if ranges else f"{output}.om"
