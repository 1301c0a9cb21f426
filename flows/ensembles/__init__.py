r"""Streamed statistics of laws over many paths, with error bars."""

from flows.ensembles.extrapolation import Expectation, expectation
from flows.ensembles.quantiles import Quantiles
from flows.ensembles.runs import Ensemble, Observable, ensemble
from flows.ensembles.statistics import Histogram, Moments, Statistic
from flows.ensembles.weak import WeakErrors, weak_errors
from flows.ensembles.weak_ladder import WeakOrder
from flows.ensembles.weak_study import WeakOrderStudy, weak_order

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
