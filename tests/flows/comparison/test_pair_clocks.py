"""Clocks of momentum in compare: refused with the conversion, or brought to torch's clock."""

import pytest
import torch
from torch.testing import assert_close

from flows import (
    ClockError,
    HeavyBall,
    HeavyBallPrincipalFlow,
    ModifiedHeavyBallFlow,
    ModifiedNesterovFlow,
    MomentumModifiedEquation,
    Nesterov,
    OptimizerDescent,
    ScaledHeavyBall,
    ScaledNesterov,
    ScaledStochasticHeavyBall,
    StochasticHeavyBall,
    TorchMomentumFlow,
    compare,
)
from landscapes import LinearRegression, Quadratic, Rosenbrock
from tests.tensors import draw

HESSIAN = torch.tensor([[3.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
BOWL = Quadratic(HESSIAN)
START = torch.tensor([-0.5, 0.7], dtype=torch.float64)
LR, BETA = 0.01, 0.9
ROOT = 0.1  # √LR, with friction 1


def sum_of_examples():
    return LinearRegression(draw(0, 6, 2), draw(1, 6))


REGRESSION = sum_of_examples()


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=LR, momentum=BETA)


def test_momentum_of_another_scaling_is_refused_with_the_conversion():
    wrong = ModifiedHeavyBallFlow(BOWL, LR, 10, 2)
    conversion = r"h = √lr, μ = \(1 − β\)/√lr.*h = 0\.1 and friction = 1"
    with pytest.raises(ValueError, match=conversion):
        compare(HeavyBall(BOWL, LR, BETA), [wrong], START, 5)
    with pytest.raises(ClockError, match="momentum_from_torch"):
        compare(OptimizerDescent(BOWL, momentum), [ModifiedHeavyBallFlow(BOWL, ROOT, 2.0, 2)], START, 5)
    with pytest.raises(ClockError, match=r"h = √lr, μ = \(1 − β\)/√lr.*lr = 0\.01 and momentum β = 0\.9"):
        compare(ScaledHeavyBall(BOWL, ROOT, 1.0), [HeavyBallPrincipalFlow(BOWL, ROOT, BETA)], START, 5)


PAIRS = {
    "heavy ball": (HeavyBall, ScaledHeavyBall, ModifiedHeavyBallFlow),
    "Nesterov": (Nesterov, ScaledNesterov, ModifiedNesterovFlow),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("landscape", [BOWL, Rosenbrock(b=5.0)])
def test_the_right_scaling_runs_on_torchs_clock(name, landscape):
    torchs, scaled, flow = PAIRS[name]
    flows, steps = {"flow": flow(landscape, ROOT, 1.0, 2)}, 12
    ours = compare(torchs(landscape, LR, BETA), flows, START, steps, method="rk4", dt=LR / 4)
    theirs = compare(scaled(landscape, ROOT, 1.0), flows, START, steps, method="rk4", dt=ROOT / 4)
    assert ours.rows["flow"].notes == ()
    assert_close(ours.times, theirs.times * ROOT)
    assert ours.cost["flow"] == theirs.cost["flow"]
    if name == "heavy ball":
        for mine, known in ((ours.mean, theirs.mean), (ours.rows["flow"].mean, theirs.rows["flow"].mean)):
            assert_close(mine, known, rtol=1e-12, atol=1e-14)
        assert_close(ours.errors["flow"], theirs.errors["flow"], rtol=1e-9, atol=1e-14)
        assert_close(ours.one_step["flow"], theirs.one_step["flow"], rtol=1e-9, atol=1e-14)
    else:  # torch's θ = x + hβv, so that the errors of x are of the same size but not equal
        assert float(ours.one_step["flow"].max()) < 3 * float(theirs.one_step["flow"].max())


def test_one_step_errors_on_torchs_clock_have_the_flows_order():
    def largest(lr, order):
        flow = ModifiedNesterovFlow(BOWL, lr**0.5, 1.0, order)
        descent = Nesterov(BOWL, lr, 1 - lr**0.5)
        return float(compare(descent, {"f": flow}, START, 8, rtol=1e-11, atol=1e-13).one_step["f"].max())

    for order in (1, 2, 3):
        assert largest(0.0004, order) / largest(0.0001, order) == pytest.approx(2 ** (order + 1), rel=0.25)


def test_stochastic_momentum_runs_on_torchs_clock():
    flows = {"SDE": MomentumModifiedEquation(REGRESSION, ROOT, 1.0, 2, 2)}
    result = compare(StochasticHeavyBall(REGRESSION, LR, BETA, 2), flows, START, 6, runs=4, seed=1)
    assert result.rows["SDE"].notes == ()
    known = compare(ScaledStochasticHeavyBall(REGRESSION, ROOT, 1.0, 2), flows, START, 6, runs=4, seed=1)
    assert_close(result.mean, known.mean, rtol=1e-11, atol=1e-13)  # the same mini-batches
    assert result.cost["SDE"]["grad"] == known.cost["SDE"]["grad"]
    epochs = {"SDE": MomentumModifiedEquation(REGRESSION, ROOT, 1.0, 2, 2, "epoch")}
    whole = compare(StochasticHeavyBall(REGRESSION, LR, BETA, 2, "epoch"), epochs, START, 6, runs=4, seed=1)
    assert whole.rows["SDE"].trajectory.status == "finished"
    wrong = MomentumModifiedEquation(REGRESSION, LR, 10.0, 2)
    with pytest.raises(ValueError, match=r"h = 0\.1 and friction = 1"):
        compare(StochasticHeavyBall(REGRESSION, LR, BETA, 2), {"SDE": wrong}, START, 2)


def test_a_wrapped_flow_keeps_its_own_rule():
    pairs = [
        (ModifiedNesterovFlow, HeavyBall(BOWL, LR, BETA), "Nesterov", "heavy ball"),
        (ModifiedNesterovFlow, OptimizerDescent(BOWL, momentum), "Nesterov", "heavy ball"),
        (ModifiedHeavyBallFlow, Nesterov(BOWL, LR, BETA), "heavy ball", "Nesterov"),
    ]
    for flow, descent, ours, theirs in pairs:
        row = compare(descent, {"flow": flow(BOWL, ROOT, 1.0, 2)}, START, 6).rows["flow"]
        kind = type(descent).__name__
        assert row.notes[0] == f"no model of {kind}: the flow models {ours}, the descent takes steps of {theirs}"
        assert row.trajectory.status == "finished"


def test_the_wrapper_refuses_the_other_rule():
    for flow, nesterov in ((ModifiedNesterovFlow, False), (ModifiedHeavyBallFlow, True)):
        with pytest.raises(ValueError, match=f"nesterov must be {not nesterov} for {flow.__name__}"):
            TorchMomentumFlow(flow(BOWL, ROOT, 1.0, 2), LR, BETA, nesterov)
