r"""The symmetric root of a covariance, differentiable also at repeated eigenvalues.

S = √C satisfies S dS + dS S = dC, in the eigenbasis of S (dS)_ij = (dC)_ij / (s_i + s_j). This is regular at repeated
eigenvalues, where derivatives of eigenvectors do not exist. If s_i + s_j = 0 to rounding, (dS)_ij is set to zero, which
is exact if the kernel of C does not depend on θ (a covariance of fixed lower rank); otherwise √C has no derivative.
Both maps below are differentiable to any order by the same equation: in reverse mode, with at most one forward mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from landscapes.errors import UnsupportedError
from landscapes.toys.closed_form import symmetric_matrix


class IndefiniteCovarianceError(ValueError):
    """A covariance has an eigenvalue that is negative beyond rounding."""


def square_root(matrix: Tensor) -> Tensor:
    r"""√C ⪰ 0 with √C √C = C, for finite symmetric C (..., d, d); eigenvalues within rounding of zero are zero.

    Raises IndefiniteCovarianceError for an eigenvalue that is negative beyond rounding, ValueError where C is not
    symmetric or not finite, UnsupportedError inside two forward-mode transforms.
    """
    check_forward_mode()
    return SquareRoot.apply(matrix)


def check_forward_mode() -> None:
    """Raise inside two torch.func.jvp: torch drops the dependence of the inner derivative on the outer direction."""
    # pytorch issue 197867: through an autograd.Function the second derivative is wrong, without an error
    levels = torch._C._functorch.get_interpreter_stack() or ()
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels) > 1:
        raise UnsupportedError(
            "a symmetric root cannot be differentiated by jvp inside jvp (jacfwd inside jacfwd): use torch.func.grad "
            "or jacrev for one of the two, or AnalyticNoise with a root of your own"
        )


def symmetric_part(matrix: Tensor) -> Tensor:
    """(A + Aᵀ)/2."""
    return (matrix + matrix.mT) / 2


def rounding(eigenvalues: Tensor) -> Tensor:
    """Bound (..., 1) on the rounding of eigenvalues (..., d) of a symmetric matrix."""
    width = 10 * eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps
    return width * eigenvalues.abs().amax(dim=-1, keepdim=True)


def check_semidefinite(eigenvalues: Tensor, allowed: Tensor) -> None:
    """Raise unless eigenvalues (..., d) are at least −``allowed`` (..., 1)."""
    worst = int((eigenvalues + allowed).amin(dim=-1).argmin())
    lowest, bound = float(eigenvalues.amin(dim=-1).flatten()[worst]), float(allowed.flatten()[worst])
    if lowest < -bound:
        raise IndefiniteCovarianceError(
            f"covariance must be positive semidefinite, got the eigenvalue {lowest:.6g} where rounding allows "
            f"{-bound:.2g}; C = A Aᵀ is positive semidefinite for every A: pass A as the root of an AnalyticNoise"
        )


class SquareRoot(torch.autograd.Function):
    """C ↦ √C, symmetric, by an eigendecomposition."""

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        """√C."""
        values, vectors = torch.linalg.eigh(symmetric_matrix("covariance", matrix))
        allowed = rounding(values)
        check_semidefinite(values, allowed)
        roots = torch.where(values > allowed, values, 0).sqrt()
        return (vectors * roots[..., None, :]) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return Sylvester.apply(root, symmetric_part(cotangent))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """dS of S dS + dS S = dC."""
        (root,) = ctx.saved_tensors
        return Sylvester.apply(root, symmetric_part(tangent))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], matrix: Tensor) -> tuple[Tensor, int]:
        """Move the mapped dimension to the front, where it is batched."""
        (dim,) = in_dims
        return square_root(matrix.movedim(dim or 0, 0)), 0


class Sylvester(torch.autograd.Function):
    """(S, B) ↦ Y with S Y + Y S = B, S ⪰ 0 and B symmetric (..., d, d); zero where s_i + s_j is zero to rounding."""

    @staticmethod
    def forward(root: Tensor, right: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(root)
        sums = values[..., :, None] + values[..., None, :]
        regular = sums > rounding(values)[..., None]
        turned = vectors.mT @ right @ vectors
        # the inner where keeps 0/0 out of the graph: a NaN in the branch not taken would reach the gradient
        return vectors @ torch.where(regular, turned / torch.where(regular, sums, 1), 0) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """The transpose of dY = solve(S, dB − dS Y − Y dS)."""
        root, solution = ctx.saved_tensors
        right = Sylvester.apply(root, symmetric_part(cotangent))
        return -2 * symmetric_part(right @ solution), right

    @staticmethod
    def jvp(ctx: Any, root_tangent: Tensor | None, right_tangent: Tensor | None) -> Tensor:
        """dY = solve(S, dB − dS Y − Y dS)."""
        root, solution = ctx.saved_tensors
        change = torch.zeros_like(solution) if right_tangent is None else right_tangent
        if root_tangent is not None:
            change = change - 2 * symmetric_part(root_tangent @ solution)
        return Sylvester.apply(root, symmetric_part(change))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], root: Tensor, right: Tensor) -> tuple[Tensor, int]:
        """Move the mapped dimension to the front, where it is batched."""
        first, second = (
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((root, right), in_dims, strict=True)
        )
        return Sylvester.apply(first, second), 0
