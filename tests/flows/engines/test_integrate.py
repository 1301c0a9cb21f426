"""``integrate``: every method against closed forms, what is kept and shown, restarts, cost and notes."""

import warnings
import weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torchdiffeq import odeint

from flows import Flow, GradientDescent, GradientFlow, PrincipalFlow, UnconvergedWarning, descend, integrate
from flows.engines.adaptive import SEGMENT
from flows.engines.methods import ADAPTIVE, EXPONENTIAL, FIXED
from flows.engines.methods import DETERMINISTIC as METHODS
from landscapes import Counted, Landscape, Quadratic, Rosenbrock
from tests.examples import few
from tests.tensors import f64

HESSIAN = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
MINIMUM = torch.tensor([0.3, -0.4], dtype=torch.float64)
QUADRATIC = Quadratic(HESSIAN, MINIMUM)
TIMES = torch.tensor([0.5, 0.6, 0.95, 1.5, 2.5], dtype=torch.float64)  # start off zero, uneven
ORDERS = {
    "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4,
    "explicit_adams": 4, "implicit_adams": 4, "fixed_adams": 4,
}  # fmt: skip


def exact(theta0, times):
    """Gradient flow on the quadratic: m + exp(−Ht)(θ0 − m), shape (T, ..., d)."""
    start = theta0.to("cpu", torch.float64) - MINIMUM
    return torch.stack([MINIMUM + start @ torch.linalg.matrix_exp(-HESSIAN * t) for t in times - times[0]])


class Written(Flow):
    """A user's flow from a function of (t, state)."""

    def __init__(self, velocity):
        self._velocity = velocity

    def velocity(self, t, state):
        return self._velocity(t, state)


@dataclass
class Watching:
    """An observer that notes what it is shown."""

    every: int = 1
    name: str = "watching"

    def __post_init__(self):
        self.seen = []

    def __call__(self, k, t, theta):
        self.seen.append((k, t, theta.clone()))
        return {self.name: 2 * theta}


def test_every_method_of_torchdiffeq_is_there():
    from torchdiffeq._impl.odeint import SOLVERS

    assert set(METHODS) - {EXPONENTIAL} == set(SOLVERS)
    assert set(ORDERS) == set(FIXED)


@pytest.mark.parametrize("method", [*ADAPTIVE, "scipy_solver"])
def test_adaptive_methods_reach_their_tolerance(method, normal):
    theta0 = normal(0, 2)
    errors = []
    for rtol in (1e-3, 1e-5):
        run = integrate(GradientFlow(QUADRATIC), theta0, TIMES, method=method, rtol=rtol, atol=rtol / 100)
        assert run.status == "finished"
        errors.append(float((run.theta - exact(theta0, TIMES)).abs().max()))
        slack = 60 if method == "fehlberg2" else 3  # its error estimate is 1/512 of its second-order term
        assert errors[-1] < slack * rtol * float(theta0.abs().max())
    assert errors[1] < errors[0] / 8


@pytest.mark.parametrize("method", FIXED)
def test_fixed_step_methods_have_their_order(method, normal):
    theta0, times = normal(0, 2), torch.tensor([0.0, 0.15, 0.3], dtype=torch.float64)
    tolerances = {"rtol": 1e-13, "atol": 1e-13} if "adams" in method else {}
    errors = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Functional iteration", UserWarning)  # torchdiffeq's corrector stops early
        for dt in (0.3 / 8, 0.3 / 16):
            run = integrate(GradientFlow(QUADRATIC), theta0, times, method=method, dt=dt, **tolerances)
            errors.append((run.theta - exact(theta0, times))[1:].abs().max())
    order = float(torch.log2(errors[0] / errors[1]))
    if "adams" in method:
        assert order > ORDERS[method] - 0.4  # it starts on rk4
    else:
        assert order == pytest.approx(ORDERS[method], abs=0.25)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("method", [None, "rk4"])
def test_batches_dtypes_and_devices(method, batch, dtype, device, normal):
    theta0 = normal(1, *batch, 2, dtype=dtype).to(device)
    run = integrate(GradientFlow(QUADRATIC), theta0, TIMES, method=method, dt=0.05 if method else None)
    assert run.status == "finished"
    assert run.theta.shape == (len(TIMES), *batch, 2)
    assert (run.theta.dtype, run.theta.device) == (dtype, theta0.device)
    assert run.alive.shape == batch
    assert bool(run.alive.all())
    assert torch.equal(run.theta[0], theta0)
    assert torch.equal(run.times, TIMES)  # to the last bit
    error = (run.theta.cpu() - exact(theta0, TIMES)).abs().max()
    assert error < (1e-6 if dtype == torch.float64 else 1e-3)
    assert dtype != torch.float64 or method or error > 1e-12  # 1e-7 was asked for, not everything


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_single_runs(method, normal):
    theta0, setting = normal(2, 2, 2, 2), {"rtol": 1e-4, "atol": 1e-6}
    theta0[0, 0] *= 100  # the tolerance is held for each member by itself
    if method in FIXED:
        setting = {"dt": 0.05} | ({"rtol": 1e-12, "atol": 1e-12} if "adams" in method else {})
    flow, times = GradientFlow(QUADRATIC), TIMES[:4]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Functional iteration", UserWarning)
        together = integrate(flow, theta0, times, method=method, **setting).theta
        for i, j in ((0, 0), (1, 1)):
            alone = integrate(flow, theta0[i, j], times, method=method, **setting).theta
            rounding = method in FIXED and method not in ("implicit_adams", "fixed_adams")  # their iteration is shared
            slack = 1e-13 if rounding else 1e-2 if method == "fehlberg2" else 3e-4
            assert float((together[:, i, j] - alone).abs().max() / theta0[i, j].abs().max()) < slack


@pytest.mark.parametrize("method", ADAPTIVE)
def test_members_at_rest_do_not_loosen_the_tolerance_of_another(method):
    theta0 = MINIMUM.expand(400, 2).clone()
    theta0[7] += 1
    together = integrate(GradientFlow(QUADRATIC), theta0, TIMES, method=method, rtol=1e-4, atol=1e-6)
    alone = integrate(GradientFlow(QUADRATIC), theta0[7], TIMES, method=method, rtol=1e-4, atol=1e-6)
    assert_close(together.theta[:, 7], alone.theta, rtol=0, atol=1e-10)  # the same steps
    assert together.cost["evaluations"] == alone.cost["evaluations"]


@pytest.mark.parametrize("h", [0.2, 0.7, 1.2])
def test_the_complex_principal_flow_is_gradient_descent_at_the_steps(h, normal):
    quadratic = Quadratic(torch.diag(torch.tensor([2.0, 0.02, -0.5], dtype=torch.float64)))
    theta0, steps = normal(3, 2, 3), 4
    times = torch.arange(2 * steps + 1, dtype=torch.float64) * h / 2
    run = integrate(PrincipalFlow(quadratic, h), theta0, times, rtol=1e-8, atol=1e-10)
    descent = descend(GradientDescent(quadratic, h), theta0, steps)
    assert (run.status, run.theta.dtype) == ("finished", torch.complex128)
    size = descent.theta.abs().max()
    assert_close(run.theta[::2].real, descent.theta, rtol=0, atol=1e-6 * float(size))
    assert float(run.theta[::2].imag.abs().max() / size) < 1e-6
    assert (float(run.theta[1].imag.abs().max()) > 1e-2) == (2 * h > 1)  # complex between the steps, once hλ > 1


@pytest.mark.parametrize("method", ["euler", "rk4", "explicit_adams", "implicit_adams", "dopri8", "adaptive_heun"])
def test_complex_states_with_other_methods(method):
    theta0 = torch.tensor([1 + 2j, -1j], dtype=torch.complex128)
    rotation = Written(lambda t, state: 1j * state)
    setting = {"dt": 0.01} if method in FIXED else {"rtol": 1e-6, "atol": 1e-8}
    run = integrate(rotation, theta0, [0, 0.3, 0.6], method=method, **setting)
    expected = theta0 * torch.exp(1j * run.times)[:, None]
    assert float((run.theta - expected).abs().max()) < (2e-2 if method == "euler" else 1e-4)


@pytest.mark.parametrize("method", [*ADAPTIVE, "rk4"])
def test_a_start_at_rest_stays(method):
    for flow in (PrincipalFlow(QUADRATIC, 0.1), GradientFlow(QUADRATIC)):
        run = integrate(flow, MINIMUM, [0.0, 0.5, 100.0], method=method, dt=0.5 if method == "rk4" else None)
        assert run.status == "finished"
        assert_close(run.theta.real, MINIMUM.expand(3, 2), rtol=0, atol=1e-14)


@few(10)
@given(seed=st.integers(0, 2**31), start=st.floats(-5, 5), gaps=st.lists(st.floats(1e-3, 2), min_size=1, max_size=6))
def test_output_times_are_returned_exactly_and_do_not_matter(normal, seed, start, gaps):
    times = start + torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0)
    theta0 = normal(seed, 2)
    run = integrate(GradientFlow(QUADRATIC), theta0, times)
    assert torch.equal(run.times, times)
    assert_close(run.theta, exact(theta0, times), rtol=1e-5, atol=1e-5)


def test_the_velocity_is_told_the_time():
    flow = Written(lambda t, state: torch.cos(torch.as_tensor(t)) * torch.ones_like(state))
    for setting in ({}, {"method": "dopri8"}, {"method": "rk4", "dt": 0.01}, {"method": "scipy_solver"}):
        run = integrate(flow, torch.zeros(1, dtype=torch.float64), [1.0, 2.0, 4.0], **setting)
        assert_close(run.theta[:, 0], run.times.sin() - run.times[0].sin(), rtol=0, atol=1e-6)


def test_fixed_steps_start_at_the_output_times_to_the_last_bit():
    told, times = [], [0.0, 0.1 + 1e-13, 0.2, 0.3]

    def velocity(t, state):
        told.append(float(t))
        return -state

    run = integrate(Written(velocity), torch.ones(1, dtype=torch.float64), times, method="euler", dt=0.1)
    assert told == times[:-1]
    assert run.cost == {"evaluations": 3}  # a flow without a landscape: oracle calls are not known


@pytest.mark.parametrize("setting", [{}, {"method": "dopri8"}, {"method": "rk4", "dt": 0.05}], ids=str)
def test_what_is_kept_and_what_observers_see(setting, normal):
    theta0, times = normal(4, 3, 2), torch.linspace(0, 2, 21, dtype=torch.float64)
    whole = integrate(GradientFlow(QUADRATIC), theta0, times, **setting)
    watching, rare = Watching(), Watching(every=4, name="rare")
    thin = integrate(GradientFlow(QUADRATIC), theta0, times, every=3, observers=[watching, rare], **setting)
    places = [*range(0, 20, 3), 20]  # the last state is always kept
    assert torch.equal(thin.times, times[places])
    assert torch.equal(thin.theta, whole.theta[places])
    assert [k for k, _, _ in watching.seen] == list(range(21))
    assert [k for k, _, _ in rare.seen] == [0, 4, 8, 12, 16, 20]
    for k, t, theta in watching.seen + rare.seen:
        assert t == float(times[k])
        assert torch.equal(theta, whole.theta[k])
    last = integrate(GradientFlow(QUADRATIC), theta0, times, every=3, keep="last", observers=[Watching(4)], **setting)
    assert last.times.tolist() == [2.0]
    assert torch.equal(last.theta, whole.theta[-1:])
    seen_at, values = last.observations["watching"]
    assert torch.equal(seen_at, times[::4])
    assert torch.equal(values, 2 * whole.theta[::4])


@pytest.mark.parametrize("setting", [{"rtol": 1e-3, "atol": 1e-5}, {"method": "euler", "dt": 0.1}], ids=str)
def test_keeping_the_last_state_holds_few_states_at_once(setting):
    living, most = weakref.WeakSet(), 0

    class Count:
        name, every = "count", 1

        def __call__(self, k, t, theta):
            nonlocal most
            living.add(theta)
            most = max(most, len(living))
            return {}

    times = torch.linspace(0, 20, 201, dtype=torch.float64)
    run = integrate(
        GradientFlow(QUADRATIC), torch.ones(2, dtype=torch.float64), times, keep="last", observers=[Count()], **setting
    )
    assert run.theta.shape == (1, 2)
    assert most <= SEGMENT + 3


@pytest.mark.parametrize("method", ADAPTIVE)
def test_restarts_cost_little_and_change_nothing(method):
    frequency = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    flow = Written(lambda t, state: state @ frequency)
    theta0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    times = torch.linspace(0, 40, 5 * SEGMENT + 4, dtype=torch.float64)
    rtol = {"dopri5": 1e-6, "dopri8": 1e-6, "bosh3": 1e-4, "fehlberg2": 1e-5, "adaptive_heun": 1e-2}[method]
    tolerance, calls = {"rtol": rtol, "atol": rtol / 100}, 0

    def velocity(t, state):
        nonlocal calls
        calls += 1
        return flow.velocity(t, state)

    run = integrate(flow, theta0, times, method=method, **tolerance)
    options = {"step_t": times[1:]} if method == "dopri8" else {}
    once = odeint(velocity, theta0, times, method=method, options=options, **tolerance)
    assert run.cost["evaluations"] <= 1.05 * calls
    assert_close(run.theta, once, rtol=0, atol=200 * rtol)


class HeavyBallFlow(Flow):
    """θ̈ = −μθ̇ − ∇f(θ): state (θ, θ̇)."""

    def __init__(self, landscape, friction):
        self.landscape, self.friction = landscape, friction

    def start(self, theta0):
        return torch.cat((theta0, torch.zeros_like(theta0)), dim=-1)

    def position(self, state):
        return state[..., : self.landscape.dimension]

    def velocity(self, t, state):
        theta, speed = state.chunk(2, dim=-1)
        return torch.cat((speed, -self.friction * speed - self.landscape.grad(theta)), dim=-1)


@pytest.mark.parametrize("setting", [{}, {"method": "rk4", "dt": 0.01}], ids=str)
def test_a_flow_with_more_state_than_theta(setting, normal):
    theta0, watching = normal(5, 3, 2), Watching()
    run = integrate(HeavyBallFlow(Quadratic(HESSIAN), 0.4), theta0, TIMES, observers=[watching], **setting)
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    system = torch.cat((torch.cat((zero, eye), 1), torch.cat((-HESSIAN, -0.4 * eye), 1)))
    expected = torch.stack([theta0 @ torch.linalg.matrix_exp(system * (t - TIMES[0]))[:2, :2].mT for t in TIMES])
    assert run.theta.shape == (5, 3, 2)
    assert_close(run.theta, expected, rtol=0, atol=1e-6)
    assert watching.seen[-1][2].shape == (3, 2)


class Seen(Landscape):
    """A quadratic that counts the gradients it is asked for, one a member."""

    dimension = 2

    def __init__(self):
        self.grads = 0

    def loss(self, theta):
        return QUADRATIC.loss(theta)

    def grad(self, theta):
        self.grads += theta[..., 0].numel()
        return QUADRATIC.grad(theta)


@pytest.mark.parametrize("method", [m for m in METHODS if m != EXPONENTIAL])  # which takes products: its own tests
def test_cost_is_what_was_computed(method, normal):
    landscape, outer = Seen(), Counted(QUADRATIC)
    setting = {"dt": 0.05} if method in FIXED else {"rtol": 1e-3, "atol": 1e-5}
    theta0 = normal(6, 3, 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Functional iteration", UserWarning)
        cost = integrate(GradientFlow(landscape), theta0, TIMES, method=method, **setting).cost
        assert integrate(GradientFlow(outer), theta0, TIMES, method=method, **setting).cost == cost
    assert cost["grad"] == landscape.grads == outer.counts["grad"] == 3 * cost["evaluations"] > 0
    assert cost["loss"] == cost["hvp"] == cost["third"] == 0
    if method == "euler":
        assert cost["evaluations"] == 40


def test_unconverged_evaluations_become_notes_inside_a_run():
    flow, theta0 = PrincipalFlow(Quadratic(HESSIAN), 0.2, krylov=1), torch.ones(2, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnconvergedWarning)
        run = integrate(flow, theta0, [0.0, 0.2, 0.4], method="rk4", dt=0.2)
    (note,) = run.notes
    assert "krylov=1" in note
    assert note.endswith("(8 evaluations)")
    with pytest.warns(UnconvergedWarning, match="krylov=1"):
        flow.velocity(0.0, theta0)
    enough = integrate(PrincipalFlow(Quadratic(HESSIAN), 0.2, krylov=2), theta0, [0.0, 0.2], method="rk4", dt=0.2)
    assert enough.notes == ()


def test_the_start_is_detached_and_nothing_is_changed(normal):
    theta0 = normal(7, 2).requires_grad_()
    before = theta0.detach().clone()
    run = integrate(GradientFlow(Rosenbrock()), theta0, [0.0, 0.01], progress=False)
    assert not run.theta.requires_grad
    assert torch.equal(theta0.detach(), before)
    assert theta0.grad is None


@pytest.mark.parametrize("setting", [{}, {"method": "rk4", "dt": 0.1}], ids=str)
def test_progress_goes_to_stderr_when_asked(setting, capsys):
    for progress in (False, True):
        integrate(GradientFlow(QUADRATIC), torch.ones(2), [0.0, 0.5, 1.0], progress=progress, **setting)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("GradientFlow" in err) == progress


def test_a_flow_may_differentiate_on_its_own_and_leaves_no_graph():
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def velocity(t, state):
        leaf = state.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((scale * leaf.square()).sum() / 2, leaf, create_graph=True)
        return -gradient

    run = integrate(Written(velocity), torch.ones(2, dtype=torch.float64), [0.0, 0.5])
    assert_close(run.theta[-1], torch.full((2,), -1.0, dtype=torch.float64).exp(), rtol=1e-6, atol=0)
    assert not run.theta.requires_grad


@pytest.mark.parametrize("method", ["dopri8", "bosh3"])
def test_a_step_that_ends_on_an_output_time_by_itself_does_not_lose_the_later_ones(method):
    """torchdiffeq lands on no later time after that, and the coarse dense output of these methods was returned."""
    flow = GradientFlow(Quadratic(torch.diag(f64(1.0, 0.3))))
    times = [0.0, 0.5, 0.75, 1.1, 1.3, 2.0]
    tolerance = {"dopri8": 1e-12, "bosh3": 1e-9}[method]
    first = {"dopri8": 0.5, "bosh3": 0.5 / 256}[method]  # accepted as it is, to the bit
    run = integrate(flow, f64(1.0, 1.0), times, method=method, first_step=first, rtol=tolerance, atol=tolerance)
    exact = torch.exp(-f64(*times)[:, None] * f64(1.0, 0.3))
    torch.testing.assert_close(run.theta, exact, rtol=0, atol=50 * tolerance)
