"""The derivative check: known-wrong modules are named at the right order, right ones pass, kinks warn, all lazily."""

import warnings

import pytest
import torch
from torch import nn

import nets
from landscapes import UnsupportedError
from nets import (
    NetworkLandscape,
    PiecewiseLinearWarning,
    UncheckedDerivativesWarning,
    WrongDerivativeError,
    cross_entropy,
)
from tests.nets.wrong import WrongSlope


class WrongSine(nn.Module):
    def forward(self, x):
        return WrongSlope.apply(x)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g


class Estimated(nn.Module):
    def forward(self, x):
        return StraightThrough.apply(x)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.embed(x.flatten(2).mT)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


class Functional(nn.Module):
    """Attention and layer norm without modules of their own."""

    def __init__(self, norm):
        super().__init__()
        self.embed, self.head, self.norm = nn.Linear(3, 8), nn.Linear(8, 5), norm

    def forward(self, x):
        tokens = self.embed(x.flatten(2).mT)
        if self.norm:
            tokens = nn.functional.layer_norm(tokens, [8])
        heads = tokens[:, None]  # (m, 1, tokens, d): the shape that torch has fused kernels for
        return self.head(nn.functional.scaled_dot_product_attention(heads, heads, heads).mean((1, 2)))


def net(middle, activation=nn.Tanh, pool=None):
    layers = [nn.Conv2d(3, 4, 3, padding=1), middle or nn.Identity(), activation(), pool or nn.Identity(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(36 if pool else 144, 5))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(36, 8), layer, nn.Flatten(), nn.Linear(24, 5)).eval()


def weight_normed():
    return nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(108, 4)), nn.Tanh(), nn.Linear(4, 5)
    )


# network: (module to be named, what to use instead), by the order at which it goes wrong
WRONG_THIRD = {
    "layer norm": (lambda: net(nn.LayerNorm([4, 6, 6])), r"'1' \(LayerNorm\).*nets.LayerNorm"),
    "batch norm, training": (lambda: net(nn.BatchNorm2d(4)), r"'1' \(BatchNorm2d\).*nets.BatchNorm.*eval"),
    "instance norm": (lambda: net(nn.InstanceNorm2d(4)), r"'1' \(InstanceNorm2d\).*nets.GroupNorm\(C, C\)"),
    "instance norm, affine": (lambda: net(nn.InstanceNorm2d(4, affine=True)), r"'1' \(InstanceNorm2d\)"),
    "batch norm behind relu": (lambda: net(nn.BatchNorm2d(4), nn.ReLU), r"'1' \(BatchNorm2d\)"),
    "layer norm behind relu and pool": (
        lambda: net(nn.LayerNorm([4, 6, 6]), nn.ReLU, nn.MaxPool2d(2)),
        r"'1' \(LayerNorm\)",
    ),
    "transformer encoder": (encoder, r"'2.norm1' \(LayerNorm\)"),
    "functional layer norm": (lambda: Functional(True), "Functional has a wrong third derivative.*differentiable"),
}
WRONG_SECOND = {
    "opaque backward": (lambda: net(WrongSine()), r"'1' \(WrongSine\).*custom backward"),
    "opaque backward behind relu": (lambda: net(WrongSine(), nn.ReLU), r"'1' \(WrongSine\)"),
    "weight norm": (weight_normed, r"'1.parametrizations.weight.0' \(_WeightNorm\).*of your own"),
}
SMOOTH = {
    "plain": lambda: net(None),
    "batch norm, eval": lambda: net(nn.BatchNorm2d(4)).eval(),
    "group norm": lambda: net(nn.GroupNorm(2, 4)),
    "our batch norm": lambda: net(nets.BatchNorm(4)),
    "our group norm": lambda: net(nets.GroupNorm(2, 4)),
    "our layer norm": lambda: net(nets.LayerNorm(6)),
    "attention": Attends,
    "functional attention": lambda: Functional(False),
    "gelu": lambda: net(None, nn.GELU),
    "average pool": lambda: net(None, pool=nn.AvgPool2d(2)),
}
KINKED = {
    "relu": (lambda: net(None, nn.ReLU), "ReLU"),
    "max pool": (lambda: net(None, pool=nn.MaxPool2d(2)), "MaxPool2d"),
    "relu, max pool, our norm": (lambda: net(nets.BatchNorm(4), nn.ReLU, nn.MaxPool2d(2)), "MaxPool2d, ReLU"),
    "elu": (lambda: net(None, nn.ELU), "ELU"),
    "leaky relu": (lambda: net(None, nn.LeakyReLU), "LeakyReLU"),
}


def landscape(build, dtype=torch.float64, n=12):
    torch.manual_seed(0)
    module = build().to(dtype)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 3, 6, 6, generator=generator, dtype=dtype)
    return NetworkLandscape(module, cross_entropy, inputs, torch.arange(n) % 5)


def second(network):
    network.hvp(network.theta0, network.theta0)


def third(network):
    network.third(network.theta0, network.theta0, network.theta0)


@pytest.mark.parametrize("name", WRONG_THIRD)
@pytest.mark.filterwarnings("ignore::nets.PiecewiseLinearWarning")
def test_wrong_third_derivatives_are_named_and_products_before_them_given(name, dtype):
    build, words = WRONG_THIRD[name]
    network = landscape(build, dtype)
    network.grad(network.theta0)
    second(network)
    for _ in range(2):  # and again: a refusal is not forgotten
        with pytest.raises(WrongDerivativeError, match=words) as caught:
            third(network)
    assert "third derivative" in str(caught.value)


@pytest.mark.parametrize("name", WRONG_SECOND)
@pytest.mark.filterwarnings("ignore::nets.PiecewiseLinearWarning")
def test_wrong_hessian_vector_products_are_named(name, dtype):
    build, words = WRONG_SECOND[name]
    network = landscape(build, dtype)
    network.grad(network.theta0)
    for product in (second, third):
        with pytest.raises(WrongDerivativeError, match=words) as caught:
            product(network)
        assert "Hessian-vector product" in str(caught.value)


def test_a_wrong_gradient_is_found_too():
    network = landscape(lambda: net(Estimated()))
    with pytest.raises(WrongDerivativeError, match=r"'1' \(Estimated\) has a wrong gradient"):
        second(network)


@pytest.mark.parametrize("name", SMOOTH)
def test_right_networks_pass_without_a_word(name, dtype):
    network = landscape(SMOOTH[name], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second(network)
        third(network)


@pytest.mark.parametrize("name", KINKED)
def test_kinks_warn_once_and_name_the_layers(name):
    build, words = KINKED[name]
    network = landscape(build)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second(network)
        third(network)
        second(network.restrict(torch.arange(5)))
    (only,) = [warning for warning in caught if warning.category is PiecewiseLinearWarning]
    assert f"kinks ({words})" in str(only.message)


def test_kinks_in_the_loss_are_told_by_operation():
    module = net(None)
    network = NetworkLandscape(
        module, lambda out, y: out.abs().sum(-1), torch.ones(4, 3, 6, 6), torch.zeros(4, dtype=torch.int64)
    )
    with pytest.warns(PiecewiseLinearWarning, match=r"kinks \(abs\)"):
        second(network)


def test_the_check_is_lazy_runs_once_and_leaves_the_module_alone():
    network = landscape(SMOOTH["our batch norm"])
    module = network._function.module
    passes = []
    handle = module.register_forward_hook(lambda *_: passes.append(1))
    network.grad(network.theta0), network.losses(network.theta0)
    assert len(passes) == 2
    second(network)
    after_first = len(passes)
    second(network)
    second(network.restrict(torch.arange(6)))
    assert len(passes) == after_first + 2
    third(network)
    assert len(passes) > after_first + 3
    handle.remove()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_modes_are_checked_apart():
    module = net(nn.BatchNorm2d(4)).double().eval()
    network = NetworkLandscape(module, cross_entropy, torch.randn(6, 3, 6, 6), torch.arange(6) % 5)
    third(network)
    module.train()
    with pytest.raises(WrongDerivativeError, match="BatchNorm2d"):
        third(network)


class HidesFloat32(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.hidden = nn.Linear(108, 5), torch.ones(5, 5)  # no buffer, so it stays float32

    def forward(self, x):
        return torch.tanh(self.layer(x.flatten(1))) @ self.hidden


def test_what_cannot_run_in_float64_warns_and_works():
    network = landscape(HidesFloat32, torch.float32)
    with pytest.warns(UncheckedDerivativesWarning, match="float64"):
        second(network)


def test_what_torch_cannot_differentiate_is_named():
    network = landscape(SMOOTH["functional attention"])
    network._function.attention = False  # as if torch's fused kernels were used
    with pytest.raises(UnsupportedError, match="cannot differentiate"):
        third(network)


class Distances(nn.Module):
    """Of which torch has one derivative, and a kink besides."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(108, 5)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return nn.functional.relu(torch.cdist(y, y[:5]))


@pytest.mark.parametrize("build", [Distances, lambda: net(None, nn.Hardsigmoid)])
def test_kinks_do_not_hide_that_torch_has_no_second_derivative(build):
    network = landscape(build)
    network.grad(network.theta0)
    with pytest.raises(UnsupportedError, match="cannot differentiate the network as a whole 2 times"):
        second(network)


def test_running_out_of_memory_is_not_taken_for_a_network_that_cannot_run(monkeypatch):
    network = landscape(SMOOTH["plain"])

    def full(_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(network._derivatives, "forward", full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        second(network)


def test_attention_is_found_wherever_it_is_called():
    assert landscape(Attends)._function.attention
    assert landscape(SMOOTH["functional attention"])._function.attention
    assert not landscape(SMOOTH["plain"])._function.attention
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    third(landscape(Attends))
    assert before == (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_start_on_a_symmetric_point_does_not_blind_the_check(start):
    """All-equal weights make many products vanish; the check steps off them."""

    def build():
        module = net(nn.LayerNorm([4, 6, 6]))
        for parameter in module.parameters():
            nn.init.constant_(parameter, start)
        return module

    with pytest.raises(WrongDerivativeError, match="LayerNorm"):
        third(landscape(build))
