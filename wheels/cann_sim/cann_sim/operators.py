"""Find out how each aten operator runs on the simulated NPU, from torch's dispatcher after torch_npu is loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import torch
import torch_npu  # noqa: F401  # registers its kernels, and by aclInit ours

from cann_sim import gate

# In the order of the report.
STATES = {
    "simulated": "the CPU's kernel runs over the NPU tensor's memory, or one of cann_sim's own",
    "aclnn": "torch_npu's own kernel, on the aclnn functions of libopapi.so",
    "view": "torch_npu's own; only sizes, strides and offset change",
    "torch_npu": "torch_npu's own: allocation, copies between host and device, scalars read by the host",
    "CPU fallback": "torch_npu registers nothing: it copies to the CPU and back, with a warning, as on a card",
    "not simulated": "torch_npu's own kernel, which asks CANN for an operator; the call ends in an error that names it",
}
# By gate.level.
LEVELS = {0: "", 1: "aclnn", 2: "aten (held back)", 3: "aclnn (some calls held back)"}
_OURS = re.compile(r"^PrivateUse1: registered at cann_sim/compute/(dispatch|npu_\w+)\.cpp:", re.MULTILINE)
_COMPOSITE = (
    "CompositeImplicitAutograd",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
)


@dataclasses.dataclass(frozen=True)
class Operator:
    """An aten operator's name, without the namespace; its state, a key of `STATES`; its level (see `LEVELS`)."""

    name: str
    state: str
    level: str


def aten() -> Iterator[Operator]:
    """Yield every aten operator that has a kernel for PrivateUse1 or falls back to the CPU, in alphabetical order."""
    torch.npu.init()  # aclInit loads the compute plug-in
    registered = set(torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1"))
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if not name.startswith("aten::"):
            continue
        if "schema: (none)" in torch._C._dispatch_dump(name):
            continue  # a kernel for an operator that torch does not have
        if name in registered:
            yield Operator(name.removeprefix("aten::"), _state(name), LEVELS[gate.level(name)])
        elif _has(name, "CPU") and not any(_has(name, key) for key in _COMPOSITE):
            yield Operator(name.removeprefix("aten::"), "CPU fallback", "")


def ready() -> list[str]:
    """Return all operators, aten's and torch_npu's own, that are or could be at level aclnn."""
    torch.npu.init()
    return sorted(filter(gate.level, torch._C._dispatch_get_all_op_names()))


def _state(name: str) -> str:
    if _OURS.search(torch._C._dispatch_dump(name)) and gate.level(name) != 3:
        return "simulated"
    schema = torch._C._get_schema(*(name.rsplit(".", 1) if "." in name else (name, "")))
    if any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns):
        return "view"
    if gate.level(name):  # and not ours: it is at that level in this process
        return "aclnn"
    on_cpu = torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "CPU")
    return "torch_npu" if on_cpu else "not simulated"


def _has(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))
