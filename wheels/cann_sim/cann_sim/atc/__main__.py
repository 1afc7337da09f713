"""The simulated `atc`: its modes, what it prints, and how it exits."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import NoReturn

from cann_sim.atc import logs, modes
from cann_sim.atc.errors import AtcError, AtcErrors, UsageError, block
from cann_sim.atc.options import Options, parse, usage

FAILED = 255  # main's -1
INTERRUPTED = 130
FRAMEWORKS = {"0": "Caffe", "1": "MindSpore", "3": "TensorFlow"}


def main(words: list[str] | None = None) -> int:
    """Run ATC with the words of a command line (this process's if None) and return the exit code.

    Every result goes to stdout, as with the real tool: a line that the run succeeded with the warnings after it, or a
    line that it failed with the errors' blocks.
    """
    print("ATC start working now, please wait for a moment.", flush=True)
    warnings: list[AtcError] = []
    try:
        options = parse(sys.argv[1:] if words is None else words)
        if options["help"] == "true":
            print(usage())
            return 0
        logs.start(options["log"])
        logs.LOG.info("command line: %s", options.command)
        warnings = _run(options)
    except UsageError as error:
        print("\n".join(f"ERROR: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return _failed([AtcError("E19999", reason=f"The command line cannot be read: {error}.")])
    except AtcError as error:
        return _failed([error])
    except AtcErrors as errors:
        return _failed(errors.errors)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # a mistake of cann_sim; the real tool, too, has no other code for its own
        traceback.print_exc()
        return _failed([AtcError("E19999", reason=f"{type(error).__name__}: {error}.")])
    finally:
        logs.stop()
    print("...\nATC run success, welcome to the next use.")
    for warning in warnings:
        print(block(warning))
    print(flush=True)
    return 0


def _failed(errors: list[AtcError]) -> int:
    """Print errors, and return the exit code."""
    print("...\nATC run failed, Please check the detail log, Try 'atc --help' for more information")
    for error in errors:
        logs.LOG.error("%s", error)
        print(block(error))
    print(flush=True)
    return FAILED


def _run(options: Options) -> list[AtcError]:
    """Run the mode that was asked for and return its warnings."""
    if options["singleop"]:
        raise AtcError("SIM001", reason="--singleop is not simulated")
    if options["auto_tune_mode"]:
        reason = "it is gone from CANN; the tool AOE replaces it"
        raise AtcError("E10001", parameter="--auto_tune_mode", value=options["auto_tune_mode"], reason=reason)
    mode = options["mode"]
    if mode in ("5", "30"):
        raise AtcError("SIM001", reason=f"--mode={mode} is not simulated; 0, 1, 3 and 6 are")
    _check_framework(options)
    if mode == "6":
        modes.show_om(options)
        return []
    if mode == "1":
        modes.write_json(options)
        return []
    return modes.check_only(options) if mode == "3" else modes.make_om(options)


def _check_framework(options: Options) -> None:
    """Refuse other frameworks than ONNX by name."""
    framework = options["framework"]
    if framework == "-1":
        if options["mode"] in ("0", "3"):
            support = "0 (Caffe), 1 (MindSpore), 3 (TensorFlow) or 5 (ONNX)"
            raise AtcError("E10007", parameter="framework", support=support)
        return
    if framework == "0" and not options["weight"]:
        raise AtcError("E10008")
    if framework in FRAMEWORKS:
        reason = f"--framework={framework} ({FRAMEWORKS[framework]}) is not simulated; 5 (ONNX) is"
        raise AtcError("SIM001", reason=reason)


def _terminate(*_: object) -> NoReturn:
    """End on SIGTERM as on Ctrl-C: files that are not complete are removed."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
