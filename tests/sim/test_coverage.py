"""The comparison itself: it sees differences, and survives operators that crash or hang."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)
from cann_sim import coverage, gate, operators, opinfo, whole  # they import torch_npu

# Answers as cann_sim.opinfo does, but for operators that do what they are called.
WORKER = textwrap.dedent("""
    import json, os, sys, time
    jobs = [[name, "float32", "forward"] for name in ("good", "crash", "hang", "fail", "last")]
    print(json.dumps({"jobs": jobs}), flush=True)
    for line in sys.stdin:
        op, dtype, mode = json.loads(line)
        if op == "crash":
            os.abort()
        if op == "hang":
            time.sleep(60)
        if op == "fail":
            sys.exit("the last words")
        result = {"op": op, "dtype": dtype, "mode": mode, "samples": 2, "equal": 2, "random": 0, "different": 0,
                  "refused": 0, "crashed": 0, "max_error": 0.0, "reasons": {}, "example": "", "seconds": 0.1}
        print(json.dumps(result), flush=True)
""")


def run(state: coverage.State, seconds: float = 60.0) -> int:
    return coverage.Runner(state, timeout=2.0, deadline=time.monotonic() + seconds).run([])


def test_crashes_and_hangs_are_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage.Worker, "command", [sys.executable, "-c", WORKER])
    state = coverage.State(tmp_path / "state.jsonl")
    assert run(state) == 0
    reasons = {result["op"]: list(result["reasons"]) for result in state.results()}
    assert reasons == {
        "good": [],
        "crash": ["SIGABRT"],
        "hang": ["no result in 2 s"],
        "fail": ["exit code 1: the last words"],
        "last": [],
    }
    assert coverage.totals(state.results())["forward float32"]["percent"] == 57.14  # 4 of 7 samples


def test_a_run_continues_where_the_last_one_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage.Worker, "command", [sys.executable, "-c", WORKER])
    path = tmp_path / "state.jsonl"
    assert run(coverage.State(path), seconds=0) == 5
    assert run(coverage.State(path)) == 0
    assert len(coverage.State(path).results()) == 5


def test_results_of_another_build_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    path.write_text(
        json.dumps({"torch": "0.1"}) + "\n" + json.dumps({"op": "x", "dtype": "y", "mode": "z"}) + "\n"
    )
    assert coverage.State(path).results() == []


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (torch.tensor([1.0, float("nan")]), ""),
        (torch.tensor([1.0, 2.0]), "values differ"),
        (torch.tensor([1.5, float("nan")]), "values differ"),
        (torch.tensor([1.0, float("nan")]).double(), "dtype torch.float64 instead of torch.float32"),
        (torch.tensor([[1.0, float("nan")]]), "another shape"),
    ],
)
def test_differences_are_seen(found: torch.Tensor, reason: str) -> None:
    assert opinfo.difference([torch.tensor([1.0, float("nan")])], [found])[0] == reason


def test_a_missing_gradient_does_not_hide_the_others() -> None:
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    reason, _ = opinfo.difference([one, one], [None, one])
    assert "only one device has" in reason
    assert opinfo.difference([one, one], [None, two])[0] == "values differ"


def test_size_of_a_difference_is_relative_above_one() -> None:
    assert opinfo.difference([torch.tensor([100.0, 0.5])], [torch.tensor([101.0, 0.5])])[1] == pytest.approx(
        0.01
    )


def test_every_registered_operator_has_a_state() -> None:
    states = {operator.name: operator.state for operator in operators.aten()}
    assert set(states.values()) <= set(operators.STATES)
    expected = {"add.Tensor": "aclnn", "exponential_": "simulated", "view": "view"}
    assert {name: states[name] for name in expected} == expected
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1")
    known = {
        str(schema.name) + f".{schema.overload_name}" * bool(schema.overload_name)
        for schema in torch._C._jit_get_all_schemas()
    }
    assert {
        name.removeprefix("aten::") for name in known.intersection(registered) if name.startswith("aten::")
    } <= set(states)


def result(
    op: str, *, equal: int = 0, refused: int = 0, mode: str = "forward", error: float = 0.0, **reasons: int
) -> dict[str, Any]:
    """A result of two samples in bfloat16; `mv` and `dim` are reasons of CANN, `tanh` is known of gelu alone."""
    texts = {
        "mv": "error code is 161002: aclnnMv: self has data type DT_BF16, and on Ascend910B3 it must be in [DT_FLOAT]",
        "dim": "error code is 161002: aclnnMv: self has 3 dimensions, shape [1,1,1], and must have 2 to 2",
        "values": "values differ",
        "tanh": "values differ, approximate='tanh'",
    }
    return {
        "op": op, "dtype": "bfloat16", "mode": mode, "samples": 2, "equal": equal, "random": 0, "refused": refused,
        "different": 2 - equal - refused, "crashed": 0, "max_error": error,
        "reasons": {texts[name]: n for name, n in reasons.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (result("add", equal=2), "equal"),
        (result("mv", refused=2, mv=2), "no dtype"),
        (result("mv", equal=1, refused=1, mv=1), "no dtype"),
        (result("mv", refused=2, mv=1, dim=1), "refused"),
        (result("nn.functional.gelu", equal=1, tanh=1), "differs"),
        (result("nn.functional.gelu", equal=1, values=1), "unexplained"),
        (result("native_layer_norm", equal=1, error=1e-7, values=1), "differs"),
        (result("native_layer_norm", equal=1, error=1e-3, values=1), "unexplained"),
        (result("add", equal=1, values=1), "unexplained"),
        (result("mv", refused=1, mv=1, values=1), "unexplained"),
    ],
)
def test_an_operator_has_one_verdict(found: dict[str, Any], verdict: str) -> None:
    assert gate.verdict(found, gate.differences()) == verdict
    assert whole.count([found])["forward bfloat16"][verdict] == 1


def test_a_dtype_that_cann_lacks_is_counted_apart_and_named() -> None:
    results = [result("add", equal=2), result("mv", refused=2, mv=2)]
    count = whole.count(results)["forward bfloat16"]
    assert (count["percent"], count["percent of supported"], count["percent explained"]) == (
        50.0,
        100.0,
        100.0,
    )
    text = "\n".join(whole.markdown(results))
    assert "1 (2 samples)" in text
    assert "| mv | forward bfloat16 | no dtype | 2 | 0 |" in text
    assert not whole.below(results)


def test_the_gate_names_what_falls() -> None:
    equal, unknown = result("add", equal=2), result("sub", equal=1, values=1)
    known = result("nn.functional.gelu", equal=1, tanh=1)
    gradient = result("mul", equal=1, values=1, mode="gradient")
    assert not whole.below([equal] * 99 + [known])
    assert "unexplained" in whole.below([equal] * 99 + [unknown])[0]
    assert "% of the operators are equal" in whole.below([equal] * 9 + [known])[0]
    assert "gradients: 50.0 %" in whole.below([gradient])[-1]


def test_the_page_of_coverage_holds_the_gate() -> None:
    """COVERAGE.md is of the last whole run: no column says that something is unexplained."""
    page = (Path(__file__).parents[2] / "wheels" / "cann_sim" / "COVERAGE.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ")
        for line in page.splitlines()
        if line.startswith(("| forward", "| gradient"))
    ]
    wholes = {row[0]: row for row in rows if len(row) == len(whole.rows([])[0])}
    assert wholes.keys() >= {"forward float32", "forward float16", "forward bfloat16", "gradient float32"}
    for key, row in wholes.items():
        assert row[6] == "0", f"{key}: {row[6]} operators are unexplained"
        assert float(row[8]) >= whole.STRICT.get(key, 0)
        assert float(row[9]) >= whole.EXPLAINED
