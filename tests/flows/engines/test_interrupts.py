"""An interrupt at every line of the engines: a run that returns is consistent, and its end continues to the whole."""

import contextvars
import sys

import pytest
import torch

from flows import (
    GradientFlow,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    descend,
    integrate,
)
from flows.observers import Loss
from landscapes.toys.finite_sums import LinearRegression
from tests.tensors import draw

FILES = tuple(f"flows/engines/{name}.py" for name in ("recorder", "descend", "integrate", "fixed", "adaptive"))
LANDSCAPE = LinearRegression(draw(1, 6, 2), draw(2, 6))
THETA0, STEPS = draw(3, 2, 2), 4
TIMES = [0.1 * k for k in range(STEPS + 1)]


def sgd(start, done=0, **options):
    """Mini-batches: the generator is part of the end."""
    return descend(StochasticGradientDescent(LANDSCAPE, 0.1, 2), start, STEPS - done, **options)


def equation(start, done=0, **options):
    """Fixed steps with noise."""
    noise = {} if done else {"seed": 5}
    return integrate(StochasticModifiedEquation(LANDSCAPE, 0.1, 2), start, TIMES[done:], dt=0.05, **noise, **options)


def flow(start, done=0, **options):
    """Adaptive steps that restart at every output."""
    return integrate(GradientFlow(LANDSCAPE), start, TIMES[done:], restarts=TIMES[done:], **options)


def interrupt_at(line):
    """A tracer that raises KeyboardInterrupt at the n-th line of the engines' files, and the number of lines so far."""
    seen = [0]

    def local(frame, event, argument):
        if event == "line":
            seen[0] += 1
            if seen[0] == line:
                raise KeyboardInterrupt
        return local

    def trace(frame, event, argument):
        return local if frame.f_code.co_filename.endswith(FILES) else None

    return trace, seen


def run_interrupted(run, line):
    """The result of a run interrupted at that line, None if the interrupt came through; and the lines that ran."""
    trace, seen = interrupt_at(line)
    before = sys.gettrace()

    def traced():
        sys.settrace(trace)
        try:
            return run(THETA0, observers=[Loss(LANDSCAPE)])
        except KeyboardInterrupt:
            return None
        finally:
            sys.settrace(before)

    # An exception that a tracer raises on the way out of a ``with`` may skip its exit, which is done here instead.
    with torch.enable_grad():
        return contextvars.copy_context().run(traced), seen[0]


@pytest.mark.parametrize("run", [sgd, equation, flow])
def test_an_interrupt_at_any_line(run):
    whole = run(THETA0)
    _, lines = run_interrupted(run, 0)
    returned = 0
    for line in range(1, lines + 1):
        result, _ = run_interrupted(run, line)
        if result is None:
            continue
        returned += 1
        kept = len(result.times)
        assert kept == len(result.theta) > 0
        assert torch.equal(result.times, whole.times[:kept])
        assert torch.equal(result.theta, whole.theta[:kept])
        times, losses = result.observations.get("loss", (torch.zeros(0), torch.zeros(0)))
        assert len(times) == len(losses) <= kept
        if result.status == "interrupted":
            assert result.end.t == result.times[-1]
            if kept <= STEPS:
                rest = run(result.end, done=kept - 1)
                assert torch.equal(rest.theta, whole.theta[kept - 1 :])
    assert returned > lines / 3
