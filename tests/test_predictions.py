"""What predict and evaluate write, that no image's answer depends on its neighbours, and that a seed means
the same twice."""
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

from srdiag.core.errors import ModelError
from srdiag.data.degradation import degrade
from srdiag.data.images import as_float, find_images, read_image, to_uint8
from srdiag.show.dependence import batch_dependence, spread_of
from srdiag.diagnosis.inference import is_independent, modes_of, predict, predict_in_modes
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.models.saving import load_model

HEADS = 'ens', 'sr', 'lr', 'aux'
GATE = 'gate_sr', 'gate_lr', 'gate_aux'


def rows(path): return list(csv.DictReader(path.open(encoding='utf-8')))
def numbers(table, columns): return np.array([[float(r[c]) for c in columns] for r in table])


@pytest.fixture(scope='module')
def predicted(models, labelled, succeeds, tmp_path_factory):
    "The output folder of predict with the framework, files in the order of the command line"
    out = tmp_path_factory.mktemp('predicted')/'out'
    assert ('not for diagnostic use' in succeeds('predict', labelled, '--model', models.diagnosis, '--out',
                                                 out, '--images', 'hr', '--device', 'cpu'))
    return out


def test_one_row_per_image(predicted, labelled):
    table = rows(predicted/'predictions.csv')
    assert [r['file'] for r in table] == [str(p) for p in find_images(labelled)]
    assert (list(table[0]) == ['file', 'label', *(f'{h}_{c}' for h in HEADS for c in ('healthy', 'ill')),
                               *GATE, 'gate_closed', 'calibrated_healthy', 'calibrated_ill', 'decision',
                               'sr_image', 'model', 'weights_sha256'])


def test_json_says_what_csv_says(predicted):
    a, b = (rows(predicted/'predictions.csv'),
            json.loads((predicted/'predictions.json').read_text(encoding='utf-8')))
    assert len(a) == len(b) and [list(r) for r in a] == [list(r) for r in b]
    for x, y in zip(a, b):
        for k, v in y.items():
            assert float(x[k]) == pytest.approx(v, abs=1e-6) if isinstance(v, float) else x[k] == str(v)


def test_probabilities_sum_to_one_and_the_label_is_the_most_probable(predicted):
    table = rows(predicted/'predictions.csv')
    for head in HEADS:
        p = numbers(table, [f'{head}_healthy', f'{head}_ill'])
        assert (p >= 0).all() and np.allclose(p.sum(1), 1, atol=2e-6)
        if head == 'ens': assert [r['label'] for r in table] == [('healthy', 'ill')[k] for k in p.argmax(1)]


def test_decisions_follow_the_stored_thresholds(predicted, models):
    _, info = load_model(models.diagnosis)
    table, c = rows(predicted/'predictions.csv'), info.calibrated
    raw = numbers(table, ['ens_healthy', 'ens_ill'])
    assert np.abs(c.apply(raw) - numbers(table, ['calibrated_healthy', 'calibrated_ill'])).max() < 1e-4
    expected = [-1 if r['gate_closed'] == 'True' else k for r, k in zip(table, c.decide(raw))]
    assert ([r['decision'] for r in table] == ['undecided' if k < 0 else ('healthy', 'ill')[k]
                                               for k in expected])


def test_a_card_says_how_sure_the_model_is(models):
    card = (models.diagnosis/'README.md').read_text(encoding='utf-8')
    for words in ('Calibration and caution', 'temperature', 'expected calibration error', 'Brier',
                  'abstention', 'operating point', 'validation images', 'Not for diagnostic use'):
        assert words in card, words


def test_gate_weights_are_there(predicted):
    gate = numbers(rows(predicted/'predictions.csv'), GATE)
    assert np.isfinite(gate).all() and (gate >= 0).all() and (gate <= 1).all()


def test_images_are_enlarged(predicted, models):
    for r in rows(predicted/'predictions.csv'):
        with Image.open(predicted/r['sr_image']) as im: assert (im.size, im.mode) == ((16, 16), 'RGB')
    assert len(list((predicted/'sr').iterdir())) == len(rows(predicted/'predictions.csv'))


@pytest.mark.parametrize('side', [8, 32, 33])
def test_sizes_that_the_sr_network_was_not_trained_on(side, models, tile, tmp_path, succeeds):
    (tmp_path/'data').mkdir()
    (Image.fromarray(tile(3, side).permute(1, 2, 0).numpy()[:, :-1] if side > 8
                     else tile(3, side).permute(1, 2, 0).numpy()).save(tmp_path/'data'/'x.png'))
    succeeds('predict', tmp_path/'data'/'x.png', '--model', models.sr, '--out', tmp_path/'out')
    with Image.open(tmp_path/'data'/'x.png') as lr, Image.open(tmp_path/'out/sr/x.png') as sr:
        assert sr.size == (2*lr.width, 2*lr.height)


def test_high_resolution_files_are_reduced_first(models, sr_folder, tmp_path, succeeds):
    succeeds('predict', sr_folder, '--model', models.sr, '--out', tmp_path/'out', '--images', 'hr')
    for r in rows(tmp_path/'out/predictions.csv'):
        with Image.open(tmp_path/'out'/r['sr_image']) as im: assert im.size == (32, 32)


def test_no_images_are_written_if_not_wanted(models, sr_folder, tmp_path, succeeds):
    succeeds('predict', sr_folder, '--model', models.sr, '--out', tmp_path/'out', '--no-images')
    assert not (tmp_path/'out/sr').exists() and len(rows(tmp_path/'out/predictions.csv')) == 6


# Independence

@pytest.fixture(scope='module')
def small(labelled):
    "N×3×8×8 in [0, 1]: the low-resolution images of the labelled folder"
    return (torch.stack([as_float(to_uint8(degrade(as_float(read_image(p, 3)), 2))).double()
                         for p in find_images(labelled)]))


@pytest.fixture(scope='module')
def framework(models):
    """In double precision: a network of two training steps magnifies rounding errors, which differ with the
    batch size"""
    network, info = load_model(models.diagnosis)
    return network.double(), info


def largest_difference(p, q, order=slice(None)):
    "Over all probabilities and gate weights; row i of q belongs to row order[i] of p"
    return (max(*(np.abs(p.probabilities[h][order] - q.probabilities[h]).max() for h in HEADS),
                np.abs(p.gate[order] - q.gate).max()))


INDEPENDENT = pytest.mark.parametrize('mode', ['context', 'solo'])


def test_the_framework_predicts_in_context_by_default(framework):
    network, _ = framework
    assert modes_of(network)[0] == network.mode == 'context' and is_independent(network)


@INDEPENDENT
def test_neither_order_nor_batch_size_has_an_influence(mode, framework, small):
    "50 shuffles in batches of 1 to 32"
    network, info = framework
    images = torch.cat([small, small.flip(-1)])[:33] # one more than the largest batch
    base = predict(network, images, info.classes, mode=mode)
    for k in range(50):
        order = np.random.default_rng(k).permutation(len(images))
        other = predict(network, images[order], info.classes, batch_size=(1, 2, 3, 8, 16, 32)[k%6], mode=mode)
        assert largest_difference(base, other, order) < 1e-5


@INDEPENDENT
def test_single_precision_is_enough_for_an_ordinary_network(mode):
    torch.manual_seed(0)
    network = SREnhancedDiagnosis(2, 2, channels=1, lr_stem='3x3', sr_stem='3x3s2',
                                  sr=dict(channels=8, blocks=1), mutual='mean')
    images = torch.rand(32, 1, 16, 16)
    for _ in range(5): network(images)
    network.remember((torch.rand(8, 1, 16, 16)*255).byte())
    base = predict(network, images, 'ab', mode=mode)
    for k, size in enumerate((1, 5, 32)):
        order = np.random.default_rng(k).permutation(32)
        assert (largest_difference(base, predict(network, images[order], 'ab', batch_size=size, mode=mode),
                                   order) < 1e-5)


def test_the_published_mode_does_depend_on_the_batch(framework, small):
    "Otherwise the tests above would show nothing"
    network, info = framework
    alone = predict(network, small, info.classes, batch_size=1, mode='batch')
    assert largest_difference(alone, predict(network, small, info.classes, mode='batch')) > 1e-4


def test_references_are_balanced_of_the_training_groups_and_saved_with_the_model(models, labelled):
    split = rows(models.diagnosis/'split.csv')
    chosen = [r for r in split if r['reference'] == 'True']
    assert {r['split'] for r in chosen} == {'train'}
    counts = [sum(r['label'] == c for r in chosen) for c in ('healthy', 'ill')]
    assert counts[0] == counts[1] > 0
    network, _ = load_model(models.diagnosis)
    stored = {tuple(x.flatten().tolist()) for x in network.references.lr}
    files = ({tuple(to_uint8(degrade(as_float(read_image(labelled/r['file'], 3)), 2)).flatten().tolist())
              for r in chosen})
    assert stored == files


def test_one_file_gives_what_the_folder_gave(predicted, models, labelled, tmp_path, succeeds):
    every = {r['file']: r for r in rows(predicted/'predictions.csv')}
    some = [labelled/'ill'/'p3__0.png', labelled/'healthy'/'p7__0.png']
    succeeds('predict', *some, '--model', models.diagnosis, '--out', tmp_path/'out', '--images', 'hr',
             '--device', 'cpu', '--no-images')
    columns = [*(f'{h}_{c}' for h in HEADS for c in ('healthy', 'ill')), *GATE]
    found = rows(tmp_path/'out/predictions.csv')
    assert {r['file'] for r in found} == set(map(str, some))
    # single precision, see above
    assert np.abs(numbers(found, columns) - numbers([every[r['file']] for r in found], columns)).max() < 1e-3


# Evaluation and reproducibility

def written(folder): return json.loads((folder/'metrics.json').read_text(encoding='utf-8'))
def promised(folder): return json.loads((folder/'config.json').read_text(encoding='utf-8'))['info']['metrics']


def same(a, b): # also where both are undefined
    assert a.keys() == b.keys()
    for k in a:
        assert a[k] == (pytest.approx(b[k], abs=1e-5, nan_ok=True) if isinstance(a[k], float) else b[k]), k


@pytest.mark.parametrize('name', ['lr', 'diagnosis'])
def test_evaluate_reproduces_the_test_of_the_training(name, models, labelled, tmp_path, succeeds):
    folder = getattr(models, name)
    printed = succeeds('evaluate', '--model', folder, '--data', labelled, '--out', tmp_path/'out', '--device',
                       'cpu')
    same(written(tmp_path/'out'), promised(folder))
    assert (printed.split('accuracy ')[1][:5] == models.printed[name].split(
                    'accuracy ')[-1][:5] == f'{promised(folder)["accuracy"]:.3f}')
    test = {r['file']: r['label'] for r in rows(folder/'split.csv') if r['split'] == 'test'}
    table = rows(tmp_path/'out/predictions.csv')
    assert {r['file']: r['true'] for r in table} == test
    assert np.mean([r['label'] == r['true'] for r in table]) == pytest.approx(promised(folder)['accuracy'])
    counts = [[int(r[c]) for c in ('healthy', 'ill')] for r in rows(tmp_path/'out/confusion.csv')]
    assert (np.sum(counts) == len(test)
            and np.trace(counts)/len(test) == pytest.approx(promised(folder)['accuracy']))


def test_evaluate_reproduces_the_test_of_the_sr_network(models, sr_folder, tmp_path, succeeds):
    succeeds('evaluate', '--model', models.sr, '--data', sr_folder, '--out', tmp_path/'out', '--device',
             'cpu')
    same(written(tmp_path/'out'), promised(models.sr))


def test_all_images_are_tested_if_asked(models, labelled, tmp_path, succeeds):
    succeeds('evaluate', '--model', models.lr, '--data', labelled, '--out', tmp_path/'out', '--split', 'all')
    assert written(tmp_path/'out')['n'] == 24 == len(rows(tmp_path/'out/predictions.csv'))


def test_metrics_are_json_for_everybody(models, tmp_path, fill_labelled, succeeds):
    "Undefined metrics must not become NaN, which is not JSON"
    def fail(name): raise AssertionError(f'{name} is not JSON')
    for path in models.lr/'config.json', models.diagnosis/'config.json', models.sr/'config.json':
        json.loads(path.read_text(encoding='utf-8'), parse_constant=fail)
    data = fill_labelled(tmp_path/'data')
    lines = (data/'labels.csv').read_text(encoding='utf-8').splitlines()
    part = lambda line: 'split' if line == lines[0] else 'train' if line.endswith(
            tuple(f'p{k}' for k in range(2, 10))) else 'valid' if line.endswith('p1') else 'test'
    # one class in the test part: no AUC
    few = [f'{line},{part(line)}' for line in lines if not ('ill,' in line and part(line) == 'test')]
    (data/'labels.csv').write_text('\n'.join(few) + '\n', encoding='utf-8')
    train = ['train-diagnosis', '--data', data/'labels.csv', '--images', 'hr', '--inputs', 'LR', '--scale', 2,
             '--epochs', 1, '--batch-size', 8, '--device', 'cpu']
    succeeds(*train, '--out', tmp_path/'model')
    succeeds('evaluate', '--model', tmp_path/'model', '--data', data/'labels.csv', '--out', tmp_path/'out')
    for path in tmp_path/'model'/'config.json', tmp_path/'out'/'metrics.json':
        json.loads(path.read_text(encoding='utf-8'), parse_constant=fail)


def weights(folder): return load_file(folder/'model.safetensors')


def test_an_sr_training_is_reproducible(models, sr_folder, tmp_path, succeeds, tiny_sr):
    train = ['train-sr', '--data', sr_folder, *tiny_sr]
    succeeds(*train, '--out', tmp_path/'again')
    succeeds(*train, '--out', tmp_path/'other', '--seed', 1)
    assert promised(tmp_path/'again') == promised(models.sr)
    first, again, other = weights(models.sr), weights(tmp_path/'again'), weights(tmp_path/'other')
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert any(not torch.equal(v, other[k]) for k, v in first.items())
    assert (tmp_path/'again/split.csv').read_bytes() == (models.sr/'split.csv').read_bytes()


def test_a_diagnosis_training_is_reproducible(models, labelled, tmp_path, succeeds, tiny_diagnosis):
    succeeds('train-diagnosis', '--data', labelled, '--out', tmp_path/'again', '--sr', models.sr, '--images',
             'hr', *tiny_diagnosis)
    same(promised(tmp_path/'again'), promised(models.diagnosis))
    first, again = weights(models.diagnosis), weights(tmp_path/'again')
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert (tmp_path/'again/split.csv').read_bytes() == (models.diagnosis/'split.csv').read_bytes()
    (tmp_path/'again/model.safetensors').unlink() # 100 MB


@pytest.mark.parametrize('fixed', [True, False])
def test_a_fixed_network_stays_as_it_was(fixed, models, labelled, tmp_path, succeeds, tiny_diagnosis):
    succeeds('train-diagnosis', '--data', labelled, '--out', tmp_path/'out', '--sr', models.sr, '--inputs',
             'SR', '--images', 'hr', *tiny_diagnosis, *(['--fixed'] if fixed else []))
    before, after = weights(models.sr), weights(tmp_path/'out')
    assert all(torch.equal(v, after[f'sr_network.{k}']) for k, v in before.items()) == fixed


# Every way to train

@pytest.mark.parametrize('inputs', ['ILR', 'HR', 'LR+LR', 'LR+ILR', 'LR+HR'])
def test_every_input_can_be_trained_tested_and_used(inputs, labelled, tmp_path, succeeds, tiny_diagnosis):
    succeeds('train-diagnosis', '--data', labelled, '--out', tmp_path/'out', '--inputs', inputs, '--images',
             'hr', *tiny_diagnosis)
    succeeds('evaluate', '--model', tmp_path/'out', '--data', labelled, '--device', 'cpu')
    succeeds('predict', labelled/'ill', '--model', tmp_path/'out', '--out', tmp_path/'seen', '--images', 'hr',
             '--device', 'cpu')
    table = rows(tmp_path/'seen/predictions.csv')
    assert len(table) == 12 and ('gate_sr' in table[0]) == ('+' in inputs) and 'sr_image' not in table[0]
    (tmp_path/'out/model.safetensors').unlink()


@pytest.mark.parametrize('options', [['--recipe', 'published'], ['--recursions', 2, '--supervise-steps'],
                                     ['--precision', 'bf16'], ['--channels', 'grey'], ['--size', 16]],
                         ids=lambda o: o[0])
def test_options_of_an_sr_training(options, sr_folder, tmp_path, succeeds, tiny_sr):
    succeeds('train-sr', '--data', sr_folder, '--out', tmp_path/'out', *tiny_sr, *options)
    assert load_model(tmp_path/'out', 'sr', 2)[0].config['image_channels'] == (1 if 'grey' in options else 3)


@pytest.mark.parametrize('options',
                         [['--recipe', 'published'], ['--precision', 'bf16'], ['--channels', 'grey']],
                         ids=lambda o: o[0])
def test_options_of_a_diagnosis_training(options, labelled, tmp_path, succeeds, tiny_diagnosis):
    succeeds('train-diagnosis', '--data', labelled, '--out', tmp_path/'out', '--inputs', 'LR', '--images',
             'hr', *tiny_diagnosis, *options)
    assert load_model(tmp_path/'out', 'diagnosis')[0].config['channels'] == (1 if 'grey' in options else 3)


@pytest.mark.parametrize('epochs, phase1, distilled', [(1, 0.5, 2), (3, 0.5, 4), (2, 0, 0)])
def test_a_share_of_the_epochs_distils(epochs, phase1, distilled, models, sr_folder, tmp_path, succeeds):
    "Two steps an epoch; rounding must not skip the distillation altogether"
    succeeds('distill', '--data', sr_folder, '--teacher', models.teacher, '--out', tmp_path/'out', '--patch',
             16, '--device', 'cpu', '--epochs', epochs, '--steps', 2, '--phase1', phase1)
    assert sum(float(r['distil_f_lr']) > 0 for r in rows(tmp_path/'out/steps.csv')) == distilled


# The report, and the dependence on the batch

@pytest.fixture(scope='module')
def report_of(models, labelled, succeeds, tmp_path_factory):
    "A function: name of a model → report.html of its evaluation"
    def report_of(name, *more):
        out = tmp_path_factory.mktemp('report')/'out'
        succeeds('evaluate', '--model', getattr(models, name), '--data', labelled, '--split', 'all', '--out',
                 out, '--device', 'cpu', *more)
        return (out/'report.html').read_text(encoding='utf-8')
    return report_of


def sections(page): return [s for s in re.findall(r'<h2[^>]*>([^<]+)', page) if s != 'Contents']


def test_the_report_shows_everything_and_needs_no_network(report_of):
    page = report_of('diagnosis')
    assert (sections(page) == ['Right and wrong', 'How sure it may be', 'Whom the gate trusts',
                               'What it looked at', 'How it was made'])
    for words in ('Reliability diagram', 'Risk-coverage', 'Grad-CAM', 'Affinity matrices', 'Embedding, pca',
                  'Embedding, tsne', 'Not for diagnostic use', 'temperature'):
        assert words in page, words
    assert 'src="http' not in page and 'href="http' not in page


def test_the_report_of_a_single_branch_leaves_out_what_it_has_not(report_of):
    page = report_of('lr')
    assert ('Whom the gate trusts' not in sections(page) and 'Affinity matrices' not in page
            and 'Grad-CAM' in page)


def test_the_report_says_when_the_answers_depend_on_the_batch(report_of):
    assert 'depends on the other images' in report_of('diagnosis', '--mode', 'batch')
    assert 'not the one that this model was trained for' in report_of('diagnosis', '--mode', 'solo')


def test_batch_dependence_is_found_where_it_is_and_nowhere_else(framework, small, labelled):
    network, info = framework
    labels = np.arange(len(small)) % 2
    table = batch_dependence(network, small, labels, info.classes, sizes=(2, 8), shuffles=4)
    table = table.set_index(['mode', 'batch_size', 'order'])
    assert set(table.index.get_level_values('mode')) == {'context', 'solo', 'batch'}
    for size in (2, 8):
        for mode in ('context', 'solo'):
            assert (table.loc[(mode, size, 'shuffled'), 'largest'] < 1e-5
                    and table.loc[(mode, size, 'shuffled'), 'flips'] == 0)
        assert table.loc[('batch', size, 'shuffled'), 'largest'] > 1e-5


def test_spread_by_hand():
    found = spread_of([[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 1, 1]],
                      [[0.9, 0.4, 0.2, 0.6], [0.8, 0.6, 0.2, 0.6], [0.9, 0.4, 0.2, 0.3]])
    assert found == pytest.approx(dict(flips=2/8, unstable=2/4, spread=0.15, largest=0.3))


def test_results_are_whole_where_an_open_lock_cannot_be_removed(tmp_path, monkeypatch):
    import srdiag.commands.results as results
    remove, release = Path.unlink, FileLock.release
    def unlink(path, missing_ok=False): # as on Windows: what is open is not removed
        if path.name == '.lock': raise PermissionError(13, 'in use', str(path))
        remove(path, missing_ok)
    def released(lock): # and a lock removes itself
        release(lock)
        remove(Path(lock.lock_file))
    monkeypatch.setattr(Path, 'unlink', unlink)
    monkeypatch.setattr(FileLock, 'release', released)
    about = dict(model='model', weights_sha256='0'*64, shards=None, files=None)
    for again in (False, True):
        place = results.check_place_of_results(tmp_path/'out', again)
        with results.Results(place, about) as kept: kept.room()
        assert not [p for p in (tmp_path/'out').iterdir() if p.name.startswith('unfinished')]


# Several modes at once

def test_modes_at_once_are_the_predictions_one_by_one():
    torch.manual_seed(0)
    model = SREnhancedDiagnosis(2, 2, channels=1, width=16, lr_stem='3x3', sr_stem='3x3s2',
                                sr=dict(channels=4, blocks=1))
    x, order = (torch.rand(20, 1, 16, 16)*255).byte(), torch.randperm(20)
    with pytest.raises(ModelError, match='no reference images'): predict_in_modes(model, ['context'], x, 'ab')
    model(x.float()/255)
    model.remember(x[:4])
    found = predict_in_modes(model, ['batch', 'context', 'solo', 'batch'], x, 'ab', batch_size=8, order=order)
    assert [*found] == ['batch', 'context', 'solo'] and model.training
    for mode, p in found.items():
        alone = predict(model, x, 'ab', None, 8, mode, order)
        np.testing.assert_array_equal(p.probabilities['ens'], alone.probabilities['ens'])
        np.testing.assert_array_equal(p.gate, alone.gate)
