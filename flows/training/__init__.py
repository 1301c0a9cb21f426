"""Learning rates for a user's own training loop."""

from flows.training.drift_adjusted_rate import DriftAdjustedRate

__all__ = ["DriftAdjustedRate"]
