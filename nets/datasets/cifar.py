"""The binary version of CIFAR-10 and CIFAR-100: fixed records of label bytes, then a red, a green and a blue plane."""

from __future__ import annotations

from pathlib import Path

import torch

from nets.datasets.archives import read_tar
from nets.datasets.catalogue import CifarSet
from nets.datasets.download import download
from nets.datasets.errors import damage_error
from nets.datasets.files import cache_folder, first_file, missing_files_error, read_whole
from nets.datasets.parts import DataPart

SIDE, CHANNELS = 32, 3
PIXELS = CHANNELS * SIDE * SIDE


def find_cifar(name: str, kind: CifarSet, root: Path | None) -> dict[str, Path] | Path:
    """The files by name or, if some are missing, the official archive, downloaded if there is no root."""
    base = cache_folder() if root is None else root
    places = [base / kind.folder, base]
    wanted = (*kind.train, *kind.test)
    found = {each: path for each in wanted if (path := first_file(places, [each])) is not None}
    if len(found) == len(wanted):
        return found
    archive = first_file([base], [kind.archive.name])
    if archive is not None:
        return archive
    if root is None:
        return download(kind.archive, base)
    raise missing_files_error(name, root, (each for each in wanted if each not in found), places, kind.archive.name)


def cifar_part(source: dict[str, Path] | Path, kind: CifarSet, *, train: bool) -> DataPart:
    """Images (N, 3, 32, 32) and fine labels of one part, from its files or the archive."""
    names = kind.train if train else kind.test
    most = {each: (len(kind.labels) + PIXELS) * count for each, count in kind.most.items()}
    if isinstance(source, Path):
        members = read_tar(source, {f"{kind.folder}/{each}": size for each, size in most.items()})
        contents = [(f"{source}, member {kind.folder}/{each}", members[f"{kind.folder}/{each}"]) for each in names]
    else:
        contents = [(str(source[each]), read_whole(source[each], most[each])) for each in names]
    parts = [
        records(content, where, kind, kind.most[each]) for each, (where, content) in zip(names, contents, strict=True)
    ]
    return DataPart(
        torch.cat([part.values for part in parts]), torch.cat([part.targets for part in parts]), kind.labels[-1]
    )


def records(content: bytes, where: str, kind: CifarSet, most: int) -> DataPart:
    """The examples of one file's content."""
    length = len(kind.labels) + PIXELS
    count, rest = divmod(len(content), length)
    if rest or not 1 <= count <= most:
        raise damage_error(where, f"{len(content):,} bytes", f"1 to {most:,} whole records of {length:,}")
    table = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(count, length)
    for column, classes in enumerate(kind.labels):
        worst = int(table[:, column].argmax())
        if int(table[worst, column]) >= classes:
            found = f"label {int(table[worst, column])} in record {worst}"
            raise damage_error(where, found, f"labels in [0, {classes})")
    images = table[:, len(kind.labels) :].reshape(count, CHANNELS, SIDE, SIDE)
    return DataPart(images, table[:, len(kind.labels) - 1].long(), kind.labels[-1])
