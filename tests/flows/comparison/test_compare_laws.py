"""compare with stochastic flows: laws by means over runs, paths where driven by the descent's mini-batches."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from flows import (
    GradientDescent,
    GradientFlow,
    LangevinFlow,
    MomentumModifiedEquation,
    NoisyModifiedEquation,
    PrincipalFlow,
    ScaledStochasticHeavyBall,
    StochasticGradientDescent,
    StochasticHeavyBall,
    StochasticModifiedEquation,
    Stratonovich,
    compare,
    descend,
    integrate,
    minibatch_path,
)
from flows.engines.storage import load_tensors
from landscapes.noise import IsotropicNoise, MinibatchNoise
from tests.flows.laws import square

RATE, STEPS, RUNS = 0.125, 4, 5
START = torch.tensor([1.0, -0.7], dtype=torch.float64)


def equation(landscape, order=1, batch_size=2, sampling="replacement"):
    return StochasticModifiedEquation(landscape, RATE, batch_size, order, sampling)


@pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])
def test_coupled_at_the_rate_itself_the_equation_is_the_descent(sampling, regression):
    sgd = StochasticGradientDescent(regression, RATE, 2, sampling)
    flows = {"SDE": equation(regression, sampling=sampling), "GF": GradientFlow(regression)}
    result = compare(sgd, flows, START, STEPS, runs=RUNS, coupled=True, dt=RATE, seed=3)
    assert float(result.errors["SDE"].max()) < 1e-12
    assert float(result.errors["GF"][1:].min()) > 1e-3
    assert result.weak_errors == result.observed == {}  # paths only
    assert "Laws" not in str(result)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("runs", [1, RUNS])
def test_coupled_paths_are_those_along_the_mini_batches(runs, batch, regression, normal):
    theta0 = START + normal(2, *batch, 2)
    sgd = StochasticGradientDescent(regression, RATE, 2)
    sde = equation(regression, order=2)
    result = compare(sgd, {"SDE": sde}, theta0, STEPS, runs=runs, coupled=True, dt=RATE / 4, seed=3)
    start = theta0.expand(runs, *theta0.shape) if runs > 1 else theta0
    theirs = descend(sgd, start, STEPS, seed=3).theta
    path = minibatch_path(sgd, start, STEPS, seed=3, halvings=3)
    ours, finer = (integrate(sde, start, result.times, dt=RATE / n, path=path).theta for n in (4, 8))

    def over_runs(values):
        return values.mean(dim=1) if runs > 1 else values

    assert_close(result.errors["SDE"], over_runs((ours - theirs).norm(dim=-1)))
    assert_close(result.integration_errors["SDE"], over_runs((ours - finer).norm(dim=-1)))
    assert_close(result.losses["SDE"], over_runs(regression.loss(ours)))
    single = [
        integrate(sde, theirs[k], result.times[k : k + 2], dt=RATE / 8, path=path).theta[-1] - theirs[k + 1]
        for k in range(STEPS)
    ]
    assert_close(result.one_step["SDE"], over_runs(torch.stack(single).norm(dim=-1)))


def test_laws_are_means_over_independent_runs(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    sde = equation(regression)
    result = compare(
        sgd,
        {"SDE": sde, "GF": GradientFlow(regression)},
        START,
        STEPS,
        runs=RUNS,
        dt=RATE / 2,
        observables={"x²": square},
    )
    theirs, ours = result.descent.theta, result.rows["SDE"].trajectory.theta
    assert ours.shape == (STEPS + 1, RUNS, 2)
    functions = {"loss": regression.loss, "‖∇f‖²": lambda x: regression.grad(x).square().sum(dim=-1), "x²": square}
    assert list(result.weak_errors["SDE"]) == list(functions)
    for name, phi in functions.items():
        a, b = phi(ours), phi(theirs)
        assert_close(result.weak_errors["SDE"][name], a.mean(dim=1) - b.mean(dim=1))
        assert_close(result.weak_standard_errors["SDE"][name], (a.var(dim=1) / RUNS + b.var(dim=1) / RUNS).sqrt())
        drift = phi(result.rows["GF"].trajectory.theta)
        assert_close(result.weak_errors["GF"][name], drift - b.mean(dim=1))
        assert_close(result.weak_standard_errors["GF"][name], (b.var(dim=1) / RUNS).sqrt())
        assert_close(result.observed[name][0], b.mean(dim=1))
        assert f"{float(result.weak_errors['SDE'][name][-1]):.4g}" in str(result)
    finer = integrate(sde, START.expand(RUNS, 2), result.times, dt=RATE / 4, seed=0).theta
    gap = square(ours).mean(dim=1) - square(finer).mean(dim=1)
    assert_close(result.weak_integration_errors["SDE"]["x²"], gap)
    assert_close(result.errors["SDE"], (ours.mean(dim=1) - theirs.mean(dim=1)).norm(dim=-1))
    assert bool(result.one_step["SDE"].isnan().all())


def test_the_flow_has_noise_of_its_own_and_refines_it(regression):
    """Noise shared by accident with the descent would show as a correlation of the runs."""
    runs = 400
    sgd = StochasticGradientDescent(regression, RATE, 2)
    result = compare(sgd, {"SDE": equation(regression)}, START, 1, runs=runs, dt=RATE)
    a, b = (x[-1, :, 0] - x[-1, :, 0].mean() for x in (result.rows["SDE"].trajectory.theta, result.descent.theta))
    assert abs(float((a * b).mean() / (a.std() * b.std()))) < 4 / runs**0.5
    # Of one step both have the mean θ − h∇f and the covariance h²D/b: four standard errors apart at most.
    for phi, error in result.weak_errors["SDE"].items():
        assert float((error[-1] / result.weak_standard_errors["SDE"][phi][-1]).abs()) < 4, phi
    assert 0 < float(result.integration_errors["SDE"][-1]) < 0.3 * float(result.errors["SDE"][-1] + a.std())


@dataclass(frozen=True)
class Failing(LangevinFlow):
    """Without a velocity to the left of 0.8."""

    def velocity(self, t, state):
        return super().velocity(t, state) + torch.where(state[..., :1] < 0.8, torch.nan, 0.0)


def test_a_run_that_is_lost_leaves_no_mean_over_the_others(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    result = compare(sgd, {"SDE": Failing(regression, 0.05)}, START, STEPS, runs=RUNS, dt=RATE)
    alive = result.rows["SDE"].trajectory.alive
    assert bool(alive.any())
    assert not bool(alive.all())
    for values in (result.errors["SDE"], result.weak_errors["SDE"]["loss"], result.weak_standard_errors["SDE"]["loss"]):
        assert bool(values[:2].isfinite().all())
        assert bool(values[-1].isnan())


def test_fixed_steps_of_the_other_flows_take_dt_too(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    flows = {"SDE": equation(regression), "GF": GradientFlow(regression)}
    result = compare(sgd, flows, START, STEPS, runs=2, dt=RATE / 2, method="rk4")
    expected = integrate(GradientFlow(regression), START, result.times, method="rk4", dt=RATE / 2)
    assert torch.equal(result.rows["GF"].trajectory.theta, expected.theta)


def test_one_run_of_each_has_no_distance_and_no_bar(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    result = compare(sgd, [equation(regression)], START, STEPS, dt=RATE / 2)
    (name,) = result.rows
    assert bool(result.errors[name].isnan().all())
    assert bool(result.weak_standard_errors[name]["loss"].isnan().all())
    assert "give runs, or coupled=True" in str(result)


def test_momentum_is_coupled_with_its_velocity(regression):
    descent = ScaledStochasticHeavyBall(regression, RATE, 1.0, 2)
    flow = MomentumModifiedEquation(regression, RATE, 1.0, 2, order=2)
    result = compare(descent, {"SDE": flow}, START, 16, runs=2, coupled=True, dt=RATE / 8)
    assert float(result.errors["SDE"].max()) < 0.1 * float((result.mean[-1] - START).norm())
    # From rest every step but the first would be off by h·v.
    still = RATE * result.mean.diff(dim=0).norm(dim=-1) / RATE
    assert bool((result.one_step["SDE"][4:] < 0.2 * still[4:]).all())


def test_what_is_not_driven_by_mini_batches_says_so(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    flows = {
        "isotropic": NoisyModifiedEquation(regression, RATE, IsotropicNoise(0.1, 2)),
        "Langevin": LangevinFlow(regression, 0.1),
        "wrapped": Stratonovich(NoisyModifiedEquation(regression, RATE, IsotropicNoise(0.1, 2))),
        "noise object": NoisyModifiedEquation(regression, RATE, MinibatchNoise(regression, 2)),
    }
    result = compare(sgd, flows, START, STEPS, coupled=True, dt=RATE)
    for name in ("isotropic", "Langevin", "wrapped"):
        assert result.rows[name].trajectory is None
        assert "coupled=False" in result.rows[name].notes[0]
    assert float(result.errors["noise object"].max()) < 1e-12


def test_other_flows_keep_their_own_integrator(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    flows = {"SDE": equation(regression), "GF": GradientFlow(regression), "PF": PrincipalFlow(regression, RATE)}
    mixed = compare(sgd, flows, START, STEPS, runs=2, dt=RATE, method="heun2", rtol=1e-9, atol=1e-11)
    alone = compare(sgd, {"GF": GradientFlow(regression)}, START, STEPS, runs=2, rtol=1e-9, atol=1e-11)
    assert torch.equal(mixed.rows["GF"].trajectory.theta, alone.rows["GF"].trajectory.theta)
    assert mixed.weak_errors.keys() == {"SDE", "GF"}  # the principal flow is complex: φ of it is no observable
    euler = compare(sgd, {"SDE": equation(regression)}, START, STEPS, runs=2, dt=RATE)
    assert not torch.equal(mixed.rows["SDE"].trajectory.theta, euler.rows["SDE"].trajectory.theta)


@pytest.mark.parametrize("coupled", [True, False])
def test_saved_and_drawn(coupled, regression, tmp_path, dtype):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    flows = {"SDE": equation(regression), "GF": GradientFlow(regression)}
    phi = {"x²": square}
    result = compare(
        sgd,
        flows,
        START.to(dtype),
        STEPS,
        runs=3,
        coupled=coupled,
        dt=RATE / 2,
        observables=phi,
        folder=tmp_path / "runs",
    )
    tensors, text = load_tensors(result.save(tmp_path / "saved"), "comparison")
    assert text["observables"] == ["loss", "‖∇f‖²", "x²"]
    assert text["coupled"] is coupled
    for j, name in enumerate(text["observables"]):
        assert torch.equal(tensors[f"flow.0.weak.{j}.difference"], result.weak_errors["SDE"][name])
        assert torch.equal(tensors[f"flow.0.weak.{j}.integration"], result.weak_integration_errors["SDE"][name])
        assert torch.equal(tensors[f"observed.{j}.mean"], result.observed[name][0])
    assert tensors["flow.0.weak.0.mean"].dtype == dtype
    assert load_tensors(tmp_path / "runs" / "sde", "trajectory")[0]["theta"].shape == (STEPS + 1, 3, 2)
    assert result.plot(tmp_path / "figure.png").stat().st_size > 10_000


def test_seeds_repeat_and_differ(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    one, same, other = (
        compare(sgd, {"SDE": equation(regression)}, START, 2, runs=2, dt=RATE, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one.weak_errors["SDE"]["loss"], same.weak_errors["SDE"]["loss"])
    assert not torch.equal(one.weak_errors["SDE"]["loss"], other.weak_errors["SDE"]["loss"])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"dt": RATE / 3, "coupled": True}, ValueError, "h over a power of two"),
        ({"dt": 2 * RATE, "coupled": True}, ValueError, "h over a power of two"),
        ({"dt": -1.0}, ValueError, "dt must be"),
        ({"observables": {"loss": square}}, ValueError, "must not be called loss"),
        ({"observables": [square]}, TypeError, "mapping name -> function"),
        ({"observables": {"x": 3}}, TypeError, "must map strings to functions"),
        ({"observables": {"θ": lambda x: x}}, ValueError, "real tensor of shape"),
    ],
)
def test_arguments_out_of_place(changes, error, words, regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    with pytest.raises(error, match=words):
        compare(sgd, [equation(regression)], START, STEPS, **{"runs": 2, "dt": RATE, **changes})


def test_an_eighth_of_the_rate_by_default(regression):
    sgd, sde = StochasticGradientDescent(regression, RATE, 2), equation(regression)
    for coupled in (False, True):
        one, other = (compare(sgd, {"SDE": sde}, START, 2, coupled=coupled, dt=dt) for dt in (None, RATE / 8))
        assert torch.equal(one.rows["SDE"].trajectory.theta, other.rows["SDE"].trajectory.theta)
        assert one.settings["dt"] == RATE / 8


def test_couplings_out_of_place(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    with pytest.raises(ValueError, match="coupled is for stochastic flows"):
        compare(sgd, [GradientFlow(regression)], START, STEPS, coupled=True)
    with pytest.raises(ValueError, match="batch_size of StochasticModifiedEquation order 1 is 3, of the descent 2"):
        compare(sgd, [equation(regression, batch_size=3)], START, STEPS, coupled=True, dt=RATE)
    with pytest.raises(ValueError, match="sampling of StochasticModifiedEquation order 1 is 'subset'"):
        compare(sgd, [equation(regression, sampling="subset")], START, STEPS, coupled=True, dt=RATE)
    for descent in (GradientDescent(regression, RATE), StochasticHeavyBall(regression, RATE, 0.9, 2)):
        with pytest.raises(TypeError, match="must follow one mini-batch a step"):
            compare(descent, [equation(regression)], START, STEPS, coupled=True, dt=RATE)
