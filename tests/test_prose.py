"""The prose of library and scripts: plain technical English, verbs and nouns for functions, one name a class."""

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    p for package in ("landscapes", "nets", "flows", "scripts", "thalweg") for p in (ROOT / package).rglob("*.py")
)
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# idiom: the usual words for it
PHRASES = {
    "what": "the noun that is meant",
    "where there is one": "if any",
    "where there are none": "if there are none",
    "held against": "compared with",
    "told apart": "separated, distinguished",
    "as told": "see above",
    "is told": "is given",
    "are told": "are given",
    "looked at": "evaluated, observed",
    "the other way round": "the converse",
    "of its own accord": "by itself",
    "nobody": "no path, no member",
    "makes do": "uses",
    "out of place": "invalid",
    "or the like": "an example",
    "gives up": "stops",
}
IDIOM = re.compile(rf"\b({'|'.join(PHRASES)})\b", flags=re.IGNORECASE)
# Functions are verbs or nouns: no bare participle, pronoun, adjective or adverb.
ODD = set(
    "theirs said shown seen lost away late above below about close silent tidy tight tighter together towards apart "
    "again afresh without within onwards few held kept gone had then late beside between against over own".split()
)
VERBS = {"embed", "feed", "need", "proceed", "seed", "shed", "speed", "spread"}  # end like a participle, are none
PROMISED = {"elapsed", "linearised"}  # names of the contract


def name_of(path):
    return str(path.relative_to(ROOT))


QUOTES = re.compile(r"""^[rbfuRBFU]*("{3}|'{3}|"|')|("{3}|'{3}|"|')$""")


def prose(source):
    """Comments, docstrings and other strings of a source that hold more than one word, each with its line.

    Comments on successive lines are one text, and so are strings that Python joins.
    """
    texts, before = [], None  # [line, kind, text]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "NL":
            continue
        if kind in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            text = token.string.removeprefix("#") if kind == "COMMENT" else QUOTES.sub("", token.string)
            if kind == before:
                texts[-1][2] += text
            else:
                texts.append([token.start[0], kind, text])
        if kind not in ("FSTRING_START", "FSTRING_END"):
            before = kind
    for line, kind, text in texts:
        if kind == "COMMENT" or " " in text.strip():
            yield line, " ".join(text.split())


def idioms(source):
    """(line, idiom, the usual words) of every idiom in the prose of a source."""
    for line, text in prose(source):
        for idiom in IDIOM.findall(text):
            yield line, idiom, PHRASES[idiom.lower()]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_prose_of_a_file_is_plain(path):
    assert list(idioms(path.read_text())) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_prose_of_a_page_is_plain(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    assert IDIOM.findall(" ".join(text.split())) == []


def test_an_idiom_is_seen_where_it_stands():
    source = 'def f(what):\n    """What a run costs, held\n    against its length."""\n    return what  # nobody'
    assert [(line, idiom) for line, idiom, _ in idioms(source)] == [(2, "What"), (2, "held against"), (4, "nobody")]
    joined = '# held\n# against it\nx = ("never told "\n     f"apart from {y}")\n'
    assert [(line, idiom) for line, idiom, _ in idioms(joined)] == [(1, "held against"), (3, "told apart")]


def functions(tree):
    """Names of functions and methods, properties left out: those are read like fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
            if not decorators & {"property", "cached_property", "setter"}:
                yield node.name


def is_odd(name):
    """Whether a whole name is a bare participle, pronoun, adjective or adverb."""
    word = name.strip("_")
    return word in ODD or (word.endswith("ed") and "_" not in word and word not in VERBS | PROMISED)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_verbs_or_nouns(path):
    assert [name for name in functions(ast.parse(path.read_text())) if is_odd(name)] == []


def test_an_odd_name_is_seen():
    tree = ast.parse("def theirs(): ...\nclass A:\n    def _kept(self): ...\n    @property\n    def mixed(self): ...")
    assert [name for name in functions(tree) if is_odd(name)] == ["theirs", "_kept"]
    assert not is_odd("embed")
    assert not is_odd("counted_noise")


def test_a_class_name_has_one_meaning():
    classes = [
        node.name for path in FILES for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, count in Counter(classes).items() if count > 1] == []
