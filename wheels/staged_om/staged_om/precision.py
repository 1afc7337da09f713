"""Find the smallest set of operators that must stay float32 so that AP stays within a bound.

    python -m staged_om.precision --om=build/om/<model>/<soc>-<mode> --inputs=folder --bound=0.002

WORK_DIR gets `precision.json` and, for each stage with such operators, `<stage>.keep_dtype.cfg`, which `make om` takes.

ATC's default mode computes everything in float16, its modes that keep data types compute everything in float32, and
`--keep_dtype` names operators that keep theirs. Between the two lie as many choices as there are sets of operators.
This search goes from the outside in: stages, then the modules in them, then what these consist of, as far as they do
harm. See `search` for how, and for what "smallest" means.

Every evaluated choice is stored by its digest, so a search that was interrupted continues where it was.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ascendet_common import progress, results
from ascendet_common.errors import RunError, forget, reporting

from staged_om.atc import Converted
from staged_om.compare import detect_all
from staged_om.device import Device
from staged_om.evaluate import Evaluator, detections_as_truth
from staged_om.graph import Graph, read
from staged_om.infer import Export
from staged_om.inputs import open_inputs
from staged_om.memory import Memory
from staged_om.onnx_runner import Runner, onnx_stages

# Float32 multiply-adds take this many times as long as float16 ones on the Cube unit. An assumption: data sheets of
# 910B boards give 75 to 94 TFLOPS in float32 and 280 to 376 in float16, in all of them about one quarter.
CUBE_RATIO = 4.0
# Float32 activations are twice as many bytes.
BYTES_RATIO = 2.0
BOUND = 0.002
# A group is not split if it takes at most this share of what the bound leaves above float32's loss: many such fit.
HARMLESS = 0.05
RESULT = "precision.json"
MEMORY = "measured.jsonl"
# The modes that are measured beside the one that is searched: what a user can choose without naming operators.
SWEEP = ("origin", "fp16", "mixed_float16", "mixed_bfloat16", "cube_fp16in_fp32out")


# -- groups of operators --


@dataclass(frozen=True, kw_only=True)
class Group:
    """Operators that are kept in float32 together.

    Attributes
    ----------
    stage
        Whose they are.
    name
        A module's path, or a module's path and an operator: `/blocks.0/attn Softmax`; "" for the whole stage.
    nodes
        The nodes' names.
    weight
        What keeping them costs: multiply-adds, then elements. Of equally harmful groups the dearer one is freed first.
    """

    stage: str
    name: str
    nodes: frozenset[str]
    weight: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        """Return the group as it is printed.

        >>> print(Group(stage="roi", name="/fc1 Gemm", nodes=frozenset({"/fc1/Gemm"})))
        roi /fc1 Gemm (1 node)
        """
        count = f"({len(self.nodes)} node{'s' if len(self.nodes) > 1 else ''})"
        return " ".join(filter(None, [self.stage, self.name, count]))


def whole_stages(graphs: Mapping[str, Graph], always: Mapping[str, Iterable[str]]) -> list[Group]:
    """Return one group for each stage, without the nodes that are kept in every case (`Stage.keep_fp32`)."""
    groups = []
    for stage, graph in graphs.items():
        kept = set(always.get(stage, ()))
        nodes = [node for node in graph.nodes if node.name not in kept]
        if nodes:
            groups.append(_group(graph, stage, "", [node.name for node in nodes]))
    return groups


def split(graph: Graph, group: Group) -> list[Group]:
    """Return a group's parts: by the next element of the module's path, and in a single module by operator.

    A group of one module and one operator has no parts: it is returned as it is.
    """
    known = graph.by_name
    base = group.name.split(" ")[0]
    parts: dict[str, list[str]] = {}
    for name in sorted(group.nodes):
        node = known[name]
        rest = node.module.removeprefix(base).strip("/")
        key = f"{base.rstrip('/')}/{rest.split('/')[0]}" if rest else f"{base or '/'} {node.operator}"
        parts.setdefault(key, []).append(name)
    if len(parts) == 1:
        ((key, names),) = parts.items()
        if key == group.name:
            return [group]
        return split(graph, _group(graph, group.stage, key, names))
    return [_group(graph, group.stage, key, names) for key, names in sorted(parts.items())]


def _group(graph: Graph, stage: str, name: str, nodes: Sequence[str]) -> Group:
    members = [graph.by_name[one] for one in nodes]
    weight = (sum(one.multiply_adds for one in members), sum(one.elements for one in members))
    return Group(stage=stage, name=name, nodes=frozenset(nodes), weight=weight)


# -- the search --

# A choice: by stage, the nodes that keep float32.
Choice = Mapping[str, frozenset[str]]


class NotReachable(Exception):
    """Even with all operators in float32 the bound is not kept.

    Attributes
    ----------
    loss
        The loss with all of them.
    """

    def __init__(self, loss: float) -> None:
        super().__init__(f"with all operators in float32 the loss is {loss:.4f}")
        self.loss = loss


@dataclass(kw_only=True)
class Result:
    """The groups that must stay float32, and the loss with them, without any and with all."""

    groups: list[Group]
    loss: float
    loss_none: float
    loss_all: float
    sensitivity: dict[str, float] = field(default_factory=dict)

    @property
    def choice(self) -> dict[str, frozenset[str]]:
        """The nodes by stage."""
        return union(self.groups)


def union(groups: Iterable[Group]) -> dict[str, frozenset[str]]:
    """Return the nodes of groups by stage."""
    nodes: dict[str, frozenset[str]] = {}
    for group in groups:
        nodes[group.stage] = nodes.get(group.stage, frozenset()) | group.nodes
    return nodes


def search(
    groups: Sequence[Group],
    loss: Callable[[Choice], float],
    parts: Callable[[Group], list[Group]],
    *,
    bound: float = BOUND,
    show: Callable[[str, int, int], None] = lambda *_: None,
) -> Result:
    """Return the smallest set of groups that keeps the loss within the bound.

    First the sensitivity of each group: the loss with it alone in float16 and all others in float32. A group that is
    not harmless (HARMLESS of the bound) is split, and its parts are measured. Then, in the order of the sensitivities
    (of equals the dearer one first), the longest beginning is freed that keeps the bound, found by halving, and of the
    rest each one that the bound allows. If a harmless group remains, its parts are tried.

    The result cannot be made smaller by freeing any one of its groups. It is the smallest of all sets if the losses of
    groups add up, because then it is best to free the least sensitive ones.

    Parameters
    ----------
    groups
        The coarsest ones.
    loss
        Measures a choice. It is asked for the same choice more than once: let it remember.
    parts
        Splits a group; returns the group alone if it has no parts.
    bound
        The largest loss that is accepted.
    show
        Gets a line, how many measurements there were, and how many there will be, as far as is known.

    Raises
    ------
    NotReachable
        The loss is above the bound even with all groups.
    """
    search = _Search(loss=loss, parts=parts, bound=bound, show=show)
    nothing = search.measure([], "all in float16", 0)
    everything = search.measure(groups, "all in float32", 0)
    if nothing <= bound:
        return Result(groups=[], loss=nothing, loss_none=nothing, loss_all=everything)
    if everything > bound:
        raise NotReachable(everything)
    search.floor = everything
    kept = search.expand(list(groups), around=[])
    while True:
        kept = search.reduce(kept)
        coarse = [group for group in kept if parts(group) != [group]]
        if not coarse:
            break
        fine = [group for group in kept if group not in coarse]
        kept = fine + search.expand([part for group in coarse for part in parts(group)], around=fine)
    kept.sort(key=str)
    return Result(
        groups=kept,
        loss=loss(union(kept)),
        loss_none=nothing,
        loss_all=everything,
        sensitivity={str(group): value for group, value in search.sensitivity.items()},
    )


@dataclass(kw_only=True)
class _Search:
    loss: Callable[[Choice], float]
    parts: Callable[[Group], list[Group]]
    bound: float
    show: Callable[[str, int, int], None]
    floor: float = 0.0  # the loss that float32 has, too: what ATC fuses
    done: int = 0
    sensitivity: dict[Group, float] = field(default_factory=dict)

    def measure(self, kept: Iterable[Group], text: str, remaining: int) -> float:
        value = self.loss(union(kept))
        self.done += 1
        self.show(f"{text}: loss {value:.4f}", self.done, self.done + remaining)
        return value

    def expand(self, groups: list[Group], *, around: Sequence[Group]) -> list[Group]:
        """Measure groups' sensitivities beside `around`, which stays float32; return them, the harmful ones split."""
        todo, found = list(groups), list[Group]()
        while todo:
            group = todo.pop(0)
            others = [*around, *todo, *found]
            value = self.measure(others, f"only {group} in float16", len(todo) + len(found).bit_length())
            self.sensitivity[group] = value
            finer = (
                self.parts(group) if value - self.floor > HARMLESS * (self.bound - self.floor) else [group]
            )
            if finer == [group]:
                found.append(group)
            else:
                todo = finer + todo
        return found

    def reduce(self, groups: list[Group]) -> list[Group]:
        """Free what the bound allows; return the groups that are needed."""
        order = sorted(
            groups, key=lambda one: (self.sensitivity[one], [-part for part in one.weight], str(one))
        )
        # The longest beginning of `order` that can be freed: `low` can, `high` cannot (all of them cannot).
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            text = f"the {middle} least sensitive of {len(order)} in float16"
            if (
                self.measure(order[middle:], text, (high - low).bit_length() + len(order) - middle)
                <= self.bound
            ):
                low = middle
            else:
                high = middle
        needed = order[low:]
        for index, group in enumerate(needed[1:], 2):  # the first was just seen to be needed
            rest = [one for one in needed if one != group]
            if self.measure(rest, f"{group} in float16, too", len(order) - low - index) <= self.bound:
                needed = rest
        return needed


# -- what a choice costs --


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What float32 operators cost, by a simple model, against all operators in float16.

    Attributes
    ----------
    nodes, of
        How many nodes are float32, and how many there are.
    multiply_adds, bytes
        The float32 share of all multiply-adds, and of the activations' bytes as float16 would have them.
    compute, memory
        How many times as long the device takes if the Cube unit is what limits it (CUBE_RATIO), or memory
        (BYTES_RATIO). Between the two lies what a card does; casts at the borders are not counted.
    """

    nodes: int
    of: int
    multiply_adds: float
    bytes: float
    compute: float
    memory: float


def cost(graphs: Mapping[str, Graph], choice: Choice) -> Cost:
    """Return the predicted cost of a choice."""
    nodes = [(stage, node) for stage, graph in graphs.items() for node in graph.nodes]
    kept = [node for stage, node in nodes if node.name in choice.get(stage, frozenset())]
    work = _share(sum(one.multiply_adds for one in kept), sum(one.multiply_adds for _, one in nodes))
    traffic = _share(sum(one.elements for one in kept), sum(one.elements for _, one in nodes))
    return Cost(
        nodes=len(kept),
        of=len(nodes),
        multiply_adds=work,
        bytes=traffic,
        compute=1 + (CUBE_RATIO - 1) * work,
        memory=1 + (BYTES_RATIO - 1) * traffic,
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


# -- files and times --


def keep_file(nodes: Iterable[str]) -> str:
    """Return the text of a file for atc's `--keep_dtype`: a node's name on each line."""
    return "".join(f"{name}\n" for name in sorted(nodes))


def time_left(seconds: Sequence[float], remaining: int) -> str:
    """Return how long so many more measurements take, by the median of those so far.

    >>> time_left([10, 12, 60], 20)
    '0:04:00'
    """
    if not seconds:
        return "?"
    minutes, rest = divmod(int(sorted(seconds)[len(seconds) // 2] * remaining), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


# -- the program --


class NotWithin(RunError):
    """The bound cannot be kept in this precision mode by any set of operators."""

    default_name = "om-differs"


def sweep(evaluator: Evaluator) -> list[dict[str, Any]]:
    """Measure the modes that name no operators; return AP and loss of each."""
    rows = []
    for mode in SWEEP:
        row = evaluator.measure(mode, {})
        loss = None if row["AP"] is None else row["loss"]
        rows.append({"mode": mode, "AP": row["AP"], "loss": loss, "refused": row.get("refused")})
        text = row.get("refused") or f"AP {_ap(row['AP'])}, loss {row['loss']:.4f}"
        progress.write("note", text=f"{mode}: {text}")
    return rows


def _ap(values: Mapping[str, float] | None) -> str:
    return ", ".join(
        f"{'boxes' if kind == 'bbox' else 'masks'} {value:.4f}" for kind, value in (values or {}).items()
    )


def run(
    evaluator: Evaluator, graphs: Mapping[str, Graph], mode: str, bound: float, out: Path
) -> dict[str, Any]:
    """Sweep the modes, search in one of them, and write the result into `out`; return it.

    Raises
    ------
    NotWithin
        The bound is not kept even with all operators in float32; what was measured is written.
    """
    always = {stage.name: stage.keep_fp32 for stage in evaluator.meta.stages}
    content: dict[str, Any] = {
        "pictures": len(evaluator.inputs.names),
        "reference": dict(evaluator.reference),
        "bound": bound,
        "mode": mode,
        "modes": sweep(evaluator),
    }

    def show(text: str, done: int, of: int) -> None:
        left = time_left(evaluator.seconds, of - done)
        progress.write("note", text=f"{done}/{of}  {text}; about {left} left")

    try:
        found = search(
            whole_stages(graphs, always),
            lambda choice: float(evaluator.measure(mode, choice)["loss"]),
            lambda group: split(graphs[group.stage], group),
            bound=bound,
            show=show,
        )
    except NotReachable as error:
        results.write(out / RESULT, content)
        raise NotWithin(
            f"in the mode {mode} no set of operators keeps AP within the bound",
            expected=f"a loss of at most {bound:g} with all of them in float32",
            found=f"{error.loss:.4f}" if math.isfinite(error.loss) else "atc refuses float32 there",
            # The smallest bound that can be kept.
            advice={"BOUND": f"{math.ceil(error.loss * 1e4) / 1e4:g}"} if math.isfinite(error.loss) else {},
        ) from error
    row = evaluator.measure(mode, found.choice)
    content["search"] = {
        "groups": [
            {
                "stage": group.stage,
                "name": group.name,
                "nodes": sorted(group.nodes),
                "loss_without": found.sensitivity.get(str(group)),
            }
            for group in found.groups
        ],
        "AP": row["AP"],
        "loss": found.loss,
        "loss_without_any": found.loss_none,
        "loss_with_all": found.loss_all,
        "cost": asdict(cost(graphs, found.choice)),
        "assumptions": {"cube_ratio": CUBE_RATIO, "bytes_ratio": BYTES_RATIO},
    }
    for stage in evaluator.meta.stages:
        file = out / f"{stage.name}.keep_dtype.cfg"
        nodes = found.choice.get(stage.name, frozenset()) | frozenset(stage.keep_fp32)
        if nodes:
            file.write_text(keep_file(nodes), encoding="utf-8")
        else:
            file.unlink(missing_ok=True)
    results.write(out / RESULT, content)
    return content


def main() -> None:
    """Search the OMs that the command line names."""
    parser = argparse.ArgumentParser(
        description="Find the operators that must stay float32.", allow_abbrev=False
    )
    parser.add_argument("--om", required=True, type=Path, help="a folder of OMs: SoC, versions")
    parser.add_argument("--mode", default="fp16", help="the precision mode in which operators are kept")
    parser.add_argument("--inputs", required=True, type=Path, help="a folder with inputs.json")
    parser.add_argument(
        "--score", type=float, default=0.3, help="without annotations: what counts as an object"
    )
    parser.add_argument("--bound", type=float, default=BOUND, help="the largest loss of AP")
    args = parser.parse_args()
    forget()
    work = Path(os.environ["WORK_DIR"])
    with reporting(), Device() as device:
        converted, export = Converted.read(args.om), Export.open(args.om)
        inputs = open_inputs(args.inputs)
        found = detect_all(
            Runner(export.meta, export.steps, onnx_stages(export.meta, args.om.parent)), inputs
        )
        truth = inputs.truth or detections_as_truth(found, inputs, export.meta, args.score)
        evaluator = Evaluator(
            device=device,
            converted=converted,
            steps=export.steps,
            inputs=inputs,
            truth=truth,
            reference=truth.score(found, export.meta),
            memory=Memory(work / MEMORY),
            work=work,
        )
        graphs = {stage.name: read(args.om.parent / stage.file) for stage in export.meta.stages}
        run(evaluator, graphs, args.mode, args.bound, work)


if __name__ == "__main__":
    main()
