"""The kernels of a SoC: which GE operator takes which data types on AI Core, and what AI CPU has beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["910B", "910_93", "310P", "910A"]


@dataclass(frozen=True, kw_only=True)
class Soc:
    """A SoC: its name as --soc_version gives it, such as `Ascend910B3`, and the family whose kernels it has."""

    name: str
    family: Family
