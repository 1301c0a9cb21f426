"""How a run ended: the status of a result, and the errors for results that are only a part of the whole."""

from __future__ import annotations

from typing import Any

KINDS = ("finished", "diverged", "singular mode", "step underflow", "stopped", "interrupted")


class Status(str):
    """How a run ended: a string, one of ``KINDS``, with a ``sentence`` that states the cause and the remedy."""

    sentence: str

    def __new__(cls, kind: str, sentence: str) -> Status:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if not isinstance(sentence, str):
            raise TypeError(f"sentence must be a string, got {type(sentence).__name__}")
        status = super().__new__(cls, kind)
        status.sentence = sentence
        return status

    def __repr__(self) -> str:
        return f"Status({str(self)!r}, {self.sentence!r})"

    def __reduce__(self) -> tuple[type[Status], tuple[str, str]]:
        return type(self), (str(self), self.sentence)


class InterruptedRun(KeyboardInterrupt):
    """A KeyboardInterrupt that ended a run; ``result`` holds the part of it that was computed, such as a Trajectory."""

    def __init__(self, sentence: str, result: Any):
        super().__init__(sentence, result)
        self.sentence, self.result = sentence, result

    def __str__(self) -> str:
        return self.sentence


class UnfinishedRunError(ArithmeticError):
    """A run ended before its end, or lost members of its batch; ``result`` holds the part of it that was computed."""

    def __init__(self, sentence: str, result: Any):
        super().__init__(sentence, result)
        self.sentence, self.result = sentence, result

    def __str__(self) -> str:
        return self.sentence
