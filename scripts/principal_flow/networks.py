"""The networks of the paper's experiments: sizes for two cores and the paper's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nets import NetworkLandscape

from ..lab.experiment import Common
from ..lab.network import NetGround

Size = Literal["laptop", "paper"]
Network = Literal["mlp", "vgg-11", "resnet"]


@dataclass(frozen=True)
class EdgePlan:
    """A network with the run that brings it to the edge of stability and, for a window of steps, along it."""

    ground: NetGround
    h: float
    steps: int
    every: int
    """Steps between observations of the curvature."""
    window: int
    """Steps of the window, all of which are observed."""
    studied: int
    """Steps of the window from which every flow takes a step."""
    substeps: int = 4
    """rk4 steps of the principal flow in one of h, as its rates are logarithms of hλ."""
    modes: int = 4
    """Number of top eigenpairs."""
    wait: int = 0
    """Steps from the onset (hλ₀ = 2) to the window, in which a small gradient along u₀ can grow."""


SMOOTH: dict[str, Any] = {"data": "cifar-10", "examples": 1000, "width": 0.25, "activation": "gelu", "ghost_size": 1000}
LAPTOP: dict[str, EdgePlan] = {
    "mlp": EdgePlan(
        NetGround("walk-mlp", data="mnist", examples=1000, width=0.25, activation="tanh"), 0.28, 300, 5, 40, 4
    ),
    "vgg-11": EdgePlan(NetGround("vgg-11", norm="batch", pooling="average", **SMOOTH), 0.04, 80, 5, 4, 1, 2, 2, 30),
    "resnet": EdgePlan(NetGround("resnet-20", **SMOOTH), 0.15, 40, 5, 4, 1, 2, 2),
}
"""Quarter width, 1,000 images in a single batch for batch norm; smooth activations and pooling, as kinks add an error
to every flow."""
PAPER: dict[str, EdgePlan] = {
    "mlp": EdgePlan(NetGround("walk-mlp", "paper", data="mnist", examples="all"), 0.05, 4000, 50, 100, 10),
    "vgg-11": EdgePlan(
        NetGround("vgg-11", "paper", data="cifar-10", examples="all", norm="batch"), 0.02, 2000, 50, 50, 4
    ),
    "resnet": EdgePlan(NetGround("resnet-18", "paper", data="cifar-10", examples="all"), 0.05, 2000, 50, 50, 4),
}
"""Full width and all images, in ghost batches of 100 for batch norm."""
PLANS = {"laptop": LAPTOP, "paper": PAPER}


@dataclass(frozen=True)
class OnNetworks(Common):
    """Options of the experiments that train a network by full-batch gradient descent."""

    network: Network = "mlp"
    """An MLP on MNIST, VGG-11 or a ResNet on CIFAR-10."""
    preset: Size = "laptop"
    """Quarter width and 1,000 images, or the paper's size."""
    root: Path | None = None
    """Folder with the files of the data; default: THALWEG_DATA if they are there, else they are downloaded."""
    h: float | None = None
    """Learning rate; default, as for the following options: that of the preset."""
    steps: int | None = None
    """Steps to train."""
    every: int | None = None
    """Steps between observations of the curvature."""
    data: str | None = None
    """Another data set."""
    examples: int | None = None
    """Class-balanced training examples."""
    width: float | None = None
    """Factor of the numbers of channels and hidden units."""
    chunk_size: int | None = None
    """Examples per chunk of a gradient."""

    @property
    def plan(self) -> EdgePlan:
        """The preset's plan with the given options in place of its values."""
        plan = PLANS[self.preset][self.network]
        given = {name: getattr(self, name) for name in ("root", "data", "examples", "width", "chunk_size")}
        ground = replace(plan.ground, **{name: value for name, value in given.items() if value is not None})
        if ground.ghost_size is not None and self.examples is not None:
            ground = replace(ground, ghost_size=min(ground.ghost_size, self.examples))
        run = {name: getattr(self, name) for name in ("h", "steps", "every")}
        return replace(plan, ground=ground, **{name: value for name, value in run.items() if value is not None})

    def configuration(self) -> dict[str, Any]:
        """The options and the resulting plan, so that a changed preset invalidates stored results."""
        plan = asdict(self.plan)
        plan["ground"].pop("root")
        return super().configuration() | {"plan": plan}

    def landscape(self, plan: EdgePlan) -> NetworkLandscape:
        """The network's landscape, with its initial weights as θ0."""
        return plan.ground.build(self.seed, self.real, self.device)[0]

    def describe(self, landscape: NetworkLandscape, plan: EdgePlan) -> str:
        """Network, data and learning rate, on one line."""
        ground = plan.ground
        return (
            f"{ground.architecture} ({landscape.dimension:,} weights) on {ground.chosen.examples or 'all'} images of "
            f"{ground.chosen.data}, gradient descent at h = {plan.h:g}"
        )


SEEN: dict[str, Any] = {"color": "black", "linewidth": 0.9, "marker": "o", "markersize": 3, "markerfacecolor": "none"}


NAMES = {"gradient flow": "gradient flow", "modified flow": "IGR flow", "principal flow": "principal flow"}
