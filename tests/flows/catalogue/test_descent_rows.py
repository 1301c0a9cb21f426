"""Every descent of the catalogue, with each of its examples: the facts in its row, and the invariants of all."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from flows import OptimizerDescent, Trajectory, descend
from flows.catalogue.descents import DESCENTS, FRICTION
from flows.invariants import check_batch
from landscapes import Counted
from landscapes.wrappers.base import no_counts
from landscapes.wrappers.rotated import Rotated
from tests.flows.catalogue.cases import DESCENT_ROWS, RIPPLES, THETA0, Ripples, turned
from tests.flows.catalogue.test_flow_rows import check_counts

H, STEPS = 0.1, 5
every = pytest.mark.parametrize("name", DESCENT_ROWS)
FORMS = [name for name, (row, _) in DESCENT_ROWS.items() if row.torch is not None and "isotropic" not in name]


class Recording(Ripples):
    """Ripples that keep the last gradient taken."""

    def grad(self, theta):
        self.last = super().grad(theta)
        return self.last

    def batch_grad(self, theta, index):
        self.last = super().batch_grad(theta, index)
        return self.last

    def weighted_grad(self, theta, weights):
        self.last = super().weighted_grad(theta, weights)
        return self.last

    def restrict(self, index):
        self.inner = Recording(self.features[index], self.targets[index])
        return self.inner


def descent_of(name, landscape=RIPPLES, h=H):
    return DESCENT_ROWS[name][1].build(landscape, h)


def states_of(descent, theta0=THETA0, steps=STEPS):
    """The states of a run, and the gradients of its steps if the landscape records them."""
    state, generator, gradients = descent.start(theta0), torch.Generator().manual_seed(4), []
    states = [state]
    for k in range(steps):
        state = descent.step(state, k, generator)
        states.append(state)
        gradients.append(getattr(descent.landscape, "last", None))
    return states, gradients


@every
def test_a_step_costs_what_the_row_says(name, normal):
    counted = Counted(RIPPLES)
    descent = descent_of(name, counted)
    counted.counts.update(no_counts())
    descent.step(descent.start(normal(3, 2)), 0, torch.Generator().manual_seed(0))
    check_counts(counted.counts, DESCENT_ROWS[name][1].cost, descent)


@every
def test_a_step_draws_numbers_if_the_row_says_so(name):
    row, descent = DESCENT_ROWS[name][0], descent_of(name)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    descent.step(descent.start(THETA0), 0, generator)
    assert torch.equal(before, generator.get_state()) != row.draws


@pytest.mark.parametrize("name", FORMS)
def test_a_descent_is_the_torch_optimiser_that_the_row_names(name):
    row = DESCENT_ROWS[name][0]
    landscape = Recording(RIPPLES.features, RIPPLES.targets)
    descent = descent_of(name, landscape)
    settings = row.torch.settings(descent)
    parameter = torch.nn.Parameter(THETA0.clone())
    optimiser = torch.optim.SGD([parameter], **dataclasses.asdict(settings))
    states, gradients = states_of(descent)
    for state, gradient in zip(states[1:], gradients, strict=True):
        parameter.grad = gradient.clone()
        optimiser.step()
        theta = descent.position(state)
        if row.torch.caveat:  # its θ is x, torch's x + hβv
            theta = theta + H * (1 - H * FRICTION) * descent.velocity(state)
        if row.torch.exact:
            assert torch.equal(theta, parameter.detach())
        else:
            assert_close(theta, parameter.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FORMS)
def test_the_arguments_of_torch_are_turned_back_into_the_descents(name):
    row, descent = DESCENT_ROWS[name][0], descent_of(name)
    for key, value in row.torch.arguments(row.torch.settings(descent)).items():
        assert getattr(descent, key) == pytest.approx(value)


@every
def test_the_clock_is_the_one_of_the_row(name):
    row = DESCENT_ROWS[name][0]
    landscape = Recording(RIPPLES.features, RIPPLES.targets)
    descent = descent_of(name, landscape)
    states, gradients = states_of(descent)
    times = [descent.elapsed(k, state) for k, state in enumerate(states)]
    assert times[0] == 0
    if row.clock == "t = sum of the rates":
        thetas, total = [descent.position(state) for state in states], 0.0
        for k, gradient in enumerate(gradients):
            if gradient is None or "difference" in name or row.name.startswith("Stochastic"):
                return  # the gradient of a step is not the last one taken
            total += float((thetas[k] - thetas[k + 1]) @ gradient / gradient.square().sum())
            assert times[k + 1] == pytest.approx(total)
    else:
        divisor = {"t = k·h": 1, "t = k·h/level": 2, "t = sum of the first group's rates": 1}[row.clock]
        assert times == pytest.approx([k * H / divisor for k in range(STEPS + 1)])


@every
def test_a_descent_keeps_dtype_device_and_shape(name, dtype, device, normal):
    descent = descent_of(name)
    theta0 = normal(4, 2, dtype=dtype).to(device)
    assert torch.equal(descent.position(descent.start(theta0)), theta0)
    run = descend(descent, theta0, 3)
    assert run.status == "finished"
    assert (run.theta.shape, run.theta.dtype, run.theta.device.type) == ((4, 2), dtype, device.type)
    assert not run.theta.requires_grad


@every
def test_both_precisions_give_the_same_run(name):
    fine, coarse = (descend(descent_of(name), THETA0.to(kind), 4).theta for kind in (torch.float64, torch.float32))
    assert_close(coarse.double(), fine, rtol=2e-3, atol=2e-4)


OWN_RATES = ("DriftAdjusted", "StochasticDriftAdjusted")  # members have their own clocks: descend refuses a batch


@pytest.mark.parametrize(
    "name", [n for n, (r, _) in DESCENT_ROWS.items() if not r.draws and not n.startswith(OWN_RATES)]
)
def test_a_batch_is_its_members(name, normal):
    check_batch(descent_of(name), THETA0 + 0.2 * normal(2, 2, 2), steps=4)


@pytest.mark.parametrize("name", [name for name, (row, _) in DESCENT_ROWS.items() if row.draws])
def test_equal_seeds_draw_equal_numbers(name):
    one, same, other = (descend(descent_of(name), THETA0, 5, seed=seed).theta for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", [name for name in DESCENT_ROWS if "isotropic" not in name])  # turns in law only
def test_iterates_turn_with_the_coordinates_if_the_row_says_so(name, normal):
    row, example = DESCENT_ROWS[name]
    rotation = torch.linalg.qr(normal(0, 2, 2))[0]
    plain = descend(descent_of(name), THETA0, 40, seed=2).theta
    there = descend(example.build(turned(Rotated(RIPPLES, rotation)), H), THETA0 @ rotation.mT, 40, seed=2).theta
    tolerance = 1e-6 if "difference" in name else 1e-10
    assert torch.allclose(there, plain @ rotation.mT, rtol=tolerance, atol=tolerance) == row.equivariant


@every
def test_a_run_is_saved_and_loaded_whole(name, dtype, tmp_path):
    done = descend(descent_of(name), THETA0.to(dtype), 4, seed=1)
    done.save(tmp_path / "run")
    back = Trajectory.load(tmp_path / "run")
    assert torch.equal(back.theta, done.theta)
    assert torch.equal(back.times, done.times)
    assert (back.status, back.cost) == (done.status, done.cost)


@every
def test_a_descent_is_parameters_only(name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        descent_of(name).landscape = None


def test_any_optimiser_of_torch_is_one_row():
    assert DESCENTS["OptimizerDescent"].kind is OptimizerDescent
