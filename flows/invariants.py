r"""Invariants of flows and descents that hold on every landscape, as checks for tests: a user's own and this project's.

Each check returns None or its measurement, and raises ``InvariantError``, an AssertionError with the figures, if the
invariant is broken. ``flows.strategies`` has hypothesis strategies for their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flows.descent import Descent
from flows.engines.counting import check_theta0
from flows.engines.descend import descend
from flows.engines.integrate import integrate
from flows.engines.noise_paths import BrownianPath, steps_of
from flows.engines.trajectory import Trajectory
from flows.flow import Flow, StochasticFlow
from flows.orders.ladder import OrderStudy, one_step_order, relative_ladder, sharpness_at
from landscapes import Landscape
from landscapes.errors import (
    MOST,
    UnsupportedError,
    check_callable,
    check_count,
    check_float_tensor,
    check_nonnegative,
    check_positive,
    check_real,
    check_seed,
)
from landscapes.landscape import check_landscape
from landscapes.noise import ito_correction
from landscapes.wrappers.rotated import Rotated

MULTIPLES = (0.1, 0.05, 0.025, 0.0125)  # hλ of the default ladder of check_order


class InvariantError(AssertionError):
    """An invariant is broken; the message has the expected and the measured figures."""


def check_order(
    flow: Callable[[float], Flow],
    descent: Callable[[float], Descent],
    theta0: Tensor,
    order: float,
    ladder: Sequence[float] | None = None,
    tolerance: float = 0.1,
) -> OrderStudy:
    r"""The one-step error falls as h^order: h → Flow against h → Descent along a ladder of h.

    ``order`` is that of the one-step error, p + 1 for a model of order p. ``ladder``: by default hλ = 0.1, 0.05, 0.025,
    0.0125, with λ the Hessian's eigenvalue of largest magnitude at θ0. The slope at the finest rungs above rounding
    must lie within ``tolerance`` of the order. Where no slope is seen because errors are rounding, the order is at
    least the slope down to the floor, and that of an exact model at least any: this passes too if errors of the claimed
    order would have been seen, of a size ‖step‖(hλ)^(order − 1) above the floor at the coarsest rung.
    Raises ValueError if no ladder is given and the Hessian at θ0 is zero or unknown.
    """
    check_real("order", order)
    check_nonnegative("tolerance", tolerance)
    check_callable("flow", flow, "h -> Flow")
    check_callable("descent", descent, "h -> Descent")
    if ladder is None:
        ladder = relative_ladder(descent(MULTIPLES[0]).stated_landscape, theta0, MULTIPLES)
    study = one_step_order(flow, descent, theta0, ladder)
    if math.isnan(study.order) and study.least_order >= order - tolerance:
        check_resolution(study, descent(study.ladder[0]), theta0, order)
    elif not abs(study.order - order) <= tolerance:
        raise InvariantError(f"one-step order must be {order} ± {tolerance}, observed {study.observed}\n{study}")
    return study


def check_resolution(study: OrderStudy, descent: Descent, theta0: Tensor, order: float) -> None:
    """Raise unless errors of that order would be above the floor: of size ‖step‖(hλ)^(order − 1) at the coarsest h."""
    path = descend(descent, theta0, 1).theta
    size = float(torch.linalg.vector_norm(path[-1] - path[0], dim=-1).max())
    curvature = study.ladder[0] * study.sharpness  # 0 or NaN where f is linear: one step shows any error there
    scale = size * (curvature ** (order - 1) if curvature > 0 else 1.0)
    if not scale > study.floor:
        raise InvariantError(
            f"errors of order {order} must be above rounding to be seen: at h = {study.ladder[0]:.4g} they would be "
            f"about {scale:.1e}, rounding is {study.floor:.1e}; give larger h, or another theta0\n{study}"
        )


def check_equivariance(
    flow: Callable[[Landscape], Flow], landscape: Landscape, theta: Tensor, rotation: Tensor, tolerance: float = 1e-9
) -> None:
    r"""The velocity turns with the coordinates: v_{f∘Qᵀ}(Qθ) = Q v_f(θ), for landscape → Flow and orthogonal Q (d, d).

    ``tolerance`` is relative to the largest component of the velocity.
    """
    check_callable("flow", flow, "landscape -> Flow")
    check_landscape(landscape).check(check_theta0(theta, "theta"))
    check_nonnegative("tolerance", tolerance)
    plain, turned = (check_flow("flow(landscape)", flow(f)) for f in (landscape, Rotated(landscape, rotation)))
    start = torch.zeros((), dtype=torch.float64)
    there = plain.position(plain.velocity(start, plain.start(theta)))
    back = turned.position(turned.velocity(start, turned.start(theta @ rotation.mT.to(theta)))) @ rotation.to(
        there.dtype
    )
    error = float((there - back).abs().max())
    if not error <= tolerance * max(float(there.abs().max()), torch.finfo(theta.dtype).tiny):
        raise InvariantError(f"velocity must turn with the coordinates; largest difference {error:.3e} in {there!r}")


def check_descent(flow: Flow, theta0: Tensor, times: Sequence[float] | Tensor, tolerance: float = 1e-6) -> None:
    r"""The loss never rises along the flow: ∇f·velocity ≤ 0 at every output, and f(t_{k+1}) ≤ f(t_k).

    ``tolerance`` is relative, to ‖∇f‖‖velocity‖ and to the range of the loss; it covers rounding and integration.
    For autonomous flows whose state is real θ. Of a run that diverges the states before are checked. Raises
    ``UnfinishedRunError`` if it ends early otherwise without a fault so far, and KeyboardInterrupt if interrupted.
    """
    check_nonnegative("tolerance", tolerance)
    if check_float_tensor("theta0", theta0).is_complex():
        raise UnsupportedError(f"theta0 must be real, got {theta0.dtype}: a complex loss neither rises nor falls")
    run = integrate(check_flow("flow", flow), theta0, times).check_uninterrupted()
    theta = run.theta
    slope = (flow.stated_landscape.grad(theta) * flow.velocity(0.0, theta)).sum(dim=-1)
    size = torch.linalg.vector_norm(flow.stated_landscape.grad(theta), dim=-1)
    size = size * torch.linalg.vector_norm(flow.velocity(0.0, theta), dim=-1)
    if not bool((slope <= tolerance * size).all()):
        raise InvariantError(f"the loss must not rise along the velocity; ∇f·velocity reaches {float(slope.max()):.3e}")
    loss = flow.stated_landscape.loss(theta)
    rise = float(loss.diff(dim=0).max()) if len(loss) > 1 else 0.0
    rounding = 1e3 * torch.finfo(loss.dtype).eps * float(loss.abs().max())
    if not rise <= tolerance * float(loss.max() - loss.min()) + rounding:
        raise InvariantError(f"the loss must not rise from output to output; it rises by {rise:.3e}")
    if run.status not in ("finished", "diverged"):
        run.check_finished(flow.name)  # raises: nothing is known of the times after its end


def jacobian(flow: Flow, theta: Tensor) -> Tensor:
    r"""∂velocity_i/∂θ_j (..., d, d) at θ (..., d): d backward passes through the velocity.

    For autonomous flows whose state is θ and whose velocity is differentiable.
    """
    if check_position(check_flow("flow", flow), "theta", theta).is_complex():
        raise UnsupportedError(f"theta must be real, got {theta.dtype}: the Jacobian is that of a real field")
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        velocity = flow.velocity(0.0, leaf)
        rows = [torch.autograd.grad(c.sum(), leaf, retain_graph=True)[0] for c in velocity.unbind(dim=-1)]
    return torch.stack(rows, dim=-2)


def asymmetry(flow: Flow, theta: Tensor) -> Tensor:
    r"""½(J − Jᵀ) (..., d, d) of the velocity's Jacobian J at θ (..., d): zero iff the field is a gradient nearby.

    In the plane ½(J_21 − J_12) is half the curl. Cost and flows as ``jacobian``.
    """
    matrix = jacobian(flow, theta)
    return (matrix - matrix.mT) / 2


def check_gradient_field(flow: Flow, theta: Tensor, tolerance: float = 1e-9) -> None:
    r"""The velocity is a gradient at θ (..., d): its Jacobian is symmetric, so that there is a (modified) loss.

    ``tolerance`` is relative to the largest entry of the Jacobian. Cost and flows as ``jacobian``.
    """
    check_nonnegative("tolerance", tolerance)
    matrix = jacobian(flow, theta)
    error, size = float((matrix - matrix.mT).abs().max()) / 2, float(matrix.abs().max())
    if not error <= tolerance * size:
        raise InvariantError(
            f"the velocity must be a gradient; its Jacobian's antisymmetric part reaches {error:.3e} of {size:.3e}"
        )


def check_noise(flow: StochasticFlow, theta: Tensor, seed: int = 0, tolerance: float = 1e-9) -> None:
    r"""The noise of a stochastic flow is consistent at θ (..., d), at time zero.

    diffusion is linear in dw; rate(ẇ) is velocity + diffusion(ẇ); with ``noise_kind`` "additive" it does not depend on
    the state, with "diagonal" the j-th motion moves the j-th component of the state by an amount that depends on that
    component alone; ito_correction is ½ Σ_j (∂σ_j)σ_j. ``tolerance`` is relative to the largest component. Takes a jvp
    for each of the m motions: for small problems.
    """
    if not isinstance(flow, StochasticFlow):
        raise TypeError(f"flow must be a StochasticFlow, got {type(flow).__name__}")
    check_position(flow, "theta", theta)
    check_nonnegative("tolerance", tolerance)
    state = flow.start(theta)
    generator = torch.Generator(state.device).manual_seed(check_seed(seed))
    shape = (*state.shape[:-1], flow.noise_size)
    u, v = (torch.randn(shape, generator=generator, dtype=state.dtype, device=state.device) for _ in range(2))

    def noise(dw: Tensor, at: Tensor = state) -> Tensor:
        return flow.diffusion(0.0, at, dw)

    equal(noise(2 * u - 3 * v), 2 * noise(u) - 3 * noise(v), "diffusion must be linear in dw", tolerance)
    drift = flow.velocity(0.0, state)
    equal(flow.rate(0.0, state, u), drift + noise(u), "rate must be velocity + diffusion", tolerance)
    elsewhere = torch.randn(state.shape, generator=generator, dtype=state.dtype, device=state.device)
    if flow.noise_kind == "additive":
        equal(noise(u, elsewhere), noise(u), "additive noise must not depend on the state", tolerance)
    if flow.noise_kind == "diagonal":
        for j in range(flow.noise_size):
            one = torch.zeros_like(u).index_fill_(-1, torch.tensor([j], device=u.device), 1.0)
            keep = one.bool()
            moved = torch.where(keep, state, elsewhere)
            expected = torch.where(keep, noise(one), 0.0)
            equal(
                noise(one, moved), expected, f"diagonal noise: motion {j} must move component {j} by itself", tolerance
            )
    exact = ito_correction(lambda x, dw: flow.diffusion(0.0, x, dw), state, flow.noise_size, "general")
    equal(flow.ito_correction(0.0, state), exact, "ito_correction must be half the sum of (∂σ_j)σ_j", tolerance)


def check_flow(name: str, flow: Flow) -> Flow:
    """Return ``flow``; raise unless it is a Flow."""
    if not isinstance(flow, Flow):
        raise TypeError(f"{name} must be a Flow, got {type(flow).__name__}")
    return flow


def check_position(model: Flow | Descent, name: str, theta: Tensor) -> Tensor:
    """Return θ (..., d); raise unless it is a finite θ of the model's landscape, if that is stated."""
    check_theta0(theta, name)
    for landscape in model.declared_landscapes[:1]:
        landscape.check(theta)
    return theta


def equal(found: Tensor, expected: Tensor, sentence: str, tolerance: float) -> None:
    """Raise with the sentence if two tensors differ by more than ``tolerance`` of the largest entry."""
    error, size = float((found - expected).abs().max()), float(expected.abs().max())
    if not error <= tolerance * max(size, torch.finfo(expected.dtype).tiny):
        raise InvariantError(f"{sentence}; largest difference {error:.3e} of {size:.3e}")


def check_batch(
    model: Flow | Descent, thetas: Tensor, steps: int = 5, dt: float | None = None, tolerance: float | None = None
) -> None:
    r"""A batch of n equals n single runs: descents and fixed steps (rk4) to rounding, dopri5 to its tolerance.

    ``thetas`` (n, d). A flow runs to steps·dt; a stochastic one by Euler's method, all members along one Brownian path.
    ``dt`` is by default 0.01/λ, with λ the Hessian's eigenvalue of largest magnitude over the members, 0.01 where there
    is none. ``tolerance`` (relative to the batch's largest coordinate) defaults to 1e4 eps. Stochastic descents draw
    for each member, so this check does not apply to them.
    """
    if not isinstance(model, (Flow, Descent)):
        raise TypeError(f"model must be a Flow or a Descent, got {type(model).__name__}")
    if check_position(model, "thetas", thetas).ndim != 2 or not len(thetas):
        raise ValueError(f"thetas must have shape (n, d), n >= 1, got {tuple(thetas.shape)}")
    check_count("steps", steps, maximum=MOST)
    if dt is not None:
        check_positive("dt", dt)
    if tolerance is not None:
        check_nonnegative("tolerance", tolerance)
    eps = torch.finfo(thetas.dtype).eps
    rounding = 1e4 * eps if tolerance is None else tolerance
    if isinstance(model, Descent):
        compare_batch(lambda x: descend(model, x, steps), thetas, rounding, "descend")
        return
    dt = batch_step(model, thetas) if dt is None else dt
    times = [k * dt for k in range(steps + 1)]
    if isinstance(model, StochasticFlow):
        more = 0 if model.noise_period is None else steps_of(model.noise_period, dt)  # up to a whole epoch
        path = BrownianPath(0, 0.0, (steps + more) * dt, dt, model.noise_size, thetas.dtype, thetas.device)
        compare_batch(lambda x: integrate(model, x, times, dt=dt, path=path), thetas, rounding, "euler")
        return
    compare_batch(lambda x: integrate(model, x, times, method="rk4", dt=dt), thetas, rounding, "rk4")
    adaptive = max(math.sqrt(eps), rounding)
    rtol, atol = max(1e-10, 50 * eps), max(1e-12, eps) * (float(thetas.abs().max()) or 1.0)
    compare_batch(lambda x: integrate(model, x, times, rtol=rtol, atol=atol), thetas, adaptive, "dopri5")


def batch_step(flow: Flow, thetas: Tensor) -> float:
    """0.01/λ, λ the Hessian's eigenvalue of largest magnitude over the members, or 0.01; a divisor of an epoch."""
    landscape = next(iter(flow.declared_landscapes), None)
    sharpness = 1.0 if landscape is None else sharpness_at(landscape, thetas)
    dt = 0.01 / sharpness if math.isfinite(sharpness) and sharpness > 0 else 0.01
    period = flow.noise_period if isinstance(flow, StochasticFlow) else None
    return dt if period is None else period / math.ceil(period / dt)


def compare_batch(run: Callable[[Tensor], Trajectory], thetas: Tensor, tolerance: float, name: str) -> None:
    """Raise where a batched run and the single ones differ by more than ``tolerance``, or only one of the two ends.

    A member that diverges ends its own run, and is frozen in the batch: the states before are compared. Interrupted
    runs raise KeyboardInterrupt.
    """
    together = run(thetas).check_uninterrupted()
    largest = float(together.theta.abs().max())
    for i, theta in enumerate(thetas):
        alone = run(theta).check_uninterrupted()
        if bool(alone.alive) != bool(together.alive[i]):
            fate, ended = ("finishes", together) if bool(alone.alive) else ("ends early", alone)
            sentence = ended.status.sentence
            raise InvariantError(f"{name}: member {i} alone {fate}, in the batch it does not: {sentence}")
        both = min(len(alone.theta), len(together.theta))
        one, other = alone.theta[:both], together.theta[:both, i]
        error = float((one - other).abs().max())
        if not error <= tolerance * largest:
            raise InvariantError(f"{name}: member {i} alone and in the batch differ by {error:.3e}")
