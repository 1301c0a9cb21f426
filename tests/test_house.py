"""The house stands: who imports whom, what has a docstring, which names the contract promises, how long files are."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "landscapes": set(),
    "nets": {"landscapes"},
    "flows": {"landscapes"},
    "scripts": {"landscapes", "nets", "flows"},
    "thalweg": {"landscapes", "nets", "flows", "scripts"},
}
OURS = {*FLOORS, "tests"}
FILES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
LIBRARY = [path for path in FILES if path.relative_to(ROOT).parts[0] != "scripts"]
LONGEST = 400

CONTRACT = {
    "landscapes": "Landscape FiniteSum Quadratic Rosenbrock from_sympy Counted Regularised",
    "nets": "NetworkLandscape MLP load_data",
    "flows": "Flow StochasticFlow Descent GradientFlow ModifiedFlow PrincipalFlow StochasticModifiedEquation "
    "MinibatchNoise GradientDescent StochasticGradientDescent HeavyBall OptimizerDescent BrownianPath integrate "
    "descend compare",
    "flows.invariants": "check_order check_equivariance check_descent check_batch",
}


def name_of(path):
    return str(path.relative_to(ROOT))


def imported(tree, path):
    """Top-level packages that a module imports, wherever in it, relative imports resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts
            yield node.module.split(".")[0] if node.level == 0 else package[: len(package) - node.level][0]


def test_the_tree_is_there():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FLOORS)
    assert len(LIBRARY) > 30


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_down(path):
    floor = path.relative_to(ROOT).parts[0]
    upward = (set(imported(ast.parse(path.read_text()), path)) & OURS) - FLOORS[floor] - {floor}
    assert not upward, f"{name_of(path)} imports {upward}"


# Inside a package, from below: a room imports rooms of lower floors, and of its own floor if nothing runs in a circle.
INNER = {
    "landscapes.errors": 0,
    "landscapes.references": 0,
    "landscapes.description": 0,
    "landscapes.autodiff": 1,
    "landscapes.krylov": 1,
    "landscapes.sampling": 1,
    "landscapes.expansion": 2,
    "landscapes.landscape": 3,
    "landscapes.wrappers": 4,
    "landscapes.labelled": 5,
    "landscapes.toys": 6,
    "landscapes.noise": 7,
    "landscapes": 8,
    "flows.declared": 0,
    "flows.momentum": 3,
    "flows.flow": 0,
    "flows.descent": 0,
    "flows.arguments": 0,
    "flows.schedules": 0,
    "flows.engines": 1,
    "flows.series": 1,
    "flows.figures": 1,
    "flows.tables": 1,
    "flows.models": 2,
    "flows.descents": 2,
    "flows.comparison": 3,
    "flows.ensembles": 3,
    "flows.observers": 3,
    "flows.orders": 3,
    "flows.steady": 3,
    "flows.training": 3,
    "flows.catalogue": 4,
    "flows.invariants": 4,
    "flows.strategies": 4,
    "flows": 5,
}


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def modules_imported(source, package=""):
    """Our modules that a source in a package imports, wherever in it: under TYPE_CHECKING and inside functions, too.

    References "package.module:Name" and names given to import_module and __import__ are imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, colon, name = node.value.partition(":")
            if colon and name.isidentifier() and module in MODULES:
                yield module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and a.value in MODULES)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = (f"{origin}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else origin for name in names)


def package_of(module, path):
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


ARROWS = {
    module: {name for name in modules_imported(path.read_text(), package_of(module, path)) if name in MODULES}
    for module, path in MODULES.items()
}


def room(module):
    return module if module in INNER else module.rpartition(".")[0]


def runs_up(module, other):
    same_package = other.partition(".")[0] == module.partition(".")[0]
    return same_package and INNER[room(other)] > INNER[room(module)]


@pytest.mark.parametrize("module", [m for m in MODULES if m.partition(".")[0] in ("flows", "landscapes")])
def test_imports_inside_a_package_run_down(module):
    assert [other for other in ARROWS[module] if runs_up(module, other)] == []


def cycles(arrows):
    """Modules that reach themselves."""

    def reached(module):
        found, waiting = set(), list(arrows[module])
        while waiting:
            other = waiting.pop()
            if other not in found:
                found.add(other)
                waiting.extend(arrows[other])
        return found

    return [module for module in arrows if module in reached(module)]


def test_no_imports_run_in_a_circle():
    assert cycles(ARROWS) == []


def test_the_rules_see_wrong_imports():
    source = "if TYPE_CHECKING:\n    from flows.models.gradient import GradientFlow"
    (wrong,) = modules_imported(source)
    assert runs_up("flows.engines.integrate", wrong)
    assert not runs_up("flows.observers.drift", wrong)
    assert runs_up("landscapes.krylov.space", "landscapes.landscape")
    for source in ("import_module('flows.models')", "x = 'flows.models:GradientFlow'", "__import__('flows.models')"):
        assert list(modules_imported(source)) == ["flows.models"]
    assert not runs_up("landscapes.noise.minibatch", "landscapes.krylov")
    assert list(modules_imported("from ..lab.store import Store", "scripts.stochastic")) == ["scripts.lab.store"]
    assert list(modules_imported("from . import sampling", "scripts.stochastic")) == ["scripts.stochastic.sampling"]
    assert cycles({**ARROWS, "flows.models.gradient": {"flows.models.truncated"}, "flows.models.truncated": {wrong}})


def family(module):
    """The folder of an experiment, or the experiment itself where it is a single file."""
    return module.split(".")[1]


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("scripts.") and not m.startswith("scripts.lab")])
def test_experiments_import_the_lab_and_their_own_family(module):
    others = {family(other) for other in ARROWS[module] if other.startswith("scripts.")}
    assert others <= {"lab", family(module)}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("scripts.lab.")])
def test_the_lab_imports_no_experiment(module):
    assert {family(other) for other in ARROWS[module] if other.startswith("scripts.")} <= {"lab"}


@pytest.mark.parametrize("package", [m for m, path in MODULES.items() if path.name == "__init__.py"])
def test_no_package_exports_what_one_of_its_modules_is_called(package):
    exported = importlib.import_module(package)
    modules = [m.rpartition(".")[2] for m in MODULES if m.rpartition(".")[0] == package]
    shadowed = [name for name in modules if not isinstance(getattr(exported, name, exported), type(exported))]
    assert shadowed == []


def test_the_rule_sees_an_import_that_runs_up():
    source = "def f():\n    from nets.data import load_data\nimport tests.conftest, torch\nfrom . import flow"
    path = ROOT / "flows" / "somewhere.py"
    assert set(imported(ast.parse(source), path)) == {"nets", "tests", "torch", "flows"}


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [node for node in tree.body if isinstance(node, definitions) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def undocumented(module):
    """Public methods and properties of a module's classes that have no docstring, their own or an overridden one's."""
    imported_module = importlib.import_module(module)
    classes = [c for c in vars(imported_module).values() if inspect.isclass(c) and c.__module__ == module]
    for owner in classes:
        for name, member in vars(owner).items():
            known = inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
            if known and not name.startswith("_") and not inspect.getdoc(getattr(owner, name)):
                yield f"{owner.__name__}.{name}"


@pytest.mark.parametrize("module", [module for module in MODULES if not module.endswith("__main__")])
def test_methods_have_docstrings_unless_they_override_one_that_has(module):
    assert list(undocumented(module)) == []


@pytest.mark.parametrize("package", ["landscapes", "nets", "flows"])
def test_exported_names_exist_and_have_docstrings(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    for name in module.__all__:
        exported = getattr(module, name)
        assert not callable(exported) or (exported.__doc__ or "").strip(), name


@pytest.mark.parametrize("module", CONTRACT)
def test_the_contract_imports(module):
    imported_module = importlib.import_module(module)
    for name in CONTRACT[module].split():
        assert callable(getattr(imported_module, name)), name
        assert name in getattr(imported_module, "__all__", [name]), name


# package: what importing it, and those before it, must leave alone; one process, as torch is slow to import
ABSENT = {
    "landscapes": {"flows", "nets", "hypothesis", "matplotlib", "torchdiffeq", "sklearn"},
    "flows": {"nets", "scripts", "hypothesis", "pytest", "matplotlib.pyplot", "sklearn"},
    "flows.invariants": {"nets", "hypothesis", "pytest", "matplotlib.pyplot"},
    "nets": {"scripts", "hypothesis", "pytest", "matplotlib.pyplot"},
}


def test_importing_a_package_stays_within_its_means():
    lines = [f"import {package}; print([n for n in {sorted(n)} if n in sys.modules])" for package, n in ABSENT.items()]
    code = "\n".join(["import sys", *lines])
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n") == ["[]"] * len(ABSENT) + [""]


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_no_file_is_too_long(path):
    assert len(path.read_text().splitlines()) <= LONGEST


LONGEST_BODY = 40


def long_bodies(source):
    """Functions whose body, its docstring left out, has more lines than LONGEST_BODY."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            if body[-1].end_lineno - body[0].lineno >= LONGEST_BODY:
                yield node.name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_function_is_too_long(path):
    assert list(long_bodies(path.read_text())) == []


def test_the_rule_sees_a_long_function():
    body = "    x = 1\n" * LONGEST_BODY
    assert list(long_bodies(f"def short():\n    'Text.'\n{body}def long():\n{body}    return x\n")) == ["long"]
