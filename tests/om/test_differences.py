"""msprobe's columns: names, thresholds and what they say of known differences."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from staged_om.differences import COLUMNS, THRESHOLDS, Row, measure, write_csv

# As the manual of msprobe lists them, in its order.
HEADER = [
    "OpType", "NPUDump", "DataType", "Address", "GroundTruth", "DataType", "TensorIndex", "Shape",
    "Overflow", "CosineSimilarity", "MaxAbsoluteError", "AccumulatedRelativeError",
    "RelativeEuclideanDistance", "KullbackLeiblerDivergence", "StandardDeviation", "MeanAbsoluteError",
    "RootMeanSquareError", "MaxRelativeError", "MeanRelativeError", "CompareFailReason", "IsNpuOps",
    "IsOutputNode", "IsPrecisionError"
]  # fmt: skip


def test_the_columns_are_those_of_msprobe() -> None:
    assert list(COLUMNS) == HEADER


def test_the_thresholds_are_those_of_msprobe() -> None:
    assert THRESHOLDS == {
        "CosineSimilarity": (True, 0.99),
        "RelativeEuclideanDistance": (False, 0.05),
        "KullbackLeiblerDivergence": (False, 0.005),
        "RootMeanSquareError": (False, 1.0),
        "MeanRelativeError": (False, 1.0),
    }


def test_the_measures_of_a_small_example_are_those_of_the_formulas() -> None:
    found = measure(np.array([1.0, 2.0, 5.0]), np.array([1.0, 4.0, 4.0])).values
    assert found["CosineSimilarity"] == pytest.approx(29 / math.sqrt(30 * 33))
    assert found["MaxAbsoluteError"] == 2
    assert found["AccumulatedRelativeError"] == pytest.approx(0 + 0.5 + 0.25)
    assert found["RelativeEuclideanDistance"] == pytest.approx(math.sqrt(5) / math.sqrt(33))
    assert found["MeanAbsoluteError"] == pytest.approx(1)
    assert found["RootMeanSquareError"] == pytest.approx(math.sqrt(5 / 3))
    assert found["MaxRelativeError"] == pytest.approx(0.5)
    assert found["MeanRelativeError"] == pytest.approx(0.25)
    # Scaled to [epsilon, 1] and the sum 1: (e, .25, 1) / 1.25 and (e, 1, 1) / 2.
    assert found["KullbackLeiblerDivergence"] == pytest.approx(
        0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5), abs=1e-5
    )


def test_equal_tensors_pass_whatever_a_formula_divides_by() -> None:
    for one in (np.zeros((2, 3)), np.full(4, 7.0), np.zeros(0), np.array([True, False]), np.arange(5)):
        assert measure(one, one.copy()).passed


def test_an_overflow_breaks_and_is_named() -> None:
    difference = measure(np.array([1.0, np.inf], np.float16), np.array([1.0, 70000.0], np.float32))
    assert difference.overflow
    assert not difference.passed
    assert "not finite" in difference.explain()


def test_an_infinity_that_the_graph_has_too_is_no_overflow() -> None:
    assert not measure(np.array([1.0, -np.inf]), np.array([1.0, -np.inf])).overflow


def test_other_shapes_break_with_a_reason() -> None:
    difference = measure(np.zeros((1, 2)), np.zeros((2, 1)))
    assert not difference.passed
    assert difference.explain() == "shapes differ: [1, 2] and [2, 1]"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda x: -x, "CosineSimilarity"),
        (lambda x: x * 1.06, "RelativeEuclideanDistance"),
        (lambda x: np.abs(x), "KullbackLeiblerDivergence"),
        (lambda x: x + 2 * (np.arange(x.size) % 2 * 2 - 1), "RootMeanSquareError"),
        (lambda x: np.where(np.abs(x) < 0.2, 5.0, x), "MeanRelativeError"),
    ],
)
def test_each_threshold_alone_can_break_a_tensor(change: object, name: str) -> None:
    truth = np.random.default_rng(0).normal(size=1000)
    assert name in measure(change(truth), truth).broken  # type: ignore[operator]


def test_the_csv_has_network_outputs_first(tmp_path: Path) -> None:
    def row(node: str, *, is_output: bool, factor: float) -> Row:
        truth = np.array([1.0, 2.0], np.float32)
        return Row(
            operator="Mul",
            kernel="",
            om_dtype="float16",
            node=node,
            onnx_dtype="float32",
            index=0,
            shape=(2,),
            is_output=is_output,
            difference=measure(truth * factor, truth),
        )

    file = tmp_path / "result.csv"
    write_csv([row("inner", is_output=False, factor=1), row("last", is_output=True, factor=2)], file)
    with file.open(encoding="utf-8") as opened:
        header, first, second = csv.reader(opened)
    assert header == HEADER
    assert first[HEADER.index("GroundTruth")] == "last"
    assert (first[2], first[5]) == ("float16", "float32")
    assert (first[-2], first[-1]) == ("YES", "YES")
    assert (second[-2], second[-1]) == ("NO", "NO")
    assert second[HEADER.index("Shape")] == "[2]"
