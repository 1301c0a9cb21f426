"""The principal flow of momentum: its integrals against mpmath, its field as a logarithm, its runs and its orders."""

import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import (
    HeavyBall,
    PrincipalFlow,
    compare,
    descend,
    integrate,
)
from flows.descents.momentum import Nesterov
from flows.invariants import check_order
from flows.models.momentum_modes import (
    MOMENTUM_REGIMES,
    heavy_ball_edges,
    heavy_ball_modes,
    heavy_ball_regimes,
    log_integrals,
    nesterov_edges,
    nesterov_modes,
    nesterov_regimes,
)
from flows.models.momentum_principal import HeavyBallPrincipalFlow, NesterovPrincipalFlow
from flows.strategies import rotations
from landscapes import Cosine, Quadratic
from tests.examples import few
from tests.tensors import f64

EPS = np.finfo(np.float64).eps
KINDS = {"dense": {}, "krylov": {"krylov": 60, "tolerance": 1e-13}}
FLOWS = {"heavy ball": HeavyBallPrincipalFlow, "nesterov": NesterovPrincipalFlow}
DESCENTS = {"heavy ball": HeavyBall, "nesterov": Nesterov}
EDGES = {"heavy ball": heavy_ball_edges, "nesterov": nesterov_edges}
MODES = {"heavy ball": heavy_ball_modes, "nesterov": nesterov_modes}
REGIMES = {"heavy ball": heavy_ball_regimes, "nesterov": nesterov_regimes}
names = pytest.mark.parametrize("name", FLOWS)
kinds = pytest.mark.parametrize("kind", KINDS)


def step_matrix(name, x, beta):
    """M on (θ − θ*, v) for x = hH (d, d), numpy: the step written out."""
    eye = np.eye(len(x))
    if name == "heavy ball":
        return np.block([[eye - x, beta * eye], [-x, beta * eye]])
    return np.block([[eye - (1 + beta) * x, beta**2 * eye], [-x, beta * eye]])


def bowl(x, h, rotation):
    """A quadratic with h·eigenvalues x about a minimum that is not 0."""
    hessian = (rotation * x / h) @ rotation.mT
    return Quadratic((hessian + hessian.mT) / 2, torch.linspace(-0.3, 0.4, len(x), dtype=torch.float64))


def field_matrix(flow, promote=False):
    """The matrix (2d, 2d) of a flow that is linear about the minimum: its velocity at unit distances."""
    d = flow.landscape.dimension
    rest = torch.cat([flow.landscape.minimum, torch.zeros(d, dtype=torch.float64)])
    states = rest + torch.eye(2 * d, dtype=torch.float64)
    return flow.velocity(0.0, states.to(torch.complex128) if promote else states).mT.numpy()


def oracle(name, x, beta):
    """L and K in 60 digits, from the roots and their logarithms on the flow's branch."""
    with mpmath.workdps(60):
        x, beta = mpmath.mpmathify(x), mpmath.mpf(beta)
        heavy = name == "heavy ball"
        determinant, trace = (beta, 1 + beta - x) if heavy else (beta * (1 - x), (1 + beta) * (1 - x))
        edge = (1 + mpmath.sqrt(beta)) ** 2 - mpmath.mpf("1e-6") if heavy else 1
        offset = mpmath.sqrt(trace**2 / 4 - determinant)
        if abs(offset) < mpmath.mpf(10) ** -25:  # a double root: the difference quotient, good to its square
            offset = mpmath.mpf(10) ** -20
        roots = [trace / 2 + offset, trace / 2 - offset]
        logs = [mpmath.log(r) for r in roots]
        if mpmath.re(x) >= edge:
            logs = [v + 2j * mpmath.pi if mpmath.im(v) <= -mpmath.pi / 2 else v for v in logs]
        phi = [v / (r - 1) if r != 1 else mpmath.mpf(1) for v, r in zip(logs, roots, strict=True)]
        slope = (logs[0] - logs[1]) / (roots[0] - roots[1])
        return complex(slope), complex(-(phi[0] - phi[1]) / (roots[0] - roots[1]))


def condition(name, x, beta):
    """How much rounding of x, of M's entries and of a root near 1 may grow in L and K."""
    edges, heavy = EDGES[name](beta), name == "heavy ball"
    grown = 1 / (1 - beta) + 1 / math.sqrt(abs(beta if heavy else beta * (1 - x)))  # 1 over the larger root at least
    # before heavy ball's upper edge they grow as (edge − x)^{-1/2}: the condition number is edge/2(edge−x)
    before = heavy and 1 + beta < np.real(x) < edges.upper - 1e-6
    return grown + (edges.upper / abs(edges.upper - x) if before else 0)


def worth_a_look(name, beta):
    """x about both edges, from 1e-1 to 1e-15 away, about 0, in every regime and off the real axis."""
    edges = EDGES[name](beta)
    values = [
        -1e3,
        -5.0,
        -0.1,
        -1e-5,
        -1e-300,
        0.0,
        1e-300,
        3e-313,
        -5e-324,
        1e-12,
        1e-4,
        edges.lower,
        edges.lower / 2,
        50.0,
        1e4,
    ]
    values += [(edges.lower + edges.upper) / 2, (edges.upper + edges.stability) / 2, edges.stability, 1 + beta - 1e-9]
    for distance in (10.0**-k for k in range(1, 16)):
        values += [edges.lower * (1 + distance), edges.lower * (1 - distance)]
        if name == "heavy ball" or distance > 1e-6:
            values += [edges.upper * (1 + distance), edges.upper * (1 - distance)]
    for real in (-2.0, edges.lower, (edges.lower + edges.upper) / 2, 0.9 * edges.upper, 1.1 * edges.upper, 5.0):
        values += [complex(real, imag) for imag in (1e-9, -1e-9, 0.1, -0.1, 3.0, -3.0)]
    return values + ([edges.upper] if name == "heavy ball" else [])


@names
@pytest.mark.parametrize("beta", [1e-3, 0.3, 0.9, 0.9999])
def test_integrals_to_rounding(name, beta):
    values = worth_a_look(name, beta)
    slope, moment = log_integrals(MODES[name](torch.tensor(values, dtype=torch.complex128), beta))
    for x, got in zip(values, zip(slope.tolist(), moment.tolist(), strict=True), strict=True):
        allowed = 20 * EPS * condition(name, x, beta)
        for mine, exact in zip(got, oracle(name, x, beta), strict=True):
            assert abs(mine - exact) <= allowed * abs(exact), (x, mine, exact)


def test_roots_are_turned_where_negative_only_also_at_tiny_momentum():
    # the pair lies within 4√β of 1, less than the 1e-6 before the edge: the roots must not be turned where positive
    for beta in (1e-14, 1e-20):
        values = [0.5, 1 - 3e-6, 1 - 3 * math.sqrt(beta), 1 - 1e-12, 1.0, 1 + 3 * math.sqrt(beta), 1 + 1e-5, 1.5]
        slope, _ = log_integrals(heavy_ball_modes(f64(*values), beta))
        determinant = torch.full_like(slope, beta)
        centre = (1 + beta - f64(*values)) / 2
        for c, b, value in zip(centre.tolist(), determinant.tolist(), slope.tolist(), strict=True):
            # exp(log M) = M: its trace, with log M = (log b / 2) + L(M − c) and (M − c)² = c² − b
            offset = np.sqrt(complex(c * c - b))
            half = 0.5 * np.log(b) + (1j * np.pi if c <= 0 else 0)
            assert abs(np.exp(half) * np.cosh(value * offset) - c) <= 1e-6 * abs(c) + 4 * EPS


@names
@few(150)
@given(x=st.floats(-3, 8), beta=st.floats(0.01, 0.999))
def test_regimes_are_what_the_roots_do(name, x, beta):
    edges = EDGES[name](beta)
    assume(min(abs(x - edge) for edge in (0, *edges)) > 1e-5)
    roots = np.linalg.eigvals(step_matrix(name, np.array([[x]]), beta))
    said = list(MOMENTUM_REGIMES)[int(REGIMES[name](f64(x), beta))]
    moduli = np.abs(roots)
    if np.abs(roots.imag).max() > 1e-9:
        expected = "oscillating"
        assert moduli.max() < 1
    elif roots.real.min() > 0:
        expected = "escape" if moduli.max() > 1 else "over-damped"
    else:
        expected = "unstable" if roots.real.min() < -1 else "alternating"
        assert expected == "unstable" or moduli.max() < 1
    assert said == expected


@names
@pytest.mark.parametrize("beta", [0.2, 0.9])
def test_each_regimes_sentence_on_a_run(name, beta):
    edges = EDGES[name](beta)
    x = f64(
        -0.3, edges.lower / 2, (edges.lower + edges.upper) / 2, (edges.upper + edges.stability) / 2, edges.stability + 1
    )
    regimes = [list(MOMENTUM_REGIMES)[code] for code in REGIMES[name](x, beta).tolist()]
    assert regimes == ["escape", "over-damped", "oscillating", "alternating", "unstable"]
    run = descend(DESCENTS[name](Quadratic(torch.diag(x)), 1.0, beta), torch.ones(5, dtype=torch.float64), 600).theta
    ends, late = run[-1].abs(), run[-30:]
    assert (ends < 1).tolist() == [False, True, True, True, False]
    jumps = (late[1:] * late[:-1] < 0).double().mean(dim=0).tolist()
    assert jumps[:2] == [0, 0]
    assert 0 < jumps[2] < 1 or ends[2] < 1e-100  # Nesterov's underflows
    assert jumps[3:] == [1, 1]


@names
def test_the_stability_limit_is_where_runs_stop_converging(name):
    for beta in (0.1, 0.5, 0.9):
        x = EDGES[name](beta).stability * f64(1 - 3e-3, 1 + 3e-3)
        start = torch.ones(2, dtype=torch.float64)
        run = descend(DESCENTS[name](Quadratic(torch.diag(x)), 1.0, beta), start, 8_000, keep="last")
        assert (run.theta[-1].abs() < 1).tolist() == [True, False]


def test_codes_at_and_beyond_the_edges():
    codes = heavy_ball_regimes(f64(0.0, 0.25, 0.26, 2.24, 2.25, 2.4999, 2.5, math.nan, -0.0), 0.25)
    order = list(MOMENTUM_REGIMES)
    said = [order[code] for code in codes.tolist()]
    assert said[:4] == ["over-damped", "over-damped", "oscillating", "oscillating"]
    assert said[4:] == ["alternating", "alternating", "unstable", "undefined", "over-damped"]
    singular = [order[code] for code in nesterov_regimes(f64(1 - 2e-6, 1 - 5e-7, 1.0, 1 + 2e-6), 0.25).tolist()]
    assert singular == ["oscillating", "singular", "singular", "alternating"]
    with pytest.raises(TypeError, match="x must be real"):
        heavy_ball_regimes(torch.ones(1, dtype=torch.complex128), 0.5)
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        nesterov_regimes(0.5, 0.5)
    with pytest.raises(ValueError, match="momentum must lie in"):
        heavy_ball_regimes(f64(0.5), 1.0)


@names
@few(40)
@given(data=st.data(), beta=st.floats(0.02, 0.99), h=st.sampled_from([0.1, 1.0]))
def test_the_exponential_of_the_field_is_the_step(name, data, beta, h):
    edges = EDGES[name](beta)
    gap = 1e-3  # before heavy ball's edge the matrix grows as (edge − x)^{-1/2}; at Nesterov's it has no logarithm
    mode = st.floats(-2, 6).filter(lambda x: abs(x - edges.upper) > gap) | st.sampled_from([0.0, edges.lower, -1e-12])
    x = torch.tensor(data.draw(st.lists(mode, min_size=1, max_size=4)), dtype=torch.float64)
    landscape = bowl(x, h, data.draw(rotations(len(x))))
    matrix = field_matrix(FLOWS[name](landscape, h, beta), promote=True)
    step = step_matrix(name, h * landscape.hessian(landscape.minimum).numpy(), beta)
    assert np.abs(scipy.linalg.expm(h * matrix) - step).max() <= 1e-9 * (1 + np.abs(step).max())
    if float(x.max()) < edges.upper - gap:  # the principal logarithm, and real
        real = field_matrix(FLOWS[name](landscape, h, beta))
        assert real.dtype == np.float64
        assert np.abs(real - matrix).max() <= 1e-12 * np.abs(matrix).max()


@names
@kinds
def test_the_field_against_logm_and_where_modes_are_the_edges(name, kind, normal):
    beta, h = 0.6, 0.5
    edges, rotation = EDGES[name](beta), torch.linalg.qr(normal(0, 3, 3))[0]
    for x in (f64(-1.0, 0.4 * edges.lower, 0.6 * edges.upper), f64(0.0, edges.lower, 0.9 * edges.upper)):
        landscape = bowl(x, h, rotation)
        matrix = field_matrix(FLOWS[name](landscape, h, beta, **KINDS[kind]))
        logarithm = scipy.linalg.logm(step_matrix(name, h * landscape.hessian(landscape.minimum).numpy(), beta))
        # a double root costs logm half the digits
        assert np.abs(h * matrix - logarithm).max() <= 1e-6
    if name == "heavy ball":  # its upper edge, to the rounding of eigenvalues on either side of it
        landscape = bowl(f64(edges.upper, edges.upper * (1 - 1e-13), 0.3), h, rotation)
        matrix = field_matrix(FLOWS[name](landscape, h, beta, **KINDS[kind]), promote=True)
        step = step_matrix(name, h * landscape.hessian(landscape.minimum).numpy(), beta)
        assert np.abs(scipy.linalg.expm(h * matrix) - step).max() <= 1e-9
        assert np.abs(matrix).max() < 50


@names
def test_the_real_branch_keeps_magnitudes(name, normal):
    beta, h = 0.5, 1.0
    edges, rotation = EDGES[name](beta), torch.linalg.qr(normal(1, 2, 2))[0]
    x = f64(0.5 * edges.upper, (edges.upper + edges.stability) / 2)
    landscape = bowl(x, h, rotation)
    matrix = field_matrix(FLOWS[name](landscape, h, beta, branch="real"))
    complex_matrix = field_matrix(FLOWS[name](landscape, h, beta), promote=True)
    assert matrix.dtype == np.float64
    assert np.abs(matrix - complex_matrix.real).max() <= 1e-12
    step = step_matrix(name, landscape.hessian(landscape.minimum).numpy(), beta)
    mine = np.sort(np.abs(np.linalg.eigvals(scipy.linalg.expm(matrix))))
    assert np.abs(mine - np.sort(np.abs(np.linalg.eigvals(step)))).max() <= 1e-9
    if name == "heavy ball":  # −M in the modes beyond
        beyond = np.kron(np.eye(2), np.outer(rotation[:, 1], rotation[:, 1]))
        assert np.abs(scipy.linalg.expm(matrix) - (step - 2 * beyond @ step)).max() <= 1e-9


@names
@pytest.mark.parametrize("beta", [0.3, 0.9])
def test_runs_pass_the_descents_iterates_in_every_regime(name, beta, normal):
    h, (lower, upper, stability) = 0.5, EDGES[name](beta)
    beyond = upper if name == "heavy ball" else upper + 0.01
    x = f64(
        -0.2,
        0.0,
        lower / 2,
        lower,
        0.5 * (lower + upper),
        0.9 * upper,
        beyond,
        0.5 * (upper + stability),
        1.05 * stability,
    )
    landscape = bowl(x, h, torch.linalg.qr(normal(2, 9, 9))[0])
    theta0 = normal(3, 2, 9)
    exact = descend(DESCENTS[name](landscape, h, beta), theta0, 4).theta
    times = [k * h for k in range(5)]
    run = integrate(FLOWS[name](landscape, h, beta), theta0, times, method="dopri8", rtol=1e-11, atol=1e-12)
    assert run.status == "finished"
    assert run.theta.shape == (5, 2, 9)
    assert float((run.theta - exact).abs().max()) <= 1e-9 * float(exact.abs().max())  # by modulus: real at t = kh


@names
def test_compare_on_the_descents_clock(name):
    landscape = Quadratic(f64(2.0, 0.7, 0.7, 1.0).reshape(2, 2))
    h, beta = 0.3, 0.8
    flow = FLOWS[name](landscape, h, beta, branch="real")
    descent = DESCENTS[name](landscape, h, beta)
    result = compare(descent, [flow], f64(1.0, -0.5), 5, method="dopri8", rtol=1e-10, atol=1e-12)
    assert float(result.errors[f"{type(flow).__name__} (real branch)"].max()) <= 1e-8
    assert FLOWS[name](landscape, h, beta).name == type(flow).__name__


@kinds
def test_limits_in_the_momentum_and_in_the_learning_rate(kind, normal):
    landscape, theta = Cosine(dimension=3, frequency=1.1), normal(4, 3)
    # β → 0: θ̇ is the principal flow's, whatever v; what is left is β log β
    for build in FLOWS.values():
        flow = build(landscape, 0.3, 1e-12, **KINDS[kind])
        velocity = flow.position(flow.velocity(0.0, torch.cat([theta, normal(5, 3)])))
        assert_close(velocity, PrincipalFlow(landscape, 0.3).velocity(0.0, theta), rtol=1e-9, atol=1e-9)
    # h → 0 on the slow manifold v = −h∇f/(1−β): θ̇ = −∇f/(1−β) + O(h), v̇ = O(h)
    errors = []
    for h in (1e-4, 1e-5):
        v = -h * landscape.grad(theta) / 0.1
        velocity = HeavyBallPrincipalFlow(landscape, h, 0.9, **KINDS[kind]).velocity(0.0, torch.cat([theta, v]))
        expected = torch.cat([-landscape.grad(theta) / 0.1, torch.zeros(3, dtype=torch.float64)])
        errors.append(float((velocity - expected).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


@names
@pytest.mark.parametrize("beta", [0.2, 0.8])
def test_one_step_from_rest_is_of_order_three(name, beta):
    landscape = Cosine(frequency=1.5)
    build, descent = FLOWS[name], DESCENTS[name]
    check_order(
        lambda h: build(landscape, h, beta, branch="real"),
        lambda h: descent(landscape, h, beta),
        f64(0.9, -1.3),
        3,
        ladder=(0.04, 0.02, 0.01),
    )


@names
def test_one_step_off_rest_is_of_order_three_where_v_shrinks_with_h_and_one_where_not(name):
    # what is left out begins with δ''(δ, δ)/12 = −(h/12) D³f[δ_θ, δ_θ], δ_θ = O(v) + O(h)
    landscape, beta, theta = Cosine(frequency=1.5), 0.6, f64(0.9, -1.3)
    generator = torch.Generator()

    def error(h, p):
        after = DESCENTS[name](landscape, h, beta).step((theta, p), 0, generator)
        flow = FLOWS[name](landscape, h, beta, branch="real")
        state = torch.cat([theta, -h * p])
        steps = 16  # rk4 to 1e-8 of the step, below the error of the model
        for _ in range(steps):
            dt = h / steps
            k1 = flow.velocity(0.0, state)
            k2 = flow.velocity(0.0, state + dt / 2 * k1)
            k3 = flow.velocity(0.0, state + dt / 2 * k2)
            state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + flow.velocity(0.0, state + dt * k3))
        return float((state - torch.cat([after[0], -h * after[1]])).norm())

    slow = landscape.grad(theta) / (1 - beta)
    p = f64(0.4, 0.3)
    assert math.log2(error(0.01, slow) / error(0.005, slow)) == pytest.approx(3, abs=0.1)
    assert math.log2(error(0.01, p) / error(0.005, p)) == pytest.approx(3, abs=0.1)
    assert math.log2(error(1e-3, p / 1e-3) / error(5e-4, p / 5e-4)) == pytest.approx(1, abs=0.1)
