r"""The principal flow: the sum of all terms of the modified equation that contain the gradient and the Hessian only.

Rosca, Wu, Qin & Dherin 2023, arXiv 2302.01952. Complex if an eigenvalue exceeds 1/h, singular at hλ = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model, check_point
from flows.declared import Clock
from flows.flow import BranchError, Flow, SingularModeError, flag_unconverged
from flows.models.modified import non_principal_term
from landscapes import Landscape
from landscapes.errors import check_choice, check_count, check_flag, check_positive
from landscapes.expansion import Expansion
from landscapes.krylov import matrix_function, spectral_action
from landscapes.krylov.precision import check_full_precision

SINGULAR = 1e-6  # a mode within this distance of hλ = 1 is treated as singular


def principal_coefficient(x: Tensor) -> Tensor:
    r"""α(x) = log(1 − x)/x with α(0) = −1, for x = hλ.

    Real x < 1: real. Complex x, or real x > 1: the logarithm with arg(1 − x) in (−π/2, 3π/2), so that its cut lies on
    the negative imaginary axis. The principal cut lies on the negative real axis, where 1 − x is at real hλ > 1: runs
    would cross it, and adaptive integrators stall there. For real x > 1: log|1 − x| + iπ.
    """
    if not x.is_complex():
        if bool((x < 1).all()):
            return log_over_x(torch.log1p(-x), x)
        x = x.to(x.dtype.to_complex())
    real, imag = x.real, x.imag
    excess = real * (real - 2) + imag * imag  # |1 − x|² − 1: exact at small x, cancels near the singular mode
    modulus = torch.where(excess.abs() < 0.5, torch.log1p(excess) / 2, torch.hypot(1 - real, imag).log())
    angle = torch.atan2(-imag, 1 - real)
    angle = torch.where(angle <= -torch.pi / 2, angle + 2 * torch.pi, angle)
    return log_over_x(torch.complex(modulus, angle), x)


def real_coefficient(x: Tensor) -> Tensor:
    """Re α(x) = log|1 − x|/x with Re α(0) = −1, for real x = hλ."""
    # log1p(−x) keeps small x exact, and |1 − x| is only needed beyond the singular mode.
    return log_over_x(torch.where(x < 1, torch.log1p(-x.clamp(max=1)), torch.log((1 - x).abs())), x)


def log_over_x(logarithm: Tensor, x: Tensor) -> Tensor:
    """log(1 − x)/x, replaced by its limit −1 at |x| < ε/4: a quotient of subnormal numbers has no correct digits."""
    small = x.abs() < torch.finfo(x.dtype).eps / 4
    return torch.where(small, -torch.ones_like(logarithm), logarithm / torch.where(small, 1, x))


@final
@dataclass(frozen=True)
class PrincipalFlow(Flow):
    r"""Principal flow  θ̇ = (hH)⁻¹ log(I − hH) ∇f = Σ_i α(hλ_i)(u_iᵀ∇f) u_i,  α(x) = log(1 − x)/x.

    Exact for gradient descent on quadratics; one-step error O(h³), O(h⁴) with ``third_order``, which adds
    −(h²/12) D³f[∇f, ∇f]. Singular at hλ = 1: within 1e-6 of it ``velocity`` raises SingularModeError.

    ``branch="complex"``: real while every hλ < 1; ``start`` promotes θ0 to complex, so the loss must be holomorphic;
    real θ with an hλ > 1 raises BranchError. ``branch="real"``: Re α, real θ only; the growth of |u_iᵀ∇f| per step is
    that of gradient descent, without its change of sign at hλ > 1.

    ``krylov=None`` takes the dense Hessian (d HVPs unless it has a closed form). Otherwise α(hH)∇f comes from a Krylov
    space grown from ∇f until its estimated relative error is within ``tolerance``, with at most ``krylov`` HVPs;
    reaching the limit gives an UnconvergedWarning, or a note in the trajectory of a run.

    Source: Rosca et al. 2023, arXiv 2302.01952; the branch cut is rotated, see ``principal_coefficient``.
    """

    landscape: Landscape
    h: float
    krylov: int | None = None
    tolerance: float = 1e-6
    third_order: bool = False
    branch: str = "complex"

    @property
    def name(self) -> str:
        """PrincipalFlow, with the branch and the third order if they are not the defaults."""
        marks = [m for m, on in (("real branch", self.branch == "real"), ("third order", self.third_order)) if on]
        return f"PrincipalFlow ({', '.join(marks)})" if marks else "PrincipalFlow"

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        if self.krylov is not None:
            check_count("krylov", self.krylov)
        check_positive("tolerance", self.tolerance)
        check_flag("third_order", self.third_order)
        check_choice("branch", self.branch, ("complex", "real"))

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def start(self, theta0: Tensor) -> Tensor:
        """θ0, promoted to complex on the complex branch."""
        check_point("theta0", theta0)
        return theta0 if self.branch == "real" or theta0.is_complex() else theta0.to(theta0.dtype.to_complex())

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """α(hH) ∇f, shape (..., d)."""
        if check_full_precision("state", check_point("state", state)).is_complex() and self.branch == "real":
            raise BranchError("branch='real' takes real theta only; use branch='complex' or give theta.real")
        if self.krylov is not None and state.ndim > 1:
            return each_member(partial(self.velocity, t), state)
        point = self.landscape.expand(state)
        field = self._dense(point) if self.krylov is None else self._krylov(point, self.krylov)
        return field - self.h**2 * non_principal_term(point) if self.third_order else field

    def coefficient(self, eigenvalues: Tensor) -> Tensor:
        """α(hλ) on the flow's branch."""
        x = self.h * eigenvalues
        return real_coefficient(x) if self.branch == "real" else principal_coefficient(x)

    def _dense(self, point: Expansion) -> Tensor:
        hessian = point.hessian()
        finite = hessian.isfinite().all(dim=-1).all(dim=-1)
        # torch.linalg raises on NaN for the whole batch: members with NaN get a NaN velocity, and engines freeze them.
        usable = hessian if bool(finite.all()) else torch.where(finite[..., None, None], hessian, 0)
        field, eigenvalues = spectral_action(usable, point.grad, self.coefficient)
        self._check_modes(self.h * eigenvalues, point.theta)
        return torch.where(finite[..., None], field, torch.nan).to(point.theta.dtype)

    def _krylov(self, point: Expansion, limit: int) -> Tensor:
        result = matrix_function(point.hvp, point.grad, self.coefficient, limit, self.tolerance)
        self._check_modes(self.h * result.ritz, point.theta)
        if not result.converged and not math.isnan(result.change):  # more products do not help against a NaN
            flag_unconverged(
                f"PrincipalFlow: krylov={limit} HVPs did not reach tolerance {self.tolerance:g} at every evaluation; "
                "give more, or a larger tolerance"
            )
        return result.value.to(point.theta.dtype)

    def _check_modes(self, x: Tensor, theta: Tensor) -> None:
        """Raise if a mode is singular, or if the flow is complex on the complex branch while θ is real."""
        check_singular(x, self.h)
        if self.branch == "complex" and not theta.is_complex() and bool((x > 1).any()):
            raise BranchError(
                f"the principal flow is complex here: the largest hλ is {float(x.max()):.6g} > 1; "
                "give complex theta (start(theta0) promotes it) or use branch='real'"
            )


def check_singular(x: Tensor, h: float) -> None:
    """Raise SingularModeError if one of x = hλ (..., n) is within 1e-6 of 1."""
    singular = (1 - x).abs() < SINGULAR
    if bool(singular.any()):
        first = float(x.real[singular][0])
        raise SingularModeError(
            f"singular mode: an eigenvalue λ = {first / h:.6g} of the Hessian has hλ = {first:.8g}, where gradient "
            "descent lands on that mode's minimum in one step and the principal flow does not exist; change h",
            singular.any(dim=-1),
        )


def each_member(velocity: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    """``velocity`` of every batch member (d,) in turn; one error reports all singular members."""
    members = state.reshape(-1, state.shape[-1])
    fields, singular, sentence = [], torch.zeros(members.shape[0], dtype=torch.bool), ""
    for i, member in enumerate(members):
        try:
            fields.append(velocity(member))
        except SingularModeError as error:
            singular[i], sentence = True, str(error)
    if sentence:
        raise SingularModeError(sentence, singular.reshape(state.shape[:-1]))
    return torch.stack(fields).reshape(state.shape)
