"""Damage at random: every file of every kind gives Data or DataError, and no other exception."""

import gzip
import os
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nets import load_data
from nets.datasets.errors import DataError
from tests.examples import few
from tests.nets.data_files import (
    cifar_members,
    tar_bytes,
    tiny_contents,
    write_cifar,
    write_idx,
    write_tree,
    zip_bytes,
)

TINY = tiny_contents(wnids=("n01", "n02"), train=2, val=1)


def idx(root, zipped):
    write_idx(root, train=20, test=10, zipped=zipped)


KINDS = {
    "idx": ("mnist", lambda root: idx(root, False)),
    "idx gz": ("mnist-7x7", lambda root: idx(root, True)),
    "cifar": ("cifar-100", lambda root: write_cifar(root, "cifar-100", count=3)),
    "tar": (
        "cifar-100",
        lambda root: (root / "cifar-100-binary.tar.gz").write_bytes(tar_bytes(cifar_members("cifar-100", 3))),
    ),
    "tree": ("tiny-imagenet", lambda root: write_tree(root, TINY)),
    "zip": ("tiny-imagenet", lambda root: (root / "tiny-imagenet-200.zip").write_bytes(zip_bytes(TINY))),
}


@st.composite
def damage(draw):
    """A function that spoils bytes: cuts, flips, inserts, repeats or replaces."""
    where, what = draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=20))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "overwrite", "near the start", "double", "garbage"]))
    bit = draw(st.integers(1, 255))

    def spoil(content):
        at = min(int(where * len(content)), max(len(content) - 1, 0))
        near = min(int(where * 64), max(len(content) - 1, 0))
        return {
            "cut": content[:at],
            "flip": content[:at] + bytes(byte ^ bit for byte in content[at : at + 1]) + content[at + 1 :],
            "insert": content[:at] + what + content[at:],
            "overwrite": content[:at] + what + content[at + len(what) :],
            "near the start": content[:near] + what + content[near + len(what) :],
            "double": content + content,
            "garbage": what,
        }[kind]

    return spoil


def outcome(name, root):
    """Load both parts: "data" where sound, "error" for a DataError with file and remedy, else that error's text."""
    try:
        for train in (True, False):
            data = load_data(name, root=root, train=train)
            assert torch.isfinite(data.inputs).all()
            assert 0 <= int(data.targets.min()) <= int(data.targets.max()) < data.classes
            assert len(data.inputs) == len(data.targets) > 0
    except DataError as error:
        return "error" if str(root) in str(error) and "; " in str(error) else str(error)
    return "data"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_data_or_a_data_error(tmp_path_factory, kind):
    name, write = KINDS[kind]
    sound = tmp_path_factory.mktemp("sound")
    write(sound)
    files = sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file())
    root = tmp_path_factory.mktemp("spoilt") / "root"
    seen = set()

    @few(100)
    @given(st.sampled_from(files), damage())
    def check(file, spoil):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(sound, root, copy_function=os.link)
        spoilt = spoil((sound / file).read_bytes())
        (root / file).unlink()
        (root / file).write_bytes(spoilt)
        seen.add(outcome(name, root))

    assert outcome(name, sound) == "data"
    check()
    assert "error" in seen <= {"data", "error"}


@pytest.mark.parametrize("kind", ["idx gz", "tar"])
def test_damage_below_the_compression(tmp_path_factory, kind):
    name, write = KINDS[kind]
    root = tmp_path_factory.mktemp("spoilt")
    write(root)
    path = next(iter(sorted(root.rglob("*.gz"))))
    content = gzip.decompress(path.read_bytes())
    seen = set()

    @few(150)
    @given(damage())
    def check(spoil):
        path.write_bytes(gzip.compress(spoil(content), 1))
        seen.add(outcome(name, root))

    check()
    assert seen == {"data", "error"}
