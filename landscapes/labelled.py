r"""Sums of square losses with known labels: the derivative of the gradient with respect to the labels.

For f_i(θ) = ½ ‖m_i(θ) − y_i‖², with outputs m_i and labels y_i in R^C, the mixed derivative ∂²f_i/∂θ∂y_i is −J_iᵀ,
J_i = ∂m_i/∂θ (C, d): exact, not a linearisation, as the gradient is affine in the labels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import final

from torch import Tensor

from landscapes.errors import UnsupportedError, check_count, check_float_tensor
from landscapes.landscape import FiniteSum, Landscape
from landscapes.wrappers.counted import CountedSum
from landscapes.wrappers.regularised import RegularisedSum


class LabelledSum(FiniteSum):
    r"""A finite sum of square losses f_i = ½ ‖m_i(θ) − y_i‖², y_i in R^C.

    A subclass gives ``label_size``, ``label_product`` and ``label_grads``. ``label_size`` raises UnsupportedError if
    the loss is not a square.
    """

    @property
    @abstractmethod
    def label_size(self) -> int:
        """C, how many numbers the label of an example has."""

    @property
    def linear(self) -> bool:
        """Whether the outputs are known to be linear in θ, so that ∂²f_i/∂θ∂y_i does not depend on it."""
        return False

    @abstractmethod
    def label_product(self, theta: Tensor, cotangent: Tensor) -> Tensor:
        """Σ_i (∂²f_i/∂θ∂y_i) c_i = −Σ_i J_iᵀ c_i, shape (..., d), in one backward pass.

        ``cotangent`` (..., N·C): C consecutive numbers for each example.
        """

    @abstractmethod
    def label_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∂²f_i/∂θ∂y_i of each example, a row for each number of its label: −J_i, shape (..., m, C, d)."""

    def check_cotangent(self, cotangent: Tensor) -> Tensor:
        """Return the cotangent; raise unless it has shape (..., N·C)."""
        check_float_tensor("cotangent", cotangent)
        length = self.size * self.label_size
        if cotangent.ndim == 0 or cotangent.shape[-1] != length:
            raise ValueError(
                f"cotangent must have shape (..., {length}), {self.label_size} numbers for each of {self.size} "
                f"examples, got {tuple(cotangent.shape)}"
            )
        return cotangent


@final
class CountedLabels(CountedSum, LabelledSum):
    """A labelled sum with counts: a product over all labels is one grad, C products of one example are C/N of one."""

    @property
    def label_size(self) -> int:
        """C, how many numbers the label of an example has."""
        return self.landscape.label_size

    @property
    def linear(self) -> bool:
        """Whether the outputs of the wrapped sum are linear in θ."""
        return self.landscape.linear

    def label_product(self, theta: Tensor, cotangent: Tensor) -> Tensor:
        """Σ_i (∂²f_i/∂θ∂y_i) c_i, one grad a member."""
        self._count("grad", self.check(theta), 1, self.check_cotangent(cotangent))
        return self.landscape.label_product(theta, cotangent)

    def label_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∂²f_i/∂θ∂y_i of each example, C·m/N grads a member."""
        self._count("grad", self.check(theta), self.label_size * self._share(index), index)
        return self.landscape.label_grads(theta, index)


def labelled_sum_of(landscape: Landscape) -> LabelledSum:
    """The labelled sum in a landscape, also inside Regularised (penalties have no labels) or Counted (same counts).

    Raises UnsupportedError for a landscape that is not a sum of square losses with known labels.
    """
    if isinstance(landscape, RegularisedSum):
        return labelled_sum_of(landscape.landscape)
    if isinstance(landscape, LabelledSum):
        check_count("label_size", landscape.label_size)  # a network raises here for other losses
        return landscape
    if isinstance(landscape, CountedSum):
        return CountedLabels(labelled_sum_of(landscape.landscape), landscape.counts, landscape.unit)
    raise UnsupportedError(
        f"{type(landscape).__name__} has no known labels: label noise needs square losses, LinearRegression or "
        "NetworkLandscape with nets.square_loss, plain or in Regularised; for another noise use MinibatchNoise or "
        "AnalyticNoise"
    )
