"""`make audit`: audit a wheel against `wheels/policy.toml`, and find the library that provides each symbol.

A wheel that can be imported on the machine that built it may fail on another one, and NPU builds often do: an undefined
symbol is noticed only at import, an unregistered operator only when it is called. Both can be read from the file. The
audit works on any wheel, also one that was built elsewhere. If the wheel's name is that of a folder below wheels/, the
rules in that folder's wheel.toml apply, too.
"""

from __future__ import annotations

import argparse
import io
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from ascendet import paths
from ascendet.core import files, options, spec
from ascendet.core.spec import Spec
from ascendet.core.stack import Stack
from ascendet.envs import env
from ascendet.errors import AscendetError
from ascendet.wheels import cross, elf, toolchain, wheelfile
from ascendet.wheels.elf import Provider, Rule

SCHEMA = 1


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("wheel", help="a wheel file of any origin")
    options.add_stack_option(parser, "the stack to compare it with")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    cross.add_machine_option(parser)


def execute(args: argparse.Namespace) -> None:
    """Audit one wheel and print the report; raise `audit-failed` if a rule is broken."""
    stack = Stack.load(args.stack)
    if not args.wheel:
        raise AscendetError(
            "usage",
            "WHEEL must be the path of a wheel",
            found="WHEEL is not set",
            hint=f"make audit WHEEL=path/to/name-….whl STACK={stack.name}",
        )
    env.ensure_base(stack)
    report = audit(Path(args.wheel), provider(stack, cross.target(stack, args.machine)))
    print(json.dumps(report, indent=1) if args.json else summary(report), flush=True)
    require_sound(report)


def provider(stack: Stack, target: toolchain.Target) -> Provider:
    """Return what the stack provides on a target: torch, torch_npu, and the CANN tree, real or simulated."""
    cann, cann_libraries = cross.find_cann_libraries(stack, target.machine)
    return Provider(
        versions={"torch": stack.torch, "torch_npu": stack.torch_npu},
        python=f"cp{stack.python.replace('.', '')}",
        machine=target.machine,
        folders={
            "torch": target.site / "torch/lib",
            "torch_npu": target.site / "torch_npu/lib",
            cann: cann_libraries,
        },
        interpreter=target.interpreter,
    )


def audit(path: Path, against: Provider) -> dict[str, Any]:
    """Check every rule of the policy and return the report.

    Returns
    -------
    dict
        JSON values: `schema`, `wheel`, `sha256`, `against`, `sound`, `rules` (name, ok, detail, fix) and `symbols`
        (provider by undefined symbol).

    Raises
    ------
    AscendetError
        `wheel-corrupt`: the wheel is damaged.
    """
    policy = tomllib.loads((paths.WHEELS / "policy.toml").read_text(encoding="utf-8"))
    wheel = wheelfile.read(path)
    symbols: dict[str, str] = {}
    ours = Spec.load(wheel.name) if wheel.name in spec.known() else None
    libraries, broken = _libraries(wheel)
    rules = [
        _tags(wheel, against),
        *_built_against(wheel, against, ours),
        _extension(ours, list(libraries), broken),
    ]
    right: dict[str, ELFFile] = {}
    for name, library in libraries.items():
        rules.append(elf.machine(name, library, against))
        if rules[-1].ok:
            right[name] = library
    own = {PurePosixPath(name).name: library for name, library in right.items()}
    for name, library in right.items():
        rules += [
            elf.versions(name, library, policy["versions"]),
            elf.needed(name, library, {**policy["needed"], "the wheel": list(own)}),
            elf.search_paths(name, library, ours.audit.search_paths if ours else ()),
            elf.stripped(name, library),
            elf.build_paths(name, wheel.files[name], policy["paths"]["forbidden"]),
            elf.symbols(name, library, against, own, policy["needed"]["system"], symbols),
        ]
        if ours and ours.audit.operators and _is_extension(name, ours):
            rules.append(elf.npu_ops(library, ours))
    return {
        "schema": SCHEMA,
        "wheel": path.name,
        "sha256": files.digest(path),
        "against": {**against.versions, "python": against.python, "machine": against.machine},
        "providers": list(against.folders),
        "sound": all(rule.ok for rule in rules),
        "rules": [vars(rule) for rule in rules],
        "symbols": dict(sorted(symbols.items())),
    }


def summary(report: Mapping[str, Any]) -> str:
    """Return the report as text: one line for each rule, and a second line with the fix if it is broken."""
    against = report["against"]
    lines = [f"{report['wheel']}: audit for torch {against['torch']} + torch_npu {against['torch_npu']}"]
    for rule in report["rules"]:
        first, *rest = rule["detail"].splitlines() or [""]
        lines.append(f"  {'ok  ' if rule['ok'] else 'FAIL'} {rule['name']:<14} {first}")
        lines += [f"{'':22}{line}" for line in rest]
        if not rule["ok"]:
            lines.append(f"{'':22}-> {rule['fix']}")
    return "\n".join(lines)


def require_sound(report: Mapping[str, Any]) -> None:
    """Raise `audit-failed` if a rule is broken."""
    broken = [rule for rule in report["rules"] if not rule["ok"]]
    if broken:
        raise AscendetError(
            "audit-failed",
            f"{report['wheel']} breaks {len(broken)} of {len(report['rules'])} rules of wheels/policy.toml",
            expected="no broken rule",
            found="\n".join(
                f"{rule['name']}: {line}" for rule in broken for line in rule["detail"].splitlines()
            ),
            hint="; ".join(dict.fromkeys(rule["fix"] for rule in broken)),
        )


# -- rules about the wheel --


def _tags(wheel: wheelfile.Wheel, against: Provider) -> Rule:
    python, abi, platform = wheel.tags
    fits = (
        python in (against.python, "py3")
        and abi in (against.python, "abi3", "none")
        and (platform == "any" or platform.endswith(f"_{against.machine}"))
    )
    wanted = f"{against.python}-{against.python}-*_{against.machine}"
    shown = "-".join(wheel.tags)
    return Rule("tags", fits, shown if fits else f"{shown} is not {wanted}", f"use the wheel for {wanted}")


def _built_against(wheel: wheelfile.Wheel, against: Provider, ours: Spec | None) -> Iterator[Rule]:
    """Compare the torch pair that a wheel states it was built against; our compiled wheels must state one."""
    name = next((name for name in wheel.files if name.endswith("/_built_against.json")), None)
    if name is None:
        if ours and ours.native:
            missing = "the wheel does not state the torch pair that it was built against"
            yield Rule("built-against", False, missing, elf.rebuild(ours))
        return
    try:
        stated = dict(json.loads(wheel.files[name]))
    except (ValueError, TypeError) as error:
        yield Rule("built-against", False, f"{name} cannot be read: {error}", elf.rebuild(ours))
        return
    shown = ", ".join(f"{name} {stated.get(name)}" for name in against.versions)
    wanted = ", ".join(f"{name} {version}" for name, version in against.versions.items())
    fits = shown == wanted
    yield Rule(
        "built-against",
        fits,
        shown if fits else f"{shown}; audited for {wanted}",
        "audit with the right --stack",
    )


def _extension(ours: Spec | None, libraries: Sequence[str], broken: str) -> Rule:
    """Check that the shared libraries are ELF files, and that the one in `[audit] extension` exists."""
    wanted = ours.audit.extension if ours else None
    found = not wanted or any(_is_extension(name, ours) for name in libraries)
    detail = broken or ", ".join(libraries) or "the wheel has no shared library"
    return Rule("extension", not broken and found, detail, elf.rebuild(ours))


def _is_extension(name: str, ours: Spec | None) -> bool:
    return bool(ours and ours.audit.extension and name.startswith(ours.audit.extension))


def _libraries(wheel: wheelfile.Wheel) -> tuple[dict[str, ELFFile], str]:
    """Return the wheel's shared libraries by name, and a sentence about the first that is no ELF file, or ""."""
    libraries = {}
    for name, content in wheel.files.items():
        if name.endswith(".so") or ".so." in name:
            try:
                libraries[name] = ELFFile(io.BytesIO(content))
            except ELFError as error:
                return libraries, f"{name} is not an ELF file: {error}"
    return libraries, ""
