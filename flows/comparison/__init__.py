"""Flows beside the descent that they model, on one clock: errors, laws, cost, table and figure."""

from flows.comparison.result import Comparison

__all__ = ["Comparison"]
