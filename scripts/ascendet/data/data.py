"""`make data`: the data sets, each in a folder of its own below `assets.root()`, all laid out like COCO.

Those of requirements/datasets.toml are generated from a seed, fetched and unpacked, or fetched picture by picture;
with FROM the user's own is taken in. mmdet reads the folder `ASCENDET_DATA`/coco, detectron2
`DETECTRON2_DATASETS`/coco; both are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.core.stack import Stack
from ascendet.data import datasets, intake
from ascendet.data.annotations import print_check
from ascendet.data.datasets import ANNOTATIONS, Dataset
from ascendet.envs import env
from ascendet.errors import AscendetError
from ascendet.supply import archive, assets, fetch, lock

# Names and places of a zip's members are at its end: about 100 bytes for each of val2017.zip's 5,001.
_DIRECTORY = 2**21
# What each unpacked folder holds, for `make data-check`: names, sizes, CRC-32.
_CHECKLISTS = ".members"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user may say about fetching."""

    mirror: str = ""
    accept_new: bool = False
    # The archives, once they are unpacked: "0" removes them, "1" fetches even those removed before.
    keep: str = ""


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("--stack", default="vitdet", help="a stack of requirements/stacks.toml")
    parser.add_argument(
        "--dataset",
        default="",
        help="one of requirements/datasets.toml (empty: shapes), or a new name with --from",
    )
    parser.add_argument("--from", dest="origin", default="", help="the folder or zip of your own data set")
    parser.add_argument(
        "--val", default="", help="what part of a data set without one becomes the validation split"
    )
    parser.add_argument("--seed", default="0", help="decides which pictures these are")
    assets.add_options(parser)
    parser.add_argument(
        "--keep",
        choices=["", "0", "1"],
        default="",
        help="0 removes archives once they are unpacked, 1 has them all",
    )
    parser.add_argument(
        "--check", action="store_true", help="verify everything that is here, or a data set's annotations"
    )


def execute(args: argparse.Namespace) -> None:
    """Make the data set, or check that it is there; say what it holds."""
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
    splits = (manifest.read(folder) or {}).get("splits") or dict(datasets.find(args.dataset).splits)
    if args.json:
        print(json.dumps({"dataset": args.dataset, "folder": str(folder), "splits": splits}))
    else:
        print(f"{paths.shorten(folder)}: {json.dumps(splits)}")


def ensure(one: Dataset, stack: Stack, choices: Choices) -> Path:
    """Make or fetch what is missing of a data set, and return its folder."""
    if one.generator:
        return ensure_generated(one, stack)
    if one.pictures:
        return ensure_pictures(one, choices)
    if one.archives or one.part_of:
        whole = datasets.load()[one.home]
        return ensure_archives(whole, list(one.splits), choices)
    return datasets.check(one, list(one.splits))


# -- generated --


def ensure_generated(one: Dataset, stack: Stack) -> Path:
    """Generate a data set unless it is there already, and return the folder under its fixed name.

    The link of that name leads to the folder that the current generator, seed and libraries make.
    """
    program = paths.ROOT / "wheels" / "common" / "ascendet_common" / one.generator
    python = env.ensure_base(stack)
    inputs = {
        "generator": files.digest(program),
        "lock": files.digest(lock.packages_lock(stack.packages)),
        # Sines and square roots may differ in the last bit between machines, and a pixel with them.
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
    """Run the generator into `out`, and return what it counted, by split."""
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
            hint=f"make env STACK=vitdet, or by hand: {python} {program} --out <folder>",
        )
    return json.loads(done.stdout)


# -- archives --


def ensure_archives(one: Dataset, splits: Sequence[str], choices: Choices) -> Path:
    """Fetch and unpack what is missing of a data set with these splits, and return its folder.

    Raises
    ------
    AscendetError
        What `assets.ensure` and `archive.unpack` raise; `data-invalid` where images and annotations disagree.
    """
    wanted = [ANNOTATIONS, *splits]
    if choices.keep == "1":
        names = [one.archives[part] for part in wanted]
        assets.ensure(names, mirror=choices.mirror, accept_new=choices.accept_new)
    with contextlib.suppress(AscendetError):
        return datasets.check(one, splits)
    folder = assets.place(one.name)
    with files.disk_errors(folder), assets.unwritable_named(folder):
        lock = files.holding_lock(folder.resolve() / ".lock", one.name)
        with lock:
            missing = [part for part in wanted if not _is_whole(one, part)]
            for part in missing:
                if (folder / part).exists():  # the user's: what we unpack appears whole
                    shown = paths.shorten(folder / part)
                    raise datasets.invalid(
                        folder / part, "nothing, or all of it", "a part of it", f"mv '{shown}' <elsewhere>"
                    )
            known = assets.load()
            archives = [known[one.archives[part]] for part in missing]
            files.check_space(folder, sum(asset.unpacked for asset in archives), "ASCENDET_DATA")
            assets.ensure(
                [asset.name for asset in archives], mirror=choices.mirror, accept_new=choices.accept_new
            )
            for part, asset in zip(missing, archives, strict=True):
                _unpack(one, folder, part, asset)
                if choices.keep == "0":
                    asset.path.unlink()
    return datasets.check(one, splits)


def _unpack(one: Dataset, folder: Path, part: str, asset: assets.Asset) -> None:
    """Unpack one archive into `folder`/`part`, which appears when it is whole and checked."""
    temp = folder / f".tmp-{part}"
    print(f"{paths.shorten(folder / part)}: unpacking {asset.name}", file=sys.stderr, flush=True)
    temp.mkdir(exist_ok=True)
    members = archive.unpack(asset.path, temp, top=part, limit=asset.unpacked)
    for name, expected in asset.members.items():
        found = files.digest(temp / name) if name in members else "no such member"
        if found != expected:
            raise datasets.invalid(
                temp / name, f"sha256:{expected}", f"sha256:{found}", f"rm '{asset.path}' && make data"
            )
    if part != ANNOTATIONS:
        check_images(temp, folder / ANNOTATIONS / f"instances_{part}.json")
    checklists = folder / _CHECKLISTS / part
    checklists.mkdir(parents=True, exist_ok=True)
    manifest.write(checklists, {"archive": asset.sha256, "members": members})
    os.sync()  # a hundred thousand files at once, before the folder's name says that they are there
    temp.rename(folder / part)
    parts = {name: (manifest.read(folder / _CHECKLISTS / name) or {}).get("archive") for name in one.archives}
    manifest.write(
        folder, {"stage": f"data/{one.name}", "key": manifest.digest_inputs(parts), "archives": parts}
    )


def _is_whole(one: Dataset, part: str) -> bool:
    """A quick look: the annotations are there, or as many images as there should be."""
    if part == ANNOTATIONS:
        return all((one.folder / part / f"instances_{split}.json").is_file() for split in one.splits)
    return datasets.count_pictures(one.folder / part) == one.splits[part]


def check_images(folder: Path, annotations: Path) -> None:
    """Hold a folder of images to the list in its annotations: the same names, the same widths and heights.

    Raises
    ------
    AscendetError
        `data-invalid` names the first that differ.
    """
    from PIL import Image

    listed = {
        str(image["file_name"]): (image["width"], image["height"]) for image in list_images(annotations)
    }
    with os.scandir(folder) as entries:
        found = {entry.name for entry in entries if not entry.name.startswith(".")}
    differing = sorted(found ^ listed.keys())
    problems = [f"{name} is {'not listed' if name in found else 'missing'}" for name in differing]
    for name in sorted(found & listed.keys()) if not problems else []:
        try:
            with Image.open(folder / name) as image:  # reads no more than the header
                size = image.size
        except OSError:
            problems.append(f"{name} is no image")
            continue
        if size != listed[name]:
            problems.append(f"{name} is {size[0]} x {size[1]}, not {listed[name][0]} x {listed[name][1]}")
    if problems:
        raise datasets.invalid(
            folder,
            f"the {len(listed)} images of {annotations.name}",
            _few(problems),
            f"rm -r '{paths.shorten(folder)}' && make data",
        )


def list_images(annotations: Path) -> list[dict[str, object]]:
    """The list `images` of a COCO file, without making objects of its million polygons."""
    text = annotations.read_text(encoding="utf-8")
    try:
        start = text.index('"images"') + len('"images"')
        start = text.index("[", text.index(":", start))
        images: list[dict[str, object]] = json.JSONDecoder().raw_decode(text, start)[0]
    except ValueError as error:
        raise datasets.invalid(
            annotations,
            "COCO annotations",
            f"no list of images ({error})",
            f"rm '{annotations}' && make data",
        ) from error
    return images


# -- the first pictures of another data set --


def ensure_pictures(one: Dataset, choices: Choices) -> Path:
    """Fetch the first pictures, by id, of the data set that this one is a part of, and return its folder.

    Each picture is held to the CRC-32 that the archive's directory states and to its size in the annotations, all
    together to the digest in the lock.
    """
    folder = one.folder
    if (folder / ANNOTATIONS).is_dir():
        return folder
    ((split, count),) = one.splits.items()
    whole, asset = datasets.load()[one.part_of], assets.load()[one.pictures]
    if not asset.digests and not choices.accept_new and not _is_whole(whole, split):
        raise assets.unknown_digest([asset])
    source = ensure_archives(whole, (), choices) / ANNOTATIONS / f"instances_{split}.json"
    folder = assets.place(one.name)
    images = folder / split
    with (
        files.disk_errors(folder),
        assets.unwritable_named(folder),
        files.holding_lock(folder.resolve() / ".lock", one.name),
    ):
        if (folder / ANNOTATIONS).is_dir():
            return folder
        chosen = sorted(list_images(source), key=lambda image: int(str(image["id"])))[:count]
        names = [str(image["file_name"]) for image in chosen]
        images.mkdir(exist_ok=True)
        if _is_whole(whole, split):
            for name in names:
                shutil.copy2(whole.folder / split / name, images / name)
        else:
            _fetch_images(asset, assets.load()[whole.archives[split]], names, images, choices.mirror)
        temp = folder / f".tmp-{ANNOTATIONS}"
        temp.mkdir(exist_ok=True)
        _write_subset(source, temp / source.name, {image["id"] for image in chosen})
        check_images(images, temp / source.name)
        digest = _digest_images(images)
        if not asset.digests:
            if choices.accept_new:
                assets.record(asset.name, digest)
        elif digest != asset.sha256:
            shown = paths.shorten(images)
            raise AscendetError(
                "fetch-hash-mismatch",
                f"{shown} does not hold the images that the lock names",
                expected=f"sha256:{asset.sha256}",
                found=f"sha256:{digest} (of the lines that sha256sum prints)",
                hint=f"rm -r '{shown}' && make data DATASET={one.name}",
            )
        manifest.write(folder, {"stage": f"data/{one.name}", "key": digest[:16], "images": digest})
        temp.rename(folder / ANNOTATIONS)
    return folder


def _fetch_images(
    asset: assets.Asset, whole: assets.Asset, names: Sequence[str], images: Path, mirror: str
) -> None:
    contents = _zip_directory(whole, mirror)
    bases = [base for base in asset.sources(mirror) if not base.endswith(f"/{asset.name}")]
    if mirror.startswith("http"):
        bases.insert(0, f"{mirror.rstrip('/')}/{images.name}")
    wanted = []
    for name in names:
        size, crc = contents[f"{images.name}/{name}"]
        if not (images / name).is_file() or archive.content(images / name) != (size, crc):
            urls = tuple(f"{base}/{name}" for base in bases)
            wanted.append(
                fetch.File(path=images / name, urls=urls, size=size, digests={"crc32": f"{crc:08x}"})
            )
    fetch.fetch(wanted, label=f"{len(wanted)} images")


def _zip_directory(asset: assets.Asset, mirror: str) -> dict[str, archive.Content]:
    """Sizes and CRC-32 of a remote zip's members, from its last bytes."""
    assert asset.bytes is not None, "COCO's sizes are known"
    start = max(0, asset.bytes - _DIRECTORY)
    with tempfile.TemporaryFile() as sparse:
        sparse.seek(start)
        sparse.write(fetch.fetch_range(asset.sources(mirror), start, asset.bytes))
        try:
            with zipfile.ZipFile(sparse) as directory:
                return {info.filename: (info.file_size, info.CRC) for info in directory.infolist()}
        except zipfile.BadZipFile as error:
            raise AscendetError(
                "archive-invalid",
                f"the end of {asset.name} is no zip directory",
                found=str(error),
                hint="run the command again with another MIRROR",
            ) from error


def _write_subset(source: Path, target: Path, ids: set[object]) -> None:
    """A copy of COCO annotations with these images only: an evaluator would count the others as missed."""
    content = json.loads(source.read_text(encoding="utf-8"))
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
    target.write_text(json.dumps(content), encoding="utf-8")


def _digest_images(images: Path) -> str:
    return assets.digest_lines({image.name: files.digest(image) for image in images.glob("*.jpg")})


# -- make data-check --


def check_everything() -> dict[str, list[str]]:
    """Read every byte that is here and compare it with what it should be: problems by file or folder."""
    found: dict[str, list[str]] = {}
    for asset in assets.load().values():
        if asset.path.is_file() and asset.digests:
            found[f"{asset.folder}/{asset.name}"] = _problems(functools.partial(assets.verify, asset))
    for one in datasets.load().values():
        found |= _check_dataset(one)
    for name in datasets.taken_in():
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
    digest = _digest_images(one.folder / split)
    stated = (manifest.read(one.folder) or {}).get("images")
    problems = [] if digest == stated else [f"the images are sha256:{digest}, not sha256:{stated}"]
    annotations = one.folder / ANNOTATIONS / f"instances_{split}.json"
    return problems + _problems(lambda: check_images(one.folder / split, annotations))


def _check_part(one: Dataset, part: str) -> list[str]:
    folder = one.folder / part
    stated = (manifest.read(one.folder / _CHECKLISTS / part) or {}).get("members")
    problems = []
    if isinstance(stated, dict):
        problems += archive.compare(folder, {name: (size, crc) for name, (size, crc) in stated.items()})
    if part == ANNOTATIONS:  # also where the user brought the folder
        for name, digest in assets.load()[one.archives[part]].members.items():
            if (folder / name).is_file() and files.digest(folder / name) != digest:
                problems.append(f"{name} is not sha256:{digest}")
        return problems
    return problems + _problems(
        lambda: check_images(folder, one.folder / ANNOTATIONS / f"instances_{part}.json")
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
            print(f"{paths.shorten(assets.root())}: nothing is here yet")
    if damaged:
        raise AscendetError(
            "data-invalid",
            f"damaged: {', '.join(damaged)}",
            found=_few([f"{name}: {problem}" for name, problems in damaged.items() for problem in problems]),
            hint="remove what is damaged, then: make data",
        )


def _few(lines: Sequence[str]) -> str:
    return "\n".join([*lines[:10], *([f"and {len(lines) - 10} more"] if len(lines) > 10 else [])])
