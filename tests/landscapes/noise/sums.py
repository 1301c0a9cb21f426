"""Small finite sums, with their noise by dense algebra: gradients one example at a time, differences of columns."""

import torch

from landscapes import LinearRegression
from nets import MLP, NetworkLandscape, cross_entropy


def regression(normal, n=7):
    """n examples in three dimensions."""
    return LinearRegression(normal(0, n, 3), normal(1, n))


def network(normal, chunk_size=None):
    """An MLP of 15 weights on 6 points in three classes."""
    module = MLP((2, 2, 3)).double()
    return NetworkLandscape(module, cross_entropy, normal(2, 6, 2), torch.arange(6) % 3, chunk_size)


def single_grads(landscape, theta):
    """g_i (N, d) of one θ by torch.func, one example after another."""
    return torch.stack(
        [
            torch.func.grad(lambda x, i=i: landscape.losses(x, torch.tensor([i])).sum())(theta)
            for i in range(landscape.size)
        ]
    )


def gradient_gaps(landscape, theta):
    """g_i − g (N, d) of one θ."""
    rows = single_grads(landscape, theta)
    return rows - rows.mean(0)


def dense_covariance(landscape, theta):
    """D = (1/N) Σ (g_i − g)(g_i − g)ᵀ of one θ."""
    rows = gradient_gaps(landscape, theta)
    return rows.mT @ rows / len(rows)


def differenced_ito(noise, theta, step=1e-5):
    """½ Σ_j (∂σ_j)σ_j of one θ by central differences of each column along itself."""
    total = torch.zeros_like(theta)
    for j, column in enumerate(noise.columns(theta)):
        ahead, behind = noise.columns(theta + step * column)[j], noise.columns(theta - step * column)[j]
        total = total + (ahead - behind) / (2 * step)
    return total / 2
