"""`make report`: one page with everything that the stages left of a model on a data set, and a verdict."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ascendet import paths
from ascendet.core import access, files, options
from ascendet.core.stack import Stack
from ascendet.data import datasets
from ascendet.errors import AscendetError
from ascendet.report import charts, compare, facts, page, render
from ascendet.report.commands import Subject
from ascendet.report.words import Words, choose
from ascendet.run import infer, target

_LINES = 11  # of the verdict on the terminal


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)
    parser.add_argument("--model", required=True, help="one of the stack's models, or a configuration file")
    parser.add_argument("--dataset", required=True, help="one of the stack's data sets")
    parser.add_argument(
        "--run", default="", help="the run folder's name; empty: the latest; two: compare them"
    )
    parser.add_argument("--checkpoint", default="", help="report the results of this file")
    parser.add_argument("--language", default="", help="en or zh; empty: the locale's")
    parser.add_argument("--score", default="0.3", help="the score from which on detections are drawn")


def execute(args: argparse.Namespace) -> None:
    """Write the report, and print where it is and its verdict."""
    words = Words(choose(args.language))
    score = infer.check_options(args.score, "skip")
    own = target.check_model(Stack.load(args.stack), args.model)
    model = own.name if own else args.model
    runs = paths.BUILD / "runs" / f"{model}_{args.dataset}"
    if not (datasets.is_name(args.dataset) and runs.is_dir()):  # a data set of one's own may be gone by now
        datasets.find(args.dataset)
    subject = Subject(stack=args.stack, model=args.model, dataset=args.dataset, checkpoint=args.checkpoint)
    found = [facts.gather(subject, model, run) for run in _runs(args.run, model, args.dataset)]
    suffix = "" if words.language == "en" else f"_{words.language}"
    names = "_".join(one.name for one in found)
    final = paths.BUILD / "reports" / f"{model}_{args.dataset}_{names}{suffix}"
    with replacing(final) as folder:
        if len(found) == 1:
            made = page.compose(found[0], charts.draw(found[0], words.language, score), words)
        else:
            made = compare.compose((found[0], found[1]), charts.overlay(found, words.language), words)
        render.write(made, words, folder)
    print(paths.shorten(final / render.HTML))
    print("\n".join(render.terminal(made, _LINES)))


def _runs(text: str, model: str, dataset: str) -> list[str]:
    """Return the run in RUN, or the two to compare; raise `usage` for anything else.

    >>> _runs("", "m", "d"), _runs("a,b", "m", "d")
    (['latest'], ['a', 'b'])
    """
    if not text:
        return ["latest"]
    names = [text]
    if not (paths.BUILD / "runs" / f"{model}_{dataset}" / text).is_dir():  # a name may have a comma
        names = [name.strip() for name in text.split(",") if name.strip()]
    folders = [name for name in names if Path(name).name != name or name == ".."]
    if not 1 <= len(names) <= 2 or len(set(names)) < len(names) or folders:
        raise AscendetError(
            "usage", "RUN must be the name of a run, or of two", found=f"RUN={text}", hint="RUN=first,second"
        )
    return names


@contextlib.contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """Yield a folder to write a report into, which replaces `final` at the end of the block.

    Raises
    ------
    AscendetError
        `report-unwritable`; `disk-full`.
    """
    try:
        with files.disk_errors(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=files.TEMP) as folder:
                work = Path(folder, "report")
                work.mkdir()
                yield work
                files.publish(work, final)
    except OSError as error:
        home = paths.shorten(final.parent)
        refused = access.refusal(error)
        if refused and not Path(error.filename).is_relative_to(paths.BUILD):
            raise
        # Of another build folder the runs would not be found: a place in this one must become the user's.
        raise AscendetError(
            "report-unwritable",
            f"the report cannot be written to {paths.shorten(final)}",
            expected=f"a folder {home} that {access.user()} may write to",
            found=refused.found if refused else error.strerror or str(error),
            hint=f"sudo mkdir -p {home} && sudo chown -R {access.user()} {home}"
            if refused
            else f"ls -ld {paths.shorten(files.existing(final.parent))}",
        ) from error
