r"""Networks on data as landscapes of a script: any architecture on any data set; a preset supplies missing options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from landscapes.errors import check_choice, check_count
from nets import (
    ARCHITECTURES,
    LOSSES,
    BatchNorm,
    Data,
    GhostBatchLandscape,
    HolomorphicNetworkLandscape,
    NetworkLandscape,
    build_network,
    limit_examples,
    load_data,
    noisy_labels,
    only_classes,
    random_labels,
)
from nets.data import DATA_SETS
from nets.network import LossFunction

from .presets import Preset, preset_of

Size = Literal["laptop", "paper"]


@dataclass(frozen=True)
class NetGround:
    """A network on real data, with the full batch or mini-batches."""

    architecture: Annotated[str, tyro.conf.arg(help=f"One of {', '.join(ARCHITECTURES)}.")] = "lenet"
    preset: Size = "laptop"
    """Source of the options that are not given: sizes for two cores, or those of the paper."""
    data: Annotated[str | None, tyro.conf.arg(help=f"One of {', '.join(DATA_SETS)}; the preset's by default.")] = None
    root: Path | None = None
    """Folder with the files of the data; default: THALWEG_DATA if they are there, else they are downloaded."""
    examples: int | Literal["all"] | None = None
    """Class-balanced training examples."""
    classes: tuple[int, ...] | None = None
    """Use these classes only."""
    labels: Literal["true", "random"] = "true"
    """random: every label is drawn at random (Zhang et al. 2017)."""
    label_noise: float = 0.0
    """Fraction of examples with a wrong label."""
    width: float | None = None
    """Factor of the numbers of channels and hidden units."""
    activation: str | None = None
    """tanh, relu, gelu, sine, square, …; default: that of the architecture."""
    norm: str | None = None
    """batch, group or none (vit: layer or none); default: that of the architecture."""
    pooling: str | None = None
    """max, average or strided, if the architecture has pooling."""
    loss: Literal["cross-entropy", "square"] = "cross-entropy"
    chunk_size: int | None = None
    """Examples, or ghost batches, per chunk of a gradient; default: that of the preset (laptop: all)."""
    ghost_size: int | None = None
    """Examples that share their batch-norm statistics; an incomplete last group is dropped."""
    holomorphic: bool = False
    """Accept complex weights (tanh, sine or polynomial activations, no max pooling)."""

    @property
    def chosen(self) -> Preset:
        """The preset with the given options in place of its values."""
        check_choice("architecture", self.architecture, tuple(ARCHITECTURES))
        if self.data is not None:
            check_choice("data", self.data, DATA_SETS)
        preset = preset_of(self.preset, self.architecture)
        given: dict[str, Any] = {
            name: getattr(self, name) for name in ("data", "classes", "width", "ghost_size", "chunk_size")
        }
        if self.data is not None and self.data != preset.data and self.classes is None:
            preset = replace(preset, classes=None)
        if self.ghost_size is not None:
            check_count("ghost_size", self.ghost_size)
        if self.examples is not None:
            preset = replace(preset, examples=None if self.examples == "all" else self.examples)
        return replace(preset, **{name: value for name, value in given.items() if value is not None})

    @property
    def suggested(self) -> dict[str, Any]:
        """Settings of a comparison that suit the network."""
        preset = self.chosen
        rate = {} if preset.h is None else {"h": preset.h}
        return rate | {"steps": preset.steps, "batch_size": preset.batch_size, "flows": preset.flows}

    def integration(self, h: float) -> dict[str, Any]:
        """Integration settings of flows over steps of h."""
        substeps = self.chosen.substeps
        return {"rtol": 1e-4, "atol": 1e-6} if substeps is None else {"method": "rk4", "dt": h / substeps}

    def load(self, seed: int) -> Data:
        """The examples, with the labels requested."""
        preset = self.chosen
        whole = preset.classes is not None or self.data is not None
        data = load_data(preset.data, root=self.root, limit=None if whole else preset.examples, seed=seed)
        if preset.classes is not None:
            data = only_classes(data, preset.classes)
        if whole and preset.examples is not None:  # cap a preset's number, let a given one raise
            data = limit_examples(
                data, min(preset.examples, len(data)) if self.examples is None else preset.examples, seed
            )
        if self.labels == "random":
            data = random_labels(data, seed)
        return noisy_labels(data, self.label_noise, seed) if self.label_noise else data

    def parts(self, seed: int, dtype: torch.dtype, device: str) -> tuple[nn.Module, LossFunction, Tensor, Tensor]:
        """Module, loss of each example, inputs and targets."""
        data = self.load(seed)
        options = {"activation": self.activation, "norm": self.norm, "pooling": self.pooling}
        module = build_network(
            self.architecture, tuple(data.inputs.shape[1:]), data.classes, width=self.chosen.width, seed=seed, **options
        )
        return module.to(device, dtype), LOSSES[self.loss], data.inputs.to(device, dtype), data.targets.to(device)

    def test_part(self, seed: int, dtype: torch.dtype, device: str) -> tuple[NetworkLandscape, Tensor]:
        """The loss on the test part of the data, and the classes: the arguments of ``Evaluation``."""
        preset = self.chosen
        data = load_data(preset.data, root=self.root, train=False)
        if preset.classes is not None:
            data = only_classes(data, preset.classes)
        module, loss, _, _ = self.parts(seed, dtype, device)
        targets = data.targets.to(device)
        return NetworkLandscape(module, loss, data.inputs.to(device, dtype), targets), targets

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[NetworkLandscape, Tensor]:
        """Start: the random initial weights of the network for this seed."""
        landscape = self.landscape(*self.parts(seed, dtype, device), seed=seed)
        return landscape, landscape.theta0

    def landscape(
        self, module: nn.Module, loss: LossFunction, inputs: Tensor, targets: Tensor, *, seed: int
    ) -> NetworkLandscape:
        """The sum over ghost batches if the network has batch norm, else over examples."""
        if not any(isinstance(layer, BatchNorm) for layer in module.modules()):
            kind = HolomorphicNetworkLandscape if self.holomorphic else NetworkLandscape
            return kind(module, loss, inputs, targets, self.chosen.chunk_size)
        if self.holomorphic:
            raise ValueError("--holomorphic needs a network without batch statistics; add --norm group or --norm none")
        N = len(targets)
        asked = self.chosen.ghost_size
        size = N if asked is None else min(asked, N)
        kept = N - N % size
        return GhostBatchLandscape(module, loss, inputs[:kept], targets[:kept], size, self.chosen.chunk_size, seed=seed)
