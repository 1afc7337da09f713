"""Decide which operators are at level aclnn: those whose samples equal the CPU's, but for what is known and not ours.

A run of `coverage` with CANN_SIM_LEVEL=all gives the results. A sample may fail for a reason in differences.toml, or
because CANN refuses the call (161001, 161002); any other failure holds back the aten operators of that name.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cann_sim

HELD = "OpInfo: "  # begins the reasons that `hold_back` writes; lines with other reasons are people's
# What the samples of an operator come to in one dtype: the table of whole operators has a column for each.
VERDICTS = {
    "equal": "all samples give the CPU's results",
    "differs": "torch_npu or torch computes some in another way, on a card too: DIFFERENCES.md",
    "refused": "CANN refuses the arguments of some (161001, 161002), for a documented reason",
    "no dtype": "CANN refuses the data type, in all or in those of one variant; the others give the CPU's results",
    "unexplained": "some fail for a reason that is not known",
}
_REFUSED = re.compile(r"error code is 16100[12]")
_CANN_NAMES = {
    "float32": "DT_FLOAT",
    "float16": "DT_FLOAT16",
    "bfloat16": "DT_BF16",
    "complex64": "DT_COMPLEX64",
}


def level(operator: str) -> int:
    """Return 1 for an operator (`aten::add.Tensor`) that CANN_SIM_LEVEL=aclnn puts at that level, 2 if only `all` does.

    3 if it holds back some calls; 0 for an operator whose functions do not all exist. The compute plug-in must be
    loaded: torch_npu is initialised.
    """
    library = ctypes.CDLL(str(cann_sim.home() / "lib64" / "libcann_sim_compute.so"))
    return int(library.cann_sim_level(operator.encode()))


def differences() -> list[dict[str, Any]]:
    """Return the entries of differences.toml."""
    import tomllib  # Python 3.11; nothing else here needs it

    text = Path(__file__).with_name("differences.toml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = tomllib.loads(text)["difference"]
    return entries


def unexplained(result: dict[str, Any], known: list[dict[str, Any]]) -> list[str]:
    """Return the reasons for which samples failed that are neither CANN's refusals nor known.

    >>> reasons = {"values differ": 3, "call aclnnX failed, error code is 161002": 1}
    >>> unexplained({"op": "gelu", "max_error": 1.0, "reasons": reasons}, [])
    ['values differ']
    """
    patterns = _patterns(result, known)
    return [
        reason
        for reason in result["reasons"]
        if not _REFUSED.search(reason) and not any(re.search(pattern, reason) for pattern in patterns)
    ]


def _patterns(result: dict[str, Any], known: list[dict[str, Any]]) -> list[str]:
    return [
        pattern
        for entry in known
        if result["op"] in entry["operators"] and result["max_error"] <= entry.get("largest", math.inf)
        for pattern in entry["reasons"]
    ]


def verdict(result: dict[str, Any], known: list[dict[str, Any]]) -> str:
    """Return what an operator's samples in one dtype and mode come to, a key of `VERDICTS`.

    >>> none = {"op": "mv", "dtype": "bfloat16", "samples": 2, "equal": 0, "random": 0, "refused": 2, "max_error": 0.0}
    >>> why = "error code is 161002: aclnnMv: self has data type DT_BF16, and on Ascend910B3 it must be in [DT_FLOAT]"
    >>> verdict({**none, "reasons": {why: 2}}, []), verdict({**none, "equal": 1, "refused": 1, "reasons": {why: 1}}, [])
    ('no dtype', 'no dtype')
    >>> verdict({**none, "refused": 1, "reasons": {why: 1, "error code is 161001": 1}}, [])
    'refused'
    """
    if result["equal"] + result["random"] == result["samples"]:
        return "equal"
    if unexplained(result, known):
        return "unexplained"
    own = f"has data type {_CANN_NAMES.get(result['dtype'])}, and"
    if all(own in reason for reason in result["reasons"]):
        return "no dtype"
    patterns = _patterns(result, known)
    differs = any(re.search(pattern, reason) for reason in result["reasons"] for pattern in patterns)
    return "differs" if differs else "refused"


def owners(name: str, mode: str, operators: Iterable[str]) -> list[str]:
    """Return the aten operators that an OpInfo name means: their own name, their gradients' in mode "gradient".

    >>> owners("linalg.vector_norm", "forward", ["aten::linalg_vector_norm.out", "aten::norm.Scalar"])
    ['aten::linalg_vector_norm.out']
    >>> owners("nn.functional.prelu", "gradient", ["aten::_prelu_kernel_backward", "aten::relu"])
    ['aten::_prelu_kernel_backward']
    """
    base = re.sub(r"^nn\.functional\.", "", name)
    base = base.replace(".", "_") if base.startswith(("linalg.", "fft.")) else base.split(".")[0]
    wanted = [base, f"{base}_backward", f"{base}_kernel_backward"] if mode == "gradient" else [base]
    return [name for name in operators if name.split("::")[1].split(".")[0].strip("_") in wanted]


def hold_back(results: Iterable[dict[str, Any]], operators: list[str]) -> dict[str, str]:
    """Return the operators to hold back, each with its reason, from the results of a run at level all."""
    known = differences()
    held: dict[str, str] = {}
    for result in results:
        for reason in unexplained(result, known):
            for operator in owners(result["op"], result["mode"], operators):
                held.setdefault(operator, f"{HELD}{result['op']}, {result['mode']}: {reason[-90:]}")
    return dict(sorted(held.items()))


def write_held_back(file: Path, held: dict[str, str]) -> bool:
    """Write the generated lines of held_back.tsv, keep the others, and return whether the file changed."""
    before = file.read_text(encoding="utf-8")
    kept = [line for line in before.splitlines() if f"\t{HELD}" not in line]
    by_hand = {line.split("\t")[0] for line in kept}
    lines = kept + [f"{name}\t{reason}" for name, reason in held.items() if name not in by_hand]
    after = "\n".join(lines) + "\n"
    file.write_text(after, encoding="utf-8")
    return after != before
