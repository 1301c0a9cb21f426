"""Observed orders of flows: errors along a ladder of learning rates, fitted slopes and their intervals."""

from flows.orders.fit import OrderFit, OrderStudy, fit_order
from flows.orders.ladder import Integration, Rung, global_order, one_step_order, settled_order

__all__ = [
    "Integration",
    "OrderFit",
    "OrderStudy",
    "Rung",
    "fit_order",
    "global_order",
    "one_step_order",
    "settled_order",
]
