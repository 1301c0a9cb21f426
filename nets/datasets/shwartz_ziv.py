r"""The twelve-bit task of Shwartz-Ziv & Tishby 2017 (arXiv 1703.00810): patterns on a sphere, invariant labels.

Twelve bits select among twelve evenly spread points of the sphere, here the vertices of the icosahedron: 4,096
patterns. The label is drawn with p(y = 1 | x) = 1/(1 + exp(−γ(f(x) − θ))), f a function of the pattern's power spectrum
C_l = Σ_m |Σ_i x_i Y_lm(v_i)|², which is rotation invariant.

Two vertices are the same, neighbours, antipodes or neighbours of antipodes, so that the spectrum is equivalent to three
integers: n vertices, e pairs of neighbours, a pairs of antipodes. By enumeration there are 96 orbits under the 60
rotations, 82 under all 120 symmetries, and 64 triples (n, e, a): the 64 classes of the paper are those of equal power
spectrum.

The paper does not specify f, θ and γ. Here f = 9n − 2e − a, which is Σ_l w_l C_l with positive w_0, ..., w_3, θ = 38.5
and γ = 10: p(y = 1) = 0.517 and I(X; Y) = 0.991 bits, compared with about 0.5 and 0.99 in the paper. The fraction of y
= 1 grows with the number of vertices: 0 up to n = 4, then 60/792, 532/924, 732/792, then 1. Agreement with the labels
of the authors' file has not been checked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from landscapes.errors import check_positive
from nets.datasets.parts import DataPart

BITS = 12
THRESHOLD, SHARPNESS = 38.5, 10.0


def icosahedron() -> Tensor:
    """The twelve vertices on the unit sphere, float64 (12, 3): cyclic permutations of (0, ±1, ±golden ratio)."""
    golden = (1 + math.sqrt(5)) / 2
    planes = [(0.0, one, other) for one in (1.0, -1.0) for other in (golden, -golden)]
    corners = [corner[turn:] + corner[:turn] for corner in planes for turn in range(3)]
    return torch.tensor(corners, dtype=torch.float64) / math.sqrt(1 + golden * golden)


def patterns() -> Tensor:
    """All patterns in counting order, uint8 (4096, 12), the first vertex the highest bit."""
    places = torch.arange(BITS - 1, -1, -1)
    return ((torch.arange(2**BITS)[:, None] >> places) & 1).to(torch.uint8)


def pair_counts() -> Tensor:
    """n, e and a of each pattern, int64 (4096, 3)."""
    corners, chosen = icosahedron(), patterns().long()
    cosines = corners @ corners.T  # 1, ±1/√5, −1: separated far beyond rounding
    kinds = [(cosines > 0.9).long(), ((cosines > 0) & (cosines < 0.9)).long(), (cosines < -0.9).long()]
    ordered = [((chosen @ kind) * chosen).sum(1) for kind in kinds]
    return torch.stack([ordered[0], ordered[1] // 2, ordered[2] // 2], dim=1)


def symmetric_function() -> Tensor:
    """f = 9n − 2e − a of each pattern, int64 (4096,)."""
    return pair_counts() @ torch.tensor([9, -2, -1])


def label_probability(sharpness: float = SHARPNESS) -> Tensor:
    """p(y = 1 | x) = 1/(1 + exp(−γ(f(x) − θ))) of each pattern, float64 (4096,), at γ = ``sharpness``."""
    return torch.sigmoid(check_positive("sharpness", sharpness) * (symmetric_function() - THRESHOLD).double())


def mutual_information(sharpness: float = SHARPNESS) -> float:
    """I(X; Y) = H(Y) − H(Y | X) in bits, the patterns equally likely, at γ = ``sharpness``."""
    ones = label_probability(sharpness)
    return float(bits(ones.mean()) - bits(ones).mean())


def bits(ones: Tensor) -> Tensor:
    """The entropy in bits of Bernoulli variables with these probabilities."""
    return -(torch.xlogy(ones, ones) + torch.xlogy(1 - ones, 1 - ones)) / math.log(2)


def read_shwartz_ziv() -> DataPart:
    """The patterns with the more probable label of each, y = [f > θ]: deterministic."""
    return DataPart(patterns(), (symmetric_function() > THRESHOLD).long(), 2)
