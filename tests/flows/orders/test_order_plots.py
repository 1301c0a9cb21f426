"""The figure of order studies: what is drawn is what was measured."""

import math

import pytest
from matplotlib.colors import to_rgba

from flows.engines.storage import FolderError
from flows.figures import COLOURS
from flows.orders.figure import plot_orders
from flows.orders.fit import OrderStudy
from tests.flows.watching import watch_figures

LADDER = tuple(0.4 * 0.5**k for k in range(6))


def study(order, untrusted=(), sharpness=2.0, failed=()):
    errors = [math.nan if k in failed else h**order for k, h in enumerate(LADDER)]
    integration = [e * (0.5 if k in untrusted else 1e-4) for k, e in enumerate(errors)]
    return OrderStudy(LADDER, tuple(errors), 0.0, tuple(integration), sharpness=sharpness)


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """The figures that were written."""
    return watch_figures(monkeypatch)


def test_lines_are_the_studies(tmp_path, figures):
    first = {"gradient": study(2), "modified-2": study(3, untrusted=(4, 5), failed=(0,))}
    path = plot_orders([first, {"gradient": study(1)}], tmp_path / "more" / "orders")
    assert path == tmp_path / "more" / "orders.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    left, right = figure.axes
    for axes in (left, right):
        assert axes.get_xscale() == axes.get_yscale() == "log"
        assert axes.get_xlabel() == "learning rate h"
        assert axes.get_ylabel() == "‖X − θ‖ (units of θ)"
    mine = [line for line in left.get_lines() if line.get_color() == COLOURS[1]]
    curve, solid, hollow, integration, end = mine
    assert list(curve.get_ydata())[1:] == list(first["modified-2"].errors)[1:]
    assert list(solid.get_xdata()) == list(LADDER[1:4])
    assert hollow.get_markerfacecolor() == "white"
    assert list(hollow.get_xdata()) == [LADDER[0], *LADDER[4:]]
    assert list(integration.get_ydata())[1:] == list(first["modified-2"].integration_errors)[1:]
    assert integration.get_linewidth() < 1 < curve.get_linewidth()
    assert list(end.get_xdata()) == [first["modified-2"].asymptotic_end] == [LADDER[1]]
    slopes = [line for line in left.get_lines() if line.get_color() == "0.35"]
    for order, line in zip((2, 3), slopes, strict=True):
        (h, k), (e, f) = line.get_xdata(), line.get_ydata()
        assert math.log(f / e) / math.log(k / h) == pytest.approx(order)
        assert f < min(s.errors[1] for s in first.values())
    assert {"2", "3", "slopes"} == {text.get_text() for text in left.texts}
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["gradient", "modified-2", "integration error", "not trusted", "asymptotics end"]
    assert to_rgba(curve.get_color()) != to_rgba(left.get_lines()[0].get_color())


def test_the_second_axis_is_h_lambda(tmp_path, figures):
    plot_orders([{"a": study(2)}], tmp_path / "orders.png")
    (axes,) = figures[0].axes
    (above,) = axes.child_axes
    assert above.get_xlabel().startswith("hλ")
    assert above.get_xlim() == pytest.approx([2 * h for h in axes.get_xlim()])
    plot_orders([{"a": study(2, sharpness=math.nan)}], tmp_path / "orders.png")
    assert not figures[1].axes[0].child_axes


def test_studies_without_an_order_are_drawn(tmp_path, figures):
    plot_orders([{"a": OrderStudy(LADDER, (1e-15,) * 6, 1e-12), "b": study(2, failed=range(6))}], tmp_path / "o.png")
    assert not figures[0].axes[0].texts


def test_what_cannot_be_drawn(tmp_path):
    for nothing in ([], [{}]):
        with pytest.raises(ValueError, match="panels must have"):
            plot_orders(nothing, tmp_path / "orders.png")
    with pytest.raises(FolderError, match="cannot be written"):
        plot_orders([{"a": study(2)}], "/dev/null/orders.png")
