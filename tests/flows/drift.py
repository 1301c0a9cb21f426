"""A stochastic flow without its noise: the orders of its drift are those of a deterministic flow."""

from dataclasses import dataclass

from flows import Flow, StochasticFlow


@dataclass(frozen=True)
class Drift(Flow):
    """A stochastic flow without its noise."""

    flow: StochasticFlow

    @property
    def landscape(self):
        return self.flow.landscape

    def velocity(self, t, state):
        return self.flow.velocity(t, state)

    def start(self, theta0):
        return self.flow.start(theta0)

    def position(self, state):
        return self.flow.position(state)
