"""Find out what each function torch_npu.npu_… does on the simulated NPU: compute, or be refused by name.

npu_functions.tsv says which operators by ACL name and which aclnn functions a function's own kernel asks CANN for
(facts of op-plugin, torch_npu 2.8.0); the dispatcher and the built libraries say which of those are here.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
import torch_npu

import cann_sim

# In the order of the report.
STATES = {
    "computes": "cann_sim has its kernel, or all that torch_npu's own kernel asks CANN for",
    "in part": "one way of torch_npu's kernel is simulated; another ends in an error that names what is missing",
    "refused": "the call ends in a RuntimeError that names what is missing",
}
# Why a function is left out, by what its name says; the first match counts.
REASONS = (
    (
        r"moe|alltoallv|gmm|grouped|ffn|all_gather|all_reduce|reduce_scatter",
        "mixtures of experts, products with communication",
    ),
    (r"quant|int4|hans|dequant", "quantised inference"),
    (
        r"nsa|mla|kv|cache|infer|incre|prompt|flashattn|attention_(update|worker)|top_k|mrope",
        "serving of language models",
    ),
    (
        r"fused_attention|multi_head|fusion_attention|attn_softmax",
        "fused attention that npu_fusion_attention replaces",
    ),
    (r"float_status", "whether an overflow in INF/NaN mode raises the flag for debugging is not documented"),
)
_OURS = re.compile(r"^PrivateUse1: registered at cann_sim/compute/\w+\.cpp:", re.MULTILINE)
# Python that is no operator.
_NO_OPERATORS = {"npu_functional", "npu_modules", "npu_change_data_ptr"}


@dataclasses.dataclass(frozen=True)
class Function:
    """A function's name, its state (a key of `STATES`), and what is missing and why where it does not compute."""

    name: str
    state: str
    missing: tuple[str, ...]
    reason: str


def names() -> list[str]:
    """Return the names of torch_npu's functions that are operators of its own, sorted."""
    found = {name for name in dir(torch_npu) if name.startswith("npu_")} - _NO_OPERATORS
    return sorted(found | {"fast_gelu", "scatter_update", "scatter_update_"})


def functions() -> Iterator[Function]:
    """Yield every function of `names`; what one that npu_functions.tsv does not know asks for is unknown."""
    torch.npu.init()  # aclInit loads the compute plug-in
    asks = needs()
    for name in names():
        if _is_ours(name):
            yield Function(name, "computes", (), "")
            continue
        by_name, aclnn = asks.get(name, ((), ("unknown",)))
        # torch_npu takes its older operator by ACL name, if it has one, where an aclnn function is missing.
        gone = tuple(each for each in aclnn if not _exported(each))
        if gone or not aclnn:
            names_gone = tuple(each for each in by_name if each not in acl_operators())
            gone = names_gone + gone if names_gone or not by_name else ()
        if not gone:
            yield Function(name, "computes", (), "")
        else:
            state = "in part" if by_name and len(gone) < len(by_name) else "refused"
            yield Function(name, state, gone, _reason(name))


@cache
def needs() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return, by function, the operators by ACL name and the aclnn functions that its kernel asks for."""
    rows = Path(__file__).with_name("npu_functions.tsv").read_text(encoding="utf-8").splitlines()[1:]
    table = {}
    for row in rows:
        name, by_name, aclnn = row.split("\t")
        table[name] = tuple(filter(None, by_name.split(","))), tuple(filter(None, aclnn.split(",")))
    return table


@cache
def acl_operators() -> frozenset[str]:
    """Return the names of the operators by ACL name that are simulated."""
    library = ctypes.CDLL(str(cann_sim.home() / "lib64" / "libcann_sim_compute.so"))
    library.cann_sim_acl_operators.restype = ctypes.c_char_p
    return frozenset(library.cann_sim_acl_operators().decode().split())


@cache
def _opapi() -> ctypes.CDLL:
    return ctypes.CDLL(str(cann_sim.home() / "lib64" / "libopapi.so"))


def _exported(function: str) -> bool:
    return hasattr(_opapi(), function)


def _is_ours(name: str) -> bool:
    prefix = f"npu::{name}"
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1")
    return any(
        _OURS.search(torch._C._dispatch_dump(each)) for each in registered if each.partition(".")[0] == prefix
    )


def _reason(name: str) -> str:
    return next((reason for pattern, reason in REASONS if re.search(pattern, name)), "without a user here")


def markdown() -> list[str]:
    """Return the lines of COVERAGE.md about these functions."""
    found = list(functions())
    lines = [
        "## torch_npu's own functions",
        "",
        "What a refused function's kernel asks CANN for is named; its call ends in a RuntimeError that names it too.",
        "",
        "| state | functions | meaning |",
        "|---|--:|---|",
    ]
    for state, meaning in STATES.items():
        lines.append(f"| {state} | {sum(each.state == state for each in found)} | {meaning} |")
    lines += ["", "| function | state | missing | left out because |", "|---|---|---|---|"]
    for each in found:
        missing = ", ".join(f"`{name}`" for name in each.missing)
        lines.append(f"| `{each.name}` | {each.state} | {missing} | {each.reason} |")
    return lines
