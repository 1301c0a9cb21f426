"""The exact mean of SGD's iterate after an epoch against the flow of its modified loss; descents on penalties."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from flows import (
    GradientDescent,
    GradientFlow,
    HeavyBall,
    ModifiedFlow,
    OptimizerDescent,
    StochasticGradientDescent,
    compare,
    descend,
    integrate,
)
from flows.orders.ladder import one_step_order
from landscapes import LANDSCAPES
from landscapes.wrappers.gradient_penalties import GradientPenalty, VariancePenalty
from landscapes.wrappers.modified_losses import (
    epoch_variance,
    random_partition_loss,
    replacement_loss,
    reshuffling_loss,
)
from tests.flows.models.sums import at, network, quadratics

FOUR = torch.tensor([[3, 0], [5, 1], [2, 7], [6, 4]])  # batches of two, m = 4


SUMS = {"quadratics": quadratics, "network": network}
sums = pytest.mark.parametrize("name", SUMS)


def step(f, h, theta, batch):
    return theta - h * f.batch_grad(theta, batch)


def mean_over_sequences(f, h, theta, sequences):
    """The mean of the last iterate over sequences of batches, all of them equally likely."""
    ends = []
    for sequence in sequences:
        x = theta
        for batch in sequence:
            x = step(f, h, x, batch)
        ends.append(x)
    return torch.stack(ends).mean(0)


def mean_over_draws(f, h, theta, batches, steps):
    """The mean over all len(batches)**steps sequences of independent draws, prefix by prefix."""
    states = [theta]
    for _ in range(steps):
        states = [step(f, h, x, batch) for x in states for batch in batches]
    return torch.stack(states).mean(0)


def observed_order(f, loss, mean, steps):
    """The slope of log ‖E x_m − X(mh)‖ between h = 2e-3 and 1e-3: asymptotic to a few %, and clear of rounding."""
    theta, errors = at(f), []
    for h in (2e-3, 1e-3):
        run = integrate(GradientFlow(loss(h)), theta, [0.0, steps * h], rtol=1e-12, atol=1e-14, keep="last")
        errors.append(torch.linalg.vector_norm(run.theta[-1] - mean(h, theta)))
    return float((errors[0] / errors[1]).log2())


@sums
def test_all_orders_of_four_batches(name):
    f = SUMS[name]()

    def mean(h, theta):
        return mean_over_sequences(f, h, theta, itertools.permutations(FOUR))

    assert observed_order(f, lambda h: reshuffling_loss(f, h, FOUR), mean, 4) == pytest.approx(3, abs=0.1)
    assert observed_order(f, lambda h: replacement_loss(f, h), mean, 4) == pytest.approx(2, abs=0.1)
    both = VariancePenalty(f, FOUR, 5e-4, 5e-4)  # h/4 at h = 2e-3, in its first form
    assert_close(both.grad(at(f)), reshuffling_loss(f, 2e-3, FOUR).grad(at(f)))


@sums
def test_all_draws_with_replacement(name):
    f = SUMS[name]()

    def mean(h, theta):
        return mean_over_draws(f, h, theta, FOUR, 4)

    assert observed_order(f, lambda h: replacement_loss(f, h), mean, 4) == pytest.approx(3, abs=0.1)
    assert observed_order(f, lambda h: reshuffling_loss(f, h, FOUR), mean, 4) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("drawn", ["subsets", "replacement"])
def test_fresh_batches_of_two_have_the_same_loss_with_and_without_replacement(drawn):
    f = quadratics(4)
    pairs = itertools.combinations(range(4), 2) if drawn == "subsets" else itertools.product(range(4), repeat=2)
    batches = [torch.tensor(pair) for pair in pairs]
    order = observed_order(f, lambda h: replacement_loss(f, h), lambda h, x: mean_over_draws(f, h, x, batches, 3), 3)
    assert order == pytest.approx(3, abs=0.1)


def cut(permutation, b):
    return [torch.tensor(permutation[start : start + b]) for start in range(0, len(permutation), b)]


@pytest.mark.parametrize(("size", "b"), [(5, 2), (5, 3), (4, 3), (6, 2), (4, 1)])
def test_all_permutations_of_the_examples_short_last_batch_included(size, b):
    f = quadratics(size)
    sequences = [cut(permutation, b) for permutation in itertools.permutations(range(size))]
    m = len(sequences[0])

    def curvature(theta):
        """E Σ_{j<k} H_k g_j over all permutations: the second-order term of the mean iterate, exactly."""
        total = torch.zeros_like(theta)
        for sequence in sequences:
            before = torch.zeros_like(theta)
            for batch in sequence:
                total = total + f.hessians[batch].mean(0) @ before
                before = before + f.batch_grad(theta, batch)
        return total / len(sequences)

    theta, h = at(f), 0.7
    hg = f.hvp(theta, f.grad(theta))
    drift = (random_partition_loss(f, h, b).grad(theta) - f.grad(theta)) / h  # ∇R
    assert_close(curvature(theta), m**2 / 2 * hg - m * drift, rtol=1e-10, atol=1e-10)


def test_all_permutations_with_a_short_last_batch_to_order_three():
    f = quadratics(5)
    sequences = [cut(permutation, 2) for permutation in itertools.permutations(range(5))]

    def mean(h, theta):
        return mean_over_sequences(f, h, theta, sequences)

    def without_the_short_batch_term(h):
        kappa = (2 * 3 / (2 * 4) + 4 / 4) / 3  # the mean of (N − b)/(b(N − 1)) over batches of 2, 2 and 1
        return VariancePenalty(f, torch.arange(5)[:, None], h / 4 * kappa, h / 4)

    assert observed_order(f, lambda h: random_partition_loss(f, h, 2), mean, 3) == pytest.approx(3, abs=0.1)
    assert observed_order(f, without_the_short_batch_term, mean, 3) == pytest.approx(2, abs=0.1)


def partitions(rest, b):
    """All partitions of a tuple into batches of b, as lists of rows."""
    if not rest:
        return [[]]
    first, others = rest[0], rest[1:]
    return [
        [[first, *chosen], *tail]
        for chosen in itertools.combinations(others, b - 1)
        for tail in partitions(tuple(i for i in others if i not in chosen), b)
    ]


@pytest.mark.parametrize("b", [1, 2, 3, 6])
def test_loss_of_random_partitions_is_the_mean_of_those_of_all_partitions(b):
    f, h = quadratics(6), 0.8
    every = [reshuffling_loss(f, h, torch.tensor(rows)) for rows in partitions(tuple(range(6)), b)]
    mean = torch.stack([loss.loss(at(f)) for loss in every]).mean()
    assert_close(random_partition_loss(f, h, b).loss(at(f)), mean)


def test_variance_of_the_full_batch_is_none():
    assert (epoch_variance(1, 1), epoch_variance(7, 7)) == (0.0, 0.0)
    assert epoch_variance(6, 2) == pytest.approx(4 / 10)


TOYS = {
    "network": (network, None),
    "rosenbrock": (LANDSCAPES["rosenbrock"], [-0.4, 0.6]),
    "himmelblau": (LANDSCAPES["himmelblau"], [1.0, 2.5]),
}
LADDERS = {"network": (4e-3, 2e-3), "rosenbrock": (4e-5, 2e-5), "himmelblau": (2e-4, 1e-4)}
toys = pytest.mark.parametrize("name", TOYS)


def toy(name):
    build, start = TOYS[name]
    f = build()
    return f, at(f) if start is None else torch.tensor(start, dtype=torch.float64)


@toys
def test_a_negative_penalty_cancels_the_drift_of_gradient_descent(name):
    f, theta = toy(name)
    study = one_step_order(
        lambda h: GradientFlow(f), lambda h: GradientDescent(GradientPenalty(f, -h / 4), h), theta, LADDERS[name]
    )
    plain = one_step_order(lambda h: GradientFlow(f), lambda h: GradientDescent(f, h), theta, LADDERS[name])
    assert (study.order, plain.order) == pytest.approx((3, 2), abs=0.1)


@toys
def test_a_positive_penalty_makes_the_implicit_regulariser_explicit(name):
    f, theta = toy(name)
    study = one_step_order(
        lambda h: GradientFlow(GradientPenalty(f, h / 4)), lambda h: GradientDescent(f, h), theta, LADDERS[name]
    )
    assert study.order == pytest.approx(3, abs=0.1)
    explicit, implicit = GradientFlow(GradientPenalty(f, 0.01)), ModifiedFlow(f, 0.04, 2)
    assert_close(explicit.velocity(0.0, theta), implicit.velocity(0.0, theta))


def trained(f, theta, h, steps, c):
    """Training as users write it: torch.autograd of the loss plus c times the squared norm of its gradient."""
    for _ in range(steps):
        theta = theta.detach().requires_grad_()
        loss = f.losses(theta).mean()
        (g,) = torch.autograd.grad(loss, theta, create_graph=True)
        (slope,) = torch.autograd.grad(loss + c * (g * g).sum(), theta)
        theta = theta - h * slope
    return theta.detach()


def test_descents_run_on_a_penalised_network():
    f = network()
    penalised, theta, h = GradientPenalty(f, 0.05), at(f), 0.1
    plain = descend(GradientDescent(penalised, h), theta, 4)
    assert_close(plain.theta[-1], trained(f, theta, h, 4, 0.05))
    assert not torch.allclose(plain.theta[-1], trained(f, theta, h, 4, 0.0), atol=1e-3)
    heavy = descend(HeavyBall(penalised, h, 0.9), theta, 4).theta
    torchs = descend(OptimizerDescent(penalised, lambda p: torch.optim.SGD(p, lr=h, momentum=0.9)), theta, 4).theta
    assert torch.equal(heavy, torchs)


@pytest.mark.parametrize("wrap", [lambda f: GradientPenalty(f, 0.05), lambda f: VariancePenalty(f, FOUR, 0.05)])
def test_mini_batch_steps_on_a_penalised_network_are_unbiased(wrap):
    penalised = wrap(network())
    theta, h = at(penalised), 0.1
    steps = torch.stack([step(penalised, h, theta, batch) for batch in FOUR])
    assert_close(steps.mean(0), descend(GradientDescent(penalised, h), theta, 1).theta[-1])
    run = descend(StochasticGradientDescent(penalised, h, 3, "epoch"), theta.expand(2, -1), 6, seed=1)
    assert run.status == "finished"
    assert float(penalised.loss(run.theta[-1]).max()) < float(penalised.loss(theta))


def test_integrators_and_compare_take_penalised_landscapes():
    f, theta = toy("network")
    penalised = GradientPenalty(f, 0.05)
    exact = integrate(GradientFlow(penalised), theta, [0.0, 0.5]).theta[-1]
    stiff = integrate(GradientFlow(penalised), theta, [0.0, 0.5], method="exprb43", rtol=1e-4, atol=1e-5).theta[-1]
    assert_close(stiff, exact, rtol=1e-3, atol=1e-3)
    h = 0.2
    flows = {
        "implicit": ModifiedFlow(f, h, 2),
        "explicit": GradientFlow(GradientPenalty(f, h / 4)),
        "plain": GradientFlow(f),
    }
    result = compare(GradientDescent(f, h), flows, theta, 2)
    assert_close(result.errors["explicit"], result.errors["implicit"], rtol=1e-3, atol=1e-6)
    assert float(result.errors["explicit"][-1]) < float(result.errors["plain"][-1])
