"""Parts shared by the command lines: typed options, one line for every error, devices and threads."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, Union

import torch
import tyro

from landscapes.errors import check_count
from landscapes.references import resolve_references

from .. import STOPPED

DTYPES = {"float64": torch.float64, "float32": torch.float32}


class Experiment(Protocol):
    """An experiment as the registry of its family lists it: a frozen dataclass of options."""

    def run(self) -> None:
        """Measure, print and plot."""
        ...


def run_one_of(
    experiments: Mapping[str, str | type[Experiment]], arguments: Sequence[str], package: str, description: str
) -> int:
    """Run the experiment of ``package`` named by the first argument, its fields as options; returns the exit status."""

    def run() -> None:
        kinds = resolve_references(experiments, package)
        form: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items())]  # noqa: UP007
        parse(form, arguments, f"python -m {package}", description).run()

    return exit_status_of(run)


def parse(form: Any, arguments: Sequence[str], prog: str, description: str) -> Any:
    """Parse a typed form from the command line; on invalid options print one line and exit with status 2."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                form,
                args=arguments,
                prog=prog,
                description=description,
                config=(
                    tyro.conf.CascadeSubcommandArgs,
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.OmitSubcommandPrefixes,
                ),
            )
    except SystemExit as stop:
        if stop.code:
            print(f"error: {one_line(messages.getvalue())}", file=sys.stderr)
        raise


def one_line(text: str) -> str:
    """The text inside a box, on one line, without the advice below the rule."""
    inside = " ".join(re.sub(r"[│╭╮╰╯]|─+", " ", text).split())
    return re.split(r"(?: -{8,})? (?:Arguments are applied|Perhaps you meant|For full helptext)", inside)[0]


def exit_status_of(run: Callable[[], None]) -> int:
    """Run and return the exit status: 0, or 2 after one line about invalid input; a warning is printed as one line.

    An interrupt ends with one line and 130, the shell's status of a process that Ctrl-C has ended: parts on disk are
    whole, so that the same command goes on after them.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
            run()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, closed it
        # Python flushes stdout once more at exit, which would raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError, OSError) as error:
        print(f"error: {(str(error) or type(error).__name__).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


def use_threads(threads: int | None) -> None:
    """Set the number of CPU threads of torch; None keeps torch's default."""
    if threads is not None:
        torch.set_num_threads(check_count("threads", threads))


def check_device(device: str) -> None:
    """Raise ValueError unless torch can allocate a tensor on the device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device!r} is not available: {str(error).splitlines()[0]}") from error
