"""The paper's experiments: runs that tables share, resumed, refused when anything changes; and tables that
say no more than the runs do."""
import json
import math
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from srdiag.bench import costs, diagnosis_runs, diagnosis_training
from srdiag.bench.answers import Answers, confusion_of
from srdiag.bench.diagnosis_report import diagnosis_limits, report_diagnosis, tables_of
from srdiag.bench.diagnosis_store import DiagnosisStore
from srdiag.bench.experiment import run_experiment
from srdiag.bench.folds import make_folds
from srdiag.bench.networks import networks_of
from srdiag.bench.published import NUMERALS, published_confusion, published_diagnosis
from srdiag.bench.rows import OURS, TABLES, Row, pairs_of, rows_of
from srdiag.bench.settings import DIAGNOSIS_BUDGETS, Design, ExperimentShare, Sources, diagnosis_budget
from srdiag.core.errors import DataError, ModelError
from srdiag.core.together import KEY, SAVED, _mark
from srdiag.evaluation.gains import gap_closed, group_means, mean_interval, paired_gain, verdict
from srdiag.training.options import RunOptions

CPU = RunOptions(device='cpu', precision='fp32')
TINY = diagnosis_budget('smoke')
HALF = Design(scale=2, references=4, width=16)
FOUR = 'LR-x2,ILR-x2,HR-x2,LR+SR-sai-x2'


def run(data, out, sr, name='table5', budget=TINY, design=HALF, **kw):
    return run_experiment(name, data/'labels.csv', out, Sources(sr=[sr]), budget, design, CPU,
                          ExperimentShare(**kw))


@pytest.fixture(scope='module')
def finished(labelled, sr_model, tmp_path_factory):
    "Four rows of Table V on two folds; tests may read it"
    out = tmp_path_factory.mktemp('experiment')/'bench'
    run(labelled, out, sr_model, only=FOUR)
    return out


@pytest.fixture
def quick(monkeypatch):
    "Training and prediction replaced by coin tosses: these tests are about what happens around them"
    from srdiag.diagnosis.inference import Predictions, modes_of
    rng = np.random.default_rng(0)

    def predict_all_ways(model, part, classes, batch_size):
        ways = {mode: rng.dirichlet(np.ones(len(classes)), len(part)) for mode in modes_of(model)}
        return {mode: Predictions(classes, {'ens': p}, None, np.zeros(len(part), bool))
                for mode, p in ways.items()}

    def train_diagnosis(model, *args, save=None, **kw): save(model, 0.5, 0)
    for name in ('train_diagnosis', 'train_joined'):
        monkeypatch.setattr(diagnosis_training, name, train_diagnosis)
    monkeypatch.setattr(diagnosis_training, '_branches', lambda job, *_: ({}, 0., 1))
    monkeypatch.setattr(diagnosis_runs, 'predict_all_ways', predict_all_ways)
    monkeypatch.setattr(diagnosis_runs, 'save_model', lambda *_: None)
    monkeypatch.setattr(costs, 'peak_memory', lambda *_: 10**6)


# Rows and tables

def test_keys_tell_rows_apart_and_labels_do_not():
    rows = [r for rs in TABLES.values() for r in rs]
    by_key = {}
    for r in rows: assert replace(by_key.setdefault(r.key, r), label='') == replace(r, label=''), r.key
    assert sum(r.peer is None for r in by_key.values()) == 17


@pytest.mark.parametrize('name', ['table5', 'table6', 'table7', 'table8', 'table9', 'fig7'])
def test_our_row_is_shared_by_all_tables(name): assert OURS.key in [r.key for r in TABLES[name]]


@pytest.mark.parametrize('wrong', [dict(inputs='HR', sai=True), dict(inputs='LR+HR', fixed=True),
                                   dict(inputs='LR+SR', sar=False), dict(inputs='LR+SR', start='nowhere')])
def test_rows_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError): Row('wrong', **wrong)


def test_rows_without_high_resolution_files():
    keys = [r.inputs for r in rows_of('table5', Design('lr'), ())]
    assert 'LR+SR' in keys and not [k for k in keys if k.endswith('HR')]


def test_all_has_each_row_once_and_only_the_scales_that_have_a_network():
    rows = rows_of('all', Design(), [('mrcnet', 4), ('carn', 4)])
    assert (len({r.key for r in rows}) == len(rows) and {r.scale for r in rows} == {4}
            and 'carn' in {r.network for r in rows})
    assert {r.scale for r in rows_of('table10', Design(), [('mrcnet', 4)])} == {2, 4}


def test_every_comparison_is_made_once():
    for rows in TABLES.values():
        pairs = pairs_of(rows)
        assert (len({frozenset((a.key, b.key)) for a, b in pairs}) == len(pairs)
                and all(a != b for a, b in pairs))
    against = {b.label for a, b in pairs_of(TABLES['table5']) if a == OURS}
    assert against == {r.label for r in TABLES['table5']} - {OURS.label}


@pytest.mark.parametrize('change', [dict(folds=1), dict(epochs=0), dict(recipe='slow'), dict(batch_size=1)])
def test_budgets_that_cannot_be(change):
    with pytest.raises(DataError): diagnosis_budget('quick', **change)


def test_a_misspelt_field_is_refused():
    with pytest.raises(DataError, match='epoch'): diagnosis_budget('quick', epoch=3)
    assert DIAGNOSIS_BUDGETS['paper'].recipe == 'published' and DIAGNOSIS_BUDGETS['paper'].folds == 4


# Folds

@pytest.mark.parametrize('seed', range(5))
def test_folds_share_no_group_and_test_each_image_once(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(30, size=400).astype(str)
    labels = np.where(rng.random(400) < 0.4, 'ill', 'healthy')
    folds = make_folds(labels, groups, 4, seed=seed)
    assert sorted(np.concatenate([f['test'] for f in folds])) == list(range(400))
    for parts in folds:
        seen = [set(groups[idx]) for idx in parts.values()]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
        assert (sum(map(len, parts.values())) == 400
                and all(set(labels[idx]) == {'ill', 'healthy'} for idx in parts.values()))


def test_fewer_groups_than_folds():
    with pytest.raises(DataError, match='3 groups for 4 folds'):
        make_folds(['a', 'b']*6, np.repeat(['p', 'q', 'r'], 4), 4)


def test_a_class_of_one_group_cannot_be_cross_validated():
    with pytest.raises(DataError, match='rare'):
        make_folds(['rare']*4 + ['common']*36, np.repeat(np.arange(10), 4), 2)


# What an experiment leaves behind

def test_files(finished):
    assert ({'setup', 'networks', 'sessions', 'runs', 'results.csv', 'summary.csv', 'gains.csv', 'gaps.csv',
             'modes.csv', 'table5.md', 'table5.png', 'README.md', 'report.html'} <= {
                    p.name for p in finished.iterdir()})
    assert not [p for p in finished.rglob('.*')], 'temporary files are left'
    assert sorted(p.name for p in (finished/'runs').iterdir()) == sorted(FOUR.split(','))


def test_the_split_is_kept_as_a_table(finished, labelled):
    split = pd.read_csv(finished/'setup'/'split.csv')
    assert list(split.columns) == ['file', 'label', 'group', 'fold', 'fold0', 'fold1'] and len(split) == 24
    for k in (0, 1):
        assert ((split[f'fold{k}'] == 'test') == (split.fold == k)).all()
        assert split.groupby('group')[f'fold{k}'].nunique().max() == 1


def test_predictions_are_of_the_test_part_and_metrics_are_of_the_predictions(finished):
    store, row, split = (DiagnosisStore(finished), replace(OURS, scale=2),
                         pd.read_csv(finished/'setup'/'split.csv').set_index('file'))
    for seed, fold in store.complete(row):
        p, m = store.predictions(row, seed, fold), store.metrics(row, seed, fold)
        assert (sorted(p.file) == sorted(split.index[split.fold == fold])
                and (p.true == split.label[p.file].to_numpy()).all())
        said = p[['ens_healthy', 'ens_ill']].to_numpy().argmax(1)
        assert m['metrics']['accuracy'] == pytest.approx((said == (p.true == 'ill')).mean())
        assert m['mode'] == 'context' and set(m['modes']) == {'context', 'solo', 'batch'}
        assert np.allclose(p[['mode_context_healthy', 'mode_context_ill']], p[['ens_healthy', 'ens_ill']])


def test_networks_are_kept_for_the_pictures(finished):
    from srdiag.models.saving import load_model
    network, _ = load_model(finished/'runs'/'LR+SR-sai-x2'/'seed0'/'fold0'/'sr', 'sr', 2)
    assert network.scale == 2 and not (finished/'runs'/'LR+SR-sai-x2'/'seed0'/'fold1'/'sr').exists()


def test_summary_is_of_the_results(finished):
    results, summary = (pd.read_csv(finished/'results.csv'),
                        pd.read_csv(finished/'summary.csv').query('table == "table5"').set_index('key'))
    for key, found in results.groupby('key'):
        assert (summary.accuracy[key] == pytest.approx(found.accuracy.mean())
                and summary.accuracy_sd[key] == pytest.approx(found.accuracy.std()))
        assert (summary.pooled[key] == pytest.approx((found.accuracy*found.n).sum()/found.n.sum())
                and summary.low[key] <= summary.pooled[key] <= summary.high[key])


def test_gains_are_differences_of_the_pooled_accuracies(finished):
    gains, summary = (pd.read_csv(finished/'gains.csv'),
                      pd.read_csv(finished/'summary.csv').query('table == "table5"').set_index('key'))
    assert len(gains) == 6
    for g in gains.itertuples():
        assert (g.gain == pytest.approx(summary.pooled[g.key]-summary.pooled[g.against_key])
                and g.images == 24 and g.groups == 12)


def test_the_table_says_what_it_is_not(finished):
    text = (finished/'table5.md').read_text()
    assert ('cannot be set against ours' in text and '89.11' in text and 'Not complete yet' in text
            and 'nan' not in text.lower())
    assert ('Not for diagnostic use' in (finished/'README.md').read_text()
            and 'bootstrap' in (finished/'README.md').read_text())


# Going on

def test_a_second_start_trains_nothing(finished, labelled, sr_model, monkeypatch):
    for name in ('train_diagnosis', 'train_joined'):
        monkeypatch.setattr(diagnosis_training, name, lambda *_, **__: pytest.fail('trained again'))
    before = {p: p.stat().st_mtime_ns for p in finished.rglob('metrics.json')}
    run(labelled, finished, sr_model, only=FOUR)
    assert len(before) == 8 and before == {p: p.stat().st_mtime_ns for p in finished.rglob('metrics.json')}


def test_an_exception_costs_one_run(labelled, sr_model, tmp_path, quick, monkeypatch):
    real, calls = diagnosis_runs.predict_all_ways, []

    def fails(*args):
        calls.append(1)
        if len(calls) == 4: raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(diagnosis_runs, 'predict_all_ways', fails)
    with pytest.raises(KeyboardInterrupt): run(labelled, tmp_path/'x', sr_model, only='LR-x2,ILR-x2,HR-x2')
    assert len([*(tmp_path/'x').rglob('metrics.json')]) == 3 and not [*(tmp_path/'x').rglob('.fold*')]
    run(labelled, tmp_path/'x', sr_model, only='LR-x2,ILR-x2,HR-x2')
    assert len([*(tmp_path/'x').rglob('metrics.json')]) == 6


def test_tables_share_their_runs(labelled, sr_model, tmp_path, quick):
    for name in ('table6', 'table7', 'table8', 'table9'): run(labelled, tmp_path/'x', sr_model, name)
    assert len([*(tmp_path/'x'/'runs').iterdir()]) == 7 # ours, without SAI, three losses, two starts
    shown = tables_of(DiagnosisStore(tmp_path/'x'))
    assert shown.keys() == {'table5', 'table6', 'table7', 'table8', 'table9', 'fig7'}
    assert ('SAC yes, SAR no' in (tmp_path/'x'/'table8.md').read_text()
            and 'parameters' in (tmp_path/'x'/'table7.md').read_text())


def test_more_seeds_are_welcome(labelled, sr_model, tmp_path, quick):
    run(labelled, tmp_path/'x', sr_model, only='LR-x2,ILR-x2')
    run(labelled, tmp_path/'x', sr_model, only='LR-x2,ILR-x2', budget=replace(TINY, seeds=3))
    summary, gains = pd.read_csv(tmp_path/'x'/'summary.csv'), pd.read_csv(tmp_path/'x'/'gains.csv')
    assert ((summary.seeds == 3).all() and gains.seeds[0] == 3
            and gains.seed_low[0] < gains.gain[0] < gains.seed_high[0])


def test_answers_of_some_runs_in_another_mode(finished):
    store, ours = DiagnosisStore(finished), replace(OURS, scale=2)
    answers = Answers(store, [ours])
    own, solo = (answers.per_image(ours, mode, [(0, 0)]) for mode in (None, 'solo'))
    assert own.index.equals(solo.index) and len(solo) < len(answers.per_image(ours, 'solo'))
    pd.testing.assert_frame_equal(solo, answers.per_image(ours, 'solo').loc[solo.index])


def test_a_failed_training_ends_its_run_alone(labelled, sr_model, tmp_path, quick, monkeypatch, capsys):
    from srdiag.core.errors import TrainingError
    real = diagnosis_training.train_diagnosis

    def fails(model, *args, **kw):
        if model.config['inputs'] == 'ILR': raise TrainingError('The loss is not finite.')
        real(model, *args, **kw)

    monkeypatch.setattr(diagnosis_training, 'train_diagnosis', fails)
    run(labelled, tmp_path/'x', sr_model, only='LR-x2,ILR-x2,HR-x2')
    assert (DiagnosisStore(tmp_path/'x').complete(Row('ILR', 'ILR', scale=2)) == []
            and len([*(tmp_path/'x').rglob('metrics.json')]) == 4)
    assert 'not recorded' in capsys.readouterr().out


# Frameworks are made of branches

def test_every_row_has_the_same_steps_in_all(finished):
    store, steps = DiagnosisStore(finished), {}
    for row in rows_of('table5', HALF, [('mrcnet', 2)]):
        for seed, fold in store.complete(row):
            m, folder = store.metrics(row, seed, fold), store.path(row, seed, fold)
            logs = [folder/'logs'/k for k in ('lr', 'sr', 'joint')] if '+' in row.inputs else [folder]
            made = sum(len(pd.read_csv(p/'steps.csv')) for p in logs)
            assert m['steps'] == made and m['epochs'] == 3 and m['seconds'] > 0
            steps.setdefault(fold, set()).add(made)
    assert steps.keys() == {0, 1} and all(len(found) == 1 for found in steps.values())
    said = (finished/'table5.md').read_text()
    assert 'steps' in said and 'seconds' in said and '3 epochs' in said
    said = (finished/'README.md').read_text()
    assert 'trained alone for a third of the epochs' in said and 'the same branch share it' in said


def test_rows_share_their_branches(finished, labelled, sr_model, tmp_path, monkeypatch):
    "The row without SAI begins with the branches of the row with it; what was deleted is made again"
    copy, ours = tmp_path/'copy', replace(OURS, scale=2)
    shutil.copytree(finished, copy)
    made = sorted(p.parts[-4] for p in (copy/'branches').rglob('model.safetensors'))
    assert made == ['LR-x2-lr', 'LR-x2-lr', 'SR-x2-sr', 'SR-x2-sr']
    with monkeypatch.context() as m:
        m.setattr(diagnosis_training, '_train_branch', lambda *_: pytest.fail('trained a branch again'))
        run(labelled, copy, sr_model, only='LR+SR-x2')
    store = DiagnosisStore(copy)
    with_sai, without = ([(store.path(row, 0, 0)/'logs'/b/'steps.csv').read_bytes() for b in ('lr', 'sr')]
                         for row in (ours, replace(ours, sai=False)))
    assert with_sai == without
    shutil.rmtree(copy/'branches')
    shutil.rmtree(store.path(ours, 0, 0))
    run(labelled, copy, sr_model, only=ours.key)
    again, before = (DiagnosisStore(folder).predictions(ours, 0, 0) for folder in (copy, finished))
    pd.testing.assert_frame_equal(again, before)


def test_no_two_branches_are_the_same_training(labelled, sr_model, tmp_path):
    run(labelled, tmp_path/'x', sr_model, only='LR+LR-x2', budget=replace(TINY, seeds=2), only_fold=0)
    weights = [p.read_bytes() for p in (tmp_path/'x'/'branches').rglob('model.safetensors')]
    assert len(weights) == len({*weights}) == 4


def test_two_processes_do_not_train_one_branch_twice(tmp_path, monkeypatch, capsys):
    trained = []

    def train_branch(job, row, branch, run, epochs, place):
        trained.append(place)
        time.sleep(0.3)
        place.mkdir(parents=True)
        (place/'config.json').touch()

    info = SimpleNamespace(training=dict(seconds=1.))
    monkeypatch.setattr(diagnosis_training, '_train_branch', train_branch)
    monkeypatch.setattr(diagnosis_training, 'load_model', lambda *_: (torch.nn.Identity(), info))
    job = SimpleNamespace(device='cpu')
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(diagnosis_training.shared_branch, job, OURS, 'lr', (0, 0), 1, tmp_path)
                for _ in range(2)]
        assert both[0].result()[1:] == both[1].result()[1:]
    assert len(trained) == 1 and 'we wait' in capsys.readouterr().out


def test_logs_of_a_branch_are_found_where_a_kill_has_left_them(finished, labelled, sr_model, tmp_path):
    copy, ours = tmp_path/'copy', replace(OURS, scale=2)
    shutil.copytree(finished, copy)
    place = copy/'branches'/'LR-x2-lr'/'seed0'/'fold0'
    waiting = place/f'{SAVED}{_mark(place, KEY)}'
    waiting.mkdir()
    for p in [p for p in place.iterdir() if p.is_file() and p.name != KEY]: p.rename(waiting/p.name)
    shutil.rmtree(DiagnosisStore(copy).path(ours, 0, 0))
    run(labelled, copy, sr_model, only=ours.key)
    assert (DiagnosisStore(copy).path(ours, 0, 0)/'logs'/'lr'/'log.csv').is_file()


def test_a_folder_whose_rows_have_own_branches_takes_no_others(finished, labelled, sr_model, tmp_path):
    copy = tmp_path/'copy'
    shutil.copytree(finished, copy)
    head = json.loads((copy/'setup'/'config.json').read_text())
    assert head['fixed'].pop('branches') == 'shared'
    (copy/'setup'/'config.json').write_text(json.dumps(head))
    with pytest.raises(DataError, match='branches was own, now it is shared'):
        run(labelled, copy, sr_model, only=FOUR)


def test_few_labels(labelled, sr_model, tmp_path, quick, monkeypatch):
    "A training part is cut down: balanced, another draw for each seed. Tests stay whole; the report says so"
    seen, tested = {}, []

    def train_diagnosis(model, train, valid, recipe, epochs, seed=0, references=None, save=None, **kw):
        seen[seed] = train.labels.bincount().tolist(), train.lr.sum().item(), len(valid), recipe.steps
        save(model, 0.5, 0)

    def predict_all_ways(model, part, *rest):
        tested.append(len(part))
        return coins(model, part, *rest)
    coins = diagnosis_runs.predict_all_ways
    monkeypatch.setattr(diagnosis_training, 'train_diagnosis', train_diagnosis)
    monkeypatch.setattr(diagnosis_runs, 'predict_all_ways', predict_all_ways)
    run(labelled, tmp_path/'few', sr_model, budget=replace(TINY, seeds=2), only='LR-x2,ILR-x2',
        design=replace(HALF, labels_n=6, steps=5))
    (counts, first, valid, steps), (_, second, _, _) = seen[0], seen[1]
    assert counts == [3, 3] and valid <= 6 and steps == 5 and first != second
    split = pd.read_csv(tmp_path/'few'/'setup'/'split.csv')
    assert set(tested) == {(split[f'fold{k}'] == 'test').sum() for k in (0, 1)}
    said = (tmp_path/'few'/'README.md').read_text(encoding='utf-8')
    assert '6 labels in each training part' in said and 'epochs of 5 steps' in said


def test_more_labels_than_there_are(labelled, sr_model, tmp_path, quick):
    with pytest.raises(DataError, match='training part of fold 0 has .* fewer than the 5000'):
        run(labelled, tmp_path/'many', sr_model, only='LR-x2', design=replace(HALF, labels_n=5000))
    assert not (tmp_path/'many').exists(), 'a mistake has left a folder that refuses the right number'


def test_without_join_a_framework_is_trained_as_one(labelled, sr_model, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(diagnosis_training, 'train_joined', lambda *_, **__: pytest.fail('joined'))
    run(labelled, tmp_path/'x', sr_model, 'table6', design=replace(HALF, join=False))
    m = json.loads(next((tmp_path/'x').rglob('metrics.json')).read_text())
    assert m['epochs'] == TINY.epochs == 1
    assert 'as one from noise' in (tmp_path/'x'/'README.md').read_text()


def test_a_folder_of_before_was_not_joined_and_goes_on_so(labelled, sr_model, tmp_path, quick):
    old, without = tmp_path/'x', replace(HALF, join=False)
    run(labelled, old, sr_model, only='LR-x2,ILR-x2', design=without)
    head = json.loads((old/'setup'/'config.json').read_text())
    del head['fixed']['join']
    (old/'setup'/'config.json').write_text(json.dumps(head))
    assert (DiagnosisStore(old).head()['fixed']['join'] is False
            and report_diagnosis(DiagnosisStore(old)).is_file())
    with pytest.raises(DataError, match='join was False, now it is True .see --no-join'):
        run(labelled, old, sr_model, only='HR-x2')
    run(labelled, old, sr_model, only='HR-x2', design=without)
    assert DiagnosisStore(old).complete(Row('HR', 'HR', scale=2)) == [(0, 0), (0, 1)]


# Refused

@pytest.mark.parametrize('budget,design,options,words', [
    (replace(TINY, epochs=2), HALF, CPU, 'epochs was 1, now it is 2'),
    (replace(TINY, folds=3), HALF, CPU, 'folds was 2, now it is 3'),
    (TINY, replace(HALF, split_seed=1), CPU, 'split_seed'), (TINY, replace(HALF, sac=0.), CPU, 'sac was 100'),
    (TINY, replace(HALF, mode='batch'), CPU, 'mode was context'),
    (TINY, HALF, replace(CPU, precision='bf16'), 'precision'),
    (TINY, HALF, replace(CPU, channels='grey'), 'channel')])
def test_another_configuration_is_refused(finished, labelled, sr_model, snapshot, budget, design, options,
                                          words):
    before = snapshot(finished)
    with pytest.raises((DataError, ModelError), match=words):
        run_experiment('table5', labelled/'labels.csv', finished, Sources(sr=[sr_model]), budget, design,
                       options)
    assert snapshot(finished) == before


def test_changed_images_are_refused(finished, labelled, sr_model, tmp_path):
    shutil.copytree(labelled, tmp_path/'other')
    first = sorted((tmp_path/'other'/'ill').glob('*.png'))
    shutil.copyfile(first[1], first[0])
    with pytest.raises(DataError, match='data hash'): run(tmp_path/'other', finished, sr_model)


def test_other_weights_under_the_same_name_are_refused(finished, labelled, models):
    with pytest.raises(ModelError, match='other weights'): run(labelled, finished, models.teacher)


def test_a_folder_of_something_else_is_refused(labelled, sr_model, tmp_path):
    (tmp_path/'x').mkdir(); (tmp_path/'x'/'thesis.txt').write_text('mine')
    with pytest.raises(DataError, match='holds no experiment'): run(labelled, tmp_path/'x', sr_model)
    assert [p.name for p in (tmp_path/'x').iterdir()] == ['thesis.txt']


def test_networks_are_needed_and_told_apart(sr_model):
    assert (networks_of(Sources(sr=[sr_model, f'other={sr_model}'])) == {
                ('mrcnet', 2): str(sr_model), ('other', 2): str(sr_model)})
    with pytest.raises(ModelError, match='Two networks'): networks_of(Sources(sr=[sr_model, sr_model]))
    with pytest.raises(ModelError, match='letters'): networks_of(Sources(sr=[f'a b={sr_model}']))


def test_a_network_for_other_channels(labelled, tmp_path):
    import torch
    from srdiag.models.info import ModelInfo
    from srdiag.models.saving import save_model
    from srdiag.sr.mrcnet import MRCNet
    torch.manual_seed(0)
    save_model(tmp_path/'grey', MRCNet(2, channels=4, blocks=1, stages=1, image_channels=1),
               ModelInfo('grey'))
    with pytest.raises(ModelError, match='1 channel'): run(labelled, tmp_path/'x', tmp_path/'grey')
    assert not (tmp_path/'x').exists()


@pytest.mark.parametrize('change,words', [('{', 'not readable as JSON'), ('[]', 'not what srdiag wrote'),
                                          ('{"format": "other", "fixed": {}, "about": {}}', 'format')])
def test_a_damaged_setup_is_named(finished, tmp_path, change, words):
    shutil.copytree(finished, tmp_path/'x')
    (tmp_path/'x'/'setup'/'config.json').write_text(change)
    with pytest.raises(DataError, match=words): report_diagnosis(DiagnosisStore(tmp_path/'x'))


@pytest.mark.parametrize('text', ['', 'file,group,true\na,b,ill\n',
                                  'file,group,true,ens_healthy,ens_ill\na,p,neither,0.5,0.5\n',
                                  'file,group,true,ens_healthy,ens_ill\na,p,ill,x,0.5\n'])
def test_damaged_predictions_are_named(finished, tmp_path, text):
    shutil.copytree(finished, tmp_path/'x')
    (tmp_path/'x'/'runs'/'LR-x2'/'seed0'/'fold0'/'predictions.csv').write_text(text)
    with pytest.raises(DataError, match='remove the folder'): report_diagnosis(DiagnosisStore(tmp_path/'x'))


# Two processes on one folder

def test_two_processes_share_one_folder(labelled, sr_model, tmp_path):
    argv = ['experiment', 'table5', '--data', labelled/'labels.csv', '--sr', sr_model, '--out', tmp_path/'x',
            '--budget', 'smoke', '--scale', 2, '--references', 4, '--device', 'cpu', '--precision', 'fp32',
            '--only', 'LR,ILR']
    command = [sys.executable, '-m', 'srdiag.commands.cli', *map(str, argv), '--only-fold']
    both = [subprocess.Popen([*command, str(k)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for k in (0, 1)]
    for p in both:
        _, err = p.communicate()
        assert p.returncode == 0, err
    store = DiagnosisStore(tmp_path/'x')
    assert [store.complete(Row(i, i, scale=2)) for i in ('LR', 'ILR')] == [[(0, 0), (0, 1)]]*2
    assert len(store.sessions()) == 2 and not [*store.folder.rglob('.*')]
    assert report_diagnosis(store).is_file()


def test_a_run_that_ends_while_the_report_is_made_waits_for_the_next(finished, tmp_path):
    shutil.copytree(finished, tmp_path/'x')
    store = DiagnosisStore(tmp_path/'x')
    small, large = (Row(i, i, scale=2) for i in ('LR', 'ILR'))
    late = store.folder/'runs'/small.key/'seed0'/'fold1'
    late.rename(tmp_path/'late')
    answers = Answers(store, [small, large])
    before = len(answers.table(small))
    (tmp_path/'late').rename(late)
    answers.table(large)
    assert store.complete(small) == [(0, 0), (0, 1)]
    assert len(answers.aligned(small, large)[0]) == before == len(answers.table(small))


# The command line

def test_report_only_needs_no_data(finished, succeeds, tmp_path):
    shutil.copytree(finished, tmp_path/'x')
    (tmp_path/'x'/'table5.md').unlink()
    assert 'README.md' in succeeds('experiment', 'table5', '--out', tmp_path/'x', '--report-only')
    assert (tmp_path/'x'/'table5.md').read_text() == (finished/'table5.md').read_text()


@pytest.mark.parametrize('args,words', [(['table11'], 'no experiment'), (['label'], 'Did you mean labels?'),
                                        (['foo'], 'fig7, all, labels, interactions'),
                                        (['table5', '--only', 'LR+XR'], 'is not a row'),
                                        (['table5', '--only-fold', 7], 'no fold 7'),
                                        (['table5', '--folds', 50], 'fewer folds'), (['table10'], 'scale 4')])
def test_mistakes_are_sentences(labelled, sr_model, tmp_path, refused, args, words):
    refused('experiment', *args, '--data', labelled/'labels.csv', '--sr', sr_model, '--out', tmp_path/'x',
            '--budget', 'smoke', '--scale', 2, '--device', 'cpu', naming=[words])


def test_an_experiment_without_data_or_network(labelled, tmp_path, refused):
    refused('experiment', 'table5', '--out', tmp_path/'x', naming=['--data'])
    refused('experiment', 'table5', '--data', labelled/'labels.csv', '--scale', 2, '--out', tmp_path/'x',
            naming=['super-resolution network', '--sr'])


# Published numbers

def test_every_published_row_is_there():
    counts = published_diagnosis().table.value_counts().to_dict()
    assert (counts == {'III': 10, 'IV': 13, 'V': 10, 'VII': 2, 'VIII': 4, 'IX': 6, 'X': 4}
            and len(published_confusion()) == 9)


def test_our_rows_bear_the_published_names():
    for name, numeral in NUMERALS.items():
        if name == 'table6': continue
        assert {r.label for r in TABLES[name]} - {'ILR'} == set(published_diagnosis(numeral).row), name


def test_published_numbers_are_the_printed_ones():
    v = published_diagnosis('V').set_index('row')
    assert (v.accuracy['LR+SR w/ SAI (Ours)'] == 94.94 and v.accuracy_sd['LR+SR w/ SAI (Ours)'] == 0.38
            and v.mcc['LR'] == 84.03)
    assert (published_diagnosis('VII').set_index('row').flops['Ours'] == 5.43e10
            and published_diagnosis('VII').set_index('row').memory_mb['Ours'] == 650)
    ix = published_diagnosis('IX').set_index(['data', 'row'])
    assert ix.kappa['PCam', 'Pretrain+Fixed'] == 92.05 and published_diagnosis('X').psnr.max() == 39.925
    assert np.allclose(published_confusion().groupby('true').percent.sum(), 100, atol=0.02)


# Gains

def test_gap_by_hand():
    g = gap_closed([1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], list('abcdef'))
    assert (g['gap'] == pytest.approx(4/6) and g['closed'] == pytest.approx(1/4) and g['clear']
            and g['low'] <= 1/4 <= g['high'])


def test_gap_of_resamples_against_a_loop():
    rng = np.random.default_rng(1)
    base, ours, top = ((rng.random(300) < a).astype(float) for a in (0.5, 0.7, 0.9))
    groups = np.repeat(np.arange(30), 10).astype(str)
    drawn, ratios = np.random.default_rng(0).integers(30, size=(2000, 30)), []
    names = np.unique(groups)
    for d in drawn:
        idx = np.concatenate([np.flatnonzero(groups == names[k]) for k in d])
        ratios.append((ours[idx].mean()-base[idx].mean())/(top[idx].mean()-base[idx].mean()))
    g = gap_closed(base, ours, top, groups)
    assert (g['low'], g['high']) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_without_a_gap_there_is_no_share():
    same = [1, 0, 1, 0, 1, 0]
    g = gap_closed(same, [1]*6, same, list('abcdef'))
    assert not g['clear'] and math.isnan(g['closed']) and math.isnan(g['low'])
    assert math.isnan(gap_closed([0, 0], [1, 0], [1, 1], ['p', 'p'])['low'])


def test_means_of_one_group_and_of_wrong_lengths():
    assert group_means([1, 0], ['p', 'p']) is None and math.isnan(mean_interval([1, 0], ['p', 'p'])[1])
    with pytest.raises(ValueError): mean_interval([1, 0], ['p'])
    with pytest.raises(ValueError): paired_gain([1, 0], [1], ['p', 'q'])


def test_groups_of_many_images_weigh_more():
    means = group_means([1, 1, 1, 0], ['a', 'a', 'a', 'b'])
    assert set(np.round(means[:, 0], 6)) == {0, 0.75, 1}


def test_verdicts_follow_the_interval():
    assert 'better' in verdict(0.1, 0.05, 0.2) and 'worse' in verdict(-0.1, -0.2, -0.05)
    assert 'holds zero' in verdict(0.1, -0.1, 0.3) and 'no interval' in verdict(0.1, math.nan, math.nan)


def test_confusion_in_percent(finished):
    mean, sd, counts = confusion_of(DiagnosisStore(finished), replace(OURS, scale=2))
    assert np.allclose(mean.sum(1), 100) and counts.sum() == 24 and sd.shape == (2, 2)


def test_limits_speak_of_what_was_done(finished):
    store = DiagnosisStore(finished)
    setup = store.head()
    assert ('reference images' in diagnosis_limits(setup, 1) and 'not known' in diagnosis_limits(setup, 1)
            and 'averaged image by image' in diagnosis_limits(setup, 3))
    unknown = json.loads(json.dumps(setup))
    unknown['about']['grouped'] = False
    unknown['fixed']['images'] = 'lr'
    said = diagnosis_limits(unknown, 1)
    assert 'Groups are unknown' in said and 'no gap to close' in said
    assert ('have seen their test images' in diagnosis_limits(setup, 1,
                                                    [dict(name='mrcnet', scale=2, hash='', shared=3)]))
