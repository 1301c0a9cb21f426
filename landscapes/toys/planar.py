r"""Toys in the plane, with products from second and third partial derivatives."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from landscapes.autodiff import Field
from landscapes.toys.closed_form import Toy

Partial = Tensor | float  # (...,), or a number if it is constant


class Planar(Toy):
    """f(x, y): H and D³f from its partial derivatives."""

    @property
    def dimension(self) -> int:
        """2."""
        return 2

    @abstractmethod
    def second_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial]:
        """f_xx, f_xy, f_yy at θ (..., 2)."""

    @abstractmethod
    def third_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial, Partial]:
        """f_xxx, f_xxy, f_xyy, f_yyy at θ (..., 2)."""

    def curvature(self, theta: Tensor) -> Field:
        f_xx, f_xy, f_yy = self.second_partials(theta)

        def product(v: Tensor) -> Tensor:
            pair = f_xx * v[..., 0] + f_xy * v[..., 1], f_xy * v[..., 0] + f_yy * v[..., 1]
            return torch.stack(torch.broadcast_tensors(*pair), dim=-1)  # a constant row has v's shape, another θ's too

        return product

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """f_xxx, f_xxy, f_xyy, f_yyy contracted with u and v."""
        f_xxx, f_xxy, f_xyy, f_yyy = self.third_partials(theta)
        (u_x, u_y), (v_x, v_y) = u.unbind(-1), v.unbind(-1)
        xx, xy, yy = u_x * v_x, u_x * v_y + u_y * v_x, u_y * v_y
        return torch.stack((f_xxx * xx + f_xxy * xy + f_xyy * yy, f_xxy * xx + f_xyy * xy + f_yyy * yy), dim=-1)
