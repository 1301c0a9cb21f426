"""SGD compared with its stochastic differential equations: python -m scripts.stochastic EXPERIMENT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..lab.command_line import Experiment, run_one_of
from .accuracy import Accuracy
from .escape import Escape
from .linear_scaling import LinearScaling
from .sampling import SamplingExperiment
from .svag import Svag
from .validity import Validity
from .weak_order import WeakOrderExperiment

EXPERIMENTS: dict[str, str | type[Experiment]] = {
    "weak-order": WeakOrderExperiment,
    "svag": Svag,
    "escape": Escape,
    "accuracy": Accuracy,
    "validity": Validity,
    "linear-scaling": LinearScaling,
    "sampling": SamplingExperiment,
}
"""Experiments by the name of their subcommand; a new one is one line here (docs/extending.md)."""


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""
    return run_one_of(EXPERIMENTS, arguments, __package__, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
