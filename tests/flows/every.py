"""Every flow and descent on a landscape that recounts, and a short run of each."""

from fractions import Fraction

import torch

from flows import (
    SVAG,
    SVRG,
    ControlledGradientDescent,
    ControlledMomentumDescent,
    DriftAdjustedDescent,
    EpochFlow,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    HeavyBallPrincipalFlow,
    IncrementalGradientDescent,
    LangevinFlow,
    MinibatchNoise,
    ModifiedFlow,
    ModifiedHeavyBallFlow,
    ModifiedNesterovFlow,
    ModifiedRungeKuttaFlow,
    MomentumModifiedEquation,
    Nesterov,
    NesterovPrincipalFlow,
    NoisyGradientDescent,
    NoisyModifiedEquation,
    NoisyMomentumEquation,
    OptimizerDescent,
    PrincipalFlow,
    ReducedHeavyBallFlow,
    ReducedNesterovFlow,
    RungeKuttaDescent,
    ScaledHeavyBall,
    ScaledNesterov,
    ScaledStochasticHeavyBall,
    ScheduledGradientDescent,
    ScheduledStochasticGradientDescent,
    StochasticDriftAdjustedDescent,
    StochasticFlow,
    StochasticGradientDescent,
    StochasticHeavyBall,
    StochasticModifiedEquation,
    Stratonovich,
    TorchMomentumEquation,
    TorchMomentumFlow,
    TruncatedPrincipalFlow,
    UnderdampedLangevinFlow,
    descend,
    integrate,
)
from flows.series import runge_kutta
from landscapes import LinearRegression, Rosenbrock
from landscapes.noise.surrogates import DiagonalSurrogate, FrozenNoise, IsotropicSurrogate
from landscapes.noise.variance_reduced import VarianceReducedNoise
from tests.flows.recount import Recount, RecountSum
from tests.tensors import draw

H, MU = 0.01, 0.5
START = torch.tensor([[0.4, -0.3], [0.1, 0.2]], dtype=torch.float64)
BATCHES = torch.arange(6).reshape(3, 2)
MIDPOINT = runge_kutta([[0, 0], [Fraction(1, 2), 0]], [0, 1])
TURN = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)


def valley():
    return Recount(Rosenbrock(b=5.0))


def regression():
    return RecountSum(LinearRegression(draw(0, 6, 2), draw(1, 6)))


def noise_of(f):
    return MinibatchNoise(f, 2)


SMOOTH = {
    "gradient": GradientFlow,
    "modified 2": lambda f: ModifiedFlow(f, H, 2),
    "modified 5": lambda f: ModifiedFlow(f, H, 5),
    "modified Runge-Kutta": lambda f: ModifiedRungeKuttaFlow(f, H, 3, MIDPOINT),
    "principal": lambda f: PrincipalFlow(f, H, third_order=True),
    "principal Krylov": lambda f: PrincipalFlow(f, H, krylov=2, branch="real"),
    "truncated": lambda f: TruncatedPrincipalFlow(f, H, 1),
    "heavy ball": lambda f: ModifiedHeavyBallFlow(f, H, MU, 3),
    "Nesterov": lambda f: ModifiedNesterovFlow(f, H, MU, 3),
    "reduced heavy ball": lambda f: ReducedHeavyBallFlow(f, H, 0.5, 3),
    "reduced Nesterov": lambda f: ReducedNesterovFlow(f, H, 0.5, 3),
    "principal heavy ball": lambda f: HeavyBallPrincipalFlow(f, H, 0.5),
    "principal Nesterov": lambda f: NesterovPrincipalFlow(f, H, 0.5),
    "torch": lambda f: TorchMomentumFlow(ModifiedHeavyBallFlow(f, 0.1, 5.0, 2), 0.02, 0.5, dampening=0.5),
}
EXAMPLES = {"epoch": lambda f: EpochFlow(f, H, BATCHES)}
NOISY = {
    "Langevin": lambda f: LangevinFlow(f, 0.1),
    "underdamped": lambda f: UnderdampedLangevinFlow(f, 0.1, 1.0),
    "SME 1": lambda f: StochasticModifiedEquation(f, H, 2),
    "SME 2": lambda f: StochasticModifiedEquation(f, H, 2, 2),
    "Stratonovich": lambda f: Stratonovich(StochasticModifiedEquation(f, H, 2)),
    "noisy": lambda f: NoisyModifiedEquation(f, H, noise_of(f), 2),
    "noisy isotropic": lambda f: NoisyModifiedEquation(f, H, IsotropicSurrogate(noise_of(f))),
    "noisy diagonal": lambda f: NoisyModifiedEquation(f, H, DiagonalSurrogate(noise_of(f))),
    "noisy frozen": lambda f: NoisyModifiedEquation(f, H, FrozenNoise(noise_of(f), START[0])),
    "noisy reduced": lambda f: NoisyModifiedEquation(f, H, VarianceReducedNoise(f, 2, START[0])),
    "noisy momentum": lambda f: NoisyMomentumEquation(f, H, MU, noise_of(f), 2),
    "momentum": lambda f: MomentumModifiedEquation(f, H, MU, 2, 2),
    "torch momentum": lambda f: TorchMomentumEquation(MomentumModifiedEquation(f, 0.1, 5.0, 2), 0.01, 0.5),
}
PLAIN = {
    "gradient": lambda f: GradientDescent(f, H),
    "heavy ball": lambda f: HeavyBall(f, H, 0.5),
    "heavy ball, dampening": lambda f: HeavyBall(f, H, 0.5, 0.2),
    "Nesterov": lambda f: Nesterov(f, H, 0.5),
    "scaled heavy ball": lambda f: ScaledHeavyBall(f, H, MU),
    "scaled Nesterov": lambda f: ScaledNesterov(f, H, MU),
    "Runge-Kutta": lambda f: RungeKuttaDescent(f, H, MIDPOINT),
    "scheduled": lambda f: ScheduledGradientDescent(f, H, lambda t: 1.0),
    "Adam": lambda f: OptimizerDescent(f, lambda p: torch.optim.Adam(p, lr=H)),
    "LBFGS": lambda f: OptimizerDescent(f, lambda p: torch.optim.LBFGS(p, lr=H)),
    "drift": lambda f: DriftAdjustedDescent(f, H, power=0.0),
}
MINI = {
    "SGD": lambda f: StochasticGradientDescent(f, H, 2),
    "noisy": lambda f: NoisyGradientDescent(f, H, noise_of(f)),
    "incremental": lambda f: IncrementalGradientDescent(f, H, BATCHES),
    "heavy ball": lambda f: StochasticHeavyBall(f, H, 0.5, 2),
    "scaled": lambda f: ScaledStochasticHeavyBall(f, H, MU, 2),
    "scheduled": lambda f: ScheduledStochasticGradientDescent(f, H, 2, lambda t: 1.0),
    "SVAG": lambda f: SVAG(f, H, 2, 3),
    "SVRG": lambda f: SVRG(f, H, 2, 2),
    "cSGD": lambda f: ControlledGradientDescent(f, H, 2),
    "cMSGD": lambda f: ControlledMomentumDescent(f, H, 2),
    "drift": lambda f: StochasticDriftAdjustedDescent(f, H, 2, power=0.0),
}


def run_flow(flow, theta0=START):
    if isinstance(flow, StochasticFlow):
        return integrate(flow, theta0, [0.0, 0.04], dt=H, seed=1, method="euler")
    return integrate(flow, theta0, [0.0, 0.04], rtol=1e-4)


def run_descent(descent, theta0=START):
    return descend(descent, theta0, 5, seed=1)


FLOWS = [
    (make, f) for table, f in ((SMOOTH, valley), (EXAMPLES, regression), (NOISY, regression)) for make in table.values()
]
DESCENTS = [(make, f) for table, f in ((PLAIN, valley), (MINI, regression)) for make in table.values()]
MODELS = [(make, f, run_flow) for make, f in FLOWS] + [(make, f, run_descent) for make, f in DESCENTS]
