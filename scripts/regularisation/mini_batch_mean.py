"""The mean over runs of many epochs, between its predictions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..lab.experiment import align_rows
from .kinds import PREDICTIONS, SAMPLINGS


@dataclass(frozen=True)
class Mean:
    """The mean of R runs of SGD at the ends of epochs, and the predictions (E + 1, d) at those times."""

    sampling: str
    times: Tensor
    runs: Tensor
    predictions: dict[str, Tensor]
    scattered: Tensor
    """(E + 1, d): the flow of the sampling's own modified loss under the drift of the runs' scatter."""

    @property
    def mean(self) -> Tensor:
        """The mean over the runs, (E + 1, d)."""
        return self.runs.mean(dim=0)

    @property
    def standard_error(self) -> Tensor:
        """√(tr Cov / R), (E + 1,): root mean square distance of the mean from its expectation."""
        return (self.runs.var(dim=0).sum(dim=-1) / len(self.runs)).sqrt()

    def distances(self, prediction: str) -> tuple[Tensor, Tensor]:
        """‖mean − prediction‖ and its standard error, that of the runs along the line between the two; (E + 1,)."""
        away = self.mean - self.predictions[prediction]
        length = torch.linalg.vector_norm(away, dim=-1)
        # at t = 0 mean and prediction are equal: 0/0 becomes 0
        along = torch.einsum("red,ed->re", self.runs - self.mean, away / length.clamp(min=1e-300)[:, None])
        return length, along.std(dim=0) / len(self.runs) ** 0.5

    def coordinates(self, states: Tensor) -> Tensor:
        """(a, b) as in the docstring of mini_batch.py, of states (..., E + 1, d) at the ends of epochs, (..., E, 2)."""
        plain, norm, variance = (self.predictions[name][1:] for name in PREDICTIONS)
        basis = torch.stack([norm - plain, variance - norm], dim=-1)  # (E, d, 2)
        return torch.einsum("ekd,...ed->...ek", torch.linalg.pinv(basis), states[..., 1:, :] - plain)

    def place(self) -> tuple[Tensor, Tensor]:
        """(a, b) of the mean at the ends of epochs, and their standard errors, (E, 2) each."""
        each = self.coordinates(self.runs)
        return each.mean(dim=0), each.std(dim=0) / len(self.runs) ** 0.5

    def table(self) -> str:
        """A row for each epoch."""
        place, errors = self.place()
        expected = self.coordinates(self.scattered)
        shown = {name: self.distances(name) for name in PREDICTIONS}
        heading = ["epoch", "t", *PREDICTIONS.values(), "noise of the mean", "a", "b"]
        rows = [[*heading, "a with scatter", "b with scatter"]]
        for e in range(1, len(self.times)):
            away = [f"{float(far[e]):.2e} ± {float(error[e]):.0e}" for far, error in shown.values()]
            ours = [f"{float(x):.3f} ± {float(s):.3f}" for x, s in zip(place[e - 1], errors[e - 1], strict=True)]
            theirs = [f"{float(x):.3f}" for x in expected[e - 1]]
            noise = f"{float(self.standard_error[e]):.1e}"
            rows.append([str(e), f"{float(self.times[e]):.3g}", *away, noise, *ours, *theirs])
        caption = f"{SAMPLINGS[self.sampling]}, mean of {len(self.runs)} runs: distance to a small rate on"
        return f"{caption}\n{align_rows(rows)}"
