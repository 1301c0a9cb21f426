"""Compare continuous-time models with a discrete optimiser: python -m scripts.compare LANDSCAPE [options]."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flows import Descent, Flow, PrincipalFlow, StochasticDescent, compare
from flows.comparison.result import Comparison, slug
from landscapes import Landscape

from .lab.command_line import DTYPES, check_device, exit_status_of, parse, use_threads
from .lab.grounds import AnyGround
from .lab.models import DESCENTS, FLOW_NAMES, Options, descent_by_name, flow_by_name
from .lab.network import NetGround
from .lab.observers import OBSERVERS, observe_comparison, observer_by_name
from .lab.starts import build_start, describe, gentle_rate

BANNER = f"""Flows beside a discrete optimiser, on one clock.

Choose what is descended as a subcommand; options follow it. Flows: {", ".join(FLOW_NAMES)}.
Descents: {", ".join(DESCENTS)}, or a class of torch.optim such as Adam. Observers: {", ".join(OBSERVERS)}.
A table is printed for each descent; tables, figures, settings and every trajectory go to --out."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    ground: AnyGround
    """What is descended."""
    h: float | None = None
    """Learning rate of descent and flows; a network's preset, else half the inverse of the largest curvature."""
    steps: int | None = None
    """Steps of the descent; a network's preset, else 20."""
    flows: tuple[str, ...] | None = None
    """Flows to integrate; a network's preset, else gradient, modified-2, modified-3 and principal."""
    descent: tuple[str, ...] = ("gd",)
    """Descents to compare them with, one table each."""
    observers: tuple[str, ...] = ()
    """What to show along every run, in a table of its own and a file beside each trajectory."""
    theta0: tuple[float, ...] | None = None
    """Start; the landscape's own by default."""
    batch_size: int | None = None
    """Examples, or ghost batches, in a mini-batch of sgd; a network's preset, else 32."""
    sampling: Literal["replacement", "subset", "epoch"] = "epoch"
    """How sgd draws its mini-batches."""
    runs: int = 1
    """Runs of sgd, and of stochastic flows, to average over."""
    coupled: bool = False
    """Drive stochastic flows by the mini-batches of sgd, so that paths are compared."""
    momentum: float = 0.9
    """Momentum of heavy-ball and nesterov, and of their flows."""
    friction: float = 1.0
    """Friction of scaled-heavy-ball and scaled-nesterov, and of their flows."""
    branch: Literal["auto", "complex", "real"] = "auto"
    """Branch of the principal flow; auto is complex where the loss is holomorphic, else real, and says so."""
    krylov: int | None = None
    """Most HVPs of a principal-flow evaluation; by default the dense Hessian up to 64 weights, 30 HVPs beyond."""
    krylov_tolerance: float = 1e-6
    """Relative change at which the Krylov space stops growing."""
    method: str | None = None
    """Integration method of torchdiffeq; a network's preset, else dopri5."""
    rtol: float | None = None
    """Relative tolerance; a network's preset, else 1e-7 in float64 and 1e-4 in float32."""
    atol: float | None = None
    """Absolute tolerance; a network's preset, else 1e-9 in float64 and 1e-6 in float32."""
    dt: float | None = None
    """Step of fixed-step methods, must divide h; of stochastic flows h/8 by default."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, …"""
    threads: int | None = None
    """Threads on the CPU, torch's own choice by default; small networks gain nothing from a second one."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision."""
    seed: int = 0
    """Seeds weights, data limits and mini-batches."""
    out: Path = Path("results/compare")
    """Folder for tables, figures and trajectories."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the user left open, settled."""

    h: float
    steps: int = 20
    batch_size: int = 32
    flows: tuple[str, ...] = ("gradient", "modified-2", "modified-3", "principal")
    method: str | None = None
    rtol: float | None = None
    atol: float | None = None
    dt: float | None = None


def choose(settings: Settings, landscape: Landscape, theta0: Tensor) -> Choice:
    """The user's word first, then a network's preset, then defaults."""
    network = settings.ground if isinstance(settings.ground, NetGround) else None
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Choice)}
    given = {name: value for name, value in given.items() if value is not None}
    chosen: dict[str, Any] = (network.suggested if network else {}) | given
    if "h" not in chosen:
        chosen["h"] = gentle_rate(landscape, theta0)
    if network and not given.keys() & {"method", "rtol", "atol", "dt"}:  # these belong together
        chosen |= network.integration(chosen["h"])
    return Choice(**chosen)


def options_of(settings: Settings, choice: Choice) -> Options:
    """What models take beyond landscape and learning rate."""
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Options)}
    return Options(**given | {"batch_size": choice.batch_size})


def run(settings: Settings) -> None:
    """Build, compare, print and save."""
    check_device(settings.device)
    use_threads(settings.threads)
    landscape, default = settings.ground.build(settings.seed, DTYPES[settings.dtype], settings.device)
    theta0 = build_start(settings.theta0, landscape, default)
    choice = choose(settings, landscape, theta0)
    options = options_of(settings, choice)
    flows = {name: flow_by_name(name, landscape, choice.h, options) for name in choice.flows}
    descents = {name: descent_by_name(name, landscape, choice.h, options) for name in settings.descent}
    for name in settings.observers:
        observer_by_name(name, landscape, choice.h, options)  # a wrong name is told before anything is run
    print(f"{describe(settings.ground, landscape)}: h = {choice.h:g}, {choice.steps} steps")
    for name, flow in flows.items():
        if isinstance(flow, PrincipalFlow) and flow.branch == "real" and settings.branch == "auto":
            print(f"{name}: real branch, as the loss is not holomorphic; it follows growth, not the flip of sign")
    for name, descent in descents.items():
        folder = settings.out / slug(name) if len(descents) > 1 else settings.out
        result = compare_one(settings, choice, descent, flows, theta0, folder)
        if settings.observers:
            print(f"\n{observe_comparison(result, settings.observers, landscape, choice.h, options, folder)}")
        record = settings_record(settings, choice, flows | {name: descent})
        (folder / "settings.json").write_text(json.dumps(record, default=str, indent=2) + "\n")
        print(f"figure: {result.plot(folder / 'comparison.png')}\n", flush=True)


def compare_one(
    settings: Settings, choice: Choice, descent: Descent, flows: Mapping[str, Flow], theta0: Tensor, folder: Path
) -> Comparison:
    """Compare the flows with one descent, print the table and save the comparison."""
    result = compare(
        descent,
        flows,
        theta0,
        choice.steps,
        runs=settings.runs if isinstance(descent, StochasticDescent) else 1,
        coupled=settings.coupled,
        seed=settings.seed,
        method=choice.method,
        rtol=choice.rtol,
        atol=choice.atol,
        dt=choice.dt,
        folder=folder,
        progress=sys.stderr.isatty(),
    )
    print(result)
    result.save(folder)
    return result


def settings_record(settings: Settings, choice: Choice, models: Mapping[str, Flow | Descent]) -> dict[str, Any]:
    """All that a run depends on, for settings.json: options, chosen values, the network's preset, models, torch."""
    return {
        "landscape": type(settings.ground).__name__,
        **dataclasses.asdict(settings),
        **dataclasses.asdict(choice),
        **({"network": network_of(settings.ground)} if isinstance(settings.ground, NetGround) else {}),
        "models": {name: parameters_of(model) for name, model in models.items()},
        "torch": torch.__version__,
    }


def network_of(ground: NetGround) -> dict[str, Any]:
    """What a network ran with, its preset's values where the user gave none."""
    said = dataclasses.asdict(ground)
    return said | {name: value for name, value in dataclasses.asdict(ground.chosen).items() if name in said}


def parameters_of(model: Flow | Descent) -> dict[str, Any]:
    """The class and the parameters of a flow or a descent, its landscape left out."""
    names: list[str] = [field.name for field in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else []
    kept = {name: getattr(model, name) for name in names if name != "landscape"}
    return {"class": type(model).__name__, **kept}


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about bad input."""
    settings = parse(Settings, arguments, f"python -m {__package__}.compare", BANNER)
    return exit_status_of(lambda: run(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
