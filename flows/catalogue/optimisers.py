r"""``models_of``: the flows that model an optimiser, with their arguments, orders and clocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from flows.arguments import check_nesterov
from flows.catalogue.descents import DESCENTS
from flows.catalogue.flows import FLOWS
from flows.catalogue.rows import DescentRow, FlowRow, SGDSettings, field_names, write_power
from flows.descent import Descent, StochasticDescent
from flows.descents.optimizer import OptimizerDescent
from flows.flow import Flow
from flows.tables import align
from landscapes import Landscape, Regularised
from landscapes.errors import check_computable, check_flag, check_real
from landscapes.landscape import check_landscape

SOURCES = {"batch_size", "noise", "batches"}  # fields that say which gradients a step takes
HEADINGS = ("flow", "arguments", "from", "one step", "fixed time", "clock", "as")
MAP = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
"""The settings of torch.optim.SGD that change its step; the others choose an implementation."""


@dataclass(frozen=True)
class ModelMatch:
    r"""A flow that models an optimiser: its row, its arguments beyond landscape and order, and how they are computed.

    ``descent``: the row of the descent that the flow follows, with its clock; ``h``: the step on this clock, also for a
    flow without h. ``l2``: the weight decay; the landscape of the flow is then ``Regularised(landscape, l2)``.
    """

    row: FlowRow
    descent: DescentRow
    arguments: Mapping[str, Any]
    conversion: str = ""
    h: float | None = None
    l2: float = 0.0

    @property
    def name(self) -> str:
        """The name of the flow's class."""
        return self.row.name

    @property
    def clock(self) -> str:
        """The flow's time after k steps of the optimiser."""
        return self.descent.clock

    def flow(self, landscape: Landscape, **others: Any) -> Flow:
        """The flow on a landscape, without weight decay in it; ``others``: the arguments that are not the optimiser's.

        These are ``order``, ``batch_size``, ``noise``, …; TypeError if one is missing.
        """
        whole = Regularised(check_landscape(landscape), self.l2) if self.l2 else check_landscape(landscape)
        build: Any = self.row.kind
        return build(landscape=whole, **{**self.arguments, **others})

    def cells(self) -> list[str]:
        """The line of the table under ``HEADINGS``."""
        given = ", ".join(f"{name} = {write_value(value)}" for name, value in self.arguments.items())
        clock = self.clock if self.h is None else f"{self.clock}, h = {write_value(self.h)}"
        powers = (write_power(self.row.local), write_power(self.row.whole))
        return [self.name, given or "–", self.conversion or "–", *powers, clock, self.descent.name]


@dataclass(frozen=True)
class OptimiserModels:
    """The flows that model an optimiser, in the order of the catalogue, and sentences on its settings; printable."""

    optimiser: str
    matches: tuple[ModelMatch, ...]
    sentences: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[ModelMatch]:
        return iter(self.matches)

    def __len__(self) -> int:
        return len(self.matches)

    def __getitem__(self, name: str) -> ModelMatch:
        for match in self.matches:
            if match.name == name:
                return match
        known = ", ".join(match.name for match in self.matches) or "none"
        raise KeyError(f"{name!r} does not model {self.optimiser}; the flows that do: {known}")

    def __str__(self) -> str:
        lines = [f"Flows that model {self.optimiser}"]
        if self.matches:
            lines += align([HEADINGS, *(match.cells() for match in self.matches)], left=range(len(HEADINGS)))
        return "\n".join([*lines, *self.sentences])


def models_of(optimiser: torch.optim.Optimizer | type | Descent, **settings: Any) -> OptimiserModels:
    r"""The flows that model an optimiser: a torch.optim optimiser, its class with ``settings``, or a descent of ours.

        models_of(torch.optim.SGD, lr=0.01, momentum=0.9)

    Each match has its row (orders, clock, validity), the flow's arguments and ``flow(landscape)``. Heavy ball and
    Nesterov have two kinds: at fixed momentum β with h = lr, and scaled with h = √lr, μ = (1 − β)/√lr. An optimiser
    does not say whether its gradients are of mini-batches: deterministic flows model the mean step, stochastic ones
    SGD. Weight decay w becomes ``Regularised(landscape, w)``; dampening τ becomes h = (1 − τ)lr. An optimiser that no
    flow models (Adam; maximize; groups with different settings) gives an empty result with a sentence.

    Raises ValueError for values that torch refuses, such as Nesterov without momentum or with dampening; TypeError for
    another object, for ``settings`` beside an instance, or settings that the class does not take.
    """
    if isinstance(optimiser, Descent):
        refuse_settings("a descent", settings)
        return models_of_descent(optimiser)
    if isinstance(optimiser, torch.optim.Optimizer):
        refuse_settings("an optimiser", settings)
        return models_of_groups(optimiser)
    if isinstance(optimiser, type) and issubclass(optimiser, torch.optim.Optimizer):
        if optimiser is torch.optim.SGD:
            check_sgd(settings)
        factory: Any = optimiser  # its subclasses take settings, the base class declares none
        try:
            return models_of_groups(factory([torch.nn.Parameter(torch.zeros(1))], **settings))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"settings must be those of {optimiser.__name__}, got {settings!r}: {error}") from error
    raise TypeError(
        "optimiser must be a torch.optim.Optimizer, its class or a Descent, got "
        f"{optimiser.__name__ if isinstance(optimiser, type) else type(optimiser).__name__}"
    )


def check_sgd(settings: Mapping[str, Any]) -> None:
    """Raise for settings that are no numbers or flags, or that torch.optim.SGD refuses for Nesterov."""
    for name in ("lr", "momentum", "dampening", "weight_decay"):
        value = settings.get(name, 0.0)
        single = isinstance(value, Tensor) and check_computable(name, value).numel() == 1
        check_real(name, value.item() if single else value)
    if check_flag("nesterov", settings.get("nesterov", False)):
        check_nesterov(True, settings.get("momentum", 0.0), settings.get("dampening", 0.0))


def refuse_settings(given: str, settings: Mapping[str, Any]) -> None:
    """Raise TypeError if there are settings."""
    if settings:
        raise TypeError(f"settings are for a class of torch.optim, got {', '.join(settings)} beside {given}; leave out")


def models_of_groups(optimiser: torch.optim.Optimizer) -> OptimiserModels:
    """The flows that model a torch optimiser: those of SGD if its class is SGD, otherwise none."""
    name = type(optimiser).__name__
    if type(optimiser) is not torch.optim.SGD:
        sentence = f"no flow of this version models {name}; the closest are those of torch.optim.SGD, and none of them"
        return OptimiserModels(name, (), (f"{sentence} has its preconditioner or its memory",))
    groups = [{key: group[key] for key in MAP} for group in optimiser.param_groups]
    given = groups[0]
    shown = ", ".join(f"{key}={write_value(given[key])}" for key in MAP if key == "lr" or given[key])
    text = f"SGD({shown})"
    different = [key for key in MAP if any(float(group[key]) != float(given[key]) for group in groups)]
    reason = refusal(given, different)
    if reason:
        return OptimiserModels(text, (), (reason,))
    return sgd_models(text, given, scheduled="initial_lr" in optimiser.param_groups[0])


def refusal(given: Mapping[str, Any], different: list[str]) -> str:
    """Why no flow models SGD with these settings, of which ``different`` vary between groups; "" if one does."""
    if different:
        return f"no flow of this version has parameter groups with different {', '.join(different)}: give one group"
    if given["maximize"]:
        return "maximize=True ascends the loss and no landscape here is negated: give minus the loss, maximize=False"
    if not 0 < float(given["lr"]) < float("inf"):
        return f"lr must be positive and finite for a flow, got {float(given['lr'])}"
    if given["momentum"] and not given["dampening"] < 1:
        return f"dampening must be below 1 for a flow, got {given['dampening']}: no gradient after the first counts"
    if given["momentum"] > 1:
        return f"momentum must be at most 1 for a flow, got {given['momentum']}: the velocity grows without bound"
    return ""


def sgd_models(text: str, given: Mapping[str, Any], scheduled: bool) -> OptimiserModels:
    """The flows that model torch's SGD with settings that ``refusal`` let through."""
    lr, momentum, decay = float(given["lr"]), float(given["momentum"]), float(given["weight_decay"])
    dampening = float(given["dampening"]) if momentum else 0.0  # torch's SGD without momentum ignores it
    sentences = []
    if decay:
        sentences.append(f"weight_decay={decay:g}: the landscape of the flow is Regularised(landscape, {decay:g})")
    if dampening:
        sentences.append(undamped_start(lr, dampening))
    if scheduled:
        sentences.append("a scheduler is attached: lr is its value now, and k·h is to be read as the sum of the rates")
    if 0 < momentum < 1:
        slow = 1 / (1 - momentum)
        sentences.append(
            f"flows of gradient descent do not model it: at h = lr they are 1/(1 − β) = {slow:.6g} times too slow"
        )
    settings = SGDSettings(lr, momentum, bool(given["nesterov"]), dampening)
    matches = tuple(matches_of_settings(settings, decay))
    return OptimiserModels(text, matches, (*sentences, *caveats(matches)))


def undamped_start(lr: float, dampening: float) -> str:
    """The sentence on dampening: the rate of the flows, and torch's first step."""
    return (
        f"dampening={dampening:g}: lr is (1 − dampening)·lr = {(1 - dampening) * lr:.6g}; the first step, which "
        f"torch does not damp, counts 1/(1 − dampening) = {1 / (1 - dampening):.6g} times"
    )


def matches_of_settings(settings: SGDSettings, l2: float = 0.0) -> Iterator[ModelMatch]:
    """Every flow whose descent is SGD with these settings."""
    for row in FLOWS.values():
        if row.descent is not None and row.descent.torch is not None:
            arguments = row.descent.torch.arguments(settings)
            if arguments is not None:
                yield match_row(row, row.descent, arguments, row.descent.torch.conversion, l2)


def caveats(matches: Iterable[ModelMatch]) -> Iterator[str]:
    """Sentences on flows whose position is not torch's parameter, and on those that need the transient to be over."""
    for match in matches:
        if match.descent.torch is not None and match.descent.torch.caveat:
            yield f"{match.name}: {match.descent.torch.caveat}"
        if match.row.settles:
            yield f"{match.name}: these orders are those {match.row.valid}"


def match_row(
    row: FlowRow, descent: DescentRow, arguments: Mapping[str, Any], conversion: str, l2: float = 0.0
) -> ModelMatch:
    """The match with those arguments that are fields of the flow."""
    own = field_names(row.kind) - {"landscape"}
    kept = {name: value for name, value in arguments.items() if name in own}
    return ModelMatch(row, descent, kept, conversion if kept else "", arguments.get("h"), l2)


def models_of_descent(descent: Descent) -> OptimiserModels:
    """The flows that model one of our descents, or a descent that no row is of: then none."""
    kind = type(descent)
    if isinstance(descent, OptimizerDescent):
        return models_of_groups(descent.factory([torch.nn.Parameter(torch.zeros(descent.landscape.dimension))]))
    row = DESCENTS.get(kind.__name__)
    if row is None or row.kind is not kind:
        return OptimiserModels(kind.__name__, (), (f"the catalogue has no row of {kind.__name__}",))
    own = {field.name: getattr(descent, field.name) for field in fields(row.kind)}  # type: ignore[arg-type]
    found = (match_of_descent(flow, row, descent, own) for flow in FLOWS.values())
    matches = tuple(match for match in found if match is not None)
    if not matches:
        return OptimiserModels(kind.__name__, (), (refuse_descent(descent),))
    given = None if row.torch is None else row.torch.settings(descent)
    damped = given is not None and given.dampening != 0
    sentences = (undamped_start(given.lr, given.dampening),) if damped else ()  # type: ignore[union-attr]
    return OptimiserModels(kind.__name__, matches, (*sentences, *caveats(matches)))


def match_of_descent(flow: FlowRow, row: DescentRow, descent: Descent, own: Mapping[str, Any]) -> ModelMatch | None:
    """The match of one flow and a descent with the fields ``own``; None if it is no model of it."""
    if not same_gradients(field_names(flow.kind), field_names(row.kind)):
        return None
    model = flow.descent
    same = model is row or row in flow.also
    if same and row.torch is None:
        return match_row(flow, row, own, "as the descent's")
    if row.torch is None or model is None or model.torch is None:
        return None
    given = row.torch.settings(descent)
    arguments = model.torch.arguments(given)
    if arguments is None:  # also at the edge of the descent's own range: heavy ball with β = 0
        return None
    if same and given.dampening == 0:
        return match_row(flow, row, own, "as the descent's")
    shared = {name: own[name] for name in (*sorted(SOURCES), "sampling") if name in own}
    return match_row(flow, model, {**shared, **arguments}, model.torch.conversion)


def same_gradients(flow: set[str], descent: set[str]) -> bool:
    """Whether a flow with these fields can model the gradients of a descent with those.

    A flow without noise models the mean step; mini-batches in a fixed order have an own mean; a noise that is given is
    no mini-batch noise, whereas mini-batch noise may be given.
    """
    modelled, taken = SOURCES & flow, SOURCES & descent
    if "batches" in modelled | taken:
        return modelled == taken
    return not modelled or (bool(taken) and not (taken == {"noise"} and modelled == {"batch_size"}))


def refuse_descent(descent: Descent) -> str:
    """The sentence on a descent without a flow."""
    sentence = f"no flow of this version models {type(descent).__name__}"
    mean = "flows of its full-batch step: models_of(descent.full_batch())"
    return f"{sentence}; {mean}" if isinstance(descent, StochasticDescent) else sentence


def write_value(value: Any) -> str:
    """A setting in six digits, or as it prints."""
    if isinstance(value, torch.Tensor):
        return write_value(value.item()) if value.numel() == 1 else f"{len(value)} values"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
