r"""Many paths at once: statistics of laws, streamed, with error bars."""

from flows.ensembles.quantiles import Quantiles
from flows.ensembles.statistics import Histogram, Moments, Statistic

__all__ = ["Histogram", "Moments", "Quantiles", "Statistic"]
