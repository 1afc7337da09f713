"""Entry point. It parses on Python 3.6+, so that an old one ends in a named error, not in a SyntaxError."""

import sys

# errors.EXIT_CODES["python-version"]; written out because a Python that is too old cannot import errors.py.
PYTHON_VERSION_EXIT = 10


def main():  # type: () -> int
    """Check the interpreter, then hand over to the command line."""
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
