r"""Backward error analysis in exact arithmetic: rooted trees, modified equations, and programs to evaluate them."""

from flows.series.expressions import (
    field_expressions,
    field_terms,
    modified_gradient_flow,
    modified_momentum_flow,
    principal_coefficient_series,
    principal_part,
    stability_function,
)
from flows.series.landscape import landscape_program, landscape_terms
from flows.series.latex import latex_field, latex_landscape
from flows.series.methods import EULER, HEAVY_BALL, NESTEROV, ExplicitMethod, runge_kutta
from flows.series.modified import Multistep, Series, heavy_ball_multistep, modified_equation, nesterov_multistep
from flows.series.program import Program, compile_program
from flows.series.trees import Tree, rooted_trees, tree

__all__ = [
    "EULER",
    "HEAVY_BALL",
    "NESTEROV",
    "ExplicitMethod",
    "Multistep",
    "Program",
    "Series",
    "Tree",
    "compile_program",
    "field_expressions",
    "field_terms",
    "heavy_ball_multistep",
    "landscape_program",
    "landscape_terms",
    "latex_field",
    "latex_landscape",
    "modified_equation",
    "modified_gradient_flow",
    "modified_momentum_flow",
    "nesterov_multistep",
    "principal_coefficient_series",
    "principal_part",
    "rooted_trees",
    "runge_kutta",
    "stability_function",
    "tree",
]
