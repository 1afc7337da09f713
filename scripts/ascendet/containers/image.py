"""`make image`: the container image of a stack, from a CANN image, the locked wheels and ours.

The build's context is a folder with exactly what docker/Dockerfile needs, so nothing else can get into a layer or
change a cache key. What is secret (the package index's address may hold a password) comes as a build secret.
"""

from __future__ import annotations

import argparse
import os
import re
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

SIMULATED = "ascendet.simulated"  # the label of the stand-in base, which images inherit


# Of the stack's locked packages, those that only build or test.
_LEFT_OUT = {"iniconfig", "ninja", "pip", "pluggy", "pytest", "wheel"}


_SHOWN = r"^#\d+ (\[[^\]]*\d+/\d+\]|CACHED|DONE|ERROR|exporting)|^ERROR"


@dataclass(frozen=True, kw_only=True)
class Image:
    """A built image: its ID in the engine, tag, size with its base (bytes), whether its CANN is simulated."""

    id: str
    tag: str
    size: int
    simulated: bool


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """Which image: of which stack, for which architecture and SoC ("": the stack's first), on which base.

    `base` is the name of another base than the stack's CANN image, `ready` that of an image which is not built.
    """

    stack: Stack
    machine: str
    soc: str = ""
    base: str = ""
    ready: str = ""

    @classmethod
    def read(cls, args: argparse.Namespace) -> ImageRequest:
        """Return the request that the options of `add_image_options` make."""
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
        "--context", action="store_true", help="only make the build's context, for buildx bake"
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which image."""
    options.add_stack_option(parser)
    parser.add_argument(
        "--soc", default="", help="the SoC, which chooses the CANN image; empty: the stack's first"
    )
    parser.add_argument(
        "--arch", type=arch.parse, default="", help="x86_64 or aarch64; empty: this machine's"
    )
    parser.add_argument("--base-image", default="", help="another base than the stack's CANN image")
    parser.add_argument("--image", default="", help="a ready image to run, which is not built")


def execute(args: argparse.Namespace) -> None:
    """Build what is asked for and say what it is."""
    request = ImageRequest.read(args)
    if args.context:
        print(paths.shorten(make_context(request.stack, request.machine)))
    else:
        built = ensure(request)
        print(f"{built.tag}\n  digest: {built.id}\n  size:   {built.size / 1e9:.2f} GB with its base")
        print(f"  SBOM:   {paths.shorten(home(request.stack, request.machine) / 'latest' / 'sbom.cdx.json')}")


def home(stack: Stack, machine: str) -> Path:
    """The folder of a stack's images: a folder per image, `latest`, and the context."""
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
    base = base_image.find(name, machine, base_image.pinned(name))
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
        shutil.rmtree(final)  # docker rmi has removed what it describes
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
    # After a change that was taken back, the tag is this image's again.
    engine.run("tag", str(content["image"]), str(content["tag"]))
    return ready(str(content["tag"]))


def build_arguments(stack: Stack) -> dict[str, str]:
    """What docker/Dockerfile asks for besides the base: Python, and what must be importable, in both orders."""
    specs = [Spec.load(name) for name in stack.wheels]
    ours = [spec.native.module for spec in specs if spec.native]
    orders = (["torch", "torch_npu", *ours], ["torch_npu", "torch", *ours])
    return {
        "PYTHON": stack.python,
        "IMPORTS": " ".join(map(",".join, orders)),
        "FAMILY": next((str(spec.family["package"]) for spec in specs if spec.family), ""),
    }


def latest(request: ImageRequest) -> Image:
    """Return what `make image` made last for the stack, or raise `image-missing`; nothing is built."""
    folder = home(request.stack, request.machine)
    known = manifest.read(folder / "latest")
    if known is None or not engine.inspect("image", [str(known["tag"])]):
        raise AscendetError(
            "image-missing",
            "the image was not built here, or the engine has it no more",
            expected=f"{paths.shorten(folder / 'latest')}/{manifest.MANIFEST}",
            hint=f"make image STACK={request.stack.name}, or IMAGE=<name> for one that the engine has",
        )
    return ready(str(known["tag"]))


def ready(name: str) -> Image:
    """An image that the engine has, or `error[image-missing]`."""
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
    """The folder that docker/Dockerfile is built in: our wheels, the locks, the scripts."""
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
            for kind in ("native", "pure"):  # there are stacks without any
                Path(folder, "context", "wheels", kind).mkdir(parents=True)
            for name, source in content.items():
                target = Path(folder, "context", name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                target.chmod(0o755 if target.suffix == ".sh" else 0o644)
                os.utime(target, (0, 0))  # COPY keeps it: the layer is then the same on every build
            locked = lockfiles.packages_lock(stack.packages).read_text(encoding="utf-8")
            Path(folder, "context", "packages.txt").write_text(runtime_packages(locked), encoding="utf-8")
            files.publish(Path(folder, "context"), final)
    return final


def runtime_packages(locked: str) -> str:
    r"""A lock without the packages that an image has no use for.

    >>> runtime_packages("numpy==2 \\\n    --hash=sha256:00\npip==1 \\\n    --hash=sha256:11\n")
    'numpy==2 \\\n    --hash=sha256:00\n'
    """
    blocks = re.split(r"^(?=\w)", locked, flags=re.MULTILINE)
    return "".join(
        block for block in blocks if lockfiles.normalise(block.partition("==")[0]) not in _LEFT_OUT
    )


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
    """Run the build; what the engine says of the image. `fresh` takes no layer from the cache."""
    # By name, a build by BuildKit would ask the registry again. By ID, it takes what was inspected.
    by_id = f"ascendet/base:{base['Id'].removeprefix('sha256:')[:12]}"
    engine.run("tag", base["Id"], by_id)
    command = ["build", "--progress=plain", f"--file={paths.ROOT / 'docker' / 'Dockerfile'}"]
    command += [f"--platform=linux/{arch.KNOWN[machine].docker}", f"--tag={tag}"]
    command += ["--no-cache"] if fresh else []
    command += [f"--build-arg={name}={value}" for name, value in ({"BASE_IMAGE": by_id} | build_args).items()]
    command += [f"--label={name}={value}" for name, value in labels.items()]
    # Known to every Dockerfile, kept in no image; named without a value, the client takes them from its environment.
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
    """Build secrets from what pip is told on this machine: where packages come from, and whose certificates hold."""
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
    """Name and tag, which say what people choose an image by."""
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
    """The OCI annotations, and ours: what is inside."""
    revision = process.ask(["git", "rev-parse", "HEAD"], cwd=paths.ROOT)
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
