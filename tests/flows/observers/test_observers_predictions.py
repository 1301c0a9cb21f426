"""Predicted against observed changes: exact where theory says so, of the orders it says elsewhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sympy import sqrt, symbols
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, descend, integrate
from flows.observers import FROZEN_MODELS, GradientPredictions, Loss, TopEigenpairs
from flows.strategies import quadratics
from landscapes import Quadratic, Rosenbrock, UnsupportedError, from_sympy
from tests.flows.networks import wide_network
from tests.tensors import draw

H = 0.4
COMPONENTS, LOSS = "change of gradient components", "change of loss"


def turned(eigenvalues, seed=0):
    rotation = torch.linalg.qr(draw(seed, len(eigenvalues), len(eigenvalues)))[0]
    matrix = (rotation * torch.as_tensor(eigenvalues, dtype=torch.float64)) @ rotation.mT
    return Quadratic((matrix + matrix.mT) / 2)


def watch(landscape, h=H, count=None, every=1, **options):
    return GradientPredictions(TopEigenpairs(landscape, count or landscape.dimension, **options), h, every=every)


def shown(run, quantity, model):
    return run.observations[f"{quantity}: {model}"][1][1:]


def agrees(run, model, quantities=(COMPONENTS, LOSS), rtol=1e-9):
    for quantity in quantities:
        observed = shown(run, quantity, "observed")
        assert not bool(observed.isnan().any())
        assert_close(shown(run, quantity, model), observed, rtol=rtol, atol=rtol * float(observed.abs().max()))


@given(quadratics(low=-3, high=6), st.integers(0, 99), st.sampled_from([1, 3]))
def test_principal_predictions_are_exact_for_gradient_descent(quadratic, seed, every):
    """Whatever hλ, −1.2 to 2.4: growth by |1 − hλ| a step included."""
    theta0 = quadratic.minimum + draw(seed, quadratic.dimension)
    agrees(
        descend(GradientDescent(quadratic, H), theta0, 6, observers=[watch(quadratic, every=every)]), "principal flow"
    )


@pytest.mark.parametrize("x", [-1.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
def test_growth_and_sign_by_one_minus_x(x):
    quadratic = Quadratic(torch.tensor([[x / H]], dtype=torch.float64))
    run = descend(GradientDescent(quadratic, H), torch.ones(1).double(), 4, observers=[watch(quadratic)])
    before = run.observations["change before: gradient components"][1][1:]
    assert_close(shown(run, COMPONENTS, "principal flow"), -x * before, rtol=1e-12, atol=0)
    assert_close(shown(run, COMPONENTS, "gradient flow"), math.expm1(-x) * before, rtol=1e-12, atol=0)
    assert_close(shown(run, COMPONENTS, "modified flow"), math.expm1(-x - x**2 / 2) * before, rtol=1e-12, atol=0)
    assert float(before[0].abs()) == abs(x / H)


FLOWS = {
    "gradient flow": GradientFlow,
    "modified flow": lambda f: ModifiedFlow(f, H, 2),
    "principal flow": lambda f: PrincipalFlow(f, H, branch="real"),
}
TIMES = [0.0, 0.1, 0.5, 0.73, 1.4]  # steps of h and parts of them


@pytest.mark.parametrize("name", FLOWS)
def test_each_model_is_exact_for_its_own_flow(name):
    quadratic = turned([2.2, 1.0, 0.3, 0.0, -0.7])  # hλ < 1: the real branch is the principal flow
    run = integrate(
        FLOWS[name](quadratic), draw(1, 5), TIMES, rtol=1e-11, atol=1e-13, observers=[watch(quadratic, tolerance=1e-14)]
    )
    agrees(run, name)
    for other in FLOWS.keys() - {name}:
        with pytest.raises(AssertionError, match="not close"):
            agrees(run, other, rtol=1e-3)


@pytest.mark.parametrize("n", [0.0, 0.3, 1.0, 1.5, 2.0])
def test_between_whole_steps_the_real_part_is_given(n):
    """Against the complex run itself: Re of the gradient and of the loss."""
    value = 1.7 / H
    quadratic = Quadratic(torch.tensor([[value]], dtype=torch.float64))
    model, g = FROZEN_MODELS["principal flow"], torch.tensor(2.0, dtype=torch.float64)
    theta0 = g[None] / value
    predicted = (
        model.component_change(g, torch.tensor(1.7).double(), n),
        model.loss_change(g, torch.tensor(1.7).double(), n, H),
    )
    if n == 0:
        one = torch.ones(()).double()  # where 0 · log|1 − x| is no number
        assert (*predicted, model.component_change(g, one, n), model.loss_change(g, one, n, H)) == (0, 0, 0, 0)
        return
    run = integrate(
        PrincipalFlow(quadratic, H), theta0, [0.0, n * H], rtol=1e-11, atol=1e-13, observers=[Loss(quadratic)]
    )
    assert_close(predicted[0], quadratic.grad(run.theta[1]).real[0] - g)
    losses = run.observations["loss"][1]
    assert_close(predicted[1], losses[1] - losses[0])


@given(
    st.sampled_from(list(FROZEN_MODELS)),
    st.floats(-2, 3),
    st.floats(0.01, 4),
)
def test_the_loss_follows_from_the_components(name, x, n):
    """d(loss) = ∫ α(hλ)(gᵀu)² dt along the model's own curve, by a fine trapezoidal rule, as far as α is real."""
    if abs(x - 1) < 1e-2 or (name == "principal flow" and x > 1):
        return
    model, h, g, x = FROZEN_MODELS[name], 0.5, torch.tensor(1.3).double(), torch.tensor(x, dtype=torch.float64)
    fractions = torch.linspace(0, 1, 4001, dtype=torch.float64)
    along = torch.stack([g + model.component_change(g, x, float(n * s)) for s in fractions[::20]])
    integral = torch.trapezoid(model.coefficient(x) * along.square(), fractions[::20] * n * h)
    assert_close(model.loss_change(g, x, n, h), integral, rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize("name", FROZEN_MODELS)
def test_flat_modes_are_the_limit(name):
    model, g = FROZEN_MODELS[name], torch.tensor(2.0).double()
    zero, tiny = (torch.tensor(x, dtype=torch.float64) for x in (0.0, 1e-12))
    assert model.component_change(g, zero, 1.5) == 0
    assert_close(model.loss_change(g, zero, 1.5, H), torch.tensor(-4 * 1.5 * H).double())
    assert_close(model.loss_change(g, tiny, 1.5, H), model.loss_change(g, zero, 1.5, H), rtol=1e-11, atol=0)
    assert_close(model.component_change(g, tiny, 1.5), -3e-12 * torch.ones(()).double(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_rest_counts_as_one_mode_of_its_rayleigh_quotient(count):
    quadratic = turned([5.5, 2.0, 1.0, 0.3, -0.2, 0.05])
    observer = watch(quadratic, count=count, tolerance=1e-14)
    run = descend(GradientDescent(quadratic, H), draw(2, 6), 5, observers=[observer])
    agrees(run, "principal flow")  # one step of descent sees the rest through its Rayleigh quotient alone
    for i, theta in enumerate(run.theta[:-1]):
        g, hessian = quadratic.grad(theta), quadratic.hessian(theta)
        values, u = torch.linalg.eigh(hessian)
        wanted = u.mT[-count:]
        rest = g - (wanted @ g) @ wanted
        curvature = rest @ hessian @ rest / (rest @ rest)
        before = {
            name[len("change before: ") :]: v[1][i + 1] for name, v in run.observations.items() if "before" in name
        }
        assert_close(before["remainder norm"], torch.linalg.vector_norm(rest))
        assert_close(before["remainder curvature"], curvature)
        assert_close(before["eigenvalues"].sort()[0], values[-count:])
        squares = torch.cat([(wanted @ g).square(), (rest @ rest)[None]])
        lambdas = torch.cat([values[-count:], curvature[None]])
        expected = (squares * torch.expm1(-2 * H * lambdas) / (2 * lambdas)).sum()
        assert_close(shown(run, LOSS, "gradient flow")[i], expected)


def slope(errors, ladder):
    return math.log(errors[-2] / errors[-1]) / math.log(ladder[-2] / ladder[-1])


ORDERS = {"gradient flow": 2, "modified flow": 3, "principal flow": 3}


def test_orders_where_the_hessian_moves():
    landscape, theta0 = Rosenbrock(b=3.0), torch.tensor([0.3, 0.9], dtype=torch.float64)
    ladder = [0.01 / 2**i for i in range(4)]
    for name, order in ORDERS.items():
        losses, components = [], []
        for h in ladder:
            run = descend(GradientDescent(landscape, h), theta0, 1, observers=[watch(landscape, h)])
            for errors, quantity in ((losses, LOSS), (components, COMPONENTS)):
                errors.append(float((shown(run, quantity, name) - shown(run, quantity, "observed")).abs().max()))
        assert abs(slope(losses, ladder) - order) < 0.1, name
        assert abs(slope(components, ladder) - 2) < 0.1, name


def test_on_a_network_the_observed_changes_are_those_of_loss_and_gradient():
    network, h = wide_network(), 0.2
    top = TopEigenpairs(network, 3, tolerance=1e-12, vectors=True)
    seen = [top, GradientPredictions(top, h), Loss(network)]
    run = descend(GradientDescent(network, h), network.theta0, 5, observers=seen)
    losses, vectors = run.observations["loss"][1], run.observations["top vectors"][1]
    gradients = network.grad(run.theta)
    assert_close(shown(run, LOSS, "observed"), losses.diff())
    assert_close(shown(run, COMPONENTS, "observed"), (vectors[:-1] * gradients.diff(dim=0)[:, None]).sum(-1))
    errors = {name: float((shown(run, LOSS, name) - losses.diff()).abs().max()) for name in FROZEN_MODELS}
    assert errors["principal flow"] < 0.2 * errors["gradient flow"]


def test_nan_at_the_first_state_and_shapes_throughout():
    quadratic, theta0 = turned([2.0, 1.0, -0.5]), draw(3, 2, 3)
    run = descend(GradientDescent(quadratic, H), theta0, 3, observers=[watch(quadratic, count=2)])
    for name, (times, values) in run.observations.items():
        assert len(times) == 4
        assert values.shape == ((4, 2, 2) if "component" in name or "eigenvalue" in name else (4, 2)), name
        assert values.dtype == torch.float64
        assert bool(values[0].isnan().all()), name
        assert not bool(values[1:].isnan().any()), name
    for i in range(2):
        single = descend(GradientDescent(quadratic, H), theta0[i], 3, observers=[watch(quadratic, count=2)])
        for name, (_, values) in single.observations.items():
            assert_close(run.observations[name][1][:, i], values, equal_nan=True, rtol=1e-9, atol=1e-9)


def test_a_loop_of_ones_own_with_steps_of_its_own():
    quadratic, theta = turned([4.0, 1.0, -0.5]), draw(4, 3)
    observer, t, k = watch(quadratic), 0.0, 0
    assert bool(observer(k, t, theta)[f"{LOSS}: observed"].isnan())
    for steps in (1, 2, 1, 5):
        for _ in range(steps):
            theta = theta - H * quadratic.grad(theta)
        t, k = t + steps * H, k + steps
        seen = observer(k, t, theta)
        assert_close(seen[f"{LOSS}: principal flow"], seen[f"{LOSS}: observed"])
        assert_close(seen[f"{COMPONENTS}: principal flow"], seen[f"{COMPONENTS}: observed"])
    assert bool(observer(k, t, theta)[f"{LOSS}: observed"].isnan())  # k does not grow: a new run
    seen = observer(k + 1, t, theta)  # no time has passed
    assert all(float(value.abs().max()) == 0 for name, value in seen.items() if " of " in name)


def test_where_nothing_moves():
    quadratic = turned([2.0, 1.0])
    run = descend(GradientDescent(quadratic, H), torch.zeros(2).double(), 2, observers=[watch(quadratic, count=1)])
    for name, (_, values) in run.observations.items():
        if " of " in name or name.endswith(("components", "remainder norm")):
            assert values[1:].abs().max() == 0


def test_single_precision(device):
    quadratic = turned([5.5, 2.0, 1.0, 0.3])
    theta0 = draw(5, 4).float().to(device)
    run = descend(GradientDescent(quadratic, H), theta0, 4, observers=[watch(quadratic, count=2)])
    agrees(run, "principal flow", rtol=1e-4)


def test_a_nan_is_shown_and_passes():
    x, y = symbols("x y")
    root = from_sympy(sqrt(x) ** 3 + y**2, (x, y))  # NaN at x < 0
    observer, states = watch(root), torch.tensor([[0.5, 1.0], [0.4, 0.9], [-0.1, 0.8], [0.2, 0.7], [0.1, 0.6]])
    expected = ["all", "none", "observed", "all", "none"]  # what was predicted from the state before stands
    for k, theta in enumerate(states.double()):
        seen = {name: v for name, v in observer(k, H * k, theta).items() if " of " in name}
        lost = {name for name, v in seen.items() if bool(v.isnan().any())}
        observed = {name for name in seen if name.endswith("observed")}
        assert lost == {"all": set(seen), "none": set(), "observed": observed}[expected[k]]


def test_arguments_out_of_place():
    quadratic = turned([2.0, 1.0])
    with pytest.raises(TypeError, match="pairs must be a TopEigenpairs"):
        GradientPredictions(quadratic, H)
    with pytest.raises(ValueError, match="h must be positive"):
        GradientPredictions(TopEigenpairs(quadratic), 0.0)
    with pytest.raises(UnsupportedError, match=r"'change' takes real theta only.*branch='real'"):
        watch(quadratic)(0, 0.0, torch.ones(2) + 0j)
