"""What is read off a ladder of errors: fitted orders and their intervals, trusted rungs, where asymptotics end."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.orders.fit import FRACTION, OrderStudy

SERIES = {
    "1 + x": lambda x: 1 + x,
    "exp x": math.exp,
    "1/(1 − x)": lambda x: 1 / (1 - x),
    "√(1 + x)": lambda x: math.sqrt(1 + x),
    "log(1 + x)/x": lambda x: math.log1p(x) / x if x else 1.0,
}


def ladder_of(ratio=0.5, rungs=8, largest=0.5):
    return tuple(largest * ratio**k for k in range(rungs))


def made_up(errors, ladder=None, integration=None, floor=0.0, **more):
    return OrderStudy(ladder or ladder_of(rungs=len(errors)), tuple(errors), floor, integration, **more)


@given(
    series=st.sampled_from(sorted(SERIES)),
    order=st.integers(1, 7),
    constant=st.floats(1e-3, 1e3),
    correction=st.floats(-1.2, 1.2),
    ratio=st.sampled_from([0.5, 0.6]),
)
def test_the_interval_covers_the_order_and_is_narrow(series, order, constant, correction, ratio):
    ladder = ladder_of(ratio)
    study = made_up([constant * h**order * SERIES[series](correction * h) for h in ladder], ladder)
    fit = study.fit
    rounding = 1e-9  # exp x is the model that is fitted, so that nothing but rounding is left over
    assert fit.low - rounding <= order <= fit.high + rounding
    assert fit.low <= fit.order <= fit.high < fit.low + 0.3
    # one correction beyond the power: its coefficient is the slope of log series at 0
    slope = {"√(1 + x)": 0.5, "log(1 + x)/x": -0.5}.get(series, 1.0)
    assert fit.constant == pytest.approx(constant, rel=0.1)
    assert fit.correction == pytest.approx(slope * correction, abs=0.5)


@pytest.mark.parametrize(
    ("ratio", "rungs", "noise", "share"),
    # At four rungs and at rungs close together little is left over to estimate the interval from.
    [(0.5, 8, 0.0, 0.97), (0.5, 8, 0.009, 0.99), (0.5, 5, 0.0, 0.97), (0.7, 10, 0.0, 0.93), (0.7, 10, 0.009, 0.98)],
)
def test_the_interval_covers_at_its_level(ratio, rungs, noise, share):
    """Ladders from hλ = ½ whose first three corrections are drawn: at least the share, of 400, cover the order."""
    generator = np.random.default_rng(3)
    ladder = ladder_of(ratio, rungs)
    covered, widths = [], []
    for _ in range(400):
        order, (c, d, e) = int(generator.integers(1, 8)), generator.uniform(-1, 1, 3)
        wrong = 1 + noise * generator.uniform(-1, 1, rungs)
        errors = [h**order * (1 + c * h + d * h**2 + e * h**3) * w for h, w in zip(ladder, wrong, strict=True)]
        study = made_up(errors, ladder, tuple(noise * error for error in errors))
        if study.fit is not None:
            covered.append(study.fit.low <= order <= study.fit.high)
            widths.append(study.fit.high - study.fit.low)
    assert len(covered) > 390
    assert np.mean(covered) >= share
    assert np.median(widths) < 0.4


def test_the_correction_takes_the_bias_out_of_the_slope():
    study = made_up([h**3 * (1 + h) for h in ladder_of()])
    assert 4 * abs(study.fit.order - 3) < abs(study.order - 3)
    assert study.fit.correction == pytest.approx(1, abs=0.1)


def test_three_rungs_are_fitted_without_correction():
    study = made_up([h**2 * (1 + h) for h in ladder_of(rungs=3, largest=0.1)])
    assert study.fit.rungs == 3
    assert math.isnan(study.fit.correction)
    assert study.fit.order == pytest.approx(sum(study.slopes) / 2)
    assert study.fit.low < 2 < study.fit.high


@pytest.mark.parametrize("c", [0.5, 2.0, 8.0, 30.0])
def test_asymptotics_end_where_a_slope_leaves_the_order(c):
    ladder = ladder_of(rungs=12)
    study = made_up([h**2 * (1 + c * h) for h in ladder], ladder)
    far = [i for i, slope in enumerate(study.slopes) if abs(slope - 2) > 0.1]
    assert study.asymptotic_end == ladder[far[-1] + 1 if far else 0]
    assert study.fit.last == 11
    assert study.fit.rungs == 12 - study.fit.first


def errors_of_slopes(slopes, ladder):
    """Errors along the ladder, from 1 down, with those slopes."""
    logs = np.cumsum([0.0, *(s * math.log(h / k) for s, (h, k) in zip(slopes, pairwise(ladder), strict=True))])
    return tuple(np.exp(-logs))


def test_where_slopes_never_settle_there_is_no_fit():
    ladder = ladder_of()
    study = made_up(errors_of_slopes([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.5], ladder), ladder)
    assert study.fit is None
    assert math.isnan(study.asymptotic_end)
    assert "slopes do not settle; add finer rungs" in str(study)


@pytest.mark.parametrize(
    ("slopes", "way"),
    [
        ([2.0, 1.9, 1.7, 1.4], "1.900, 1.700, 1.400 fall"),
        ([1.0, 1.0, 1.1, 1.4], "1.000, 1.100, 1.400 rise"),
        ([2.0, 1.9, 1.95, 1.8], "1.900, 1.950, 1.800 turn"),
        ([2.0, 1.9, 1.8, 1.69], "1.900, 1.800, 1.690 fall"),
    ],
)
def test_slopes_that_drift_have_no_fit_and_say_so(slopes, way):
    ladder = ladder_of(rungs=5)
    study = made_up(errors_of_slopes(slopes, ladder), ladder)
    assert study.drifts
    assert study.fit is None
    assert math.isnan(study.asymptotic_end)
    assert f"no fitted order: not in the asymptotic range, the local slopes {way}; add finer rungs" in str(study)


def test_a_drift_counts_only_beyond_the_errors_of_the_slopes():
    ladder = ladder_of(rungs=5)
    errors = errors_of_slopes([2.0, 2.0, 1.98, 1.94], ladder)
    assert made_up(errors, ladder).drifts
    assert not made_up(errors, ladder, tuple(0.005 * e for e in errors)).drifts


@pytest.mark.parametrize("ratio", [0.5, 0.7])
@pytest.mark.parametrize(("small", "large"), [(1, 2), (2, 3), (1, 3), (3, 4)])
def test_an_interval_contains_the_smaller_power_wherever_the_slopes_show_it(small, large, ratio):
    """e = x h^p + h^q: where slopes have left q by 0.1, either they drift or the interval reaches p."""
    ladder = ladder_of(ratio, rungs=10)
    kinds = {"drift": 0, "fit": 0}
    for x in np.logspace(-6, 2, 60):
        study = made_up([x * h**small + h**large for h in ladder], ladder)
        if study.slopes[-1] > large - 0.1:
            continue
        kinds["drift" if study.drifts else "fit"] += 1
        if study.fit is not None:
            assert study.fit.low - 1e-9 <= small <= study.fit.high + 1e-9
        elif not study.drifts:
            assert "slopes do not settle" in study.sentence
    assert min(kinds.values()) > 5


def test_a_trend_that_settles_slowly_widens_the_interval_to_its_limit():
    """Differences that fall by 0.8 at halved h: Aitken's limit is 1.4 − 0.08·0.8/0.2."""
    ladder = ladder_of(rungs=5)
    study = made_up(errors_of_slopes([1.655, 1.58, 1.48, 1.4], ladder), ladder)
    assert not study.drifts
    assert study.trend.limit == pytest.approx(1.4 - 0.08 * 0.8 / 0.2)
    assert study.fit.low <= study.trend.limit
    power = made_up([h**2 * (1 + 0.3 * h) for h in ladder], ladder)
    assert power.trend.limit is None
    assert power.trend.ratio == pytest.approx(0.5, abs=0.03)
    assert power.trend.expected == pytest.approx(0.5)


def test_three_rungs_say_that_they_show_no_drift():
    study = made_up([h**2 * (1 + h) for h in ladder_of(rungs=3, largest=0.1)])
    assert study.trend is None
    assert "from 3 rungs, too few to see whether slopes drift; asymptotics" in study.sentence


@pytest.mark.parametrize(
    ("errors", "least", "words"),
    [
        ([1e-14, 1e-15, 0.0, 1e-16], math.inf, "observed order at least any: exact"),
        ([1e-9, 1e-13, 1e-15, 0.0], math.log2(1e-9 / 1e-12), f"observed order at least {math.log2(1e3):.3f}"),
        ([1e-9, 1e-10, 1e-15, 0.0], math.log2(1e-10 / 1e-12), f"observed order {math.log2(10):.3f}"),
        ([1e-14, 1e-9, 1e-15, 0.0], math.nan, "observed order"),  # no ladder of a model: errors rise
        ([1e-9, math.nan, 1e-15, 0.0], math.nan, "observed order none"),
        ([1e-3, 1e-4, 1e-5, 1e-6], math.nan, "observed order 3.32"),
    ],
)
def test_rounding_leaves_a_lower_bound_of_the_order(errors, least, words):
    study = made_up(errors, floor=1e-12)
    assert study.least_order == pytest.approx(least, nan_ok=True)
    assert str(study).splitlines()[-1].startswith(words)


def test_only_trusted_rungs_are_fitted():
    ladder = ladder_of()
    errors = [h**4 for h in ladder]
    errors[1] = math.nan  # a run that failed
    integration = [0.0] * 8
    errors[6:], integration[6:] = [ladder[6] ** 2] * 2, [ladder[6] ** 2 * FRACTION * 1.01] * 2
    study = made_up(errors, ladder, tuple(integration), statuses=("finished", "singular mode", *["finished"] * 6))
    assert study.trusted == (True, False, True, True, True, True, False, False)
    assert (study.fit.first, study.fit.last, study.fit.rungs) == (0, 5, 5)
    assert study.fit.order == pytest.approx(4)
    assert study.order == pytest.approx(4)
    text = str(study)
    assert text.count("(integration)") == 2
    assert text.count("(singular mode)") == 1


def test_integration_errors_widen_the_interval():
    """A hundredth of each error can move a slope over seven halvings by little, over two by more."""
    errors = [h**2 for h in ladder_of()]
    exact, blurred = made_up(errors), made_up(errors, integration=tuple(0.009 * e for e in errors))
    assert exact.fit.high - exact.fit.low < 1e-10
    assert 0.01 < blurred.fit.high - blurred.fit.low < 0.1
    log = np.log(ladder_of())
    columns = np.stack([np.ones(8), log, np.array(ladder_of())], axis=1)
    weights = np.linalg.solve(columns.T @ columns, columns.T)[1]
    assert blurred.fit.high - blurred.fit.order == pytest.approx(0.009 * np.abs(weights).sum(), rel=1e-6)


def test_errors_below_the_floor_are_rounding():
    study = made_up([1e-15] * 5, floor=1e-12)
    assert study.fit is None
    assert str(study).count("(rounding)") == 5
    assert "the model is exact to this precision" in str(study)


def test_too_few_rungs_say_what_to_do():
    study = made_up([1e-3, 1e-4, 1e-16, 1e-16], floor=1e-12)
    assert "fewer than three rungs are trusted; add rungs above the rounding" in study.sentence


def test_the_text_tells_where_asymptotics_end():
    study = made_up([h**2 for h in ladder_of()], sharpness=3.0, integration=(0.0,) * 8)
    assert "fitted order 2.0000, 95 % interval [2.0000, 2.0000], from 8 rungs" in study.sentence
    assert study.sentence.endswith("asymptotics end at h = 0.5 (hλ = 1.5)")
    assert str(study).splitlines()[1].split() == ["0.5", "1.5", "2.5000e-01", "0.0e+00"]
