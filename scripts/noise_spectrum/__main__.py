"""The spectrum of gradient noise on networks: python -m scripts.noise_spectrum EXPERIMENT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from scripts.lab.command_line import guarded, parse
from scripts.noise_spectrum.networks import Networks
from scripts.noise_spectrum.rule import Rule
from scripts.noise_spectrum.tasks import Tasks

Experiment = (
    Annotated[Networks, tyro.conf.subcommand("networks")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Rule, tyro.conf.subcommand("rule")]
)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about bad input."""
    experiment = parse(Experiment, arguments, f"python -m {__package__}", __doc__)
    return guarded(experiment.run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
