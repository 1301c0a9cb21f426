"""What goes into a training loop of the user's own."""

from flows.training.drift_adjusted_rate import DriftAdjustedRate

__all__ = ["DriftAdjustedRate"]
