"""Loss, GradientNorm and Checkpoint in both engines and in a user's own loop."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, HeavyBall, PrincipalFlow, descend, integrate
from flows.engines.storage import FolderError, load_tensors
from flows.observers import Checkpoint, GradientNorm, Loss
from landscapes import Counted, Landscape, Quadratic, Regularised, Rosenbrock

ROSENBROCK = Rosenbrock()
TIMES = torch.linspace(0, 0.01, 9, dtype=torch.float64)


def runs(theta0, observers):
    """One run of each engine under the observers."""
    yield integrate(GradientFlow(ROSENBROCK), theta0, TIMES, observers=observers)
    yield integrate(GradientFlow(ROSENBROCK), theta0, TIMES, method="rk4", dt=float(TIMES[1]), observers=observers)
    yield descend(GradientDescent(ROSENBROCK, 1e-4), theta0, 8, observers=observers)


@pytest.fixture
def theta0(normal, dtype, device):
    return normal(0, 3, 2, dtype=dtype).to(device) / 3


def test_loss_and_gradient_norm_in_both_engines(theta0):
    for run in runs(theta0, [Loss(ROSENBROCK, every=3), GradientNorm(ROSENBROCK, every=2)]):
        times, losses = run.observations["loss"]
        assert torch.equal(times, run.times[::3])
        assert torch.equal(losses, ROSENBROCK.loss(run.theta[::3]))
        times, norms = run.observations["gradient norm"]
        assert torch.equal(times, run.times[::2])
        assert_close(norms, ROSENBROCK.grad(run.theta[::2]).square().sum(-1).sqrt())
        assert (losses.dtype, losses.device, losses.shape) == (theta0.dtype, theta0.device, (3, 3))


def test_in_a_loop_of_ones_own(theta0):
    loss, norm, seen = Loss(ROSENBROCK), GradientNorm(ROSENBROCK), {}
    theta = theta0
    for k in range(3):
        for observer in (loss, norm):
            seen |= observer(k, 0.1 * k, theta)
        assert torch.equal(seen["loss"], ROSENBROCK.loss(theta))
        assert torch.equal(seen["gradient norm"], torch.linalg.vector_norm(ROSENBROCK.grad(theta), dim=-1))
        theta = theta - 1e-3 * ROSENBROCK.grad(theta)


def test_complex_states_show_real_numbers():
    quadratic = Quadratic(torch.diag(torch.tensor([2.0, 0.02], dtype=torch.float64)))
    theta0 = torch.ones(2, dtype=torch.float64)
    run = integrate(
        PrincipalFlow(quadratic, 0.9), theta0, [0.0, 0.45, 0.9], observers=[Loss(quadratic), GradientNorm(quadratic)]
    )
    losses, norms = run.observations["loss"][1], run.observations["gradient norm"][1]
    assert (losses.dtype, norms.dtype) == (torch.float64, torch.float64)
    assert_close(losses, quadratic.loss(run.theta).real)
    assert_close(norms, quadratic.grad(run.theta).abs().square().sum(-1).sqrt())
    assert float(run.theta[1].imag.abs().max()) > 0.1


def test_what_observers_ask_is_theirs_not_the_runs():
    mine = Counted(ROSENBROCK)
    run = descend(GradientDescent(ROSENBROCK, 1e-4), torch.ones(5, 2), 4, observers=[Loss(mine), GradientNorm(mine)])
    assert (mine.counts["loss"], mine.counts["grad"]) == (25, 25)
    assert (run.cost["loss"], run.cost["grad"]) == (0, 20)


def test_two_losses_of_different_names(theta0):
    penalised = Regularised(ROSENBROCK, 1.0)
    for run in runs(
        theta0, [Loss(ROSENBROCK), Loss(penalised, name="penalised"), GradientNorm(penalised, name="slope")]
    ):
        assert torch.equal(run.observations["loss"][1], ROSENBROCK.loss(run.theta))
        assert torch.equal(run.observations["penalised"][1], penalised.loss(run.theta))
        assert set(run.observations) == {"loss", "penalised", "slope"}


def test_checkpoints_hold_the_latest_state(tmp_path, theta0):
    for i, run in enumerate(runs(theta0, [Checkpoint(tmp_path / "a", every=3)])):
        tensors, text = load_tensors(tmp_path / "a", "state")
        assert torch.equal(tensors["theta"], run.theta[6].cpu())
        assert (text["k"], text["t"]) == (6, float(run.times[6]))
        assert run.observations == {}, i


def test_checkpoints_of_complex_states(tmp_path):
    quadratic = Quadratic(torch.eye(2, dtype=torch.float64))
    run = integrate(
        PrincipalFlow(quadratic, 1.5), torch.ones(2, dtype=torch.float64), [0.0, 0.7], observers=[Checkpoint(tmp_path)]
    )
    assert torch.equal(load_tensors(tmp_path, "state")[0]["theta"], run.theta[-1])
    Checkpoint(tmp_path)(3, 0.3, run.theta[0])  # a user's own loop
    tensors, text = load_tensors(tmp_path, "state")
    assert torch.equal(tensors["theta"], run.theta[0])
    assert (text["k"], text["t"]) == (3, 0.3)


def test_a_run_continues_from_its_checkpoint(tmp_path):
    heavy, theta0 = HeavyBall(ROSENBROCK, 1e-4, 0.9), torch.tensor([[0.0, 0.5], [1.0, 0.0]], dtype=torch.float64)
    whole = descend(heavy, theta0, 10, observers=[Checkpoint(tmp_path, every=4)])
    rest = descend(heavy, Checkpoint.load(tmp_path), 2)  # written last at step 8
    assert torch.equal(rest.theta, whole.theta[8:])
    Checkpoint(tmp_path)(3, 0.3, theta0)  # a loop of the user's own has no State
    state = Checkpoint.load(tmp_path)
    assert (state.k, state.t) == (3, 0.3)
    assert torch.equal(state.values, theta0)
    (tmp_path / "state.safetensors").write_bytes(b"")
    with pytest.raises(FolderError):
        Checkpoint.load(tmp_path)


class Fatal(Landscape):
    """The user's own error once |θ| falls below one half."""

    dimension = 1

    def loss(self, theta):
        return (theta**2).sum(dim=-1) / 2

    def grad(self, theta):
        if float(theta.abs().max()) < 0.5:
            raise ZeroDivisionError("mine")
        return theta


def test_a_checkpoint_survives_an_exception(tmp_path):
    theta0, checkpoint = torch.ones(1, dtype=torch.float64), Checkpoint(tmp_path)
    with pytest.raises(ZeroDivisionError):
        descend(GradientDescent(Fatal(), 0.1), theta0, 99, observers=[checkpoint])
    tensors, text = load_tensors(tmp_path, "state")
    assert text["k"] == 7
    assert_close(tensors["theta"], torch.tensor([0.9**7], dtype=torch.float64))
    with pytest.raises(ZeroDivisionError):
        integrate(
            GradientFlow(Fatal()), theta0, TIMES * 500, method="rk4", dt=float(TIMES[1]) * 50, observers=[checkpoint]
        )
    tensors, text = load_tensors(tmp_path, "state")
    assert text["k"] == 1  # 0.625; log 2 = 0.69
    assert_close(tensors["theta"], torch.tensor([math.exp(-text["t"])], dtype=torch.float64), rtol=1e-6, atol=0)


KILLED = """
import os, sys, torch
from flows import GradientDescent, descend
from flows.observers import Checkpoint
from landscapes import Quadratic
class Kill:
    name, every = "kill", 1
    def __call__(self, k, t, theta):
        if k == 5: os._exit(9)
        return {}
descend(GradientDescent(Quadratic(torch.eye(1)), 0.5), torch.ones(1), 9, observers=[Checkpoint(sys.argv[1]), Kill()])
"""


def test_a_checkpoint_survives_a_killed_process(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=dict(os.environ), timeout=60, check=False)
    assert done.returncode == 9
    tensors, text = load_tensors(tmp_path, "state")
    assert (text["k"], tensors["theta"].tolist()) == (5, [0.5**5])
    assert not list(tmp_path.glob("*.part"))


def test_a_checkpoint_that_cannot_be_written_says_so_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"file.*cannot be written"):
        Checkpoint(tmp_path / "file")


@pytest.mark.parametrize("build", [Loss, GradientNorm])
def test_what_is_no_landscape(build):
    with pytest.raises(TypeError, match="landscape must be a Landscape"):
        build(torch.eye(2))


@pytest.mark.parametrize("every", [0, -1, 1.5, None])
def test_every_is_checked_where_it_is_used(tmp_path, every):
    def use(observer):
        chosen = observer(tmp_path if observer is Checkpoint else ROSENBROCK, every=every)
        descend(GradientDescent(ROSENBROCK, 1e-4), torch.ones(2), 1, observers=[chosen])

    for observer in (Loss, GradientNorm, Checkpoint):
        with pytest.raises((TypeError, ValueError), match="every"):
            use(observer)
