"""A module whose loss is a quadratic, for tests of training loops."""

import torch
from torch import nn


def theta_of(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


class Bowl(nn.Module):
    """½ Σ λ_i w_i² of two parameters: the ratio in closed form."""

    def __init__(self, first=(2.0, 0.5), second=(1.0,)):
        super().__init__()
        self.eigenvalues = torch.tensor([*first, *second], dtype=torch.float64)
        self.first = nn.Parameter(torch.linspace(1, 0.4, len(first), dtype=torch.float64))
        self.second = nn.Parameter(torch.full((len(second),), -0.7, dtype=torch.float64))

    def forward(self):
        return (self.eigenvalues * torch.cat([self.first, self.second]).square()).sum() / 2

    def ratio(self):
        grad = self.eigenvalues * torch.cat([self.first, self.second]).detach()
        return float((self.eigenvalues * grad).norm() / grad.norm())
