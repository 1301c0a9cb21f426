"""What a drift-adjusted rate refuses, and that it leaves everything as before."""

import pytest
import torch
from torch import nn

from flows import DriftAdjustedRate
from landscapes import UnsupportedError
from tests.flows.bowl import Bowl, theta_of

drifts = pytest.mark.parametrize("drift", ["exact", "difference"])


class OnceOnly(torch.autograd.Function):
    """x³ with a derivative that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def test_a_loss_of_one_derivative_goes_by_difference():
    weight = nn.Parameter(torch.tensor([0.9], dtype=torch.float64))
    weight.grad = torch.tensor([5.0], dtype=torch.float64)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def sixth_power():
        return OnceOnly.apply(weight).square().sum()

    with pytest.raises(UnsupportedError, match=r"cannot be differentiated twice .*use drift='difference'"):
        DriftAdjustedRate(optimizer).step(sixth_power)
    assert (weight.grad.item(), optimizer.param_groups[0]["lr"]) == (5.0, 0.1)  # as before the error
    rate = DriftAdjustedRate(optimizer, cap=50.0, drift="difference")
    rate.step(sixth_power)
    assert rate.get_last_lr() == [pytest.approx(2 / (30 * 0.9**4), rel=1e-6)]


@pytest.mark.parametrize("state", [{}, {"recent": []}, 3, {"recent": [], "base": 0.1, "ratios": [1.0, 1.0]}], ids=str)
def test_states_of_something_else(state):
    with pytest.raises(ValueError, match="state must"):
        DriftAdjustedRate(torch.optim.SGD(Bowl().parameters(), lr=0.1)).load_state_dict(state)


class NoRate(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        pass


OPTIMIZERS = {
    "none": (lambda p: 3, TypeError, r"optimizer must be a torch\.optim\.Optimizer, got int"),
    "LBFGS": (torch.optim.LBFGS, UnsupportedError, "LBFGS evaluates the loss itself"),
    "no rate": (NoRate, UnsupportedError, "NoRate has no learning rate"),
    "rate zero": (lambda p: torch.optim.SGD(p, lr=0.0), ValueError, "lr of the optimizer's first .* must be positive"),
}


@pytest.mark.parametrize(("build", "error", "match"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_that_cannot_be_used(build, error, match):
    with pytest.raises(error, match=match):
        DriftAdjustedRate(build(list(Bowl().parameters())))


ARGUMENTS = {
    "power": ({"power": -0.5}, "power must be at least 0"),
    "cap": ({"cap": 0}, "cap must be positive"),
    "window": ({"window": 0}, "window must be at least 1"),
    "drift": ({"drift": "backward"}, "drift must be one of 'exact', 'difference'"),
}


@pytest.mark.parametrize(("arguments", "match"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        DriftAdjustedRate(torch.optim.SGD(Bowl().parameters(), lr=0.1), **arguments)


def backward_inside(module):
    loss = module()
    loss.backward(retain_graph=True)
    return loss


CLOSURES = {
    "float": (lambda m: m().item(), TypeError, "closure must return the loss as a .*Tensor, got float"),
    "detached": (lambda m: m().detach(), ValueError, "closure must return the loss with its graph"),
    "vector": (lambda m: m.first * 2, ValueError, r"closure must return a real scalar, got shape \(2,\)"),
    "complex": (lambda m: m() * 1j, ValueError, "closure must return a real scalar, got .*complex"),
    "backward": (backward_inside, ValueError, r"closure must not call backward\(\)"),
    "elsewhere": (lambda m: Bowl()(), ValueError, "one that depends on none"),
    "raising": (lambda m: {}["lost"], KeyError, "lost"),
}


@drifts
@pytest.mark.parametrize(("closure", "error", "match"), CLOSURES.values(), ids=CLOSURES)
def test_closures_that_cannot_be_used(closure, error, match, drift):
    module = Bowl()
    module.first.grad = kept = torch.ones(2, dtype=torch.float64)
    rate = DriftAdjustedRate(torch.optim.SGD(module.parameters(), lr=0.1), drift=drift)
    with pytest.raises(error, match=match):
        rate.step(lambda: closure(module))
    assert module.first.grad is kept
    assert module.second.grad is None
    assert rate.get_last_lr() == [0.1]
    with pytest.raises(TypeError, match="closure must be callable"):
        rate.step(module())


def test_an_error_in_the_second_call_puts_everything_back():
    module, calls = Bowl(), []

    def closure():
        calls.append(theta_of(module))
        if len(calls) == 2:
            raise KeyboardInterrupt
        torch.rand(3)
        return module()

    before = theta_of(module)
    torch.manual_seed(2)
    rate = DriftAdjustedRate(torch.optim.SGD(module.parameters(), lr=0.1), drift="difference")
    with pytest.raises(KeyboardInterrupt):
        rate.step(closure)
    assert not torch.equal(calls[1], before)
    assert torch.equal(theta_of(module), before)
    following = torch.rand(2)
    torch.manual_seed(2)
    torch.rand(3)
    assert torch.equal(following, torch.rand(2))  # as the first call left the generator
    assert module.first.grad is None


@drifts
def test_parameters_and_modes_that_cannot_be_used(drift):
    embedding = nn.Embedding(5, 2, sparse=True)
    rate = DriftAdjustedRate(torch.optim.SGD(embedding.parameters(), lr=0.1), drift=drift)
    with pytest.raises(UnsupportedError, match="gradients must be dense, got a sparse one"):
        rate.step(lambda: embedding(torch.tensor([1, 2])).square().sum())
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(UnsupportedError, match=r"parameters must be real, got torch\.complex64"):
        DriftAdjustedRate(torch.optim.SGD([weight], lr=0.1), drift=drift).step(lambda: weight.abs().sum())
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(ValueError, match="a parameter that requires a gradient, got none"):
        DriftAdjustedRate(torch.optim.SGD([frozen], lr=0.1), drift=drift).step(frozen.sum)
    with pytest.raises(UnsupportedError, match="inference_mode"), torch.inference_mode():
        DriftAdjustedRate(torch.optim.SGD(Bowl().parameters(), lr=0.1), drift=drift).step(Bowl())
