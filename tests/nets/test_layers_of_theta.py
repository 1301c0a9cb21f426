"""Where each layer's weights lie in θ: every weight in one layer, by the module's name, in the module's order."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from nets import MLP, GhostBatchLandscape, NetworkLandscape, cross_entropy, square_loss
from tests.nets.architecture_cases import NAMES, small

INPUTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def layers(module, inputs=INPUTS):
    return NetworkLandscape(module.double(), square_loss, inputs, torch.zeros(4, 3, dtype=torch.float64)).layers


def own_weights(module, name):
    return torch.cat([p.detach().flatten() for p in module.get_submodule(name).parameters(recurse=False)])


@pytest.mark.parametrize("name", NAMES)
def test_layers_divide_theta_and_are_the_modules_own(name):
    module, landscape = small(name)
    place = 0
    for layer, part in landscape.layers.items():
        assert (part.start, part.step) == (place, None)
        assert part.stop > part.start
        assert torch.equal(landscape.theta0[part], own_weights(module, layer))
        place = part.stop
    assert place == landscape.dimension
    own = [n for n, m in module.named_modules() if next(m.parameters(recurse=False), None) is not None]
    assert list(landscape.layers) == own


def test_an_mlp():
    assert layers(MLP((3, 5, 3))) == {"layers.0": slice(0, 20), "layers.2": slice(20, 38)}


def test_restricted_networks_and_ghost_batches_have_the_same():
    inputs, targets = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 3
    module = MLP((3, 5, 3), norm="batch").double()
    expected = {"layers.0": slice(0, 20), "layers.1": slice(20, 30), "layers.3": slice(30, 48)}
    ghosts = GhostBatchLandscape(module, cross_entropy, inputs, targets, 4)
    assert ghosts.layers == ghosts.restrict(torch.tensor([0])).layers == expected
    plain = NetworkLandscape(module.eval(), cross_entropy, inputs, targets)
    assert plain.layers == plain.restrict(torch.tensor([0, 3])).layers == expected


class Tied(nn.Module):
    """Two layers with one weight and a bias each, and weights of the module's own before and after its children's."""

    def __init__(self, biases=True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.one = nn.Linear(3, 3, bias=biases)
        self.two = nn.Linear(3, 3, bias=biases)
        self.two.weight = self.one.weight
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.scale * self.two(torch.tanh(self.one(x))) + self.shift


def test_shared_weights_belong_to_the_first_and_the_modules_own_stand_together():
    assert layers(Tied()) == {"": slice(0, 4), "one": slice(4, 16), "two": slice(16, 19)}
    assert layers(Tied(biases=False)) == {"": slice(0, 4), "one": slice(4, 13)}


def test_a_module_in_two_places_is_one_layer():
    linear = nn.Linear(3, 3)
    assert layers(nn.Sequential(linear, nn.Tanh(), linear)) == {"0": slice(0, 12)}


def test_frozen_weights_are_weights():
    module = MLP((3, 5, 3))
    module.layers[0].requires_grad_(False)
    assert list(layers(module)) == ["layers.0", "layers.2"]


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.eye(3), torch.ones(3)])

    def forward(self, x):
        return x @ self.weights[0] + self.weights[1]


def test_a_list_of_weights_is_a_layer():
    assert layers(Listed()) == {"weights": slice(0, 12)}


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).mT


def test_a_parametrised_weight_stands_apart_from_its_bias():
    linear = nn.Linear(3, 3)
    parametrize.register_parametrization(linear, "weight", Symmetric())
    expected = {"0": slice(0, 3), "0.parametrizations.weight": slice(3, 12)}
    assert layers(nn.Sequential(linear)) == expected
