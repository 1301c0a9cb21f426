r"""Observed orders of flows against a descent: python -m scripts.orders LANDSCAPE [options].

Errors of one step (and, with --time, at a fixed time) along a ladder of learning rates, each with its integration
error; orders with their intervals, and where asymptotics end. Every rung is on disk as soon as it is measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flows.engines.solvers import FIXED
from flows.orders.figure import plot_orders
from flows.orders.fit import OrderStudy
from flows.orders.ladder import (
    STATUSES,
    Integration,
    Rung,
    check_ladder,
    deterministic,
    measured_rung,
    settled_rung,
    sharpness_at,
    study_of,
)
from landscapes.errors import check_count, check_positive

from .lab.command_line import DTYPES, check_device, exit_status_of, parse, use_threads
from .lab.experiment import align_rows
from .lab.grounds import AnyGround
from .lab.models import DENSE, DESCENTS, FLOW_NAMES, Options, descent_by_name, flow_by_name
from .lab.network import NetGround
from .lab.starts import build_start, describe
from .lab.store import Store, Tensors

BANNER = f"""Observed orders of flows against a discrete optimiser, along a ladder of learning rates.

Choose what is descended as a subcommand; options follow it. Flows: {", ".join(FLOW_NAMES)}. Descents:
{", ".join(name for name in DESCENTS if name != "sgd")}, or a class of torch.optim such as Adam. The table is printed;
table.txt, orders.json (settings and data) and orders.png go to --out, where a run that was stopped goes on."""
TOYS = ("gradient", "modified-2", "modified-3", "principal")
# Options that leave a rung's figures as they are: rungs are kept by flow and learning rate, so more can be added.
ELSEWHERE = {"ground", "flows", "ladder", "rungs", "largest", "ratio", "time", "settle", "device", "threads", "out"}


@dataclass(frozen=True)
class Settings:
    """What to study."""

    ground: AnyGround
    """What is descended."""
    descent: str = "gd"
    """Descent that flows are held against."""
    flows: tuple[str, ...] | None = None
    """Flows to study; a network's preset, else gradient, modified-2, modified-3 and principal."""
    ladder: tuple[float, ...] | None = None
    """Learning rates; by default geometric, from --largest down."""
    rungs: int = 8
    """Rungs of the default ladder."""
    largest: float = 0.5
    """hλ of its largest rung, λ the Hessian's eigenvalue of largest magnitude at the start."""
    ratio: float = 0.5
    """Each of its rungs over the one before."""
    time: float | None = None
    """Also study errors at this time, where each rung becomes the nearest learning rate that divides it."""
    settle: float | None = None
    """Study one-step errors from where the descent is at this time: flows of a fixed momentum ask for it."""
    starts: int = 1
    """Starts, whose largest error counts: θ0 and random ones around it."""
    spread: float = 0.1
    """Their distance from θ0 over ‖θ0‖ (√d where θ0 is 0), root mean square."""
    theta0: tuple[float, ...] | None = None
    """Start; the landscape's own by default."""
    momentum: float = 0.9
    """Momentum of heavy-ball and nesterov, and of their flows."""
    friction: float = 1.0
    """Friction of scaled-heavy-ball and scaled-nesterov, and of their flows."""
    branch: Literal["auto", "complex", "real"] = "auto"
    """Branch of the principal flow; auto is complex where the loss is holomorphic, else real."""
    krylov: int | None = None
    """Most HVPs of a principal-flow evaluation; by default the dense Hessian up to 64 weights, 30 HVPs beyond."""
    krylov_tolerance: float | None = None
    """Relative change at which the Krylov space stops growing, an error that no integration sees; 1e-8 in float64,
    1e-5 in float32."""
    method: str | None = None
    """Integration method; dopri8 on landscapes of up to 64 weights, else dopri5."""
    rtol: float | None = None
    """Relative tolerance of adaptive methods; 1e-13 on landscapes of up to 64 weights, else 1e-8; 50 eps at least."""
    atol: float | None = None
    """Absolute tolerance of adaptive methods; eps/2, or beyond 64 weights a thousandth of rtol where that is more."""
    substeps: int | None = None
    """Steps of fixed-step methods in one of h (half as long in the tight run)."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, …"""
    threads: int | None = None
    """Threads on the CPU, torch's own choice by default; small networks gain nothing from a second one."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision."""
    seed: int = 0
    """Seeds weights, data limits and starts."""
    out: Path = Path("results/orders")
    """Folder for table, data and figure."""


@dataclass(frozen=True)
class Study:
    """One kind of study: its name on disk, its rungs with their steps, and what its errors are called."""

    name: str
    rungs: Mapping[float, int]
    quantity: str
    measure: Callable[..., Rung] = measured_rung


class Plan:
    """What the settings come to: landscape, starts, ladder, and the maps h → descent and (name, h) → flow."""

    def __init__(self, settings: Settings):
        self.settings = settings
        real = DTYPES[settings.dtype]
        self.landscape, default = settings.ground.build(settings.seed, real, settings.device)
        self.theta0 = starts_of(settings, build_start(settings.theta0, self.landscape, default))
        self.integration = integration_of(settings, self.landscape.dimension)
        self.options = options_of(settings)
        self.sharpness = sharpness_at(self.landscape, self.theta0)
        self.ladder = ladder_of(settings, self.sharpness)
        network = settings.ground if isinstance(settings.ground, NetGround) else None
        self.names = settings.flows or (network.chosen.flows if network else TOYS)
        deterministic(self.descent(self.ladder[0]))
        for name in self.names:
            self.flow(name, self.ladder[0])  # a wrong name is told before anything is run

    def descent(self, h: float) -> Any:
        """The descent at that learning rate."""
        return descent_by_name(self.settings.descent, self.landscape, h, self.options)

    def flow(self, name: str, h: float) -> Any:
        """The flow of that name at that learning rate."""
        return flow_by_name(name, self.landscape, h, self.options)

    def studies(self) -> list[Study]:
        """One-step errors, from the start or a time given, and errors at a fixed time where one is given."""
        settings = self.settings
        one = Study("one-step", dict.fromkeys(self.ladder, 1), "one-step error")
        if settings.settle is not None:
            rungs, since = self.dividing("settle", settings.settle), f"{settings.settle:.12g}"
            one = Study(f"from-{since}", rungs, f"one-step error from t = {settings.settle:.4g}", settled_rung)
        if settings.time is None:
            return [one]
        rungs = self.dividing("time", settings.time)
        return [one, Study(f"time-{settings.time:.12g}", rungs, f"error at t = {settings.time:.4g}")]

    def dividing(self, name: str, time: float) -> dict[float, int]:
        """The ladder's nearest learning rates that divide a time, with their steps to it."""
        counts = sorted({max(1, round(check_positive(name, time) / h)) for h in self.ladder})
        if len(counts) < 2:
            raise ValueError(f"--{name} must be long enough for two rungs to divide it differently, got {time!r}")
        return {time / n: n for n in counts}

    def measure(self, store: Store, study: Study, name: str) -> OrderStudy:
        """The study of one flow: rungs read where they are on disk, else measured."""
        rungs = []
        for h, steps in study.rungs.items():
            measured = partial(
                study.measure, partial(self.flow, name), self.descent, self.theta0, h, steps, self.integration
            )
            part = store.part(f"{study.name}-{name}-{h:.12g}", partial(stored, measured))
            error, apart = part["figures"].tolist()
            rungs.append(Rung(h, error, apart, STATUSES[int(part["status"])]))
        return study_of(rungs, self.theta0, self.sharpness, study.quantity, max(study.rungs.values()))


def stored(measured: Callable[[], Rung]) -> Tensors:
    """A rung as it is kept on disk."""
    rung = measured()
    figures = torch.tensor([rung.error, rung.integration_error], dtype=torch.float64)
    return {"figures": figures, "status": torch.tensor(STATUSES.index(rung.status))}


def starts_of(settings: Settings, theta0: Tensor) -> Tensor:
    """θ0 (d,) alone, or with random starts around it (n, d)."""
    if check_count("starts", settings.starts) == 1:
        return theta0
    size = float(torch.linalg.vector_norm(theta0)) or math.sqrt(theta0.numel())
    scale = check_positive("spread", settings.spread) * size / math.sqrt(theta0.numel())
    generator = torch.Generator().manual_seed(settings.seed)
    moves = torch.randn(settings.starts, theta0.numel(), generator=generator, dtype=torch.float64)
    moves[0] = 0
    return theta0 + scale * moves.to(theta0)


def integration_of(settings: Settings, dimension: int) -> Integration:
    """How rungs are integrated: near rounding on small landscapes, in few evaluations on networks."""
    method = settings.method or ("dopri8" if dimension <= DENSE else "dopri5")
    rtol, atol = settings.rtol, settings.atol
    if dimension > DENSE and method not in FIXED:
        eps = torch.finfo(DTYPES[settings.dtype]).eps
        rtol = max(1e-8, 50 * eps) if rtol is None else rtol
        atol = max(rtol / 1000, eps / 2) if atol is None else atol
    return Integration(method, rtol, atol, settings.substeps)


def options_of(settings: Settings) -> Options:
    """What models take beyond landscape and learning rate."""
    tolerance = settings.krylov_tolerance
    if tolerance is None:
        tolerance = 1e-8 if settings.dtype == "float64" else 1e-5
    return Options(settings.branch, settings.krylov, tolerance, settings.momentum, settings.friction)


def ladder_of(settings: Settings, sharpness: float) -> list[float]:
    """Learning rates, falling: as given, or geometric from --largest/λ, of three digits."""
    if settings.ladder is not None:
        return check_ladder(settings.ladder)
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ValueError("--ladder must be given: the Hessian at the start has no eigenvalue to scale one by")
    if not 0 < check_positive("ratio", settings.ratio) < 1:
        raise ValueError(f"--ratio must lie between 0 and 1, got {settings.ratio!r}")
    largest = float(f"{check_positive('largest', settings.largest) / sharpness:.3g}")
    return [largest * settings.ratio**k for k in range(check_count("rungs", settings.rungs, minimum=2))]


def configuration(settings: Settings) -> dict[str, Any]:
    """What a rung's figures depend on."""
    said = {key: value for key, value in dataclasses.asdict(settings).items() if key not in ELSEWHERE}
    ground = {key: value for key, value in dataclasses.asdict(settings.ground).items() if key != "root"}  # type: ignore[call-overload]
    return {"landscape": type(settings.ground).__name__, "ground": ground, **said}


def summary(studies: Mapping[str, OrderStudy]) -> str:
    """A row for each flow: its order, the interval, where asymptotics end, and the share of integration."""
    rows = [
        ["flow", "fitted order", "95 % interval", "asymptotics end at h", "hλ there", "trusted", "integration/error"]
    ]
    for name, study in studies.items():
        shares = [
            i / e for e, i, t in zip(study.errors, study.integration_errors or (), study.trusted, strict=True) if t
        ]
        fit = study.fit
        found = ["–"] * 4 if fit is None else [f"{fit.order:.4f}", f"[{fit.low:.4f}, {fit.high:.4f}]"]
        if fit is not None:
            found += [f"{study.asymptotic_end:.4g}", f"{study.asymptotic_end * study.sharpness:.3g}"]
        trusted = f"{sum(study.trusted)} of {len(study.ladder)}"
        rows.append([name, *found, trusted, f"{max(shares):.1e}" if shares else "–"])
    return align_rows(rows)


def data_of(study: OrderStudy) -> dict[str, Any]:
    """A study as JSON: what was measured and what was read off it."""
    fit = None if study.fit is None else dataclasses.asdict(study.fit)
    read = {"slopes": study.slopes, "trusted": study.trusted, "fit": fit, "asymptotic_end": study.asymptotic_end}
    return without_nan({**dataclasses.asdict(study), **read, "order": study.order})


def without_nan(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON has not."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run(settings: Settings) -> None:
    """Measure, print, save, draw."""
    check_device(settings.device)
    use_threads(settings.threads)
    plan = Plan(settings)
    kinds = plan.studies()
    store = Store(settings.out, configuration(settings))
    heading = (
        f"{describe(settings.ground, plan.landscape)}: λ = {plan.sharpness:.4g} at {settings.starts} start"
        f"{'s' if settings.starts > 1 else ''}, against {settings.descent}"
    )
    results: dict[str, dict[str, OrderStudy]] = {}
    blocks = [heading]
    for kind in kinds:
        results[kind.name] = {name: plan.measure(store, kind, name) for name in plan.names}
        blocks += [f"{name}\n{study}" for name, study in results[kind.name].items()]
    blocks += [f"{kind.quantity}\n{summary(results[kind.name])}" for kind in kinds]
    store.table("\n\n".join(blocks))
    said = {
        "configuration": {**configuration(settings), "threads": settings.threads, "torch": torch.__version__},
        "studies": {kind: {name: data_of(study) for name, study in found.items()} for kind, found in results.items()},
    }
    (store.folder / "orders.json").write_text(json.dumps(said, default=str, indent=2) + "\n")
    print(f"figure: {plot_orders(list(results.values()), store.folder / 'orders.png')}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about bad input."""
    settings = parse(Settings, arguments, f"python -m {__package__}.orders", BANNER)
    return exit_status_of(lambda: run(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
