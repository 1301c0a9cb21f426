"""Partial derivatives that are constants: a row of the Hessian without θ in it has θ's shape all the same."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from landscapes.references import resolve_reference, resolve_references
from landscapes.toys.planar import Planar
from landscapes.toys.valleys import BarrierValley


@dataclass(frozen=True)
class Trough(Planar):
    """x⁴ + xy + y², of whose second partials only f_xx depends on θ."""

    window = ((-1, 1), (-1, 1))
    start = (0.5, 0.5)

    def loss(self, theta):
        x, y = theta.unbind(-1)
        return x**4 + x * y + y * y

    def grad(self, theta):
        x, y = theta.unbind(-1)
        return torch.stack((4 * x**3 + y, x + 2 * y), dim=-1)

    def second_partials(self, theta):
        return 12 * theta[..., 0] ** 2, 1.0, 2.0

    def third_partials(self, theta):
        return 24 * theta[..., 0], 0.0, 0.0, 0.0

    def critical_positions(self):
        return [[0, 0], [0.5**1.5, -(0.5**2.5)], [-(0.5**1.5), 0.5**2.5]]


def test_constant_partials_of_a_batch(normal):
    theta = normal(0, 3, 2)
    expected = torch.stack([torch.func.hessian(Trough().loss)(one) for one in theta])
    assert_close(Trough().hessian(theta), expected)
    assert [point.kind for point in Trough().critical_points()] == ["saddle", "minimum", "minimum"]


def test_an_entry_by_reference_is_the_member_itself():
    found = resolve_references({"one": BarrierValley, "other": "landscapes.toys.valleys:BarrierValley"})
    assert list(found.items()) == [("one", BarrierValley), ("other", BarrierValley)]
    for reference, error in (("landscapes.nosuch:X", ImportError), ("landscapes.toys.valleys:X", AttributeError)):
        with pytest.raises(error):
            resolve_reference(reference)
    assert resolve_reference(".valleys:BarrierValley", "landscapes.toys") is BarrierValley
    with pytest.raises(ValueError, match="got 'landscapes"):
        resolve_reference("landscapes.toys")
