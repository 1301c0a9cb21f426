r"""Sizes for every network: those of its paper, and smaller ones that two cores finish in a minute or two.

"paper" is the network at the width of the paper on all its data, with mini-batches of 100 and one epoch of steps.
"laptop" keeps the architecture and reduces width, examples and steps; its h puts the largest curvature at the start
between hλ = 0.15 and 0.8. Networks with batch norm descend the sum over fixed ghost batches, ``batch_size`` of which
form a mini-batch. Networks without a paper ("mlp", "vit", the polynomial ones) use all of their data at paper size.
A network that is not listed uses DEFAULT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

ALL_FLOWS = ("gradient", "modified-2", "modified-3", "principal")
TWO_FLOWS = ("gradient", "modified-2")


@dataclass(frozen=True)
class Preset:
    """Default settings of a network; ``examples`` None: all, ``h`` None: from the curvature."""

    data: str
    examples: int | None
    width: float
    h: float | None
    steps: int
    batch_size: int
    ghost_size: int | None = None
    classes: tuple[int, ...] | None = None
    flows: tuple[str, ...] = TWO_FLOWS
    substeps: int | None = 2
    """Fixed rk4 steps in one of h, whose cost does not grow at kinks; None for dopri5 at rtol 1e-4."""
    chunk_size: int | None = None


def paper_preset(data: str, examples: int, ghost: bool = False) -> Preset:
    """All of a data set in mini-batches of 100, for one epoch at h = 0.1, in chunks of 500 examples."""
    whole = Preset(data, None, 1.0, 0.1, examples // 100, 100, chunk_size=500)
    return replace(whole, batch_size=1, ghost_size=100, chunk_size=5) if ghost else whole


def with_ghost_batches(preset: Preset, size: int) -> Preset:
    """The preset with ghost batches of that size, one per mini-batch."""
    return replace(preset, batch_size=1, ghost_size=size)


LAPTOP: dict[str, Preset] = {
    "mlp": Preset("digits", 300, 0.5, 0.3, 20, 32, flows=ALL_FLOWS, substeps=None),
    "walk-mlp": Preset("mnist", 200, 0.1, 0.1, 20, 20, substeps=8),
    "small-mnistfc": Preset("mnist", 200, 1.0, 0.1, 20, 20, substeps=8),
    "small-fc": with_ghost_batches(Preset("mnist-7x7", 200, 0.5, 0.1, 10, 1, substeps=8), 50),
    "tiny-fc": with_ghost_batches(Preset("mnist-7x7", 200, 1.0, 0.1, 10, 1, classes=(0, 1, 2, 3, 4), substeps=8), 50),
    "shwartz-ziv": Preset("shwartz-ziv", 400, 1.0, 0.5, 20, 40, flows=ALL_FLOWS, substeps=None),
    "polynomial-mlp": Preset("digits", 300, 0.5, 0.02, 20, 32, flows=ALL_FLOWS, substeps=None),
    "lenet": Preset("digits", 300, 0.5, 0.5, 20, 32, flows=ALL_FLOWS, substeps=None),
    "polynomial-lenet": Preset("digits", 300, 0.5, 0.5, 20, 32, flows=ALL_FLOWS, substeps=None),
    "hessian-lenet": Preset("mnist", 50, 0.3, 0.3, 8, 10, substeps=8),
    "small-lenet": with_ghost_batches(Preset("mnist", 50, 0.5, 0.04, 5, 1, substeps=8), 25),
    "entropy-sgd-lenet": with_ghost_batches(Preset("fashion-mnist", 50, 0.2, 0.05, 5, 1, substeps=8), 25),
    "all-cnn-c": Preset("cifar-10", 20, 0.1, 0.05, 5, 5),
    "all-cnn-bn": with_ghost_batches(Preset("cifar-10", 20, 0.1, 0.05, 3, 1), 10),
    "small-allcnn": with_ghost_batches(Preset("cifar-10", 20, 0.5, 0.1, 3, 1), 10),
    "vgg-11": with_ghost_batches(Preset("cifar-10", 20, 0.05, 0.005, 3, 1), 10),
    "resnet-18": with_ghost_batches(Preset("cifar-10", 20, 0.05, 0.003, 3, 1), 10),
    "resnet-20": with_ghost_batches(Preset("cifar-10", 20, 0.25, 0.005, 3, 1), 10),
    "resnet-56": with_ghost_batches(Preset("cifar-10", 20, 0.125, 1e-4, 2, 1), 10),
    "wide-resnet-16-4": with_ghost_batches(Preset("cifar-10", 20, 0.1, 0.03, 3, 1), 10),
    "wide-resnet-28-10": with_ghost_batches(Preset("cifar-10", 20, 0.03, 0.01, 2, 1), 10),
    "vit": Preset("cifar-10", 20, 0.25, 0.03, 5, 5),
}
PAPER: dict[str, Preset] = {
    "mlp": Preset("digits", None, 1.0, 0.1, 100, 100, flows=ALL_FLOWS, substeps=None),
    "walk-mlp": paper_preset("mnist", 60_000),
    "small-mnistfc": paper_preset("mnist", 60_000),
    "small-fc": paper_preset("mnist-7x7", 60_000, ghost=True),
    "tiny-fc": replace(paper_preset("mnist-7x7", 30_500, ghost=True), classes=(0, 1, 2, 3, 4)),
    "shwartz-ziv": Preset("shwartz-ziv", None, 1.0, 0.5, 100, 100, flows=ALL_FLOWS, substeps=None),
    "polynomial-mlp": Preset("digits", None, 1.0, 0.02, 100, 100, flows=ALL_FLOWS, substeps=None),
    "lenet": paper_preset("mnist", 60_000),
    "polynomial-lenet": Preset("digits", None, 1.0, 0.1, 100, 100, flows=ALL_FLOWS, substeps=None),
    "hessian-lenet": paper_preset("mnist", 60_000),
    "small-lenet": paper_preset("mnist", 60_000, ghost=True),
    "entropy-sgd-lenet": paper_preset("mnist", 60_000, ghost=True),
    "all-cnn-c": paper_preset("cifar-10", 50_000),
    "all-cnn-bn": paper_preset("cifar-10", 50_000, ghost=True),
    "small-allcnn": paper_preset("cifar-10", 50_000, ghost=True),
    "vgg-11": paper_preset("cifar-10", 50_000, ghost=True),
    "resnet-18": paper_preset("cifar-10", 50_000, ghost=True),
    "resnet-20": paper_preset("cifar-10", 50_000, ghost=True),
    "resnet-56": paper_preset("cifar-10", 50_000, ghost=True),
    "wide-resnet-16-4": paper_preset("cifar-10", 50_000, ghost=True),
    "wide-resnet-28-10": paper_preset("cifar-10", 50_000, ghost=True),
    "vit": paper_preset("cifar-10", 50_000),
}
PRESETS = {"laptop": LAPTOP, "paper": PAPER}
"""Presets by size and network, for the networks that have one."""
DEFAULT = Preset("digits", 300, 1.0, None, 20, 32)
"""The laptop preset of any other network, whose h gives hλ = ½ at the start."""


def preset_of(size: str, architecture: str) -> Preset:
    """The preset of a network, or DEFAULT if it has none; at paper size with all of the data and more steps."""
    whole = replace(DEFAULT, examples=None, steps=100, batch_size=100)
    return PRESETS[size].get(architecture, whole if size == "paper" else DEFAULT)
