r"""Observed orders of flows compared with a descent: python -m scripts.orders LANDSCAPE [options].

Errors of one step (and, with --time, at a fixed time) for decreasing learning rates, each with its integration error;
orders with their intervals, and the end of the asymptotic range. Every rung is written to disk when it is measured.
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

from flows.engines.methods import FIXED
from flows.engines.storage import FolderError, write_text
from flows.orders.figure import plot_orders
from flows.orders.fit import OrderStudy
from flows.orders.ladder import (
    STATUSES,
    Integration,
    Rung,
    check_deterministic,
    check_ladder,
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

BANNER = f"""Observed orders of flows compared with a discrete optimiser, for decreasing learning rates.

Choose a landscape as a subcommand; options follow it. Flows: {", ".join(FLOW_NAMES)}. Descents:
{", ".join(name for name in DESCENTS if name != "sgd")}, or a class of torch.optim such as Adam. The table is printed;
table.txt, orders.json (settings and data) and orders.png are written to --out, where an interrupted run resumes."""
TOYS = ("gradient", "modified-2", "modified-3", "principal")
# Options without influence on a rung: rungs are stored by flow and learning rate, so that more can be added.
ELSEWHERE = {"ground", "flows", "ladder", "rungs", "largest", "ratio", "time", "settle", "device", "threads", "out"}


@dataclass(frozen=True)
class OrdersSettings:
    """Options of a study of orders."""

    ground: AnyGround
    """The landscape."""
    descent: str = "gd"
    """Descent that the flows are compared with."""
    flows: tuple[str, ...] | None = None
    """Flows to study; default: the network's preset, else gradient, modified-2, modified-3 and principal."""
    ladder: tuple[float, ...] | None = None
    """Learning rates; default: geometric, from --largest down."""
    rungs: int = 8
    """Rungs of the default ladder."""
    largest: float = 0.5
    """hλ of the largest rung of the default ladder, λ the Hessian's eigenvalue of largest magnitude at the start."""
    ratio: float = 0.5
    """Ratio of a rung of the default ladder to the one before."""
    time: float | None = None
    """Also study errors at this time; each rung becomes the nearest learning rate that divides it."""
    settle: float | None = None
    """Study one-step errors from the descent's state at this time: flows with fixed momentum need it."""
    starts: int = 1
    """Number of starts, θ0 and random ones around it; the largest error counts."""
    spread: float = 0.1
    """Root mean square distance of the random starts from θ0, over ‖θ0‖ (√d if θ0 is 0)."""
    theta0: tuple[float, ...] | None = None
    """Start; default: that of the landscape."""
    momentum: float = 0.9
    """Momentum of heavy-ball and nesterov, and of their flows."""
    friction: float = 1.0
    """Friction of scaled-heavy-ball and scaled-nesterov, and of their flows."""
    branch: Literal["auto", "complex", "real"] = "auto"
    """Branch of the principal flow; auto: complex if the loss is holomorphic, else real."""
    krylov: int | None = None
    """Largest number of HVPs of a principal-flow evaluation; default: dense Hessian up to 64 weights, 30 HVPs above."""
    krylov_tolerance: float | None = None
    """Relative change at which the Krylov space stops growing, an error that the integration error does not include;
    1e-8 in float64, 1e-5 in float32."""
    method: str | None = None
    """Integration method; default: dopri8 on landscapes of up to 64 weights, else dopri5."""
    rtol: float | None = None
    """Relative tolerance of adaptive methods; default: 1e-13 up to 64 weights, else 1e-8; at least 50 eps."""
    atol: float | None = None
    """Absolute tolerance of adaptive methods; default: eps/2, above 64 weights rtol/1000 if that is larger."""
    substeps: int | None = None
    """Steps of fixed-step methods in one of h (twice as many in the tight run)."""
    device: str = "cpu"
    """Device: cpu, cuda, cuda:1, …"""
    threads: int | None = None
    """Threads on the CPU; default: torch's choice. Small networks are not faster with more than one."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision."""
    seed: int = 0
    """Seed of weights, choice of data and starts."""
    out: Path = Path("results/orders")
    """Folder for table, data and figure."""


@dataclass(frozen=True)
class StudyKind:
    """One kind of study: its name on disk, its rungs with their steps, and the name of its errors."""

    name: str
    rungs: Mapping[float, int]
    quantity: str
    measure: Callable[..., Rung] = measured_rung


class OrdersSetup:
    """Objects built from the settings: landscape, starts, ladder, and the maps h → descent and (name, h) → flow."""

    def __init__(self, settings: OrdersSettings):
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
        check_deterministic(self.descent(self.ladder[0]))
        for name in self.names:
            self.flow(name, self.ladder[0])  # report an unknown name before the first run

    def descent(self, h: float) -> Any:
        """The descent at that learning rate."""
        return descent_by_name(self.settings.descent, self.landscape, h, self.options)

    def flow(self, name: str, h: float) -> Any:
        """The flow of that name at that learning rate."""
        return flow_by_name(name, self.landscape, h, self.options)

    def studies(self) -> list[StudyKind]:
        """One-step errors, from the start or from --settle, and errors at --time if it is given."""
        settings = self.settings
        one = StudyKind("one-step", dict.fromkeys(self.ladder, 1), "one-step error")
        if settings.settle is not None:
            rungs, since = self.dividing_rates("settle", settings.settle), f"{settings.settle:.12g}"
            one = StudyKind(f"from-{since}", rungs, f"one-step error from t = {settings.settle:.4g}", settled_rung)
        if settings.time is None:
            return [one]
        rungs = self.dividing_rates("time", settings.time)
        return [one, StudyKind(f"time-{settings.time:.12g}", rungs, f"error at t = {settings.time:.4g}")]

    def dividing_rates(self, name: str, time: float) -> dict[float, int]:
        """The learning rates that divide a time, nearest to the ladder's, with their numbers of steps."""
        counts = sorted({max(1, round(check_positive(name, time) / h)) for h in self.ladder})
        if len(counts) < 2:
            raise ValueError(f"--{name} must be long enough for two rungs to divide it differently, got {time!r}")
        return {time / n: n for n in counts}

    def measure(self, store: Store, study: StudyKind, name: str) -> OrderStudy:
        """The study of one flow: rungs are read from disk if present, else measured."""
        rungs = []
        for h, steps in study.rungs.items():
            measured = partial(
                study.measure, partial(self.flow, name), self.descent, self.theta0, h, steps, self.integration
            )
            part = store.part(f"{study.name}-{name}-{h:.12g}", partial(tensors_of, measured))
            error, apart = part["figures"].tolist()
            status = STATUSES[int(part["status"])]
            if status == "interrupted":  # stored by an early version
                file = store.folder / f"{study.name}-{name}-{h:.12g}.safetensors"
                raise FolderError(f"{str(file)!r} holds a rung that was interrupted; remove it to measure it again")
            rungs.append(Rung(h, error, apart, status))
        return study_of(rungs, self.theta0, self.sharpness, study.quantity, max(study.rungs.values()))


def tensors_of(measured: Callable[[], Rung]) -> Tensors:
    """A measured rung as tensors."""
    rung = measured()
    figures = torch.tensor([rung.error, rung.integration_error], dtype=torch.float64)
    return {"figures": figures, "status": torch.tensor(STATUSES.index(rung.status))}


def starts_of(settings: OrdersSettings, theta0: Tensor) -> Tensor:
    """θ0 (d,) alone, or with random starts around it (n, d)."""
    if check_count("starts", settings.starts) == 1:
        return theta0
    size = float(torch.linalg.vector_norm(theta0)) or math.sqrt(theta0.numel())
    scale = check_positive("spread", settings.spread) * size / math.sqrt(theta0.numel())
    generator = torch.Generator().manual_seed(settings.seed)
    moves = torch.randn(settings.starts, theta0.numel(), generator=generator, dtype=torch.float64)
    moves[0] = 0
    return theta0 + scale * moves.to(theta0)


def integration_of(settings: OrdersSettings, dimension: int) -> Integration:
    """Integration of the rungs: near rounding on small landscapes, with few evaluations on networks."""
    method = settings.method or ("dopri8" if dimension <= DENSE else "dopri5")
    rtol, atol = settings.rtol, settings.atol
    if dimension > DENSE and method not in FIXED:
        eps = torch.finfo(DTYPES[settings.dtype]).eps
        rtol = max(1e-8, 50 * eps) if rtol is None else rtol
        atol = max(rtol / 1000, eps / 2) if atol is None else atol
    return Integration(method, rtol, atol, settings.substeps)


def options_of(settings: OrdersSettings) -> Options:
    """Options of the models beyond landscape and learning rate."""
    tolerance = settings.krylov_tolerance
    if tolerance is None:
        tolerance = 1e-8 if settings.dtype == "float64" else 1e-5
    return Options(settings.branch, settings.krylov, tolerance, settings.momentum, settings.friction)


def ladder_of(settings: OrdersSettings, sharpness: float) -> list[float]:
    """Learning rates, falling: as given, or geometric from --largest/λ, to three digits."""
    if settings.ladder is not None:
        return check_ladder(settings.ladder)
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ValueError("--ladder must be given: the Hessian at the start has no eigenvalue to scale one by")
    if not 0 < check_positive("ratio", settings.ratio) < 1:
        raise ValueError(f"--ratio must lie between 0 and 1, got {settings.ratio!r}")
    largest = float(f"{check_positive('largest', settings.largest) / sharpness:.3g}")
    return [largest * settings.ratio**k for k in range(check_count("rungs", settings.rungs, minimum=2))]


def configuration(settings: OrdersSettings) -> dict[str, Any]:
    """The settings on which a rung depends."""
    said = {key: value for key, value in dataclasses.asdict(settings).items() if key not in ELSEWHERE}
    ground = {key: value for key, value in dataclasses.asdict(settings.ground).items() if key != "root"}  # type: ignore[call-overload]
    return {"landscape": type(settings.ground).__name__, "ground": ground, **said}


def summary(studies: Mapping[str, OrderStudy]) -> str:
    """A row for each flow: order and interval, or slopes that drift; end of the asymptotic range; integration error."""
    rows = [
        ["flow", "fitted order", "95 % interval", "asymptotics end at h", "hλ there", "trusted", "integration/error"]
    ]
    for name, study in studies.items():
        shares = [
            i / e for e, i, t in zip(study.errors, study.integration_errors or (), study.trusted, strict=True) if t
        ]
        fit = study.fit
        found = ["drifts", f"slopes {study.trend}", "–", "–"] if study.drifts else ["–"] * 4
        if fit is not None:
            found = [f"{fit.order:.4f}", f"[{fit.low:.4f}, {fit.high:.4f}]"]
            found += [f"{study.asymptotic_end:.4g}", f"{study.asymptotic_end * study.sharpness:.3g}"]
        trusted = f"{sum(study.trusted)} of {len(study.ladder)}"
        rows.append([name, *found, trusted, f"{max(shares):.1e}" if shares else "–"])
    return align_rows(rows)


def data_of(study: OrderStudy) -> dict[str, Any]:
    """A study as JSON: the measured errors and the derived quantities."""
    fit = None if study.fit is None else dataclasses.asdict(study.fit)
    read = {"slopes": study.slopes, "trusted": study.trusted, "fit": fit, "asymptotic_end": study.asymptotic_end}
    read |= {"drifts": study.drifts, "least_order": study.least_order}
    return without_nan({**dataclasses.asdict(study), **read, "order": study.order})


def without_nan(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run(settings: OrdersSettings) -> None:
    """Measure, print, save, plot."""
    check_device(settings.device)
    use_threads(settings.threads)
    plan = OrdersSetup(settings)
    kinds = plan.studies()
    store = Store(settings.out, configuration(settings))
    heading = (
        f"{describe(settings.ground, plan.landscape)}: λ = {plan.sharpness:.4g} at {settings.starts} start"
        f"{'s' if settings.starts > 1 else ''}, compared with {settings.descent}"
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
    write_text(store.folder / "orders.json", json.dumps(said, default=str, indent=2) + "\n")
    print(f"figure: {plot_orders(list(results.values()), store.folder / 'orders.png')}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""
    return exit_status_of(lambda: run(parse(OrdersSettings, arguments, f"python -m {__package__}.orders", BANNER)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
