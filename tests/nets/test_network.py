"""NetworkLandscape against dense oracles in float64: derivatives, chunks, batches, and the module left as found."""

import copy
import functools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from landscapes import Counted, FiniteSum, Regularised, UnsupportedError
from nets import MLP, LeNet, NetworkLandscape, load_data
from tests.tensors import draw

CHUNKS = [None, 1, 3, 4, 12, 50]
N = 12
cross_entropy = functools.partial(F.cross_entropy, reduction="none")


def square(outputs, targets):
    return ((outputs - targets) ** 2).sum(-1)


def data(device="cpu", n=N):
    return draw(1, n, 4, device=device), (torch.arange(n) % 3).to(device)


def small(device="cpu", chunk_size=None):
    module = MLP((4, 5, 3)).double().to(device)
    return NetworkLandscape(module, cross_entropy, *data(device), chunk_size=chunk_size), module


def oracle(module, loss_fn, inputs, targets):
    """f_i(θ) by another road: each parameter cut from θ by hand, a matrix product a layer; for a tanh MLP."""

    def losses(theta):
        x, start = inputs, 0
        linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        for depth, layer in enumerate(linears):
            rows, columns = layer.weight.shape
            weight = theta[start : start + rows * columns].reshape(rows, columns)
            bias = theta[start + rows * columns : start + rows * columns + rows]
            start += rows * columns + rows
            x = x @ weight.T + bias
            x = x if depth == len(linears) - 1 else torch.tanh(x)
        return loss_fn(x, targets)

    return losses


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_everything_against_the_dense_oracle(device, chunk_size):
    network, module = small(device, chunk_size)
    losses = oracle(module, cross_entropy, *data(device))
    theta, u, v = (draw(s, network.dimension, device=device) for s in (2, 3, 4))
    hessian = torch.func.hessian(lambda x: losses(x).mean())
    third = torch.func.jvp(hessian, (theta,), (u,))[1] @ v
    jacobian = torch.func.jacrev(losses)(theta)  # (N, d)
    index, weights = torch.tensor([3, 3, 7, 0, 11], device=device), draw(5, N, device=device)
    point = network.expand(theta)
    close = functools.partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)
    close(network.loss(theta), losses(theta).mean())
    close(network.losses(theta), losses(theta))
    close(network.losses(theta, index), losses(theta)[index])
    for it in (network, point):
        close(it.grad if it is point else it.grad(theta), jacobian.mean(0))
    close(point.loss, losses(theta).mean())
    close(point.hvp(v), hessian(theta) @ v)
    close(point.third(u, v), third)
    close(network.hvp(theta, v), hessian(theta) @ v)
    close(network.third(theta, u, v), third)
    close(network.hessian(theta), hessian(theta))
    close(network.batch_grad(theta, index), jacobian[index].mean(0))
    close(network.weighted_grad(theta, weights), weights @ jacobian)
    close(network.example_grads(theta), jacobian)
    close(network.example_grads(theta, index), jacobian[index])


def test_gradient_is_backwards_gradient(device):
    digits = load_data("digits", limit=60)
    module = LeNet().double().to(device)
    inputs, targets = digits.inputs.to(device), digits.targets.to(device)
    network = NetworkLandscape(module, cross_entropy, inputs, targets)
    cross_entropy(module(inputs), targets).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(network.grad(network.theta0), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("lead", [(1,), (3,), (2, 2)])
def test_leading_dimensions_equal_single_results(device, chunk_size, lead):
    network, _ = small(device, chunk_size)
    d = network.dimension
    theta, u, v = (draw(s, *lead, d, device=device) for s in (2, 3, 4))
    index = torch.randint(N, (*lead, 4), generator=torch.Generator().manual_seed(6)).to(device)
    weights = draw(5, *lead, N, device=device)
    calls = {
        "loss": (theta,),
        "grad": (theta,),
        "hessian": (theta,),
        "hvp": (theta, v),
        "third": (theta, u, v),
        "losses": (theta, index),
        "batch_grad": (theta, index),
        "weighted_grad": (theta, weights),
        "example_grads": (theta, index),
    }
    for name, arguments in calls.items():
        method = getattr(network, name)
        together = method(*arguments)
        rows = [a.reshape(-1, a.shape[-1]) for a in arguments]
        alone = torch.stack([method(*row) for row in zip(*rows, strict=True)])
        torch.testing.assert_close(together, alone.reshape(*lead, *alone.shape[1:]), rtol=1e-12, atol=1e-13)
    point = network.expand(theta)
    torch.testing.assert_close(point.loss, network.loss(theta))
    torch.testing.assert_close(point.grad, network.grad(theta))


def test_index_and_weights_broadcast_with_theta():
    network, _ = small()
    theta = draw(2, network.dimension)
    index, weights = torch.arange(6).reshape(2, 3), draw(5, 2, N)
    several = theta.expand(2, -1)
    for name, other in (("losses", index), ("batch_grad", index), ("example_grads", index), ("weighted_grad", weights)):
        method = getattr(network, name)
        torch.testing.assert_close(method(theta, other), method(several, other))
        torch.testing.assert_close(method(several, other[0]), method(theta, other[0]).expand_as(method(several, other)))
    with pytest.raises(ValueError, match="broadcast"):
        network.losses(theta.expand(3, -1), index)


@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_weighted_grad_is_linear(seed, a):
    network, _ = small(chunk_size=5)
    theta, x, y = draw(seed, network.dimension), draw(seed + 1, N), draw(seed + 2, N)
    both = network.weighted_grad(theta, a * x + y)
    apart = a * network.weighted_grad(theta, x) + network.weighted_grad(theta, y)
    torch.testing.assert_close(both, apart, rtol=1e-10, atol=1e-11)


def test_weighted_grad_is_one_backward_pass():
    module = MLP((4, 5, 3)).double()
    passes = []
    module.register_forward_hook(lambda *_: passes.append(1))
    network = NetworkLandscape(module, cross_entropy, *data())
    del passes[:]
    network.weighted_grad(network.theta0, draw(5, N))
    assert len(passes) == 1


def peak_of_saved_bytes(call, but):
    """The most bytes autograd's graphs held at once during ``call``, apart from the storages of ``but``."""
    apart = {tensor.untyped_storage().data_ptr() for tensor in but}
    handles, sizes, peak = Counter(), {}, 0

    class Handle:
        def __init__(self, tensor):
            nonlocal peak
            # detached: a handle that holds its own output's graph would be a reference cycle
            self.tensor, self.key = tensor.detach(), tensor.untyped_storage().data_ptr()
            handles[self.key] += 1
            sizes[self.key] = 0 if self.key in apart else tensor.untyped_storage().nbytes()
            peak = max(peak, sum(sizes.values()))

        def __del__(self):
            handles[self.key] -= 1
            if handles[self.key] == 0:
                del sizes[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Handle, lambda handle: handle.tensor):
        call()
    return peak


@pytest.mark.parametrize("name", ["loss", "grad", "hvp", "third", "weighted_grad", "batch_grad", "expand", "hessian"])
def test_never_more_than_one_chunks_graph(name):
    module = MLP((4, 3, 3)).double()
    inputs, targets = data(n=2000)
    weights, index = torch.ones(2000).double(), torch.arange(2000)

    def peak(chunk_size):
        network = NetworkLandscape(module, cross_entropy, inputs, targets, chunk_size=chunk_size)
        theta = network.theta0

        def call():
            point = network.expand(theta)
            return {
                "loss": lambda: network.loss(theta),
                "grad": lambda: network.grad(theta),
                "hvp": lambda: network.hvp(theta, theta),
                "third": lambda: network.third(theta, theta, theta),
                "weighted_grad": lambda: network.weighted_grad(theta, weights),
                "batch_grad": lambda: network.batch_grad(theta, index),
                "expand": lambda: (point.grad, point.hvp(theta), point.third(theta, theta)),
                "hessian": lambda: network.hessian(theta),
            }[name]()

        return peak_of_saved_bytes(call, but=(inputs, targets, weights))

    whole, quarter = peak(None), peak(500)
    assert (whole == 0) == (name == "loss")
    assert quarter <= 0.3 * whole


def test_one_chunk_shares_a_forward_pass_and_chunks_recompute():
    counts = {}
    for chunk_size in (None, 6):
        passes = []
        module = MLP((4, 5, 3)).double()
        module.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        network = NetworkLandscape(module, cross_entropy, *data(), chunk_size=chunk_size)
        network.third(network.theta0, network.theta0, network.theta0)  # checks the derivatives, once
        del passes[:]
        point = network.expand(network.theta0)
        for _ in range(2):
            _ = point.loss, point.grad
        counts[chunk_size] = [len(passes)]
        point.hvp(network.theta0)
        point.third(network.theta0, network.theta0)
        counts[chunk_size].append(len(passes))
    assert counts == {None: [1, 1], 6: [2, 6]}


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_graphs_only_where_theta_requires_grad(chunk_size):
    network, _ = small(chunk_size=chunk_size)
    theta, v, index, weights = network.theta0, draw(4, network.dimension), torch.arange(4), draw(5, N)

    def results(x):
        point = network.expand(x)
        yield from (network.loss(x), network.losses(x), network.losses(x, index), network.grad(x))
        yield from (network.batch_grad(x, index), network.weighted_grad(x, weights), network.example_grads(x, index))
        yield from (point.loss, point.grad, point.hvp(v), point.third(v, v), point.hessian())

    assert not any(r.requires_grad for r in results(theta))
    leaf = theta.clone().requires_grad_()
    assert all(r.requires_grad for r in results(leaf))
    with torch.no_grad():
        assert not any(r.requires_grad for r in results(leaf))
    for result, ours in ((network.grad(leaf), network.hvp(theta, v)), (network.expand(leaf).grad, None)):
        (product,) = torch.autograd.grad(result @ v, leaf)
        torch.testing.assert_close(product, network.hvp(theta, v) if ours is None else ours)
    assert leaf.grad is None


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_loss_and_grad_are_traceable(chunk_size):
    network, _ = small(chunk_size=chunk_size)
    theta, v = draw(2, network.dimension), draw(4, network.dimension)
    product = torch.func.jvp(network.grad, (theta,), (v,))[1]
    torch.testing.assert_close(product, network.hvp(theta, v))
    torch.testing.assert_close(torch.func.jvp(network.loss, (theta,), (v,))[1], network.grad(theta) @ v)
    torch.testing.assert_close(torch.func.grad(network.loss)(theta), network.grad(theta))
    several = draw(3, 3, network.dimension)
    torch.testing.assert_close(torch.func.vmap(network.grad)(several), network.grad(several))
    once = lambda x: torch.func.jvp(network.grad, (x,), (v,))[1]  # noqa: E731
    torch.testing.assert_close(torch.func.jvp(once, (theta,), (v,))[1], network.third(theta, v, v))
    with pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.vmap(lambda x: network.hvp(x, v))(several)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_restrict(chunk_size):
    network, _ = small(chunk_size=chunk_size)
    theta, v, index = draw(2, network.dimension), draw(4, network.dimension), torch.tensor([1, 5, 5, 9])
    part = network.restrict(index)
    assert isinstance(part, NetworkLandscape)
    assert (part.size, network.size, part.chunk_size) == (4, N, chunk_size)
    torch.testing.assert_close(part.losses(theta), network.losses(theta, index))
    torch.testing.assert_close(part.grad(theta), network.batch_grad(theta, index))
    torch.testing.assert_close(part.losses(theta, torch.tensor([3])), network.losses(theta, index[3:]))
    jacobian = network.example_grads(theta, index)
    torch.testing.assert_close(part.example_grads(theta), jacobian)
    torch.testing.assert_close(FiniteSum.restrict(network, index).hvp(theta, v), part.hvp(theta, v))
    for bad in (torch.tensor([[1]]), torch.tensor([N]), torch.tensor([], dtype=torch.int64)):
        with pytest.raises(ValueError, match="index"):
            network.restrict(bad)


def test_counted_stays_a_finite_sum_and_counts_fractions():
    network, _ = small(chunk_size=5)
    counted = Counted(network)
    assert isinstance(counted, FiniteSum)
    theta = counted.landscape.theta0
    counted.batch_grad(theta, torch.arange(3))
    counted.losses(theta.expand(2, -1), torch.arange(6))
    counted.hvp(theta, theta)
    counted.restrict(torch.arange(6)).loss(theta)
    assert counted.counts == {"loss": 1.5, "grad": 0.25, "hvp": 1, "third": 0, "higher": 0}
    decayed = Regularised(network, 0.1)
    torch.testing.assert_close(decayed.hvp(theta, theta), network.hvp(theta, theta) + 0.1 * theta)


def test_theta0_is_a_copy_in_parameter_order():
    network, module = small()
    expected = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    theta = network.theta0
    assert torch.equal(theta, expected)
    assert not theta.requires_grad
    theta.zero_()
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert torch.equal(network.theta0, expected)


def test_dtypes_are_cast_once_and_kept():
    inputs, _ = data()
    module = MLP((4, 5, 3))  # float32 weights, float64 data
    network = NetworkLandscape(module, square, inputs, draw(3, N, 3), chunk_size=5)
    theta = network.theta0
    for result in (network.loss(theta), network.grad(theta), network.losses(theta), network.hvp(theta, theta)):
        assert result.dtype == torch.float32
    with pytest.raises(TypeError, match=r"theta must have the module's dtype torch\.float32"):
        network.grad(theta.double())


def test_same_answers_from_a_deep_copy_in_float32():
    network, module = small()
    single = NetworkLandscape(copy.deepcopy(module).float(), cross_entropy, *data())
    torch.testing.assert_close(single.grad(single.theta0).double(), network.grad(network.theta0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_tensors_of_the_loss_that_require_grad_leave_no_graph(chunk_size):
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    module = MLP((4, 5, 3)).double()
    network = NetworkLandscape(module, lambda o, t: cross_entropy(o / temperature, t), *data(), chunk_size=chunk_size)
    theta = network.theta0
    point = network.expand(theta)
    for result in (network.loss(theta), network.losses(theta), network.grad(theta), network.example_grads(theta)):
        assert not result.requires_grad
    for result in (point.loss, point.grad, point.hvp(theta)):
        assert not result.requires_grad
    assert temperature.grad is None


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_outputs_are_the_modules(device, chunk_size):
    network, module = small(device, chunk_size)
    theta = draw(2, 2, 3, network.dimension, device=device).requires_grad_()
    outputs = network.outputs(theta)
    assert (outputs.shape, outputs.requires_grad) == ((2, 3, N, 3), False)
    inputs, targets = data(device)
    for i, j in ((0, 0), (1, 2)):
        nn.utils.vector_to_parameters(theta[i, j].detach(), module.parameters())
        torch.testing.assert_close(outputs[i, j], module(inputs).detach())
        torch.testing.assert_close(cross_entropy(outputs[i, j], targets), network.losses(theta[i, j].detach()))
    part = torch.tensor([7, 2], device=device)
    torch.testing.assert_close(network.restrict(part).outputs(theta), outputs[:, :, part])
    with pytest.raises(ValueError, match="theta must have shape"):
        network.outputs(theta[..., 1:])


def test_outputs_that_are_no_tensor_are_refused():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    inputs, targets = data()
    network = NetworkLandscape(Pair(4, 3).double(), lambda pair, y: cross_entropy(pair[0], y), inputs, targets)
    with pytest.raises(UnsupportedError, match="outputs must be one tensor, the module returns tuple"):
        network.outputs(network.theta0)
