"""Ascendet's errors: each has a name and an exit code, and says what was expected, what was found, and what to do next.

Scripts may test the name or the exit code, so a name is never reused for another meaning. docs/errors.toml says what
each means, its usual cause and its remedy; `make docs` writes docs/troubleshooting.md from it.
"""

from __future__ import annotations

import re

# Sorted by code. 10-39 core, 40-59 sources/patches/wheel/abi, configurations,
# 60-69 data, 70-79 train/eval, 80-89 image/container, 91-101 staged OM, 102-109 release, 110 reports, 111- core again.
EXIT_CODES: dict[str, int] = {
    "python-version": 10,
    "usage": 11,
    "stack-unknown": 12,
    "stack-invalid": 13,
    "stage-unknown": 14,
    "disk-full": 15,
    "command-failed": 16,
    "doctor-blocked": 17,
    "lock-stale": 18,
    "lock-failed": 19,
    "lock-missing": 20,
    "install-failed": 21,
    "npu-unknown": 22,
    "npu-missing": 23,
    "devices-invalid": 24,
    "interrupted": 25,
    "tests-failed": 26,
    "port-in-use": 27,
    "name-in-use": 28,
    "soc-unknown": 29,
    "npu-out-of-memory": 30,
    "npu-lost": 31,
    "npu-timeout": 32,
    "hccl-timeout": 33,
    "hccl-link-down": 34,
    "loss-not-finite": 35,
    "program-missing": 36,
    "npu-fallback": 37,
    "score-failed": 38,
    "config-unsupported": 39,
    "sdist-unlocked": 40,
    "sdist-download-failed": 41,
    "sdist-hash-mismatch": 42,
    "sdist-corrupt": 43,
    "patch-invalid": 44,
    "patch-index-stale": 45,
    "patch-does-not-apply": 46,
    "wheel-unknown": 47,
    "wheel-invalid": 48,
    "compiler-missing": 49,
    "compiler-too-old": 50,
    "compile-failed": 51,
    "wheel-corrupt": 52,
    "audit-failed": 53,
    "smoke-failed": 54,
    "not-reproducible": 55,
    "annotations-invalid": 56,
    "docs-stale": 57,
    "config-invalid": 58,
    "data-missing": 60,
    "data-invalid": 61,
    "fetch-failed": 62,
    "fetch-refused": 63,
    "fetch-not-the-file": 64,
    "fetch-hash-mismatch": 65,
    "digest-unknown": 66,
    "archive-invalid": 67,
    "bundle-invalid": 68,
    "data-lock-invalid": 69,
    "model-unknown": 70,
    "dataset-unknown": 71,
    "config-missing": 72,
    "resume-impossible": 73,
    "run-failed": 74,
    "run-busy": 75,
    "checkpoint-missing": 76,
    "checkpoint-unreadable": 77,
    "checkpoint-mismatch": 78,
    "image-damaged": 79,
    "engine-missing": 80,
    "engine-permission": 81,
    "buildkit-missing": 82,
    "base-missing": 83,
    "base-mismatch": 84,
    "image-missing": 85,
    "image-failed": 86,
    "device-busy": 87,
    "device-permission": 88,
    "driver-missing": 89,
    "export-failed": 91,
    "onnx-differs": 92,
    "soc-contradiction": 93,
    "atc-failed": 94,
    "om-missing": 95,
    "om-mixed-builds": 96,
    "om-other-soc": 97,
    "om-corrupt": 98,
    "acl-failed": 99,
    "om-no-detections": 100,
    "om-differs": 101,
    "release-invalid": 102,
    "release-damaged": 103,
    "key-missing": 104,
    "key-invalid": 105,
    "release-unsigned": 106,
    "signature-invalid": 107,
    "report-unwritable": 110,
    "permission-denied": 111,
}

# Errors of programs that run without the tool, and the code that each ends with; None where the program continues and
# ends with a code of its own.
ELSEWHERE: dict[str, int | None] = {
    "wheel-mismatch": 1,  # an ImportError
    "cann-sim-config": 90,
    "cann-sim-mixed-trees": 90,  # a shell that sources set_env.sh, and `python -m cann_sim env`: 1
    "cann-sim-torch-npu": None,  # `python -m cann_sim check`: 1
    "cann-sim-report": 1,
    "cann-sim-counters": None,
    "cann-sim-msprof": 1,
}


class AscendetError(Exception):
    """A failure that the user can act on.

    Parameters
    ----------
    name
        Kebab-case key of `EXIT_CODES`.
    what
        One sentence that says what is wrong. For `usage` it has the form "X must be …".
    expected, found
        What was expected and what was found, if that applies.
    hint
        The next command to type, or the setting to change.
    """

    def __init__(
        self, name: str, what: str, *, expected: str | None = None, found: str | None = None, hint: str
    ) -> None:
        if name not in EXIT_CODES:
            raise KeyError(f"{name!r} is not in errors.EXIT_CODES")
        super().__init__(f"{name}: {what}")
        self.name = name
        self.what = what
        self.expected = expected
        self.found = found
        self.hint = hint

    @property
    def exit_code(self) -> int:
        """The process's exit code for this error."""
        return EXIT_CODES[self.name]

    def render(self, *, colour: bool = False) -> str:
        """Return the error as text for a terminal, with a newline at the end.

        >>> print(AscendetError("usage", "no such device", found="9", hint="make doctor").render(), end="")
        error[usage]: no such device
          found:    9
          next:     make doctor
        """
        head = f"error[{self.name}]:"
        if colour:
            head = f"\x1b[1;31m{head}\x1b[0m"
        lines = [f"{head} {self.what}"]
        for label, text in (("expected:", self.expected), ("found:", self.found), ("next:", self.hint)):
            if text is not None:
                first, *rest = text.splitlines() or [""]
                lines.append(f"  {label:<9} {first}")
                lines += [f"{'':12}{line}" for line in rest]
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, text: str) -> AscendetError | None:
        r"""Return the error that a program rendered at the end of `text`, its output, or None.

        >>> error = AscendetError.read("a line\nerror[usage]: no device\n  found:    8\n            9\n  next:     x\n")
        >>> error.name, error.what, error.expected, error.found, error.hint
        ('usage', 'no device', None, '8\n9', 'x')
        >>> AscendetError.read("error[usage]: no device\n  next:     x\nTraceback (most recent call last):")
        """
        found = re.search(r"^error\[([a-z0-9-]+)\]: (.*)((?:\n  .*)*)\s*\Z", text, re.MULTILINE)
        if not found or found[1] not in EXIT_CODES:
            return None
        fields: dict[str, list[str]] = {}
        label = ""
        for line in found[3].splitlines()[1:]:
            label = line[2:12].strip() or label
            fields.setdefault(label, []).append(line[12:])
        texts = {label: "\n".join(lines) for label, lines in fields.items()}
        return cls(
            found[1],
            found[2],
            expected=texts.get("expected:"),
            found=texts.get("found:"),
            hint=texts.get("next:", ""),
        )
