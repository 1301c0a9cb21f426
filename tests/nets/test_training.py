"""Every architecture trains by SGD on real data: the loss over all its examples falls by a stated factor."""

from dataclasses import dataclass

import pytest
import torch

from flows import StochasticGradientDescent, descend
from nets import (
    ARCHITECTURES,
    BatchNorm,
    GhostBatchLandscape,
    NetworkLandscape,
    build_network,
    cross_entropy,
    limit_examples,
    load_data,
    only_classes,
)
from tests.nets.data_files import real_root

FOLDERS = {"mnist": "mnist", "fashion-mnist": "fashion_mnist", "cifar-10": "cifar-10-batches-bin"}


@dataclass(frozen=True)
class Run:
    """Data, examples, width, learning rate, examples a batch, steps, and the least factor by which the loss falls.

    Training is chaotic where there are kinks and many layers: another processor rounds otherwise and ends elsewhere. So
    factors are loose, and each run starts from the weights as drawn and, in the soak, from weights 1e-3 of themselves
    away, which is how a factor shows that it is loose enough. All-CNN-C
    is trained with its batch norm, as without norms that chance alone decides at this size whether it learns.
    """

    data: str
    examples: int | None
    width: float
    h: float
    batch: int
    steps: int
    factor: float
    norm: str | None = None


RUNS = {
    "mlp": Run("digits", None, 1, 0.3, 32, 100, 10),
    "walk-mlp": Run("mnist", 500, 0.1, 0.1, 50, 60, 5),
    "small-mnistfc": Run("mnist", 500, 1, 0.1, 50, 60, 11),
    "small-fc": Run("mnist-7x7", 500, 1, 0.3, 50, 60, 6.5),
    "tiny-fc": Run("mnist-7x7", 500, 1, 0.5, 50, 60, 12),
    "shwartz-ziv": Run("shwartz-ziv", None, 1, 1.0, 64, 400, 2.8),
    "polynomial-mlp": Run("digits", None, 1, 0.03, 32, 100, 7),
    "lenet": Run("digits", 500, 1, 0.3, 50, 100, 2.4),
    "polynomial-lenet": Run("digits", 500, 1, 0.1, 50, 250, 1.5),
    "hessian-lenet": Run("mnist", 500, 0.5, 0.05, 50, 120, 3.5),
    "small-lenet": Run("mnist", 500, 0.5, 0.1, 50, 40, 3.3),
    "entropy-sgd-lenet": Run("fashion-mnist", 500, 0.2, 0.2, 50, 40, 2.3),
    "all-cnn-c": Run("cifar-10", 100, 0.1, 0.3, 50, 60, 1.7, norm="batch"),
    "all-cnn-bn": Run("cifar-10", 100, 0.1, 0.3, 50, 60, 1.4),
    "small-allcnn": Run("cifar-10", 100, 1, 0.2, 50, 60, 1.7),
    "vgg-11": Run("cifar-10", 100, 0.1, 0.1, 50, 20, 20),
    "resnet-18": Run("cifar-10", 100, 0.05, 0.05, 50, 40, 1.3),
    "resnet-20": Run("cifar-10", 100, 0.25, 0.05, 50, 40, 1.5),
    "resnet-56": Run("cifar-10", 50, 0.125, 0.05, 25, 40, 2.5),
    "wide-resnet-16-4": Run("cifar-10", 50, 0.15, 0.1, 25, 40, 1.45),
    "wide-resnet-28-10": Run("cifar-10", 50, 0.04, 0.1, 25, 40, 1.25),
    "vit": Run("mnist", 200, 0.5, 0.1, 50, 100, 1.6),
}


USUAL = Run("digits", 500, 1, 0.1, 50, 100, 1.2)
"""What a network has to do that is not listed."""


def load(name, run):
    folder = FOLDERS.get(run.data.removesuffix("-7x7"))
    root = real_root(folder) if folder else None  # skips where the files are not at hand
    if name == "tiny-fc":  # digits 0 to 4, as in the paper
        return limit_examples(only_classes(load_data(run.data, root=root), (0, 1, 2, 3, 4)), run.examples)
    return load_data(run.data, root=root, limit=run.examples)


def build(name, run, device):
    data = load(name, run)
    norm = {} if run.norm is None else {"norm": run.norm}
    module = build_network(name, tuple(data.inputs.shape[1:]), data.classes, width=run.width, **norm).to(device)
    inputs, targets = data.inputs.float(), data.targets
    if any(isinstance(layer, BatchNorm) for layer in module.modules()):
        return GhostBatchLandscape(module, cross_entropy, inputs, targets, run.batch), 1
    return NetworkLandscape(module, cross_entropy, inputs, targets), run.batch


def test_every_run_has_a_network():
    assert set(RUNS) <= set(ARCHITECTURES)


@pytest.mark.parametrize("nudge", [0.0, pytest.param(1e-3, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_falls(name, nudge, device, normal):
    run = RUNS.get(name, USUAL)
    network, batch = build(name, run, device)
    descent = StochasticGradientDescent(network, run.h, batch, "epoch")
    theta0 = network.theta0 * (1 + nudge * normal(0, network.dimension, dtype=torch.float32).to(device))
    path = descend(descent, theta0, run.steps, every=run.steps)
    assert path.status == "finished"
    before, after = (float(network.loss(theta)) for theta in path.theta)
    classes = 2 if name == "shwartz-ziv" else 5 if name == "tiny-fc" else 10
    assert before > 0.8 * float(torch.log(torch.tensor(float(classes))))  # it knows nothing yet
    assert after < before / run.factor, f"{before:.3f} to {after:.3f}, a factor of {before / after:.2f}"
