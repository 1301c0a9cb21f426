"""A run in two parts equals the whole: bit for bit for descents, fixed steps and noise, through save and load.

The oracle is the whole run itself. A state that lacks anything (the momentum buffer, the generator, the position on the
noise path, the order of an epoch's examples, the velocities of an Adams method) gives other bits after the cut.
"""

from dataclasses import dataclass, replace

import pytest
import torch

from flows import (
    BrownianPath,
    Flow,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    ModifiedFlow,
    MomentumModifiedEquation,
    OptimizerDescent,
    State,
    StateObserver,
    StochasticGradientDescent,
    StochasticHeavyBall,
    StochasticModifiedEquation,
    TruncatedPrincipalFlow,
    descend,
    integrate,
)
from flows.descents.controlled import ControlledGradientDescent
from flows.descents.svrg import SVRG
from flows.engines.methods import ADAPTIVE, EXPONENTIAL, FIXED
from landscapes import Quadratic, Rosenbrock
from landscapes.toys.finite_sums import LinearRegression
from landscapes.toys.registry import LANDSCAPES
from tests.tensors import draw

STEPS, CUT = 20, 7
DTYPES = (torch.float64, torch.float32)


def regression(dtype):
    """Twelve examples in three dimensions, noise that depends on θ."""
    return LinearRegression(draw(1, 12, 3, dtype=dtype), draw(2, 12, dtype=dtype))


def through_disk(state, folder):
    """The state as another process would read it."""
    return State.load(state.save(folder))


def same(left, right):
    """Whether two nested states are equal bit for bit."""
    left, right = (
        x.__dict__ if hasattr(x, "__dict__") and not isinstance(x, torch.Tensor) else x for x in (left, right)
    )
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def check_parts(whole, first, second):
    """Kept states, times and end of the whole equal those of its two parts."""
    assert torch.equal(whole.theta[: CUT + 1], first.theta)
    assert torch.equal(whole.theta[CUT:], second.theta)
    assert torch.equal(whole.times, torch.cat([first.times, second.times[1:]]))
    assert same(whole.end, second.end)
    moved = (whole.theta[CUT + 1 :] - whole.theta[CUT]).abs().amax()
    assert moved > 0.01  # a run that stands still shows nothing


ADAM, NADAM = (lambda p: torch.optim.Adam(p, lr=0.05)), (lambda p: torch.optim.NAdam(p, lr=0.05))
DESCENTS = {
    "gradient": lambda f: GradientDescent(f, 0.1),
    "heavy ball": lambda f: HeavyBall(f, 0.1, 0.9),
    "sgd": lambda f: StochasticGradientDescent(f, 0.1, 5),
    "sgd epoch": lambda f: StochasticGradientDescent(f, 0.1, 5, "epoch"),
    "sgd heavy ball": lambda f: StochasticHeavyBall(f, 0.05, 0.9, 5, "subset"),
    "controlled": lambda f: ControlledGradientDescent(f, 0.1, 5),
    "svrg": lambda f: SVRG(f, 0.1, 3, 5),
    "adam": lambda f: OptimizerDescent(f, ADAM),
    "nadam": lambda f: OptimizerDescent(f, NADAM),
    "lbfgs": lambda f: OptimizerDescent(f, lambda p: torch.optim.LBFGS(p, lr=0.02, max_iter=1)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DESCENTS)
def test_descents(name, dtype, tmp_path):
    descent = DESCENTS[name](regression(dtype))
    theta0 = draw(3, 2, 3, dtype=dtype)
    whole = descend(descent, theta0, STEPS, seed=4)
    first = descend(descent, theta0, CUT, seed=4)
    second = descend(descent, through_disk(first.end, tmp_path), STEPS - CUT)
    check_parts(whole, first, second)


def adaptive(flow, theta0, method, **options):
    times = torch.linspace(0, 2, STEPS + 1, dtype=torch.float64)
    settings = {"method": method, "rtol": 1e-5, "atol": 1e-7, **options}
    whole = integrate(flow, theta0, times, restarts=[float(times[CUT])], **settings)
    return whole, integrate(flow, theta0, times[: CUT + 1], **settings), times[CUT:], settings


@pytest.mark.parametrize("method", [*ADAPTIVE, EXPONENTIAL, "scipy_solver"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adaptive_methods_that_restart_at_the_cut(method, dtype, tmp_path):
    flow, theta0 = GradientFlow(Rosenbrock(b=2.0)), draw(5, 2, 2, dtype=dtype)
    whole, first, times, settings = adaptive(flow, theta0, method)
    second = integrate(flow, through_disk(first.end, tmp_path), times, **settings)
    check_parts(whole, first, second)


def test_an_adaptive_run_without_the_restart_agrees_to_tolerance_only():
    flow, theta0 = GradientFlow(Rosenbrock(b=2.0)), draw(5, 2)
    whole, _, _, settings = adaptive(flow, theta0, "dopri5")
    through = integrate(flow, theta0, whole.times, **settings)
    assert not torch.equal(through.theta, whole.theta)
    torch.testing.assert_close(through.theta, whole.theta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps(method, dtype, tmp_path):
    # dt = 0.1 is not a binary fraction: the grid of the second part must be that of the first
    flow, theta0 = ModifiedFlow(Rosenbrock(b=2.0), 0.01, 2), 0.5 * draw(6, 3, 2, dtype=dtype)
    times = [0.3 + 0.1 * k for k in range(STEPS + 1)]
    settings = {"method": method, "dt": 0.1 / 3}
    whole = integrate(flow, theta0, times, **settings)
    first = integrate(flow, theta0, times[: CUT + 1], **settings)
    second = integrate(flow, through_disk(first.end, tmp_path), times[CUT:], **settings)
    check_parts(whole, first, second)


def test_an_adams_method_restarted_without_its_velocities_differs():
    flow, theta0 = GradientFlow(Rosenbrock(b=2.0)), draw(5, 2)
    times, settings = [0.1 * k for k in range(STEPS + 1)], {"method": "explicit_adams", "dt": 0.05}
    whole = integrate(flow, theta0, times, **settings)
    first = integrate(flow, theta0, times[: CUT + 1], **settings)
    second = integrate(flow, replace(first.end, history=None), times[CUT:], **settings)
    assert not torch.equal(second.theta[-1], whole.theta[-1])
    again = integrate(flow, theta0, times, restarts=[times[CUT]], **settings)
    assert torch.equal(second.theta, again.theta[CUT:])


EQUATIONS = {
    "order 1": lambda f: StochasticModifiedEquation(f, 0.1, 3),
    "order 2": lambda f: StochasticModifiedEquation(f, 0.1, 3, order=2),
    "epoch": lambda f: StochasticModifiedEquation(f, 0.1, 3, sampling="epoch"),
    "momentum": lambda f: MomentumModifiedEquation(f, 0.1, 1.0, 3),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", ["seed", "path"])
@pytest.mark.parametrize("name", EQUATIONS)
def test_stochastic_flows(name, given, dtype, tmp_path):
    flow = EQUATIONS[name](regression(dtype))
    theta0 = draw(7, 2, 3, dtype=dtype)
    times = [0.1 * k for k in range(STEPS + 1)]
    path = BrownianPath(8, 0.0, 2.4, 0.0125, (2, 12), dtype)
    settings = {"dt": 0.05, "path": path} if given == "path" else {"dt": 0.05, "seed": 9}
    whole = integrate(flow, theta0, times, **settings)
    first = integrate(flow, theta0, times[: CUT + 1], **settings)
    later = settings if given == "path" else {"dt": 0.05}  # the state knows the seed
    second = integrate(flow, through_disk(first.end, tmp_path), times[CUT:], **later)
    check_parts(whole, first, second)
    if given == "seed":
        assert torch.equal(integrate(flow, first.end, times[CUT:], **settings).theta, second.theta)
        other = integrate(flow, first.end, times[CUT:], dt=0.05, seed=10)
        assert not torch.equal(other.theta[1], second.theta[1])


def test_a_workspace_is_part_of_the_state(tmp_path):
    flow, theta0 = TruncatedPrincipalFlow(LANDSCAPES["himmelblau"](), 0.001, 1), draw(5, 2, 2)
    times, settings = [0.01 * k for k in range(STEPS + 1)], {"method": "heun2", "dt": 0.01}
    whole = integrate(flow, theta0, times, **settings)
    first = integrate(flow, theta0, times[: CUT + 1], **settings)
    assert first.end.workspace.shape == (2, 2, 2)
    check_parts(whole, first, integrate(flow, through_disk(first.end, tmp_path), times[CUT:], **settings))


def test_a_workspace_saves_products():
    """The same evaluations take fewer HVPs from the eigenvectors of the one before than from a random block."""

    @dataclass(frozen=True)
    class Cold(Flow):
        flow: TruncatedPrincipalFlow

        def velocity(self, t, state):
            return self.flow.velocity(t, state)

    curved = Quadratic(torch.diag(torch.logspace(-2, 0, 40, dtype=torch.float64)))
    warm = TruncatedPrincipalFlow(curved, 0.1, 2)
    costs = [integrate(flow, draw(5, 40), [0.0, 0.5], method="rk4", dt=0.1).cost for flow in (warm, Cold(warm))]
    assert costs[0]["grad"] == costs[1]["grad"]
    assert costs[0]["hvp"] < 0.7 * costs[1]["hvp"]


def test_members_lost_before_the_cut_stay_lost():
    theta0 = torch.tensor([[1.0, 1.0], [40.0, 40.0]], dtype=torch.float64)
    descent = GradientDescent(Rosenbrock(), 2e-4)
    whole, first = (descend(descent, theta0, n) for n in (12, 9))
    assert first.alive.tolist() == [True, False]
    second = descend(descent, first.end, 3)
    assert torch.equal(whole.theta[9:], second.theta)
    assert second.alive.tolist() == [True, False]
    flow, times = GradientFlow(Rosenbrock()), [0.01 * k for k in range(12)]
    whole, first = (integrate(flow, theta0, times[:n], method="euler", dt=0.01) for n in (12, 9))
    assert first.alive.tolist() == [True, False]
    second = integrate(flow, first.end, times[8:], method="euler", dt=0.01)
    assert torch.equal(whole.theta[8:], second.theta)


def test_observers_of_states_see_them_and_k_goes_on():
    class Buffers(StateObserver):
        name, every = "buffers", 3

        def __call__(self, k, t, theta, state):
            assert torch.equal(state.theta, theta)
            assert (state.k, state.t) == (k, t)
            return {"buffer": state.values[1], "k": torch.tensor(k)}

    descent, theta0 = HeavyBall(Rosenbrock(), 1e-3, 0.9), draw(5, 2)
    first = descend(descent, theta0, CUT, observers=[Buffers()])
    second = descend(descent, first.end, STEPS - CUT, observers=[Buffers()])
    assert first.observations["k"][1].tolist() == [0, 3, 6]
    assert second.observations["k"][1].tolist() == [9, 12, 15, 18]
    assert second.observations["buffer"][1].shape == (4, 2)


REFUSED = {
    "another time": (
        lambda s: integrate(GradientFlow(Rosenbrock()), s, [1.0, 2.0]),
        "begin at the state's time t = 0.5",
    ),
    "restart": (
        lambda s: integrate(GradientFlow(Rosenbrock()), s, [0.5, 1.0, 2.0], restarts=[1.5]),
        "restarts must be output times, 1.5",
    ),
    "all lost": (
        lambda s: integrate(GradientFlow(Rosenbrock()), State(s.values, 0.5, alive=torch.tensor(False)), [0.5, 1.0]),
        "no member",
    ),
    "alive of another shape": (
        lambda s: descend(GradientDescent(Rosenbrock(), 0.1), State(s.values, alive=torch.tensor([True])), 1),
        "alive of a State must have",
    ),
    "not finite": (
        lambda s: integrate(GradientFlow(Rosenbrock()), State(s.values / 0, 0.5), [0.5, 1.0]),
        "values of the state must be finite",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_states(name):
    call, message = REFUSED[name]
    state = integrate(GradientFlow(Rosenbrock()), draw(5, 2), [0.0, 0.5]).end
    with pytest.raises(ValueError, match=message):
        call(state)


def test_the_noise_of_a_state_needs_a_step_that_divides_its_past():
    flow = StochasticModifiedEquation(regression(torch.float64), 0.1, 3)
    end = integrate(flow, draw(3, 3), [0.0, 0.1], dt=0.1, seed=1).end
    assert integrate(flow, end, [0.1, 0.2], dt=0.05).status == "finished"  # the same path, refined
    with pytest.raises(ValueError, match="dt must divide the time"):
        integrate(flow, end, [0.1, 0.25], dt=0.15)
    assert integrate(flow, end, [0.1, 0.25], dt=0.15, seed=2).end.origin == 0.1


def test_a_refined_continuation_follows_the_same_path():
    flow = StochasticModifiedEquation(regression(torch.float64), 0.1, 3)
    theta0, times = draw(3, 3), [0.0, 0.1, 0.2]
    fine = integrate(flow, theta0, times, dt=0.05, seed=1)
    start = integrate(flow, theta0, times[:2], dt=0.05, seed=1).end
    same_path = integrate(flow, start, times[1:], dt=0.025)
    whole = integrate(flow, theta0, times, dt=0.025, seed=1)
    # both halvings of one path: the difference is the integration error, not other noise
    gap = (same_path.theta[-1] - whole.theta[-1]).norm()
    assert gap < 0.1 * (fine.theta[-1] - fine.theta[-2]).norm()
