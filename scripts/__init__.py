"""Experiments, run from the checkout as python -m scripts.NAME."""

import sys
from types import TracebackType

STOPPED = "stopped; the same command goes on"
"""The last line of a command that Ctrl-C has ended, with the exit status 130."""


def end_command(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last resort for Ctrl-C while modules are imported: one line and 130; a traceback for other errors."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print(STOPPED, file=sys.stderr)
    sys.exit(130)


if sys.argv[:1] == ["-m"]:  # python -m scripts.NAME, whose modules are still to be imported
    sys.excepthook = end_command
