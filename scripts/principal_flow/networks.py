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
class Plan:
    """A network with the run that takes it to the edge of stability and, for a window of steps, along it."""

    ground: NetGround
    h: float
    steps: int
    every: int
    """Steps from one look at the curvature to the next."""
    window: int
    """Steps after the onset (hλ₀ = 2) that are all looked at."""
    studied: int
    """Steps of the window from which every flow takes a step."""
    substeps: int = 4
    """Steps of rk4 that the principal flow takes for such a step, its rates being logarithms of hλ."""
    modes: int = 4
    """Top eigenpairs that are followed."""
    wait: int = 0
    """Steps from the onset to the window: the gradient along u₀ needs them to grow where it was small."""


SMOOTH: dict[str, Any] = {"data": "cifar-10", "examples": 1000, "width": 0.25, "activation": "gelu", "ghost_size": 1000}
LAPTOP: dict[str, Plan] = {
    "mlp": Plan(NetGround("walk-mlp", data="mnist", examples=1000, width=0.25, activation="tanh"), 0.28, 300, 5, 40, 4),
    "vgg-11": Plan(NetGround("vgg-11", norm="batch", pooling="average", **SMOOTH), 0.04, 80, 5, 4, 1, 2, 2, 30),
    "resnet": Plan(NetGround("resnet-20", **SMOOTH), 0.15, 40, 5, 4, 1, 2, 2),
}
"""Quarter width, 1,000 images, all of them one batch to batch norm; smooth activations and pooling, as kinks add an
error of their own to every flow."""
PAPER: dict[str, Plan] = {
    "mlp": Plan(NetGround("walk-mlp", "paper", data="mnist", examples="all"), 0.05, 4000, 50, 100, 10),
    "vgg-11": Plan(NetGround("vgg-11", "paper", data="cifar-10", examples="all", norm="batch"), 0.02, 2000, 50, 50, 4),
    "resnet": Plan(NetGround("resnet-18", "paper", data="cifar-10", examples="all"), 0.05, 2000, 50, 50, 4),
}
"""Full width and all images, in ghost batches of 100 to batch norm."""
PLANS = {"laptop": LAPTOP, "paper": PAPER}


@dataclass(frozen=True)
class OnNetworks(Common):
    """Options of the experiments that train a network by full-batch gradient descent."""

    network: Network = "mlp"
    """An MLP on MNIST, VGG-11 or a ResNet on CIFAR-10."""
    preset: Size = "laptop"
    """Quarter width and 1,000 images, or the paper's size."""
    root: Path | None = None
    """Folder that holds the data's files; by default they are looked for in THALWEG_DATA, or downloaded."""
    h: float | None = None
    """Learning rate; the preset's by default, as the rest."""
    steps: int | None = None
    """Steps to train."""
    every: int | None = None
    """Steps from one look at the curvature to the next."""
    data: str | None = None
    """Another data set."""
    examples: int | None = None
    """Class-balanced training examples."""
    width: float | None = None
    """Multiplies channels and hidden units."""
    chunk_size: int | None = None
    """Examples whose graph is held at once."""

    @property
    def plan(self) -> Plan:
        """The preset's plan with what the user gave in its place."""
        plan = PLANS[self.preset][self.network]
        given = {name: getattr(self, name) for name in ("root", "data", "examples", "width", "chunk_size")}
        ground = replace(plan.ground, **{name: value for name, value in given.items() if value is not None})
        if ground.ghost_size is not None and self.examples is not None:
            ground = replace(ground, ghost_size=min(ground.ghost_size, self.examples))
        run = {name: getattr(self, name) for name in ("h", "steps", "every")}
        return replace(plan, ground=ground, **{name: value for name, value in run.items() if value is not None})

    def configuration(self) -> dict[str, Any]:
        """The options and what they come to: a preset that changes makes other results."""
        plan = asdict(self.plan)
        plan["ground"].pop("root")
        return super().configuration() | {"plan": plan}

    def landscape(self, plan: Plan) -> NetworkLandscape:
        """The network's landscape; its own weights are θ0."""
        return plan.ground.build(self.seed, self.real, self.device)[0]

    def says(self, landscape: NetworkLandscape, plan: Plan) -> str:
        """What is trained, on one line."""
        ground = plan.ground
        return (
            f"{ground.architecture} ({landscape.dimension:,} weights) on {ground.chosen.examples or 'all'} images of "
            f"{ground.chosen.data}, gradient descent at h = {plan.h:g}"
        )


SEEN: dict[str, Any] = {"color": "black", "linewidth": 0.9, "marker": "o", "markersize": 3, "markerfacecolor": "none"}


NAMES = {"gradient flow": "gradient flow", "modified flow": "IGR flow", "principal flow": "principal flow"}
