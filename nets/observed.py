"""Observation of a module's call: the modules called, their inputs, and the torch operations in each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ATTENTION = "scaled_dot_product_attention"


@dataclass(eq=False)
class Call:
    """The first call of a module: copies of its inputs, its weights and buffers, outputs, and operations inside."""

    name: str
    module: nn.Module
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    outputs: list[Tensor] = field(default_factory=list)
    operations: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Observation:
    """Calls in the order of their ends, innermost first, their number, and operations in the module and outside it."""

    calls: list[Call] = field(default_factory=list)
    count: int = 0
    operations: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)


@contextmanager
def observe(module: nn.Module) -> Iterator[Observation]:
    """Observe every call of ``module`` inside the block; hooks are removed after it."""
    seen = Observation()
    open_calls: list[Call] = []
    handles = []
    for name, part in module.named_modules():
        handles += hooks(name, part, seen, open_calls)
    try:
        with Functions(seen), Operations(seen, open_calls):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def hooks(name: str, part: nn.Module, seen: Observation, open_calls: list[Call]) -> list[Any]:
    """Hooks that open a call before a module's forward pass and close it after."""

    def open_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.count += 1
        # copies: an in-place operation of the module may change its inputs
        copies = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        buffers = {key: buffer.detach().clone() for key, buffer in part.named_buffers()}
        parameters = {key: parameter.detach() for key, parameter in part.named_parameters()}
        open_calls.append(Call(name, part, copies, parameters, buffers))

    def close_call(_: nn.Module, __: Any, outputs: Any) -> None:
        call = open_calls.pop()
        call.outputs = [out.detach() for out in floating_tensors(outputs)]
        if all(other.module is not part for other in seen.calls):
            seen.calls.append(call)

    return [
        part.register_forward_pre_hook(open_call, prepend=True, with_kwargs=True),
        part.register_forward_hook(close_call),
    ]


class Operations(TorchDispatchMode):
    """Records the name of every torch operation in all open calls."""

    def __init__(self, seen: Observation, open_calls: list[Call]):
        super().__init__()
        self.seen, self.open_calls = seen, open_calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record it; in-place ones under their plain names."""
        name = func.overloadpacket.__name__.rstrip("_")
        if name == "elu" and has_kink(*args[1:], **(kwargs or {})):
            name = "sharp_elu"
        (self.seen.operations if self.open_calls else self.seen.outside).add(name)
        for call in self.open_calls:
            call.operations.add(name)
        return func(*args, **(kwargs or {}))


def has_kink(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0, **_: Any) -> bool:
    """Whether an elu's one-sided slopes at zero, scale·alpha·input_scale and scale, differ, as selu's."""
    return not math.isclose(alpha * input_scale, 1.0)


class Functions(TorchFunctionMode):
    """Records attention, which torch dispatches to several kernels."""

    def __init__(self, seen: Observation):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and record it."""
        if getattr(func, "__name__", "") == ATTENTION:
            self.seen.operations.add(ATTENTION)
        return func(*args, **(kwargs or {}))


def floating_tensors(outputs: Any) -> list[Tensor]:
    """The real floating tensors in a module's outputs, a pytree."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def uses_attention(module: nn.Module, seen: Observation) -> bool:
    """Whether a module calls torch's attention, whose fast kernels have no second derivative."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return ATTENTION in seen.operations | seen.outside or any(isinstance(part, kinds) for part in module.modules())


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention from plain products, without fused kernels and the fast path of inference."""
    shortcut = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(shortcut)
