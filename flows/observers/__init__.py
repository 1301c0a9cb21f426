r"""Observers: what a run shows while it goes on, in ``integrate``, ``descend`` and a user's own loop.

An observer has a ``name``, an ``every``, and is called with (k, t, θ); it returns named tensors of one shape a run. One
that shows a single quantity calls it by its name, one that shows several by its name and theirs: "top eigenvalues".
``LandscapeObserver`` is the base of all that ask a landscape: they count what they ask, and ``observer_costs`` of a
trajectory shows it.

    top = TopEigenpairs(net, count=4)                       # shared: eigenpairs are found once a state
    observers = [Loss(net), top, StabilityCoefficients(top, h), GradientPredictions(top, h)]
    run = descend(GradientDescent(net, h), net.theta0, 100, observers=observers)
    run.observations["stability regimes"], run.observer_costs["top"]["hvp"]

Curvature is that of real θ: at complex θ (``PrincipalFlow`` on its complex branch) these observers raise
UnsupportedError. A NaN in θ or in a product gives NaN.
"""

from flows.engines.recorder import LandscapeObserver, Observer
from flows.observers.basic import Checkpoint, GradientNorm, Loss
from flows.observers.curvature import REGIMES, GradientCurvature, Sharpness, StabilityCoefficients, TopEigenpairs
from flows.observers.drift import Drift
from flows.observers.evaluation import Evaluation
from flows.observers.predictions import FROZEN_MODELS, GradientPredictions

__all__ = [
    "FROZEN_MODELS",
    "REGIMES",
    "Checkpoint",
    "Drift",
    "Evaluation",
    "GradientCurvature",
    "GradientNorm",
    "GradientPredictions",
    "LandscapeObserver",
    "Loss",
    "Observer",
    "Sharpness",
    "StabilityCoefficients",
    "TopEigenpairs",
]
