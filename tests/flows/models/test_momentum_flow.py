"""The principal flow of momentum as a flow: batches, precisions, networks by Krylov, symmetry, and what it refuses."""

import functools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import BranchError, SingularModeError, UnconvergedWarning, integrate
from flows.invariants import check_batch, check_equivariance
from flows.models.momentum_modes import heavy_ball_edges
from flows.models.momentum_principal import HeavyBallPrincipalFlow, NesterovPrincipalFlow
from flows.strategies import points, rotations, smooth_landscapes
from landscapes import Cosine, Counted, Landscape, NotHolomorphicError, Quadratic, Rosenbrock
from tests.examples import few
from tests.flows.networks import digits_network
from tests.flows.toys import Kinked
from tests.tensors import c128, f64

KINDS = {"dense": {}, "krylov": {"krylov": 60, "tolerance": 1e-13}}
FLOWS = {"heavy ball": HeavyBallPrincipalFlow, "nesterov": NesterovPrincipalFlow}
names = pytest.mark.parametrize("name", FLOWS)
kinds = pytest.mark.parametrize("kind", KINDS)


@names
def test_state_and_position(name, dtype):
    theta0 = torch.ones(3, 2, dtype=dtype)
    flow = FLOWS[name](Rosenbrock(), 0.1, 0.9)
    state = flow.start(theta0)
    assert state.dtype == dtype.to_complex()
    assert torch.equal(flow.position(state).real, theta0)
    assert not bool(state[..., 2:].abs().any())
    real = FLOWS[name](Rosenbrock(), 0.1, 0.9, branch="real").start(theta0)
    assert real.dtype == dtype
    assert flow.start(state[..., :2]).dtype == dtype.to_complex()


@names
@kinds
@pytest.mark.parametrize("branch", ["complex", "real"])
def test_batches_of_states(name, kind, branch, normal):
    flow = FLOWS[name](Rosenbrock(b=5.0), 0.03, 0.8, branch=branch, **KINDS[kind])
    states = torch.cat([normal(0, 2, 3, 2), 0.1 * normal(1, 2, 3, 2)], dim=-1) / 2
    if branch == "complex":
        states = states.to(torch.complex128)
    together = flow.velocity(0.0, states)
    assert together.shape == (2, 3, 4)
    alone = torch.stack([flow.velocity(0.0, state) for state in states.reshape(6, 4)]).reshape(2, 3, 4)
    assert_close(together, alone, rtol=1e-10, atol=1e-11)


@names
def test_a_batch_of_runs_is_single_runs(name, normal):
    check_batch(FLOWS[name](Cosine(frequency=1.5), 0.1, 0.7, branch="real"), normal(2, 3, 2), steps=3)


@names
@kinds
def test_single_precision(name, kind, normal):
    options = {"krylov": 60, "tolerance": 1e-6} if kind == "krylov" else {}
    state = torch.cat([normal(3, 4), 0.1 * normal(4, 4)])
    for beta, h in ((0.9, 0.3), (0.9, 1.3), (0.999, 0.3)):
        landscape = Cosine(dimension=4, frequency=1.3)
        exact = FLOWS[name](landscape, h, beta).velocity(0.0, state.to(torch.complex128))
        single = FLOWS[name](landscape, h, beta, **options).velocity(0.0, state.to(torch.complex64))
        assert single.dtype == torch.complex64
        assert float((single - exact).abs().max()) <= 1e-4 * float(exact.abs().max())


@names
@few(8)
@given(data=st.data())
def test_the_field_turns_with_the_coordinates(name, data):
    landscape = data.draw(smooth_landscapes())
    check_equivariance(
        lambda f: FLOWS[name](f, 0.05, 0.8), landscape, data.draw(points(2)), data.draw(rotations(2)), tolerance=1e-8
    )


@names
def test_krylov_on_a_network_equals_dense(name, normal):
    network = digits_network()
    theta = network.theta0.double()
    state = torch.cat([theta, -0.1 * network.grad(theta) + 1e-3 * normal(6, network.dimension)])
    for h in (0.5, 4.0):
        exact = FLOWS[name](network, h, 0.9, branch="real").velocity(0.0, state)
        for tolerance in (1e-4, 1e-10):
            flow = FLOWS[name](network, h, 0.9, krylov=40, tolerance=tolerance, branch="real")
            # each of the two parts is within its tolerance; together they are less by what cancels, a few times here
            assert float((flow.velocity(0.0, state) - exact).norm()) <= 10 * tolerance * float(exact.norm())
    costs = integrate(flow, theta, [0.0, h], method="euler", dt=h).cost
    assert costs["grad"] == 1
    assert costs["hvp"] <= 40  # v is 0 at rest, and has no Krylov space


@names
@kinds
def test_complex_states_continue_the_real_field(name, kind, normal):
    # holomorphic: the derivative along i is i times that along the reals
    flow = FLOWS[name](Rosenbrock(b=2.0), 0.05, 0.7, **KINDS[kind])
    state = torch.cat([f64(-0.4, 0.7), f64(0.05, -0.1)]).to(torch.complex128) + 0.05j * normal(7, 4)
    direction, step = normal(8, 4), 1e-5
    along = flow.velocity(0.0, state + step * direction) - flow.velocity(0.0, state - step * direction)
    across = flow.velocity(0.0, state + 1j * step * direction) - flow.velocity(0.0, state - 1j * step * direction)
    assert float((across - 1j * along).abs().max()) <= 1e-6 * float(along.abs().max())


@names
@kinds
def test_flat_directions_and_rest(name, kind):
    class Tilted(Landscape):
        dimension, holomorphic = 3, True

        def loss(self, theta):
            return theta[..., 0] ** 2 + theta[..., 1]  # flat along both other coordinates, sloping along one

    h, beta = 0.1, 0.5
    flow = FLOWS[name](Tilted(), h, beta, **KINDS[kind], branch="real")
    run = integrate(flow, f64(0.0, 2.0, 3.0), [k * h for k in range(5)], method="dopri8", rtol=1e-12, atol=1e-14).theta
    v, y = 0.0, 2.0
    for k in range(4):  # the slope pulls as gravity against friction; nothing moves the other two
        v = beta * v - h
        y += v if name == "heavy ball" else beta * v - h
        assert float((run[k + 1] - f64(0.0, y, 3.0)).abs().max()) <= 1e-10
    rest = integrate(
        FLOWS[name](Quadratic(torch.eye(2, dtype=torch.float64)), h, beta, **KINDS[kind]), f64(0, 0), [0, h]
    )
    assert rest.status == "finished"
    assert float(rest.theta.abs().max()) == 0


@names
@kinds
def test_real_states_where_the_flow_is_complex(name, kind):
    landscape = Quadratic(torch.diag(f64(3.5, 0.9)))
    flow = FLOWS[name](landscape, 1.0, 0.5, **KINDS[kind])
    edge = "2.91421" if name == "heavy ball" else "1"
    with pytest.raises(BranchError, match=rf"the largest hλ is 3\.5, past {edge}; .* branch='real'"):
        flow.velocity(0.0, f64(1.0, 1.0, 0.0, 0.0))
    with pytest.raises(BranchError, match=r"3\.5"):
        flow.velocity(0.0, f64(1.0, 1.0, 0.0, 0.0).expand(3, 4))
    assert bool(flow.velocity(0.0, flow.start(f64(1.0, 1.0))).isfinite().all())
    below = FLOWS[name](landscape, 0.2, 0.5, **KINDS[kind]).velocity(0.0, f64(1.0, 1.0, 0.0, 0.0))
    assert below.dtype == torch.float64
    real = FLOWS[name](Cosine(), 0.1, 0.5, branch="real", **KINDS[kind])
    with pytest.raises(BranchError, match=r"branch='real' takes real states only"):
        real.velocity(0.0, c128(1.0, 1.0, 0.0, 0.0))


@kinds
def test_nesterovs_singular_modes_are_named(kind):
    for offset, singular in ((0.0, True), (9e-7, True), (-9e-7, True), (2e-6, False), (-2e-6, False)):
        landscape = Quadratic(torch.diag(f64((1 + offset) / 0.25, 0.5)))
        flow = NesterovPrincipalFlow(landscape, 0.25, 0.9, **KINDS[kind])
        states = flow.start(f64(1.0, 1.0).expand(2, 2))
        if singular:
            with pytest.raises(SingularModeError, match=r"λ = (4|3\.99999\d?|4\.00000\d) .* two steps") as caught:
                flow.velocity(0.0, states)
            assert caught.value.members.tolist() == [True, True]
            assert integrate(flow, f64(1.0, 1.0), [0.0, 0.25]).status == "singular mode"
        else:
            assert bool(flow.velocity(0.0, states).isfinite().all())
    landscape = Quadratic(torch.diag(f64(4.0, 0.5)))  # heavy ball has none
    flow = HeavyBallPrincipalFlow(landscape, 0.25, 0.9, **KINDS[kind])
    assert bool(flow.velocity(0.0, flow.start(f64(1.0, 1.0))).isfinite().all())


class Rooted(Landscape):
    """Finite for x > 0 only, NaN elsewhere."""

    dimension, holomorphic = 2, True

    def loss(self, theta):
        return (theta**1.5).sum(dim=-1)


@names
@kinds
def test_a_loss_that_is_not_holomorphic_runs_on_the_real_branch(name, kind):
    with pytest.raises(NotHolomorphicError, match=r"branch='real'"):
        integrate(FLOWS[name](Kinked(), 0.1, 0.5, **KINDS[kind]), f64(1.0, 2.0), [0.0, 0.1])
    run = integrate(FLOWS[name](Kinked(), 0.05, 0.5, branch="real", **KINDS[kind]), f64(1.0, 2.0), [0.0, 0.05])
    assert run.status == "finished"


@names
@kinds
@pytest.mark.parametrize("branch", ["complex", "real"])
def test_a_nan_hessian_gives_a_nan_velocity(name, kind, branch):
    flow = FLOWS[name](Rooted(), 0.1, 0.5, branch=branch, **KINDS[kind])
    good, bad = f64(1.0, 2.0, 0.1, 0.0), f64(-1.0, 2.0, 0.1, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a NaN is no want of products
        assert bool(flow.velocity(0.0, bad).isnan().all())
        both = flow.velocity(0.0, torch.stack([bad, good]))
        steep = flow.velocity(0.0, f64(0.0, 2.0, 0.1, 0.0))  # the gradient is finite there, the curvature is not
    assert both.isnan().all(dim=-1).tolist() == [True, False]
    assert bool(steep.isnan().all())
    assert_close(both[1], flow.velocity(0.0, good))


@names
def test_meeting_the_limit_is_flagged(name):
    landscape = Quadratic(torch.diag(torch.linspace(0.1, 0.9, 12, dtype=torch.float64)))
    theta = torch.ones(12, dtype=torch.float64)
    flow = FLOWS[name](landscape, 1.0, 0.5, krylov=3)
    with pytest.warns(UnconvergedWarning, match="krylov=3 HVPs did not reach tolerance 1e-06"):
        flow.velocity(0.0, flow.start(theta))
    assert len(integrate(flow, theta, [0.0, 1.0], method="rk4", dt=0.5).notes) == 1
    enough = FLOWS[name](landscape, 1.0, 0.5, krylov=12)
    assert integrate(enough, theta, [0.0, 1.0], method="rk4", dt=0.5).notes == ()


@names
def test_arguments(name):
    build = functools.partial(FLOWS[name], Cosine())
    with pytest.raises(ValueError, match=r"momentum must lie in \(0, 1\), got 0.*use PrincipalFlow"):
        build(0.1, 0.0)
    for momentum in (-0.1, 1.0, 1.5, math.nan, math.inf, "0.5", None, True):
        with pytest.raises((TypeError, ValueError), match="momentum must"):
            build(0.1, momentum)
    for changes, match in (({"krylov": 0}, "krylov"), ({"tolerance": 0.0}, "tolerance"), ({"branch": "no"}, "branch")):
        with pytest.raises(ValueError, match=f"{match} must"):
            build(0.1, 0.5, **changes)
    with pytest.raises(ValueError, match="h must"):
        build(-0.1, 0.5)
    with pytest.raises(TypeError, match="landscape must"):
        FLOWS[name](None, 0.1, 0.5)
    assert build(0.1, 0.5).name != build(0.1, 0.5, branch="real").name
    assert build(0.1, 0.5).edges.upper < build(0.1, 0.5).edges.stability


def test_near_the_edge_two_krylov_spaces_cost_more_than_the_dense_hessian(normal):
    """A spectrum spread up to the singularity at the edge: each space nearly fills, below it a few products suffice."""
    d, beta = 24, 0.9
    rotation = torch.linalg.qr(normal(0, d, d))[0]
    used = {}
    for share in (0.3, 0.9999):
        spectrum = torch.linspace(0.01, 1, d, dtype=torch.float64) * share * heavy_ball_edges(beta).upper
        landscape = Counted(Quadratic(rotation * spectrum @ rotation.mT))
        flow, dense = (HeavyBallPrincipalFlow(landscape, 1.0, beta, krylov=k, branch="real") for k in (d, None))
        state = normal(1, 2 * d)
        velocity = flow.velocity(0.0, state)
        used[share] = landscape.counts["hvp"]
        assert_close(velocity, dense.velocity(0.0, state), rtol=0, atol=1e-5 * float(velocity.abs().max()))
        assert landscape.counts["hvp"] - used[share] == d
    assert used[0.3] < 1.5 * d < used[0.9999] <= 2 * d
