r"""The stochastic flows: equations of SGD and of momentum, wrappers, Langevin equations and Ornstein–Uhlenbeck laws.

Costs are those of an evaluation with its noise (``rate``); weak orders hold on a finite time for smooth observables.
"""

from __future__ import annotations

from typing import Any

import torch

from flows.catalogue.descents import (
    FRICTION,
    LI_2017,
    MOMENTUM,
    NOISY,
    SCALED_HEAVY_BALL,
    SCALED_STOCHASTIC_HEAVY_BALL,
    SCHEDULED_SGD,
    SGD,
    SIZE,
    STOCHASTIC_HEAVY_BALL,
    SVAG_ROW,
)
from flows.catalogue.rows import ORDER, Cost, Example, FlowRow
from flows.flow import Flow
from flows.models.langevin import LangevinFlow, UnderdampedLangevinFlow
from flows.models.stochastic import NoisyModifiedEquation, StochasticModifiedEquation, Stratonovich
from flows.models.stochastic_momentum import MomentumModifiedEquation, NoisyMomentumEquation
from flows.models.torch_clock import TorchMomentumEquation
from flows.momentum import momentum_from_torch
from flows.steady.ornstein_uhlenbeck import MomentumOrnsteinUhlenbeck, OrnsteinUhlenbeck
from landscapes.noise import AnalyticNoise, IsotropicNoise, MinibatchNoise

TEMPERATURE = 0.05
FINITE_TIME = "finite times and smooth observables; at order 2 the stationary law is no closer"
ISOTROPIC = "; with dt = h Euler's method on it is NoisyGradientDescent, isotropic noise of variance 2T/h"


def isotropic(f: Any) -> IsotropicNoise:
    """Isotropic noise of variance 1."""
    return IsotropicNoise(1.0, f.dimension)


def waves(theta: torch.Tensor) -> torch.Tensor:
    """The root diag(1 + ½ sin θ_i) of a diagonal noise, (..., d, d)."""
    return torch.diag_embed(1 + torch.sin(theta) / 2)


def linear(f: Any, h: float) -> OrnsteinUhlenbeck:
    """F the Hessian at the origin, C = hI."""
    hessian, identity = origin(f)
    return OrnsteinUhlenbeck(hessian, h * identity, torch.zeros(f.dimension, dtype=torch.float64))


def linear_momentum(f: Any, h: float) -> MomentumOrnsteinUhlenbeck:
    """F = [[0, −I], [H, μI]] with the Hessian at the origin, noise hI on v."""
    hessian, identity = origin(f)
    nothing = torch.zeros_like(identity)
    drift = torch.cat([torch.cat([nothing, -identity], -1), torch.cat([hessian, FRICTION * identity], -1)])
    noise = torch.block_diag(nothing, h * identity)
    root = torch.cat([nothing, h**0.5 * identity])
    return MomentumOrnsteinUhlenbeck(drift, noise, torch.zeros(2 * f.dimension, dtype=torch.float64), root)


def origin(f: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The Hessian at the origin and the identity, (d, d) float64."""
    hessian = f.hessian(torch.zeros(f.dimension, dtype=torch.float64))
    return hessian, torch.eye(f.dimension, dtype=torch.float64)


def momentum(f: Any, h: float, order: int) -> NoisyMomentumEquation:
    """Scaled heavy ball with isotropic noise."""
    return NoisyMomentumEquation(f, h, FRICTION, isotropic(f), order)


def torch_momentum(f: Any, h: float, order: int) -> Flow:
    """The equation of SGD with momentum on torch's clock."""
    return momentum_from_torch(f, h, MOMENTUM, batch_size=SIZE, order=order)[1]


STOCHASTIC_MODIFIED = FlowRow(
    StochasticModifiedEquation,
    {
        "order 1": Example(lambda f, h: StochasticModifiedEquation(f, h, SIZE), Cost(1), "general"),
        "order 2": Example(lambda f, h: StochasticModifiedEquation(f, h, SIZE, 2), Cost(2, 1), "general"),
        "epoch": Example(lambda f, h: StochasticModifiedEquation(f, h, SIZE, 1, "epoch"), Cost(1), "general"),
    },
    SGD,
    local=ORDER + 1,
    whole=ORDER,
    valid=FINITE_TIME,
    source=f"{LI_2017}, and 2019, JMLR 20(40)",
    also=(SCHEDULED_SGD, SVAG_ROW),
)
NOISY_MODIFIED = FlowRow(
    NoisyModifiedEquation,
    {
        "order 1": Example(lambda f, h: NoisyModifiedEquation(f, h, isotropic(f)), Cost(1), "additive"),
        "order 2": Example(lambda f, h: NoisyModifiedEquation(f, h, isotropic(f), 2), Cost(1, 1), "additive"),
        "diagonal": Example(
            lambda f, h: NoisyModifiedEquation(f, h, AnalyticNoise(f.dimension, f.dimension, waves, "diagonal")),
            Cost(1),
            "diagonal",
        ),
        "mini-batch": Example(lambda f, h: NoisyModifiedEquation(f, h, MinibatchNoise(f, SIZE)), Cost(2), "general"),
    },
    NOISY,
    local=ORDER + 1,
    whole=ORDER,
    valid=FINITE_TIME,
    source=f"{LI_2017}, and 2019, JMLR 20(40)",
)
STRATONOVICH = FlowRow(
    Stratonovich,
    {
        "general": Example(
            lambda f, h: Stratonovich(StochasticModifiedEquation(f, h, SIZE)),
            Cost(None, note="the flow's own, and its ito_correction"),
            "general",
        ),
        "additive": Example(
            lambda f, h: Stratonovich(NoisyModifiedEquation(f, h, isotropic(f))),
            Cost(1),
            "additive",
        ),
    },
    None,
    local=None,
    whole=None,
    valid="where the flow inside is; for additive noise both senses agree",
    source="Kloeden & Platen 1992, ch. 4",
    reason="the flow inside, read in Stratonovich's sense; the descents' equations are Itô's",
)
MOMENTUM_MODIFIED = FlowRow(
    MomentumModifiedEquation,
    {
        "order 1": Example(lambda f, h: MomentumModifiedEquation(f, h, FRICTION, SIZE), Cost(1), "general"),
        "order 2": Example(lambda f, h: MomentumModifiedEquation(f, h, FRICTION, SIZE, 2), Cost(2, 1), "general"),
    },
    SCALED_STOCHASTIC_HEAVY_BALL,
    local=ORDER + 1,
    whole=ORDER,
    valid=f"{FINITE_TIME}; hμ < 1 and h²λ < (1 + √β)², β = 1 − hμ",
    source=f"{LI_2017}, and 2019, JMLR 20(40)",
)
NOISY_MOMENTUM = FlowRow(
    NoisyMomentumEquation,
    {
        "order 1": Example(lambda f, h: momentum(f, h, 1), Cost(1), "additive"),
        "order 2": Example(lambda f, h: momentum(f, h, 2), Cost(1, 1), "additive"),
        "mini-batch": Example(
            lambda f, h: NoisyMomentumEquation(f, h, FRICTION, MinibatchNoise(f, SIZE)), Cost(2), "general"
        ),
    },
    SCALED_HEAVY_BALL,
    local=ORDER + 1,
    whole=ORDER,
    noisy="∇f + σ(θ)ξ",
    valid=f"{FINITE_TIME}; hμ < 1 and h²λ < (1 + √β)², β = 1 − hμ",
    source=f"{LI_2017}, and 2019, JMLR 20(40)",
)
LANGEVIN = FlowRow(
    LangevinFlow,
    {"": Example(lambda f, h: LangevinFlow(f, TEMPERATURE), Cost(1), "additive")},
    None,
    local=None,
    whole=None,
    valid="T > 0; a stationary law where exp(−f/T) can be integrated",
    source="Pavliotis 2014, ch. 4",
    reason=f"a heat bath, no optimiser{ISOTROPIC}",
)
UNDERDAMPED = FlowRow(
    UnderdampedLangevinFlow,
    {"": Example(lambda f, h: UnderdampedLangevinFlow(f, TEMPERATURE, FRICTION), Cost(1), "additive")},
    None,
    local=None,
    whole=None,
    valid="T > 0, γ > 0; a stationary law where exp(−f/T) can be integrated",
    source="Pavliotis 2014, ch. 6",
    reason="a heat bath with inertia, no optimiser",
)
ORNSTEIN_UHLENBECK = FlowRow(
    OrnsteinUhlenbeck,
    {"": Example(linear, Cost(0), "additive")},
    None,
    local=None,
    whole=None,
    valid="near a minimum, while H and the noise are those at it; dense, up to 2,000 parameters",
    source="Chaudhari & Soatto 2018, arXiv 1710.11029",
    reason="any linear drift; ornstein_uhlenbeck_at(order=p) makes SGD's, StochasticModifiedEquation at a minimum",
)
MOMENTUM_ORNSTEIN_UHLENBECK = FlowRow(
    MomentumOrnsteinUhlenbeck,
    {"": Example(linear_momentum, Cost(0), "additive")},
    None,
    local=None,
    whole=None,
    valid="near a minimum, while H and the noise are those at it; dense, up to 2,000 parameters",
    source="Chaudhari & Soatto 2018, arXiv 1710.11029",
    reason="any linear drift; momentum_ornstein_uhlenbeck_at(order=p) makes that of scaled momentum at a minimum",
)
TORCH_MOMENTUM_EQUATION = FlowRow(
    TorchMomentumEquation,
    {
        "order 1": Example(lambda f, h: torch_momentum(f, h, 1), Cost(1), "general"),
        "order 2": Example(lambda f, h: torch_momentum(f, h, 2), Cost(2, 1), "general"),
    },
    None,
    local=None,
    whole=None,
    clock_of=STOCHASTIC_HEAVY_BALL,
    valid="where the equation inside is",
    source=f"{LI_2017}, and 2019, JMLR 20(40); the conversion derived here",
    reason="MomentumModifiedEquation on torch's clock; its orders are those, in √lr at a fixed μ",
)

STOCHASTIC = (
    STOCHASTIC_MODIFIED,
    NOISY_MODIFIED,
    STRATONOVICH,
    MOMENTUM_MODIFIED,
    NOISY_MOMENTUM,
    LANGEVIN,
    UNDERDAMPED,
    ORNSTEIN_UHLENBECK,
    MOMENTUM_ORNSTEIN_UHLENBECK,
    TORCH_MOMENTUM_EQUATION,
)
"""The rows of the stochastic flows."""
