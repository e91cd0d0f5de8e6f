"Other distances to a teacher: by loops and by hand, what they forgive, and how a student is trained by each."
import math
from typing import get_args

import pandas as pd
import pytest
import torch

from srdiag.bench.entries import (ALTERNATIVES, COPIED, DOUBLE, IMITATING, PRESETS, RECURSIVE, STUDENT,
                                  TAUGHT, TRAININGS, Entry, entries_of, with_teachers)
from srdiag.bench.settings import sr_budget
from srdiag.bench.sr_report import sr_limits
from srdiag.bench.sr_runs import steps_of
from srdiag.core.errors import DataError, ModelError
from srdiag.data.pairs import SRPairs
from srdiag.data.samples import tissue
from srdiag.models.saving import load_model
from srdiag.sr.distillation import DistillationLoss, FeatureStudent, PhasedLoss, distil, distillation_loss_of
from srdiag.sr.mimicry import (MIMICRIES, RegressedHints, attention_map, flow_matrix, mimicry_of,
                               similarity_matrix)
from srdiag.sr.mrcnet import MRCFeatures, MRCNet
from srdiag.sr.settings import By, Distillation, DistilSettings, Schedule, as_published
from srdiag.training.recipes import Recipe

IMITATE = [name for name in MIMICRIES if name != 'copy']


def slim(steps, channels=8):
    torch.manual_seed(steps)
    return MRCNet(2, steps=steps, channels=channels, blocks=1, stages=1)


@pytest.fixture(scope='module')
def both():
    "Features of a student, with gradient, and of its teacher; and the MAE of the student"
    teacher, student = slim(3).eval(), slim(1)
    student.load_state_dict(teacher.state_dict())
    torch.manual_seed(0)
    lr, hr = torch.rand(3, 3, 8, 10), torch.rand(3, 3, 16, 20)
    s = student.features(lr)
    with torch.no_grad(): t = teacher.features(lr)
    return s, t, (s.sr - hr).abs().mean().detach()


@pytest.fixture(scope='module')
def pairs():
    image = tissue()
    return SRPairs([image[:, :64, :64]], 2), SRPairs([image[:, :64, 64:128]], 2)


def mse(a, b):
    a, b = a.flatten().tolist(), b.flatten().tolist()
    return sum((x - y)**2 for x, y in zip(a, b, strict=True))/len(a)


# The distances, by loops

def test_output_and_hints_are_mean_squares(both):
    s, t, _ = both
    assert float(mimicry_of('output')(s, t).detach()) == pytest.approx(mse(s.sr, t.sr), rel=1e-4)
    for name in ('hints', 'hints_regressor'): # which begins as the identity
        imitate = mimicry_of(name, 8)
        assert float(imitate(imitate.compared(s), t).detach()) == pytest.approx(mse(s.f_lr, t.f_lr), rel=1e-4)


def test_attention_by_loops(both):
    s, t, _ = both
    x = t.f_lr[1]
    squares = [sum(float(x[c, i, j])**2 for c in range(8)) for i in range(8) for j in range(10)]
    length = math.sqrt(sum(q*q for q in squares))
    torch.testing.assert_close(attention_map(t.f_lr)[1], torch.tensor([q/length for q in squares]))
    per_layer = [(attention_map(getattr(s, k)) - attention_map(getattr(t, k))).square().sum().item()/3
                 for k in ('f_lr', 'f_sr')]
    found = [d.item() for d in mimicry_of('attention').distances(s, t)]
    assert found == pytest.approx(per_layer, rel=1e-5)


def test_flow_by_loops(both):
    _, t, _ = both
    a, b = t.hidden[2], t.f_lr[2]
    by_hand = sum(float(a[3, i, j])*float(b[5, i, j]) for i in range(8) for j in range(10))/80
    assert flow_matrix(t.hidden, t.f_lr)[2, 3, 5].item() == pytest.approx(by_hand, rel=1e-4)
    pooled = t.f_sr.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    torch.testing.assert_close(flow_matrix(t.f_lr, t.f_sr), flow_matrix(t.f_lr, pooled))


def test_similarity_by_loops(both):
    _, t, _ = both
    rows = t.f_lr.flatten(1).double()
    products = [[float((rows[i]*rows[j]).sum()) for j in range(3)] for i in range(3)]
    wanted = torch.tensor([[v/math.sqrt(sum(w*w for w in row)) for v in row] for row in products])
    torch.testing.assert_close(similarity_matrix(t.f_lr), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', IMITATE)
def test_a_perfect_student_is_at_no_distance(name, both):
    _, t, _ = both
    imitate = mimicry_of(name, 8)
    with torch.no_grad(): assert float(imitate(imitate.compared(t), t)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize('name', IMITATE)
def test_gradient_reaches_the_student_and_never_the_teacher(name, both):
    s, t, _ = both
    s, t = (MRCFeatures(*(v.detach().clone().requires_grad_() for v in f)) for f in (s, t))
    imitate = mimicry_of(name, 8)
    imitate(imitate.compared(s), t).backward()
    assert any(v.grad is not None and v.grad.abs().sum() > 0 for v in s) and all(v.grad is None for v in t)


# The rule of the weights

@pytest.mark.parametrize('name', IMITATE)
def test_a_distance_begins_as_large_as_the_mae_and_equal_in_its_terms(name, both):
    s, t, mae = both
    imitate = mimicry_of(name, 8)
    imitate.begin(mae, s, t)
    assert float(imitate(s, t).detach()) == pytest.approx(float(mae), rel=1e-4)
    values = [float(v) for v in imitate.components.values()]
    assert values == pytest.approx([float(mae)/len(values)]*len(values), rel=1e-4)
    assert list(imitate.components) == [f'distil_{k}' for k in imitate.terms]


def test_the_rule_is_applied_once_and_survives_saving(both):
    s, t, mae = both
    first, second = mimicry_of('flow'), mimicry_of('flow')
    first.begin(mae, s, t)
    second.load_state_dict(first.state_dict())
    second.begin(100*mae, s, t)
    torch.testing.assert_close(first.units, second.units)
    equal = mimicry_of('output')
    equal.begin(mae, t, t) # no distance: nothing to divide by
    assert equal.units.tolist() == [1] and float(equal(t, t)) == 0


def test_the_published_weights_stay(both):
    s, t, _ = both
    phased = PhasedLoss()
    phased.teacher_features = t
    total, hr = phased(s, torch.zeros_like(s.sr)), s.sr.detach().abs().mean()
    assert float(total.detach()) == pytest.approx(float(hr + DistillationLoss()(s, t).detach()), rel=1e-5)


# Training

FAST = Recipe(1e-3, 2)


def trained(pairs, by, tmp_path, teacher=None, **how):
    student, learn = distil(teacher or slim(3), *pairs, FAST, Schedule(2, 3, 16), Distillation(by=by, **how),
                            folder=tmp_path, precision='fp32')
    return student, learn, pd.read_csv(tmp_path/'steps.csv')


@pytest.mark.parametrize('by', get_args(By))
def test_every_distance_trains_a_student(by, pairs, tmp_path):
    teacher = slim(3)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student, _, steps = trained(pairs, by, tmp_path, teacher)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert student.state_dict().keys() == before.keys() and student.config['steps'] == 1
    distances = steps.filter(like='distil_')
    assert list(distances) == [f'distil_{k}' for k in distillation_loss_of(Distillation(by=by), 8).terms]
    assert (distances[:3] > 0).all(axis=None) and (distances[3:] == 0).all(axis=None) and len(steps) == 6
    total = steps.mae + distances.sum(axis=1)
    assert (total - steps.loss).abs().max() < 1e-4
    if by not in ('recursion', 'copy'):
        assert distances.iloc[0].sum() == pytest.approx(steps.mae[0], rel=1e-3)


def test_copied_weights_are_a_plain_training_from_there(pairs, tmp_path):
    "No distance and no phase 1: the same bits as Eq. (4) for no epoch at all"
    copied, _, steps = trained(pairs, 'copy', tmp_path)
    plain, _, _ = trained(pairs, 'recursion', tmp_path, phase1=0.)
    assert all(torch.equal(a, b) for a, b in zip(copied.state_dict().values(), plain.state_dict().values()))
    assert list(steps) == ['step', 'lr', 'loss', 'mae']


def test_the_regressor_learns_and_stays_behind(pairs, tmp_path):
    _, learn, _ = trained(pairs, 'hints_regressor', tmp_path)
    weight = learn.model.mimicry.regressor.weight.detach()
    assert not torch.equal(weight, torch.eye(8).view_as(weight))
    x = torch.rand(1, 3, 8, 8)
    hinted = learn.model.train()
    assert torch.equal(hinted(x).f_lr, hinted.mimicry.regressor(hinted.network.features(x).f_lr))
    assert torch.equal(hinted.eval()(x), hinted.network(x))


def test_recursion_adds_nothing_to_what_a_run_saves():
    "Runs that were interrupted before there were rivals go on"
    assert not [k for k in FeatureStudent(slim(1), DistillationLoss()).state_dict() if 'mimicry' in k]
    assert isinstance(mimicry_of('hints_regressor', 5), RegressedHints)


# Settings and the command

def test_wrong_names_and_idle_weights_are_refused():
    with pytest.raises(ValueError, match='choose one of copy'): mimicry_of('logits')
    with pytest.raises(DataError, match='value of by'): Distillation(by='logits')
    with pytest.raises(DataError, match='gamma_cell.*hints does not use'):
        Distillation(by='hints', gamma_cell=1.)
    with pytest.raises(DataError, match='by is recursion, not flow'): as_published(DistilSettings(by='flow'))
    assert {*get_args(By)} == {*MIMICRIES, 'recursion'}


def test_command_distils_by_another_distance(models, sr_folder, tmp_path, succeeds, run_cli):
    common = ['distill', '--data', sr_folder, '--teacher', models.teacher, '--patch', 16, '--steps', 2,
              '--epochs', 2, '--device', 'cpu', '--precision', 'fp32']
    succeeds(*common, '--out', tmp_path/'student', '--by', 'hints_regressor')
    network, known = load_model(tmp_path/'student', 'sr')
    assert network.config['steps'] == 1 and known.title == 'MRC-Net x2, hints with a regressor'
    assert known.training['by'] == 'hints_regressor'
    code, _, err = run_cli(*common, '--out', tmp_path/'x', '--by', 'logits')
    assert code == 2 and 'hints' in err and not (tmp_path/'x').exists()
    code, _, err = run_cli(*common, '--out', tmp_path/'x', '--by', 'flow', '--gamma-cell', 1)
    assert code == 2 and 'which flow does not use' in err and not (tmp_path/'x').exists()


# The benchmark

def test_alternatives_share_one_teacher_and_the_steps_of_all():
    entries = with_teachers(PRESETS['alternatives'])
    assert entries == PRESETS['alternatives'] and {e.training for e in entries} == {*TRAININGS}
    budget = sr_budget('quick')
    for e in (COPIED, STUDENT, *ALTERNATIVES):
        assert e.teacher == RECURSIVE
        assert steps_of(e, budget)['with_teacher'] == steps_of(DOUBLE, budget)['own']
    assert {TAUGHT[k] for k in TAUGHT} == {*get_args(By)}


@pytest.mark.parametrize('training', IMITATING)
def test_alternatives_are_known_by_name(training):
    entry, = entries_of(2, models=f'mrcnet:{training}')
    assert entry in ALTERNATIVES and entry.key == f'mrcnet-{training}'
    assert entries_of(4, models=entry.key) == (entry,)
    with pytest.raises(ModelError, match='Only mrcnet can be distilled'):
        entries_of(2, models=f'carn:{training}')


def test_benchmark_of_alternatives_compares_with_the_fair_rivals(fill, tmp_path, succeeds, monkeypatch):
    from srdiag.bench import benchmark
    from srdiag.bench.benchmark import benchmark_sr
    from srdiag.training.options import RunOptions
    monkeypatch.setattr(benchmark, 'ensure_speed', lambda *_: None)
    small = (('channels', 4), ('blocks', 1), ('stages', 1))
    entries = [Entry(e.label, e.network, e.training, () if e.training == 'none' else small)
               for e in PRESETS['alternatives'] if e.label not in ('Flow matrices', 'Output matching')]
    fill(tmp_path/'tissue', 40)
    budget = sr_budget('smoke', patch=32)
    page = benchmark_sr(tmp_path/'tissue', tmp_path/'bench', 2, entries, budget,
                        RunOptions(device='cpu', precision='fp32'))
    gains = pd.read_csv(tmp_path/'bench'/'gains.csv').groupby('against').label.apply(set)
    students = {'MRC-Net', 'Hints', 'Hints, regressor', 'Attention transfer', 'Similarity preserving'}
    assert gains['Scratch, double'] == students | {'Copied weights'} and gains['Copied weights'] == students
    assert gains['MRC-Net'] == students - {'MRC-Net'} and not gains['Scratch'] & (students - {'MRC-Net'})
    text = page.read_text()
    for words in ('All students of a seed have one teacher', 'as large as the MAE', 'students.png', '2 (4)'):
        assert words in text
    runs = [p.parent.name for p in (tmp_path/'bench'/'runs').glob('*/seed0')]
    assert sum('recursive' in name for name in runs) == 1


def test_limits_speak_of_alternatives_where_they_are():
    assert 'one teacher' in sr_limits([DOUBLE, *ALTERNATIVES]) and 'one teacher' not in sr_limits([STUDENT])
    assert 'has also used its teacher' in sr_limits([COPIED])
