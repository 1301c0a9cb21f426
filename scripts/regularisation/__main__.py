"""Implicit and explicit regularisation of a network: python -m scripts.regularisation EXPERIMENT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..lab.command_line import Experiment, run_one_of
from .full_batch import FullBatch
from .mini_batch import MiniBatch

EXPERIMENTS: dict[str, str | type[Experiment]] = {
    "full-batch": FullBatch,
    "mini-batch": MiniBatch,
}
"""Experiments by the name of their subcommand; a new one is one line here (docs/extending.md)."""


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""
    return run_one_of(EXPERIMENTS, arguments, __package__, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
