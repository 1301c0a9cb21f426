"""Norms from primitives: torch's values, third derivatives against forward mode, running statistics, complex inputs."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nets.layers import AveragePool, BatchNorm, Cubic, GroupNorm, LayerNorm, Sine, SquareActivation

PAIRS = {
    "batch": (lambda: BatchNorm(6), lambda: nn.BatchNorm2d(6), (5, 6, 3, 4)),
    "batch, eval": (lambda: BatchNorm(6).eval(), lambda: nn.BatchNorm2d(6).eval(), (5, 6, 3, 4)),
    "batch, features": (lambda: BatchNorm(6), lambda: nn.BatchNorm1d(6), (5, 6)),
    "batch, sequences": (lambda: BatchNorm(6), lambda: nn.BatchNorm1d(6), (5, 6, 3)),
    "group": (lambda: GroupNorm(3, 6), lambda: nn.GroupNorm(3, 6), (5, 6, 3, 4)),
    "instance": (lambda: GroupNorm(6, 6), lambda: nn.InstanceNorm2d(6, affine=True), (5, 6, 3, 4)),
    "one group": (lambda: GroupNorm(1, 6), lambda: nn.GroupNorm(1, 6), (5, 6)),
    "layer": (lambda: LayerNorm(6), lambda: nn.LayerNorm(6), (5, 3, 6)),
}
pairs = pytest.mark.parametrize("name", PAIRS)


def twins(name, normal, dtype=torch.float64):
    """Ours and torch's with the same random weights, and an input."""
    ours, theirs, shape = PAIRS[name]
    ours, theirs = ours().to(dtype), theirs().to(dtype)
    for i, key in enumerate(("weight", "bias")):
        for layer in (ours, theirs):
            getattr(layer, key).data.copy_(normal(i, 6))
    return ours, theirs, normal(2, *shape, dtype=dtype) * 3 + 1


@pairs
def test_values_are_torchs(name, normal, dtype, device):
    ours, theirs, x = twins(name, normal, dtype)
    assert_close(ours.to(device)(x.to(device)), theirs.to(device)(x.to(device)))


@pairs
def test_derivatives_to_third_order_equal_forward_mode(name, normal):
    ours, _, x = twins(name, normal)
    c, u, v = normal(3, 3, *x.shape)

    def field(z):
        y = ours(z)
        return (c * y + y * y * y).sum()

    x.requires_grad_()
    (g,) = torch.autograd.grad(field(x), x, create_graph=True)
    (hv,) = torch.autograd.grad(g, x, v, create_graph=True)
    (third,) = torch.autograd.grad(hv, x, u)

    def along(f, w):
        return lambda z: torch.func.jvp(f, (z,), (w,))[1]

    x = x.detach()
    assert_close((g * v).sum().detach(), along(field, v)(x))
    assert_close((hv * u).sum().detach(), along(along(field, v), u)(x))
    assert_close((third * c).sum(), along(along(along(field, v), u), c)(x))


def test_torchs_fused_third_derivative_is_wrong(normal):
    """The reason for these layers; where this fails torch has mended its own."""
    _, theirs, x = twins("layer", normal)
    ours, *_ = twins("layer", normal)
    thirds = []
    for layer in (ours, theirs):
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad((layer(z) ** 3).sum(), z, create_graph=True)
        (h,) = torch.autograd.grad((g * x).sum(), z, create_graph=True)
        thirds.append(torch.autograd.grad((h * x.cos()).sum(), z)[0])
    assert (thirds[0] - thirds[1]).norm() > 1e-3 * thirds[0].norm()


@pytest.mark.parametrize("shape", [(8, 6, 3, 4), (8, 6)])
def test_running_statistics_and_state_dicts_are_torchs(normal, shape):
    ours, theirs = BatchNorm(6).double(), (nn.BatchNorm2d(6) if len(shape) == 4 else nn.BatchNorm1d(6)).double()
    for seed in range(3):
        x = normal(seed, *shape) * (seed + 1) + seed
        ours(x), theirs(x)
    for key, value in theirs.state_dict().items():
        assert_close(ours.state_dict()[key], value)
    ours.load_state_dict(theirs.state_dict())
    x = normal(9, *shape)
    assert_close(ours.eval()(x), theirs.eval()(x))


def test_batch_norm_inside_transforms_notes_nothing(normal):
    layer = BatchNorm(4).double()
    x = normal(0, 3, 5, 4)
    assert_close(torch.func.vmap(layer)(x), torch.stack([layer(batch) for batch in x]))
    before = layer.running_mean.clone()
    torch.func.vmap(layer)(x)
    assert torch.equal(layer.running_mean, before)


@pytest.mark.parametrize(
    "layer",
    [
        BatchNorm(4),
        BatchNorm(4).eval(),
        GroupNorm(2, 4),
        LayerNorm(4),
        SquareActivation(),
        Cubic(),
        Sine(),
        AveragePool(2),
    ],
    ids=repr,
)
def test_complex_inputs_give_the_holomorphic_extension(layer, normal):
    layer = layer.double()
    shape = (3, 4, 4, 4)
    x, y, a, b = normal(1, 4, *shape)
    z, w = torch.complex(x, 0.1 * y), torch.complex(a, b)
    assert_close(layer(x.to(z.dtype)), layer(x).to(z.dtype))
    step = 1e-5
    along = (layer(z + step * w) - layer(z - step * w)) / (2 * step)
    turned = (layer(z + 1j * step * w) - layer(z - 1j * step * w)) / (2j * step)
    assert_close(along, turned, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["batch", "group", "layer"])
def test_half_precision_does_not_overflow(name, half, normal):
    ours, theirs, x = twins(name, normal, torch.float32)
    x = (300 * x).to(half)
    assert_close(ours.to(half)(x).float(), theirs.to(half)(x).float(), rtol=2e-2, atol=2e-2)


def test_polynomials_by_hand():
    x = torch.tensor([-1.0, 0.5, 3.0])
    assert_close(SquareActivation()(x), torch.tensor([1.0, 0.25, 9.0]))
    assert_close(Cubic()(x), torch.tensor([-2 / 3, 0.5 - 0.125 / 3, -6.0]))
    assert_close(Sine()(x), torch.sin(x))


def test_average_pool_drops_the_rest():
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    assert_close(AveragePool(2)(x), torch.tensor([[[[3.0, 5.0]]]]))
    assert_close(AveragePool(2)(x * 1j), AveragePool(2)(x) * 1j)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: BatchNorm(0), ValueError, "channels"),
        (lambda: BatchNorm(3, epsilon=0.0), ValueError, "epsilon"),
        (lambda: BatchNorm(3, momentum=-1.0), ValueError, "momentum"),
        (lambda: BatchNorm(3)(torch.ones(2, 4)), ValueError, r"\(m, 3, \.\.\.\), got \(2, 4\)"),
        (lambda: BatchNorm(3)(torch.ones(1, 3)), ValueError, "at least two values a channel"),
        (lambda: GroupNorm(4, 6), ValueError, "groups must divide the 6 channels, got 4"),
        (lambda: GroupNorm(2, 6)(torch.ones(2, 4)), ValueError, r"\(m, 6"),
        (lambda: LayerNorm(3)(torch.ones(2, 4)), ValueError, r"\(\.\.\., 3\)"),
        (lambda: LayerNorm(3)(torch.ones(())), ValueError, r"\(\.\.\., 3\)"),
        (lambda: LayerNorm(1.5), TypeError, "features"),
        (lambda: AveragePool(0), ValueError, "size"),
    ],
)
def test_arguments_are_checked(call, error, words):
    with pytest.raises(error, match=words):
        call()
