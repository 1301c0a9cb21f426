r"""The network of the demo as used by the benchmarks, and its gradients in a plain training loop."""

from __future__ import annotations

from typing import Any

import torch

from flows import Flow, Trajectory, integrate
from nets import NetworkLandscape

from .network import LossFunction, NetGround


def demo_network(
    device: str, chunk_size: int | None = None, width: float = 1.0, examples: int | str = 300
) -> NetworkLandscape:
    """The demo's tanh CNN on digits, float32."""
    ground = NetGround(examples=examples, width=width, chunk_size=chunk_size)  # type: ignore[arg-type]
    landscape, _ = ground.build(0, torch.float32, device)
    assert isinstance(landscape, NetworkLandscape)
    return landscape


def bare_gradients(
    module: torch.nn.Module, loss: LossFunction, inputs: torch.Tensor, targets: torch.Tensor, count: int
) -> None:
    """Run ``count`` forward and backward passes as in a plain training loop."""
    for _ in range(count):
        torch.autograd.grad(loss(module(inputs), targets).mean(), list(module.parameters()))


def complete_run(flow: Flow, *arguments: Any, **options: Any) -> Trajectory:
    """``integrate`` to the end: an interrupted run would be measured as a short one."""
    return integrate(flow, *arguments, **options).check_finished(flow.name)
