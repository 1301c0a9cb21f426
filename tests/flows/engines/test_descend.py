"""``descend`` with every descent but SGD: torch.optim to the last bit, closed forms, failures, arguments."""

import inspect
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import Descent, GradientDescent, HeavyBall, OptimizerDescent, descend
from landscapes import Counted, Landscape, Quadratic, Rosenbrock
from tests.examples import few

HESSIAN = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
MINIMUM = torch.tensor([0.3, -0.4], dtype=torch.float64)
ROSENBROCK = Rosenbrock()
OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
}
UNUSABLE = {"SparseAdam": "takes sparse gradients only", "Muon": "takes matrices only"}
USABLE = sorted(set(OPTIMIZERS) - set(UNUSABLE))


def by_hand(landscape, theta0, factory, steps):
    """torch.optim in a plain loop, for one member: states (steps + 1, d)."""
    parameter = torch.nn.Parameter(theta0.clone())
    optimizer, states = factory([parameter]), [theta0.clone()]

    def closure():
        parameter.grad = landscape.grad(parameter.detach()).clone()
        return float(landscape.loss(parameter.detach()).sum())

    for _ in range(steps):
        optimizer.step(closure)
        states.append(parameter.detach().clone())
    return torch.stack(states)


@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
@few(8)
@given(seed=st.integers(0, 2**31), h=st.floats(1e-6, 2e-4))
def test_gradient_descent_and_heavy_ball_are_torch_optim_to_the_last_bit(momentum, dtype, device, normal, seed, h):
    theta0 = normal(seed, 2, 3, 2, dtype=dtype).to(device) / 3
    descent = GradientDescent(ROSENBROCK, h) if momentum is None else HeavyBall(ROSENBROCK, h, momentum)
    run = descend(descent, theta0, 7)
    assert (run.theta.shape, run.theta.dtype, run.theta.device) == ((8, 2, 3, 2), dtype, theta0.device)
    expected = by_hand(ROSENBROCK, theta0, lambda p: torch.optim.SGD(p, lr=h, momentum=momentum or 0.0), 7)
    assert torch.equal(run.theta, expected)
    assert run.times.tolist() == [k * h for k in range(8)]
    assert torch.equal(descend(descent, theta0[1, 2], 7).theta, run.theta[:, 1, 2])
    assert run.cost == {"steps": 7, "loss": 0, "grad": 42, "hvp": 0, "third": 0, "higher": 0}


@pytest.mark.parametrize("name", USABLE)
def test_any_optimizer_equals_torch_optim_to_the_last_bit(name, dtype, device, normal):
    def factory(parameters):
        return OPTIMIZERS[name](parameters, lr=1e-3)

    theta0, steps = normal(0, 2, 2, 2, dtype=dtype).to(device) / 2, 3 if name == "LBFGS" else 12
    descent = OptimizerDescent(ROSENBROCK, factory)
    run = descend(descent, theta0, steps)
    assert (run.status, run.theta.dtype) == ("finished", dtype)
    for i, j in ((0, 0), (1, 1)):  # every member has a memory of its own
        assert torch.equal(run.theta[:, i, j], by_hand(ROSENBROCK, theta0[i, j], factory, steps))
    assert torch.equal(descend(descent, theta0[1, 0], steps).theta, run.theta[:, 1, 0])
    assert_close(run.times, 1e-3 * torch.arange(steps + 1, dtype=torch.float64))
    assert descent.h == 1e-3


OPTIONS = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.1),
    "dampened": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, dampening=0.5, maximize=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, betas=(0.5, 0.6)),
    "centred": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True, momentum=0.5),
    "wolfe": lambda p: torch.optim.LBFGS(p, lr=0.5, line_search_fn="strong_wolfe", max_iter=3, history_size=2),
}


@pytest.mark.parametrize("factory", OPTIONS.values(), ids=OPTIONS)
def test_optimizers_with_options(factory, normal):
    theta0 = normal(1, 2) / 2
    run = descend(OptimizerDescent(ROSENBROCK, factory), theta0, 9)
    assert torch.equal(run.theta, by_hand(ROSENBROCK, theta0, factory, 9))


def test_unusable_optimizers_are_refused_by_torch_not_by_silence():
    if "Muon" in OPTIMIZERS:  # torch 2.9
        with pytest.raises(ValueError, match="2D"):
            OptimizerDescent(ROSENBROCK, OPTIMIZERS["Muon"])
    with pytest.raises(RuntimeError, match="dense"):
        descend(OptimizerDescent(ROSENBROCK, torch.optim.SparseAdam), torch.ones(2), 1)


def test_a_step_is_a_pure_map(normal):
    generator = torch.Generator()
    for descent in (
        GradientDescent(ROSENBROCK, 1e-3),
        HeavyBall(ROSENBROCK, 1e-3, 0.9),
        OptimizerDescent(ROSENBROCK, lambda p: torch.optim.Adam(p, lr=0.1)),
    ):
        state = descent.start(normal(2, 2))
        for k in range(3):
            state = descent.step(state, k, generator)
        once, twice = descent.step(state, 3, generator), descent.step(state, 3, generator)
        assert torch.equal(descent.position(once), descent.position(twice))
        assert not torch.equal(descent.position(once), descent.position(state))


@given(seed=st.integers(0, 2**31), h=st.floats(0.01, 1.5))
def test_quadratics_in_closed_form(normal, seed, h):
    quadratic, theta0 = Quadratic(HESSIAN, MINIMUM), normal(seed, 3, 2)
    power, expected = torch.eye(2, dtype=torch.float64), []
    for _ in range(9):
        expected.append(MINIMUM + (theta0 - MINIMUM) @ power)
        power = power @ (torch.eye(2, dtype=torch.float64) - h * HESSIAN)
    assert_close(descend(GradientDescent(quadratic, h), theta0, 8).theta, torch.stack(expected))
    values, vectors = torch.linalg.eigh(HESSIAN)
    beta, modes = 0.8, []
    for value in values:  # z = (θ, v), v = −h·buffer: M = [[1 − hλ, β], [−hλ, β]]
        matrix = torch.tensor([[1 - h * value, beta], [-h * value, beta]], dtype=torch.float64)
        modes.append(torch.linalg.matrix_power(matrix, 8)[0, 0])
    last = MINIMUM + (theta0 - MINIMUM) @ vectors @ torch.diag(torch.stack(modes)) @ vectors.mT
    assert_close(descend(HeavyBall(quadratic, h, beta), theta0, 8, keep="last").theta[0], last, rtol=1e-8, atol=1e-8)


@dataclass(frozen=True)
class Decaying(Descent):
    """A user's descent whose rate falls: h/(k + 1); the clock is the sum of the rates."""

    landscape: Landscape
    h: float

    def start(self, theta0):
        return {"theta": theta0, "time": 0.0}

    def step(self, state, k, generator):
        rate = self.h / (k + 1)
        return {"theta": state["theta"] - rate * self.landscape.grad(state["theta"]), "time": state["time"] + rate}

    def position(self, state):
        return state["theta"]

    def elapsed(self, k, state):
        return state["time"]


def test_a_users_descent_with_a_clock_of_its_own():
    run = descend(Decaying(Counted(Quadratic(HESSIAN)), 0.5), torch.ones(2, dtype=torch.float64), 4)
    assert_close(run.times, torch.tensor([0.0, 0.5, 0.75, 0.5 * 11 / 6, 0.5 * 25 / 12], dtype=torch.float64))
    assert run.cost["grad"] == 4


class Watching:
    """An observer that notes what it is shown."""

    name = "watching"

    def __init__(self, every=1, interrupt_at=None):
        self.every, self.interrupt_at, self.seen = every, interrupt_at, []

    def __call__(self, k, t, theta):
        self.seen.append((k, t, theta.clone()))
        if k == self.interrupt_at:
            raise KeyboardInterrupt
        return {"double": 2 * theta}


def test_what_is_kept_and_what_observers_see(normal):
    theta0, descent = normal(3, 3, 2), GradientDescent(ROSENBROCK, 1e-3)
    whole = descend(descent, theta0, 20)
    watching, rare = Watching(), Watching(every=4)
    thin = descend(descent, theta0, 20, every=3, observers=[watching])
    places = [*range(0, 20, 3), 20]
    assert torch.equal(thin.times, whole.times[places])
    assert torch.equal(thin.theta, whole.theta[places])
    last = descend(descent, theta0, 20, every=3, keep="last", observers=[rare], progress=True)
    assert torch.equal(last.times, whole.times[-1:])
    assert torch.equal(last.theta, whole.theta[-1:])
    assert [k for k, _, _ in watching.seen] == list(range(21))
    assert [k for k, _, _ in rare.seen] == list(range(0, 21, 4))
    for k, t, theta in watching.seen + rare.seen:
        assert t == float(whole.times[k])
        assert torch.equal(theta, whole.theta[k])
    assert torch.equal(last.observations["double"][0], whole.times[::4])
    assert torch.equal(last.observations["double"][1], 2 * whole.theta[::4])
    start = theta0.clone().requires_grad_()
    assert not descend(descent, start, 2).theta.requires_grad


@pytest.mark.parametrize("every", [1, 7])
def test_divergence_ends_at_the_last_finite_state(every, dtype, device):
    quadratic, h = Quadratic(torch.diag(torch.tensor([2.0, -0.5], dtype=torch.float64))), 5e3
    theta0 = torch.tensor([1.0, 0.0], dtype=dtype, device=device)
    run = descend(GradientDescent(quadratic, h), theta0, 500, every=every)
    last = math.floor(math.log(torch.finfo(dtype).max / 10**4) / math.log(2 * h - 1)) + 1  # its gradient is finite too
    states, theta = [theta0], theta0
    while True:
        theta = torch.add(theta, quadratic.grad(theta), alpha=-h)
        if not bool(theta.isfinite().all()):
            break
        states.append(theta)
    assert (run.status, bool(run.alive)) == ("diverged", False)
    assert abs(len(states) - 1 - last) <= 1
    k = len(states) - 1
    assert run.times.tolist() == [i * h for i in sorted({*range(0, k, every), k})]
    assert torch.equal(run.theta, torch.stack(states)[sorted({*range(0, k, every), k})])
    for words in (
        f"after step {k + 1}",
        f"at step {k}",
        f"t = {k * h:.6g}",
        "λ = 2",
        f"hλ = {2 * h:.4g}",
        "use a smaller",
    ):
        assert words in run.status.sentence
    assert run.cost["steps"] == k + 1


@pytest.mark.parametrize("momentum", [None, 0.5])
@pytest.mark.parametrize("name", [None, "SGD"])
def test_diverged_members_are_frozen_and_the_others_go_on(name, momentum):
    quadratic, h, steps = Quadratic(torch.eye(2, dtype=torch.float64)), 1e4, 140
    if name:
        descent = OptimizerDescent(quadratic, lambda p: torch.optim.SGD(p, lr=h, momentum=momentum or 0))
    else:
        descent = GradientDescent(quadratic, h) if momentum is None else HeavyBall(quadratic, h, momentum)
    theta0 = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[1e-200, 0.0], [0.0, -0.0]]], dtype=torch.float64)
    watching = Watching()
    run = descend(descent, theta0, steps, observers=[watching])
    assert run.status == "finished"
    assert run.alive.tolist() == [[True, False], [False, True]]
    assert run.status.sentence.count("1 of 4 members") == 2
    assert bool(run.theta.isfinite().all())
    assert torch.equal(torch.stack([theta for _, _, theta in watching.seen]), run.theta)
    assert torch.equal(run.theta[:, 0, 0], torch.zeros(steps + 1, 2, dtype=torch.float64))
    for i, j in ((0, 1), (1, 0)):
        alone = descend(descent, theta0[i, j], steps)
        k = len(alone.times) - 1
        assert alone.status == "diverged"
        assert torch.equal(run.theta[: k + 1, i, j], alone.theta)
        assert torch.equal(run.theta[k:, i, j], alone.theta[-1].expand(steps + 1 - k, 2))
        assert f"after step {k + 1}" in run.status.sentence
    dead = descend(descent, theta0[0, 1].expand(3, 2), steps, keep="last")
    assert (dead.status, dead.alive.tolist(), len(dead.times)) == ("diverged", [False] * 3, 1)
    assert torch.equal(dead.theta[0, 2], descend(descent, theta0[0, 1], steps, keep="last").theta[0])


def test_who_has_left_stays_out_though_the_numbers_come_back():
    class Returning(Decaying):
        def step(self, state, k, generator):
            return {"theta": torch.where(state["theta"] > 0, math.inf if k == 2 else 1.0 + k, -1.0 - k), "time": 0.0}

    run = descend(Returning(QUADRATIC, 0.5), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 5)
    assert run.alive.tolist() == [False, True]
    assert run.theta[:, :, 0].T.tolist() == [[1, 1, 2, 2, 2, 2], [-1, -1, -2, -3, -4, -5]]


def test_huge_complex_states_are_finite():
    theta0 = torch.tensor([1.3e308 + 1.3e308j], dtype=torch.complex128)  # its modulus is not
    flat = Quadratic(torch.zeros(1, 1, dtype=torch.float64))
    assert descend(GradientDescent(flat, 1.0), theta0, 2).status == "finished"


class Interrupting(Landscape):
    """Ctrl-C during the fifth gradient."""

    dimension = 2

    def __init__(self):
        self.grads = 0

    def loss(self, theta):
        return (theta**2).sum(dim=-1) / 2

    def grad(self, theta):
        self.grads += 1
        if self.grads == 5:
            raise KeyboardInterrupt
        return theta


def caught(*arguments, **keywords):
    """``descend``; pytest itself would end at an interrupt that gets out."""
    try:
        return descend(*arguments, **keywords)
    except KeyboardInterrupt:
        return pytest.fail("the interrupt came out of descend")


@pytest.mark.parametrize(("every", "kept"), [(1, [0, 1, 2, 3, 4]), (3, [0, 3, 4])])
def test_an_interrupt_keeps_the_states(every, kept):
    run = caught(GradientDescent(Interrupting(), 0.5), torch.ones(2), 9, every=every)
    assert run.status == "interrupted"
    assert run.times.tolist() == [k / 2 for k in kept]
    assert run.theta[:, 0].tolist() == [0.5**k for k in kept]
    assert run.cost["steps"] == 4
    assert "4 steps" in run.status.sentence


@pytest.mark.parametrize("at", [0, 3, 9])
def test_an_interrupt_in_an_observer(at):
    quadratic = Quadratic(torch.eye(2))
    run = caught(GradientDescent(quadratic, 0.5), torch.ones(2), 9, observers=[Watching(interrupt_at=at)])
    assert run.status == "interrupted" or at == 9
    assert run.theta[:, 0].tolist() == [0.5**k for k in range(at + 1)]
    assert run.cost["steps"] == run.cost["grad"] == at  # the steps that the kept states took


class Once(Landscape):
    """A loss that can be differentiated once only."""

    dimension = 2

    def loss(self, theta):
        return -(theta**4).sum(dim=-1)

    def expand(self, theta):
        raise RuntimeError("no second derivatives")


def test_a_landscape_without_curvature_still_ends_with_a_status():
    run = descend(GradientDescent(Once(), 1.0), torch.ones(2), 50)
    assert run.status == "diverged"
    assert len(run.times) > 1


def test_the_users_own_exceptions_pass_through():
    with pytest.raises(RuntimeError, match="no second derivatives"):
        descend(Decaying(Broken(), 0.1), torch.ones(2), 3)


class Broken(Once):
    def grad(self, theta):
        return self.expand(theta)


QUADRATIC = Quadratic(torch.eye(2))
RATES = [(0.0, ValueError), (-0.1, ValueError), (math.nan, ValueError), (math.inf, ValueError)]
RATES += [("0.1", TypeError), (True, TypeError), (None, TypeError), (torch.tensor(0.1), TypeError), (0.1j, TypeError)]


@pytest.mark.parametrize(("h", "error"), RATES, ids=str)
def test_learning_rates(h, error):
    if h is not None:
        with pytest.raises(error, match="h must be"):
            GradientDescent(QUADRATIC, h)
        with pytest.raises(error, match="h must be"):
            HeavyBall(QUADRATIC, h, 0.5)
    for momentum in (-0.1, 1.0, 1.5, math.nan, "0.5", None, True):
        with pytest.raises((TypeError, ValueError), match="momentum must"):
            HeavyBall(QUADRATIC, 0.1, momentum)


CALLS = {
    "no steps": ({"steps": 0}, "steps must be at least 1"),
    "negative steps": ({"steps": -1}, "steps must be at least 1"),
    "half a step": ({"steps": 2.5}, "steps must be a whole number"),
    "steps bool": ({"steps": True}, "steps"),
    "steps string": ({"steps": "3"}, "steps"),
    "negative seed": ({"seed": -1}, "seed must be at least 0"),
    "seed fraction": ({"seed": 0.5}, "seed"),
    "seed too large": ({"seed": 2**64}, "seed"),
    "every zero": ({"every": 0}, "every must be at least 1"),
    "keep some": ({"keep": "some"}, "keep must be one of 'all', 'last'"),
    "observer every": ({"observers": [Watching(every=0)]}, "every of observer 'watching'"),
    "observers": ({"observers": Watching()}, "observers"),
    "theta0 list": ({"theta0": [1.0, 1.0]}, "theta0"),
    "theta0 integers": ({"theta0": torch.ones(2).long()}, "theta0"),
    "theta0 0-d": ({"theta0": torch.tensor(1.0)}, "theta0"),
    "theta0 empty": ({"theta0": torch.ones(2, 0)}, "theta0"),
    "theta0 NaN": ({"theta0": torch.tensor([1.0, math.nan])}, "theta0"),
    "theta0 dimension": ({"theta0": torch.ones(3)}, r"theta.*\(\.\.\., 2\)"),
    "no descent": ({"descent": QUADRATIC}, "descent must be a Descent"),
    "a class": ({"descent": GradientDescent}, "descent must be a Descent"),
}


@pytest.mark.parametrize(("changes", "match"), CALLS.values(), ids=CALLS)
def test_arguments(changes, match):
    call = {"descent": GradientDescent(QUADRATIC, 0.1), "theta0": torch.ones(2), "steps": 3, **changes}
    with pytest.raises((TypeError, ValueError), match=match):
        descend(call.pop("descent"), call.pop("theta0"), call.pop("steps"), **call)


@pytest.mark.parametrize("build", [GradientDescent, OptimizerDescent])
def test_what_is_no_landscape(build):
    with pytest.raises(TypeError, match="landscape must be a Landscape"):
        build(torch.eye(2), 0.1)


@pytest.mark.parametrize("factory", [3, None, lambda p: 3, lambda p: None, lambda p: torch.optim.SGD], ids=range(5))
def test_what_is_no_factory(factory):
    with pytest.raises(TypeError, match="factory must"):
        OptimizerDescent(QUADRATIC, factory)
