"""Figures: written for every kind of comparison, every axis labelled, every line what it stands for."""

import functools

import pytest
import torch

from flows import (
    GradientDescent,
    PrincipalFlow,
    StochasticGradientDescent,
    compare,
)
from flows.engines.storage import FolderError
from landscapes import Cosine, DoubleWell, Landscape, LinearRegression, Quadratic, Rosenbrock
from tests.flows.comparison.three import three
from tests.flows.toys import Undeclared
from tests.flows.watching import watch_figures
from tests.tensors import f64


def beside(landscape, h, theta0, steps=4):
    return compare(GradientDescent(landscape, h), three(landscape, h), theta0, steps)


def stochastic():
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(5, 3, generator=generator).double().split([2, 1], dim=1)
    landscape = LinearRegression(features, targets[:, 0])
    sgd = StochasticGradientDescent(landscape, 0.1, 2)
    return compare(sgd, three(landscape, 0.1), f64(1.0, -0.5), 4, runs=3)


BENT = Quadratic(torch.diag(f64(2.0, 0.02)))
CASES = {
    "2-D": lambda: beside(Rosenbrock(b=5.0), 0.02, f64(-0.4, 0.6)),
    "1-D": lambda: beside(DoubleWell(), 0.2, f64(0.4)),
    "high-d": lambda: beside(Cosine(dimension=7), 0.2, torch.linspace(-1, 1, 7, dtype=torch.float64)),
    "batch": lambda: beside(Cosine(), 0.2, f64(0.1, 0.7, -0.3, 1.2, 0.5, 0.4).reshape(3, 2)),
    "complex": lambda: beside(BENT, 0.9, f64(-0.35, -0.2)),
    "stochastic": stochastic,
    "failed row": lambda: beside(Undeclared(), 0.1, f64(1.0, 2.0)),
    "singular": lambda: beside(BENT, 0.5, f64(-0.35, -0.2)),
    "at rest": lambda: beside(DoubleWell(dimension=2), 0.1, f64(0.0, 0.0)),
    "at a high saddle": lambda: beside(Cosine(amplitude=1e9), 1e-10, f64(3.141592653589793, 0.0)),
    "diverged": lambda: compare(GradientDescent(Steep(), 0.5), [PrincipalFlow(Steep(), 0.5)], f64(3.0, 0.1), 30),
    "single precision": lambda: beside(Rosenbrock(b=5.0), 0.02, torch.tensor([-0.4, 0.6])),
}


class Steep(Landscape):
    """Gradient descent on it leaves the finite numbers; the principal flow cannot run."""

    dimension = 2

    def loss(self, theta):
        return (theta**4).sum(dim=-1) / 4


@functools.cache
def comparison_of(case):
    return CASES[case]()


@pytest.fixture(autouse=True)
def figure(monkeypatch):
    """The figures that were written, at a resolution that takes less time."""
    return watch_figures(monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_a_figure_for_every_kind_of_comparison(case, tmp_path, figure):
    comparison = comparison_of(case)
    path = comparison.plot(tmp_path / "figures" / "figure.png")
    assert path == tmp_path / "figures" / "figure.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    (drawn,) = figure
    assert len(drawn.axes) == 4
    paths, errors, steps, losses = drawn.axes
    for axes in drawn.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_title()
        assert axes.get_lines()
    assert errors.get_yscale() == steps.get_yscale() == "log"
    labels = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert labels[0] == comparison.name
    assert set(comparison.rows) <= set(labels)
    assert len(losses.get_lines()) == 1 + len(comparison.rows)
    two = comparison.mean.shape[-1] == 2
    assert (paths.get_xlabel() == "θ₁") == two
    assert bool(paths.collections) == (two and case != "diverged")  # contours, where heights are finite
    assert ("(real part)" in paths.get_title()) == (two and comparison.has_complex)


def test_lines_show_the_figures(tmp_path, figure):
    comparison = comparison_of("complex")
    comparison.plot(tmp_path / "figure.png")
    paths, errors, steps, losses = figure[0].axes
    for i, name in enumerate(comparison.rows):
        assert torch.equal(torch.tensor(losses.get_lines()[i + 1].get_ydata()), comparison.losses[name])
        shown = torch.tensor(errors.get_lines()[2 * i].get_ydata())
        values = comparison.errors[name]
        assert torch.equal(shown[1:], values[1:])
        assert bool(shown[0].isnan())  # zero has no place on a logarithmic axis
        assert torch.equal(torch.tensor(steps.get_lines()[i].get_ydata()), comparison.one_step[name])
        run = comparison.rows[name].trajectory.theta
        assert torch.equal(
            torch.tensor(paths.get_lines()[i].get_ydata()), (run.real if run.is_complex() else run)[:, 1]
        )
    low, high = paths.get_xlim()
    assert low < float(comparison.mean[:, 0].min()) < float(comparison.mean[:, 0].max()) < high


def test_a_batch_draws_every_path(tmp_path, figure):
    comparison = comparison_of("batch")
    comparison.plot(tmp_path / "figure.png")
    assert len(figure[0].axes[0].get_lines()) == 3 * (1 + len(comparison.rows))


def test_stochastic_figures_show_the_noise(tmp_path, figure):
    comparison = comparison_of("stochastic")
    comparison.plot(tmp_path / "figure.png")
    _, errors, steps, _ = figure[0].axes
    shown = torch.tensor(errors.get_lines()[-1].get_ydata())
    assert torch.equal(shown[1:], comparison.standard_error[1:])
    assert torch.equal(torch.tensor(steps.get_lines()[-1].get_ydata()), comparison.noise_floor)
    assert "error of the mean" in figure[0].legends[0].get_texts()[-1].get_text()


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_the_ending_chooses_the_format(suffix, tmp_path):
    path = comparison_of("1-D").plot(str(tmp_path / f"figure.{suffix}"))
    assert path.read_bytes()[:5] == (b"%PDF-" if suffix == "pdf" else b"<?xml")


def test_the_path_returned_is_the_file(tmp_path):
    assert comparison_of("1-D").plot(tmp_path / "without-ending").is_file()


@pytest.mark.parametrize("name", ["figure.xyz", "folder"])
def test_a_path_that_cannot_be_a_figure(name, tmp_path):
    comparison = comparison_of("1-D")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"path|folder|[Ff]ormat"):
        comparison.plot(tmp_path / name)


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"folder '.*file/inside' cannot be written"):
        comparison_of("1-D").plot(tmp_path / "file" / "inside" / "figure.png")
