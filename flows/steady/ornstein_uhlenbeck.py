r"""Ornstein–Uhlenbeck processes: the linearisation of a stochastic modified equation at a minimum, with its exact law.

    dX = −F(X − x*) dt + B dW,   C = BBᵀ

At a minimum θ* with Hessian H and gradient noise of covariance C(θ*), SGD's equation of order 1 has F = H, that of
order 2 F = H + (h/2)H², both with hC(θ*); for momentum the state has twice the size. The descent's own law is a
``LinearChain``, so that the error of the equation is computed without sampling. If F and C do not commute, the
stationary S, FS + SFᵀ = C, is not ½F⁻¹C, and its current is not zero. Chaudhari & Soatto 2018, arXiv 1710.11029.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from scipy.linalg import solve_continuous_lyapunov
from torch import Tensor

from flows.arguments import check_friction, check_model, check_noise, check_rate
from flows.flow import Flow, StochasticFlow
from flows.models.modified import ModifiedFlow
from flows.models.momentum_modified import ModifiedHeavyBallFlow
from flows.models.stochastic import check_order
from flows.steady.linear_laws import (
    LinearChain,
    LinearLaw,
    NoStationaryLawError,
    Transition,
    check_covariance,
    check_matrix,
    check_times,
    check_vector,
    finite_transition,
    root_of,
    rounding,
    symmetrise,
)
from landscapes import Landscape, Quadratic, UnsupportedError
from landscapes.errors import check_float_tensor, check_positive, short_form
from landscapes.krylov.precision import check_full_precision
from landscapes.noise import GradientNoise, MinibatchNoise
from landscapes.noise.base import Kind
from landscapes.toys.closed_form import cast, check_real_tensor

MOST = 2000
"""The largest number of parameters of a linearised law: its matrices are dense."""


class NotAMinimumError(ValueError):
    """A law was requested at a point that is no minimum; ``measured`` is the offending eigenvalue or gradient norm."""

    def __init__(self, sentence: str, measured: float):
        super().__init__(sentence)
        self.measured = measured


class LinearFlow(LinearLaw, StochasticFlow):
    """Base of the two Ornstein–Uhlenbeck processes: dX = −F(X − x*) dt + B dW as a flow and as a law."""

    drift: Tensor
    diffusion_matrix: Tensor
    root: Tensor | None

    def __post_init__(self) -> None:
        centre = check_vector("centre", self.centre)
        size = len(centre)
        object.__setattr__(self, "centre", centre)
        object.__setattr__(self, "drift", check_matrix("drift", self.drift, size))
        covariance = check_covariance("diffusion_matrix", self.diffusion_matrix, size)
        object.__setattr__(self, "diffusion_matrix", covariance)
        if self.root is not None:
            object.__setattr__(self, "root", check_root(self.root, covariance))

    @cached_property
    def _root(self) -> Tensor:
        return root_of(self.diffusion_matrix) if self.root is None else self.root

    @property
    def noise_kind(self) -> Kind:
        return "additive"

    @property
    def noise_size(self) -> int:
        """The number of B's columns: s, unless a root is given."""
        return self._root.shape[-1]

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """−F(X − x*), shape (..., s)."""
        self._check_flow_state(state)
        return (cast(self.centre, state) - state) @ cast(self.drift, state).mT

    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        """B dW, shape (..., s)."""
        self._check_flow_state(state)
        if check_float_tensor("dw", dw).shape[-1:] != (self.noise_size,) or dw.dtype != state.dtype:
            raise ValueError(
                f"dw must have shape (..., {self.noise_size}) and {state.dtype}, as state has, got {tuple(dw.shape)} "
                f"{dw.dtype}"
            )
        return dw @ cast(self._root, state).mT

    def _check_flow_state(self, state: Tensor) -> None:
        """Raise unless the state has shape (..., s); its numbers may be anything, as a run checks them."""
        if check_float_tensor("state", state).shape[-1:] != self.centre.shape:
            raise ValueError(f"state must have shape (..., {len(self.centre)}), got {tuple(state.shape)}")

    def clock(self, t: float | Tensor) -> Tensor:
        """Times in float64."""
        times = check_times("times t", t, self.centre.device).double()
        if not bool(((times >= 0) & times.isfinite()).all()):
            raise ValueError(f"times t (or a lag) must be finite and not negative, got {short_form(t)}")
        return times

    def transition(self, t: float | Tensor) -> Transition:
        r"""A_t = e^{−Ft} and Q_t = ∫₀ᵗ e^{−Fs} C e^{−Fᵀs} ds, of any F, stable or not.

        By Van Loan's exponential over a time with ‖F‖t ≤ 1 and doubling, since for a stable F the block e^{Fᵀt} would
        overflow at moderate t. Van Loan 1978, IEEE Trans. Automat. Contr. 23.
        """
        times = self.clock(t)
        norm = torch.linalg.matrix_norm(self.drift, ord=1)
        doublings = (norm * times).log2().ceil().clamp(min=0).long()  # log 0 = −∞ is clamped to no doubling
        result = self._short_transition(times / torch.exp2(doublings.double()), norm)
        for done in range(int(doublings.max()) if doublings.numel() else 0):
            result = result.compose(result).select(doublings > done, result)
        return finite_transition(result, t)

    def _short_transition(self, times: Tensor, norm: Tensor) -> Transition:
        """The transition for ‖F‖t ≤ 1: the blocks of exp [[−F, C], [0, Fᵀ]]t are e^{−Ft} and Q_t e^{Fᵀt}."""
        # C is scaled to F's norm: matrix_exp scales by the norm of the whole, and a much smaller block loses accuracy.
        scale = torch.linalg.matrix_norm(self.diffusion_matrix, ord=1) / torch.where(norm > 0, norm, 1)
        scale = torch.where(scale > 0, scale, 1)
        upper = torch.cat([-self.drift, self.diffusion_matrix / scale], dim=-1)
        lower = torch.cat([torch.zeros_like(self.drift), self.drift.mT], dim=-1)
        exponential = torch.linalg.matrix_exp(times[..., None, None] * torch.cat([upper, lower], dim=-2))
        top = exponential[..., : len(self.centre), :]
        propagator, integral = top.chunk(2, dim=-1)
        return Transition(propagator, scale * integral @ propagator.mT)

    def stationary(self) -> Tensor:
        """S with FS + SFᵀ = C."""
        eigenvalues = torch.linalg.eigvals(self.drift)
        worst = complex(eigenvalues[eigenvalues.real.argmin()])
        if worst.real <= rounding(self.drift) * float(eigenvalues.abs().max()):
            raise NoStationaryLawError(
                f"drift must have eigenvalues of positive real part for a stationary law, got {worst:.6g}: "
                "covariance(t) needs no stationary law",
                worst,
            )
        solution = solve_continuous_lyapunov(self.drift.cpu().numpy(), self.diffusion_matrix.cpu().numpy())
        return symmetrise(torch.from_numpy(solution).to(self.centre))

    def circulation(self) -> Tensor:
        r"""Q = ½(FS − SFᵀ) = E ½(X_i dX_j − X_j dX_i)/dt, about x*: the mean area swept per time in each plane."""
        pulled = self.drift @ self.stationary()
        return (pulled - pulled.mT) / 2

    def current(self, x: Tensor) -> Tensor:
        """−QS⁻¹(x − x*), the stationary probability current over the density, at x (..., s), for a regular S."""
        self.check_state("x", x)
        offset = x.to(self.centre) - self.centre
        return -(torch.linalg.solve(self.stationary(), offset[..., None])[..., 0] @ self.circulation().mT).to(x)


@final
@dataclass(frozen=True, eq=False)
class OrnsteinUhlenbeck(LinearFlow):
    r"""dX = −F(X − x*) dt + B dW,  BBᵀ = C;  ``drift`` F (s, s), ``diffusion_matrix`` C (s, s), ``centre`` x* (s,).

    C is symmetric, positive semidefinite and may be singular; B is formed from its eigenvectors, or is ``root`` (s, m),
    with m the number of Brownian motions. F may be unstable: then only methods of the stationary law raise. As a flow X
    has the state's dtype; the law (``mean``, ``covariance``, ``stationary``, ``autocovariance``, ``sample``,
    ``log_density``) is float64. Raises TypeError or ValueError for invalid shapes or values.
    """

    drift: Tensor
    diffusion_matrix: Tensor
    centre: Tensor
    root: Tensor | None = None


@final
@dataclass(frozen=True, eq=False)
class MomentumOrnsteinUhlenbeck(LinearFlow):
    r"""An Ornstein–Uhlenbeck process of position and velocity: state (x, v) (..., 2d), starting at rest.

    Arguments and errors as in OrnsteinUhlenbeck, with s = 2d even.
    """

    drift: Tensor
    diffusion_matrix: Tensor
    centre: Tensor
    root: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.centre) % 2:
            raise ValueError(f"centre must have as many velocities as positions, got {len(self.centre)} numbers")

    def start(self, theta0: Tensor) -> Tensor:
        """(θ0, 0)."""
        return self.resume(theta0, torch.zeros_like(check_float_tensor("theta0", theta0)))

    def resume(self, theta: Tensor, velocity: Tensor) -> Tensor:
        """(θ, v)."""
        check_float_tensor("theta", theta)
        if theta.ndim == 0 or check_float_tensor("velocity", velocity).shape != theta.shape:
            raise ValueError(f"velocity must have theta's shape {tuple(theta.shape)}, got {tuple(velocity.shape)}")
        return torch.cat([theta, velocity], dim=-1)

    def position(self, state: Tensor) -> Tensor:
        if check_float_tensor("state", state).ndim == 0:
            raise ValueError("state must have shape (..., 2d), got ()")
        return state.chunk(2, dim=-1)[0]


def ornstein_uhlenbeck_at(
    landscape: Landscape, theta_star: Tensor, h: float, noise: GradientNoise, order: int = 1, tolerance: float = 1e-3
) -> OrnsteinUhlenbeck:
    r"""The stochastic modified equation of order p = 1, 2 about a minimum θ* (d,): F = H or H + (h/2)H², hC(θ*).

    The noise is that at θ*. ``tolerance`` bounds the gradient's norm relative to √tr C(θ*) and the modulus of a
    negative eigenvalue of the Hessian relative to the largest; beyond it NotAMinimumError is raised. Cost: d HVPs and a
    dense covariance. Raises UnsupportedError above ``MOST`` parameters; ValueError for a noise whose steps are not
    independent.
    """
    check_model(landscape, h)
    check_order(order, landscape, "ornstein_uhlenbeck_at")
    hessian, covariance = minimum(landscape, theta_star, noise, tolerance)
    drift = linear_drift(ModifiedFlow(Quadratic(hessian), h, order), torch.eye(len(hessian)).to(hessian))
    return OrnsteinUhlenbeck(drift, h * covariance, theta_star)


def momentum_ornstein_uhlenbeck_at(
    landscape: Landscape,
    theta_star: Tensor,
    h: float,
    friction: float,
    noise: GradientNoise,
    order: int = 1,
    tolerance: float = 1e-3,
) -> MomentumOrnsteinUhlenbeck:
    r"""The stochastic modified equation of scaled momentum of order p = 1, 2 about a minimum θ* (d,), at rest.

    State (x, v), μ = ``friction``. p = 1: F = [[0, −I], [H, μI]]; p = 2 adds (h/2)[[H, μI], [μH, μ²I − H]]; the
    noise hC(θ*) acts on v only, with m = d. Other arguments and errors as in ``ornstein_uhlenbeck_at``.
    """
    check_model(landscape, h)
    check_friction(friction, h)
    check_order(order, landscape, "momentum_ornstein_uhlenbeck_at")
    hessian, covariance = minimum(landscape, theta_star, noise, tolerance)
    unit = torch.eye(2 * len(hessian)).to(hessian)
    drift = linear_drift(ModifiedHeavyBallFlow(Quadratic(hessian), h, friction, order), unit)
    root = root_of(h * covariance)
    root = torch.cat([torch.zeros_like(root), root])
    return MomentumOrnsteinUhlenbeck(drift, root @ root.mT, at_rest(theta_star), root)


def linear_sgd_at(
    landscape: Landscape, theta_star: Tensor, h: float, noise: GradientNoise, tolerance: float = 1e-3
) -> LinearChain:
    r"""SGD's own law about a minimum θ* (d,):  x' = x − h(H(x − θ*) + ξ), Cov ξ = C(θ*); A = I − hH, N = h²C(θ*).

    Exact up to second moments if the landscape is quadratic and its noise constant. Arguments and errors as in
    ``ornstein_uhlenbeck_at``.
    """
    check_model(landscape, h)
    h = check_rate("h", h)
    hessian, covariance = minimum(landscape, theta_star, noise, tolerance)
    identity = torch.eye(len(hessian)).to(hessian)
    return LinearChain(identity - h * hessian, h**2 * covariance, theta_star)


def linear_momentum_at(
    landscape: Landscape,
    theta_star: Tensor,
    h: float,
    friction: float,
    noise: GradientNoise,
    tolerance: float = 1e-3,
) -> LinearChain:
    r"""Scaled heavy ball's own law about a minimum:  v' = (1 − hμ)v − h(H(x − θ*) + ξ),  x' = x + hv'; state (x, v).

    A = [[I − h²H, h(1 − hμ)I], [−hH, (1 − hμ)I]], N = [[h⁴C, h³C], [h³C, h²C]]. Arguments and errors as in
    ``momentum_ornstein_uhlenbeck_at``.
    """
    check_model(landscape, h)
    check_friction(friction, h)
    hessian, covariance = minimum(landscape, theta_star, noise, tolerance)
    kept = (1 - h * friction) * torch.eye(len(hessian)).to(hessian)
    of_v = torch.cat([-h * hessian, kept], dim=-1)
    of_x = h * of_v + torch.eye(len(hessian), 2 * len(hessian)).to(hessian)
    reach = torch.tensor([[h**2], [h]], dtype=torch.float64, device=hessian.device)  # effect of a gradient on x and v
    return LinearChain(torch.cat([of_x, of_v]), torch.kron(reach @ reach.mT, covariance), at_rest(theta_star))


def minimum(landscape: Landscape, theta_star: Tensor, noise: GradientNoise, tolerance: float) -> tuple[Tensor, Tensor]:
    """H(θ*) and C(θ*), float64; raise unless they define a linear law about a minimum."""
    check_noise(noise, landscape)
    check_positive("tolerance", tolerance)
    if landscape.dimension > MOST:
        raise UnsupportedError(
            f"linear laws are dense, for up to {MOST} parameters, got {landscape.dimension}: integrate the "
            "stochastic modified equation itself, or project H and C on leading eigenvectors for an OrnsteinUhlenbeck"
        )
    if isinstance(noise, MinibatchNoise) and noise.sampler.steps_to_zero() is not None:
        raise ValueError(
            "noise must have independent steps for a linear law, got sampling='epoch', whose noise sums to zero over "
            "an epoch: use 'replacement' or 'subset'"
        )
    check_full_precision("theta_star", check_real_tensor("theta_star", theta_star))
    if theta_star.shape != (landscape.dimension,):
        raise ValueError(f"theta_star must have shape {(landscape.dimension,)}, got {tuple(theta_star.shape)}")
    hessian, covariance = landscape.hessian(theta_star).detach(), noise.covariance(theta_star).detach()
    check_minimum(landscape.grad(theta_star).detach(), hessian, covariance, theta_star, tolerance)
    return hessian.double(), covariance.double()


def check_minimum(grad: Tensor, hessian: Tensor, covariance: Tensor, theta_star: Tensor, tolerance: float) -> None:
    """Raise unless the gradient is small compared with noise or rounding, and the Hessian positive semidefinite."""
    eigenvalues = torch.linalg.eigvalsh(hessian)
    lowest, largest = float(eigenvalues[0]), float(eigenvalues.abs().max())
    if lowest < -tolerance * largest:
        raise NotAMinimumError(
            f"theta_star must be a minimum, got an eigenvalue {lowest:.6g} of the Hessian, the largest being "
            f"{largest:.6g}; minimise further, raise tolerance, or use OrnsteinUhlenbeck, whose drift may be unstable",
            lowest,
        )
    norm, noise = float(grad.norm()), float(covariance.trace().clamp(min=0).sqrt())
    rounded = 10 * len(grad) * torch.finfo(grad.dtype).eps * largest * float(theta_star.norm())
    if norm > max(tolerance * noise, rounded):
        raise NotAMinimumError(
            f"theta_star must be a minimum, got a gradient of norm {norm:.3g} with noise √tr C = {noise:.3g}; "
            "minimise further (theta − H⁻¹∇f is closer), or raise tolerance",
            norm,
        )


def linear_drift(flow: Flow, unit: Tensor) -> Tensor:
    """F (s, s) of a flow whose velocity is −FX, from the unit states (s, s)."""
    return -flow.velocity(0.0, unit).mT


def at_rest(theta: Tensor) -> Tensor:
    """(θ, 0), shape (2d,)."""
    return torch.cat([theta, torch.zeros_like(theta)])


def check_root(root: Tensor, covariance: Tensor) -> Tensor:
    """Return ``root`` B (s, m) in float64; raise unless BBᵀ equals the covariance (s, s) up to rounding."""
    check_real_tensor("root", root)
    if root.ndim != 2 or len(root) != len(covariance):
        raise ValueError(f"root must have shape ({len(covariance)}, m), got {tuple(root.shape)}")
    wide = root.detach().double()
    gap = float((wide @ wide.mT - covariance).abs().max())
    if gap > 100 * max(root.shape) * torch.finfo(root.dtype).eps * float(covariance.abs().max()):
        raise ValueError(f"root must have root @ root.mT = diffusion_matrix, got a difference of up to {gap:.3g}")
    return wide
