"""Benchmarks of gradient noise at tiny sizes: that they run, and that both programs of a pair do the same work."""

import math
import re

import pytest
import torch

from flows import NoisyModifiedEquation, integrate
from landscapes import Rosenbrock
from landscapes.noise import IsotropicNoise
from scripts.benchmark import BENCHMARKS, BenchmarkSettings
from scripts.lab.measuring import growth, in_its_own_process, peak_bytes
from scripts.lab.noise_benchmarks import all_digits, eigenpairs_peak, torchsde_run
from tests.scripts.peaks import put_peak

TINY = BenchmarkSettings(repeats=1, threads=1, steps=1, paths=50, path_steps=3, images=12, pairs=2)


class Queue(list):
    put = list.append


@pytest.mark.parametrize("name", ["sde-step", "paths", "noise-costs"])
def test_a_benchmark_prints_positive_ratios_with_their_targets(name, capsys):
    BENCHMARKS[name](TINY)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == {"sde-step": 2, "paths": 2, "noise-costs": 3}[name]
    for line in lines:
        assert float(re.search(r": ([\d.]+) \(quartiles", line)[1]) > 0
        assert "target" in line


def test_every_benchmark_named_is_registered():
    assert set(TINY.only) == set(BENCHMARKS)


def test_the_digits_are_all_of_them_and_the_bare_gradients_are_the_landscapes(monkeypatch):
    landscape, bare = all_digits("cpu")
    assert landscape.size == 1797
    seen = []
    true = torch.autograd.grad

    def spy(*args, **kwargs):
        seen.append(true(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(torch.autograd, "grad", spy)
    bare(2)
    monkeypatch.undo()
    assert len(seen) == 2
    flat = torch.cat([part.flatten() for part in seen[0]])
    torch.testing.assert_close(flat, landscape.grad(landscape.theta0), rtol=1e-3, atol=1e-5)


def test_torchsde_solves_the_same_equation():
    h, steps = 1e-3, 5
    equation = NoisyModifiedEquation(Rosenbrock(), h, IsotropicNoise(1.0, 2))
    start = torch.tensor([0.3, 0.4], dtype=torch.float64).expand(4000, 2)
    theirs = torchsde_run(equation, start, steps, h)()
    ours = integrate(equation, start, [0.0, steps * h], dt=h, seed=0).theta[-1]
    error = (theirs.var(dim=0) + ours.var(dim=0)).sqrt() / math.sqrt(4000)
    assert bool(((theirs - ours).mean(dim=0).abs() < 4 * error).all())
    ratio = theirs.std(dim=0) / ours.std(dim=0)
    assert bool(((ratio - 1).abs() < 4 / math.sqrt(4000)).all())  # a standard deviation errs by 1/√(2n), twice


def test_the_eigenpairs_of_the_small_all_cnn_are_found():
    queue = Queue()
    threads = torch.get_num_threads()
    eigenpairs_peak(12, 2, None, "cpu", threads, queue)
    (found,) = queue
    assert found["converged"]
    assert found["passes"] >= 2


def test_a_process_of_its_own_does_not_inherit_the_peak_of_its_parent():
    held = torch.ones(2**28)  # 1 GiB
    assert in_its_own_process(put_peak) < held.nbytes < peak_bytes()


def test_a_process_that_ends_without_a_result_is_told(capfd):
    with pytest.raises(RuntimeError, match="exit code 1"):
        in_its_own_process(len)  # of a queue, which has none
    capfd.readouterr()


def test_growth_is_that_of_the_peak_not_of_what_stays():
    enough = peak_bytes() // 4 + 2**26  # floats: more than was ever held
    assert growth(lambda: torch.ones(enough).sum(), "cpu") > 64
