"""Toys in closed form, each with its critical points and a window to draw it in.

By kind: ``quadratic``, ``separable``, ``surfaces``, ``valleys``, ``linear_nets``, ``spherical``; finite sums of them
and any sympy expression. ``registry.LANDSCAPES`` names all. Parameters are real numbers, checked on construction
(TypeError or ValueError); θ (..., d) may have any floating or complex dtype, on any device.
"""
