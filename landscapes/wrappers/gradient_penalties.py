r"""Explicit regularisers: landscapes with a penalty on the gradients of a landscape.

Every penalty here is a quadratic form in the gradients g_k = ∇f_k of some members f_1 … f_m,

    P(θ) = (c/m) Σ_k ‖g_k − ḡ‖² + a ‖ḡ‖² = Σ_k g_kᵀ (Sg)_k,   ḡ = (1/m) Σ_k g_k,   (Sg)_k = (1/m) [c (g_k − ḡ) + a ḡ],

with S symmetric over the members. ``GradientPenalty`` has one member and uses a; ``VariancePenalty`` has mini-batches
and uses c. Derivatives follow from ∇P = 2 Σ_k H_k (Sg)_k by Leibniz's rule; ‖·‖² is bilinear, so holomorphic losses
remain holomorphic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

from landscapes.autodiff import gradient, inside_transform, release
from landscapes.description import describe_object
from landscapes.errors import check_dense, check_index, check_real
from landscapes.expansion import Expansion
from landscapes.landscape import Change, FiniteSum, Landscape, check_finite_sum, check_landscape
from landscapes.wrappers.base import Wrapper, replace_attributes

Family = tuple[Expansion, ...]
Pair = tuple[Family, Family, float]
Batches = Tensor | Sequence[Tensor]
Result = TypeVar("Result")


@final
@dataclass(frozen=True, eq=False)
class SquaredGradients:
    """The form P of the module's docstring: ``members`` f_k, ``spread`` c and ``centre`` a."""

    members: tuple[Landscape, ...]
    spread: float
    centre: float

    def apply_weights(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """(Sx)_k for one row x_k (..., d) a member."""
        m = len(rows)
        if self.spread == self.centre:  # S is a multiple of the identity: no rounding from the mean
            return [self.spread / m * row for row in rows]
        middle = mean(rows)
        return [(self.spread * (row - middle) + self.centre * middle) / m for row in rows]

    def pairing(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Σ_k x_kᵀ (Sy)_k, bilinear, shape (...,)."""
        return total((x * y).sum(dim=-1) for x, y in zip(left, self.apply_weights(right), strict=True))

    def expand(self, theta: Tensor) -> Family:
        """The members' expansions at θ."""
        return tuple(member.expand(theta) for member in self.members)

    def loss(self, theta: Tensor) -> Tensor:
        """P(θ), shape (...,), traceable."""
        grads = [member.grad(theta) for member in self.members]
        return self.pairing(grads, grads)

    def grad(self, theta: Tensor) -> Tensor:
        """∇P(θ), shape (..., d)."""
        if inside_transform():
            return gradient(self.loss, theta)
        family = self.expand(theta)
        return PenalisedExpansion(theta, None, ((family, family, 1.0),), self).grad


class PenalisedExpansion(Expansion):
    r"""Expansion of f + Σ w ⟨∇a, ∇b⟩, ⟨x, y⟩ = Σ_k x_kᵀ (Sy)_k, from the expansions of f and of the members.

    ``base``: the expansion of f, None for f = 0. ``pairs``: (a, b, w), a and b with one expansion for each member; the
    penalty is (members, members, 1), and derivatives along directions give further pairs. With a = b:

        grad         g + 2w Σ H_k (S∇a)_k
        hvp(v)       Hv + 2w Σ (T_k[(S∇a)_k, v] + H_k (SHv)_k)
        third(u, v)  T[u,v] + 2w Σ (D⁴a_k[u, (S∇a)_k, v] + T_k[u, (SHv)_k] + T_k[v, (SHu)_k] + H_k (ST[u,v])_k)

    Terms common to f and the members are computed once. For one member equal to f: grad, one gradient and one HVP; hvp,
    one third derivative and two HVPs; third, one fourth derivative, three third ones and three HVPs.
    """

    def __init__(self, theta: Tensor, base: Expansion | None, pairs: tuple[Pair, ...], form: SquaredGradients):
        self.theta = theta
        self._base = base
        self._pairs = pairs
        self._form = form

    @cached_property
    def loss(self) -> Tensor:
        """f + P, shape (...,)."""
        penalties = (w * self._form.pairing(grads(a), grads(b)) for a, b, w in self._pairs)
        return self._total(lambda e: e.loss, penalties)

    @cached_property
    def grad(self) -> Tensor:
        """∇f + ∇P, shape (..., d)."""
        return self._total(
            lambda e: e.grad,
            (
                w * e.hvp(q)
                for a, b, w in self._ordered_pairs()
                for e, q in zip(a, self._form.apply_weights(grads(b)), strict=True)
            ),
        )

    def hvp(self, v: Tensor) -> Tensor:
        """(H + ∇²P) v, shape (..., d)."""
        self.check_vector("v", v)
        return release(self._hvp(v), self.theta)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³(f + P)[u, v], shape (..., d)."""
        self.check_vector("u", u)
        self.check_vector("v", v)
        return release(self._third(u, v), self.theta)

    def along(self, w: Tensor) -> PenalisedExpansion:
        """The expansion of θ ↦ ∇(f + P)ᵀw, w frozen, by Leibniz's rule on the pairs."""
        self.check_vector("w", w)
        slope = Memo(lambda e: e.along(w))
        base = None if self._base is None else slope(self._base)
        moved: dict[int, Family] = {id(a): tuple(slope(e) for e in a) for pair in self._pairs for a in pair[:2]}
        pairs: list[Pair] = []
        for a, b, weight in self._pairs:
            if a is b:
                pairs.append((moved[id(a)], a, 2 * weight))
            else:
                pairs += [(moved[id(a)], b, weight), (a, moved[id(b)], weight)]
        return PenalisedExpansion(self.theta, base, tuple(pairs), self._form)

    # The slope along v has the gradient Hv and the products T[v, ·], by one graph of Hv. Vectors that depend on θ are
    # passed to hvp, or as first argument of third, where they are cotangents of the last backward pass: a slope along a
    # vector with a graph would repeat the forward pass.

    def _hvp(self, v: Tensor) -> Tensor:
        slope = Memo(lambda e: e.along(v))

        def terms() -> Iterator[Tensor]:
            for a, b, w in self._ordered_pairs():
                q, hq = self._form.apply_weights(grads(b)), self._form.apply_weights(grads(map(slope, b)))
                for k, e in enumerate(a):
                    yield w * (slope(e).hvp(q[k]) + e.hvp(hq[k]))

        return self._total(lambda e: slope(e).grad, terms())

    def _third(self, u: Tensor, v: Tensor) -> Tensor:
        along_u, along_v = Memo(lambda e: e.along(u)), Memo(lambda e: e.along(v))
        both = Memo(lambda e: along_u(e).hvp(v))

        def terms() -> Iterator[Tensor]:
            for a, b, w in self._ordered_pairs():
                q, tuv = self._form.apply_weights(grads(b)), self._form.apply_weights([both(e) for e in b])
                hu, hv = (self._form.apply_weights(grads(map(along, b))) for along in (along_u, along_v))
                for k, e in enumerate(a):
                    curved = along_u(e).third(q[k], v) + along_u(e).hvp(hv[k]) + along_v(e).hvp(hu[k])
                    yield w * (curved + e.hvp(tuv[k]))

        return self._total(both, terms())

    def _ordered_pairs(self) -> Iterator[Pair]:
        """Pairs (a, b, w) such that the gradient is Σ w Σ_k Ha_k (S∇b)_k."""
        for a, b, w in self._pairs:
            if a is b:
                yield a, a, 2 * w
            else:
                yield a, b, w
                yield b, a, w

    def _total(self, of_base: Callable[[Expansion], Tensor], terms: Iterable[Tensor]) -> Tensor:
        """The term of f, if any, plus the sum of the penalty's terms."""
        penalty = total(terms)
        return penalty if self._base is None else of_base(self._base) + penalty


class Memo(Generic[Result]):
    """A function of an expansion, cached by identity of the expansion."""

    def __init__(self, function: Callable[[Expansion], Result]):
        self._function = function
        self._known: dict[int, Result] = {}

    def __call__(self, point: Expansion) -> Result:
        """The function's value, from the cache if present."""
        if id(point) not in self._known:
            self._known[id(point)] = self._function(point)
        return self._known[id(point)]


def grads(points: Iterable[Expansion]) -> list[Tensor]:
    """The gradients of some expansions."""
    return [point.grad for point in points]


def mean(terms: Sequence[Tensor]) -> Tensor:
    """The mean of at least one tensor."""
    return torch.stack(tuple(terms)).mean(dim=0) if len(terms) > 1 else terms[0]


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    return reduce(torch.add, terms)


def part_share(part: Landscape, whole: Landscape) -> float:
    """The number of a part's examples over the whole's; 1 unless both are finite sums."""
    return part.size / whole.size if isinstance(part, FiniteSum) and isinstance(whole, FiniteSum) else 1


class Penalised(Wrapper):
    """A landscape plus a form in gradients, ``penalty``."""

    penalty: SquaredGradients

    @property
    def smoothness(self) -> float:
        """One continuous derivative less than the members have; −1 if their gradients are discontinuous."""
        return max(-1, min(self.landscape.smoothness, *(member.smoothness - 1 for member in self.penalty.members)))

    def with_parts(self, change: Change) -> Landscape:
        landscape = change(self.landscape, 1)
        # f itself if it is a member, as in GradientPenalty, so that their common terms are still computed once
        members = tuple(
            landscape if member is self.landscape else change(member, part_share(member, self.landscape))
            for member in self.penalty.members
        )
        return replace_attributes(self, landscape=landscape, penalty=replace(self.penalty, members=members))

    def base(self, theta: Tensor, family: Family) -> Expansion:
        """The expansion of f; overridden if f is one of the members."""
        return self.landscape.expand(theta)

    def loss(self, theta: Tensor) -> Tensor:
        """f + P, shape (...,)."""
        if inside_transform():
            return self.landscape.loss(self.check(theta)) + self.penalty.loss(theta)
        return self.expand(theta).loss

    def grad(self, theta: Tensor) -> Tensor:
        """∇f + ∇P, shape (..., d)."""
        if inside_transform():
            return gradient(self.loss, self.check(theta))
        return self.expand(theta).grad

    def expand(self, theta: Tensor) -> Expansion:
        family = self.penalty.expand(self.check(theta))
        return PenalisedExpansion(theta, self.base(theta, family), ((family, family, 1.0),), self.penalty)


class PenalisedSum(Penalised, FiniteSum):
    """A finite sum with the whole penalty in every example."""

    @property
    def size(self) -> int:
        return self.landscape.size

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """f_i(θ) + P(θ), shape (..., m)."""
        return self.landscape.losses(theta, index) + self.penalty.loss(theta)[..., None]

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """Mini-batch gradient + ∇P."""
        return self.landscape.batch_grad(theta, index) + self.penalty.grad(theta)

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_i w_i (∇f_i + ∇P)."""
        share = self.check_weights(weights).sum(dim=-1, keepdim=True).to(self.check(theta))
        return release(self.landscape.weighted_grad(theta, weights) + share * self.penalty.grad(theta), theta)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∇f_i(θ) + ∇P of each example."""
        return self.landscape.example_grads(theta, index) + self.penalty.grad(theta)[..., None, :]

    def restrict(self, index: Tensor) -> FiniteSum:
        """The restricted sum, with the penalty of the full sum."""
        return PenalisedPart(self.landscape.restrict(index), self.penalty)


@final
class PenalisedPart(PenalisedSum):
    """The mean over some examples of a penalised sum, with the penalty of the full sum."""

    def __init__(self, landscape: FiniteSum, penalty: SquaredGradients):
        self.landscape = landscape
        self.penalty = penalty


class GradientPenalty(Penalised):
    r"""f(θ) + c ‖∇f(θ)‖², gradient g + 2c Hg, for any finite real c = ``coefficient``.

    c = h/4 makes implicit gradient regularisation explicit: gradient flow on it follows gradient descent of rate h on f
    with one-step error O(h³), as ``ModifiedFlow`` of order 2 does. c = −h/4 cancels that drift: gradient descent of
    rate h on f − (h/4)‖∇f‖² follows the gradient flow of f with one-step error O(h³). With a negative penalty the loss
    may be unbounded below. Barrett & Dherin 2021, arXiv 2009.11162.

    For a finite sum every example has the penalty of the full sum, so mini-batch gradients are unbiased and have the
    covariance of f's; a mini-batch step costs a full gradient and a full HVP in addition to the batch gradient. The
    penalty of the batch's own gradient would be cheaper, but its mean is c(‖g‖² + tr Cov(g_batch)): another landscape,
    see ``reshuffling_loss``. A gradient costs one gradient and one HVP of f, an HVP two HVPs and one third derivative.

    Raises TypeError or ValueError unless the landscape is a Landscape and c a finite real number.
    """

    def __new__(cls, landscape: Landscape, coefficient: float) -> GradientPenalty:
        """A ``GradientPenaltySum`` if the landscape is a finite sum."""
        known = cls is GradientPenalty and isinstance(landscape, FiniteSum)
        return object.__new__(GradientPenaltySum if known else cls)

    def __init__(self, landscape: Landscape, coefficient: float):
        self.landscape = check_landscape(landscape)
        self.coefficient = check_real("coefficient", coefficient)
        self.penalty = SquaredGradients((landscape,), self.coefficient, self.coefficient)

    def __getnewargs__(self) -> tuple[Landscape, float]:
        return self.landscape, self.coefficient

    def description(self) -> dict[str, Any]:
        return describe_object(self, "penalty")

    def base(self, theta: Tensor, family: Family) -> Expansion:
        """The expansion of the only member, which is f."""
        return family[0]


class GradientPenaltySum(GradientPenalty, PenalisedSum):
    """A finite sum with c‖∇f‖² of the full sum in every example."""


@final
class VariancePenalty(PenalisedSum):
    r"""f(θ) + (c/m) Σ_k ‖∇f_k(θ) − ḡ(θ)‖² + a ‖ḡ(θ)‖², f_k the mean over batch k and ḡ = (1/m) Σ_k ∇f_k.

    ``batches``: an index tensor (m, b), or 1-D index tensors of any lengths, such as ``torch.arange(N).split(b)``.
    c = ``coefficient`` and a = ``mean_coefficient`` are any finite real numbers. Batches have equal weights in ḡ, which
    therefore differs from ∇f if the last batch is short. For batches of one example, ``torch.arange(N)[:, None]``, the
    variance is tr D(θ), and κ tr D that of batches of b drawn without replacement, κ = (N − b)/(b (N − 1)), or with
    replacement, κ = 1/b. The penalty's gradient is (2/m) Σ_k H_k (c (∇f_k − ḡ) + a ḡ).

    A finite sum with the whole penalty in every example. Cost: the penalty takes one gradient and one HVP of each
    batch, in sequence, and holds the graphs and gradients of all batches at once; for batches of one example these are
    N small passes and (N, d) gradients: for N up to thousands.

    Raises TypeError or ValueError for a landscape without examples or invalid batches or coefficients.
    """

    def __init__(self, landscape: FiniteSum, batches: Batches, coefficient: float, mean_coefficient: float = 0.0):
        self.landscape = check_finite_sum(landscape)
        self.batches = check_batches(batches, landscape.size)
        self.coefficient = check_real("coefficient", coefficient)
        self.mean_coefficient = check_real("mean_coefficient", mean_coefficient)
        members = tuple(landscape.restrict(batch) for batch in self.batches)
        self.penalty = SquaredGradients(members, self.coefficient, self.mean_coefficient)

    def description(self) -> dict[str, Any]:
        return describe_object(self, "penalty")


def check_batches(batches: Batches, size: int) -> tuple[Tensor, ...]:
    """The batches as 1-D index tensors; raise unless there is at least one and all indices are in [0, size)."""
    if isinstance(batches, Tensor) and check_dense("batches", batches).ndim != 2:
        raise ValueError(f"batches must have shape (m, b), a row a batch, got {tuple(batches.shape)}")
    if not isinstance(batches, (Tensor, list, tuple)):
        raise TypeError(
            f"batches must be an index tensor (m, b) or a sequence of 1-D index tensors, got {type(batches).__name__}"
        )
    rows = tuple(batches)
    if not rows:
        raise ValueError("batches must hold at least one batch, got none")
    for k, row in enumerate(rows):
        try:
            check_index(row, size)
        except (TypeError, ValueError) as error:
            raise type(error)(f"batches[{k}]: {error}") from None
        if row.ndim != 1:
            raise ValueError(f"batches[{k}] must have shape (b,), got {tuple(row.shape)}")
    return rows
