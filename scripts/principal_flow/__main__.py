"""The principal-flow paper's experiments: python -m scripts.principal_flow EXPERIMENT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..lab.command_line import Experiment, run_one_of
from .drift import DriftExperiment
from .edge import Edge
from .learning_rates import LearningRates
from .one_step import OneStepExperiment
from .spectrum import SpectrumExperiment
from .toys import EscapeExperiment, Quadratics, Saddles, Valleys

EXPERIMENTS: dict[str, str | type[Experiment]] = {
    "quadratics": Quadratics,
    "valleys": Valleys,
    "saddles": Saddles,
    "escape": EscapeExperiment,
    "one-step": OneStepExperiment,
    "spectrum": SpectrumExperiment,
    "edge": Edge,
    "drift": DriftExperiment,
    "learning-rates": LearningRates,
}
"""Experiments by the name of their subcommand; a new one is one line here (docs/extending.md)."""


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""
    return run_one_of(EXPERIMENTS, arguments, __package__, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
