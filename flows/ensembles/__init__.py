r"""Many paths at once: statistics of laws, streamed, with error bars."""

from flows.ensembles.ensemble import Ensemble, Observable, ensemble
from flows.ensembles.expectation import Expectation, expectation
from flows.ensembles.quantiles import Quantiles
from flows.ensembles.statistics import Histogram, Moments, Statistic
from flows.ensembles.weak import WeakErrors, weak_errors
from flows.ensembles.weak_order import WeakOrder, WeakOrderStudy, weak_order

__all__ = [
    "Ensemble",
    "Expectation",
    "Histogram",
    "Moments",
    "Observable",
    "Quantiles",
    "Statistic",
    "WeakErrors",
    "WeakOrder",
    "WeakOrderStudy",
    "ensemble",
    "expectation",
    "weak_errors",
    "weak_order",
]
