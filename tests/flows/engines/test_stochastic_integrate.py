"""integrate on SDEs: torchsde path by path, closed forms, strong orders, mini-batches followed, and refusals."""

import math
from dataclasses import dataclass

import pytest
import torch
import torchsde
from torch.testing import assert_close

from flows import (
    BrownianPath,
    GradientFlow,
    NoisyModifiedEquation,
    PathError,
    StochasticFlow,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    Stratonovich,
    descend,
    integrate,
    minibatch_path,
)
from landscapes import NoisyQuadratic, Quadratic, Rosenbrock, TwoQuadratics, UnsupportedError
from landscapes.noise import GradientNoise
from tests.flows.networks import tanh_network

METHODS = ("euler", "heun2", "midpoint")


@dataclass(frozen=True)
class Geometric(StochasticFlow):
    """dX = aX dt + sX dW, component by component: X(t) = X(0) exp((a − s²/2)t + sW)."""

    a: float = 0.3
    s: float = 0.5
    noise_kind = "diagonal"
    noise_size = 2

    def velocity(self, t, state):
        return self.a * state

    def diffusion(self, t, state, dw):
        return self.s * state * dw


@dataclass(frozen=True)
class Turning(StochasticFlow):
    """General noise in the plane, whose columns do not commute."""

    noise_size = 3

    def velocity(self, t, state):
        return -state

    def diffusion(self, t, state, dw):
        x, y = state.unbind(-1)
        a, b, c = dw.unbind(-1)
        return torch.stack([torch.sin(y) * a + 0.3 * c, 0.5 * x * a + torch.cos(x) * b], dim=-1)


@dataclass(frozen=True)
class TurningByHand(Turning):
    """With its correction in closed form, of which Turning's own takes products."""

    def ito_correction(self, t, state):
        x, y = state.unbind(-1)
        return torch.stack([x * torch.cos(y), torch.sin(y)], dim=-1) / 4


@dataclass(frozen=True)
class Heisenberg(StochasticFlow):
    """dX = dW₁, dY = dW₂, dZ = ½(X dW₂ − Y dW₁): Z is the Lévy area, which increments do not tell."""

    noise_size = 2

    def velocity(self, t, state):
        return torch.zeros_like(state)

    def diffusion(self, t, state, dw):
        x, y, _ = state.unbind(-1)
        a, b = dw.unbind(-1)
        return torch.stack([a, b, (x * b - y * a) / 2], dim=-1)

    def ito_correction(self, t, state):
        return torch.zeros_like(state)


@dataclass(frozen=True)
class Rotations(StochasticFlow):
    """Turns and stretches of the plane, which commute: X exp(sJW₁ + rW₂) if meant in Stratonovich's sense."""

    s: float = 0.6
    r: float = 0.4
    noise_size = 2

    def velocity(self, t, state):
        return torch.zeros_like(state)

    def diffusion(self, t, state, dw):
        x, y = state.unbind(-1)
        turn, stretch = self.s * dw[..., 0], self.r * dw[..., 1]
        return torch.stack([stretch * x - turn * y, stretch * y + turn * x], dim=-1)

    def ito_correction(self, t, state):
        return (self.r**2 - self.s**2) / 2 * state


class Increments(torchsde.BaseBrownian):
    """A path of ours as torchsde asks for it."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        return self.path(float(ta), float(tb))

    def __repr__(self):
        return "Increments"

    dtype = property(lambda self: self.path.dtype)
    device = property(lambda self: torch.device(self.path.device))
    shape = property(lambda self: torch.Size(self.path.shape))
    levy_area_approximation = "none"


class Theirs(torch.nn.Module):
    """A flow of ours as torchsde asks for it."""

    def __init__(self, flow, noise_type, sde_type):
        super().__init__()
        self.flow, self.noise_type, self.sde_type = flow, noise_type, sde_type

    def f(self, t, y):
        drift = self.flow.velocity(t, y)
        return drift if self.sde_type == "ito" else drift - self.flow.ito_correction(t, y)

    def g(self, t, y):
        m = self.flow.noise_size
        if self.noise_type == "diagonal":
            return self.flow.diffusion(t, y, torch.ones_like(y))
        return self.flow.diffusion(t, y[:, None], torch.eye(m, dtype=y.dtype)).mT


@pytest.mark.parametrize(
    ("flow", "noise_type", "sde_type", "theirs", "ours"),
    [
        (Turning(), "general", "ito", "euler", "euler"),
        (Turning(), "general", "stratonovich", "midpoint", "midpoint"),
        (Geometric(), "diagonal", "ito", "euler", "euler"),
        (Geometric(), "diagonal", "stratonovich", "heun", "heun2"),
        (StochasticModifiedEquation(TwoQuadratics(), 0.1, 1), "general", "ito", "euler", "euler"),
        (StochasticModifiedEquation(TwoQuadratics(), 0.1, 1, 2), "general", "stratonovich", "midpoint", "midpoint"),
    ],
)
def test_torchsde_agrees_path_by_path(normal, flow, noise_type, sde_type, theirs, ours):
    theta, dt = normal(0, 5, 2), 1 / 64
    path = BrownianPath(7, 0.0, 0.5, dt, (5, flow.noise_size))
    run = integrate(flow, theta, [0.0, 0.25, 0.5], dt=dt, path=path, method=ours)
    times = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    peer = torchsde.sdeint(Theirs(flow, noise_type, sde_type), theta, times, bm=Increments(path), dt=dt, method=theirs)
    assert_close(run.theta, peer, rtol=1e-12, atol=1e-12)
    assert run.status == "finished"


def test_torchsde_agrees_on_milstein(normal):
    """Ours takes the derivative of σ by a difference, exact where σ is linear."""
    theta, dt = normal(1, 4, 2), 1 / 32
    path = BrownianPath(2, 0.0, 1.0, dt, (4, 2))
    run = integrate(Geometric(), theta, [0.0, 1.0], dt=dt, path=path, method="milstein")
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    peer = torchsde.sdeint(
        Theirs(Geometric(), "diagonal", "ito"), theta, times, bm=Increments(path), dt=dt, method="milstein"
    )
    assert_close(run.theta, peer, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "order"), [("euler", 0.5), ("milstein", 1.0), ("heun2", 1.0), ("midpoint", 1.0)])
def test_strong_orders_on_geometric_brownian_motion(method, order):
    """E|X − X_dt| over 2,000 shared paths; the slope between dt = 2⁻⁴ and 2⁻⁸."""
    flow, theta = Geometric(), torch.ones(2000, 2, dtype=torch.float64)
    path = BrownianPath(11, 0.0, 1.0, 2**-8, (2000, 2))
    exact = torch.exp(flow.a - flow.s**2 / 2 + flow.s * path(0.0, 1.0))
    errors = [
        float((integrate(flow, theta, [0.0, 1.0], dt=2.0**-k, path=path, method=method).theta[-1] - exact).abs().mean())
        for k in (4, 8)
    ]
    assert math.log2(errors[0] / errors[1]) / 4 == pytest.approx(order, abs=0.08)


@dataclass(frozen=True)
class Uniform(GradientNoise):
    """C = s² I."""

    scale: float = 0.4
    kind = "additive"
    dimension = 2
    size = 2

    def factor(self, theta, xi):
        return self.scale * xi


def test_strong_order_one_for_additive_noise():
    """On Rosenbrock (b = 1), against the finest step of the same path."""
    flow = NoisyModifiedEquation(Rosenbrock(b=1.0), 0.1, Uniform())
    theta = torch.zeros(500, 2, dtype=torch.float64)
    path = BrownianPath(4, 0.0, 1.0, 2**-11, (500, 2))
    ends = {k: integrate(flow, theta, [0.0, 1.0], dt=2.0**-k, path=path).theta[-1] for k in (4, 7, 11)}
    errors = [float((ends[k] - ends[11]).norm(dim=-1).mean()) for k in (4, 7)]
    assert math.log2(errors[0] / errors[1]) / 3 == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_solves_the_same_ito_equation(method):
    """Their distance to a fine Euler run falls as the root of dt for general noise; the correction is O(1)."""
    flow, theta = Turning(), torch.full((300, 2), 0.7, dtype=torch.float64)
    path = BrownianPath(9, 0.0, 1.0, 2**-12, (300, 3))
    fine = integrate(flow, theta, [0.0, 1.0], dt=2.0**-12, path=path).theta[-1]
    errors = [
        float(
            (integrate(flow, theta, [0.0, 1.0], dt=2.0**-k, path=path, method=method).theta[-1] - fine)
            .norm(dim=-1)
            .mean()
        )
        for k in (4, 8)
    ]
    assert errors[0] / errors[1] > 2**1.5  # order ½ gives 4


@pytest.mark.parametrize("method", METHODS)
def test_levy_areas_are_missed_by_every_method_as_much_as_is_known(method):
    """Over steps of dt all of them leave Var Z = T dt/4 out; of two steps the difference is what they differ by."""
    theta, T = torch.zeros(20_000, 3, dtype=torch.float64), 1.0
    path = BrownianPath(13, 0.0, T, 2**-6, (len(theta), 2))
    ends = {k: integrate(Heisenberg(), theta, [0.0, T], dt=2.0**-k, path=path, method=method).theta[-1] for k in (3, 6)}
    away = (ends[3] - ends[6]).square()
    expected = T * (2**-3 - 2**-6) / 4
    assert float(away[:, :2].max()) < 1e-24
    error = float(away[:, 2].std()) / len(theta) ** 0.5
    assert abs(float(away[:, 2].mean()) - expected) < 4 * error
    assert error < 0.02 * expected


@pytest.mark.parametrize("method", METHODS)
def test_strong_order_half_for_noise_that_does_not_commute(method):
    """Root mean square distance to the finest step, over √(dt − its dt): what finer steps add is uncorrelated."""
    flow, theta = TurningByHand(), torch.full((500, 2), 0.7, dtype=torch.float64)
    path = BrownianPath(9, 0.0, 1.0, 2**-9, (500, 3))
    fine = integrate(flow, theta, [0.0, 1.0], dt=2.0**-9, path=path, method=method).theta[-1]
    scaled = []
    for k in (3, 5, 7):
        end = integrate(flow, theta, [0.0, 1.0], dt=2.0**-k, path=path, method=method).theta[-1]
        scaled.append(float((end - fine).square().sum(dim=-1).mean().sqrt()) / math.sqrt(2.0**-k - 2.0**-9))
    assert max(scaled) / min(scaled) < 1.25  # order 1 would give 4


@pytest.mark.parametrize(("method", "order"), [("euler", 0.5), ("heun2", 1.0), ("midpoint", 1.0)])
def test_strong_orders_for_general_noise_that_commutes(method, order):
    flow, theta = Rotations(), torch.tensor([1.0, 0.5], dtype=torch.float64).expand(2000, 2)
    path = BrownianPath(17, 0.0, 1.0, 2**-8, (2000, 2))
    assert_close(
        flow.ito_correction(0.0, theta[:2].clone()), StochasticFlow.ito_correction(flow, 0.0, theta[:2].clone())
    )
    turn, stretch = (torch.tensor([flow.s, flow.r], dtype=torch.float64) * path(0.0, 1.0)).unbind(-1)
    z = torch.polar(stretch.exp(), turn) * torch.complex(theta[:, 0], theta[:, 1])
    exact = torch.view_as_real(z)
    errors = []
    for k in (4, 8):
        end = integrate(Stratonovich(flow), theta, [0.0, 1.0], dt=2.0**-k, path=path, method=method).theta[-1]
        errors.append(float((end - exact).norm(dim=-1).mean()))
    assert math.log2(errors[0] / errors[1]) / 4 == pytest.approx(order, abs=0.08)


def test_stratonovich_sense_is_the_ito_equation_with_its_correction():
    """For dX = sX ∘ dW the solution is X exp(sW)."""
    flow, theta = Stratonovich(Geometric(a=0.0)), torch.ones(400, 2, dtype=torch.float64)
    path = BrownianPath(1, 0.0, 1.0, 2**-9, (400, 2))
    exact = torch.exp(0.5 * path(0.0, 1.0))
    for method in ("heun2", "milstein"):
        end = integrate(flow, theta, [0.0, 1.0], dt=2.0**-9, path=path, method=method).theta[-1]
        assert float((end - exact).abs().mean()) < 2e-3


@pytest.mark.parametrize(("sampling", "batch_size"), [("replacement", 2), ("subset", 4), ("subset", 6), ("epoch", 3)])
@pytest.mark.parametrize("landscape", [NoisyQuadratic(torch.eye(2, dtype=torch.float64), 6, 0), "network"])
def test_driven_by_the_minibatches_euler_is_the_descent(normal, landscape, sampling, batch_size):
    if landscape == "network":
        landscape = tanh_network()
        theta = landscape.theta0 + 0.1 * normal(1, 3, landscape.dimension)
    else:
        theta = normal(0, 3, 2)
    sgd = StochasticGradientDescent(landscape, 0.05, batch_size, sampling)
    run = descend(sgd, theta, 12, seed=3)
    flow = StochasticModifiedEquation(landscape, 0.05, batch_size, 1, sampling)
    sde = integrate(flow, theta, run.times, dt=0.05, path=minibatch_path(sgd, theta, 12, seed=3))
    assert_close(sde.theta, run.theta, rtol=1e-12, atol=1e-12)
    assert sde.cost["grad"] == 12 * 3


def test_equal_seeds_refine_each_other_and_stand_for_a_path():
    flow, theta = Turning(), torch.ones(4, 2, dtype=torch.float64)
    coarse, fine = (integrate(flow, theta, [0.0, 1.0], dt=dt, seed=5).theta[-1] for dt in (2**-9, 2**-10))
    other = integrate(flow, theta, [0.0, 1.0], dt=2**-10, seed=6).theta[-1]
    assert float((coarse - fine).norm()) < 0.2 * float((other - fine).norm())
    path = BrownianPath(5, 0.0, 1.0, 2**-12, (4, 3))
    assert torch.equal(fine, integrate(flow, theta, [0.0, 1.0], dt=2**-10, path=path).theta[-1])


def test_one_motion_may_drive_the_whole_batch():
    flow, theta = Turning(), torch.ones(3, 2, dtype=torch.float64)
    run = integrate(flow, theta, [0.0, 0.5], dt=1 / 16, path=BrownianPath(5, 0.0, 0.5, 1 / 16, 3))
    assert torch.equal(run.theta[-1, 0], run.theta[-1, 2])


def test_a_schedule_scales_drift_correction_and_noise():
    """On the clock of the time taken the drift stays −∇f; the noise has the rate's root, order 2 the rate."""
    f = Quadratic(torch.eye(2, dtype=torch.float64))
    x, dw = torch.ones(2, 2, dtype=torch.float64)
    flow = NoisyModifiedEquation(f, 0.1, Uniform(), order=2, schedule=lambda t: 1 / (1 + t))
    assert_close(flow.velocity(1.0, x), -x - 0.05 / 2 * x)
    assert_close(flow.diffusion(torch.tensor(1.0), x, dw), math.sqrt(0.05) * 0.4 * dw)
    with pytest.raises(ValueError, match="schedule at t = 2"):
        NoisyModifiedEquation(f, 0.1, Uniform(), order=2, schedule=lambda t: 0.0).velocity(2.0, x)


def test_a_member_that_leaves_the_finite_numbers_is_frozen_and_the_others_see_the_same_noise():
    flow = StochasticModifiedEquation(TwoQuadratics(), 0.1, 1)
    theta = torch.tensor([[1.0, 0.5], [1e308, 1e308], [0.2, -0.3]], dtype=torch.float64)
    path = BrownianPath(3, 0.0, 2.0, 0.25, (3, 2))
    run = integrate(flow, theta, [0.0, 1.0, 2.0], dt=0.25, path=path)
    assert run.alive.tolist() == [True, False, True]
    calm = theta.clone()
    calm[1] = 0
    assert torch.equal(run.theta[:, ::2], integrate(flow, calm, [0.0, 1.0, 2.0], dt=0.25, path=path).theta[:, ::2])


def test_both_precisions(device, dtype):
    flow, theta = Turning(), torch.ones(4, 2, dtype=dtype, device=device)
    run = integrate(flow, theta, [0.0, 1.0], dt=0.125, seed=0)
    assert run.theta.dtype == dtype
    assert bool(run.theta.isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"dt": 0.1}, ValueError, "either a seed or a path .* neither"),
        ({"seed": 0}, ValueError, "dt must be given for Turning"),
        ({"dt": 0.3, "seed": 0}, ValueError, "divides every output interval"),
        ({"dt": 0.1, "seed": 0, "path": BrownianPath(0, 0.0, 1.0, 0.1, 3)}, ValueError, "both"),
        ({"dt": 0.1, "seed": 0, "rtol": 1e-3}, ValueError, "no meaning for a stochastic flow"),
        ({"dt": 0.1, "seed": 0, "method": "rk4"}, ValueError, "method of a stochastic flow"),
        ({"dt": 0.1, "seed": 0, "method": "milstein"}, UnsupportedError, "diagonal noise"),
        ({"dt": 0.1, "seed": -1}, ValueError, "seed"),
        ({"dt": 0.1, "path": BrownianPath(0, 0.0, 0.9, 0.1, 3)}, PathError, "too short"),
        ({"dt": 0.1, "path": BrownianPath(0, 0.0, 1.0, 0.2, 3)}, PathError, "too coarse"),
        ({"dt": 0.1, "path": BrownianPath(0, 0.0, 1.0, 0.1, 2)}, PathError, "size 3"),
        ({"dt": 0.1, "path": BrownianPath(0, 0.0, 1.0, 0.1, (5, 3))}, PathError, "shape"),
        ({"dt": 0.1, "path": torch.zeros(3)}, TypeError, "BrownianPath"),
    ],
)
def test_runs_that_cannot_be_say_why(arguments, error, says):
    with pytest.raises(error, match=says):
        integrate(Turning(), torch.ones(2, 2, dtype=torch.float64), [0.0, 1.0], **arguments)


def test_a_flow_without_noise_takes_no_seed():
    with pytest.raises(ValueError, match="for stochastic flows"):
        integrate(GradientFlow(Rosenbrock()), torch.ones(2, dtype=torch.float64), [0.0, 1.0], seed=0)


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda f: StochasticModifiedEquation(f, 0.1, 9), ValueError, "batch_size must be at most"),
        (lambda f: StochasticModifiedEquation(f, 0.1, 9, sampling="subset"), ValueError, "batch_size must be at most"),
        (lambda f: StochasticModifiedEquation(f, 0.1, 3, sampling="epoch"), ValueError, "must divide the 8 examples"),
        (lambda f: StochasticModifiedEquation(f, 0.1, 2, 3), ValueError, "order must be at most 2"),
        (lambda f: StochasticModifiedEquation(f, 0.1, 2, schedule=1.0), TypeError, "function of time"),
        (lambda f: StochasticModifiedEquation(Rosenbrock(), 0.1, 2), TypeError, "FiniteSum"),
        (lambda f: NoisyModifiedEquation(f, 0.1, None), TypeError, "GradientNoise"),
        (lambda f: NoisyModifiedEquation(tanh_network(), 0.1, Uniform()), ValueError, "dimension"),
        (lambda f: Stratonovich(GradientFlow(f)), TypeError, "StochasticFlow"),
    ],
)
def test_equations_out_of_place_say_why(build, error, says):
    with pytest.raises(error, match=says):
        build(NoisyQuadratic(torch.eye(2, dtype=torch.float64), 8, 0))
