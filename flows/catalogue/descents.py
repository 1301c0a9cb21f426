r"""The descents: a row for every class of ``flows.descents``.

torch's optimiser in the row is that on the same gradients: of a mini-batch descent, those of the mini-batches drawn.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from flows.catalogue.rows import BATCH, BATCHES, EXAMPLES, STAGES, Cost, DescentRow, Example, SGDSettings, TorchForm
from flows.descents.controlled import ControlledGradientDescent, ControlledMomentumDescent
from flows.descents.drift_adjusted import DriftAdjustedDescent, StochasticDriftAdjustedDescent
from flows.descents.gradient import GradientDescent, HeavyBall
from flows.descents.incremental import IncrementalGradientDescent
from flows.descents.momentum import Nesterov, ScaledHeavyBall, ScaledNesterov
from flows.descents.noisy import NoisyGradientDescent
from flows.descents.optimizer import OptimizerDescent
from flows.descents.runge_kutta import RungeKuttaDescent
from flows.descents.scheduled import ScheduledGradientDescent, ScheduledStochasticGradientDescent
from flows.descents.stochastic import StochasticGradientDescent
from flows.descents.stochastic_momentum import ScaledStochasticHeavyBall, StochasticHeavyBall
from flows.descents.svag import SVAG
from flows.descents.svrg import SVRG
from flows.schedules import CosineSchedule
from flows.series import runge_kutta
from landscapes.noise import IsotropicNoise, MinibatchNoise

MOMENTUM, FRICTION, SIZE = 0.2, 1.0, 2  # β, μ and b of the examples
EXTRAGRADIENT = runge_kutta([[0, 0], [1, 0]], [0, 1])
"""The Runge–Kutta method of the examples, of order 1."""
HALF_RATE = CosineSchedule(4.0, final=0.5)
"""The schedule of the examples."""

PLAIN = TorchForm(
    "SGD(lr)",
    "SGD(lr=h)",
    "h = lr",
    lambda descent: SGDSettings(descent.h),
    lambda given: None if given.momentum else {"h": given.rate},
)


def fixed_momentum(nesterov: bool) -> TorchForm:
    """Momentum in torch's own parameters: h = lr, or (1 − τ)lr with dampening τ, and β = momentum in (0, 1)."""

    def arguments(given: SGDSettings) -> dict[str, float] | None:
        ours = given.nesterov == nesterov and 0 < given.momentum < 1
        return {"h": given.rate, "momentum": given.momentum} if ours else None

    def settings(descent: Any) -> SGDSettings:
        dampening = getattr(descent, "dampening", 0.0)  # of HeavyBall only
        return SGDSettings(descent.h, descent.momentum, nesterov and descent.momentum > 0, dampening)

    return TorchForm(
        f"SGD(lr, momentum=β{', nesterov=True' if nesterov else ''})",
        f"SGD(lr=h, momentum=β{', nesterov=True' if nesterov else ''})",
        "h = lr",
        settings,
        arguments,
    )


def scaled_momentum(nesterov: bool) -> TorchForm:
    """Momentum with friction: h = √lr, μ = (1 − β)/√lr, 0 < β ≤ 1."""

    def settings(descent: Any) -> SGDSettings:
        momentum = 1 - descent.h * descent.friction
        return SGDSettings(descent.h**2, momentum, nesterov and momentum > 0)

    def arguments(given: SGDSettings) -> dict[str, float] | None:
        if given.nesterov != nesterov or not 0 < given.momentum <= 1:
            return None
        h = math.sqrt(given.rate)
        return {"h": h, "friction": (1 - given.momentum) / h}

    return TorchForm(
        f"SGD(lr, momentum=β{', nesterov=True' if nesterov else ''})",
        f"SGD(lr=h², momentum=1 − hμ{', nesterov=True' if nesterov else ''})",
        "h = √lr, μ = (1 − β)/√lr",
        settings,
        arguments,
        exact=False,
        caveat="its θ is the literature's x; torch's, the point of the gradient, is x + hβv" if nesterov else "",
    )


def halves(landscape: Any) -> tuple[torch.Tensor, ...]:
    """Two fixed batches of a finite sum, in the given order."""
    return torch.arange(landscape.size).split(-(-landscape.size // 2))


def one(build: Any, cost: Cost) -> dict[str, Example]:
    """The only example of a row."""
    return {"": Example(build, cost)}


GRADIENT = Cost(1)
MINIBATCH = Cost(BATCH / EXAMPLES)
LI_2017 = "Li, Tai & E 2017, arXiv 1511.06251"
ROSCA = "Rosca et al. 2023, arXiv 2302.01952"

GRADIENT_DESCENT = DescentRow(GradientDescent, one(GradientDescent, GRADIENT), "θ", "Cauchy 1847", torch=PLAIN)
HEAVY_BALL = DescentRow(
    HeavyBall,
    one(lambda f, h: HeavyBall(f, h, MOMENTUM), GRADIENT),
    "θ, buffer p",
    "Polyak 1964",
    torch=fixed_momentum(nesterov=False),
)
NESTEROV = DescentRow(
    Nesterov,
    one(lambda f, h: Nesterov(f, h, MOMENTUM), GRADIENT),
    "θ, buffer p",
    "Nesterov 1983; Sutskever et al. 2013",
    torch=fixed_momentum(nesterov=True),
)
SCALED_HEAVY_BALL = DescentRow(
    ScaledHeavyBall,
    one(lambda f, h: ScaledHeavyBall(f, h, FRICTION), GRADIENT),
    "x, velocity v",
    "Polyak 1964",
    "h = √lr",
    torch=scaled_momentum(nesterov=False),
)
SCALED_NESTEROV = DescentRow(
    ScaledNesterov,
    one(lambda f, h: ScaledNesterov(f, h, FRICTION), GRADIENT),
    "x, velocity v",
    "Nesterov 1983; Sutskever et al. 2013",
    "h = √lr",
    torch=scaled_momentum(nesterov=True),
)
INCREMENTAL = DescentRow(
    IncrementalGradientDescent,
    one(
        lambda f, h: IncrementalGradientDescent(f, h, halves(f)),
        Cost(1 / BATCHES, note="batches that hold each example once"),
    ),
    "θ",
    "Bertsekas 2011",
    gradients="of batches in a fixed order",
    torch=PLAIN,
)
RUNGE_KUTTA = DescentRow(
    RungeKuttaDescent,
    one(lambda f, h: RungeKuttaDescent(f, h, EXTRAGRADIENT), Cost(STAGES)),
    "θ",
    "Hairer, Lubich & Wanner, ch. II",
    "h",
)
SCHEDULED = DescentRow(
    ScheduledGradientDescent,
    one(lambda f, h: ScheduledGradientDescent(f, h, HALF_RATE), GRADIENT),
    "θ, t",
    "definition",
    clock="t = sum of the rates",
    equals="SGD(lr=h) with a scheduler that sets lr to h·schedule(t)",
)
DRIFT_ADJUSTED = DescentRow(
    DriftAdjustedDescent,
    {
        "exact": Example(DriftAdjustedDescent, Cost(1, 1)),
        "difference": Example(lambda f, h: DriftAdjustedDescent(f, h, drift="difference"), Cost(2)),
    },
    "θ, last values of v, t",
    ROSCA,
    "h nominal",
    "t = sum of the rates",
    equals="SGD with lr set by flows.DriftAdjustedRate",
)
OPTIMIZER = DescentRow(
    OptimizerDescent,
    one(lambda f, h: OptimizerDescent(f, functools.partial(torch.optim.Adam, lr=h)), Cost(1, note="closures excepted")),
    "θ, the optimiser's state, t",
    "torch.optim",
    clock="t = sum of the first group's rates",
    equivariant=False,
    equals="any class of torch.optim",
)
SGD = DescentRow(
    StochasticGradientDescent,
    one(lambda f, h: StochasticGradientDescent(f, h, SIZE), MINIBATCH),
    "θ, order of the examples",
    "Robbins & Monro 1951",
    draws=True,
    gradients="of mini-batches",
    torch=PLAIN,
)
STOCHASTIC_HEAVY_BALL = DescentRow(
    StochasticHeavyBall,
    one(lambda f, h: StochasticHeavyBall(f, h, MOMENTUM, SIZE), MINIBATCH),
    "θ, buffer p, order of the examples",
    "Polyak 1964",
    draws=True,
    gradients="of mini-batches",
    torch=fixed_momentum(nesterov=False),
)
SCALED_STOCHASTIC_HEAVY_BALL = DescentRow(
    ScaledStochasticHeavyBall,
    one(lambda f, h: ScaledStochasticHeavyBall(f, h, FRICTION, SIZE), MINIBATCH),
    "x, velocity v, order of the examples",
    LI_2017,
    "h = √lr",
    draws=True,
    gradients="of mini-batches",
    torch=scaled_momentum(nesterov=False),
)
SCHEDULED_SGD = DescentRow(
    ScheduledStochasticGradientDescent,
    one(lambda f, h: ScheduledStochasticGradientDescent(f, h, SIZE, HALF_RATE), MINIBATCH),
    "θ, order of the examples, t",
    "definition",
    clock="t = sum of the rates",
    draws=True,
    equals="SGD(lr=h) on mini-batches with a scheduler that sets lr to h·schedule(t)",
)
NOISY = DescentRow(
    NoisyGradientDescent,
    {
        "isotropic": Example(lambda f, h: NoisyGradientDescent(f, h, IsotropicNoise(1.0, f.dimension)), GRADIENT),
        "mini-batch": Example(
            lambda f, h: NoisyGradientDescent(f, h, MinibatchNoise(f, SIZE)),
            Cost(1, note="other noises of the landscape add their own"),
        ),
    },
    "θ",
    "Xing et al. 2018, arXiv 1802.08770",
    draws=True,
    gradients="∇f + σ(θ)ξ",
    torch=PLAIN,
)
SVAG_ROW = DescentRow(
    SVAG,
    one(lambda f, h: SVAG(f, h, SIZE, 2), Cost(2 * BATCH / EXAMPLES, note="b/N gradients at level 1")),
    "θ, order of the examples",
    "Li, Malladi & Arora 2021, arXiv 2102.12470",
    clock="t = k·h/level",
    draws=True,
    equals="none of torch; at level 1 SGD(lr=h) on mini-batches",
)
SVRG_ROW = DescentRow(
    SVRG,
    one(
        lambda f, h: SVRG(f, h, SIZE, 3), Cost(1 + 2 * BATCH / EXAMPLES, limit=True, note="without 1 between snapshots")
    ),
    "θ, snapshot and its gradient, order of the examples",
    "Johnson & Zhang 2013, NeurIPS 26",
    draws=True,
)
STOCHASTIC_DRIFT_ADJUSTED = DescentRow(
    StochasticDriftAdjustedDescent,
    {
        "exact": Example(
            lambda f, h: StochasticDriftAdjustedDescent(f, h, SIZE), Cost(BATCH / EXAMPLES, BATCH / EXAMPLES)
        ),
        "difference": Example(
            lambda f, h: StochasticDriftAdjustedDescent(f, h, SIZE, drift="difference"), Cost(2 * BATCH / EXAMPLES)
        ),
    },
    "θ, last values of v, t, order of the examples",
    ROSCA,
    "h nominal",
    "t = sum of the rates",
    draws=True,
    equals="SGD on mini-batches with lr set by flows.DriftAdjustedRate",
)
CONTROLLED = DescentRow(
    ControlledGradientDescent,
    one(lambda f, h: ControlledGradientDescent(f, h, SIZE), MINIBATCH),
    "θ, step, rates, averages, order of the examples",
    LI_2017,
    "h = the largest lr",
    draws=True,
    equivariant=False,
    equals="none of torch (cSGD: a rate for each coordinate)",
)
CONTROLLED_MOMENTUM = DescentRow(
    ControlledMomentumDescent,
    one(lambda f, h: ControlledMomentumDescent(f, h, SIZE), MINIBATCH),
    "θ, step, momenta, averages, order of the examples",
    LI_2017,
    draws=True,
    equivariant=False,
    equals="none of torch (cMSGD: a momentum for each coordinate)",
)

DESCENTS: dict[str, DescentRow] = {
    row.name: row
    for row in (
        GRADIENT_DESCENT,
        HEAVY_BALL,
        NESTEROV,
        SCALED_HEAVY_BALL,
        SCALED_NESTEROV,
        RUNGE_KUTTA,
        INCREMENTAL,
        SCHEDULED,
        DRIFT_ADJUSTED,
        OPTIMIZER,
        SGD,
        STOCHASTIC_HEAVY_BALL,
        SCALED_STOCHASTIC_HEAVY_BALL,
        SCHEDULED_SGD,
        NOISY,
        SVAG_ROW,
        SVRG_ROW,
        STOCHASTIC_DRIFT_ADJUSTED,
        CONTROLLED,
        CONTROLLED_MOMENTUM,
    )
}
"""The rows of all descents by the name of the class."""
