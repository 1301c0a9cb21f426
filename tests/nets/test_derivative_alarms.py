"""The derivative check under stress: right networks that must not be refused, wrong ones that hide behind kinks."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscapes import UnsupportedError
from nets import (
    BatchNorm,
    LayerNorm,
    NetworkLandscape,
    UncheckedDerivativesWarning,
    WrongDerivativeError,
    binary_cross_entropy,
    build_network,
    cross_entropy,
    load_data,
    square_loss,
)
from tests.nets.architecture_cases import CLASSES, NAMES, SHAPES
from tests.nets.wrong import WrongSlope

SEEDS = range(5)


class Applies(nn.Module):
    """A layer, then any function of what comes in and what goes out."""

    def __init__(self, function, inputs=4, outputs=4):
        super().__init__()
        self.layer, self.function = nn.Linear(inputs, outputs), function

    def forward(self, x):
        return self.function(x, self.layer(x))


def masked(x, y):
    return y.masked_fill((x > 0).float() == 0, 0.0)


# right functions with ties, zeros, counts or stiffness in them, as child modules of networks
RIGHT = {
    "float mask": masked,
    "clamped count": lambda x, y: y / (x > 9).double().sum(1, keepdim=True).clamp(min=1),
    "clamp": lambda x, y: y.clamp(0, 6),
    "clamp from below": lambda x, y: y.clamp(min=0),
    "x times (x > 0)": lambda x, y: y * (y > 0),
    "where": lambda x, y: torch.where(y > 0, y, 0.1 * y),
    "largest": lambda x, y: torch.cat([y.max(-1, keepdim=True)[0], y[:, 1:]], 1),
    "topk": lambda x, y: torch.cat([y.topk(2)[0], y.topk(2)[0]], 1),
    "sorted": lambda x, y: y.sort()[0],
    "over its deviation": lambda x, y: y / (y.std() + 1e-6),
    "normalised": lambda x, y: y / (y.norm(dim=-1, keepdim=True) + 1e-8),
    "soft absolute": lambda x, y: torch.sqrt(y * y + 1e-12),
}


def check(module, inputs, loss=cross_entropy, targets=None):
    targets = torch.arange(len(inputs)) % 3 if targets is None else targets
    network = NetworkLandscape(module.double(), loss, inputs, targets)
    theta = network.theta0
    network.hvp(theta, theta)
    network.third(theta, theta, theta)
    return network


@pytest.fixture(autouse=True)
def quiet():
    """Warnings are not at issue here, refusals are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("first", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("name", RIGHT)
def test_right_modules_with_ties_are_not_refused(name, first):
    for seed in SEEDS:
        torch.manual_seed(seed)
        check(nn.Sequential(nn.Linear(4, 4), first(), Applies(RIGHT[name]), nn.Linear(4, 3)), torch.randn(8, 4))


STIFF = {
    "batch norm on raw data": lambda: (
        nn.Sequential(BatchNorm(30), nn.Linear(30, 6), nn.ReLU(), nn.Linear(6, 3)),
        load_data("breast-cancer", standardise=False, limit=40).inputs,
    ),
    "raw data": lambda: (
        nn.Sequential(nn.Linear(30, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
        load_data("breast-cancer", standardise=False, limit=40).inputs,
    ),
    "batch norm far from zero": lambda: (
        nn.Sequential(BatchNorm(4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
        torch.randn(8, 4, dtype=torch.float64) + 1e6,
    ),
    "layer norm of two": lambda: (
        nn.Sequential(nn.Linear(4, 2), nn.ReLU(), LayerNorm(2, 1e-12), nn.Linear(2, 3)),
        torch.randn(8, 4),
    ),
    "loud sines": lambda: (scaled(build_network("mlp", (4,), 3, activation="sine"), 1e3), torch.randn(8, 4)),
    "loud inputs": lambda: (build_network("mlp", (4,), 3, activation="sine"), 1e6 * torch.randn(8, 4)),
    "loud tanh": lambda: (scaled(build_network("mlp", (4,), 3), 1e3), torch.randn(8, 4)),
}


def scaled(module, factor):
    for parameter in module.parameters():
        parameter.data *= factor
    return module


@pytest.mark.parametrize("name", STIFF)
def test_stiff_networks_are_not_refused(name):
    for seed in SEEDS:
        torch.manual_seed(seed)
        check(*STIFF[name]())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 6))])
@pytest.mark.parametrize("name", NAMES)
def test_architectures_are_not_refused_whatever_the_seed(name, seed):
    shape, width = SHAPES.get(name, ((3, 8, 8), 0.1))
    torch.manual_seed(seed)
    check(build_network(name, shape, CLASSES, width=width, seed=seed), torch.randn(6, *shape))


HIDDEN = {
    "norm and relu in one forward": lambda x, y: F.relu(F.layer_norm(y, [4])),
    "norm and abs in one forward": lambda x, y: F.layer_norm(y, [4]).abs(),
    "custom and relu in one forward": lambda x, y: F.relu(WrongSlope.apply(y)),
}
WRONG_LOSSES = {
    "norm": lambda out, y: cross_entropy(F.layer_norm(out, [3]), y),
    "norm, square": lambda out, y: square_loss(F.layer_norm(out, [3]), y),
    "norm, bits": lambda out, y: binary_cross_entropy(F.layer_norm(out, [3])[:, 0], y.clamp(max=1).double()),
    "custom": lambda out, y: cross_entropy(WrongSlope.apply(out), y),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_wrong_derivatives_beside_a_kink_are_found(name):
    for seed in SEEDS:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Applies(HIDDEN[name]), nn.Linear(4, 3))
        with pytest.raises(WrongDerivativeError, match=r"'2' \(Applies\)"):
            check(module, torch.randn(8, 4))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_wrong_derivatives_in_the_loss_are_found(name, activation):
    for seed in SEEDS:
        torch.manual_seed(seed)
        with pytest.raises(WrongDerivativeError, match="the network as a whole"):
            check(
                build_network("mlp", (4,), 3, activation=activation, seed=seed), torch.randn(8, 4), WRONG_LOSSES[name]
            )


class Needs(nn.Module):
    """A child that works only while its parent has said so."""

    def __init__(self):
        super().__init__()
        self.child, self.head = Applies(lambda x, y: y + self.said), nn.Linear(4, 3)
        self.said = None

    def forward(self, x):
        self.said = x.mean()
        try:
            return self.head(F.relu(self.child(x)))
        finally:
            self.said = None


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.sigma = nn.Parameter(torch.tensor(0.02))

    def forward(self, x):
        return torch.distributions.Normal(self.layer(x), self.sigma).log_prob(torch.zeros(3, dtype=x.dtype))


def test_modules_that_refuse_other_inputs_are_not_blamed():
    for build in (Needs, Picky):
        torch.manual_seed(0)
        check(build(), torch.randn(8, 4))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        return checkpoint(self.second, torch.tanh(self.first(x)), use_reentrant=False)


class OwnNoise(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.generator = nn.Linear(4, 3), torch.Generator()

    def forward(self, x):
        return self.layer(x) + torch.randn(x.shape[0], 3, generator=self.generator, dtype=x.dtype)


@pytest.mark.parametrize(
    ("build", "words"), [(Checkpointed, "checkpoints its activations"), (OwnNoise, "other losses at the same theta")]
)
def test_what_is_no_function_of_theta_is_refused(build, words):
    with pytest.raises(UnsupportedError, match=words):
        check(build(), torch.randn(8, 4))


def test_randomness_switched_on_later_is_refused():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(2, 3, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.cell(x.reshape(-1, 2, 2))[0][:, -1])

    module = Recurrent().eval()
    network = check(module, torch.randn(8, 4))
    module.train()
    state = torch.get_rng_state()
    with pytest.raises(UnsupportedError, match="random"):
        network.loss(network.theta0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), r"_SpectralNorm.*module.eval\(\)"),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 3)), r"Linear.*g·v/‖v‖"),
    ],
)
def test_remedies_fit_the_module(build, words):
    with pytest.raises(WrongDerivativeError, match=words):
        check(nn.Sequential(build(), nn.Tanh(), nn.Linear(3, 3)), torch.randn(8, 4))


def test_embeddings_that_leave_out_a_row_are_named():
    module = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(WrongDerivativeError, match=r"Embedding.*padding_idx"):
        check(module, torch.arange(16).reshape(8, 2) % 5)


def test_inference_mode_is_refused_where_derivatives_would_be_zero():
    network = check(build_network("mlp", (4,), 3), torch.randn(8, 4))
    theta = network.theta0
    with torch.inference_mode():
        assert float(network.loss(theta)) > 0
        for call in (network.grad, network.example_grads, lambda x: network.hvp(x, x)):
            with pytest.raises((UnsupportedError, RuntimeError), match="inference"):
                call(theta)


def test_products_with_their_graph_ask_for_the_next_order():
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).double()
    network = NetworkLandscape(module, cross_entropy, torch.randn(8, 4), torch.arange(8) % 3)
    theta = network.theta0.requires_grad_()
    network.grad(theta)
    with pytest.raises(WrongDerivativeError, match="third"):
        network.hvp(theta, torch.ones_like(theta))


def test_a_loss_that_is_never_finite_is_not_judged():
    module = nn.Linear(4, 3).double()
    network = NetworkLandscape(module, lambda out, y: out.sum(-1) / 0.0, torch.randn(8, 4), torch.arange(8) % 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network.hvp(network.theta0, network.theta0)
    assert [w.category for w in caught] == [UncheckedDerivativesWarning]
