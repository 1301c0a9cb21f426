"""Drift-adjusted descents: dense algebra, what quadratics prove, invariances, mini-batches, clocks, refusals."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import (
    DriftAdjustedDescent,
    GradientDescent,
    GradientFlow,
    ModifiedFlow,
    StochasticDriftAdjustedDescent,
    StochasticGradientDescent,
    compare,
    descend,
)
from flows.descents.drift_adjusted import adjusted_rate, difference_ratio, drift_ratio, norm, unit
from flows.strategies import points, quadratics, rotations, smooth_landscapes
from landscapes import LANDSCAPES, Landscape, NoisyQuadratic, Quadratic, Regularised, Rosenbrock, UnsupportedError
from landscapes.toys.finite_sums import FINITE_SUMS
from landscapes.wrappers.rotated import Rotated
from tests.examples import few

GENERATOR = torch.Generator()  # full-batch steps draw nothing from it
drifts = pytest.mark.parametrize("drift", ["exact", "difference"])
powers = st.floats(0.1, 2.0)


def diagonal(*eigenvalues):
    return Quadratic(torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)))


def dense_ratio(hessian, grad):
    return (hessian @ grad).norm() / grad.norm()


def by_hand(hessian, theta, steps, power, cap, window):
    """DAL-p on ½θᵀHθ by dense algebra: states and rates."""
    states, rates, seen = [theta], [], []
    for _ in range(steps):
        grad = hessian @ theta
        seen.append(float(dense_ratio(hessian, grad)))
        v = sum(seen[-window:]) / len(seen[-window:])
        rates.append(min(2 / v**power, cap))
        theta = theta - rates[-1] * grad
        states.append(theta)
    return torch.stack(states), torch.tensor(rates, dtype=torch.float64)


@drifts
@pytest.mark.parametrize(
    ("power", "cap", "window", "binds"), [(1.0, 5.0, 1, 0), (0.5, 5.0, 1, 0), (1.0, 0.7, 4, 2), (1.7, 0.7, 3, 3)]
)
def test_runs_on_quadratics_by_dense_algebra(drift, power, cap, window, binds, device, normal):
    a = normal(0, 4, 4)
    hessian, theta0 = a @ a.mT / 4, normal(1, 4)
    descent = DriftAdjustedDescent(Quadratic(hessian), 0.1, power, cap, window, drift)
    run = descend(descent, theta0.to(device), 12)
    states, rates = by_hand(hessian, theta0, 12, power, cap, window)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if drift == "exact" else {"rtol": 1e-4, "atol": 1e-5}
    assert_close(run.theta.cpu(), states, **tolerance)
    assert_close(run.times.diff(), rates, **tolerance)
    assert int((rates == cap).sum()) == binds
    assert run.cost["grad"] == (12 if drift == "exact" else 24)
    assert run.cost["hvp"] == (12 if drift == "exact" else 0)
    assert run.cost["loss"] == run.cost["third"] == run.cost["higher"] == 0


@drifts
@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_ratio_of_every_toy_by_its_dense_hessian(name, drift, dtype, device, normal):
    landscape = LANDSCAPES[name]()
    theta = (0.7 * normal(2, 3, 2, landscape.dimension)).to(device, dtype)
    hessian, grad = landscape.hessian(theta.double()), landscape.grad(theta.double())
    expected = (hessian @ grad[..., None])[..., 0].norm(dim=-1) / grad.norm(dim=-1)
    sharpness, eps = torch.linalg.eigvalsh(hessian).abs().amax(dim=-1), torch.finfo(dtype).eps
    if drift == "exact":
        v, bound = drift_ratio(landscape.expand(theta)), 1e3 * eps * sharpness
    else:  # truncation (ε/2)‖T[ĝ, ĝ]‖, and rounding of a gradient by a few eps of its largest terms, here within 20 λ₀
        v = difference_ratio(landscape.grad, theta, landscape.grad(theta))
        third = landscape.third(theta.double(), unit(grad), unit(grad)).norm(dim=-1)
        bound = eps**0.5 * (0.55 * (1 + theta.double().norm(dim=-1)) * third + 20 * sharpness)
    assert (v.shape, v.dtype, v.device) == ((3, 2), dtype, theta.device)
    assert bool(((v.double() - expected).abs() <= bound).all())


def test_the_difference_is_as_wide_as_the_precision_asks():
    """On a quadratic only rounding errs, on a wide scale: θ near 1e4. A step without ‖θ‖ would lose four digits."""
    quadratic = Quadratic(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)), torch.full((2,), 1e4).double())
    theta = torch.tensor([1e4 + 1, 1e4 - 2], dtype=torch.float64)
    v = difference_ratio(quadratic.grad, theta, quadratic.grad(theta))
    assert_close(v, drift_ratio(quadratic.expand(theta)), rtol=5 * torch.finfo(torch.float64).eps ** 0.5, atol=0)


def test_dal_on_a_quadratic_ends_in_a_two_cycle_along_the_sharpest_direction(normal):
    basis = torch.linalg.qr(normal(3, 3, 3))[0]
    hessian = (basis * torch.tensor([2.0, 1.2, 0.3], dtype=torch.float64)) @ basis.mT
    run = descend(DriftAdjustedDescent(Quadratic((hessian + hessian.mT) / 2), 0.1), normal(4, 3), 120)
    assert float(run.theta[-1].norm()) > 0.1  # no convergence
    assert_close(run.theta[-1], run.theta[-3], rtol=0, atol=1e-9)
    assert_close(run.theta[-1], -run.theta[-2], rtol=0, atol=1e-9)
    along = run.theta[-1] / run.theta[-1].norm()
    assert_close(along @ basis[:, 0] * basis[:, 0], along, rtol=0, atol=1e-9)
    assert_close(run.times.diff()[-1], torch.tensor(2 / 2.0, dtype=torch.float64))


def with_weight_in_every_mode(theta):
    return theta + torch.where(theta >= 0, 0.1, -0.1)


@given(theta=points(3), power=st.floats(0.1, 0.9), sharpness=st.floats(1.2, 4.0), cap=st.floats(2.0, 6.0))
def test_below_one_a_sharpness_above_one_diverges_at_a_known_factor(theta, power, sharpness, cap):
    quadratic = diagonal(sharpness, sharpness / 2, sharpness / 10)
    run = descend(DriftAdjustedDescent(quadratic, 0.1, power, cap), with_weight_in_every_mode(theta), 100)
    growth = quadratic.grad(run.theta).norm(dim=-1)[-2:]
    factor = sharpness * min(cap, 2 / sharpness**power) - 1
    assert factor > 1
    assert_close(growth[1] / growth[0], torch.tensor(factor, dtype=torch.float64), rtol=1e-6, atol=0)


@few(6)
@given(theta=points(3), power=st.floats(0.1, 0.9), sharpness=st.floats(0.3, 0.9), window=st.integers(1, 3))
def test_below_one_a_sharpness_below_one_converges(theta, power, sharpness, window):
    quadratic = diagonal(sharpness, sharpness / 2, sharpness / 5)
    descent = DriftAdjustedDescent(quadratic, 0.1, power, 50.0, window)
    run = descend(descent, with_weight_in_every_mode(theta), 1500, keep="last")
    assert float(quadratic.grad(run.theta[-1]).norm()) < 1e-6 * float(quadratic.grad(theta).norm() + 1)
    assert float(run.times[-1]) / 1500 > 2  # not by tiny steps: each is at least 2/λ₀ᵖ


@given(theta=points(2), power=powers, sharpness=st.floats(0.5, 4.0))
def test_a_cap_below_two_over_the_sharpness_converges_at_every_power(theta, power, sharpness):
    descent = DriftAdjustedDescent(diagonal(sharpness, sharpness / 3), 0.1, power, 1.6 / sharpness)
    assert float(descend(descent, theta, 300, keep="last").theta.norm()) < 1e-6 * (1 + float(theta.norm()))


@given(quadratic=quadratics(0.05, 4.0), seed=st.integers(0, 2**31), cap=st.floats(0.1, 9.0), window=st.integers(1, 4))
def test_dal_takes_at_least_two_over_the_sharpness(quadratic, seed, cap, window, normal):
    theta0 = normal(seed, quadratic.dimension)
    rates = descend(DriftAdjustedDescent(quadratic, 0.1, 1.0, cap, window), theta0, 8).times.diff()
    least = min(cap, 2 / float(torch.linalg.eigvalsh(quadratic.hessian(theta0)).max()))
    assert float(rates.min()) >= least * (1 - 1e-9)
    assert float(rates.max()) <= cap * (1 + 1e-12)


class Scaled(Landscape):
    """c·f."""

    def __init__(self, inner, factor):
        self.inner, self.factor = inner, factor

    dimension = property(lambda self: self.inner.dimension)

    def loss(self, theta):
        return self.factor * self.inner.loss(theta)


@given(landscape=smooth_landscapes(), theta=points(2), rotation=rotations(2), factor=st.floats(0.01, 100), power=powers)
def test_scaling_multiplies_the_ratio_and_rotation_leaves_it(landscape, theta, rotation, factor, power):
    v = drift_ratio(landscape.expand(theta))
    scaled = drift_ratio(Scaled(landscape, factor).expand(theta))
    assert_close(scaled, factor * v, rtol=1e-8, atol=1e-8)
    assert_close(drift_ratio(Rotated(landscape, rotation).expand(theta @ rotation.mT)), v, rtol=1e-8, atol=1e-8)
    if float(v) > 1e-3:
        both = adjusted_rate(torch.stack([v, scaled]), power, 1e9)
        assert_close(both[1], factor**-power * both[0], rtol=1e-4, atol=0)


@given(v=st.floats(0, 1e6), power=powers, caps=st.tuples(st.floats(1e-3, 50), st.floats(1e-3, 50)))
def test_the_rate_grows_with_the_cap_and_stays_below_it(v, power, caps):
    low, high = (float(adjusted_rate(torch.tensor(v).double(), power, cap)) for cap in sorted(caps))
    assert 0 <= low <= high <= max(caps)
    uncapped = 2 / v**power if v**power > 0 else math.inf
    assert low == pytest.approx(min(*caps, uncapped))


@drifts
@pytest.mark.parametrize("where", ["no gradient", "no curvature", "gradient in the kernel"])
def test_without_drift_the_rate_is_the_cap(where, drift):
    hessian = {"no gradient": [2.0, 1.0], "no curvature": [0.0, 0.0], "gradient in the kernel": [0.0, 3.0]}[where]

    class Tilted(Landscape):
        dimension = 2

        def loss(self, theta):
            slope = 0.0 if where == "no gradient" else 1.0
            return (theta**2 * torch.tensor(hessian)).sum(dim=-1) / 2 + slope * theta[..., 0]

    theta0 = torch.zeros(2, dtype=torch.float64)
    run = descend(DriftAdjustedDescent(Tilted(), 0.1, 1.0, 3.0, 2, drift), theta0, 2)
    assert run.times.tolist() == [0.0, 3.0, 6.0]
    assert run.theta[:, 0].tolist() == ([0.0] * 3 if where == "no gradient" else [0.0, -3.0, -6.0])


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200])
def test_gradients_whose_squares_leave_the_range_have_a_ratio(size):
    quadratic, theta = diagonal(2.0, 1.0), torch.tensor([3.0, 4.0], dtype=torch.float64) * size
    expected = dense_ratio(quadratic.hessian(theta), torch.tensor([6.0, 4.0], dtype=torch.float64))
    tolerance = 1e-2 if size < 1e-300 else 1e-12  # denormal numbers have few digits
    assert_close(drift_ratio(quadratic.expand(theta)), expected, rtol=tolerance, atol=0)
    assert_close(norm(theta), torch.tensor(5.0, dtype=torch.float64) * size, rtol=tolerance, atol=0)
    assert_close(unit(theta), torch.tensor([0.6, 0.8], dtype=torch.float64), rtol=tolerance, atol=0)


@drifts
def test_at_power_zero_it_is_gradient_descent_and_sgd_to_the_last_bit(drift, dtype, normal):
    theta0, h = normal(5, 2, 3, 2, dtype=dtype) / 3, 9e-4  # 6h is not a sum of six h
    run = descend(DriftAdjustedDescent(Rosenbrock(), h, 0.0, drift=drift, window=3), theta0, 9)
    plain = descend(GradientDescent(Rosenbrock(), h), theta0, 9)
    assert torch.equal(run.theta, plain.theta)
    assert torch.equal(run.times, plain.times)
    assert run.cost == plain.cost
    landscape, theta0 = FINITE_SUMS["linear-regression"](), normal(6, 4, 3, dtype=dtype)
    for sampling in ("replacement", "subset", "epoch"):
        constant = StochasticGradientDescent(landscape, h, 5, sampling)
        zero = StochasticDriftAdjustedDescent(landscape, h, 5, sampling, power=0.0, drift=drift)
        runs = [descend(descent, theta0, 9, seed=2) for descent in (zero, constant)]
        assert torch.equal(runs[0].theta, runs[1].theta)
        assert torch.equal(runs[0].times, runs[1].times)
        assert runs[0].cost == runs[1].cost
        assert torch.equal(zero.step_noise(theta0), constant.step_noise(theta0))


@drifts
@pytest.mark.parametrize("power", [0.0, 0.7, 1.0])
def test_a_batch_steps_as_its_members_do(drift, power, normal):
    theta0 = normal(7, 2, 3, 2)
    descent = DriftAdjustedDescent(Rosenbrock(), 1e-3, power, window=2, drift=drift)
    together, alone = descent.start(theta0), descent.start(theta0[1, 2])
    for k in range(5):
        together, alone = descent.step(together, k, GENERATOR), descent.step(alone, k, GENERATOR)
        assert_close(together.theta[1, 2], alone.theta)
        assert_close(together.time[1, 2], alone.time)
        assert_close(together.recent[1, 2], alone.recent)
        again = descent.step(together, k, GENERATOR)
        assert torch.equal(again.theta, descent.step(together, k, GENERATOR).theta)  # a pure map
    assert together.recent.shape == (2, 3, 2 if power else 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        together.theta = theta0


def test_members_of_different_times_have_no_clock():
    quadratic, start = diagonal(2.0, 0.5), torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    with pytest.raises(UnsupportedError, match=r"different times, t = 1\.\d+ to 1\.\d+.*run the members one by one"):
        descend(DriftAdjustedDescent(quadratic, 0.1), start, 3)
    same = descend(DriftAdjustedDescent(quadratic, 0.1), start[:1].expand(4, 2), 3)
    assert torch.equal(same.times, descend(DriftAdjustedDescent(quadratic, 0.1), start[0], 3).times)
    assert descend(DriftAdjustedDescent(quadratic, 0.1, cap=0.5), start, 3).times.tolist() == [0.0, 0.5, 1.0, 1.5]


@drifts
def test_members_that_leave_the_finite_numbers_are_frozen_and_the_others_go_on(drift):
    well = LANDSCAPES["double-well"]()
    start = torch.tensor([[0.5, 1.2], [1e150, 0.0]], dtype=torch.float64)  # the second one's gradient is infinite
    descent = DriftAdjustedDescent(well, 0.1, 1.0, 0.3, 2, drift)
    run, alone = descend(descent, start, 6), descend(descent, start[0], 6)
    assert (run.status, run.alive.tolist()) == ("finished", [True, False])
    assert_close(run.theta[:, 0], alone.theta)
    assert_close(run.times, alone.times)
    assert torch.equal(run.theta[:, 1], start[1].expand(7, 2))
    ended = descend(descent, start[1], 6)
    assert (ended.status, bool(ended.alive), len(ended.times)) == ("diverged", False, 1)


def batches_of(landscape, descent, theta0, steps, seed):
    """The mini-batches that plain SGD draws with the same sampling and seed."""
    sgd = StochasticGradientDescent(landscape, 1.0, descent.batch_size, descent.sampling)
    asked, generator = [], torch.Generator().manual_seed(seed)
    keep, landscape.batch_grad = (
        landscape.batch_grad,
        lambda theta, index: asked.append(index) or torch.zeros_like(theta),
    )
    state = sgd.start(theta0)
    for k in range(steps):
        state = sgd.step(state, k, generator)
    landscape.batch_grad = keep
    return asked


@drifts
@pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])
@pytest.mark.parametrize("name", FINITE_SUMS)
def test_mini_batch_steps_by_dense_algebra_on_the_same_draws(name, sampling, drift, normal):
    landscape = Regularised(FINITE_SUMS[name](), 0.3)
    batch, theta = min(5, landscape.size), normal(8, 2, landscape.dimension)
    descent = StochasticDriftAdjustedDescent(landscape, 0.1, batch, sampling, 0.8, 0.9, 2, drift)
    state, generator, seen = descent.start(theta), torch.Generator().manual_seed(3), [[], []]
    for k, index in enumerate(batches_of(landscape, descent, theta, 5, 3)):
        state = descent.step(state, k, generator)
        for i in range(2):
            part = landscape.restrict(index[i])
            grad, hessian = part.grad(theta[i]), part.hessian(theta[i])
            seen[i].append(float(dense_ratio(hessian, grad)))
            rate = min(0.9, 2 / (sum(seen[i][-2:]) / len(seen[i][-2:])) ** 0.8)
            assert_close(
                state[0].theta[i], theta[i] - rate * grad, rtol=1e-5, atol=1e-6 if drift == "difference" else 1e-9
            )
        theta = descent.position(state)
    run = descend(descent, theta[0], 6, seed=1)
    share = 6 * batch / landscape.size
    if sampling != "epoch":
        assert run.cost["grad"] == pytest.approx(share if drift == "exact" else 2 * share)
        assert run.cost["hvp"] == pytest.approx(share if drift == "exact" else 0)
    assert torch.equal(run.theta, descend(descent, theta[0], 6, seed=1).theta)


def test_all_examples_in_a_batch_are_the_full_batch(normal):
    landscape, theta0 = FINITE_SUMS["linear-regression"](), normal(9, 3)
    descent = StochasticDriftAdjustedDescent(landscape, 0.1, landscape.size, "subset", 1.0, 4.0, 3)
    run, full = descend(descent, theta0, 8), descend(descent.full_batch(), theta0, 8)
    assert descent.full_batch() == DriftAdjustedDescent(landscape, 0.1, 1.0, 4.0, 3)
    assert_close(run.theta, full.theta, rtol=1e-9, atol=1e-9)
    assert_close(run.times, full.times)


def test_gradient_flow_is_compared_on_the_clock_of_the_steps_taken(normal):
    quadratic, theta0 = diagonal(1.5, 0.4), normal(10, 2)
    descent = DriftAdjustedDescent(quadratic, 0.1, 1.0, 2.0, 2)
    result = compare(descent, [GradientFlow(quadratic)], theta0, 6, rtol=1e-10, atol=1e-12)
    states, rates = by_hand(quadratic.hessian(theta0), theta0, 6, 1.0, 2.0, 2)
    assert len(rates.unique()) > 1
    assert_close(result.times[1:], rates.cumsum(0))
    exact = theta0 * torch.exp(-result.times[:, None] * torch.tensor([1.5, 0.4]))
    assert_close(result.errors["GradientFlow"], (exact - states).norm(dim=-1), rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match=r"h of ModifiedFlow order 2 is 0\.2, of the descent 0\.1: they must agree"):
        compare(descent, [ModifiedFlow(quadratic, 0.2, 2)], theta0, 6)


def test_what_has_no_closed_form_is_refused():
    landscape = NoisyQuadratic(torch.eye(2, dtype=torch.float64), 6, seed=0)
    descent = StochasticDriftAdjustedDescent(landscape, 0.1, 2)
    with pytest.raises(UnsupportedError, match=r"no closed form at power 1.*compare flows with DriftAdjustedDescent"):
        compare(descent, [GradientFlow(landscape)], torch.ones(2, dtype=torch.float64), 3)
    others = [
        DriftAdjustedDescent(landscape, 0.1, power, drift=drift) for power, drift in ((1, "difference"), (0, "exact"))
    ]
    for refused in (descent, *others):
        with pytest.raises(UnsupportedError, match=r"real theta, got torch.complex128; give theta.real"):
            descend(refused, torch.ones(2, dtype=torch.complex128), 3)
    with pytest.raises(UnsupportedError, match="real theta"):
        drift_ratio(Rosenbrock().expand(torch.ones(2, dtype=torch.complex128)))


BAD = {
    "landscape": ({"landscape": torch.eye(2)}, TypeError, "landscape must be a Landscape"),
    "h zero": ({"h": 0.0}, ValueError, "h must be positive"),
    "h string": ({"h": "0.1"}, TypeError, "h must be"),
    "power negative": ({"power": -1.0}, ValueError, "power must be at least 0, got -1.0"),
    "power NaN": ({"power": math.nan}, ValueError, "power must be finite"),
    "power string": ({"power": "1"}, TypeError, "power must be a real number"),
    "cap zero": ({"cap": 0.0}, ValueError, "cap must be positive"),
    "cap infinite": ({"cap": math.inf}, ValueError, "cap must be positive and finite"),
    "window zero": ({"window": 0}, ValueError, "window must be at least 1"),
    "window fraction": ({"window": 1.5}, TypeError, "window must be a whole number"),
    "drift": ({"drift": "forward"}, ValueError, "drift must be one of 'exact', 'difference', got 'forward'"),
}


@pytest.mark.parametrize(("changes", "error", "match"), BAD.values(), ids=BAD)
def test_arguments(changes, error, match):
    arguments = {"landscape": FINITE_SUMS["two-quadratics"](), "h": 0.1, **changes}
    with pytest.raises(error, match=match):
        DriftAdjustedDescent(**arguments)
    with pytest.raises(error, match=match):
        StochasticDriftAdjustedDescent(**arguments, batch_size=1)


def test_arguments_of_mini_batches_and_of_the_rate():
    landscape, v = FINITE_SUMS["two-quadratics"](), torch.ones(2)
    with pytest.raises(ValueError, match="batch_size must be at most the number of examples, 2, got 3"):
        StochasticDriftAdjustedDescent(landscape, 0.1, 3)
    with pytest.raises(TypeError, match="landscape must be a FiniteSum"):
        StochasticDriftAdjustedDescent(Rosenbrock(), 0.1, 1)
    with pytest.raises(ValueError, match="sampling must be one of"):
        StochasticDriftAdjustedDescent(landscape, 0.1, 1, "shuffle")
    with pytest.raises(ValueError, match="power must be above 0, got 0: the rate is then a constant"):
        adjusted_rate(v, 0.0, 5.0)
    with pytest.raises(ValueError, match="cap must be positive"):
        adjusted_rate(v, 1.0, 0.0)
    with pytest.raises(TypeError, match=r"v must be a torch\.Tensor"):
        adjusted_rate(1.0, 1.0, 5.0)
    with pytest.raises(TypeError, match="v must be real"):
        adjusted_rate(v.to(torch.complex64), 1.0, 5.0)
