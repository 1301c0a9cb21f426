"""Any torch.optim optimiser as a descent."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from flows.arguments import check_model, check_point
from flows.declared import Clock
from flows.descent import Descent
from landscapes import Landscape
from landscapes.errors import check_callable

Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class OptimizerState:
    """θ (..., d), the optimiser's state_dict of each batch member, and the sum of the rates of the steps taken."""

    theta: Tensor
    memories: tuple[dict[str, Any], ...]
    time: float


@final
@dataclass(frozen=True)
class OptimizerDescent(Descent):
    r"""A torch.optim optimiser on the full-batch gradient: ``factory(parameters) -> Optimizer``.

        OptimizerDescent(landscape, lambda parameters: torch.optim.Adam(parameters, lr=1e-3))

    The parameter is θ as one flat tensor. Each batch member has its own optimiser, so a batch equals single runs
    for every optimiser. A step copies the optimiser's state, so that the map is pure. An optimiser that requires a
    closure (LBFGS) gets one that evaluates loss and gradient. The clock is the sum of the first group's rates.
    """

    landscape: Landscape
    factory: Factory

    def __post_init__(self) -> None:
        check_model(self.landscape)
        check_callable("factory", self.factory, "parameters -> torch.optim.Optimizer")
        self._optimizer(torch.zeros(self.landscape.dimension))

    def _optimizer(self, theta: Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(theta.clone())
        optimizer = self.factory([parameter])
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"factory must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
        return parameter, optimizer

    @property
    def h(self) -> float:  # type: ignore[override]  # read from the optimiser, never set
        """The first parameter group's learning rate."""
        return rate(self._optimizer(torch.zeros(self.landscape.dimension))[1])

    @property
    def weight_decay(self) -> float:
        """The first parameter group's weight decay; 0 for an optimiser without one."""
        return float(self._optimizer(torch.zeros(self.landscape.dimension))[1].param_groups[0].get("weight_decay", 0))

    @property
    def declared_clock(self) -> Clock:
        """That of gradient descent, heavy ball or Nesterov for torch.optim.SGD, else the name of the optimiser."""
        optimizer = self._optimizer(torch.zeros(self.landscape.dimension))[1]
        options = optimizer.param_groups[0]
        if not isinstance(optimizer, torch.optim.SGD) or options["maximize"]:
            return Clock(rule=type(optimizer).__name__)
        if options["momentum"] == 0:
            return Clock()
        return Clock(
            rule="Nesterov" if options["nesterov"] else "heavy ball",
            momentum=options["momentum"],
            dampening=options["dampening"],
        )

    @property
    def remembers(self) -> bool:
        """Whether the optimiser keeps a state from step to step, as a first step along the zero gradient shows."""
        parameter, optimizer = self._optimizer(torch.zeros(self.landscape.dimension))
        parameter.grad = torch.zeros_like(parameter)
        self._advance(parameter, optimizer)
        return any(value is not None for value in optimizer.state[parameter].values())

    def start(self, theta0: Tensor) -> OptimizerState:
        """θ0 and fresh optimisers."""
        members = check_point("theta0", theta0).reshape(-1, theta0.shape[-1])
        return OptimizerState(theta0, tuple(self._optimizer(m)[1].state_dict() for m in members), 0.0)

    def step(self, state: OptimizerState, k: int, generator: torch.Generator) -> OptimizerState:
        members = state.theta.reshape(-1, state.theta.shape[-1])
        grads = self.landscape.grad(state.theta).reshape(members.shape)
        moved, memories, taken = [], [], 0.0
        for theta, grad, memory in zip(members, grads, state.memories, strict=True):
            parameter, optimizer = self._optimizer(theta)
            optimizer.load_state_dict(copy.deepcopy(memory))
            # load_state_dict casts the state to the parameter's dtype, but NAdam keeps a float32 product in it.
            if 0 in memory["state"]:
                optimizer.state[parameter] = copy.deepcopy(memory["state"][0])
            taken = rate(optimizer)
            parameter.grad = grad.clone()
            self._advance(parameter, optimizer)
            moved.append(parameter.detach())
            memories.append(optimizer.state_dict())
        return OptimizerState(torch.stack(moved).reshape(state.theta.shape), tuple(memories), state.time + taken)

    def _advance(self, parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        closure_parameter = inspect.signature(optimizer.step).parameters.get("closure")
        if closure_parameter is None or closure_parameter.default is not inspect.Parameter.empty:
            optimizer.step()
            return

        def closure() -> float:
            point = self.landscape.expand(parameter.detach())
            parameter.grad = point.grad.clone()
            return float(point.loss)

        optimizer.step(closure)

    def position(self, state: OptimizerState) -> Tensor:
        return state.theta

    def elapsed(self, k: int, state: OptimizerState) -> float:
        """Sum of the learning rates of the steps taken."""
        return state.time


def rate(optimizer: torch.optim.Optimizer) -> float:
    """The first parameter group's learning rate."""
    return float(optimizer.param_groups[0]["lr"])
