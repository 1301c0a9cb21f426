"""Krylov methods on a network of 2,000 weights against its dense spectrum: pairs, density, trace and layers.

Tanh networks, the second small and with more layers, on real digits after a few steps of gradient descent, where the
Hessian has a distinct negative end.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from landscapes import Counted
from landscapes.krylov import (
    EigenpairTracker,
    block_product,
    eigenpairs,
    layer_traces,
    random_block,
    spectral_density,
    trace,
)
from nets import NetworkLandscape, build_network, cross_entropy, load_data
from tests.landscapes.dense import ranked

SIZES = {"mlp": (0.85, 100), "lenet": (0.4, 40)}  # widths, 2,035 and 599 weights; examples
WHICH = ("largest", "smallest", "magnitude")


class Trained:
    """A network at a point of its training, with its Hessian there and all its eigenvalues."""

    def __init__(self, name):
        width, examples = SIZES[name]
        data = load_data("digits", limit=examples)
        module = build_network(name, (1, 8, 8), data.classes, width=width, activation="tanh").double()
        self.module, self.data = module, data
        self.landscape = NetworkLandscape(module, cross_entropy, data.inputs.double(), data.targets)
        self.theta = self.landscape.theta0
        for _ in range(15):
            self.theta = self.theta - 0.3 * self.landscape.grad(self.theta)
        self.hessian = self.landscape.hessian(self.theta)
        self.eigenvalues = torch.linalg.eigvalsh(self.hessian)
        self.hvp = self.landscape.expand(self.theta).hvp


@pytest.fixture(scope="module", params=SIZES)
def trained(request):
    return Trained(request.param)


@pytest.mark.parametrize("which", WHICH)
def test_extreme_pairs_are_those_of_the_dense_hessian(trained, which):
    expected = ranked(trained.eigenvalues, which)[:4]
    assert float(trained.eigenvalues[0]) < -0.05 * float(trained.eigenvalues[-1])  # a negative end worth the name
    pairs = eigenpairs(trained.hvp, random_block(trained.theta, 6), 4, which=which, tolerance=1e-8, limit=600)
    assert pairs.converged
    # outliers are found in tens of products; the negative end is dense: eigsh takes 361 for it at this tolerance
    assert pairs.products < (430 if which == "smallest" else 80)
    assert_close(pairs.values, expected, rtol=1e-6, atol=0)
    assert_close(pairs.vectors @ trained.hessian, pairs.values[:, None] * pairs.vectors, rtol=0, atol=1e-3)
    nearest = (pairs.values[:, None] - trained.eigenvalues).abs().min(dim=-1).values
    assert bool((nearest <= pairs.residuals + 1e-12).all())
    assert bool((nearest <= 2 * pairs.errors + 1e-12).all())


def test_density_within_its_error_bars(trained):
    low, high = float(trained.eigenvalues[0]), float(trained.eigenvalues[-1])
    # Chebyshev coefficients of a Gaussian of 1/20 of half the range fall as exp(−k²/800): to 2e-8 at k = 2·60, where
    # the quadrature begins to err
    width = (high - low) / 40
    density = spectral_density(trained.hvp, trained.theta, probes=16, steps=60)
    grid = torch.linspace(low - 4 * width, high + 4 * width, 201, dtype=torch.float64)
    value, error = density.density(grid, width)
    scale = 1 / (width * math.sqrt(2 * math.pi))
    exact = scale * torch.exp(-(((trained.eigenvalues - grid[:, None]) / width) ** 2) / 2).mean(-1)
    score = (value - exact).abs() / (error + 1e-7 * exact.max())
    # where eigenvalues are few a probe's share of one is χ²₁/d, and sixteen of those are skewed: mostly, not everywhere
    assert float((score > 4).double().mean()) < 0.05
    assert float(score.median()) < 1.5
    assert_close(torch.tensor(density.extremes), torch.tensor([low, high]), rtol=1e-5, atol=0)
    assert abs(density.trace.value - float(trained.eigenvalues.sum())) < 4 * density.trace.error
    negative = torch.zeros(1, dtype=torch.float64)
    share, bar = density.cumulative(negative - width)
    # a step, not smooth, in the tail: the quadrature errs by up to a node's weight
    few = float(density.weights.max(dim=-1).values.mean()) / 10
    assert abs(float(share) - float((trained.eigenvalues < -width).double().mean())) < 4 * float(bar) + few


def test_trace_and_its_error(trained):
    probes = 200
    estimate = trace(trained.hvp, trained.theta, probes)
    assert abs(estimate.value - float(trained.hessian.trace())) < 4 * estimate.error
    off_diagonal = trained.hessian - torch.diag(trained.hessian.diagonal())
    predicted = float((2 * off_diagonal.square().sum() / probes).sqrt())
    # a quadratic form with a few large eigenvalues has a kurtosis of up to χ²₁'s 15: √(14/200)/2 by one deviation
    assert estimate.error == pytest.approx(predicted, rel=0.4)


def test_layers_against_their_dense_blocks(trained):
    layers, theta = trained.landscape.layers, trained.theta
    assert len(layers) in (2, 4)
    traces = layer_traces(trained.hvp, theta, layers, 60)
    for name, part in layers.items():
        block = trained.hessian[part, part]
        exact = torch.linalg.eigvalsh(block)
        product = block_product(trained.hvp, theta, part)
        for which, tolerance in (("largest", 1e-8), ("magnitude", 1e-8), ("smallest", 1e-4)):  # the least lie dense
            pairs = eigenpairs(product, random_block(theta[part], 4), 2, which=which, tolerance=tolerance)
            assert pairs.converged
            within = 2 * tolerance * float(exact.abs().max())
            assert_close(pairs.values, ranked(exact, which)[:2], rtol=0, atol=within)
        assert abs(traces[name].value - float(block.trace())) < 4 * traces[name].error
        assert trace(product, theta[part], 2).products == 2
    whole = trace(trained.hvp, theta, 60)
    assert_close(sum(e.value for e in traces.values()), whole.value, rtol=1e-10, atol=1e-10)


def test_float32_finds_the_same_pairs(trained):
    module = trained.module.float()
    landscape = NetworkLandscape(module, cross_entropy, trained.data.inputs.float(), trained.data.targets)
    trained.module.double()
    theta = trained.theta.float()
    scale = float(trained.eigenvalues.abs().max())
    for which in ("largest", "smallest"):
        start = random_block(theta, 6)
        pairs = eigenpairs(landscape.expand(theta).hvp, start, 3, which=which, tolerance=1e-5)
        assert pairs.converged
        assert pairs.vectors.dtype == torch.float32
        assert_close(pairs.values, ranked(trained.eigenvalues, which)[:3], rtol=0, atol=2e-5 * scale)


def test_tracking_along_training(trained):
    # five more steps: what the tracker spends, by the landscape's own count, and what it finds
    landscape, theta = Counted(trained.landscape), trained.theta
    tracker = EigenpairTracker(2)
    spent = []
    for _ in range(5):
        before = landscape.counts["hvp"]
        followed = tracker(landscape.expand(theta).hvp, theta)
        spent.append(landscape.counts["hvp"] - before)
        assert spent[-1] == followed.pairs.products
        assert followed.pairs.converged
        again = eigenpairs(trained.landscape.expand(theta).hvp, random_block(theta, 4), 2, tolerance=1e-9)
        assert_close(followed.pairs.values, again.values, rtol=0, atol=2e-4 * float(again.values[0]))
        theta = theta - 0.3 * trained.landscape.grad(theta)
    assert sum(spent[1:]) < 0.7 * 4 * spent[0]
    assert float(followed.overlaps.min()) > 0.9
