r"""Costs as ratios in one run: python -m scripts.benchmark [--only NAME …] [--repeats N] [--device cuda].

Each line times two programs alternately, A B A B …, and prints the median of the ratios of neighbouring runs: absolute
times vary too much on a shared machine. Memory is the growth of the peak of a process, with one process per program.
"""

from __future__ import annotations

import copy
import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Literal, get_args

import torch

from flows import (
    Descent,
    GradientDescent,
    GradientFlow,
    ModifiedFlow,
    StochasticGradientDescent,
    Trajectory,
    descend,
)
from landscapes import Counted, LinearRegression, Rosenbrock, from_sympy
from nets import BatchNorm, NetworkLandscape

from .lab.command_line import exit_status_of, parse
from .lab.demo_network import bare_gradients, complete_run, demo_network
from .lab.measuring import growth, in_its_own_process, ratio
from .lab.network import NetGround
from .lab.noise_benchmarks import NOISE_BENCHMARKS, NoiseSettings

Name = Literal[
    "integrate",
    "sympy",
    "descend",
    "sampling",
    "memory",
    "norms",
    "check",
    "modified",
    "sde-step",
    "paths",
    "noise-memory",
    "noise-costs",
]
Examples = int | Literal["all"]


@dataclass(frozen=True)
class BenchmarkSettings(NoiseSettings):
    """Selection of benchmarks."""

    only: tuple[Name, ...] = get_args(Name)
    """Benchmarks to run."""


def bench_integrate(settings: BenchmarkSettings) -> None:
    """``integrate(GradientFlow)`` on the CNN over the same number of bare forward and backward passes.

    On all training digits, and on the 300 of the demo, where torchdiffeq's overhead per evaluation is visible.
    """
    sizes: tuple[Examples, ...] = ("all", 300)
    for examples in sizes:
        landscape = demo_network(settings.device, examples=examples)
        theta0, times = landscape.theta0, [0.05 * k for k in range(11)]
        evaluations = int(complete_run(GradientFlow(landscape), theta0, times).cost["evaluations"])
        ground = NetGround(examples=examples, width=1.0)
        module, loss, inputs, targets = ground.parts(0, torch.float32, settings.device)
        bare = functools.partial(bare_gradients, module, loss, inputs, targets, evaluations)
        ours = functools.partial(complete_run, GradientFlow(landscape), theta0, times)
        name = f"integrate(GradientFlow) on the CNN, {len(targets)} digits / bare forward+backward, {evaluations} each"
        ratio(name, ours, bare, settings, "≤ 1.15")


def bench_sympy(settings: BenchmarkSettings) -> None:
    """from_sympy's gradient compared with vmap(grad) of the same formula on 10,000 points."""
    import sympy

    x, y = sympy.symbols("x y")
    symbolic = from_sympy((1 - x) ** 2 + 100 * (y - x**2) ** 2, (x, y))
    points = torch.randn(10_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(settings.device)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return (1 - theta[0]) ** 2 + 100 * (theta[1] - theta[0] ** 2) ** 2

    traced = torch.func.vmap(torch.func.grad(loss))
    assert torch.allclose(symbolic.grad(points), traced(points))
    name = "vmap(grad) / from_sympy gradient, 10,000 points"
    ratio(name, lambda: traced(points), lambda: symbolic.grad(points), settings, "≥ 3")


def bench_descend(settings: BenchmarkSettings) -> None:
    """``descend`` of 10,000 points by 1,000 steps, last state kept, compared with a plain torch loop."""
    landscape = Rosenbrock()
    descent = GradientDescent(landscape, 1e-4)
    points = torch.randn(10_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(settings.device)

    def plain_loop() -> torch.Tensor:
        theta = points
        for _ in range(1000):
            theta = theta - 1e-4 * landscape.grad(theta)
        return theta

    name = "descend, 10,000 points × 1,000 steps / plain torch loop"
    ratio(name, lambda: finished_run(descent, points, 1000), plain_loop, settings, "≤ 1.25")


def finished_run(descent: Descent, theta0: torch.Tensor, steps: int) -> Trajectory:
    """The run, of which the last state is kept; raise unless it finished."""
    return descend(descent, theta0, steps, keep="last").check_finished()


def bench_sampling(settings: BenchmarkSettings) -> None:
    """SGD with 16 of 100,000 examples, drawn in each way, over a plain loop that draws with replacement."""
    size, batch_size, h, steps = 100_000, 16, 1e-3, 500
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(size, 10, dtype=torch.float64, generator=generator).to(settings.device)
    targets = torch.randn(size, dtype=torch.float64, generator=generator).to(settings.device)
    landscape, theta0 = LinearRegression(features, targets), torch.zeros(10, dtype=torch.float64).to(settings.device)

    def plain_loop() -> torch.Tensor:
        theta, draws = theta0, torch.Generator(settings.device).manual_seed(0)
        for _ in range(steps):
            index = torch.randint(size, (batch_size,), generator=draws, device=settings.device)
            theta = theta - h * landscape.batch_grad(theta, index)
        return theta

    for sampling in ("replacement", "subset", "epoch"):
        descent = StochasticGradientDescent(landscape, h, batch_size, sampling)
        run = functools.partial(finished_run, descent, theta0, steps)
        name = f"SGD, {sampling}: {batch_size} of {size:,} examples, {steps} steps / plain torch loop"
        target = "≤ 3" if sampling == "subset" else "none"
        ratio(name, run, plain_loop, settings, target)


def put_peak(chunk_size: int | None, device: str, queue: SimpleQueue) -> None:
    """Put the growth of peak memory by one full-batch HVP, in MiB, on the queue."""
    landscape = demo_network(device, chunk_size, width=8.0, examples=1200)
    theta = landscape.theta0
    few = landscape.restrict(torch.arange(4))
    few.hvp(theta, theta)  # libraries and thread pools allocate before the measurement
    queue.put(growth(lambda: landscape.hvp(theta, theta), device))


def bench_memory(settings: BenchmarkSettings) -> None:
    """Peak memory of a full-batch HVP in four chunks over one chunk, each the median of separate processes."""
    peaks: dict[int | None, list[float]] = {None: [], 300: []}
    for _ in range(3):
        for chunk_size, found in peaks.items():
            found.append(in_its_own_process(put_peak, chunk_size, settings.device))
    whole, quarter = (statistics.median(found) for found in peaks.values())
    print(
        f"peak memory of a full-batch HVP, 4 chunks / 1 chunk: {quarter / whole:.3f} "
        f"({quarter:.0f} MiB / {whole:.0f} MiB); target ≤ 0.4",
        flush=True,
    )


def bench_norms(settings: BenchmarkSettings) -> None:
    """Gradients and HVPs of the small all-convolutional net on 8×8 digits, nets.BatchNorm over torch's fused norms."""
    ground = NetGround(architecture="small-allcnn", data="digits", examples=200, norm="batch", width=1.0)
    module, loss, inputs, targets = ground.parts(0, torch.float32, settings.device)
    fused = copy.deepcopy(module)
    for name, layer in module.named_modules():
        if isinstance(layer, BatchNorm):
            parent, _, place = name.rpartition(".")
            setattr(fused.get_submodule(parent), place, torch.nn.BatchNorm2d(layer.channels).to(inputs))
    ours, theirs = (NetworkLandscape(m, loss, inputs, targets) for m in (module, fused))
    theta = ours.theta0
    assert torch.allclose(ours.hvp(theta, theta), theirs.hvp(theta, theta), rtol=1e-2, atol=1e-4)
    for product in ("grad", "hvp"):
        primitive, built_in = (functools.partial(evaluate, network, product, theta) for network in (ours, theirs))
        ratio(f"{product} with nets.BatchNorm / torch.nn.BatchNorm2d", primitive, built_in, settings, "≤ 1.5")


def evaluate(network: NetworkLandscape, product: str, theta: torch.Tensor) -> torch.Tensor:
    """The gradient or the Hessian-vector product at θ."""
    return network.grad(theta) if product == "grad" else network.hvp(theta, theta)


def bench_check(settings: BenchmarkSettings) -> None:
    """Cost of the derivative check: the first HVP of a network, with the cache cleared, over a later one."""
    landscape = demo_network(settings.device)
    theta = landscape.theta0

    def first_hvp() -> torch.Tensor:
        landscape._derivatives.asked.clear()
        return landscape.hvp(theta, theta)

    later_hvp = functools.partial(evaluate, landscape, "hvp", theta)
    ratio("first HVP of the CNN, its check included / a later one", first_hvp, later_hvp, settings, "≤ 5")


def bench_modified(settings: BenchmarkSettings) -> None:
    """The modified field of orders 1 to 5 on the CNN with all training digits over one gradient, with its products."""
    landscape = demo_network(settings.device, examples="all")
    theta = landscape.theta0
    for order, target in ((1, "≤ 1.15"), (2, "≤ 5"), (3, "≤ 15"), (4, "≤ 60"), (5, "none")):
        counted = Counted(landscape)
        ModifiedFlow(counted, 0.1, order).velocity(0.0, theta)
        products = ", ".join(f"{count:g} {name}" for name, count in counted.counts.items() if count)
        field = functools.partial(ModifiedFlow(landscape, 0.1, order).velocity, 0.0, theta)
        gradient = functools.partial(evaluate, landscape, "grad", theta)
        ratio(f"modified field of order {order} on the CNN ({products}) / gradient", field, gradient, settings, target)


BENCHMARKS: dict[str, Callable[[BenchmarkSettings], None]] = {
    "integrate": bench_integrate,
    "sympy": bench_sympy,
    "descend": bench_descend,
    "sampling": bench_sampling,
    "memory": bench_memory,
    "norms": bench_norms,
    "check": bench_check,
    "modified": bench_modified,
    **NOISE_BENCHMARKS,
}


def run(settings: BenchmarkSettings) -> None:
    """Run the selected benchmarks."""
    torch.set_num_threads(settings.threads)
    print(f"torch {torch.__version__}, {settings.threads} threads, device {settings.device}")
    for name in settings.only:
        BENCHMARKS[name](settings)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""
    prog = f"python -m {__package__}.benchmark"
    return exit_status_of(lambda: run(parse(BenchmarkSettings, arguments, prog, __doc__ or "")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
