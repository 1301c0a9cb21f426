"""Configurations: JSON that differs where runs differ, evaluated when read, kept in files and through pickle."""

import copy
import enum
import functools
import hashlib
import json
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from flows import GradientDescent, GradientFlow, OptimizerDescent, StochasticModifiedEquation, Trajectory, descend
from flows.engines.configuration import Configuration, versions
from landscapes import Counted, GradientPenalty, Landscape, Quadratic, Regularised, Rosenbrock, TwoQuadratics
from landscapes.description import describe
from landscapes.noise import MinibatchNoise
from nets import NetworkLandscape, cross_entropy, square_loss

THETA = torch.tensor([0.5, -0.2], dtype=torch.float64)


class Watched(Rosenbrock):
    """A landscape that counts its descriptions."""

    read = 0

    def description(self):
        type(self).read += 1
        return super().description()


def test_nothing_is_evaluated_before_it_is_read():
    Watched.read = 0
    configuration = Configuration(GradientFlow(Watched()), theta0=THETA, seed=3)
    assert Watched.read == 0
    assert configuration["settings"]["seed"] == 3
    assert Watched.read == 1
    assert list(configuration) == ["model", "settings", "versions", "device", "dtype"]
    assert len(configuration) == 5
    assert Watched.read == 1


def test_it_names_model_landscape_versions_device_and_dtype():
    said = dict(Configuration(GradientDescent(Rosenbrock(b=5.0), 0.1), theta0=THETA.float()))
    assert said["model"]["class"] == "flows.descents.gradient.GradientDescent"
    assert said["model"]["h"] == 0.1
    assert said["model"]["landscape"] == {"class": "landscapes.toys.valleys.Rosenbrock", "a": 1.0, "b": 5.0}
    assert (said["device"], said["dtype"]) == ("cpu", "float32")
    assert said["versions"] == versions()
    assert set(versions()) == {"thalweg", "torch", "torchdiffeq", "python"}
    assert "device" not in Configuration(GradientFlow(Rosenbrock()))


def network(width=5, loss=cross_entropy, inputs=None):
    inputs = torch.arange(60.0).reshape(20, 3) / 60 if inputs is None else inputs
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 4))
    return NetworkLandscape(module, loss, inputs, torch.arange(20) % 4)


def test_a_network_names_architecture_loss_and_data():
    said = network().description()
    assert "(0): Linear(in_features=3, out_features=5, bias=True)" in said["module"]["module"]
    assert said["loss_fn"] == "nets.losses.cross_entropy"
    data = torch.arange(60.0).reshape(20, 3) / 60
    assert said["inputs"][0]["sha256"] == hashlib.sha256(data.numpy().tobytes()).hexdigest()
    assert said["inputs"][0]["shape"] == [20, 3]
    assert said == network().description()
    json.dumps(said, allow_nan=False)


SHIFTED = torch.arange(60.0).reshape(20, 3) / 60
SHIFTED[7, 1] += 1e-6
H = torch.diag(torch.tensor([2.0, 0.1], dtype=torch.float64))
SUM = TwoQuadratics()
DIFFERENT = [
    Rosenbrock(),
    Rosenbrock(b=5.0),
    Quadratic(H),
    Quadratic(2 * H),
    Quadratic(H, THETA),
    Regularised(Rosenbrock(), 0.1),
    Regularised(Rosenbrock(), 0.2),
    GradientPenalty(Rosenbrock(), 0.1),
    Regularised(GradientPenalty(Rosenbrock(), 0.1), 0.1),
    SUM,
    SUM.restrict(torch.tensor([0])),
    SUM.restrict(torch.tensor([1])),
    network(),
    network(width=6),
    network(loss=square_loss),
    network(inputs=SHIFTED),
    GradientDescent(Rosenbrock(), 0.1),
    GradientDescent(Rosenbrock(), 0.2),
    StochasticModifiedEquation(SUM, 0.1, 1),
    StochasticModifiedEquation(SUM, 0.1, 1, order=2),
    StochasticModifiedEquation(SUM, 0.1, 1, sampling="epoch"),
    MinibatchNoise(SUM, 1),
    MinibatchNoise(SUM, 2),
    OptimizerDescent(Rosenbrock(), functools.partial(torch.optim.Adam, lr=0.1)),
    OptimizerDescent(Rosenbrock(), functools.partial(torch.optim.Adam, lr=0.2)),
    OptimizerDescent(Rosenbrock(), lambda parameters: torch.optim.Adam(parameters, lr=0.1)),
    OptimizerDescent(Rosenbrock(), lambda parameters: torch.optim.Adam(parameters, lr=0.2)),
    OptimizerDescent(Rosenbrock(), lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
]


def test_runs_that_differ_have_different_configurations():
    said = [json.dumps(dict(Configuration(model)), allow_nan=False) for model in DIFFERENT]
    assert len(set(said)) == len(said)
    assert said == [json.dumps(dict(Configuration(copy.deepcopy(model)))) for model in DIFFERENT]


def test_counts_are_no_part_of_a_description():
    counted = Counted(Rosenbrock())
    before = counted.description()
    counted.grad(THETA)
    assert counted.description() == before


class Users(Landscape):
    """A landscape of the user's, with attributes."""

    def __init__(self, scale, inner):
        self.scale = scale
        self.inner = inner
        self._cache = {}

    @property
    def dimension(self):
        return 2

    @functools.cached_property
    def slow(self):
        return object()

    def loss(self, theta):
        return self.scale * self.inner.loss(theta)


def test_a_class_of_the_users_is_described_by_its_attributes():
    landscape = Users(3.0, Rosenbrock())
    said = landscape.description()
    assert {name: said[name] for name in said if name != "class"} == {
        "scale": 3.0,
        "inner": {"class": "landscapes.toys.valleys.Rosenbrock", "a": 1.0, "b": 100.0},
    }
    assert landscape.slow
    assert landscape.description() == said
    landscape.inner = landscape  # a circle ends
    json.dumps(landscape.description())


@pytest.mark.parametrize("again", [lambda c: pickle.loads(pickle.dumps(c)), copy.copy, copy.deepcopy])
def test_pickle_and_copies_have_the_same_content_without_the_model(again):
    configuration = Configuration(GradientFlow(Users(3.0, Rosenbrock())), theta0=THETA, seed=1, odd=float("nan"))
    found = again(configuration)
    assert type(found) is dict
    assert found == configuration
    assert found == dict(configuration)
    assert configuration == found


def test_a_configuration_is_read_only():
    with pytest.raises(TypeError):
        Configuration(GradientFlow(Rosenbrock()))["model"] = 1


def test_a_saved_run_has_its_configuration(tmp_path):
    descent = GradientDescent(Rosenbrock(), 0.001)
    run = descend(descent, THETA, 3)
    fields = {name: getattr(run, name) for name in ("times", "theta", "status", "alive")}
    configuration = Configuration(descent, theta0=THETA, steps=3, grid=torch.arange(100))
    loaded = Trajectory.load(Trajectory(**fields, configuration=configuration).save(tmp_path))
    assert loaded.configuration == dict(configuration)
    Trajectory.load(loaded.save(tmp_path / "again"))


def test_large_tensors_are_hashed_and_hashed_again_once_they_change():
    big = torch.arange(100.0)
    before = describe(big)
    assert before["sha256"] == hashlib.sha256(big.numpy().tobytes()).hexdigest()
    big[3] = -1.0
    assert describe(big)["sha256"] == hashlib.sha256(big.numpy().tobytes()).hexdigest() != before["sha256"]
    assert describe(big[::2])["shape"] == [50]
    assert describe(torch.tensor(True)) == {"tensor": True, "dtype": "bool", "device": "cpu"}
    assert describe(torch.tensor([1j]))["tensor"] == [{"complex": [0.0, 1.0]}]
    with torch.inference_mode():
        assert describe(torch.arange(100.0))["sha256"] == before["sha256"]


class Colour(enum.Enum):
    RED = 1


def test_other_values_are_json():
    numbers = np.arange(100.0)
    assert describe(np.float32(0.5)) == 0.5
    assert describe(numbers[:2]) == {"array": [0.0, 1.0], "dtype": "float64"}
    assert describe(numbers[::-1])["sha256"] == hashlib.sha256(numbers[::-1].tobytes()).hexdigest()
    assert describe(Fraction(1, 3)) == "1/3"
    assert describe(Colour.RED).endswith("Colour.RED")
    assert describe([float("inf"), float("nan"), 1j, b"ab", None, True, range(2), {3: torch.float32}])[:2] == [
        "inf",
        "nan",
    ]
    assert describe({2, 1}) == [1, 2]
    assert describe(torch.nn.functional.relu) == "torch.nn.functional.relu"
    assert describe(np.longdouble(1)) == "1.0"
    assert describe(Rosenbrock().loss)["of"]["b"] == 100.0
    assert describe(torch.optim.SGD) == "torch.optim.sgd.SGD"
    json.dumps(describe([np.zeros(3, dtype=object), object(), len, (1, 2), np.datetime64("2020-01-01")]), default=str)
