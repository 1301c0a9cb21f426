r"""``exprb43``: an exponential Rosenbrock method with step control, for gradient flows too stiff for explicit methods.

The linear part of u' = F(u) is solved exactly and only the remainder is approximated, so that the step size follows
from the tolerance and not from 1/λ_max. A step Δ from u with J = F'(u) and D(U) = F(U) − F(u) − J(U − u):

    U2 = u + ½Δ φ₁(½ΔJ) F
    U3 = u + Δ φ₁(ΔJ) (F + D2)
    u⁺ = u + Δ φ₁(ΔJ) F + Δ [16φ₃ − 48φ₄](ΔJ) D2 + Δ [−2φ₃ + 12φ₄](ΔJ) D3,  order 4
    error estimate: Δ [−48φ₄](ΔJ) D2 + Δ [12φ₄](ΔJ) D3, the difference between u⁺ and the embedded third order.

Hochbruck, Ostermann & Schweitzer 2009, SIAM J. Numer. Anal. 47, 786 (exprb43); Hochbruck & Ostermann 2010, Acta
Numerica 19, 209. Exact where F is linear, at any Δ. Differences from the published method: the functions of ΔJ are
Krylov sums, three spaces a step grown from F, D2 and D3, each with an estimate below 0.1 of the step's tolerance; a
step whose sums do not converge in ``KRYLOV`` products is tried again at half its length. J is written out where that
takes fewer products: in up to ``FEWEST`` dimensions, and after a step whose spaces took more products than d.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from flows.engines.counting import all_finite
from flows.engines.field import Field, Stop, linearisation_of, velocity_of
from flows.flow import Flow, SingularModeError
from landscapes import UnsupportedError
from landscapes.expansion import basis_products
from landscapes.krylov import Product, matrix_function, spectral_action

KRYLOV = 100  # products a Krylov space may take before the step is tried again at half its length
KRYLOV_SHARE = 5  # target of each Krylov space over the step's tolerance; estimates stop at a fiftieth of it, 0.1
FEWEST = 8  # products of a step by Krylov spaces: at least two for each of the three, and two for the remainders
SERIES = 2.0  # |z| below which φ(z) is a series: recurrences lose a digit or less on either side
TERMS = 22  # 2²²/26! is below rounding of φ₄ ≥ 0.02
SAFETY, LARGEST, SMALLEST = 0.9, 10.0, 0.1  # of the step controller: torchdiffeq's, except that steps shrink faster

Rows = Callable[[Tensor], Tensor]


def phi_functions(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""φ₁, φ₂, φ₃, φ₄ of real or complex z: φ_k(z) = Σ_j zʲ/(j + k)! = (φ_{k−1}(z) − 1/(k−1)!)/z, φ₀ = exp."""
    small = z.abs() < SERIES
    near, far = torch.where(small, z, 0), torch.where(small, 1, z)
    powers = near[..., None].expand(*z.shape, TERMS).cumprod(dim=-1)
    down, up = [1 / 24 + powers @ series_of_fourth(z)], [torch.expm1(far) / far]
    for k in (1, 2, 3):
        down.insert(0, down[0] * near + 1 / math.factorial(4 - k))
        up.append((up[-1] - 1 / math.factorial(k)) / far)
    first, second, third, fourth = (torch.where(small, *pair) for pair in zip(down, up, strict=True))
    return first, second, third, fourth


def series_of_fourth(z: Tensor) -> Tensor:
    """1/(j + 4)! for j = 1 … TERMS, in the dtype and on the device of z."""
    return torch.tensor([1 / math.factorial(j + 4) for j in range(1, TERMS + 1)], dtype=z.dtype, device=z.device)


def velocity_rows(z: Tensor) -> Tensor:
    """The factors of ΔF in U2, and in U3 and u⁺: (2, n)."""
    half, whole = phi_functions(torch.stack((z / 2, z)))[0]
    return torch.stack((half / 2, whole))


def second_rows(z: Tensor) -> Tensor:
    """The factors of ΔD2 in U3, in u⁺, and in the error estimate: (3, n)."""
    first, _, third, fourth = phi_functions(z)
    return torch.stack((first, 16 * third - 48 * fourth, -48 * fourth))


def third_rows(z: Tensor) -> Tensor:
    """The factors of ΔD3 in u⁺ and in the error estimate: (2, n)."""
    _, _, third, fourth = phi_functions(z)
    return torch.stack((-2 * third + 12 * fourth, 12 * fourth))


Reason = Literal["too large", "not finite", "not converged"]


class NoValueError(ArithmeticError):
    """A trial step has no result: a value is not finite, or a Krylov sum did not converge."""

    def __init__(self, reason: Reason):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Tolerance:
    """Relative and absolute tolerance of a step."""

    rtol: float
    atol: float

    def norm(self, error: Tensor, *states: Tensor) -> float:
        """Root mean square of error/(atol + rtol·max|state|), all (d,): a step is accepted if it is at most 1."""
        return float((error / self.weights(*states)).abs().double().square().mean().sqrt())

    def weights(self, *states: Tensor) -> Tensor:
        """atol + rtol·max|state|, (d,)."""
        return self.atol + self.rtol * torch.stack([state.abs() for state in states]).amax(dim=0)

    def krylov(self, state: Tensor) -> float:
        """The length of a vector (d,) of random direction whose norm is ``KRYLOV_SHARE``."""
        unit = float((1 / self.weights(state)).double().square().mean().sqrt())
        return KRYLOV_SHARE * math.sqrt(state.shape[-1]) / unit


class Jacobian(ABC):
    """J at one state, functions of ΔJ on vectors, and the number of products of the flow taken so far."""

    taken: int

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """Jv, (d,)."""

    @abstractmethod
    def sums(self, rows: Rows, vector: Tensor, step: float) -> Tensor:
        """Δ rows(ΔJ) v, (n, d). Raises NoValueError."""


class Written(Jacobian):
    """J as a matrix, from d products on construction and none later; its functions are exact."""

    def __init__(self, flow: Flow, product: Product, state: Tensor):
        matrix = basis_products(product, state)
        check_symmetric(flow, matrix)
        self.taken = state.shape[-1]
        self._matrix = matrix
        self._wide = matrix.to("cpu", torch.complex128 if state.is_complex() else torch.float64)

    def product(self, v: Tensor) -> Tensor:
        """Jv, (d,), from the matrix."""
        return self._matrix @ v

    def sums(self, rows: Rows, vector: Tensor, step: float) -> Tensor:
        if not (all_finite(self._wide) and all_finite(vector)):
            raise NoValueError("not finite")
        if not bool(vector.any()):  # zero for any rows; those overflow if J has large positive eigenvalues
            return vector.new_zeros(len(rows(torch.zeros(1))), len(vector))
        value, _ = spectral_action(self._wide, vector.to(self._wide), lambda z: step * rows(step * z))
        return value.to(vector)


class Spaces(Jacobian):
    """J by its products: a Krylov space grows from each vector until the sum is within ``absolute`` of its value.

    Products on the space of the velocity are kept, as they are the same when a step is tried again at another length.
    """

    def __init__(self, product: Product, velocity: Tensor, absolute: float):
        self.taken = 0
        self._product = product
        self._velocity = velocity
        self._images: list[Tensor] = []
        self._absolute = absolute
        self._relative = 100 * torch.finfo(velocity.dtype).eps  # no accuracy is requested below rounding

    def product(self, v: Tensor) -> Tensor:
        """Jv, (d,), one product."""
        self.taken += 1
        return self._product(v)

    def sums(self, rows: Rows, vector: Tensor, step: float) -> Tensor:
        """By Krylov spaces of at most ``KRYLOV`` products."""
        product = self._product_on_velocity() if vector is self._velocity else self.product
        result = matrix_function(
            product, vector, lambda z: step * rows(step * z), KRYLOV, self._relative, self._absolute
        )
        finite = math.isfinite(result.residual) and all_finite(result.value)
        if not (result.converged and finite):
            raise NoValueError("not converged" if finite else "not finite")
        return result.value

    def _product_on_velocity(self) -> Product:
        places = count()

        def product(v: Tensor) -> Tensor:
            place = next(places)
            if place == len(self._images):
                self._images.append(self.product(v))
            return self._images[place]

        return product


class Station:
    """The field expanded at one state (d,): its velocity F, its Jacobian, and the remainder D elsewhere."""

    def __init__(self, field: Field, t: float, state: Tensor, tolerance: Tolerance, written: bool):
        self.state = state
        self._field = field
        self._t = t
        field.evaluations += 1
        here = linearisation_of(field.flow, t, state)
        self.velocity = here.velocity
        self.jacobian: Jacobian
        if written and all_finite(here.velocity):
            self.jacobian = Written(field.flow, here.product, state)
        else:
            self.jacobian = Spaces(here.product, here.velocity, tolerance.krylov(state))

    def remainder(self, there: Tensor) -> Tensor:
        """D = F(U) − F(u) − J(U − u), (d,) at U (d,)."""
        self._field.evaluations += 1
        velocity = velocity_of(self._field.flow, self._t, there)
        return velocity - self.velocity - self.jacobian.product(there - self.state)


def check_symmetric(flow: Flow, matrix: Tensor) -> None:
    """Raise unless J (d, d) is symmetric to rounding."""
    gap, size = float((matrix - matrix.mT).abs().max()), float(matrix.abs().max())
    if gap > torch.finfo(matrix.dtype).eps ** 0.5 * size:
        raise UnsupportedError(
            f"method='exprb43' needs a symmetric Jacobian, and the linearised product of {flow.name} has "
            f"|J − Jᵀ| up to {gap:.3g}: correct the product, or use method='dopri5'"
        )


def exprb43(here: Station, step: float) -> tuple[Tensor, Tensor]:
    """One step Δ: the state after it (d,), and its error estimate (d,).

    Raises NoValueError if a stage is not finite or a Krylov sum does not converge.
    """
    half, whole = here.jacobian.sums(velocity_rows, here.velocity, step)
    bend = here.remainder(here.state + half)
    shift, second_part, second_error = here.jacobian.sums(second_rows, bend, step)
    bend = here.remainder(here.state + whole + shift)
    third_part, third_error = here.jacobian.sums(third_rows, bend, step)
    state = here.state + whole + second_part + third_part
    if not all_finite(state):
        raise NoValueError("not finite")
    return state, second_error + third_error


class Member:
    """The progress of one batch member: time, state (d,) and the length of the next trial step."""

    def __init__(self, field: Field, t: float, state: Tensor, step: float | None, tolerance: Tolerance, most: int):
        self.t = t
        self.state = state
        self._field = field
        self.step = step
        self._tolerance = tolerance
        self._most = most
        self._here: Station | None = None
        self._refused: Reason | None = None  # why the last trial step was
        self._written = state.shape[-1] <= FEWEST  # whether J is written out

    def advance(self, end: float) -> Tensor:
        """The state at ``end`` exactly; raises Stop if the member does not reach it in ``most`` trial steps."""
        for _ in range(self._most):
            self._try(end)
            if self.t == end:
                return self.state
        text = f"max_steps were taken without reaching the next output time, at t = {self.t:.6g}"
        advice = "raise max_steps, ask for closer output times, or give a larger rtol"
        raise stop_one("step underflow", f"{text} (step {self.step:.3g})", advice)

    def _try(self, end: float) -> None:
        if self._here is None:
            self._here = Station(self._field, self.t, self.state, self._tolerance, self._written)
            if not all_finite(self._here.velocity):
                raise self._divergence(self.step or 0.0)
        if self.step is None:
            self.step = first_step(self._here, self._tolerance)
        remaining = end - self.t
        step = remaining if remaining <= 1.01 * self.step else self.step  # no last step of a hundredth
        if not self.t + step > self.t:
            raise self._step_underflow(step)
        try:
            state, error = exprb43(self._here, step)
        except NoValueError as failure:
            self._refuse(step * (0.5 if failure.reason == "not converged" else SMALLEST), failure.reason)
            return
        size = self._tolerance.norm(error, self.state, state)
        if not size <= 1:
            self._refuse(step * factor(size, 1.0), "too large")
            return
        # No growth right after a rejection. A step cut short at an output time does not test the longer step that was
        # proposed, so the proposal stands.
        grown = step * factor(size, LARGEST if self._refused is None else 1.0)
        self.step = grown if step >= self.step else max(grown, self.step)
        self._written |= self._here.jacobian.taken > len(state)
        self.t = end if step == remaining else self.t + step
        self.state, self._here, self._refused = state, None, None

    def _refuse(self, step: float, reason: Reason) -> None:
        self.step, self._refused = step, reason

    def _step_underflow(self, step: float) -> Stop:
        if self._refused == "not finite":
            return self._divergence(step)
        text = f"the step size vanished after t = {self.t:.6g} (step {step:.3g})"
        if self._refused == "not converged":
            advice = "products that are not the velocity's derivative do that: check linearised, or use method='dopri5'"
            return stop_one("step underflow", f"{text}: no Krylov sum converged in {KRYLOV} products", advice)
        advice = "the field blows up there, or the tolerances are below its rounding: end the run before, or raise rtol"
        return stop_one("step underflow", text, advice)

    def _divergence(self, step: float) -> Stop:
        advice = "the field is not finite there: end the run before, or use a smaller h"
        text = f"the velocity is not finite after t = {self.t:.6g} (step {step:.3g})"
        return stop_one("diverged", text, advice)


def stop_one(kind: str, sentence: str, advice: str = "") -> Stop:
    """The Stop of a single state."""
    return Stop(kind, torch.ones((), dtype=torch.bool), sentence, advice)


def factor(size: float, largest: float) -> float:
    """The factor of a step for which its error norm becomes 1: the estimate is of order Δ⁴."""
    if size == 0:
        return largest
    return min(largest, max(SMALLEST, SAFETY * size**-0.25)) if math.isfinite(size) else SMALLEST


def first_step(here: Station, tolerance: Tolerance) -> float:
    r"""The length Δ at which the second-order term ½F''(F, F) reaches the tolerance; infinite if F is linear.

    One velocity and one product. D(δF) = ½δ²F''(F, F) at a δ that moves the state by a hundredth of itself, or by the
    tolerance if that is more; D2 is then (Δ/2δ)² of it, and 2ΔD2 bounds the error estimate, which begins at Δ⁴.
    """
    speed = tolerance.norm(here.velocity, here.state)
    if speed == 0:
        return math.inf
    probe = max(0.01 * tolerance.norm(here.state, here.state), 1.0) / speed
    bend = tolerance.norm(here.remainder(here.state + probe * here.velocity), here.state)
    if not math.isfinite(bend):
        return probe
    bend -= 10 * torch.finfo(here.state.dtype).eps * speed  # rounding, the whole remainder of a linear field
    return max(probe, SAFETY * (2 * probe**2 / bend) ** (1 / 3)) if bend > 0 else math.inf


class Members:
    """The progress of a batch: each member has its own step size and advances by itself from output to output."""

    def __init__(
        self, field: Field, state: Tensor, t: float, steps: Tensor | None, tolerance: Tolerance, max_steps: int
    ):
        self._shape = state.shape
        rows = state.reshape(-1, state.shape[-1])
        proposed = torch.full((), math.nan) if steps is None else steps  # NaN: a member without a proposal
        first = proposed.expand(state.shape[:-1]).reshape(-1).tolist()
        self._members = [
            Member(field, t, row, None if math.isnan(step) else step, tolerance, max_steps)
            for row, step in zip(rows, first, strict=True)
        ]

    def steps(self) -> Tensor:
        """The lengths of the members' next trial steps (...), NaN for those without a proposal."""
        proposed = [math.nan if member.step is None else member.step for member in self._members]
        return torch.tensor(proposed, dtype=torch.float64).reshape(self._shape[:-1])

    def advance(self, end: float, alive: Tensor) -> tuple[Tensor, list[Stop]]:
        """States (..., d) at ``end`` of the members ``alive`` (...,), and the Stops of those that did not reach it."""
        stops: dict[str, Stop] = {}
        for i in alive.flatten().nonzero().flatten().tolist():
            try:
                self._members[i].advance(end)
            except SingularModeError as error:
                self._note(stops, i, stop_one("singular mode", str(error)))
            except Stop as stop:
                self._note(stops, i, stop)
        states = torch.stack([member.state for member in self._members])
        return states.reshape(self._shape), list(stops.values())

    def _note(self, stops: dict[str, Stop], i: int, stop: Stop) -> None:
        """Gather the members that stop for one reason; the sentence is that of the first."""
        nobody = torch.zeros(self._shape[:-1], dtype=torch.bool, device=self._members[i].state.device)
        first = stops.setdefault(stop.kind, Stop(stop.kind, nobody, stop.sentence, stop.advice))
        first.members.view(-1)[i] = True
