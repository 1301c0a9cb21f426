"""``models_of``: every match, on the optimiser's own run; refused settings in a sentence; typed errors."""

import functools

import pytest
import torch
from torch.testing import assert_close

from flows import (
    SVRG,
    Descent,
    GradientDescent,
    HeavyBall,
    IncrementalGradientDescent,
    NoisyGradientDescent,
    OptimizerDescent,
    ScaledHeavyBall,
    StochasticFlow,
    StochasticGradientDescent,
    StochasticHeavyBall,
    descend,
    integrate,
    models_of,
)
from flows.catalogue.descents import DESCENTS, MOMENTUM
from flows.catalogue.flows import FLOWS
from landscapes import Regularised
from landscapes.noise import IsotropicNoise
from tests.flows.catalogue.cases import DESCENT_ROWS, RIPPLES, THETA0

SGD = torch.optim.SGD
PLAIN = {"GradientFlow", "ModifiedFlow", "EpochFlow", "PrincipalFlow", "TruncatedPrincipalFlow"}
SETTINGS = {
    "plain": {"lr": 0.01},
    "momentum": {"lr": 0.01, "momentum": MOMENTUM},
    "nesterov": {"lr": 0.01, "momentum": MOMENTUM, "nesterov": True},
    "weight decay": {"lr": 0.01, "weight_decay": 0.3},
    "momentum and weight decay": {"lr": 0.01, "momentum": MOMENTUM, "weight_decay": 0.3},
}


def parameters(*sizes):
    return [torch.nn.Parameter(torch.zeros(size)) for size in sizes]


def names(result):
    return {match.name for match in result}


def test_heavy_ball_of_torch_has_flows_in_both_units():
    result = models_of(SGD(parameters(2), lr=0.01, momentum=0.9))
    assert result["ModifiedHeavyBallFlow"].arguments == pytest.approx({"h": 0.1, "friction": 1.0})
    assert result["HeavyBallPrincipalFlow"].arguments == {"h": 0.01, "momentum": 0.9}
    assert result["ReducedHeavyBallFlow"].arguments == {"h": 0.01, "momentum": 0.9}
    assert "10 times too slow" in str(result)
    assert names(result) & PLAIN == set()
    with pytest.raises(KeyError, match=r"GradientFlow.*HeavyBallPrincipalFlow"):
        result["GradientFlow"]


def test_the_rows_of_every_kind_of_sgd():
    assert names(models_of(SGD, lr=0.1)) == PLAIN | {"StochasticModifiedEquation", "NoisyModifiedEquation"}
    heavy = {"HeavyBallPrincipalFlow", "ModifiedHeavyBallFlow", "ReducedHeavyBallFlow"}
    noisy = {"MomentumModifiedEquation", "NoisyMomentumEquation"}
    assert names(models_of(SGD, lr=0.1, momentum=0.9)) == heavy | noisy
    nesterov = {"NesterovPrincipalFlow", "ModifiedNesterovFlow", "ReducedNesterovFlow"}
    assert names(models_of(SGD, lr=0.1, momentum=0.9, nesterov=True)) == nesterov
    undamped = models_of(SGD, lr=0.1, momentum=1.0)  # no reduced or principal flow
    assert names(undamped) == {"ModifiedHeavyBallFlow"} | noisy
    assert undamped["ModifiedHeavyBallFlow"].arguments["friction"] == 0


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_deterministic_match_follows_torchs_own_run(kind):
    settings = SETTINGS[kind]
    run = descend(OptimizerDescent(RIPPLES, functools.partial(SGD, **settings)), THETA0, 60).theta
    followed = set()
    for match in models_of(SGD, **settings):
        if match.row.noise or match.name in ("EpochFlow", "TruncatedPrincipalFlow"):
            continue
        others = {"order": 2} if "order" in {f.name for f in match.row.kind.__dataclass_fields__.values()} else {}
        flow = match.flow(RIPPLES, **others)
        times = [60 * match.h * s for s in (0.0, 0.5, 1.0)]
        end = integrate(flow, THETA0, times, rtol=1e-9, atol=1e-11).theta[-1]
        moved = float((run[-1] - THETA0).norm())
        # those without the transient are a start's O(h) away, the look-ahead x of Nesterov hβv
        assert float((end - run[-1]).norm()) < 0.03 * moved, match.name
        followed.add(match.name)
    assert len(followed) >= 3


def test_weight_decay_is_the_regularised_landscape():
    result = models_of(SGD, lr=0.1, weight_decay=0.5)
    flow = result["ModifiedFlow"].flow(RIPPLES, order=2)
    assert isinstance(flow.landscape, Regularised)
    assert flow.landscape.l2 == 0.5
    assert "Regularised(landscape, 0.5)" in str(result)
    plain = descend(GradientDescent(flow.landscape, 0.1), THETA0, 5).theta
    decayed = functools.partial(SGD, lr=0.1, weight_decay=0.5)
    assert_close(plain, descend(OptimizerDescent(RIPPLES, decayed), THETA0, 5).theta)


def test_dampening_scales_the_rate_but_for_the_first_step():
    settings = {"lr": 0.02, "momentum": 0.6, "dampening": 0.25}
    result = models_of(SGD, **settings)
    assert result["HeavyBallPrincipalFlow"].arguments == pytest.approx({"h": 0.015, "momentum": 0.6})
    assert result["ModifiedHeavyBallFlow"].arguments["h"] == pytest.approx(0.015**0.5)
    assert "counts 1/(1 − dampening) = 1.33333 times" in str(result)
    theirs = descend(OptimizerDescent(RIPPLES, functools.partial(SGD, **settings)), THETA0, 6).theta
    # the sentence on the first step, as a state: θ − lr g and the buffer g/(1 − τ)
    ours, first = HeavyBall(RIPPLES, 0.015, 0.6), RIPPLES.grad(THETA0)
    state = (THETA0 - 0.02 * first, first / 0.75)
    for k in range(1, 6):
        assert_close(state[0], theirs[k])
        state = ours.step(state, k, torch.Generator())
    without = models_of(SGD, lr=0.02, dampening=0.25)  # torch ignores it without momentum
    assert without["ModifiedFlow"].h == 0.02


def test_the_dampening_of_a_descent_is_torchs():
    settings = {"lr": 0.01, "momentum": 0.9, "dampening": 0.5}
    ours, theirs = models_of(HeavyBall(RIPPLES, 0.01, 0.9, 0.5)), models_of(SGD, **settings)
    assert names(ours) == {match.name for match in theirs if not match.row.noise}
    for match in ours:
        known = theirs[match.name]
        assert (match.arguments, match.h, match.cells()) == (known.arguments, known.h, known.cells())
    assert ours["HeavyBallPrincipalFlow"].h == pytest.approx(0.005)
    assert "dampening=0.5: lr is (1 − dampening)·lr = 0.005; the first step" in str(ours)
    assert [s for s in ours.sentences if "damp" in s] == [s for s in theirs.sentences if "damp" in s]
    assert "damp" not in str(models_of(HeavyBall(RIPPLES, 0.01, 0.9)))


REFUSED = {
    "maximize=True ascends": {"lr": 0.1, "maximize": True},
    "lr must be positive": {"lr": 0.0},
    "dampening must be below 1": {"lr": 0.1, "momentum": 0.5, "dampening": 1.0},
    "momentum must be at most 1": {"lr": 0.1, "momentum": 1.5},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_settings_that_no_flow_models_are_a_sentence(sentence):
    result = models_of(SGD, **REFUSED[sentence])
    assert len(result) == 0
    assert sentence in str(result)


def test_groups_with_different_settings_are_refused_and_equal_ones_are_one():
    one, two = parameters(1, 2)
    equal = models_of(SGD([{"params": [one]}, {"params": [two]}], lr=0.1))
    assert names(equal) >= PLAIN
    for key, value in (("lr", 0.2), ("weight_decay", 0.1), ("momentum", 0.9)):
        result = models_of(SGD([{"params": [one]}, {"params": [two], key: value}], lr=0.1))
        assert len(result) == 0
        assert f"different {key}" in str(result)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "NAdam", "Adagrad"])
def test_other_optimisers_have_no_flow_and_say_so(kind):
    result = models_of(getattr(torch.optim, kind)(parameters(2), lr=0.1))
    assert (len(result), list(result)) == (0, [])
    assert f"no flow of this version models {kind}" in str(result)


def test_a_subclass_of_sgd_may_do_anything():
    class Other(SGD):
        def step(self, closure=None):
            return None

    assert len(models_of(Other(parameters(2), lr=0.1))) == 0


def test_a_scheduler_and_a_rate_in_a_tensor_are_seen():
    optimiser = SGD(parameters(2), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimiser, 2)
    assert "a scheduler is attached" in str(models_of(optimiser))
    rate = models_of(SGD(parameters(2), lr=torch.tensor(0.25), foreach=False))
    assert rate["ModifiedFlow"].arguments == {"h": 0.25}


def test_our_descents_have_the_flows_of_their_torch_settings():
    scaled = models_of(ScaledHeavyBall(RIPPLES, 0.1, 1.0))
    assert scaled["HeavyBallPrincipalFlow"].arguments == pytest.approx({"h": 0.01, "momentum": 0.9})
    plain = models_of(HeavyBall(RIPPLES, 0.01, 0.9))
    assert names(plain) == names(scaled) == {"HeavyBallPrincipalFlow", "ModifiedHeavyBallFlow", "ReducedHeavyBallFlow"}
    assert names(models_of(HeavyBall(RIPPLES, 0.01, 0.0))) == names(models_of(GradientDescent(RIPPLES, 0.01)))
    torchs = OptimizerDescent(RIPPLES, functools.partial(SGD, lr=0.01, momentum=0.9))
    assert names(models_of(torchs)) > names(plain)  # its gradients may be of mini-batches


def test_mini_batches_are_carried_to_the_stochastic_flow():
    match = models_of(StochasticHeavyBall(RIPPLES, 0.01, 0.9, 2, "subset"))["MomentumModifiedEquation"]
    assert match.arguments == pytest.approx({"h": 0.1, "friction": 1.0, "batch_size": 2, "sampling": "subset"})
    assert isinstance(match.flow(RIPPLES), StochasticFlow)
    noise = IsotropicNoise(1.0, 2)
    noisy = models_of(NoisyGradientDescent(RIPPLES, 0.1, noise))
    assert noisy["NoisyModifiedEquation"].arguments["noise"] is noise
    assert "StochasticModifiedEquation" not in names(noisy)


def test_batches_in_a_fixed_order_have_their_own_flow_only():
    batches = torch.arange(6).split(2)
    result = models_of(IncrementalGradientDescent(RIPPLES, 0.1, batches))
    assert names(result) == {"EpochFlow"}
    assert result["EpochFlow"].flow(RIPPLES).epoch == pytest.approx(0.3)
    assert "EpochFlow" not in names(models_of(StochasticGradientDescent(RIPPLES, 0.1, 2)))


@pytest.mark.parametrize("name", DESCENT_ROWS)
def test_every_match_of_every_descent_can_be_built(name):
    descent = DESCENT_ROWS[name][1].build(RIPPLES, 0.1)
    own = {"order": 1, "noise": IsotropicNoise(1.0, 2), "modes": 1}
    for match in models_of(descent):
        missing = set(own) & set(match.row.kind.__dataclass_fields__) - set(match.arguments)
        flow = match.flow(RIPPLES, **{key: own[key] for key in missing})
        assert type(flow) is match.row.kind
        assert match.row.descent is match.descent or match.descent in match.row.also
    assert str(models_of(descent))


def test_a_descent_without_a_flow_says_where_to_ask():
    assert "models_of(descent.full_batch())" in str(models_of(SVRG(RIPPLES, 0.1, 2, 3)))

    class Mine(Descent):
        landscape, h = RIPPLES, 0.1

        def step(self, state, k, generator):
            return state

    assert "no row of Mine" in str(models_of(Mine()))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((3,), {}, "optimiser must be .* got int"),
        ((torch.nn.Linear,), {}, "optimiser must be .* got Linear"),
        ((GradientDescent(RIPPLES, 0.1),), {"lr": 1}, "settings are for a class of torch.optim, got lr"),
        ((SGD(parameters(1), lr=0.1),), {"momentum": 1}, "settings are for a class"),
        ((SGD,), {"rate": 1}, "settings must be those of SGD"),
    ],
)
def test_wrong_input_is_a_typed_error(arguments, settings, message):
    with pytest.raises(TypeError, match=message):
        models_of(*arguments, **settings)
    with pytest.raises(ValueError, match="learning rate"):
        models_of(SGD, lr=-1.0)  # torch's own check


def test_nesterov_without_momentum_is_refused_with_the_remedy():
    for settings in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match=r"nesterov needs a momentum above 0 and no dampening.*leave nesterov out"):
            models_of(SGD, lr=0.1, nesterov=True, **settings)
    assert len(models_of(SGD, lr=0.1, nesterov=True, momentum=0.9)) > 0


def test_the_table_has_a_line_for_each_match():
    result = models_of(SGD, lr=0.01, momentum=0.9)
    lines = str(result).splitlines()
    assert lines[0] == "Flows that model SGD(lr=0.01, momentum=0.9)"
    assert [line.split()[0] for line in lines[2 : 2 + len(result)]] == [match.name for match in result]
    assert "h = √lr, μ = (1 − β)/√lr" in lines[3]


def test_the_catalogue_knows_every_descent_that_a_flow_follows():
    assert all(row.descent in (None, *DESCENTS.values()) for row in FLOWS.values())
