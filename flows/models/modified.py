r"""Modified equations of gradient descent, and of any explicit Runge–Kutta step on −∇f, by backward error analysis.

The map θ − h∇f(θ) is, up to O(h^{p+1}), the time-h flow of the field truncated at order p. Order 2 descends the
modified loss f + (h/4)‖∇f‖² (implicit gradient regularisation); from order 3 on the field is in general no gradient.
The coefficients are derived on rooted trees in exact rationals (``flows.series``); the field is evaluated by products
with derivatives of f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import sympy
from torch import Tensor

from flows.arguments import check_model
from flows.declared import Clock
from flows.flow import Flow
from flows.series import EULER, ExplicitMethod, stability_function
from flows.series.landscape import landscape_program
from flows.series.methods import check_method
from landscapes import Landscape
from landscapes.errors import check_count, short_form
from landscapes.expansion import Expansion
from landscapes.landscape import warn_smoothness

HIGHEST_ORDER = 12
"""There are 7,813 trees of up to 12 vertices; every further order has about three times as many."""


@final
@dataclass(frozen=True)
class ModifiedFlow(Flow):
    r"""Modified flow of order p  θ̇ = −∇f − (h/2) H∇f − h² [(1/3) HH∇f + (1/12) D³f[∇f, ∇f]] − …, cut after h^{p−1}.

    One-step error against gradient descent O(h^{p+1}), for f with p + 1 continuous derivatives; a landscape with fewer
    than p gives a SmoothnessWarning. The series converges for |hλ| < 1 only: if hλ < −2, even orders
    attract along an eigenvector along which gradient descent escapes. Order 1 is gradient flow.

    Cost of an evaluation in products with derivatives of f of order 1, 2, 3, …: order 2: 1, 1; order 3: 1, 2, 1;
    order 4: 1, 3, 2; order 5: 1, 4, 4, 2, 1; order 6: 1, 6, 6, 3, 2. ``python -m scripts.benchmark --only modified``
    prints them in gradients. They are nested reverse-mode derivatives, or closed forms if the landscape has them.

    Sources: Hairer, Lubich & Wanner, ch. IX; order 2: Barrett & Dherin 2021, arXiv 2009.11162, eq. (5);
    order 3: Rosca et al. 2023, arXiv 2302.01952. Raises ValueError for an order above 12.
    """

    landscape: Landscape
    h: float
    order: int

    @property
    def radius(self) -> float:
        """1; order 1 is gradient flow, whose series has one term."""
        return math.inf if self.order == 1 else 1.0

    @property
    def name(self) -> str:
        return f"ModifiedFlow order {self.order}"

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_order(self.order, self.landscape, self)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """The modified field at θ, shape (..., d)."""
        if self.order == 1:
            return -self.landscape.grad(state)
        return landscape_program(EULER, self.order, self.h)(self.landscape.expand(state))[0]


@final
@dataclass(frozen=True)
class ModifiedRungeKuttaFlow(Flow):
    r"""Modified flow of order p of an explicit Runge–Kutta step on −∇f:  θ̇ = Σ_{|τ| ≤ p} h^{|τ|−1} b(τ)/σ(τ) F(τ)(θ).

    One-step error against ``RungeKuttaDescent`` O(h^{p+1}). Up to the order of the method itself it is gradient flow;
    with ``flows.series.EULER`` it is ModifiedFlow. Sources, cost and errors as in ``ModifiedFlow``.
    """

    landscape: Landscape
    h: float
    order: int
    method: ExplicitMethod

    @property
    def radius(self) -> float:
        """The least |z| with R(z) = 0, R the stability function, a singularity of log R(z)/z; order 1 has one term."""
        z = sympy.Symbol("z")
        zeros = sympy.Poly(stability_function(self.method, z), z).nroots()
        return math.inf if self.order == 1 else min(map(float, map(abs, zeros)), default=math.inf)

    @property
    def name(self) -> str:
        return f"ModifiedRungeKuttaFlow order {self.order}"

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_method(self.method)
        check_order(self.order, self.landscape, self)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """The modified field at θ, shape (..., d)."""
        return landscape_program(self.method, self.order, self.h)(self.landscape.expand(state))[0]


def check_order(order: int, landscape: Landscape, flow: Flow) -> None:
    """Raise unless ``order`` is an integer in 1 … HIGHEST_ORDER; warn if the landscape is not smooth enough."""
    if check_count("order", order) > HIGHEST_ORDER:
        raise ValueError(f"order must be at most {HIGHEST_ORDER}, the highest implemented, got {short_form(order)}")
    warn_smoothness(landscape, order, flow.name)  # the name has the order, and is formed of a checked one


def non_principal_term(point: Expansion) -> Tensor:
    """(1/12) D³f[∇f, ∇f]: the first term of the modified field that the principal flow omits; shape (..., d)."""
    return point.third(point.grad, point.grad) / 12
