"""The gallery draws every toy; its slices are planes that hold what they mark."""

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from torch.testing import assert_close

from landscapes import LANDSCAPES
from scripts import gallery

HIGH = [name for name, make in LANDSCAPES.items() if make().dimension > 2]


def test_every_run_has_a_toy_and_a_toy_without_one_a_gentle_run():
    assert set(gallery.RUNS) <= set(LANDSCAPES)
    toy = LANDSCAPES["rosenbrock"]()
    assert gallery.run_of("rosenbrock", toy) == (0.002, 200)
    # λ is 1001.6 at the minimum, the largest where the gradient vanishes and at the start: ½/1001.6
    assert gallery.run_of("no such run", toy) == (0.0005, gallery.STEPS)


def test_the_figure_is_written_with_a_panel_for_each_toy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "MESH", 31)
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: drawn.append(self) or SAVE(self, *a, **k))
    target = tmp_path / "deep" / "gallery.png"
    assert gallery.main(["--out", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    height, width, _ = matplotlib.image.imread(target).shape
    assert height > width > 1000
    panels = [axes for axes in drawn[0].axes if axes.axison]
    assert [axes.get_title().split(",")[0] for axes in panels] == list(LANDSCAPES)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in panels)
    (legend,) = drawn[0].legends
    assert {*gallery.KINDS} < {text.get_text() for text in legend.get_texts()}


SAVE = Figure.savefig


@pytest.mark.parametrize("name", HIGH)
def test_a_slice_holds_start_end_and_some_critical_points(name):
    toy = LANDSCAPES[name]()
    descent, _ = gallery.run_paths(toy, *gallery.run_of(name, toy))
    plane = gallery.choose_slice(toy, descent[-1])
    assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))
    for theta in (descent[0], descent[-1]):
        assert plane.contains(theta)
        for x, (low, high) in zip(plane.project(theta).tolist(), plane.window, strict=True):
            assert low < x < high
    assert any(plane.contains(point.position) for point in toy.critical_points())
    assert not plane.contains(
        torch.randn(toy.dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )


def test_a_slice_through_three_points_on_a_line_turns_to_the_sharpest_direction():
    toy = LANDSCAPES["deep-linear-chain"]()
    plane = gallery.choose_slice(toy, 2 * torch.tensor(toy.start, dtype=torch.float64))
    assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["nosuch.xyz", "/dev/null/gallery.png", "nosuffix", "."])
def test_a_file_that_cannot_be_written_is_one_line_and_a_status(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gallery, "LANDSCAPES", {"saddle": LANDSCAPES["saddle"]})
    assert gallery.main(["--out", name]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert "cannot be written" in err or "must be a file with a suffix" in err
