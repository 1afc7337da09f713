"""Which ONNX operators ATC's parser knows: `operators.tsv`, by domain, operator and version of the operator set.

The table holds facts from the public plug-ins of CANN 8.5 (for operators whose plug-in was not public then, from those
of 2026). A version counts only if it is listed: opset 19 and later are unknown to every operator of ONNX.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

DEFAULT_DOMAIN = "ai.onnx"


@cache
def _table() -> dict[tuple[str, str], frozenset[int] | None]:
    """Return the versions by domain and operator; None means any."""
    table: dict[tuple[str, str], frozenset[int] | None] = {}
    text = files("cann_sim.atc").joinpath("operators.tsv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines(), delimiter="\t"):
        table[row["domain"], row["operator"]] = None if row["opsets"] == "any" else _versions(row["opsets"])
    return table


@cache
def _ge_operators() -> dict[tuple[str, str], str]:
    text = files("cann_sim.atc").joinpath("operators.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    # PartitionedCall is a graph that the plug-in makes for the node
    return {
        (row["domain"], row["operator"]): row["ge_operator"].replace("PartitionedCall", "").strip("|")
        for row in rows
    }


def _versions(text: str) -> frozenset[int]:
    """Return the versions of a list of ranges.

    >>> sorted(_versions("11,16-18"))
    [11, 16, 17, 18]
    """
    versions: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        versions |= set(range(int(first), int(last or first) + 1))
    return frozenset(versions)


def is_registered(domain: str, operator: str, version: int) -> bool:
    """Return whether the parser has a plug-in for an operator of that domain ("" is ONNX's) and version."""
    key = (domain or DEFAULT_DOMAIN, operator)
    if key not in _table():
        return False
    versions = _table()[key]
    return versions is None or version in versions


def known_versions(domain: str, operator: str) -> str:
    """Return the versions for which an operator is registered, "" if it is not.

    >>> known_versions("", "LayerNormalization")
    '17, 18'
    """
    versions = _table().get((domain or DEFAULT_DOMAIN, operator))
    return ", ".join(map(str, sorted(versions))) if versions else ""


def ge_operator(domain: str, operator: str) -> str:
    """Return the GE operator of an ONNX operator, "" if it depends on the node.

    >>> ge_operator("", "Div")
    'RealDiv'
    """
    return _ge_operators().get((domain or DEFAULT_DOMAIN, operator), "")
