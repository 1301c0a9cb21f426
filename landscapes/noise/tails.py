r"""Tests for heavy tails of gradient noise: Hill's index of ‖g_i − g‖, and the kurtosis of batches along directions.

Both need a comparison with Gaussian noise of the same covariance: Hill's index of a finite sample is finite for every
distribution, and norms vary with the spectrum of C.

Warning: Simsekli, Sagun & Gurbuzbalaban 2019, arXiv 1901.06053, find α-stable noise by an estimator that assumes the
coordinates of the noise to be independent and identically distributed. They are neither, and unequal variances of
Gaussian coordinates alone give α < 2 (Xie, Sato & Sugiyama 2021, arXiv 2002.03495); Panigrahi et al. 2019, arXiv
1910.09626, find batches of 256 and more Gaussian along random directions. The estimator is not provided. A finite sum
has all moments, so a tail index refers to the distribution that its examples are drawn from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.errors import MOST, check_count, check_float_tensor, check_seed
from landscapes.krylov import random_block
from landscapes.noise.covariance import CovarianceOperator
from landscapes.noise.diagnostics import check_rows
from landscapes.noise.eigenpairs import check_operator
from landscapes.noise.spectrum import ROUNDING
from landscapes.sampling import sampling_of

GAUSSIAN_ROWS = 2**22  # numbers of a Gaussian sample held at once


@dataclass(frozen=True)
class TailIndex:
    """Hill's estimate of α in P(X > x) ~ x^{−α}, its standard error α/√k, from the k largest above ``cutoff``."""

    index: float
    error: float
    count: int
    cutoff: float


def hill_index(samples: Tensor, count: int) -> TailIndex:
    r"""Hill 1975, Ann. Statist. 3, 1163: 1/α = (1/k) Σ_{j≤k} log(X_(j)/X_(k+1)), the ``count`` k largest samples (N,).

    Exact for a Pareto law; otherwise biased, as far as the tail deviates from a power law at X_(k+1); the bias vanishes
    as k → ∞, k/N → 0: compare several k. α is infinite if the k + 1 largest are equal.

    Raises ValueError unless 1 ≤ k < N and the k + 1 largest samples are positive and finite.
    """
    check_float_tensor("samples", samples)
    if samples.ndim != 1 or samples.is_complex():
        raise ValueError(f"samples must be one real vector (N,), got {tuple(samples.shape)} {samples.dtype}")
    if check_count("count", count) >= len(samples):
        raise ValueError(f"count must be below the number of samples, {len(samples)}, got {count}")
    top = samples.double().topk(count + 1).values
    if not bool(top.isfinite().all()) or float(top[-1]) <= 0:
        raise ValueError(f"the {count + 1} largest samples must be positive and finite, got {float(top[-1])} last")
    mean = float((top[:-1] / top[-1]).log().mean())
    index = 1 / mean if mean > 0 else math.inf
    return TailIndex(index, index / math.sqrt(count), count, float(top[-1]))


@dataclass(frozen=True)
class TailCheck:
    r"""Hill's index of the examples' ‖g_i − g‖, and of Gaussian vectors of the same covariance.

    ``gaussian``: the index of N Gaussian norms, mean over the repeats; ``gaussian_std``: its standard deviation over
    the repeats. Heavy tails: ``excess``, (α_Gauss − α)/deviation of the difference, well above 2.
    """

    examples: TailIndex
    gaussian: float
    gaussian_std: float

    @property
    def excess(self) -> float:
        """(α_Gauss − α)/√(error² + std²)."""
        return (self.gaussian - self.examples.index) / math.hypot(self.examples.error, self.gaussian_std)


def tail_check(
    operator: CovarianceOperator, eigenvalues: Tensor, *, count: int | None = None, repeats: int = 20, seed: int = 0
) -> TailCheck:
    r"""Hill's index of ‖g_i − g‖ from the ``count`` largest, N/20 and at least 2 if None, and of Gaussian norms.

    ``eigenvalues`` (r,) of C, such as ``noise_spectrum(operator).eigenvalues``; the rest of tr C is assumed to be
    spread over many directions and replaced by its mean. Two passes. Raises ValueError for fewer than two repeats.
    """
    check_operator(operator)
    check_float_tensor("eigenvalues", eigenvalues)
    if eigenvalues.ndim != 1 or eigenvalues.is_complex():
        raise ValueError(
            f"eigenvalues must be one real vector (r,), got {tuple(eigenvalues.shape)} {eigenvalues.dtype}"
        )
    if not bool(eigenvalues.isfinite().all()):
        raise ValueError("eigenvalues must be finite, got NaN or an infinity")
    check_count("repeats", repeats, minimum=2, maximum=MOST // operator.size)
    N = operator.size
    k = max(N // 20, 2) if count is None else check_count("count", count)
    examples = hill_index(operator.deviations(), k)
    values = eigenvalues.detach().cpu().double().clamp_min(0)
    rest = max(operator.trace - float(values.sum()), 0.0)
    generator = torch.Generator().manual_seed(check_seed(seed))
    indices = torch.tensor(
        [hill_index(gaussian_norms(values, rest, N, generator), k).index for _ in range(repeats)], dtype=torch.float64
    )
    return TailCheck(examples, float(indices.mean()), float(indices.std()))


def gaussian_norms(eigenvalues: Tensor, rest: float, count: int, generator: torch.Generator) -> Tensor:
    """‖x‖ of ``count`` Gaussian vectors x with these variances, (count,): √(Σ_j λ_j χ²_j + rest)."""
    rows = max(GAUSSIAN_ROWS // max(len(eigenvalues), 1), 1)
    squares = [
        torch.randn(min(rows, count - done), len(eigenvalues), generator=generator, dtype=torch.float64).square()
        @ eigenvalues
        for done in range(0, count, rows)
    ]
    return (torch.cat(squares) + rest).sqrt()


@dataclass(frozen=True)
class Kurtosis:
    r"""Excess kurtosis along directions, (k,) each, float64 on the CPU; NaN for a direction without noise.

    ``examples``: of (g_i − g)ᵀu over the N examples, exact for this sum. ``errors``: its jackknife standard error, for
    examples as a sample of a distribution; too small if the fourth moment is infinite, as one example then dominates.
    ``batches``: of the gradient of a batch of b, exact: that of the examples divided by b for independent draws.
    Gaussian noise has zero; ``gaussian_error``: the standard deviation of ``examples`` for N Gaussian examples, and b
    times less for independent batches.
    """

    examples: Tensor
    errors: Tensor
    batches: Tensor
    gaussian_error: float


def batch_kurtosis(
    operator: CovarianceOperator, directions: Tensor, batch_size: int, sampling: str = "replacement"
) -> Kurtosis:
    r"""Excess kurtosis of the noise of batches along the rows of ``directions`` (k, n), by two passes.

    ``random_block`` gives random directions, which average over many coordinates and appear Gaussian for any
    distribution of these; top eigenvectors of C do not. Raises ValueError for N < 4, or for a batch of all examples
    without replacement.
    """
    check_rows("directions", directions, check_operator(operator))
    N = check_count("the number of examples", operator.size, minimum=4)
    sampler = sampling_of(N, batch_size, sampling)
    if sampler.variance_factor() == 0:
        raise ValueError(
            f"batch_size must be below the {N} examples for sampling={sampling!r}: there is no noise at b = N"
        )
    slopes = operator.slopes(directions).cpu()  # (N, k)
    slopes = slopes - slopes.mean(dim=0)
    slopes[:, ~has_noise(operator, directions, slopes)] = 0  # the kurtosis of rounding would be a number
    sums = [slopes.pow(power).sum(dim=0) for power in range(5)]
    examples = excess_kurtosis(sums, N)
    left_out = excess_kurtosis([total - slopes.pow(power) for power, total in enumerate(sums)], N - 1)  # (N, k)
    errors = ((N - 1) / N * (left_out - left_out.mean(dim=0)).square().sum(dim=0)).sqrt()
    drawn = examples / batch_size if sampling == "replacement" else subset_excess(sums[2], sums[4], N, batch_size)
    gaussian = math.sqrt(24 * N * (N - 1) ** 2 / ((N - 3) * (N - 2) * (N + 3) * (N + 5)))
    return Kurtosis(examples, errors, drawn, gaussian)


def has_noise(operator: CovarianceOperator, directions: Tensor, slopes: Tensor) -> Tensor:
    """Whether the slopes (N, k) along each direction exceed the rounding of the gradients, (k,)."""
    mean = operator.gradients.mean[operator.part].double().square().sum()
    length = math.sqrt(float(mean) + float(operator.gradients.squares[operator.part].sum()))  # rms of ‖g_i‖
    sizes = torch.linalg.vector_norm(directions, dim=-1).double().cpu()
    return slopes.square().mean(dim=0).sqrt() > ROUNDING * torch.finfo(directions.dtype).eps * length * sizes


def random_directions(operator: CovarianceOperator, count: int, seed: int = 0) -> Tensor:
    """``count`` directions uniform on the sphere, (count, n)."""
    check_count("count", count, maximum=max(MOST // check_operator(operator).dimension, 1))
    rows = random_block(operator.like, count, seed)
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def excess_kurtosis(sums: list[Tensor], n: int) -> Tensor:
    """m₄/m₂² − 3 from the power sums Σx⁰ … Σx⁴ of n numbers about any centre."""
    mean, second, third, fourth = (total / n for total in sums[1:])
    variance = second - mean**2
    return (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2 - 3


def subset_excess(second: Tensor, fourth: Tensor, size: int, batch_size: int) -> Tensor:
    r"""Excess kurtosis of the sum over a uniform subset of b of N numbers of mean 0, with p₂ = Σx², p₄ = Σx⁴.

    E(Σx)⁴ = P₁p₄ − 4P₂p₄ + 3P₂(p₂² − p₄) + 6P₃(2p₄ − p₂²) + P₄(3p₂² − 6p₄), P_j the chance that a subset holds j given
    examples: sums over distinct indices by power sums, Σx = 0.
    """
    p1, p2, p3, p4 = (
        math.prod((batch_size - i) / (size - i) for i in range(j)) if batch_size >= j else 0.0 for j in range(1, 5)
    )
    square = second**2
    moment = (p1 - 4 * p2) * fourth + 3 * p2 * (square - fourth) + 6 * p3 * (2 * fourth - square)
    moment = moment + p4 * (3 * square - 6 * fourth)
    return moment / ((p1 - p2) * second) ** 2 - 3
