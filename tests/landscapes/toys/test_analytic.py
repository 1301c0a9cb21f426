"""Closed-form toys: values by hand, derivatives against autograd, critical points, arguments."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import (
    LANDSCAPES,
    BarrierValley,
    Beale,
    BumpyBasin,
    CatapultModel,
    Cosine,
    DeepLinearChain,
    DoubleWell,
    Himmelblau,
    MatrixFactorisation,
    MonkeySaddle,
    Product,
    Quadratic,
    QuarticWell,
    Rosenbrock,
    Saddle,
    SharpFlatWells,
    SphericalQuotient,
    StyblinskiTang,
)
from landscapes.expansion import AutogradExpansion

INDEFINITE = torch.tensor([[1.0, 2.0, 0.5], [2.0, -1.0, 0.3], [0.5, 0.3, 0.2]], dtype=torch.float64)
EPSILON = torch.finfo(torch.float64).eps
TALL = torch.tensor([[1.0, 0.3], [-0.4, 2.0], [0.5, -0.6]], dtype=torch.float64)
VARIANTS = {
    "indefinite": lambda: Quadratic(INDEFINITE, torch.tensor([1.0, -2.0, 0.5])),
    "gentle-rosenbrock": lambda: Rosenbrock(a=-0.5, b=3.0),
    "uneven-saddle": lambda: Saddle(a=2.0, b=0.3),
    "one-well": lambda: DoubleWell(tilt=-0.7),
    "double-well-3d": lambda: DoubleWell(tilt=0.1, dimension=3),
    "sharp-quartic-well": lambda: QuarticWell(S=5.0, Q=0.5),
    "cosine-3d": lambda: Cosine(amplitude=0.7, frequency=2.5, dimension=3),
    "flipped-product": lambda: Product(y=2.0, x=-0.5),
    "zero-product": lambda: Product(y=0.0),
    "low-monkey-saddle": lambda: MonkeySaddle(scale=0.3),
    "styblinski-tang-1d": lambda: StyblinskiTang(dimension=1),
    "gentle-valley": lambda: BarrierValley(across=3.0, along=0.2, amplitude=0.3, frequency=5.0, width=0.7),
    "free-valley": lambda: BarrierValley(along=2.0, amplitude=0.01, frequency=3.0),
    "bumpy-line": lambda: BumpyBasin(radius=1.5, amplitude=0.1, frequency=7.0, dimension=1),
    "smooth-basin-3d": lambda: BumpyBasin(amplitude=0.01, frequency=0.5, dimension=3),
    "wells-1d": lambda: SharpFlatWells(sharp=8.0, flat=2.0, separation=1.0, dimension=1),
    "wells-3d": lambda: SharpFlatWells(sharp=3.0, flat=0.5, separation=2.0, dimension=3),
    "spherical-3d": lambda: SphericalQuotient(INDEFINITE),
    "chain-of-two": lambda: DeepLinearChain(depth=2, y=-2.0, x=0.5),
    "chain-of-five": lambda: DeepLinearChain(depth=5, y=-0.7, x=1.3),
    "chain-to-zero": lambda: DeepLinearChain(depth=4, y=0.0),
    "rank-one": lambda: MatrixFactorisation(TALL),
    "full-rank": lambda: MatrixFactorisation(TALL.mT, rank=2),
    "catapult-of-one": lambda: CatapultModel(width=1, y=-0.5, x=2.0),
    "catapult-to-target": lambda: CatapultModel(width=3, y=1.5, x=-0.7),
}
TOYS = LANDSCAPES | VARIANTS
toys = pytest.mark.parametrize("name", TOYS)
seeds = st.integers(0, 2**31)


@pytest.mark.parametrize(
    ("landscape", "theta", "loss", "grad"),
    [
        (Quadratic(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 0.0])), [2.0, 2.0], 9.0, [4.0, 7.0]),
        (Rosenbrock(), [-1.2, 1.0], 24.2, [-215.6, -88.0]),
        (Saddle(a=2.0, b=3.0), [1.0, 2.0], -5.0, [2.0, -6.0]),
        (DoubleWell(tilt=0.5, dimension=2), [2.0, 3.0], 9 / 4 + 1 + 4.5, [6.5, 3.0]),
        (QuarticWell(S=2.0, Q=3.0), [2.0], 4.0 - 12.0, [4.0 - 24.0]),
        (Cosine(amplitude=2.0, frequency=0.5), [math.pi, 2 * math.pi], 2.0 + 4.0, [1.0, 0.0]),
        (Product(y=3.0, x=2.0), [1.0, 2.0], 0.5, [4.0, 2.0]),
        (MonkeySaddle(scale=2.0), [2.0, 1.0], 4.0, [18.0, -24.0]),
        (Himmelblau(), [1.0, 2.0], 68.0, [-36.0, -32.0]),
        (Beale(), [2.0, 2.0], 356.703125, [289.25, 944.0]),
        (StyblinskiTang(dimension=2), [1.0, 2.0], -24.0, [-11.5, -13.5]),
        (BarrierValley(1.0, 2.0, 0.1, math.pi, 2.0), [1.0, 0.0], 1.2, [2.0, 0.0]),
        (BumpyBasin(2.0, 0.1, math.pi, 2), [1.0, 2.0], 1.2625, [0.25, 2.0]),
        (SharpFlatWells(4.0, 2.0, 2.0, 2), [0.0, 0.0], 2 / 3, [-4 / 9, 0.0]),
        (SphericalQuotient(torch.diag(torch.tensor([1.0, 3.0]))), [1.0, 1.0], 1.0, [-0.5, 0.5]),
        (DeepLinearChain(depth=3, y=1.0, x=2.0), [1.0, 2.0, -1.0], 12.5, [20.0, 10.0, -20.0]),
        (MatrixFactorisation(torch.eye(2)), [1.0, 2.0, 3.0, 0.0], 20.5, [6.0, 18.0, 14.0, -2.0]),
        (CatapultModel(width=4, y=1.0, x=2.0), [1.0] * 8, 4.5, [3.0] * 8),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_by_hand(landscape, theta, loss, grad):
    theta = torch.tensor(theta, dtype=torch.float64)
    assert_close(landscape.loss(theta), torch.tensor(loss, dtype=torch.float64))
    assert_close(landscape.grad(theta), torch.tensor(grad, dtype=torch.float64))


@toys
@given(seed=seeds)
def test_derivatives_equal_autograd(name, normal, seed):
    landscape = TOYS[name]()
    theta, u, v = normal(seed, 3, 4, landscape.dimension)
    closed, traced = landscape.expand(theta), AutogradExpansion(landscape.loss, theta)
    assert_close(closed.loss, traced.loss)
    assert_close(landscape.grad(theta), traced.grad, rtol=1e-10, atol=1e-10)
    assert_close(closed.grad, traced.grad, rtol=1e-10, atol=1e-10)
    assert_close(closed.hvp(v), traced.hvp(v), rtol=1e-10, atol=1e-10)
    assert_close(closed.third(u, v), traced.third(u, v), rtol=1e-10, atol=1e-10)
    assert_close(closed.hessian(), traced.hessian(), rtol=1e-10, atol=1e-10)


@toys
@given(seed=seeds, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_products_are_linear_and_symmetric(name, normal, seed, a, b):
    landscape = TOYS[name]()
    theta, u, v, w = normal(seed, 4, 5, landscape.dimension)
    point = landscape.expand(theta)
    assert_close(point.hvp(a * u + b * v), a * point.hvp(u) + b * point.hvp(v), atol=1e-9, rtol=1e-9)
    assert_close((u * point.hvp(v)).sum(-1), (v * point.hvp(u)).sum(-1), atol=1e-9, rtol=1e-9)
    cubic = (w * point.third(u, v)).sum(-1)
    for x, y, z in ((u, w, v), (w, u, v), (v, u, w)):
        assert_close((z * point.third(x, y)).sum(-1), cubic, atol=1e-8, rtol=1e-9)


@toys
def test_complex_theta_gives_the_holomorphic_derivative(name, normal):
    landscape = TOYS[name]()
    x, y, u_re, u_im, v = normal(1, 5, 3, landscape.dimension)
    theta, u, v = torch.complex(x, y / 4), torch.complex(u_re, u_im), torch.complex(v, u_re)
    closed, traced = landscape.expand(theta), AutogradExpansion(landscape.loss, theta)
    for one, other in (
        (closed.loss, traced.loss),
        (closed.grad, traced.grad),
        (closed.hvp(v), traced.hvp(v)),
        (closed.third(u, v), traced.third(u, v)),
        (closed.hessian(), traced.hessian()),
    ):
        assert_close(one, other, rtol=1e-10, atol=1e-10)
    step = 1e-6 * v
    slope = (landscape.loss(theta + step) - landscape.loss(theta - step)) / 2e-6
    assert_close(slope, (landscape.grad(theta) * v).sum(-1), rtol=1e-6, atol=1e-6)


@toys
def test_loss_and_grad_stand_inside_transforms(name, normal):
    landscape = TOYS[name]()
    theta, v = normal(2, 2, 4, landscape.dimension)
    assert_close(torch.func.vmap(landscape.grad)(theta), landscape.grad(theta))
    assert_close(torch.func.vmap(torch.func.grad(landscape.loss))(theta), landscape.grad(theta))
    _, tangent = torch.func.jvp(landscape.grad, (theta,), (v,))
    assert_close(tangent, landscape.hvp(theta, v))
    through_hvp = torch.func.jvp(lambda x: landscape.expand(x).hvp(v), (theta,), (v,))[1]
    assert_close(through_hvp, landscape.third(theta, v, v))


@toys
def test_batch_shapes_dtype_and_device(name, normal, dtype, device):
    landscape = TOYS[name]()
    d = landscape.dimension
    for batch in ((), (3,), (2, 3), (0,)):
        theta = normal(3, *batch, d, dtype=dtype).to(device)
        point = landscape.expand(theta)
        results = {
            landscape.loss(theta): batch,
            landscape.grad(theta): (*batch, d),
            point.hvp(theta): (*batch, d),
            point.third(theta, theta): (*batch, d),
            point.hessian(): (*batch, d, d),
        }
        for result, shape in results.items():
            assert (result.shape, result.dtype, result.device) == (shape, dtype, theta.device)


@toys
def test_graph_only_where_theta_requires_grad(name, normal):
    landscape = TOYS[name]()
    theta, v = normal(4, 2, landscape.dimension)
    v.requires_grad_()
    point = landscape.expand(theta)
    for result in (point.loss, point.grad, point.hvp(v), point.third(v, v), point.hessian()):
        assert not result.requires_grad
    theta.requires_grad_()
    (slope,) = torch.autograd.grad(landscape.loss(theta), theta)
    assert_close(slope, landscape.grad(theta).detach())


@toys
def test_critical_points(name):
    landscape = TOYS[name]()
    points = landscape.critical_points()
    assert len(landscape.window) == landscape.dimension
    for point in points:
        assert point.position.shape == (landscape.dimension,)
        eigenvalues = torch.linalg.eigvalsh(AutogradExpansion(landscape.loss, point.position).hessian())
        sharpness, size = float(eigenvalues.abs().max()), float(point.position.abs().max())
        # Coordinates are rounded by ε|θ|/2, which a Hessian of some thousands (Müller–Brown) turns into a gradient.
        assert float(landscape.grad(point.position).abs().max()) < max(1e-12, 16 * EPSILON * size * sharpness)
        for x, (low, high) in zip(point.position.tolist(), landscape.window, strict=True):
            assert low < x < high
        signs = {int(s) for s in torch.sign(eigenvalues.where(eigenvalues.abs() > 1e-9 * max(1.0, sharpness), 0.0))}
        kinds = {frozenset({1}): "minimum", frozenset({-1}): "maximum"}
        assert point.kind == ("saddle" if {1, -1} <= signs else kinds.get(frozenset(signs), "degenerate"))


@toys
def test_the_start_is_a_point_of_the_window_that_descent_leaves(name):
    landscape = TOYS[name]()
    theta = torch.tensor(landscape.start, dtype=torch.float64)
    assert theta.shape == (landscape.dimension,)
    for x, (low, high) in zip(theta.tolist(), landscape.window, strict=True):
        assert low < x < high
    h = 0.1 / max(1.0, float(torch.linalg.matrix_norm(landscape.hessian(theta), 2)))
    fall = landscape.loss(theta) - landscape.loss(theta - h * landscape.grad(theta))
    assert float(fall) > 1e-6 * abs(float(landscape.loss(theta)))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("quadratic", ["minimum"]),
        ("indefinite", ["saddle"]),
        ("rosenbrock", ["minimum"]),
        ("saddle", ["saddle"]),
        ("double-well", ["minimum", "minimum", "saddle"]),
        ("tilted-double-well", ["minimum", "minimum", "saddle"]),
        ("one-well", ["minimum"]),
        ("quartic-well", ["maximum", "maximum", "minimum"]),
        ("cosine", ["maximum"] * 4 + ["minimum"] + ["saddle"] * 4),
        ("product", ["degenerate", "degenerate", "saddle"]),
        ("flipped-product", ["degenerate", "degenerate", "saddle"]),
        ("monkey-saddle", ["degenerate"]),
        ("himmelblau", ["maximum"] + ["minimum"] * 4 + ["saddle"] * 4),
        ("beale", ["minimum", "saddle", "saddle"]),
        ("styblinski-tang", ["maximum"] + ["minimum"] * 4 + ["saddle"] * 4),
        ("mueller-brown", ["minimum"] * 3 + ["saddle"] * 2),
        ("barrier-valley", ["minimum"] * 5 + ["saddle"] * 4),
        ("free-valley", ["minimum"]),
        ("bumpy-basin", ["maximum"] * 4 + ["minimum"] * 9 + ["saddle"] * 12),
        ("smooth-basin-3d", ["minimum"]),
        ("sharp-flat-wells", ["minimum", "minimum", "saddle"]),
        ("wells-1d", ["maximum", "minimum", "minimum"]),
        ("wells-3d", ["minimum", "minimum", "saddle"]),
        ("spherical-quotient", ["degenerate"] * 4),
        ("spherical-3d", ["degenerate"] * 4 + ["saddle"] * 2),
        ("deep-linear-chain", ["degenerate"] * 5 + ["saddle"] * 3),
        ("chain-of-two", ["degenerate", "degenerate", "saddle"]),
        ("chain-of-five", ["degenerate"] * 17 + ["saddle"] * 10),
        ("chain-to-zero", ["degenerate"] * 5),
        ("matrix-factorisation", ["degenerate"] + ["saddle"] * 3),
        ("rank-one", ["degenerate"] + ["saddle"] * 2),
        ("full-rank", ["degenerate"] + ["saddle"] * 3),
        ("catapult", ["degenerate"] * 2),
        ("catapult-of-one", ["degenerate", "degenerate", "saddle"]),
        ("catapult-to-target", ["degenerate", "degenerate", "saddle"]),
    ],
)
def test_kinds_of_critical_points(name, kinds):
    assert sorted(point.kind for point in TOYS[name]().critical_points()) == kinds


def test_kinds_are_judged_by_the_landscapes_own_scale(normal):
    inflection = DoubleWell(tilt=2 / (3 * math.sqrt(3)))  # where H is zero but for rounding
    assert {round(float(p.position), 4): p.kind for p in inflection.critical_points()}[0.5774] == "degenerate"
    turn = torch.linalg.qr(normal(3, 4, 4))[0]
    assert {p.kind for p in SphericalQuotient(turn @ turn.T).critical_points()} == {"degenerate"}
    thin = MatrixFactorisation(normal(4, 4, 2, dtype=torch.float32) @ normal(5, 2, 3, dtype=torch.float32), rank=3)
    best = min(thin.critical_points(), key=lambda p: float(thin.loss(p.position)))
    assert best.kind in ("minimum", "degenerate")


@pytest.mark.parametrize(
    "landscape",
    [
        BumpyBasin(frequency=1e5, dimension=1),
        BumpyBasin(radius=1e6, dimension=1),
        BumpyBasin(dimension=8),
        BarrierValley(frequency=1e4),
        BarrierValley(along=1e-6),
        Cosine(dimension=12),
        DeepLinearChain(20),
    ],
    ids=repr,
)
def test_a_list_too_long_is_refused_and_the_window_known(landscape):
    assert all(low < high for low, high in landscape.window)
    with pytest.raises(ValueError, match=r"(frequency|dimension|depth) must leave at most 10,000 critical points"):
        landscape.critical_points()


def test_double_well_merges_at_the_critical_tilt():
    critical = 2 / (3 * math.sqrt(3))
    points = DoubleWell(tilt=critical).critical_points()
    assert sorted(round(float(p.position), 6) for p in points) == [-1.154701, 0.57735]
    assert len(DoubleWell(tilt=critical - 1e-3).critical_points()) == 3
    assert len(DoubleWell(tilt=critical + 1e-3).critical_points()) == 1


def test_maxima_and_flats_of_quadratics():
    assert Quadratic(-torch.eye(2)).critical_points()[0].kind == "maximum"
    assert Quadratic(torch.diag(torch.tensor([1.0, 0.0]))).critical_points()[0].kind == "degenerate"


def test_a_quadratic_keeps_its_own_copy():
    hessian = torch.eye(2, dtype=torch.float64)
    landscape = Quadratic(hessian)
    hessian.zero_()
    landscape.hessian(torch.zeros(2, dtype=torch.float64)).zero_()
    assert float(landscape.loss(torch.ones(2, dtype=torch.float64))) == 1.0


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: Quadratic([[1.0]]), TypeError, "hessian must be a torch.Tensor"),
        (lambda: Quadratic(torch.eye(2, dtype=torch.int64)), TypeError, "hessian must have a floating dtype"),
        (lambda: Quadratic(torch.eye(2) * 1j), TypeError, "hessian must be real"),
        (lambda: Quadratic(torch.ones(2, 3)), ValueError, r"square matrices .* got shape \(2, 3\)"),
        (lambda: Quadratic(torch.ones(2, 2, 2)), ValueError, r"hessian must have shape \(d, d\)"),
        (lambda: Quadratic(torch.ones(0, 0)), ValueError, "hessian must not be empty"),
        (lambda: Quadratic(torch.eye(2) * math.nan), ValueError, "hessian must be finite"),
        (lambda: Quadratic(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), ValueError, "symmetric.*0.5"),
        (lambda: Quadratic(torch.eye(2), torch.zeros(3)), ValueError, r"minimum must have shape \(2,\), got \(3,\)"),
        (lambda: Quadratic(torch.eye(2), [0.0, 0.0]), TypeError, "minimum must be a torch.Tensor"),
        (lambda: Rosenbrock(b=-1.0), ValueError, "b must be positive"),
        (lambda: Rosenbrock(a=math.inf), ValueError, "a must be finite"),
        (lambda: Saddle(a=0.0), ValueError, "a must be positive"),
        (lambda: DoubleWell(tilt="steep"), TypeError, "tilt must be a real number"),
        (lambda: DoubleWell(dimension=0), ValueError, "dimension must be at least 1"),
        (lambda: QuarticWell(S=1.0, Q=0.0), ValueError, "Q must be positive"),
        (lambda: Cosine(frequency=-2.0), ValueError, "frequency must be positive"),
        (lambda: Cosine(dimension=1.5), TypeError, "dimension must be a whole number"),
        (lambda: Product(x=0.0), ValueError, "x must not be zero"),
        (lambda: MonkeySaddle(scale=0.0), ValueError, "scale must be positive"),
        (lambda: StyblinskiTang(dimension=0), ValueError, "dimension must be at least 1"),
        (lambda: BarrierValley(width=-1.0), ValueError, "width must be positive"),
        (
            lambda: BarrierValley(4.0, 1.0, 2.0, 1.0, 1.0),
            ValueError,
            "amplitude must be below across·width²/2 = 2, got 2",
        ),
        (lambda: BumpyBasin(radius=math.nan), ValueError, "radius must be positive"),
        (lambda: BumpyBasin(dimension=True), TypeError, "dimension must be a whole number"),
        (lambda: SharpFlatWells(separation=0.0), ValueError, "separation must be positive"),
        (lambda: SphericalQuotient(torch.ones(1, 1)), ValueError, r"matrix must have shape \(d, d\) with d >= 2"),
        (lambda: SphericalQuotient(torch.ones(2, 3)), ValueError, "matrix must hold square matrices"),
        (lambda: DeepLinearChain(depth=1), ValueError, "depth must be at least 2"),
        (lambda: DeepLinearChain(x=0.0), ValueError, "x must not be zero"),
        (lambda: MatrixFactorisation([[1.0]]), TypeError, "target must be a torch.Tensor"),
        (lambda: MatrixFactorisation(torch.ones(3)), ValueError, r"target must have shape \(m, n\), got \(3,\)"),
        (lambda: MatrixFactorisation(torch.zeros(2, 2)), ValueError, "target must not be zero"),
        (lambda: MatrixFactorisation(torch.eye(2), rank=3), ValueError, r"rank must be at most min\(m, n\) = 2, got 3"),
        (lambda: MatrixFactorisation(torch.eye(2), rank=0), ValueError, "rank must be at least 1"),
        (lambda: CatapultModel(width=0), ValueError, "width must be at least 1"),
        (lambda: CatapultModel(x=0.0), ValueError, "x must not be zero"),
        (lambda: CatapultModel(y=math.inf), ValueError, "y must be finite"),
    ],
)
def test_arguments_are_checked(build, error, text):
    with pytest.raises(error, match=text):
        build()
