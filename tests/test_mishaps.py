"Mishaps that once gave a traceback, a silent wrong number or a lost file: found by attack, kept as tests."
import csv
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import TINY_SR
from srdiag.bench.costs import costs_of
from srdiag.bench.diagnosis_store import DiagnosisStore
from srdiag.bench.experiment import run_experiment
from srdiag.bench.folds import FoldedImages
from srdiag.bench.pictures import ensure_scores, mean_scores
from srdiag.bench.rows import Row
from srdiag.bench.settings import Design, ExperimentShare, diagnosis_budget
from srdiag.models.split import read_split
from srdiag.training.options import Degradation, RunOptions
from srdiag.data.degradation import upsample
from srdiag.data.images import save_png
from srdiag.data.pairs import SRPairs
from srdiag.datasets.reading import read_labelled
from srdiag.diagnosis.inference import predict
from srdiag.core.errors import DataError
from srdiag.evaluation.calibration import calibrate
from srdiag.evaluation.diagnostic import (bootstrap_interval, checked_probabilities, confusion,
                                          diagnostic_metrics, group_index)
from srdiag.evaluation.gains import gap_closed, mean_interval, paired_gain, share_interval
from srdiag.models.saving import load_model

CPU, HALF = RunOptions(device='cpu', precision='fp32'), Design(scale=2, references=4)


def rows(path): return list(csv.DictReader(path.open(encoding='utf-8')))


@pytest.fixture
def grown(labelled, tile, tmp_path):
    "The labelled tiles and one more, of a new patient"
    shutil.copytree(labelled, tmp_path/'grown')
    save_png(tile(300, 16), tmp_path/'grown'/'ill'/'p99__0.png')
    (tmp_path/'grown'/'labels.csv').unlink()
    return tmp_path/'grown'


@pytest.fixture
def edited(models, tmp_path):
    "A function: change of config.json's content → a copy of the framework with it"
    def edited(change):
        folder = tmp_path/'edited'
        shutil.copytree(models.diagnosis, folder)
        config = json.loads((folder/'config.json').read_text())
        change(config)
        (folder/'config.json').write_text(json.dumps(config))
        return folder
    return edited


# Which images are tested

def split_of(model): return {r['file']: r['split'] for r in rows(model/'split.csv')}


def test_images_of_the_training_are_left_out_of_data_that_grew(models, grown, tmp_path, succeeds):
    said = succeeds('evaluate', '--data', grown, '--model', models.diagnosis, '--out', tmp_path/'out')
    split = split_of(models.diagnosis)
    tested = {r['file'] for r in rows(tmp_path/'out'/'predictions.csv')}
    left = sum(part != 'test' for part in split.values())
    assert tested == {f for f, part in split.items() if part == 'test'} | {'ill/p99__0.png'}
    assert ('not exactly the data' in said and f'{left} images' in said
            and json.loads((tmp_path/'out'/'metrics.json').read_text())['left_out'] == left)


def test_new_images_of_known_patients_are_left_out_too(models, grown, tile, tmp_path, succeeds):
    patient = (next(f for f, part in split_of(models.diagnosis).items() if part == 'train').split(
                       '/')[1].split('__')[0])
    save_png(tile(301, 16), grown/'ill'/f'{patient}__9.png')
    succeeds('evaluate', '--data', grown, '--model', models.diagnosis, '--out', tmp_path/'out')
    assert f'ill/{patient}__9.png' not in {r['file'] for r in rows(tmp_path/'out'/'predictions.csv')}


def test_images_are_known_by_content_not_by_name(models, grown, fill_labelled, tile, tmp_path, succeeds):
    for k, p in enumerate(sorted(grown.rglob('*.png'))): p.rename(p.with_name(f'q{k}__{p.name}'))
    succeeds('evaluate', '--data', grown, '--model', models.diagnosis, '--out', tmp_path/'renamed')
    assert (len(rows(tmp_path/'renamed'/'predictions.csv')) == 1
            + sum(part == 'test' for part in split_of(models.diagnosis).values()))
    for label in ('healthy', 'ill'):
        (tmp_path/'other'/label).mkdir(parents=True)
        for g in range(12):
            save_png(tile(400+g+100*(label == 'ill'), 16), tmp_path/'other'/label/f'p{g}__0.png')
    said = succeeds('evaluate', '--data', tmp_path/'other', '--model', models.diagnosis)
    assert 'test, 24 images' in said, 'another hospital may use the same names'


def test_a_model_without_fingerprints_goes_by_names(models, grown, tmp_path, succeeds):
    shutil.copytree(models.diagnosis, tmp_path/'old')
    pd.read_csv(tmp_path/'old'/'split.csv', dtype=str).drop(columns='sha256').to_csv(
            tmp_path/'old'/'split.csv', index=False)
    succeeds('evaluate', '--data', grown, '--model', tmp_path/'old', '--out', tmp_path/'out')
    assert (len(rows(tmp_path/'out'/'predictions.csv')) == 1
            + sum(part == 'test' for part in split_of(models.diagnosis).values()))


def test_all_is_all(models, grown, succeeds):
    assert ('test, 25 images' in succeeds('evaluate', '--data', grown, '--model', models.diagnosis, '--split',
                                          'all'))


def test_nothing_but_images_of_the_training(models, labelled, tmp_path, refused, succeeds):
    learned = [f for f, part in split_of(models.diagnosis).items() if part == 'train']
    for f in learned:
        (tmp_path/'other'/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(labelled/f, tmp_path/'other'/f)
    refused('evaluate', '--data', tmp_path/'other', '--model', models.diagnosis,
            naming=['learned from', '--split all'])
    assert (f'{len(learned)} images' in succeeds('evaluate', '--data', tmp_path/'other', '--model',
                                                 models.diagnosis, '--split', 'all'))


@pytest.fixture
def patients(tile, tmp_path):
    "A function: pattern of names → a folder with two images of each of 12 patients, and one that grew"
    def patients(name):
        for k in range(24):
            file = name.format(k//2, k % 2)
            for root in ('some', 'more'):
                (tmp_path/root).mkdir(exist_ok=True)
                save_png(tile(k), tmp_path/root/file)
        for k in range(12): save_png(tile(24 + k), tmp_path/'more'/name.format(k, 2))
        return tmp_path/'some', tmp_path/'more'
    return patients


@pytest.mark.parametrize('name,options', [('p{}__{}.png', []),
                                          ('{1}__of_p{0}.png', ['--group-pattern', r'p(\d+)']),
                                          ('p{}-{}.png', ['--group-pattern', '^(.*)-'])])
def test_a_network_is_not_tested_on_new_images_of_its_patients(name, options, patients, tmp_path, succeeds):
    some, more = patients(name)
    succeeds('train-sr', '--data', some, '--out', tmp_path/'sr', '--model', 'srcnn', *options, *TINY_SR)
    table = pd.read_csv(tmp_path/'sr'/'split.csv', dtype=str)
    learned, known = table.split.isin(['train', 'valid']), table.group.nunique()
    left = int(learned.sum()) + table.group[learned].nunique() # and the new image of each of its patients
    said = succeeds('evaluate', '--data', more, '--model', tmp_path/'sr', '--device', 'cpu', '--out',
                    tmp_path/'out')
    metrics = json.loads((tmp_path/'out'/'metrics.json').read_text())
    assert known == 12 and f'Left out: {left} images' in said
    assert (metrics['left_out'], metrics['n']) == (left, 36 - left)


def test_a_pattern_of_the_training_reads_the_names_of_a_labelled_set_too(tile, tmp_path, succeeds,
                                                                         tiny_diagnosis):
    for k in range(48):
        (folder := tmp_path/'data'/('healthy', 'ill')[k % 2]).mkdir(parents=True, exist_ok=True)
        save_png(tile(k, 16), folder/f'p{k//4}-{k % 4}.png')
    succeeds('train-diagnosis', '--data', tmp_path/'data', '--out', tmp_path/'model', '--inputs', 'LR',
             '--group-pattern', '^(.*)-', *tiny_diagnosis)
    split = pd.read_csv(tmp_path/'model'/'split.csv', dtype=str)
    for k, p in enumerate(split.group.unique()): save_png(tile(100 + k, 16), tmp_path/f'data/ill/{p}-9.png')
    succeeds('evaluate', '--data', tmp_path/'data', '--model', tmp_path/'model', '--out', tmp_path/'out')
    tested = {r['file'].split('/')[1].split('-')[0] for r in rows(tmp_path/'out'/'predictions.csv')}
    assert tested == set(split.group[split.split == 'test'])


def test_a_pattern_of_the_training_may_fit_no_name_of_other_images(patients, tmp_path, succeeds):
    some, _ = patients('p{}-{}.png')
    succeeds('train-sr', '--data', some, '--out', tmp_path/'sr', '--model', 'srcnn', '--group-pattern',
             '^(.*)-', *TINY_SR)
    for p in some.iterdir(): p.rename(p.with_name(p.name.replace('-', '')))
    said = succeeds('evaluate', '--data', some, '--model', tmp_path/'sr', '--device', 'cpu')
    assert 'groups are unknown' in said and 'others of the same groups' not in said


# Files that are not ours, or somebody else's

def test_a_model_folder_of_another_library_is_not_replaced(labelled, tmp_path, refused, tiny_diagnosis):
    theirs = tmp_path/'theirs'
    theirs.mkdir()
    for name, text in (('config.json', '{"model_type": "bert"}'), ('model.safetensors', 'weights'),
                       ('README.md', 'ours')):
        (theirs/name).write_text(text)
    refused('train-diagnosis', '--data', labelled, '--out', theirs, '--inputs', 'LR', '--overwrite',
            *tiny_diagnosis, naming=[theirs, 'not made by srdiag'])


def test_output_among_the_classes(models, grown, labelled, tmp_path, refused, succeeds, tiny_diagnosis):
    for command in (['train-diagnosis', '--inputs', 'LR', *tiny_diagnosis],
                    ['evaluate', '--model', models.lr]):
        refused(*command, '--data', grown, '--out', grown/'model', naming=['among the classes'])
    shutil.copytree(labelled, tmp_path/'table')
    # a table says which files are images
    succeeds('evaluate', '--model', models.lr, '--data', tmp_path/'table'/'labels.csv', '--out',
             tmp_path/'table'/'evaluation')


def test_a_damaged_model_of_ours_may_be_replaced(models, labelled, tmp_path, succeeds, tiny_diagnosis):
    shutil.copytree(models.lr, tmp_path/'model')
    (tmp_path/'model'/'config.json').write_text((models.lr/'config.json').read_text()[:100])
    succeeds('train-diagnosis', '--data', labelled, '--out', tmp_path/'model', '--images', 'hr', '--inputs',
             'LR', '--overwrite', *tiny_diagnosis)


def test_enlarged_images_never_share_a_name(models, tile, tmp_path, succeeds):
    for k, name in enumerate(('a/x.png', 'b/x.png', 'c/00000_x.png', 'd/_00000_x.png')):
        (tmp_path/'in'/name).parent.mkdir(parents=True)
        save_png(tile(k, 8), tmp_path/'in'/name)
    succeeds('predict', tmp_path/'in', '--model', models.sr, '--out', tmp_path/'out')
    names = [r['sr_image'] for r in rows(tmp_path/'out'/'predictions.csv')]
    assert len(set(names)) == 4 == len(list((tmp_path/'out'/'sr').iterdir()))


def test_one_file_named_in_two_ways_is_predicted_once(models, tile, tmp_path, succeeds, monkeypatch):
    save_png(tile(0, 8), tmp_path/'x.png')
    monkeypatch.chdir(tmp_path)
    succeeds('predict', 'x.png', tmp_path/'x.png', '--model', models.sr, '--out', tmp_path/'out')
    assert len(rows(tmp_path/'out'/'predictions.csv')) == 1


def test_an_evaluation_leaves_nothing_of_the_one_before(models, labelled, sr_folder, tmp_path, succeeds):
    succeeds('evaluate', '--data', labelled, '--model', models.lr, '--out', tmp_path/'out')
    assert (tmp_path/'out'/'report.html').is_file()
    succeeds('evaluate', '--data', sr_folder, '--model', models.sr, '--out', tmp_path/'out', '--overwrite')
    assert {p.name for p in (tmp_path/'out').iterdir()} == {'.srdiag', 'metrics.json'}


# Names

@pytest.mark.parametrize('name', ['undecided', 'image'])
def test_classes_that_mean_something_else(name, fill_labelled, tmp_path, refused, tiny_diagnosis):
    data = fill_labelled(tmp_path/'data', ['healthy', name])
    refused('train-diagnosis', '--data', data, '--out', tmp_path/'out', '--images', 'hr', '--inputs', 'LR',
            *tiny_diagnosis, naming=[name, 'another name'])


def test_dollars_bars_and_brackets_in_names(fill_labelled, tmp_path, succeeds, tiny_diagnosis):
    data = fill_labelled(tmp_path/'data', [r'$\frac$', 'a|<b>x'])
    for p in sorted(data.rglob('p1__*.png')): p.rename(p.with_name(p.name.replace('__0', r'__$\q0$')))
    (data/'labels.csv').unlink()
    succeeds('train-diagnosis', '--data', data, '--out', tmp_path/'model', '--images', 'hr', '--inputs', 'LR',
             *tiny_diagnosis)
    succeeds('evaluate', '--data', data, '--model', tmp_path/'model', '--out', tmp_path/'out', '--split',
             'all')
    assert ('<b>x' not in (tmp_path/'out'/'report.html').read_text()
            and '<b>x' not in (tmp_path/'model'/'README.md').read_text())


@pytest.mark.parametrize('header', ['File,file,label', 'file,Label,label', 'file,label,label',
                                    'file,label,group,Group'])
def test_a_column_that_is_there_twice(header, labelled, tmp_path, refused, tiny_diagnosis):
    lines = [[str(labelled/r['file']), r['label'], r['label'], 'g'][:len(header.split(','))]
             for r in rows(labelled/'labels.csv')]
    (tmp_path/'labels.csv').write_text('\n'.join([header, *map(','.join, lines)]))
    refused('train-diagnosis', '--data', tmp_path/'labels.csv', '--out', tmp_path/'out', '--inputs', 'LR',
            *tiny_diagnosis, naming=['labels.csv', 'more than once'])


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_a_terminal_that_knows_few_letters(encoding):
    done = subprocess.run([sys.executable, '-m', 'srdiag.commands.cli', 'train-diagnosis', '--help'],
                          capture_output=True, env={'PYTHONIOENCODING': encoding, 'PATH': '/usr/bin'})
    assert done.returncode == 0 and b'of the rank loss' in done.stdout and not done.stderr


@pytest.mark.parametrize('header', ['file,label,group,group_name', 'file,label,label.1,profile',
                                    '"file","label","split_by","File_size"'])
def test_columns_with_similar_names(header, labelled, tmp_path):
    from srdiag.data.labelled import load_table
    lines = [f'{labelled/r["file"]},{r["label"]},x,y' for r in rows(labelled/'labels.csv')]
    (tmp_path/'labels.csv').write_text('\n'.join([header, *lines]))
    assert len(load_table(tmp_path/'labels.csv').files) == 24


# Options

@pytest.mark.parametrize('options', [['--rank', -1], ['--sac', 'nan'], ['--sar', 'inf']])
def test_weights_of_losses(options, labelled, tmp_path, refused, tiny_diagnosis):
    refused('train-diagnosis', '--data', labelled, '--out', tmp_path/'out', '--inputs', 'LR', *tiny_diagnosis,
            *options, naming=[options[0][2:], '0 or more'])


def test_a_cut_smaller_than_the_network_allows(models, labelled, sr_folder, tmp_path, refused,
                                               tiny_diagnosis):
    refused('train-diagnosis', '--data', labelled, '--out', tmp_path/'out', '--inputs', 'LR', '--size', 6,
            *tiny_diagnosis, naming=['6×6', '8 pixels', '--size'])
    refused('evaluate', '--data', sr_folder, '--model', models.sr, '--size', 14, naming=['14×14', '--size'])


def test_options_without_effect_are_said(models, labelled, sr_folder, tmp_path, succeeds):
    assert ('needs no labels' in succeeds('evaluate', '--data', sr_folder, '--model', models.sr, '--labels',
                                          tmp_path/'none.csv'))
    said = succeeds('predict', labelled, '--images', 'hr', '--model', models.lr, '--out', tmp_path/'out',
                    '--mode', 'batch')
    assert 'makes no difference' in said and 'as published' not in said


# Numbers

@pytest.mark.parametrize('kind', [np.uint8, np.int8, np.uint64, np.int16,
                                  lambda y: torch.from_numpy(y).to(torch.uint8)])
def test_small_kinds_of_whole_numbers_do_not_overflow(kind):
    y = np.arange(60) % 20
    labels = y.astype(kind) if isinstance(kind, type) else kind(y)
    assert diagnostic_metrics(labels, np.eye(20)[y], list(range(20)))['accuracy'] == 1
    assert (np.trace(confusion(labels, labels, range(20))) == 60
            and bootstrap_interval(labels, np.eye(20)[y], n=20) == (1, 1))


def test_one_answer_and_answers_of_one_kind_have_no_point_for_an_interval():
    _, low, high, how = share_interval([True])
    assert np.isnan(low) and np.isnan(high) and 'one image' in how
    _, low, high, how = share_interval(np.ones(5, bool))
    assert 0.5 < low < 0.8 and high == 1 and 'Wilson' in how
    assert share_interval(np.zeros(6, bool), ['p', 'q', 'r']*2)[2] > 0.3


@pytest.mark.parametrize('call', [
    lambda: checked_probabilities([0, 1], [['a', 'b'], ['c', 'd']]),
    lambda: checked_probabilities([0, 1], [[0.5, 0.5], [1]]),
    lambda: group_index([float('nan'), 'b', 'b'], 3),
    lambda: group_index([None, 'b'], 2),
    lambda: group_index(pd.Series(['a', None, 'b'], dtype='string'), 3),
    lambda: group_index(np.array([['a', 'b'], ['c', 'd']]), 2),
    lambda: group_index(5, 2),
    lambda: calibrate([0, 1], [[0.6, 0.4]]*2, ['a', 'b'], np.array([['p', 'q'], ['r', 's']])),
    lambda: mean_interval([0, 1, 1], [float('nan'), 'b', 'b']),
    lambda: mean_interval([0, 1], [None, None])])
def test_tables_that_are_none(call):
    with pytest.raises(DataError): call()


def test_probabilities_with_a_gradient():
    assert checked_probabilities([0], torch.tensor([[0.4, 0.6]], requires_grad=True))[1].shape == (1, 2)


@pytest.mark.parametrize('call', [
    lambda: paired_gain([0, np.nan], [1, 1], ['a', 'b']),
    lambda: mean_interval([0, 1], ['a', 'b'], level=-1),
    lambda: mean_interval([0, 1], ['a', 'b'], n=0),
    lambda: gap_closed([0, 1], [0, 1, 1], [1, 1], ['a', 'b']),
    lambda: calibrate([0, 1]*8, [[0.6, 0.4]]*16, ['a', 'a']),
    lambda: calibrate([0, 1]*8, [[0.6, 0.4]]*16, ['a', 'b'], sensitivity=2),
    lambda: calibrate([0, 1]*8, [[0.6, 0.4]]*16, ['a', 'b'], level=0)])
def test_options_and_scores_that_are_none(call):
    with pytest.raises(ValueError): call()


@pytest.mark.parametrize('change, words', [(lambda lr: lr.float()*float('nan'), 'NaN'),
                                           (lambda lr: lr.float(), 'numbers in'),
                                           (lambda lr: lr[:0], 'empty'), (lambda lr: lr[:, :1], 'channel'),
                                           (lambda lr: lr[0], 'shape')])
def test_images_that_are_none(change, words, models):
    model, info = load_model(models.diagnosis, 'diagnosis')
    with pytest.raises(ValueError, match=words):
        predict(model, change(torch.randint(0, 255, (3, 3, 8, 8), dtype=torch.uint8)), info.classes)


@pytest.mark.parametrize('options', [dict(classes=['a']), dict(batch_size=0),
                                     dict(order=torch.tensor([0, 0, 1])), dict(order=torch.tensor([0, 1]))])
def test_predicting_with_what_does_not_fit(options, models):
    model, info = load_model(models.diagnosis, 'diagnosis')
    with pytest.raises(ValueError):
        predict(model, torch.zeros(3, 3, 8, 8, dtype=torch.uint8), **(dict(classes=info.classes) | options))


def test_hr_is_not_looked_at_by_who_does_not_read_it(models):
    model, info = load_model(models.diagnosis, 'diagnosis')
    predict(model, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), info.classes, torch.zeros(2, 3, 17, 17))


# Model folders

CHANGES = [(lambda c: c.update(format='srdiag model 99'), 'srdiag model 99'),
           (lambda c: c['info'].update(lr_size=5), 'lr_size'),
           (lambda c: c['info'].update(lr_size=[12]), 'lr_size'),
           (lambda c: c['info'].update(lr_size=None), 'size of images'),
           (lambda c: c['info'].update(classes=['a', 'b', 'c'], calibration={}), '3 classes'),
           (lambda c: c['info'].update(classes=3, calibration={}), 'classes'),
           (lambda c: c['info'].update(classes=[0, 1], calibration={}), 'different names'),
           (lambda c: c['info'].update(classes=['a', 'a'], calibration={}), 'different names'),
           (lambda c: c['info'].update(classes=[], calibration={}), 'which classes'),
           (lambda c: c['network'].update(mutual='zz'), 'zz')]


@pytest.mark.parametrize('change, words', CHANGES)
def test_a_configuration_that_does_not_fit(change, words, edited, labelled, tmp_path, refused):
    folder = edited(change)
    refused('predict', labelled, '--images', 'hr', '--model', folder, '--out', tmp_path/'out',
            naming=[folder, words])
    refused('evaluate', '--data', labelled, '--model', folder, naming=[folder, words])


def test_a_group_called_na_is_a_group(models, tmp_path):
    shutil.copytree(models.lr, tmp_path/'model')
    text = (tmp_path/'model'/'split.csv').read_text().replace('p1,', 'NA,')
    (tmp_path/'model'/'split.csv').write_text(text)
    assert 'NA' in set(read_split(tmp_path/'model').group)


# Experiments

@pytest.fixture(scope='module')
def done(labelled, tmp_path_factory):
    "One row of Table V, two folds, with its frameworks; tests copy it before they change it"
    out = tmp_path_factory.mktemp('experiment')/'out'
    run_experiment('table5', labelled/'labels.csv', out, budget=diagnosis_budget('smoke'), design=HALF,
                   options=CPU, share=ExperimentShare('LR-x2,LR+ILR-sai-x2', keep_models=True))
    return out


@pytest.fixture
def copied(done, tmp_path):
    shutil.copytree(done, tmp_path/'copy')
    return tmp_path/'copy'


def test_kept_models_can_be_used(done, labelled, tmp_path, succeeds):
    kept = done/'runs'/'LR+ILR-sai-x2'/'seed0'/'fold0'
    said = succeeds('evaluate', '--model', kept/'model', '--data', labelled/'labels.csv', '--out',
                    tmp_path/'e')
    own, found = (json.loads((p/'metrics.json').read_text()) for p in (kept, tmp_path/'e'))
    assert found['accuracy'] == pytest.approx(own['metrics']['accuracy'])
    assert 'Note' not in said, 'it finds its test part'
    succeeds('predict', labelled, '--images', 'hr', '--model', kept/'model', '--out', tmp_path/'p')


def test_a_fold_in_the_place_of_another(copied, refused):
    seed = copied/'runs'/'LR-x2'/'seed0'
    shutil.rmtree(seed/'fold1')
    shutil.copytree(seed/'fold0', seed/'fold1')
    refused('experiment', 'table5', '--out', copied, '--report-only',
            naming=['another run', 'fold 0', 'remove the folder'])


@pytest.mark.parametrize('change, words', [(lambda m: m['metrics'].update(f1=9e9), 'f1'),
                                           (lambda m: m.update(fold=5), 'another run'),
                                           (lambda m: m.update(seed=3), 'another run'),
                                           (lambda m: m['row'].update(inputs='XX'), 'XX'),
                                           (lambda m: m['row'].update(colour='red'), 'colour'),
                                           (lambda m: m.pop('config'), 'config')])
def test_metrics_that_cannot_be(change, words, copied):
    path, row = copied/'runs'/'LR-x2'/'seed0'/'fold0'/'metrics.json', Row('LR', 'LR', scale=2)
    m = json.loads(path.read_text())
    change(m)
    path.write_text(json.dumps(m))
    with pytest.raises(DataError, match=words): DiagnosisStore(copied).metrics(row, 0, 0)


@pytest.mark.parametrize('change', [lambda t: t.drop(columns='fold'), lambda t: pd.concat([t, t.iloc[:1]])])
def test_a_table_of_folds_that_is_none(change, copied):
    change(pd.read_csv(copied/'setup'/'split.csv', dtype=str)).to_csv(copied/'setup'/'split.csv', index=False)
    with pytest.raises(DataError, match='split.csv is not readable'):
        DiagnosisStore(copied).predictions(Row('LR', 'LR', scale=2), 0, 0)


def test_groups_that_were_changed(copied):
    path = copied/'runs'/'LR-x2'/'seed0'/'fold0'/'predictions.csv'
    p = pd.read_csv(path)
    p.assign(group=p.group.iloc[0]).to_csv(path, index=False)
    with pytest.raises(DataError, match='images and groups of fold 0'):
        DiagnosisStore(copied).predictions(Row('LR', 'LR', scale=2), 0, 0)


@pytest.mark.parametrize('change', [
    lambda c: c['fixed'].pop('mutual'), lambda c: c['fixed'].pop('solo_share'),
    lambda c: c['fixed'].update(mode='zz'), lambda c: c['fixed'].update(mutual='zz'),
    lambda c: c['about'].update(images={}),
    lambda c: c['about'].update(images=dict.fromkeys(c['about']['images'], 'x'))])
def test_a_setup_that_cannot_be(change, copied, refused):
    path = copied/'setup'/'config.json'
    c = json.loads(path.read_text())
    change(c)
    path.write_text(json.dumps(c))
    refused('experiment', 'table5', '--out', copied, '--report-only', naming=['config.json', 'restore it'])


@pytest.mark.parametrize('content', [{'LR+SR-x2': 5}, {'LR+SR-x2': {}}])
def test_costs_that_cannot_be(content, copied):
    (copied/'cost.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match='cost.json'): costs_of(DiagnosisStore(copied))


def test_left_of_a_run_that_was_killed(copied, labelled, capsys):
    left = copied/'runs'/'LR-x2'/'seed0'/'.fold1-0a1b2c3d'
    left.mkdir()
    run_experiment('table5', labelled/'labels.csv', copied, budget=diagnosis_budget('smoke'), design=HALF,
                   options=CPU, share=ExperimentShare('LR-x2'))
    assert str(left) in capsys.readouterr().out and left.is_dir(), 'said, and not removed: it might be in use'


def test_images_without_any_error_have_no_psnr():
    white = SRPairs([torch.full((3, 32, 32), 40, dtype=torch.uint8)], 2)
    assert mean_scores(lambda lr: upsample(lr, 2), white) == dict(psnr=None, ssim=None, n=0)


def test_scores_are_those_of_the_small_images_of_the_experiment(labelled, tmp_path):
    how = Degradation('realistic', blur=(1.5, 1.5), noise=(0.05, 0.05))
    found = read_labelled(labelled, None, RunOptions(reduction=how))
    images = FoldedImages(found, HALF, 2)
    ensure_scores(SimpleNamespace(images=images, design=HALF, networks={}), store := DiagnosisStore(tmp_path),
                  [Row('LR', 'LR', scale=2)])
    test, pairs = images.folds[0]['test'], images.pairs(2)
    own = SRPairs([found.images[i] for i in test], 2, lr=[pairs.lr[int(i)] for i in test])
    scores = json.loads((store.network_folder('bicubic', 2)/'scores.json').read_text())
    assert scores['psnr'] == pytest.approx(mean_scores(lambda lr: upsample(lr, 2), own)['psnr'], abs=1e-4)
