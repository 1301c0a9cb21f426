"""Stochastic flows whose laws are known, exactly and as Euler's steps have them."""

from dataclasses import dataclass

import torch

from flows.flow import StochasticFlow


@dataclass(frozen=True, eq=False)
class Linear(StochasticFlow):
    """dX = −F X dt + B dW: Ornstein–Uhlenbeck."""

    F: torch.Tensor
    B: torch.Tensor

    noise_kind = "additive"

    @property
    def noise_size(self):
        return self.B.shape[1]

    def velocity(self, t, state):
        return -state @ self.F.T.to(state)

    def diffusion(self, t, state, dw):
        return dw @ self.B.T.to(state)

    def law(self, theta0, t):
        """Mean and covariance at time t: e^{−Ft} x0 and ∫ e^{−Fs} BBᵀ e^{−Fᵀs} ds (Van Loan 1978)."""
        d = len(self.F)
        block = torch.zeros(2 * d, 2 * d, dtype=torch.float64)
        block[:d, :d], block[:d, d:], block[d:, d:] = self.F, self.B @ self.B.T, -self.F.T
        power = torch.linalg.matrix_exp(block * t)
        step = power[d:, d:].T
        return step @ theta0, step @ power[:d, d:]

    def euler_law(self, theta0, dt, steps):
        """Mean and covariance after Euler's steps."""
        step = torch.eye(len(self.F), dtype=torch.float64) - dt * self.F
        mean, covariance = theta0, torch.zeros_like(self.F)
        for _ in range(steps):
            mean, covariance = step @ mean, step @ covariance @ step.T + dt * self.B @ self.B.T
        return mean, covariance


@dataclass(frozen=True)
class Geometric(StochasticFlow):
    """dX = μX dt + σX dW, component by component: E X = x0 e^{μt}, E X² = x0² e^{(2μ + σ²)t}."""

    mu: float = -0.5
    sigma: float = 0.6
    noise_kind = "diagonal"
    noise_size = 1

    def velocity(self, t, state):
        return self.mu * state

    def diffusion(self, t, state, dw):
        return self.sigma * state * dw

    def growth(self, power):
        """The rate at which E Xᵖ grows, p = 1 or 2."""
        return self.mu if power == 1 else 2 * self.mu + self.sigma**2

    def euler_growth(self, power, dt):
        """The factor that E Xᵖ takes in a step of Euler's, p = 1 or 2."""
        return 1 + self.mu * dt if power == 1 else (1 + self.mu * dt) ** 2 + self.sigma**2 * dt


@dataclass(frozen=True)
class Exploding(StochasticFlow):
    """dX = X³ dt + σ dW: Euler's steps blow up from far enough out, double-exponentially."""

    sigma: float = 1.0
    noise_kind = "additive"
    noise_size = 1

    def velocity(self, t, state):
        return state**3

    def diffusion(self, t, state, dw):
        return self.sigma * dw


F = torch.tensor([[1.0, 0.4], [-0.3, 0.7]], dtype=torch.float64)
B = torch.tensor([[0.5, 0.0, 0.2], [0.1, 0.4, 0.0]], dtype=torch.float64)
OU = Linear(F, B)
START = torch.tensor([1.0, -0.5], dtype=torch.float64)


def square(theta):
    """The first coordinate's square, an observable."""
    return theta[..., 0].square()
