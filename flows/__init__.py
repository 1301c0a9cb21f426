"""Flows, descents, the engines that run them, and their comparison."""

from flows.brownian import BrownianPath, MinibatchPath, NoisePath, PathError, minibatch_path
from flows.compare import compare
from flows.comparison import Comparison
from flows.descend import descend
from flows.descents.controlled import ControlledGradientDescent, ControlledMomentumDescent
from flows.descents.drift_adjusted import DriftAdjustedDescent, StochasticDriftAdjustedDescent
from flows.descents.gradient import GradientDescent, HeavyBall
from flows.descents.incremental import IncrementalGradientDescent
from flows.descents.momentum import Nesterov, ScaledHeavyBall, ScaledNesterov
from flows.descents.noisy import NoisyGradientDescent
from flows.descents.optimizer import OptimizerDescent
from flows.descents.scheduled import ScheduledGradientDescent, ScheduledStochasticGradientDescent
from flows.descents.stochastic import StochasticGradientDescent
from flows.descents.stochastic_momentum import ScaledStochasticHeavyBall, StochasticHeavyBall
from flows.descents.svag import SVAG
from flows.descents.svrg import SVRG
from flows.flow import (
    BranchError,
    Descent,
    Flow,
    Linearisation,
    SingularModeError,
    StochasticDescent,
    StochasticFlow,
    UnconvergedWarning,
)
from flows.integrate import integrate
from flows.models.epoch import EpochFlow
from flows.models.gradient import GradientFlow
from flows.models.modified import ModifiedFlow, ModifiedRungeKuttaFlow, RungeKuttaDescent
from flows.models.momentum import HeavyBallPrincipalFlow, NesterovPrincipalFlow
from flows.models.momentum_series import (
    ModifiedHeavyBallFlow,
    ModifiedNesterovFlow,
    ReducedHeavyBallFlow,
    ReducedNesterovFlow,
)
from flows.models.principal import PrincipalFlow
from flows.models.stochastic import NoisyModifiedEquation, StochasticModifiedEquation, Stratonovich
from flows.models.truncated import TruncatedPrincipalFlow
from flows.schedulers import DriftAdjustedRate
from flows.trajectory import Status, Trajectory
from landscapes.noise import MinibatchNoise

__all__ = [
    "SVAG",
    "SVRG",
    "BranchError",
    "BrownianPath",
    "Comparison",
    "ControlledGradientDescent",
    "ControlledMomentumDescent",
    "Descent",
    "DriftAdjustedDescent",
    "DriftAdjustedRate",
    "EpochFlow",
    "Flow",
    "GradientDescent",
    "GradientFlow",
    "HeavyBall",
    "HeavyBallPrincipalFlow",
    "IncrementalGradientDescent",
    "Linearisation",
    "MinibatchNoise",
    "MinibatchPath",
    "ModifiedFlow",
    "ModifiedHeavyBallFlow",
    "ModifiedNesterovFlow",
    "ModifiedRungeKuttaFlow",
    "Nesterov",
    "NesterovPrincipalFlow",
    "NoisePath",
    "NoisyGradientDescent",
    "NoisyModifiedEquation",
    "OptimizerDescent",
    "PathError",
    "PrincipalFlow",
    "ReducedHeavyBallFlow",
    "ReducedNesterovFlow",
    "RungeKuttaDescent",
    "ScaledHeavyBall",
    "ScaledNesterov",
    "ScaledStochasticHeavyBall",
    "ScheduledGradientDescent",
    "ScheduledStochasticGradientDescent",
    "SingularModeError",
    "Status",
    "StochasticDescent",
    "StochasticDriftAdjustedDescent",
    "StochasticFlow",
    "StochasticGradientDescent",
    "StochasticHeavyBall",
    "StochasticModifiedEquation",
    "Stratonovich",
    "Trajectory",
    "TruncatedPrincipalFlow",
    "UnconvergedWarning",
    "compare",
    "descend",
    "integrate",
    "minibatch_path",
]
