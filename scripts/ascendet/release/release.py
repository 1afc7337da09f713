"""`make release`: the stacks' audited wheels for all architectures, in one folder that is also a package index.

The folder `build/release/<version>` is written under a temporary name. Nothing in it has a date, a path of this machine
or an order by chance: two runs from the same sources give equal bytes.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from ascendet import __version__, paths
from ascendet.core import files
from ascendet.core.stack import Stack, load_all
from ascendet.errors import AscendetError
from ascendet.machine import arch
from ascendet.release import bom, collect, constraints, index, provenance, signing, sums
from ascendet.supply import patches


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument(
        "--stack", default="", help="stacks of requirements/stacks.toml, with blanks between; empty: all"
    )
    parser.add_argument(
        "--machine", default="", help=f"{' or '.join(arch.KNOWN)}; empty: both, one of them cross-compiled"
    )
    # From the environment: what somebody types there by mistake is not for other users' lists of processes.
    parser.add_argument(
        "--key",
        default=os.environ.get("KEY", ""),
        help="the PEM file of an Ed25519 key, private to sign, public to verify; empty: $KEY",
    )


def execute(args: argparse.Namespace) -> None:
    """Build, audit and publish the release, and print what it holds."""
    stacks = [Stack.load(name) for name in args.stack.split() or load_all()]
    machines = [arch.parse(args.machine)] if args.machine else list(arch.KNOWN)
    signer = signing.read_private(args.key) if args.key else None  # before hours of building
    built = collect.collect(stacks, machines)
    final = home()
    publish(final, stacks, machines, built, signer)
    size = sum(file.stat().st_size for file in files.walk(final)) / 1e6
    print(
        f"{paths.shorten(final)}: {len(built)} wheels of {', '.join(s.name for s in stacks)}, {size:.1f} MB"
    )
    print(f"  sha256 of {sums.NAME}: {files.digest(final / sums.NAME)}")
    print(
        f"  signed by the key {signing.name(signer.public_key)}" if signer else "  not signed: KEY=<PEM file>"
    )
    check = "make check-release KEY=<the public half>" if signer else "make check-release"
    print(f"  check it: {check}; docs/release.md says how to install from it")


def home() -> Path:
    """Return the folder of the release of this version."""
    return paths.BUILD / "release" / __version__


def publish(
    final: Path,
    stacks: Sequence[Stack],
    machines: Sequence[str],
    built: Sequence[collect.Built],
    signer: CryptoSigner | None = None,
) -> None:
    """Write the release's folder, replacing an older one; with a signer, sign it.

    Raises
    ------
    AscendetError
        `disk-full`. `release-invalid`: the folder cannot be written to.
    """
    temp = final.with_name(f"{files.TEMP}{final.name}")
    with files.disk_errors(final):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with files.holding_lock(final.parent / ".lock", "release"):
                shutil.rmtree(temp, ignore_errors=True)
                try:
                    _fill(temp, stacks, machines, built, signer)
                    files.publish(temp, final)
                finally:
                    shutil.rmtree(temp, ignore_errors=True)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise AscendetError(
                "release-invalid",
                f"{paths.shorten(final)} cannot be written",
                expected=f"write permission in {paths.shorten(files.existing(final.parent))}",
                found=str(error),
                hint="change its owner or mode, or set ASCENDET_BUILD to another folder; then: make release",
            ) from error


def _fill(
    folder: Path,
    stacks: Sequence[Stack],
    machines: Sequence[str],
    built: Sequence[collect.Built],
    signer: CryptoSigner | None,
) -> None:
    for name in (index.WHEELS, "audit", "provenance", "constraints", "sbom", "licences", "patches"):
        (folder / name).mkdir(parents=True)
    entries = {}
    for item in built:
        copy = folder / index.WHEELS / item.path.name
        _copy(item.path, copy)
        entry = entries[item.path.name] = index.read_wheel(copy)
        _write(folder / "audit" / f"{entry.name}.json", json.dumps(item.audit, indent=1) + "\n")
        text = provenance.statement(
            entry.name,
            entry.sha256,
            wheel=item.wheel or entry.project,
            stack=item.stacks[0],
            machine=item.machine,
            inputs=item.inputs,
        )
        stated = folder / "provenance" / f"{entry.name}.intoto.json"
        if signer:
            _write(stated.with_suffix(".jsonl"), signing.seal(text, signer))
        else:
            _write(stated, text)
        _copy_licences(copy, folder / "licences")
    index.write(folder, entries.values())
    for stack in stacks:
        ours = [entries[item.path.name] for item in built if stack.name in item.stacks]
        pins = constraints.join(stack, ours, machines)
        _write(folder / "constraints" / f"{stack.name}.txt", constraints.render(stack, pins, machines))
        locked = [(name, version) for name, version, _ in pins]
        _write(folder / "sbom" / f"{stack.name}.cdx.json", bom.write(stack, ours, locked))
    _copy(paths.ROOT / "LICENSE", folder / "licences" / "LICENSE")
    _copy(patches.HOME / "README.md", folder / "patches" / "README.md")
    for name in patches.series_names():
        (folder / "patches" / name).mkdir()
        for path in patches.list_files(name):
            _copy(path, folder / "patches" / name / path.name)
    sums.write(folder)
    if signer:
        signing.sign_sums(folder, signer)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    """Copy a file; unlike with shutil.copyfile, an error names the disk that is written to."""
    target.write_bytes(source.read_bytes())


def _copy_licences(wheel: Path, folder: Path) -> None:
    """Copy the licence files of a wheel, and of the sources in it, to `folder`/<wheel's name without tags>."""
    project = "-".join(wheel.name.split("-")[:2])
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            parts = name.split("/")
            if not (
                parts[0].endswith(".dist-info")
                and parts[-1].upper().startswith(("LICEN", "NOTICE", "COPYING"))
            ):
                continue
            (folder / project).mkdir(exist_ok=True)
            (folder / project / parts[-1]).write_bytes(archive.read(name))
