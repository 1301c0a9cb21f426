import math
from itertools import pairwise

import pytest
import torch
from scipy.special import eval_legendre

from nets import load_data
from nets.datasets.shwartz_ziv import (
    icosahedron,
    label_probability,
    mutual_information,
    pair_counts,
    patterns,
    read_shwartz_ziv,
    symmetric_function,
)

# Σ_l w_l P_l(cosine) = 9, −1, 0, −1/2 at cosine 1, 1/√5, −1/√5, −1
ROOT = math.sqrt(5)
WEIGHTS = (7 / 24, 19 / 8 - ROOT / 4, 95 / 24, 19 / 8 + ROOT / 4)


def symmetries():
    """The permutations of the vertices that keep all distances, and which of them are rotations."""
    corners = icosahedron()
    # three vertices of one face fix a symmetry: every face can go to every face in six ways
    cosines = corners @ corners.T
    face = next(
        (0, j, k) for j in range(12) for k in range(j) if k and min(cosines[0, j], cosines[0, k], cosines[j, k]) > 0
    )
    found = []
    for i, j, k in ((i, j, k) for i in range(12) for j in range(12) for k in range(12)):
        if min(cosines[i, j], cosines[i, k], cosines[j, k]) > 0 and len({i, j, k}) == 3:
            turn = torch.linalg.solve(corners[list(face)], corners[[i, j, k]])
            places = ((corners @ turn) @ corners.T).argmax(1)
            found.append((places, torch.linalg.det(turn) > 0))
    return found


def orbits(permutations):
    """How many classes of patterns the permutations leave apart."""
    bits = patterns().long()
    powers = 2 ** torch.arange(11, -1, -1)
    images = torch.stack([(bits[:, places] * powers).sum(1) for places in permutations])
    return len(images.min(0).values.unique())


def test_vertices_are_spread_evenly():
    corners = icosahedron()
    torch.testing.assert_close(corners.norm(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(corners.T @ corners, 4 * torch.eye(3, dtype=torch.float64))
    assert ((corners @ corners.T - 1 / ROOT).abs() < 1e-12).sum(1).tolist() == [5] * 12


def test_the_task_is_all_patterns_in_counting_order():
    whole = read_shwartz_ziv()
    assert whole.values.shape == (4096, 12)
    assert (whole.values.long() @ (2 ** torch.arange(11, -1, -1))).tolist() == list(range(4096))
    assert torch.equal(whole.targets, (label_probability() > 0.5).long())


def test_the_label_is_invariant_and_the_orbits_are_as_said():
    found = symmetries()
    assert len(found) == len({tuple(places.tolist()) for places, _ in found}) == 120
    rotations = [places for places, proper in found if proper]
    assert len(rotations) == 60
    labels = read_shwartz_ziv().targets.reshape((2,) * 12)
    for places, _ in found:
        assert torch.equal(labels, labels.permute(tuple(places.tolist())))
    assert orbits(rotations) == 96
    assert orbits([places for places, _ in found]) == 82
    assert len(pair_counts().unique(dim=0)) == 64


def test_the_function_is_a_weighted_power_spectrum_and_there_are_64_spectra():
    corners, chosen = icosahedron(), patterns().double()
    kernels = [torch.from_numpy(eval_legendre(degree, (corners @ corners.T).numpy())) for degree in range(7)]
    # 4π/(2l + 1) C_l, by the addition theorem
    spectrum = torch.stack([((chosen @ kernel) * chosen).sum(1) for kernel in kernels], dim=1)
    assert min(WEIGHTS) > 0
    weighted = spectrum[:, :4] @ torch.tensor(WEIGHTS, dtype=torch.float64)
    torch.testing.assert_close(weighted, symmetric_function().double(), atol=1e-10, rtol=0)
    assert len(spectrum.mul(1e6).round().unique(dim=0)) == 64


def test_balance_shares_and_information():
    labels, number = read_shwartz_ziv().targets, patterns().sum(1)
    assert abs(float(label_probability().mean()) - 0.5) < 0.02
    shares = torch.bincount(number[labels == 1], minlength=13).tolist()
    assert shares == [0, 0, 0, 0, 0, 60, 532, 732, 495, 220, 66, 12, 1]
    assert abs(mutual_information() - 0.99) < 0.002
    climbing = [mutual_information(sharpness) for sharpness in (0.01, 0.1, 1.0, 10.0, 100.0, 1e6)]
    assert all(low < high for low, high in pairwise(climbing[:5]))
    assert climbing[0] < 0.01
    assert climbing[-1] == pytest.approx(-sum(p * math.log2(p) for p in (2118 / 4096, 1978 / 4096)))
    with pytest.raises(ValueError, match="sharpness"):
        label_probability(0.0)


def test_loaded_with_the_rule_for_sets_without_a_split():
    train, test = (load_data("shwartz-ziv", train=part, standardise=False) for part in (True, False))
    assert len(train) + len(test) == 4096
    assert abs(len(test) - 4096 / 5) <= 1
    assert train.inputs.dtype == torch.float64
    assert set(train.inputs.unique().tolist()) == {0.0, 1.0}
    standard = load_data("shwartz-ziv").inputs
    torch.testing.assert_close(standard.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.bincount(load_data("shwartz-ziv", limit=100).targets).tolist() == [50, 50]
    with pytest.raises(ValueError, match="root must be None for 'shwartz-ziv', which is generated"):
        load_data("shwartz-ziv", root=".")
