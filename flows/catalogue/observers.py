"""The observers: a row for every class of ``flows.observers``."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from flows.catalogue.descents import ROSCA
from flows.catalogue.rows import Cost, ObserverRow
from flows.observers.basic import Checkpoint, GradientNorm, Loss
from flows.observers.curvature import GradientCurvature, Sharpness, StabilityCoefficients, TopEigenpairs
from flows.observers.drift import Drift
from flows.observers.evaluation import Evaluation
from flows.observers.predictions import GradientPredictions

ITERATED = Cost(1, None)
MODES = 2  # eigenpairs of the examples


def names(prefix: str, words: str) -> tuple[str, ...]:
    """Names of observations with a common prefix."""
    return tuple(f"{prefix} {word}" for word in words.split(", "))


def evaluation(landscape: Any, h: float) -> Evaluation:
    """The sign of θ's components against ones, with the landscape's loss."""
    return Evaluation(landscape, lambda theta: theta, torch.ones(landscape.dimension, dtype=torch.long))


def pairs(landscape: Any) -> TopEigenpairs:
    """The two largest eigenpairs."""
    return TopEigenpairs(landscape, MODES)


CHANGES = "observed, gradient flow, modified flow, principal flow"
OBSERVERS: dict[str, ObserverRow] = {
    row.name: row
    for row in (
        ObserverRow(Loss, lambda f, h: Loss(f), ("loss",), "f(θ)", Cost(losses=1)),
        ObserverRow(GradientNorm, lambda f, h: GradientNorm(f), ("gradient norm",), "‖∇f‖", Cost(1)),
        ObserverRow(
            Checkpoint,
            lambda f, h: Checkpoint(tempfile.mkdtemp()),
            (),
            "nothing: writes the latest State to a file",
            Cost(),
            needs="a folder",
        ),
        ObserverRow(
            TopEigenpairs,
            lambda f, h: pairs(f),
            names(
                "top",
                "eigenvalues, residuals, errors, converged, products, order, followed eigenvalues, "
                "gradient components, overlaps",
            ),
            "the largest eigenvalues λ_i, and gᵀu_i along modes followed through crossings",
            ITERATED,
            real=True,
        ),
        ObserverRow(
            Sharpness,
            lambda f, h: Sharpness(f),
            ("sharpness", "sharpness residual", "sharpness converged"),
            "the largest eigenvalue of the Hessian",
            ITERATED,
            real=True,
            source="Cohen et al. 2021, arXiv 2103.00065",
        ),
        ObserverRow(
            StabilityCoefficients,
            lambda f, h: StabilityCoefficients(pairs(f), h),
            names(
                "stability",
                "eigenvalues, gradient components, coefficients, contributions, remainder, scaled eigenvalues, "
                "regimes, series hold",
            ),
            "α(hλ_i) and its share of dE/dt, hλ_i and its regime",
            Cost(1, None, note="those of the eigenpairs, shared"),
            needs="a TopEigenpairs, h",
            real=True,
            source=ROSCA,
        ),
        ObserverRow(
            GradientPredictions,
            lambda f, h: GradientPredictions(pairs(f), h),
            (
                *names("change of gradient components:", CHANGES),
                *names("change of loss:", CHANGES),
                *names("change before:", "eigenvalues, gradient components, remainder norm, remainder curvature"),
            ),
            "changes of gᵀu_i and of f since the last state, and three flows' predictions of them",
            Cost(1, None, losses=1, note="those of the eigenpairs, shared, and one loss and HVP"),
            needs="a TopEigenpairs, h",
            real=True,
            source=ROSCA,
        ),
        ObserverRow(
            GradientCurvature,
            lambda f, h: GradientCurvature(f),
            ("gradient curvature", "gradient curvature Hg norm"),
            "gᵀHg/‖g‖² and ‖Hg‖",
            Cost(1, 1),
            real=True,
        ),
        ObserverRow(
            Drift,
            Drift,
            names("drift", "measured, predicted, ratio"),
            "‖θ − h∇f − X(h; θ)‖, X gradient flow, and (h²/2)‖Hg‖",
            Cost(None, 1, note="dopri5's gradients, 7 if one step is enough, and one more"),
            needs="a landscape, h",
            source=ROSCA,
        ),
        ObserverRow(
            Evaluation,
            evaluation,
            ("test loss", "test accuracy"),
            "loss and accuracy on held-out data",
            Cost(losses=2),
            needs="the loss on those data, outputs, classes",
            real=True,
        ),
    )
}
"""The rows of all observers by the name of the class."""
