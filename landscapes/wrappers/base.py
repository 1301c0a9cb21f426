r"""Base class of landscapes that wrap another one, and counts of oracle calls."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from landscapes.landscape import Landscape

Counts = dict[str, float]


def no_counts() -> Counts:
    """Counts at zero: loss, grad, hvp, third, and higher (above the third, or inside a torch.func transform)."""
    return {"loss": 0, "grad": 0, "hvp": 0, "third": 0, "higher": 0}


class Wrapper(Landscape):
    """A landscape that wraps ``landscape`` and has its dimension, domain and checks."""

    landscape: Any

    @property
    def holomorphic(self) -> bool:  # type: ignore[override]
        """Whether the wrapped landscape accepts complex θ."""
        return self.landscape.holomorphic

    @property
    def smoothness(self) -> float:
        """The number of continuous derivatives of the wrapped landscape."""
        return self.landscape.smoothness

    @property
    def dimension(self) -> int:
        return self.landscape.dimension

    def check(self, theta: Tensor) -> Tensor:
        """The check of the wrapped landscape, whose name appears in errors."""
        return self.landscape.check(theta)
