r"""Stiff gradient flow, cost at equal error: python -m scripts.stiff [--only NAME …] [--rtols R …].

Gradient flow by exprb43, by torchdiffeq's explicit methods (rk4 at its largest stable step) and, on toys, by scipy's
LSODA, each for several tolerances: error at the end relative to a tight reference, gradients, Hessian-vector
products, and both in units of gradients, with 2.2 per HVP (reverse mode with the graph kept). Below each table: the
cheapest run of every method within an error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flows import GradientDescent, GradientFlow, Trajectory, descend, integrate
from flows.engines.counting import extreme_eigenvalue
from landscapes import Landscape, Rosenbrock

from .lab.command_line import exit_status_of, parse, use_threads
from .lab.network import NetGround

HVP = 2.2  # gradients
RK4 = 2.785  # |hλ| up to which rk4 is stable on the negative real axis
WITHIN = (1e-2, 1e-3, 1e-4, 1e-5)
Name = Literal["valley", "cnn", "cnn-start"]


@dataclass(frozen=True)
class StiffSettings:
    """Cases and lengths of the integrations."""

    only: tuple[Name, ...] = ("valley", "cnn", "cnn-start")
    """Cases: Rosenbrock's valley, the CNN past the edge of stability, the CNN from its random start."""
    stiffness: tuple[float, ...] = (1e4, 1e6)
    """b of Rosenbrock's valley."""
    valley_time: float = 0.15
    """Time along the valley."""
    h: float = 0.6
    """Learning rate of the gradient descent that brings the CNN to the edge."""
    steps: int = 300
    """Its steps."""
    cnn_time: float = 300.0
    """Time from there; a third of it from the random start."""
    examples: int = 300
    """Digits that the CNN is trained on."""
    rtols: tuple[float, ...] = (1e-2, 1e-3, 1e-5)
    """Relative tolerances; absolute ones are a hundredth of them."""
    max_steps: int = 3000
    """Largest number of steps of an adaptive method, and of gradients for rk4."""
    device: str = "cpu"
    """Device."""
    threads: int = 1
    """Threads of torch on the CPU."""


@dataclass(frozen=True)
class StiffRow:
    """One run: its error ‖θ − θ*‖/‖θ*‖ at the end and its cost."""

    method: str
    setting: str
    error: float
    gradients: float
    products: float
    status: str

    @property
    def equivalents(self) -> float:
        """Gradients and products, in gradients."""
        return self.gradients + HVP * self.products

    def __str__(self) -> str:
        error = "" if math.isnan(self.error) else f"{self.error:.1e}"
        return (
            f"{self.method:13} {self.setting:>12} {error:>9} {self.gradients:10.0f} {self.products:8.0f} "
            f"{self.equivalents:12.0f}  {self.status}"
        )


HEADER = f"{'method':13} {'':>12} {'error':>9} {'gradients':>10} {'HVPs':>8} {'as gradients':>12}  status"


def stiff_table(
    name: str, landscape: Landscape, theta0: Tensor, span: float, checks: Sequence[str], settings: StiffSettings
) -> list[StiffRow]:
    """Print and return the cost of every method from θ0 for ``span``, and its error relative to the reference.

    ``checks``: the methods of the tight runs, the first of them the reference.
    """
    flow = GradientFlow(landscape)
    tight = {method: reference(flow, theta0, span, method) for method in checks}
    end = tight[checks[0]]
    gaps = ", ".join(f"{m} {distance(tight[m], end):.1e}" for m in checks[1:])
    sharpness = max(abs(extreme_eigenvalue(landscape, theta) or 0.0) for theta in (theta0, end))
    print(
        f"\n{name}, t = {span:g}, λ up to {sharpness:.3g} at the ends; tight {checks[0]}, distance of {gaps}\n{HEADER}"
    )
    rows = []
    for method in ("exprb43", "dopri5", "bosh3", *(["scipy_solver"] if "scipy_solver" in checks else [])):
        for rtol in settings.rtols:
            run = integrate(
                flow, theta0, [0.0, span], method=method, rtol=rtol, atol=rtol / 100, max_steps=settings.max_steps
            )
            rows.append(row(method, f"rtol {rtol:.0e}", run, end))
            print(rows[-1], flush=True)
            if run.status != "finished":
                break  # stability limits the step: a tighter tolerance gives the same run
    rows.append(largest_stable_steps(flow, theta0, span, sharpness, end, settings.max_steps))
    print(rows[-1])
    print_cheapest(rows)
    return rows


def reference(flow: GradientFlow, theta0: Tensor, span: float, method: str) -> Tensor:
    """The end of a run at a tight tolerance: near rounding by LSODA and dopri5, affordably tight by exprb43."""
    rtol, atol = (1e-7, 1e-9) if method == "exprb43" else (1e-9, 1e-11)
    run = integrate(flow, theta0, [0.0, span], method=method, rtol=rtol, atol=atol)
    return run.check_finished(f"the reference run by {method}").theta[-1]


def distance(theta: Tensor, end: Tensor) -> float:
    """‖θ − θ*‖/‖θ*‖."""
    return float(torch.linalg.vector_norm(theta - end) / torch.linalg.vector_norm(end))


def row(method: str, setting: str, run: Trajectory, end: Tensor) -> StiffRow:
    """The row of a run."""
    finished = run.check_uninterrupted().complete
    error = distance(run.theta[-1], end) if finished else math.nan
    status = "finished" if finished else run.status.sentence.split(";")[0]
    return StiffRow(method, setting, error, run.cost["grad"], run.cost["hvp"], status)


def largest_stable_steps(
    flow: GradientFlow, theta0: Tensor, span: float, sharpness: float, end: Tensor, most: int
) -> StiffRow:
    """rk4 with the fewest equal steps that are stable for ``sharpness``; above the limit of steps their cost alone."""
    steps = max(1, math.ceil(span * sharpness / RK4))
    if 4 * steps > most:
        return StiffRow("rk4", f"dt {span / steps:.1e}", math.nan, 4 * steps, 0, "not run: the fewest stable steps")
    run = integrate(flow, theta0, [0.0, span], method="rk4", dt=span / steps)
    return row("rk4", f"dt {span / steps:.1e}", run, end)


def print_cheapest(rows: Sequence[StiffRow]) -> None:
    """For each error of ``WITHIN``, the cost of the cheapest run of each method within it."""
    for most in WITHIN:
        best: dict[str, float] = {}
        for run in rows:
            cheapest = min(best.get(run.method, math.inf), run.equivalents if run.error <= most else math.inf)
            best[run.method] = cheapest
        costs = ", ".join(
            f"{method} {cost:.0f}" if math.isfinite(cost) else f"{method} –" for method, cost in best.items()
        )
        print(f"within {most:.0e}, as gradients: {costs}")


def valley(settings: StiffSettings) -> None:
    """Rosenbrock's valley from its wall, along its floor."""
    for b in settings.stiffness:
        landscape = Rosenbrock(b=b)
        theta0 = torch.tensor(landscape.start, dtype=torch.float64, device=settings.device)
        checks = ["scipy_solver", "exprb43"]
        stiff_table(f"Rosenbrock's valley, b = {b:g}", landscape, theta0, settings.valley_time, checks, settings)


def cnn(settings: StiffSettings) -> None:
    """The demo's tanh CNN from an iterate of gradient descent at the edge of stability."""
    landscape, theta0 = network(settings)
    descent = GradientDescent(landscape, settings.h)
    theta = descend(descent, theta0, settings.steps, keep="last").check_finished("gradient descent").theta[-1]
    name = (
        f"CNN of {landscape.dimension} weights after {settings.steps} steps of gradient descent at h = {settings.h:g}"
    )
    stiff_table(name, landscape, theta, settings.cnn_time, ["dopri5", "exprb43"], settings)


def cnn_start(settings: StiffSettings) -> None:
    """The same network from its random start, where the flow curves most."""
    landscape, theta0 = network(settings)
    name = f"CNN of {landscape.dimension} weights from its random start"
    stiff_table(name, landscape, theta0, settings.cnn_time / 3, ["dopri5", "exprb43"], settings)


def network(settings: StiffSettings) -> tuple[Landscape, Tensor]:
    """LeNet with tanh on digits in float64, so that the error of the method dominates rounding."""
    ground = NetGround(architecture="lenet", data="digits", examples=settings.examples)
    return ground.build(0, torch.float64, settings.device)


CASES = {"valley": valley, "cnn": cnn, "cnn-start": cnn_start}


def run(settings: StiffSettings) -> None:
    """Print the selected tables."""
    use_threads(settings.threads)
    for name in settings.only:
        CASES[name](settings)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""
    return exit_status_of(lambda: run(parse(StiffSettings, arguments, f"python -m {__package__}.stiff", __doc__ or "")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
