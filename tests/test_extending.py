"""docs/extending.md: its files and lines, written into a copy of the project, do there what the page says."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
COPIED = ("landscapes", "nets", "flows", "scripts", "tests", "pyproject.toml")
KINDS = ("flow", "descent", "mini-batch descent", "landscape", "network", "observer", "experiment")
DRIVER = """
import contextlib, io, json, runpy, sys
for module, *arguments in json.load(sys.stdin):
    sys.argv, out, status = [module, *arguments], io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code
    print(json.dumps([status, out.getvalue()]))
"""


@dataclass(frozen=True)
class Member:
    """A section of the page."""

    path: str
    code: str
    registry: str
    dictionary: str
    line: str
    command: str
    output: str
    tests: tuple[str, ...]

    @property
    def name(self):
        """The name in the registry."""
        return re.match(r'    "([\w-]+)": ', self.line)[1]


def section(kind):
    """The section of the page on a flow, a descent, …"""
    return next(text for text in PAGE.split("\n## ") if re.match(rf"An? {kind}\n", text))


def member_of(kind):
    """What the section shows: one file, one line, one command and the tests."""
    text = section(kind)
    ((path, code),) = re.findall(r"```python\n# ([\w/]+\.py)\n(.*?)```", text, flags=re.DOTALL)
    ((registry, dictionary, line),) = re.findall(r"```python\n# ([\w/]+\.py), (\w+)\n(    .*)\n```", text)
    ((command, output),) = re.findall(r"```console\n\$ python -m ([^\n]*)\n(.*?)```", text, flags=re.DOTALL)
    tests = re.findall(r"`(tests/[\w/]+\.py)`", text[text.rindex("\nTests: ") :].split(" A test of its numbers")[0])
    return Member(path, code, registry, dictionary, line, command, output, tuple(tests))


MEMBERS = {kind: member_of(kind) for kind in KINDS}
kinds = pytest.mark.parametrize("kind", KINDS)


def add(member, folder):
    """Write the file, and the line at the top of its registry."""
    assert not (folder / member.path).exists()
    (folder / member.path).write_text(member.code)
    lines = (folder / member.registry).read_text().split("\n")
    (at,) = [i for i, x in enumerate(lines) if x.startswith(f"{member.dictionary}: ") and x.endswith("= {")]
    (folder / member.registry).write_text("\n".join([*lines[: at + 1], member.line, *lines[at + 1 :]]))


def started(folder, *arguments, **options):
    """A Python process in the copy, which imports the copy's packages."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "PYTHONIOENCODING": "utf-8"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | own
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with all seven members."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder)
    for member in MEMBERS.values():
        add(member, folder)
    return folder


@kinds
def test_a_member_is_one_file_and_one_line(kind):
    member = MEMBERS[kind]
    assert (ROOT / member.registry).exists()
    assert (ROOT / member.path).parent.is_dir()
    assert len(member.line) <= 120
    assert all((ROOT / path).exists() for path in member.tests)
    assert member.name in member.command or kind == "landscape"


def close(one, other):
    """Words are equal, numbers nearly so: another processor rounds otherwise."""
    try:
        return math.isclose(float(one), float(other), rel_tol=0.05)
    except ValueError:
        return one == other


def check_output(expected, found, folder):
    """Raise unless a command's output is the page's, and its figures are drawn."""
    pairs = [[line.split() for line in text.rstrip().splitlines()] for text in (expected, found)]
    assert len(pairs[0]) == len(pairs[1]), found
    for line, words in zip(*pairs, strict=True):
        assert len(line) == len(words), f"{words} is not the page's {line}"
        assert all(map(close, line, words)), f"{words} is not the page's {line}"
    for figure in re.findall("^figure: (.*)$", found, flags=re.MULTILINE):
        assert (folder / figure).stat().st_size > 10_000


def test_the_commands_print_what_the_page_shows(copy):
    commands = [member.command.split() for member in MEMBERS.values()]
    answer = started(copy, "-c", DRIVER, input=json.dumps(commands))
    assert answer.returncode == 0, answer.stderr
    for member, printed in zip(MEMBERS.values(), answer.stdout.splitlines(), strict=True):
        status, found = json.loads(printed)
        assert status == 0, answer.stderr
        check_output(member.output, found, copy)


def test_the_tests_that_the_page_names_take_the_members_and_pass(copy):
    files = sorted({path for member in MEMBERS.values() for path in member.tests} | {"tests/test_house.py"})
    words = [word for member in MEMBERS.values() for word in (member.name, Path(member.path).stem)]
    answer = started(copy, "-m", "pytest", "-x", "-rp", "-p", "no:cacheprovider", "-k", " or ".join(words), *files)
    assert answer.returncode == 0, answer.stdout
    passed = re.findall(r"^PASSED (.*)$", answer.stdout, flags=re.MULTILINE)
    for member in MEMBERS.values():
        for path in member.tests:
            assert [test for test in passed if test.startswith(path) and member.name in test], (path, member.name)
        assert [test for test in passed if "test_house" in test and member.path in test]


def test_the_files_are_formatted_and_linted(copy):
    files = [path for member in MEMBERS.values() for path in (member.path, member.registry)]
    for command in (["check"], ["format", "--check"]):
        answer = started(copy, "-m", "ruff", *command, "--no-cache", *files)
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_a_flow_with_a_row_is_in_the_suite_and_in_models_of(copy):
    (code,) = re.findall(r"```python\n(.*?)```", section("row of the catalogue"), flags=re.DOTALL)
    asked = (
        "import torch\nfrom flows import models_of\nprint(models_of(torch.optim.SGD, lr=0.1)['MidpointFlow'].arguments)"
    )
    answer = started(copy, "-c", f"{code}\n{asked}")
    assert (answer.returncode, answer.stdout) == (0, "{'h': 0.1}\n"), answer.stderr
    rows = copy / "flows/catalogue/flows.py"
    rows.write_text(f"{rows.read_text()}\n{code}")
    files = [f"tests/flows/catalogue/test_{name}.py" for name in ("flow_rows", "flow_orders", "walk")]
    answer = started(copy, "-m", "pytest", "-rp", "-p", "no:cacheprovider", "-k", "MidpointFlow", *files)
    assert answer.returncode == 0, answer.stdout
    assert len(re.findall(r"^PASSED .*MidpointFlow", answer.stdout, flags=re.MULTILINE)) >= 10
    walk = started(copy, "-m", "pytest", "-p", "no:cacheprovider", files[-1])  # the page's other members have no row
    assert "['OptimisticGradientDescent', 'StochasticExtragradient'] has no row" in walk.stdout
    assert "MidpointFlow" not in walk.stdout


def test_the_readme_leads_to_the_page():
    assert "(docs/extending.md)" in (ROOT / "README.md").read_text()
