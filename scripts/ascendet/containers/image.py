"""`make image`: build the container image of a stack, from a CANN image, the locked wheels and ours.

The build's context is a folder with exactly the files that docker/Dockerfile needs, so that nothing else gets into a
layer or changes a cache key. The package index's address may contain a password, so it is passed as a build secret.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ascendet import __version__, paths
from ascendet.containers import base_image, sbom
from ascendet.core import files, manifest, options, process
from ascendet.core.spec import Spec
from ascendet.core.stack import Stack
from ascendet.envs import env, venv
from ascendet.errors import AscendetError
from ascendet.machine import arch, engine
from ascendet.supply import lockfiles
from ascendet.wheels import wheel

SIMULATED = (
    "ascendet.simulated"  # the label of the stand-in base image; images that are built on it inherit it
)


# Locked packages that are only needed for building and testing, and are left out of images.
LEFT_OUT = {"iniconfig", "ninja", "pip", "pluggy", "pytest", "wheel"}


_SHOWN = r"^#\d+ (\[[^\]]*\d+/\d+\]|CACHED|DONE|ERROR|exporting)|^ERROR"


@dataclass(frozen=True, kw_only=True)
class Image:
    """A built image: its ID in the engine, its tag, its size with its base (bytes), whether its CANN is simulated."""

    id: str
    tag: str
    size: int
    simulated: bool


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """The stack, architecture, SoC ("": the stack's first) and base of an image.

    `base` is the name of a base image other than the stack's CANN image. `ready` is the name of an existing image to
    use instead of building one.
    """

    stack: Stack
    machine: str
    soc: str = ""
    base: str = ""
    ready: str = ""

    @classmethod
    def read(cls, args: argparse.Namespace) -> ImageRequest:
        """Return the request that the options of `add_image_options` describe."""
        return cls(
            stack=Stack.load(args.stack),
            machine=arch.parse(args.arch),
            soc=args.soc,
            base=args.base_image,
            ready=args.image,
        )


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    add_image_options(parser)
    parser.add_argument(
        "--context", action="store_true", help="only write the build's context, for buildx bake"
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe an image."""
    options.add_stack_option(parser)
    parser.add_argument(
        "--soc", default="", help="the SoC, which chooses the CANN image; empty: the stack's first"
    )
    parser.add_argument(
        "--arch", type=arch.parse, default="", help="x86_64 or aarch64; empty: this machine's"
    )
    parser.add_argument("--base-image", default="", help="another base than the stack's CANN image")
    parser.add_argument("--image", default="", help="an existing image to run, instead of building one")


def execute(args: argparse.Namespace) -> None:
    """Build the image, or only its context, and print the result."""
    request = ImageRequest.read(args)
    if args.context:
        print(paths.shorten(make_context(request.stack, request.machine)))
    else:
        built = ensure(request)
        print(f"{built.tag}\n  digest: {built.id}\n  size:   {built.size / 1e9:.2f} GB with its base")
        print(f"  SBOM:   {paths.shorten(home(request.stack, request.machine) / 'latest' / 'sbom.cdx.json')}")


def home(stack: Stack, machine: str) -> Path:
    """Return the folder of a stack's images: it holds a folder for each image, the link `latest`, and the context."""
    return paths.BUILD / "image" / f"{stack.name}-{machine}"


def ensure(request: ImageRequest) -> Image:
    """Build the image unless it is up to date, and return it.

    Raises
    ------
    AscendetError
        The engine's errors, and `soc-unknown`, `base-missing`, `base-mismatch`, `image-missing`.
    """
    if request.ready:
        return ready(request.ready)
    stack, machine = request.stack, request.machine
    name = request.base or stack.base_image(request.soc)
    base = base_image.find(name, machine, base_image.pinned_digest(name))
    context = make_context(stack, machine)
    simulated = (base["Config"].get("Labels") or {}).get(SIMULATED) == "true"
    build_args = build_arguments(stack)
    inputs = {
        "context": files.digest_tree(context),
        "dockerfile": files.digest(paths.ROOT / "docker" / "Dockerfile"),
        "base": base["Id"],
        "soc": request.soc or stack.soc[0],
        "args": build_args,
    }
    folder = home(stack, machine)
    final = folder / manifest.digest_inputs(inputs)
    known = manifest.read(final)
    if known and not engine.inspect("image", [str(known["image"])]):
        files.remove_tree(final)  # docker rmi has removed the image that it describes
    with manifest.stage(f"image/{folder.name}", inputs) as stage:
        if not stage.fresh:
            labels = _labels(stack, request.soc, name, base, inputs)
            tag = make_tag(stack, request.soc, machine, simulated)
            built = build(context, machine, base, build_args, labels, tag)
            packages = sbom.list_packages(built["Id"])
            (stage.path / "sbom.cdx.json").write_text(sbom.write(tag, labels, packages), encoding="utf-8")
            stage.record(
                image=built["Id"],
                tag=tag,
                layers=built["RootFS"]["Layers"][len(base["RootFS"]["Layers"]) :],
                bytes={"all": built["Size"], "above_base": built["Size"] - base["Size"]},
                simulated=simulated,
                labels=labels,
            )
    content = manifest.read(stage.final) or {}
    files.point(folder / "latest", stage.final.name)
    # If a change was undone, the tag belongs to another image: tag this one again.
    engine.run("tag", str(content["image"]), str(content["tag"]))
    return ready(str(content["tag"]))


def build_arguments(stack: Stack) -> dict[str, str]:
    """Return docker/Dockerfile's arguments besides the base: Python, modules to import in both orders, family."""
    specs = [Spec.load(name) for name in stack.wheels]
    ours = [spec.native.module for spec in specs if spec.native]
    orders = (["torch", "torch_npu", *ours], ["torch_npu", "torch", *ours])
    return {
        "PYTHON": stack.python,
        "IMPORTS": " ".join(map(",".join, orders)),
        "FAMILY": next((str(spec.family["package"]) for spec in specs if spec.family), ""),
    }


def latest(request: ImageRequest) -> Image:
    """Return the last image that `make image` built for the stack; raise `image-missing` if there is none."""
    folder = home(request.stack, request.machine)
    known = manifest.read(folder / "latest")
    if known is None or not engine.inspect("image", [str(known["tag"])]):
        raise AscendetError(
            "image-missing",
            "the image was not built here, or the engine no longer has it",
            expected=f"{paths.shorten(folder / 'latest')}/{manifest.MANIFEST}",
            hint=f"make image STACK={request.stack.name}, or IMAGE=<name> for one that the engine has",
        )
    return ready(str(known["tag"]))


def ready(name: str) -> Image:
    """Return an image that the engine has; raise `image-missing` if it does not have it."""
    found = engine.inspect("image", [name])
    if not found:
        raise AscendetError(
            "image-missing",
            "the engine has no such image",
            found=name,
            hint=f"docker load or docker pull {name}",
        )
    labels = found[0]["Config"].get("Labels") or {}
    return Image(
        id=found[0]["Id"], tag=name, size=found[0]["Size"], simulated=labels.get(SIMULATED) == "true"
    )


# -- building --


def make_context(stack: Stack, machine: str) -> Path:
    """Write the build context of docker/Dockerfile (our wheels, the locks, the scripts) and return its folder."""
    env.ensure_base(stack)
    kinds = {name: "native" if Spec.load(name).native else "pure" for name in stack.wheels}
    wheels = {wheel.build(name, stack, machine): kind for name, kind in kinds.items()}
    final = home(stack, machine) / "context"
    with files.disk_errors(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=".tmp-") as folder:
            docker, scripts = paths.ROOT / "docker", paths.ROOT / "scripts"
            content = {
                "torch.txt": lockfiles.torch_lock(stack, machine),
                **{name: docker / name for name in ("layer.sh", "check.sh")},
                **{f"scripts/{name}": docker / name for name in ("cann.sh", "entrypoint.sh")},
                **{f"scripts/{file.name}": file for file in scripts.glob("*.sh")},
                **{f"wheels/{kind}/{file.name}": file for file, kind in wheels.items()},
            }
            for kind in ("native", "pure"):  # both must exist, also for a stack without such wheels
                Path(folder, "context", "wheels", kind).mkdir(parents=True)
            for name, source in content.items():
                target = Path(folder, "context", name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                target.chmod(0o755 if target.suffix == ".sh" else 0o644)
                os.utime(target, (0, 0))  # COPY keeps the time, so the layer is the same in every build
            locked = lockfiles.packages_lock(stack.packages).read_text(encoding="utf-8")
            # setuptools builds source distributions without any other package.
            for name, chosen in (
                ("build.txt", {"setuptools"}),
                ("packages.txt", lockfiles.pins(locked).keys() - LEFT_OUT),
            ):
                text = lockfiles.part(locked, chosen)
                Path(folder, "context", name).write_text(text, encoding="utf-8")
            files.publish(Path(folder, "context"), final)
    return final


def build(
    context: Path,
    machine: str,
    base: engine.Json,
    build_args: dict[str, str],
    labels: dict[str, str],
    tag: str,
    *,
    fresh: bool = False,
) -> engine.Json:
    """Build the image and return the engine's description of it; with `fresh`, use no cached layer."""
    # For a name, BuildKit would ask the registry again; for an ID, it uses the image that was checked.
    by_id = f"ascendet/base:{base['Id'].removeprefix('sha256:')[:12]}"
    engine.run("tag", base["Id"], by_id)
    command = ["build", "--progress=plain", f"--file={paths.ROOT / 'docker' / 'Dockerfile'}"]
    command += [f"--platform=linux/{arch.KNOWN[machine].docker}", f"--tag={tag}"]
    command += ["--no-cache"] if fresh else []
    command += [f"--build-arg={name}={value}" for name, value in ({"BASE_IMAGE": by_id} | build_args).items()]
    command += [f"--label={name}={value}" for name, value in labels.items()]
    # Predefined in every Dockerfile and kept in no image; without a value, the client reads its environment variables.
    proxies = [name for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY") for name in (name, name.lower())]
    command += [f"--build-arg={name}" for name in proxies if name in os.environ]
    with tempfile.TemporaryDirectory(prefix="ascendet-") as folder:
        command += secrets(Path(folder))
        log = paths.BUILD / "image" / f"{context.parent.name}.log"
        try:
            engine.run(*command, str(context), log=log, shown=_SHOWN)
        except AscendetError as error:
            if error.name != "command-failed":
                raise
            raise AscendetError(
                "image-failed",
                "the image cannot be built",
                found=error.found,
                hint=f"less {paths.shorten(log)}",
            ) from error
    (built,) = engine.inspect("image", [tag])
    found: engine.Json = built
    return found


def secrets(folder: Path) -> list[str]:
    """Return the options for build secrets: pip's settings on this machine, and its certificates."""
    settings = venv.pip_settings()
    lines = ["[global]"]
    for name in ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout"):
        values = [value for value in settings.get(name, "").split() if not value.startswith("file:")]
        lines += [f"{name} = {' '.join(values)}"] if values else []
    config = folder / "pip.conf"
    config.touch(mode=0o600)
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = [f"--secret=id=pip,src={config}"]
    return options + ([f"--secret=id=ca,src={settings['cert']}"] if "cert" in settings else [])


def make_tag(stack: Stack, soc: str, machine: str, simulated: bool = False) -> str:
    """Return an image's name and tag, from the facts by which people choose an image."""
    cann = f"cann{stack.cann}{'-sim' if simulated else ''}"
    return (
        f"ascendet/{stack.name}:{__version__}-{cann}-torch_npu{stack.torch_npu}-{stack.chip(soc)}-{machine}"
    )


def _labels(
    stack: Stack,
    soc: str,
    base_name: str,
    base: engine.Json,
    inputs: dict[str, object],
) -> dict[str, str]:
    """Return the image's labels: OCI's annotations, and ours about the software in it."""
    revision = process.ask(process.git("rev-parse", "HEAD"))
    return {
        "org.opencontainers.image.title": f"Ascendet {stack.name}",
        "org.opencontainers.image.description": stack.summary,
        "org.opencontainers.image.version": __version__,
        "org.opencontainers.image.revision": (revision or "unknown").strip(),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.base.name": base_name,
        "org.opencontainers.image.base.digest": next(
            (known.partition("@")[2] for known in base.get("RepoDigests") or []), base["Id"]
        ),
        "ascendet.stack": stack.name,
        "ascendet.soc": soc or stack.soc[0],
        "ascendet.cann": stack.cann,
        "ascendet.torch": stack.torch,
        "ascendet.torchvision": stack.torchvision,
        "ascendet.torch_npu": stack.torch_npu,
        **{f"ascendet.{name}": pin.version for name, pin in stack.upstreams.items()},
        "ascendet.key": manifest.digest_inputs(inputs),
    }
