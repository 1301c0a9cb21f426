"""Implicit against explicit regularisation on a network: python -m scripts.regularisation EXPERIMENT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from scripts.lab.command_line import guarded, parse
from scripts.regularisation.full_batch import FullBatch
from scripts.regularisation.mini_batch import MiniBatch

Experiment = (
    Annotated[FullBatch, tyro.conf.subcommand("full-batch")] | Annotated[MiniBatch, tyro.conf.subcommand("mini-batch")]
)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about bad input."""
    experiment = parse(Experiment, arguments, f"python -m {__package__}", __doc__)
    return guarded(experiment.run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
