"""Tensors without numbers at strides, of storage dtypes, and huge numbers: refused by name, for kinds × functions."""

import math

import numpy as np
import pytest
import torch

from landscapes import Cosine, DeepLinearChain, LinearRegression, NoisyQuadratic, Quadratic, Rosenbrock, TwoQuadratics
from landscapes.errors import MOST, check_count, check_positive, check_real, short_form
from landscapes.krylov import (
    EigenpairTracker,
    KrylovSpace,
    block_product,
    eigenpairs,
    layer_traces,
    matrix_function,
    random_block,
    spectral_action,
    spectral_density,
    trace,
)
from landscapes.noise import (
    ConstantNoise,
    IsotropicNoise,
    MinibatchNoise,
    alignment,
    covariance_trace,
    hill_index,
    ito_correction,
    noise_along,
    noise_covariance,
    noise_scales,
    random_directions,
    subspace_overlap,
    tail_check,
)

VECTOR, BLOCK = torch.tensor([1.0, 2.0, -1.0]).double(), torch.eye(3).double()[:2]
MATRIX = torch.diag(torch.tensor([3.0, 1.0, 0.5]).double())
SUM = LinearRegression(torch.tensor([[1.0, 0, 2], [0, 1, 1], [1, 1, 0], [2, 0, 1]]).double(), torch.ones(4).double())
OPERATOR = noise_covariance(SUM, VECTOR)
PAIR, PLANE = TwoQuadratics(), torch.tensor([0.5, -0.3]).double()


def product(v):
    return MATRIX.to(v) @ v


NOT_DENSE = {
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: (x if x.ndim > 1 else torch.eye(2).double()).to_sparse_csr(),
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x.flatten(), x.flatten()[:1]]),
    "jagged": lambda x: torch.nested.nested_tensor([x.flatten(), x.flatten()[:1]], layout=torch.jagged),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "complex32": lambda x: x.to(torch.complex32),
    "uint4": lambda x: torch.empty(x.shape, dtype=torch.uint4),
    "uint16": lambda x: x.abs().to(torch.uint16),
    "an array": lambda x: x.numpy(),
    "a list": lambda x: x.tolist(),
    "none": lambda x: None,
}
TENSORS = {
    "theta": [
        (PAIR.loss, PLANE),
        (Rosenbrock().hessian, PLANE),
        (lambda x: covariance_trace(PAIR, x), PLANE),
        (MinibatchNoise(PAIR, 1).trace, PLANE),
        (lambda x: EigenpairTracker(1)(product, x), VECTOR),
        (lambda x: PAIR.weighted_grad(x, PLANE), PLANE),
    ],
    "vector": [
        (lambda x: matrix_function(product, x, torch.exp, 3, 0.001), VECTOR),
        (lambda x: KrylovSpace(product, x), VECTOR),
        (lambda x: spectral_action(MATRIX, x, torch.exp), VECTOR),
    ],
    "matrix": [(lambda x: spectral_action(x, VECTOR, torch.exp), MATRIX)],
    "start": [(lambda x: eigenpairs(product, x, 1), BLOCK)],
    "like": [
        (lambda x: trace(product, x), VECTOR),
        (lambda x: spectral_density(product, x), VECTOR),
        (lambda x: random_block(x, 2), VECTOR),
    ],
    "v": [(lambda x: PAIR.hvp(PLANE, x), PLANE), (OPERATOR.product, VECTOR)],
    "xi": [(lambda x: MinibatchNoise(PAIR, 1).factor(PLANE, x), PLANE), (MinibatchNoise(PAIR, 1).weights, PLANE)],
    "weights": [(lambda x: PAIR.weighted_grad(PLANE, x), PLANE)],
    "directions": [(lambda x: noise_along(OPERATOR, x, product), BLOCK)],
    "left": [(lambda x: subspace_overlap(x, BLOCK), BLOCK)],
    "samples": [(lambda x: hill_index(x, 1), VECTOR)],
    "root": [(ConstantNoise, MATRIX)],
    "hessian": [(Quadratic, MATRIX)],
    "state": [(lambda x: ito_correction(lambda y, w: y * w, x, 2, "diagonal"), PLANE)],
}
CASES = [(n, i, kind) for n, calls in TENSORS.items() for i in range(len(calls)) for kind in NOT_DENSE]


@pytest.mark.parametrize(("name", "number", "kind"), CASES)
def test_tensors_that_torch_does_not_compute_with_are_refused(name, number, kind):
    function, valid = TENSORS[name][number]
    function(valid)
    with pytest.raises((TypeError, ValueError), match=rf"{name}\b.* must ") as caught:
        function(NOT_DENSE[kind](valid))
    assert "/landscapes/" in str(caught.traceback[-1].path)


RETURNED = {
    "nothing": lambda v: None,
    "a number": lambda v: 1.0,
    "an array": lambda v: v.numpy(),
    "a tuple": lambda v: (v, v),
    "longer": lambda v: torch.cat([v, v]),
    "a row": lambda v: v[None],
    "a scalar": torch.sum,
    "float32": torch.Tensor.float,
    "complex": lambda v: v.to(torch.complex128),
    "whole numbers": torch.Tensor.long,
    "meta": lambda v: v.to("meta"),
    "sparse": torch.Tensor.to_sparse,
    "nested": lambda v: torch.nested.nested_tensor([v, v[:1]]),
    "not callable": None,
}
PRODUCTS = {
    "product": {
        "matrix_function": lambda f: matrix_function(f, VECTOR, torch.exp, 3, 1e-3),
        "eigenpairs": lambda f: eigenpairs(f, BLOCK, 1),
        "tracker": lambda f: EigenpairTracker(1)(f, VECTOR),
        "trace": lambda f: trace(f, VECTOR),
        "layer_traces": lambda f: layer_traces(f, VECTOR, {"a": slice(2)}),
        "spectral_density": lambda f: spectral_density(f, VECTOR),
        "block_product": lambda f: block_product(f, VECTOR, slice(2))(PLANE),
    },
    "hvp": {
        "alignment": lambda f: alignment(OPERATOR, f),
        "noise_scales": lambda f: noise_scales(OPERATOR, f),
        "noise_along": lambda f: noise_along(OPERATOR, BLOCK, f),
    },
    "diffusion": {"ito_correction": lambda f: ito_correction(f and (lambda x, w: f(x)), PLANE, 2, "general")},
}


@pytest.mark.parametrize("returned", RETURNED)
@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in PRODUCTS.items() for call in calls])
def test_products_of_the_user_are_checked(name, call, returned):
    with pytest.raises((TypeError, ValueError), match=f"{name} must (return|be callable)") as caught:
        PRODUCTS[name][call](RETURNED[returned])
    assert "/landscapes/" in str(caught.traceback[-1].path)


HUGE = {
    "probes": [
        lambda n: trace(product, VECTOR, n),
        lambda n: spectral_density(product, VECTOR, n),
        OPERATOR.trace_estimate,
        lambda n: alignment(OPERATOR, product, probes=n),
    ],
    "rows": [lambda n: random_block(VECTOR, n)],
    "count": [lambda n: random_directions(OPERATOR, n), lambda n: eigenpairs(product, BLOCK, n)],
    "repeats": [lambda n: tail_check(OPERATOR, VECTOR.abs(), count=2, repeats=n)],
    "dimension": [lambda n: Cosine(dimension=n), lambda n: IsotropicNoise(1.0, n)],
    "depth": [lambda n: DeepLinearChain(depth=n)],
    "size": [lambda n: NoisyQuadratic(MATRIX, n, 0), lambda n: ito_correction(lambda x, w: x, PLANE, n, "general")],
}


@pytest.mark.parametrize("number", [10**9, 10**12, 2**63, 10**400])
@pytest.mark.parametrize(("name", "which"), [(name, i) for name, calls in HUGE.items() for i in range(len(calls))])
def test_huge_counts_are_refused_with_the_bound(name, which, number):
    with pytest.raises(ValueError, match=f"{name} must be at most "):
        HUGE[name][which](number)


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_integers_beyond_floats_are_infinite(number):
    for check in (check_positive, check_real):
        with pytest.raises(ValueError, match=r"h must be (positive and )?finite, got"):
            check("h", number)


def test_values_are_shown_briefly():
    four_bits = torch.empty(2, dtype=torch.uint4)
    assert short_form(four_bits) == "a tensor of torch.uint4"
    assert short_form([four_bits]) == "a list"
    assert short_form(10**5000) == "a int"
    assert short_form("x" * 10**6) == "'" + "x" * 79 + "…"
    with pytest.raises(TypeError, match="n must be a whole number, got a tensor of"):
        check_count("n", four_bits)


def test_large_toys_say_how_many_critical_points_they_have():
    for toy in (Cosine(dimension=MOST), DeepLinearChain(depth=40)):
        with pytest.raises(ValueError, match="must leave at most 10,000 critical points"):
            toy.critical_positions()


def test_numpy_seeds_of_eigenpairs():
    found = eigenpairs(product, random_block(VECTOR, 1), 1, seed=np.int64(3))
    assert math.isclose(float(found.values[0]), 3, rel_tol=1e-6)
