r"""Relations between mini-batch noise and curvature: alignment, overlap of subspaces, noise scales.

C = cD is a ``CovarianceOperator``, H the Hessian by its product v ↦ Hv, such as ``landscape.expand(theta).hvp``. Noise
scales refer to one example: pass the covariance D of a finite sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.errors import MOST, check_count, check_float_tensor, check_image, check_real
from landscapes.krylov import Product
from landscapes.krylov.precision import check_full_precision
from landscapes.krylov.space import check_product
from landscapes.noise.covariance import CovarianceOperator, NoiseEstimate, random_signs, wide_product
from landscapes.noise.eigenpairs import check_operator
from landscapes.noise.ritz import orthonormal_outside


@dataclass(frozen=True)
class Alignment:
    r"""Alignment of C and H; estimates have standard errors over the probes, exact values the error zero.

    ``cosine`` tr(CH)/(‖C‖_F ‖H‖_F), 1 if they are proportional. ``anisotropy`` tr(CH)/(tr C tr H/n): the increase of
    the loss by C relative to isotropic noise of equal trace (Zhu et al. 2019, arXiv 1803.00195). ``product`` tr(CH),
    ``covariance_norm`` ‖C‖_F, ``hessian_norm`` ‖H‖_F, ``hessian_trace`` tr H; ``covariance_trace`` tr C is exact.
    """

    cosine: NoiseEstimate
    anisotropy: NoiseEstimate
    product: NoiseEstimate
    covariance_norm: NoiseEstimate
    hessian_norm: NoiseEstimate
    hessian_trace: NoiseEstimate
    covariance_trace: float


def alignment(
    operator: CovarianceOperator,
    hvp: Product,
    *,
    probes: int | None = 30,
    basis: Tensor | None = None,
    seed: int = 0,
) -> Alignment:
    r"""Alignment of C with H: exact by n products if ``probes`` is None, else estimated.

    ``basis`` (r, n): rows whose span is treated exactly, by r more products with H; the probes estimate the rest
    (Meyer, Musco, Musco & Woodruff 2021, arXiv 2010.09649). Top eigenvectors of C and H reduce the errors, as both
    matrices are nearly of low rank. It is orthonormalised here. With the orthonormal rows q and the projection P onto
    their complement, tr A = Σ_q qᵀAq + E zᵀPAPz over z with entries ±1, A = CH, C², H². Ratios have jackknife errors,
    which are too small if a few probes miss the largest eigenvalues.

    One pass for all products with C, one for tr C. Raises ValueError for fewer than two probes or a basis of another
    shape; FloatingPointError if a product is not finite.
    """
    check_operator(operator)
    check_product("hvp", hvp)
    before, n = operator.passes, operator.dimension
    exact = orthonormal_basis(operator, basis)
    if probes is None:
        exact = torch.eye(n, dtype=operator.like.dtype, device=operator.like.device)
    signs = exact[:0]
    if probes is not None:
        signs = random_signs(operator.like, check_count("probes", probes, minimum=2, maximum=MOST // n), seed)
        signs = signs - (signs @ exact.mT) @ exact  # Pz: its forms are those of PAP, without products with P
    rows = torch.cat([exact, signs])
    samples = paired_forms(operator.products(rows), curved_rows(hvp, rows), rows)
    known, drawn = samples[: len(exact)].sum(dim=0), samples[len(exact) :]
    trace = operator.trace
    cost = (operator.passes - before, len(rows))

    def estimate_of(index: int) -> NoiseEstimate:
        return jackknife(known, drawn, lambda m: m[..., index], cost)

    return Alignment(
        cosine=jackknife(known, drawn, lambda m: m[..., 0] / (m[..., 1] * m[..., 2]).sqrt(), cost),
        anisotropy=jackknife(known, drawn, lambda m: m[..., 0] / (trace * m[..., 3] / n), cost),
        product=estimate_of(0),
        covariance_norm=jackknife(known, drawn, lambda m: m[..., 1].sqrt(), cost),
        hessian_norm=jackknife(known, drawn, lambda m: m[..., 2].sqrt(), cost),
        hessian_trace=estimate_of(3),
        covariance_trace=trace,
    )


def curved_rows(hvp: Product, rows: Tensor) -> Tensor:
    """The products Hv of the rows v (k, n), (k, n), each checked."""
    check_product("hvp", hvp)
    return torch.stack([check_image("hvp", hvp(row), row).detach() for row in rows])


def paired_forms(images: Tensor, curved: Tensor, rows: Tensor) -> Tensor:
    """(Cz)ᵀ(Hz), ‖Cz‖², ‖Hz‖² and zᵀHz of every row z, (k, 4) in float64 on the CPU."""
    pairs = ((images, curved), (images, images), (curved, curved), (rows, curved))
    forms = torch.stack([(a.double() * b.double()).sum(dim=-1) for a, b in pairs], dim=-1).cpu()
    if not bool(forms.isfinite().all()):
        raise FloatingPointError(
            "a product with the covariance or the Hessian is not finite: the alignment is not defined"
        )
    return forms


def jackknife(
    known: Tensor, drawn: Tensor, function: Callable[[Tensor], Tensor], cost: tuple[float, int]
) -> NoiseEstimate:
    """``function`` of ``known`` plus the means (m,) of samples (probes, m), with its jackknife error."""
    k = len(drawn)
    if k == 0:
        return NoiseEstimate(float(function(known)), 0.0, *cost)
    total = drawn.sum(dim=0)
    value = float(function(known + total / k))
    left_out = function(known + (total - drawn) / (k - 1))  # (probes,)
    error = math.sqrt((k - 1) / k * float((left_out - left_out.mean()).square().sum()))
    return NoiseEstimate(value, error, *cost)


def orthonormal_basis(operator: CovarianceOperator, basis: Tensor | None) -> Tensor:
    """Orthonormal rows of the basis's span, none if it is None; raise unless it has shape (r, n)."""
    empty = operator.like.new_empty(0, operator.dimension)
    if basis is None:
        return empty
    if not bool(check_rows("basis", basis, operator).isfinite().all()):
        raise ValueError("basis must be finite, got NaN or an infinity")
    return orthonormal_outside(basis, empty)


@dataclass(frozen=True)
class SubspaceOverlap:
    r"""Overlap of two subspaces: principal cosines σ, largest first, and their mean square.

    ``overlap`` tr(P_U P_V)/min(k, l) is 1 if one contains the other (Gur-Ari, Roberts & Dyer 2018, arXiv 1812.04754);
    ``chance`` max(k, l)/n is the mean overlap of random subspaces.
    """

    cosines: Tensor  # (min(k, l),) float64 on the CPU
    overlap: float
    chance: float


def subspace_overlap(left: Tensor, right: Tensor) -> SubspaceOverlap:
    """Overlap of the spans of the rows U (k, n) and V (l, n), of any length; raise ValueError for other shapes."""
    for name, rows in (("left", left), ("right", right)):
        check_full_precision(name, check_float_tensor(name, rows))
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or an infinity")
        if rows.ndim != 2 or rows.shape[-1] != left.shape[-1] or len(rows) == 0 or rows.is_complex():
            raise ValueError(
                f"{name} must hold real rows (k, n) of one n, k >= 1, got {tuple(rows.shape)} {rows.dtype}"
            )
    bases = [orthonormal_outside(rows, rows[:0]) for rows in (left, right)]
    if not all(len(b) for b in bases):
        raise ValueError("left and right must have nonzero rows, got rows that are all zero")
    cosines = torch.linalg.svdvals(wide_product(*bases)).cpu().clamp_max(1)
    k, other = sorted(map(len, bases))
    return SubspaceOverlap(cosines, float(cosines.square().sum()) / k, other / left.shape[-1])


@dataclass(frozen=True)
class NoiseAlong:
    r"""Noise and curvature along directions u, such as eigenvectors of H: (k,) each, float64.

    ``variance`` uᵀCu, ``mean`` gᵀu, ``curvature`` uᵀHu. ``concentration`` (uᵀCu/tr C)/(uᵀHu/tr H): 1 if noise and
    curvature have the same fraction of their traces along u (Zhu et al. 2019).
    """

    variance: Tensor
    mean: Tensor
    curvature: Tensor
    covariance_trace: float

    def concentration(self, hessian_trace: float) -> Tensor:
        """(uᵀCu/tr C)/(uᵀHu/tr H) for a known tr H, (k,)."""
        if check_real("hessian_trace", hessian_trace) == 0:
            raise ValueError("hessian_trace must not be zero: the concentration divides by it")
        return (self.variance / self.covariance_trace) / (self.curvature / hessian_trace)


def noise_along(operator: CovarianceOperator, directions: Tensor, hvp: Product) -> NoiseAlong:
    """uᵀCu, gᵀu and uᵀHu of the rows u (k, n), normalised here: two passes and k products with H."""
    check_rows("directions", directions, check_operator(operator))
    units = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    if not bool(units.isfinite().all()):
        raise ValueError("directions must be finite and not zero")
    curved = curved_rows(hvp, units)
    curvature = torch.stack([(u.double() * v.double()).sum() for u, v in zip(units, curved, strict=True)])
    mean = units.double() @ operator.gradients.mean[operator.part].double()
    return NoiseAlong(operator.variances(units).cpu(), mean.cpu(), curvature.cpu(), operator.trace)


@dataclass(frozen=True)
class NoiseScales:
    r"""McCandlish, Kaplan & Amodei 2018, arXiv 1812.06162: the batch size at which noise and mean are equal in size.

    ``simple`` tr C/‖g‖²; ``curved`` tr(CH)/gᵀHg, which appears in the expected change of the loss by a step:
    meaningless unless gᵀHg is positive. Infinite at a critical point.
    """

    simple: float
    curved: NoiseEstimate


def noise_scales(
    operator: CovarianceOperator,
    hvp: Product,
    *,
    probes: int | None = 30,
    basis: Tensor | None = None,
    seed: int = 0,
) -> NoiseScales:
    """Both noise scales; options as in ``alignment``, at its cost plus one product with H."""
    aligned = alignment(operator, hvp, probes=probes, basis=basis, seed=seed).product
    mean = operator.gradients.mean[operator.part]
    square, bend = (float((mean.double() * v.double()).sum()) for v in (mean, curved_rows(hvp, mean[None])[0]))
    return NoiseScales(
        simple=operator.trace / square if square else math.inf,
        curved=NoiseEstimate(
            aligned.value / bend if bend else math.inf,
            aligned.error / abs(bend) if bend else math.nan,
            aligned.passes,
            aligned.hvps + 1,
        ),
    )


def check_rows(name: str, rows: Tensor, operator: CovarianceOperator) -> Tensor:
    """Return ``rows``; raise unless they are (k, n) of θ's dtype, k ≥ 1."""
    check_float_tensor(name, rows)
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[-1] != operator.dimension or rows.dtype != operator.like.dtype:
        raise ValueError(
            f"{name} must have shape (k, {operator.dimension}), k >= 1, and theta's dtype {operator.like.dtype}, got "
            f"{tuple(rows.shape)} {rows.dtype}"
        )
    return rows
