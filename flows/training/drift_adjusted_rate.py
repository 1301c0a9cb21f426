r"""Learning rates from curvature for an ordinary torch training loop: any module, any optimiser, any mini-batch.

The rule is that of ``flows.descents.drift_adjusted``, with the gradients of a closure; the rate is written into the
optimiser's parameter groups before each step.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from flows.descents.drift_adjusted import adjusted_rate, check_adjustment, difference_length, norm, unit
from landscapes import UnsupportedError
from landscapes.autodiff import refuse_inference
from landscapes.errors import check_positive, short_form

Closure = Callable[[], Tensor]
Gradients = Sequence[Tensor | None]


@final
class DriftAdjustedRate:
    r"""The rate h = min(2/vᵖ, cap), v = ‖Hg‖/‖g‖, for an optimiser in a training loop (DAL-p).

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rate = DriftAdjustedRate(optimizer, power=0.5)
        for x, y in loader:
            loss = rate.step(lambda: loss_fn(model(x), y))  # gradients into .grad, the rate into the optimiser
            optimizer.step()

    g and H are those of the closure's loss at the optimiser's parameters, on the examples that it evaluates. ``power``
    p: 1 is DAL; 0 leaves the rates to the user or another scheduler, and computes no Hg. ``window`` w: v is the mean of
    its last w values. At p > 0 the first parameter group's rate is set to h, and the other groups keep their ratio to
    it at construction (a group added later: to the initial rate of the first).

    ``drift="exact"``: Hg by differentiating twice; the closure is called once. Torch's second derivatives are not
    checked: they are wrong, without an error, for its fused weight norm and for custom kernels that do not record their
    backward. ``"difference"``: Hg from the gradients at θ and θ + εĝ, ε = √eps(1 + ‖θ‖); the closure is called twice,
    and no graph of the gradient is stored. The second call draws the same random numbers from torch's own generators
    (CPU, and CUDA of the parameters' devices), and θ is restored exactly. Buffers are not restored: running statistics
    include both calls. Under autocast the rounding errors of the gradients exceed the difference: use "exact".

    g and H include a penalty in the closure's loss, but not the optimiser's weight decay, momentum and preconditioning,
    gradient clipping or a loss scale (which would multiply v). Gradients are computed by torch.autograd.grad: hooks on
    backward(), such as DistributedDataParallel's, do not run. Rosca et al. 2023, arXiv 2302.01952.

    Raises TypeError or ValueError for invalid arguments; UnsupportedError for an optimiser that requires a closure
    itself (LBFGS) or has no rate, for complex parameters and for sparse gradients.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        power: float = 1.0,
        cap: float = 5.0,
        window: int = 1,
        drift: str = "exact",
    ):
        check_adjustment(power, cap, window, drift)
        self.optimizer = check_optimizer(optimizer)
        self.power = float(power)
        self.cap = cap
        self.window = window
        self.drift = drift
        self._recent: deque[float] = deque(maxlen=int(window))
        self._base = self.get_last_lr()[0]
        self._ratios: list[float] = []
        if power > 0:
            check_positive("lr of the optimizer's first parameter group", self._base)
            self._ratios = [rate / self._base for rate in self.get_last_lr()]

    def get_last_lr(self) -> list[float]:
        """The current rate of each parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def step(self, closure: Closure) -> Tensor:
        """Write the gradients of ``closure() -> loss`` into .grad, replacing old ones, and the rate into the optimiser.

        The closure returns a scalar with its graph and calls no backward(). Returns the loss, detached. Parameters that
        require no gradient are ignored; those that get none have .grad None. A v that is not finite makes the rate
        NaN for this step and is not added to the window. After an error .grad, parameters and rate are unchanged.
        """
        if not callable(closure):
            raise TypeError(f"closure must be callable, closure() -> loss, got {type(closure).__name__}")
        refuse_inference()
        parameters = trained_parameters(self.optimizer)
        kept = [parameter.grad for parameter in parameters]
        put_gradients(parameters, [None] * len(parameters))
        try:
            loss, gradients, v = self._evaluate(closure, parameters)
        except BaseException:
            put_gradients(parameters, kept)
            raise
        put_gradients(parameters, gradients)
        if v is not None:
            self._adjust(v)
        return loss

    def _evaluate(self, closure: Closure, parameters: list[Tensor]) -> tuple[Tensor, list[Tensor | None], float | None]:
        """The loss, its gradients without graph, and v; None for v at power 0."""
        if self.power == 0 or self.drift == "exact":
            loss, gradients = evaluate(closure, parameters, create_graph=self.power > 0)
            v = exact_ratio(gradients, parameters) if self.power > 0 else None
        else:
            draws = generator_states(parameters)
            loss, gradients = evaluate(closure, parameters)
            with generators_at(draws):
                v = difference_ratio(closure, gradients, parameters)
        # Copies: autograd may return one tensor for several parameters, and clipping writes in place.
        return loss.detach(), [None if g is None else g.detach().clone() for g in gradients], v

    def _adjust(self, v: float) -> None:
        """Set the rate of every parameter group from the window's mean."""
        rate = math.nan
        if math.isfinite(v):
            self._recent.append(v)
            mean = math.fsum(self._recent) / len(self._recent)
            rate = float(adjusted_rate(torch.tensor(mean, dtype=torch.float64), self.power, self.cap))
        for group in self.optimizer.param_groups[len(self._ratios) :]:
            self._ratios.append(float(group["lr"]) / self._base)
        for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
            if isinstance(group["lr"], Tensor):  # in place: a captured CUDA graph reads the rate from this tensor
                group["lr"].fill_(rate * ratio)
            else:
                group["lr"] = rate * ratio

    def state_dict(self) -> dict[str, Any]:
        """The last values of v, the first group's initial rate and the groups' ratios to it, as plain numbers."""
        return {"recent": list(self._recent), "base": self._base, "ratios": list(self._ratios)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state_dict()``; a shorter window keeps the latest values."""
        if not isinstance(state, Mapping) or not {"recent", "base", "ratios"} <= set(state):
            raise ValueError(f"state must be from state_dict(), with recent, base and ratios, got {short_form(state)}")
        groups, known = len(self.optimizer.param_groups), len(state["ratios"])
        if self.power > 0 and not 1 <= known <= groups:
            raise ValueError(
                f"state must have the rates of 1 to {groups} parameter groups, as the optimizer has, got {known}; "
                "load it into a DriftAdjustedRate of an optimizer with the same groups"
            )
        self._recent = deque(map(float, state["recent"]), maxlen=self.window)
        self._base = float(state["base"])
        self._ratios = list(map(float, state["ratios"]))


def check_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser; raise unless it has a learning rate in each group and steps without a closure."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    name = type(optimizer).__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UnsupportedError(
            f"{name} evaluates the loss itself, several times a step, and searches for its own step; give an optimizer "
            "whose step() needs no closure, such as torch.optim.SGD"
        )
    if not all("lr" in group for group in optimizer.param_groups):
        raise UnsupportedError(f"{name} has no learning rate 'lr' in its parameter groups; give an optimizer with one")
    return optimizer


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters that require a gradient; raise if there are none, or one is complex."""
    every = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
    if not every:
        raise ValueError("optimizer must have a parameter that requires a gradient, got none; unfreeze one")
    for parameter in every:
        if parameter.is_complex():
            raise UnsupportedError(
                f"parameters must be real, got {parameter.dtype}; use torch.view_as_real to make two real ones of it"
            )
    return every


def put_gradients(parameters: Sequence[Tensor], gradients: Gradients) -> None:
    """Write each gradient into its parameter's .grad."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def evaluate(closure: Closure, parameters: list[Tensor], create_graph: bool = False) -> tuple[Tensor, Gradients]:
    """The closure's loss and its gradients, None for parameters that it does not depend on."""
    with torch.enable_grad():
        loss = closure()
        check_loss(loss, parameters)
        gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError("closure must return a loss of the optimizer's parameters, got one that depends on none")
    if any(gradient is not None and gradient.layout != torch.strided for gradient in gradients):
        raise UnsupportedError("gradients must be dense, got a sparse one; give the embedding sparse=False")
    return loss, gradients


def check_loss(loss: Tensor, parameters: list[Tensor]) -> None:
    """Raise unless the closure returned a real scalar with its graph and called no backward()."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"closure must return the loss as a torch.Tensor, got {type(loss).__name__}")
    if any(parameter.grad is not None for parameter in parameters):
        raise ValueError("closure must not call backward(): step() takes the gradients; return the loss only")
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(f"closure must return a real scalar, got shape {tuple(loss.shape)} {loss.dtype}; use .mean()")
    if not loss.requires_grad:
        raise ValueError("closure must return the loss with its graph, got one without: no detach(), item() or no_grad")


def flatten(tensors: Gradients, parameters: Sequence[Tensor]) -> Tensor:
    """One vector of a tensor for each parameter, zeros for None, in float32 or better, on the first one's device."""
    parts = [torch.zeros_like(p) if t is None else t.detach() for t, p in zip(tensors, parameters, strict=True)]
    device = parts[0].device
    return torch.cat([t.reshape(-1).to(device, torch.promote_types(t.dtype, torch.float32)) for t in parts])


def unflatten(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a vector with the parameters' shapes, dtypes and devices."""
    parts = vector.split([parameter.numel() for parameter in parameters])
    return [part.view(p.shape).to(p) for part, p in zip(parts, parameters, strict=True)]


def exact_ratio(gradients: Gradients, parameters: list[Tensor]) -> float:
    """v = ‖Hĝ‖ by one backward pass through the gradients' graph; zero if the loss is linear."""
    directions = unflatten(unit(flatten(gradients, parameters)), parameters)
    curved = [(g, u) for g, u in zip(gradients, directions, strict=True) if g is not None and g.requires_grad]
    if not curved:
        return 0.0
    outputs, cotangents = zip(*curved, strict=True)
    try:
        check_second_derivatives(outputs)
        products = torch.autograd.grad(outputs, parameters, cotangents, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch raises no more specific type
        raise UnsupportedError(
            f"the loss cannot be differentiated twice ({error}); use drift='difference', which needs gradients only"
        ) from error
    return float(norm(flatten(products, parameters)))


def check_second_derivatives(gradients: Sequence[Tensor]) -> None:
    """Raise RuntimeError if a function of the graph is marked as ``once_differentiable``.

    The mark is an error node on a branch that does not lead to the parameters, which autograd.grad does not visit.
    """
    seen, waiting = set(), [gradient.grad_fn for gradient in gradients]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a function of its graph is marked once_differentiable")
        waiting += [following for following, _ in node.next_functions]


def difference_ratio(closure: Closure, gradients: Gradients, parameters: list[Tensor]) -> float:
    """v ≈ ‖g(θ + εĝ) − g(θ)‖/ε by the closure's gradient at the displaced parameters, which are then restored."""
    grad = flatten(gradients, parameters)
    coarsest = max((parameter.dtype for parameter in parameters), key=lambda dtype: torch.finfo(dtype).eps)
    length = difference_length(flatten(parameters, parameters), coarsest)
    with displace(parameters, unflatten(length * unit(grad), parameters)):
        _, moved = evaluate(closure, parameters)
    return float(norm(flatten(moved, parameters) - grad) / length)


@contextmanager
def displace(parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> Iterator[None]:
    """Parameters displaced inside the block, and restored exactly after it."""
    # Copies: θ + εĝ − εĝ differs from θ by rounding.
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter.add_(move)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def generator_states(parameters: Sequence[Tensor]) -> dict[torch.device, Tensor]:
    """The current states of torch's own generators on the CPU and the parameters' devices."""
    devices = {parameter.device for parameter in parameters if parameter.device.type != "cpu"}
    others = sorted(str(device) for device in devices if device.type != "cuda")
    if others:
        raise UnsupportedError(f"random numbers cannot be drawn twice on {others}; use drift='exact' there")
    states = {torch.device("cpu"): torch.get_rng_state()}
    return states | {device: torch.cuda.get_rng_state(device) for device in devices}


@contextmanager
def generators_at(states: Mapping[torch.device, Tensor]) -> Iterator[None]:
    """Torch's generators at the given states inside the block, and at their states before the block after it."""
    cuda = [device for device in states if device.type == "cuda"]
    with torch.random.fork_rng(devices=cuda):
        for device, state in states.items():
            if device.type == "cuda":
                torch.cuda.set_rng_state(state, device)
            else:
                torch.set_rng_state(state)
        yield
