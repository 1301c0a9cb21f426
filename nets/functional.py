r"""A module as a function of flat weights: outputs = module(inputs) with θ (d,) in place of its parameters.

The module is not modified. Its weights and buffers are replaced during a call, a shared tensor at each of its places;
buffers are replaced by copies, so that changes by the forward pass (batch norm's running statistics) are discarded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from landscapes.autodiff import Field
from landscapes.errors import UnsupportedError
from nets.layers import BatchNorm
from nets.observed import observe, plain_attention


class ModuleFunction:
    r"""outputs = module(*inputs) at flat weights θ (d,), in the order of ``module.parameters()``.

    Frozen parameters (``requires_grad=False``) are part of θ, as ``parameters()`` lists them. Weights and buffers are
    those at construction; the mode (train or eval) is that at the call.
    """

    def __init__(self, module: nn.Module):
        check_module(module)
        parameters = dict(module.named_parameters())
        first = next(iter(parameters.values()))
        self.module = module
        self.dtype = first.dtype
        self.device = first.device
        self.theta0 = torch.cat([p.detach().reshape(-1) for p in parameters.values()])  # (d,)
        self._sizes = [p.numel() for p in parameters.values()]
        self._shapes = [p.shape for p in parameters.values()]
        self._names = list(parameters)
        self._buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        places = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        self._tied = len(places) > len(parameters) + len(self._buffers)
        self._modules = list(module.modules())
        self._dropouts = [(n, m) for n, m in module.named_modules() if isinstance(m, _DropoutNd)]
        self._batch_norms = [(n, m) for n, m in module.named_modules() if isinstance(m, (_BatchNorm, BatchNorm))]
        self.attention = False
        """Whether the module calls torch's attention, which is then computed by plain products."""

    def __call__(self, theta: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """Outputs of the module at θ (d,); floating inputs become complex if θ is."""
        # a bias is a slice of θ without a view: for small networks views are half of the cost of this method
        parts = [p if len(s) == 1 else p.view(s) for p, s in zip(theta.split(self._sizes), self._shapes, strict=True)]
        tensors = dict(zip(self._names, parts, strict=True))
        tensors |= self._fresh_buffers(theta.real.dtype)
        if theta.is_complex():
            inputs = tuple(x.to(theta.dtype) if x.is_floating_point() else x for x in inputs)
        with self.kernels():
            # tie_weights only if needed: torch searches for shared tensors at every call
            return torch.func.functional_call(self.module, tensors, inputs, tie_weights=self._tied)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The module's buffers at construction, by name."""
        return self._buffers

    def _fresh_buffers(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Copies of the buffers, those of the module's dtype in θ's precision."""
        return {
            name: buffer.to(dtype if buffer.dtype == self.dtype else buffer.dtype, copy=True)
            for name, buffer in self._buffers.items()
        }

    def kernels(self) -> AbstractContextManager[None]:
        """A context in which attention, if any, is computed by plain products."""
        return plain_attention() if self.attention else nullcontext()

    def layers(self) -> dict[str, slice]:
        """The slice of θ of each module's own weights, by the module's name."""
        found: dict[str, slice] = {}
        place = 0
        for name, size in zip(self._names, self._sizes, strict=True):
            layer = name.rpartition(".")[0]  # a module's own weights are contiguous
            found[layer] = slice(found[layer].start if layer in found else place, place + size)
            place += size
        return found

    def mode(self) -> tuple[bool, ...]:
        """The training flag of each module."""
        return tuple(module.training for module in self._modules)

    def check_mode(self) -> None:
        """Raise if a module drops units at random in its current mode."""
        for name, module in self._dropouts:
            if module.training and module.p > 0:
                raise UnsupportedError(
                    f"module {name!r} ({module}) is in training mode and draws at random: the loss would not be a "
                    "function of theta; call module.eval() or set p=0"
                )

    def coupling(self) -> str | None:
        """The name of a batch norm, if any, that uses batch statistics, which make f_i depend on other examples."""
        for name, module in self._batch_norms:
            if module.training or module.running_mean is None:
                return f"{name!r} ({type(module).__name__})"
        return None


def check_module(module: nn.Module) -> None:
    """Raise unless ``module`` is an nn.Module with weights, all of one real floating dtype on one device."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedError("module must be a plain nn.Module, got a ScriptModule; give the module before scripting")
    parameters = dict(module.named_parameters())
    if not parameters:
        raise ValueError("module must have parameters, got a module without any")
    lazy = [name for name, p in parameters.items() if is_lazy(p)]
    if lazy:
        raise ValueError(f"module has uninitialised lazy parameters {lazy}; run it once on its inputs first")
    dtypes = {p.dtype for p in parameters.values()}
    if len(dtypes) > 1:
        raise TypeError(f"module must have parameters of one dtype, got {sorted(map(str, dtypes))}; use .to(dtype)")
    (dtype,) = dtypes
    if not dtype.is_floating_point:
        raise TypeError(f"module must have real floating parameters, got {dtype}; for complex theta give a real module")
    devices = {p.device for p in parameters.values()}
    if len(devices) > 1:
        raise ValueError(f"module must be on one device, got {sorted(map(str, devices))}; use .to(device)")


def deterministic_result(call: Callable[[], Tensor], device: torch.device) -> Tensor:
    """The result of ``call``; restore torch's generators and raise if it drew from them."""
    before = _generator_states(device)
    try:
        result = call()
        if all(torch.equal(a, b) for a, b in zip(before, _generator_states(device), strict=True)):
            return result
    finally:
        torch.set_rng_state(before[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(before[1], device)
    raise UnsupportedError(
        "the module or loss_fn draws random numbers: the loss would not be a function of theta; call module.eval(), or "
        "remove the random layer"
    )


def check_recomputes_nothing(module: nn.Module, field: Field, theta: Tensor) -> None:
    """Raise if a backward pass runs modules again (checkpointing): they would use their own weights, not θ."""
    with observe(module) as seen, torch.enable_grad():
        leaf = theta.detach().requires_grad_()
        value = field(leaf)
        before = seen.count
        if value.requires_grad:
            torch.autograd.grad(value, leaf)
    if seen.count > before:
        raise UnsupportedError(
            "the module checkpoints its activations: the backward pass would recompute them with its own weights, not "
            "with theta; switch checkpointing off and give chunk_size, which saves memory too"
        )


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
