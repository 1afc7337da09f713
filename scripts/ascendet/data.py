"""`make data`: the data sets, each in a folder of its own below `assets.root()`, all laid out like COCO.

`shapes` is generated from a seed, anywhere; it stands in where COCO is not at hand. `coco` is fetched and unpacked;
`coco-val` is the same folder without the training images, and `coco-val200` a data set of its own: the first 200
validation images, by id, fetched one by one, with the annotations of these. mmdet reads the folder
`ASCENDET_DATA`/coco, detectron2 `DETECTRON2_DATASETS`/coco; both are the same.
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

from ascendet import archive, assets, env, fetch, files, lock, manifest, paths
from ascendet.errors import AscendetError
from ascendet.stack import Stack

SHAPES = {"seed": 0, "train": 600, "val": 120}  # images per split
_GENERATOR = Path(__file__).with_name("shapes.py")
# What training and evaluation read of COCO 2017, and how many images it has.
_COCO = {"train2017": 118_287, "val2017": 5_000}
SPLITS = tuple(_COCO)
_SUBSET = 200
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
    parser.add_argument("--dataset", default="shapes", help="shapes, coco, coco-val or coco-val200")
    assets.add_options(parser)
    parser.add_argument(
        "--keep",
        choices=["", "0", "1"],
        default="",
        help="0 removes archives once they are unpacked, 1 has them all",
    )
    parser.add_argument("--check", action="store_true", help="verify everything that is here, file by file")


def execute(args: argparse.Namespace) -> None:
    """Make the data set, or check that it is there; say what it holds."""
    if args.check:
        _print_check(check_everything(), as_json=args.json)
        return
    choices = Choices(mirror=args.mirror, accept_new=args.accept_new, keep=args.keep)
    splits: object
    if args.dataset == "shapes":
        folder = ensure_shapes(Stack.load(args.stack))
        splits = (manifest.read(folder) or {}).get("splits")
    elif args.dataset in ("coco", "coco-val"):
        wanted = [part for part in assets.DATASETS[args.dataset] if part in SPLITS]
        folder = ensure_coco(wanted, choices)
        splits = {split: _COCO[split] for split in wanted}
    elif args.dataset == "coco-val200":
        folder = ensure_subset(choices)
        splits = {"val2017": _SUBSET}
    else:
        raise AscendetError(
            "dataset-unknown",
            f"there is no data set {args.dataset!r}",
            expected=", ".join(assets.DATASETS),
            found=f"DATASET={args.dataset}",
            hint="make data DATASET=shapes",
        )
    if args.json:
        print(json.dumps({"dataset": args.dataset, "folder": str(folder), "splits": splits}))
    else:
        print(f"{paths.shorten(folder)}: {json.dumps(splits)}")


# -- shapes --


def ensure_shapes(stack: Stack) -> Path:
    """Generate `shapes` unless it is there already; the folder under its fixed name.

    The link `shapes` names the folder that the current generator, seed and libraries make.
    """
    python = env.ensure_base(stack)
    inputs = {
        "generator": files.digest(_GENERATOR),
        "lock": files.digest(lock.packages_lock(stack.packages)),
        # Sines and square roots may differ in the last bit between machines, and a pixel with them.
        "machine": platform.machine(),
        **SHAPES,
    }
    with manifest.stage("data/.shapes", inputs) as stage:
        if not stage.fresh:
            stage.record(splits=_generate(python, stage.path))
    link = assets.root() / "shapes"
    assets.point(link, stage.final)
    return link


def _generate(python: Path, out: Path) -> object:
    """Run the generator into `out`; what it counted, by split."""
    arguments = [text for name, value in SHAPES.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [python, _GENERATOR, "--out", out, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        if files.is_full(out):
            raise files.disk_full(out)
        raise AscendetError(
            "command-failed",
            "the data set shapes could not be generated",
            found=(done.stderr.strip().splitlines() or ["no message"])[-1],
            hint=f"make env STACK=vitdet, or by hand: {python} {_GENERATOR} --out <folder>",
        )
    return json.loads(done.stdout)


# -- COCO --


def ensure_coco(splits: Sequence[str], choices: Choices) -> Path:
    """Have COCO with these splits, fetching and unpacking what is missing; its folder.

    Raises
    ------
    AscendetError
        What `assets.ensure` and `archive.unpack` raise; `data-invalid` where images and annotations disagree.
    """
    folder = assets.root() / "coco"
    if choices.keep == "1":
        names = [assets.ARCHIVES[part] for part in (assets.ANNOTATIONS, *splits)]
        assets.ensure(names, mirror=choices.mirror, accept_new=choices.accept_new)
    with contextlib.suppress(AscendetError):
        return check_coco(splits)
    folder = assets.place("coco")
    with files.disk_errors(folder), assets.unwritable_named(folder):
        lock = files.holding_lock(folder.resolve() / ".lock", "coco")
        with lock:
            missing = [part for part in (assets.ANNOTATIONS, *splits) if not _is_whole(folder, part)]
            for part in missing:
                if (folder / part).exists():  # the user's: what we unpack appears whole
                    shown = paths.shorten(folder / part)
                    raise _invalid(
                        folder / part, "nothing, or all of it", "a part of it", f"mv '{shown}' <elsewhere>"
                    )
            known = assets.load()
            archives = [known[assets.ARCHIVES[part]] for part in missing]
            files.check_space(folder, sum(one.unpacked for one in archives), "ASCENDET_DATA")
            assets.ensure(
                [one.name for one in archives], mirror=choices.mirror, accept_new=choices.accept_new
            )
            for part, one in zip(missing, archives, strict=True):
                _unpack(folder, part, one)
                if choices.keep == "0":
                    one.path.unlink()
    return check_coco(splits)


def _unpack(folder: Path, part: str, asset: assets.Asset) -> None:
    """Unpack one archive into `folder`/`part`, which appears when it is whole and checked."""
    temp = folder / f".tmp-{part}"
    print(f"{paths.shorten(folder / part)}: unpacking {asset.name}", file=sys.stderr, flush=True)
    temp.mkdir(exist_ok=True)
    members = archive.unpack(asset.path, temp, top=part, limit=asset.unpacked)
    for name, expected in asset.members.items():
        found = files.digest(temp / name) if name in members else "no such member"
        if found != expected:
            raise _invalid(
                temp / name, f"sha256:{expected}", f"sha256:{found}", f"rm '{asset.path}' && make data"
            )
    if part != assets.ANNOTATIONS:
        check_images(temp, folder / assets.ANNOTATIONS / f"instances_{part}.json")
    checklists = folder / _CHECKLISTS / part
    checklists.mkdir(parents=True, exist_ok=True)
    manifest.write(checklists, {"archive": asset.sha256, "members": members})
    os.sync()  # a hundred thousand files at once, before the folder's name says that they are there
    temp.rename(folder / part)
    parts = {one: (manifest.read(folder / _CHECKLISTS / one) or {}).get("archive") for one in assets.ARCHIVES}
    manifest.write(folder, {"stage": "data/coco", "key": manifest.digest_inputs(parts), "archives": parts})


def _is_whole(folder: Path, part: str) -> bool:
    """A quick look: the annotations are there, or as many images as there should be."""
    if part == assets.ANNOTATIONS:
        return all((folder / part / f"instances_{split}.json").is_file() for split in _COCO)
    return (folder / part).is_dir() and _count(folder / part) == _COCO[part]


def _count(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.name.endswith(".jpg") for entry in entries)


def check_coco(splits: Sequence[str] = SPLITS) -> Path:
    """COCO's folder, with annotations and images of these splits.

    Raises
    ------
    AscendetError
        `data-missing` lists what is not there; `data-invalid` where a split has another number of images.
    """
    folder = assets.root() / "coco"
    wanted = [f"annotations/instances_{split}.json" for split in splits or ("val2017",)] + list(splits)
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise AscendetError(
            "data-missing",
            "the data set coco is not here",
            expected="\n".join(f"{paths.shorten(folder)}/{name}" for name in wanted),
            found="none of them" if len(missing) == len(wanted) else f"without {', '.join(missing)}",
            hint=f"make data DATASET={'coco' if 'train2017' in splits else 'coco-val'}\n"
            "or with what you have: ASCENDET_DATA=<folder that holds coco>; or without COCO: make data DATASET=shapes",
        )
    for split in splits:
        found = _count(folder / split)
        if found != _COCO[split]:
            shown = paths.shorten(folder / split)
            raise _invalid(
                folder / split,
                f"{_COCO[split]} images",
                f"{found} images",
                f"mv '{shown}' <elsewhere> && make data DATASET=coco",
            )
    return folder


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
        raise _invalid(
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
        raise _invalid(
            annotations,
            "COCO annotations",
            f"no list of images ({error})",
            f"rm '{annotations}' && make data",
        ) from error
    return images


# -- the first 200 validation images --


def ensure_subset(choices: Choices) -> Path:
    """Have `coco-val200`; its folder.

    Each image is held to the CRC-32 that the directory of val2017.zip states and to its size in the annotations, all
    together to the digest of `val200` in the lock.
    """
    folder = assets.root() / "coco-val200"
    if (folder / assets.ANNOTATIONS).is_dir():
        return folder
    asset = assets.load()["val200"]
    if not asset.digests and not choices.accept_new and not _is_whole(assets.root() / "coco", "val2017"):
        raise assets.unknown_digest([asset])
    coco = ensure_coco((), choices)
    folder = assets.place("coco-val200")
    images = folder / "val2017"
    with (
        files.disk_errors(folder),
        assets.unwritable_named(folder),
        files.holding_lock(folder.resolve() / ".lock", "coco-val200"),
    ):
        if (folder / assets.ANNOTATIONS).is_dir():
            return folder
        source = coco / assets.ANNOTATIONS / "instances_val2017.json"
        chosen = sorted(list_images(source), key=lambda image: int(str(image["id"])))[:_SUBSET]
        names = [str(image["file_name"]) for image in chosen]
        images.mkdir(exist_ok=True)
        if _is_whole(coco, "val2017"):
            for name in names:
                shutil.copy2(coco / "val2017" / name, images / name)
        else:
            _fetch_images(asset, names, images, choices.mirror)
        temp = folder / f".tmp-{assets.ANNOTATIONS}"
        temp.mkdir(exist_ok=True)
        _write_subset(source, temp / source.name, {image["id"] for image in chosen})
        check_images(images, temp / source.name)
        digest = _digest_images(images)
        if not asset.digests:
            if choices.accept_new:
                assets.record("val200", digest)
        elif digest != asset.sha256:
            shown = paths.shorten(images)
            raise AscendetError(
                "fetch-hash-mismatch",
                f"{shown} does not hold the images that the lock names",
                expected=f"sha256:{asset.sha256}",
                found=f"sha256:{digest} (of the lines that sha256sum prints)",
                hint=f"rm -r '{shown}' && make data DATASET=coco-val200",
            )
        manifest.write(folder, {"stage": "data/coco-val200", "key": digest[:16], "images": digest})
        temp.rename(folder / assets.ANNOTATIONS)
    return folder


def _fetch_images(asset: assets.Asset, names: Sequence[str], images: Path, mirror: str) -> None:
    whole = assets.load()["val2017.zip"]
    contents = _zip_directory(whole, mirror)
    bases = [base for base in asset.sources(mirror) if not base.endswith(f"/{asset.name}")]
    if mirror.startswith("http"):
        bases.insert(0, f"{mirror.rstrip('/')}/val2017")
    wanted = []
    for name in names:
        size, crc = contents[f"val2017/{name}"]
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
    coco = assets.root() / "coco"
    for part in (assets.ANNOTATIONS, *_COCO):
        if (coco / part).is_dir():
            found[f"coco/{part}"] = _check_part(coco, part)
    subset = assets.root() / "coco-val200"
    if (subset / assets.ANNOTATIONS).is_dir():
        digest = _digest_images(subset / "val2017")
        stated = (manifest.read(subset) or {}).get("images")
        found["coco-val200"] = (
            [] if digest == stated else [f"the images are sha256:{digest}, not sha256:{stated}"]
        )
        found["coco-val200"] += _problems(
            lambda: check_images(subset / "val2017", subset / assets.ANNOTATIONS / "instances_val2017.json")
        )
    shapes = assets.root() / "shapes"
    outputs = (manifest.read(shapes) or {}).get("outputs")
    if isinstance(outputs, dict):
        found["shapes"] = [
            f"{name} is damaged or missing"
            for name, digest in outputs.items()
            if not (shapes / name).is_file() or files.digest(shapes / name) != digest
        ]
    return found


def _check_part(coco: Path, part: str) -> list[str]:
    stated = (manifest.read(coco / _CHECKLISTS / part) or {}).get("members")
    problems = []
    if isinstance(stated, dict):
        problems += archive.compare(coco / part, {name: (size, crc) for name, (size, crc) in stated.items()})
    if part == assets.ANNOTATIONS:  # also where the user brought the folder
        for name, digest in assets.load()[assets.ARCHIVES[part]].members.items():
            if (coco / part / name).is_file() and files.digest(coco / part / name) != digest:
                problems.append(f"{name} is not sha256:{digest}")
        return problems
    return problems + _problems(
        lambda: check_images(coco / part, coco / assets.ANNOTATIONS / f"instances_{part}.json")
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


def _invalid(path: Path, expected: str, found: str, hint: str) -> AscendetError:
    return AscendetError(
        "data-invalid", f"{paths.shorten(path)} is not complete", expected=expected, found=found, hint=hint
    )
