"""The runs of full-batch descents and flows, with and without a penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from flows import Descent, GradientDescent, GradientFlow, integrate
from flows.observers import Evaluation, GradientNorm, Loss, Observer, Sharpness
from flows.orders.fit import OrderStudy
from flows.orders.ladder import MAX_STEPS, Integration
from landscapes import FiniteSum
from landscapes.wrappers.gradient_penalties import GradientPenalty
from nets import NetworkLandscape

from ..lab.experiment import align_rows
from ..lab.store import Store, Tensors
from .common import (
    OnNetwork,
    counted_descent,
    distance,
    format_number,
    study,
)
from .kinds import FLOWS, KINDS, PAIRS, Pair, label_of, pair_label

SEEN = ("loss", "gradient norm", "test loss", "test accuracy")


LOOKS = 16  # measurements of the sharpness along the run


class Runs:
    """The runs of one configuration: along t at the rate H, and their ends for every rung of the ladder."""

    def __init__(self, store: Store, options: OnNetwork, steps: int, landscape: FiniteSum, theta0: Tensor, rate: float):
        self.store, self.options, self.steps, self.rate = store, options, steps, rate
        self.landscape, self.theta0 = landscape, theta0
        eps = torch.finfo(theta0.dtype).eps
        rtol = max(1e-9, 50 * eps)
        self._integration = Integration("dopri5", rtol, max(rtol / 1000, eps / 2))

    @cached_property
    def main(self) -> dict[str, Tensors]:
        """Every run at the rate H, with states and observations at t = kH."""
        if not bool(self._observed_run("large")["finished"]):
            raise ArithmeticError(f"descent at H = {self.rate:g} became non-finite: give a smaller --rate")
        return {name: self._observed_run(name) for name in KINDS} | {name: self._observed_flow(name) for name in FLOWS}

    def _observed_run(self, name: str) -> Tensors:
        every = self.options.slowdown if KINDS[name].small else 1
        observers = self._observers(every)
        if name == "large":
            observers.append(Sharpness(self.landscape, every=max(1, self.steps // LOOKS)))
        steps = self.steps
        return self._descend(name, self.rate, steps, f"along-{name}", every=every, observers=observers)

    def _observers(self, every: int) -> list[Observer]:
        test, targets = self._test
        seen = Evaluation(test, test.outputs, targets, every=every)
        return [Loss(self.landscape, every), GradientNorm(self.landscape, every), seen]

    @cached_property
    def _test(self) -> tuple[NetworkLandscape, Tensor]:
        options = self.options
        return options.ground.test_part(options.seed, options.real, options.device)

    def _descend(
        self, name: str, rate: float, steps: int, part: str, *, every: int, observers: Sequence[Observer] = ()
    ) -> Tensors:
        kind, r = KINDS[name], self.options.slowdown
        small = rate / r
        build = partial(descent_on, c=kind.coefficient(rate, small), h=small if kind.small else rate)
        count = steps * r if kind.small else steps
        return counted_descent(
            self.store, part, build, self.landscape, self.theta0, count, every=every, observers=observers
        )

    def _flow(self, name: str, rate: float) -> GradientFlow:
        """Gradient flow of f, or of f + (H/4)‖∇f‖²."""
        return GradientFlow(with_penalty(self.landscape, rate / 4 if name == "penalised-flow" else 0.0))

    def _observed_flow(self, name: str) -> Tensors:
        times = [k * self.rate for k in range(self.steps + 1)]

        def compute() -> Tensors:
            told = self._integration.arguments(self.rate, self.theta0.dtype, False)
            flow = self._flow(name, self.rate)
            told["max_steps"] = MAX_STEPS
            run = integrate(flow, self.theta0, times, observers=self._observers(1), **told).check_uninterrupted()
            seen = {key: values for key, (_, values) in run.observations.items()}
            return {"theta": run.theta, "times": run.times, "finished": torch.tensor(run.complete), **seen}

        return self.store.part(f"along-{name}", compute)

    def end(self, name: str, rate: float, steps: int) -> Tensor:
        """End of a run of that rate at T, (d,); NaN if it failed."""
        count = steps * (self.options.slowdown if KINDS[name].small else 1)
        run = self._descend(name, rate, steps, f"end-{name}-{rate:.12g}", every=count)
        theta = run["theta"][-1].to(self.theta0.device)
        return theta if bool(run["finished"]) else torch.full_like(theta, torch.nan)

    def flow_end(self, name: str, rate: float) -> tuple[Tensor, float]:
        """End of a flow at T, and its distance to the end of a looser integration."""
        time = self.rate * self.steps

        def compute() -> Tensors:
            ends = []
            for looser in (False, True):
                told = self._integration.arguments(self.rate, self.theta0.dtype, looser)
                told["max_steps"] = MAX_STEPS + 20 * self.steps
                run = integrate(self._flow(name, rate), self.theta0, [0.0, time], keep="last", **told)
                whole = run.check_uninterrupted().complete
                ends.append(run.theta[-1] if whole else torch.full_like(self.theta0, torch.nan))
            return {"theta": torch.stack(ends)}

        part = "end-flow" if name == "flow" else f"end-{name}-{rate:.12g}"
        tight, loose = self.store.part(part, compute)["theta"].to(self.theta0.device)
        return tight, float(torch.linalg.vector_norm(tight - loose))

    def studies(self, ladder: Sequence[float], steps: Sequence[int], sharpness: float) -> dict[Pair, OrderStudy]:
        """The distances at T along the ladder; a discrete run has no integration error."""
        rungs = list(zip(ladder, steps, strict=True))
        ends = {name: [(self.end(name, rate, count), 0.0) for rate, count in rungs] for name in KINDS}
        ends |= {name: [self.flow_end(name, rate) for rate in ladder] for name in FLOWS}
        found = {}
        for one, other in PAIRS:
            pairs = list(zip(ends[one], ends[other], strict=True))
            errors = [float(torch.linalg.vector_norm(a - b)) for (a, _), (b, _) in pairs]
            apart = [gap + other_gap for (_, gap), (_, other_gap) in pairs]
            found[one, other] = study(ladder, errors, apart, self.theta0, sharpness, pair_label((one, other)))
        return found

    def table(self) -> str:
        """State of every run at T, its cost, and its distances to descent at H and to gradient flow."""
        heading = ["run", "rate", "steps", "gradients", "HVPs", "loss", "‖∇f‖", "test loss", "test accuracy"]
        rows = [[*heading, *(f"to {label_of(other)}" for other in ("large", "flow"))]]
        for name, run in self.main.items():
            shown, ended = [label_of(name), "", "", "", ""], bool(run["finished"])
            if name in KINDS:
                r = self.options.slowdown if KINDS[name].small else 1
                # the counts of a failed run include the evaluations that diagnosed the failure
                costs = [f"{float(run[key]):g}" if ended else "–" for key in ("gradients", "products")]
                shown = [label_of(name), f"{self.rate / r:g}", str(self.steps * r), *costs]
            ends = [float(run[key][-1]) if ended else math.nan for key in SEEN]
            shown += ["–" if math.isnan(end) else f"{end:#.5g}" for end in ends[:-1]]
            shown.append("–" if math.isnan(ends[-1]) else f"{100 * ends[-1]:.1f} %")
            away = [self.distances_of(name, other)[-1] if ended else torch.nan for other in ("large", "flow")]
            rows.append([*shown, *(format_number(float(x)) for x in away)])
        return align_rows(rows)

    def distances_of(self, name: str, other: str) -> Tensor:
        """The distance of two runs at t = kH, (T,)."""
        return distance(self.main[name]["theta"], self.main[other]["theta"])


def with_penalty(landscape: FiniteSum, c: float) -> FiniteSum:
    """f + c‖∇f‖²; f itself for c = 0, which saves the products."""
    return GradientPenalty(landscape, c) if c else landscape  # type: ignore[return-value]  # a finite sum stays one


def descent_on(landscape: FiniteSum, *, c: float, h: float) -> Descent:
    """Gradient descent of rate h on f + c‖∇f‖²."""
    return GradientDescent(with_penalty(landscape, c), h)
