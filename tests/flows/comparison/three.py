"""The flows that most comparisons are made with."""

from flows import GradientFlow, ModifiedFlow, PrincipalFlow


def three(landscape, h):
    """Gradient flow, the modified flow of order 2 and the principal flow."""
    return {"GF": GradientFlow(landscape), "MF2": ModifiedFlow(landscape, h, 2), "PF": PrincipalFlow(landscape, h)}
