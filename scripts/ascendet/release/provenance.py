"""Say what a wheel was built from, as an in-toto Statement v1 with SLSA's provenance v1 as its predicate.

The facts are the inputs that the wheel's stage folder is named by. There is no date and no path in them: whoever builds
the same inputs gets the same statement. Whom it may be believed from says the signature around it (signing.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ascendet import __version__

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
# Names, not addresses: nothing is published there.
BUILD_TYPE = "urn:ascendet:wheel:1"
BUILDER = "urn:ascendet:make-release"


def statement(
    name: str, sha256: str, *, wheel: str, stack: str, machine: str | None, inputs: Mapping[str, Any]
) -> str:
    """Return the statement about one wheel as JSON.

    Parameters
    ----------
    name, sha256
        The wheel's file name and its digest in hex.
    wheel, stack, machine
        What `make <wheel>-wheel STACK= ARCH=` was asked for; `machine` is None for a wheel of any architecture.
    inputs
        The inputs in the manifest of the wheel's stage folder.
    """
    asked = {"wheel": wheel, "stack": stack, **({"machine": machine} if machine else {})}
    settings = {key: inputs[key] for key in ("built_against", "compiler", "zlib") if key in inputs}
    whole = {
        "_type": TYPE,
        "subject": [subject(name, sha256)],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": asked,
                "internalParameters": settings,
                "resolvedDependencies": list(dependencies(wheel, inputs)),
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"ascendet": __version__}}},
        },
    }
    return json.dumps(whole, indent=1) + "\n"


def subject(name: str, sha256: str) -> dict[str, Any]:
    """Return the descriptor of the wheel that a statement is about."""
    return {"name": name, "digest": {"sha256": sha256}}


def dependencies(wheel: str, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield SLSA's resource descriptors of all that the wheel was made from: sources, patches, torch pair, tools."""
    for name, digest in (inputs.get("upstream") or {}).items():
        yield {"name": name, "digest": {"gitCommit" if name == "commit" else "sha256": digest}}
    for kind in ("patches", "code"):
        for name, digest in (inputs.get(kind) or {}).items():
            yield {"name": f"{kind}/{name}", "digest": {"sha256": digest}}
    if inputs.get("source"):  # of a folder: files.digest_tree
        yield {"name": f"wheels/{wheel}", "digest": {"ascendetTree": inputs["source"]}}
    if inputs.get("lock"):
        yield {"name": "torch lock", "digest": {"sha256": inputs["lock"]}}
    for name in ("torch", "torch_npu"):
        if inputs.get(name):  # over the digests in the wheel's RECORD: toolchain.identify
            yield {"name": name, "digest": {"ascendetRecord": inputs[name]}}
