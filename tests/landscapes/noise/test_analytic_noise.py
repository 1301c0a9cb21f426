"""Noises given by a root or a covariance; the symmetric root and its derivatives, repeated eigenvalues among them."""

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import UnsupportedError
from landscapes.noise import GradientNoise
from landscapes.noise.analytic import AnalyticNoise, noise_from_covariance
from landscapes.noise.roots import IndefiniteCovarianceError, square_root
from tests.landscapes.noise.sums import differenced_ito


def triangular(x):
    """σ (…, 2, 3) that depends on all of θ (…, 2)."""
    a, b = x[..., 0], x[..., 1]
    return torch.stack([torch.stack([a * b, a.sin(), 1 + 0 * a], -1), torch.stack([b**2, a - b, a.exp()], -1)], -2)


def covariance(x):
    root = triangular(x)
    return root @ root.mT


def isotropic_at_zero(x):
    """I + θθᵀ: its eigenvalues meet at θ = 0."""
    return torch.eye(2, dtype=x.dtype) + x[..., :, None] * x[..., None, :]


def test_a_root_is_used_as_it_stands(normal):
    noise, theta, xi = AnalyticNoise(2, 3, triangular), normal(0, 4, 5, 2), normal(1, 4, 5, 3)
    assert_close(noise.factor(theta, xi), torch.einsum("...dm,...m->...d", triangular(theta), xi))
    assert_close(noise.covariance(theta), covariance(theta))
    assert_close(noise.columns(theta), triangular(theta).mT)
    assert (noise.dimension, noise.size, noise.kind) == (2, 3, "general")


def test_ito_correction_against_differences(normal):
    for noise in (AnalyticNoise(2, 3, triangular), noise_from_covariance(2, covariance)):
        theta = normal(2, 3, 2)
        expected = torch.stack([differenced_ito(noise, x) for x in theta])
        assert_close(noise.ito_correction(theta), expected, rtol=1e-6, atol=1e-7)


def test_diagonal_and_general_kinds_give_one_correction(normal):
    """σ = θ²: ½ σσ' = θ³, geometric Brownian motion's σ = θ: ½ θ."""
    theta = normal(3, 4, 2)
    for kind in ("diagonal", "general"):
        square = AnalyticNoise(2, 2, lambda x: torch.diag_embed(x**2), kind)
        assert_close(square.ito_correction(theta), theta**3)
        linear = AnalyticNoise(2, 2, torch.diag_embed, kind)
        assert_close(linear.ito_correction(theta), theta / 2)


def test_a_constant_root_serves_the_whole_batch(normal):
    sigma = normal(4, 2, 3)
    noise, theta = AnalyticNoise(2, 3, lambda x: sigma, "additive"), normal(5, 4, 2)
    assert_close(noise.covariance(theta), (sigma @ sigma.mT).expand(4, 2, 2))
    assert_close(noise.factor(theta, normal(6, 3)), (sigma @ normal(6, 3)).expand(4, 2))
    assert not noise.ito_correction(theta).any()
    assert not noise.trace_gradient(theta).any()
    held = noise_from_covariance(2, lambda x: sigma @ sigma.mT)
    assert_close(held.covariance(theta), noise.covariance(theta))


def test_trace_gradient(normal):
    for noise in (AnalyticNoise(2, 3, triangular), noise_from_covariance(2, covariance)):
        theta = normal(7, 3, 2)
        traced = torch.func.grad(lambda x: covariance(x).diagonal(dim1=-2, dim2=-1).sum())(theta)
        assert_close(noise.trace_gradient(theta), traced, rtol=1e-10, atol=1e-11)


@given(seed=st.integers(0, 2**31), d=st.integers(1, 5), rank=st.integers(1, 5))
def test_the_root_of_any_covariance(normal, seed, d, rank):
    a = normal(seed, 3, d, rank)
    matrix = a @ a.mT
    root = square_root(matrix)
    scale = float(matrix.abs().max())
    assert_close(root @ root, matrix, rtol=0, atol=1e-13 * scale)
    assert_close(root, root.mT, rtol=0, atol=1e-14 * scale**0.5)
    assert bool((torch.linalg.eigvalsh(root) >= -1e-7 * scale**0.5).all())


def test_the_root_is_scipys(normal):
    a = normal(8, 4, 4)
    matrix = a @ a.mT + torch.eye(4, dtype=torch.float64)
    assert_close(square_root(matrix), torch.from_numpy(scipy.linalg.sqrtm(matrix.numpy()).real), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("field", [covariance, isotropic_at_zero])
@pytest.mark.parametrize("point", ["generic", "zero"])
def test_derivatives_of_the_root_to_second_order(field, point, normal):
    """gradcheck's differences; at θ = 0 the eigenvalues of I + θθᵀ repeat, where eigenvectors have no derivative."""
    theta = normal(9, 2, 2) if point == "generic" else torch.zeros(1, 2, dtype=torch.float64)
    if field is covariance and point == "zero":
        theta = theta + 0.5

    def root(x):
        return square_root(field(x))

    leaf = theta.clone().requires_grad_()
    assert torch.autograd.gradcheck(root, leaf, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(root, leaf)


def test_third_derivative_and_transforms(normal):
    """Of √(1 + θθᵀ) in one dimension, √(1 + θ²), against its closed form; batched by vmap as by leading dimensions."""

    def root(x):
        return square_root((1 + x**2).reshape(1, 1)).sum()

    x = torch.tensor(0.3, dtype=torch.float64)
    third = torch.func.grad(torch.func.grad(torch.func.grad(root)))(x)
    assert_close(third, -3 * x / (1 + x**2) ** 2.5)
    one = torch.ones_like(x)
    for second in (
        torch.func.jvp(torch.func.grad(root), (x,), (one,))[1],
        torch.func.grad(lambda z: torch.func.jvp(root, (z,), (one,))[1])(x),
    ):
        assert_close(second, (1 + x**2) ** -1.5)
    with pytest.raises(UnsupportedError, match="jvp inside jvp"):
        torch.func.jvp(lambda z: torch.func.jvp(root, (z,), (one,))[1], (x,), (one,))
    batch = covariance(normal(10, 3, 4, 2))
    assert_close(torch.func.vmap(square_root, in_dims=1)(batch), square_root(batch.movedim(1, 0)))


def test_isotropic_points_have_finite_corrections():
    """√(I + θθᵀ) = I + (√(1 + r²) − 1) θθᵀ/r² ≈ I + θθᵀ/2: ½ Σ_j (∂σ_j)σ_j = ½ (d + 1) θ/2 to first order."""
    noise, theta = noise_from_covariance(2, isotropic_at_zero), torch.zeros(2, dtype=torch.float64)
    assert_close(noise.ito_correction(theta), theta)
    small = torch.tensor([1e-4, -2e-4], dtype=torch.float64)
    assert_close(noise.ito_correction(small), 0.75 * small, rtol=1e-6, atol=0)


def test_singular_covariances_of_a_fixed_kernel(normal):
    """C = (1 + θ²) vvᵀ has the root √(1 + θ²) vvᵀ for a unit v."""
    v = torch.tensor([0.6, 0.8], dtype=torch.float64)
    noise = noise_from_covariance(2, lambda x: (1 + x[..., :1] ** 2)[..., None] * torch.outer(v, v))
    exact = AnalyticNoise(2, 2, lambda x: (1 + x[..., :1] ** 2).sqrt()[..., None] * torch.outer(v, v))
    theta = normal(11, 4, 2)
    assert_close(noise.covariance(theta), exact.covariance(theta))
    assert_close(noise.ito_correction(theta), exact.ito_correction(theta), rtol=1e-9, atol=1e-11)
    nothing = noise_from_covariance(2, lambda x: 0 * torch.diag_embed(x))
    assert not nothing.factor(theta, normal(12, 2)).any()
    assert not nothing.ito_correction(theta).any()


def test_precision_of_theta(normal, dtype, device):
    theta, xi = normal(13, 3, 2, dtype=dtype).to(device), normal(14, 2, dtype=dtype).to(device)
    noise = noise_from_covariance(2, covariance)
    assert noise.factor(theta, xi).dtype == dtype
    assert noise.ito_correction(theta).device.type == device.type
    tolerance = 1e4 * torch.finfo(dtype).eps
    exact = noise.covariance(theta.double())
    assert_close(noise.covariance(theta).double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


def test_an_indefinite_covariance_is_named(normal):
    noise = noise_from_covariance(2, lambda x: torch.diag_embed(torch.stack([x[..., 0], 1 + 0 * x[..., 0]], -1)))
    theta = torch.tensor([[0.5, 0.0], [-0.3, 0.0]], dtype=torch.float64)
    with pytest.raises(IndefiniteCovarianceError, match=r"got the eigenvalue -0\.3 where rounding allows"):
        noise.covariance(theta)
    assert issubclass(IndefiniteCovarianceError, ValueError)
    assert_close(noise.trace(theta[0]), torch.tensor(1.5, dtype=torch.float64))
    small = torch.tensor([-1e-17, 0.0], dtype=torch.float64)  # rounding
    assert noise.factor(small, normal(15, 2)).isfinite().all()


def test_each_member_is_judged_by_its_own_scale():
    """−1e-10 is rounding beside 1e6 and not beside 1."""
    matrix = torch.diag_embed(torch.tensor([[1e6, 1.0], [1.0, -1e-10]], dtype=torch.float64))
    with pytest.raises(IndefiniteCovarianceError, match="eigenvalue -1e-10"):
        square_root(matrix)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), ValueError, "covariance must be symmetric"),
        (torch.full((2, 2), float("nan")), ValueError, "covariance must be finite"),
        (torch.eye(3), ValueError, r"covariance\(theta\) must have shape \(4, 2, 2\) or \(2, 2\)"),
        (torch.eye(2, dtype=torch.float64), ValueError, "theta's dtype torch.float32"),
        (torch.eye(2, dtype=torch.int64), TypeError, r"covariance\(theta\) must have a floating dtype"),
        (1.0, TypeError, r"covariance\(theta\) must be a torch.Tensor"),
    ],
)
def test_wrong_covariances(matrix, error, message):
    with pytest.raises(error, match=message):
        noise_from_covariance(2, lambda x: matrix).covariance(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1, triangular), ValueError, "dimension must be at least 1"),
        ((2, 0, triangular), ValueError, "size must be at least 1"),
        ((2, 3, None), TypeError, "root must be callable"),
        ((2, 3, triangular, "scalar"), ValueError, "kind must be one of 'additive', 'diagonal', 'general'"),
        ((2, 3, triangular, "diagonal"), ValueError, "size must be dimension = 2 for kind='diagonal', got 3"),
        ((2, 3), TypeError, "root"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        AnalyticNoise(*arguments)


def test_wrong_roots(normal):
    with pytest.raises(ValueError, match=r"root\(theta\) must have shape \(4, 2, 2\) or \(2, 2\).*got \(4, 2, 3\)"):
        AnalyticNoise(2, 2, triangular).factor(normal(16, 4, 2), normal(17, 2))
    with pytest.raises(TypeError, match="covariance must be callable"):
        noise_from_covariance(2, torch.eye(2))
    with pytest.raises(ValueError, match="dimension must be at least 1"):
        noise_from_covariance(0, covariance)
    assert isinstance(noise_from_covariance(2, covariance), GradientNoise)
