r"""Derivatives by automatic differentiation, batched, real or holomorphic.

A field is a function of θ (..., d) whose batch members do not interact, so the gradient of its sum over the batch is
the batch of gradients. torch returns the conjugate of a holomorphic derivative; the conjugations below undo this, so
that every product is bilinear (uᵀHv, not uᴴHv).

Second and third products use reverse over reverse mode: forward mode through fused normalisation layers gives wrong
second derivatives without an error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from landscapes.errors import UnsupportedError

Field = Callable[[Tensor], Tensor]


def inside_transform() -> bool:
    """True inside a torch.func transform (vmap, jvp, grad, ...), where torch.autograd.grad must not be called."""
    return torch._C._are_functorch_transforms_active()


def conjugate(tensor: Tensor) -> Tensor:
    """Complex conjugate with the lazy bit resolved; the tensor itself if it is real."""
    return tensor.conj().resolve_conj() if tensor.is_complex() else tensor


def wants_graph(theta: Tensor) -> bool:
    """Whether results must stay attached to θ: it requires grad and autograd is on."""
    return theta.requires_grad and torch.is_grad_enabled()


def refuse_inference() -> None:
    """Raise under torch.inference_mode(), where every derivative would be zero without an error."""
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(
            "derivatives are not available under torch.inference_mode(); use torch.no_grad() instead"
        )


def release(result: Tensor, theta: Tensor) -> Tensor:
    """``result``, detached from the graph that v or the weights may carry unless θ requires grad."""
    return result if wants_graph(theta) or inside_transform() else result.detach()


def gradient(field: Field, theta: Tensor) -> Tensor:
    """Holomorphic derivative of a scalar field (...,) at θ (..., d); attached to θ only where θ requires grad."""
    refuse_inference()
    if inside_transform():  # torch.autograd.grad is not valid on functorch's wrapped tensors
        value, pullback = torch.func.vjp(field, theta)  # type: ignore[misc]  # stubs know the has_aux form only
        return conjugate(pullback(torch.ones_like(value))[0])
    attached = wants_graph(theta)
    with torch.enable_grad():
        leaf = theta if attached else theta.detach().requires_grad_()
        return transposed_product(field(leaf), leaf, None, create_graph=attached)


def transposed_product(
    output: Tensor, leaf: Tensor, cotangent: Tensor | None, create_graph: bool = False, retain_graph: bool | None = None
) -> Tensor:
    """Jᵀ·cotangent (bilinear) of ``output`` with respect to ``leaf``; zeros where the two are not connected."""
    refuse_inference()
    if not output.requires_grad:
        return torch.zeros_like(leaf)
    # torch conjugates both the cotangent and the product: undoing both leaves Jᵀ in place of Jᴴ
    weights = torch.ones_like(output) if cotangent is None else conjugate(cotangent)
    (product,) = torch.autograd.grad(
        output, leaf, weights, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    return conjugate(product)
