"""Functions of a matrix times a vector against dense oracles: accuracy, stopping, counting, awkward spectra."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows.models.principal import principal_coefficient, real_coefficient
from flows.strategies import rotations
from landscapes import Rosenbrock
from landscapes.krylov import KrylovSpace, matrix_function, spectral_action
from tests.landscapes.dense import Products

FUNCTIONS = {"exp": torch.exp, "alpha": principal_coefficient, "real alpha": real_coefficient}
functions = pytest.mark.parametrize("name", FUNCTIONS)


def symmetric(eigenvalues, rotation):
    matrix = (rotation * torch.as_tensor(eigenvalues, dtype=torch.float64)) @ rotation.mT
    return (matrix + matrix.mT) / 2


def dense(matrix, vector, function):
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    values = function(eigenvalues)
    return vectors.to(values.dtype) @ (values * (vectors.mT @ vector))


def distance(one, other):
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


@functions
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_against_the_dense_function(name, dtype, accuracy, normal, device):
    rotation = torch.linalg.qr(normal(0, 12, 12))[0]
    matrix, vector = symmetric(torch.linspace(-3, 0.9, 12), rotation), normal(1, 12)
    product = Products(matrix.to(device, dtype))
    result = matrix_function(product, vector.to(device, dtype), FUNCTIONS[name], 12, 1e-14)
    assert (result.value.dtype, result.value.device, result.value.shape) == (dtype, product.matrix.device, (12,))
    assert distance(result.value.cpu().double(), dense(matrix, vector, FUNCTIONS[name])) < accuracy
    assert result.converged
    assert result.products == product.count <= 12


@given(st.data())
def test_a_full_space_is_exact_whatever_the_spectrum(data):
    d = data.draw(st.integers(1, 9))
    eigenvalues = data.draw(st.lists(st.sampled_from([-2.0, -1e-7, 0.0, 0.3, 0.5, 0.9, 1.7]), min_size=d, max_size=d))
    matrix = symmetric(eigenvalues, data.draw(rotations(d)))
    vector = torch.randn(d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    result = matrix_function(Products(matrix), vector, principal_coefficient, d + 3, 1e-30)
    expected = dense(matrix, vector, principal_coefficient)
    assert result.converged
    assert result.products <= d
    assert distance(result.value.to(torch.complex128), expected.to(torch.complex128)) < 1e-11


def test_beyond_the_singular_mode_the_value_is_complex(normal):
    matrix = symmetric([1.5, 0.5, -0.5, 0.1], torch.linalg.qr(normal(2, 4, 4))[0])
    vector = normal(3, 4)
    result = matrix_function(Products(matrix), vector, principal_coefficient, 4, 1e-14)
    assert result.value.dtype == torch.complex128
    assert_close(result.value, dense(matrix, vector, principal_coefficient))


@pytest.mark.parametrize("limit", [2, 5, 12])
def test_complex_symmetric_against_the_dense_function(limit, normal):
    x, y = normal(4, 2, 12, 12)
    matrix = torch.complex((x + x.mT) / 8, (y + y.mT) / 20)
    vector = torch.complex(*normal(5, 2, 12))
    result = matrix_function(Products(matrix), vector, torch.exp, limit, 1e-14)
    expected = torch.from_numpy(scipy.linalg.expm(matrix.numpy())) @ vector
    error = distance(result.value, expected)
    assert error < {2: 0.5, 5: 1e-2, 12: 1e-12}[limit]
    assert result.converged == (limit == 12)
    values, vectors = torch.linalg.eig(matrix)
    alpha = vectors @ (principal_coefficient(values) * torch.linalg.solve(vectors, vector))
    full = matrix_function(Products(matrix), vector, principal_coefficient, 12, 1e-14)
    assert_close(full.value, alpha, rtol=1e-10, atol=1e-11)


def test_real_matrix_and_vector_in_complex_dress_stay_real(normal):
    matrix, vector = symmetric(torch.linspace(-1, 0.9, 8), torch.linalg.qr(normal(6, 8, 8))[0]), normal(7, 8)
    plain = matrix_function(Products(matrix), vector, principal_coefficient, 8, 1e-14)
    dressed = matrix_function(Products(matrix + 0j), vector + 0j, principal_coefficient, 8, 1e-14)
    assert dressed.value.dtype == torch.complex128
    assert_close(dressed.value.real, plain.value)
    assert float(dressed.value.imag.abs().max()) == 0


def test_a_projection_may_be_real_without_being_symmetric():
    # the imaginary unit in H meets that in the basis: T = [[a, −1], [1, b]] is real, its eigenvalues are not
    matrix = torch.tensor([[0.2, 1j], [1j, -0.1]], dtype=torch.complex128)
    vector = torch.tensor([1, 0], dtype=torch.complex128)
    result = matrix_function(Products(matrix), vector, torch.exp, 2, 1e-14)
    assert_close(result.value, torch.linalg.matrix_exp(matrix) @ vector)
    assert_close(spectral_action(matrix, vector, torch.exp)[0], torch.linalg.matrix_exp(matrix) @ vector)


def test_the_error_falls_with_the_space_and_the_estimate_follows_it(normal):
    matrix, vector = symmetric(torch.linspace(-1, 0.9, 60), torch.linalg.qr(normal(8, 60, 60))[0]), normal(9, 60)
    exact = dense(matrix, vector, principal_coefficient)
    results = [matrix_function(Products(matrix), vector, principal_coefficient, m, 1e-30) for m in (3, 6, 12, 24)]
    errors = [distance(result.value, exact) for result in results]
    for error, better in pairwise(errors):
        assert better < error / 5
    for result, error in zip(results, errors, strict=True):
        assert not result.converged
        assert error < result.change + result.residual < 100 * error  # the change lags one product behind
        assert error / 10 < result.residual < 10 * error  # it does not


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_stops_once_its_estimates_are_a_fiftieth_of_the_tolerance(tolerance, normal):
    matrix, vector = symmetric(torch.linspace(-1, 0.9, 60), torch.linalg.qr(normal(8, 60, 60))[0]), normal(9, 60)
    product = Products(matrix)
    result = matrix_function(product, vector, principal_coefficient, 60, tolerance)
    assert result.converged
    assert max(result.change, result.residual) < tolerance / 50
    assert distance(result.value, dense(matrix, vector, principal_coefficient)) < tolerance
    assert result.products == product.count < 40
    shorter = matrix_function(Products(matrix), vector, principal_coefficient, result.products - 1, tolerance)
    assert not shorter.converged
    assert max(shorter.change, shorter.residual) >= tolerance / 50


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_zero_vector_needs_no_product(dtype):
    product = Products(torch.eye(3, dtype=dtype))
    result = matrix_function(product, torch.zeros(3, dtype=dtype), torch.exp, 3, 1e-6)
    assert (result.products, product.count, result.converged, result.change) == (0, 0, True, 0.0)
    assert result.value.tolist() == [0, 0, 0]
    assert result.value.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128])
def test_an_eigenvector_needs_one_product(dtype, normal):
    rotation = torch.linalg.qr(normal(10, 6, 6))[0]
    matrix = symmetric([0.5, -1, 0.2, 0.8, -2, 0], rotation).to(dtype)
    result = matrix_function(Products(matrix), 3 * rotation[:, 4].to(dtype), torch.exp, 6, 1e-30)
    assert result.products == 1
    assert result.converged
    assert result.change == 0
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert_close(result.value, 3 * math.exp(-2) * rotation[:, 4].to(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rank", "products"), [(0, 1), (1, 2), (3, 4)])
def test_an_invariant_space_ends_the_process(rank, products, normal):
    rotation = torch.linalg.qr(normal(11, 9, 9))[0]
    eigenvalues = [0.9, -3.0, 1e-3][:rank] + [0.0] * (9 - rank)
    matrix, vector = symmetric(eigenvalues, rotation), normal(12, 9)
    result = matrix_function(Products(matrix), vector, principal_coefficient, 9, 1e-30)
    assert result.products == products
    assert result.converged
    assert_close(result.value, dense(matrix, vector, principal_coefficient), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_results_scale_with_the_vector(scale, normal):
    matrix, vector = symmetric([0.5, -1, 0.2, 0.8], torch.linalg.qr(normal(13, 4, 4))[0]), normal(14, 4)
    one = matrix_function(Products(matrix), vector, torch.exp, 4, 1e-12).value
    assert_close(matrix_function(Products(matrix), scale * vector, torch.exp, 4, 1e-12).value, scale * one)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_product_that_is_not_finite_gives_nan(bad):
    result = matrix_function(lambda v: v * bad, torch.ones(3, dtype=torch.float64), torch.exp, 3, 1e-6)
    assert bool(result.value.isnan().all())
    assert (result.products, result.converged) == (1, False)
    unasked = matrix_function(torch.exp, torch.full((3,), bad, dtype=torch.float64), torch.exp, 3, 1e-6)
    assert bool(unasked.value.isnan().all())
    assert (unasked.products, unasked.converged) == (0, False)


def test_ritz_values(normal):
    eigenvalues = torch.tensor([-2.0, -0.3, 0.1, 0.4, 5.0], dtype=torch.float64)
    matrix, vector = symmetric(eigenvalues, torch.linalg.qr(normal(15, 5, 5))[0]), normal(16, 5)
    full = matrix_function(Products(matrix), vector, torch.exp, 5, 1e-30)
    assert_close(full.ritz.sort().values, eigenvalues, rtol=1e-12, atol=1e-12)
    for limit in (1, 2, 3):
        ritz = matrix_function(Products(matrix), vector, torch.exp, limit, 1e-30).ritz
        assert ritz.shape == (limit,)
        assert float(ritz.min()) >= -2 - 1e-12
        assert float(ritz.max()) <= 5 + 1e-12
    rayleigh = float(vector @ matrix @ vector / (vector @ vector))
    assert matrix_function(Products(matrix), vector, torch.exp, 1, 1e-30).ritz.item() == pytest.approx(rayleigh)


def test_spectral_action_of_a_batch(normal):
    x, y = normal(17, 2, 3, 4, 4)
    vector = normal(18, 3, 4)
    for matrix in ((x + x.mT) / 4, torch.complex(x + x.mT, y + y.mT) / 8):
        value, eigenvalues = spectral_action(matrix, vector.to(matrix.dtype), torch.exp)
        expected = np.stack([scipy.linalg.expm(m.numpy()) @ v.numpy() for m, v in zip(matrix, vector, strict=True)])
        assert_close(value, torch.from_numpy(expected), rtol=1e-10, atol=1e-11)
        assert_close(eigenvalues.sum(dim=-1), matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("noise", [1e-17, 1e-12])
def test_spectral_action_with_a_large_null_space(noise, normal):
    # a little imaginary rounding must not turn a well conditioned symmetric problem into an ill conditioned one
    rotation = torch.linalg.qr(normal(19, 40, 40))[0]
    matrix, vector = symmetric([0.5, 1.5, -0.3] + [0.0] * 37, rotation), normal(20, 40)
    imaginary = noise * normal(21, 40, 40)
    value, _ = spectral_action(torch.complex(matrix, imaginary + imaginary.mT), vector + 0j, principal_coefficient)
    assert distance(value, dense(matrix, vector, principal_coefficient)) < 1e-9 + 100 * noise


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 2.2e-16), (torch.float32, 1.2e-7)])
def test_a_basis_of_an_ill_conditioned_hessian_stays_orthonormal(dtype, eps, normal, device):
    # without reorthogonalisation the first eigenvalues, found after a few products, would be found again and again
    eigenvalues = torch.cat([torch.tensor([1e4, -1e3, 1e2]), torch.linspace(-1, 1, 396), torch.tensor([1e-8])])
    matrix = symmetric(eigenvalues, torch.linalg.qr(normal(22, 400, 400))[0])
    space = KrylovSpace(Products(matrix.to(device, dtype)), normal(23, 400).to(device, dtype))
    for _ in range(200):
        space.grow()
    assert (space.size, space.invariant, space.finite) == (200, False, True)
    basis = torch.cat([space.basis, space.direction[None]]).cpu().double()
    assert_close(basis @ basis.mT, torch.eye(201, dtype=torch.float64), rtol=0, atol=20 * eps)
    image = space.projected @ basis[:-1]
    image[-1] += space.beta * basis[-1]
    assert_close(basis[:-1] @ matrix, image, rtol=0, atol=20 * eps * 1e4)  # HQ = QT + βqeᵀ, symmetric T
    ritz = torch.linalg.eigvalsh(space.projected)
    for outlier in (1e4, -1e3, 1e2):
        assert int(((ritz - outlier).abs() < 20 * eps * 1e4).sum()) == 1


@pytest.mark.parametrize("limit", [1, 2, 5, 8])
@functions
def test_the_correction_is_the_first_neglected_term(name, limit, normal):
    function = FUNCTIONS[name]
    matrix = symmetric(torch.linspace(-1, 0.8, 40), torch.linalg.qr(normal(24, 40, 40))[0])
    vector = normal(25, 40)
    result = matrix_function(Products(matrix), vector, function, limit, 0.0)
    space = KrylovSpace(Products(matrix), vector)
    for _ in range(limit):
        space.grow()
    eigenvalues, vectors = torch.linalg.eigh(space.projected)
    f = (vectors * function(eigenvalues)) @ vectors.mT
    plain = space.norm * f[0] @ space.basis
    shifted = f - function(torch.zeros(1, dtype=torch.float64)) * torch.eye(limit, dtype=torch.float64)
    phi = torch.linalg.solve(space.projected, shifted)  # (f(T) − f(0)) T⁻¹
    neglected = space.beta * space.norm * phi[-1, 0] * space.direction
    assert_close(result.value, plain + neglected, rtol=1e-10, atol=1e-12)
    assert result.residual == pytest.approx(float(neglected.norm() / result.value.norm()), rel=1e-8)
    exact = dense(matrix, vector, function)
    assert distance(result.value, exact) < distance(plain, exact) * (0.4 if name == "exp" else 0.8)


def test_ritz_values_close_to_zero_do_not_spoil_the_correction():
    # symmetric about 3e-6 the spectrum puts a Ritz value there at every odd size: too close for (f(z) − f(0))/z
    half = torch.linspace(0.1, 0.9, 12, dtype=torch.float64)
    eigenvalues, vector = torch.cat([half, -half]) + 3e-6, torch.ones(24, dtype=torch.float64)
    for limit in (9, 10, 11, 12, 13):
        result = matrix_function(lambda v: eigenvalues * v, vector, torch.exp, limit, 0.0)
        assert distance(result.value, torch.exp(eigenvalues)) < 0.5 * result.residual + 1e-14
    assert result.residual < 1e-14


def test_one_product_of_a_hessian_that_the_vector_does_not_see():
    # gᵀHg = 0, so T = 0: the correction f′(0) β q alone knows of H
    swap = torch.tensor([[0.0, 2, 0], [2, 0, 1], [0, 1, 0]], dtype=torch.float64)
    result = matrix_function(Products(swap), torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.exp, 1, 1e-9)
    assert_close(result.value, torch.tensor([1.0, 2, 0], dtype=torch.float64))
    assert result.residual == pytest.approx(2 / math.sqrt(5))
    assert not result.converged


@pytest.mark.parametrize("absolute", [1e-1, 1e-4, 1e-9])
def test_absolute_tolerance(absolute, normal):
    matrix, vector = symmetric(torch.linspace(-1, 0.9, 60), torch.linalg.qr(normal(8, 60, 60))[0]), normal(9, 60)
    exact = dense(matrix, vector, torch.exp)
    result = matrix_function(Products(matrix), vector, torch.exp, 60, 0.0, absolute)
    assert result.converged
    assert float((result.value - exact).norm()) < absolute
    relative = matrix_function(Products(matrix), vector, torch.exp, 60, absolute / float(exact.norm()))
    assert relative.products == result.products
    # a vector 1e6 times as long is known to the same error only by more products
    longer = matrix_function(Products(matrix), 1e6 * vector, torch.exp, 60, 0.0, absolute)
    assert longer.products > result.products
    both = matrix_function(Products(matrix), vector, torch.exp, 60, absolute / float(exact.norm()), absolute)
    assert both.products <= result.products


def test_several_functions_share_a_space(normal):
    matrix, vector = symmetric(torch.linspace(-1, 0.9, 60), torch.linalg.qr(normal(8, 60, 60))[0]), normal(9, 60)

    def several(z):
        rows = torch.stack([torch.exp(z), real_coefficient(z), z.square(), torch.zeros_like(z)])
        return rows.reshape(2, 2, -1)

    product = Products(matrix)
    result = matrix_function(product, vector, several, 60, 1e-8)
    assert result.value.shape == (2, 2, 60)
    assert (result.converged, result.products) == (True, product.count)
    alone = matrix_function(Products(matrix), vector, real_coefficient, 60, 1e-8)  # the slowest
    assert (alone.products, alone.residual, alone.change) == (result.products, result.residual, result.change)
    for value, function in zip(
        result.value.reshape(4, 60)[:3], (torch.exp, real_coefficient, torch.square), strict=True
    ):
        assert distance(value, dense(matrix, vector, function)) < 1e-8
        single = matrix_function(Products(matrix), vector, function, result.products, 0.0)
        assert_close(single.value, value, rtol=1e-12, atol=1e-13)
    assert result.value[1, 1].tolist() == [0] * 60
    nothing = matrix_function(product, torch.zeros(60, dtype=torch.float64), several, 60, 1e-8)
    assert nothing.value.shape == (2, 2, 60)


def test_a_function_singular_at_an_eigenvalue_gives_nan():
    result = matrix_function(lambda v: 1.0 * v, torch.ones(3, dtype=torch.float64), lambda z: 1 / (1 - z), 3, 1e-6)
    assert bool(result.value.isnan().all())
    assert (result.products, result.converged, result.ritz.tolist()) == (1, False, [1.0])
    assert math.isnan(result.residual)
    assert math.isnan(result.change)


@pytest.mark.filterwarnings("error")
def test_no_graph_is_kept():
    theta = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    point = Rosenbrock().expand(theta)
    result = matrix_function(point.hvp, point.grad, torch.tanh, 2, 1e-9)
    assert not result.value.requires_grad
    assert_close(result.value, dense(Rosenbrock().hessian(theta.detach()), point.grad.detach(), torch.tanh))


ONES = torch.ones(3, dtype=torch.float64)
ERRORS = {
    "vector a list": ({"vector": [1.0]}, TypeError, r"vector must be a torch\.Tensor"),
    "vector whole": ({"vector": ONES.long()}, TypeError, "vector must have a floating dtype"),
    "vector a batch": ({"vector": ONES[None]}, ValueError, r"vector must have shape \(d,\), got \(1, 3\); loop"),
    "limit 0": ({"limit": 0}, ValueError, "limit must be at least 1, got 0"),
    "limit a float": ({"limit": 3.0}, TypeError, "limit must be a whole number"),
    "tolerance negative": ({"tolerance": -1e-3}, ValueError, r"tolerance must not be negative, got -0\.001"),
    "tolerance NaN": ({"tolerance": math.nan}, ValueError, "tolerance must be finite"),
    "absolute negative": ({"absolute": -1.0}, ValueError, "absolute must not be negative"),
    "absolute a string": ({"absolute": "0"}, TypeError, "absolute must be a real number"),
    "not analytic at 0": ({"function": torch.log}, ValueError, "function must be analytic at 0"),
    "a value for all": ({"function": torch.sum}, ValueError, "function must map eigenvalues"),
    "not a tensor": ({"function": float}, ValueError, "function must map eigenvalues .* it gave float"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    changed, error, message = ERRORS[case]
    arguments = {"product": lambda v: v, "vector": ONES, "function": torch.exp, "limit": 3, "tolerance": 1e-6}
    with pytest.raises(error, match=message):
        matrix_function(**(arguments | changed))
