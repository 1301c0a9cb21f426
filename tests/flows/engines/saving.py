"""A process that saves the runs of the values 1, 2, 3, … over each other until it is killed: saving.py FOLDER KIND."""

import itertools
import sys

import torch

from flows import Status, Trajectory
from flows.comparison import Comparison
from flows.comparison.data import Row
from flows.engines.storage import FolderError


def run_of(value, width=2000):
    """A run all of whose numbers, cost and sentence are one value."""
    theta = torch.full((4, width), float(value), dtype=torch.float64)
    seen = {"x": (torch.arange(4).double(), theta[:, 0].clone())}
    times = torch.arange(4).double() + value
    return Trajectory(
        times,
        theta,
        Status("finished", f"run {value}"),
        torch.tensor(True),
        {"v": value},
        seen,
    )


def comparison_of(value):
    """A comparison of such a run with itself."""
    run = run_of(value)
    numbers = torch.full((4,), float(value), dtype=torch.float64)
    row = Row(run, numbers, numbers[1:], numbers, numbers, mean=run.theta)
    return Comparison("descent", run, run.theta, numbers, {"flow": row}, settings={"v": value})


def values_of(run):
    """All values that a run holds: one if it is whole."""
    found = {*run.theta.unique().tolist(), *run.observations["x"][1].unique().tolist()}
    found |= {float(run.cost["v"]), float(run.status.sentence.split()[1])}
    return found | set((run.times - torch.arange(4)).unique().tolist())


def values_of_comparison(found):
    """All values that a comparison holds."""
    row = found.rows["flow"]
    numbers = torch.cat([found.descent_losses, row.errors, row.one_step, row.integration, row.losses])
    runs = values_of(found.descent) | values_of(row.trajectory)
    return runs | {*numbers.unique().tolist(), *found.mean.unique().tolist(), float(found.settings["v"])}


KINDS = {
    "trajectory": (run_of, Trajectory.load, values_of),
    "comparison": (comparison_of, Comparison.load, values_of_comparison),
}


def main(folder, kind, first=1, step=1):
    """Save until the end of the process; a refusal by the other writer's lock is tried again."""
    make = KINDS[kind][0]
    print("ready", flush=True)
    for value in itertools.count(int(first), int(step)):
        try:
            make(value).save(folder)
        except FolderError as error:
            if "being written by process" not in str(error):
                print(f"wrong refusal: {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
