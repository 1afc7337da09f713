"""Fetch data sets that consist of the first pictures of another one, picture by picture."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.data import archives, datasets
from ascendet.data.archives import Choices
from ascendet.data.datasets import ANNOTATIONS, Dataset
from ascendet.errors import AscendetError
from ascendet.supply import archive, assets, fetch

# Bytes at the end of a zip that hold its directory: it has about 100 bytes for each of val2017.zip's 5,001 members.
_DIRECTORY = 2**21


def ensure_pictures(one: Dataset, choices: Choices) -> Path:
    """Fetch the first pictures, by id, of the data set that this one is a part of, and return its folder.

    Each picture is verified by the CRC-32 in the archive's directory, and its size is compared with the annotations.
    All together are verified by the digest in the lock.
    """
    folder = one.folder
    if (folder / ANNOTATIONS).is_dir():
        return folder
    ((split, count),) = one.splits.items()
    whole, asset = datasets.load()[one.part_of], assets.load()[one.pictures]
    if not asset.digests and not choices.accept_new and not archives.is_whole(whole, split):
        raise assets.unknown_digest([asset])
    source = archives.ensure_archives(whole, (), choices) / ANNOTATIONS / f"instances_{split}.json"
    folder = assets.ensure_folder(one.name)
    images = folder / split
    with (
        files.disk_errors(folder),
        assets.reporting_unwritable(folder),
        files.holding_lock(folder.resolve() / ".lock", one.name),
    ):
        if (folder / ANNOTATIONS).is_dir():
            return folder
        chosen = sorted(archives.list_images(source), key=lambda image: int(str(image["id"])))[:count]
        names = [str(image["file_name"]) for image in chosen]
        images.mkdir(exist_ok=True)
        if archives.is_whole(whole, split):
            for name in names:
                shutil.copy2(whole.folder / split / name, images / name)
        else:
            _fetch_images(asset, assets.load()[whole.archives[split]], names, images, choices.mirror)
        temp = folder / f".tmp-{ANNOTATIONS}"
        temp.mkdir(exist_ok=True)
        _write_subset(source, temp / source.name, {image["id"] for image in chosen})
        archives.check_images(images, temp / source.name)
        digest = _digest_images(images)
        if not asset.digests:
            if choices.accept_new:
                assets.record(asset.name, digest)
        elif digest != asset.sha256:
            shown = paths.shorten(images)
            raise AscendetError(
                "fetch-hash-mismatch",
                f"{shown} does not have the pictures in requirements/lock/data.toml",
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
    fetch.fetch(wanted, label=f"{len(wanted)} pictures")


def _zip_directory(asset: assets.Asset, mirror: str) -> dict[str, archive.Content]:
    """Return sizes and CRC-32 of a remote zip's members by name, from its last bytes."""
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
    """Write a copy of COCO annotations with only these pictures; an evaluator would count the others as missed."""
    content = json.loads(source.read_text(encoding="utf-8"))
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
    target.write_text(json.dumps(content), encoding="utf-8")


def _digest_images(images: Path) -> str:
    return assets.digest_lines({image.name: files.digest(image) for image in images.glob("*.jpg")})
