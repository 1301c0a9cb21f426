r"""A network's outputs as functions of θ, and for square losses the derivative of its gradient by the labels.

With f_i = ½ ‖m_i(θ) − y_i‖² the product −Σ_i J_iᵀ c_i is the gradient of the network whose loss is −c_iᵀ m_i and whose
targets are the c_i: chunks, members and ghost batches (means over their examples) are then as for any loss.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from landscapes.description import describe, name_of
from landscapes.errors import UnsupportedError
from landscapes.labelled import LabelledSum
from landscapes.landscape import Change
from nets.chunked import each_member
from nets.examples import Examples
from nets.functional import ModuleFunction
from nets.losses import square_loss

LossFunction = Callable[[Tensor, Tensor], Tensor]


def negative_pairing(outputs: Tensor, cotangents: Tensor) -> Tensor:
    """−c_iᵀ m_i of each example, (m,), for outputs and cotangents (m, C)."""
    return -(outputs * cotangents).sum(dim=-1)


class NetworkOutputs(LabelledSum):
    """Outputs of a network landscape, (N, ...) at one member; labels for ``nets.square_loss`` only."""

    loss_fn: LossFunction
    _function: ModuleFunction
    _examples: Examples

    @property
    @abstractmethod
    def _chunk(self) -> int:
        """Number of examples evaluated at a time."""

    @abstractmethod
    def _check_mode(self, index: Tensor | None = None) -> None:
        """Raise if in its mode the module's outputs are no function of θ and the example."""

    @abstractmethod
    def _first_examples(self, m: int) -> NetworkOutputs:
        """The network on its first m examples."""

    def with_parts(self, change: Change) -> NetworkOutputs:
        return self  # one landscape, although its checks hold another on fewer examples

    def description(self) -> dict[str, Any]:
        """Architecture, loss, weights and data, as ``Landscape.description``."""
        function = self._function
        return {
            "class": name_of(type(self)),
            "module": describe(function.module),
            "training": any(function.mode()),
            "loss_fn": describe(self.loss_fn),
            "size": self.size,
            "inputs": [describe(tensor) for tensor in self._examples.inputs],
            "targets": describe(self._examples.targets),
            "theta0": describe(function.theta0),
            "buffers": {name: describe(buffer) for name, buffer in function.buffers.items()},
        }

    def outputs(self, theta: Tensor) -> Tensor:
        """module_θ(x_i) of every example, shape (..., N, ...), without a graph; for predictions and accuracies."""
        self.check(theta)
        self._check_mode()
        with torch.no_grad():
            return each_member(self._member_outputs, theta)

    def _member_outputs(self, theta: Tensor) -> Tensor:
        return torch.cat([self._outputs(theta, part) for _, part in self._examples.chunks(self._chunk, None)])

    def _outputs(self, theta: Tensor, part: Examples) -> Tensor:
        """Outputs of some examples at one member, (m, ...); raise unless they are one tensor."""
        outputs = self._function(theta, part.inputs)
        if not isinstance(outputs, Tensor):
            raise UnsupportedError(f"outputs must be one tensor, the module returns {type(outputs).__name__}")
        return outputs

    @property
    def label_size(self) -> int:
        """C, the number of outputs of an example (g·C of a ghost batch). Raises UnsupportedError for other losses."""
        if self.loss_fn is not square_loss:
            raise UnsupportedError(
                "labels enter the gradient linearly for nets.square_loss only, got loss_fn="
                f"{getattr(self.loss_fn, '__name__', self.loss_fn)!r}; build the landscape with nets.square_loss, or "
                "use MinibatchNoise"
            )
        return self._label_shape.numel()

    @cached_property
    def _label_shape(self) -> torch.Size:
        few = self._first_examples(2)
        with torch.no_grad():
            outputs = few._outputs(self._function.theta0, few._examples)
        # a ghost batch was evaluated on fewer examples: its size is that of the inputs
        return torch.Size((*self._examples.inputs[0].shape[1 : outputs.ndim - 1], outputs.shape[-1]))

    def label_product(self, theta: Tensor, cotangent: Tensor) -> Tensor:
        """Σ_i (∂²f_i/∂θ∂y_i) c_i = −Σ_i J_iᵀ c_i, shape (..., d), in one backward pass a chunk; c (..., N·C)."""
        self.check(theta)
        everything = torch.ones(self.size, dtype=self._function.dtype, device=self._function.device)

        def product(x: Tensor, c: Tensor) -> Tensor:
            return self._with_cotangents(c).weighted_grad(x, everything)

        return each_member(product, theta, self.check_cotangent(cotangent))

    def label_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∂²f_i/∂θ∂y_i of each example, −J_i, shape (..., m, C, d): ``example_grads`` once for each output."""
        self.check(theta)
        units = torch.eye(self.label_size, dtype=self._function.dtype, device=self._function.device)
        rows, paired = [], self
        for unit in units:
            # derived from the previous one, which has cached whether vmap supports the module
            paired = paired._with_cotangents(unit.expand(self.size, -1))
            rows.append(paired.example_grads(theta, index))
        return torch.stack(rows, dim=-2)

    def _with_cotangents(self, cotangent: Tensor) -> NetworkOutputs:
        """The network with the loss −c_iᵀ m_i, for N·C cotangents."""
        paired = copy.copy(self)
        paired.loss_fn = negative_pairing
        paired._examples = Examples(self._examples.inputs, cotangent.reshape(self.size, *self._label_shape))
        return paired
