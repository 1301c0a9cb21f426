r"""Flows and descents by the names of the command line; a new one is one line in FLOWS, NUMBERED or DESCENTS.

The entry of a flow also states the descent that it approximates and the order of the error: those of the catalogue, by
``known_flow`` and ``known_family``, for a flow with a row in ``flows.catalogue``, its own otherwise. They are tested by
tests/flows/models/test_registry.py. A class whose constructor takes landscape, h and options by name can be given as a
reference "package.module:Class" (docs/extending.md).
"""

from __future__ import annotations

import functools
import inspect
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
from flows.catalogue import flows as catalogue
from flows.catalogue.rows import ORDER, FlowRow
from landscapes import FiniteSum, Landscape
from landscapes.noise.base import Kind
from landscapes.references import resolve_reference

DENSE = 64  # largest dimension for which the Hessian is built densely
PRODUCTS = 30  # HVPs of a principal-flow evaluation above DENSE


@dataclass(frozen=True)
class Options:
    """Options of the models beyond landscape and learning rate; each model uses those it needs."""

    branch: str = "auto"
    krylov: int | None = None
    krylov_tolerance: float = 1e-6
    momentum: float = 0.9
    friction: float = 1.0
    batch_size: int = 32
    sampling: str = "epoch"

    def principal_options(self, landscape: Landscape) -> dict[str, Any]:
        """Arguments of a principal flow: the branch that suits the loss, and a dense Hessian up to DENSE weights."""
        automatic = "complex" if landscape.holomorphic else "real"
        return {
            "krylov": PRODUCTS if self.krylov is None and landscape.dimension > DENSE else self.krylov,
            "tolerance": self.krylov_tolerance,
            "branch": automatic if self.branch == "auto" else self.branch,
        }


def batches(landscape: Landscape, options: Options, name: str, instead: str) -> tuple[FiniteSum, int, str]:
    """The landscape as a finite sum, the mini-batch size and the sampling; ValueError if it has no examples."""
    if not isinstance(landscape, FiniteSum):
        raise ValueError(f"{name} needs examples, {type(landscape).__name__} has none; use {instead}")
    return landscape, min(options.batch_size, landscape.size), options.sampling


def sgd(landscape: Landscape, h: float, options: Options) -> Descent:
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


def sgd_equation(landscape: Landscape, h: float, order: int, options: Options) -> Flow:
    """The stochastic modified equation of SGD."""
    examples, b, sampling = batches(landscape, options, "flow sde-N", "modified-N")
    return StochasticModifiedEquation(examples, h, b, order, sampling)


def momentum_equation(landscape: Landscape, h: float, order: int, options: Options) -> Flow:
    """The stochastic modified equation of SGD with friction."""
    examples, b, sampling = batches(landscape, options, "flow momentum-sde-N", "scaled-heavy-ball-N")
    return MomentumModifiedEquation(examples, h, options.friction, b, order, sampling)


Build = Callable[[Landscape, float, Options], Any]


def build_entry(entry: str | Build, landscape: Landscape, h: float, options: Options) -> Any:
    """The model of an entry; a class given by reference gets landscape, h and the options in its signature."""
    if not isinstance(entry, str):
        return entry(landscape, h, options)
    kind: Callable[..., Any] = resolve_reference(entry)
    names = inspect.signature(kind).parameters
    given: dict[str, Any] = {**vars(options), "landscape": landscape, "h": h}
    if "batch_size" in names:
        _, given["batch_size"], _ = batches(landscape, options, kind.__name__, "one without mini-batches")
    missing = [name for name, p in names.items() if p.default is p.empty and name not in given]
    if missing:
        raise ValueError(f"{kind.__name__} must take {', '.join(given)} or defaults, got {', '.join(missing)}")
    return kind(**{name: value for name, value in given.items() if name in names})


@dataclass(frozen=True)
class FlowEntry:
    r"""A flow by name, and the statements that the tests of the registry check.

    The error of one step against ``descent``, from its start, falls as h^order; with ``settles`` only after the
    transient of that descent. For a flow with ``noise`` this holds for its drift, against the descent without noise.
    """

    build: str | Build
    order: int
    descent: str = "gd"
    settles: bool = False
    noise: Kind | None = None


@dataclass(frozen=True)
class FamilyEntry:
    """A family of flows whose N-th member has a one-step error of order N + 1; the other fields as in ``FlowEntry``."""

    build: Callable[[Landscape, float, int, Options], Flow]
    descent: str = "gd"
    settles: bool = False
    noise: Kind | None = None

    def member(self, order: int) -> FlowEntry:
        """The member of that order."""

        def build(landscape: Landscape, h: float, options: Options) -> Flow:
            return self.build(landscape, h, order, options)

        return FlowEntry(build, order + 1, self.descent, self.settles, self.noise)


DESCENT_NAMES: dict[type[Descent], str] = {
    GradientDescent: "gd",
    StochasticGradientDescent: "sgd",
    HeavyBall: "heavy-ball",
    Nesterov: "nesterov",
    ScaledHeavyBall: "scaled-heavy-ball",
    ScaledNesterov: "scaled-nesterov",
    StochasticHeavyBall: "sgd-heavy-ball",
    ScaledStochasticHeavyBall: "sgd-scaled-heavy-ball",
}
"""The names in ``DESCENTS`` of the descents that rows of the catalogue name."""


def statements_of(kind: type[Flow]) -> tuple[FlowRow, dict[str, Any]]:
    """The row of a flow class, and the descent, transient and noise that it states, as fields of an entry."""
    row = catalogue.FLOWS[kind.__name__]
    if row.descent is None:
        raise ValueError(f"kind must be a flow that models a descent, got {kind.__name__}: {row.reason}")
    (noise,) = row.noise or (None,)
    return row, {"descent": DESCENT_NAMES[row.descent.kind], "settles": row.settles, "noise": noise}


def known_flow(kind: type[Flow], build: Build, **fields: Any) -> FlowEntry:
    """The entry of a flow with a row in the catalogue; ``fields``: those of the flow that its order depends on."""
    row, statements = statements_of(kind)
    return FlowEntry(build, row.local_order(**fields), **statements)


def known_family(kind: type[Flow], build: Callable[[Landscape, float, int, Options], Flow]) -> FamilyEntry:
    """The entry of a family with a row in the catalogue, whose one-step errors are of order N + 1."""
    row, statements = statements_of(kind)
    if row.local != ORDER + 1:
        raise ValueError(f"kind must be a family with one-step errors of order N + 1, got {kind.__name__}")
    return FamilyEntry(build, **statements)


FLOWS: dict[str, FlowEntry] = {
    "gradient": known_flow(GradientFlow, lambda f, h, options: GradientFlow(f)),
    "principal": known_flow(PrincipalFlow, lambda f, h, options: PrincipalFlow(f, h, **options.principal_options(f))),
    "principal-third-order": known_flow(
        PrincipalFlow,
        lambda f, h, options: PrincipalFlow(f, h, third_order=True, **options.principal_options(f)),
        third_order=True,
    ),
    "heavy-ball-principal": known_flow(
        HeavyBallPrincipalFlow,
        lambda f, h, options: HeavyBallPrincipalFlow(f, h, options.momentum, **options.principal_options(f)),
    ),
    "nesterov-principal": known_flow(
        NesterovPrincipalFlow,
        lambda f, h, options: NesterovPrincipalFlow(f, h, options.momentum, **options.principal_options(f)),
    ),
}
"""Flows by name."""
NUMBERED: dict[str, FamilyEntry] = {
    "modified": known_family(ModifiedFlow, lambda f, h, order, options: ModifiedFlow(f, h, order)),
    "reduced-heavy-ball": known_family(
        ReducedHeavyBallFlow, lambda f, h, order, options: ReducedHeavyBallFlow(f, h, options.momentum, order)
    ),
    "reduced-nesterov": known_family(
        ReducedNesterovFlow, lambda f, h, order, options: ReducedNesterovFlow(f, h, options.momentum, order)
    ),
    "scaled-heavy-ball": known_family(
        ModifiedHeavyBallFlow, lambda f, h, order, options: ModifiedHeavyBallFlow(f, h, options.friction, order)
    ),
    "scaled-nesterov": known_family(
        ModifiedNesterovFlow, lambda f, h, order, options: ModifiedNesterovFlow(f, h, options.friction, order)
    ),
    "sde": known_family(StochasticModifiedEquation, sgd_equation),
    "momentum-sde": known_family(MomentumModifiedEquation, momentum_equation),
}
"""Families of flows by the prefix before the order: modified-2 is the member of order 2 of modified."""
DESCENTS: dict[str, str | Build] = {
    "gd": lambda f, h, options: GradientDescent(f, h),
    "sgd": sgd,
    "heavy-ball": lambda f, h, options: HeavyBall(f, h, options.momentum),
    "nesterov": lambda f, h, options: Nesterov(f, h, options.momentum),
    "scaled-heavy-ball": lambda f, h, options: ScaledHeavyBall(f, h, options.friction),
    "scaled-nesterov": lambda f, h, options: ScaledNesterov(f, h, options.friction),
    "sgd-heavy-ball": stochastic_heavy_ball,
    "sgd-scaled-heavy-ball": scaled_stochastic_heavy_ball,
}
"""Descents by name; classes of torch.optim are found by their class name."""
FLOW_NAMES = (*FLOWS, *(f"{family}-N" for family in NUMBERED))
"""The names that ``--flows`` accepts; N is a positive integer."""


def flow_entry(name: str) -> FlowEntry:
    """The entry of that name, also of a member of a family; ValueError with the accepted names."""
    if name in FLOWS:
        return FLOWS[name]
    match = re.fullmatch(r"(.+)-(\d+)", name)
    if match and match[1] in NUMBERED:
        return NUMBERED[match[1]].member(int(match[2]))
    raise ValueError(f"--flows must name {', '.join(FLOW_NAMES)}, got {name!r}")


def flow_by_name(name: str, landscape: Landscape, h: float, options: Options) -> Flow:
    """The flow of that name; ValueError with the accepted names."""
    return build_entry(flow_entry(name).build, landscape, h, options)


def descent_by_name(name: str, landscape: Landscape, h: float, options: Options) -> Descent:
    """The descent of that name; ValueError with the accepted names."""
    if name in DESCENTS:
        return build_entry(DESCENTS[name], landscape, h, options)
    kind = getattr(torch.optim, name, None)
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
        factory: Any = kind  # the base class Optimizer declares no lr, but its subclasses take one
        return OptimizerDescent(landscape, functools.partial(factory, lr=h))
    raise ValueError(f"--descent must name {', '.join(DESCENTS)} or a class of torch.optim, got {name!r}")
