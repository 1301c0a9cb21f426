r"""``exprb43``: an exponential Rosenbrock method with step control, for gradient flows too stiff for explicit methods.

The linear part of u' = F(u) is solved exactly and only the remainder is approximated, so that the step follows the
accuracy wanted and not 1/λ_max. A step Δ from u with J = F'(u) and D(U) = F(U) − F(u) − J(U − u):

    U2 = u + ½Δ φ₁(½ΔJ) F
    U3 = u + Δ φ₁(ΔJ) (F + D2)
    u⁺ = u + Δ φ₁(ΔJ) F + Δ [16φ₃ − 48φ₄](ΔJ) D2 + Δ [−2φ₃ + 12φ₄](ΔJ) D3,  order 4
    error estimate: Δ [−48φ₄](ΔJ) D2 + Δ [12φ₄](ΔJ) D3, what lies between u⁺ and the embedded third order.

Hochbruck, Ostermann & Schweitzer 2009, SIAM J. Numer. Anal. 47, 786 (exprb43); Hochbruck & Ostermann 2010, Acta
Numerica 19, 209. Exact where F is linear, at any Δ. Differences from the published method: the functions of ΔJ are
Krylov sums, three spaces a step grown from F, D2 and D3, each held to ``KRYLOV_SHARE`` of the step's tolerance; a step
whose sums do not converge in ``KRYLOV`` products is tried again at half its length. In at most ``DENSE`` dimensions J
is written out, which costs fewer products than the spaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from flows.engine import all_finite
from flows.flow import Flow, SingularModeError
from flows.solvers import EXPONENTIAL, Field, Stop, linearisation_of, velocity_of
from landscapes import UnsupportedError
from landscapes.krylov import Product, matrix_function
from landscapes.landscape import basis_products

KRYLOV = 100  # products a Krylov space may take before the step is tried again at half its length
KRYLOV_SHARE = 0.3  # of the step's tolerance, the most that each of its three Krylov spaces may be off by
DENSE = 16  # dimensions up to which J is written out: three spaces with their remainders take more products than that
SERIES = 2.0  # |z| below which φ(z) is a series: recurrences lose a digit or less on either side
TERMS = 22  # 2²²/26! is below rounding of φ₄ ≥ 0.02
SAFETY, LARGEST, SMALLEST = 0.9, 10.0, 0.1  # of the step controller: as torchdiffeq's, but for faster shrinking

Rows = Callable[[Tensor], Tensor]


def phi_functions(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""φ₁, φ₂, φ₃, φ₄ of real or complex z: φ_k(z) = Σ_j zʲ/(j + k)! = (φ_{k−1}(z) − 1/(k−1)!)/z, φ₀ = exp."""
    small = z.abs() < SERIES
    near, far = torch.where(small, z, 0), torch.where(small, 1, z)
    series = torch.zeros_like(z)
    for j in reversed(range(TERMS)):
        series = series * near + 1 / math.factorial(j + 4)
    down, up = [series], [torch.expm1(far) / far]
    for k in (1, 2, 3):
        down.insert(0, down[0] * near + 1 / math.factorial(4 - k))
        up.append((up[-1] - 1 / math.factorial(k)) / far)
    first, second, third, fourth = (torch.where(small, *pair) for pair in zip(down, up, strict=True))
    return first, second, third, fourth


def velocity_rows(z: Tensor) -> Tensor:
    """What multiplies ΔF in U2, and in U3 and u⁺: (2, n)."""
    return torch.stack((phi_functions(z / 2)[0] / 2, phi_functions(z)[0]))


def second_rows(z: Tensor) -> Tensor:
    """What multiplies ΔD2 in U3, in u⁺, and in the error estimate: (3, n)."""
    first, _, third, fourth = phi_functions(z)
    return torch.stack((first, 16 * third - 48 * fourth, -48 * fourth))


def third_rows(z: Tensor) -> Tensor:
    """What multiplies ΔD3 in u⁺ and in the error estimate: (2, n)."""
    _, _, third, fourth = phi_functions(z)
    return torch.stack((-2 * third + 12 * fourth, 12 * fourth))


Reason = Literal["too large", "not finite", "not converged"]


class NoValueError(ArithmeticError):
    """A trial step has no value: it left the finite numbers, or a Krylov sum did not converge."""

    def __init__(self, reason: Reason):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Tolerance:
    """Relative and absolute tolerance of a step."""

    rtol: float
    atol: float

    def norm(self, error: Tensor, *states: Tensor) -> float:
        """Root mean square of error/(atol + rtol·max|state|), all (d,): at most 1 where the step is good enough."""
        return float((error / self.weights(*states)).abs().double().square().mean().sqrt())

    def weights(self, *states: Tensor) -> Tensor:
        """atol + rtol·max|state|, (d,)."""
        return self.atol + self.rtol * torch.stack([state.abs() for state in states]).amax(dim=0)

    def krylov(self, state: Tensor) -> float:
        """The Euclidean length of a vector (d,) whose norm is ``KRYLOV_SHARE`` at most, wherever it points."""
        return KRYLOV_SHARE * math.sqrt(state.shape[-1]) * float(self.weights(state).min())


class Station:
    """The field seen from one state (d,): F, products with J, and Krylov sums of functions of ΔJ.

    The products of the space that grows from F are kept: steps tried again from here take them from memory.
    """

    def __init__(self, field: Field, t: float, state: Tensor, tolerance: Tolerance):
        self.state = state
        self._field = field
        self._t = t
        field.evaluations += 1
        here = linearisation_of(field.flow, t, state)
        self.velocity = here.velocity
        dense = state.shape[-1] <= DENSE and all_finite(here.velocity)
        self._product = written_out(field.flow, here.product, state) if dense else here.product
        self._remembered = Remembered(field.flow, self._product)
        self._absolute = tolerance.krylov(state)
        self._relative = 100 * torch.finfo(state.dtype).eps  # nothing is asked for below rounding

    def remainder(self, there: Tensor) -> Tensor:
        """D = F(U) − F(u) − J(U − u), (d,) at U (d,)."""
        self._field.evaluations += 1
        velocity = velocity_of(self._field.flow, self._t, there)
        return velocity - self.velocity - self._product(there - self.state)

    def sums_of_velocity(self, rows: Rows, step: float) -> tuple[Tensor, int]:
        """Δ rows(ΔJ) F (n, d), and how many products the space took."""
        return self._sums(self._remembered.again(), rows, self.velocity, step)

    def sums(self, rows: Rows, vector: Tensor, step: float) -> tuple[Tensor, int]:
        """Δ rows(ΔJ) v (n, d), and how many products the space took. Raises NoValueError."""
        return self._sums(self._product, rows, vector, step)

    def _sums(self, product: Product, rows: Rows, vector: Tensor, step: float) -> tuple[Tensor, int]:
        def scaled(z: Tensor) -> Tensor:
            return step * rows(step * z)

        result = matrix_function(product, vector, scaled, KRYLOV, self._relative, self._absolute)
        finite = math.isfinite(result.change) and all_finite(result.value)
        if not (result.converged and finite):
            raise NoValueError("not converged" if finite else "not finite")
        return result.value, result.products


class Remembered:
    """J on the vectors of one Krylov space, which are the same at every step length: each product is taken once."""

    def __init__(self, flow: Flow, product: Product):
        self._flow = flow
        self._product = product
        self._images: list[Tensor] = []
        self._first: Tensor | None = None

    def again(self) -> Product:
        """The product for a space that grows from its first vector once more."""
        places = count()

        def product(v: Tensor) -> Tensor:
            place = next(places)
            if place == len(self._images):
                self._append(v)
            return self._images[place]

        return product

    def _append(self, v: Tensor) -> None:
        self._images.append(self._product(v))
        if self._first is None:
            self._first = v.clone()
        elif len(self._images) == 2:  # the one symmetry that costs no product; Krylov sums would be wrong without it
            image, other = self._images
            check_symmetric(self._flow, self._first @ other, v @ image, (image.abs().square().sum() ** 0.5))


def written_out(flow: Flow, product: Product, state: Tensor) -> Product:
    """The product with J (d, d) as a matrix: d products now, none later."""
    matrix = basis_products(product, state)
    check_symmetric(flow, matrix, matrix.mT, matrix.abs().max())
    return matrix.__matmul__


def check_symmetric(flow: Flow, here: Tensor, there: Tensor, size: Tensor) -> None:
    """Raise where J is not symmetric: its numbers here and there differ by more than products may in rounding."""
    if bool((here - there).abs().max() > torch.finfo(size.dtype).eps ** 0.5 * size):
        raise UnsupportedError(
            f"method={EXPONENTIAL!r} needs a symmetric Jacobian, and the linearised product of {flow.name} is not: "
            "correct the product, or use method='dopri5'"
        )


def exprb43(here: Station, step: float) -> tuple[Tensor, Tensor, int]:
    """One step Δ: the state after it (d,), its error estimate (d,), and the most products that one space took.

    Raises NoValueError where a stage is not finite or a Krylov sum does not converge.
    """
    (half, whole), first = here.sums_of_velocity(velocity_rows, step)
    bend = here.remainder(here.state + half)
    (shift, second_part, second_error), second = here.sums(second_rows, bend, step)
    bend = here.remainder(here.state + whole + shift)
    (third_part, third_error), third = here.sums(third_rows, bend, step)
    state = here.state + whole + second_part + third_part
    return state, second_error + third_error, max(first, second, third)


class Member:
    """One batch member on its way: time, state (d,) and the length of the step to try next."""

    def __init__(self, field: Field, t: float, state: Tensor, step: float | None, tolerance: Tolerance, most: int):
        self.t = t
        self.state = state
        self._field = field
        self._step = step
        self._tolerance = tolerance
        self._most = most
        self._here: Station | None = None
        self._refused: Reason | None = None  # why the last trial step was

    def advance(self, end: float) -> Tensor:
        """The state at ``end``, landed on; Stop where the member cannot get there in ``most`` trial steps."""
        for _ in range(self._most):
            self._try(end)
            if self.t == end:
                return self.state
        text = f"max_steps were taken without reaching the next output time, at t = {self.t:.6g}"
        advice = "raise max_steps, ask for closer output times, or give a larger rtol"
        raise stop_one("step underflow", f"{text} (step {self._step:.3g})", advice)

    def _try(self, end: float) -> None:
        if self._here is None:
            self._here = Station(self._field, self.t, self.state, self._tolerance)
            if not all_finite(self._here.velocity):
                raise self._infinite(self._step or 0.0)
        if self._step is None:
            self._step = first_step(self._here, self._tolerance)
        remaining = end - self.t
        step = remaining if remaining <= 1.01 * self._step else self._step  # no last step of a hundredth
        if not self.t + step > self.t:
            raise self._vanished(step)
        try:
            state, error, products = exprb43(self._here, step)
        except NoValueError as failure:
            self._refuse(step * (0.5 if failure.reason == "not converged" else SMALLEST), failure.reason)
            return
        size = self._tolerance.norm(error, self.state, state) if all_finite(state) else math.inf
        if not size <= 1:
            self._refuse(step * factor(size, 1.0), "too large" if math.isfinite(size) else "not finite")
            return
        # No growth at once after a refusal. A step cut short says little: what was proposed before it still holds.
        grown = step * min(factor(size, LARGEST if self._refused is None else 1.0), room(products, state))
        self._step = grown if step >= self._step else max(grown, self._step)
        self.t = end if step == remaining else self.t + step
        self.state, self._here, self._refused = state, None, None

    def _refuse(self, step: float, reason: Reason) -> None:
        self._step, self._refused = step, reason

    def _vanished(self, step: float) -> Stop:
        if self._refused == "not finite":
            return self._infinite(step)
        text = f"the step size vanished after t = {self.t:.6g} (step {step:.3g})"
        if self._refused == "not converged":
            advice = "products that are not the velocity's derivative do that: check linearised, or use method='dopri5'"
            return stop_one("step underflow", f"{text}: no Krylov sum converged in {KRYLOV} products", advice)
        advice = "the field blows up there, or the tolerances are below its rounding: end the run before, or raise rtol"
        return stop_one("step underflow", text, advice)

    def _infinite(self, step: float) -> Stop:
        advice = "the field leaves the finite numbers there: end the run before, or use a smaller h"
        text = f"the velocity is not finite after t = {self.t:.6g} (step {step:.3g})"
        return stop_one("diverged", text, advice)


def stop_one(kind: str, sentence: str, advice: str = "") -> Stop:
    """The Stop of a single state."""
    return Stop(kind, torch.ones((), dtype=torch.bool), sentence, advice)


def factor(size: float, largest: float) -> float:
    """What to multiply a step by for its error norm to become 1: the estimate is of order Δ⁴."""
    if size == 0:
        return largest
    return min(largest, max(SMALLEST, SAFETY * size**-0.25)) if math.isfinite(size) else SMALLEST


def room(products: int, state: Tensor) -> float:
    """By how much a step may grow before its Krylov spaces meet their limit: they grow as √Δ."""
    return (KRYLOV / products) ** 2 if 0 < products < state.shape[-1] else math.inf


def first_step(here: Station, tolerance: Tolerance) -> float:
    r"""The length Δ where the field's bend along itself, ½F''(F, F), first passes the tolerance; infinite if linear.

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
    return max(probe, SAFETY * (2 * probe**2 / bend) ** (1 / 3)) if bend > 0 else math.inf


class Members:
    """A batch on its way: each member with a step size of its own, advanced by itself from output to output."""

    def __init__(
        self, field: Field, state: Tensor, t: float, first: float | None, tolerance: Tolerance, max_steps: int
    ):
        self._shape = state.shape
        rows = state.reshape(-1, state.shape[-1])
        self._members = [Member(field, t, row, first, tolerance, max_steps) for row in rows]

    def advance(self, end: float, alive: Tensor) -> tuple[Tensor, list[Stop]]:
        """States (..., d) at ``end`` of the members ``alive`` (...,), and why others of them did not get there."""
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
        """Gather the members that stop for one reason; the first of them says where."""
        nobody = torch.zeros(len(self._members), dtype=torch.bool, device=self._members[i].state.device)
        first = stops.setdefault(stop.kind, Stop(stop.kind, nobody, stop.sentence, stop.advice))
        first.members[i] = True
