"""Diagonal blocks by products with the whole, against the dense ones, under every method that takes a product."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import Rosenbrock
from landscapes.krylov import (
    EigenpairTracker,
    block_product,
    eigenpairs,
    layer_traces,
    matrix_function,
    random_block,
    spectral_density,
    trace,
)
from tests.landscapes.dense import Products, ranked, symmetric

PARTS = {
    "first": slice(0, 7),
    "middle": slice(7, 20),
    "last": slice(-10, None),
    "one": slice(4, 5),
    "all": slice(None),
    "every third": slice(1, 28, 3),
    "beyond the end": slice(25, 99),
}
parts = pytest.mark.parametrize("name", PARTS)


@parts
def test_products_are_those_of_the_dense_block(name, normal, device, dtype):
    matrix, part = symmetric(normal(0, 30)).to(device, dtype), PARTS[name]
    whole = Products(matrix)
    product = block_product(whole, torch.zeros(30, device=device, dtype=dtype), part)
    dense = matrix[part, part]
    columns = torch.stack([product(row) for row in torch.eye(len(dense), device=device, dtype=dtype)])
    assert torch.equal(columns.mT, dense)
    assert whole.count == len(dense)


def test_a_block_of_a_complex_symmetric_hessian(normal):
    x, y = normal(1, 2, 6, 6)
    matrix, v = torch.complex(x + x.mT, y + y.mT), torch.complex(*normal(2, 2, 3))
    product = block_product(Products(matrix), torch.zeros(6, dtype=torch.complex128), slice(2, 5))
    assert_close(product(v), matrix[2:5, 2:5] @ v)
    value = matrix_function(product, v, torch.exp, 3, 1e-14).value
    assert_close(value, torch.linalg.matrix_exp(matrix[2:5, 2:5]) @ v)


@parts
def test_every_method_on_a_block(name, normal):
    matrix, part = symmetric(normal(3, 30)), PARTS[name]
    dense = matrix[part, part]
    n, exact = len(dense), torch.linalg.eigvalsh(dense)
    like = torch.zeros(n, dtype=torch.float64)
    product = block_product(Products(matrix), torch.zeros(30, dtype=torch.float64), part)
    for which in ("largest", "smallest", "magnitude"):
        count = min(2, n)
        pairs = eigenpairs(product, random_block(like, min(4, n)), count, which=which, tolerance=1e-10)
        assert pairs.converged
        assert_close(pairs.values, ranked(exact, which)[:count], rtol=0, atol=1e-9)
    followed = EigenpairTracker(1, tolerance=1e-10)(product, like)
    assert_close(followed.values, exact[-1:], rtol=0, atol=1e-9)
    density = spectral_density(product, like, 3, n)
    assert_close(torch.tensor(density.extremes), exact[[0, -1]].float(), rtol=0, atol=1e-6)
    estimate = trace(product, like, 30)
    assert abs(estimate.value - float(dense.trace())) <= 4 * estimate.error + 1e-12
    v = normal(4, n)
    expected = torch.linalg.matrix_exp(dense) @ v
    assert_close(matrix_function(product, v, torch.exp, n, 1e-13).value, expected, rtol=1e-10, atol=1e-10)


@given(st.data())
def test_blocks_interlace_and_add_up(data):
    d, seed = data.draw(st.integers(2, 12)), data.draw(st.integers(0, 999))
    cut = data.draw(st.integers(1, d - 1))
    generator = torch.Generator().manual_seed(seed)
    matrix = symmetric(torch.randn(d, generator=generator, dtype=torch.float64), seed)
    like, exact = torch.zeros(d, dtype=torch.float64), torch.linalg.eigvalsh(matrix)
    layers = {"a": slice(0, cut), "b": slice(cut, d)}
    tops = []
    for part in layers.values():
        product = block_product(Products(matrix), like, part)
        n = len(matrix[part])
        tops.append(eigenpairs(product, random_block(like[part], n), n, tolerance=1e-12).values)
    for top in tops:  # Cauchy: λ_i of the whole is at least λ_i of a block, λ_{d−n+i} at most
        assert bool((top <= exact.flip(0)[: len(top)] + 1e-10).all())
        assert bool((top >= exact.flip(0)[d - len(top) :] - 1e-10).all())
    assert_close(torch.cat(tops).sum(), matrix.trace(), rtol=0, atol=1e-9)
    separate = {
        name: trace(block_product(Products(matrix), like, part), like[part], 40) for name, part in layers.items()
    }
    together = layer_traces(Products(matrix), like, layers, 40)
    for name, part in layers.items():
        for estimate in (separate[name], together[name]):
            assert abs(estimate.value - float(matrix[part, part].trace())) <= 5 * estimate.error + 1e-10


def test_like_is_read_for_its_kind_alone():
    theta = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    landscape = Rosenbrock()
    product = block_product(landscape.expand(theta.detach()).hvp, theta, slice(1, 2))
    value = product(torch.ones(1, dtype=torch.float64))
    assert_close(value, landscape.hessian(theta.detach())[1, 1:])
    assert not value.requires_grad


LIKE = torch.zeros(4)
ERRORS = {
    "like a list": (([0.0] * 4, slice(2)), TypeError, r"like must be a torch\.Tensor"),
    "like whole": ((LIKE.long(), slice(2)), TypeError, "like must have a floating dtype"),
    "like a matrix": (
        (LIKE[None], slice(2)),
        ValueError,
        r"part must name coordinates of one vector .* shape \(1, 4\)",
    ),
    "an index": ((LIKE, 2), TypeError, "part must be a slice of theta, got int"),
    "empty": ((LIKE, slice(2, 2)), ValueError, r"part must name coordinates .* got slice\(2, 2, None\)"),
    "outside": ((LIKE, slice(4, 9)), ValueError, "part must name coordinates"),
    "backwards": ((LIKE, slice(None, None, -1)), ValueError, "in ascending order, got slice"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    arguments, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        block_product(lambda v: v, *arguments)
