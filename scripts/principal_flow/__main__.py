"""The principal-flow paper's experiments: python -m scripts.principal_flow EXPERIMENT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Union

import tyro

from scripts.lab.command_line import guarded, parse
from scripts.lab.experiment import Common
from scripts.principal_flow.drift import Drift
from scripts.principal_flow.edge import Edge
from scripts.principal_flow.learning_rates import LearningRates
from scripts.principal_flow.one_step import OneStep
from scripts.principal_flow.spectrum import Spectrum
from scripts.principal_flow.toys import Escape, Quadratics, Saddles, Valleys

EXPERIMENTS: tuple[type[Common], ...] = (
    Quadratics,
    Valleys,
    Saddles,
    Escape,
    OneStep,
    Spectrum,
    Edge,
    Drift,
    LearningRates,
)

if TYPE_CHECKING:
    AnyExperiment = Common
else:
    AnyExperiment = Union[tuple(Annotated[kind, tyro.conf.subcommand(kind().name)] for kind in EXPERIMENTS)]  # noqa: UP007


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about bad input."""
    experiment = parse(AnyExperiment, arguments, f"python -m {__package__}", __doc__)
    return guarded(experiment.run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
