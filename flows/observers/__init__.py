r"""Observers: quantities recorded along a run, by ``integrate``, ``descend`` or a user's own loop.

An observer has a ``name``, an ``every``, and is called with (k, t, θ); it returns named tensors, of the same shapes at
every call of a run. A single quantity has the observer's name; of several, each has the observer's name and its own:
"top eigenvalues". ``LandscapeObserver`` is the base of observers that evaluate a landscape: they count evaluations,
which the trajectory has as ``observer_costs``.

    top = TopEigenpairs(net, count=4)                       # shared: eigenpairs are computed once per state
    observers = [Loss(net), top, StabilityCoefficients(top, h), GradientPredictions(top, h)]
    run = descend(GradientDescent(net, h), net.theta0, 100, observers=observers)
    run.observations["stability regimes"], run.observer_costs["top"]["hvp"]

Curvature needs real θ: at complex θ (``PrincipalFlow`` on its complex branch) its observers raise UnsupportedError. A
NaN in θ or in a product gives NaN.
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
