"""The spectrum of gradient noise on networks: python -m scripts.noise_spectrum EXPERIMENT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..lab.command_line import Experiment, run_one_of
from .networks import Networks
from .rule import Rule
from .tasks import Tasks

EXPERIMENTS: dict[str, str | type[Experiment]] = {
    "networks": Networks,
    "tasks": Tasks,
    "rule": Rule,
}
"""Experiments by the name of their subcommand; a new one is one line here (docs/extending.md)."""


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""
    return run_one_of(EXPERIMENTS, arguments, __package__, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
