r"""Curvature along a run: top eigenpairs followed through crossings, stability coefficients and the regimes of hλ.

Eigenvalues, residuals and quantities computed from them are float64 on the CPU, as in landscapes.krylov.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from flows.engines.recorder import LandscapeObserver
from flows.models.principal import SINGULAR, real_coefficient
from flows.observers.modes import ModeFollower, Modes, check_real_theta, each_member
from landscapes import Landscape
from landscapes.errors import check_positive, short_form

REGIMES = ("escape", "real stable", "singular", "complex stable", "complex unstable", "undefined")
"""Regimes of gradient descent in a mode, by the code in "stability regimes": see ``regimes``."""


def regimes(x: Tensor) -> Tensor:
    r"""The index in ``REGIMES`` of each x = hλ, int64 of the shape of x.

    escape: x < 0, escape from a maximum of the mode; real stable: 0 ≤ x < 1, monotonic convergence; singular:
    |1 − x| < 1e-6, convergence in one step; complex stable: 1 < x < 2, convergence with a sign change at every step;
    complex unstable: x ≥ 2, no convergence; undefined: x is NaN.
    """
    codes = torch.where(x < 0, 0, torch.where(x < 1, 1, torch.where(x < 2, 3, 4)))
    codes = torch.where((1 - x).abs() < SINGULAR, 2, codes)
    return torch.where(x.isnan(), 5, codes)


@final
class TopEigenpairs(LandscapeObserver):
    r"""The ``count`` largest eigenpairs of the Hessian and the gradient's components, modes followed through crossings.

    "top eigenvalues", "top residuals" ‖Hu − λu‖ and "top errors", an estimate of |λ − exact|: (..., k), largest first
    (k = min(count, d); ``which`` as in ``eigenpairs``). "top order" (..., k): the rank among them of each followed
    mode. "top followed eigenvalues" and "top gradient components" gᵀu_i (..., k) are in the order of the followed
    modes, as are "top overlaps" |uᵀu_before|, the reliability of the identification: below ½ another mode has replaced
    the followed one; 0 at the first state. The error of u_i is its residual over its gap, that of gᵀu_i ‖g‖ times
    this: components far below ‖g‖ need a smaller ``tolerance``. "top converged" and "top products" (...,): whether
    every error is within ``tolerance`` times the largest eigenvalue, and the number of HVPs, at most ``limit``; an
    unconverged state gives an UnconvergedWarning, or a note in the trajectory. With ``vectors``, "top vectors"
    (..., k, d), the followed u_i.

    Other observers may share the pairs: the first one called at a state computes them, and its ``counts`` have the
    cost, one gradient and "top products" HVPs per member. One run at a time: a k that does not grow starts a new run.
    Iterations are started from the last eigenvectors of the same run, never of an earlier one.

    Raises UnsupportedError at complex θ, TypeError or ValueError for invalid arguments.
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
            raise TypeError(f"vectors must be True or False, got {short_form(vectors)}")
        self.follower = ModeFollower(count, which, tolerance, limit)
        self._vectors = vectors

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        modes = self.follower.find(self.counted, k, check_real_theta(self, theta))
        return each_member(lambda i: self._quantities(modes[i]), theta.shape[:-1])

    def _quantities(self, modes: Modes) -> dict[str, Tensor]:
        followed, pairs = modes.followed, modes.followed.pairs
        quantities = {
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
        quantities |= {"vectors": followed.vectors} if self._vectors else {}
        return {f"{self.name} {quantity}": value for quantity, value in quantities.items()}


@final
class Sharpness(LandscapeObserver):
    r"""The largest eigenvalue of the Hessian, as "sharpness" (...,), with its residual and convergence.

    "sharpness residual" ‖Hu − λu‖ and "sharpness converged" (...,). Gradient descent is stable while it is below 2/h.
    One gradient per member and state, and HVPs: min(d, 20) or more at the first state of a run, a few at later ones, at
    most ``limit``; started as in ``TopEigenpairs``.

    Raises UnsupportedError at complex θ, TypeError or ValueError for invalid arguments.
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
        modes = self._follower.find(self.counted, k, check_real_theta(self, theta))
        return each_member(lambda i: self._quantities(modes[i]), theta.shape[:-1])

    def _quantities(self, modes: Modes) -> dict[str, Tensor]:
        pairs = modes.followed.pairs
        return {
            self.name: pairs.values[0],
            f"{self.name} residual": pairs.residuals[0],
            f"{self.name} converged": torch.tensor(pairs.converged),
        }


@final
class StabilityCoefficients(LandscapeObserver):
    r"""Effect of each followed mode on the loss along the principal flow of rate h: dE/dt = Σ_i sc_i (gᵀu_i)².

    "stability coefficients" (..., k) complex: sc_i = α(hλ_i), α(x) = log(1 − x)/x, negative if the mode lowers the
    loss, with an imaginary part if gradient descent oscillates, −∞ at hλ = 1. "stability contributions" (..., k)
    complex: sc_i (gᵀu_i)², with "stability eigenvalues" and "stability gradient components" (..., k).
    "stability remainder" (...,): −(‖g‖² − Σ_i (gᵀu_i)²), the contribution of the gradient outside the modes as α → −1.

    "stability scaled eigenvalues" (..., k): hλ_i, with "stability regimes", indices in ``REGIMES``, and "stability
    series hold", |hλ_i| < 1, the condition for modified flows of growing order to converge. Truncated at order 2, the
    field points downhill for hλ > −2 and turns escape into attraction below; the principal flow is valid in every mode
    that is not singular; gradient flow has no series and no oscillation, and is stable at any hλ > 0.

    ``pairs``: the observer whose eigenpairs are shared; the landscape is not evaluated further. The modes are in
    followed order. Source: Rosca et al. 2023, arXiv 2302.01952. Raises as ``TopEigenpairs``.
    """

    def __init__(self, pairs: TopEigenpairs, h: float, *, every: int = 1, name: str = "stability"):
        super().__init__(check_pairs(pairs).landscape, every, name)
        self.h = check_positive("h", h)
        self._follower = pairs.follower

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        modes = self._follower.find(self.counted, k, check_real_theta(self, theta))
        return each_member(lambda i: self._quantities(modes[i]), theta.shape[:-1])

    def _quantities(self, modes: Modes) -> dict[str, Tensor]:
        components = modes.components(modes.gradient)
        x = self.h * modes.eigenvalues
        # (k, 2), real and imaginary: in complex arithmetic (−∞ + 0i) times or over a real number is NaN.
        coefficients = torch.stack([real_coefficient(x), torch.where(x > 1, torch.pi / x, 0 * x)], dim=-1)
        contributions = torch.where(components[:, None] == 0, 0, coefficients * components.square()[:, None])
        remainder = torch.linalg.vector_norm(modes.remainder()).to("cpu", torch.float64)
        quantities = {
            "eigenvalues": modes.eigenvalues,
            "gradient components": components,
            "coefficients": torch.view_as_complex(coefficients),
            "contributions": torch.view_as_complex(contributions),
            "remainder": -remainder.square(),
            "scaled eigenvalues": x,
            "regimes": regimes(x),
            "series hold": x.abs() < 1,
        }
        return {f"{self.name} {quantity}": value for quantity, value in quantities.items()}


@final
class GradientCurvature(LandscapeObserver):
    r"""The curvature along the gradient, as "gradient curvature": the Rayleigh quotient gᵀHg/‖g‖², (...,).

    "gradient curvature Hg norm" (...,): ‖Hg‖, to which the drift of an iteration is proportional. At g = 0 the
    quotient is NaN. One gradient and one HVP per member and state, in θ's precision. Raises UnsupportedError at
    complex θ.
    """

    def __init__(self, landscape: Landscape, *, every: int = 1, name: str = "gradient curvature"):
        super().__init__(landscape, every, name)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"gradient curvature": (...,), "gradient curvature Hg norm": (...,)}."""
        point = self.counted.expand(check_real_theta(self, theta))
        gradient = point.grad
        size = gradient.abs().amax(-1, keepdim=True)
        along = gradient / torch.where(size == 0, 1, size)  # (..., d), scaled so that its squares do not underflow
        curved = point.hvp(along)
        quotient = (along * curved).sum(-1) / along.square().sum(-1)
        return {self.name: quotient, f"{self.name} Hg norm": size[..., 0] * torch.linalg.vector_norm(curved, dim=-1)}


def check_pairs(pairs: TopEigenpairs) -> TopEigenpairs:
    """Return ``pairs``; raise unless it is a TopEigenpairs."""
    if not isinstance(pairs, TopEigenpairs):
        raise TypeError(f"pairs must be a TopEigenpairs, got {type(pairs).__name__}; write TopEigenpairs(landscape)")
    return pairs
