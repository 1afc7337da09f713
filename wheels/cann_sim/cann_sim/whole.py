"""Count whole operators, of which all samples of OpInfo equal the CPU's; why the others do not; and hold the gate."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

from cann_sim import gate

# The least percentages: of operators that are equal or explained; that are equal, of those whose dtype CANN supports;
# of gradients' samples.
EXPLAINED = 98.0
STRICT = dict.fromkeys(("forward float32", "forward float16", "forward bfloat16"), 98.0)
GRADIENTS = 97.0
_HEAD = (
    "operators", "equal", "equal %", "differs as torch_npu does", "refused by CANN", "unexplained",
    "dtype not supported by CANN (samples)", "equal % of supported", "equal or explained %",
)  # fmt: skip


def count(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the numbers of operators by mode and dtype, a key for each of gate.VERDICTS, and three percentages."""
    known = gate.differences()
    sums: dict[str, collections.Counter[str]] = {}
    samples = collections.Counter[str]()
    for result in results:
        key = f"{result['mode']} {result['dtype']}"
        verdict = gate.verdict(result, known)
        sums.setdefault(key, collections.Counter())[verdict] += 1
        samples[key] += result["refused"] if verdict == "no dtype" else 0
    counts: dict[str, dict[str, float]] = {}
    for key, sum_ in sums.items():
        every, supported = sum_.total(), sum_.total() - sum_["no dtype"]
        counts[key] = {
            "operators": every,
            **{verdict: sum_[verdict] for verdict in gate.VERDICTS},
            "no dtype samples": samples[key],
            "percent": percentage(sum_["equal"], every),
            "percent of supported": percentage(sum_["equal"], supported),
            "percent explained": percentage(supported - sum_["unexplained"], supported),
        }
    return counts


def percentage(part: int, whole: int) -> float:
    """Return a percentage, rounded down to two digits, so that 100 means all.

    >>> percentage(99999, 100000), percentage(3, 3), percentage(0, 0)
    (99.99, 100.0, 100.0)
    """
    return int(10000 * part / whole) / 100 if whole else 100.0


def rows(results: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Return the table of whole operators, its head first."""
    table = [["", *_HEAD]]
    for key, number in sorted(count(results).items()):
        left_out = f"{number['no dtype']}" + (
            f" ({number['no dtype samples']} samples)" if number["no dtype"] else ""
        )
        table.append([key, str(number["operators"]), str(number["equal"]), f"{number['percent']:.2f}"]
                     + [str(number[verdict]) for verdict in ("differs", "refused", "unexplained")] + [left_out]
                     + [f"{number[name]:.2f}" for name in ("percent of supported", "percent explained")])  # fmt: skip
    return table


def markdown(results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of COVERAGE.md about whole operators: the table, and every operator that is not equal."""
    head, *body = rows(results)
    lines = [
        "### Whole operators",
        "",
        "An operator is equal in a dtype if all its samples are. The first percentage is of all operators; the second",
        "leaves out those whose dtype CANN does not support, in all samples or in those of one variant: OpInfo itself",
        "has dtypes per device, and on this SoC it is none of the operator's. The last counts what is explained as",
        "well: what [DIFFERENCES.md](DIFFERENCES.md) shows, and what CANN refuses.",
        "",
        f"| {' | '.join(head)} |",
        "|---|" + "--:|" * len(_HEAD),
        *(f"| {' | '.join(row)} |" for row in body),
        "",
        "| operator | dtype | | samples | equal |",
        "|---|---|---|--:|--:|",
    ]
    known = gate.differences()
    for result in results:
        verdict = gate.verdict(result, known)
        if verdict != "equal":
            where = f"{result['mode']} {result['dtype']} | {verdict} | {result['samples']}"
            lines.append(f"| {result['op']} | {where} | {result['equal'] + result['random']} |")
    return [
        *lines,
        "",
        "| | meaning |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in gate.VERDICTS.items()),
    ]


def below(results: list[dict[str, Any]]) -> list[str]:
    """Return what does not reach the gate, a sentence each; nothing if all do."""
    found = []
    for key, number in sorted(count(results).items()):
        if number["percent explained"] < EXPLAINED or number["unexplained"]:
            found.append(f"{key}: {number['unexplained']} operators are unexplained, expected none")
        if number["percent of supported"] < STRICT.get(key, 0):
            found.append(
                f"{key}: {number['percent of supported']} % of the operators are equal, expected {STRICT[key]} %"
            )
    of = [result for result in results if result["mode"] == "gradient"]
    passed = percentage(
        sum(result["equal"] + result["random"] for result in of), sum(result["samples"] for result in of)
    )
    if passed < GRADIENTS:
        found.append(f"gradients: {passed} % of the samples are equal, expected {GRADIENTS} %")
    return found
