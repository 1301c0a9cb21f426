"""The flow of an epoch in a given order: its order, its commutators, its formula in dense algebra, its cost."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from flows import GradientFlow, ModifiedFlow, integrate
from flows.models.epoch import EpochFlow
from landscapes import Counted, Quadratic, QuadraticSum
from landscapes.wrappers.modified_losses import reshuffling_loss
from tests.flows.models.sums import at, network, quadratics
from tests.tensors import draw

LANDSCAPES = {"quadratics": quadratics, "network": network}
BATCHES = {
    "even": (torch.tensor([[3, 0], [5, 1], [2, 7], [6, 4]])),
    "ragged": (torch.tensor([3, 0, 5]), torch.tensor([1, 2, 7]), torch.tensor([6, 4])),
    "repeating": (torch.tensor([3, 0]), torch.tensor([3, 1]), torch.tensor([3, 0])),
}
landscapes = pytest.mark.parametrize("landscape", LANDSCAPES)
orders = pytest.mark.parametrize("batches", BATCHES)


def after_epoch(landscape, h, batches, theta):
    for batch in batches:
        theta = theta - h * landscape.batch_grad(theta, batch)
    return theta


def slope(flow, landscape, batches, ladder):
    """The slope of log error against log h between two rungs, at the epoch's end."""
    theta, errors = at(landscape), []
    for h in ladder:
        end = integrate(flow(h), theta, [0.0, len(batches) * h], rtol=1e-12, atol=1e-14, keep="last").theta[-1]
        errors.append(torch.linalg.vector_norm(end - after_epoch(landscape, h, batches, theta)))
    return float((errors[0] / errors[1]).log2())


@landscapes
@orders
def test_order_three_at_the_end_of_the_epoch(landscape, batches):
    f, given = LANDSCAPES[landscape](), BATCHES[batches]
    ladder = (2e-3, 1e-3)  # asymptotic to 2 %, and errors near 1e-9 stand clear of rounding
    assert slope(lambda h: EpochFlow(f, h, given), f, given, ladder) == pytest.approx(3, abs=0.1)


@landscapes
def test_flows_that_do_not_know_the_order_of_the_batches_have_order_two(landscape):
    f, given = LANDSCAPES[landscape](), BATCHES["even"]
    for flow in (
        lambda h: GradientFlow(f),
        lambda h: ModifiedFlow(f, h, 2),
        lambda h: GradientFlow(reshuffling_loss(f, h, given)),
        lambda h: EpochFlow(f, h, given.flip(0)),
    ):
        assert slope(flow, f, given, (2e-3, 1e-3)) == pytest.approx(2, abs=0.1)


@orders
def test_field_in_dense_algebra(batches):
    f, given, h = quadratics(), BATCHES[batches], 0.3
    theta = at(f, 6, 3)
    F = [-(f.example_grads(theta, batch).mean(-2)) for batch in given]
    J = [-f.hessians[batch].mean(0) for batch in given]
    expected = sum(F) / len(F)
    for k in range(len(F)):
        expected = expected - h / len(F) * F[k] @ J[k] / 2
        for j in range(k):
            expected = expected + h / len(F) * (F[j] @ J[k] - F[k] @ J[j]) / 2
    assert_close(EpochFlow(f, h, given).velocity(0.0, theta), expected)


@landscapes
def test_mean_over_all_orders_descends_the_loss_of_reshuffling(landscape):
    f, h, given = LANDSCAPES[landscape](), 0.7, BATCHES["ragged"]
    theta = at(f, 7)
    fields = [EpochFlow(f, h, order).velocity(0.0, theta) for order in itertools.permutations(given)]
    assert_close(torch.stack(fields).mean(0), -reshuffling_loss(f, h, given).grad(theta))


@landscapes
def test_reversing_the_order_flips_the_commutators(landscape):
    f, h, given = LANDSCAPES[landscape](), 0.7, BATCHES["ragged"]
    theta, common = at(f, 8, 2), -reshuffling_loss(f, h, given).grad(at(f, 8, 2))
    forth = EpochFlow(f, h, given).velocity(0.0, theta) - common
    back = EpochFlow(f, h, given[::-1]).velocity(0.0, theta) - common
    assert float(forth.abs().max()) > 1e-2
    assert_close(back, -forth)


def asymmetry(flow, theta):
    """‖J − Jᵀ‖ of the field, by central differences of step 1e-4: exact to 1e-8."""
    steps = 1e-4 * torch.eye(len(theta), dtype=theta.dtype)
    columns = [(flow.velocity(0.0, theta + e) - flow.velocity(0.0, theta - e)) / 2e-4 for e in steps]
    jacobian = torch.stack(columns, dim=-1)
    return float(torch.linalg.matrix_norm(jacobian - jacobian.mT))


@landscapes
def test_a_given_order_has_curl_and_the_mean_over_orders_none(landscape):
    f, h, given = LANDSCAPES[landscape](), 0.7, BATCHES["even"]
    theta = at(f, 9)
    assert asymmetry(EpochFlow(f, h, given), theta) > 1e-2
    assert asymmetry(GradientFlow(reshuffling_loss(f, h, given)), theta) < 1e-6


def test_commuting_batches_have_no_curl():
    f = QuadraticSum(torch.diag_embed(draw(1, 4, 3)), draw(2, 4, 3))
    assert asymmetry(EpochFlow(f, 0.7, torch.arange(4)[:, None]), at(f, 9)) < 1e-8


@landscapes
def test_one_batch_is_the_modified_flow_of_order_two(landscape):
    f, theta = LANDSCAPES[landscape](), at(LANDSCAPES[landscape](), 10, 2)
    flow = EpochFlow(f, 0.3, torch.arange(8)[None])
    assert_close(flow.velocity(0.0, theta), ModifiedFlow(f, 0.3, 2).velocity(0.0, theta))
    assert (flow.radius, flow.epoch) == (1.0, 0.3)
    several = EpochFlow(f, 0.3, BATCHES["even"])
    assert (several.radius, several.epoch) == (0.25, 4 * 0.3)


def test_an_evaluation_costs_one_gradient_and_one_product():
    f = Counted(network())
    flow = EpochFlow(f, 0.1, BATCHES["ragged"])
    flow.velocity(0.0, at(f, 11, 3))
    assert f.counts == pytest.approx({"loss": 0, "grad": 3, "hvp": 3, "third": 0, "higher": 0})
    run = integrate(flow, at(f), [0.0, flow.epoch], method="euler", dt=flow.epoch)
    assert (run.cost["grad"], run.cost["hvp"]) == pytest.approx((1, 1))


@landscapes
def test_a_batch_is_its_members_and_carries_no_graph(landscape, dtype):
    f = quadratics() if landscape == "quadratics" else network()
    theta = at(f, 12, 2, 2)
    theta = theta if landscape == "network" else theta.to(dtype)
    field = EpochFlow(f, 0.1, BATCHES["ragged"]).velocity(0.0, theta)
    assert (field.shape, field.dtype, field.requires_grad) == (theta.shape, theta.dtype, False)
    each = torch.stack([EpochFlow(f, 0.1, BATCHES["ragged"]).velocity(0.0, x) for x in theta.flatten(0, 1)])
    assert_close(field.flatten(0, 1), each)


def test_complex_theta_follows_the_holomorphic_field():
    f, given = quadratics(), BATCHES["ragged"]
    flow, real, imaginary = EpochFlow(f, 0.3, given), at(f, 13), at(f, 14)
    # the field of quadratics is affine, so its real and imaginary parts are those of the arguments
    expected = torch.complex(
        flow.velocity(0.0, real), flow.velocity(0.0, imaginary) - flow.velocity(0.0, torch.zeros_like(real))
    )
    assert_close(flow.velocity(0.0, torch.complex(real, imaginary)), expected)


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda f: EpochFlow(Quadratic(torch.eye(2)), 0.1, [torch.arange(1)]), TypeError, "must be a FiniteSum"),
        (lambda f: EpochFlow("loss", 0.1, [torch.arange(1)]), TypeError, "landscape must be a Landscape"),
        (lambda f: EpochFlow(f, 0.0, [torch.arange(1)]), ValueError, "h must be positive"),
        (lambda f: EpochFlow(f, 0.1, []), ValueError, "batches must hold at least one batch"),
        (lambda f: EpochFlow(f, 0.1, torch.arange(8)), ValueError, r"batches must have shape \(m, b\)"),
        (lambda f: EpochFlow(f, 0.1, torch.tensor([[0, 8]])), ValueError, r"batches\[0\]: index must lie in \[0, 8\)"),
    ],
)
def test_arguments_are_checked(build, error, text):
    with pytest.raises(error, match=text):
        build(quadratics())
