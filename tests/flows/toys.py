"""Losses of flows' own tests: one whose flow blows up, and two that do not say that they are holomorphic."""

from landscapes import Landscape


class Cubic(Landscape):
    """−θ³/3: gradient flow is θ' = θ², at infinity when t = 1/θ0."""

    dimension, holomorphic = 1, True

    def loss(self, theta):
        return -(theta**3).sum(dim=-1) / 3


class Kinked(Landscape):
    """Σ|θ|³, not holomorphic."""

    dimension = 2

    def loss(self, theta):
        return (theta.abs() ** 3).sum(dim=-1)


class Undeclared(Landscape):
    """½‖θ‖², which does not say that it is holomorphic."""

    dimension = 2

    def loss(self, theta):
        return theta.square().sum(dim=-1) / 2
