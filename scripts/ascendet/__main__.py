"""Entry point. It can be parsed by Python 3.6, so that an old Python gives a named error and not a SyntaxError."""

import sys

# The same as errors.EXIT_CODES["python-version"]: a Python that is too old cannot import errors.py.
PYTHON_VERSION_EXIT = 10


def main():  # type: () -> int
    """Check the interpreter's version, run the command line, and return the exit code."""
    if sys.version_info < (3, 11):
        sys.stderr.write(
            "error[python-version]: this Python is too old to run Ascendet\n"
            "  expected: Python 3.11\n"
            "  found:    Python %d.%d.%d (%s)\n"
            "  next:     make PYTHON=/path/to/python3.11 doctor\n"
            % (sys.version_info[:3] + (sys.executable,))
        )
        return PYTHON_VERSION_EXIT
    from ascendet import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
