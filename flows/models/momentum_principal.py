r"""The principal flow of momentum: heavy ball's and Nesterov's step as a flow of position and velocity, at fixed β.

A step adds δ(z) to z = (θ, v), and δ' = X, the matrix of the step less 1 with the Hessian at θ. Of the step's modified
equation ż = (1/h)(δ − δ'δ/2 + δ'δ'δ/3 + δ''(δ, δ)/12 + …), not a power series in h since X does not vanish with h,
the terms without δ'' sum to

    ż = (1/h) φ(X) δ(z),   φ(X) = log(I + X)/X:

exact on quadratics. Its 2×2 blocks are linear in L and K of ``momentum_modes``, functions of x = hλ.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from flows.arguments import at_rest, check_model, check_point, halves
from flows.declared import Clock
from flows.flow import BranchError, Flow, SingularModeError, flag_unconverged
from flows.models.momentum_modes import (
    Edges,
    MomentumModes,
    check_momentum,
    heavy_ball_edges,
    heavy_ball_modes,
    log_integrals,
    nesterov_edges,
    nesterov_modes,
)
from flows.models.principal import SINGULAR, each_member
from landscapes import Landscape
from landscapes.errors import check_choice, check_count, check_positive
from landscapes.expansion import Expansion
from landscapes.krylov import matrix_function
from landscapes.krylov.functions import Spectral, decompose
from landscapes.krylov.precision import check_full_precision


class MomentumPrincipalFlow(Flow):
    r"""Base of the principal flows of v' = βv − h∇f(x + κv), x' = x + v' on θ = x + κv and v.

        h θ̇ = (β − κ(1−β)) L(hH) v − ((1+κ) L(hH) − K(hH)) h∇f
        h v̇ = (hH K(hH) − (1−β) L(hH)) v − L(hH) h∇f

    State (θ, v) (..., 2d), starting at rest, (θ0, 0).
    """

    h: float
    momentum: float
    krylov: int | None
    tolerance: float
    branch: str

    @property
    @abstractmethod
    def look_ahead(self) -> float:
        """κ: the gradient is taken at x + κv."""

    @property
    @abstractmethod
    def edges(self) -> Edges:
        """The boundaries of the regimes of hλ; past the upper edge the flow is complex."""

    @abstractmethod
    def modes(self, x: Tensor) -> MomentumModes:
        """The step's matrix in each mode x = hλ (..., n)."""

    @abstractmethod
    def check_singular(self, x: Tensor) -> None:
        """Raise SingularModeError if M has no logarithm in a mode x = hλ (..., n)."""

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_momentum(self.momentum)
        if self.krylov is not None:
            check_count("krylov", self.krylov)
        check_positive("tolerance", self.tolerance)
        check_choice("branch", self.branch, ("complex", "real"))

    @property
    def name(self) -> str:
        """The name of the class, with "(real branch)" on the real branch."""
        return f"{type(self).__name__}{' (real branch)' if self.branch == 'real' else ''}"

    def start(self, theta0: Tensor) -> Tensor:
        """(θ0, 0), promoted to complex on the complex branch."""
        return self.resume(theta0, at_rest(theta0))

    def resume(self, theta: Tensor, velocity: Tensor) -> Tensor:
        """(θ, v), promoted to complex on the complex branch."""
        state = torch.cat([theta, velocity], dim=-1)
        return state if self.branch == "real" or state.is_complex() else state.to(state.dtype.to_complex())

    def position(self, state: Tensor) -> Tensor:
        return state.chunk(2, dim=-1)[0]

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """(θ̇, v̇), shape (..., 2d)."""
        if check_full_precision("state", check_point("state", state)).is_complex() and self.branch == "real":
            raise BranchError("branch='real' takes real states only; use branch='complex' or give state.real")
        if self.krylov is not None and state.ndim > 1:
            return each_member(partial(self.velocity, t), state)
        theta, v = halves(state, self.landscape.dimension)
        point = self.landscape.expand(theta)
        field = self._dense(point, v) if self.krylov is None else self._krylov(point, v, self.krylov)
        return torch.cat(field.unbind(0), dim=-1).to(state.dtype)

    def coefficients(self, eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of ∇f and of v in θ̇ and v̇ (2, ..., n): real on the real branch, or if every log M is real."""
        modes = self.modes(self.h * eigenvalues)
        slope, moment = log_integrals(modes)
        beta, ahead = self.momentum, self.look_ahead
        of_gradient = -torch.stack([(1 + ahead) * slope - moment, slope])
        of_velocity = torch.stack([(beta - ahead * (1 - beta)) * slope, modes.x * moment - (1 - beta) * slope]) / self.h
        if self.branch == "real" or not (eigenvalues.is_complex() or bool(modes.turned.any())):
            return of_gradient.real, of_velocity.real
        return of_gradient, of_velocity

    def _dense(self, point: Expansion, v: Tensor) -> Tensor:
        """(θ̇, v̇) as (2, ..., d) from the dense Hessian's spectrum."""
        hessian = point.hessian()
        finite = hessian.isfinite().all(dim=-1).all(dim=-1)
        # torch.linalg raises on NaN for the whole batch: members with NaN get a NaN velocity, and engines freeze them.
        usable = hessian if bool(finite.all()) else torch.where(finite[..., None, None], hessian, 0)
        along_gradient = decompose(usable, point.grad)
        self._check_modes(along_gradient.eigenvalues, point.theta)
        vectors = along_gradient.vectors
        # Solve, not vectorsᵀ: at complex θ the Hessian is complex symmetric and its eigenvectors are not orthogonal.
        components = torch.linalg.solve(vectors, v[..., None].to(vectors))[..., 0]
        along_v = dataclasses.replace(along_gradient, coefficients=components)
        of_gradient, of_velocity = self.coefficients(along_gradient.eigenvalues)
        field = along_gradient.action(of_gradient) + along_v.action(of_velocity)
        return torch.where(finite[..., None], field, torch.nan)

    def _krylov(self, point: Expansion, v: Tensor, limit: int) -> Tensor:
        """(θ̇, v̇) as (2, d) from one Krylov space of the gradient and one of v."""
        gradient_part = self._krylov_action(point, point.grad, lambda x: self.coefficients(x)[0], limit)
        return gradient_part + self._krylov_action(point, v, lambda x: self.coefficients(x)[1], limit)

    def _krylov_action(self, point: Expansion, vector: Tensor, function: Spectral, limit: int) -> Tensor:
        """Two functions of the Hessian on one vector, (2, d)."""
        result = matrix_function(point.hvp, vector, function, limit, self.tolerance)
        self._check_modes(result.ritz, point.theta)
        if not result.converged and not math.isnan(result.change):  # more products do not help against a NaN
            flag_unconverged(
                f"{type(self).__name__}: krylov={limit} HVPs did not reach tolerance {self.tolerance:g} at every "
                "evaluation; give more, or a larger tolerance"
            )
        return result.value

    def _check_modes(self, eigenvalues: Tensor, theta: Tensor) -> None:
        """Raise if a mode is singular, or if the flow is complex on the complex branch while θ is real."""
        x = self.h * eigenvalues
        self.check_singular(x)
        if self.branch == "complex" and not theta.is_complex() and bool(self.modes(x).turned.any()):
            raise BranchError(
                f"the flow is complex here: the largest hλ is {float(x.max()):.6g}, past {self.edges.upper:.6g}; "
                "give a complex state (start(theta0) promotes it) or use branch='real'"
            )


@final
@dataclass(frozen=True)
class HeavyBallPrincipalFlow(MomentumPrincipalFlow):
    r"""Principal flow of heavy ball  v' = βv − h∇f(θ), θ' = θ + v'; state (θ, v) (..., 2d), starting at (θ0, 0).

        h θ̇ = β L v − (L − K) h∇f
        h v̇ = (hH K − (1−β) L) v − L h∇f

    with L and K functions of hH (``momentum_modes``). On quadratics this is ż = (1/h) log(M) z, M = [[1−hλ, β],
    [−hλ, β]] in a mode, exact in every regime (``heavy_ball_regimes``), at hλ = 0 and at double roots. v = −h·buffer
    of torch.optim.SGD and of ``HeavyBall``, whose iterates it passes at t = kh. As β → 0 θ̇ tends to the principal
    flow's; β = 0 raises. One-step error O(h³) if v = O(h), as along every run from rest, during its transient of size
    β^k and after. At a v that does not shrink with h it is O(h).

    The field is real while every hλ is more than 1e-6 below the edge (1+√β)²; for β = 0.9 that is 3.797, and heavy ball
    turns unstable at 3.8. ``branch="complex"`` is exact beyond the edge, too; ``start`` promotes the state to complex,
    so the loss must be holomorphic; real states with a mode beyond it raise BranchError. ``branch="real"`` takes real
    states only: before the edge the same field, for any loss; beyond it log(−M), whose step has the descent's magnitude
    but not its sign. As a mode approaches the edge the field grows as π/√distance, and it jumps there: no logarithm is
    continuous at the edge.

    ``krylov=None`` takes the dense Hessian (d HVPs unless it has a closed form). Otherwise two Krylov spaces are grown,
    from ∇f and from v, each until its estimated relative error is within ``tolerance``, with at most ``krylov`` HVPs
    each; reaching the limit gives an UnconvergedWarning, or a note in the trajectory of a run. Near the upper edge this
    is dearer than the dense Hessian. Coefficients are singular at the edge, as 1/√(edge − x): the polynomials of a
    Krylov space converge the more slowly the nearer the singularity is to the spectrum, and each space then grows until
    it has nearly every distinct eigenvalue, 2d HVPs for d, and every product solves a small eigenproblem. There take
    ``krylov=None``, or else a ``tolerance`` below the solver's rtol.

    Source: derived here, from backward error analysis of the step; the principal flow is Rosca et al. 2023, arXiv
    2302.01952. Raises ValueError unless 0 < momentum < 1.
    """

    landscape: Landscape
    h: float
    momentum: float
    krylov: int | None = None
    tolerance: float = 1e-6
    branch: str = "complex"

    @property
    def declared_clock(self) -> Clock:
        return Clock(rule="heavy ball", momentum=self.momentum)

    @property
    def look_ahead(self) -> float:
        """0."""
        return 0.0

    @property
    def edges(self) -> Edges:
        """(1 ∓ √β)², 2(1 + β)."""
        return heavy_ball_edges(self.momentum)

    def modes(self, x: Tensor) -> MomentumModes:
        """M = [[1−x, β], [−x, β]]."""
        return heavy_ball_modes(x, self.momentum)

    def check_singular(self, x: Tensor) -> None:
        """det M = β is never 0."""


@final
@dataclass(frozen=True)
class NesterovPrincipalFlow(MomentumPrincipalFlow):
    r"""Principal flow of Nesterov's momentum  v' = βv − h∇f(θ), θ' = θ − h∇f(θ) + βv'; (θ, v), starting at (θ0, 0).

        h θ̇ = β² L v − ((1+β) L − K) h∇f
        h v̇ = (hH K − (1−β) L) v − L h∇f

    with L and K functions of hH (``momentum_modes``): exact on quadratics, with M = [[1−(1+β)hλ, β²], [−hλ, β]] in a
    mode, in every regime (``nesterov_regimes``), at hλ = 0 and at double roots. θ = x + βv is the iterate of torch and
    of ``Nesterov``, the point of the gradient, x that of the literature; v = −h·buffer. One-step error O(h³) if
    v = O(h), as along every run from rest.

    det M = β(1 − hλ): singular at hλ = 1, where both roots vanish; within 1e-6 of it ``velocity`` raises
    SingularModeError. Real below; above, one root is negative, and the branches are those of the principal flow:
    ``branch="complex"`` is exact there, promotes the state in ``start`` and requires a holomorphic loss;
    ``branch="real"`` keeps magnitudes along the eigenvectors of M, not signs. Descent is stable up to
    hλ = 2(1+β)/(1+2β). ``krylov`` and ``tolerance`` as in ``HeavyBallPrincipalFlow``.

    Source: derived here, as ``HeavyBallPrincipalFlow``. Raises ValueError unless 0 < momentum < 1.
    """

    landscape: Landscape
    h: float
    momentum: float
    krylov: int | None = None
    tolerance: float = 1e-6
    branch: str = "complex"

    @property
    def declared_clock(self) -> Clock:
        return Clock(rule="Nesterov", momentum=self.momentum)

    @property
    def look_ahead(self) -> float:
        return self.momentum

    @property
    def edges(self) -> Edges:
        """((1−β)/(1+β))², 1, 2(1+β)/(1+2β)."""
        return nesterov_edges(self.momentum)

    def modes(self, x: Tensor) -> MomentumModes:
        """M = [[1−(1+β)x, β²], [−x, β]]."""
        return nesterov_modes(x, self.momentum)

    def check_singular(self, x: Tensor) -> None:
        """Raise SingularModeError if one of x = hλ (..., n) is within 1e-6 of 1."""
        singular = (1 - x).abs() < SINGULAR
        if bool(singular.any()):
            first = float(x.real[singular][0])
            raise SingularModeError(
                f"singular mode: an eigenvalue λ = {first / self.h:.6g} of the Hessian has hλ = {first:.8g}, where "
                "Nesterov's momentum lands on that mode's minimum in two steps and its flow does not exist; change h",
                singular.any(dim=-1),
            )
