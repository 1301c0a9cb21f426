"""exprb43 as a method of ``integrate``: output times, cost, failures and what they leave, flows that cannot use it."""

import math
import re
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from flows import Flow, GradientFlow, ModifiedFlow, PrincipalFlow, SingularModeError, compare, integrate
from flows.descents.gradient import GradientDescent
from flows.engines import exponential
from flows.flow import Linearisation
from landscapes import Landscape, Quadratic, Rosenbrock, UnsupportedError
from nets import NetworkLandscape
from tests.flows.toys import Cubic
from tests.tensors import f64

TIMES = torch.linspace(0, 1, 11, dtype=torch.float64)
END = 0.77  # where the bad things happen: between the outputs 0.7 and 0.8
EXPRB = {"method": "exprb43"}
START = torch.tensor([0.0, 0.5], dtype=torch.float64)


class Cliff(Flow):
    """θ' = −1, and something else below 1 − END; as an autonomous flow with its own linearisation."""

    def __init__(self, kind):
        self.kind = kind
        self.landscape = Quadratic(torch.eye(1, dtype=torch.float64))

    def velocity(self, t, state):
        bad = state < 1 - END
        if self.kind == "singular mode" and bool(bad.any()):
            raise SingularModeError("hλ = 1, said on purpose", bad.any(dim=-1))
        if self.kind == "interrupt" and bool(bad.any()):
            raise KeyboardInterrupt
        return torch.where(bad, {"nan": math.nan, "inf": math.inf}.get(self.kind, 0.0), -torch.ones_like(state))

    def linearised(self, t, state):
        return Linearisation(self.velocity(t, state), torch.zeros_like)


KINDS = {"nan": "diverged", "inf": "diverged", "singular mode": "singular mode"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_step", [None, 0.01, 5.0])
def test_the_states_before_a_failure_are_kept(kind, first_step):
    run = integrate(Cliff(kind), f64(1.0), TIMES, first_step=first_step, **EXPRB)
    assert run.status == KINDS[kind]
    assert not bool(run.alive)
    assert_close(run.theta[:, 0], 1 - run.times)
    assert_close(run.times, TIMES[: len(run.times)])
    assert f"last state at t = {float(run.times[-1]):.6g}" in run.status.sentence
    if kind == "singular mode":
        assert "hλ = 1" in run.status.sentence
    else:
        assert len(run.times) == 8
        assert f"not finite after t = {END}" in run.status.sentence
        assert "eigenvalue" in run.status.sentence


def test_a_field_that_is_never_finite_leaves_the_start():
    run = integrate(Cliff("nan"), f64(0.1), TIMES, **EXPRB)
    assert (run.status, run.times.tolist(), run.theta.tolist()) == ("diverged", [0.0], [[0.1]])
    assert run.cost["evaluations"] == 1


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_a_blow_up_names_time_step_and_eigenvalue(kind):
    run = integrate(GradientFlow(Cubic()), torch.tensor([1 / END], dtype=kind), TIMES, rtol=1e-4, atol=1e-6, **EXPRB)
    assert run.status in ("step underflow", "diverged")
    assert len(run.times) == 8
    assert_close(run.theta[:, 0].real, 1 / (END - run.times), rtol=1e-2, atol=0)
    assert f"λ = {-2 * float(run.theta[-1, 0].real):.4g}" in run.status.sentence
    assert re.search(r"after t = 0\.7700\d* \(step ", run.status.sentence)
    assert "end the run before" in run.status.sentence


@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_member_does_not_end_the_others(kind):
    theta0 = f64(2.0, 1.0, 3.0, 0.5)[:, None].reshape(2, 2, 1)
    run = integrate(Cliff(kind), theta0, TIMES, **EXPRB)
    assert run.status == "finished"
    assert torch.equal(run.times, TIMES)
    assert run.alive.tolist() == [[True, False], [True, False]]
    assert run.status.sentence.count(KINDS[kind]) >= 2
    assert run.status.sentence.count("1 of 4 members") == 2
    for i in (0, 1):
        assert_close(run.theta[:, i, 0], theta0[i, 0] - TIMES[:, None])
    for i, last in ((0, 0.7), (1, 0.2)):
        frozen = run.theta[:, i, 1, 0]
        end = frozen[-1]
        assert float(end) >= 1 - last - 0.5 * i - 1e-12
        assert_close(frozen, torch.maximum(theta0[i, 1] - TIMES, end))


def test_members_that_fail_together_share_a_sentence():
    run = integrate(Cliff("nan"), f64(1.0, 2.0, 1.0)[:, None], TIMES, **EXPRB)
    assert run.alive.tolist() == [False, True, False]
    assert run.status.sentence.count("2 of 3 members") == 1
    gone = integrate(Cliff("nan"), f64(1.0, 0.6)[:, None], TIMES, **EXPRB)
    assert (gone.status, len(gone.times), gone.alive.tolist()) == ("diverged", 8, [False, False])


def test_an_interrupt_keeps_the_outputs_reached():
    try:
        run = integrate(Cliff("interrupt"), f64(1.0, 5.0)[:, None], TIMES, first_step=0.01, **EXPRB)
    except KeyboardInterrupt:
        pytest.fail("the interrupt came out of integrate")
    assert run.status == "interrupted"
    assert 1 < len(run.times) <= 8
    assert_close(run.theta[:, 1, 0], 5 - run.times)
    assert bool(run.alive.all())


@pytest.mark.parametrize("most", [1, 7])
def test_max_steps_end_the_run(most):
    run = integrate(GradientFlow(Rosenbrock()), START, [0.0, 1e-6, 1.0], max_steps=most, **EXPRB)
    assert run.status == "step underflow"
    assert run.times.tolist() == [0.0, 1e-6]
    assert "max_steps" in run.status.sentence
    assert "raise max_steps" in run.status.sentence
    assert run.cost["evaluations"] <= 3 * most + 5


def test_krylov_sums_that_never_converge_end_the_run(monkeypatch):
    monkeypatch.setattr(exponential, "KRYLOV", 1)
    hessian = torch.diag(torch.arange(20.0, dtype=torch.float64))
    run = integrate(GradientFlow(Quadratic(hessian)), torch.ones(20, dtype=torch.float64), [1.0, 2.0], **EXPRB)
    assert run.status == "step underflow"
    assert "no Krylov sum converged in 1 products" in run.status.sentence
    assert run.cost["hvp"] <= 3  # what was known is not asked for again


def test_growth_past_the_largest_number():
    run = integrate(
        GradientFlow(Quadratic(-torch.eye(2, dtype=torch.float64))), f64(1.0, 1.0), [0.0, 600.0, 1e4], **EXPRB
    )
    assert run.status == "diverged"
    assert run.times.tolist() == [0.0, 600.0]
    assert_close(run.theta[-1].log(), f64(600.0, 600.0), rtol=1e-9, atol=0)
    assert "after t = 709" in run.status.sentence


def test_output_times_are_landed_on_and_cost_a_step_each_at_most():
    theta0, times = f64(-1.0, 0.8), torch.linspace(0, 0.2, 41, dtype=torch.float64)
    once = integrate(GradientFlow(Rosenbrock()), theta0, times[[0, -1]], rtol=1e-6, atol=1e-8, **EXPRB)
    often = integrate(GradientFlow(Rosenbrock()), theta0, times, rtol=1e-6, atol=1e-8, **EXPRB)
    assert torch.equal(often.times, times)
    assert_close(often.theta[-1], once.theta[-1], rtol=0, atol=1e-4)
    assert often.cost["evaluations"] <= once.cost["evaluations"] + 3 * 40
    tight = integrate(GradientFlow(Rosenbrock()), theta0, times, rtol=1e-11, atol=1e-12)
    assert_close(often.theta, tight.theta, rtol=0, atol=1e-4)


def test_a_step_cut_short_at_an_output_does_not_shorten_the_next():
    times = [0.0, 1.0, 1.0 + 1e-9, 3.0]
    run = integrate(GradientFlow(Quadratic(torch.diag(f64(1.0, 1e3)))), f64(1.0, 1.0), times, **EXPRB)
    assert run.cost["evaluations"] <= 10


@dataclass
class Watching:
    """An observer that notes what it is shown."""

    every: int = 2
    name: str = "watching"
    seen: int = 0

    def __call__(self, k, t, theta):
        self.seen += 1
        return {self.name: theta}


def test_what_is_kept_and_seen():
    watching = Watching()
    run = integrate(GradientFlow(Rosenbrock()), START, TIMES / 100, keep="last", observers=[watching], **EXPRB)
    whole = integrate(GradientFlow(Rosenbrock()), START, TIMES / 100, every=4, **EXPRB)
    assert watching.seen == 6
    assert torch.equal(run.observations["watching"][1][2], whole.theta[1])
    assert torch.equal(whole.times, TIMES[[0, 4, 8, 10]] / 100)
    assert torch.equal(run.theta[-1], whole.theta[-1])


@pytest.mark.parametrize("d", [3, 30])
def test_cost_is_what_was_computed(d):
    asked = {"grad": 0, "hvp": 0}

    class Seen(Landscape):
        dimension = d

        def loss(self, theta):
            return (theta**4).sum(-1) / 4 + (theta**2).sum(-1)

        def grad(self, theta):
            asked["grad"] += 1
            return super().grad(theta)

        def expand(self, theta):
            asked["grad"] += 1
            point = super().expand(theta)
            plain = point.hvp

            def hvp(v):
                asked["hvp"] += 1
                return plain(v)

            point.hvp = hvp
            return point

    theta0 = torch.linspace(-1, 1, 2 * d, dtype=torch.float64).reshape(2, d)
    cost = integrate(GradientFlow(Seen()), theta0, [0.0, 0.5, 1.0], **EXPRB).cost
    assert (cost["grad"], cost["hvp"]) == (asked["grad"], asked["hvp"])
    assert cost["grad"] == cost["evaluations"] > 0
    assert cost["loss"] == cost["third"] == 0


def test_the_linearisation_of_gradient_flow(normal):
    valley, theta, v = Rosenbrock(), normal(0, 2), normal(1, 2)
    here = GradientFlow(valley).linearised(0.0, theta)
    assert torch.equal(here.velocity, -valley.grad(theta))
    assert_close(here.product(v), -valley.hessian(theta) @ v)


class Asked(Landscape):
    """A landscape that may not be asked anything."""

    dimension = 2

    def loss(self, theta):
        pytest.fail("asked before the method was refused")


@pytest.mark.parametrize("flow", [PrincipalFlow(Asked(), 0.1), ModifiedFlow(Asked(), 0.1, 2)], ids=lambda f: f.name)
def test_flows_without_a_linearisation_are_refused_before_anything_is_computed(flow):
    watching = Watching()
    with pytest.raises(UnsupportedError, match=rf"{flow.name}.*exprb43.*dopri5.*scipy_solver"):
        integrate(flow, START, [0.0, 1.0], observers=[watching], **EXPRB)
    assert watching.seen == 0
    with pytest.raises(UnsupportedError, match="linearised"):
        flow.linearised(0.0, START)


def test_a_comparison_says_which_flows_cannot_run():
    valley = Rosenbrock()
    flows = {"flow": GradientFlow(valley), "order 2": ModifiedFlow(valley, 0.002, 2)}
    table = str(compare(GradientDescent(valley, 0.002), flows, START, steps=3, **EXPRB))
    assert "order 2: cannot run here: ModifiedFlow order 2" in table


class Turning(Flow):
    """A rotation, whose Jacobian is not symmetric, or a linearisation of the wrong kind."""

    matrix = f64(0.0, 1.0, -1.0, 0.0).reshape(2, 2)

    def __init__(self, change=None):
        self.change = change

    def velocity(self, t, state):
        return state @ self.matrix.mT

    def linearised(self, t, state):
        right = Linearisation(self.velocity(t, state), lambda v: self.matrix @ v)
        return right if self.change is None else self.change(right)


WRONG = {
    "None": (lambda here: None, "must return a Linearisation, got NoneType"),
    "short velocity": (lambda here: Linearisation(here.velocity[:1], here.product), "velocity of linearised"),
    "float32 velocity": (lambda here: Linearisation(here.velocity.float(), here.product), "velocity of linearised"),
    "scalar product": (lambda here: Linearisation(here.velocity, torch.sum), "product of linearised"),
    "no product": (lambda here: Linearisation(here.velocity, lambda v: None), "product of linearised.*NoneType"),
}


@pytest.mark.parametrize(("change", "match"), WRONG.values(), ids=WRONG)
def test_linearisations_of_the_wrong_kind(change, match):
    with pytest.raises(TypeError, match=match):
        integrate(Turning(change), START, [0.0, 1.0], **EXPRB)


def test_a_jacobian_that_is_not_symmetric_is_refused():
    with pytest.raises(UnsupportedError, match=r"symmetric Jacobian.*Turning.*\|J − Jᵀ\| up to 2.*dopri5"):
        integrate(Turning(), START, [0.0, 1.0], **EXPRB)


def test_a_user_s_linearisation_may_differentiate_on_its_own():
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    class Own(Flow):
        def velocity(self, t, state):
            return -scale * state**3

        def linearised(self, t, state):
            leaf = state.clone().requires_grad_()
            velocity = self.velocity(t, leaf)
            return Linearisation(velocity, lambda v: torch.autograd.grad(velocity, leaf, v, retain_graph=True)[0])

    run = integrate(Own(), f64(1.0, 0.5), [0.0, 1.0], **EXPRB)
    assert_close(run.theta[-1], f64(1.0, 0.5) / torch.sqrt(1 + 4 * f64(1.0, 0.25)), rtol=1e-6, atol=0)
    assert not run.theta.requires_grad


def test_remedies_name_the_method_where_the_flow_supports_it():
    stiff = Quadratic(torch.diag(f64(1e9, 1.0)))
    for flow, named in ((GradientFlow(stiff), True), (ModifiedFlow(stiff, 1e-10, 2), False)):
        run = integrate(flow, f64(1.0, 1.0), [0.0, 1.0], max_steps=50)
        assert ("method='exprb43'" in run.status.sentence) == named
        assert "method='scipy_solver'" in run.status.sentence
    vanishing = integrate(GradientFlow(Quadratic(torch.diag(f64(1e30, 1.0)))), f64(1.0, 1.0), [1.0, 2.0])
    assert "method='exprb43'" in vanishing.status.sentence


def test_arguments():
    for setting, match in (({"dt": 0.1}, "dt is for fixed-step"), ({"first_step": 0.0}, "first_step must be positive")):
        with pytest.raises(ValueError, match=match):
            integrate(GradientFlow(Asked()), START, [0.0, 1.0], **setting, **EXPRB)
    with pytest.raises(ValueError, match="rtol and atol must be given"):
        integrate(GradientFlow(Asked()), START.bfloat16(), [0.0, 1.0], **EXPRB)


def test_a_network_with_chunks_and_single_precision():
    module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in module.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator))
    inputs, targets = torch.randn(12, 2, generator=generator), torch.randn(12, 1, generator=generator)
    ends = []
    for chunk in (None, 5):
        net = NetworkLandscape(module, lambda out, y: (out - y).square().sum(-1), inputs, targets, chunk)
        ends.append(integrate(GradientFlow(net), net.theta0, [0.0, 2.0], **EXPRB).theta[-1])
    tight = integrate(GradientFlow(net), net.theta0, [0.0, 2.0], rtol=1e-6, atol=1e-7).theta[-1]
    for end in ends:
        assert end.dtype == torch.float32
        assert_close(end, tight, rtol=0, atol=1e-3)
