"Calibration and caution against second implementations, at the edges, and with data that do not fit."

import itertools
import json
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from scipy.stats import norm as normal
from scipy.stats import t as student
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_curve

from srdiag.core.errors import DataError, ModelError
from srdiag.evaluation.calibration import Calibration, calibrate
from srdiag.evaluation.diagnostic import wilson_interval
from srdiag.evaluation.gains import seed_interval
from srdiag.evaluation.reliability import (
    Bins,
    apply_temperature,
    brier_score,
    calibration_interval,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_table,
)
from srdiag.evaluation.thresholds import (
    abstention_threshold,
    area_under_risk_coverage,
    curve_bound,
    decide,
    design_effect,
    operating_point,
    risk_bound,
    risk_coverage,
)

TWO, THREE = ['normal', 'tumour'], ['a', 'b', 'c']


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def invented(n=300, k=3, exaggeration=2.5, seed=0):
    "Labels drawn from honest probabilities, and exaggerated ones"
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, k))
    return np.array([rng.choice(k, p=p) for p in softmax(z)]), softmax(exaggeration * z)


def coarse(n=200, k=3, seed=0):
    "The same with few different values, so that many images tie"
    t, p = invented(n, k, 1, seed)
    counts = np.floor(p * 4)
    counts[:, 0] += 4 - counts.sum(1)
    return t, counts / 4


def test_what_lived_with_the_record_says_where_it_is():
    with pytest.raises(ImportError, match='from srdiag.evaluation.thresholds import risk_coverage'):
        exec('from srdiag.evaluation.calibration import risk_coverage')


# Scores


@pytest.mark.parametrize('strategy', ['uniform', 'quantile'])
@pytest.mark.parametrize('bins', [1, 4, 10, 15])
@pytest.mark.parametrize('seed', range(3))
def test_reliability_is_that_of_scikit_learn(strategy, bins, seed):
    t, p = invented(seed=seed)
    right, claimed = calibration_curve(p.argmax(1) == t, p.max(1), n_bins=bins, strategy=strategy)
    rows = reliability_table(t, p, bins, strategy)
    assert np.allclose([r['accuracy'] for r in rows], right) and np.allclose(
        [r['confidence'] for r in rows], claimed
    )
    assert sum(r['count'] for r in rows) == len(t)
    ece = sum(r['count'] * abs(r['accuracy'] - r['confidence']) for r in rows) / len(t)
    assert expected_calibration_error(t, p, bins, strategy) == pytest.approx(ece)


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    rows = reliability_table([0, 0], [[0.5, 0.5], [0.75, 0.25]], bins=4)
    assert [(r['low'], r['count']) for r in rows] == [(0.25, 1), (0.5, 1)]


def test_all_confidences_equal():
    t, p = [0, 1, 0], [[0.9, 0.1]] * 3
    for strategy in ('uniform', 'quantile'):
        (row,) = reliability_table(t, p, strategy=strategy)
        assert (
            row['count'] == 3
            and row['accuracy'] == pytest.approx(2 / 3)
            and row['confidence'] == pytest.approx(0.9)
        )
    assert expected_calibration_error(t, p, strategy='quantile') == pytest.approx(0.9 - 2 / 3)


def test_brier_and_likelihood_are_those_of_scikit_learn():
    t, p = invented(k=2)
    assert brier_score(t, p) == pytest.approx(2 * brier_score_loss(t, p[:, 1]))
    t, p = invented(k=4)
    assert brier_score(t, p) == pytest.approx(sum(brier_score_loss(t == c, p[:, c]) for c in range(4)))
    assert negative_log_likelihood(t, p) == pytest.approx(log_loss(t, p))


def test_a_zero_at_the_truth_costs_a_lot_but_not_everything():
    assert negative_log_likelihood([1], [[1.0, 0.0]]) == pytest.approx(-math.log(np.finfo(float).eps))
    assert brier_score([1], [[1.0, 0.0]]) == 2


@pytest.mark.parametrize(
    'metric,score',
    [('ece', expected_calibration_error), ('brier', brier_score), ('nll', negative_log_likelihood)],
)
@pytest.mark.parametrize('grouped', [False, True])
def test_interval_is_that_of_drawing_groups_one_by_one(metric, score, grouped):
    t, p = invented(60)
    groups = np.repeat(list('abcdef'), [2, 20, 5, 13, 10, 10])
    names = sorted(set(groups)) if grouped else range(60)
    rng, values = np.random.default_rng(3), []
    for _ in range(40):
        drawn = rng.integers(len(names), size=len(names))
        rows = np.concatenate([np.flatnonzero(groups == names[i]) for i in drawn]) if grouped else drawn
        values.append(score(t[rows], p[rows]))
    found = calibration_interval(t, p, groups if grouped else None, metric, n=40, seed=3)
    assert np.allclose(found, np.quantile(values, [0.025, 0.975]))


def test_bins_sort_every_confidence_between_their_edges():
    confidence = np.random.default_rng(0).uniform(size=200)
    for strategy, sizes in (('uniform', None), ('quantile', 50)):
        edges, number = Bins(4, strategy).sort(confidence)
        assert len(edges) == 5 and ((edges[number] <= confidence) & (confidence <= edges[number + 1])).all()
        assert sizes is None or (np.bincount(number) == sizes).all()


def test_interval_of_other_bins_is_that_of_their_error():
    t, p = invented(80)
    low, high = calibration_interval(t, p, n=200, bins=Bins(3, 'quantile'))
    assert low < expected_calibration_error(t, p, 3, 'quantile') < high
    assert (low, high) != calibration_interval(t, p, n=200)


# The intervals of a library


@pytest.mark.parametrize('k,n', [(0, 7), (10, 10), (27, 30), (1706, 1800)])
@pytest.mark.parametrize('level', [0.8, 0.95])
def test_wilson_is_its_formula(k, n, level):
    z, p = normal.ppf((1 + level) / 2), k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert wilson_interval(k, n, level) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('k,n,level', [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_of_no_proportion(k, n, level):
    with pytest.raises(ValueError):
        wilson_interval(k, n, level)


def test_interval_over_seeds_is_students():
    gains = np.array([0.1, 0.3, 0.2, 0.6])
    half = student.ppf(0.95, 3) * gains.std(ddof=1) / 2
    assert seed_interval(gains, 0.9) == pytest.approx((0.3 - half, 0.3 + half))
    assert seed_interval([0.2, 0.2, 0.2]) == pytest.approx((0.2, 0.2))
    assert all(map(math.isnan, seed_interval([0.2])))


# Temperature


@pytest.mark.parametrize('true', [0.4, 1, 2.5, 6])
def test_temperature_repairs_what_was_done(true):
    t, p = invented(4000, exaggeration=true)
    found, reason = fit_temperature(t, p)
    assert reason == '' and found == pytest.approx(true, rel=0.08)


def test_temperature_is_the_best_of_many():
    t, p = invented(100, seed=5)
    found, _ = fit_temperature(t, p)
    loss = lambda log_t: log_loss(t, softmax(np.log(p) / math.exp(log_t)))
    assert found == pytest.approx(math.exp(minimize_scalar(loss).x), rel=1e-3)
    assert negative_log_likelihood(t, apply_temperature(p, found)) <= negative_log_likelihood(t, p)


@pytest.mark.parametrize('temperature', [0.05, 0.3, 1, 2.5, 100])
def test_no_label_changes(temperature):
    t, p = invented(500)
    heads = np.stack([p, invented(500, seed=1)[1], coarse(500)[1]]).mean(0)  # a mixture of heads
    near = np.array([[0.5 - 1e-16, 0.5 + 1e-16], [0.5, 0.5], [0, 1], [1, 0], [1e-300, 1 - 1e-300]])
    for table in (p, heads, coarse()[1], near):
        q = apply_temperature(table, temperature)
        assert (
            (q.argmax(1) == table.argmax(1)).all()
            and np.allclose(q.sum(1), 1)
            and np.isfinite(q).all()
            and (q >= 0).all()
        )


def test_temperature_one_changes_nothing():
    p = invented()[1]
    assert np.allclose(apply_temperature(p, 1), p, atol=1e-14)


def test_temperature_undoes_itself():
    p = invented(exaggeration=1)[1]
    assert np.allclose(apply_temperature(apply_temperature(p, 3), 1 / 3), p)


@pytest.mark.parametrize('temperature', [0, -1, math.inf, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match='positive number'):
        apply_temperature([[0.5, 0.5]], temperature)


def test_what_sets_no_temperature():
    t, p = invented(100)
    perfect = 0.5 * np.eye(3)[t] + 0.5 / 3
    for case, (targets, table), words in (
        ('few', (t[:19], p[:19]), '19 validation images'),
        ('one class', (np.ones(100, int), p), 'one class'),
        ('perfect', (t, perfect), 'correctly'),
    ):
        found, reason = fit_temperature(targets, table)
        assert found == 1 and words in reason, case
    wrong = (p.argmax(1) + 1) % 3
    assert fit_temperature(wrong, p)[0] == 100 and 'limit of 100' in fit_temperature(wrong, p)[1]


def test_nearly_undecided_and_nearly_always_right():
    t = np.arange(200) % 2
    p = np.where(np.eye(2)[t] == 1, 0.5001, 0.4999)
    p[0] = p[0, ::-1]  # one mistake, else there would be no fit
    found, reason = fit_temperature(t, p)
    assert found == 0.05 and 'limit' in reason


def test_zeros_do_not_stop_the_fit():
    t, p = invented(100)
    found, reason = fit_temperature(t, np.eye(3)[p.argmax(1)])
    assert reason == '' and found > 1  # certain, and often wrong


# Abstention


def naive_curve(t, p):
    rows = []
    for threshold in sorted(set(p.max(1)), reverse=True):
        chosen = p.max(1) >= threshold
        rows.append((threshold, chosen.mean(), (p.argmax(1) != t)[chosen].mean()))
    return np.array(rows)


@pytest.mark.parametrize('data', [invented(80), coarse(80), coarse(80, seed=2), invented(1)])
def test_curve_is_that_of_trying_every_threshold(data):
    curve = risk_coverage(*data)
    assert np.allclose(np.stack([curve.threshold, curve.coverage, curve.risk], 1), naive_curve(*data))
    assert curve.answered[-1] == len(data[0]) and curve.coverage[-1] == 1


def test_area_is_the_average_over_the_orders_of_ties():
    t, p = coarse(7, seed=4)
    wrong, confidence = p.argmax(1) != t, p.max(1)
    orders = [list(o) for o in itertools.permutations(range(7)) if (np.diff(confidence[list(o)]) <= 0).all()]
    assert len(orders) > 1 and wrong.any() and not wrong.all()
    areas = [(np.cumsum(wrong[o]) / np.arange(1, 8)).mean() for o in orders]
    assert area_under_risk_coverage(t, p) == pytest.approx(np.mean(areas))


def test_area_of_the_best_and_the_worst_order():
    p = np.stack([np.linspace(0.9, 0.6, 4), np.linspace(0.1, 0.4, 4)], 1)
    assert area_under_risk_coverage([0, 0, 0, 1], p) == pytest.approx(1 / 16)
    assert area_under_risk_coverage([1, 0, 0, 0], p) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


@pytest.mark.parametrize('k,n', [(0, 1), (0, 59), (1, 59), (30, 100), (99, 100), (100, 100)])
def test_bound_is_that_of_clopper_and_pearson(k, n):
    assert float(risk_bound(k, n)) == pytest.approx(binomtest(k, n).proportion_ci(0.90, 'exact').high)


def test_design_effect():
    fate = np.arange(60) % 3 == 0
    same, who = np.repeat(fate, 4), np.repeat(np.arange(60), 4)
    assert design_effect(same) == 1 and design_effect(same, who) == pytest.approx(4 * 60 / 59)
    assert design_effect(np.resize([1, 0], 240), who) == 1  # each patient has as many mistakes as the next
    assert design_effect(np.zeros(240), who) == 4  # no mistakes: nothing known about them
    assert design_effect(same, ['p'] * 240) == 240
    assert risk_bound(10, 100, design=4) > risk_bound(10, 100)


@pytest.mark.parametrize('data', [invented(300), coarse(300)])
@pytest.mark.parametrize('level', [None, 0.8, 0.95])
@pytest.mark.parametrize('risk', [0.2, 0.3])
def test_threshold_is_the_smallest_that_keeps_the_risk(data, level, risk):
    t, p = data

    def value(threshold):
        chosen = p.max(1) >= threshold
        k, n = int((p.argmax(1) != t)[chosen].sum()), int(chosen.sum())
        return k / n if level is None else float(risk_bound(k, n, level))

    keeping = [c for c in set(p.max(1)) if value(c) <= risk]
    if not keeping:
        with pytest.raises(DataError, match='No confidence threshold'):
            abstention_threshold(t, p, risk=risk, level=level)
        return
    a = abstention_threshold(t, p, risk=risk, level=level)
    assert a.threshold == min(keeping) and a.bounded is (level is not None)
    answers = decide(p, a.threshold)
    assert (answers >= 0).sum() == a.answered and (answers != t)[answers >= 0].mean() == pytest.approx(a.risk)


def test_caution_costs_answers():
    t, p = invented(600)
    groups = np.arange(600) // 60
    clumped = np.sort(p.argmax(1) != t)  # all mistakes in few groups
    order = np.argsort(p.argmax(1) != t, kind='stable')
    assert design_effect(clumped, groups) > 10
    plain, bound = (abstention_threshold(t, p, risk=0.25, level=level) for level in (None, 0.95))
    assert bound.coverage < plain.coverage and bound.threshold > plain.threshold
    with pytest.raises(DataError, match='images and groups'):
        abstention_threshold(t[order], p[order], risk=0.25, groups=groups)


@pytest.mark.parametrize('coverage', [0.1, 0.5, 0.99])
def test_wanted_coverage_is_reached_and_no_more(coverage):
    for t, p in (invented(100), coarse(100)):
        a = abstention_threshold(t, p, coverage=coverage)
        assert a.coverage >= coverage and (p.max(1) > a.threshold).mean() < coverage and not a.bounded


def test_risk_that_cannot_be_kept():
    with pytest.raises(DataError, match='which permits a risk of') as e:
        abstention_threshold([0] * 30, [[0.9, 0.1]] * 30, risk=0.01)
    assert '30 of 30' in str(e.value) and 'Allow a larger risk' in str(e.value)
    with pytest.raises(DataError):
        abstention_threshold([1, 1], [[0.9, 0.1], [0.8, 0.2]], risk=0.1, level=None)


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(risk=0.1, coverage=0.5),
        dict(risk=0),
        dict(risk=1),
        dict(risk=5),
        dict(risk=-0.1),
        dict(risk=math.nan),
        dict(coverage=0),
        dict(coverage=1.5),
        dict(risk=0.1, level=1.2),
    ],
)
def test_options_of_the_threshold(options):
    with pytest.raises(ValueError):
        abstention_threshold(*invented(50), **options)


# Operating point


@pytest.mark.parametrize('data', [invented(200, 2), coarse(200, 2), coarse(200, 2, 3)])
@pytest.mark.parametrize('sensitivity', [0.5, 0.9, 0.95, 1])
def test_point_is_that_of_the_roc_curve(data, sensitivity):
    t, p = data
    fpr, tpr, thresholds = roc_curve(t, p[:, 1], drop_intermediate=False)
    i = np.flatnonzero(tpr >= sensitivity - 1e-12)[0]
    o = operating_point(t, p, TWO, 'tumour', sensitivity)
    assert (
        o.threshold == thresholds[i]
        and o.sensitivity == pytest.approx(tpr[i])
        and o.specificity == pytest.approx(1 - fpr[i])
    )
    assert (
        o.sensitivity_low <= o.sensitivity <= o.sensitivity_high
        and o.specificity_low <= o.specificity <= o.specificity_high
    )
    called = decide(p, positive=1, threshold=o.threshold) == 1
    assert called[t == 1].mean() == o.sensitivity and (~called)[t == 0].mean() == o.specificity


def test_nineteen_of_twenty_are_95_percent():
    p = np.linspace(0.99, 0.01, 40)
    t = np.arange(40) < 20
    o = operating_point(t, np.stack([1 - p, p], 1), TWO, 'tumour', 0.95)
    assert o.sensitivity == 0.95 and o.threshold == p[18]


def test_intervals_over_groups_are_wider_for_clumped_mistakes():
    t, p = invented(400, 2)
    alone = operating_point(t, p, TWO, 'tumour', 0.8)
    order = np.lexsort((p[:, 1], t))  # neighbours are alike, as if of one patient
    together = operating_point(t[order], p[order], TWO, 'tumour', 0.8, np.arange(400) // 20)
    assert together.threshold == alone.threshold
    assert (
        together.sensitivity_high - together.sensitivity_low > alone.sensitivity_high - alone.sensitivity_low
    )


def test_a_class_of_three_against_the_rest():
    t, p = invented(300)
    o = operating_point(t, p, THREE, 'b', 0.9)
    called = decide(p, positive=1, threshold=o.threshold)
    assert (called == 1)[t == 1].mean() >= 0.9
    rest = called != 1
    assert (called[rest] == np.where(p[rest, 0] >= p[rest, 2], 0, 2)).all()


@pytest.mark.parametrize('t', [[0, 0], [1, 1]])
def test_point_needs_both_kinds(t):
    with pytest.raises(DataError, match='needs images of it and others'):
        operating_point(t, [[0.5, 0.5], [0.4, 0.6]], TWO, 'tumour')


@pytest.mark.parametrize('sensitivity', [0, -1, 1.01, math.nan])
def test_sensitivity_is_a_share(sensitivity):
    with pytest.raises(ValueError, match='sensitivity'):
        operating_point(*invented(50, 2), TWO, 'tumour', sensitivity)


def test_unknown_positive_class():
    with pytest.raises(ValueError, match="'polyp' is not among"):
        operating_point(*invented(50, 2), TWO, 'polyp')
    with pytest.raises(ValueError, match="'polyp' is not among"):
        calibrate(*invented(50, 2), TWO, positive='polyp')


def test_decisions():
    p = [[0.6, 0.4], [0.5, 0.5], [0.3, 0.7]]
    assert decide(p).tolist() == [0, 0, 1]
    assert decide(p, 0.6).tolist() == [0, -1, 1]  # at the threshold there is an answer
    assert decide(p, positive=1, threshold=0.4).tolist() == [1, 1, 1]
    assert decide(p, positive=1, threshold=0.8).tolist() == [0, 0, 0]
    # an alarm is never withheld
    assert decide(p, 0.6, 1, 0.5).tolist() == [0, 1, 1] and decide(p, 0.6, 1, 0.55).tolist() == [0, -1, 1]
    assert decide(np.zeros((0, 2))).tolist() == [] and apply_temperature(np.zeros((0, 2)), 2).shape == (0, 2)
    for options in (
        dict(positive=1),
        dict(threshold=0.5),
        dict(positive=2, threshold=0.5),
        dict(positive=-1, threshold=0.5),
    ):
        with pytest.raises(ValueError):
            decide(p, **options)


# The record


@pytest.fixture(scope='module')
def record():
    t, p = invented(400)
    return calibrate(t, p, THREE, np.arange(400) // 10, risk=0.25, positive='c', sensitivity=0.9)


def test_record_is_made_of_the_parts(record):
    t, p = invented(400)
    groups = np.arange(400) // 10
    temperature, _ = fit_temperature(t, p)
    q = apply_temperature(p, temperature)
    assert (
        record.temperature == temperature
        and record.classes == tuple(THREE)
        and (record.images, record.groups, record.reasons) == (400, 40, {})
    )
    assert record.abstention == abstention_threshold(t, q, risk=0.25, groups=groups)
    assert record.operating == operating_point(t, q, THREE, 'c', 0.9, groups)
    assert record.before.ece == expected_calibration_error(t, p) and record.after.brier == brier_score(t, q)
    assert (
        record.after.ece_interval == calibration_interval(t, q, groups)
        and record.after.nll < record.before.nll
    )
    assert (record.apply(p) == q).all()
    assert (record.decide(p, operate=False) == decide(q, record.abstention.threshold)).all()
    assert (record.decide(p, abstain=False) == decide(q, None, 2, record.operating.threshold)).all()
    # an alarm is never withheld
    unsure, alarm = q.max(1) < record.abstention.threshold, q[:, 2] >= record.operating.threshold
    assert ((record.decide(p) == -1) == (unsure & ~alarm)).all() and (unsure & alarm).any()
    assert (record.decide(p, False, False) == p.argmax(1)).all()


def test_record_is_frozen(record):
    with pytest.raises(FrozenInstanceError):
        record.temperature = 1.0


def test_record_survives_json(record):
    assert Calibration.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))) == record
    bare = replace(record, abstention=None, operating=None, groups=None, reasons={'abstention': 'why'})
    assert Calibration.from_dict(json.loads(json.dumps(bare.to_dict(), allow_nan=False))) == bare
    whole = record.to_dict() | {'temperature': 2}
    assert Calibration.from_dict(whole).temperature == 2.0


TOO_POOR = {
    'one image': (1, None),
    'three images': (3, None),
    'three images, groups': (3, list('abc')),
    'one group': (60, ['p'] * 60),
    'fair': (60, None),
}


@pytest.mark.parametrize('case', TOO_POOR)
@pytest.mark.parametrize(
    'kind', ['as it came', 'one class', 'perfect', 'always wrong', 'certain', 'undecided']
)
def test_poor_validation_sets_give_reasons(case, kind):
    n, groups = TOO_POOR[case]
    t, p = invented(n, seed=2)
    if kind == 'one class':
        t = np.zeros(n, int)
    if kind == 'perfect':
        t = p.argmax(1)
    if kind == 'always wrong':
        t = (p.argmax(1) + 1) % 3
    if kind == 'certain':
        p = np.eye(3)[p.argmax(1)]
    if kind == 'undecided':
        p = np.full((n, 3), 1 / 3)
    c = calibrate(t, p, THREE, groups, positive='b')
    assert Calibration.from_dict(json.loads(json.dumps(c.to_dict(), allow_nan=False))) == c
    assert (c.abstention is None) == ('abstention' in c.reasons) and (c.operating is None) == (
        'operating' in c.reasons
    )
    assert (
        (c.after.ece_interval is None) == ('intervals' in c.reasons) == (case in ('one image', 'one group'))
    )
    assert c.temperature == 1 or n >= 20
    if n < 20:
        assert 'too few' in c.reasons['temperature']
    assert c.decide(p).shape == (n,) and np.isfinite(c.apply(p)).all()


def test_nothing_asked_for():
    c = calibrate(*invented(50), THREE, risk=None)
    assert c.abstention is None and c.operating is None and set(c.reasons) == {'abstention', 'operating'}
    assert (c.decide(invented(50)[1]) == invented(50)[1].argmax(1)).all()


def edits():
    yield 'unknown entry', lambda d: d.update(treshold=0.5)
    yield 'lacks temperature', lambda d: d.pop('temperature')
    for value in ('2.5', 0, -1, True, None, math.nan, math.inf, [2]):
        yield 'temperature', lambda d, v=value: d.update(temperature=v)
    for value in ([], ['a'], ['a', 'a'], 'ab', [1, 2], None):
        yield 'classes', lambda d, v=value: d.update(classes=v)
    for value in (0, 1.5, True, '3', None):
        yield 'images', lambda d, v=value: d.update(images=v)
    for value in (0, 1.5, 'x'):
        yield 'groups', lambda d, v=value: d.update(groups=v)
    for value in (None, [], {'mood': 'x'}, {'abstention': 1}):
        yield 'reasons', lambda d, v=value: d.update(reasons=v)
    for value in (None, 3, {}):
        yield 'before', lambda d, v=value: d.update(before=v)
    for value in (-0.1, 1.1, '0.1', math.nan, None):
        yield 'ece', lambda d, v=value: d['after'].update(ece=v)
    for value in ([0.1], [0.2, 0.1], [0, math.nan], 'ab', 0.1):
        yield 'ece_interval', lambda d, v=value: d['after'].update(ece_interval=v)
    yield 'nll', lambda d: d['after'].update(nll=math.inf)
    yield 'brier', lambda d: d['after'].update(brier=2.5)
    for value in (-1, 2, 'x', False):
        yield 'threshold', lambda d, v=value: d['abstention'].update(threshold=v)
    yield 'wanted', lambda d: d['abstention'].update(wanted='luck')
    yield 'bounded', lambda d: d['abstention'].update(bounded=1)
    yield 'answered', lambda d: d['abstention'].update(answered=1.5)
    yield 'colour', lambda d: d['operating'].update(colour='red')
    yield 'not among', lambda d: d['operating'].update(positive='z')
    yield 'abstention', lambda d: d.update(abstention=[])


@pytest.mark.parametrize('words,edit', edits())
def test_edited_record_is_refused(record, words, edit):
    d = record.to_dict()
    edit(d)
    with pytest.raises(ModelError, match=words) as e:
        Calibration.from_dict(d)
    assert str(e.value).endswith('.')


@pytest.mark.parametrize('d', [None, [], 'x', 3])
def test_no_record_at_all(d):
    with pytest.raises(ModelError):
        Calibration.from_dict(d)


# Data that do not fit

BAD = {
    'sum': ([0, 1], [[0.5, 0.4], [0.5, 0.5]], 'sums to 0.9'),
    'nan': ([0, 1], [[0.5, 0.5], [math.nan, 0.5]], 'not finite'),
    'lengths': ([0, 1, 1], [[0.5, 0.5]] * 2, '3 targets but 2 rows'),
    'one column': ([0, 0], [[1.0], [1.0]], 'shape'),
    'flat': ([0, 1], [0.5, 0.5], 'shape'),
    'none': ([], np.zeros((0, 2)), 'shape'),
    'negative': ([0, 1], [[1.5, -0.5], [0.5, 0.5]], 'not negative'),
    'label': ([0, 2], [[0.5, 0.5]] * 2, 'class number 2'),
}
TAKE_BOTH = [
    reliability_table,
    expected_calibration_error,
    brier_score,
    negative_log_likelihood,
    calibration_interval,
    fit_temperature,
    risk_coverage,
    area_under_risk_coverage,
    lambda t, p: abstention_threshold(t, p, risk=0.1),
    lambda t, p: operating_point(t, p, TWO, 'tumour'),
    lambda t, p: calibrate(t, p, TWO),
]


@pytest.mark.parametrize('case', BAD)
@pytest.mark.parametrize('function', TAKE_BOTH)
def test_tables_that_do_not_fit(case, function):
    t, p, words = BAD[case]
    with pytest.raises(DataError) as e:
        function(t, p)
    assert words in str(e.value) or 'columns' in str(e.value)


@pytest.mark.parametrize('case', ['sum', 'nan', 'one column', 'flat', 'negative'])
def test_probabilities_that_are_none(case):
    p = BAD[case][1]
    for function in (decide, lambda p: apply_temperature(p, 2), calibrate(*invented(50, 2), TWO).apply):
        with pytest.raises(DataError):
            function(p)


def test_groups_that_do_not_fit():
    t, p = invented(30)
    for groups in (['a'] * 29, ['a', None] * 15, [None] * 30, list(range(31))):
        with pytest.raises(DataError, match='group'):
            calibrate(t, p, THREE, groups, positive='a')
    with pytest.raises(DataError, match='group'):
        operating_point(t, p, THREE, 'a', groups=['a', 'b'])


def test_options_that_do_not_exist():
    t, p = invented(30)
    for call in (
        lambda: reliability_table(t, p, 0),
        lambda: reliability_table(t, p, 2.5),
        lambda: reliability_table(t, p, strategy='even'),
        lambda: calibration_interval(t, p, bins=Bins(strategy='even')),
        lambda: calibration_interval(t, p, metric='auc'),
        lambda: calibration_interval(t, p, level=2),
        lambda: risk_bound(1, 2, 1),
        lambda: calibrate(t, p, THREE, risk=1),
        lambda: calibrate(t, p, THREE, risk=0),
        lambda: calibrate(t, p, THREE, positive='a', sensitivity=2),
    ):
        with pytest.raises(ValueError):
            call()


def test_a_record_knows_its_classes(record):
    with pytest.raises(DataError, match='2 columns'):
        record.apply([[0.5, 0.5]])
    with pytest.raises(DataError, match='4 columns'):
        calibrate([0, 1], np.full((2, 4), 0.25), THREE)


# The promise


def test_risk_on_new_images():
    t_new, p_new = invented(20000, seed=99)
    exceeded = {None: [], 0.95: []}
    for seed in range(40):
        t, p = invented(300, seed=seed)
        for level, found in exceeded.items():
            answers = decide(p_new, abstention_threshold(t, p, risk=0.25, level=level).threshold)
            found.append((answers != t_new)[answers >= 0].mean() > 0.25)
    assert np.mean(exceeded[0.95]) <= 0.15 and np.mean(exceeded[None]) >= 0.3


# Figures


def test_figures_show_what_was_measured():
    from srdiag.show.calibration import operating_figure, reliability_figure, risk_coverage_figure
    import matplotlib.pyplot as plt

    t, p = invented(200)
    rows = reliability_table(t, p)
    above, below = reliability_figure(t, {'net': p}).axes
    assert np.allclose(above.lines[1].get_xydata(), [[r['confidence'], r['accuracy']] for r in rows])
    assert [bar.get_height() for bar in below.patches] == [r['count'] for r in rows]
    a = abstention_threshold(t, p, risk=0.3)
    dots = [
        line.get_xydata()[0]
        for line in risk_coverage_figure(t, p, a).axes[0].lines
        if line.get_marker() == 'o'
    ]
    assert np.allclose(dots, [[a.coverage, a.risk]])
    o = operating_point(t, p, THREE, 'b')
    dots = [
        line.get_xydata()[0]
        for line in operating_figure(t, p, THREE, o).axes[0].lines
        if line.get_marker() == 'o'
    ]
    assert np.allclose(dots, [[1 - o.specificity, o.sensitivity]])
    assert not plt.get_fignums()


def test_figures_refuse_what_does_not_fit():
    from srdiag.show.calibration import operating_figure, reliability_figure, risk_coverage_figure

    t, p = invented(50)
    o = operating_point(t, p, THREE, 'b')
    with pytest.raises(ValueError, match='no probabilities'):
        reliability_figure(t, {})
    with pytest.raises(DataError):
        risk_coverage_figure(t[:5], p)
    with pytest.raises(ValueError, match='not among'):
        operating_figure(t, p, ['x', 'y', 'z'], o)
    with pytest.raises(DataError, match='of others'):
        operating_figure(np.zeros(50, int), p, THREE, o)


def test_few_groups_widen_the_bound():
    few, many = (float(risk_bound(10, 100, design=4, n_groups=g)) for g in (3, 1000))
    assert few > many >= float(risk_bound(10, 100, design=4))
    ratio = (student.ppf(0.95, 2) / student.ppf(0.95, 99)) ** 2
    assert few == pytest.approx(float(risk_bound(10, 100, design=4 * ratio)))
    # one group: as one image
    assert float(risk_bound(10, 100, design=100, n_groups=1)) == float(risk_bound(10, 100, design=100))
    t, p = invented(600)
    wrong, curve = p.argmax(1) != t, risk_coverage(t, p)
    bounds = [
        curve_bound(curve, wrong, groups=g)[-1]
        for g in (None, np.arange(600) // 5, np.arange(600) // 200, ['p'] * 600)
    ]
    assert bounds == sorted(bounds) and bounds[-1] > 0.9
