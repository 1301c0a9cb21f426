r"""Exact second moments of SGD, of SVAG and of their stochastic equations on sums of quadratics.

With z = (θ, 1) the gradients of the examples are B_i z, and Z = E zzᵀ obeys a closed linear equation for additive and
for multiplicative noise. With B = mean B_i and D(Z) = mean (B_i − B) Z (B_i − B)ᵀ, both padded by zeros,

    θ' = θ − ηĝ, Cov ĝ = cD:            Z' = (I − ηB) Z (I − ηB)ᵀ + η²c D(Z)       SGD: η = h;  SVAG: η = h/l, c ↦ lc
    dX = −∇f dt + √(hc) D^{1/2} dW:     dZ/dt = −BZ − ZBᵀ + hc D(Z);  order 2: (I + (h/2)H)B for B in the drift

where c is the variance factor of the sampling. Loss, ‖∇f‖² and ‖θ − θ*‖² are linear in Z.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from flows.arguments import check_rate
from flows.comparison.laws import LOSS, SQUARED_NORM
from landscapes.errors import check_count, check_float_tensor, check_nonnegative, check_real
from landscapes.toys.closed_form import check_real_tensor
from landscapes.toys.finite_sums import QuadraticExamples

MOST_STEPS = 10**7  # whose moments are kept
MOST = 12  # of dimensions: the equation for Z is exponentiated as a dense matrix of size (d + 1)²
OFFSET = "‖θ − θ*‖²"


class SecondMoments:
    """The moments on one landscape, a sum of quadratics of at most 12 dimensions; float64."""

    def __init__(self, landscape: QuadraticExamples):
        if not isinstance(landscape, QuadraticExamples):
            raise TypeError(f"landscape must be a sum of quadratics, got {type(landscape).__name__}")
        if landscape.dimension > MOST:
            raise ValueError(f"landscape must have at most {MOST} dimensions, got {landscape.dimension}")
        self.landscape = landscape
        d = landscape.dimension
        origin = torch.zeros(d, dtype=torch.float64)
        pull = landscape.example_grads(origin)  # (N, d)
        columns = [landscape.example_grads(e) - pull for e in torch.eye(d, dtype=torch.float64)]
        examples = torch.stack([*columns, pull], dim=-1)  # (N, d, d + 1)
        self.mean = examples.mean(dim=0)
        self.spread = examples - self.mean
        self._level = float(landscape.loss(origin))

    @cached_property
    def minimum(self) -> Tensor:
        """θ* (d,), the minimum of least norm."""
        return -torch.linalg.pinv(self.mean[:, :-1], hermitian=True) @ self.mean[:, -1]

    @property
    def sharpness(self) -> float:
        """The largest eigenvalue of the Hessian."""
        return float(torch.linalg.eigvalsh(self.mean[:, :-1])[-1])

    def noise(self, moment: Tensor) -> Tensor:
        """D(Z), padded: (d + 1, d + 1)."""
        self.check_moments("moment", moment, ndim=2)
        return pad(torch.einsum("nij,jk,nlk->il", self.spread, moment, self.spread) / len(self.spread), (0, 1, 0, 1))

    def descent(self, theta0: Tensor, rate: float, factor: float, steps: int) -> Tensor:
        """Z of θ' = θ − rate·ĝ with Cov ĝ = factor·D, after 0, 1, …, ``steps`` steps, (steps + 1, d + 1, d + 1)."""
        check_rate("rate", rate)
        check_nonnegative("factor", factor)
        moments = [self.start(theta0)]
        check_count("steps", steps, minimum=0, maximum=MOST_STEPS)
        step = torch.eye(len(moments[0]), dtype=torch.float64) - rate * pad(self.mean, (0, 0, 0, 1))
        for _ in range(steps):
            before = moments[-1]
            moments.append(step @ before @ step.mT + rate**2 * factor * self.noise(before))
        return torch.stack(moments)

    def equation(self, theta0: Tensor, h: float, factor: float, times: Tensor, order: int = 1) -> Tensor:
        """Z of SGD's equation of that order, σσᵀ = h·factor·D, at the times (T,) after the start, (T, d + 1, d + 1)."""
        check_real("h", h)
        check_nonnegative("factor", factor)
        if check_count("order", order, maximum=2) and check_real_tensor("times", times).ndim != 1:
            raise ValueError(f"times must have shape (T,), got {tuple(times.shape)}")
        first = self.start(theta0)
        size = len(first)
        pull = self.mean if order == 1 else self.mean + h / 2 * self.mean[:, :-1] @ self.mean
        drift = -pad(pull, (0, 0, 0, 1))
        basis = torch.eye(size**2, dtype=torch.float64).reshape(-1, size, size)
        images = [drift @ e + e @ drift.mT + h * factor * self.noise(e) for e in basis]
        generator = torch.stack([image.reshape(-1) for image in images], dim=-1)
        moved = torch.linalg.matrix_exp(times.double()[:, None, None] * generator) @ first.reshape(-1)
        return moved.reshape(-1, size, size)

    def expectations(self, moments: Tensor) -> dict[str, Tensor]:
        """E f, E‖∇f‖² and E‖θ − θ*‖² of moments Z (..., d + 1, d + 1), each (...,)."""
        self.check_moments("moments", moments)
        hessian, pull = self.mean[:, :-1], self.mean[:, -1:]
        level = torch.tensor([[2 * self._level]], dtype=torch.float64)
        loss = torch.cat([torch.cat([hessian, pull], dim=1), torch.cat([pull.mT, level], dim=1)])
        offset = torch.cat([torch.eye(len(hessian), dtype=torch.float64), -self.minimum[:, None]], dim=1)
        forms = {LOSS: loss / 2, SQUARED_NORM: self.mean.mT @ self.mean, OFFSET: offset.mT @ offset}
        return {name: torch.einsum("ij,...ij->...", form, moments) for name, form in forms.items()}

    def functions(self) -> dict[str, object]:
        """The same observables as functions of θ (..., d)."""
        return {
            LOSS: self.landscape.loss,
            SQUARED_NORM: lambda theta: self.landscape.grad(theta).square().sum(dim=-1),
            OFFSET: lambda theta: (theta - self.minimum.to(theta)).square().sum(dim=-1),
        }

    def check_moments(self, name: str, moments: Tensor, ndim: int | None = None) -> None:
        """Raise unless moments are float64 (..., d + 1, d + 1), of ``ndim`` dimensions if given."""
        size = self.landscape.dimension + 1
        check_float_tensor(name, moments)
        shaped = moments.shape[-2:] == (size, size) and moments.ndim == (ndim or moments.ndim)
        if not shaped or moments.dtype != torch.float64:
            raise ValueError(
                f"{name} must have shape (..., {size}, {size}) and float64, got {tuple(moments.shape)} {moments.dtype}"
            )

    def start(self, theta0: Tensor) -> Tensor:
        """zzᵀ at θ0 (d,), (d + 1, d + 1)."""
        if self.landscape.check(theta0).ndim != 1:
            raise ValueError(f"theta0 must have shape ({self.landscape.dimension},), got {tuple(theta0.shape)}")
        return outer_square(theta0)


def outer_square(theta0: Tensor) -> Tensor:
    """zzᵀ at θ0, (d + 1, d + 1)."""
    z = torch.cat([theta0.double().cpu(), torch.ones(1, dtype=torch.float64)])
    return torch.outer(z, z)
