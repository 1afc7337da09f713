"""`make <name>-wheel`: build a wheel from a pinned, patched source or one of our own, to the same bytes every time.

`wheels/<name>/wheel.toml` describes the wheel. A pure wheel is built by pip and packed again. A wheel with a `[native]`
table is compiled by `native` and audited by `audit` before it gets its final name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import files, manifest, options, process
from ascendet.core.spec import Spec
from ascendet.core.stack import Stack, Upstream
from ascendet.envs import activation, env, venv
from ascendet.errors import AscendetError
from ascendet.supply import patches, sources
from ascendet.wheels import audit, cross, elf, native, toolchain, wheelfile

# The program that asks a source's setup.py what it would build.
_RECORD = paths.WHEELS / "record.py"
_LICENCES = ("LICENSE", "LICENSES.md", "LICENSE.txt", "NOTICE")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("name", help="a folder below wheels/")
    options.add_stack_option(parser)
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help="build into this folder, even if the wheel is built already, and install nothing: for comparing builds",
    )
    cross.add_machine_option(parser)


def execute(args: argparse.Namespace) -> None:
    """Build, audit, install and smoke-test the wheel, skipping steps that are done already, and print its path."""
    stack = Stack.load(args.stack)
    env.ensure_base(stack)
    if args.into:
        built = build_into(args.into, args.name, stack)
    elif args.machine == platform.machine() and not Spec.load(args.name).environment:
        built = install(args.name, stack)
    else:
        built = build(args.name, stack, args.machine)
    report = built.parent / "audit.json"
    if report.exists():
        print(audit.summary(json.loads(report.read_text(encoding="utf-8"))))
    print(f"{paths.shorten(built)} ({built.stat().st_size / 1e6:.2f} MB)")


def install(name: str, stack: Stack) -> Path:
    """Build a wheel and return its path; install and smoke-test it in the stack's environment unless that has it."""
    built = build(name, stack)

    def install_and_test() -> None:
        venv.install_wheels(stack, [built])
        _smoke_test(name, stack)

    venv.ensure_layers(stack, {name: (files.digest(built), install_and_test)})
    return built


def _smoke_test(name: str, stack: Stack) -> None:
    """Run `wheels/<name>/smoke.py`, if it exists, in the stack's environment on its NPUs."""
    program = paths.WHEELS / name / "smoke.py"
    if not program.exists():
        return
    shown = process.run(
        [venv.stack_python(stack), program],
        env=activation.stack_environ(stack),
        error="smoke-failed",
        what=f"{name} is installed, but its smoke test failed",
        hint=f"for its complete output: {venv.stack_python(stack)} {paths.shorten(program)} (after set_env.sh)",
    )
    print(shown, end="", flush=True)


def build(name: str, stack: Stack, machine: str | None = None) -> Path:
    """Build a wheel for a stack, unless it is built already, and return its path; the stack's environment must exist.

    `machine` is the architecture to build for, by default this machine's.

    Raises
    ------
    AscendetError
        The errors of sources, patches, compilers, disks and the audit.
    """
    spec = Spec.load(name)
    if spec.environment:
        return cross.build_cann_sim(stack, machine or platform.machine())
    if not spec.native:
        return _build_pure(spec, stack)  # the same for every architecture
    return _build_native(spec, stack, cross.target(stack, machine or platform.machine()))


def build_into(folder: Path, name: str, stack: Stack) -> Path:
    """Build the wheel into `folder`, with its objects in `folder`/objects if it is compiled, and return its path."""
    spec = Spec.load(name)
    folder.mkdir(parents=True, exist_ok=True)
    with files.disk_errors(folder):
        if not spec.native:
            return _write_pure(spec, stack, folder)
        target = toolchain.host_target(stack)
        compiler = toolchain.find(target.machine)
        _write_native(spec, stack, target, compiler, folder, folder / "objects")
        return _only_wheel(folder)


def _version(spec: Spec, stack: Stack) -> str:
    """Return the wheel's version, with the local part of its source's, such as main: equal names are equal bytes."""
    pin = _upstream(spec, stack)
    local = pin.version.partition("+")[2] if pin else ""
    return ".".join(filter(None, [spec.version.format(torch_npu=stack.torch_npu), local]))


def _upstream(spec: Spec, stack: Stack) -> Upstream | None:
    """Return the stack's pin of the wheel's source; None for a source in this repository.

    Raises
    ------
    AscendetError
        `wheel-invalid`: the stack does not have this upstream.
    """
    if spec.upstream is None:
        return None
    if spec.upstream not in stack.upstreams:
        raise AscendetError(
            "wheel-invalid",
            f"the {stack.name} stack has no upstream {spec.upstream}",
            expected=f"{spec.upstream} in [stacks.{stack.name}.upstreams]",
            found=", ".join(stack.upstreams),
            hint="edit requirements/stacks.toml, or another STACK",
        )
    return stack.upstreams[spec.upstream]


def _authority(spec: Spec, stack: Stack) -> dict[str, str] | None:
    pin = _upstream(spec, stack)
    return sources.authority(pin) if pin else None


def _patches(spec: Spec, stack: Stack) -> dict[str, str]:
    pin = _upstream(spec, stack)
    return patches.digest(spec.patches, pin.version if pin else None) if spec.patches else {}


def _base_inputs(spec: Spec, stack: Stack) -> dict[str, object]:
    """Return the inputs that every wheel depends on: wheel.toml, source, patches, and the code that builds it."""
    code = [spec.home / "wheel.toml", Path(__file__), Path(wheelfile.__file__)]
    if spec.native:
        code += [_RECORD, paths.WHEELS / "policy.toml", Path(native.__file__), Path(audit.__file__)]
        code += [Path(toolchain.__file__), Path(elf.__file__)]
        code += [spec.home / spec.native.guard] if spec.native.guard else []
    return {
        "source": files.digest_tree(spec.home / spec.path) if spec.path else None,
        "upstream": _authority(spec, stack),
        "patches": _patches(spec, stack),
        "code": {path.name: files.digest(path) for path in code},
        "zlib": zlib.ZLIB_RUNTIME_VERSION,  # another version may compress to other bytes
    }


def _source(spec: Spec, stack: Stack, folder: Path) -> Path:
    """Unpack or copy the wheel's source into `folder`, apply its patches, and return its top folder."""
    pin = _upstream(spec, stack)
    if pin and spec.upstream:
        pip = [*venv.tools_pip(), f"--python={venv.stack_python(stack)}"]
        tree = sources.obtain(spec.upstream, pin, pip, folder)
    else:
        tree = folder / spec.name
        ignored = shutil.ignore_patterns("__pycache__", "build", "dist", "*.egg-info")
        shutil.copytree(spec.home / (spec.path or "."), tree, ignore=ignored)
    if spec.patches:
        patches.apply(spec.patches, tree, pin.version if pin else None)
    return tree


# -- pure Python --


def _build_pure(spec: Spec, stack: Stack) -> Path:
    inputs = {**_base_inputs(spec, stack), "python": stack.python, "version": _version(spec, stack)}
    with manifest.stage(f"wheelhouse/{spec.name}", inputs, cached=True) as stage:
        if not stage.fresh:
            _write_pure(spec, stack, stage.path)
            stage.record(stack=stack.name)
    return _only_wheel(stage.final)


def _write_pure(spec: Spec, stack: Stack, output: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="ascendet-") as folder:
        tree = _source(spec, stack, Path(folder))
        plain = wheelfile.read(_pip_wheel(spec, stack, tree, Path(folder, "out")))
    version = _version(spec, stack)
    members = wheelfile.with_version(plain, version)
    return wheelfile.write(output, plain.name, version, "-".join(plain.tags), members)


def _pip_wheel(spec: Spec, stack: Stack, tree: Path, output: Path) -> Path:
    command = [*venv.tools_pip(), f"--python={venv.stack_python(stack)}", "wheel", "--no-build-isolation"]
    command += ["--no-deps", "--no-index", "--quiet", "--wheel-dir", str(output), str(tree)]
    environ = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"} | dict(spec.environ)
    process.run(
        command,
        env=environ,
        disks=[tree],
        what=f"pip cannot build {spec.name}",
        hint=f"check wheels/{spec.name} and patches/{spec.patches or spec.name}",
    )
    return _only_wheel(output)


# -- compiled --


def _build_native(spec: Spec, stack: Stack, target: toolchain.Target) -> Path:
    assert spec.native is not None
    compiler = toolchain.find(target.machine)
    inputs = {
        **_base_inputs(spec, stack),
        "built_against": _built_against(spec, stack, compiler),
        "torch": toolchain.identify(target, "torch"),
        "torch_npu": toolchain.identify(target, "torch_npu"),
        "machine": target.machine,
        "suffix": target.suffix,
    }
    with manifest.stage(f"wheelhouse/{spec.name}", inputs, cached=True) as stage:
        if not stage.fresh:
            print(f"{spec.name}: building for {stack.pair} ({target.machine})", flush=True)
            store = paths.BUILD / "objects" / f"{spec.name}-{target.machine}"
            log = _write_native(spec, stack, target, compiler, stage.path, store)
            stage.record(
                stack=stack.name,
                compiled=log.compiled,
                reused=log.reused,
                versions={"torch": stack.torch, "torch_npu": stack.torch_npu, "compiler": compiler.identity},
            )
    return _only_wheel(stage.final)


def _built_against(spec: Spec, stack: Stack, compiler: toolchain.Compiler) -> dict[str, object]:
    """Return the facts that the wheel states about its build; none of them depends on the machine."""
    return {
        "version": _version(spec, stack),
        "torch": stack.torch,
        "torch_npu": stack.torch_npu,
        "cann": stack.cann,
        "compiler": compiler.identity,
        "sdist": _authority(spec, stack),
        "patches": _patches(spec, stack),
    }


def _write_native(
    spec: Spec,
    stack: Stack,
    target: toolchain.Target,
    compiler: toolchain.Compiler,
    output: Path,
    store: Path,
) -> native.Log:
    """Write the wheel and its audit into `output`; raise `audit-failed` if it breaks the policy."""
    with tempfile.TemporaryDirectory(prefix="ascendet-") as folder:
        tree = _source(spec, stack, Path(folder))
        log = _compile(spec, stack, target, compiler, tree, output, store)
    report = audit.audit(_only_wheel(output), audit.provider(stack, target))
    (output / "audit.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    audit.require_sound(report)
    return log


def _compile(
    spec: Spec,
    stack: Stack,
    target: toolchain.Target,
    compiler: toolchain.Compiler,
    tree: Path,
    output: Path,
    store: Path,
) -> native.Log:
    """Compile the extension in `tree` and write the complete wheel into `output`."""
    assert spec.native is not None
    recorded = _record(spec, target, tree)
    extension = native.Extension(
        module=spec.native.module,
        include_dirs=recorded["include_dirs"],
        library_dirs=recorded["library_dirs"],
        libraries=recorded["libraries"],
        macros=recorded["macros"],
        flags=[*spec.native.flags, *recorded["flags"]],
    )
    units = native.make_units(recorded["sources"], spec.native.units)
    header = "".join(f'#include "{name}"\n' for name in spec.native.header)
    package, _, module = spec.native.module.replace(".", "/").rpartition("/")
    library = tree / f"{module}{target.suffix}"
    log = native.build(
        extension, units, header, tree=tree, target=target, compiler=compiler, output=library, store=store
    )
    version = _version(spec, stack)
    python = f"cp{stack.python.replace('.', '')}"
    tag = f"{python}-{python}-linux_{target.machine}"
    info = f"{spec.name}-{version}.dist-info"
    pair = [f"torch=={stack.torch}", f"torch_npu=={stack.torch_npu}"]
    licences = [path for name in _LICENCES if (path := tree / name).exists()]
    members = {member: (tree / name).read_bytes() for member, name in recorded["files"].items()}
    built_against = json.dumps(_built_against(spec, stack, compiler), indent=1) + "\n"
    members |= {
        f"{package}/_built_against.json": built_against.encode(),
        f"{package}/{library.name}": library.read_bytes(),
        f"{info}/METADATA": wheelfile.metadata(recorded["metadata"], version, requires=pair),
        f"{info}/WHEEL": wheelfile.wheel_metadata(tag, pure=False),
        f"{info}/top_level.txt": f"{package.partition('/')[0]}\n".encode(),
        **{f"{info}/licenses/{path.name}": path.read_bytes() for path in licences},
    }
    if spec.native.guard:
        members[f"{package}/_built_against.py"] = (spec.home / spec.native.guard).read_bytes()
    wheelfile.write(output, spec.name, version, tag, members)
    return log


def _record(spec: Spec, target: toolchain.Target, tree: Path) -> dict[str, Any]:
    """Return what the source's setup.py would build."""
    assert spec.native is not None
    command = [sys.executable, "-W", "ignore", str(_RECORD), str(target.site)]
    shown = process.run(
        command,
        cwd=tree,
        env=os.environ | dict(spec.environ),
        error="wheel-invalid",
        what=f"{paths.shorten(_RECORD)} cannot find out what {spec.name}'s setup.py would build",
        hint=f"check {paths.shorten(_RECORD)} and patches/{spec.patches or spec.name}",
    )
    return dict(json.loads(shown))


def _only_wheel(folder: Path) -> Path:
    (found,) = folder.glob("*.whl")
    return found
