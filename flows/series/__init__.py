r"""Backward error analysis in exact arithmetic: rooted trees, modified equations, and programs that evaluate them."""

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
    "heavy_ball_multistep",
    "modified_equation",
    "nesterov_multistep",
    "rooted_trees",
    "runge_kutta",
    "tree",
]
