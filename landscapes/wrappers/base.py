r"""The base of landscapes around another landscape, and the tally of oracle calls."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from landscapes.landscape import Landscape

Counts = dict[str, float]


def no_counts() -> Counts:
    """A fresh tally: loss, grad, hvp, third, and higher (above the third, or through a torch.func transform)."""
    return {"loss": 0, "grad": 0, "hvp": 0, "third": 0, "higher": 0}


class Wrapper(Landscape):
    """A landscape around another one, ``landscape``, whose dimension, domain and checks it keeps."""

    landscape: Any

    @property
    def holomorphic(self) -> bool:  # type: ignore[override]
        """Whether complex θ is accepted: the wrapped landscape's answer."""
        return self.landscape.holomorphic

    @property
    def smoothness(self) -> float:
        """How many continuous derivatives there are: the wrapped landscape's answer."""
        return self.landscape.smoothness

    @property
    def dimension(self) -> int:
        return self.landscape.dimension

    def check(self, theta: Tensor) -> Tensor:
        """The wrapped landscape's check, so that errors name it."""
        return self.landscape.check(theta)
