"""Toys in closed form, each with its critical points and a plotting window.

By kind: ``quadratic``, ``separable``, ``surfaces``, ``valleys``, ``linear_nets``, ``spherical``; also finite sums of
quadratics and arbitrary sympy expressions. ``registry.LANDSCAPES`` lists the toys by name. Parameters are real numbers,
checked on construction (TypeError or ValueError); θ (..., d) may have any floating or complex dtype, on any device.
"""
