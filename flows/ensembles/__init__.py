r"""Many paths at once: statistics of laws, streamed, with error bars."""

from flows.ensembles.ensemble import Ensemble, Observable, ensemble
from flows.ensembles.quantiles import Quantiles
from flows.ensembles.statistics import Histogram, Moments, Statistic

__all__ = ["Ensemble", "Histogram", "Moments", "Observable", "Quantiles", "Statistic", "ensemble"]
