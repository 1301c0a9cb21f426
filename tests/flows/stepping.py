"""Runs of a descent taken a step at a time, and the slopes of errors against the sizes of steps."""

import numpy as np
import torch


def states_of(descent, theta0, steps, seed=0):
    """Every state of a run, not only its positions."""
    generator, states = torch.Generator(theta0.device).manual_seed(seed), [descent.start(theta0)]
    for k in range(steps):
        states.append(descent.step(states[-1], k, generator))
    return states


def slopes(errors, ladder):
    """Of log error against log step from each rung to the next; of several errors a rung, one row each."""
    return np.diff(np.log(errors), axis=0).T / np.diff(np.log(ladder))
