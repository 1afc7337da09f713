"""Compare torch's operator database (OpInfo) on `npu` with the CPU, operator by operator.

The simulated device uses the CPU's kernels, so results must be equal to the last bit, except that LAPACK and FFT
libraries may round differently from call to call. Samples that draw random numbers or return uninitialised memory are
compared by dtype and shape, and counted separately.

As a program (`python -m cann_sim.opinfo`, which `coverage` starts) it prints all jobs as one JSON line, then reads jobs
from standard input, one per line, and prints a `Result` for each.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import re
import sys
import time
import types
import unittest
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch_npu  # noqa: F401  # registers the device type `npu`
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

if importlib.util.find_spec("expecttest") is None:
    # torch.testing's modules derive test classes from it, which nothing here runs.
    sys.modules["expecttest"] = types.ModuleType("expecttest")
    sys.modules["expecttest"].TestCase = unittest.TestCase  # type: ignore[attr-defined]

from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput

# Operators of detection and segmentation models; their gradients are compared, too. F is nn.functional.
_DETECTION = {
    "products": "F.conv1d F.conv2d F.conv3d F.conv_transpose2d F.linear matmul mm bmm mv addmm baddbmm einsum outer "
    "__rmatmul__ F.scaled_dot_product_attention",
    "norms": "F.batch_norm native_batch_norm F.layer_norm native_layer_norm F.group_norm F.instance_norm F.rms_norm "
    "F.local_response_norm F.normalize norm linalg.vector_norm",
    "activations": "F.relu F.relu6 F.leaky_relu F.gelu F.silu F.hardswish F.hardsigmoid F.hardtanh F.mish F.elu "
    "F.softplus F.logsigmoid F.glu F.prelu sigmoid tanh softmax log_softmax logsumexp",
    "pooling and resampling": "F.max_pool2d F.avg_pool2d F.adaptive_avg_pool2d F.adaptive_max_pool2d F.interpolate "
    "F.upsample_bilinear F.upsample_nearest F.grid_sample F.pad F.pixel_shuffle F.unfold F.fold",
    "losses": "F.cross_entropy F.nll_loss F.binary_cross_entropy F.binary_cross_entropy_with_logits F.l1_loss "
    "F.smooth_l1_loss F.mse_loss F.huber_loss F.kl_div F.cosine_similarity",
    "indexing": "F.embedding index_select gather scatter scatter_add index_add index_put masked_select masked_fill "
    "where take_along_dim __getitem__ sort topk tril triu diagonal as_strided",
    "shapes": "cat stack split chunk tensor_split unbind narrow select permute reshape view transpose t flip roll "
    "expand repeat tile repeat_interleave flatten unflatten squeeze unsqueeze contiguous clone meshgrid",
    "arithmetic": "add sub mul div rsub pow __rpow__ sqrt rsqrt exp log log2 log1p expm1 abs clamp clamp_min clamp_max "
    "minimum maximum atan atan2 sin cos erf square reciprocal neg lerp addcmul addcdiv nan_to_num cdist",
    "reductions": "max min amax amin mean sum prod var std var_mean std_mean cumsum cumprod",
}
DETECTION = frozenset(
    name.replace("F.", "nn.functional.") for line in _DETECTION.values() for name in line.split()
)

# MKL chooses LAPACK and FFT kernels by the alignment of the data, so the same call on a copy may differ, up to
# _LIBRARY_TOLERANCE.
_BY_LIBRARY = (
    "linalg.",
    "fft.",
    "norm.nuc",
    "svd",
    "pca_lowrank",
    "cholesky",
    "lu",
    "geqrf",
    "ormqr",
    "qr",
    "pinverse",
)
_LIBRARY_TOLERANCE = 1e-5  # of max(1, |value|)

# Operators that return uninitialised memory.
UNINITIALISED = {
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided", "resize_", "resize_as_",
}  # fmt: skip

VALUES = "values differ"  # the reason of a result that is wrong only in that

# Operators whose indices torch wants on the CPU, whatever the device of their input; OpInfo makes them there.
HOST_ARGUMENTS = {"tensor_split"}


@dataclasses.dataclass
class Result:
    """Result of one operator in one dtype and mode; every sample is counted once."""

    op: str  # OpInfo's name, and its variant after a dot if it has one
    dtype: str
    mode: str  # "forward" or "gradient"
    samples: int = 0
    equal: int = 0
    random: int = 0  # same dtypes and shapes; values are not comparable
    different: int = 0
    refused: int = 0  # raised on npu, not on the CPU
    crashed: int = 0  # the process ended, or gave no answer in time
    max_error: float = 0.0  # where only values differ: the largest |npu - cpu| / max(1, |cpu|)
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    example: str = ""  # the first sample that did not pass
    seconds: float = 0.0

    @property
    def passed(self) -> int:
        """The number of samples that passed."""
        return self.equal + self.random


class Draws(TorchDispatchMode):
    """Records in `random` whether an operator that runs in this mode draws random numbers."""

    random = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator unchanged, and record whether it is random."""
        self.random |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def find(name: str) -> OpInfo:
    """Return the OpInfo of that name; raise KeyError for an unknown name."""
    return _BY_NAME[name]


def _full_name(op: OpInfo) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


_BY_NAME: dict[str, OpInfo] = {_full_name(op): op for op in op_db}


def dtypes_of(op: OpInfo) -> list[torch.dtype]:
    """Return those of float32, float16 and bfloat16 that the CPU supports, else the first of int64, bool, complex64."""
    supported = op.supported_dtypes("cpu")
    floats = [dtype for dtype in (torch.float32, torch.float16, torch.bfloat16) if dtype in supported]
    return floats or [dtype for dtype in (torch.int64, torch.bool, torch.complex64) if dtype in supported][:1]


def jobs() -> list[tuple[str, str, str]]:
    """Return all jobs (operator, dtype, mode), the widest dtypes first."""
    wide: list[tuple[str, str, str]] = []
    gradients: list[tuple[str, str, str]] = []
    narrow: list[tuple[str, str, str]] = []
    for name, op in _BY_NAME.items():
        if not (dtypes := [str(dtype).removeprefix("torch.") for dtype in dtypes_of(op)]):
            continue
        first, *others = dtypes
        wide.append((name, first, "forward"))
        narrow += [(name, dtype, "forward") for dtype in others]
        if op.name in DETECTION and op.supports_autograd and first == "float32":
            gradients.append((name, first, "gradient"))
    return wide + gradients + narrow


def compare(
    name: str,
    dtype: str,
    mode: str,
    limit: int | None = None,
    lay: Callable[[Any], Any] = lambda leaf: leaf,
) -> Result:
    """Run an operator's samples (only the first `limit`, if given) on both devices and return the result.

    `lay` gives what a sample is made of another layout in memory, for the NPU alone.
    """
    op, result = find(name), Result(name, dtype, mode)
    started, reasons = time.monotonic(), collections.Counter[str]()
    torch.manual_seed(0)
    samples = op.sample_inputs("cpu", getattr(torch, dtype), requires_grad=mode == "gradient")
    for sample in samples:
        if limit is not None and result.samples >= limit:
            break
        # Copy before the CPU runs, because an operator may write to its input.
        inputs = pytree.tree_map(lay, [sample.input, sample.args, sample.kwargs])
        on_npu = _to_npu(inputs, op.name in HOST_ARGUMENTS)
        reference = _reference(op, sample, mode)
        if reference is None:
            continue
        expected, random = reference
        result.samples += 1
        reason = _judge(op, sample, mode, expected, random or op.name in UNINITIALISED, on_npu, result)
        if reason:
            reasons[reason] += 1
            result.example = result.example or sample.summary()[:300]
    result.reasons = dict(reasons.most_common())
    result.seconds = round(time.monotonic() - started, 3)
    return result


def _reference(op: OpInfo, sample: SampleInput, mode: str) -> tuple[list[Any], bool] | None:
    """Return the CPU's result, and whether it is random; None if the CPU refuses the sample."""
    inputs = [sample.input, sample.args, sample.kwargs]
    try:
        with Draws() as draws:
            expected = _evaluate(op, sample, "forward", inputs)
        if mode == "gradient":  # under a mode autograd takes the formulas that it keeps for subclasses
            expected = _evaluate(op, sample, mode, inputs)
    except Exception:
        return None
    return expected, draws.random


def _judge(
    op: OpInfo, sample: SampleInput, mode: str, expected: list[Any], random: bool, on_npu: Any, result: Result
) -> str:
    """Count one sample, and return the reason why it did not pass, or an empty text."""
    if isinstance(on_npu, Exception):
        result.refused += 1
        return _first_line(on_npu)
    try:
        found = _evaluate(op, sample, mode, on_npu)
        found = [leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf for leaf in found]
    except Exception as error:  # any exception is a result
        result.refused += 1
        return _first_line(error)
    reason, distance = difference(expected, found, shapes_only=random)
    if distance <= _LIBRARY_TOLERANCE and result.op.startswith(_BY_LIBRARY):
        reason = ""
    if reason:
        result.different += 1
        if reason == VALUES:
            result.max_error = max(result.max_error, distance)
            reason += _plain(sample.kwargs)
    elif random:
        result.random += 1
    else:
        result.equal += 1
    return reason


def _plain(kwargs: dict[str, Any]) -> str:
    """Return the arguments that are texts or fractions, which choose a formula: a known difference is of some only.

    >>> _plain({"approximate": "tanh", "dim": 1, "correction": 1.3}), _plain({"dim": 1})
    (", approximate='tanh', correction=1.3", '')
    """
    return "".join(f", {name}={value!r}" for name, value in kwargs.items() if isinstance(value, str | float))


def _evaluate(op: OpInfo, sample: SampleInput, mode: str, inputs: list[Any]) -> list[Any]:
    """Return the operator's results as a flat list, or (mode "gradient") the gradients of its inputs."""
    first, args, kwargs = inputs
    if mode == "forward":
        with torch.no_grad():
            return pytree.tree_leaves(op(first, *args, **kwargs))
    output = sample.output_process_fn_grad(op(first, *args, **kwargs))
    roots = [
        leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.requires_grad
    ]
    leaves = [
        leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor) and leaf.requires_grad
    ]
    if not roots:
        return []
    # Different weights for the elements, so that a gradient in the wrong place is noticed.
    weights = [
        (torch.arange(root.numel(), dtype=torch.float32) % 7 - 2).view(root.shape).to(root.device, root.dtype)
        for root in roots
    ]
    return list(torch.autograd.grad(roots, leaves, weights, allow_unused=True))


def _to_npu(inputs: list[Any], only_first: bool = False) -> Any:
    """Return `inputs` with every tensor and every CPU device moved to the NPU, or the exception if that fails."""
    try:
        return [_leaf_to_npu(inputs[0]), *inputs[1:]] if only_first else pytree.tree_map(_leaf_to_npu, inputs)
    except Exception as error:
        return error


def _leaf_to_npu(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        if leaf.layout is not torch.strided or leaf.is_conj() or leaf.is_neg():
            return leaf.detach().to("npu").requires_grad_(leaf.requires_grad)
        # Keep the strides and the offset of the CPU's tensor; `to` would not keep them for every view.
        row = leaf.detach().as_strided((leaf.untyped_storage().nbytes() // leaf.element_size(),), (1,), 0)
        moved = row.to("npu").as_strided(leaf.shape, leaf.stride(), leaf.storage_offset())
        return moved.requires_grad_(leaf.requires_grad)
    if isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf == "cpu"):
        return torch.device("npu")
    return leaf


def difference(expected: list[Any], found: list[Any], *, shapes_only: bool = False) -> tuple[str, float]:
    """Return how two flat results differ ("" if they do not), and the distance if values differ."""
    if len(expected) != len(found):
        return f"{len(found)} results instead of {len(expected)}", math.inf
    lone = ""
    for e, f in zip(expected, found, strict=True):
        if (e is None) != (f is None):
            lone = "a gradient that only one device has, the others are equal"
            continue
        if not isinstance(e, torch.Tensor) or not isinstance(f, torch.Tensor):
            same = e == f or (e != e and f != f) or str(e).replace("cpu", "npu:0") == str(f)
            if not same and not shapes_only:
                return f"{type(e).__name__} result differs", math.inf
            continue
        if e.dtype != f.dtype:
            return f"dtype {f.dtype} instead of {e.dtype}", math.inf
        if e.shape != f.shape:
            return "another shape", math.inf
        distance = 0.0 if shapes_only else _distance(_values(e), _values(f))
        if distance:
            return VALUES, distance
    return lone, math.inf if lone else 0.0


def _values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor of any layout as a dense tensor."""
    tensor = tensor.detach()
    if tensor.is_nested:
        return tensor.values()
    dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
    dense = dense.resolve_conj().resolve_neg()
    return (
        torch.view_as_real(dense) if dense.dtype is torch.complex32 else dense
    )  # hardly any kernel takes complex32


def _distance(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Return the largest |found - expected| / max(1, |expected|); 0 for equal tensors, where NaN equals NaN."""
    if torch.equal(expected, found):
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    e, f = expected.to(wide), found.to(wide)
    same = (e == f) | (torch.isnan(e) & torch.isnan(f))
    error = torch.where(same, torch.zeros((), dtype=torch.float64), (f - e).abs() / e.abs().clamp(min=1))
    return math.inf if not bool(torch.isfinite(error).all()) else float(error.max()) if error.numel() else 0.0


# What an aclnn function says of an argument that it refuses, without the process and the time.
_REFUSAL = re.compile(
    r"Parameter_Error\(EZ1001\): (.*?)( \([^()]* not implemented for \w+\))?$", re.MULTILINE
)


def _first_line(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    line = f"{type(error).__name__}: {line.strip()}"[:240]  # torch_npu names the function and code late
    refusal = _REFUSAL.search(str(error))
    return f"{line}: {refusal[1]}" if refusal else line


# -- the program --


def serve(requests: Iterable[str], answer: Any) -> None:
    """Answer jobs, one JSON line each, until the input ends."""
    for request in requests:
        name, dtype, mode = json.loads(request)
        print(json.dumps(dataclasses.asdict(compare(name, dtype, mode))), file=answer, flush=True)


def main() -> None:
    """Print the jobs and answer requests. Operators' own output goes to standard error, not among the answers."""
    with os.fdopen(os.dup(1), "w") as answer, contextlib.suppress(BrokenPipeError):
        os.dup2(2, 1)
        warnings.simplefilter("ignore")
        print(json.dumps({"jobs": jobs()}), file=answer, flush=True)
        serve(sys.stdin, answer)


if __name__ == "__main__":
    main()
