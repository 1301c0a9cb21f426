"""Eigenpairs, stability coefficients and regimes along runs, against dense algebra in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sympy import sqrt, symbols
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, PrincipalFlow, UnconvergedWarning, descend, integrate
from flows.models.principal import principal_coefficient
from flows.observers import REGIMES, GradientCurvature, Sharpness, StabilityCoefficients, TopEigenpairs
from flows.observers.curvature import regimes
from flows.strategies import quadratics
from landscapes import Cosine, Quadratic, Rosenbrock, UnsupportedError, from_sympy
from landscapes.wrappers.rotated import Rotated
from tests.flows.networks import wide_network
from tests.tensors import draw

H = 0.3


def turned(landscape, seed=7):
    """The landscape in random coordinates, (landscape, Q)."""
    rotation = torch.linalg.qr(draw(seed, landscape.dimension, landscape.dimension))[0]
    return Rotated(landscape, rotation), rotation


NET = wide_network()
CASES = {
    "cosine": (turned(Cosine(dimension=6))[0], draw(2, 6), 0.3),
    "rosenbrock": (Rosenbrock(), torch.tensor([0.0, 0.5], dtype=torch.float64), 2e-3),
    "net": (NET, NET.theta0, 0.5),
}
cases = pytest.mark.parametrize(("landscape", "theta0", "h"), CASES.values(), ids=CASES)


@cases
def test_every_quantity_against_the_dense_hessian(landscape, theta0, h):
    top = TopEigenpairs(landscape, 3, tolerance=1e-13, vectors=True)
    stability = StabilityCoefficients(top, h)
    sharpness = Sharpness(landscape, tolerance=1e-13)
    run = descend(GradientDescent(landscape, h), theta0, 6, observers=[top, stability, sharpness])
    seen = {name: values for name, (_, values) in run.observations.items()}
    for i, theta in enumerate(run.theta):
        g, hessian = landscape.grad(theta), landscape.hessian(theta)
        values, vectors = torch.linalg.eigh(hessian)
        k = min(3, len(values))
        values, vectors = values.flip(0)[:k], vectors.mT.flip(0)[:k]
        assert_close(seen["top eigenvalues"][i], values, rtol=1e-9, atol=1e-9)
        assert_close(seen["sharpness"][i], values[0], rtol=1e-9, atol=1e-9)
        order = seen["top order"][i]
        assert sorted(order.tolist()) == list(range(k))
        assert_close(seen["top followed eigenvalues"][i], values[order], rtol=1e-9, atol=1e-9)
        u = seen["top vectors"][i]
        assert_close((u @ vectors[order].mT).diagonal().abs(), torch.ones(k).double(), rtol=0, atol=1e-7)
        assert_close(seen["top gradient components"][i], u @ g, rtol=1e-12, atol=1e-12)
        assert float(seen["top residuals"][i].max()) < 1e-4  # a residual squared is an error
        x = h * seen["top followed eigenvalues"][i]
        alpha = principal_coefficient(x.to(torch.complex128))
        assert_close(seen["stability scaled eigenvalues"][i], x)
        assert_close(seen["stability coefficients"][i], alpha, rtol=1e-13, atol=1e-15)
        assert_close(seen["stability contributions"][i], alpha * (u @ g) ** 2, rtol=1e-12, atol=1e-15)
        assert_close(
            seen["stability remainder"][i], (u @ g).square().sum() - g @ g, rtol=1e-9, atol=1e-14 * float(g @ g)
        )
        assert torch.equal(seen["stability series hold"][i], x.abs() < 1)
        assert torch.equal(seen["stability regimes"][i], regimes(x))
    assert bool(seen["top converged"].all() & seen["sharpness converged"].all())
    assert_close(seen["top overlaps"][0], torch.zeros(k).double())
    assert float(seen["top overlaps"][1:].min()) > 0.8
    assert bool(((seen["top vectors"][1:] * seen["top vectors"][:-1]).sum(-1) > 0).all())


@pytest.mark.parametrize("which", ["smallest", "magnitude"])
def test_other_ends_of_the_spectrum(which):
    landscape = turned(Cosine(dimension=6))[0]
    theta = draw(3, 6) * 2
    values = torch.linalg.eigvalsh(landscape.hessian(theta))
    expected = values[:3] if which == "smallest" else values[values.abs().argsort(descending=True)][:3]
    seen = TopEigenpairs(landscape, 3, which=which, tolerance=1e-13)(0, 0.0, theta)
    assert_close(seen["top eigenvalues"], expected)


def test_modes_keep_their_places_and_signs_through_crossings():
    landscape, rotation = turned(Cosine(dimension=5))
    top = TopEigenpairs(landscape, 2, tolerance=1e-12, vectors=True)
    stability = StabilityCoefficients(top, H)
    path = torch.linspace(0, 1, 21, dtype=torch.float64)
    first, crossed = None, False
    for k, s in enumerate(path):
        plain = torch.stack([0.1 + 1.1 * s, 1.15 - 1.0 * s, *torch.full((3,), 2.0, dtype=torch.float64)])
        seen = top(k, float(s), rotation @ plain) | stability(k, float(s), rotation @ plain)
        first = seen["top vectors"] if first is None else first
        assert_close(seen["top followed eigenvalues"], plain[:2].cos())
        assert_close(seen["stability eigenvalues"], plain[:2].cos())
        assert_close(seen["stability scaled eigenvalues"], H * plain[:2].cos())
        assert_close(seen["top eigenvalues"], plain[:2].cos().sort(descending=True)[0])
        assert_close(seen["top vectors"], first, rtol=0, atol=1e-6)
        assert_close(seen["top gradient components"].abs(), plain[:2].sin(), rtol=0, atol=1e-6)
        assert k == 0 or float(seen["top overlaps"].min()) > 1 - 1e-9
        crossed = crossed or seen["top order"].tolist() == [1, 0]
    assert crossed


THRESHOLDS = {
    -1e300: "escape",
    -5e-324: "escape",
    0.0: "real stable",
    1 - 1.1e-6: "real stable",
    1 - 0.9e-6: "singular",
    1.0: "singular",
    1 + 0.9e-6: "singular",
    1 + 1.1e-6: "complex stable",
    math.nextafter(2, 1): "complex stable",
    2.0: "complex unstable",
    1e300: "complex unstable",
    math.inf: "complex unstable",
    -math.inf: "escape",
    math.nan: "undefined",
}


def test_regimes_at_their_thresholds():
    codes = regimes(torch.tensor(list(THRESHOLDS), dtype=torch.float64))
    assert [REGIMES[code] for code in codes.tolist()] == list(THRESHOLDS.values())


def test_series_hold_on_either_side_of_zero():
    quadratic = Quadratic(torch.diag(torch.tensor([3.0, 1.9, 1.0, -1.0, -1.9, -3.0], dtype=torch.float64)))
    seen = StabilityCoefficients(TopEigenpairs(quadratic, 6), 0.5)(0, 0.0, torch.ones(6).double())
    assert_close(seen["stability scaled eigenvalues"], torch.tensor([1.5, 0.95, 0.5, -0.5, -0.95, -1.5]).double())
    assert seen["stability series hold"].tolist() == [False, True, True, True, True, False]


@given(quadratics(low=-2, high=4, avoid=2.0, gap=1e-3), st.integers(0, 99))
def test_regimes_say_what_gradient_descent_does(quadratic, seed):
    h, theta0 = 0.7, quadratic.minimum + draw(seed, quadratic.dimension)
    stability = StabilityCoefficients(TopEigenpairs(quadratic, quadratic.dimension), h)
    seen = stability(0, 0.0, theta0)
    theta1 = theta0 - h * quadratic.grad(theta0)
    values, u = torch.linalg.eigh(quadratic.hessian(theta0))
    before, after = (u.mT @ quadratic.grad(theta) for theta in (theta0, theta1))
    order = seen["stability scaled eigenvalues"].argsort()
    for code, x, a, b in zip(seen["stability regimes"][order].tolist(), h * values, before, after, strict=True):
        if REGIMES[code] == "singular" or abs(a) < 1e-6:
            continue
        assert (float(a * b) < 0) == REGIMES[code].startswith("complex")
        # |1 − x| by which gᵀu grows, by the coefficient alone: exp(x Re α)
        grows = abs(float(b)) > abs(float(a)) * (1 + 1e-9)
        assert grows == (REGIMES[code] in ("escape", "complex unstable") and abs(float(x)) > 1e-8)


@given(quadratics(low=-2, high=3, avoid=1.0, gap=1e-2), st.integers(0, 99))
def test_all_modes_add_up_to_the_principal_flows_rate(quadratic, seed):
    theta = quadratic.minimum + draw(seed, quadratic.dimension)
    seen = StabilityCoefficients(TopEigenpairs(quadratic, 8), 1.0)(0, 0.0, theta)
    rate = (PrincipalFlow(quadratic, 1.0).velocity(0.0, theta + 0j) * quadratic.grad(theta)).sum()
    assert_close(seen["stability contributions"].sum() + seen["stability remainder"], rate, rtol=1e-8, atol=1e-8)


def test_a_singular_mode_is_minus_infinity_and_no_nan():
    quadratic = Quadratic(torch.diag(torch.tensor([2.0, 2.0 - 1e-8, 0.5], dtype=torch.float64)))
    stability = StabilityCoefficients(TopEigenpairs(quadratic, 3), 0.5)
    seen = stability(0, 0.0, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert [REGIMES[c] for c in seen["stability regimes"].tolist()] == ["singular", "singular", "real stable"]
    alpha, contributions = seen["stability coefficients"], seen["stability contributions"]
    assert alpha[0].real < -15
    assert_close(alpha[2].real, torch.tensor(4 * math.log(0.75), dtype=torch.float64))
    assert not bool(torch.view_as_real(contributions).isnan().any())
    exactly = StabilityCoefficients(TopEigenpairs(Quadratic(torch.tensor([[2.0]])), 1), 0.5)
    seen = exactly(0, 0.0, torch.ones(1))
    assert seen["stability coefficients"].tolist() == [complex(-math.inf, 0)]
    assert seen["stability contributions"].tolist() == [complex(-math.inf, 0)]
    assert exactly(1, 0.5, torch.zeros(1))["stability contributions"].tolist() == [0]


@cases
def test_curvature_along_the_gradient(landscape, theta0, h):
    seen = GradientCurvature(landscape)(0, 0.0, torch.stack([theta0, 1.1 * theta0]))
    for i, theta in enumerate([theta0, 1.1 * theta0]):
        g, hessian = landscape.grad(theta), landscape.hessian(theta)
        assert_close(seen["gradient curvature"][i], g @ hessian @ g / (g @ g))
        assert_close(seen["gradient curvature Hg norm"][i], torch.linalg.vector_norm(hessian @ g))


def test_curvature_along_a_gradient_that_is_tiny_or_zero():
    quadratic = Quadratic(torch.diag(torch.tensor([3.0, 1.0])))
    theta = torch.tensor([[1e-30, 0.0], [0.0, 0.0]])  # ‖g‖² is zero in float32 for both
    seen = GradientCurvature(quadratic)(0, 0.0, theta)
    assert_close(seen["gradient curvature"], torch.tensor([3.0, math.nan]), equal_nan=True)
    assert_close(seen["gradient curvature Hg norm"], torch.tensor([9e-30, 0.0]), rtol=1e-6, atol=0)


def everything(landscape, h=H, every=1, **options):
    """One observer of each kind; the stability coefficients share the pairs."""
    top = TopEigenpairs(landscape, 3, every=every, **options)
    return [top, StabilityCoefficients(top, h, every=every), Sharpness(landscape), GradientCurvature(landscape)]


def same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        assert_close(one[name], other[name], equal_nan=True, **tolerance)


LANDSCAPE = CASES["cosine"][0]
TIMES = torch.arange(6, dtype=torch.float64) * H


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_the_same_in_both_engines_and_in_a_loop(batch):
    theta0 = draw(4, *batch, 6)
    for engine in (
        lambda seen: integrate(GradientFlow(LANDSCAPE), theta0, TIMES, observers=seen),
        lambda seen: integrate(GradientFlow(LANDSCAPE), theta0, TIMES, method="rk4", dt=H, observers=seen),
        lambda seen: descend(GradientDescent(LANDSCAPE, H), theta0, 5, observers=seen),
    ):
        run, mine = engine(everything(LANDSCAPE)), everything(LANDSCAPE)
        theta = run.theta[0].clone().requires_grad_()
        for k, t in enumerate(run.times.tolist()):
            with torch.no_grad():
                theta.copy_(run.theta[k])  # in place, as torch's optimisers do
            seen = {}
            for observer in mine:
                seen |= observer(k, t, theta)
            assert not any(value.requires_grad for value in seen.values())
            same(seen, {name: values[k] for name, (_, values) in run.observations.items()}, rtol=0, atol=0)
        assert {o.name: o.counts for o in mine} == run.observer_costs


def test_a_batch_is_its_members():
    theta0 = draw(5, 4, 6)
    whole = descend(GradientDescent(LANDSCAPE, H), theta0, 5, observers=everything(LANDSCAPE))
    assert whole.observations["stability regimes"][1].shape == (6, 4, 3)
    for i in range(4):
        single = descend(GradientDescent(LANDSCAPE, H), theta0[i], 5, observers=everything(LANDSCAPE))
        same(
            {name: values[:, i] for name, (_, values) in whole.observations.items()},
            {name: values for name, (_, values) in single.observations.items()},
            rtol=1e-9,  # gradients of one and of several differ by rounding
            atol=1e-9,
        )


def test_single_precision_on_every_device(device):
    theta0 = draw(6, 6)
    landscape, rotation = turned(Cosine(dimension=6))
    wide = descend(GradientDescent(landscape, H), theta0, 4, observers=everything(landscape))
    landscape = Rotated(Cosine(dimension=6), rotation.float().to(device))
    start = theta0.float().to(device)
    seen = everything(landscape, vectors=True)
    narrow = descend(GradientDescent(landscape, H), start, 4, observers=seen)
    for name, (_, values) in wide.observations.items():
        if name.endswith(("eigenvalues", "coefficients", "sharpness", "remainder", "curvature", "norm")):
            assert_close(narrow.observations[name][1].to(values), values, rtol=2e-3, atol=2e-3)  # tolerance=1e-4
    vectors = narrow.observations["top vectors"][1]
    assert (vectors.dtype, vectors.device) == (torch.float32, start.device)
    assert narrow.observations["top eigenvalues"][1].dtype == torch.float64
    assert narrow.observations["gradient curvature"][1].dtype == torch.float32


def test_an_unconverged_state_says_so():
    quadratic = Quadratic(torch.diag(torch.linspace(1, 2, 40, dtype=torch.float64)))
    top = TopEigenpairs(quadratic, 2, tolerance=1e-12, limit=5)
    with pytest.warns(UnconvergedWarning, match=r"limit=5 HVPs did not reach tolerance 1e-12.*larger tolerance"):
        seen = top(0, 0.0, torch.ones(40, dtype=torch.float64))
    assert (seen["top converged"].item(), seen["top products"].item(), top.counts["hvp"]) == (False, 5, 5)
    assert float(seen["top errors"].max()) > 1e-3
    run = integrate(GradientFlow(quadratic), torch.ones(40, dtype=torch.float64), [0.0, 1e-3], observers=[top])
    assert any("limit=5 HVPs" in note for note in run.notes)


def test_nan_is_shown_and_the_run_goes_on():
    x, y = symbols("x y")
    root = from_sympy(sqrt(x) ** 3 + y**2 + x * y / 9, (x, y))  # NaN at x < 0
    observers = everything(root)
    theta0 = torch.tensor([[0.02, 1.0], [0.5, 1.0]], dtype=torch.float64)
    for k, theta in enumerate([theta0, theta0 - torch.tensor([0.1, 0.0]), theta0]):
        seen = {}
        for observer in observers:
            seen |= observer(k, 0.1 * k, theta)
        lost = k == 1
        for name in (
            "top eigenvalues",
            "sharpness",
            "stability coefficients",
            "gradient curvature",
            "stability remainder",
        ):
            value = seen[name]
            assert bool(value[0].isnan().all()) == lost, name
            assert not bool(value[1].isnan().any()), name
        assert (REGIMES[seen["stability regimes"][0, 0]] == "undefined") == lost
        assert seen["top converged"].tolist() == [not lost, True]
        assert observers[1].counts["hvp"] == 0  # shared even where θ or H is NaN
    assert float(seen["top overlaps"].min()) > 0.9  # found again beyond the gap
    seen = observers[0](3, 0.3, torch.full((2, 2), math.nan, dtype=torch.float64))
    shared = observers[1](3, 0.3, torch.full((2, 2), math.nan, dtype=torch.float64))
    assert bool(seen["top eigenvalues"].isnan().all() & shared["stability scaled eigenvalues"].isnan().all())
    assert observers[1].counts["hvp"] == 0


@pytest.mark.parametrize("build", [TopEigenpairs, Sharpness, GradientCurvature, lambda q: everything(q)[1]])
def test_complex_theta_is_refused_with_a_remedy(build):
    quadratic = Quadratic(torch.eye(2, dtype=torch.float64))
    with pytest.raises(UnsupportedError, match=r"real theta only.*branch='real'.*theta\.real"):
        integrate(PrincipalFlow(quadratic, 0.5), torch.ones(2).double(), [0.0, 1.0], observers=[build(quadratic)])
    integrate(
        PrincipalFlow(quadratic, 0.5, branch="real"), torch.ones(2).double(), [0.0, 1.0], observers=[build(quadratic)]
    )


REFUSED = {
    "landscape": (lambda: TopEigenpairs(torch.eye(2)), TypeError, "landscape must be a Landscape"),
    "count": (lambda: TopEigenpairs(LANDSCAPE, 0), ValueError, "count must be at least 1"),
    "which": (lambda: TopEigenpairs(LANDSCAPE, which="best"), ValueError, "which must be one of"),
    "tolerance": (lambda: Sharpness(LANDSCAPE, tolerance=0), ValueError, "tolerance must be positive"),
    "limit": (lambda: TopEigenpairs(LANDSCAPE, 4, limit=3), ValueError, "limit must be at least 4"),
    "vectors": (lambda: TopEigenpairs(LANDSCAPE, vectors=1), TypeError, "vectors must be True or False"),
    "every": (lambda: Sharpness(LANDSCAPE, every=0), ValueError, "every must be at least 1"),
    "name": (lambda: Sharpness(LANDSCAPE, name=3), TypeError, "name must be a string"),
    "pairs": (lambda: StabilityCoefficients(LANDSCAPE, H), TypeError, r"pairs must be a TopEigenpairs.*write TopEigen"),
    "h": (lambda: StabilityCoefficients(TopEigenpairs(LANDSCAPE), -1.0), ValueError, "h must be positive"),
    "theta": (lambda: Sharpness(LANDSCAPE)(0, 0.0, torch.ones(5)), ValueError, r"theta must have shape \(..., 6\)"),
    "no member": (lambda: Sharpness(LANDSCAPE)(0, 0.0, draw(0, 0, 6)), ValueError, "at least one member"),
}


@pytest.mark.parametrize(("call", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_arguments_out_of_place(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
