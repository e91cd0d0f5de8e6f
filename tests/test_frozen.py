"The row with a frozen extractor: what it reads, how its head is chosen, and how it is kept."
import json

import pytest
import torch
from torch import nn

from srdiag.core.errors import DataError, ModelError
from srdiag.data.phantom import write_lesion_folder
from srdiag.data.pairs import LabelledPairs
from srdiag.datasets.reading import read_labelled
from srdiag.diagnosis.frozen import (
    DEVIATION, MEAN, Frozen, features_of, fit_head, frozen_row, load_linear, make_extractor, save_linear)
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
    mean, deviation = ((torch.tensor(v)[:, None, None] if channels == 3 else sum(v)/3) for v in (MEAN, DEVIATION))
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
    assert {'accuracy', 'f1', 'kappa', 'mcc', 'auc', 'n', 'accuracy_low', 'accuracy_high', 'interval'} <= {*metrics}
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
    with pytest.raises(ModelError, match='There is no file'): frozen_row(data, Frozen(weights='imagenet:none.pth'))
    from dataclasses import replace
    with pytest.raises(DataError, match='no parts'): frozen_row(replace(data, parts=None), blind())
