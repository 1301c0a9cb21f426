r"""Costs of gradient noise and of stochastic flows, as printed by ``scripts.benchmark``.

Both programs of a pair do the same work on the same numbers: equally many gradients, normals of equal shape and dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows import NoisyModifiedEquation, StochasticModifiedEquation
from landscapes import Rosenbrock
from landscapes.noise import IsotropicNoise, MinibatchNoise, noise_covariance, top_eigenpairs
from nets import NetworkLandscape, build_network, cross_entropy, load_data

from .demo_network import bare_gradients, complete_run, demo_network
from .measuring import Measuring, growth, in_its_own_process, ratio, seconds
from .network import NetGround

CHUNK = 200  # images of CIFAR's size per forward pass


@dataclass(frozen=True)
class NoiseSettings(Measuring):
    """Options of the benchmarks of gradient noise."""

    steps: int = 20
    """Steps of the stochastic equation on the CNN."""
    paths: int = 10_000
    """Paths on Rosenbrock's function."""
    path_steps: int = 1000
    """Steps of each path."""
    images: int = 10_000
    """Images for the eigenpairs of the noise."""
    pairs: int = 50
    """Eigenpairs."""
    root: Path | None = None
    """Folder with CIFAR-10; without it, random images of the same size are used."""


def all_digits(device: str) -> tuple[NetworkLandscape, Callable[[int], None]]:
    """The demo's tanh CNN on all 1,797 digits, and a function that runs so many bare forward-backward passes."""
    ground = NetGround(examples="all", width=1.0)
    module, loss, inputs, targets = ground.parts(0, torch.float32, device)
    test = load_data("digits", train=False)
    inputs = torch.cat([inputs, test.inputs.to(inputs)])
    targets = torch.cat([targets, test.targets.to(targets)])
    landscape = ground.landscape(module, loss, inputs, targets, seed=0)
    return landscape, functools.partial(bare_gradients, module, loss, inputs, targets)


def bench_sde_step(settings: NoiseSettings) -> None:
    """Euler steps of the order-1 equation with dt = h, noise included, over as many gradients, bare and of the package.

    If glibc returns freed memory to the kernel, page faults change the ratio by up to a tenth; it keeps the memory with
    MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 in the environment.
    """
    landscape, bare = all_digits(settings.device)
    theta0, h, steps = landscape.theta0, 0.1, settings.steps
    equation = StochasticModifiedEquation(landscape, h, batch_size=32)
    ours = functools.partial(complete_run, equation, theta0, [0.0, steps * h], dt=h, seed=0, keep="last")

    def gradients() -> None:
        for _ in range(steps):
            landscape.grad(theta0)

    name = f"SDE steps of order 1 on the CNN, {landscape.size} digits"
    ratio(f"{name} / bare forward+backward, {steps} each", ours, lambda: bare(steps), settings, "≤ 1.1")
    ratio(f"{name} / landscape.grad, {steps} each", ours, gradients, settings, "none")


def bench_paths(settings: NoiseSettings) -> None:
    """Paths in the plane by Euler's method, last state kept, over the normals alone; torchsde over this package."""
    h, steps = 1e-4, settings.path_steps
    equation = NoisyModifiedEquation(Rosenbrock(), h, IsotropicNoise(1.0, 2))
    like = torch.zeros(settings.paths, 2, dtype=torch.float64, device=settings.device)
    ours = functools.partial(complete_run, equation, like, [0.0, steps * h], dt=h, seed=0, keep="last")
    generator = torch.Generator(settings.device).manual_seed(0)

    def normals() -> None:
        for _ in range(steps):
            torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    name = f"{settings.paths:,} paths × {steps:,} steps on Rosenbrock"
    ratio(f"{name} / torch.randn, step by step", ours, normals, settings, "≤ 1.6")
    peer = torchsde_run(equation, like, steps, h)
    ratio(f"torchsde's Euler / ours, {name}", peer, ours, settings, "≥ 6")


def torchsde_run(equation: NoisyModifiedEquation, theta0: Tensor, steps: int, h: float) -> Callable[[], Tensor]:
    """The same equation by torchsde's Euler method, with the noise declared as diagonal and additive."""
    try:
        import torchsde
    except ImportError as error:
        raise ImportError("the benchmark of paths needs torchsde: pip install torchsde, or thalweg[test]") from error

    class Peer:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return equation.velocity(t, y)

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.full_like(y, h**0.5)

    times = torch.tensor([0.0, steps * h], dtype=theta0.dtype, device=theta0.device)

    def run() -> Tensor:
        with torch.no_grad():
            return torchsde.sdeint(Peer(), theta0, times, dt=h, method="euler")[-1]

    return run


def cifar_network(images: int, root: Path | None, device: str) -> NetworkLandscape:
    """The small All-CNN, 26,982 weights, in evaluation mode on images of CIFAR's size, float32."""
    module = build_network("small-allcnn", (3, 32, 32), 10, seed=0).to(device).eval()
    if root is not None:
        data = load_data("cifar-10", root=root, limit=images)
        inputs, targets = data.inputs.float(), data.targets
    else:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(images, 3, 32, 32, generator=generator)
        targets = torch.randint(10, (images,), generator=generator)
    return NetworkLandscape(module, cross_entropy, inputs, targets, CHUNK)


def eigenpairs_peak(images: int, pairs: int, root: Path | None, device: str, threads: int, queue: SimpleQueue) -> None:
    """Put the growth of peak memory by the top eigenpairs of D, in MiB, and their diagnostics on the queue."""
    torch.set_num_threads(threads)
    landscape = cifar_network(images, root, device)
    few = landscape.restrict(torch.arange(min(4, images), device=device))
    top_eigenpairs(noise_covariance(few, landscape.theta0), 1)  # libraries allocate their memory before the measurement
    operator = noise_covariance(landscape, landscape.theta0)
    found: dict[str, Any] = {}

    def run() -> None:
        result = top_eigenpairs(operator, pairs)
        found.update(method=result.method, passes=result.passes, converged=result.converged, planned=result.bytes)

    taken = seconds(lambda: found.update(growth=growth(run, device)), device)
    one_pass = seconds(lambda: landscape.grad(landscape.theta0), device)
    queue.put({**found, "gradients": taken / one_pass})


def bench_noise_memory(settings: NoiseSettings) -> None:
    """Growth of peak memory by the top eigenpairs of D on the small All-CNN, in a separate process."""
    found = in_its_own_process(
        eigenpairs_peak, settings.images, settings.pairs, settings.root, settings.device, settings.threads
    )
    print(
        f"top-{settings.pairs} eigenpairs of D on small-allcnn, {settings.images:,} images: peak memory + "
        f"{found['growth']:.0f} MiB (planned {found['planned'] / 2**20:.0f}; method {found['method']}, "
        f"{found['passes']:.1f} passes, time of {found['gradients']:.1f} full-batch gradients, "
        f"converged {found['converged']}); target < 1024 MiB",
        flush=True,
    )


def bench_noise_costs(settings: NoiseSettings) -> None:
    """G ξ, tr D and a product with D on the CNN with all training digits over one gradient."""
    landscape = demo_network(settings.device, examples="all")
    theta = landscape.theta0
    noise = MinibatchNoise(landscape, 32)
    xi = torch.randn(noise.size, generator=torch.Generator().manual_seed(0)).to(theta)
    programs: dict[str, tuple[Callable[[], object], str]] = {
        "G ξ": (lambda: noise.factor(theta, xi), "≤ 1.1"),
        "tr D": (lambda: noise.trace(theta), "none"),
        "D v": (lambda: noise_covariance(landscape, theta).product(theta), "none"),
    }
    for name, (program, target) in programs.items():
        ratio(f"{name} on the CNN / gradient", program, lambda: landscape.grad(theta), settings, target)


NOISE_BENCHMARKS: dict[str, Callable[[NoiseSettings], None]] = {
    "sde-step": bench_sde_step,
    "paths": bench_paths,
    "noise-memory": bench_noise_memory,
    "noise-costs": bench_noise_costs,
}
