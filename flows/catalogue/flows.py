r"""The deterministic flows and, from ``stochastic``, the stochastic ones: a row for every flow class of ``flows``.

λ is an eigenvalue of the Hessian, h the flow's own (the row's unit of h), β the momentum, μ the friction, p the order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flows.catalogue.descents import (
    DRIFT_ADJUSTED,
    EXTRAGRADIENT,
    FRICTION,
    GRADIENT_DESCENT,
    HEAVY_BALL,
    INCREMENTAL,
    MOMENTUM,
    NESTEROV,
    ROSCA,
    RUNGE_KUTTA,
    SCALED_HEAVY_BALL,
    SCALED_NESTEROV,
    SCHEDULED,
    SCHEDULED_SGD,
    SVAG_ROW,
    halves,
)
from flows.catalogue.rows import BATCHES, DIMENSION, KRYLOV, ORDER, THIRD, Build, Cost, Example, FlowRow
from flows.catalogue.stochastic import STOCHASTIC
from flows.flow import Flow
from flows.models.epoch import EpochFlow
from flows.models.gradient import GradientFlow
from flows.models.modified import ModifiedFlow, ModifiedRungeKuttaFlow
from flows.models.momentum_modified import (
    ModifiedHeavyBallFlow,
    ModifiedNesterovFlow,
    ReducedHeavyBallFlow,
    ReducedNesterovFlow,
)
from flows.models.momentum_principal import HeavyBallPrincipalFlow, NesterovPrincipalFlow
from flows.models.principal import PrincipalFlow
from flows.models.torch_clock import TorchMomentumFlow
from flows.models.truncated import TruncatedPrincipalFlow
from flows.momentum import momentum_from_torch

HAIRER = "Hairer, Lubich & Wanner, ch. IX"
OF_GRADIENT = (Cost(1), Cost(1, 1), Cost(1, 2, 1), Cost(1, 3, 2))
"""Costs of the modified flow of gradient descent, and of momentum at fixed β, of orders 1 to 4."""


def orders(build: Callable[[Any, float, int], Flow], costs: tuple[Cost, ...]) -> dict[str, Example]:
    """Examples of a family, ``build`` (landscape, h, p), of the orders p = 1, 2, … that ``costs`` are of."""

    def member(p: int) -> Build:
        return lambda f, h: build(f, h, p)

    return {f"order {p}": Example(member(p), cost) for p, cost in enumerate(costs, start=1)}


def spectral(build: Callable[..., Flow], spaces: int = 1) -> dict[str, Example]:
    """Examples of a principal flow: dense and by Krylov ``spaces``, complex and real."""
    limited = Cost(1, spaces * KRYLOV, limit=True)
    grown = {"krylov": 40, "tolerance": 1e-12}
    return {
        "dense": Example(build, Cost(1, DIMENSION)),
        "krylov": Example(lambda f, h: build(f, h, **grown), limited),
        "real": Example(lambda f, h: build(f, h, branch="real"), Cost(1, DIMENSION)),
        "real, krylov": Example(lambda f, h: build(f, h, **grown, branch="real"), limited),
    }


GRADIENT_FLOW = FlowRow(
    GradientFlow,
    {"": Example(lambda f, h: GradientFlow(f), Cost(1))},
    GRADIENT_DESCENT,
    local=2,
    whole=1,
    valid="small hλ; descent oscillates from hλ = 1 on and diverges beyond 2, this flow does neither",
    source="definition",
    also=(SCHEDULED, SCHEDULED_SGD, SVAG_ROW, DRIFT_ADJUSTED),
)
MODIFIED = FlowRow(
    ModifiedFlow,
    orders(ModifiedFlow, (*OF_GRADIENT, Cost(1, 4, 4, 3), Cost(1, 6, 6, 5))),
    GRADIENT_DESCENT,
    local=ORDER + 1,
    whole=ORDER,
    valid="|hλ| < 1, where the series converges; f with p + 1 continuous derivatives",
    source=f"{HAIRER}; order 2: Barrett & Dherin 2021, arXiv 2009.11162",
)
MODIFIED_RUNGE_KUTTA = FlowRow(
    ModifiedRungeKuttaFlow,
    orders(lambda f, h, p: ModifiedRungeKuttaFlow(f, h, p, EXTRAGRADIENT), OF_GRADIENT[:3]),
    RUNGE_KUTTA,
    local=ORDER + 1,
    whole=ORDER,
    valid="|hλ| below the least zero of the stability function; up to the method's order it is gradient flow",
    source=HAIRER,
)
EPOCH = FlowRow(
    EpochFlow,
    {"": Example(lambda f, h: EpochFlow(f, h, halves(f)), Cost(1, 1, note="batches that hold each example once"))},
    INCREMENTAL,
    local=3,
    whole=2,
    span=BATCHES,
    valid="hλ < 1/m for m batches (an estimate), at the ends of epochs; within an epoch the error is O(h)",
    source="derived here; Smith et al. 2021, arXiv 2101.12176 for the mean over orders",
)
PRINCIPAL = FlowRow(
    PrincipalFlow,
    {
        **spectral(PrincipalFlow),
        "third order": Example(lambda f, h: PrincipalFlow(f, h, third_order=True), Cost(1, DIMENSION, 1)),
        "third order, real, krylov": Example(
            lambda f, h: PrincipalFlow(f, h, 40, 1e-12, third_order=True, branch="real"),
            Cost(1, KRYLOV, 1, limit=True),
        ),
    },
    GRADIENT_DESCENT,
    local=3 + THIRD,
    whole=2 + THIRD,
    exact=True,
    valid="every hλ but 1, on quadratics exactly; complex beyond 1, where branch='real' keeps magnitudes, not signs",
    source=ROSCA,
)
TRUNCATED = FlowRow(
    TruncatedPrincipalFlow,
    {"": Example(lambda f, h: TruncatedPrincipalFlow(f, h, 1), Cost(1, None))},
    GRADIENT_DESCENT,
    local=2,
    whole=1,
    valid="real θ; the k largest modes as in PrincipalFlow, real branch; small hλ in all others",
    source=ROSCA,
)
HEAVY_BALL_PRINCIPAL = FlowRow(
    HeavyBallPrincipalFlow,
    spectral(lambda f, h, **options: HeavyBallPrincipalFlow(f, h, MOMENTUM, **options), spaces=2),
    HEAVY_BALL,
    local=3,
    whole=2,
    exact=True,
    valid="0 < β < 1 and v = O(h), as along runs from rest; every hλ, on quadratics exactly; complex beyond (1 + √β)²",
    source=f"derived here from {ROSCA}",
)
NESTEROV_PRINCIPAL = FlowRow(
    NesterovPrincipalFlow,
    spectral(lambda f, h, **options: NesterovPrincipalFlow(f, h, MOMENTUM, **options), spaces=2),
    NESTEROV,
    local=3,
    whole=2,
    exact=True,
    valid="0 < β < 1 and v = O(h), as along runs from rest; every hλ but 1, on quadratics exactly; complex beyond 1",
    source=f"derived here from {ROSCA}",
)
MODIFIED_HEAVY_BALL = FlowRow(
    ModifiedHeavyBallFlow,
    orders(lambda f, h, p: ModifiedHeavyBallFlow(f, h, FRICTION, p), (Cost(1), Cost(1, 1), Cost(1, 2, 1))),
    SCALED_HEAVY_BALL,
    local=ORDER + 1,
    whole=ORDER,
    valid="hμ < 1 and h²λ < (1 + √β)², β = 1 − hμ",
    source=HAIRER,
)
MODIFIED_NESTEROV = FlowRow(
    ModifiedNesterovFlow,
    orders(lambda f, h, p: ModifiedNesterovFlow(f, h, FRICTION, p), (Cost(1), Cost(1, 1), Cost(1, 2, 1))),
    SCALED_NESTEROV,
    local=ORDER + 1,
    whole=ORDER,
    valid="hμ < 1 and h²λ < 1",
    source=HAIRER,
)
REDUCED_HEAVY_BALL = FlowRow(
    ReducedHeavyBallFlow,
    orders(lambda f, h, p: ReducedHeavyBallFlow(f, h, MOMENTUM, p), OF_GRADIENT[:3]),
    HEAVY_BALL,
    local=ORDER + 1,
    whole=ORDER,
    settles=True,
    valid="after the transient β^k, for |hλ| < (1 − √β)²; a start from rest leaves an error O(h)",
    source="order 2: Ghosh et al. 2023, arXiv 2302.00849",
)
REDUCED_NESTEROV = FlowRow(
    ReducedNesterovFlow,
    orders(lambda f, h, p: ReducedNesterovFlow(f, h, MOMENTUM, p), OF_GRADIENT[:3]),
    NESTEROV,
    local=ORDER + 1,
    whole=ORDER,
    settles=True,
    valid="after the transient β^k, for |hλ| < ((1 − β)/(1 + β))²; a start from rest leaves an error O(h)",
    source="order 2: Ghosh et al. 2023, arXiv 2302.00849",
)
TORCH_MOMENTUM = FlowRow(
    TorchMomentumFlow,
    {
        **orders(lambda f, h, p: momentum_from_torch(f, h, MOMENTUM, order=p)[1], (Cost(1), Cost(1, 1), Cost(1, 2, 1))),
        "Nesterov": Example(lambda f, h: momentum_from_torch(f, h, MOMENTUM, nesterov=True, order=1)[1], Cost(1)),
        "dampening": Example(lambda f, h: momentum_from_torch(f, h, MOMENTUM, dampening=0.3, order=1)[1], Cost(1)),
    },
    None,
    local=None,
    whole=None,
    clock_of=HEAVY_BALL,
    valid="where the flow inside is",
    source=f"{HAIRER}; the conversion derived here",
    reason="ModifiedHeavyBallFlow or ModifiedNesterovFlow on torch's clock; its orders are those, in √lr at a fixed μ",
)

DETERMINISTIC = (
    GRADIENT_FLOW,
    MODIFIED,
    MODIFIED_RUNGE_KUTTA,
    EPOCH,
    PRINCIPAL,
    TRUNCATED,
    HEAVY_BALL_PRINCIPAL,
    NESTEROV_PRINCIPAL,
    MODIFIED_HEAVY_BALL,
    MODIFIED_NESTEROV,
    REDUCED_HEAVY_BALL,
    REDUCED_NESTEROV,
    TORCH_MOMENTUM,
)
"""The rows of the deterministic flows."""
FLOWS: dict[str, FlowRow] = {row.name: row for row in (*DETERMINISTIC, *STOCHASTIC)}
"""The rows of all flows by the name of the class."""
