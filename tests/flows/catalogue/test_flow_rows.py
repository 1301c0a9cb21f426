"""Every flow of the catalogue, with each of its examples: the facts in its row, and the invariants of all flows."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from flows import StochasticFlow, Trajectory, integrate
from flows.invariants import check_batch, check_equivariance, check_noise
from landscapes import Counted
from landscapes.wrappers.base import no_counts
from landscapes.wrappers.rotated import Rotated
from tests.flows.catalogue.cases import FLOW_ROWS, NOISY, QUIET, RIPPLES, THETA0, turned

H = 0.1
every = pytest.mark.parametrize("name", FLOW_ROWS)


def flow_of(name, landscape=RIPPLES, h=H):
    return FLOW_ROWS[name][1].build(landscape, h)


def moving(flow, theta):
    """A state at θ that moves, where the flow has a velocity of its own."""
    return flow.resume(theta, 0.3 * theta.flip(-1) + 0.1)


def run(flow, theta0, steps=3, dt=0.05):
    """A short run of fixed steps; a stochastic flow on one seed."""
    if isinstance(flow, StochasticFlow):
        whole = 6 * 0.05 if flow.noise_period is None else flow.noise_period
        return integrate(flow, theta0, [0.0, whole / 2, whole], dt=whole / 6, seed=3)
    return integrate(flow, theta0, [k * dt for k in range(steps + 1)], method="rk4", dt=dt)


@every
def test_an_evaluation_costs_what_the_row_says(name, normal):
    flow = flow_of(name, Counted(RIPPLES))
    counted = next(iter(flow.declared_landscapes), Counted(RIPPLES))
    counts = counted.counts
    counts.update(no_counts())  # building the flow may have taken some
    state = moving(flow, normal(3, 2))
    if isinstance(flow, StochasticFlow):
        flow.rate(0.0, state, normal(4, flow.noise_size))
    else:
        flow.velocity(0.0, state)
    check_counts(counts, FLOW_ROWS[name][1].cost, flow)


def check_counts(counts, cost, model):
    """The counts are the row's, or within them; a number that the row leaves open is positive."""
    for kind, figure in cost.counts(model).items():
        if figure is None:
            assert cost.note or counts[kind] > 0, kind
        elif cost.limit:
            assert counts[kind] <= figure + 1e-12, kind
        else:
            assert counts[kind] == pytest.approx(figure), kind


@every
def test_the_noise_is_of_the_kind_that_the_row_says(name, normal):
    flow, example = flow_of(name), FLOW_ROWS[name][1]
    assert isinstance(flow, StochasticFlow) == (example.noise is not None)
    if example.noise is not None:
        assert flow.noise_kind == example.noise
        check_noise(flow, normal(5, 3, 2))


@every
def test_velocity_keeps_dtype_device_and_shape(name, dtype, device, normal):
    flow = flow_of(name)
    for batch in ((), (2,), (2, 1)):
        state = flow.start(normal(7, *batch, 2, dtype=dtype).to(device))
        velocity = flow.velocity(0.0, state)
        assert (velocity.shape, velocity.dtype, velocity.device) == (state.shape, state.dtype, state.device)
        assert flow.position(state).shape == (*batch, 2)
        assert velocity.isfinite().all()
        assert not velocity.requires_grad


@every
def test_a_batch_is_its_members(name, normal):
    flow = flow_of(name)
    dt = 0.05 if getattr(flow, "noise_period", None) is None else flow.noise_period / 6
    thetas = THETA0 + 0.2 * normal(2, 2, 2)
    if "krylov" in name:  # slow along runs: the field only
        state = moving(flow, thetas)
        alone = torch.stack([flow.velocity(0.0, member) for member in state])
        assert_close(flow.velocity(0.0, state), alone, rtol=1e-12, atol=1e-13)
        return
    check_batch(flow, thetas, steps=2, dt=dt)


@every
def test_the_drift_turns_with_the_coordinates(name, normal):
    row, example = FLOW_ROWS[name]
    assert row.equivariant  # a flow that does not turn has a test of its own
    rotation = torch.linalg.qr(normal(0, 2, 2))[0]
    theta = normal(1, 3, 2)

    def build(landscape):
        return example.build(turned(landscape), H)

    check_equivariance(build, RIPPLES, theta, rotation)
    # positions alone are at rest where there is a velocity: the whole state, block by block
    plain, there = build(RIPPLES), build(Rotated(RIPPLES, rotation))
    one = plain.velocity(0.0, plain.resume(theta, theta.flip(0)))
    other = there.velocity(0.0, there.resume(theta @ rotation.mT, theta.flip(0) @ rotation.mT))
    assert_close(one.reshape(-1, 2) @ rotation.mT.to(one), other.reshape(-1, 2), rtol=1e-9, atol=1e-11)


@every
def test_a_run_is_saved_and_loaded_whole(name, dtype, tmp_path, normal):
    done = run(flow_of(name), THETA0.to(dtype))
    assert done.status == "finished"
    assert done.theta.dtype in (dtype, dtype.to_complex())
    done.save(tmp_path / "run")
    back = Trajectory.load(tmp_path / "run")
    assert torch.equal(back.theta, done.theta)
    assert torch.equal(back.times, done.times)
    assert (back.status, back.cost) == (done.status, done.cost)


@every
def test_both_precisions_give_the_same_run(name):
    fine, coarse = (run(flow_of(name), THETA0.to(kind)).theta for kind in (torch.float64, torch.float32))
    assert_close(coarse.to(fine.dtype), fine, rtol=2e-3, atol=2e-4)


@every
def test_a_flow_is_parameters_only(name):
    flow = flow_of(name)
    (first, *_) = dataclasses.fields(flow)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(flow, first.name, None)


def test_the_cases_are_quiet_or_noisy():
    assert set(QUIET) | set(NOISY) == set(FLOW_ROWS)
    assert QUIET
    assert NOISY
