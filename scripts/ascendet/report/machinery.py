"""The facts of the environment: machine, software, wheels with digests, patches with their reasons, data, image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.core.spec import Spec
from ascendet.core.stack import Stack
from ascendet.data import datasets
from ascendet.envs import venv
from ascendet.errors import AscendetError
from ascendet.report.commands import Subject, of_manifest
from ascendet.report.reading import Json, Reader, dig, mapping
from ascendet.supply import patches


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel of ours: its digest, and its file if it is in this build folder's wheelhouse."""

    name: str
    digest: str
    file: str | None


@dataclass(frozen=True, kw_only=True)
class PatchFact:
    """A patch of the wheels: which upstream's, its name, what it is about, why it is there."""

    upstream: str
    name: str
    subject: str
    why: str


@dataclass(kw_only=True)
class Environment:
    """Where something ran and with what.

    Attributes
    ----------
    where
        The lines about devices and place of the manifests, each once.
    machine
        What the manifest says of the machine; {} for a manifest that does not.
    versions
        Versions by name; `locks` is the digest of the locked packages.
    cann
        The stack's CANN version.
    image
        The image's id, tag, base and labels, if something ran in a container.
    wheels
        Our wheels; `wheels_now` says that they are those of the environment as it is now, since no manifest names them.
    patches
        The patches of these wheels.
    data
        The data set's key in the manifests.
    data_now
        The key of the data set that is here now, if it is not known to be that of the manifests; "" if there is none.
    data_commands
        The command that made the data set, unless it is another by now.
    """

    where: list[str] = field(default_factory=list)
    machine: Json = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    locks: str | None = None
    cann: str | None = None
    image: Json | None = None
    wheels: list[Wheel] = field(default_factory=list)
    wheels_now: bool = False
    patches: list[PatchFact] = field(default_factory=list)
    data: str | None = None
    data_now: str | None = None
    data_commands: list[str] = field(default_factory=list)


def gather(subject: Subject, manifests: Sequence[Json], reader: Reader) -> Environment:
    """Return the environment that the manifests of a run and its results describe, and of the data set's."""
    stack = Stack.load(subject.stack)
    make = subject.make("install", MODEL="", DATASET="", CHECKPOINT="")
    known = _wheelhouse(reader, make)
    found = Environment(cann=stack.cann)
    for content in manifests:
        if (where := content.get("where")) and str(where) not in found.where:
            found.where.append(str(where))
        for name, version in mapping(dig(content, "versions")).items():
            found.versions[str(name)] = str(version)
        found.machine |= mapping(dig(content, "machine"))
        found.data = found.data or dig(content, "inputs", "data")
        found.locks = found.locks or dig(content, "inputs", "locks")
        if image := dig(content, "inputs", "image"):
            found.image = _image(
                str(image), reader, subject.make("image", MODEL="", DATASET="", CHECKPOINT="")
            )
        if not found.wheels:
            found.wheels = _wheels(dig(content, "inputs", "wheels"), known)
    if not found.wheels and found.image is None:
        installed = reader.table("environment", venv.stack_home(stack) / manifest.MANIFEST, make)
        found.wheels = _wheels(dig(installed, "layers"), known)
        found.wheels_now = bool(found.wheels)
    found.patches = list(_patches(stack))
    content, annotations = _data(subject, reader)
    key = str(content.get("key") or "")
    evaluated = [digest for one in manifests if (digest := dig(one, "inputs", "annotations"))]
    # Stacks make the same pictures and annotations under different keys.
    if found.data and found.data != key and not annotations.intersection(evaluated):
        found.data_now = key
    elif command := of_manifest(content):
        found.data_commands = [command]
    return found


def _data(subject: Subject, reader: Reader) -> tuple[Json, set[str]]:
    """Return the manifest of the data set and its annotation files' SHA-256; ({}, set()) if it is not here."""
    make = subject.make_data()
    try:
        folder = datasets.find(subject.dataset).folder
        digests = {files.digest(one) for one in (folder / datasets.ANNOTATIONS).glob("*.json")}
    except AscendetError:
        return {}, set()
    except OSError as error:
        reader.note("environment", Path(error.filename), error, make)
        return {}, set()
    return reader.table("environment", folder / manifest.MANIFEST, make) or {}, digests


def _image(digest: str, reader: Reader, make: str) -> Json:
    """Return what is known of an image: its id, and where `make image` built it here, its tag, labels and SBOM."""
    for file in reader.files("environment", paths.BUILD / "image", f"*/*/{manifest.MANIFEST}", make):
        content = reader.table("environment", file, make) or {}
        if content.get("image") == digest:
            labels = mapping(dig(content, "labels"))
            return {
                "id": digest,
                "tag": content.get("tag"),
                "base": labels.get("org.opencontainers.image.base.name"),
                "base_digest": labels.get("org.opencontainers.image.base.digest"),
                "revision": labels.get("org.opencontainers.image.revision"),
                "sbom": paths.shorten(file.parent / "sbom.cdx.json"),
            }
    return {"id": digest}


def _wheels(layers: Any, known: Mapping[str, str]) -> list[Wheel]:
    if not isinstance(layers, dict):
        return []
    return [
        Wheel(name=str(name), digest=str(digest), file=known.get(str(digest)))
        for name, digest in sorted(layers.items())
    ]


def _wheelhouse(reader: Reader, make: str) -> dict[str, str]:
    """Return the wheel files of the wheelhouse by digest, and by the key of the folder that they are in."""
    found = {}
    for file in reader.files("environment", paths.BUILD / "wheelhouse", f"*/*/{manifest.MANIFEST}", make):
        content = reader.table("environment", file, make)
        for name, digest in mapping(dig(content, "outputs")).items():
            if str(name).endswith(".whl"):
                found[str(digest)] = found[file.parent.name] = str(name)
    return found


def _patches(stack: Stack) -> tuple[PatchFact, ...]:
    """Return the patches of a stack's wheels, in the order in which they are applied."""
    found = []
    for spec in map(Spec.load, stack.wheels):
        if not spec.patches:
            continue
        pin = stack.upstreams.get(spec.upstream or "")
        applied = {path.name for path in patches.list_files(spec.patches, pin.version if pin else None)}
        try:
            series = patches.load(spec.patches)
        except AscendetError:
            continue  # make lint says what is wrong with a header
        for patch in series:
            if patch.path.name in applied:
                found.append(
                    PatchFact(upstream=spec.patches, name=patch.slug, subject=patch.subject, why=patch.why)
                )
    return tuple(found)
