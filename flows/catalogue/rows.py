r"""Rows of the catalogue: the facts about a flow, a descent or an observer, each of them in one place.

A quantity that depends on the parameters is an expression in symbols: the fields ``ORDER`` p, ``THIRD``, ``KRYLOV``;
``DIMENSION`` d, ``EXAMPLES`` N, ``BATCH`` b, ``BATCHES`` m, ``STAGES`` s. ``evaluate`` puts the values of a model in
their place, ``write_quantity`` writes it for a table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy

from flows.descent import Descent
from flows.flow import Flow
from landscapes import FiniteSum, Landscape
from landscapes.noise.base import Kind

ORDER, THIRD, KRYLOV = sympy.symbols("order third_order krylov")
"""The fields ``order`` p of a family, ``third_order`` (0 or 1), and ``krylov``, the most HVPs of a Krylov space."""
DIMENSION, EXAMPLES, BATCH, BATCHES, STAGES = sympy.symbols("d N b m s")
"""Of the model's landscape d and N; its mini-batch b; the number of its fixed batches m; the stages of its method s."""

Quantity: TypeAlias = "int | sympy.Expr"
RAISED = str.maketrans("0123456789p+", "⁰¹²³⁴⁵⁶⁷⁸⁹ᵖ⁺")
Build = Callable[[Any, float], Any]  # (landscape, h) ↦ model; Any, as some models need a FiniteSum


@dataclass(frozen=True)
class Cost:
    r"""Oracle calls of an evaluation, a step or an observation of one member; one unit is a product over all examples.

    None is a number that depends on more than the parameters, as an iteration's; with ``limit``, upper bounds.
    """

    gradients: Quantity | None = 0
    hvps: Quantity | None = 0
    thirds: Quantity | None = 0
    higher: Quantity | None = 0
    losses: Quantity | None = 0
    limit: bool = False
    note: str = ""

    def counts(self, model: Any) -> dict[str, float | None]:
        """The figures of one model by the keys of ``Counted.counts``."""
        own = {"loss": self.losses, "grad": self.gradients, "hvp": self.hvps, "third": self.thirds}
        own["higher"] = self.higher
        return {name: None if q is None else evaluate(q, model) for name, q in own.items()}

    def __str__(self) -> str:
        figures = (self.losses, self.gradients, self.hvps, self.thirds, self.higher)
        named = zip(("loss", "gradient", "HVP", "third", "higher"), figures, strict=True)
        parts = [count_in_words(quantity, unit) for unit, quantity in named if quantity is None or quantity != 0]
        text = ("at most " if self.limit else "") + (", ".join(parts) or "none")
        return f"{text} ({self.note})" if self.note else text


@dataclass(frozen=True)
class Example:
    """A small model of a class: ``build`` (landscape, h) ↦ model, the cost of an evaluation, and the kind of noise."""

    build: Build
    cost: Cost
    noise: Kind | None = None


@dataclass(frozen=True)
class SGDSettings:
    """The arguments of torch.optim.SGD that decide which flows model it."""

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0

    @property
    def rate(self) -> float:
        """(1 − τ)lr, the rate of the same momentum without dampening."""
        return (1 - self.dampening) * self.lr


@dataclass(frozen=True)
class TorchForm:
    r"""A descent as torch.optim.SGD, both ways.

    ``call``: in torch's parameters; ``text``: in the descent's; ``conversion``: the latter from the former.
    ``settings`` (descent ↦ SGDSettings) and ``arguments`` (SGDSettings ↦ arguments of the descent, None for other
    settings) are the same as functions. ``exact``: equal bit by bit, otherwise up to rounding. ``caveat``: a
    difference of states, if any.
    """

    call: str
    text: str
    conversion: str
    settings: Callable[[Any], SGDSettings]
    arguments: Callable[[SGDSettings], dict[str, float] | None]
    exact: bool = True
    caveat: str = ""


@dataclass(frozen=True)
class DescentRow:
    r"""The facts about a descent class.

    ``state``; ``rate``: the unit of h; ``clock``: t after k steps; ``draws``: whether a step draws random numbers;
    ``gradients``: those that a step takes; ``equivariant``: whether a step turns with the coordinates. ``torch``: the
    same descent as torch.optim.SGD on these gradients; ``equals``: without ``torch``, the optimiser in words.
    """

    kind: type[Descent]
    examples: Mapping[str, Example]
    state: str
    source: str
    rate: str = "h = lr"
    clock: str = "t = k·h"
    draws: bool = False
    gradients: str = "of all examples"
    equivariant: bool = True
    torch: TorchForm | None = None
    equals: str = "none of torch"

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.kind.__name__


@dataclass(frozen=True)
class FlowRow:
    r"""The facts about a flow class, deterministic or stochastic.

    ``descent``: the descent that it models; None with ``reason``. Of a stochastic flow the one-step error is that of
    the drift against the mean step. ``local``: the power of h of the one-step error, over ``span`` steps (an epoch's);
    with ``settles`` only after the descent's transient. ``whole``: the power at a fixed time, weak for a stochastic
    flow. ``clock_of``: without ``descent``, the one whose clock and unit of h it has. ``valid``: where. ``also``:
    further descents that it models, on their clocks, with a one-step error O(h²) in the mean. ``exact``: whether it has
    no error on quadratics. ``noisy``: the gradients, if not those of ``descent``. ``equivariant``: whether its drift
    turns with the coordinates.
    """

    kind: type[Flow]
    examples: Mapping[str, Example]
    descent: DescentRow | None
    local: Quantity | None
    whole: Quantity | None
    valid: str
    source: str
    also: tuple[DescentRow, ...] = ()
    span: Quantity = 1
    settles: bool = False
    exact: bool = False
    noisy: str = ""
    equivariant: bool = True
    reason: str = ""
    clock_of: DescentRow | None = None

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.kind.__name__

    @property
    def rate(self) -> str:
        """The unit of h: that of the descent; "none" for a flow without h."""
        follows = self.descent or self.clock_of
        return follows.rate if follows is not None and "h" in field_names(self.kind) else "none"

    @property
    def clock(self) -> str:
        """The time of the flow after k steps of the descent; "its own" for a flow that follows none."""
        follows = self.descent or self.clock_of
        return "its own" if follows is None else follows.clock

    @property
    def gradients(self) -> str:
        """The gradients of the modelled descent."""
        return self.noisy or ("" if self.descent is None else self.descent.gradients)

    @property
    def noise(self) -> tuple[Kind, ...]:
        """The kinds of noise that its examples have; () if it is deterministic."""
        return tuple(sorted({example.noise for example in self.examples.values() if example.noise is not None}))

    def local_order(self, **fields: Any) -> int:
        """The power of h of the one-step error of a flow with these fields (``order``, ``third_order``)."""
        if self.local is None:
            raise ValueError(f"{self.name} follows no descent and has no one-step error: {self.reason}")
        values = {"third_order": False, **fields}
        return int(substitute(self.local, values))


@dataclass(frozen=True)
class ObserverRow:
    r"""The facts about an observer class.

    ``records``: the names of the observations under the default name; ``about``: a phrase. ``cost``: of one state of
    one member. ``needs``: arguments beyond the landscape, or a phrase; ``real``: whether it refuses complex θ.
    """

    kind: type[Any]
    build: Build
    records: tuple[str, ...]
    about: str
    cost: Cost
    needs: str = "a landscape"
    real: bool = False
    source: str = "definition"

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.kind.__name__


def field_names(kind: Any) -> set[str]:
    """The names of the fields of a dataclass or of an instance; none for another class."""
    return {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()


def values_of(model: Any) -> dict[str, Any]:
    """The values of the symbols for one model: its numeric fields, d, N, b, m and s as far as it has them."""
    found = (
        {f.name: getattr(model, f.name) for f in dataclasses.fields(model)} if dataclasses.is_dataclass(model) else {}
    )
    values = {name: value for name, value in found.items() if isinstance(value, int | float)}
    landscape = getattr(model, "landscape", None)
    if isinstance(landscape, Landscape):
        values["d"] = landscape.dimension
    if isinstance(landscape, FiniteSum):
        values["N"] = landscape.size
    if "batch_size" in values:
        values["b"] = values["batch_size"]
    if "batches" in found:
        values["m"] = len(found["batches"])
    if "method" in found:
        values["s"] = len(found["method"].tableaux[0][1].weights)
    return values


def substitute(quantity: Quantity, values: Mapping[str, Any]) -> float:
    """A quantity at these values; ValueError names the symbols without one."""
    expression = sympy.sympify(quantity)
    missing = sorted(str(symbol) for symbol in expression.free_symbols if str(symbol) not in values)
    if missing:
        raise ValueError(f"values must hold {', '.join(missing)} for {quantity}, got {', '.join(values) or 'none'}")
    return float(expression.subs({s: sympy.sympify(float(values[str(s)])) for s in expression.free_symbols}))


def evaluate(quantity: Quantity, model: Any) -> float:
    """A quantity of one model."""
    return substitute(quantity, values_of(model))


def write_quantity(quantity: Quantity | None) -> str:
    """A quantity in a table: 2b/N, 2 krylov; – for None."""
    if quantity is None:
        return "–"
    return re.sub(r"\*(?=\w\b)", "", str(sympy.sympify(quantity)).replace(str(ORDER), "p")).replace("*", " ")


def write_power(quantity: Quantity | None) -> str:
    """The power of h of an error in a table: h³, hᵖ⁺¹, "h³, h⁴ with third_order"; – for None."""
    if quantity is None:
        return "–"
    expression = sympy.sympify(quantity)
    if expression.has(THIRD):
        without, with_it = expression.subs(THIRD, 0), expression.subs(THIRD, 1)
        return f"{write_power(without)}, {write_power(with_it)} with third_order"
    power = write_quantity(expression).replace(" ", "")
    return "h" if power == "1" else "h" + power.translate(RAISED)


def count_in_words(quantity: Quantity | None, unit: str) -> str:
    """A number of calls: 1 gradient, 2 HVPs, 2b/N gradients, "HVPs as needed" for None."""
    several = {"loss": "losses", "third": "third derivatives", "higher": "higher derivatives"}.get(unit, f"{unit}s")
    if quantity is None:
        return f"{several} as needed"
    one = {"third": "third derivative", "higher": "higher derivative"}.get(unit, unit)
    return f"{write_quantity(quantity)} {one if quantity == 1 else several}"
