"""SGD against its stochastic differential equations: python -m scripts.stochastic EXPERIMENT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from scripts.lab.command_line import guarded, parse
from scripts.stochastic.accuracy import Accuracy
from scripts.stochastic.escape import Escape
from scripts.stochastic.linear_scaling import LinearScaling
from scripts.stochastic.sampling import Sampling
from scripts.stochastic.svag import Svag
from scripts.stochastic.validity import Validity
from scripts.stochastic.weak_order import WeakOrder

Experiment = (
    Annotated[WeakOrder, tyro.conf.subcommand("weak-order")]
    | Annotated[Svag, tyro.conf.subcommand("svag")]
    | Annotated[Escape, tyro.conf.subcommand("escape")]
    | Annotated[Accuracy, tyro.conf.subcommand("accuracy")]
    | Annotated[Validity, tyro.conf.subcommand("validity")]
    | Annotated[LinearScaling, tyro.conf.subcommand("linear-scaling")]
    | Annotated[Sampling, tyro.conf.subcommand("sampling")]
)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about bad input."""
    experiment = parse(Experiment, arguments, f"python -m {__package__}", __doc__)
    return guarded(experiment.run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
