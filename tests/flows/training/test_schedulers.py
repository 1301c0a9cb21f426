"""Drift-adjusted rates in an ordinary loop: the descents' steps, torch.optim, modules of many kinds, refusals."""

import copy
import json
import math
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flows import DriftAdjustedDescent, DriftAdjustedRate, StochasticDriftAdjustedDescent, descend
from landscapes.sampling import SAMPLINGS
from nets import NetworkLandscape
from tests.flows.bowl import Bowl, theta_of

N = 12
EPS = torch.finfo(torch.float64).eps
drifts = pytest.mark.parametrize("drift", ["exact", "difference"])


def square(outputs, targets):
    return 0.2 * (outputs - targets).square().sum(-1)  # sharpness below 1: powers below 1 are then stable too


def tanh_net(seed=0, dtype=torch.float64):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return module


@pytest.fixture
def data(normal):
    return normal(1, N, 3), normal(2, N, 2)


@drifts
@pytest.mark.parametrize(("power", "window"), [(1.0, 1), (0.5, 3), (0.0, 2)])
def test_a_full_batch_loop_takes_the_descents_steps(drift, power, window, data, device):
    module, (x, y) = tanh_net().to(device), (part.to(device) for part in data)
    landscape = NetworkLandscape(copy.deepcopy(module), square, x, y)
    descent = DriftAdjustedDescent(landscape, 0.05, power, 4.0, window, drift)
    run = descend(descent, landscape.theta0, 15)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    rate, losses = DriftAdjustedRate(optimizer, power, 4.0, window, drift), []
    for k in range(15):
        losses.append(rate.step(lambda: square(module(x), y).mean()))
        optimizer.step()
        # a difference of gradients turns their rounding, a few eps, into a few √eps
        tolerance = 1e-11 if drift == "exact" or power == 0 else 100 * EPS**0.5
        assert_close(theta_of(module), run.theta[k + 1], rtol=tolerance, atol=tolerance)
        assert rate.get_last_lr() == [pytest.approx(float(run.times.diff()[k]), rel=tolerance)]
    assert_close(torch.stack(losses), landscape.loss(run.theta[:-1]), rtol=1e-5, atol=0)
    assert power == 0 or len({round(float(t), 6) for t in run.times.diff()}) > 5  # not the cap alone


@drifts
@pytest.mark.parametrize("sampling", ["epoch", "replacement"])
def test_a_mini_batch_loop_takes_the_descents_steps(drift, sampling, data):
    module, (x, y) = tanh_net(3), data
    landscape = NetworkLandscape(copy.deepcopy(module), square, x, y)
    run = descend(
        StochasticDriftAdjustedDescent(landscape, 0.1, 5, sampling, 0.9, 2.5, 2, drift), landscape.theta0, 10, seed=4
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    rate, draws = DriftAdjustedRate(optimizer, 0.9, 2.5, 2, drift), SAMPLINGS[sampling](N, 5)
    order, generator = torch.arange(N), torch.Generator().manual_seed(4)
    for k in range(10):
        index, order = draws.draw(order, k, generator)
        rate.step(lambda: square(module(x[index]), y[index]).mean())  # noqa: B023  # called within the turn
        optimizer.step()
        tolerance = 1e-11 if drift == "exact" else 100 * EPS**0.5
        assert_close(theta_of(module), run.theta[k + 1], rtol=tolerance, atol=tolerance)
    assert len(run.times.diff().unique()) > 3  # not the cap alone
    examples = 50 if sampling == "replacement" else 5 + 5 + 2 + 5 + 5 + 2 + 5 + 5 + 2 + 5
    units = examples / N
    assert run.cost["grad"] == pytest.approx(units if drift == "exact" else 2 * units)
    assert run.cost["hvp"] == pytest.approx(units if drift == "exact" else 0)


@drifts
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_at_power_zero_the_loop_is_the_plain_one_to_the_last_bit(drift, optimizer_class, data, dtype):
    x, y = (part.to(dtype) for part in data)
    ours, plain = tanh_net(dtype=dtype), tanh_net(dtype=dtype)
    options = {"lr": 0.03, "weight_decay": 0.01} | ({"momentum": 0.9} if optimizer_class is torch.optim.SGD else {})
    optimizers = [optimizer_class(module.parameters(), **options) for module in (ours, plain)]
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5) for optimizer in optimizers]
    rate = DriftAdjustedRate(optimizers[0], power=0.0, drift=drift)
    graphs = []

    def closure():
        out = ours(x)
        out.register_hook(lambda _: graphs.append(torch.is_grad_enabled()))
        return square(out, y).mean()

    for _ in range(6):
        loss = rate.step(closure)
        optimizers[1].zero_grad()
        expected = square(plain(x), y).mean()
        expected.backward()
        assert torch.equal(loss, expected.detach())
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        assert torch.equal(theta_of(ours), theta_of(plain))
        assert rate.get_last_lr() == schedules[1].get_last_lr()
    assert graphs == [False] * 6  # one call a step, no graph of the gradient


@drifts
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_momentum_by_hand(drift, momentum):
    module = Bowl()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=momentum, weight_decay=0.1)
    rate = DriftAdjustedRate(optimizer, 0.7, 0.9, 2, drift)
    theta, buffer, seen, calls = theta_of(module), torch.zeros(3, dtype=torch.float64), [], []
    for _ in range(8):
        seen.append(module.ratio())  # of the loss alone: the optimiser's decay is no part of it
        h = min(0.9, 2 / (sum(seen[-2:]) / len(seen[-2:])) ** 0.7)
        buffer = momentum * buffer + module.eigenvalues * theta + 0.1 * theta
        rate.step(lambda: calls.append(0) or module())
        optimizer.step()
        theta = theta - h * buffer
        assert_close(theta_of(module), theta, rtol=1e-6, atol=1e-7)
        assert rate.get_last_lr() == [pytest.approx(h, rel=1e-6)]
        assert rate.state_dict()["recent"] == pytest.approx(seen[-2:], rel=1e-6)
    assert len(calls) == (8 if drift == "exact" else 16)


def two_groups(module, first, second):
    groups = [{"params": [module.first], "lr": first}, {"params": [module.second], "lr": second}]
    optimizer = torch.optim.Adam(groups)
    return optimizer, DriftAdjustedRate(optimizer, 1.0, 50.0)


def test_groups_keep_their_ratios_and_tensors_stay_tensors():
    module, captured = Bowl(), torch.tensor(0.05)
    optimizer, rate = two_groups(module, 0.2, captured)
    rate.step(module)
    h = 2 / module.ratio()
    assert rate.get_last_lr() == pytest.approx([h, h / 4])
    assert optimizer.param_groups[1]["lr"] is captured
    assert isinstance(optimizer.param_groups[0]["lr"], float)
    resumed_optimizer, resumed = two_groups(module, 0.7, 0.7)
    resumed.load_state_dict(rate.state_dict())
    late = nn.Parameter(torch.ones(1, dtype=torch.float64))
    for _ in range(2):
        for chosen, adjusted in ((optimizer, rate), (resumed_optimizer, resumed)):
            if len(chosen.param_groups) == 2:
                chosen.add_param_group({"params": [late], "lr": 0.4})  # twice the first group's at construction
            adjusted.step(lambda: module() + late.sum() * 0)
            assert adjusted.get_last_lr() == pytest.approx([h, h / 4, 2 * h])


@drifts
def test_frozen_unused_and_shared_gradients(drift):
    module = Bowl()
    frozen, unused = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([module.first, frozen, module.second, unused], lr=0.1)
    unused.grad, frozen.grad, module.first.grad = torch.ones(2), torch.ones(2), torch.full((2,), 7.0).double()
    rate = DriftAdjustedRate(optimizer, 1.0, 50.0, drift=drift)
    loss = rate.step(lambda: module() * frozen.sum() / 2)
    assert rate.get_last_lr() == [pytest.approx(2 / module.ratio(), rel=1e-6)]
    assert unused.grad is None
    assert torch.equal(frozen.grad, torch.ones(2))
    for parameter in (module.first, module.second):
        assert (parameter.grad.requires_grad, parameter.grad.grad_fn) == (False, None)
    assert_close(module.first.grad, module.eigenvalues[:2] * module.first.detach())  # not added to the 7
    assert not loss.requires_grad
    with torch.no_grad():  # the surroundings' mode is no hindrance
        assert_close(rate.step(module), module())
    twins = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    DriftAdjustedRate(torch.optim.SGD(twins, lr=0.1), drift=drift).step(lambda: (twins[0] + twins[1]).square().sum())
    twins[0].grad.mul_(0)  # as clipping would
    assert twins[1].grad.tolist() == [4.0, 4.0]


def test_no_graph_outlives_the_step():
    module, outputs = tanh_net(), []

    def closure():
        out = module(torch.ones(2, 3, dtype=torch.float64))
        outputs.append(weakref.ref(out))
        return out.square().sum()

    DriftAdjustedRate(torch.optim.SGD(module.parameters(), lr=0.1)).step(closure)
    assert [ref() for ref in outputs] == [None]


@pytest.mark.parametrize("case", ["linear", "at the minimum", "linear in one"])
@drifts
def test_without_drift_the_rate_is_the_cap(case, drift):
    module = Bowl(first=(0.0, 0.0), second=(3.0,))
    with torch.no_grad():
        module.second.zero_()
    extra = 0.0 if case == "at the minimum" else 1.0
    rate = DriftAdjustedRate(torch.optim.SGD(module.parameters(), lr=0.1), cap=4.0, drift=drift)
    rate.step(lambda: extra * module.first.sum() + (0 if case == "linear" else module()))
    assert rate.get_last_lr() == [4.0]
    assert module.second.grad is None or module.second.grad.tolist() == [0.0]


@drifts
def test_dropout_cannot_fake_a_drift(drift, device):
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double().to(device)
    x = torch.ones(6, 4, dtype=torch.float64, device=device)
    rate = DriftAdjustedRate(torch.optim.SGD(module.parameters(), lr=0.1), cap=1e9, drift=drift)
    before = [p.detach().clone() for p in module.parameters()]

    def closure():
        return module(x).square().mean()

    torch.manual_seed(5)
    rate.step(closure)
    following = torch.rand(3, device=device)
    assert all(torch.equal(p, kept) for p, kept in zip(module.parameters(), before, strict=True))  # to the last bit
    torch.manual_seed(5)
    exact = DriftAdjustedRate(torch.optim.SGD(module.parameters(), lr=0.1), cap=1e9)
    exact.step(closure)
    assert torch.equal(following, torch.rand(3, device=device))  # the loop's random numbers go on as after one call
    assert rate.get_last_lr() == [pytest.approx(exact.get_last_lr()[0], rel=1e-5)]


@drifts
def test_batch_norm_in_training(drift, data):
    x, y = data
    module = nn.Sequential(
        OrderedDict(a=nn.Linear(3, 3), norm=nn.BatchNorm1d(3), tanh=nn.Tanh(), b=nn.Linear(3, 2))
    ).double()

    def loss_at(theta):
        parts = theta.split([p.numel() for p in module.parameters()])
        weights = {n: t.view(p.shape) for (n, p), t in zip(module.named_parameters(), parts, strict=True)}
        buffers = {n: b.clone() for n, b in module.named_buffers()}
        return square(torch.func.functional_call(module, {**weights, **buffers}, (x,)), y).mean()

    theta = theta_of(module)
    hessian = torch.autograd.functional.hessian(loss_at, theta)
    grad = torch.autograd.functional.jacobian(loss_at, theta)
    rate = DriftAdjustedRate(torch.optim.SGD(module.parameters(), lr=0.1), cap=1e9, drift=drift)
    rate.step(lambda: square(module(x), y).mean())
    assert rate.get_last_lr() == [pytest.approx(float(2 * grad.norm() / (hessian @ grad).norm()), rel=1e-5)]
    assert int(module.norm.num_batches_tracked) == (1 if drift == "exact" else 2)  # as the docstring warns


def test_the_difference_is_right_where_torch_is_not(normal):
    """Torch's fused weight norm has a wrong second derivative; g·v/‖v‖ written out has the right one."""
    x, start = normal(3, 8, 3), (normal(4, 5, 1).abs() + 0.5, normal(5, 5, 3))

    def rate_of(weight, drift):
        magnitude, direction = (nn.Parameter(part.clone()) for part in start)
        rate = DriftAdjustedRate(torch.optim.SGD([magnitude, direction], lr=0.1), cap=1e9, drift=drift)
        rate.step(lambda: torch.tanh(x @ weight(magnitude, direction).T).sum(-1).square().mean())
        return rate.get_last_lr()[0]

    def fused(magnitude, direction):
        return torch._weight_norm(direction, magnitude, 0)

    right = rate_of(lambda magnitude, direction: magnitude * direction / direction.norm(dim=1, keepdim=True), "exact")
    assert rate_of(fused, "difference") == pytest.approx(right, rel=1e-6)
    assert rate_of(fused, "exact") != pytest.approx(right, rel=1e-6)  # once torch is right, the docstring can say less


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_and_mixed_precisions(dtype):
    module = Bowl()
    exact = module.ratio()
    module.first.data = module.first.data.to(dtype)
    for drift, tolerance in (("exact", 4 * torch.finfo(dtype).eps), ("difference", 5 * torch.finfo(dtype).eps ** 0.5)):
        rate = DriftAdjustedRate(torch.optim.SGD(module.parameters(), lr=0.1), cap=50.0, drift=drift)
        rate.step(module)
        assert rate.get_last_lr() == [pytest.approx(2 / exact, rel=tolerance)]
        assert (module.first.grad.dtype, module.second.grad.dtype) == (dtype, torch.float64)


def test_a_ratio_that_is_no_number_is_not_remembered():
    module, factor = Bowl(), [1.0]
    rate = DriftAdjustedRate(torch.optim.SGD(module.parameters(), lr=0.1), 1.0, 50.0, window=3)
    for factor[0] in (1.0, math.nan, math.inf, 2.0):
        rate.step(lambda: factor[0] * module())
        assert math.isnan(rate.get_last_lr()[0]) == (not math.isfinite(factor[0]))
    assert rate.state_dict()["recent"] == pytest.approx([module.ratio(), 2 * module.ratio()])
    assert rate.get_last_lr() == pytest.approx([2 / (1.5 * module.ratio())])


@drifts
def test_a_saved_run_goes_on_as_if_never_stopped(drift, data):
    x, y = data

    def built():
        module = tanh_net(7)
        groups = [{"params": module[0].parameters()}, {"params": module[2].parameters(), "lr": 0.03}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.5)
        return module, optimizer, DriftAdjustedRate(optimizer, 0.8, 0.5, 4, drift)

    def train(module, optimizer, rate, steps):
        for _ in range(steps):
            rate.step(lambda: square(module(x), y).mean())
            optimizer.step()

    whole, first, second = built(), built(), built()
    train(*whole, 9)
    train(*first, 5)
    for old, new in zip(first[:2], second[:2], strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    second[2].load_state_dict(json.loads(json.dumps(first[2].state_dict())))
    train(*second, 4)
    assert torch.equal(theta_of(second[0]), theta_of(whole[0]))
    assert second[2].state_dict() == whole[2].state_dict()
    shorter = DriftAdjustedRate(second[1], 0.8, 0.5, 2, drift)
    shorter.load_state_dict(whole[2].state_dict())
    assert shorter.state_dict()["recent"] == whole[2].state_dict()["recent"][-2:]
