"""Training in segments on disk: an interrupted segment is run again, finished ones are not."""

import pytest
import torch

from flows import GradientDescent
from flows.observers import Loss
from landscapes import Rosenbrock
from scripts.lab.store import Store, descend_in_segments

VALLEY = Rosenbrock(b=5.0)
START = torch.tensor([-0.4, 0.6], dtype=torch.float64)


class Stopping(Loss):
    """A loss whose sight of the seventh step is the user's interrupt."""

    calls = 0

    def __call__(self, k, t, theta):
        type(self).calls += 1
        if type(self).calls == 7:
            raise KeyboardInterrupt
        return super().__call__(k, t, theta)


def test_an_interrupted_segment_is_run_again(tmp_path):
    descent = GradientDescent(VALLEY, 0.02)
    with pytest.raises(KeyboardInterrupt):
        descend_in_segments(Store(tmp_path, {}), "training", descent, START, 9, 3, [Stopping(VALLEY)], every=1)
    again = descend_in_segments(Store(tmp_path, {}), "training", descent, START, 9, 3, [Stopping(VALLEY)], every=1)
    whole = descend_in_segments(
        Store(tmp_path / "whole", {}), "training", descent, START, 9, 9, [Loss(VALLEY)], every=1
    )
    torch.testing.assert_close(again["theta"], whole["theta"])
    assert len(again["theta"]) == 10
