"""States as JSON and tensors: back exactly, for every descent, and without code of the file or of its classes."""

import dataclasses
import functools
import inspect
import json
import math
import pkgutil
import struct
import sys
import types
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows import Descent, OptimizerDescent, descents
from flows.descents.controlled import ControlledGradientDescent, ControlledMomentumDescent
from flows.descents.drift_adjusted import DriftAdjustedDescent, StochasticDriftAdjustedDescent
from flows.descents.gradient import GradientDescent, HeavyBall
from flows.descents.incremental import IncrementalGradientDescent
from flows.descents.momentum import Nesterov, ScaledHeavyBall, ScaledNesterov
from flows.descents.noisy import NoisyGradientDescent
from flows.descents.runge_kutta import RungeKuttaDescent
from flows.descents.scheduled import ScheduledGradientDescent, ScheduledStochasticGradientDescent
from flows.descents.stochastic import StochasticGradientDescent
from flows.descents.stochastic_momentum import ScaledStochasticHeavyBall, StochasticHeavyBall
from flows.descents.svag import SVAG
from flows.descents.svrg import SVRG
from flows.engines.packing import pack, unpack
from flows.engines.storage import FolderError, load_tensors, save_tensors
from flows.schedules import CosineSchedule
from flows.series.methods import EULER
from landscapes import TwoQuadratics, UnsupportedError
from landscapes.noise import MinibatchNoise

SUM = TwoQuadratics()
ALL: list[Descent] = [
    GradientDescent(SUM, 0.1),
    HeavyBall(SUM, 0.1, 0.5),
    Nesterov(SUM, 0.1, 0.5),
    ScaledHeavyBall(SUM, 0.1, 0.5),
    ScaledNesterov(SUM, 0.1, 0.5),
    RungeKuttaDescent(SUM, 0.1, EULER),
    ScheduledGradientDescent(SUM, 0.1, CosineSchedule(5.0)),
    DriftAdjustedDescent(SUM, 0.1, power=0.0),
    IncrementalGradientDescent(SUM, 0.1, torch.arange(2)[:, None]),
    NoisyGradientDescent(SUM, 0.1, MinibatchNoise(SUM, 1)),
    StochasticGradientDescent(SUM, 0.1, 1, "epoch"),
    StochasticHeavyBall(SUM, 0.1, 0.5, 1),
    ScaledStochasticHeavyBall(SUM, 0.1, 0.5, 1),
    ScheduledStochasticGradientDescent(SUM, 0.1, 1, CosineSchedule(5.0)),
    StochasticDriftAdjustedDescent(SUM, 0.1, 1),
    SVAG(SUM, 0.1, 1, 2),
    SVRG(SUM, 0.1, 1, 2),
    ControlledGradientDescent(SUM, 0.1, 1),
    ControlledMomentumDescent(SUM, 0.1, 1),
]
EXCLUDED = {"Muon", "SparseAdam"}  # for matrices and for sparse gradients
OPTIMIZERS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
ALL += [
    OptimizerDescent(SUM, functools.partial(kind, lr=0.01)) for name, kind in OPTIMIZERS.items() if name not in EXCLUDED
]
ALL += [
    OptimizerDescent(SUM, functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True)),
    OptimizerDescent(SUM, functools.partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True)),
    OptimizerDescent(SUM, functools.partial(torch.optim.Adam, lr=torch.tensor(0.01), amsgrad=True)),
]


def layout(tensor: torch.Tensor) -> list[int] | None:
    """The strides of dimensions of more than one entry; None where entries share their memory, or there are none."""
    strides = [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    return None if 0 in strides or tensor.numel() == 0 else strides


def same(one: Any, other: Any) -> bool:  # noqa: PLR0911  # one case for each type
    """Equal types, values, bits of floats, order of dicts, shapes and layouts of tensors."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        layouts = [layout(one), layout(other)]
        alike &= None in layouts or layouts[0] == layouts[1]
        return alike and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, dict):
        return same(list(one), list(other)) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other))
    return one == other


def back(value: Any) -> Any:
    """The value, through JSON."""
    structure, tensors = pack(value)
    return unpack(json.loads(json.dumps(structure)), [tensor.clone() for tensor in tensors])


def test_every_descent_is_here():
    modules = [import_module(f"flows.descents.{m.name}") for m in pkgutil.iter_modules(descents.__path__)]
    found = {c for m in modules for c in vars(m).values() if inspect.isclass(c) and issubclass(c, Descent)}
    assert {kind for kind in found if not inspect.isabstract(kind)} == {type(descent) for descent in ALL}


def label(descent: Descent) -> str:
    return descent.factory.func.__name__ if isinstance(descent, OptimizerDescent) else type(descent).__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("descent", ALL, ids=label)
def test_the_states_of_every_descent_come_back_and_go_on_as_they_would(descent, dtype, tmp_path):
    theta0 = torch.tensor([[1.0, 0.5], [0.3, -0.2]], dtype=dtype)
    theta0 = theta0[0] if isinstance(descent, StochasticDriftAdjustedDescent) else theta0
    generator = torch.Generator().manual_seed(0)
    state = descent.start(theta0)
    for k in range(4):
        structure, tensors = pack(state)
        save_tensors(tmp_path, "state", {f"{i}": tensor for i, tensor in enumerate(tensors)}, {"state": structure})
        loaded, text = load_tensors(tmp_path, "state")
        again = unpack(text["state"], [loaded[f"{i}"] for i in range(len(tensors))])
        assert same(again, state)
        draws = torch.Generator().manual_seed(0)
        draws.set_state(generator.get_state())
        state = descent.step(state, k, generator)
        assert same(descent.step(again, k, draws), state)


class Pair(NamedTuple):
    left: Any
    right: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any = 3

    def __post_init__(self):
        if self.x == "refuse":
            raise AssertionError("the class was called")


class Outer:
    @dataclasses.dataclass
    class Inner:
        x: Any


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.int64, torch.bool, torch.bfloat16])
ARRAYS = st.builds(
    lambda dtype, shape: torch.arange(math.prod(shape)).reshape(shape).to(dtype),
    DTYPES,
    st.lists(st.integers(0, 3), max_size=3),
)


@given(
    st.recursive(
        PLAIN | ARRAYS,
        lambda parts: (
            st.lists(parts, max_size=3)
            | st.lists(parts, max_size=3).map(tuple)
            | st.dictionaries(KEYS, parts, max_size=3)
            | st.builds(Pair, parts, parts)
            | st.builds(Frozen, parts.filter(lambda x: not isinstance(x, str)))
            | st.builds(Outer.Inner, parts)
        ),
        max_leaves=10,
    )
)
def test_any_nested_value_comes_back(value):
    assert same(back(value), value)


def test_odd_floats_come_back_bit_by_bit():
    payload = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
    for value in (0.0, -0.0, math.inf, -math.inf, math.nan, payload, 5e-324, 0.1):
        assert same(back(value), value)
        assert same(back(complex(1.5, value)).imag, value)


X = torch.arange(24.0).reshape(2, 3, 4)
LAYOUTS = {
    "transposed": X.mT,
    "permuted": X.permute(2, 0, 1),
    "every second": X[..., ::2],
    "a half": X.chunk(2, dim=-1)[1],
    "expanded": torch.ones(1, 3).expand(4, 3),
    "one of many": torch.arange(1000.0)[::100],
    "conjugate": torch.complex(X, X).conj(),
    "nothing": X[:, :0].mT,
}


@pytest.mark.parametrize("tensor", LAYOUTS.values(), ids=LAYOUTS)
def test_views_come_back(tensor, tmp_path):
    structure, tensors = pack(tensor)
    save_tensors(tmp_path, "x", {"0": tensors[0]}, {})
    again = unpack(structure, [load_tensors(tmp_path, "x")[0]["0"]])
    assert torch.equal(again, tensor)
    if tensor.numel() and 0 not in tensor.stride() and tensor.stride() != (100,):
        assert again.stride() == tensor.stride()


def test_a_tensor_that_occurs_twice_is_packed_once():
    structure, tensors = pack({"a": X, "b": [X, X.clone()]})
    assert len(tensors) == 2
    assert same(unpack(structure, tensors), {"a": X, "b": [X, X]})


def test_the_class_is_not_called():
    made = object.__new__(Frozen)
    object.__setattr__(made, "x", "refuse")
    object.__setattr__(made, "y", 0)
    assert back(made).x == "refuse"


def local():
    @dataclasses.dataclass
    class Local:
        x: int

    return Local(3)


class Plain:
    pass


@pytest.mark.parametrize(
    "value",
    [Plain(), {1, 2}, np.zeros(2), local(), lambda: 0, range(3), torch.nn.Parameter(X), Plain],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused_by_name_and_place(value):
    with pytest.raises(UnsupportedError, match=rf"state\.right\['k'\]\[1\].*{type(value).__name__}"):
        pack(Pair(0, {"k": [0, value]}))


def test_numpy_numbers_are_plain_numbers():
    values = (np.float64(0.1), np.float32(0.5), np.int64(3), np.bool_(True))
    assert unpack(*pack(values)) == (0.1, 0.5, 3, True)


def test_a_graph_and_sparse_tensors_are_refused():
    for value in (torch.ones(2, requires_grad=True), torch.eye(2).to_sparse()):
        with pytest.raises(UnsupportedError, match=r"state\[0\] must be a dense torch.Tensor without a graph"):
            pack([value])


def test_a_class_that_is_not_imported_is_refused_and_not_imported(monkeypatch):
    module = types.ModuleType("elsewhere")
    exec("import dataclasses\n@dataclasses.dataclass\nclass Away:\n    x: int = 3", module.__dict__)
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    module.Away.__module__ = "elsewhere"
    structure, tensors = pack([module.Away()])
    assert unpack(structure, tensors)[0].x == 3
    monkeypatch.delitem(sys.modules, "elsewhere")
    with pytest.raises(FolderError, match=r"holds a elsewhere\.Away, which is not imported; import the"):
        unpack(structure, tensors)
    assert "elsewhere" not in sys.modules


def test_a_class_of_other_fields_is_refused():
    structure, tensors = pack(Frozen(1))
    structure[3].pop("y")
    with pytest.raises(FolderError, match=r"Frozen with the fields x, but that class is no dataclass"):
        unpack(structure, tensors)


FORGED = [
    ["object", "builtins", "list", {}],
    ["object", "subprocess", "Popen", {"args": "true"}],
    ["object", __name__, "Plain", {}],
    ["object", __name__, "Outer", {}],
    ["object", "os", "system", {}],
    ["unknown", 1],
    ["tensor", 5, {}],
    ["tensor", -1, {}],
    ["tensor", 0, {"stride": [1]}],
    ["float", "x"],
    ["list", 3],
    ["dict", [[1]]],
    ["dict", [[["list", []], 1]]],
    [],
    {},
    1.5,
]


@pytest.mark.parametrize("structure", FORGED, ids=str)
def test_a_forged_structure_is_refused(structure):
    with pytest.raises(FolderError):
        unpack(structure, [torch.ones(2, 2)])
