"""Audit a wheel against the promises of `wheels/policy.toml`, and name every symbol's provider.

A wheel that imports on the machine that built it can fail on the next one, and for mmcv's NPU builds it mostly
does: an undefined symbol shows only at import, an unregistered operator only when it is called. All of that can
be read from the file. The audit works on any wheel, also one that was built elsewhere. One whose name is that of a
folder below wheels/ must keep the promises of that folder's wheel.toml as well.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection
from elftools.elf.hash import ELFHashSection, GNUHashSection
from elftools.elf.sections import SymbolTableSection

from ascendet import paths
from ascendet.core import files, spec
from ascendet.core.spec import Spec
from ascendet.core.stack import Stack
from ascendet.envs import env
from ascendet.errors import AscendetError
from ascendet.machine import arch
from ascendet.wheels import cross, native, wheelfile

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Provider:
    """What a wheel is audited against.

    Attributes
    ----------
    versions
        The public versions of torch and torch_npu.
    python
        Python tag, for example "cp311".
    machine
        "x86_64" or "aarch64".
    folders
        Library folders by name of who brings them, in the order of search.
    interpreter
        A file whose dynamic symbols are Python's C API: the interpreter or libpython.
    """

    versions: Mapping[str, str]
    python: str
    machine: str
    folders: Mapping[str, Path]
    interpreter: Path


@dataclass(frozen=True)
class Rule:
    """The outcome of one rule: what was seen, and what to do where it is broken."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("wheel", help="a wheel file, from wherever")
    parser.add_argument("--stack", default="vitdet", help="the stack that it should fit")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    cross.add_machine_option(parser)


def execute(args: argparse.Namespace) -> None:
    """Audit one wheel, print the report, fail where it breaks the policy."""
    stack = Stack.load(args.stack)
    if not args.wheel:
        raise AscendetError(
            "usage",
            "WHEEL is not set",
            expected="the path of a wheel, built by whomever",
            hint=f"make audit WHEEL=path/to/mmcv-….whl STACK={stack.name}",
        )
    env.ensure_base(stack)
    report = audit(Path(args.wheel), provider(stack, cross.target(stack, args.machine)))
    print(json.dumps(report, indent=1) if args.json else summary(report), flush=True)
    require_sound(report)


def provider(stack: Stack, target: native.Target) -> Provider:
    """What the stack provides on a target: torch, torch_npu, and the CANN tree, real or simulated."""
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
    """Check every rule of the policy.

    Returns
    -------
    dict
        JSON-able: `schema`, `wheel`, `sha256`, `against`, `sound`, `rules` (name, ok, detail, fix) and
        `symbols` (provider by undefined symbol).

    Raises
    ------
    AscendetError
        `wheel-corrupt` where the file is no intact wheel.
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
    right = {}
    for name, library in libraries.items():
        rules.append(_machine(name, library, against))
        if rules[-1].ok:
            right[name] = library
    for name, library in right.items():
        rules += [
            _versions(name, library, policy["versions"]),
            _needed(name, library, policy["needed"]),
            _search_paths(name, library),
            _stripped(name, library),
            _build_paths(name, wheel.files[name], policy["paths"]["forbidden"]),
            _symbols(name, library, against, policy["needed"]["system"], symbols),
        ]
        if ours and ours.audit.operators and _is_extension(name, ours):
            rules.append(_npu_ops(library, ours))
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
    """The report for people: one line per rule, a second one where something is to do."""
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
    """Raise `audit-failed` where a rule is broken."""
    broken = [rule for rule in report["rules"] if not rule["ok"]]
    if broken:
        raise AscendetError(
            "audit-failed",
            f"{report['wheel']} breaks {len(broken)} of {len(report['rules'])} rules of wheels/policy.toml",
            expected="every rule kept",
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
    return Rule("tags", fits, shown if fits else f"{shown} is not {wanted}", f"take the wheel for {wanted}")


def _built_against(wheel: wheelfile.Wheel, against: Provider, ours: Spec | None) -> Iterator[Rule]:
    """Compare the pair that a wheel says it was built against; our compiled wheels must say it."""
    name = next((name for name in wheel.files if name.endswith("/_built_against.json")), None)
    if name is None:
        if ours and ours.native:
            missing = "the wheel does not say what it was built against"
            yield Rule("built-against", False, missing, _rebuild(ours))
        return
    try:
        stated = dict(json.loads(wheel.files[name]))
    except (ValueError, TypeError) as error:
        yield Rule("built-against", False, f"{name} cannot be read: {error}", _rebuild(ours))
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
    """Check that the shared libraries are intact, and that the one is there which our wheel promises."""
    wanted = ours.audit.extension if ours else None
    found = not wanted or any(_is_extension(name, ours) for name in libraries)
    detail = broken or ", ".join(libraries) or "the wheel has no shared library"
    return Rule("extension", not broken and found, detail, _rebuild(ours))


def _is_extension(name: str, ours: Spec | None) -> bool:
    return bool(ours and ours.audit.extension and name.startswith(ours.audit.extension))


def _rebuild(ours: Spec | None) -> str:
    """Return what to do where a wheel is not what it should be."""
    if ours is None:
        return "build it again, for this torch / torch_npu pair"
    variables = " ".join(f"{name}={value}" for name, value in ours.environ.items())
    return f"{f'build it with {variables}; ' if variables else ''}build it with: make {ours.name}-wheel"


def _libraries(wheel: wheelfile.Wheel) -> tuple[dict[str, ELFFile], str]:
    """The wheel's shared libraries by name, and a complaint about one that is none."""
    libraries = {}
    for name, content in wheel.files.items():
        if name.endswith(".so") or ".so." in name:
            try:
                libraries[name] = ELFFile(io.BytesIO(content))
            except ELFError as error:
                return libraries, f"{name} is not an ELF file: {error}"
    return libraries, ""


# -- rules about one shared library --


def _machine(name: str, library: ELFFile, against: Provider) -> Rule:
    elf_names = {known.elf: known.name for known in arch.KNOWN.values()}
    found = elf_names.get(library["e_machine"], library["e_machine"])
    detail = f"{name} is for {found}"
    return Rule("machine", found == against.machine, detail, f"take the wheel for {against.machine}")


def _versions(name: str, library: ELFFile, limits: Mapping[str, str]) -> Rule:
    highest: dict[str, tuple[int, ...]] = {}
    beyond = []
    for symbol, version, _ in _undefined(library):
        prefix, _, number = (version or "").rpartition("_")
        if not re.fullmatch(r"\d+(\.\d+)*", number):
            continue
        parts = tuple(map(int, number.split(".")))
        highest[prefix] = max(highest.get(prefix, ()), parts)
        limit = limits.get(prefix)
        if limit is None or parts > tuple(map(int, limit.split("."))):
            beyond.append(f"{symbol} needs {version}, the limit is {limit or 'none of these'}")
    shown = ", ".join(f"{prefix} {'.'.join(map(str, parts))}" for prefix, parts in sorted(highest.items()))
    return Rule(
        "versions",
        not beyond,
        "\n".join(beyond) or f"highest: {shown}",
        "build it on Ubuntu 22.04, Debian 12 or older, or in the CANN image",
    )


def _needed(name: str, library: ELFFile, allowed: Mapping[str, Sequence[str]]) -> Rule:
    known = {item for items in allowed.values() for item in items}
    found = _dynamic(library, "DT_NEEDED")
    strange = [item for item in found if item not in known]
    return Rule(
        "needed",
        not strange,
        f"{', '.join(strange)}: not in the list" if strange else ", ".join(found),
        "link only what wheels/policy.toml lists under [needed]",
    )


def _search_paths(name: str, library: ELFFile) -> Rule:
    found = [*_dynamic(library, "DT_RPATH"), *_dynamic(library, "DT_RUNPATH")]
    return Rule(
        "search-paths",
        not found,
        ", ".join(found) or "no RPATH, no RUNPATH",
        "patchelf --remove-rpath, or link without -rpath",
    )


def _stripped(name: str, library: ELFFile) -> Rule:
    extra = [
        section.name
        for section in library.iter_sections()
        if section.name.startswith((".debug_", ".symtab", ".gnu.debuglto_"))
    ]
    return Rule("stripped", not extra, ", ".join(extra) or "no debug sections", "strip --strip-all")


def _build_paths(name: str, content: bytes, forbidden: Sequence[str]) -> Rule:
    roots = b"|".join(re.escape(root.encode()) for root in forbidden)
    found = sorted({match.decode() for match in re.findall(rb"(?:%s)[\w.+/-]{3,}" % roots, content)})
    return Rule(
        "build-paths",
        not found,
        "\n".join(found[:3]) + (f"\nand {len(found) - 3} more" if len(found) > 3 else "")
        if found
        else "none",
        "compile with -ffile-prefix-map, and strip",
    )


def _symbols(
    name: str, library: ELFFile, against: Provider, system: Sequence[str], symbols: dict[str, str]
) -> Rule:
    """Find a provider for every undefined symbol; adds them to `symbols`."""
    needed = _dynamic(library, "DT_NEEDED")
    search = _Search(against, [item for item in needed if item not in system])
    missing = []
    for symbol, version, origin in _undefined(library):
        if version is not None:
            symbols[symbol] = f"{origin} ({version})"
            continue
        found = search.find(symbol)
        if found is None:
            missing.append(symbol)
        else:
            symbols[symbol] = found
    if missing:
        lines = [f"nobody provides {shown}" for shown in _demangle(missing)]
        fix = f"compare with {', '.join(against.folders)}: another torch / torch_npu pair?"
        return Rule("symbols", False, "\n".join(lines), fix)
    counts = Counter(provider.partition(" ")[0] for provider in symbols.values())
    shown = ", ".join(f"{provider} {count}" for provider, count in counts.most_common())
    return Rule("symbols", True, f"{len(symbols)} undefined, all provided: {shown}")


def _npu_ops(library: ELFFile, ours: Spec) -> Rule:
    expected = ours.audit.operators
    table = library.get_section_by_name(".dynsym")
    assert isinstance(table, SymbolTableSection)
    defined = [symbol.name for symbol in table.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"]
    # An Itanium-mangled function at namespace level starts with _Z, the name's length and the name.
    missing = [op for op in expected if not any(name.startswith(f"_Z{len(op)}{op}") for name in defined)]
    detail = (
        f"{len(missing)} of {len(expected)} are missing: {', '.join(missing)}"
        if missing
        else f"all {len(expected)}"
    )
    return Rule("npu-ops", not missing, detail, _rebuild(ours))


# -- ELF --


class _Search:
    """Looks a symbol up as the dynamic linker would: in the libraries named, then in those that they name."""

    def __init__(self, against: Provider, names: Sequence[str]) -> None:
        self.libraries: list[tuple[str, ELFFile]] = []
        queue, seen = list(names), set(names)
        while queue:
            name = queue.pop(0)
            for brings, folder in against.folders.items():
                path = folder / name
                if path.exists():
                    library = ELFFile(path.open("rb"))
                    self.libraries.append((f"{name} ({brings})", library))
                    new = [item for item in _dynamic(library, "DT_NEEDED") if item not in seen]
                    seen.update(new)
                    queue += new
                    break
        self.libraries.append((f"python ({against.python})", ELFFile(against.interpreter.open("rb"))))

    def find(self, symbol: str) -> str | None:
        """Who provides a symbol: `libc10.so (torch)`."""
        return next((name for name, library in self.libraries if _defines(library, symbol)), None)


def _defines(library: ELFFile, name: str) -> bool:
    """Whether the library exports the symbol, found by its hash table: libtorch_cpu has 200,000 symbols."""
    for section in library.iter_sections():
        if isinstance(section, GNUHashSection | ELFHashSection):
            symbol = section.get_symbol(name)
            return symbol is not None and symbol["st_shndx"] != "SHN_UNDEF"
    return False


def _undefined(library: ELFFile) -> Iterator[tuple[str, str | None, str | None]]:
    """Every symbol that must come from elsewhere: name, version or None, the library that has the version."""
    table = library.get_section_by_name(".dynsym")
    indices = library.get_section_by_name(".gnu.version")
    needs = library.get_section_by_name(".gnu.version_r")
    versions: dict[int, tuple[str, str]] = {}
    if isinstance(needs, GNUVerNeedSection):
        for origin, entries in needs.iter_versions():
            for entry in entries:
                versions[entry["vna_other"]] = (str(entry.name), str(origin.name))
    if not isinstance(table, SymbolTableSection):
        return
    for number, symbol in enumerate(table.iter_symbols()):
        if not symbol.name or symbol["st_shndx"] != "SHN_UNDEF" or symbol["st_info"]["bind"] == "STB_WEAK":
            continue
        index = 0
        if isinstance(indices, GNUVerSymSection):
            entry = indices.get_symbol(number)["ndx"]
            index = entry & 0x7FFF if isinstance(entry, int) else 0
        yield symbol.name, *versions.get(index, (None, None))


def _dynamic(library: ELFFile, tag: str) -> list[str]:
    section = library.get_section_by_name(".dynamic")
    if not isinstance(section, DynamicSection):
        return []
    attribute = {"DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath"}[tag]
    return [str(getattr(entry, attribute)) for entry in section.iter_tags(tag)]


def _demangle(names: Sequence[str]) -> list[str]:
    """C++ names as people write them, with the mangled one, where c++filt is installed."""
    tool = shutil.which("c++filt")
    if tool is None:
        return list(names)
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=False)
    plain = done.stdout.splitlines()
    if len(plain) != len(names):
        return list(names)
    return [name if name == shown else f"{shown} [{name}]" for name, shown in zip(names, plain, strict=True)]
