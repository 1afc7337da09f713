"""`make data`: provide data sets, each in its own folder below `assets.root()`, all in COCO's layout.

Data sets of requirements/datasets.toml are generated from a seed, fetched and unpacked, or fetched picture by picture;
with FROM, a data set of the user is taken in. Programs find the folder in ASCENDET_DATA and in DETECTRON2_DATASETS.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import again, files, manifest, options
from ascendet.core.stack import Stack
from ascendet.data import archives, datasets, intake, pictures
from ascendet.data.annotations import print_check
from ascendet.data.archives import Choices
from ascendet.data.datasets import ANNOTATIONS, Dataset
from ascendet.envs import env
from ascendet.errors import AscendetError
from ascendet.supply import archive, assets, lockfiles


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)
    parser.add_argument(
        "--dataset",
        default="",
        help="one of requirements/datasets.toml (empty: shapes), or a new name with --from",
    )
    parser.add_argument("--from", dest="origin", default="", help="the folder or zip of your own data set")
    parser.add_argument(
        "--val",
        default="",
        help="the part of the pictures that becomes the validation split, if there is none",
    )
    parser.add_argument("--seed", default="0", help="seed for choosing these pictures")
    assets.add_options(parser)
    parser.add_argument(
        "--keep",
        choices=["", "0", "1"],
        default="",
        help="0 removes archives after unpacking, 1 keeps them and fetches removed ones again",
    )
    parser.add_argument(
        "--check", action="store_true", help="verify all data that is here, or check a data set's annotations"
    )


def execute(args: argparse.Namespace) -> None:
    """Provide a data set, or check data, and print the result."""
    if args.check and args.dataset:
        one = datasets.find(args.dataset)
        print_check(datasets.check(one, ()), list(one.splits), as_json=args.json)
        return
    if args.check:
        _print_check(check_everything(), as_json=args.json)
        return
    args.dataset = args.dataset or "shapes"
    choices = Choices(mirror=args.mirror, accept_new=args.accept_new, keep=args.keep)
    if args.origin:
        options = intake.check_options(args.dataset, args.origin, args.val, args.seed)
        folder = intake.take_in(options)
    else:
        folder = ensure(datasets.find(args.dataset), Stack.load(args.stack), choices)
    splits: Any = (manifest.read(folder) or {}).get("splits") or dict(datasets.find(args.dataset).splits)
    if args.json:
        print(json.dumps({"dataset": args.dataset, "folder": str(folder), "splits": splits}))
    else:
        print(paths.shorten(folder))
        print("\n".join(_describe(name, count) for name, count in splits.items()))
        stage = "train" if any(name.startswith("train") for name in splits) else "eval"
        given = dict.fromkeys(("FROM", "VAL", "SEED", "KEEP", "MIRROR", "ACCEPT_NEW"), "")
        print(f"next: {again.command(stage, DATASET=args.dataset, **given)}")


def _describe(split: str, count: int | Mapping[str, int]) -> str:
    """Return a split's number of pictures, and of objects if that is known, as text.

    >>> _describe("val2017", 5000)
    'val2017: 5000 pictures'
    >>> print(_describe("train", {"images": 9, "with_objects": 8, "objects": 20}))
    train: 9 pictures, 20 objects; 1 without objects to train on
    """
    if isinstance(count, int):
        return f"{split}: {count} pictures"
    text = f"{split}: {count['images']} pictures, {count['objects']} objects"
    empty = count["images"] - count["with_objects"]
    if split.startswith("train") and empty:
        text += f"; {empty} without objects to train on"
    return text


def ensure(one: Dataset, stack: Stack, choices: Choices) -> Path:
    """Generate or fetch the missing parts of a data set, and return its folder."""
    if one.generator:
        return ensure_generated(one, stack)
    if one.pictures:
        return pictures.ensure_pictures(one, choices)
    if one.archives or one.part_of:
        whole = datasets.load()[one.home]
        return archives.ensure_archives(whole, list(one.splits), choices)
    return datasets.check(one, list(one.splits))


# -- generated --


def ensure_generated(one: Dataset, stack: Stack) -> Path:
    """Generate a data set unless that was done before, and return its folder.

    This is a link to the folder that the current generator, seed and libraries made.
    """
    program = paths.ROOT / "wheels" / "common" / "ascendet_common" / one.generator
    python = env.ensure_base(stack)
    pinned = lockfiles.pins(lockfiles.packages_lock(stack.packages).read_text(encoding="utf-8"))
    inputs = {
        "generator": files.digest(program),
        "libraries": {name: pinned[name] for name in one.libraries},
        # Sines and square roots, and therefore pixels, may differ in the last bit between architectures.
        "machine": platform.machine(),
        "seed": one.seed,
        **one.splits,
    }
    with manifest.stage(f"data/.{one.name}", inputs) as stage:
        if not stage.fresh:
            stage.record(splits=_generate(one, program, python, stage.path))
    assets.point(one.folder, stage.final)
    return one.folder


def _generate(one: Dataset, program: Path, python: Path, out: Path) -> object:
    """Run the generator into `out`, and return the counts that it prints, by split."""
    settings = {"seed": one.seed, **one.splits}
    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [python, program, "--out", out, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        if files.is_full(out):
            raise files.disk_full(out)
        raise AscendetError(
            "command-failed",
            f"the data set {one.name} could not be generated",
            found=(done.stderr.strip().splitlines() or ["no message"])[-1],
            hint=f"make env, or by hand: {python} {program} --out <folder>",
        )
    return json.loads(done.stdout)


# -- make data-check --


def check_everything() -> dict[str, list[str]]:
    """Verify all data that is here by its digests, and return problems by file or folder."""
    found: dict[str, list[str]] = {}
    for asset in assets.load().values():
        if asset.path.is_file() and asset.digests:
            found[f"{asset.folder}/{asset.name}"] = _problems(functools.partial(assets.verify, asset))
    for one in datasets.load().values():
        found |= _check_dataset(one)
    for name in datasets.list_taken_in():
        found |= intake.check(datasets.find(name))
    return found


def _check_dataset(one: Dataset) -> dict[str, list[str]]:
    """Return the problems of a data set of datasets.toml by part."""
    folder = one.folder
    if one.archives:
        parts = [part for part in one.archives if (folder / part).is_dir()]
        return {f"{one.name}/{part}": _check_part(one, part) for part in parts}
    if one.pictures and (folder / ANNOTATIONS).is_dir():
        return {one.name: _check_pictures(one)}
    outputs = (manifest.read(folder) or {}).get("outputs")
    if one.generator and isinstance(outputs, dict):
        return {one.name: manifest.damaged(folder, outputs)}
    return {}


def _check_pictures(one: Dataset) -> list[str]:
    (split,) = one.splits
    digest = pictures._digest_images(one.folder / split)
    stated = (manifest.read(one.folder) or {}).get("images")
    problems = [] if digest == stated else [f"the pictures are sha256:{digest}, not sha256:{stated}"]
    annotations = one.folder / ANNOTATIONS / f"instances_{split}.json"
    return problems + _problems(lambda: archives.check_images(one.folder / split, annotations))


def _check_part(one: Dataset, part: str) -> list[str]:
    folder = one.folder / part
    stated = (manifest.read(one.folder / archives.CHECKLISTS / part) or {}).get("members")
    problems = []
    if isinstance(stated, dict):
        problems += archive.compare(folder, {name: (size, crc) for name, (size, crc) in stated.items()})
    if part == ANNOTATIONS:  # also if the user provided the folder
        for name, digest in assets.load()[one.archives[part]].members.items():
            if (folder / name).is_file() and files.digest(folder / name) != digest:
                problems.append(f"{name} is not sha256:{digest}")
        return problems
    return problems + _problems(
        lambda: archives.check_images(folder, one.folder / ANNOTATIONS / f"instances_{part}.json")
    )


def _problems(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except AscendetError as error:
        return [f"{error.what}: {error.found}"]
    return []


def _print_check(found: dict[str, list[str]], *, as_json: bool) -> None:
    damaged = {name: problems for name, problems in found.items() if problems}
    if as_json:
        print(json.dumps({"folder": str(assets.root()), "checked": found}))
    else:
        for name, problems in found.items():
            print(f"{'DAMAGED' if problems else 'ok':<8} {name}")
        if not found:
            print(f"{paths.shorten(assets.root())}: there is no data yet")
    if damaged:
        raise AscendetError(
            "data-invalid",
            f"damaged: {', '.join(damaged)}",
            found=archives.shorten(
                [f"{name}: {problem}" for name, problems in damaged.items() for problem in problems]
            ),
            hint="remove the damaged files and folders, then: make data",
        )
