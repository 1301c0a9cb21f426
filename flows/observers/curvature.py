r"""Curvature along a run: top eigenpairs followed through crossings, stability coefficients and the regimes of hλ.

Eigenvalues, residuals and what is computed from them are float64 on the CPU, as all of landscapes.krylov keeps them.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from flows.engines.recorder import LandscapeObserver
from flows.models.principal import SINGULAR, real_coefficient
from flows.observers.modes import ModeFollower, Modes, check_real_theta, each_member
from landscapes import Landscape
from landscapes.errors import check_positive

REGIMES = ("escape", "real stable", "singular", "complex stable", "complex unstable", "undefined")
"""What gradient descent does in a mode, by the code in "stability regimes": see ``regimes``."""


def regimes(x: Tensor) -> Tensor:
    r"""The place in ``REGIMES`` of each x = hλ, int64 of the shape of x.

    escape: x < 0, a maximum of the mode is left; real stable: 0 ≤ x < 1, its minimum is approached from one side;
    singular: |1 − x| < 1e-6, reached in one step; complex stable: 1 < x < 2, approached from side to side; complex
    unstable: x ≥ 2, it is not. undefined: x is NaN.
    """
    codes = torch.where(x < 0, 0, torch.where(x < 1, 1, torch.where(x < 2, 3, 4)))
    codes = torch.where((1 - x).abs() < SINGULAR, 2, codes)
    return torch.where(x.isnan(), 5, codes)


@final
class TopEigenpairs(LandscapeObserver):
    r"""The ``count`` largest eigenpairs of the Hessian and the gradient's components, modes followed through crossings.

    "top eigenvalues", "top residuals" ‖Hu − λu‖ and "top errors", an estimate of |λ − exact|: (..., k), largest first
    (k = count, or d where that is less; ``which`` as in ``eigenpairs``). "top order" (..., k): the place among them of
    each followed mode, whose "top followed eigenvalues" and "top gradient components" gᵀu_i are (..., k), and whose
    "top overlaps" |uᵀu_before| tell how surely it was found again: below ½ the mode has left and another has its place;
    0 at the first state. A u_i is right to its residual over its gap, gᵀu_i to ‖g‖ times that: components far below ‖g‖
    want a smaller ``tolerance``. "top converged" and "top products" (...,): whether every error is within ``tolerance``
    times the largest eigenvalue, and the HVPs spent, at most ``limit``; an unconverged state is also flagged
    (UnconvergedWarning, or a note in the trajectory). With ``vectors``, "top vectors" (..., k, d), the followed u_i.

    Other observers may share the pairs: whoever comes first at a state finds them, and its ``counts`` show the cost,
    one gradient and "top products" HVPs a member. One run at a time: k that does not grow begins a new one. Starts are
    warm within a run and never depend on the run before.

    Raises UnsupportedError at complex θ, TypeError or ValueError for arguments out of place.
    """

    def __init__(
        self,
        landscape: Landscape,
        count: int = 4,
        *,
        which: str = "largest",
        tolerance: float = 1e-4,
        limit: int = 300,
        vectors: bool = False,
        every: int = 1,
        name: str = "top",
    ):
        super().__init__(landscape, every, name)
        if not isinstance(vectors, bool):
            raise TypeError(f"vectors must be True or False, got {vectors!r}")
        self.follower = ModeFollower(count, which, tolerance, limit)
        self._vectors = vectors

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        modes = self.follower.at(self.counted, k, check_real_theta(self, theta))
        return each_member(lambda i: self._shown(modes[i]), theta.shape[:-1])

    def _shown(self, modes: Modes) -> dict[str, Tensor]:
        followed, pairs = modes.followed, modes.followed.pairs
        shown = {
            "eigenvalues": pairs.values,
            "residuals": pairs.residuals,
            "errors": pairs.errors,
            "converged": torch.tensor(pairs.converged),
            "products": torch.tensor(pairs.products),
            "order": followed.order,
            "followed eigenvalues": followed.values,
            "gradient components": modes.components(modes.gradient),
            "overlaps": followed.overlaps.to(torch.float64),
        }
        shown |= {"vectors": followed.vectors} if self._vectors else {}
        return {f"{self.name} {quantity}": value for quantity, value in shown.items()}


@final
class Sharpness(LandscapeObserver):
    r"""The largest eigenvalue of the Hessian, as "sharpness" (...,), with "sharpness residual" and its kin.

    "sharpness residual" ‖Hu − λu‖ and "sharpness converged" (...,). Gradient descent is stable while it is below 2/h.
    One gradient and a few HVPs a member and state, at most ``limit``; warm starts as in ``TopEigenpairs``.

    Raises UnsupportedError at complex θ, TypeError or ValueError for arguments out of place.
    """

    def __init__(
        self,
        landscape: Landscape,
        *,
        tolerance: float = 1e-4,
        limit: int = 300,
        every: int = 1,
        name: str = "sharpness",
    ):
        super().__init__(landscape, every, name)
        self._follower = ModeFollower(1, "largest", tolerance, limit)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"sharpness": (...,), "sharpness residual": (...,), "sharpness converged": (...,)}."""
        modes = self._follower.at(self.counted, k, check_real_theta(self, theta))
        return each_member(lambda i: self._shown(modes[i]), theta.shape[:-1])

    def _shown(self, modes: Modes) -> dict[str, Tensor]:
        pairs = modes.followed.pairs
        return {
            self.name: pairs.values[0],
            f"{self.name} residual": pairs.residuals[0],
            f"{self.name} converged": torch.tensor(pairs.converged),
        }


@final
class StabilityCoefficients(LandscapeObserver):
    r"""What each followed mode does to the loss along the principal flow of rate h: dE/dt = Σ_i sc_i (gᵀu_i)².

    "stability coefficients" (..., k) complex: sc_i = α(hλ_i), α(x) = log(1 − x)/x, negative where the mode lowers the
    loss, with an imaginary part where gradient descent oscillates, −∞ at hλ = 1. "stability contributions" (..., k)
    complex: sc_i (gᵀu_i)², beside "stability eigenvalues" and "stability gradient components" (..., k).
    "stability remainder" (...,): −(‖g‖² − Σ_i (gᵀu_i)²), what the gradient outside the modes contributes as α → −1.

    "stability scaled eigenvalues" (..., k): hλ_i, the map of validity, with "stability regimes", places in ``REGIMES``,
    and "stability series hold", |hλ_i| < 1: only there do modified flows of growing order converge. Cut at order 2, the
    field still points downhill above hλ = −2 and turns escape into attraction below; the principal flow holds in every
    mode that is not singular; gradient flow has no series, and no oscillation, and is stable at any hλ > 0.

    ``pairs``: the eigenpairs, shared with it and others; no more is asked of the landscape. The modes are in followed
    order. Source: Rosca et al. 2023, arXiv 2302.01952. Raises as ``TopEigenpairs``.
    """

    def __init__(self, pairs: TopEigenpairs, h: float, *, every: int = 1, name: str = "stability"):
        super().__init__(check_pairs(pairs).landscape, every, name)
        self.h = check_positive("h", h)
        self._follower = pairs.follower

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        modes = self._follower.at(self.counted, k, check_real_theta(self, theta))
        return each_member(lambda i: self._shown(modes[i]), theta.shape[:-1])

    def _shown(self, modes: Modes) -> dict[str, Tensor]:
        components = modes.components(modes.gradient)
        x = self.h * modes.eigenvalues
        # (k, 2), real and imaginary: in complex arithmetic −∞ + 0i divided or multiplied by a real number is NaN
        coefficients = torch.stack([real_coefficient(x), torch.where(x > 1, torch.pi / x, 0 * x)], dim=-1)
        contributions = torch.where(components[:, None] == 0, 0, coefficients * components.square()[:, None])
        remainder = torch.linalg.vector_norm(modes.remainder()).to("cpu", torch.float64)
        shown = {
            "eigenvalues": modes.eigenvalues,
            "gradient components": components,
            "coefficients": torch.view_as_complex(coefficients),
            "contributions": torch.view_as_complex(contributions),
            "remainder": -remainder.square(),
            "scaled eigenvalues": x,
            "regimes": regimes(x),
            "series hold": x.abs() < 1,
        }
        return {f"{self.name} {quantity}": value for quantity, value in shown.items()}


@final
class GradientCurvature(LandscapeObserver):
    r"""The curvature along the gradient, as "gradient curvature": the Rayleigh quotient gᵀHg/‖g‖², (...,).

    "gradient curvature Hg norm" (...,): ‖Hg‖, to which the drift of an iteration is proportional. NaN at g = 0 for the
    first. One gradient and one HVP a member and state, in θ's precision. Raises UnsupportedError at complex θ.
    """

    def __init__(self, landscape: Landscape, *, every: int = 1, name: str = "gradient curvature"):
        super().__init__(landscape, every, name)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"gradient curvature": (...,), "gradient curvature Hg norm": (...,)}."""
        point = self.counted.expand(check_real_theta(self, theta))
        gradient = point.grad
        size = gradient.abs().amax(-1, keepdim=True)
        along = gradient / torch.where(size == 0, 1, size)  # (..., d), whose squares do not underflow
        curved = point.hvp(along)
        quotient = (along * curved).sum(-1) / along.square().sum(-1)
        return {self.name: quotient, f"{self.name} Hg norm": size[..., 0] * torch.linalg.vector_norm(curved, dim=-1)}


def check_pairs(pairs: TopEigenpairs) -> TopEigenpairs:
    """Return ``pairs``; raise unless it is a TopEigenpairs."""
    if not isinstance(pairs, TopEigenpairs):
        raise TypeError(f"pairs must be a TopEigenpairs, got {type(pairs).__name__}; write TopEigenpairs(landscape)")
    return pairs
