"""Eigenpairs of random Hessians beside scipy's eigsh and LOBPCG: products, errors, time and memory."""

from __future__ import annotations

import functools
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh, lobpcg
from torch import Tensor

from landscapes.krylov import eigenpairs, random_block

from .experiment import align_rows

Product = Callable[[Tensor], Tensor]

BULKS = ("uniform", "decaying", "semicircle", "wide")
REPEATS = 4  # of a solution: the first for its memory, the fastest of the others for its time
WIDEST = 1.2  # products over eigsh's that the first table counts as few


class Counter:
    """v ↦ Hv with a counter, for vectors of torch and of numpy."""

    def __init__(self, product: Product, like: Tensor):
        self._product = product
        self._like = like
        self.count = 0

    def __call__(self, v: Tensor) -> Tensor:
        """Hv."""
        self.count += 1
        return self._product(v)

    def linear_operator(self) -> LinearOperator:
        """The same product for scipy."""
        d = self._like.shape[-1]

        def product(v: np.ndarray) -> np.ndarray:
            # vectors of scipy may be views with strides that torch rejects
            return self(torch.from_numpy(np.ascontiguousarray(v)).to(self._like)).double().cpu().numpy()

        return LinearOperator((d, d), matvec=product, dtype=np.float64)


def spectrum(bulk: str, d: int, gap: float, count: int, generator: torch.Generator) -> Tensor:
    """count + 1 eigenvalues (d,) from 1 down by ``gap`` each, above a bulk: U(0, 0.6); 0.8/i; a semicircle, in density,
    of radius 0.7; U(−½, 1) times a value ``gap`` below the others."""
    top = 1 - gap * torch.arange(count + 1, dtype=torch.float64)
    uniform = torch.rand(d - count - 1, generator=generator, dtype=torch.float64)
    rest = {
        "uniform": 0.6 * uniform,
        "decaying": 0.8 / torch.arange(1, d - count, dtype=torch.float64),
        "semicircle": 0.7 * torch.cos(math.pi * uniform),
        "wide": (1.5 * uniform - 0.5) * (top[-1] - gap),
    }[bulk]
    return torch.cat([top, rest.clamp_max(float(top[-1]) - 1e-9)])


@dataclass(frozen=True)
class Hessians:
    """Random Hessians with close modes, from random rows and from carried blocks, and whether "converged" holds."""

    problems: int = 500
    """Hessians; half of them from a carried block, half in float32."""
    tolerance: float = 1e-4
    """Tolerance, of ours relative to the largest eigenvalue, of eigsh to each residual."""
    seed: int = 0
    """Seed of the Hessians."""
    threads: int = 1
    """Threads on the CPU."""

    def run(self) -> None:
        """Solve, print."""
        found = [self.solve(i) for i in range(self.problems)]
        rows = [["start", "precision", "Hessians", "converged", "HVPs", "eigsh", f"≤ {WIDEST} eigsh", "off by > 2 tol"]]
        for start in ("random row", "carried block"):
            for dtype in ("float64", "float32"):
                rows.append([start, dtype, *self.summary([x for x in found if x[:2] == (start, dtype)])])
        rows.append(["all", "", *self.summary(found)])
        print(
            f"top 1 or 3 eigenvalues of random Hessians, d = 100 to 400, gaps 1e-4 to 0.1, {len(BULKS)} bulks, both "
            f"ends, tolerance {self.tolerance:g}; of eigsh {sum(x[5] for x in found)} are off by more than twice that"
        )
        print(align_rows(rows))

    def solve(self, i: int) -> tuple[str, str, bool, int, int, bool, bool]:
        """Start, precision, whether it says converged, HVPs, eigsh's, whether eigsh and ours are off."""
        generator = torch.Generator().manual_seed(self.seed + i)
        d = int(torch.randint(100, 401, (), generator=generator))
        gap = 10 ** float(-4 + 3 * torch.rand((), generator=generator))
        count, sign, carried = (1, 3)[i // 4 % 2], (1, -1)[i // 8 % 2], i // 16 % 2 == 1
        dtype = (torch.float64, torch.float32)[i // 32 % 2]
        turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        hessian = sign * (turn * spectrum(BULKS[i % 4], d, gap, count, generator)) @ turn.mT
        which = "largest" if sign == 1 else "smallest"
        options: dict[str, Any] = {"which": which, "tolerance": self.tolerance}
        start = random_block(hessian.to(dtype), 1 + carried * count, self.seed + i)
        if carried:
            start = eigenpairs(hessian.to(dtype).mv, start, count, **options).block
            move = torch.randn(d, d, generator=generator, dtype=torch.float64)
            size = 10 ** float(-5 + 4 * torch.rand((), generator=generator))
            hessian = hessian + size * (move + move.mT) / math.sqrt(8 * d)
        pairs = eigenpairs(hessian.to(dtype).mv, start, count, seed=i, **options)
        product = Counter(hessian.mv, hessian[0])
        v0 = torch.randn(d, generator=generator, dtype=torch.float64).numpy()
        theirs = eigsh(product.linear_operator(), count, which="LA" if sign == 1 else "SA", tol=self.tolerance, v0=v0)[
            0
        ]
        exact = (sign * torch.linalg.eigvalsh(hessian)).sort(descending=True).values[:count]
        allowed = 2 * self.tolerance * float(torch.linalg.matrix_norm(hessian, 2))
        off = bool(((sign * pairs.values - exact).abs() > allowed).any())
        off_theirs = bool(((torch.from_numpy(np.sort(sign * theirs)[::-1].copy()) - exact).abs() > allowed).any())
        name = "carried block" if carried else "random row"
        return name, str(dtype)[6:], pairs.converged, pairs.products, product.count, off_theirs, off and pairs.converged

    def summary(self, found: list[tuple[str, str, bool, int, int, bool, bool]]) -> list[str]:
        """The cells of a row."""
        if not found:
            return ["0", "", "", "", "", ""]
        few = sum(x[2] and x[3] <= WIDEST * x[4] for x in found)
        return [
            str(len(found)),
            str(sum(x[2] for x in found)),
            f"{sum(x[3] for x in found) / len(found):.1f}",
            f"{sum(x[4] for x in found) / len(found):.1f}",
            f"{100 * few / len(found):.1f} %",
            str(sum(x[6] for x in found)),
        ]


@dataclass(frozen=True)
class Solvers:
    """Cost of the top k eigenpairs beside eigsh and LOBPCG, each in its own process: products, time, memory."""

    counts: tuple[int, ...] = (1, 5, 10, 20)
    """Numbers of pairs k."""
    dimensions: tuple[int, ...] = (1_000, 300_000)
    """Orders d of the matrices."""
    tolerance: float = 1e-4
    """Tolerance of each method."""
    threads: int = 1
    """Threads on the CPU."""

    def run(self) -> None:
        """Measure, print."""
        from .measuring import in_its_own_process  # psutil, an extra: the other tables do without

        os.environ["OMP_NUM_THREADS"] = str(self.threads)  # of scipy's BLAS, in processes that start now
        rows = [["d", "k", "method", "HVPs", "ms per HVP, without it", "ms in all", "bytes a weight", "error/λ₀"]]
        for d in self.dimensions:
            for count in self.counts:
                for method in METHODS:
                    cells = in_its_own_process(measure, method, d, count, self.tolerance, self.threads)
                    rows.append([f"{d:,}", str(count), method, *cells])
        print(
            "top k eigenpairs of a diagonal matrix in float32: 1, 0.98, … above U(0, 0.6), from one random row "
            f"(LOBPCG: k + 1), tolerance {self.tolerance:g}; time without the products, the least of {REPEATS - 1}"
        )
        print(align_rows(rows))


class Stopwatch:
    """The product with a diagonal matrix, counted and timed."""

    def __init__(self, diagonal: Tensor):
        self.diagonal = diagonal
        self.count = 0
        self.taken = 0.0

    def __call__(self, v: Tensor) -> Tensor:
        """Hv."""
        start = time.perf_counter()
        image = self.diagonal * v
        self.taken += time.perf_counter() - start
        self.count += 1
        return image

    def operator(self) -> LinearOperator:
        """The same for scipy, column by column."""

        def product(v: np.ndarray) -> np.ndarray:
            return self(torch.from_numpy(np.ascontiguousarray(v).reshape(-1))).numpy()

        def products(block: np.ndarray) -> np.ndarray:
            return np.stack([product(column) for column in block.T], axis=1)

        return LinearOperator((len(self.diagonal),) * 2, matvec=product, matmat=products, dtype=np.float32)


def by_eigenpairs(product: Stopwatch, count: int, tolerance: float) -> Tensor:
    """Values (k,), falling, by this package."""
    return eigenpairs(product, random_block(product.diagonal, 1), count, tolerance=tolerance).values


def by_eigsh(product: Stopwatch, count: int, tolerance: float) -> Tensor:
    """Values (k,), falling, by ARPACK."""
    start = random_block(product.diagonal, 1)[0].numpy()
    values, _ = eigsh(product.operator(), count, which="LA", tol=tolerance, v0=start)
    return torch.from_numpy(np.sort(values)[::-1].copy())


def by_lobpcg(product: Stopwatch, count: int, tolerance: float) -> Tensor:
    """Values (k,), falling, by LOBPCG from k + 1 random columns."""
    start = random_block(product.diagonal, count + 1).mT.numpy().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of tolerances not reached in float32
        values, _ = lobpcg(product.operator(), start, largest=True, tol=tolerance, maxiter=60)
    return torch.from_numpy(np.sort(values)[::-1][:count].copy())


METHODS = {"eigenpairs": by_eigenpairs, "eigsh": by_eigsh, "LOBPCG": by_lobpcg}


def time_beyond(solve: Callable[[], Tensor], product: Stopwatch) -> float:
    """Milliseconds of a solution without its products."""
    start = time.perf_counter()
    solve()
    return 1e3 * (time.perf_counter() - start - product.taken)


def measure(method: str, d: int, count: int, tolerance: float, threads: int, queue: SimpleQueue) -> None:
    """Put the cells of a row on the queue."""
    from .measuring import growth

    torch.set_num_threads(threads)
    solve = METHODS[method]
    solve(Stopwatch(torch.linspace(0.01, 1, 200)), 1, tolerance)  # libraries allocate their memory before
    generator = torch.Generator().manual_seed(0)
    diagonal = 0.6 * torch.rand(d, generator=generator)
    exact = 1 - 0.02 * torch.arange(count + 1)
    diagonal[: count + 1] = exact
    products, values = [Stopwatch(diagonal) for _ in range(REPEATS)], []
    memory = growth(functools.partial(lambda: values.append(solve(products[0], count, tolerance))), "cpu")
    beyond = min(time_beyond(functools.partial(solve, product, count, tolerance), product) for product in products[1:])
    error = f"{float((values[0].double() - exact[:count].double()).abs().max()):.0e}"
    queue.put(
        [
            str(products[0].count),
            f"{beyond / products[0].count:.3f}",
            f"{beyond:.1f}",
            f"{memory * 2**20 / d:.0f}",
            error,
        ]
    )
