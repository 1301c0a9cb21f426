r"""``Rotated``: a landscape in rotated coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from landscapes.errors import check_float_tensor
from landscapes.expansion import Expansion
from landscapes.landscape import Change, Landscape, check_landscape
from landscapes.wrappers.base import Wrapper, replace_attributes


class RotatedExpansion(Expansion):
    """Expansion of f(Qᵀθ) from the expansion of f at Qᵀθ."""

    def __init__(self, inner: Expansion, theta: Tensor, rotation: Tensor):
        self.theta = theta
        self._inner = inner
        self._rotation = rotation

    @property
    def loss(self) -> Tensor:
        """f(Qᵀθ)."""
        return self._inner.loss

    @property
    def grad(self) -> Tensor:
        """Q ∇f(Qᵀθ)."""
        return self._inner.grad @ self._rotation.mT

    def hvp(self, v: Tensor) -> Tensor:
        return self._inner.hvp(v @ self._rotation) @ self._rotation.mT

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """Q D³f[Qᵀu, Qᵀv]."""
        return self._inner.third(u @ self._rotation, v @ self._rotation) @ self._rotation.mT

    def along(self, w: Tensor) -> Expansion:
        """The slope ∇f(Qᵀθ)ᵀ Qᵀw."""
        return RotatedExpansion(self._inner.along(w @ self._rotation), self.theta, self._rotation)


class Rotated(Wrapper):
    r"""The landscape in rotated coordinates: f(Qᵀθ) for an orthogonal Q (d, d).

    Methods that do not depend on coordinates (gradient descent and flows built from it) commute with the rotation.
    Raises ValueError unless Q is square, of the landscape's dimension and orthogonal.
    """

    def __init__(self, landscape: Landscape, rotation: Tensor):
        self.landscape = check_landscape(landscape)
        d = landscape.dimension
        check_float_tensor("rotation", rotation)
        if rotation.shape != (d, d):
            raise ValueError(f"rotation must have shape {(d, d)}, got {tuple(rotation.shape)}")
        identity = torch.eye(d, dtype=rotation.dtype, device=rotation.device)
        error = float((rotation @ rotation.mT - identity).abs().max())
        if error > 1e3 * torch.finfo(rotation.dtype).eps:
            raise ValueError(f"rotation must be orthogonal, got |QQᵀ − I| up to {error:.2g}")
        self.rotation = rotation

    def with_parts(self, change: Change) -> Landscape:
        return replace_attributes(self, landscape=change(self.landscape, 1))

    def loss(self, theta: Tensor) -> Tensor:
        """f(Qᵀθ), shape (...,)."""
        return self.landscape.loss(self.check(theta) @ self.rotation.to(theta))

    def grad(self, theta: Tensor) -> Tensor:
        """Q ∇f(Qᵀθ), shape (..., d)."""
        rotation = self.rotation.to(theta)
        return self.landscape.grad(self.check(theta) @ rotation) @ rotation.mT

    def expand(self, theta: Tensor) -> Expansion:
        rotation = self.rotation.to(theta)
        return RotatedExpansion(self.landscape.expand(self.check(theta) @ rotation), theta, rotation)
