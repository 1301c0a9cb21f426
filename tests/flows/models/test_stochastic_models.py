"""Every stochastic flow against what its noise must be; a new one is one line here."""

from dataclasses import dataclass

import pytest
from hypothesis import given

from flows import (
    LangevinFlow,
    MomentumModifiedEquation,
    MomentumOrnsteinUhlenbeck,
    NoisyModifiedEquation,
    NoisyMomentumEquation,
    OrnsteinUhlenbeck,
    StochasticFlow,
    StochasticModifiedEquation,
    Stratonovich,
    TorchMomentumEquation,
    UnderdampedLangevinFlow,
)
from flows.invariants import InvariantError, check_batch, check_noise
from flows.strategies import points
from landscapes import LinearRegression, QuadraticSum
from landscapes.noise import (
    AnalyticNoise,
    ConstantNoise,
    DiagonalNoise,
    DiagonalSurrogate,
    IsotropicNoise,
    IsotropicSurrogate,
    MinibatchNoise,
    VarianceReducedNoise,
)
from tests.tensors import draw

D, N, RATE = 3, 5, 0.1


SQUARES = draw(0, N, D, D)
SUM = QuadraticSum(SQUARES @ SQUARES.mT / D, draw(1, N, D))
LINE = LinearRegression(draw(2, N, D), draw(3, N))
MATRIX, DRIFT = draw(4, D, D), draw(10, 2 * D, 2 * D)
H, C = DRIFT @ DRIFT.mT, DRIFT.mT @ DRIFT
BATCHES = MinibatchNoise(SUM, 2)
NOISES = {
    "isotropic": IsotropicNoise(0.5, D),
    "diagonal": DiagonalNoise(draw(5, D).square()),
    "constant": ConstantNoise(MATRIX),
    "analytic": AnalyticNoise(D, D, lambda theta: MATRIX * theta.sin()[..., None]),
    "isotropic surrogate": IsotropicSurrogate(BATCHES),
    "diagonal surrogate": DiagonalSurrogate(BATCHES),
    "variance reduced": VarianceReducedNoise(SUM, 2, draw(6, D)),
}
EQUATIONS = {
    **{f"noisy, {name}": NoisyModifiedEquation(SUM, RATE, noise, 2) for name, noise in NOISES.items()},
    **{
        f"order {p}, {s}": StochasticModifiedEquation(SUM, RATE, 1 if s == "epoch" else 2, p, s)
        for p in (1, 2)
        for s in ("replacement", "subset", "epoch")
    },
    "regression": StochasticModifiedEquation(LINE, RATE, 2, schedule=lambda t: 1 / (1 + t)),
    "full batch": StochasticModifiedEquation(SUM, RATE, N, sampling="subset"),
    "Stratonovich": Stratonovich(StochasticModifiedEquation(SUM, RATE, 2)),
    "momentum 1": MomentumModifiedEquation(SUM, RATE, 1.0, 2),
    "momentum 2": MomentumModifiedEquation(SUM, RATE, 1.0, 2, 2),
    "momentum on torch's clock": TorchMomentumEquation(MomentumModifiedEquation(SUM, 0.1, 5.0, 2), 0.01, 0.5),
    "noisy momentum": NoisyMomentumEquation(SUM, RATE, 1.0, NOISES["analytic"]),
    "Langevin": LangevinFlow(SUM, 0.3),
    "underdamped Langevin": UnderdampedLangevinFlow(SUM, 0.3, 1.5),
    "Ornstein–Uhlenbeck": OrnsteinUhlenbeck(H[:D, :D], C[:D, :D], draw(7, D)),
    "Ornstein–Uhlenbeck with momentum": MomentumOrnsteinUhlenbeck(H, C, draw(7, 2 * D)),
}


@pytest.mark.parametrize("name", EQUATIONS)
@given(theta=points(D, 2))
def test_noise_is_what_it_says(name, theta):
    check_noise(EQUATIONS[name], theta)


@pytest.mark.parametrize("name", EQUATIONS)
def test_batches(name):
    check_batch(EQUATIONS[name], draw(8, 3, D))


@dataclass(frozen=True)
class Wrong(StochasticFlow):
    """A flow whose noise is wrong in one way."""

    landscape: QuadraticSum
    how: str

    @property
    def noise_kind(self):
        return {"state": "additive", "mixed": "diagonal", "elsewhere": "diagonal"}.get(self.how, "general")

    @property
    def noise_size(self):
        return D

    def velocity(self, t, state):
        return -self.landscape.grad(state)

    def diffusion(self, t, state, dw):
        noises = {
            "offset": dw + 1,
            "state": state * dw,
            "mixed": dw @ MATRIX,
            "elsewhere": state.sum(dim=-1, keepdim=True) * dw,
        }
        return noises.get(self.how, state * dw)

    def rate(self, t, state, dw_over_dt):
        factor = 2 if self.how == "rate" else 1
        return self.velocity(t, state) + factor * self.diffusion(t, state, dw_over_dt)

    def ito_correction(self, t, state):
        return state if self.how == "ito" else super().ito_correction(t, state)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("offset", "linear in dw"),
        ("rate", "rate must be velocity"),
        ("state", "must not depend on the state"),
        ("mixed", "motion 0 must move component 0"),
        ("elsewhere", "motion 0 must move component 0"),
        ("ito", "ito_correction"),
    ],
)
def test_wrong_noise_is_found(how, words):
    with pytest.raises(InvariantError, match=words):
        check_noise(Wrong(SUM, how), draw(9, 2, D))


def test_a_wrong_batch_is_found():
    @dataclass(frozen=True)
    class Mixing(LangevinFlow):
        def velocity(self, t, state):
            return super().velocity(t, state) - state.mean(dim=0, keepdim=state.ndim > 1)

    with pytest.raises(InvariantError, match="euler: member 0"):
        check_batch(Mixing(SUM, 0.3), draw(8, 3, D))


def test_all_of_them_are_here():
    """Every public stochastic flow."""
    import flows

    public = {kind for name in flows.__all__ if isinstance(kind := getattr(flows, name), type)}
    stochastic = {kind for kind in public if issubclass(kind, StochasticFlow)} - {StochasticFlow}
    assert {type(flow) for flow in EQUATIONS.values()} == stochastic
