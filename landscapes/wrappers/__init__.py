"""Landscapes that wrap another one: counted, regularised, rotated, penalised."""

from landscapes.wrappers.base import Wrapper
from landscapes.wrappers.counted import Counted, CountedSum
from landscapes.wrappers.regularised import Regularised, RegularisedSum
from landscapes.wrappers.rotated import Rotated

__all__ = ["Counted", "CountedSum", "Regularised", "RegularisedSum", "Rotated", "Wrapper"]
