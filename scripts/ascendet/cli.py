"""The command line `python -m ascendet <stage> …`, which the make targets call."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from ascendet import __version__, paths
from ascendet.core import access, again, files
from ascendet.core.options import Parser
from ascendet.errors import EXIT_CODES, AscendetError


@dataclass(frozen=True)
class StageCommand:
    """A stage: its module (`package.name`), its interpreter, and one line of help.

    A stage with the interpreter "host" may import only the standard library; "tools" is the tools environment.
    """

    module: str
    where: Literal["host", "tools"]
    help: str


# In the order of the packages.
STAGES: dict[str, StageCommand] = {
    "clean": StageCommand("core.clean", "host", "remove the build folder; the cache stays"),
    "doctor": StageCommand(
        "machine.doctor", "host", "check this machine and list every problem with its fix"
    ),
    "lock": StageCommand(
        "supply.lock", "tools", "write requirements/lock from stacks.toml and the *.in files, or check it"
    ),
    "patches": StageCommand(
        "supply.patches", "tools", "apply a patch series to its pinned source, check headers, write the index"
    ),
    "weights": StageCommand(
        "supply.weights", "tools", "fetch the checkpoints that a stack's models start from"
    ),
    "env": StageCommand(
        "envs.env", "host", "create or repair a stack's virtual environment, without our wheels"
    ),
    "cann-sim": StageCommand(
        "envs.cann_sim", "host", "build the simulated CANN into the stack's environment"
    ),
    "audit": StageCommand("wheels.audit", "tools", "audit a wheel's ABI against the stack"),
    "wheel": StageCommand("wheels.wheel", "tools", "build one of our wheels and audit its ABI"),
    "check-repro": StageCommand(
        "wheels.check_repro", "tools", "build a wheel twice from nothing and compare every byte"
    ),
    "check-emulated": StageCommand(
        "wheels.check_emulated",
        "tools",
        "build the compiled wheels for another architecture and smoke-test them under emulation",
    ),
    "install": StageCommand(
        "wheels.install", "tools", "build the stack's wheels and install them into its environment"
    ),
    "data": StageCommand("data.data", "tools", "generate or fetch a data set"),
    "image": StageCommand("containers.image", "tools", "build the container image of a stack"),
    "base-sim": StageCommand(
        "containers.base_sim", "tools", "build a base image with cann_sim in the place of the CANN image"
    ),
    "bundle": StageCommand(
        "containers.bundle", "host", "pack everything for a site without a network, or unpack it there"
    ),
    "container": StageCommand(
        "containers.container", "tools", "start a shell in the image, or print the command that trains in it"
    ),
    "train": StageCommand("run.train", "tools", "train a model on the chosen devices"),
    "evaluate": StageCommand(
        "run.evaluate", "tools", "evaluate a trained model: the COCO numbers for boxes and masks"
    ),
    "infer": StageCommand("run.infer", "tools", "detect objects in pictures, draw them, measure latency"),
    "speed": StageCommand(
        "run.speed", "tools", "measure how fast a checkpoint detects: first call, steady state, memory"
    ),
    "curves": StageCommand("run.curves", "tools", "draw a training's loss and AP"),
    "k8s": StageCommand("run.k8s", "tools", "write Kubernetes jobs that train on several nodes"),
    "export": StageCommand("om.export", "tools", "export a checkpoint as ONNX, stage by stage"),
    "om": StageCommand("om.convert", "tools", "convert exported models with the environment's atc"),
    "om-forecast": StageCommand(
        "om.forecast", "tools", "say before a conversion what fuses, what has no kernel, what stays float32"
    ),
    "om-info": StageCommand("om.info", "tools", "list exported models and what their OMs say"),
    "infer-om": StageCommand("om.infer_om", "tools", "detect objects in pictures with OMs, measure latency"),
    "om-compare": StageCommand(
        "om.compare", "tools", "compare PyTorch, ONNX and OMs on the same pictures, rung by rung"
    ),
    "om-bisect": StageCommand(
        "om.bisect", "tools", "find the first node of a stage whose value in the OM is wrong"
    ),
    "om-precision": StageCommand(
        "om.precision", "tools", "find the fewest operators that must stay float32 to keep AP"
    ),
    "report": StageCommand(
        "report.report", "tools", "write a page with everything known of a run, and a verdict"
    ),
    "release": StageCommand(
        "release.release", "tools", "put the stacks' audited wheels into one folder that is a package index"
    ),
    "check-release": StageCommand(
        "release.check", "tools", "verify a release, install each stack from it, smoke-test it"
    ),
    "sim-coverage": StageCommand(
        "dev.sim_coverage", "host", "compare torch's operator database on the simulated NPU with the CPU"
    ),
    "demo": StageCommand(
        "dev.demo",
        "host",
        "train, evaluate and export the models in acts, from nothing, and show the results",
    ),
    "docs": StageCommand(
        "dev.docs", "host", "write the pages of docs/ that are generated from tables, or check them"
    ),
    "test": StageCommand("dev.test", "tools", "run the linters and the test suites"),
    "bench": StageCommand("dev.bench", "tools", "run a benchmark in the stack's environment"),
}
# The packages whose stages are called like their make targets, and the stage of them that is not.
_NAMED_LIKE_TARGETS = ("envs.", "wheels.install", "data.", "run.", "om.", "report.")
_TARGETS = {"evaluate": "eval"}


class StageModule(Protocol):
    """The functions that each stage's module has."""

    def configure_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add the stage's options."""

    def execute(self, args: argparse.Namespace) -> None:
        """Run the stage, or raise `AscendetError`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage, print its error if it fails, and return the exit code: 0, or that of the error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with files.disk_errors(paths.BUILD):
            return _run(argv)
    except AscendetError as error:
        return _fail(argv, error)
    except OSError as error:
        refused = access.refusal(error)
        if refused is None:
            raise
        return _fail(argv, refused)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_CODES["interrupted"]


def _fail(argv: list[str], error: AscendetError) -> int:
    """Print an error of a stage, and return its exit code."""
    sys.stdout.flush()
    stage = STAGES.get(argv[0]) if argv else None
    if stage and stage.module.startswith(_NAMED_LIKE_TARGETS):
        error.hint = again.complete(error.hint, _TARGETS.get(argv[0], argv[0]))
    elif error.name == "permission-denied" and again.is_variable(error.hint):
        error.hint = f"the same command with {error.hint}"
    sys.stderr.write(error.render(colour=sys.stderr.isatty() and "NO_COLOR" not in os.environ))
    return error.exit_code


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"ascendet {__version__}")
        return 0
    name = argv[0]
    if name not in STAGES:
        raise AscendetError(
            "stage-unknown",
            f"there is no stage {name!r}",
            expected=", ".join(STAGES),
            found=name,
            hint="make help",
        )
    if STAGES[name].where == "tools":
        _enter_tools(argv)
    parser = Parser(prog=f"ascendet {name}", description=STAGES[name].help, allow_abbrev=False)
    module = cast(StageModule, importlib.import_module(f"ascendet.{STAGES[name].module}"))
    module.configure_parser(parser)
    module.execute(parser.parse_args(argv[1:]))
    return 0


def overview() -> str:
    """Return the help text: usage and the list of stages."""
    width = max(map(len, STAGES))
    lines = [f"  {name:<{width}}  {stage.help}" for name, stage in STAGES.items()]
    return "\n".join(["usage: ascendet <stage> [options]", "", "stages:", *lines])


def _enter_tools(argv: list[str]) -> None:
    """Continue in the tools environment's Python, after creating that environment if it is missing."""
    from ascendet.envs import venv

    python = venv.ensure_tools()
    if os.path.realpath(sys.prefix) != os.path.realpath(python.parent.parent):
        sys.stdout.flush()
        environ = {name: value for name, value in os.environ.items() if name not in venv.FOREIGN}
        environ["PYTHONPATH"] = str(paths.ROOT / "scripts")
        os.execve(python, [str(python), "-m", "ascendet", *argv], environ)
