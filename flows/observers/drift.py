r"""Drift: the distance of one iteration of gradient descent from gradient flow over the same time."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from flows.arguments import check_rate
from flows.engines.integrate import integrate
from flows.engines.recorder import LandscapeObserver
from flows.models.gradient import GradientFlow
from flows.observers.modes import each_member
from landscapes import Landscape
from landscapes.errors import check_positive
from landscapes.wrappers.base import Wrapper


@final
class Displaced(Wrapper):
    """f(θ + δ) as a function of δ, so that rounding is relative to the length of a short path, not to ‖θ‖."""

    def __init__(self, landscape: Landscape, theta: Tensor):
        self.landscape = landscape
        self._theta = theta

    def loss(self, theta: Tensor) -> Tensor:
        """f(θ + δ), shape (...,)."""
        return self.landscape.loss(self._theta + theta)

    def grad(self, theta: Tensor) -> Tensor:
        """∇f(θ + δ), shape (..., d)."""
        return self.landscape.grad(self._theta + theta)


@final
class Drift(LandscapeObserver):
    r"""The drift of one iteration from θ, θ − h∇f(θ) − X(h; θ) with X gradient flow, measured and predicted from ‖Hg‖.

    "drift measured" (...,): its norm. "drift predicted" (...,): (h²/2)‖Hg‖, the leading term. "drift ratio" (...,):
    measured over predicted, 1 + O(h). Along full-batch
    gradient descent of rate h it is the run's own drift per iteration; along other runs, that of gradient descent
    started at each state. Measured and ratio are NaN if gradient flow cannot be integrated over h (it overflows, or
    steps underflow); the ratio also if Hg = 0.

    Cost per member and state: a gradient, an HVP, and dopri5's gradients, 7 if one step suffices. The members of a
    batch are integrated one by one, each to its own tolerance. Moduli at complex θ.

    ``tolerance`` is that of a step of the solver, as a fraction of the prediction, and no bound of the error: the
    errors of n steps, at most ``tolerance`` each as far as dopri5's estimate is right, add, and one made at time s has
    grown by at most exp((h − s)|λ|) at h, λ the most negative eigenvalue of the Hessian on the way. n is 1 while hλ is
    small; on a network at h = 1.5 errors of 1.6 times the tolerance are measured. An error that is to be below a
    fraction of the drift needs a tolerance smaller than it by n exp(h|λ|).
    """

    def __init__(self, landscape: Landscape, h: float, *, tolerance: float = 1e-3, every: int = 1, name: str = "drift"):
        super().__init__(landscape, every, name)
        check_positive("h", h)
        self.h = check_rate("h", h)
        self.tolerance = check_positive("tolerance", tolerance)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"drift measured": (...,), "drift predicted": (...,), "drift ratio": (...,)}."""
        members = self.landscape.check(theta).detach().reshape(-1, theta.shape[-1])
        return each_member(lambda i: self._quantities(members[i]), theta.shape[:-1])

    def _quantities(self, theta: Tensor) -> dict[str, Tensor]:
        point = self.counted.expand(theta)
        gradient = point.grad
        curvature = torch.linalg.vector_norm(point.hvp(gradient))
        predicted = self.h**2 / 2 * curvature
        moves = bool(gradient.any())
        flow = self._flow(theta, self._tolerance(theta, gradient, curvature)) if moves else gradient
        measured = torch.linalg.vector_norm(-self.h * gradient - flow)
        quantities = {"measured": measured, "predicted": predicted, "ratio": measured / predicted}
        return {f"{self.name} {quantity}": value for quantity, value in quantities.items()}

    def _tolerance(self, theta: Tensor, gradient: Tensor, curvature: Tensor) -> float:
        """The error of a step allowed in a component of X: ``tolerance`` of the drift, not below rounding's effect.

        Rounding changes θ by eps‖θ‖ and hence the gradient by about eps‖θ‖ ‖Hg‖/‖g‖, which bounds every solver.
        """
        eps = torch.finfo(theta.dtype).eps
        rounding = eps * torch.linalg.vector_norm(theta) / torch.linalg.vector_norm(gradient)
        allowed = self.h * curvature * torch.clamp(rounding, min=self.tolerance * self.h / 2)
        return float(allowed) / theta.shape[-1] ** 0.5

    def _flow(self, theta: Tensor, tolerance: float) -> Tensor:
        """X(h; θ) − θ by gradient flow, (d,); NaN if the flow cannot be integrated."""
        failed = torch.full_like(theta, torch.nan)
        if not tolerance < float("inf"):  # true for NaN, too
            return failed
        run = integrate(
            GradientFlow(Displaced(self.counted, theta)),
            torch.zeros_like(theta),
            [0.0, self.h],
            rtol=4 * torch.finfo(theta.dtype).eps,
            atol=max(tolerance, torch.finfo(theta.dtype).tiny),
            first_step=self.h,  # with hλ about 1, as where drift matters, one or two steps suffice
            keep="last",
        )
        # integrate caught an interrupt, which is meant for the observed run
        return run.theta[-1] if run.check_uninterrupted().complete else failed
