r"""Sizes for every network: its paper's, and one that two cores finish in a minute or two.

"paper" is the network at the paper's width on all its data, 100 examples a mini-batch and one epoch of steps. "laptop"
keeps the architecture and cuts width, examples and steps; its h puts the largest curvature at the start between
hλ = 0.15 and 0.8. Networks with batch norm descend the sum over fixed ghost batches, ``batch_size`` of which make a
mini-batch. Those that no paper has ("mlp", "vit", the polynomial ones) have all of their data for a paper's size.
A network that is not listed runs on DEFAULT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

ALL_FLOWS = ("gradient", "modified-2", "modified-3", "principal")
TWO_FLOWS = ("gradient", "modified-2")


@dataclass(frozen=True)
class Preset:
    """What a network is run with unless the user says otherwise; ``examples`` None: all, ``h`` None: by curvature."""

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
    """Steps of rk4 in one of h, whose cost kinks do not raise; None for dopri5 at rtol 1e-4."""
    chunk_size: int | None = None


def paper(data: str, examples: int, ghost: bool = False) -> Preset:
    """All of a data set in mini-batches of 100, for one epoch at h = 0.1; the graphs of 500 examples held at once."""
    whole = Preset(data, None, 1.0, 0.1, examples // 100, 100, chunk_size=500)
    return replace(whole, batch_size=1, ghost_size=100, chunk_size=5) if ghost else whole


def ghosted(preset: Preset, size: int) -> Preset:
    """The preset on ghost batches of that size, one a mini-batch."""
    return replace(preset, batch_size=1, ghost_size=size)


LAPTOP: dict[str, Preset] = {
    "mlp": Preset("digits", 300, 0.5, 0.3, 20, 32, flows=ALL_FLOWS, substeps=None),
    "walk-mlp": Preset("mnist", 200, 0.1, 0.1, 20, 20, substeps=8),
    "small-mnistfc": Preset("mnist", 200, 1.0, 0.1, 20, 20, substeps=8),
    "small-fc": ghosted(Preset("mnist-7x7", 200, 0.5, 0.1, 10, 1, substeps=8), 50),
    "tiny-fc": ghosted(Preset("mnist-7x7", 200, 1.0, 0.1, 10, 1, classes=(0, 1, 2, 3, 4), substeps=8), 50),
    "shwartz-ziv": Preset("shwartz-ziv", 400, 1.0, 0.5, 20, 40, flows=ALL_FLOWS, substeps=None),
    "polynomial-mlp": Preset("digits", 300, 0.5, 0.02, 20, 32, flows=ALL_FLOWS, substeps=None),
    "lenet": Preset("digits", 300, 0.5, 0.5, 20, 32, flows=ALL_FLOWS, substeps=None),
    "polynomial-lenet": Preset("digits", 300, 0.5, 0.5, 20, 32, flows=ALL_FLOWS, substeps=None),
    "hessian-lenet": Preset("mnist", 50, 0.3, 0.3, 8, 10, substeps=8),
    "small-lenet": ghosted(Preset("mnist", 50, 0.5, 0.04, 5, 1, substeps=8), 25),
    "entropy-sgd-lenet": ghosted(Preset("fashion-mnist", 50, 0.2, 0.05, 5, 1, substeps=8), 25),
    "all-cnn-c": Preset("cifar-10", 20, 0.1, 0.05, 5, 5),
    "all-cnn-bn": ghosted(Preset("cifar-10", 20, 0.1, 0.05, 3, 1), 10),
    "small-allcnn": ghosted(Preset("cifar-10", 20, 0.5, 0.1, 3, 1), 10),
    "vgg-11": ghosted(Preset("cifar-10", 20, 0.05, 0.005, 3, 1), 10),
    "resnet-18": ghosted(Preset("cifar-10", 20, 0.05, 0.003, 3, 1), 10),
    "resnet-20": ghosted(Preset("cifar-10", 20, 0.25, 0.005, 3, 1), 10),
    "resnet-56": ghosted(Preset("cifar-10", 20, 0.125, 1e-4, 2, 1), 10),
    "wide-resnet-16-4": ghosted(Preset("cifar-10", 20, 0.1, 0.03, 3, 1), 10),
    "wide-resnet-28-10": ghosted(Preset("cifar-10", 20, 0.03, 0.01, 2, 1), 10),
    "vit": Preset("cifar-10", 20, 0.25, 0.03, 5, 5),
}
PAPER: dict[str, Preset] = {
    "mlp": Preset("digits", None, 1.0, 0.1, 100, 100, flows=ALL_FLOWS, substeps=None),
    "walk-mlp": paper("mnist", 60_000),
    "small-mnistfc": paper("mnist", 60_000),
    "small-fc": paper("mnist-7x7", 60_000, ghost=True),
    "tiny-fc": replace(paper("mnist-7x7", 30_500, ghost=True), classes=(0, 1, 2, 3, 4)),
    "shwartz-ziv": Preset("shwartz-ziv", None, 1.0, 0.5, 100, 100, flows=ALL_FLOWS, substeps=None),
    "polynomial-mlp": Preset("digits", None, 1.0, 0.02, 100, 100, flows=ALL_FLOWS, substeps=None),
    "lenet": paper("mnist", 60_000),
    "polynomial-lenet": Preset("digits", None, 1.0, 0.1, 100, 100, flows=ALL_FLOWS, substeps=None),
    "hessian-lenet": paper("mnist", 60_000),
    "small-lenet": paper("mnist", 60_000, ghost=True),
    "entropy-sgd-lenet": paper("mnist", 60_000, ghost=True),
    "all-cnn-c": paper("cifar-10", 50_000),
    "all-cnn-bn": paper("cifar-10", 50_000, ghost=True),
    "small-allcnn": paper("cifar-10", 50_000, ghost=True),
    "vgg-11": paper("cifar-10", 50_000, ghost=True),
    "resnet-18": paper("cifar-10", 50_000, ghost=True),
    "resnet-20": paper("cifar-10", 50_000, ghost=True),
    "resnet-56": paper("cifar-10", 50_000, ghost=True),
    "wide-resnet-16-4": paper("cifar-10", 50_000, ghost=True),
    "wide-resnet-28-10": paper("cifar-10", 50_000, ghost=True),
    "vit": paper("cifar-10", 50_000),
}
PRESETS = {"laptop": LAPTOP, "paper": PAPER}
"""Presets by size and network, for the networks that have one of their own."""
DEFAULT = Preset("digits", 300, 1.0, None, 20, 32)
"""The laptop's preset of any other network, whose h makes hλ = ½ at the start."""


def preset_of(size: str, architecture: str) -> Preset:
    """The preset of a network: its own, else DEFAULT; for a paper's size on all of the data, for more steps."""
    whole = replace(DEFAULT, examples=None, steps=100, batch_size=100)
    return PRESETS[size].get(architecture, whole if size == "paper" else DEFAULT)
