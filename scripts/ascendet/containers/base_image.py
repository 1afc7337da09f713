"""Find the base image, a CANN image that is pinned by digest."""

from __future__ import annotations

import re
import tomllib

from ascendet import paths
from ascendet.errors import AscendetError
from ascendet.machine import arch, engine
from ascendet.supply import lockfiles


def pinned_digest(name: str) -> str | None:
    """Return the digest that requirements/lock/images.toml states for an image name, or None."""
    digest = tomllib.loads((paths.LOCK / "images.toml").read_text(encoding="utf-8")).get(name)
    return str(digest) if digest else None


def find(name: str, machine: str, digest: str | None) -> engine.Json:
    """Return the engine's description of the base image; pull it if it is missing, and check that it is the pinned one.

    Raises
    ------
    AscendetError
        `base-missing`. `base-mismatch`: another digest or architecture.
    """
    reference = re.sub(r"(:[^:/]+)?(@.*)?$", f"@{digest}", name, count=1)
    found = engine.inspect("image", [name]) or (digest and engine.inspect("image", [reference]))
    if not found:
        wanted = reference if digest else name
        print(f"pulling {wanted}", flush=True)
        try:
            engine.run("pull", "--quiet", f"--platform=linux/{arch.KNOWN[machine].docker}", wanted)
        except AscendetError as error:
            error.found = f"{wanted}: {error.found}"
            raise
        found = engine.inspect("image", [wanted])
    (base,) = found
    if digest is None and name in lockfiles.image_names():
        print(
            f"the base image {name} is not pinned; `make relock` records the digest of the pulled image",
            flush=True,
        )
    elif digest and not any(known.endswith(f"@{digest}") for known in base.get("RepoDigests") or []):
        raise AscendetError(
            "base-mismatch",
            f"the base image {name} is not the one in requirements/lock/images.toml",
            expected=digest,
            found=", ".join(base.get("RepoDigests") or []) or f"a local image, {base['Id']}",
            hint=f"docker pull {reference}, or make relock to accept this one",
        )
    if base["Architecture"] != arch.KNOWN[machine].docker:
        raise AscendetError(
            "base-mismatch",
            f"the base image {name} is for another architecture",
            expected=f"linux/{arch.KNOWN[machine].docker}",
            found=f"linux/{base['Architecture']}",
            hint=f"docker pull --platform linux/{arch.KNOWN[machine].docker} {name}, or ARCH={base['Architecture']}",
        )
    found_base: engine.Json = base
    return found_base
