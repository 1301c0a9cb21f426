r"""``State``: where a run stands, all that an engine needs to continue it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.arguments import check_device
from flows.engines.configuration import versions
from flows.engines.locks import FolderLock
from flows.engines.packing import pack, unpack
from flows.engines.storage import load_tensors, read_error, save_tensors
from landscapes.errors import check_count, check_dense, check_positive, check_real, check_seed, short_form

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64)
LAST = torch.iinfo(torch.int64).max
TENSORS: dict[str, tuple[torch.dtype, ...]] = {
    "theta": FLOATING,
    "alive": (torch.bool,),
    "generator": (torch.uint8,),
    "step": (torch.float64,),
    "history": FLOATING,
    "stopped": (torch.bool,),
}
"""The fields of a State that are tensors, and their dtypes."""


@dataclass(frozen=True, eq=False)
class State:
    r"""Where a run stands. ``integrate`` and ``descend`` start from one, and return one as ``Trajectory.end``.

    ``values``: the flow's state (..., s), or the descent's own, of any type. ``t``: the time; ``k``: the number of
    steps of a descent. ``theta`` (..., d): the reported position, if it differs from that of ``values``, as for lost
    members, which keep their last finite one. ``alive`` (...): the members that continue; None: all of them.

    Random numbers: ``seed`` and, for a descent, ``generator``, the generator's state; a stochastic flow's path is that
    of the seed from ``origin`` on. Fixed steps: the grid is origin + i·dt, and the state is at ``index`` i. Adams
    methods: ``history`` (2 + n, ..., s), the states here and at the grid point before, and the n velocities before
    here, latest first; it is not used with other steps, at other values or for another field. Adaptive steps: ``step``,
    the length of the next trial step, () or, for exprb43, one for each member (...). ``workspace``: that of a
    ``WorkspaceFlow``. ``stopped`` (...): the members that an event has ended while others go on. ``model``: the class
    of the flow or descent that the state is of, if it is known; ``version``: that of thalweg which made it, as a state
    of another version is not continued (``dataclasses.replace(state, version=None)`` is).

    ``State(values)`` alone is a start at time 0. Raises TypeError or ValueError for invalid fields.
    """

    values: Any
    t: float = 0.0
    k: int = 0
    theta: Tensor | None = None
    alive: Tensor | None = None
    seed: int | None = None
    generator: Tensor | None = None
    origin: float | None = None
    dt: float | None = None
    index: int = 0
    step: Tensor | None = None
    history: Tensor | None = None
    workspace: Any = None
    stopped: Tensor | None = None
    model: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", float(check_real("t of a State", self.t)))
        check_count("k of a State", self.k, minimum=0, maximum=LAST)
        check_count("index of a State", self.index, minimum=0, maximum=LAST)
        if self.seed is not None:
            check_seed(self.seed)
        if self.values is None:
            raise TypeError("values of a State must be a flow's or descent's state, got None")
        if self.origin is not None:
            check_real("origin of a State", self.origin)
        if self.dt is not None:
            check_positive("dt of a State", self.dt)
        for name, value in (("model", self.model), ("version", self.version)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} of a State must be a string or None, got {short_form(value)}")
        for name, dtypes in TENSORS.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Tensor) and has_strides(value) and value.dtype in dtypes):
                kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                raise TypeError(
                    f"{name} of a State must be a dense tensor of {kinds}, or None, got {short_form(value)}"
                )

    def check_version(self) -> None:
        """Raise ValueError if another version of thalweg made the state."""
        if self.is_foreign():
            raise ValueError(
                f"the state is of thalweg {self.version}, this is {versions()['thalweg']}, which may take other steps: "
                "run the whole again, or give dataclasses.replace(state, version=None)"
            )

    def check_numbers(self) -> None:
        """Raise ValueError if a field is on the meta device, as after ``to("meta")``: there are no numbers."""
        for name in TENSORS:
            if getattr(self, name) is not None:
                check_dense(f"{name} of a State", getattr(self, name))

    def is_foreign(self) -> bool:
        """Whether another version of thalweg made the state, as far as both are known."""
        return not {self.version, versions()["thalweg"]} & {None, "unknown"} and self.version != versions()["thalweg"]

    def members_moving(self, alive: Tensor) -> Tensor:
        """The members ``alive`` (...) that no event has ended; all of them if it has ended every one."""
        if self.stopped is None:
            return alive
        if self.stopped.shape != alive.shape:
            raise ValueError(
                f"stopped of a State must have the batch's shape {tuple(alive.shape)}, got {tuple(self.stopped.shape)}"
            )
        moving = alive & ~self.stopped.to(alive.device)
        return moving if bool(moving.any()) else alive

    def members_alive(self, batch: torch.Size, device: torch.device) -> Tensor:
        """``alive`` as a tensor of the batch's shape (...); raise unless it fits and some member is left."""
        if self.alive is None:
            return torch.ones(batch, dtype=torch.bool, device=device)
        if self.alive.shape != batch:
            raise ValueError(
                f"alive of a State must have the batch's shape {tuple(batch)}, got {tuple(self.alive.shape)}"
            )
        if not bool(self.alive.any()):
            raise ValueError(
                f"no member of the state at t = {self.t:.6g} is left to continue; start from an earlier state, with a "
                "smaller learning rate or smaller steps"
            )
        return self.alive.to(device)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the state into ``folder`` and return it.

        Raises FolderError, and UnsupportedError for a descent's state of types that cannot be saved.
        """
        structure, tensors = parts_of_state(self)
        with FolderLock(folder):
            return save_tensors(folder, "end", tensors, {"end": structure})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> State:
        """Read a state that ``save`` wrote, on the CPU. Raises FolderError."""
        tensors, text = load_tensors(folder, "end")
        try:
            return state_of(tensors, text["end"])
        except (KeyError, TypeError, ValueError) as error:
            raise read_error(Path(folder), "end", error) from error

    def to(self, device: str | torch.device) -> State:
        """The state with every tensor on ``device``; the generator's state stays on the CPU, as torch keeps it."""
        device = check_device(device)
        held = ("values", "theta", "alive", "history", "workspace", "stopped")
        return replace(self, **{name: map_tensors(getattr(self, name), lambda x: x.to(device)) for name in held})


def has_strides(tensor: Tensor) -> bool:
    """Whether a tensor is dense on its device, also on the meta device."""
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)


def model_name(model: object) -> str:
    """Module and name of a model's class."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def parts_of_state(state: State) -> tuple[Any, dict[str, Tensor]]:
    """A state as JSON and named tensors. Raises UnsupportedError naming the place of values that cannot be saved."""
    structure, tensors = pack(vars(state))
    return structure, {f"end.{i}": tensor for i, tensor in enumerate(tensors)}


def state_of(tensors: Mapping[str, Tensor], structure: Any) -> State:
    """The state of ``parts_of_state``. Raises FolderError, TypeError or ValueError for parts that are none."""
    count = sum(name.startswith("end.") for name in tensors)
    values = unpack(structure, [tensors[f"end.{i}"] for i in range(count)])
    if not isinstance(values, dict):
        raise TypeError(f"a state must have fields, got {type(values).__name__}")
    state = State(**values)
    if state.is_foreign():
        warnings.warn(f"the state was saved by thalweg {state.version} and is not continued by this one", stacklevel=4)
    return state


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nested value (tuples, lists, dicts, dataclasses) with ``function`` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(part, function) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(part, function) for part in value)
    if isinstance(value, dict):
        return {name: map_tensors(part, function) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return value
