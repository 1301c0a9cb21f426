"""Flows, descents, the engines that run them, and their comparison."""

from flows.catalogue.optimisers import OptimiserModels, models_of
from flows.comparison.result import Comparison
from flows.comparison.rows import compare
from flows.declared import Clock
from flows.descent import Descent, MinibatchDescent, StochasticDescent
from flows.descents.controlled import ControlledGradientDescent, ControlledMomentumDescent, MeanSquare, SquaredMean
from flows.descents.drift_adjusted import DriftAdjustedDescent, StochasticDriftAdjustedDescent
from flows.descents.gradient import GradientDescent, HeavyBall
from flows.descents.incremental import IncrementalGradientDescent
from flows.descents.momentum import Nesterov, ScaledHeavyBall, ScaledNesterov
from flows.descents.noisy import NoisyGradientDescent
from flows.descents.optimizer import OptimizerDescent
from flows.descents.runge_kutta import RungeKuttaDescent
from flows.descents.scheduled import ScheduledGradientDescent, ScheduledStochasticGradientDescent
from flows.descents.stochastic import StochasticGradientDescent
from flows.descents.stochastic_momentum import ScaledStochasticHeavyBall, StochasticHeavyBall
from flows.descents.svag import SVAG
from flows.descents.svrg import SVRG
from flows.engines.descend import descend
from flows.engines.endings import InterruptedRun, Status, UnfinishedRunError
from flows.engines.events import Crossings, Event
from flows.engines.integrate import integrate
from flows.engines.noise_paths import BrownianPath, MinibatchPath, NoisePath, PathError, minibatch_path
from flows.engines.recorder import StateObserver
from flows.engines.state import State
from flows.engines.trajectory import Trajectory
from flows.flow import (
    BranchError,
    Flow,
    Linearisation,
    SingularModeError,
    StochasticFlow,
    UnconvergedWarning,
    WorkspaceFlow,
)
from flows.models.epoch import EpochFlow
from flows.models.gradient import GradientFlow
from flows.models.langevin import LangevinFlow, UnderdampedLangevinFlow
from flows.models.modified import ModifiedFlow, ModifiedRungeKuttaFlow
from flows.models.momentum_modified import (
    ModifiedHeavyBallFlow,
    ModifiedNesterovFlow,
    ReducedHeavyBallFlow,
    ReducedNesterovFlow,
)
from flows.models.momentum_principal import HeavyBallPrincipalFlow, NesterovPrincipalFlow
from flows.models.principal import PrincipalFlow
from flows.models.stochastic import NoisyModifiedEquation, StochasticModifiedEquation, Stratonovich
from flows.models.stochastic_momentum import MomentumModifiedEquation, NoisyMomentumEquation
from flows.models.torch_clock import ClockError, TorchMomentumEquation, TorchMomentumFlow
from flows.models.truncated import TruncatedPrincipalFlow
from flows.momentum import momentum_from_torch
from flows.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CyclicalSchedule,
    ExponentialSchedule,
    StepSchedule,
    WarmUp,
)
from flows.steady.linear_laws import LinearChain, NoStationaryLawError
from flows.steady.ornstein_uhlenbeck import (
    MomentumOrnsteinUhlenbeck,
    NotAMinimumError,
    OrnsteinUhlenbeck,
    linear_momentum_at,
    linear_sgd_at,
    momentum_ornstein_uhlenbeck_at,
    ornstein_uhlenbeck_at,
)
from flows.training.drift_adjusted_rate import DriftAdjustedRate
from landscapes.noise import MinibatchNoise

__all__ = [
    "SVAG",
    "SVRG",
    "BranchError",
    "BrownianPath",
    "Clock",
    "ClockError",
    "Comparison",
    "ConstantSchedule",
    "ControlledGradientDescent",
    "ControlledMomentumDescent",
    "CosineSchedule",
    "Crossings",
    "CyclicalSchedule",
    "Descent",
    "DriftAdjustedDescent",
    "DriftAdjustedRate",
    "EpochFlow",
    "Event",
    "ExponentialSchedule",
    "Flow",
    "GradientDescent",
    "GradientFlow",
    "HeavyBall",
    "HeavyBallPrincipalFlow",
    "IncrementalGradientDescent",
    "InterruptedRun",
    "LangevinFlow",
    "LinearChain",
    "Linearisation",
    "MeanSquare",
    "MinibatchDescent",
    "MinibatchNoise",
    "MinibatchPath",
    "ModifiedFlow",
    "ModifiedHeavyBallFlow",
    "ModifiedNesterovFlow",
    "ModifiedRungeKuttaFlow",
    "MomentumModifiedEquation",
    "MomentumOrnsteinUhlenbeck",
    "Nesterov",
    "NesterovPrincipalFlow",
    "NoStationaryLawError",
    "NoisePath",
    "NoisyGradientDescent",
    "NoisyModifiedEquation",
    "NoisyMomentumEquation",
    "NotAMinimumError",
    "OptimiserModels",
    "OptimizerDescent",
    "OrnsteinUhlenbeck",
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
    "SquaredMean",
    "State",
    "StateObserver",
    "Status",
    "StepSchedule",
    "StochasticDescent",
    "StochasticDriftAdjustedDescent",
    "StochasticFlow",
    "StochasticGradientDescent",
    "StochasticHeavyBall",
    "StochasticModifiedEquation",
    "Stratonovich",
    "TorchMomentumEquation",
    "TorchMomentumFlow",
    "Trajectory",
    "TruncatedPrincipalFlow",
    "UnconvergedWarning",
    "UnderdampedLangevinFlow",
    "UnfinishedRunError",
    "WarmUp",
    "WorkspaceFlow",
    "compare",
    "descend",
    "integrate",
    "linear_momentum_at",
    "linear_sgd_at",
    "minibatch_path",
    "models_of",
    "momentum_from_torch",
    "momentum_ornstein_uhlenbeck_at",
    "ornstein_uhlenbeck_at",
]
