"""Differences between two tensors: the columns and thresholds of msprobe's `compare -m offline_model` (formerly msit).

The names and thresholds are those of its result_<time>.csv, so that rows of both tools can be laid side by side. The
formulas are those of the pages "offline_data_compare_result" of MindStudio's manual.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ascendet_common import results

# The header of msprobe's CSV, in its order; it has two columns of the name DataType, NPU's and ground truth's.
COLUMNS = (
    "OpType",
    "NPUDump",
    "DataType",
    "Address",
    "GroundTruth",
    "DataType",
    "TensorIndex",
    "Shape",
    "Overflow",
    "CosineSimilarity",
    "MaxAbsoluteError",
    "AccumulatedRelativeError",
    "RelativeEuclideanDistance",
    "KullbackLeiblerDivergence",
    "StandardDeviation",
    "MeanAbsoluteError",
    "RootMeanSquareError",
    "MaxRelativeError",
    "MeanRelativeError",
    "CompareFailReason",
    "IsNpuOps",
    "IsOutputNode",
    "IsPrecisionError",
)
# What a tensor must keep to pass: True for a lower bound, False for an upper one, both excluded.
THRESHOLDS: dict[str, tuple[bool, float]] = {
    "CosineSimilarity": (True, 0.99),
    "RelativeEuclideanDistance": (False, 0.05),
    "KullbackLeiblerDivergence": (False, 0.005),
    "RootMeanSquareError": (False, 1.0),
    "MeanRelativeError": (False, 1.0),
}
_EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far a tensor of an OM is from the same tensor of the ONNX graph.

    Attributes
    ----------
    values
        The measures by the names of COLUMNS; not a number where one cannot be computed.
    deviation
        Mean and standard deviation of both, as msprobe writes them: `(mean;std),(mean;std)`.
    overflow
        Whether the OM's tensor has values that are not finite where the graph's are.
    reason
        Why nothing could be computed, or "".
    """

    values: Mapping[str, float]
    deviation: str = ""
    overflow: bool = False
    reason: str = ""

    @property
    def broken(self) -> dict[str, float]:
        """The measures beyond their thresholds, by name; a measure that is not a number is beyond."""
        return {
            name: self.values.get(name, math.nan)
            for name, (at_least, bound) in THRESHOLDS.items()
            if not (
                self.values.get(name, math.nan) > bound
                if at_least
                else self.values.get(name, math.nan) < bound
            )
        }

    @property
    def passed(self) -> bool:
        """Whether every measure keeps its threshold."""
        return not self.broken

    def explain(self) -> str:
        """Return the measures beyond their thresholds as text.

        >>> measure(np.float32([1, 2]), np.float32([-1, 2])).explain()[:38]
        'CosineSimilarity 0.6000 (must be > 0.99'
        """
        if self.reason:
            return self.reason
        parts = [
            f"{name} {value:.4g} (must be {'>' if THRESHOLDS[name][0] else '<'} {THRESHOLDS[name][1]:g})"
            for name, value in self.broken.items()
        ]
        return ", ".join(parts) + ("; not finite where the ONNX graph is" if self.overflow else "")


def measure(om: np.ndarray, onnx: np.ndarray) -> Difference:
    """Return the differences of an OM's tensor from the ONNX graph's; both may have any data type, bool included.

    Two tensors without elements, or with equal elements only, differ in nothing, whatever a formula divides by.
    """
    if om.shape != onnx.shape:
        return Difference(values={}, reason=f"shapes differ: {list(om.shape)} and {list(onnx.shape)}")
    mine, truth = om.astype(np.float64).ravel(), onnx.astype(np.float64).ravel()
    overflow = bool((~np.isfinite(mine) & np.isfinite(truth)).any())
    with np.errstate(all="ignore"):
        values = {name: float(formula(mine, truth)) for name, formula in _FORMULAS.items()}
        moments = ",".join(
            f"({one.mean():.3f};{one.std():.3f})" if one.size else "(nan;nan)" for one in (mine, truth)
        )
    return Difference(values=values, deviation=moments, overflow=overflow)


def _cosine(mine: np.ndarray, truth: np.ndarray) -> float:
    if np.array_equal(mine, truth):
        return 1.0
    norms = math.sqrt(float(mine @ mine)) * math.sqrt(float(truth @ truth))
    # One of them is zero everywhere and the other is not.
    return float(mine @ truth) / norms if norms else 0.0


def _relative(mine: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each element's relative error; 0 where the graph's element is zero up to float32's epsilon."""
    counted = np.abs(truth) > _EPSILON
    return np.where(counted, np.abs(mine - truth) / np.where(counted, np.abs(truth), 1.0), 0.0)


def _euclid(mine: np.ndarray, truth: np.ndarray) -> float:
    distance, norm = float(np.linalg.norm(mine - truth)), float(np.linalg.norm(truth))
    if distance == 0:
        return 0.0
    return distance / norm if norm else math.inf


def _divergence(mine: np.ndarray, truth: np.ndarray) -> float:
    """Return the Kullback-Leibler divergence of both scaled to [epsilon, 1] and to the sum 1."""
    if np.array_equal(mine, truth):
        return 0.0

    def scaled(one: np.ndarray) -> np.ndarray:
        spread = one.max() - one.min()
        kept = np.maximum((one - one.min()) / spread if spread else one, _EPSILON)
        pdf: np.ndarray = kept / kept.sum()
        return pdf

    ours, theirs = scaled(mine), scaled(truth)
    return float(np.sum(ours * np.log(ours / theirs)))


def _of_errors(take: Callable[[np.ndarray], float]) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda mine, truth: float(take(np.abs(mine - truth))) if mine.size else 0.0


def _of_relative_errors(take: Callable[[np.ndarray], float]) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda mine, truth: float(take(_relative(mine, truth))) if mine.size else 0.0


_FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "CosineSimilarity": _cosine,
    "MaxAbsoluteError": _of_errors(np.max),
    "AccumulatedRelativeError": _of_relative_errors(np.sum),
    "RelativeEuclideanDistance": _euclid,
    "KullbackLeiblerDivergence": _divergence,
    "MeanAbsoluteError": _of_errors(np.mean),
    "RootMeanSquareError": _of_errors(lambda errors: math.sqrt(float(np.mean(errors**2)))),
    "MaxRelativeError": _of_relative_errors(np.max),
    "MeanRelativeError": _of_relative_errors(np.mean),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the CSV: one output of one node.

    `kernel` is the OM's operator, empty where it is not known; `node` and `index` say which output of which ONNX node.
    """

    operator: str
    kernel: str
    om_dtype: str
    node: str
    onnx_dtype: str
    index: int
    shape: tuple[int, ...]
    is_output: bool
    difference: Difference

    def cells(self) -> list[str]:
        """Return the line's cells in the order of COLUMNS."""
        difference = self.difference
        values = {name: f"{value:.6g}" for name, value in difference.values.items()}
        values |= {
            "OpType": self.operator,
            "NPUDump": self.kernel or self.node,
            "Address": "",  # known to dumps of a card only
            "GroundTruth": self.node,
            "TensorIndex": f"{self.node}:output:{self.index}",
            "Shape": f"[{','.join(map(str, self.shape))}]",
            "Overflow": "YES" if difference.overflow else "NO",
            "StandardDeviation": difference.deviation,
            "CompareFailReason": difference.reason,
            "IsNpuOps": "NO",
            "IsOutputNode": "YES" if self.is_output else "NO",
            "IsPrecisionError": "NO" if difference.passed else "YES",
        }
        dtypes = iter((self.om_dtype, self.onnx_dtype))
        return [next(dtypes) if name == "DataType" else values.get(name, "NaN") for name in COLUMNS]


def write_csv(rows: Iterable[Row], file: Path) -> None:
    """Write rows as msprobe writes its result_<time>.csv: network outputs first."""
    ordered = sorted(rows, key=lambda row: not row.is_output)
    with results.replacing(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        writer.writerows(row.cells() for row in ordered)
