"""Write the SBOM of a stack's set of wheels: CycloneDX 1.6, the same text for the same content."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from ascendet import __version__
from ascendet.core import manifest
from ascendet.core.stack import Stack
from ascendet.release.index import Entry


def write(stack: Stack, ours: Iterable[Entry], locked: Iterable[tuple[str, str]]) -> str:
    """Return the SBOM of a stack: our wheels, each file with its digest, and the locked packages of the index.

    It has no date, and its serial number is derived from its content.

    Parameters
    ----------
    stack
        The stack.
    ours
        The wheels of the release that are in its set.
    locked
        Name and version of the packages in its locks.
    """
    ours, locked = list(ours), sorted(set(locked))
    made = {(entry.project, entry.version) for entry in ours}
    components = [
        Component(
            type=ComponentType.LIBRARY,
            name=entry.project,
            version=entry.version,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)],
            licenses=[DisjunctiveLicense(name=entry.licence)] if entry.licence else [],
            purl=(url := PackageURL("pypi", None, entry.project, entry.version, {"file_name": entry.name})),
            bom_ref=str(url),
        )
        for entry in ours
    ]
    components += [
        Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=(url := PackageURL("pypi", None, name, version)),
            bom_ref=str(url),
        )
        for name, version in locked
        if (name, version) not in made
    ]
    bom = Bom(components=components)
    bom.metadata.component = Component(
        type=ComponentType.APPLICATION, name=stack.name, version=__version__, bom_ref=f"ascendet/{stack.name}"
    )
    bom.register_dependency(bom.metadata.component, bom.components)
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the format does not ask for one
    content = manifest.digest_inputs({"ours": [entry.sha256 for entry in ours], "locked": locked})
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"urn:ascendet:{stack.name}:{content}")
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
