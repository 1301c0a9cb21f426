"""The principal flow: its coefficient against mpmath, its field against a matrix logarithm, where it must refuse."""

import math
import warnings

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import (
    BranchError,
    GradientDescent,
    PrincipalFlow,
    SingularModeError,
    UnconvergedWarning,
    descend,
    integrate,
)
from flows.models.principal import principal_coefficient, real_coefficient
from flows.strategies import points, quadratics
from landscapes import Cosine, DoubleWell, Landscape, NotHolomorphicError, Quadratic, QuarticWell, Rosenbrock
from tests.examples import few
from tests.flows.toys import Kinked
from tests.tensors import c128, f64

KINDS = {"dense": {}, "krylov": {"krylov": 20, "tolerance": 1e-13}}
kinds = pytest.mark.parametrize("kind", KINDS)

# x whose coefficient is known: small, near the singular mode, beyond it, on both sides of the real axis and far out
REALS = [1e-300, -1e-300, 1e-12, -1e-5, 0.3, 0.99, 1 - 1e-4, 1 - 2e-6, 1 + 2e-6, 1 + 1e-4, 1.5, 2.0, 2.5, -3.0, 1e6]
COMPLEX = [
    1e-12j,
    1e-12 - 1e-12j,
    0.5 + 1e-9j,
    1 + 1e-4j,
    1 - 1e-3 - 1e-3j,
    1 + 1j,
    2 - 1e-8j,
    3 + 4j,
    -2 - 0.1j,
    40 - 3j,
]


def oracle(x):
    """log(−i(1 − x))/x + iπ/(2x), in digits enough for 1 − 1e-300."""
    with mpmath.workdps(340):
        z = mpmath.mpmathify(x)
        return complex((mpmath.log(-1j * (1 - z)) + 1j * mpmath.pi / 2) / z)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.complex128, 1e-13), (torch.complex64, 1e-5)])
@pytest.mark.parametrize("x", REALS + COMPLEX)
def test_coefficient_to_rounding(x, dtype, accuracy):
    x = torch.tensor([x], dtype=dtype)
    if x.item() in {0, 1}:
        pytest.skip("rounds to a limit in single precision")
    expected = oracle(x.item())
    assert abs(principal_coefficient(x).item() - expected) <= accuracy * abs(expected)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("x", REALS)
def test_coefficient_of_real_numbers(x, dtype, accuracy):
    x = torch.tensor([x], dtype=dtype)
    if x.item() in {0, 1}:
        pytest.skip("rounds to a limit in single precision")
    expected = oracle(x.item())
    alpha = principal_coefficient(x)
    assert alpha.is_complex() == (x > 1)
    assert abs(alpha.item() - expected) <= accuracy * abs(expected)
    assert abs(real_coefficient(x).item() - expected.real) <= accuracy * abs(expected.real) + 1e-300


def test_the_limit_at_zero():
    for dtype in (torch.float64, torch.complex128):
        assert principal_coefficient(torch.zeros(2, dtype=dtype)).tolist() == [-1, -1]
    assert principal_coefficient(f64(0.0, 2.0)).tolist()[0] == -1
    for x in (5e-324, -3e-313, 1e-310, 1e-40, -1e-20):  # complex quotients of subnormal numbers are inf and NaN
        for dtype in (torch.complex64, torch.complex128, torch.float32, torch.float64):
            assert principal_coefficient(torch.tensor([x], dtype=dtype)).tolist() == [-1]
    assert real_coefficient(f64(0.0, -0.0)).tolist() == [-1, -1]


def test_beyond_the_singular_mode_the_logarithm_gains_i_pi():
    x = f64(1.2, 2.0, 5.0)
    assert_close(principal_coefficient(x) * x, torch.complex((x - 1).log(), torch.full_like(x, math.pi)))
    assert_close(real_coefficient(x), (x - 1).log() / x)


@given(
    st.floats(1.001, 50) | st.floats(-50, 0.999),
    st.floats(1e-15, 1e-6),
)
def test_the_coefficient_is_continuous_across_the_real_axis(real, offset):
    x = c128(complex(real, offset), complex(real, -offset), complex(real, 0.0), complex(real, -0.0))
    alpha = principal_coefficient(x)
    slope = 4 / min(abs(1 - real), 1.0) / max(abs(real), 1e-3)
    slope += abs(alpha[2].item()) / max(abs(real), 1e-3)
    assert float((alpha - alpha[2]).abs().max()) <= slope * offset + 1e-14 * abs(alpha[2])


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_the_argument_lies_between_the_negative_imaginary_axis_and_itself(real, imag):
    x = c128(complex(real, imag))
    if abs(1 - x.item()) > 1e-3 and abs(x.item()) > 1e-3:
        angle = float((principal_coefficient(x) * x).imag)
        assert -math.pi / 2 - 1e-12 < angle <= 3 * math.pi / 2 + 1e-12
        assert_close(torch.exp(principal_coefficient(x) * x), 1 - x, rtol=1e-10, atol=1e-12)


def test_the_cut_lies_on_the_negative_imaginary_axis():
    left, right = c128(1 + 1e-9 + 1j, 1 - 1e-9 + 1j)  # 1 − x just left and just right of −i
    gap = (principal_coefficient(left[None]) * left - principal_coefficient(right[None]) * right).item()
    assert gap == pytest.approx(2j * math.pi, abs=1e-6)


@kinds
@pytest.mark.parametrize("eigenvalues", [[0.9, 0.2, -0.5], [-2.0, -0.1, 0.99], [0.7, 0.7, -3.0], [1e-9, -1e-9, 0.4]])
@pytest.mark.parametrize("branch", ["complex", "real"])
def test_field_against_the_matrix_logarithm(kind, eigenvalues, branch, normal):
    rotation = torch.linalg.qr(normal(0, 3, 3))[0]
    matrix = (rotation * f64(*eigenvalues)) @ rotation.mT
    h = 0.5
    landscape = Quadratic((matrix + matrix.mT) / (2 * h))
    theta = normal(1, 3)
    g = landscape.grad(theta)
    logarithm = torch.from_numpy(np.real(scipy.linalg.logm(np.eye(3) - matrix.numpy())))
    velocity = PrincipalFlow(landscape, h, branch=branch, **KINDS[kind]).velocity(0.0, theta)
    # hH v = log(I − hH) g holds for singular H too, and g lies in the range of H
    assert_close(h * landscape.hvp(theta, velocity), logarithm @ g, rtol=1e-10, atol=1e-12)
    assert_close(velocity, logarithm @ theta / h, rtol=1e-6, atol=1e-12)  # g = Hθ


@kinds
def test_field_beyond_the_singular_mode_against_the_matrix_logarithm(kind, normal):
    rotation = torch.linalg.qr(normal(2, 4, 4))[0]
    matrix = (rotation * f64(2.7, 1.4, 0.3, -0.8)) @ rotation.mT
    landscape, theta = Quadratic((matrix + matrix.mT) / 2), normal(3, 4)
    logarithm = torch.from_numpy(scipy.linalg.logm(np.eye(4) - matrix.numpy()))
    flow = PrincipalFlow(landscape, 1.0, **KINDS[kind])
    velocity = flow.velocity(0.0, flow.start(theta))
    assert_close(velocity.real, logarithm.real @ theta, rtol=1e-9, atol=1e-11)
    projector = rotation[:, :2] @ rotation[:, :2].mT
    assert_close(velocity.imag, math.pi * projector @ theta, rtol=1e-9, atol=1e-11)
    real = PrincipalFlow(landscape, 1.0, branch="real", **KINDS[kind]).velocity(0.0, theta)
    assert_close(real, velocity.real, rtol=1e-9, atol=1e-11)


@kinds
def test_field_at_complex_theta_against_the_matrix_logarithm(kind):
    # a rotated egg box couples its coordinates; at these θ every |arg(1 − hλ)| < π/2, where both logarithms agree
    landscape, h = Rosenbrock(b=2.0), 0.05
    theta = c128(-0.4 + 0.2j, 0.7 - 0.3j)
    matrix = h * landscape.hessian(theta).numpy()
    expected = np.linalg.solve(matrix, scipy.linalg.logm(np.eye(2) - matrix) @ landscape.grad(theta).numpy())
    velocity = PrincipalFlow(landscape, h, **KINDS[kind]).velocity(0.0, theta)
    assert_close(velocity, torch.from_numpy(expected), rtol=1e-10, atol=1e-12)


@kinds
def test_flat_directions_descend_as_gradient_flow(kind):
    class Tilted(Landscape):
        dimension, holomorphic = 3, True

        def loss(self, theta):
            return theta[..., 0] ** 2 + theta[..., 1]  # flat along both other coordinates, sloping along one

    velocity = PrincipalFlow(Tilted(), 0.2, **KINDS[kind]).velocity(0.0, f64(1.0, 2.0, 3.0))
    assert_close(velocity, f64(math.log(0.6) / 0.4 * 2.0, -1.0, 0.0))


@few(8)
@given(data=st.data())
def test_equals_gradient_descent_on_quadratics(data):
    h = data.draw(st.sampled_from([0.1, 1.0]))
    landscape = data.draw(quadratics(-2.99 / h, 2.99 / h, avoid=1 / h, gap=0.05 / h))
    theta = landscape.minimum + data.draw(points(landscape.dimension))
    exact = descend(GradientDescent(landscape, h), theta, 10).theta
    times = [k * h for k in range(11)]
    run = integrate(PrincipalFlow(landscape, h), theta, times, method="dopri8", rtol=1e-10, atol=1e-11)
    assert run.status == "finished"
    assert float((run.theta - exact).abs().max()) <= 1e-8 * float(exact.abs().max())  # by modulus: θ is real there


@pytest.mark.parametrize("sharpness", [1.6, 2.05])
@pytest.mark.parametrize("x", [0.1, 0.2, 0.3])
def test_adaptive_runs_pass_the_negative_real_axis(sharpness, x):
    landscape, steps = QuarticWell(S=1.6, Q=1.0), 6
    h = sharpness / 1.6
    run = integrate(PrincipalFlow(landscape, h), f64(x), [k * h for k in range(steps + 1)])
    assert run.status == "finished"
    assert run.cost["evaluations"] <= 300 * steps
    exact = descend(GradientDescent(landscape, h), f64(x), steps).theta
    assert bool((run.theta.real.sign() == exact.sign()).all())  # it turns at every step, as the descent does
    assert float((run.theta - exact).abs().max()) < x


@kinds
def test_singular_modes_are_named(kind):
    for offset, singular in ((0.0, True), (9e-7, True), (-9e-7, True), (2e-6, False), (-2e-6, False)):
        landscape = Quadratic(torch.diag(f64((1 + offset) / 0.25, 0.5)))
        flow = PrincipalFlow(landscape, 0.25, **KINDS[kind])
        state = flow.start(f64(1.0, 1.0))
        if singular:
            with pytest.raises(
                SingularModeError, match=r"singular mode: .* λ = (4|3\.99999\d?|4\.00000\d) .* hλ = "
            ) as caught:
                flow.velocity(0.0, state)
            assert caught.value.members.shape == ()
            assert bool(caught.value.members)
        else:
            assert bool(flow.velocity(0.0, state).isfinite().all())


@kinds
@pytest.mark.parametrize("branch", ["complex", "real"])
def test_only_singular_members_are_flagged(kind, branch):
    landscape = QuarticWell(S=4.0, Q=1.0)
    theta = f64(0.0, 0.3, math.sqrt(2 / 3), 0.9)[:, None].reshape(2, 2, 1)  # λ = 4 − 3x²: at 2/3 hλ = 1
    flow = PrincipalFlow(landscape, 0.5, branch=branch, **KINDS[kind])
    with pytest.raises(SingularModeError, match="hλ = ") as caught:
        flow.velocity(0.0, flow.start(theta))
    assert caught.value.members.tolist() == [[False, False], [True, False]]


@kinds
def test_a_singular_mode_ends_its_member_only(kind):
    landscape = Quadratic(torch.diag(f64(2.0, 0.5)), f64(0.0, 0.0))
    run = integrate(PrincipalFlow(landscape, 0.5, **KINDS[kind]), f64(1.0, 1.0), [0.0, 0.5])
    assert run.status == "singular mode"
    assert "λ = 2 " in run.status.sentence
    assert "hλ = 1" in run.status.sentence
    assert run.theta.shape == (1, 2)


@kinds
def test_real_theta_where_the_flow_is_complex(kind):
    landscape = Quadratic(torch.diag(f64(6.0, 1.0)))
    flow = PrincipalFlow(landscape, 0.25, **KINDS[kind])
    with pytest.raises(BranchError, match=r"the largest hλ is 1\.5 > 1"):
        flow.velocity(0.0, f64(1.0, 1.0))
    with pytest.raises(BranchError, match=r"1\.5 > 1"):
        flow.velocity(0.0, f64(1.0, 1.0).expand(3, 2))
    assert flow.start(f64(1.0, 1.0)).dtype == torch.complex128
    below = PrincipalFlow(landscape, 0.16, **KINDS[kind]).velocity(0.0, f64(1.0, 1.0))
    assert_close(below, f64(math.log(0.04) / 0.16, math.log(0.84) / 0.16))


@kinds
def test_the_real_branch_refuses_complex_theta(kind):
    flow = PrincipalFlow(Cosine(), 0.1, branch="real", **KINDS[kind])
    assert flow.start(f64(1.0, 1.0)).dtype == torch.float64
    with pytest.raises(BranchError, match=r"branch='real' takes real theta only"):
        flow.velocity(0.0, c128(1.0, 1.0))


@kinds
def test_a_loss_that_is_not_holomorphic(kind):
    flow = PrincipalFlow(Kinked(), 0.1, **KINDS[kind])
    state = flow.start(f64(1.0, 2.0))
    with pytest.raises(NotHolomorphicError, match=r"branch='real'"):
        flow.velocity(0.0, state)
    with pytest.raises(NotHolomorphicError, match=r"branch='real'"):
        integrate(flow, f64(1.0, 2.0), [0.0, 0.1])
    run = integrate(PrincipalFlow(Kinked(), 0.1, branch="real", **KINDS[kind]), f64(1.0, 2.0), [0.0, 0.1])
    assert run.status == "finished"


class Rooted(Landscape):
    """Finite for x > 0 only, NaN elsewhere."""

    dimension, holomorphic = 2, True

    def loss(self, theta):
        return (theta.sqrt() ** 3).sum(dim=-1)


@kinds
@pytest.mark.parametrize("branch", ["complex", "real"])
def test_a_nan_hessian_gives_a_nan_velocity(kind, branch):
    flow = PrincipalFlow(Rooted(), 0.1, branch=branch, **KINDS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a NaN is no want of products
        velocity = flow.velocity(0.0, f64(-1.0, 2.0))
        both = flow.velocity(0.0, torch.stack([f64(-1.0, 2.0), f64(1.0, 2.0)]))
    assert bool(velocity.isnan().all())
    assert both.isnan().all(dim=-1).tolist() == [True, False]
    assert_close(both[1], flow.velocity(0.0, f64(1.0, 2.0)))


def test_meeting_the_limit_is_flagged():
    landscape = Quadratic(torch.diag(torch.linspace(0.1, 0.9, 12, dtype=torch.float64)))
    theta = torch.ones(12, dtype=torch.float64)
    flow = PrincipalFlow(landscape, 1.0, krylov=3)
    with pytest.warns(UnconvergedWarning, match="krylov=3 HVPs did not reach tolerance 1e-06"):
        flow.velocity(0.0, flow.start(theta))
    run = integrate(flow, theta, [0.0, 1.0])
    assert len(run.notes) == 1
    assert f"({run.cost['evaluations']} evaluations)" in run.notes[0]
    enough = integrate(PrincipalFlow(landscape, 1.0, krylov=12), theta, [0.0, 1.0])
    assert enough.notes == ()
    assert enough.cost["hvp"] <= 12 * enough.cost["evaluations"]


def test_krylov_stops_at_its_tolerance(normal):
    landscape, theta = Cosine(dimension=40, frequency=0.8), normal(5, 40)
    exact = PrincipalFlow(landscape, 0.5).velocity(0.0, theta)
    costs = []
    for tolerance in (1e-2, 1e-5, 1e-10):
        flow = PrincipalFlow(landscape, 0.5, krylov=40, tolerance=tolerance)
        error = torch.linalg.vector_norm(flow.velocity(0.0, theta) - exact) / torch.linalg.vector_norm(exact)
        assert float(error) < tolerance
        costs.append(integrate(flow, theta, [0.0, 0.5], method="euler", dt=0.5).cost["hvp"])
    assert costs[0] < costs[1] < costs[2] < 40


@kinds
def test_a_run_that_starts_at_rest_stays(kind):
    landscape = Quadratic(torch.eye(2, dtype=torch.float64))
    run = integrate(PrincipalFlow(landscape, 0.1, **KINDS[kind]), torch.zeros(2, dtype=torch.float64), [0.0, 0.1, 0.2])
    assert run.status == "finished"
    assert float(run.theta.abs().max()) == 0


def test_names_tell_flows_apart():
    names = {
        PrincipalFlow(DoubleWell(), 0.1, **options).name
        for options in ({}, {"branch": "real"}, {"third_order": True}, {"branch": "real", "third_order": True})
    }
    assert len(names) == 4
