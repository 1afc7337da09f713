"""Which SoC an OM is converted for: the port report's rule, `set_env.sh > npu-smi > user > default`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ascendet.core import process
from ascendet.envs import activation
from ascendet.errors import AscendetError
from ascendet.run import target
from ascendet.run.target import Target

# Where a SoC's name can come from; the first one that names it wins. `set_env.sh` is SOC_VERSION of the environment
# that the tree's set_env.sh leaves, `user` is make's SOC, and `default` the stack's first SoC.
SOURCES = ("set_env.sh", "npu-smi", "user", "default")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A SoC as atc's `--soc_version` takes it, and where its name comes from; `overruled` are others that differ."""

    soc: str
    source: str
    overruled: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return the line that is printed.

        >>> print(Choice(soc="Ascend910B3", source="npu-smi"))
        SoC Ascend910B3 (npu-smi)
        >>> print(Choice(soc="Ascend910B4", source="user", overruled=(("npu-smi", "Ascend910B3"),)))
        SoC Ascend910B4 (user; FORCE=1 over npu-smi's Ascend910B3)
        """
        over = ", ".join(f"{source}'s {soc}" for source, soc in self.overruled)
        return f"SoC {self.soc} ({self.source}{f'; FORCE=1 over {over}' if over else ''})"


def normalise(name: str) -> str:
    r"""Return a SoC's name as CANN writes it, or "" for what names none.

    >>> [normalise(name) for name in ("910B3", "ascend910b3", "Ascend910_9391", " 310P3\n", "Ascend NPU")]
    ['Ascend910B3', 'Ascend910B3', 'Ascend910_9391', 'Ascend310P3', '']
    """
    found = re.fullmatch(r"(?:ascend)?[ _-]?(\d{3}\w*)", name.strip(), re.IGNORECASE)
    return f"Ascend{found[1].upper()}" if found else ""


def choose(*, set_env: str, npu_smi: str, user: str, default: str, force: bool) -> Choice:
    """Return the SoC by the rule; what a source does not know is "".

    With `force` a user's SoC wins over all others, because that is what one forces: to convert for another machine.

    Raises
    ------
    AscendetError
        `soc-contradiction`: two sources other than the default name different SoCs, and `force` is not set.
        `usage`: the user's name is no SoC's.
    """
    if user and not normalise(user):
        raise AscendetError(
            "usage",
            "SOC must be a SoC's name",
            expected="such as Ascend910B3, 910B3 or Ascend910_9391",
            found=f"SOC={user}",
            hint=f"SOC={default}",
        )
    named = {
        source: normalise(name)
        for source, name in zip(SOURCES, (set_env, npu_smi, user, default), strict=True)
        if normalise(name)
    }
    source = "user" if force and "user" in named else next(iter(named))
    others = tuple(
        (other, name)
        for other, name in named.items()
        if other not in (source, "default") and name != named[source]
    )
    if others and not force:
        forced = "user" if "user" in named else source
        raise AscendetError(
            "soc-contradiction",
            "it is not clear which SoC to convert for",
            expected="one SoC from set_env.sh (SOC_VERSION), npu-smi and SOC",
            found="\n".join(f"{other}: {name}" for other, name in named.items() if other != "default"),
            hint=f"FORCE=1, which takes {named[forced]} ({forced}); or correct or unset the others",
        )
    return Choice(soc=named[source], source=source, overruled=others)


def find(aim: Target, user: str, *, force: bool) -> Choice:
    """Return the SoC to convert for on this machine; see `choose` for what it raises.

    Parameters
    ----------
    aim
        The prepared target; a container's simulated devices are the stack's first SoC.
    user
        make's SOC, or "".
    force
        Whether FORCE=1 was given.
    """
    set_env = os.environ.get("SOC_VERSION", "")
    npu_smi = ""
    if not aim.container:
        environ = activation.stack_environ(aim.stack, aim.npu)
        set_env, npu_smi = environ.get("SOC_VERSION", ""), _npu_smi(environ)
    elif aim.npu == "real":
        npu_smi = _npu_smi(os.environ)
    return choose(set_env=set_env, npu_smi=npu_smi, user=user, default=aim.stack.soc[0], force=force)


def _npu_smi(environ: Mapping[str, str]) -> str:
    """Return the SoC of the first device, or "".

    Only the board tells A3 apart: chip name Ascend910, NPU name 9391, together Ascend910_9391 (ATC's option page).
    """
    for more in (["-c", "0"], []):
        shown = process.ask(["npu-smi", "info", "-t", "board", "-i", "0", *more], env=environ) or ""
        rows = (row.partition(":") for row in shown.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in rows}
        chip, npu = normalise(fields.get("Chip Name", "")), fields.get("NPU Name", "")
        if chip:
            return f"{chip}_{npu}" if chip == "Ascend910" and npu.isdecimal() else chip
    return normalise(target.soc_name(environ))
