r"""The requested modes of the Hessian along a run, computed once per state for all observers that share them.

A mode is an eigenpair (λ_i, u_i) with the gradient's component gᵀu_i. The numbers are float64 on the CPU, independent
of θ's precision and device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flows.engines.recorder import LandscapeObserver
from flows.flow import flag_unconverged
from landscapes import Counted, UnsupportedError
from landscapes.errors import check_choice, check_count, check_positive
from landscapes.krylov import EigenpairTracker, FollowedPairs
from landscapes.krylov.ritz_pairs import WHICH


def check_real_theta(observer: LandscapeObserver, theta: Tensor) -> Tensor:
    """θ detached; raise unless it is real, of the observer's landscape, and has at least one member."""
    observer.landscape.check(theta)
    if theta.is_complex():
        raise UnsupportedError(
            f"observer {observer.name!r} takes real theta only, got {theta.dtype}: a complex Hessian has no real "
            "eigenvalues and orthogonal modes; run PrincipalFlow with branch='real', or observe theta.real in your "
            "own loop"
        )
    if theta.numel() == 0:
        raise ValueError(f"theta must have at least one member, got shape {tuple(theta.shape)}")
    return theta.detach()


def each_member(function: Callable[[int], dict[str, Tensor]], batch: torch.Size) -> dict[str, Tensor]:
    """The results of ``function`` for members 0 to n − 1, in the shape of the batch: name → (*batch, ...)."""
    if batch.numel() == 0:
        raise ValueError(f"theta must have at least one member, got none in shape {tuple(batch)}")
    found = [function(i) for i in range(batch.numel())]
    return {name: torch.stack([f[name] for f in found]).reshape((*batch, *found[0][name].shape)) for name in found[0]}


@dataclass(frozen=True)
class Modes:
    """The requested eigenpairs of one member at one state, and the gradient at it."""

    gradient: Tensor  # (d,)
    followed: FollowedPairs

    @property
    def eigenvalues(self) -> Tensor:
        """λ of the followed modes, (k,) float64 on the CPU."""
        return self.followed.values

    def components(self, gradient: Tensor) -> Tensor:
        """A gradient's components uᵀg along the followed modes, (k,) float64 on the CPU."""
        return (self.followed.vectors @ gradient).to("cpu", torch.float64)

    def remainder(self) -> Tensor:
        """The part of the gradient outside all modes, (d,)."""
        vectors = self.followed.vectors
        return self.gradient - (vectors @ self.gradient) @ vectors


class ModeFollower:
    r"""The memory of one run: an eigenpair tracker for each member, and the modes of the latest state.

    The first observer at a state computes its modes, the others reuse them at no cost. A state that does not come after
    the last one, or has another shape, starts a new run with an empty memory.
    """

    def __init__(self, count: int, which: str, tolerance: float, limit: int):
        self.count = check_count("count", count)
        self._options = {
            "which": check_choice("which", which, WHICH),
            "tolerance": check_positive("tolerance", tolerance),
            "limit": check_count("limit", limit, minimum=self.count),
        }
        self._trackers: list[EigenpairTracker] = []
        self._modes: list[Modes] = []
        self._asked: list[Counted] = []
        self._k = -1
        self._theta = torch.zeros(0)

    def find(self, counted: Counted, k: int, theta: Tensor) -> list[Modes]:
        """The modes of every member of real θ (..., d), computed by ``counted`` unless another observer has done so."""
        same = same_kind(theta, self._theta)
        # A second request by the same observer is no sharing: it is a new run that starts at the same k and θ.
        shared = same and k == self._k and counted not in self._asked and are_equal(theta, self._theta)
        if not shared:
            theta = theta.clone()  # a user's optimiser may step in place
            members = theta.reshape(-1, theta.shape[-1])
            if not (same and k > self._k):
                self._trackers = [EigenpairTracker(self.count, **self._options) for _ in members]  # type: ignore[arg-type]
            self._modes = [modes_at(counted, x, track) for x, track in zip(members, self._trackers, strict=True)]
            self._k, self._theta, self._asked = k, theta, []
            self._flag()
        self._asked.append(counted)
        return self._modes

    def _flag(self) -> None:
        pairs = [modes.followed.pairs for modes in self._modes]
        if not all(p.converged or bool(p.values.isnan().any()) for p in pairs):  # more products do not help a NaN
            flag_unconverged(
                f"eigenpairs: limit={self._options['limit']} HVPs did not reach tolerance "
                f"{self._options['tolerance']:g} at every state; give more, or a larger tolerance"
            )


def same_kind(theta: Tensor, other: Tensor) -> bool:
    """Whether two θ agree in shape, precision and device."""
    return (theta.shape, theta.dtype, theta.device) == (other.shape, other.dtype, other.device)


def are_equal(theta: Tensor, other: Tensor) -> bool:
    """Whether two θ of one shape are equal, with NaN equal to NaN."""
    return torch.allclose(theta, other, rtol=0, atol=0, equal_nan=True)


def modes_at(counted: Counted, theta: Tensor, track: EigenpairTracker) -> Modes:
    """The modes at θ (d,): one gradient and the tracker's HVPs."""
    point = counted.expand(theta)
    return Modes(point.grad, track(point.hvp, theta))
