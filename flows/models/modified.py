r"""Modified equations of gradient descent by backward error analysis.

The map θ − h∇f(θ) is, up to O(h^{p+1}), the time-h flow of the field truncated at order p. Order 2 descends the
modified loss f + (h/4)‖∇f‖² (implicit gradient regularisation); from order 3 on the field is in general no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from flows.flow import Flow
from flows.models.arguments import check_model
from landscapes import Landscape
from landscapes.errors import check_count
from landscapes.landscape import Expansion

HIGHEST_ORDER = 3


@final
@dataclass(frozen=True)
class ModifiedFlow(Flow):
    r"""Modified flow of order p  θ̇ = −∇f − (h/2) H∇f − h² [(1/3) HH∇f + (1/12) D³f[∇f, ∇f]] − …, cut after h^{p−1}.

    One-step error against gradient descent O(h^{p+1}). The series converges for |hλ| < 1 only: at negative eigenvalues
    below −1/h even orders attract where gradient descent escapes. Orders 1 to 3 are built; order 1 is gradient flow.
    Cost of an evaluation: order 1, one gradient; 2, one HVP more; 3, two HVPs and one third derivative more.

    Sources: Hairer, Lubich & Wanner, ch. IX; order 2: Barrett & Dherin 2021, arXiv 2009.11162, eq. (5);
    order 3: Rosca et al. 2023, arXiv 2302.01952. Raises ValueError naming the highest order built.
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
        """ModifiedFlow with its order."""
        return f"ModifiedFlow order {self.order}"

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        if check_count("order", self.order) > HIGHEST_ORDER:
            raise ValueError(f"order must be at most {HIGHEST_ORDER}, the highest built so far, got {self.order}")

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """The modified field at θ, shape (..., d)."""
        if self.order == 1:
            return -self.landscape.grad(state)
        point = self.landscape.expand(state)
        hg = point.hvp(point.grad)
        field = -point.grad - (self.h / 2) * hg
        return field if self.order == 2 else field - self.h**2 * third_order_term(point, hg)


def third_order_term(point: Expansion, hg: Tensor) -> Tensor:
    """(1/3) HH∇f + (1/12) D³f[∇f, ∇f], given H∇f; shape (..., d)."""
    return point.hvp(hg) / 3 + non_principal_term(point)


def non_principal_term(point: Expansion) -> Tensor:
    """(1/12) D³f[∇f, ∇f]: the first term of the modified field that the principal flow leaves out; shape (..., d)."""
    return point.third(point.grad, point.grad) / 12
