"""Runs: flags, tensors that are not dense, callbacks and huge numbers given to engines, comparisons and ensembles."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flows import (
    BrownianPath,
    Event,
    GradientDescent,
    GradientFlow,
    MinibatchPath,
    State,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    compare,
    descend,
    integrate,
    minibatch_path,
)
from flows.ensembles import Histogram, Quantiles, ensemble, expectation, weak_errors, weak_order
from flows.invariants import check_noise
from flows.observers import Loss
from landscapes import LinearRegression, Rosenbrock
from tests.tensors import draw

H = 0.01
VALLEY, REGRESSION = Rosenbrock(b=5.0), LinearRegression(draw(0, 6, 2), draw(1, 6))
START, TIMES = torch.tensor([0.1, 0.2]).double(), [0.0, 0.01, 0.02]
FLOW, DESCENT = GradientFlow(VALLEY), GradientDescent(VALLEY, H)
EQUATION, SGD = StochasticModifiedEquation(REGRESSION, H, 2), StochasticGradientDescent(REGRESSION, H, 2)
FIRST = {"first": lambda theta: theta[..., 0]}
SAMPLE = {"paths": 4, "seed": 1, "observables": FIRST}
FOUR_BITS = torch.empty(2, dtype=torch.uint4)
NOT_DENSE = {
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x.flatten(), x.flatten()[:1]]),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "uint4": lambda x: torch.empty(x.shape, dtype=torch.uint4),
}


def equation_of(h):
    return StochasticModifiedEquation(REGRESSION, h, 2)


def sgd_of(h):
    return StochasticGradientDescent(REGRESSION, h, 2)


FLAGS = {
    "progress": [
        lambda x: integrate(FLOW, START, TIMES, progress=x),
        lambda x: descend(DESCENT, START, 2, progress=x),
        lambda x: compare(DESCENT, [FLOW], START, 2, progress=x),
        lambda x: ensemble(SGD, START, 2, progress=x, **SAMPLE),
        lambda x: expectation(EQUATION, START, TIMES, dt=H, progress=x, **SAMPLE),
        lambda x: weak_errors(EQUATION, SGD, START, 2, progress=x, **SAMPLE),
        lambda x: weak_order(equation_of, sgd_of, START, 0.02, [0.02, 0.01], progress=x, **SAMPLE),
    ],
    "coupled": [
        lambda x: compare(SGD, [EQUATION], START, 2, coupled=x),
        lambda x: weak_errors(EQUATION, SGD, START, 2, coupled=x, **SAMPLE),
    ],
    "extrapolate": [
        lambda x: expectation(EQUATION, START, TIMES, dt=H, extrapolate=x, **SAMPLE),
        lambda x: weak_errors(EQUATION, SGD, START, 2, extrapolate=x, **SAMPLE),
    ],
    "stop": [lambda x: Event("e", lambda t, state: state[..., 0], stop=x)],
}


@pytest.mark.parametrize("flag", [FOUR_BITS, torch.ones(2), 1, "yes", None, np.ones(2)], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize(("name", "which"), [(name, i) for name, calls in FLAGS.items() for i in range(len(calls))])
def test_flags_are_refused(name, which, flag):
    with pytest.raises(TypeError, match=f"{name}.* must be True or False"):
        FLAGS[name][which](flag)


FIELDS = {
    "theta": START,
    "alive": torch.tensor([True, True]),
    "step": torch.ones(2).double(),
    "history": torch.ones(3, 2).double(),
    "stopped": torch.tensor([True, False]),
    "generator": torch.Generator().get_state(),
}


@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_a_state_are_dense(name, kind):
    State(START, **{name: FIELDS[name]})
    bad = NOT_DENSE[kind](FIELDS[name])
    if kind != "meta":
        with pytest.raises(TypeError, match=f"{name} of a State must be a dense tensor"):
            State(START, **{name: bad})
        return
    for run in (lambda state: descend(DESCENT, state, 2), lambda state: integrate(FLOW, state, TIMES)):
        with pytest.raises(ValueError, match=f"{name} of a State must have numbers"):
            run(State(START, **{name: bad}))


@pytest.mark.parametrize("device", [0, "x", 1.5, FOUR_BITS, None], ids=lambda x: type(x).__name__)
def test_devices_are_refused(device):
    with pytest.raises((TypeError, ValueError), match="device must be"):
        State(START).to(device)
    with pytest.raises((TypeError, ValueError), match="device must be"):
        BrownianPath(0, 0.0, 1.0, 0.5, 2, device=device)


OBSERVED = {
    **NOT_DENSE,
    "none": lambda x: None,
    "a list": lambda x: [None],
    "text": lambda x: "x",
    "huge": lambda x: 10**400,
}


@pytest.mark.parametrize("kind", OBSERVED)
def test_observations_that_are_no_numbers_are_refused(kind):
    def observe(k, t, theta):
        return {"a": OBSERVED[kind](theta)}

    observe.name, observe.every = "mine", 1
    with pytest.raises(TypeError, match="observation 'a' of 'mine' must be a tensor or numbers"):
        descend(DESCENT, START, 2, observers=[observe])


@pytest.mark.parametrize("kind", ["sparse", "meta", "nested", "quantised"])
def test_events_and_observables_that_are_not_dense_are_refused(kind):
    event = Event("e", lambda t, state: NOT_DENSE[kind](state[..., 0]))
    with pytest.raises(TypeError, match="function of event 'e' must return one real number"):
        integrate(FLOW, START[None], TIMES, events=[event])
    bad = {"bad": lambda theta: NOT_DENSE[kind](theta[..., 0])}
    for run in (
        lambda: ensemble(SGD, START, 2, paths=3, seed=0, observables=bad),
        lambda: compare(SGD, [EQUATION], START, 2, runs=2, observables=bad),
    ):
        with pytest.raises((TypeError, ValueError), match="observable 'bad' must"):
            run()


ODD = {
    "number": 0.01,
    "scalar": torch.tensor(0.01),
    "huge": [10**400],
    "half": [torch.tensor(0.01, dtype=torch.bfloat16), torch.empty(1, device="meta")],
    "nested": [torch.nested.nested_tensor([START, START[:1]])],
    "text": "x",
}


@pytest.mark.parametrize("kind", ODD)
def test_restarts_and_times_are_refused(kind):
    with pytest.raises((TypeError, ValueError), match="restarts must be"):
        integrate(FLOW, START, TIMES, restarts=ODD[kind])
    with pytest.raises((TypeError, ValueError), match="times must be"):
        integrate(FLOW, START, ODD[kind])


def test_values_of_observers_and_events_are_shown_briefly():
    for call, name in (
        (lambda: descend(DESCENT, START, 2, observers=[FOUR_BITS]), "observers"),
        (lambda: integrate(FLOW, START, TIMES, events=FOUR_BITS), "events"),
        (lambda: integrate(FLOW, START, TIMES, restarts=[FOUR_BITS]), "restarts"),
        (lambda: compare(DESCENT, FOUR_BITS, START, 2), "flows"),
        (lambda: compare(SGD, [EQUATION], START, 2, observables={"a": FOUR_BITS}), "observables"),
        (lambda: ensemble(SGD, START, 2, paths=2, seed=0, observables=FOUR_BITS), "observables"),
        (lambda: weak_errors(EQUATION, SGD, START, 2, reference=FOUR_BITS, **SAMPLE), "reference"),
        (lambda: weak_order(FOUR_BITS, sgd_of, START, 0.02, [0.02, 0.01], **SAMPLE), "flow"),
        (lambda: MinibatchPath(SGD.sampler, H, 2, 0, batch=FOUR_BITS), "batch"),
        (lambda: State(START, model=FOUR_BITS), "model"),
        (lambda: Event(FOUR_BITS, lambda t, state: state[..., 0]), "name"),
    ):
        with pytest.raises(TypeError, match=rf"{name}\b.* must .*got .*(torch.uint4|Tensor|a list)"):
            call()


def test_references_return_mappings_of_tensors():
    for found in (None, 1.0, {"first": 1.0}, {"first": START.to_sparse()}):
        with pytest.raises(TypeError, match=r"reference.* must"):
            weak_errors(EQUATION, SGD, START, 2, reference=lambda times, found=found: found, **SAMPLE)


@pytest.mark.parametrize("kind", NOT_DENSE)
def test_edges_and_probabilities_are_dense(kind):
    numbers = torch.tensor([0.0, 0.5, 1.0]).double()
    for name, make in (("edges", Histogram), ("probabilities", Quantiles)):
        assert make(list(numbers)).count == make(numbers).count == 0
        for bad in (NOT_DENSE[kind](numbers), [NOT_DENSE[kind](numbers), 2.0], [torch.ones(2), 2.0]):
            with pytest.raises((TypeError, ValueError), match=f"{name} must"):
                make(bad)


HUGE = {
    "steps": [
        lambda n: descend(DESCENT, START, n),
        lambda n: descend(DESCENT, START, 10 * n, every=10),
        lambda n: compare(DESCENT, [FLOW], START, n),
        lambda n: compare(SGD, [EQUATION], START, n, coupled=True),
        lambda n: minibatch_path(SGD, START, n),
    ],
    "runs": [lambda n: compare(SGD, [EQUATION], START, 2, runs=n)],
    "size": [lambda n: BrownianPath(0, 0.0, 1.0, 0.5, n), lambda n: BrownianPath(0, 0.0, 1.0, 0.5, (2, n))],
    "halvings": [lambda n: minibatch_path(SGD, START, 2, halvings=n)],
    "batch": [lambda n: MinibatchPath(SGD.sampler, H, 2, 0, batch=(n,))],
}


@pytest.mark.parametrize("number", [10**9, 2**63, 10**400])
@pytest.mark.parametrize(("name", "which"), [(name, i) for name, calls in HUGE.items() for i in range(len(calls))])
def test_huge_counts_are_refused_with_the_bound(name, which, number):
    with pytest.raises(ValueError, match=f"{name} must be at most "):
        HUGE[name][which](number)


def test_long_grids_and_paths_are_refused_with_the_bound():
    with pytest.raises(ValueError, match="times must take at most 100,000,000 steps of dt = 1e-09"):
        integrate(FLOW, START, [0.0, 1.0], method="rk4", dt=1e-9)
    for finest_dt in (1e-9, 1e-300):
        with pytest.raises(ValueError, match="finest_dt must make at most 100,000,000 steps"):
            BrownianPath(0, 0.0, 1.0, finest_dt, 6)


def test_a_long_descent_that_keeps_little_begins():
    def stop(k, t, theta):
        if k == 2:
            raise KeyboardInterrupt
        return {}

    stop.name, stop.every = "stop", 1
    for settings in ({"keep": "last"}, {"every": 100}):
        run = descend(DESCENT, START, 10**9, observers=[stop], **settings)
        assert run.status == "interrupted"


def test_counts_beyond_whole_numbers_of_64_bits_are_refused():
    for name in ("k", "index"):
        with pytest.raises(ValueError, match=f"{name} of a State must be at most"):
            State(START, **{name: 10**400})
    with pytest.raises(ValueError, match="max_steps must be at most"):
        integrate(FLOW, START, TIMES, max_steps=2**63)
    with pytest.raises(ValueError, match="steps must be at most"):
        descend(DESCENT, START, 2**63, keep="last")


def test_half_precision_that_methods_do_not_take_is_refused():
    tolerances = {"rtol": 1e-2, "atol": 1e-3}
    with pytest.raises(TypeError, match="theta0 of float16"):
        integrate(FLOW, START.half(), TIMES, **tolerances)
    with pytest.raises(TypeError, match="theta0 of bfloat16"):
        integrate(FLOW, START.bfloat16(), TIMES, method="scipy_solver", **tolerances)


def test_numpys_seeds_are_taken():
    path = minibatch_path(SGD, START, 2, seed=np.int64(1))
    assert torch.equal(path(0.0, H), minibatch_path(SGD, START, 2, seed=1)(0.0, H))
    check_noise(EQUATION, START, seed=np.int64(1))


def test_a_state_of_a_run_still_continues():
    end = descend(SGD, START, 2, seed=np.int64(3), observers=[Loss(REGRESSION)]).end
    assert torch.equal(descend(SGD, end, 1).theta[-1], descend(SGD, replace(end, step=None), 1).theta[-1])
