"""Run an experiment: python -m thalweg EXPERIMENT [options]; EXPERIMENT --help lists its options."""

from __future__ import annotations

import ast
import pkgutil
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

HOUSE = "thalweg.scripts"  # the checkout's folder scripts/, as it is installed


def experiments() -> dict[str, str]:
    """Experiments by name, each with the first sentence of its docstring; nothing is imported."""
    package = find_spec(HOUSE)
    if package is None or package.submodule_search_locations is None:
        raise ModuleNotFoundError(f"{HOUSE} is not installed; install thalweg, or run python -m scripts.NAME")
    found = {}
    for folder in package.submodule_search_locations:
        for module in pkgutil.iter_modules([folder]):
            if module.name != "lab":
                file = Path(folder, module.name, "__main__.py") if module.ispkg else Path(folder, f"{module.name}.py")
                text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
                found[module.name] = re.split(r"[:.] python -m", " ".join(text.split("\n\n")[0].split()))[0]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 after one line about an experiment that there is not; else that of the experiment."""
    given = sys.argv[1:] if arguments is None else arguments
    known = experiments()
    if not given or given[0] in ("-h", "--help"):
        print(f"{__doc__}\n")
        for name, text in known.items():
            print(f"  {name.replace('_', '-'):<20} {text}")
        return 0
    name = given[0].replace("-", "_")
    if name not in known:
        accepted = ", ".join(known).replace("_", "-")
        print(f"thalweg: EXPERIMENT must be one of {accepted}, got {given[0]!r}", file=sys.stderr)
        return 2
    sys.argv = [f"thalweg {given[0]}", *given[1:]]
    try:
        runpy.run_module(f"{HOUSE}.{name}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # while the experiment was imported; afterwards it ends by itself
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
