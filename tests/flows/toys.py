"""Of flows' own tests: a loss whose flow blows up, two that do not say that they are holomorphic, and a flow."""

from dataclasses import dataclass

from flows import Flow
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


@dataclass(frozen=True)
class Coupled(Flow):
    """Members of a batch feel their mean."""

    landscape: Landscape
    strength: float

    def velocity(self, t, state):
        mean = state.reshape(-1, state.shape[-1]).mean(dim=0)
        return -self.landscape.grad(state) - self.strength * (state - mean)
