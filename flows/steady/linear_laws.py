r"""Exact laws of linear stochastic equations and of linear stochastic steps.

Over a time t both map an offset y = x − x* to A_t y + ζ, ζ Gaussian of mean 0 and covariance Q_t, with

    A_{s+t} = A_t A_s,      Q_{s+t} = A_t Q_s A_tᵀ + Q_t.

Every property of a law follows from the pair (A_t, Q_t). Long times are composed from short ones by doubling, so that
intermediate results overflow only if the final one does. All algebra is dense, in float64, for small dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from landscapes.errors import check_computable, short_form
from landscapes.toys.closed_form import check_real_tensor, symmetric_matrix


class NoStationaryLawError(ValueError):
    """A linear equation or step without stationary law: one ``eigenvalue`` of its matrix does not contract."""

    def __init__(self, sentence: str, eigenvalue: complex):
        super().__init__(sentence)
        self.eigenvalue = eigenvalue


@final
@dataclass(frozen=True, eq=False)
class Transition:
    """y ↦ Ay + ζ, Cov ζ = Q: ``propagator`` A and ``covariance`` Q, both (..., s, s)."""

    propagator: Tensor
    covariance: Tensor

    def compose(self, later: Transition) -> Transition:
        """This transition followed by a later one with independent noise."""
        a = later.propagator
        return Transition(a @ self.propagator, a @ self.covariance @ a.mT + later.covariance)

    def select(self, condition: Tensor, other: Transition) -> Transition:
        """This transition where ``condition`` (...,) holds, the other elsewhere, as ``torch.where``."""
        chosen = condition[..., None, None]
        return Transition(
            torch.where(chosen, self.propagator, other.propagator),
            torch.where(chosen, self.covariance, other.covariance),
        )


class LinearLaw(ABC):
    """The law of a linear process about ``centre`` x* (s,), from its transitions; times may be tensors."""

    centre: Tensor

    @abstractmethod
    def clock(self, t: float | Tensor) -> Tensor:
        """Return times or numbers of steps, of any shape; raise unless they are finite and not negative."""

    @abstractmethod
    def transition(self, t: float | Tensor) -> Transition:
        """The transition over time t, matrices of shape t.shape + (s, s)."""

    @abstractmethod
    def stationary(self) -> Tensor:
        """S (s, s), the limit of the covariance; NoStationaryLawError if there is none."""

    @abstractmethod
    def circulation(self) -> Tensor:
        """Antisymmetric (s, s): zero iff the stationary law is in detailed balance."""

    def mean(self, t: float | Tensor, x0: Tensor) -> Tensor:
        """E X(t) from x0 (..., s): x* + A_t (x0 − x*), shape t.shape + (..., s), dtype of x0."""
        self.check_state("x0", x0)
        propagator = self.transition(t).propagator
        offset = x0.to(self.centre) - self.centre
        size = offset.shape[-1]
        moved = torch.einsum("tij,nj->tni", propagator.reshape(-1, size, size), offset.reshape(-1, size))
        return (self.centre + moved.reshape(*propagator.shape[:-2], *x0.shape)).to(x0)

    def covariance(self, t: float | Tensor, initial: Tensor | None = None) -> Tensor:
        """Cov X(t), shape t.shape + (s, s), float64, from the covariance ``initial`` (s, s); None: from one point."""
        moved = self.transition(t)
        if initial is None:
            return moved.covariance
        start = check_covariance("initial", initial, len(self.centre)).to(self.centre.device)
        return moved.propagator @ start @ moved.propagator.mT + moved.covariance

    def autocovariance(self, lag: float | Tensor) -> Tensor:
        """E (X(t + lag) − x*)(X(t) − x*)ᵀ in the stationary law: A_lag S, transposed at −lag; lag.shape + (s, s)."""
        lags = check_times("lag", lag, self.centre.device)
        matrix = self.transition(lags.abs()).propagator @ self.stationary()
        return torch.where((lags < 0)[..., None, None], matrix.mT, matrix)

    def log_density(self, x: Tensor) -> Tensor:
        """The stationary law's log density at x (..., s), shape (...,), dtype of x; ValueError if it has no density."""
        self.check_state("x", x)
        covariance = self.stationary()
        offset = x.to(self.centre) - self.centre
        lowest = float(torch.linalg.eigvalsh(correlation(covariance)[0])[0])
        if lowest < rounding(covariance):
            raise ValueError(
                f"the stationary law has no density: its correlation matrix has the eigenvalue {lowest:.3g}, as noise "
                "does not reach every direction; use stationary() and project on its range"
            )
        return torch.distributions.MultivariateNormal(torch.zeros_like(self.centre), covariance).log_prob(offset).to(x)

    def sample(self, x0: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
        """A random path from each x0 (..., s) at times (T,), times[0] the start: (T, ..., s), dtype of x0.

        Exact in law for every spacing; the law of linear steps is Gaussian if their noise is. ``generator`` must be
        on the law's device. Raises ValueError unless times increase strictly.
        """
        self.check_state("x0", x0)
        grid = self.clock(times)
        if grid.ndim != 1 or len(grid) < 2 or not bool((grid.diff() > 0).all()):
            raise ValueError(f"times must be (T,), T >= 2, and increase strictly, got shape {tuple(grid.shape)}")
        spacings, which = torch.unique(grid.diff(), return_inverse=True)
        moves = self.transition(spacings)
        roots = root_of(moves.covariance)
        offsets = [x0.to(self.centre) - self.centre]
        for i in which.tolist():
            xi = torch.randn(x0.shape, generator=generator, dtype=torch.float64, device=self.centre.device)
            offsets.append(offsets[-1] @ moves.propagator[i].mT + xi @ roots[i].mT)
        return (torch.stack(offsets) + self.centre).to(x0)

    def check_state(self, name: str, x: Tensor) -> None:
        """Raise unless x is real and finite, of shape (..., s)."""
        check_real_tensor(name, x)
        if x.ndim == 0 or x.shape[-1] != len(self.centre):
            raise ValueError(f"{name} must have shape (..., {len(self.centre)}), got {tuple(x.shape)}")


@final
@dataclass(frozen=True, eq=False)
class LinearChain(LinearLaw):
    r"""The law of linear steps  x' = x* + A(x − x*) + ξ,  ξ independent, of mean 0 and covariance N; t counts steps.

    ``matrix`` A (s, s), ``noise_covariance`` N (s, s), symmetric, positive semidefinite, possibly singular, ``centre``
    x* (s,). SGD on a quadratic with noise that does not depend on x is such a chain: A = I − hH, N = h²C. Means and
    covariances hold for ξ of any law. Raises TypeError or ValueError for invalid arguments.
    """

    matrix: Tensor
    noise_covariance: Tensor
    centre: Tensor

    def __post_init__(self) -> None:
        centre = check_vector("centre", self.centre)
        object.__setattr__(self, "centre", centre)
        object.__setattr__(self, "matrix", check_matrix("matrix", self.matrix, len(centre)))
        noise = check_covariance("noise_covariance", self.noise_covariance, len(centre))
        object.__setattr__(self, "noise_covariance", noise)

    def clock(self, t: float | Tensor) -> Tensor:
        steps = check_times("times t", t, self.centre.device)
        if steps.is_floating_point():
            raise TypeError(f"times t and lags: a chain's time counts steps: give integers, got {steps.dtype}")
        if bool((steps < 0).any()):
            raise ValueError(f"times t, numbers of steps, must not be negative, got {int(steps.min())}")
        return steps.long()

    def transition(self, t: float | Tensor) -> Transition:
        """Aᵗ and Σ_{j<t} Aʲ N Aʲᵀ, by squaring."""
        steps = self.clock(t)
        size = len(self.centre)
        identity = torch.eye(size, dtype=torch.float64, device=self.centre.device)
        total = Transition(
            identity.expand(*steps.shape, size, size), torch.zeros_like(identity).expand(*steps.shape, size, size)
        )
        power = Transition(self.matrix, self.noise_covariance)
        for bit in range(int(steps.max()).bit_length() if steps.numel() else 0):
            power = power.compose(power) if bit else power
            total = total.compose(power).select((steps >> bit) & 1 == 1, total)
        return finite_transition(total, t)

    def stationary(self) -> Tensor:
        """S = ASAᵀ + N."""
        eigenvalues = torch.linalg.eigvals(self.matrix)
        worst = complex(eigenvalues[eigenvalues.abs().argmax()])
        if abs(worst) >= 1 - rounding(self.matrix):
            raise NoStationaryLawError(
                f"matrix must have its eigenvalues within the unit circle for a stationary law, got {worst:.6g}: use a "
                "smaller learning rate, or covariance(t), which needs no stationary law",
                worst,
            )
        solution = solve_discrete_lyapunov(self.matrix.cpu().numpy(), self.noise_covariance.cpu().numpy())
        return symmetrise(torch.from_numpy(solution).to(self.centre))

    def circulation(self) -> Tensor:
        """½(SAᵀ − AS), E ½(y x'ᵀ − x' yᵀ): the mean area swept per step, in each plane of coordinates."""
        moved = self.matrix @ self.stationary()
        return (moved.mT - moved) / 2


def finite_transition(transition: Transition, t: float | Tensor) -> Transition:
    """The transition with a symmetric covariance; raise if it is beyond the range of float64."""
    if not bool(transition.propagator.isfinite().all() and transition.covariance.isfinite().all()):
        raise ValueError(f"the law grows beyond the range of float64 within t = {t}: use shorter times")
    return Transition(transition.propagator, symmetrise(transition.covariance))


def symmetrise(matrix: Tensor) -> Tensor:
    """½(M + Mᵀ)."""
    return (matrix + matrix.mT) / 2


def rounding(matrix: Tensor) -> float:
    """A bound on the float64 rounding error of an eigenvalue of a matrix (s, s) of norm 1."""
    return 8 * matrix.shape[-1] * torch.finfo(torch.float64).eps


def correlation(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances (..., s, s) as correlations and standard deviations (..., s); rows without variance are zero."""
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    safe = torch.where(scale > 0, scale, 1)
    return covariance / safe[..., :, None] / safe[..., None, :], scale


def root_of(covariance: Tensor) -> Tensor:
    r"""B (..., s, s) with BBᵀ = C, for a positive semidefinite C that may be singular, by eigenvectors.

    The eigenvectors are those of the correlations, so that components of very different size, as position and velocity
    over a short time, keep their relative accuracy. Negative eigenvalues, a result of rounding, are set to zero.
    """
    matrix, scale = correlation(covariance)
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return scale[..., None] * vectors * eigenvalues.clamp(min=0).sqrt()[..., None, :]


def check_times(name: str, times: float | Tensor, device: torch.device) -> Tensor:
    """Times as a tensor, Python floats in float64; raise unless they are numbers in a dtype that torch computes in."""
    try:
        # By numpy, which makes a Python float a float64 and keeps an int; torch would round to its default dtype.
        value = torch.as_tensor(times if isinstance(times, Tensor) else np.asarray(times))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} must be a number or a tensor of numbers, got {short_form(times)}: {error}") from None
    if check_computable(name, value).is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be real numbers, got {value.dtype}")
    return value.to(device)


def check_vector(name: str, value: Tensor) -> Tensor:
    """Return ``value`` (s,) in float64; raise unless it is real and finite."""
    if check_real_tensor(name, value).ndim != 1:
        raise ValueError(f"{name} must have shape (s,), got {tuple(value.shape)}")
    return value.detach().double()


def check_matrix(name: str, value: Tensor, size: int) -> Tensor:
    """Return ``value`` (s, s) in float64; raise unless it is real and finite."""
    if check_real_tensor(name, value).shape != (size, size):
        raise ValueError(f"{name} must have shape {(size, size)}, as centre has {size}, got {tuple(value.shape)}")
    return value.detach().double()


def check_covariance(name: str, value: Tensor, size: int) -> Tensor:
    """Return ``value`` (s, s) in float64; raise unless it is symmetric and positive semidefinite to its rounding."""
    check_matrix(name, value, size)
    matrix = symmetric_matrix(name, value).double()
    eigenvalues = torch.linalg.eigvalsh(matrix)
    lowest, largest = float(eigenvalues[0]), float(eigenvalues.abs().max())
    precision = torch.finfo(value.dtype)
    if lowest < -100 * size * precision.eps * largest - precision.tiny:
        raise ValueError(
            f"{name} must be positive semidefinite, got the eigenvalue {lowest:.6g}, the largest being {largest:.6g}"
        )
    return matrix
