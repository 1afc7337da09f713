"""The names that --soc_version takes, and whose kernels are simulated."""

from __future__ import annotations

from cann_sim.atc.errors import AtcError
from cann_sim.atc.kernels import Family, Soc

# Names of CANN 8.5's platform files, by family. 310B and the first 310 have no operator library here.
FAMILIES: dict[Family, tuple[str, ...]] = {
    "910B": ("Ascend910B1", "Ascend910B2", "Ascend910B2C", "Ascend910B3", "Ascend910B4", "Ascend910B4-1"),
    "910_93": ("Ascend910_9362", "Ascend910_9372", "Ascend910_9381", "Ascend910_9382", "Ascend910_9391",
               "Ascend910_9392"),
    "310P": ("Ascend310P1", "Ascend310P3", "Ascend310P5", "Ascend310P7"),
    "910A": ("Ascend910A", "Ascend910B", "Ascend910PremiumA", "Ascend910ProA", "Ascend910ProB"),
}  # fmt: skip
WITHOUT_PACKAGE = ("Ascend310", "Ascend310B1", "Ascend310B2", "Ascend310B3", "Ascend310B4", "Ascend035")


def soc_named(name: str) -> Soc:
    """Return the SoC of a name as --soc_version gives it.

    Raises
    ------
    AtcError
        E10001 for a name that does not exist, EZ3003 for one whose operator package is not here.
    """
    for family, names in FAMILIES.items():
        if name in names:
            return Soc(name=name, family=family)
    known = ", ".join(names[0] for names in FAMILIES.values())
    if name in WITHOUT_PACKAGE or name.startswith("Ascend950"):
        solution = f"Convert for a SoC whose operator package is here, such as {known}"
        reason = "cann_sim has no table of its kernels"
        raise AtcError("EZ3003", soc=name, reason=reason, solution=solution)
    reason = f"there is no such SoC; names are as npu-smi shows them with Ascend in front, such as {known}"
    raise AtcError("E10001", parameter="--soc_version", value=name, reason=reason)
