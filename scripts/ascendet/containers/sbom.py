"""What is inside an image: a bill of materials of every package in it."""

from __future__ import annotations

import json

from ascendet.machine import engine

# -- what is inside --

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
    """Kind, distribution, name and version of every package that is really in the image."""
    command = ["run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL"]
    listed = engine.run(*command, "--entrypoint=/opt/ascendet/venv/bin/python", image, "-I", "-c", _LIST)
    packages: list[list[str]] = json.loads(listed)
    return packages


def write(tag: str, labels: dict[str, str], packages: list[list[str]]) -> str:
    """A CycloneDX 1.6 document of the image: JSON, the same for the same content."""
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
