r"""Flows and descents by the names of the command line; one more is a line in FLOWS, NUMBERED or DESCENTS."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flows import (
    Descent,
    Flow,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    HeavyBallPrincipalFlow,
    ModifiedFlow,
    ModifiedHeavyBallFlow,
    ModifiedNesterovFlow,
    MomentumModifiedEquation,
    Nesterov,
    NesterovPrincipalFlow,
    OptimizerDescent,
    PrincipalFlow,
    ReducedHeavyBallFlow,
    ReducedNesterovFlow,
    ScaledHeavyBall,
    ScaledNesterov,
    ScaledStochasticHeavyBall,
    StochasticGradientDescent,
    StochasticHeavyBall,
    StochasticModifiedEquation,
)
from landscapes import FiniteSum, Landscape

DENSE = 64  # weights up to which a Hessian is made whole
PRODUCTS = 30  # HVPs of a principal-flow evaluation beyond


@dataclass(frozen=True)
class Options:
    """What models take beyond landscape and learning rate; each takes what concerns it."""

    branch: str = "auto"
    krylov: int | None = None
    krylov_tolerance: float = 1e-6
    momentum: float = 0.9
    friction: float = 1.0
    batch_size: int = 32
    sampling: str = "epoch"

    def principal(self, landscape: Landscape) -> dict[str, Any]:
        """How a principal flow is evaluated: on the branch that suits the loss, its Hessian dense or not by size."""
        automatic = "complex" if landscape.holomorphic else "real"
        return {
            "krylov": PRODUCTS if self.krylov is None and landscape.dimension > DENSE else self.krylov,
            "tolerance": self.krylov_tolerance,
            "branch": automatic if self.branch == "auto" else self.branch,
        }


def batches(landscape: Landscape, options: Options, name: str, instead: str) -> tuple[FiniteSum, int, str]:
    """The landscape's examples, the size of a mini-batch and how those are drawn; ValueError where there are none."""
    if not isinstance(landscape, FiniteSum):
        raise ValueError(f"{name} needs examples, {type(landscape).__name__} has none; use {instead}")
    return landscape, min(options.batch_size, landscape.size), options.sampling


def stochastic(landscape: Landscape, h: float, options: Options) -> Descent:
    """SGD on the landscape's examples."""
    examples, b, sampling = batches(landscape, options, "--descent sgd", "gd")
    return StochasticGradientDescent(examples, h, b, sampling)


def stochastic_heavy_ball(landscape: Landscape, h: float, options: Options) -> Descent:
    """SGD with momentum."""
    examples, b, sampling = batches(landscape, options, "--descent sgd-heavy-ball", "heavy-ball")
    return StochasticHeavyBall(examples, h, options.momentum, b, sampling)


def scaled_stochastic_heavy_ball(landscape: Landscape, h: float, options: Options) -> Descent:
    """SGD with friction."""
    examples, b, sampling = batches(landscape, options, "--descent sgd-scaled-heavy-ball", "scaled-heavy-ball")
    return ScaledStochasticHeavyBall(examples, h, options.friction, b, sampling)


def equation(landscape: Landscape, h: float, order: int, options: Options) -> Flow:
    """The stochastic modified equation of SGD."""
    examples, b, sampling = batches(landscape, options, "flow sde-N", "modified-N")
    return StochasticModifiedEquation(examples, h, b, order, sampling)


def momentum_equation(landscape: Landscape, h: float, order: int, options: Options) -> Flow:
    """That of SGD with friction."""
    examples, b, sampling = batches(landscape, options, "flow momentum-sde-N", "scaled-heavy-ball-N")
    return MomentumModifiedEquation(examples, h, options.friction, b, order, sampling)


FLOWS: dict[str, Callable[[Landscape, float, Options], Flow]] = {
    "gradient": lambda f, h, options: GradientFlow(f),
    "principal": lambda f, h, options: PrincipalFlow(f, h, **options.principal(f)),
    "principal-third-order": lambda f, h, options: PrincipalFlow(f, h, third_order=True, **options.principal(f)),
    "heavy-ball-principal": lambda f, h, options: HeavyBallPrincipalFlow(
        f, h, options.momentum, **options.principal(f)
    ),
    "nesterov-principal": lambda f, h, options: NesterovPrincipalFlow(f, h, options.momentum, **options.principal(f)),
}
"""Flows by name."""
NUMBERED: dict[str, Callable[[Landscape, float, int, Options], Flow]] = {
    "modified": lambda f, h, order, options: ModifiedFlow(f, h, order),
    "reduced-heavy-ball": lambda f, h, order, options: ReducedHeavyBallFlow(f, h, options.momentum, order),
    "reduced-nesterov": lambda f, h, order, options: ReducedNesterovFlow(f, h, options.momentum, order),
    "scaled-heavy-ball": lambda f, h, order, options: ModifiedHeavyBallFlow(f, h, options.friction, order),
    "scaled-nesterov": lambda f, h, order, options: ModifiedNesterovFlow(f, h, options.friction, order),
    "sde": equation,
    "momentum-sde": momentum_equation,
}
"""Families of flows by the name that an order follows: modified-2 is the second of them."""
DESCENTS: dict[str, Callable[[Landscape, float, Options], Descent]] = {
    "gd": lambda f, h, options: GradientDescent(f, h),
    "sgd": stochastic,
    "heavy-ball": lambda f, h, options: HeavyBall(f, h, options.momentum),
    "nesterov": lambda f, h, options: Nesterov(f, h, options.momentum),
    "scaled-heavy-ball": lambda f, h, options: ScaledHeavyBall(f, h, options.friction),
    "scaled-nesterov": lambda f, h, options: ScaledNesterov(f, h, options.friction),
    "sgd-heavy-ball": stochastic_heavy_ball,
    "sgd-scaled-heavy-ball": scaled_stochastic_heavy_ball,
}
"""Descents by name; classes of torch.optim go by their own."""
FLOW_NAMES = (*FLOWS, *(f"{family}-N" for family in NUMBERED))
"""What ``--flows`` may name, N a whole number."""


def flow_by_name(name: str, landscape: Landscape, h: float, options: Options) -> Flow:
    """The flow of that name; ValueError naming what there is."""
    if name in FLOWS:
        return FLOWS[name](landscape, h, options)
    match = re.fullmatch(r"(.+)-(\d+)", name)
    if match and match[1] in NUMBERED:
        return NUMBERED[match[1]](landscape, h, int(match[2]), options)
    raise ValueError(f"--flows must name {', '.join(FLOW_NAMES)}, got {name!r}")


def descent_by_name(name: str, landscape: Landscape, h: float, options: Options) -> Descent:
    """The descent of that name; ValueError naming what there is."""
    if name in DESCENTS:
        return DESCENTS[name](landscape, h, options)
    kind = getattr(torch.optim, name, None)
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
        factory: Any = kind  # the base class declares no lr, its classes all take one
        return OptimizerDescent(landscape, functools.partial(factory, lr=h))
    raise ValueError(f"--descent must name {', '.join(DESCENTS)} or a class of torch.optim, got {name!r}")
