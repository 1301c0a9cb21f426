r"""Choice of a method for the eigenvalues of a noise covariance: matrix, Gram matrix or block Krylov space.

All three have the same nonzero eigenvalues. D (n, n) takes one pass and O(n³) operations; the Gram matrix (N, N) of the
examples' gradients O(N³) and, if the N × n gradients do not fit in memory beside it, about N/(2P) passes with panels of
P examples; the block Krylov method one pass a step, for as many eigenpairs as the block has rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from landscapes.noise.covariance import CovarianceOperator

Method = Literal["dense", "gram", "krylov"]
METHODS = ("auto", "dense", "gram", "krylov")

DOUBLE = 8  # bytes
MATRICES = 3  # held by a dense eigensolver: the matrix, its vectors, workspace
SOLVER = 12  # operations of a dense symmetric eigensolver with vectors, times n³
GRADIENT = 100  # operations of one example's gradient, times n: 6 for a dense layer, hundreds for shared weights
STEPS = 8  # expected number of products with a block in the Krylov method
BASIS = 8  # blocks in its basis if memory permits, 3 at least
SPARE = 10  # guards: rows carried beyond those wanted, or a fifth of their number if that is more


@dataclass(frozen=True)
class Plan:
    """Expected cost of a method: passes, bytes beyond the landscape's own, and operations.

    ``rows``: examples of a panel for the Gram matrix, rows of the basis for the Krylov method.
    """

    method: Method
    passes: float
    bytes: int
    operations: float
    rows: int


def guarded_rows(operator: CovarianceOperator, count: int) -> int:
    """Number of rows of the carried block for ``count`` pairs: wanted rows and guards."""
    return min(count + max(SPARE, count // 5), operator.dimension)


def row_bytes(operator: CovarianceOperator) -> int:
    """Bytes of a vector (n,)."""
    return operator.dimension * operator.like.element_size()


def block_bytes(operator: CovarianceOperator) -> int:
    """Bytes held during a pass: a block of gradients and the same centred, and the stored gradients, if any."""
    gradients = operator.gradients
    row = gradients.dimension * operator.like.element_size()
    return 2 * gradients.block * row + (gradients.size * row if gradients.keep else 0)


def dense_plan(operator: CovarianceOperator, count: int, memory: int) -> Plan:
    """Cost of the matrix C."""
    N, n = operator.size, operator.dimension
    size = MATRICES * DOUBLE * n**2 + block_bytes(operator)
    return Plan("dense", 2, size, 2 * GRADIENT * N * n + 4 * N * n**2 + SOLVER * n**3, n)


def gram_plan(operator: CovarianceOperator, count: int, memory: int) -> Plan:
    """Cost of the Gram matrix, with the largest panel of gradients that fits in memory beside it."""
    N, n = operator.size, operator.dimension
    fixed = MATRICES * DOUBLE * N**2 + block_bytes(operator) + 4 * guarded_rows(operator, count) * row_bytes(operator)
    panel = operator.panel(max(memory - fixed, 1))
    held = 0 if operator.gradients.keep else panel * row_bytes(operator)
    passes = operator.panel_passes(max(memory - fixed, 1)) + 2
    return Plan("gram", passes, fixed + held, passes * GRADIENT * N * n + 2 * N**2 * n + SOLVER * N**3, panel)


def krylov_plan(operator: CovarianceOperator, count: int, memory: int) -> Plan:
    """Cost of the Krylov method: basis and images, vectors and residuals of a block."""
    N, n, width = operator.size, operator.dimension, guarded_rows(operator, count)
    fixed = block_bytes(operator) + 4 * width * row_bytes(operator)
    fitting = (memory - fixed) // (2 * row_bytes(operator))
    rows = min(max(fitting, 3 * width), BASIS * width)
    operations = STEPS * (GRADIENT * N * n + 4 * N * n * width + 4 * BASIS * width**2 * n)
    return Plan("krylov", STEPS, fixed + 2 * rows * row_bytes(operator), operations, rows)


MAKERS = {"dense": dense_plan, "gram": gram_plan, "krylov": krylov_plan}


def plans(operator: CovarianceOperator, count: int, memory: int) -> dict[str, Plan]:
    """The plan of every method for the ``count`` largest eigenvalues, by name."""
    return {name: make(operator, count, memory) for name, make in MAKERS.items()}


def choose(operator: CovarianceOperator, count: int, method: str, memory: int) -> Plan:
    """The plan of the given method, or the cheapest that fits; ValueError if it, or every one, needs more memory."""
    candidates = plans(operator, count, memory)
    if method != "auto":
        candidates = {method: candidates[method]}
    fitting = [plan for plan in candidates.values() if plan.bytes <= memory]
    if not fitting:
        least = min(plan.bytes for plan in candidates.values())
        raise ValueError(
            f"memory must be at least {least} bytes for the {count} largest eigenvalues of a covariance of order "
            f"{operator.dimension} over {operator.size} examples, got {memory}; increase memory, ask for fewer, or "
            "make the covariance with a smaller block"
        )
    return min(fitting, key=lambda plan: plan.operations)


def largest_rank(operator: CovarianceOperator) -> int:
    """min(N − 1, n), the largest possible rank, at least 1."""
    return max(min(operator.size - 1, operator.dimension), 1)
