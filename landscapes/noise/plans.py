r"""Which way to the eigenvalues of a noise covariance is cheapest and fits: matrix, Gram matrix or block Krylov space.

All three are the same spectrum. D (n, n) takes one pass and n³, the Gram matrix (N, N) of the examples' gradients N³
and, where the N × n gradients do not fit beside it, about N/(2P) passes with panels of P examples; the block Krylov
method a pass a step for as many eigenpairs as the block is wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from landscapes.noise.covariance import CovarianceOperator

Method = Literal["dense", "gram", "krylov"]
METHODS = ("auto", "dense", "gram", "krylov")

DOUBLE = 8  # bytes
MATRICES = 3  # that a dense eigensolver holds: the matrix, its vectors, workspace
SOLVER = 12  # operations of a dense symmetric eigensolver with vectors, times the side cubed
GRADIENT = 100  # operations of one example's gradient, times n: 6 for a dense layer, hundreds where weights are shared
STEPS = 8  # products with a block that the Krylov method is expected to take
BASIS = 8  # blocks that it likes to hold, 3 at the least
SPARE = 10  # guards: rows carried beyond those that are wanted, or a fifth of them


@dataclass(frozen=True)
class Plan:
    """What a method is expected to take: passes, bytes beyond the landscape's own, and operations; ``rows`` it holds.

    ``rows``: examples of a panel for the Gram matrix, of the basis for the Krylov method.
    """

    method: Method
    passes: float
    bytes: int
    operations: float
    rows: int


def guarded(operator: CovarianceOperator, count: int) -> int:
    """Rows of the block that is carried for ``count`` pairs."""
    return min(count + max(SPARE, count // 5), operator.dimension)


def row_bytes(operator: CovarianceOperator) -> int:
    """Bytes of a vector (n,)."""
    return operator.dimension * operator.like.element_size()


def block_bytes(operator: CovarianceOperator) -> int:
    """Bytes of what a walk holds: a block of gradients, and the same centred."""
    gradients = operator.gradients
    row = gradients.dimension * operator.like.element_size()
    return 2 * gradients.block * row + (gradients.size * row if gradients.keep else 0)


def dense_plan(operator: CovarianceOperator, count: int, memory: int) -> Plan:
    """The matrix C itself."""
    N, n = operator.size, operator.dimension
    size = MATRICES * DOUBLE * n**2 + block_bytes(operator)
    return Plan("dense", 2, size, 2 * GRADIENT * N * n + 4 * N * n**2 + SOLVER * n**3, n)


def gram_plan(operator: CovarianceOperator, count: int, memory: int) -> Plan:
    """The Gram matrix, with as large a panel of gradients as the memory beside it takes."""
    N, n = operator.size, operator.dimension
    fixed = MATRICES * DOUBLE * N**2 + block_bytes(operator) + 4 * guarded(operator, count) * row_bytes(operator)
    panel = operator.panel(max(memory - fixed, 1))
    held = 0 if operator.gradients.keep else panel * row_bytes(operator)
    passes = operator.panel_passes(max(memory - fixed, 1)) + 2
    return Plan("gram", passes, fixed + held, passes * GRADIENT * N * n + 2 * N**2 * n + SOLVER * N**3, panel)


def krylov_plan(operator: CovarianceOperator, count: int, memory: int) -> Plan:
    """Blocks of a few rows more than are wanted; a basis with its images, and the block's vectors and residuals."""
    N, n, width = operator.size, operator.dimension, guarded(operator, count)
    fixed = block_bytes(operator) + 4 * width * row_bytes(operator)
    fitting = (memory - fixed) // (2 * row_bytes(operator))
    rows = min(max(fitting, 3 * width), BASIS * width)
    operations = STEPS * (GRADIENT * N * n + 4 * N * n * width + 4 * BASIS * width**2 * n)
    return Plan("krylov", STEPS, fixed + 2 * rows * row_bytes(operator), operations, rows)


MAKERS = {"dense": dense_plan, "gram": gram_plan, "krylov": krylov_plan}


def plans(operator: CovarianceOperator, count: int, memory: int) -> dict[str, Plan]:
    """What every method would take for the ``count`` largest eigenvalues, by name."""
    return {name: make(operator, count, memory) for name, make in MAKERS.items()}


def choose(operator: CovarianceOperator, count: int, method: str, memory: int) -> Plan:
    """The plan of the method asked for, or the cheapest that fits; raise ValueError where it does not fit in memory."""
    candidates = plans(operator, count, memory)
    if method != "auto":
        candidates = {method: candidates[method]}
    fitting = [plan for plan in candidates.values() if plan.bytes <= memory]
    if not fitting:
        least = min(plan.bytes for plan in candidates.values())
        raise ValueError(
            f"memory must be at least {least} bytes for the {count} largest eigenvalues of a covariance of side "
            f"{operator.dimension} over {operator.size} examples, got {memory}; give more, ask for fewer, or make the "
            "covariance with a smaller block"
        )
    return min(fitting, key=lambda plan: plan.operations)


def largest_rank(operator: CovarianceOperator) -> int:
    """min(N − 1, n), the most eigenvalues that can differ from zero, and one where that is none."""
    return max(min(operator.size - 1, operator.dimension), 1)
