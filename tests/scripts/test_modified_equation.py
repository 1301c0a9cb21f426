"""The table and its files, the field of a loss, drawn trees; losses that are more than arithmetic are refused."""

import json

import matplotlib
import pytest
import sympy
from matplotlib.figure import Figure

from flows.series import EULER, HEAVY_BALL, heavy_ball_multistep, modified_equation, rooted_trees, tree
from flows.series.expressions import modified_gradient_flow
from flows.series.latex import latex_field, latex_landscape
from scripts import modified_equation as script
from scripts.lab.tree_figure import WIDTH, draw_trees, shape_of

X, Y, H = sympy.symbols("x y h")


def test_a_table_of_gradient_descent_and_its_files(tmp_path, run):
    status, out, err = run(script.main, f"--method euler --order 4 --loss x**4+x*y --out {tmp_path}")
    assert (status, err) == (0, "")
    series = modified_equation(EULER, 4)
    assert latex_field(series) in out
    assert latex_landscape(series) in out
    rows = {line.split()[0]: line.split(maxsplit=5) for line in (tmp_path / "table.txt").read_text().splitlines()[2:10]}
    assert len(rows) == 8  # 1 + 1 + 2 + 4 trees, the one without a coefficient too
    assert rows["f[f,f]"] == ["f[f,f]", "3", "2", "3", "1/12", "−D³f[∇f, ∇f]"]
    assert rows["f[f,f,f]"][4] == "0"
    assert rows["f[f[f[f]]]"] == ["f[f[f[f]]]", "4", "1", "24", "−1/4", "HHH∇f"]
    said = json.loads((tmp_path / "equation.json").read_text())
    coefficients = [row["coefficient"] for row in said["trees"]]
    assert coefficients == ["1", "-1/2", "1/12", "1/3", "0", "-1/12", "-1/12", "-1/4"]
    found = [sympy.sympify(said["field"][f"d{s}/dt"]) for s in "xy"]
    expected = modified_gradient_flow(X**4 + X * Y, [X, Y], H, 4)
    assert all(sympy.expand(a - b) == 0 for a, b in zip(found, expected, strict=True))
    formulas = (tmp_path / "equation.tex").read_text()
    assert formulas.count(r"\[\begin{aligned}") == formulas.count(r"\end{aligned}\]") == 2
    height, width, _ = matplotlib.image.imread(tmp_path / "figure.png").shape
    assert width == pytest.approx(200 * WIDTH, abs=2)
    assert height > width / 2


@pytest.mark.parametrize("method", script.METHODS)
def test_every_method_has_a_table(method, tmp_path, run):
    status, out, err = run(script.main, f"--method {method} --order 3 --loss cos(x) --out {tmp_path}")
    assert (status, err) == (0, "")
    assert "dx/dt = " in out
    assert ("dv_x/dt = " in out) == (method in ("heavy-ball", "nesterov"))
    assert ("β" in out) == method.startswith("reduced")
    assert (tmp_path / "figure.png").exists()


def test_a_table_says_where_friction_enters(tmp_path, run):
    _, out, _ = run(script.main, f"--method heavy-ball --order 3 --out {tmp_path}")
    rows = {line.split()[0]: line.split(maxsplit=5)[5] for line in out.splitlines()[2:19]}
    assert rows["r[r]"] == "μ²v"
    assert rows["g[x,x]"] == "−D³f[v, v]"
    assert rows["r[g[x]]"] == "μHv"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x**4 + x*y", X**4 + X * Y),
        ("-(1 - x)**2/2 + 0.1*y", -((1 - X) ** 2) / 2 + Y / 10),
        ("exp(-x)*sin(+y)", sympy.exp(-X) * sympy.sin(Y)),
        ("sqrt(x) + x**-1", sympy.sqrt(X) + 1 / X),
        ("2**3**2 * x", 512 * X),
    ],
)
def test_losses_are_read_as_written(text, expected):
    expression, symbols = script.read_loss(text)
    assert sympy.expand(expression - expected) == 0
    assert symbols == sorted(expected.free_symbols, key=str)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__import__('os').getcwd()", "may hold numbers"),
        ("x.real", "may hold numbers"),
        ("(lambda: x)()", "may hold numbers"),
        ("[x for x in y]", "may hold numbers"),
        ("eval(x)", "may hold numbers"),
        ("exp(x, y)", "may hold numbers"),
        ("exp", "may hold numbers"),
        ("x < y", "may hold numbers"),
        ("x if y else 1", "may hold numbers"),
        ("x @ y", "may hold numbers"),
        ("'x'", "may hold numbers"),
        ("1j*x", "may hold numbers"),
        ("True*x", "may hold numbers"),
        ("x^2", "powers are written"),
        ("x +", "not an expression"),
        ("x; y", "not an expression"),
        ("", "not an expression"),
        ("9**9**9*x", "exponents from"),
        ("x**y", "exponents from"),
        ("((((2**32)**32)**32)**32)*x", "too large"),
        ("1/0 + x", "not a real number"),
        ("sqrt(-1)*x", "not a real number"),
        ("1e400*x", "may hold numbers"),
        ("3", "no symbol"),
        ("h*x", "uses a name"),
        ("beta*x", "uses a name"),
        ("x" + "+x" * 300, "at most 500 characters"),
        ("(" * 240 + "x" + ")" * 240, "not an expression"),
    ],
)
def test_losses_that_are_no_plain_arithmetic_are_refused(text, says):
    with pytest.raises(ValueError, match=says) as caught:
        script.read_loss(text)
    assert str(caught.value).startswith("--loss")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--order 0", "--order must be at least 1"),
        ("--order 11", "--order must be at most 10"),
        ("--order 7 --loss x**2", "--order must be at most 6 with --loss"),
        ("--drawn 0", "--drawn must be"),
        ("--method leapfrog", "--method"),
        ("--method nesterov --loss x*v_x", "v_"),
        ("--out /dev/null/there", "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, says, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(script.main, arguments)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert says in err
    assert not (tmp_path / "results").exists()


def test_shapes_have_the_root_below_and_no_two_vertices_in_one_place():
    for whole in (t for n in range(1, 8) for t in rooted_trees(n)):
        shape = shape_of(whole)
        places = [(x, y) for x, y, _ in shape.vertices]
        assert len(set(places)) == len(places) == whole.order
        assert shape.vertices[0][1] == 0
        assert all(shape.vertices[child][1] == shape.vertices[parent][1] + 1 for parent, child in shape.edges)
        assert sorted(child for _, child in shape.edges) == list(range(1, whole.order))


@pytest.mark.parametrize(
    ("method", "order"), [(EULER, 6), (HEAVY_BALL, 4), (heavy_ball_multistep(sympy.Symbol("beta")), 4)]
)
def test_drawn_trees_stay_inside_the_figure_and_apart(method, order):
    series = modified_equation(method, order)
    trees = [t for n in range(1, order + 1) for t in rooted_trees(n, series.grammar)]
    figure = draw_trees(trees, series)
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    (axes,) = figure.axes
    frame = figure.bbox
    labels = [text.get_window_extent() for text in axes.texts]
    assert len(labels) == len(trees) + order
    for box in labels:
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1
    assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[:i])


def test_a_tree_without_a_coefficient_is_faint():
    series = modified_equation(EULER, 4)
    figure = draw_trees([tree("f", *[tree("f")] * 3)], series)
    assert {line.get_color() for line in figure.axes[0].lines} == {"0.8"}
