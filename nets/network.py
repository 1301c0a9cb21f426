r"""Networks as landscapes: f(θ) = (1/N) Σ_i loss_fn(module_θ(x_i), y_i) on flat weights θ.

For any nn.Module and any loss with one value an example. The module is called with θ in place of its weights
(functional.py), for chunks of the examples and one member of a batch of θ at a time (chunked.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from landscapes.autodiff import Field, gradient, inside_transform, wants_graph
from landscapes.errors import (
    NotHolomorphicError,
    UnsupportedError,
    check_count,
    check_index,
    is_dense,
    kind_of,
    short_form,
)
from landscapes.expansion import AutogradExpansion, Expansion
from nets.chunked import ChunkedExpansion, each_member, total
from nets.derivatives import CheckedExpansion, DerivativeCheck
from nets.differences import smoothness_of
from nets.examples import Examples, examples_of
from nets.functional import ModuleFunction, check_recomputes_nothing, deterministic_result
from nets.losses import LOSSES
from nets.observed import observe, uses_attention
from nets.outputs import LossFunction, NetworkOutputs

PROBES = 2  # examples of the checks at construction
CHECKED = 4  # examples of the checks of derivatives


class NetworkLandscape(NetworkOutputs):
    r"""f(θ) = (1/N) Σ_i loss_fn(module_θ(x_i), y_i), θ (..., d) in the order of ``module.parameters()``.

    ``loss_fn(outputs, targets) -> (m,)`` gives one loss an example, such as ``nets.cross_entropy`` or
    ``functools.partial(F.cross_entropy, reduction="none")``. ``inputs`` is a tensor (N, ...) or a tuple of them,
    ``targets`` a tensor (N, ...); both are moved to the module's device and, if floating, cast to its dtype once. θ
    must have the module's dtype and device. ``theta0`` (d,) is a copy of the weights at construction. Frozen parameters
    are part of θ, shared ones once.

    The module is not modified: weights, grads, requires_grad, mode, buffers. Weights and buffers are those at
    construction, the mode that at the call. ``chunk_size``: number of examples evaluated at a time, None for all. A
    single chunk keeps its graph for all products of an expansion; several chunks recompute it and hold one at a time.
    Leading dimensions of θ are processed in a loop.

    Batch norm with batch statistics (training mode, or no running ones) makes f_i depend on all examples: only the full
    sum in one chunk is then defined, and an index or several chunks raise UnsupportedError; see GhostBatchLandscape.

    Before the first product of each order, from Hessian-vector products on, derivatives are compared with differences:
    WrongDerivativeError names a module with wrong derivatives, PiecewiseLinearWarning reports kinks.

    Raises TypeError or ValueError for a module without parameters or of mixed dtypes, inputs and targets of different
    or no length, a loss_fn that does not return (m,), an invalid chunk_size; UnsupportedError for a forward pass that
    draws random numbers (dropout in training mode), keeps a state, checkpoints its activations or changes the data in
    place.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Tensor,
        chunk_size: int | None = None,
    ):
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be callable, loss_fn(outputs, targets) -> (m,), got {short_form(loss_fn)}")
        self.loss_fn = loss_fn
        self.chunk_size = None if chunk_size is None else check_count("chunk_size", chunk_size)
        self._function = ModuleFunction(module)
        self._examples = examples_of(inputs, targets, self._function.dtype, self._function.device)
        self._repeatable: set[tuple[bool, ...]] = {self._function.mode()}  # _probe checks the current one
        self._check_mode()
        ours = any(loss_fn is known for known in LOSSES.values())
        self._derivatives = DerivativeCheck(self._function, self._first_examples(CHECKED)._forward_double, ours)
        self._smoothness: dict[tuple[bool, ...], float] = {}
        self._probe()

    def _first_examples(self, m: int) -> NetworkLandscape:
        """The network on copies of its first m examples."""
        few = copy.copy(self)
        few._examples = self._examples.select(torch.arange(min(m, self.size), device=self._function.device))
        return few

    def _probe(self) -> None:
        """Evaluate a few examples, so that an unsupported module or loss raises at construction."""
        few, theta = self._first_examples(PROBES)._examples, self.theta0
        self._check_repeats()
        with torch.no_grad(), observe(self._function.module) as seen:
            self._forward(theta, few)
        self._function.attention = uses_attention(self._function.module, seen)
        check_recomputes_nothing(self._function.module, lambda x: self._forward(x, few).sum(), theta)
        if any(tensor._version for tensor in (theta, *few.inputs, few.targets)):
            raise UnsupportedError(
                "the module or loss_fn changes its inputs, targets or weights in place: every call would use other "
                "data; set inplace=False in that layer"
            )

    @property
    def dimension(self) -> int:
        return self._function.theta0.shape[0]

    @property
    def smoothness(self) -> float:
        """0 if an operation always has kinks (relu, max pooling), 1 if its slope has (elu, Huber), else inf.

        Determined from the operations on a few examples at θ0 in the current mode. clamp, where, max and sort, whose
        kinks may never be reached, are ignored.
        """
        mode = self._function.mode()
        if mode not in self._smoothness:
            few = self._first_examples(CHECKED)
            with torch.no_grad(), observe(self._function.module) as seen:
                few._forward(self.theta0, few._examples)
            outside = set() if self._derivatives.trusted_loss else seen.outside
            self._smoothness[mode] = smoothness_of(seen.operations | outside)
        return self._smoothness[mode]

    @property
    def size(self) -> int:
        return len(self._examples)

    @property
    def theta0(self) -> Tensor:
        """The module's weights at construction, (d,): a new copy at each access."""
        return self._function.theta0.clone()

    @property
    def layers(self) -> dict[str, slice]:
        """The slice of θ of each layer's weights, in order; these define the diagonal blocks of the Hessian."""
        return self._function.layers()

    def loss(self, theta: Tensor) -> Tensor:
        """(1/N) Σ_i f_i(θ), shape (...,)."""
        self.check(theta)
        with graph_rule(theta):
            return each_member(lambda x: total(field(x) for field in self._fields()), theta)

    def grad(self, theta: Tensor) -> Tensor:
        """∇f(θ), shape (..., d)."""
        self.check(theta)
        if wants_graph(theta) and not inside_transform():
            self._derivatives(2)  # a gradient with a graph will be differentiated
        return each_member(lambda x: total(gradient(field, x) for field in self._fields()), theta)

    def expand(self, theta: Tensor) -> Expansion:
        """Loss, gradient and products: by one stored graph for a single chunk, else recomputed for each chunk."""
        self.check(theta)
        if self._chunk >= self.size:
            return CheckedExpansion(AutogradExpansion(self.loss, theta), self._derivatives)
        return CheckedExpansion(ChunkedExpansion(list(self._fields()), theta), self._derivatives)

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """f_i(θ) of the examples, shape (..., m); all N if the index is None."""
        self.check(theta)
        self._check_mode(index)
        with graph_rule(theta):
            return each_member(self._member_losses, theta, *self._indices(index))

    def _member_losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        return torch.cat([self._forward(theta, part) for _, part in self._examples.chunks(self._chunk, index)])

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """(1/m) Σ_{i in index} ∇f_i(θ), shape (..., d): the mini-batch gradient."""
        self.check(theta)
        check_index(index, self.size)
        return each_member(
            lambda x, i: total(gradient(field, x) for field in self._fields(i)), theta, *self._indices(index)
        )

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_i w_i ∇f_i(θ), shape (..., d), for weights (..., N), in one backward pass a chunk."""
        self.check(theta)
        self.check_weights(weights)
        if weights.is_complex() and not theta.is_complex():
            raise TypeError(f"weights must be real if theta is, got {weights.dtype}; give weights.real")
        return each_member(lambda x, w: total(gradient(field, x) for field in self._fields(weights=w)), theta, weights)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∇f_i(θ) of each example, shape (..., m, d).

        By torch.func.vmap over the examples of a chunk; one at a time for a module that vmap does not support (control
        flow on values) or, if θ requires grad, for which it gives wrong second derivatives. Both are tested once.
        """
        self.check(theta)
        if self._coupling() is not None:
            self._refuse_coupling("example_grads is not defined")
        self._check_mode()
        vectorises = self._vectorises and (self._vectorises_twice or not wants_graph(theta))
        grads = self._vmapped_grads if vectorises else self._looped_grads
        return each_member(grads, theta, *self._indices(index))

    @cached_property
    def _vectorises(self) -> bool:
        try:
            self._vmapped_grads(
                self._function.theta0, torch.arange(min(PROBES, self.size), device=self._function.device)
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # vmap's errors have no own type; an error of the module recurs in the loop
            return False
        return True

    @cached_property
    def _vectorises_twice(self) -> bool:
        """Whether vmap's gradients have the same derivatives as the loop's; not so for a fused layer norm."""
        few = self._first_examples(PROBES)
        few._examples = few._examples.double()
        theta = self.theta0.double()
        noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
        theta = theta + 0.1 * noise.to(theta.device)  # away from zero weights, at which errors may vanish
        vmapped, looped = (
            gradient(lambda x, grads=grads: grads(x).square().sum(), theta)  # type: ignore[misc]
            for grads in (few._vmapped_grads, few._looped_grads)
        )
        return bool((vmapped - looped).norm() <= 1e-8 * looped.norm())

    def _vmapped_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        def loss_of_one(x: Tensor, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
            return self._forward(x, Examples(tuple(i[None] for i in inputs), target[None])).squeeze(0)

        def grad_of_one(x: Tensor, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
            return gradient(lambda z: loss_of_one(z, inputs, target), x)

        each = torch.func.vmap(grad_of_one, in_dims=(None, 0, 0))
        with graph_rule(theta):
            return torch.cat([each(theta, p.inputs, p.targets) for _, p in self._examples.chunks(self._chunk, index)])

    def _looped_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        ones = [partial(self._mean, part, 1, None) for _, part in self._examples.chunks(1, index)]
        return torch.stack([gradient(field, theta) for field in ones])

    def restrict(self, index: Tensor) -> NetworkLandscape:
        """The mean over the examples in a 1-D ``index``: the same network on the selected tensors."""
        check_index(index, self.size)
        if index.ndim != 1:
            raise ValueError(f"index must have shape (m,), got {tuple(index.shape)}")
        fewer = copy.copy(self)
        fewer._examples = self._examples.select(index.to(self._function.device))
        return fewer

    def check(self, theta: Tensor) -> Tensor:
        """Return θ; raise unless it is (..., d) of the module's dtype and device, complex only if holomorphic."""
        super().check(theta)
        dtype = self._function.dtype.to_complex() if theta.is_complex() else self._function.dtype
        if theta.dtype != dtype:
            raise TypeError(f"theta must have the module's dtype {dtype}, got {theta.dtype}; use theta.to({dtype})")
        if theta.device != self._function.device:
            raise ValueError(f"theta must be on the module's device {self._function.device}, got {theta.device}")
        if theta.numel() == 0:
            raise ValueError(f"theta must have at least one member, got shape {tuple(theta.shape)}")
        return theta

    @property
    def _chunk(self) -> int:
        return self.size if self.chunk_size is None else self.chunk_size

    def _indices(self, index: Tensor | None) -> tuple[Tensor, ...]:
        return () if index is None else (check_index(index, self.size).to(self._function.device),)

    def _fields(self, index: Tensor | None = None, weights: Tensor | None = None) -> Iterator[Field]:
        """Fields (d,) → () of the chunks, which add up to the mean over the examples or to Σ_i w_i f_i."""
        self._check_mode(index)
        m = self.size if index is None else index.shape[0]
        for place, part in self._examples.chunks(self._chunk, index):
            yield partial(self._mean, part, m, None if weights is None else weights[place])

    def _mean(self, part: Examples, m: int, weights: Tensor | None, theta: Tensor) -> Tensor:
        losses = self._forward(theta, part)
        if weights is not None:
            return (losses * weights).sum()
        return losses.mean() if len(part) == m else losses.sum() / m

    def _forward(self, theta: Tensor, part: Examples) -> Tensor:
        """f_i(θ) of some examples at one member, (m,); raise unless loss_fn returns that."""
        losses = self.loss_fn(self._function(theta, part.inputs), part.targets)
        if not isinstance(losses, Tensor) or not is_dense(losses) or losses.shape != (len(part),):
            got = kind_of(losses) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"loss_fn must return one loss an example, shape ({len(part)},), got {got}; use reduction='none' and "
                "sum over the other dimensions"
            )
        if losses.dtype != theta.dtype:
            self._refuse_dtype(losses.dtype, theta.dtype)
        return losses

    def _forward_double(self, theta: Tensor) -> Tensor:
        """f_i(θ) of all examples at one member, (m,), in float64 for any precision of the module."""
        return self._forward(theta, self._examples.double())

    def _refuse_dtype(self, losses: torch.dtype, theta: torch.dtype) -> None:
        if theta.is_complex:
            raise NotHolomorphicError(
                f"loss_fn returned {losses} at complex theta: a real-valued loss is not holomorphic; write it from "
                "exp, log and products, without abs or real"
            )
        raise TypeError(f"loss_fn must return losses of the module's dtype {theta}, got {losses}")

    def _check_mode(self, index: Tensor | None = None) -> None:
        """Raise if the module draws random numbers, or couples examples that are not evaluated together."""
        self._function.check_mode()
        if self._function.mode() not in self._repeatable:
            self._check_repeats()
        if self._coupling() is None:
            return
        if index is not None:
            self._refuse_coupling("an index would change the statistics")
        if self._chunk < self.size:
            self._refuse_coupling(f"chunk_size={self._chunk} would change the statistics")

    def _check_repeats(self) -> None:
        """Raise if the module draws random numbers in its current mode; checked once for each mode."""
        theta = self.theta0

        def forward() -> Tensor:
            return self._forward(theta, self._first_examples(PROBES)._examples)

        with torch.no_grad():
            once, again = deterministic_result(forward, self._function.device), forward()
        # kernels with a varying order of summation differ by rounding; equal_nan, as the loss may be NaN at theta0
        if not torch.allclose(once, again, rtol=torch.finfo(theta.dtype).eps ** 0.5, equal_nan=True):
            raise UnsupportedError(
                "the module or loss_fn gives other losses at the same theta: it draws random numbers or keeps a state, "
                "so the loss is not a function of theta; remove the random layer or the state"
            )
        self._repeatable.add(self._function.mode())

    def _coupling(self) -> str | None:
        """The name of the module, if any, that makes f_i depend on other examples."""
        return self._function.coupling()

    def _refuse_coupling(self, why: str) -> None:
        raise UnsupportedError(
            f"batch norm {self._coupling()} uses batch statistics, so f_i depends on all examples: {why}; use "
            "GhostBatchLandscape, or call module.eval() for running statistics, or chunk_size=None and restrict(index)"
        )


class HolomorphicNetworkLandscape(NetworkLandscape):
    r"""A network whose loss is holomorphic in θ: complex θ of the module's precision is accepted.

    For layers and losses with complex kernels in torch (linear, conv2d, tanh, sigmoid, exp, log, products; no max
    pooling, relu or fused losses) and those of nets: norms, AveragePool, cross_entropy and the other losses. ``grad``
    is the holomorphic derivative, products are bilinear. The module and its data stay real; floating inputs are
    converted to complex at each call.

    Raises NotHolomorphicError if torch lacks a complex kernel or the loss violates the Cauchy–Riemann equations at θ0.
    """

    holomorphic = True

    def _probe(self) -> None:
        super()._probe()
        check_holomorphic(self._first_examples(PROBES))


def check_holomorphic(network: NetworkLandscape) -> None:
    r"""Raise unless f(θ0 + iεv) = f(θ0) + iε ∇f·v + O(ε²) along v = ∇f/‖∇f‖, and products exist at complex θ."""
    theta = network.theta0
    point = network.expand(theta)
    slope = point.grad.norm()
    v = point.grad / slope.clamp_min(torch.finfo(theta.dtype).tiny)
    # ε = eps^⅓ balances the O(ε²) of the step with eps/ε: torch's complex convolution rounds Im relative to Re
    epsilon = torch.finfo(theta.dtype).eps ** (1 / 3)
    shifted = torch.complex(theta, epsilon * v)
    try:
        value = network.loss(shifted)
        network.hvp(shifted, shifted)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NotHolomorphicError(
            f"torch cannot evaluate this module and loss_fn at complex theta ({error}); use tanh or sigmoid layers "
            "and nets.AveragePool, and nets.cross_entropy or another loss written from exp, log and products"
        ) from error
    # the first term is far above O(ε²) and far below the error of a non-holomorphic loss; the second allows rounding
    allowed = 1e-2 * slope + torch.finfo(theta.dtype).eps ** 0.5 * (1 + point.loss.abs())
    if not (value.imag / epsilon - slope).abs() <= allowed:
        raise NotHolomorphicError(
            "the loss fails the Cauchy-Riemann equations at theta0: its derivative along i·v is "
            f"{value.imag / epsilon:.6g} where a holomorphic one has {slope:.6g}; remove abs, real, imag and conj from "
            "module and loss_fn"
        )


def graph_rule(theta: Tensor) -> AbstractContextManager:
    """Autograd off unless results must stay attached to θ; tensors of the module or loss may require grad."""
    return nullcontext() if inside_transform() or wants_graph(theta) else torch.no_grad()
