r"""Exact first and second moments of SGD and of its equations on sums of quadratics, by linear algebra on (1, θ, θθᵀ).

The gradients g_i = A_i θ − a_i are affine, so a step of SGD, and drift and diffusion of its modified equations, map
z = (1, E θ, vec E θθᵀ) linearly: the laws of every quadratic φ close.
"""

from __future__ import annotations

import torch
from scipy.linalg import expm
from torch import Tensor

from landscapes import QuadraticSum


class ExactMoments:
    r"""z (1 + d + d²,) of SGD with mini-batches of b drawn with replacement, and of its modified equations."""

    def __init__(self, landscape: QuadraticSum, batch_size: int):
        self._curvatures = landscape.hessians.double()
        self._slopes = torch.einsum("nij,nj->ni", self._curvatures, landscape.minima.double())
        self._batch_size = batch_size
        self._d = landscape.dimension
        self._hessian = self._curvatures.mean(dim=0)
        self._slope = self._slopes.mean(dim=0)

    def affine(self, M: Tensor, m: Tensor) -> Tensor:
        """The matrix on z of θ' = Mθ + m."""
        d = self._d
        T = torch.zeros(1 + d + d * d, 1 + d + d * d, dtype=torch.float64)
        T[0, 0] = 1
        T[1 : 1 + d, 0], T[1 : 1 + d, 1 : 1 + d] = m, M
        T[1 + d :, 0] = torch.kron(m, m)
        T[1 + d :, 1 : 1 + d] = torch.kron(M, m[:, None]) + torch.kron(m[:, None], M)
        T[1 + d :, 1 + d :] = torch.kron(M, M)
        return T

    def covariance(self) -> Tensor:
        """The matrix on z of E D(θ) = E[mean g_i g_iᵀ − g gᵀ], in the rows of θθᵀ."""
        each = [self.affine(A, -a) for A, a in zip(self._curvatures, self._slopes, strict=True)]
        D = torch.stack(each).mean(dim=0) - self.affine(self._hessian, -self._slope)
        D[: 1 + self._d] = 0
        return D

    def step(self, h: float) -> Tensor:
        """z ↦ z' of one step of SGD: the mean step, and h²D/b more in θθᵀ."""
        mean = self.affine(torch.eye(self._d, dtype=torch.float64) - h * self._hessian, h * self._slope)
        return mean + h**2 / self._batch_size * self.covariance()

    def flow(self, h: float, order: int) -> Tensor:
        """z ↦ z after the time h of the modified equation: drift −(I + (h/2)H)(Hθ − a) at order 2, diffusion (h/b)D."""
        d, H = self._d, self._hessian
        eye = torch.eye(d, dtype=torch.float64)
        P = -(eye + h / 2 * H) if order == 2 else -eye
        M, m = P @ H, -P @ self._slope
        L = torch.zeros(1 + d + d * d, 1 + d + d * d, dtype=torch.float64)
        L[1 : 1 + d, 0], L[1 : 1 + d, 1 : 1 + d] = m, M
        L[1 + d :, 1 : 1 + d] = torch.kron(eye, m[:, None]) + torch.kron(m[:, None], eye)
        L[1 + d :, 1 + d :] = torch.kron(M, eye) + torch.kron(eye, M)
        return torch.from_numpy(expm(h * (L + h / self._batch_size * self.covariance()).numpy()))

    def series(self, step: Tensor, theta0: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """E θ (steps + 1, d) and E θθᵀ (steps + 1, d, d) from θ0 (d,), by a matrix on z."""
        start = theta0.double()
        rows = [torch.cat([torch.ones(1, dtype=torch.float64), start, torch.kron(start, start)])]
        for _ in range(steps):
            rows.append(step @ rows[-1])
        z = torch.stack(rows)
        return z[:, 1 : 1 + self._d], z[:, 1 + self._d :].reshape(-1, self._d, self._d)
