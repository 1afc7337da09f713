"""Find the first node of a stage whose value in the OM is not the ONNX graph's, and tell why.

    python -m staged_om.bisect --om=build/om/<model>/<soc>-<mode> --inputs=folder --stage=backbone

WORK_DIR gets `bisect.json` and a CSV for each stage.

Values inside an OM are seen by converting again with `--out_nodes`, which works on real cards, too. Either many nodes
per conversion (`--chunk=50`), which gives the whole table of msprobe's columns, or, by default, an interval search with
one node per conversion: the fewest conversions, and the least change to what ATC fuses, because an output cannot be
fused away. If the stage's own outputs keep the thresholds, nothing is searched: inner differences do not matter then.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ascendet_common import progress, results
from ascendet_common.errors import RunError, forget, reporting

from staged_om.atc import KEEP_ALL, Converted, convert
from staged_om.device import Device
from staged_om.differences import Difference, Row, measure, write_csv
from staged_om.graph import Graph, Node, read, with_outputs
from staged_om.infer import Export
from staged_om.inputs import open_inputs
from staged_om.meta import Stage
from staged_om.onnx_runner import Runner, after_aipp, onnx_stage, onnx_stages
from staged_om.single import run

RESULT = "bisect.json"
Tensors = Mapping[str, np.ndarray]


class Probe(Protocol):
    """Gives values of a stage for the same inputs."""

    def onnx(self, nodes: Sequence[Node]) -> Tensors:
        """Return the outputs of nodes by their names, as ONNX Runtime computes them."""

    def om(self, nodes: Sequence[Node]) -> Tensors:
        """Return the same of an OM that was converted with these nodes as outputs."""

    def outputs(self, *, fusion: bool) -> Tensors:
        """Return the stage's own outputs of an OM converted as always, or with all fusion passes off."""


@dataclass(kw_only=True)
class Finding:
    """What the search found.

    Attributes
    ----------
    first
        The first node that breaks: its own inputs keep the thresholds. None if the stage's outputs pass, or if only
        the whole conversion breaks.
    kind
        "" where nothing breaks. `fusion`: with all fusion passes off the outputs pass. `precision`: they do not, and
        the mode lowers data types. `kernel`: they do not, and the mode keeps all data types.
    rows
        All differences that were measured, those of the stage's outputs first.
    conversions
        How many conversions the search took.
    """

    first: Node | None = None
    kind: str = ""
    rows: list[Row] = field(default_factory=list)
    conversions: int = 0

    def describe(self) -> str:
        """Return the result as a sentence."""
        if not self.kind:
            return "the stage's outputs keep all thresholds"
        if not self.first:
            return f"the outputs break ({self.kind}), but no node does that is an output itself: it is what ATC fuses"
        row = next(row for row in self.rows if row.node == self.first.name and not row.difference.passed)
        return (
            f"{self.first.operator} {self.first.name} is the first that breaks ({self.kind}): "
            f"{row.difference.explain()}"
        )

    def facts(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        outputs = [row for row in self.rows if row.is_output]
        return {
            "passes": not self.kind,
            "kind": self.kind,
            "first": self.first.name if self.first else None,
            "operator": self.first.operator if self.first else None,
            "text": self.describe(),
            "conversions": self.conversions,
            "outputs": {
                row.node: {**row.difference.values, "passed": row.difference.passed} for row in outputs
            },
        }


def find(
    graph: Graph,
    probe: Probe,
    *,
    precision: str,
    chunk: int = 0,
    show: Callable[[str], None] = lambda _: None,
) -> Finding:
    """Return the first node that breaks.

    Parameters
    ----------
    graph, probe
        The stage and its values.
    precision
        The OM's precision mode, which decides between `precision` and `kernel`.
    chunk
        Nodes per conversion; 0 for the interval search.
    show
        Gets a line after each conversion.
    """
    search = _Search(graph, probe, show)
    expected, made = probe.onnx([]), probe.outputs(fusion=True)
    broken = search.compare_outputs(expected, made)
    if not broken and not chunk:
        return search.finding
    if broken:
        plain = probe.outputs(fusion=False)
        search.finding.conversions += 1
        passes = all(measure(plain[name], expected[name]).passed for name in expected)
        search.finding.kind = "fusion" if passes else "kernel" if precision in KEEP_ALL else "precision"
        show(
            f"with fusion off the outputs {'pass: fusion' if passes else 'break as well: ' + search.finding.kind}"
        )
    if chunk:
        search.in_chunks(chunk)
        first = search.first_of_all() if broken else None
    else:
        first = search.by_intervals(broken)
    search.finding.first = first
    return search.finding


class _Search:
    def __init__(self, graph: Graph, probe: Probe, show: Callable[[str], None]) -> None:
        self.graph, self.probe, self.show = graph, probe, show
        self.finding = Finding()
        self.known: dict[str, bool] = {}  # whether a node passes

    def compare_outputs(self, expected: Tensors, made: Tensors) -> list[str]:
        """Add the rows of the stage's outputs; return the names of those that break."""
        broken = []
        for name in self.graph.outputs:
            producer = self.graph.by_name.get(self.graph.by_output.get(name, ""))
            difference = measure(made[name], expected[name])
            self.finding.rows.append(
                Row(
                    operator=producer.operator if producer else "NetOutput",
                    kernel="",
                    om_dtype=made[name].dtype.name,
                    node=name,
                    onnx_dtype=expected[name].dtype.name,
                    index=0,
                    shape=expected[name].shape,
                    is_output=True,
                    difference=difference,
                )
            )
            if not difference.passed:
                broken.append(name)
        return broken

    def look(self, nodes: Sequence[Node]) -> None:
        """Measure nodes in one conversion."""
        expected, made = self.probe.onnx(nodes), self.probe.om(nodes)
        self.finding.conversions += 1
        for node in nodes:
            differences = []
            for index, name in enumerate(node.outputs):
                if name not in made:
                    continue
                difference = measure(made[name], expected[name])
                differences.append(difference)
                self.finding.rows.append(
                    Row(
                        operator=node.operator,
                        kernel="",
                        om_dtype=made[name].dtype.name,
                        node=node.name,
                        onnx_dtype=expected[name].dtype.name,
                        index=index,
                        shape=expected[name].shape,
                        is_output=False,
                        difference=difference,
                    )
                )
            self.known[node.name] = all(one.passed for one in differences)
            self.show(f"{node.operator} {node.name}: {_verdict(differences)}")

    def passes(self, node: Node) -> bool:
        if node.name not in self.known:
            self.look([node])
        return self.known[node.name]

    def in_chunks(self, chunk: int) -> None:
        for start in range(0, len(self.graph.nodes), chunk):
            self.look(self.graph.nodes[start : start + chunk])

    def first_of_all(self) -> Node | None:
        """Return the first node that breaks although all that feed it pass."""
        for node in self.graph.nodes:
            if not self.known[node.name] and all(self.known[one] for one in node.producers):
                return node
        return None

    def by_intervals(self, broken: Sequence[str]) -> Node | None:
        """Return the first node that breaks, by halving the nodes that the first broken output is computed from.

        Halving takes for granted that what follows a broken node is broken. That need not be so (a sigmoid saturates),
        so the node found is only accepted if all that feed it pass; else the search goes on in what feeds them.
        """
        last = self.graph.by_output.get(broken[0])
        if last is None:
            return None
        candidates = self.graph.ancestors(last)
        if self.passes(candidates[-1]):
            return None
        while True:
            low, high = 0, len(candidates) - 1  # candidates[high] breaks
            while low < high:
                middle = (low + high) // 2
                if self.passes(candidates[middle]):
                    low = middle + 1
                else:
                    high = middle
            found = candidates[high]
            feeding = [self.graph.by_name[one] for one in found.producers]
            culprit = next((node for node in feeding if not self.passes(node)), None)
            if culprit is None:
                return found
            candidates = self.graph.ancestors(culprit.name)


def _verdict(differences: Sequence[Difference]) -> str:
    worst = min((one.values.get("CosineSimilarity", math.nan) for one in differences), default=math.nan)
    return f"cosine {worst:.6f}, {'passes' if all(one.passed for one in differences) else 'breaks'}"


# -- the program --


class StageProbe:
    """The values of one stage of converted OMs for given inputs.

    Parameters
    ----------
    device
        Where OMs run.
    converted, stage
        What `make om` made, and which stage of it.
    given
        The stage's inputs by name.
    work
        The folder for conversions; an OM is removed when its values are known.
    """

    def __init__(
        self, device: Device, converted: Converted, stage: Stage, given: dict[str, np.ndarray], work: Path
    ) -> None:
        self.device, self.converted, self.stage, self.given, self.work = device, converted, stage, given, work
        self.file = converted.folder.parent / stage.file

    def onnx(self, nodes: Sequence[Node]) -> dict[str, np.ndarray]:
        """Return the outputs of nodes, or of the stage if there are none."""
        names = [name for node in nodes for name in node.outputs] or [
            port.name for port in self.stage.outputs
        ]
        probe = with_outputs(self.file, names, self.work / "probe.onnx") if nodes else self.file
        try:
            given = after_aipp(self.converted.meta, self.given, rounds=True)
            return onnx_stage(probe, names)(given)
        finally:
            (self.work / "probe.onnx").unlink(missing_ok=True)

    def om(self, nodes: Sequence[Node]) -> dict[str, np.ndarray]:
        """Return the outputs of nodes, of an OM converted with these as outputs."""
        names = [name for node in nodes for name in node.outputs]
        places = [f"{node.name}:{index}" for node in nodes for index in range(len(node.outputs))]
        return self._convert(names, out_nodes=places)

    def outputs(self, *, fusion: bool) -> dict[str, np.ndarray]:
        """Return the stage's outputs, of the OM that `make om` made or of one without fusion."""
        names = [port.name for port in self.stage.outputs]
        if fusion:
            return run(self.device, self.converted.files[self.stage.name], self.given, names)
        return self._convert(names, fusion=False)

    def _convert(
        self, names: Sequence[str], *, out_nodes: Sequence[str] = (), fusion: bool = True
    ) -> dict[str, np.ndarray]:
        om = convert(
            self.stage,
            self.file,
            self.work / "probe.om",
            soc=self.converted.soc,
            precision=self.converted.precision,
            keep=self.converted.keep(self.stage),
            aipp=self.converted.aipp(self.stage),
            out_nodes=out_nodes,
            fusion=fusion,
        )
        try:
            return run(self.device, om, self.given, names)
        finally:
            om.unlink()


def _show(stage: str, text: str) -> None:
    progress.write("note", text=f"{stage}: {text}")


def main() -> None:
    """Search one stage of the OMs that the command line names, or all of them until one breaks."""
    parser = argparse.ArgumentParser(description="Find the first node that breaks.", allow_abbrev=False)
    parser.add_argument("--om", required=True, type=Path, help="the folder of the OMs")
    parser.add_argument(
        "--inputs", required=True, type=Path, help="a folder with inputs.json; the first picture counts"
    )
    parser.add_argument("--stage", default="", help="the stage; empty: all, until one breaks")
    parser.add_argument("--chunk", type=int, default=0, help="nodes per conversion, for the whole table")
    args = parser.parse_args()
    forget()
    work = Path(os.environ["WORK_DIR"])
    with reporting(), Device() as device:
        converted = Converted.read(args.om)
        stages = {stage.name: stage for stage in converted.meta.stages}
        if args.stage and args.stage not in stages:
            raise RunError(
                "STAGE must be a stage of the exported model",
                name="usage",
                expected=", ".join(stages),
                found=f"STAGE={args.stage}",
            )
        steps = Export.open(args.om).steps
        runner = Runner(converted.meta, steps, onnx_stages(converted.meta, args.om.parent))
        passed = runner.run(list(open_inputs(args.inputs).pictures[: converted.meta.batch]))
        content = {}
        for name in [args.stage] if args.stage else stages:
            graph = read(converted.folder.parent / stages[name].file)
            probe = StageProbe(device, converted, stages[name], passed.inputs[name], work)
            finding = find(
                graph,
                probe,
                precision=converted.precision,
                chunk=args.chunk,
                show=partial(_show, name),
            )
            write_csv(finding.rows, work / f"{name}.csv")
            progress.write("note", text=f"{name}: {finding.describe()}")
            content[name] = finding.facts()
            if finding.kind:
                break
        results.write(work / RESULT, content)


if __name__ == "__main__":
    main()
