"""Every flow and descent of the catalogue in two parts, through save and load: bit for bit the whole run.

Descents and fixed steps, noise included, at any cut; adaptive steps where the whole run restarts at the cut.
"""

import pytest
import torch

from flows import State, StochasticFlow, UnconvergedWarning, descend, integrate
from tests.flows.catalogue.cases import DESCENT_ROWS, FLOW_ROWS, RIPPLES, THETA0, Ripples

STEPS, CUT, RATE = 20, 7, 0.05
BATCH = torch.stack([THETA0, -0.4 * THETA0])
SINGLE = Ripples(RIPPLES.features.float(), RIPPLES.targets.float())


def starts(dtype):
    """The landscape and a batch of starts in one precision."""
    return (SINGLE, BATCH.float()) if dtype == torch.float32 else (RIPPLES, BATCH)


def check_whole(whole, first, second):
    """The two parts have the states, the times and the end of the whole."""
    assert second.status == "finished"
    assert torch.equal(torch.cat([first.theta, second.theta[1:]]), whole.theta)
    assert torch.equal(torch.cat([first.times, second.times[1:]]), whole.times)
    assert not torch.equal(second.theta[0], second.theta[-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", DESCENT_ROWS)
def test_descents(case, dtype, tmp_path):
    _, example = DESCENT_ROWS[case]
    landscape, theta0 = starts(dtype)
    if "DriftAdjusted" in case:  # members of a batch have clocks of their own
        theta0 = theta0[0]
    descent = example.build(landscape, RATE)
    whole, first = (descend(descent, theta0, n, seed=3) for n in (STEPS, CUT))
    second = descend(descent, State.load(first.end.save(tmp_path)), STEPS - CUT)
    check_whole(whole, first, second)


@pytest.mark.filterwarnings("ignore", category=UnconvergedWarning)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", FLOW_ROWS)
def test_fixed_steps(case, dtype, tmp_path):
    _, example = FLOW_ROWS[case]
    landscape, theta0 = starts(dtype)
    flow = example.build(landscape, RATE)
    if dtype == torch.float32 and example.noise is not None and case.startswith(("Ornstein", "MomentumOrnstein")):
        pytest.skip("a linear flow has the precision of its matrices")
    noise = {"seed": 3} if isinstance(flow, StochasticFlow) else {"method": "heun2"}
    times = [RATE * k for k in range(STEPS + 1)]
    whole, first = (integrate(flow, theta0, times[:n], dt=RATE, **noise) for n in (STEPS + 1, CUT + 1))
    later = {name: value for name, value in noise.items() if name != "seed"}
    second = integrate(flow, State.load(first.end.save(tmp_path)), times[CUT:], dt=RATE, **later)
    check_whole(whole, first, second)


@pytest.mark.filterwarnings("ignore", category=UnconvergedWarning)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [name for name, (_, example) in FLOW_ROWS.items() if example.noise is None])
def test_adaptive_steps(case, dtype, tmp_path):
    _, example = FLOW_ROWS[case]
    landscape, theta0 = starts(dtype)
    flow = example.build(landscape, RATE)
    times = [RATE * k for k in range(STEPS + 1)]
    settings = {"rtol": 1e-5, "atol": 1e-7}
    whole = integrate(flow, theta0, times, restarts=[times[CUT]], **settings)
    first = integrate(flow, theta0, times[: CUT + 1], **settings)
    second = integrate(flow, State.load(first.end.save(tmp_path)), times[CUT:], **settings)
    check_whole(whole, first, second)
