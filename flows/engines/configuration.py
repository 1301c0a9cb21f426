r"""The configuration of a run: JSON that says which model ran, on which data, with which settings and versions."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from flows.descent import Descent
from flows.flow import Flow
from landscapes import Landscape
from landscapes.description import describe

PACKAGES = ("thalweg", "torch", "torchdiffeq")


class Configuration(Mapping[str, Any]):
    r"""A read-only mapping of JSON values: "model", "settings", "versions", "device" and "dtype".

    ``model``, a flow, descent or landscape, is described by class and parameters (``Landscape.description``), each of
    the ``settings`` likewise; large tensors by their SHA-256. Device and dtype are those of the setting ``theta0``, if
    it is a tensor. Nothing is evaluated before the mapping is read, pickled or copied, and then once: a data set is
    hashed for runs that are saved only. The model must not change meanwhile.
    """

    def __init__(self, model: Flow | Descent | Landscape | None = None, **settings: Any):
        self._model = model
        self._settings = settings

    @cached_property
    def _values(self) -> dict[str, Any]:
        theta0 = self._settings.get("theta0")
        place = {"device": str(theta0.device), "dtype": describe(theta0.dtype)} if isinstance(theta0, Tensor) else {}
        return {
            "model": describe(self._model),
            "settings": describe(self._settings),
            "versions": dict(versions()),
            **place,
        }

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._values == dict(other)

    __hash__ = None  # type: ignore[assignment]  # equal to dicts, which have none

    def __reduce__(self) -> tuple[type[dict], tuple[dict[str, Any]]]:
        return dict, (self._values,)


@cache
def versions() -> dict[str, str]:
    """Versions of thalweg, torch, torchdiffeq and Python; "unknown" for a package that is not installed."""
    return {name: version_of(name) for name in PACKAGES} | {"python": platform.python_version()}


def version_of(package: str) -> str:
    """The installed version of a package."""
    if package == "torch":
        return str(torch.__version__)
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def as_json(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON."""
    return describe(configuration)
