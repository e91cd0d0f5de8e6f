"""The labels experiment: nested subsets, equal steps, runs that are resumed and refused, and a report that
says what the dice say."""
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from srdiag.bench import labels_runs
from srdiag.bench.interactions import report_interactions
from srdiag.bench.labels import run_labels
from srdiag.bench.labels_answers import (
    LabelsAnswers, Tally, accuracy_table, gap_shares, lead_table, labels_needed, needed, steps_needed,
    together)
from srdiag.bench.labels_images import StrongAugment
from srdiag.bench.labels_loop import endless_batches, power_average, train_steps
from srdiag.bench.labels_pretraining import sharp_pairs
from srdiag.bench.labels_report import amount, labels_sentence, report_labels, steps_sentence, still_rising
from srdiag.bench.labels_rows import LABEL_ROWS, MAIN_ROWS, chosen_labels_rows
from srdiag.bench.labels_runs import LabelsJob
from srdiag.bench.labels_settings import (
    ALL, LabelsBudget, LabelsDesign, LabelsShare, LabelsSources, numbers_in)
from srdiag.bench.labels_store import LabelsStore, check_labels_store, open_labels_store
from srdiag.bench.labels_subsets import nested_order, subset_of
from srdiag.bench.labels_toy import chance, made_up
from srdiag.commands.cli import parse
from srdiag.commands.labels import Labels
from srdiag.core.errors import DataError, ModelError, TrainingError
from srdiag.core.records import session_now
from srdiag.data.images import read_image, save_png
from srdiag.datasets.reading import read_labelled
from srdiag.training.options import Degradation, RunOptions

CPU = RunOptions(device='cpu', precision='fp32')
TINY = LabelsBudget(labels=(4, 8), steps=(3, 9), folds=2, seeds=1, batch_size=4)
HALF = LabelsDesign(scale=2, width=2, pretraining_steps=2)


def run(data, out, only='LR,ILR,HR', sr=None, budget=TINY, design=HALF, unlabelled=None, linear=None,
        **share):
    sources = LabelsSources(sr=sr, unlabelled=unlabelled, linear=linear)
    return run_labels(data/'labels.csv', out, chosen_labels_rows(only), sources, budget, design, CPU,
                      LabelsShare(**share))


# --- the axes -----------------------------------------------------------------------------------------------

def test_axes_are_read_from_text():
    assert numbers_in(' 24,48, all', 'labels', all=ALL) == (24, 48, 0)
    for text, said in (('24,0', "'0' is not a number of labels"), ('some', "'some' is not"),
                       ('', 'No number'), ('24,24', 'twice')):
        with pytest.raises(DataError, match=said): numbers_in(text, 'labels', all=ALL)


@pytest.mark.parametrize('wrong', [dict(steps=(300, 100)), dict(steps=(2,)), dict(steps=()), dict(labels=()),
                                   dict(labels=(-1,)), dict(batch_size=1), dict(folds=1), dict(rate=0)])
def test_budgets_that_make_no_training(wrong):
    with pytest.raises(DataError): LabelsBudget(**wrong)


def test_command_line():
    c = parse('experiment labels --data d --out o --labels-n 24,all --steps 30,90 --only SR,ILR '
              '--only-fold 1 --only-seed 0 --folds 3 --seeds 2 --width 8'.split())
    assert isinstance(c, Labels)
    assert c.budget.decided() == LabelsBudget((24, 0), (30, 90), 3, 2) and c.design.width == 8
    assert c.share == LabelsShare('SR,ILR', 1, 0)
    with pytest.raises(DataError, match='many'): parse('experiment labels --out o --labels-n many'.split())
    assert type(parse('experiment table5 --out o'.split())).__name__ == 'Experiment'


# --- subsets ------------------------------------------------------------------------------------------------

def test_subsets_are_nested_balanced_and_spread():
    rng = np.random.default_rng(0)
    groups, labels = rng.choice(list('ABCDEFGHIJ'), 300), (rng.random(300) < 0.3).astype(int)
    order = nested_order(labels, groups, (3, 1))
    assert sorted(order) == list(range(300))
    sets = [set(subset_of(order, n, labels)) for n in (20, 48, 120, ALL)]
    assert all(a < b for a, b in zip(sets, sets[1:]))
    assert [labels[order[:n]].sum() for n in (20, 48)] == [10, 24]
    assert all(len(set(groups[[i for i in order[:20] if labels[i] == k]])) == 10 for k in (0, 1))
    assert (nested_order(labels, groups, (3, 1)) == order).all()
    assert (nested_order(labels, groups, (3, 2)) != order).any()


def test_subsets_that_cannot_be():
    labels = np.array([0, 0, 1, 1, 2, 2])
    order = nested_order(labels)
    with pytest.raises(DataError, match='6 labelled images, fewer than the 7'): subset_of(order, 7, labels)
    with pytest.raises(DataError, match='leaves 1 of 3 classes'): subset_of(order, 2, labels)


# --- the loop -----------------------------------------------------------------------------------------------

def test_average_is_that_of_the_formula():
    gamma, weights = 7., torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()
    update, mean, by_hand = power_average(gamma), torch.tensor([weights[0]]), weights[0]
    for t, w in enumerate(weights[1:], 2):
        update([mean], [torch.tensor([w])], torch.tensor(t - 1))
        beta = (1 - 1/t)**(gamma + 1)
        by_hand = beta*by_hand + (1 - beta)*w
    assert mean.item() == pytest.approx(by_hand, abs=1e-5)


def test_every_image_comes_equally_often():
    batches = endless_batches(7, 4, 1)
    drawn = torch.cat([next(batches) for _ in range(7)])
    assert drawn.bincount().tolist() == [4]*7


# --- runs ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def finished(labelled, sr_model, tmp_path_factory):
    "The five rows on one fold; tests may read it"
    return run(labelled, tmp_path_factory.mktemp('labels')/'out', ','.join(MAIN_ROWS), sr_model, only_fold=0)


def test_runs_keep_every_prediction(finished):
    store = LabelsStore(finished)
    assert {a.key for a in store.arms()} == {f'{r}-{n}' for r in MAIN_ROWS for n in (4, 8)}
    for arm in store.arms():
        m, p = store.metrics(arm, 0, 0), store.predictions(arm, 0, 0)
        assert m['subset']['images'] == arm.labels and set(m['accuracy']) == {'3', '9'}
        said = p[[c for c in p if c.startswith('9_')]].to_numpy().argmax(1)
        classes = store.head()['about']['classes']
        assert (np.array(classes)[said] == p.true).mean() == pytest.approx(m['accuracy']['9'], abs=1.5/len(p))


def test_what_is_complete_is_skipped_and_changes_are_refused(finished, labelled, sr_model, tmp_path, capsys):
    out = tmp_path/'again'
    shutil.copytree(finished, out)
    shutil.rmtree(out/'runs'/'LR+SR-8')
    run(labelled, out, ','.join(MAIN_ROWS), sr_model, only_fold=0)
    assert '1 run done now' in capsys.readouterr().out
    for changed in (dict(budget=LabelsBudget((8,), (3, 9, 27), 2, 1, 4)), dict(design=LabelsDesign(2, 4))):
        with pytest.raises(DataError, match='another configuration'): run(labelled, out, **changed)


def test_a_joined_row_spends_its_steps_in_thirds(labelled, sr_model, tmp_path, monkeypatch):
    asked = []

    def spying(model, part, loss, at, *args, **kw):
        asked.append((model.two, max(at), sorted(at)))
        return train_steps(model, part, loss, at, *args, **kw)
    monkeypatch.setattr(labels_runs, 'train_steps', spying)
    run(labelled, tmp_path/'out', 'LR+SR', sr_model, LabelsBudget((8,), (3, 9), 2, 1, 4), only_fold=0)
    single, joined = [a for a in asked if not a[0]], [a for a in asked if a[0]]
    assert [a[2] for a in single] == [[1, 3, 9]]*2 # LR and SR were trained, because they were not there
    assert [a[1] for a in joined] == [1, 3] # a third of 3 and of 9
    store = LabelsStore(tmp_path/'out')
    spent = {a.row.name: store.metrics(a, 0, 0)['seconds'] for a in store.arms()}
    assert spent['LR+SR']['9'] > spent['LR']['3'] + spent['SR']['3']


def test_joined_row_begins_with_what_the_single_ones_know(labelled, sr_model, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(labels_runs, 'join', lambda model, lr, sr, images, valid: seen.append((lr, sr)))
    out = run(labelled, tmp_path/'out', 'LR+SR', sr_model, LabelsBudget((8,), (9,), 2, 1, 4), only_fold=0)
    (lr, sr), = seen
    from safetensors.torch import load_file
    for model, name in ((lr, 'LR-8'), (sr, 'SR-8')):
        kept = load_file(out/'runs'/name/'seed0'/'fold0'/'weights.safetensors')
        for k, v in model.network.state_dict().items(): assert torch.equal(v, kept[f'3/{k}'])


@pytest.mark.nightly
def test_all_other_rows_run(labelled, sr_model, tmp_path):
    sharp = tmp_path/'sharp'
    sharp.mkdir()
    for k, p in enumerate(sorted(labelled.rglob('*.png'))[:6]): save_png(read_image(p), sharp/f'{k}.png')
    others = [r for r in LABEL_ROWS if r not in MAIN_ROWS]
    out = run(labelled, tmp_path/'out', ','.join(others), sr_model, LabelsBudget((8,), (3, 9), 2, 1, 4),
              unlabelled=sharp, linear='resnet18=random', only_fold=0)
    assert {a.row.name for a in LabelsStore(out).arms()} >= set(others)
    assert (out/'pretrained'/'seed0'/'painting.json').is_file()


# --- bad input ----------------------------------------------------------------------------------------------

def test_bad_requests_are_sentences(labelled, tmp_path, sr_model):
    out = tmp_path/'out'
    with pytest.raises(ModelError, match='give its folder with --sr'): run(labelled, out, 'SR')
    with pytest.raises(DataError, match='--unlabelled'): run(labelled, out, 'ILR-pretrained')
    with pytest.raises(DataError, match='not a row of this experiment'): run(labelled, out, 'SRR')
    with pytest.raises(DataError, match='There is no fold 2'): run(labelled, out, only_fold=2)
    with pytest.raises(DataError, match='There is no seed 1'): run(labelled, out, only_seed=1)
    with pytest.raises(DataError, match='fewer than the 5000'):
        run(labelled, out, budget=LabelsBudget((5000,), (3, 9), 2, 1, 4))
    with pytest.raises(DataError, match='classes without an image'):
        run(labelled, out, budget=LabelsBudget((1,), (3, 9), 2, 1, 4))
    assert not out.exists()
    with pytest.raises(DataError, match='needs labelled images'): Labels(out).run()


def test_one_patient_is_a_sentence(labelled, tmp_path):
    table = pd.read_csv(labelled/'labels.csv').assign(group='A')
    table.to_csv(labelled/'one.csv', index=False)
    try:
        with pytest.raises(DataError, match='1 group for 2 folds|one patient'):
            run_labels(labelled/'one.csv', tmp_path/'out', chosen_labels_rows('LR'), LabelsSources(), TINY,
                       HALF, CPU)
    finally: (labelled/'one.csv').unlink()


def test_another_network_is_refused(finished, labelled, sr_model, tmp_path):
    out = tmp_path/'out'
    shutil.copytree(finished, out)
    (out/'network.json').write_text(json.dumps(dict(hash='other')))
    with pytest.raises(ModelError, match='another super-resolution network'):
        run(labelled, out, 'SR', sr_model)


def test_weights_that_are_gone(finished, labelled, sr_model, tmp_path):
    out = tmp_path/'out'
    shutil.copytree(finished, out)
    shutil.rmtree(out/'runs'/'LR+SR-8')
    (out/'runs'/'LR-8'/'seed0'/'fold0'/'weights.safetensors').unlink()
    with pytest.raises(DataError, match='weights.safetensors is missing'):
        run(labelled, out, 'LR+SR', sr_model, only_fold=0)


def test_a_folder_of_something_else_is_left_alone(labelled, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('mine')
    with pytest.raises(DataError, match='holds no labels experiment'): run(labelled, tmp_path/'mine')


def test_damaged_predictions_are_a_sentence(finished, tmp_path):
    out = tmp_path/'out'
    shutil.copytree(finished, out)
    path = out/'runs'/'LR-8'/'seed0'/'fold0'/'predictions.csv'
    text = path.read_text()
    for broken in ('', text.replace('9_', '8_', 1), text + text.splitlines()[1] + '\n'):
        path.write_text(broken)
        with pytest.raises(DataError, match='remove the folder'): report_labels(LabelsStore(out))


def test_losses_that_are_not_finite_end_a_run_not_the_others(labelled, tmp_path, monkeypatch, capsys):
    def failing(model, *args, **kw):
        if len(kinds) == 1: raise TrainingError('The loss is nan after 1 steps.')
        kinds.pop()
        return train_steps(model, *args, **kw)
    kinds = [1, 2]
    monkeypatch.setattr(labels_runs, 'train_steps', failing)
    out = run(labelled, tmp_path/'out', 'LR,ILR', budget=LabelsBudget((8,), (3, 9), 2, 1, 4), only_fold=0)
    assert [a.row.name for a in LabelsStore(out).arms()] == ['LR']
    assert 'failed and is not recorded' in capsys.readouterr().out


# --- what the dice say --------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def toy(tmp_path_factory): return made_up(tmp_path_factory.mktemp('toy')/'dice')


def test_needed_by_hand():
    at, curve = (10, 100, 1000), (0.5, 0.6, 0.7)
    assert needed(at, curve, 0.6) == pytest.approx(100)
    assert needed(at, curve, 0.65) == pytest.approx(316.23, abs=0.01)
    assert needed(at, curve, 0.4) == 10 and needed(at, curve, 0.71) == math.inf == needed(at, curve, math.nan)
    # first reached; a later fall does not undo it
    assert needed(at, (0.5, 0.7, 0.6), 0.65) == pytest.approx(10*10**0.75)


def test_amounts_within_what_was_tried():
    assert [amount(x, 24, 3362) for x in (24, 160.4, math.inf)] == ['at most 24', '160', 'more than 3362']


def test_the_report_says_what_the_dice_say(toy):
    answers = LabelsAnswers(toy)
    gains = lead_table(answers, [('SR', 'ILR')])
    assert np.allclose(gains.gain, 0.04, atol=0.02)
    assert ((gains.low < gains.gain) & (gains.gain < gains.high)).all()
    covered = (gains.low <= 0.04) & (gains.high >= 0.04)
    assert covered.mean() >= 7/9
    accuracy = accuracy_table(answers).set_index(['row', 'labels', 'steps'])
    for name, worth in (('ILR', 1), ('SR', 4)):
        assert accuracy.accuracy[name, '96', 300] == pytest.approx(chance(worth, 96, 300), abs=0.015)
    n = labels_needed(answers, 'SR', 'ILR', 900).set_index('labels')
    assert n.low['24'] < 96 < n.high['24'] and n.low['96'] < 384 and n.high['384'] == math.inf
    s = steps_needed(answers, 'SR', 'ILR', 96).set_index('steps')
    assert s.low[100] < 300 < s.high[100] and s.high[900] == math.inf
    closed = gap_shares(answers, ['SR'])
    assert closed.clear.all() and closed.closed.mean() == pytest.approx(0.5, abs=0.1)


def test_sentences(toy):
    answers = LabelsAnswers(toy, 200)
    first = next(labels_needed(answers, 'SR', 'ILR', 900).itertuples())
    said = labels_sentence(first)
    assert said.startswith('With 24 labels and 900 steps, SR is right in 7')
    assert 'times as many (95 %: ' in said
    last = list(steps_needed(answers, 'SR', 'ILR', 96).itertuples())[-1]
    assert 'ILR needs more than 900 steps for that (95 %' in steps_sentence(last)


def test_differences_are_of_the_same_images():
    one = Tally(np.ones((1, 2, 3)), np.full((2, 3), 2))
    two = Tally(np.ones((1, 2, 3)), np.array([[2, 2, 0], [0, 2, 2]]))
    a, b = together([one, two])
    assert a.images.tolist() == b.images.tolist() == [[2, 2, 0], [0, 2, 2]]


def test_report_of_what_is_there(toy, finished, tmp_path):
    for k, source in enumerate((toy.folder, finished)):
        out = tmp_path/str(k)
        shutil.copytree(source, out)
        text = report_labels(LabelsStore(out)).read_text(encoding='utf-8')
        assert 'ILR needs' in text and (out/'report.html').is_file() and '](map.png)' in text
        assert {'accuracy.csv', 'gains.csv', 'labels_needed.csv', 'steps_needed.csv', 'closed.csv',
                'labels.png', 'steps.png', 'controls.png'} <= {p.name for p in out.iterdir()}


def test_half_of_the_runs_is_enough_for_a_report(toy, tmp_path):
    out = tmp_path/'half'
    shutil.copytree(toy.folder, out)
    shutil.rmtree(out/'runs'/'SR-96')
    shutil.rmtree(out/'runs'/'ILR-24'/'seed1')
    text = report_labels(LabelsStore(out)).read_text(encoding='utf-8')
    assert '2 runs: ILR-24 (seed 1, fold 0), ILR-24 (seed 1, fold 1)' in text


@pytest.mark.parametrize('labels, steps, gone, said', [
    ((24, 96), (100,), (), ['labels']), ((24,), (100, 300), (), ['steps']), ((24,), (100,), (), []),
    ((24, 96, 384), (100, 300), ('SR-24', 'SR-96', 'ILR-384'), [])])
def test_an_axis_with_one_number_has_no_sentence(labels, steps, gone, said, tmp_path):
    toy = made_up(tmp_path/'dice', labels, steps, seeds=2, n=60)
    for name in gone: shutil.rmtree(toy.folder/'runs'/name)
    text = report_labels(toy).read_text(encoding='utf-8').split('## ')[0]
    assert [w for w in ('labels', 'steps') if re.search(rf'ILR needs [^.]* {w} for that', text)] == said


# --- what decides the numbers is in the folder --------------------------------------------------------------

def _sharp(labelled, folder, n=6, invert=False): # n of the labelled images, without their labels
    folder.mkdir()
    for k, p in enumerate(sorted(labelled.rglob('*.png'))[:n]):
        x = read_image(p)
        save_png(255 - x if invert else x, folder/f'{k}.png')
    return folder


def _job(labelled, options=CPU, **sources):
    found = read_labelled(labelled/'labels.csv', None, options, 1)
    return LabelsJob(found, HALF, TINY, LabelsSources(**sources), options)


def test_how_images_are_read_is_compared_where_it_was_recorded(labelled, tmp_path):
    resized = replace(CPU, size=8, resize=True)
    old, new = (_job(labelled, o).fixed() for o in (replace(CPU, size=8), resized))
    assert old != new and old['data hash'] == new['data hash']
    store = LabelsStore(tmp_path/'out')
    open_labels_store(store, _job(labelled, resized), session_now())
    with pytest.raises(DataError, match='resize was True, now it is False'):
        check_labels_store(store, old, {})
    head = json.loads(store.file.read_text())
    for k in ('resize', 'bits'): del head['fixed'][k] # as they were begun before
    store.file.write_text(json.dumps(head))
    for fixed in (old, new): check_labels_store(store, fixed, {})


def test_other_unlabelled_images_are_refused(labelled, tmp_path):
    sharp, other = _sharp(labelled, tmp_path/'sharp'), _sharp(labelled, tmp_path/'other', invert=True)
    rows = chosen_labels_rows('ILR,ILR-pretrained')
    store, job = LabelsStore(tmp_path/'out'), _job(labelled, unlabelled=sharp)
    open_labels_store(store, job, session_now(), rows[:1])
    assert not (store.folder/'unlabelled.json').exists() # not used yet
    for _ in range(2): open_labels_store(store, job, session_now(), rows)
    with pytest.raises(DataError, match='other unlabelled images: give --unlabelled the old ones'):
        open_labels_store(store, _job(labelled, unlabelled=other), session_now(), rows)
    open_labels_store(store, _job(labelled, unlabelled=other), session_now(), rows[:1]) # does not read them


def test_another_foreign_network_is_refused(labelled, tmp_path):
    store, rows = LabelsStore(tmp_path/'out'), chosen_labels_rows('SR-foreign')
    open_labels_store(store, _job(labelled), session_now(), rows)
    with pytest.raises(ModelError, match='another network for SR-foreign: give --foreign the old one'):
        open_labels_store(store, _job(labelled, foreign='endoscopy_x4'), session_now(), rows)
    open_labels_store(store, _job(labelled, foreign='endoscopy_x4'), session_now())


def test_unlabelled_images_are_read_as_the_labelled_ones(labelled, tmp_path):
    sharp, like = _sharp(labelled, tmp_path/'sharp'), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    cut = replace(CPU, size=8)
    plain = sharp_pairs(sharp, 2, like, cut)
    whole = sharp_pairs(sharp, 2, like, replace(cut, resize=True))
    assert not torch.equal(plain.hr, whole.hr) and plain.hr.shape == whole.hr.shape
    assert torch.equal(whole.hr, sharp_pairs(sharp, 2, like, replace(CPU, resize=True)).hr) # to their size
    real = sharp_pairs(sharp, 2, like, replace(cut, reduction=Degradation('realistic', blur=(2., 2.))))
    assert torch.equal(plain.hr, real.hr) and not torch.equal(plain.lr, real.lr)


def test_the_pretrained_branch_is_the_same_whichever_fold_comes_first(labelled, tmp_path):
    sharp, made = _sharp(labelled, tmp_path/'sharp'), []
    budget = LabelsBudget((8,), (3,), 2, 1, 4)
    for fold in (0, 1):
        out = run(labelled, tmp_path/str(fold), 'ILR-pretrained', budget=budget, unlabelled=sharp,
                  only_fold=fold)
        made.append((out/'pretrained'/'seed0'/'branch.safetensors').read_bytes())
    assert made[0] == made[1]
    again = run(labelled, tmp_path/'0', 'ILR-pretrained', budget=budget, unlabelled=sharp)
    there = run(labelled, tmp_path/'1', 'ILR-pretrained', budget=budget, unlabelled=sharp)
    for fold in (0, 1): # and so is what follows, whether the branch was there or not
        one, two = (out/'runs'/'ILR-pretrained-8'/'seed0'/f'fold{fold}'/'predictions.csv'
                    for out in (again, there))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize('steps', [(100,), (300, 600)])
def test_what_is_flat_is_said_where_it_is_known(steps, tmp_path):
    toy = made_up(tmp_path/'dice', (24,), steps, seeds=1, n=300)
    table = accuracy_table(LabelsAnswers(toy))
    assert (table.flat.isna() == (table.steps == steps[0])).all()
    text, page = (report_labels(toy).with_name(n).read_text(encoding='utf-8')
                  for n in ('README.md', 'report.html'))
    assert 'tripled' not in text + page
    if len(steps) == 1:
        assert not [w for w in (') *', 'rising', 'Not flat') if w in text]
        assert 'that takes two numbers of steps' in text
    else:
        assert 'less than half a point from 300 to 600 steps' in text and 'still rising.\n\n' in text


def test_stars_stand_where_the_watched_part_was_rising(tmp_path):
    toy = made_up(tmp_path/'dice', (24,), (100, 900), seeds=1, n=300)
    for arm in toy.arms(): # the watched part of ILR alone gains a point
        for run in toy.complete(arm):
            m = toy.metrics(arm, *run)
            m['watched'] = {'100': 0.7, '900': 0.71 if arm.row.name == 'ILR' else 0.7}
            (toy.path(arm, *run)/'metrics.json').write_text(json.dumps(m))
    text = report_labels(toy).read_text(encoding='utf-8')
    assert 'Not flat at the end: ILR with 24.' in text and text.count(') * |') == 1
    table = accuracy_table(LabelsAnswers(toy))
    assert still_rising(table[table.row != 'ILR']) == 'All trainings are flat at the end.'


def test_the_watched_images_open_the_gate_of_one_row(labelled, sr_model, tmp_path, monkeypatch):
    asked, real = [], labels_runs.join

    def spying(model, lr, sr, images, valid=None):
        real(model, lr, sr, images, valid)
        asked.append((valid, model.network.ensemble.gate[-1].bias.detach().tanh().tolist()))
    monkeypatch.setattr(labels_runs, 'join', spying)
    monkeypatch.setattr('srdiag.diagnosis.joining.share_of_sr', lambda *answers: 0.8)
    budget = LabelsBudget((8,), (9,), 2, 1, 4)
    out = run(labelled, tmp_path/'out', 'LR+SR,LR+SR-watched', sr_model, budget, only_fold=0)
    (plain, half), (watched, open_) = asked
    assert plain is None and half == pytest.approx([0.5, 0.5, 0.05], abs=1e-5)
    assert open_ == pytest.approx([0.8, 0.2, 0.05], abs=1e-5)
    fold = json.loads((out/'setup'/'config.json').read_text())['about']['parts'][0]
    assert len(watched) == fold['valid'] and watched.augment is None
    one, two = ((out/'runs'/f'{r}-8'/'seed0'/'fold0'/'predictions.csv').read_bytes()
                for r in ('LR+SR', 'LR+SR-watched'))
    assert one != two and 'gate of LR+SR-watched' in (out/'README.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('only, sources, wrong, said', [
    ('LR,ILR-pretrained', dict(unlabelled='none'), DataError, 'none does not exist'),
    ('LR,ILR-pretrained', dict(unlabelled='sharp'), DataError, 'give --unlabelled images of the same kind'),
    ('LR,SR-foreign', dict(foreign='endoscopy_x4'), ModelError, 'cannot reach 2'),
    ('LR,SR-foreign', dict(foreign='none'), ModelError, 'none')])
def test_what_is_read_beside_the_images_is_checked_first(only, sources, wrong, said, labelled, tmp_path):
    (tmp_path/'sharp').mkdir()
    save_png(torch.zeros(3, 12, 12, dtype=torch.uint8), tmp_path/'sharp'/'0.png')
    sources = LabelsSources(**{k: str(tmp_path/v) if k == 'unlabelled' else v for k, v in sources.items()})
    with pytest.raises(wrong, match=said):
        run_labels(labelled/'labels.csv', tmp_path/'out', chosen_labels_rows(only), sources, TINY, HALF, CPU)
    assert not (tmp_path/'out').exists()


def test_strong_augmentation_keeps_shapes():
    theta = torch.tensor([[[math.cos(1.), -math.sin(1.), 0], [math.sin(1.), math.cos(1.), 0]]])
    for h, w in ((48, 48), (48, 96), (64, 40)):
        y, x = torch.meshgrid(torch.arange(h) - (h - 1)/2, torch.arange(w) - (w - 1)/2, indexing='ij')
        disc = torch.sigmoid(12 - y.hypot(x))[None, None] # soft, so that its edge hides nothing
        middle = y.hypot(x) < min(h, w)/2 - 1 # further out lies what is mirrored
        assert (StrongAugment.moved(disc, theta) - disc).abs()[0, 0, middle].max() < 0.05
    square = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    grid = torch.nn.functional.affine_grid(theta, square.shape, align_corners=False)
    before = torch.nn.functional.grid_sample(square, grid, padding_mode='reflection', align_corners=False)
    assert torch.equal(StrongAugment.moved(square, theta), before)


@pytest.mark.parametrize('change', [dict(new=1), dict(interaction='none such'), dict(images='MR')])
def test_a_row_of_another_version_is_a_sentence(change, tmp_path):
    toy = made_up(tmp_path/'dice', (24,), (100, 300), seeds=1, n=60)
    path = next(toy.folder.glob('runs/SR-24/*/*/metrics.json'))
    m = json.loads(path.read_text())
    path.write_text(json.dumps(m | dict(row=m['row'] | change)))
    with pytest.raises(DataError, match=re.escape(f'{path} is not what srdiag wrote')): report_labels(toy)
    with pytest.raises(DataError, match='update srdiag'): report_interactions(toy)
    path.write_text(json.dumps(m | dict(row={k: v for k, v in m['row'].items() if k in ('name', 'images')})))
    assert len(toy.arms()) == 4 # an older version knew less, and what is missing has its default
