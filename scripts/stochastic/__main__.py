"""SGD against its stochastic differential equations: python -m scripts.stochastic EXPERIMENT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scripts.lab.command_line import Experiment, run_one_of
from scripts.stochastic.accuracy import Accuracy
from scripts.stochastic.escape import Escape
from scripts.stochastic.linear_scaling import LinearScaling
from scripts.stochastic.sampling import Sampling
from scripts.stochastic.svag import Svag
from scripts.stochastic.validity import Validity
from scripts.stochastic.weak_order import WeakOrder

EXPERIMENTS: dict[str, str | type[Experiment]] = {
    "weak-order": WeakOrder,
    "svag": Svag,
    "escape": Escape,
    "accuracy": Accuracy,
    "validity": Validity,
    "linear-scaling": LinearScaling,
    "sampling": Sampling,
}
"""Experiments by the name of their subcommand; one more is a line here (docs/extending.md)."""


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about bad input."""
    return run_one_of(EXPERIMENTS, arguments, "python -m scripts.stochastic", __doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
