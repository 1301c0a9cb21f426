"""The Krylov engine compared with scipy's: python -m scripts.curvature velocity|tracking|hessians|solvers [options].

All tables count Hessian-vector products, the dominant cost of every method; errors are relative to dense float64.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import tyro
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from flows import GradientDescent, descend
from flows.models.principal import principal_coefficient
from landscapes import Landscape
from landscapes.krylov import EigenpairTracker, eigenpairs, matrix_function, random_block, spectral_action

from .lab.command_line import exit_status_of, parse, use_threads
from .lab.eigensolvers import Counter, Hessians, Solvers
from .lab.experiment import align_rows
from .lab.network import NetGround

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Velocity:
    """The principal flow's velocity on the demo's CNN, trained to hλ₀ ≥ 1.5: full spectrum compared with the top 20."""

    steps: tuple[int, ...] = (60, 100, 150, 250, 300)
    """Steps of gradient descent after which the velocity is evaluated."""
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-6)
    """Tolerances of the Krylov space."""
    modes: int = 20
    """Eigenpairs of the truncation."""
    threads: int = 1
    """Threads on the CPU."""

    def run(self) -> None:
        """Train, evaluate, print."""
        landscape, theta0 = NetGround("lenet", data="digits", examples=300).build(0, torch.float64, "cpu")
        h = 0.6
        path = descend(GradientDescent(landscape, h), theta0, max(self.steps)).check_finished().theta
        rows = [["step", "hλ₀", "method", "HVPs", "relative error", "estimate"]]
        for k in self.steps:
            rows += self.rows_at(landscape, path[k], h, k)
        print(f"PF velocity, complex branch, demo CNN ({landscape.dimension} weights, 300 digits), h = {h}")
        print(align_rows(rows))

    def rows_at(self, landscape: Landscape, theta: Tensor, h: float, k: int) -> list[list[str]]:
        """Rows of one iterate."""
        point = landscape.expand(theta)
        hessian, gradient = point.hessian(), point.grad
        exact, eigenvalues = spectral_action(hessian, gradient, lambda x: principal_coefficient(h * x))
        place = [str(k), f"{h * float(eigenvalues[-1]):.3f}"]

        def error(velocity: Tensor) -> str:
            return f"{float(torch.linalg.vector_norm(velocity - exact) / torch.linalg.vector_norm(exact)):.1e}"

        rows = []
        for tolerance in self.tolerances:
            result = matrix_function(point.hvp, gradient, lambda x: principal_coefficient(h * x), 100, tolerance)
            estimate = max(result.residual, result.change)
            row = [f"Krylov, tolerance {tolerance:g}", str(result.products), error(result.value), f"{estimate:.1e}"]
            rows.append([*place, *row])
        product = Counter(point.hvp, theta)
        values, vectors = eigsh(product.linear_operator(), k=self.modes, which="LA", v0=np.ones(len(theta)))
        u = torch.from_numpy(vectors.T.copy())  # (k, d)
        weights = principal_coefficient(h * torch.from_numpy(values)) + 1
        truncated = (weights * (u @ gradient)) @ u.to(weights.dtype) - gradient
        rows.append([*place, f"top {self.modes} by scipy's eigsh", str(product.count), error(truncated), ""])
        return rows


@dataclass(frozen=True)
class Tracking:
    """Top eigenvalues at every step of gradient descent at the edge of stability, several modes near 2/h."""

    steps: int = 200
    """Number of tracked steps."""
    before: int = 500
    """Steps before the edge is reached."""
    count: int = 4
    """Number of eigenvalues."""
    tolerance: float = 1e-4
    """Tolerance, relative to λ₀."""
    lobpcg_iterations: tuple[int, ...] = (1, 2)
    """Iterations of scipy's lobpcg per step, started from the vectors of the previous step."""
    eigsh_tolerances: tuple[float, ...] = (1e-2, 1e-4)
    """Tolerances of scipy's eigsh, without a starting guess."""
    dense_every: int = 20
    """Steps between two dense eigendecompositions; they check the reference, a tight Lanczos run at every step."""
    threads: int = 1
    """Threads on the CPU."""

    def run(self) -> None:
        """Track, print."""
        ground = NetGround("lenet", data="digits", examples=300, loss="square")
        landscape, theta = ground.build(0, torch.float64, "cpu")
        h = 0.5
        theta = descend(GradientDescent(landscape, h), theta, self.before, keep="last").check_finished().theta[-1]
        methods: dict[str, Callable[[Counter, Tensor], Tensor]] = {"carried block": Carried(self)}
        methods |= {f"scipy's lobpcg, warm, {n} iterations": Lobpcg(self.count, n) for n in self.lobpcg_iterations}
        methods |= {f"scipy's eigsh, cold, tol {tol:g}": Cold(self.count, tol) for tol in self.eigsh_tolerances}
        errors: dict[str, list[float]] = {name: [] for name in methods}
        spent: dict[str, list[int]] = {name: [] for name in methods}
        near, judged = [], 0.0
        for k in range(self.steps):
            point = landscape.expand(theta)
            exact = reference_values(point.hvp, theta, 6)
            if k % self.dense_every == 0:
                whole = torch.linalg.eigvalsh(point.hessian()).flip(0)[:6]
                judged = max(judged, float((whole - exact).abs().max() / whole[0]))
            near.append(int(((h * exact - 2).abs() < 0.2).sum()))
            for name, method in methods.items():
                product = Counter(point.hvp, theta)
                found = method(product, theta)
                errors[name].append(float((found - exact[: self.count]).abs().max() / exact[0]))
                spent[name].append(product.count)
            theta = theta - h * point.grad
        print(
            f"top {self.count} eigenvalues at {self.steps} steps of gradient descent, h = {h}, square loss, CNN with "
            f"{landscape.dimension} weights; modes with |hλ − 2| < 0.2: {min(near)} to {max(near)} a step (of 6); "
            f"judge against dense: {judged:.0e}"
        )
        rows = [["", "HVPs a step", "most", "error/λ₀: median", "largest"]]
        for name in methods:
            cost, error = np.array(spent[name]), np.array(errors[name])
            rows.append([name, f"{cost.mean():.1f}", str(cost.max()), f"{np.median(error):.1e}", f"{error.max():.1e}"])
        print(align_rows(rows))


def reference_values(product: Product, theta: Tensor, count: int) -> Tensor:
    """The largest eigenvalues to rounding, from a random block."""
    pairs = eigenpairs(product, random_block(theta, count + 2, 1), count, tolerance=1e-10, limit=1000)
    if not pairs.converged:
        raise RuntimeError("the judge did not converge; raise its limit")
    return pairs.values


class Carried:
    """The tracker of this package."""

    def __init__(self, settings: Tracking):
        self._tracker = EigenpairTracker(settings.count, tolerance=settings.tolerance)

    def __call__(self, product: Counter, theta: Tensor) -> Tensor:
        """Values (count,)."""
        return self._tracker(product, theta).pairs.values


class Lobpcg:
    """scipy's lobpcg started from the vectors of the previous step, with a fixed number of iterations."""

    def __init__(self, count: int, iterations: int):
        self._count = count
        self._iterations = iterations
        self._block: Tensor | None = None

    def __call__(self, product: Counter, theta: Tensor) -> Tensor:
        """Values (count,)."""
        cold = self._block is None
        block = random_block(theta, self._count + 2).mT if self._block is None else self._block
        values, self._block = lobpcg(Columns(product), block, 60 if cold else self._iterations)
        return values[: self._count]


class Columns:
    """A block product (d, b) ↦ H (d, b), in the form of a matrix product."""

    def __init__(self, product: Counter):
        self.product = product

    def __matmul__(self, block: Tensor) -> Tensor:
        return torch.stack([self.product(column) for column in block.mT], dim=-1)


def lobpcg(operator: Columns, block: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Largest eigenpairs by scipy's lobpcg, values falling, vectors (d, b)."""
    from scipy.sparse.linalg import lobpcg as scipy_lobpcg

    def product(x: np.ndarray) -> np.ndarray:
        return (operator @ torch.from_numpy(np.ascontiguousarray(x))).numpy()

    d = block.shape[0]
    # a block of one column comes to matvec as (d, 1)
    whole = LinearOperator((d, d), matvec=lambda v: product(v.reshape(d, 1))[:, 0], matmat=product, dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a fixed number of iterations: lobpcg warns of its tolerance
        values, vectors = scipy_lobpcg(whole, block.numpy(), largest=True, maxiter=iterations, tol=1e-12)
    order = np.argsort(-values)
    return torch.from_numpy(values[order]), torch.from_numpy(vectors[:, order].copy())


class Cold:
    """scipy's eigsh without a starting guess."""

    def __init__(self, count: int, tolerance: float):
        self._count = count
        self._tolerance = tolerance

    def __call__(self, product: Counter, theta: Tensor) -> Tensor:
        """Values (count,)."""
        ones = np.ones(len(theta))
        found = eigsh(
            product.linear_operator(), self._count, which="LA", tol=self._tolerance, v0=ones, return_eigenvectors=False
        )
        return torch.from_numpy(np.sort(found)[::-1].copy())


Table = (
    Annotated[Velocity, tyro.conf.subcommand("velocity")]
    | Annotated[Tracking, tyro.conf.subcommand("tracking")]
    | Annotated[Hessians, tyro.conf.subcommand("hessians")]
    | Annotated[Solvers, tyro.conf.subcommand("solvers")]
)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""

    def run() -> None:
        settings = parse(Table, arguments, f"python -m {__package__}.curvature", __doc__ or "")
        use_threads(settings.threads)
        settings.run()

    return exit_status_of(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
