r"""The covariance of gradient noise at one θ as an operator, C = cD, D = (1/N) Σ_i (g_i − g)(g_i − g)ᵀ.

Cost of each operation in passes (one pass = one gradient of every example):

    product(v)      D v = (1/N) Σ_i (s_i − s̄) g_i, s_i = g_iᵀv      2, without gradients of single examples
    products(V)     the same for k directions at once                1 for any k
    variances(V)    vᵀCv for k directions                            1
    factor(ξ)       √c Gξ with GGᵀ = D                               1
    diagonal, trace, layer_traces                                    1 for all of them, once
    dense(), gram()                                                  1; more if the Gram matrix has to be tiled

plus one for g, once. Matrices, traces and variances, being sums of squares, are in float64; vectors in θ's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from landscapes.errors import MOST, check_count, check_float_tensor, check_nonnegative, check_seed
from landscapes.krylov.probes import check_layers
from landscapes.landscape import FiniteSum
from landscapes.noise.gradients import CentredGradients
from landscapes.noise.minibatch import MinibatchNoise

PANEL_BYTES = 2**28  # default limit for the gradients held by a tiled Gram matrix
WIDENED_BYTES = 2**24  # of a float32 matrix converted to float64 at a time


@dataclass(frozen=True)
class NoiseEstimate:
    """A mean over random probes with its standard error and cost: passes, Hessian-vector products."""

    value: float
    error: float
    passes: float = 0.0
    hvps: int = 0

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g} ({self.passes:.3g} passes, {self.hvps} HVPs)"


@final
@dataclass(frozen=True, eq=False)
class CovarianceOperator:
    r"""C = cD at one θ, or a diagonal block of it; made by ``noise_covariance``.

    ``scale`` c; ``part``: the coordinates (n of d), all unless the operator is that of a ``layer``. Symmetric, positive
    semidefinite, of rank at most min(N − 1, n). Layers share stored gradients, their mean and the count of passes with
    the whole operator.
    """

    gradients: CentredGradients
    scale: float = 1.0
    part: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        if not isinstance(self.gradients, CentredGradients):
            raise TypeError(
                f"gradients must be CentredGradients, got {type(self.gradients).__name__}; "
                "noise_covariance(landscape, theta) makes the operator"
            )
        check_nonnegative("scale", self.scale)
        if not isinstance(self.part, slice):
            raise TypeError(f"part must be a slice of theta, got {type(self.part).__name__}")

    @property
    def size(self) -> int:
        """N, the number of examples."""
        return self.gradients.size

    @property
    def dimension(self) -> int:
        """n, the order of the matrix."""
        return len(range(*self.part.indices(self.gradients.dimension)))

    @property
    def like(self) -> Tensor:
        """θ's coordinates (n,): size, dtype and device of the vectors that the operator takes."""
        return self.gradients.theta[self.part]

    @property
    def passes(self) -> float:
        """Number of passes so far, by this operator and those that share its gradients."""
        return self.gradients.passes

    def layer(self, part: slice) -> CovarianceOperator:
        """The diagonal block of the coordinates ``part`` of θ, such as a value of ``NetworkLandscape.layers``."""
        return CovarianceOperator(self.gradients, self.scale, self._part_of_theta(part))

    def _part_of_theta(self, part: slice) -> slice:
        """A slice of this operator's coordinates as a slice of θ; raise if it is empty or descending."""
        if not isinstance(part, slice):
            raise TypeError(f"part must be a slice of theta, got {type(part).__name__}")
        chosen = range(*self.part.indices(self.gradients.dimension))[part]
        if len(chosen) == 0 or chosen.step < 0:
            raise ValueError(f"part must name coordinates of {self.dimension}, in ascending order, got {part}")
        return slice(chosen.start, chosen.stop, chosen.step)

    def product(self, v: Tensor) -> Tensor:
        """C v (n,), two passes, by reverse mode; gradients of single examples are taken for a check only."""
        self._check("v", v, (self.dimension,))
        slopes = self.gradients.slopes(self._embed(v[None]))[:, 0]
        return (self.scale / self.size) * self.gradients.weighted_sum(slopes)[self.part]

    def products(self, vectors: Tensor) -> Tensor:
        """C v of the rows of V (k, n), (k, n): one pass for all rows."""
        self._check("vectors", vectors, (-1, self.dimension))
        total = torch.zeros_like(vectors)
        for _, rows in self.gradients.blocks():
            total += (vectors @ rows[:, self.part].mT) @ rows[:, self.part]  # (k, m) (m, n)
        return (self.scale / self.size) * total

    def slopes(self, vectors: Tensor) -> Tensor:
        """(g_i − g)ᵀv of every example and row v of V (k, n): (N, k) in float64, one pass."""
        self._check("vectors", vectors, (-1, self.dimension))
        return torch.cat([(rows[:, self.part] @ vectors.mT).double() for _, rows in self.gradients.blocks()])

    def variances(self, vectors: Tensor) -> Tensor:
        """vᵀCv of the rows of V (k, n): (k,) in float64, one pass."""
        return self.scale / self.size * self.slopes(vectors).square().sum(dim=0)

    def factor(self, xi: Tensor) -> Tensor:
        """√c Gξ, (..., n), for ξ (..., N): of covariance C for standard normal ξ. One pass for each row of ξ."""
        check_float_tensor("xi", xi)
        if xi.ndim == 0 or xi.shape[-1] != self.size or xi.dtype != self.like.dtype:
            raise ValueError(
                f"xi must have shape (..., {self.size}) and theta's dtype {self.like.dtype}, got {tuple(xi.shape)} "
                f"{xi.dtype}"
            )
        return math.sqrt(self.scale / self.size) * self.gradients.weighted_sum(xi)[..., self.part]

    @cached_property
    def diagonal(self) -> Tensor:
        """diag C, (n,) in float64; one pass, shared with ``trace`` and ``layer_traces``."""
        return self.scale * self.gradients.squares[self.part]

    @property
    def trace(self) -> float:
        """tr C."""
        return float(self.diagonal.sum())

    def layer_traces(self, layers: Mapping[str, slice]) -> dict[str, float]:
        """tr C of the diagonal block of each layer, name → coordinates, by the pass of ``diagonal``."""
        return {name: self.layer(part).trace for name, part in check_layers(layers).items()}

    def trace_estimate(self, probes: int = 30, seed: int = 0) -> NoiseEstimate:
        r"""tr C by Hutchinson's estimator, the mean of zᵀCz over z (n,) with entries ±1.

        One pass and one backward pass a probe, for networks whose gradients of single examples are expensive; otherwise
        ``trace`` is exact at the same cost. Variance of one probe 2 Σ_{i≠j} C_ij². Raises ValueError for fewer than two
        probes, which have no standard error.
        """
        check_count("probes", probes, minimum=2, maximum=MOST // self.dimension)
        before = self.passes
        slopes = self.gradients.slopes(self._embed(random_signs(self.like, probes, seed)))
        samples = self.scale / self.size * slopes.square().sum(dim=0)
        return NoiseEstimate(float(samples.mean()), float(samples.std()) / math.sqrt(probes), self.passes - before)

    def deviations(self) -> Tensor:
        """‖g_i − g‖ over the operator's coordinates, (N,) in float64, one pass."""
        squares = [r[:, self.part].square().sum(dim=-1, dtype=torch.float64) for _, r in self.gradients.blocks()]
        return torch.cat(squares).sqrt()

    def dense(self) -> Tensor:
        """C, (n, n) in float64, for small n; one pass."""
        n = self.dimension
        total = torch.zeros(n, n, dtype=torch.float64, device=self.like.device)
        for _, rows in self.gradients.blocks():
            wide = rows[:, self.part].double()  # before the product: squares underflow and lose digits in float32
            total.addmm_(wide.mT, wide)
        return self.scale / self.size * total

    def gram(self, memory: int = PANEL_BYTES) -> Tensor:
        r"""(c/N) [(g_i − g)ᵀ(g_j − g)], (N, N) in float64: its non-zero eigenvalues are those of C.

        ``memory``: limit in bytes for the gradients held beside it. If all N × d do not fit, the rows are held in
        panels of P examples, and for each panel the gradients from it on are recomputed: ``panel_passes`` passes.
        """
        panel = self.panel(memory)
        result = torch.empty(self.size, self.size, dtype=torch.float64, device=self.like.device)
        for first in range(0, self.size, panel):
            held = self._panel_rows(first, min(first + panel, self.size))
            # the Gram matrix is symmetric: tiles left of the panel are known
            for place, rows in self._blocks_from(held, first):
                tile = wide_product(held, rows)
                result[first : first + len(held), place] = tile
                result[place, first : first + len(held)] = tile.mT
        return self.scale / self.size * result

    def panel(self, memory: int) -> int:
        """P, the number of examples whose gradients ``gram`` holds at once: N if they are stored anyway."""
        check_count("memory", memory)
        row = self.dimension * self.like.element_size()
        return self.size if self.gradients.keep else min(max(memory // row, self.gradients.block), self.size)

    def panel_passes(self, memory: int) -> float:
        """Passes of ``gram``: about (N/P + 1)/2, Σ over the panels of the fraction of examples from the panel on."""
        return sum(self.size - first for first in range(0, self.size, self.panel(memory))) / self.size

    def _panel_rows(self, first: int, last: int) -> Tensor:
        """Rows of the examples from ``first`` to ``last``, (P, n), filled by blocks."""
        if self.gradients.keep:
            return self.gradients.rows(slice(first, last))[:, self.part]
        held = self.like.new_empty(last - first, self.dimension)
        for start in range(first, last, self.gradients.block):
            stop = min(start + self.gradients.block, last)
            held[start - first : stop - first] = self.gradients.rows(slice(start, stop))[:, self.part]
        return held

    def _blocks_from(self, held: Tensor, first: int) -> Iterator[tuple[slice, Tensor]]:
        """Indices and rows by blocks: those of the panel ``held``, which starts at ``first``, then all after it."""
        block = self.gradients.block
        for start in range(0, len(held), block):
            rows = held[start : start + block]
            yield slice(first + start, first + start + len(rows)), rows
        for place, rows in self.gradients.blocks(first + len(held)):
            yield place, rows[:, self.part]

    def _embed(self, vectors: Tensor) -> Tensor:
        """Rows (k, n) as rows (k, d), zero outside the operator's coordinates."""
        if self.dimension == self.gradients.dimension:
            return vectors
        whole = vectors.new_zeros(len(vectors), self.gradients.dimension)
        whole[:, self.part] = vectors
        return whole

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        """Raise unless ``value`` has θ's dtype and the shape; −1 matches any length."""
        check_float_tensor(name, value)
        fits = value.ndim == len(shape) and all(m in (-1, n) for m, n in zip(shape, value.shape, strict=True))
        if not fits or value.dtype != self.like.dtype:
            wanted = ", ".join("k" if m == -1 else str(m) for m in shape)
            raise ValueError(
                f"{name} must have shape ({wanted}) and theta's dtype {self.like.dtype}, got {tuple(value.shape)} "
                f"{value.dtype}"
            )


def noise_covariance(
    source: FiniteSum | MinibatchNoise, theta: Tensor, *, block: int | None = None, keep_gradients: bool = False
) -> CovarianceOperator:
    r"""D(θ) of a finite sum, or cD(θ) of a ``MinibatchNoise``, the covariance of its batches' gradient, at one θ (d,).

    ``block``: number of gradients held at once, by default as many as fit in 32 MiB, at most 256. ``keep_gradients``:
    store all N × d numbers, after which no operation needs another pass. Nothing is computed here.

    Raises TypeError or ValueError unless the source has one of these types, θ is one real vector and ``block`` ≥ 1.
    """
    if isinstance(source, MinibatchNoise):
        gradients = CentredGradients(source.landscape, theta, block, keep_gradients)
        return CovarianceOperator(gradients, source.sampler.variance_factor())
    return CovarianceOperator(CentredGradients(source, theta, block, keep_gradients))


def random_signs(like: Tensor, rows: int, seed: int) -> Tensor:
    """Rows (rows, n) with entries ±1, of the size, dtype and device of ``like`` (n,)."""
    generator = torch.Generator(like.device).manual_seed(check_seed(seed))
    drawn = torch.randint(0, 2, (rows, *like.shape), generator=generator, device=like.device)
    return drawn.to(like.dtype) * 2 - 1


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """A Bᵀ in float64 for A (p, n) and B (m, n) of any precision, converted a few columns at a time."""
    columns = max(WIDENED_BYTES // (8 * (len(left) + len(right))), 1)
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for a, b in zip(left.split(columns, dim=-1), right.split(columns, dim=-1), strict=True):
        total.addmm_(a.double(), b.double().mT)
    return total
