r"""Linear networks with known critical points: the product of two weights, a chain, a factorisation, the catapult."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import Field
from landscapes.errors import MOST, check_count, check_real
from landscapes.toys.closed_form import Toy, Window, cast, check_real_tensor
from landscapes.toys.critical import check_listable
from landscapes.toys.planar import Partial, Planar

Jet = tuple[Tensor, Tensor, Tensor, Tensor]  # coefficients of 1, s, t and st, where s² = t² = 0


def jet_product(p: Jet, q: Jet) -> Jet:
    """The product of two jets."""
    return (
        p[0] * q[0],
        p[0] * q[1] + p[1] * q[0],
        p[0] * q[2] + p[2] * q[0],
        p[0] * q[3] + p[1] * q[2] + p[2] * q[1] + p[3] * q[0],
    )


def leave_one_out(w: Tensor, u: Tensor, v: Tensor) -> Jet:
    r"""Π_{j≠i} (w_j + s u_j + t v_j) for every i: coefficients (..., L).

    With P = Π_j w_j these are ∇P, P''u, P''v and P'''[u, v], as ∂P/∂w_i is the product without w_i. They are products
    of a prefix and a suffix, without division by weights that may be zero, at cost O(L).
    """
    zero, one = torch.zeros_like(w[..., 0]), torch.ones_like(w[..., 0])
    factors = [(*parts, zero) for parts in zip(w.unbind(-1), u.unbind(-1), v.unbind(-1), strict=True)]
    unit = (one, zero, zero, zero)
    ahead = list(itertools.accumulate(factors[:-1], jet_product, initial=unit))
    behind = list(itertools.accumulate(factors[:0:-1], jet_product, initial=unit))[::-1]
    joined = [jet_product(p, q) for p, q in zip(ahead, behind, strict=True)]
    columns = zip(*joined, strict=True)
    first, along_u, along_v, both = (torch.stack(torch.broadcast_tensors(*parts), dim=-1) for parts in columns)
    return first, along_u, along_v, both


@final
@dataclass(frozen=True)
class DeepLinearChain(Toy):
    r"""f(w) = ½ (y − x w_1 w_2 … w_L)²: a linear network of depth L ≥ 2, one weight a layer, on one example (x, y).

    Gradient flow conserves w_i² − w_j². The minima form the surface Π w = y/x, represented by the balanced minimum of
    each sign pattern. The other critical points have at least two zero weights: strict saddles with exactly two (one
    representative for each pair), H = 0 with more. At y = 0 the minima are all points with a zero weight. x ≠ 0.
    ``Product`` is L = 2. Saxe, McClelland & Ganguli 2014, arXiv 1312.6120; Arora et al. 2019, arXiv 1810.02281.
    """

    depth: int = 3
    """L, the number of layers."""
    y: float = 1.0
    """Target."""
    x: float = 1.0
    """Input, not zero."""

    def __post_init__(self) -> None:
        check_count("depth", self.depth, minimum=2, maximum=MOST)
        check_real("y", self.y)
        if check_real("x", self.x) == 0:
            raise ValueError(f"x must not be zero, got {self.x!r}: the loss would be constant")

    @property
    def dimension(self) -> int:
        return self.depth

    def error(self, theta: Tensor) -> Tensor:
        """x Π w − y, shape (...,)."""
        product = functools.reduce(torch.mul, theta.unbind(-1))  # torch.prod's derivative divides by the weights
        return self.x * product - self.y

    def loss(self, theta: Tensor) -> Tensor:
        """½ (y − x Π w)², shape (...,)."""
        return torch.square(self.error(self.check(theta))) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """x e ∇P with e = xP − y, shape (..., L)."""
        zero = torch.zeros_like(self.check(theta))
        slope, *_ = leave_one_out(theta, zero, zero)
        return self.x * self.error(theta)[..., None] * slope

    def curvature(self, theta: Tensor) -> Field:
        """v ↦ x² ∇P (∇P·v) + x e P''v."""
        pull, zero = self.x * self.error(theta)[..., None], torch.zeros_like(theta)

        def product(v: Tensor) -> Tensor:
            slope, bent, *_ = leave_one_out(theta, v, zero)
            return self.x**2 * (slope * v).sum(dim=-1, keepdim=True) * slope + pull * bent

        return product

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """x² (P''u (∇P·v) + P''v (∇P·u) + ∇P (uᵀP''v)) + x e P'''[u, v]."""
        slope, bent_u, bent_v, twice = leave_one_out(theta, u, v)
        du, dv, duv = ((a * b).sum(dim=-1, keepdim=True) for a, b in ((slope, u), (slope, v), (bent_u, v)))
        pull = self.x * self.error(theta)[..., None]
        return self.x**2 * (bent_u * dv + bent_v * du + slope * duv) + pull * twice

    @property
    def window(self) -> Window:
        """Twice the weight of a balanced minimum, at least ±2."""
        edge = max(2.0, 2 * abs(self.y / self.x) ** (1 / self.depth))
        return ((-edge, edge),) * self.depth

    @property
    def start(self) -> tuple[float, ...]:
        """Small unbalanced weights near the saddles: a plateau, then descent to the minimum with these signs."""
        side = math.copysign(1.0, self.y / self.x)
        return *[0.2] * (self.depth - 1), 0.4 * side

    def critical_positions(self) -> list[list[float]]:
        """The origin, points with two zeros and the balanced minima; at y = 0 the origin and points with one zero."""
        if self.y != 0:  # else there are few
            check_listable("depth", self.depth, 2, self.depth - 1)
        holes = 1 if self.y == 0 else 2
        flats = [
            [0.0 if i in chosen else 1.0 for i in range(self.depth)]
            for chosen in itertools.combinations(range(self.depth), holes)
            if holes < self.depth
        ]
        origin = [0.0] * self.depth
        if self.y == 0:
            return [origin, *flats]
        size = abs(self.y / self.x) ** (1 / self.depth)
        last = math.copysign(size, self.y / self.x)
        signs = itertools.product((1.0, -1.0), repeat=self.depth - 1)
        return [origin, *flats, *([size * s for s in some] + [last * math.prod(some)] for some in signs)]


@final
class MatrixFactorisation(Toy):
    r"""f(U, V) = ½ ‖U Vᵀ − M‖²_F, θ = (vec U, vec V) by rows: a two-layer linear network, or matrix recovery.

    ``target`` M (m, n), ``rank`` r: U (m, r), V (n, r), d = (m + n) r. Gradient flow conserves UᵀU − VᵀV. The critical
    points form orbits (U G, V G⁻ᵀ), one for each set of at most r singular values, represented by a balanced point with
    G = I (the larger families for equal singular values and the null space of M are not distinguished). The r largest
    give the global minimum, every other set a strict saddle: there is no other minimum, and from a small start singular
    values are learnt one after another. Baldi & Hornik 1989, Neural Netw. 2, 53; Gunasekar et al. 2017, arXiv
    1705.09280.
    """

    def __init__(self, target: Tensor, rank: int = 1):
        self.target = check_real_tensor("target", target).detach().clone()
        if self.target.ndim != 2:
            raise ValueError(f"target must have shape (m, n), got {tuple(target.shape)}")
        if not bool(self.target.any()):
            raise ValueError("target must not be zero")
        self.rank = check_count("rank", rank)
        if rank > min(self.target.shape):
            raise ValueError(f"rank must be at most min(m, n) = {min(self.target.shape)}, got {rank!r}")

    @property
    def dimension(self) -> int:
        """(m + n) r."""
        return sum(self.target.shape) * self.rank

    def factors(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """U (..., m, r) and V (..., n, r)."""
        m, n = self.target.shape
        rows = theta.unflatten(-1, (m + n, self.rank))
        return rows[..., :m, :], rows[..., m:, :]

    def join(self, left: Tensor, right: Tensor) -> Tensor:
        """(vec U, vec V), shape (..., d)."""
        return torch.cat((left, right), dim=-2).flatten(-2)

    def residual(self, left: Tensor, right: Tensor) -> Tensor:
        """R = U Vᵀ − M, shape (..., m, n)."""
        return left @ right.mT - cast(self.target, left)

    def loss(self, theta: Tensor) -> Tensor:
        """½ ‖R‖²_F, shape (...,)."""
        return torch.square(self.residual(*self.factors(self.check(theta)))).sum(dim=(-2, -1)) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """(R V, Rᵀ U), shape (..., d)."""
        left, right = self.factors(self.check(theta))
        residual = self.residual(left, right)
        return self.join(residual @ right, residual.mT @ left)

    def curvature(self, theta: Tensor) -> Field:
        """(A, B) ↦ (R' V + R B, R'ᵀ U + Rᵀ A) with R' = A Vᵀ + U Bᵀ."""
        left, right = self.factors(theta)
        residual = self.residual(left, right)

        def product(v: Tensor) -> Tensor:
            a, b = self.factors(v)
            change = a @ right.mT + left @ b.mT
            return self.join(change @ right + residual @ b, change.mT @ left + residual.mT @ a)

        return product

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """(R'' V + R'_u B_v + R'_v B_u, R''ᵀ U + R'_uᵀ A_v + R'_vᵀ A_u) with R'' = A_u B_vᵀ + A_v B_uᵀ."""
        (left, right), (a, b), (c, d) = self.factors(theta), self.factors(u), self.factors(v)
        along_u, along_v, twice = a @ right.mT + left @ b.mT, c @ right.mT + left @ d.mT, a @ d.mT + c @ b.mT
        return self.join(twice @ right + along_u @ d + along_v @ b, twice.mT @ left + along_u.mT @ c + along_v.mT @ a)

    def singular_triplets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Left vectors (m, p), nonzero singular values (p,) and right vectors (n, p) of M, float64."""
        left, values, right = torch.linalg.svd(self.target.double(), full_matrices=False)
        kept = values > 8 * max(self.target.shape) * torch.finfo(values.dtype).eps * values[0]
        return left[:, kept], values[kept], right.mT[:, kept]

    @property
    def window(self) -> Window:
        """1.5 times the root of the largest singular value, at least ±1."""
        edge = max(1.0, 1.5 * math.sqrt(float(self.singular_triplets()[1][0])))
        return ((-edge, edge),) * self.dimension

    @property
    def start(self) -> tuple[float, ...]:
        """A tenth of the first r singular vectors, near the saddle at the origin: they grow in sequence."""
        left, _, right = torch.linalg.svd(self.target.double(), full_matrices=False)
        return tuple((self.join(left[:, : self.rank], right.mT[:, : self.rank]) / 10).tolist())

    def critical_positions(self) -> list[list[float]]:
        """A balanced point for each set of at most r singular values, the empty set (the origin) first."""
        left, values, right = self.singular_triplets()
        m, n = self.target.shape
        positions = []
        for count in range(min(self.rank, len(values)) + 1):
            for chosen in map(list, itertools.combinations(range(len(values)), count)):
                root = torch.sqrt(values[chosen])
                one, other = left.new_zeros(m, self.rank), left.new_zeros(n, self.rank)
                one[:, :count], other[:, :count] = left[:, chosen] * root, right[:, chosen] * root
                positions.append(self.join(one, other).tolist())
        return positions


@final
@dataclass(frozen=True)
class CatapultModel(Toy):
    r"""L(u, v) = ½ (f − y)² with f = x uᵀv/√n: the two-layer linear network of width n on one example, θ = (u, v).

    The tangent kernel is λ = x² (‖u‖² + ‖v‖²)/n. For x = 1, y = 0 a gradient-descent step is exactly f ← f (1 − hλ +
    h²f²/n), λ ← λ + (hf²/n)(hλ − 4): for 2/λ < h < 4/λ the loss first grows, until λ is below 2/h ("catapult"), whereas
    gradient flow stays in the sharp valley. λ is also the sharpness at a minimum. The minima form the set uᵀv = y√n/x,
    represented by balanced minima; the origin is a saddle (at y = 0 a degenerate minimum). x ≠ 0. Lewkowycz, Bahri,
    Dyer, Sohl-Dickstein & Gur-Ari 2020, arXiv 2003.02218.
    """

    width: int = 8
    """n, the number of hidden units."""
    y: float = 0.0
    """Target."""
    x: float = 1.0
    """Input, not zero."""

    def __post_init__(self) -> None:
        check_count("width", self.width, maximum=MOST)
        check_real("y", self.y)
        if check_real("x", self.x) == 0:
            raise ValueError(f"x must not be zero, got {self.x!r}: the loss would be constant")

    @property
    def dimension(self) -> int:
        """2n."""
        return 2 * self.width

    @property
    def gain(self) -> float:
        """x/√n."""
        return self.x / math.sqrt(self.width)

    def output(self, theta: Tensor) -> Tensor:
        """f = x uᵀv/√n, shape (...,)."""
        u, v = self.check(theta).chunk(2, dim=-1)
        return self.gain * (u * v).sum(dim=-1)

    def tangent_kernel(self, theta: Tensor) -> Tensor:
        """λ = x² (‖u‖² + ‖v‖²)/n, shape (...,)."""
        return self.gain**2 * torch.square(self.check(theta)).sum(dim=-1)

    def loss(self, theta: Tensor) -> Tensor:
        """½ (f − y)², shape (...,)."""
        return torch.square(self.output(theta) - self.y) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """(x/√n) (f − y) (v, u), shape (..., 2n)."""
        return self.gain * (self.output(theta) - self.y)[..., None] * swap(theta)

    def curvature(self, theta: Tensor) -> Field:
        """z ↦ c f' Jθ + c (f − y) Jz with f' = c (Jθ)·z, c = x/√n and J the swap of u and v."""
        swapped, pull = swap(theta), self.gain * (self.output(theta) - self.y)[..., None]
        return lambda z: self.gain**2 * (swapped * z).sum(dim=-1, keepdim=True) * swapped + pull * swap(z)

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """c² ((Ju·v) Jθ + (Jθ·u) Jv + (Jθ·v) Ju)."""
        j_theta, j_u, j_v = swap(theta), swap(u), swap(v)
        uv, du, dv = ((a * b).sum(dim=-1, keepdim=True) for a, b in ((j_u, v), (j_theta, u), (j_theta, v)))
        return self.gain**2 * (uv * j_theta + du * j_v + dv * j_u)

    @property
    def window(self) -> Window:
        """Twice the balanced minimum, at least ±2."""
        edge = max(2.0, 2 * self.balanced_weight())
        return ((-edge, edge),) * self.dimension

    @property
    def start(self) -> tuple[float, ...]:
        """u all ones, v alternately 1.1 and −0.9: f is small and λ about 2x², as for random weights of variance 1."""
        return *[1.0] * self.width, *(1.1 if i % 2 == 0 else -0.9 for i in range(self.width))

    def balanced_weight(self) -> float:
        """The absolute value of each weight at a balanced minimum."""
        return math.sqrt(abs(self.y / self.gain) / self.width)

    def critical_positions(self) -> list[list[float]]:
        """The origin and two balanced minima; at y = 0 the origin and a point with v = 0."""
        n = self.width
        if self.y == 0:
            return [[0.0] * 2 * n, [1.0] * n + [0.0] * n]
        u, side = self.balanced_weight(), math.copysign(1.0, self.y / self.gain)
        return [[0.0] * 2 * n, *([sign * u] * n + [sign * side * u] * n for sign in (1.0, -1.0))]


def swap(theta: Tensor) -> Tensor:
    """(v, u) from (u, v)."""
    return theta.roll(theta.shape[-1] // 2, dims=-1)


@final
@dataclass(frozen=True)
class Product(Planar):
    r"""f(a, b) = ½ (y − a b x)²: the product model, a two-layer linear net of one weight each on one example (x, y).

    The minima form the hyperbola ab = y/x, with sharpness x²(a² + b²) across it; the balanced points of both branches
    represent it. The origin is a saddle. At y = 0 the minima are both axes. x ≠ 0.
    """

    y: float = 1.0
    """Target."""
    x: float = 1.0
    """Input, not zero."""

    def __post_init__(self) -> None:
        check_real("y", self.y)
        if check_real("x", self.x) == 0:
            raise ValueError(f"x must not be zero, got {self.x!r}: the loss would be constant")

    def loss(self, theta: Tensor) -> Tensor:
        """½ (y − a b x)², shape (...,)."""
        a, b = self.check(theta).unbind(-1)
        return torch.square(self.y - self.x * a * b) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """x (a b x − y) (b, a), shape (..., 2)."""
        a, b = self.check(theta).unbind(-1)
        pull = self.x * (self.x * a * b - self.y)
        return torch.stack((pull * b, pull * a), dim=-1)

    def second_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial]:
        """x²b², x (2abx − y), x²a²."""
        a, b = theta.unbind(-1)
        return self.x**2 * b * b, self.x * (2 * self.x * a * b - self.y), self.x**2 * a * a

    def third_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial, Partial]:
        """0, 2x²b, 2x²a, 0."""
        a, b = (2 * self.x**2 * theta).unbind(-1)
        return 0.0, b, a, 0.0

    @property
    def window(self) -> Window:
        """Twice the balanced minimum, at least ±2."""
        edge = max(2.0, 2 * math.sqrt(abs(self.y / self.x)))
        return (-edge, edge), (-edge, edge)

    @property
    def start(self) -> tuple[float, ...]:
        """An unbalanced point in the sharp part of the valley."""
        return 1.8, 0.1

    def critical_positions(self) -> list[list[float]]:
        """The origin, and the balanced minima of both branches (a point of each axis at y = 0)."""
        if self.y == 0:
            return [[0, 0], [1, 0], [0, 1]]
        a = math.sqrt(abs(self.y / self.x))
        b = math.copysign(a, self.y / self.x)
        return [[0, 0], [a, b], [-a, -b]]
