r"""Diagonal blocks of the Hessian, such as that of one layer, by products with the whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from landscapes.errors import check_float_tensor, check_image, kind_of
from landscapes.krylov.space import Product, check_product


def block_product(product: Product, like: Tensor, part: slice) -> Product:
    r"""v (n,) ↦ H_pp v (n,), the diagonal block of the coordinates ``part`` of θ; one product with H each.

    ``like`` (d,) gives size, precision and device. Every method of this package accepts it: top eigenpairs, density or
    trace of a layer. Raises ValueError if ``part`` is empty or descending.
    """
    check_product("product", product)
    check_float_tensor("like", like)
    if not isinstance(part, slice):
        raise TypeError(f"part must be a slice of theta, got {type(part).__name__}")
    if like.ndim != 1 or len(range(*part.indices(like.shape[-1]))) == 0 or (part.step or 1) < 0:
        raise ValueError(
            f"part must name coordinates of one vector (d,), in ascending order, got {part} for like of shape "
            f"{tuple(like.shape)}"
        )

    def product_of_part(v: Tensor) -> Tensor:
        whole = torch.zeros_like(like)
        check_float_tensor("v", v)
        if v.shape != whole[part].shape or v.dtype != whole.dtype:
            raise ValueError(f"v must have shape {tuple(whole[part].shape)} and {whole.dtype}, got {kind_of(v)}")
        whole[part] = v
        return check_image("product", product(whole), whole)[part]

    return product_of_part
