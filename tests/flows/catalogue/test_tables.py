"""The tables of the pages are those of the catalogue, and the command rewrites them."""

import dataclasses
import re
from pathlib import Path

import pytest

from flows.catalogue import markdown
from flows.catalogue.__main__ import main
from flows.catalogue.descents import DESCENTS
from flows.catalogue.flows import FLOWS
from flows.catalogue.observers import OBSERVERS
from flows.catalogue.rows import BATCH, EXAMPLES, ORDER, THIRD, Cost, substitute, write_power, write_quantity

ROOT = Path(__file__).parents[3]
PAGES = {
    "README.md": ["optimisers"],
    "docs/models.md": ["example", "optimisers", "flows", "validity", "descents", "observers"],
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_tables_of_the_catalogue(page):
    text = (ROOT / page).read_text()
    assert [match[1] for match in markdown.BLOCK.finditer(text)] == PAGES[page]
    assert markdown.rewrite(text) == text, "run make tables"


def test_make_tables_rewrites_these_pages():
    assert f"python -m flows.catalogue {' '.join(PAGES)}" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("block", "rows"), [("flows", FLOWS), ("descents", DESCENTS), ("observers", OBSERVERS)])
def test_every_row_is_a_line(block, rows):
    lines = markdown.TABLES[block]().splitlines()
    assert [re.match(r"\| `(\w+)` ", line)[1] for line in lines[2:]] == list(rows)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1  # as many cells in every line


def test_a_changed_row_changes_the_page_and_the_command_mends_it(tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- flows -->\nold\n<!-- end -->\n\nAfter.\n")
    assert main([str(page)]) == 0
    assert page.read_text() == f"Before.\n\n<!-- flows -->\n{markdown.flow_table()}\n<!-- end -->\n\nAfter.\n"
    assert main([str(page)]) == 0
    assert capsys.readouterr().out.endswith("page.md: unchanged\n")
    monkeypatch.setitem(FLOWS, "GradientFlow", dataclasses.replace(FLOWS["GradientFlow"], local=5))
    assert markdown.rewrite(page.read_text()) != page.read_text()


@pytest.mark.parametrize("text", ["<!-- flow -->\n<!-- end -->", "no block"])
def test_a_page_without_a_known_block_is_refused(text, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert main([str(page)]) == 2
    assert "page must have blocks" in capsys.readouterr().err
    assert page.read_text() == text
    assert main([str(tmp_path / "missing.md")]) == 2


def test_without_a_page_the_tables_are_printed(capsys):
    assert main([]) == 0
    assert markdown.observer_table() in capsys.readouterr().out


def test_quantities_in_words():
    assert [write_power(q) for q in (1, 2, ORDER + 1, 3 + THIRD, None)] == [
        "h",
        "h²",
        "hᵖ⁺¹",
        "h³, h⁴ with third_order",
        "–",
    ]
    assert write_quantity(2 * BATCH / EXAMPLES) == "2b/N"
    assert str(Cost(2, 1, note="so")) == "2 gradients, 1 HVP (so)"
    assert str(Cost(1, None)) == "1 gradient, HVPs as needed"
    assert substitute(2 * BATCH / EXAMPLES, {"b": 3, "N": 12}) == 0.5
    with pytest.raises(ValueError, match="values must hold N for"):
        substitute(BATCH / EXAMPLES, {"b": 3})


def test_the_code_on_the_page_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/models.md").read_text(), flags=re.DOTALL)
    exec(block, {})
    assert f"```text\n{capsys.readouterr().out}```" == markdown.example()
