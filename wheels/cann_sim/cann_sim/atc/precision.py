"""What ATC's options say about precision: the mode, and the files that change it for single operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The modes of --precision_mode_v2 by what they are called in --precision_mode.
SAME_AS = {
    "fp16": "force_fp16",
    "origin": "must_keep_origin_dtype",
    "mixed_float16": "allow_mix_precision_fp16",
    "mixed_bfloat16": "allow_mix_precision_bf16",
    "allow_mix_precision": "allow_mix_precision_fp16",
}
MODES = (
    "force_fp16", "force_fp32", "cube_fp16in_fp32out", "allow_fp32_to_fp16", "must_keep_origin_dtype",
    "allow_mix_precision_fp16", "allow_mix_precision_bf16",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What ATC's options say about data types and fusion.

    Attributes
    ----------
    mode
        A mode of --precision_mode or --precision_mode_v2; ATC's default is force_fp16.
    keep_dtype
        Names of nodes and `OpType::X` that keep the data types of the ONNX graph; without effect in mode origin.
    customize_dtypes
        Data types (numpy's names) of inputs and outputs by node or `OpType::X`; stronger than `keep_dtype`.
    mixlist
        Changes of the lists of mixed precision: `black-list`, `white-list`, `gray-list`, each with `to-add` and
        `to-remove` and GE's operator names.
    op_precision_mode
        Modes such as `high_precision` by node or `OpType::X`. They choose between implementations of one kernel, whose
        differences are not public: without effect here.
    output_type
        The data type of all outputs, types by `node:index` (or the output's name), or "" for the graph's own.
    fp16_inputs
        Inputs of the model that are float16 whatever the graph says.
    fusion_off
        Fusion passes that are off; `ALL` is every one of them.
    """

    mode: str = "force_fp16"
    keep_dtype: frozenset[str] = frozenset()
    customize_dtypes: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    mixlist: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    op_precision_mode: Mapping[str, str] = field(default_factory=dict)
    output_type: str | Mapping[str, str] = ""
    fp16_inputs: frozenset[str] = frozenset()
    fusion_off: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.canonical not in MODES:
            raise ValueError(f"{self.mode} is no precision mode; modes are {', '.join((*MODES, *SAME_AS))}")

    @property
    def canonical(self) -> str:
        """Return the mode's name in `MODES`."""
        return SAME_AS.get(self.mode, self.mode)

    def changed_list(self, operator: str, found: str) -> str:
        """Return the list of mixed precision of a GE operator that is in `found`, after --modify_mixlist."""
        for name, listed in (("black-list", "black"), ("white-list", "white"), ("gray-list", "grey")):
            changes = self.mixlist.get(name, {})
            if operator in changes.get("to-add", ()):
                return listed
            if found == listed and operator in changes.get("to-remove", ()):
                found = "grey"
        return found
