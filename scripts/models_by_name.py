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
    ModifiedFlow,
    OptimizerDescent,
    PrincipalFlow,
    StochasticGradientDescent,
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
    batch_size: int = 32
    sampling: str = "epoch"


def principal(landscape: Landscape, h: float, options: Options, third_order: bool = False) -> Flow:
    """The principal flow on the branch that suits the loss, its Hessian dense or in Krylov spaces by size."""
    automatic = "complex" if landscape.holomorphic else "real"
    return PrincipalFlow(
        landscape,
        h,
        krylov=PRODUCTS if options.krylov is None and landscape.dimension > DENSE else options.krylov,
        tolerance=options.krylov_tolerance,
        third_order=third_order,
        branch=automatic if options.branch == "auto" else options.branch,
    )


def stochastic(landscape: Landscape, h: float, options: Options) -> Descent:
    """SGD on the landscape's examples."""
    if not isinstance(landscape, FiniteSum):
        raise ValueError(f"--descent sgd needs examples, {type(landscape).__name__} has none; use gd")
    return StochasticGradientDescent(landscape, h, min(options.batch_size, landscape.size), options.sampling)


FLOWS: dict[str, Callable[[Landscape, float, Options], Flow]] = {
    "gradient": lambda landscape, h, options: GradientFlow(landscape),
    "principal": principal,
    "principal-third-order": functools.partial(principal, third_order=True),
}
"""Flows by name."""
NUMBERED: dict[str, Callable[[Landscape, float, int, Options], Flow]] = {
    "modified": lambda landscape, h, order, options: ModifiedFlow(landscape, h, order),
}
"""Families of flows by the name that an order follows: modified-2 is the second of them."""
DESCENTS: dict[str, Callable[[Landscape, float, Options], Descent]] = {
    "gd": lambda landscape, h, options: GradientDescent(landscape, h),
    "sgd": stochastic,
    "heavy-ball": lambda landscape, h, options: HeavyBall(landscape, h, options.momentum),
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
