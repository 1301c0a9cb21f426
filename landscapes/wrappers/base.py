r"""Base class of landscapes that wrap another one, and counts of oracle calls."""

from __future__ import annotations

from functools import cached_property
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor

from landscapes.landscape import Landscape

Counts = dict[str, float]
Kept = TypeVar("Kept", bound=Landscape)


def no_counts() -> Counts:
    """Counts at zero: loss, grad, hvp, third, and higher (above the third, or inside a torch.func transform)."""
    return {"loss": 0, "grad": 0, "hvp": 0, "third": 0, "higher": 0}


def replace_attributes(landscape: Kept, /, **attributes: Any) -> Kept:
    """A copy with some attributes replaced; its class and the others are unchanged, and cached properties are not kept.

    The constructor is not called: a subclass may have another signature, and everything was checked before.
    """
    cls = type(landscape)
    cached = {name for name in vars(landscape) if isinstance(getattr(cls, name, None), cached_property)}
    kept = {name: value for name, value in vars(landscape).items() if name not in cached}
    copy = object.__new__(cls)
    # Methods assigned to the object itself are bound to it, and would evaluate the attributes replaced here.
    bound = {
        name: MethodType(value.__func__, copy)
        for name, value in kept.items()
        if isinstance(value, MethodType) and value.__self__ is landscape
    }
    copy.__dict__.update({**kept, **bound, **attributes})
    return copy


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
