"""What modules a NetworkLandscape takes, how it leaves them, and what it refuses."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscapes import NotHolomorphicError, UnsupportedError
from nets import MLP, HolomorphicNetworkLandscape, LeNet, NetworkLandscape
from tests.tensors import draw

N = 8
cross_entropy = functools.partial(F.cross_entropy, reduction="none")


def square(outputs, targets):
    return ((outputs - targets) ** 2).sum(-1)


INPUTS, LABELS, VALUES = draw(1, N, 4), torch.arange(N) % 3, draw(2, N, 3)


class Tied(nn.Module):
    """Encoder and decoder share a weight under two names, and a layer is used twice."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.decoder(torch.tanh(self.encoder(x)))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.cell(x.reshape(-1, 2, 2))[0][:, -1])


class Branching(nn.Module):
    """Control flow on values, which vmap refuses."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if bool(x.sum() > 0) else 2 * self.layer(x)


class ScaledBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor(3.0))
        self.alias = nn.Module()
        self.alias.register_buffer("scale", self.scale)

    def forward(self, x):
        self.scale.mul_(2)  # in place, and seen under the other name
        out = self.layer(x) * self.alias.scale
        self.scale = self.scale + 1
        return out


def normed(training):
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).train(training)


def frozen():
    module = MLP((4, 5, 3))
    module.layers[0].requires_grad_(False)
    return module


MODULES = {
    "tied": Tied,
    "lstm": Recurrent,
    "batch norm, training": functools.partial(normed, True),
    "batch norm, eval": functools.partial(normed, False),
    "frozen": frozen,
    "buffers": ScaledBuffer,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)).eval(),
    "dropout, eval": lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout()).eval(),
    "scalar": lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU()),
}


def fingerprint(module):
    """All that must be left as found; identities too, so that a swapped tensor shows."""
    parameters = [
        (n, id(p), p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone())
        for n, p in module.named_parameters(remove_duplicate=False)
    ]
    buffers = [(n, id(b), b.clone()) for n, b in module.named_buffers(remove_duplicate=False)]
    return parameters, buffers, [(n, m.training) for n, m in module.named_modules()]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("name", MODULES)
def test_gradient_by_backward_and_module_left_as_found(name):
    module = MODULES[name]().double()
    before = fingerprint(module)
    network = NetworkLandscape(module, cross_entropy, INPUTS, LABELS)
    theta = network.theta0
    gradient, product = network.grad(theta), network.hvp(theta, theta)
    network.loss(theta.expand(2, -1))
    assert same(before, fingerprint(module))
    assert torch.isfinite(product).all()
    # after all that the module still trains, and the gradient is backward's; frozen weights are part of θ
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    cross_entropy(module(INPUTS), LABELS).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-13, atol=1e-14)


def test_module_left_as_found_with_grads_and_after_an_error():
    module = normed(False).double()
    cross_entropy(module(INPUTS), LABELS).sum().backward()
    before = fingerprint(module)
    network = NetworkLandscape(module, cross_entropy, INPUTS, LABELS, chunk_size=3)
    network.example_grads(network.theta0)
    network.third(network.theta0, network.theta0, network.theta0)
    assert same(before, fingerprint(module))

    def failing(*_):
        raise KeyError("on purpose")

    handle = module[2].register_forward_hook(failing)
    with pytest.raises(KeyError, match="on purpose"):
        network.grad(network.theta0)
    handle.remove()
    assert same(before, fingerprint(module))


def test_tied_weights_appear_once():
    module = Tied().double()
    network = NetworkLandscape(module, cross_entropy, INPUTS, LABELS)
    assert network.dimension == 16 + 12 + 3
    theta, v = network.theta0, draw(3, network.dimension)
    step = 1e-5
    slope = (network.loss(theta + step * v) - network.loss(theta - step * v)) / (2 * step)
    torch.testing.assert_close(network.grad(theta) @ v, slope, rtol=1e-7, atol=1e-9)


def test_weights_and_buffers_are_those_at_construction():
    module = normed(False).double()
    network = NetworkLandscape(module, cross_entropy, INPUTS, LABELS)
    loss = network.loss(network.theta0)
    module.train()(INPUTS * 5)  # moves the running statistics
    module.eval()
    assert torch.equal(network.loss(network.theta0), loss)


@pytest.mark.parametrize("build", [Branching, MODULES["batch norm, eval"], Recurrent, LeNet])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_example_grads_with_and_without_vmap(build, chunk_size):
    module = build().double()
    inputs = draw(1, N, 1, 8, 8) if build is LeNet else INPUTS
    network = NetworkLandscape(
        module, cross_entropy, inputs, LABELS, chunk_size=1 if build is Branching else chunk_size
    )
    theta, index = network.theta0, torch.tensor([4, 0, 4])
    one_by_one = torch.stack([network.batch_grad(theta, torch.tensor([i])) for i in range(N)])
    torch.testing.assert_close(network.example_grads(theta), one_by_one, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(network.example_grads(theta, index), one_by_one[index], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("build", "passes"), [(lambda: MLP((4, 3)), 2), (Branching, N)])
def test_example_grads_take_a_chunk_at_once_where_vmap_can(build, passes):
    module, seen = build().double(), []
    network = NetworkLandscape(module, cross_entropy, INPUTS, LABELS, chunk_size=N // 2)
    network.example_grads(network.theta0)  # tries vmap
    module.register_forward_hook(lambda *_: seen.append(1))
    network.example_grads(network.theta0)
    assert len(seen) == passes


def test_several_inputs_and_tokens():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, tokens, x):
            return self.layer(torch.tanh(self.embedding(tokens).mean(1)) * x)

    module, tokens = Two(), torch.arange(N * 2).reshape(N, 2) % 5  # float32 module, float64 x
    network = NetworkLandscape(module, cross_entropy, (tokens, INPUTS), LABELS, chunk_size=3)
    cross_entropy(module(tokens, INPUTS.float()), LABELS).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(network.grad(network.theta0), expected)
    torch.testing.assert_close(network.example_grads(network.theta0).mean(0), expected)


def test_batch_statistics_couple_examples():
    module = normed(True).double()
    network = NetworkLandscape(module, cross_entropy, INPUTS, LABELS)
    theta, weights, index = network.theta0, draw(3, N), torch.arange(4)
    jacobian = torch.func.jacrev(network.losses)(theta)
    torch.testing.assert_close(network.weighted_grad(theta, weights), weights @ jacobian)
    part = NetworkLandscape(module, cross_entropy, INPUTS[:4], LABELS[:4])
    torch.testing.assert_close(network.restrict(index).grad(theta), part.grad(theta))
    refused = [
        lambda: network.losses(theta, index),
        lambda: network.batch_grad(theta, index),
        lambda: network.example_grads(theta),
        lambda: NetworkLandscape(module, cross_entropy, INPUTS, LABELS, chunk_size=4),
    ]
    for call in refused:
        with pytest.raises(UnsupportedError, match=r"batch norm '1'.*module.eval\(\)"):
            call()
    untracked = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double().eval()
    network = NetworkLandscape(untracked, cross_entropy, INPUTS, LABELS)
    with pytest.raises(UnsupportedError, match="batch statistics"):
        network.batch_grad(network.theta0, index)


def test_randomness_is_refused_and_the_global_generator_left():
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.3)).double()
    with pytest.raises(UnsupportedError, match=r"'1' \(Dropout.*eval"):
        NetworkLandscape(module, cross_entropy, INPUTS, LABELS)
    network = NetworkLandscape(module.eval(), cross_entropy, INPUTS, LABELS)
    module.train()
    for call in (network.loss, network.losses, network.grad, network.example_grads):
        with pytest.raises(UnsupportedError, match="Dropout"):
            call(network.theta0)

    class Noisy(MLP):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    state = torch.get_rng_state()
    with pytest.raises(UnsupportedError, match="random"):
        NetworkLandscape(Noisy((4, 3)).double(), cross_entropy, INPUTS, LABELS)
    assert torch.equal(state, torch.get_rng_state())


def test_changing_the_data_in_place_is_refused():
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    inputs = INPUTS.clone()
    with pytest.raises(UnsupportedError, match="in place"):
        NetworkLandscape(module, cross_entropy, inputs, LABELS)
    assert torch.equal(inputs, INPUTS)


def mixed():
    return nn.Sequential(nn.Linear(4, 3).double(), nn.Linear(3, 3))


PLAIN = {"module": MLP((4, 3)).double(), "loss_fn": cross_entropy, "inputs": INPUTS, "targets": LABELS}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"module": nn.Tanh()}, ValueError, "module must have parameters"),
        ({"module": torch.tanh}, TypeError, "module must be"),
        ({"module": mixed()}, TypeError, "one dtype.*float32.*float64"),
        ({"module": nn.Linear(4, 3, dtype=torch.complex128)}, TypeError, "real floating"),
        ({"module": nn.LazyLinear(3)}, ValueError, "lazy"),
        ({"loss_fn": F.cross_entropy}, ValueError, r"loss_fn.*\(2,\), got \(\).*reduction='none'"),
        ({"loss_fn": lambda o, t: o}, ValueError, r"loss_fn.*got \(2, 3\)"),
        ({"loss_fn": lambda o, t: 1.0}, ValueError, "loss_fn.*float"),
        ({"loss_fn": lambda o, t: o.sum(-1).float()}, TypeError, "loss_fn.*float64"),
        ({"loss_fn": None}, TypeError, "loss_fn"),
        ({"inputs": INPUTS[:5]}, ValueError, "inputs and targets.*same length"),
        ({"inputs": (INPUTS, INPUTS[:5])}, ValueError, "same length"),
        ({"inputs": INPUTS[:0], "targets": LABELS[:0]}, ValueError, "N >= 1"),
        ({"inputs": INPUTS.tolist()}, TypeError, "inputs"),
        ({"inputs": ()}, TypeError, "inputs"),
        ({"targets": LABELS.tolist()}, TypeError, "targets"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"chunk_size": 2.0}, TypeError, "chunk_size"),
        ({"chunk_size": True}, TypeError, "chunk_size"),
    ],
)
def test_bad_construction(change, error, words):
    with pytest.raises(error, match=words):
        NetworkLandscape(**(PLAIN | change))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda n, x: n.loss(x[:-1]), ValueError, "theta"),
        (lambda n, x: n.loss(x.float()), TypeError, "theta.*float64"),
        (lambda n, x: n.loss(x[None][:0]), ValueError, "theta"),
        (lambda n, x: n.grad(x.to(torch.complex128)), NotHolomorphicError, "complex"),
        (lambda n, x: n.loss(x.to("meta")), ValueError, "device"),
        (lambda n, x: n.hvp(x, x[:-1]), ValueError, "v must"),
        (lambda n, x: n.third(x, x[:-1], x), ValueError, "u must"),
        (lambda n, x: n.losses(x, torch.tensor([N])), ValueError, "index"),
        (lambda n, x: n.batch_grad(x, torch.tensor([0.0])), TypeError, "index"),
        (lambda n, x: n.example_grads(x, torch.tensor([-1])), ValueError, "index"),
        (lambda n, x: n.weighted_grad(x, torch.ones(3)), ValueError, "weights"),
        (lambda n, x: n.weighted_grad(x, torch.ones(N, dtype=torch.complex128)), TypeError, "weights"),
    ],
)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_bad_calls(chunk_size, call, error, words):
    network = NetworkLandscape(**PLAIN, chunk_size=chunk_size)
    with pytest.raises(error, match=words):
        call(network, network.theta0)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("build", [lambda: MLP((4, 5, 3)), lambda: LeNet((1, 4, 4), 3, 0.4, pooling="strided")])
def test_holomorphic_network(build, chunk_size):
    module = build().double()
    inputs = INPUTS if isinstance(module, MLP) else draw(1, N, 1, 4, 4)
    real = NetworkLandscape(module, square, inputs, VALUES, chunk_size=chunk_size)
    network = HolomorphicNetworkLandscape(module, square, inputs, VALUES, chunk_size=chunk_size)
    theta, u, v = real.theta0, draw(3, real.dimension), draw(4, real.dimension)
    flat = theta.to(torch.complex128)
    for ours, other in (
        (network.loss(flat), real.loss(theta)),
        (network.grad(flat), real.grad(theta)),
        (network.hvp(flat, v.to(flat)), real.hvp(theta, v)),
        (network.third(flat, u.to(flat), v.to(flat)), real.third(theta, u, v)),
        (network.example_grads(flat), real.example_grads(theta)),
    ):
        torch.testing.assert_close(ours, other.to(flat))
    assert network.loss(theta).dtype == torch.float64  # real θ stays real
    # off the real line: f(z + εiw) − f(z − εiw) = 2iε ∇f(z)·w to O(ε³), bilinear, and likewise for the gradient
    z, w, step = torch.complex(theta, 0.05 * u), torch.complex(v, u), 1e-5
    ahead, behind = z + 1j * step * w, z - 1j * step * w
    torch.testing.assert_close((network.loss(ahead) - network.loss(behind)) / (2j * step), (network.grad(z) * w).sum())
    torch.testing.assert_close((network.grad(ahead) - network.grad(behind)) / (2j * step), network.hvp(z, w))
    # complex step; no smaller, since torch's complex convolution mixes real and imaginary parts in its rounding
    shifted = torch.complex(theta, 1e-6 * v)
    torch.testing.assert_close(network.loss(shifted).imag / 1e-6, real.grad(theta) @ v, rtol=1e-7, atol=1e-8)
    assert network.restrict(torch.arange(3)).holomorphic
    with pytest.raises(TypeError, match="complex128"):
        network.loss(z.to(torch.complex64))


@pytest.mark.parametrize(
    ("module", "loss_fn", "targets", "words"),
    [
        (MLP((4, 5, 3)), cross_entropy, LABELS, "complex theta"),
        (MLP((4, 5, 3), "relu"), square, VALUES, "complex theta"),
        (MLP((4, 5, 3)), lambda o, t: (o - t).abs().square().sum(-1), VALUES, "real-valued"),
        (MLP((4, 5, 3)), lambda o, t: ((o.real - t) ** 2).sum(-1) + 0 * o.sum(-1), VALUES, "Cauchy-Riemann"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_that_are_not_holomorphic(module, loss_fn, targets, words, dtype):
    with pytest.raises(NotHolomorphicError, match=words):
        HolomorphicNetworkLandscape(module.to(dtype), loss_fn, INPUTS, targets)
