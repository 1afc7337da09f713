"""The rules of the audit that read one ELF file, a wheel's shared library."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection
from elftools.elf.hash import ELFHashSection, GNUHashSection
from elftools.elf.sections import SymbolTableSection

from ascendet.core.spec import Spec
from ascendet.machine import arch


@dataclass(frozen=True, kw_only=True)
class Provider:
    """The versions and libraries that a wheel is audited against.

    Attributes
    ----------
    versions
        The public versions of torch and torch_npu.
    python
        Python tag, for example "cp311".
    machine
        The architecture, "x86_64" or "aarch64".
    folders
        Library folders by the name of the project that they belong to, in the order of search.
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
    """The result of one rule: what was found, and how to fix it if the rule is broken."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def rebuild(ours: Spec | None) -> str:
    """Return the command that builds the wheel again, as the fix for a broken rule."""
    if ours is None:
        return "build it again for this torch / torch_npu pair"
    variables = " ".join(f"{name}={value}" for name, value in ours.environ.items())
    return f"{f'build it with {variables}; ' if variables else ''}build it with: make {ours.name}-wheel"


# -- rules about one shared library --


def machine(name: str, library: ELFFile, against: Provider) -> Rule:
    """Check that the library is for the architecture of `against`."""
    elf_names = {known.elf: known.name for known in arch.KNOWN.values()}
    found = elf_names.get(library["e_machine"], library["e_machine"])
    detail = f"{name} is for {found}"
    return Rule("machine", found == against.machine, detail, f"use the wheel for {against.machine}")


def versions(name: str, library: ELFFile, limits: Mapping[str, str]) -> Rule:
    """Check that the library needs no symbol version above `limits` (by prefix, such as GLIBC)."""
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
            beyond.append(
                f"{symbol} needs {version}, "
                + (f"the limit is {limit}" if limit else f"but no version of {prefix} is allowed")
            )
    shown = ", ".join(f"{prefix} {'.'.join(map(str, parts))}" for prefix, parts in sorted(highest.items()))
    return Rule(
        "versions",
        not beyond,
        "\n".join(beyond) or f"highest: {shown}",
        "build it on Ubuntu 22.04, Debian 12 or older, or in the CANN image",
    )


def needed(name: str, library: ELFFile, allowed: Mapping[str, Sequence[str]]) -> Rule:
    """Check that each library that it links is in the lists `allowed` (by the project that it belongs to)."""
    known = {item for items in allowed.values() for item in items}
    found = _dynamic(library, "DT_NEEDED")
    strange = [item for item in found if item not in known]
    return Rule(
        "needed",
        not strange,
        f"{', '.join(strange)}: not in [needed]" if strange else ", ".join(found),
        "link only what wheels/policy.toml lists under [needed]",
    )


def search_paths(name: str, library: ELFFile, allowed: Sequence[str]) -> Rule:
    """Check that the library has no search path but those in `allowed`: others are of the machine that built it."""
    found = [
        path for tag in ("DT_RPATH", "DT_RUNPATH") for path in _dynamic(library, tag) if path not in allowed
    ]
    return Rule(
        "search-paths",
        not found,
        ", ".join(found) or f"no RPATH, no RUNPATH{' but those of its wheel.toml' if allowed else ''}",
        "patchelf --remove-rpath, or link without -rpath",
    )


def stripped(name: str, library: ELFFile) -> Rule:
    """Check that the library has no debug information."""
    extra = [
        section.name
        for section in library.iter_sections()
        if section.name.startswith((".debug_", ".symtab", ".gnu.debuglto_"))
    ]
    return Rule("stripped", not extra, ", ".join(extra) or "no debug sections", "strip --strip-all")


def build_paths(name: str, content: bytes, forbidden: Sequence[str]) -> Rule:
    """Check that the file's content has no path below `forbidden`, a folder of the machine that built it."""
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


def symbols(
    name: str,
    library: ELFFile,
    against: Provider,
    own: Mapping[str, ELFFile],
    system: Sequence[str],
    symbols: dict[str, str],
) -> Rule:
    """Check that each undefined symbol has a provider, and add the providers to `symbols`.

    `own` holds the wheel's libraries by file name, which are found before those of other projects.
    """
    needed = _dynamic(library, "DT_NEEDED")
    search = _Search(against, own, [item for item in needed if item not in system])
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
        lines = [f"no library provides {shown}" for shown in _demangle(missing)]
        fix = f"compare with {', '.join(against.folders)}: another torch / torch_npu pair?"
        return Rule("symbols", False, "\n".join(lines), fix)
    counts = Counter(provider.partition(" ")[0] for provider in symbols.values())
    shown = ", ".join(f"{provider} {count}" for provider, count in counts.most_common())
    return Rule("symbols", True, f"{len(symbols)} undefined, all provided: {shown}")


def npu_ops(library: ELFFile, ours: Spec) -> Rule:
    """Check that the library defines all operators in the `[audit]` table of our wheel."""
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
    return Rule("npu-ops", not missing, detail, rebuild(ours))


# -- ELF --


class _Search:
    """Looks symbols up as the dynamic linker does: in the named libraries, then in the libraries that these need."""

    def __init__(self, against: Provider, own: Mapping[str, ELFFile], names: Sequence[str]) -> None:
        self.libraries: list[tuple[str, ELFFile]] = []
        queue, seen = list(names), set(names)
        while queue:
            name = queue.pop(0)
            brings, library = _open(name, against, own)
            if library is not None:
                self.libraries.append((f"{name} ({brings})", library))
                new = [item for item in _dynamic(library, "DT_NEEDED") if item not in seen]
                seen.update(new)
                queue += new
        self.libraries.append((f"python ({against.python})", ELFFile(against.interpreter.open("rb"))))

    def find(self, symbol: str) -> str | None:
        """Return the provider of a symbol, such as `libc10.so (torch)`, or None."""
        return next((name for name, library in self.libraries if _defines(library, symbol)), None)


def _open(name: str, against: Provider, own: Mapping[str, ELFFile]) -> tuple[str, ELFFile | None]:
    """Return who brings a library, and the library; None if nobody does."""
    if name in own:
        return "the wheel", own[name]
    for brings, folder in against.folders.items():
        if (folder / name).exists():
            return brings, ELFFile((folder / name).open("rb"))
    return "", None


def _defines(library: ELFFile, name: str) -> bool:
    """Return whether the library exports a symbol; uses its hash table, because libtorch_cpu has 200,000 symbols."""
    for section in library.iter_sections():
        if isinstance(section, GNUHashSection | ELFHashSection):
            symbol = section.get_symbol(name)
            return symbol is not None and symbol["st_shndx"] != "SHN_UNDEF"
    return False


def _undefined(library: ELFFile) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield the undefined symbols (not weak ones): name, version or None, and the library that has the version."""
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
    """Return C++ names in readable form, each with its mangled name; unchanged if c++filt is not installed."""
    tool = shutil.which("c++filt")
    if tool is None:
        return list(names)
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=False)
    plain = done.stdout.splitlines()
    if len(plain) != len(names):
        return list(names)
    return [name if name == shown else f"{shown} [{name}]" for name, shown in zip(names, plain, strict=True)]
