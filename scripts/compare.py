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
from flows.engines.storage import write_text
from landscapes import Landscape

from .lab.command_line import DTYPES, check_device, exit_status_of, parse, use_threads
from .lab.grounds import AnyGround
from .lab.models import DESCENTS, FLOW_NAMES, Options, descent_by_name, flow_by_name
from .lab.network import NetGround
from .lab.observers import OBSERVERS, observe_comparison, observer_by_name
from .lab.starts import build_start, describe, gentle_rate

BANNER = f"""Compares flows with a discrete optimiser at the same times.

Choose a landscape as a subcommand; options follow it. Flows: {", ".join(FLOW_NAMES)}.
Descents: {", ".join(DESCENTS)}, or a class of torch.optim such as Adam. Observers: {", ".join(OBSERVERS)}.
A table is printed for each descent; tables, figures, settings and every trajectory are written to --out."""


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """Options of a comparison."""

    ground: AnyGround
    """The landscape."""
    h: float | None = None
    """Learning rate of descent and flows; default: the network's preset, else half the inverse largest curvature."""
    steps: int | None = None
    """Steps of the descent; default: the network's preset, else 20."""
    flows: tuple[str, ...] | None = None
    """Flows to integrate; default: the network's preset, else gradient, modified-2, modified-3 and principal."""
    descent: tuple[str, ...] = ("gd",)
    """Descents to compare them with, one table each."""
    observers: tuple[str, ...] = ()
    """Observables along every run, written to a file next to each trajectory and printed in a separate table."""
    theta0: tuple[float, ...] | None = None
    """Start; default: that of the landscape."""
    batch_size: int | None = None
    """Examples, or ghost batches, in a mini-batch of sgd; default: the network's preset, else 32."""
    sampling: Literal["replacement", "subset", "epoch"] = "epoch"
    """Sampling of the mini-batches of sgd."""
    runs: int = 1
    """Runs of sgd, and of stochastic flows, to average over."""
    coupled: bool = False
    """Drive stochastic flows by the mini-batches of sgd, so that paths are compared."""
    laws: bool = False
    """Compare laws, which stochastic flows that are not coupled do anyway; coupled ones run again, independently."""
    momentum: float = 0.9
    """Momentum of heavy-ball and nesterov, and of their flows."""
    friction: float = 1.0
    """Friction of scaled-heavy-ball and scaled-nesterov, and of their flows."""
    branch: Literal["auto", "complex", "real"] = "auto"
    """Branch of the principal flow; auto: complex if the loss is holomorphic, else real, with a note."""
    krylov: int | None = None
    """Largest number of HVPs of a principal-flow evaluation; default: dense Hessian up to 64 weights, 30 HVPs above."""
    krylov_tolerance: float = 1e-6
    """Relative change at which the Krylov space stops growing."""
    method: str | None = None
    """Integration method of torchdiffeq; default: the network's preset, else dopri5."""
    rtol: float | None = None
    """Relative tolerance; default: the network's preset, else 1e-7 in float64 and 1e-4 in float32."""
    atol: float | None = None
    """Absolute tolerance; default: the network's preset, else 1e-9 in float64 and 1e-6 in float32."""
    dt: float | None = None
    """Step of fixed-step methods, must divide h; default of stochastic flows: h/8."""
    device: str = "cpu"
    """Device: cpu, cuda, cuda:1, …"""
    threads: int | None = None
    """Threads on the CPU; default: torch's choice. Small networks are not faster with more than one."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision."""
    seed: int = 0
    """Seed of weights, choice of data and mini-batches."""
    out: Path = Path("results/compare")
    """Folder for tables, figures and trajectories."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Values of the options that may be left open."""

    h: float
    steps: int = 20
    batch_size: int = 32
    flows: tuple[str, ...] = ("gradient", "modified-2", "modified-3", "principal")
    method: str | None = None
    rtol: float | None = None
    atol: float | None = None
    dt: float | None = None


def choice_of(settings: CompareSettings, landscape: Landscape, theta0: Tensor) -> Choice:
    """Given values first, then the preset of a network, then defaults."""
    network = settings.ground if isinstance(settings.ground, NetGround) else None
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Choice)}
    given = {name: value for name, value in given.items() if value is not None}
    chosen: dict[str, Any] = (network.suggested if network else {}) | given
    if "h" not in chosen:
        chosen["h"] = gentle_rate(landscape, theta0)
    if network and not given.keys() & {"method", "rtol", "atol", "dt"}:  # the preset's values are valid only together
        chosen |= network.integration(chosen["h"])
    return Choice(**chosen)


def options_of(settings: CompareSettings, choice: Choice) -> Options:
    """Options of the models beyond landscape and learning rate."""
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Options)}
    return Options(**given | {"batch_size": choice.batch_size})


def run(settings: CompareSettings) -> None:
    """Build, compare, print and save."""
    check_device(settings.device)
    use_threads(settings.threads)
    landscape, default = settings.ground.build(settings.seed, DTYPES[settings.dtype], settings.device)
    theta0 = build_start(settings.theta0, landscape, default)
    choice = choice_of(settings, landscape, theta0)
    options = options_of(settings, choice)
    flows = {name: flow_by_name(name, landscape, choice.h, options) for name in choice.flows}
    descents = {name: descent_by_name(name, landscape, choice.h, options) for name in settings.descent}
    for name in settings.observers:
        observer_by_name(name, landscape, choice.h, options)  # report an unknown name before the comparison
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
        write_text(folder / "settings.json", json.dumps(record, default=str, indent=2) + "\n")
        print(f"figure: {result.plot(folder / 'comparison.png')}\n", flush=True)


def compare_one(
    settings: CompareSettings, choice: Choice, descent: Descent, flows: Mapping[str, Flow], theta0: Tensor, folder: Path
) -> Comparison:
    """Compare the flows with one descent, print the table and save the comparison; print only if interrupted."""
    result = compare(
        descent,
        flows,
        theta0,
        choice.steps,
        runs=settings.runs if isinstance(descent, StochasticDescent) else 1,
        coupled=settings.coupled,
        observables={} if settings.laws else None,
        seed=settings.seed,
        method=choice.method,
        rtol=choice.rtol,
        atol=choice.atol,
        dt=choice.dt,
        folder=folder,
        progress=sys.stderr.isatty(),
    )
    print(result, flush=True)
    result.check_uninterrupted().save(folder)
    return result


def settings_record(settings: CompareSettings, choice: Choice, models: Mapping[str, Flow | Descent]) -> dict[str, Any]:
    """All that determines a run, for settings.json: options, chosen values, the network's preset, models, torch."""
    return {
        "landscape": type(settings.ground).__name__,
        **dataclasses.asdict(settings),
        **dataclasses.asdict(choice),
        **({"network": network_of(settings.ground)} if isinstance(settings.ground, NetGround) else {}),
        "models": {name: parameters_of(model) for name, model in models.items()},
        "torch": torch.__version__,
    }


def network_of(ground: NetGround) -> dict[str, Any]:
    """Settings of a network, with values of its preset for the options that were not given."""
    options = dataclasses.asdict(ground)
    return options | {name: value for name, value in dataclasses.asdict(ground.chosen).items() if name in options}


def parameters_of(model: Flow | Descent) -> dict[str, Any]:
    """The class and the parameters of a flow or a descent, without its landscape."""
    names: list[str] = [field.name for field in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else []
    kept = {name: getattr(model, name) for name in names if name != "landscape"}
    return {"class": type(model).__name__, **kept}


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""
    return exit_status_of(lambda: run(parse(CompareSettings, arguments, f"python -m {__package__}.compare", BANNER)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
