"The row with a frozen extractor: what it reads, how its head is chosen, and how it is kept."
import json

import pandas as pd
import pytest
import torch
from torch import nn

from srdiag.core.errors import DataError, ModelError
from srdiag.data.phantom import write_lesion_folder
from srdiag.data.degradation import upsample
from srdiag.data.pairs import LabelledPairs
from srdiag.datasets.reading import read_labelled
from srdiag.bench.diagnosis_store import DiagnosisStore
from srdiag.bench.labels_rows import LINEAR_ROWS
from srdiag.bench.labels_store import LabelsStore
from srdiag.bench.rows import TABLES, Row, linear_rows, pairs_of, rows_of
from srdiag.bench.settings import Design
from srdiag.diagnosis.frozen import (
    DEVIATION, MEAN, STRENGTHS, Frozen, FrozenImages, LinearRow, features_of, fit_head, frozen_named,
    frozen_row, load_linear, make_extractor, save_linear)
from srdiag.diagnosis.branches import ResNet18Branch
from srdiag.sr.mrcnet import MRCNet
from srdiag.training.options import RunOptions


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('lesions')/'set'
    return read_labelled(write_lesion_folder(root, 4), None, RunOptions()).split(seed=0)


def blind(inputs='HR', **changes): return Frozen(weights='random', inputs=inputs, **changes)


def pairs(n=5, side=32, channels=3, kind='hr'):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=g)
    return LabelledPairs(list(images), [k % 2 for k in range(n)], 2, kind)


# --- features ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('channels', [1, 3, 4])
def test_the_features_are_the_means_of_four_stages(channels):
    extractor, x = make_extractor(blind(), channels), torch.rand(2, channels, 40, 32)
    def as_read(v): return torch.tensor(v)[:, None, None] if channels == 3 else sum(v)/3
    mean, deviation = as_read(MEAN), as_read(DEVIATION)
    with torch.no_grad():
        h, wanted = extractor.branch.stem((x - mean)/deviation), []
        for stage in extractor.branch.stages:
            h = stage(h)
            wanted.append(h.mean((2, 3)))
        torch.testing.assert_close(extractor(x), torch.cat(wanted, 1))


def test_frozen_means_frozen():
    extractor = make_extractor(blind(), 3)
    before = {k: v.clone() for k, v in extractor.state_dict().items()}
    extractor.train()
    extractor(torch.rand(4, 3, 32, 32))
    assert not any(m.training for m in extractor.modules())
    assert not any(p.requires_grad for p in extractor.parameters())
    assert all(torch.equal(v, extractor.state_dict()[k]) for k, v in before.items())


def test_a_seed_is_a_network_and_disturbs_nobody():
    torch.manual_seed(5)
    a, state = make_extractor(blind(seed=1), 3), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), state)
    b, c = make_extractor(blind(seed=1), 3), make_extractor(blind(seed=2), 3)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(a(x), b(x)) and not torch.equal(a(x), c(x))


@pytest.mark.parametrize('inputs', ['LR', 'ILR', 'SR', 'HR'])
def test_batches_do_not_matter_and_each_input_is_another(inputs):
    torch.manual_seed(0)
    sr, seen = MRCNet(2, channels=8, blocks=1).train(), pairs()
    extractor = make_extractor(blind(inputs), 3)
    one, all_of = (features_of(extractor, seen, blind(inputs), sr, batch_size=n) for n in (2, 32))
    torch.testing.assert_close(one, all_of, rtol=1e-4, atol=1e-5)
    assert sr.training # as it was
    if inputs != 'HR':
        sharp = features_of(extractor, seen, blind('HR'))
        assert not torch.allclose(sharp, all_of, atol=1e-3)


def test_side_resizes_whatever_is_read():
    extractor = make_extractor(blind(side=48), 3)
    extractor.branch.register_forward_pre_hook(lambda *_: None)
    shapes = []
    stem = extractor.branch.stem
    extractor.branch.stem = lambda x: shapes.append(x.shape[-2:]) or stem(x)
    extractor(torch.rand(1, 3, 20, 30))
    assert shapes == [(48, 48)]


def test_weights_of_a_file(tmp_path):
    torch.manual_seed(7)
    state = ResNet18Branch().state_dict()
    torch.save(state, tmp_path/'w.pth')
    extractor = make_extractor(Frozen(weights=f'imagenet:{tmp_path/"w.pth"}'), 3)
    assert torch.equal(extractor.branch.state_dict()['layer1.0.conv1.weight'], state['layer1.0.conv1.weight'])


# --- head -------------------------------------------------------------------------------------------------

def blobs(n, classes, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return torch.randn(n, 12, generator=g) + 4*torch.eye(12)[y], y


@pytest.mark.parametrize('classes', [2, 3, 5])
def test_the_head_is_scikit_learns(classes):
    from sklearn.linear_model import LogisticRegression
    (x, y), valid, (z, t) = blobs(90, classes, 0), blobs(60, classes, 1), blobs(60, classes, 2)
    head, strength = fit_head((x, y), valid, classes)
    mean, deviation = x.mean(0), x.std(0)
    model = LogisticRegression(C=strength, max_iter=500).fit((x - mean)/deviation, y)
    wanted = torch.as_tensor(model.predict_proba(((z - mean)/deviation).numpy()), dtype=torch.float32)
    torch.testing.assert_close(head(z).softmax(1), wanted, rtol=1e-3, atol=1e-4)
    assert (head(z).argmax(1) == t).float().mean() > 0.9


def test_a_class_without_images_is_never_said():
    (x, y), valid = blobs(60, 2, 0), blobs(40, 2, 1)
    head, _ = fit_head((x, 2*y), (valid[0], 2*valid[1]), 3)
    assert head(x).softmax(1)[:, 1].max() < 1e-6 and isinstance(head, nn.Linear)


def test_one_class_cannot_be_told_apart():
    x, _ = blobs(10, 2, 0)
    with pytest.raises(DataError, match='one class'): fit_head((x, torch.zeros(10)), (x, torch.zeros(10)), 2)


# --- row --------------------------------------------------------------------------------------------------

def test_the_row_has_what_the_tables_have(data):
    model, metrics = frozen_row(data, blind())
    assert {'accuracy', 'f1', 'kappa', 'mcc', 'auc', 'n', 'accuracy_low', 'accuracy_high',
            'interval'} <= {*metrics}
    assert metrics['accuracy_low'] <= metrics['accuracy'] <= metrics['accuracy_high']
    assert 'learned nothing' in metrics['row'] and metrics['features'] == 960
    test = data.pairs('test', 2, 'hr')
    with torch.no_grad(): said = model(test.batch(list(range(len(test))))[1]).argmax(1)
    assert (said == test.labels).float().mean().item() == pytest.approx(metrics['accuracy'])


def test_kept_and_read_again(data, tmp_path):
    model, _ = frozen_row(data, blind('ILR', side=40))
    folder = save_linear(tmp_path/'linear', model)
    again, x = load_linear(folder), torch.rand(2, 3, 40, 40)
    assert torch.equal(again(x), model(x)) and again.classes == data.classes and not again.training
    assert again.settings == model.settings and not any(p.requires_grad for p in again.parameters())
    with pytest.raises(DataError, match='choose another name'): save_linear(folder, model)
    assert json.loads((folder/'config.json').read_text())['notice'] == 'Not for diagnostic use.'


@pytest.mark.parametrize('damage, words', [
    (lambda f: (f/'config.json').unlink(), 'cannot be read'),
    (lambda f: (f/'config.json').write_text('{}'), 'no linear model'),
    (lambda f: (f/'config.json').write_text('{"format": "srdiag linear 1"}'), 'damaged'),
    (lambda f: (f/'model.safetensors').write_bytes(b'x'), 'checksums')])
def test_a_damaged_folder_is_a_sentence(data, tmp_path, damage, words):
    folder = save_linear(tmp_path/'linear', frozen_row(data, blind())[0])
    damage(folder)
    with pytest.raises(ModelError, match=words): load_linear(folder)


@pytest.mark.parametrize('settings, error, words', [
    (dict(network='resnet19'), ModelError, 'Did you mean resnet18'),
    (dict(weights='noise'), DataError, "'random'"), (dict(inputs='XR'), DataError, 'inputs'),
    (dict(inputs='HR', images='lr'), DataError, 'no sharp image'), (dict(side=0), DataError, 'side')])
def test_senseless_settings_are_refused(settings, error, words):
    with pytest.raises(error, match=words): Frozen(**settings)


def test_what_does_not_fit_is_a_sentence(data):
    with pytest.raises(DataError, match='hand one over'): frozen_row(data, blind('SR'))
    with pytest.raises(DataError, match='enlarges 2 times'):
        frozen_row(data, blind('SR', scale=4), MRCNet(2, channels=4, blocks=1))
    with pytest.raises(ModelError, match='There is no file'):
        frozen_row(data, Frozen(weights='imagenet:none.pth'))
    from dataclasses import replace
    with pytest.raises(DataError, match='no parts'): frozen_row(replace(data, parts=None), blind())


# --- without a validation part ----------------------------------------------------------------------------

@pytest.mark.parametrize('n, classes', [(60, 2), (45, 3), (8, 2)])
def test_the_training_part_chooses_where_there_is_no_other(n, classes):
    (z, t) = blobs(60, classes, 2)
    head, strength = fit_head(blobs(n, classes, 0), None, classes)
    assert strength in STRENGTHS and (head(z).argmax(1) == t).float().mean() > 0.85


def test_noise_is_held_back_more_than_what_can_be_told_apart():
    g, y = torch.Generator().manual_seed(0), torch.arange(80) % 2
    assert fit_head((torch.randn(80, 40, generator=g), y), None, 2)[1] < fit_head(blobs(80, 2, 0), None, 2)[1]


def test_one_image_of_a_class_leaves_no_choice():
    x, y = blobs(3, 2, 0)
    assert fit_head((x, y), None, 2)[1] == STRENGTHS[2]


# --- rows of experiments ----------------------------------------------------------------------------------

def test_what_can_be_typed():
    said = frozen_named('timm/resnet10t=imagenet:w.pth', scale=4)
    assert (said.network, said.weights, said.scale, said.name) == ('timm/resnet10t', 'imagenet:w.pth', 4,
                                                                   'timm/resnet10t')
    assert frozen_named('resnet18').weights == 'imagenet'
    assert frozen_named('resnet18=random').name == 'resnet18=random'
    for wrong in ('', '=random', 'resnet18='):
        with pytest.raises(DataError, match='NETWORK=WEIGHTS'): frozen_named(wrong)


def test_features_are_made_once_and_weights_are_known_by_a_fingerprint(tmp_path):
    seen, few = FrozenImages(blind(), 3), pairs()
    said, seconds = seen.of('a', few, inputs='ILR')
    assert seen.of('a', None)[0] is said and seconds > 0
    torch.testing.assert_close(said, features_of(make_extractor(blind(), 3), few, blind('ILR')))
    assert seen.hash == FrozenImages(blind(), 3).hash != FrozenImages(blind(seed=1), 3).hash
    torch.save(ResNet18Branch().state_dict(), tmp_path/'w.pth')
    about = FrozenImages(Frozen(weights=f'imagenet:{tmp_path/"w.pth"}'), 3).about(2)
    assert about['file'] == 'w.pth' and about['weights'] == 'imagenet' and str(tmp_path) not in str(about)


def test_the_whole_row_is_what_its_parts_say():
    torch.manual_seed(0)
    made = dict(network='resnet18', weights='random', scale=2)
    x, row = torch.rand(2, 3, 16, 16), LinearRow(made, 3).eval()
    with torch.no_grad(): assert torch.equal(row(x), row.head(row.extractor(upsample(x, 2, clip=True))))
    sr = MRCNet(2, channels=4, blocks=1)
    whole = LinearRow(made, 3, 3, sr.config)
    added = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in row.parameters())
    assert added == sum(p.numel() for p in sr.parameters())


def test_three_tables_have_the_rows_and_nothing_rests_on_them():
    small = Design(scale=2)
    for name in ('table3', 'table4', 'table5'):
        assert [r.inputs for r in rows_of(name, small, (), ['resnet18']) if r.linear] == ['ILR', 'SR']
        assert not any(r.linear for r in rows_of(name, small, ()))
    assert not any(r.linear for r in rows_of('table9', small, (), ['resnet18']))
    ilr, sr = linear_rows('timm/resnet10t=random')
    assert ilr.key == 'ILR-linear_timm_resnet10t_random-x4' and 'random' in sr.label
    found = pairs_of((*TABLES['table5'], ilr, sr))
    assert (sr, ilr) in found and (TABLES['table5'][-1], ilr) in found
    assert not [a for a, b in found if b == ilr and a not in (sr, TABLES['table5'][-1])]
    for wrong in (dict(inputs='LR+SR'), dict(inputs='LR', peer='jia'), dict(inputs='HR')):
        with pytest.raises(ValueError, match='linear head'): Row('x', linear='resnet18', **wrong)


def experiment(name, labelled, sr_model, out, *more): # of two small rows and both linear ones
    return ('experiment', name, '--data', labelled/'labels.csv', '--sr', sr_model, '--out', out, '--budget',
            'smoke', '--scale', 2, '--width', 16, '--references', 4, '--device', 'cpu', '--precision', 'fp32',
            '--only', 'ILR-x2,ILR-linear_resnet18-x2,SR-linear_resnet18-x2', *more)


@pytest.fixture()
def stand_in(tmp_path): # a file of weights that have learned nothing, in the place of ImageNet's
    torch.manual_seed(1)
    torch.save(ResNet18Branch().state_dict(), tmp_path/'w.pth')
    return f'resnet18=imagenet:{tmp_path/"w.pth"}'


def test_table_v_has_the_row(labelled, sr_model, stand_in, succeeds, refused, tmp_path):
    out, linear = tmp_path/'bench', ('--linear', stand_in)
    succeeds(*experiment('table5', labelled, sr_model, out, *linear, '--keep-models'))
    store, (ilr, sr) = DiagnosisStore(out), (r for r in rows_of('table5', Design(scale=2), (), ['resnet18'])
                                             if r.linear)
    one, two, plain = (store.metrics(r, 0, 0) for r in (ilr, sr, Row('ILR', 'ILR', scale=2)))
    assert one['network'] is None and two['network'] and one['strength'] in STRENGTHS
    assert two['parameters'] > one['parameters'] > 11e6 and one['seconds'] > 0
    assert one['metrics']['n'] == plain['metrics']['n'] # the same test images
    files = [set(store.predictions(r, 0, 0).file) for r in (ilr, Row('ILR', 'ILR', scale=2))]
    assert files[0] == files[1]
    assert load_linear(store.path(ilr, 0, 0)/'model').settings.inputs == 'ILR'
    text, readme = ((out/name).read_text(encoding='utf-8') for name in ('table5.md', 'README.md'))
    assert 'Linear resnet18, ILR' in text and 'parameters' in text
    assert 'as far as the file w.pth tells' in readme and str(tmp_path) not in str(one['config'])
    gains = pd.read_csv(out/'gains.csv')
    assert ('Linear resnet18, SR', 'Linear resnet18, ILR') in set(zip(gains.label, gains.against))
    assert not (out/'table3.md').exists() # the linear rows alone make no other table
    torch.save(ResNet18Branch().state_dict(), tmp_path/'w.pth') # other weights under the same name
    refused(*experiment('table5', labelled, sr_model, out, *linear), naming=('other weights', '--linear'))


def test_costs_of_the_row_stand_in_table_iii(labelled, sr_model, succeeds, tmp_path):
    out = tmp_path/'bench'
    argv = [*experiment('table3', labelled, sr_model, out, '--linear', 'resnet18=random')]
    argv[argv.index('--only') + 1] = 'ILR-linear_resnet18_random-x2,SR-linear_resnet18_random-x2'
    succeeds(*argv)
    assert 'learned nothing' in (out/'README.md').read_text(encoding='utf-8')
    assert 'Linear resnet18 (random), SR' in (out/'table3.md').read_text(encoding='utf-8')


def test_what_does_not_fit_the_tables_is_a_sentence(labelled, sr_model, refused, tmp_path):
    for more, words in ((('--linear', 'resnet19'), 'Did you mean resnet18'),
                        (('--linear', 'resnet18=imagenet:none.pth'), 'There is no file none.pth')):
        refused(*experiment('table5', labelled, sr_model, tmp_path/'x', *more), naming=(words,))
    refused(*experiment('table8', labelled, sr_model, tmp_path/'x', '--linear', 'resnet18'),
            naming=('no linear rows', 'table3, table4, table5'))


@pytest.mark.parametrize('name', ['labels', 'interactions'])
def test_experiments_on_labels_have_the_row(name, labelled, sr_model, stand_in, succeeds, refused,
                                            tmp_path):
    out, only = tmp_path/'out', dict(labels='ILR', interactions='SR,LR+SR-concatenation')[name]
    common = ('experiment', name, '--data', labelled, '--sr', sr_model, '--out', out, '--scale', 2,
              '--labels-n', '8', '--steps', '3,9', '--folds', 2, '--seeds', 1, '--batch-size', 4,
              '--width', 4, '--only', f'{only},{",".join(LINEAR_ROWS)}', '--only-fold', 0)
    refused(*common, naming=('ILR-linear', '--linear resnet18'))
    succeeds(*common, '--linear', stand_in)
    store = LabelsStore(out)
    arm = next(a for a in store.arms() if a.row.name == 'ILR-linear')
    m, found = store.metrics(arm, 0, 0), store.frozen()
    assert m['accuracy']['3'] == m['accuracy']['9'] and m['parameters'] > 11e6
    assert found['learned'] == 2*961 and found['file'] == 'w.pth'
    text = (out/'README.md').read_text(encoding='utf-8')
    assert 'ILR-linear' in text and '11.1' in text and 'It learns 1922 numbers' in text
    refused(*common, '--linear', 'resnet18=random', naming=('were made with resnet18',))
