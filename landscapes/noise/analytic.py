r"""Noises given by formulas: a root σ(θ), a covariance C(θ) with its symmetric root, or a constant root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from landscapes.autodiff import release
from landscapes.errors import MOST, check_choice, check_count, check_float_tensor
from landscapes.expansion import spread
from landscapes.noise.base import KINDS, GradientNoise, Kind
from landscapes.noise.roots import square_root
from landscapes.toys.closed_form import cast, check_real_tensor


class SizedNoise(GradientNoise):
    """A noise with the fields d and m. Class attributes here, as a dataclass field cannot override a property."""

    dimension: int = 0
    size: int = 0


@final
@dataclass(frozen=True)
class AnalyticNoise(SizedNoise):
    r"""σ(θ)ξ with a given ``root``: θ (..., d) ↦ σ (..., d, m), or (d, m) if it is the same for the whole batch.

    ``root`` must be differentiable by torch for ``ito_correction`` (m jvps, one if diagonal) and ``trace_gradient``.
    ``kind`` is not verified: additive if σ does not depend on θ; diagonal if m = d, σ is a diagonal matrix and σ_ii
    depends on θ_i only. Raises TypeError or ValueError for invalid arguments, and when called for a root of another
    shape or dtype.
    """

    dimension: int = field()
    size: int = field()
    root: Callable[[Tensor], Tensor] = field()
    kind: Kind = "general"

    def __post_init__(self) -> None:
        check_count("dimension", self.dimension, maximum=MOST)
        check_count("size", self.size, maximum=MOST)
        check_choice("kind", self.kind, KINDS)
        if not callable(self.root):
            raise TypeError(f"root must be callable, root(theta) -> (..., d, m), got {type(self.root).__name__}")
        if self.kind == "diagonal" and self.size != self.dimension:
            raise ValueError(f"size must be dimension = {self.dimension} for kind='diagonal', got {self.size}")

    def matrix(self, theta: Tensor) -> Tensor:
        """σ(θ), shape (..., d, m)."""
        root = self.root(self.check_theta(theta))
        return check_matrix("root(theta)", root, theta, self.size)

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """σ(θ)ξ, shape (..., d)."""
        self.check_noise(self.check_theta(theta), xi)
        return release((self.matrix(theta) @ xi[..., None])[..., 0], theta)

    def columns(self, theta: Tensor) -> Tensor:
        """The columns of σ(θ) as rows, (..., m, d)."""
        return release(self.matrix(theta), theta).mT


def noise_from_covariance(dimension: int, covariance: Callable[[Tensor], Tensor]) -> AnalyticNoise:
    r"""The noise of a given covariance θ (..., d) ↦ C (..., d, d), with its symmetric root √C; m = d, for small d.

    C may also be (d, d), the same for the whole batch. One eigendecomposition an evaluation. √C is differentiable also
    at repeated eigenvalues; a singular C needs a kernel that does not depend on θ (``landscapes.noise.roots``). When
    called, raises IndefiniteCovarianceError for a C with an eigenvalue that is negative beyond rounding, ValueError or
    TypeError unless C is finite and symmetric, of shape (..., d, d) and θ's dtype.
    """
    check_count("dimension", dimension, maximum=MOST)
    if not callable(covariance):
        raise TypeError(f"covariance must be callable, theta -> (..., d, d), got {type(covariance).__name__}")

    def root(theta: Tensor) -> Tensor:
        matrix = covariance(theta)
        check_matrix("covariance(theta)", matrix, theta, dimension)
        return square_root(matrix)

    return AnalyticNoise(dimension, dimension, root)


@final
@dataclass(frozen=True, eq=False)
class ConstantNoise(GradientNoise):
    r"""σξ with a constant matrix σ = ``root`` (d, m).

    Raises TypeError or ValueError unless the root is a finite real matrix.
    """

    root: Tensor

    def __post_init__(self) -> None:
        root = check_real_tensor("root", self.root).detach().clone()
        if root.ndim != 2:
            raise ValueError(f"root must have shape (d, m), got {tuple(root.shape)}")
        object.__setattr__(self, "root", root)

    @property
    def kind(self) -> Kind:
        return "additive"

    @property
    def dimension(self) -> int:
        return self.root.shape[0]

    @property
    def size(self) -> int:
        return self.root.shape[1]

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """σξ, shape (..., d)."""
        self.check_noise(self.check_theta(theta), xi)
        return spread(release(xi @ cast(self.root, theta).mT, theta), theta)

    def columns(self, theta: Tensor) -> Tensor:
        """The columns of σ as rows, (..., m, d)."""
        return cast(self.root, self.check_theta(theta)).mT.expand(*theta.shape[:-1], self.size, self.dimension)


def check_matrix(name: str, matrix: Tensor, theta: Tensor, columns: int) -> Tensor:
    """The matrix expanded to (..., d, m); raise unless its shape is that or (d, m), and its dtype θ's."""
    check_float_tensor(name, matrix)
    shape = (*theta.shape, columns)
    if matrix.shape not in (shape, shape[-2:]) or matrix.dtype != theta.dtype:
        raise ValueError(
            f"{name} must have shape {shape} or {shape[-2:]} and theta's dtype {theta.dtype}, "
            f"got {tuple(matrix.shape)} {matrix.dtype}"
        )
    return matrix.expand(shape)
