"""Write an image's SBOM: a list of all packages in it."""

from __future__ import annotations

import json

from ascendet.machine import engine

_LIST = """
import importlib.metadata, json, platform, subprocess
found = [["pypi", item.metadata["Name"], item.version]
         for item in importlib.metadata.distributions()]
for kind, command in (("deb", ["dpkg-query", "--show", "--showformat=${Package} ${Version}\\n"]),
                      ("rpm", ["rpm", "--query", "--all", "--queryformat=%{NAME} %{VERSION}-%{RELEASE}\\n"])):
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        continue
    found += [[kind, *line.split()] for line in shown.splitlines()]
distribution = platform.freedesktop_os_release()["ID"]
print(json.dumps([[kind, "" if kind == "pypi" else distribution, *rest] for kind, *rest in found]))
"""


def list_packages(image: str) -> list[list[str]]:
    """Return kind, distribution, name and version of each package in the image, by running a program in it."""
    command = ["run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL"]
    listed = engine.run(*command, "--entrypoint=/opt/ascendet/venv/bin/python", image, "-I", "-c", _LIST)
    packages: list[list[str]] = json.loads(listed)
    return packages


def write(tag: str, labels: dict[str, str], packages: list[list[str]]) -> str:
    """Return the image's SBOM as CycloneDX 1.6 JSON; the same content gives the same text."""
    import uuid
    from datetime import UTC, datetime

    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    name, _, version = tag.rpartition(":")
    bom = Bom(
        components=[
            Component(
                type=ComponentType.LIBRARY,
                name=package,
                version=number,
                purl=(url := PackageURL(kind, distribution or None, package, number)),
                bom_ref=str(url),
            )
            for kind, distribution, package, number in packages
        ]
    )
    bom.metadata.component = Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=version,
        bom_ref=tag,
        properties=[Property(name=key, value=value) for key, value in labels.items()],
    )
    bom.register_dependency(bom.metadata.component, bom.components)
    bom.metadata.timestamp = datetime.fromtimestamp(0, UTC)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"{tag}#{labels['ascendet.key']}")
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
