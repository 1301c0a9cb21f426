r"""Traces and spectral densities from random probes, with standard errors over the probes.

For z with independent entries of mean 0 and variance 1, E zᵀAz = tr A (Hutchinson 1990). Lanczos from a z uniform on
the sphere gives Gauss quadrature for its spectral measure, zᵀf(H)z ≈ Σ_j ω_j f(τ_j), exact for polynomials of degree 2m
− 1, and E zᵀf(H)z = tr f(H)/d: stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal. 38, 1075;
for networks Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159). Standard errors are over the probes; they exclude the
quadrature error, which decreases with the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.errors import (
    MOST,
    check_callable,
    check_count,
    check_float_tensor,
    check_image,
    check_positive,
    check_seed,
    short_form,
)
from landscapes.krylov.precision import check_full_precision
from landscapes.krylov.space import KrylovSpace, Product, check_product


@dataclass(frozen=True)
class Estimate:
    """A mean over probes with its standard error, and the HVPs spent. NaN if a product was not finite."""

    value: float
    error: float
    products: int

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g} ({self.products} HVPs)"


def estimate(samples: Tensor, products: int) -> Estimate:
    """Mean and standard error of samples (probes,), NaN if one is not finite."""
    if not bool(samples.isfinite().all()):
        return Estimate(math.nan, math.nan, products)
    return Estimate(float(samples.mean()), float(samples.std()) / math.sqrt(len(samples)), products)


def trace(product: Product, like: Tensor, probes: int = 30, seed: int = 0) -> Estimate:
    r"""tr H by Hutchinson's estimator: the mean of zᵀHz over z with entries ±1.

    ``like`` (d,) gives size, precision and device; ``probes`` ≥ 2 HVPs. Variance of one probe 2 Σ_{i≠j} H_ij².
    """
    return layer_traces(product, like, {"all": slice(None)}, probes, seed)["all"]


def layer_traces(
    product: Product, like: Tensor, layers: Mapping[str, slice], probes: int = 30, seed: int = 0
) -> dict[str, Estimate]:
    r"""tr H_ll of every diagonal block: the mean of z_lᵀ(Hz)_l; one HVP a probe for all layers.

    ``layers``: the coordinates of each, such as ``NetworkLandscape.layers``; ``like`` as in ``trace``.
    """
    check_product("product", product)
    check_like(like, probes)
    if not check_layers(layers):
        raise ValueError("layers must name at least one part of theta, got none; use trace for the whole matrix")
    like = like.detach()
    generator = torch.Generator(like.device).manual_seed(check_seed(seed))
    rows = []
    for _ in range(probes):
        signs = torch.randint(0, 2, like.shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1
        shares = signs * check_image("product", product(signs), signs).detach()
        # float64: a float32 sum over a network's parameters would lose digits to cancellation
        rows.append(torch.stack([shares[part].double().sum() for part in layers.values()]).cpu())
    samples = torch.stack(rows)  # (probes, layers)
    return {name: estimate(samples[:, i], probes) for i, name in enumerate(layers)}


@dataclass(frozen=True)
class SpectralDensity:
    r"""Nodes τ (probes, m) and weights ω (probes, m) of the spectral measure of each probe; Σ_j ω_j = 1.

    Nodes of weight 0 pad a probe whose Krylov space was invariant before m steps.
    """

    nodes: Tensor
    weights: Tensor
    dimension: int
    products: int

    def mean(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """(1/d) tr f(H), f elementwise on eigenvalues."""
        check_callable("function", function, "eigenvalues (...) -> values (...)")
        return estimate(
            (self.weights * check_image("function", function(self.nodes), self.nodes)).sum(-1), self.products
        )

    @property
    def trace(self) -> Estimate:
        """tr H."""
        return self.mean(lambda eigenvalues: self.dimension * eigenvalues)

    @property
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest node: within the spectrum, close to its ends for large m."""
        return float(self.nodes.min()), float(self.nodes.max())

    def cumulative(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """The share of eigenvalues at most x for x in ``grid`` (n,), and its standard error, each (n,)."""
        grid = check_grid(grid)
        return self._over_probes(lambda nodes: (nodes <= grid[:, None, None]).double())

    def density(self, grid: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Density at ``grid`` (n,), every node a Gaussian of standard deviation ``width``, and its standard error."""
        check_positive("width", width)
        grid = check_grid(grid)
        scale = 1 / (width * math.sqrt(2 * math.pi))
        return self._over_probes(lambda nodes: scale * torch.exp(-(((nodes - grid[:, None, None]) / width) ** 2) / 2))

    def _over_probes(self, kernel: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        shares = (self.weights * kernel(self.nodes)).sum(-1)  # (n, probes)
        return shares.mean(-1), shares.std(-1) / math.sqrt(shares.shape[-1])


def spectral_density(
    product: Product, like: Tensor, probes: int = 10, steps: int = 60, seed: int = 0
) -> SpectralDensity:
    r"""The density of H's eigenvalues by stochastic Lanczos quadrature: ``probes`` × ``steps`` HVPs at most.

    ``like`` (d,) gives size, precision and device. Raises ValueError for fewer than two probes, which have no standard
    error, FloatingPointError if a product is not finite.
    """
    check_product("product", product)
    check_like(like, probes)
    check_count("steps", steps)
    m = min(steps, like.shape[-1])
    check_count("probes", probes, maximum=MOST // m)
    generator = torch.Generator(like.device).manual_seed(check_seed(seed))
    nodes, weights = torch.zeros(2, probes, m, dtype=torch.float64)
    products = 0
    for i in range(probes):
        space = KrylovSpace(product, torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device))
        while space.size < m and not space.invariant:
            space.grow()
            if not space.finite:
                raise FloatingPointError("a Hessian-vector product is not finite: the spectrum is not defined")
        values, vectors = torch.linalg.eigh(space.projected)
        nodes[i] = values[-1]  # padding inside the spectrum: ``extremes`` stays right
        nodes[i, : space.size] = values
        weights[i, : space.size] = vectors[0].square()
        products += space.size
    return SpectralDensity(nodes, weights, like.shape[-1], products)


def check_grid(grid: Tensor) -> Tensor:
    """``grid`` on the CPU in float64, as the nodes; raise unless it is one real vector (n,)."""
    check_float_tensor("grid", grid)
    if grid.ndim != 1 or grid.is_complex():
        raise ValueError(f"grid must be one real vector (n,), got {tuple(grid.shape)} {grid.dtype}")
    return grid.to("cpu", torch.float64)


def check_like(like: Tensor, probes: int) -> None:
    """Raise unless ``like`` is a real vector (d,) and there are at least two probes."""
    check_full_precision("like", check_float_tensor("like", like))
    if like.ndim != 1 or like.is_complex():
        raise ValueError(f"like must be one real vector (d,), got {tuple(like.shape)} {like.dtype}")
    if not len(like):
        raise ValueError("like must have shape (d,), d >= 1, got (0,)")
    check_count("probes", probes, minimum=2, maximum=MOST)


def check_layers(layers: Mapping[str, slice]) -> Mapping[str, slice]:
    """Return ``layers``; raise unless they map names to slices of θ."""
    if not isinstance(layers, Mapping):
        raise TypeError(
            f"layers must map names to slices of theta, got {short_form(layers)} of type {type(layers).__name__}"
        )
    for name, part in layers.items():
        if not isinstance(part, slice):
            raise TypeError(f"layers must map names to slices of theta, got {short_form(part)} for {name!r}, no slice")
    return layers
