"""Experiments that compare SGD with its stochastic differential equations."""
