"""Two networks that were trained alone become branches of one framework: nothing they know is lost, what does
not fit is said before anything is trained, and what was trained is kept."""
import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from srdiag.commands import train_diagnosis as command
from srdiag.core.errors import DataError, ModelError
from srdiag.data.images import as_float
from srdiag.data.pairs import LabelledPairs
from srdiag.data.phantom import write_lesion_folder
from srdiag.diagnosis import joint_training
from srdiag.diagnosis.inference import predict
from srdiag.diagnosis.joining import BRANCHES, OPEN, join, single_of
from srdiag.diagnosis.joint_training import share_epochs, train_branch, train_joined
from srdiag.diagnosis.losses import DiagnosisLoss
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.diagnosis.settings import FrameworkSettings
from srdiag.diagnosis.training import parameter_groups, rate_factors, train_diagnosis
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.models.split import read_split
from srdiag.training.loop import KeepBest
from srdiag.training.options import RunOptions
from srdiag.training.recipes import DIAGNOSIS_RECIPES, Recipe, diagnosis_recipe

SR = dict(channels=4, blocks=1, stages=1)
SHORT = Recipe(3e-3, 6, steps=4)


def pairs(n, channels=1, seed=0, kind='hr'):
    "Dark and bright noise of 16×16 px, reduced to 8×8"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    images = torch.rand(n, channels, 16, 16, generator=g)*0.5 + 0.3*y.view(-1, 1, 1, 1)
    return LabelledPairs(list(images), y, 2, kind)


def framework(inputs='LR+SR', channels=1, seed=0, **changes):
    torch.manual_seed(seed)
    plain = dict(lr_stem='3x3', sr_stem='3x3s2', sr=SR, width=8, mutual='mean', statistics='each')
    return SREnhancedDiagnosis(2, 2, inputs, channels=channels, **plain | changes)


def answers(model, part, **kw): # in eval mode
    x = [as_float(t) for t in (part.lr, part.hr) if t is not None]
    with torch.no_grad(): return model.eval()(*x, **kw)


def same(a, b): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# The join does no harm

CASES = [('LR+SR', True, 3, True, 'each'), ('LR+SR', False, 1, False, 'none'),
         ('LR+SR', True, 1, False, 'shared'), ('LR+ILR', True, 1, True, 'none'),
         ('LR+ILR', False, 3, True, 'each'), ('LR+HR', True, 3, False, 'each'),
         ('LR+HR', False, 1, True, 'shared'), ('LR+LR', True, 1, True, 'each'),
         ('LR+LR', False, 3, False, 'none')]


@pytest.mark.parametrize('inputs,sai,channels,gate_norm,statistics', CASES)
def test_each_head_answers_as_its_network_did(inputs, sai, channels, gate_norm, statistics):
    model = framework(inputs, channels, sai=sai, gate_norm=gate_norm, statistics=statistics)
    train, new = pairs(24, channels), pairs(7, channels, seed=9)
    singles = ({b: train_branch(model, b, train, pairs(8, channels, 1), SHORT, 2, precision='fp32')
                for b in BRANCHES})
    join(model, singles['lr'], singles['sr'], train)
    assert not model.training
    if sai: model.remember(train.lr[:4], train.hr[:4])
    for mode in ('batch', 'solo', 'context') if sai else ('batch', 'solo'):
        out = answers(model, new, mode=mode)
        for b in BRANCHES: same(getattr(out, b), answers(singles[b], new).ens)
        assert (out.gate[:, :2] - OPEN[0]).abs().max() < 0.3 and out.gate[:, 2].max() < 0.4, out.gate
        assert (out.gate[:, :2].mean(0) - OPEN[0]).abs().max() < 0.15


def test_training_mode_is_hardly_disturbed_either():
    model, train = framework('LR+ILR', mode='solo'), pairs(64)
    singles = {b: train_branch(model, b, train, pairs(8, 1, 1), SHORT, 2, precision='fp32') for b in BRANCHES}
    join(model, singles['lr'], singles['sr'], train)
    before = {b: answers(singles[b], train).ens for b in BRANCHES}
    for k in model.network.interactions:
        for bottleneck in (k.bottleneck_sr, k.bottleneck_lr): bottleneck[2].train()
    small = as_float(train.lr)
    with torch.no_grad(): out = model.network(small, model.large_image(small), 'solo')
    for b in BRANCHES: torch.testing.assert_close(getattr(out, b), before[b], rtol=0.02, atol=0.02)


def test_one_branch_alone_leaves_the_other_fresh():
    model, train = framework('LR+ILR'), pairs(24)
    lr = train_branch(model, 'lr', train, pairs(8, 1, 1), SHORT, 1, precision='fp32')
    fresh = model.network.branch_sr.conv1.weight.clone()
    join(model, lr, None, train)
    new = pairs(5, seed=9)
    same(answers(model, new).lr, answers(lr, new).ens)
    assert torch.equal(model.network.branch_sr.conv1.weight, fresh) and model.joined == ('lr',)
    mean = as_float(train.lr).mean((0, 2, 3))
    same(model.network.normalise_sr.mean.flatten(), mean) # it sees its images normalised
    names = {id(p): name for name, p in model.named_parameters()}
    slow, others = parameter_groups(model)
    assert {names[id(p)].split('.')[1] for p in slow} == {'branch_lr', 'head_lr'}
    assert {'branch_sr', 'head_sr'} <= {names[id(p)].split('.')[1] for p in others}


def test_shared_statistics_of_two_kinds_of_images():
    model, train = framework('LR+ILR', statistics='shared'), pairs(12)
    singles = {b: single_of(model, b) for b in BRANCHES}
    singles['lr'].network.fit_statistics(torch.rand(4, 1, 8, 8))
    with pytest.raises(ModelError, match="statistics='each'"):
        join(model, singles['lr'], singles['sr'], train)
    assert model.joined == ()


def test_images_without_any_difference():
    model, train = framework('LR+ILR'), pairs(4)
    train.lr.fill_(7)
    singles = {b: single_of(model, b).eval() for b in BRANCHES}
    join(model, singles['lr'], singles['sr'], train)
    out = answers(model, train)
    for b in BRANCHES: same(getattr(out, b), answers(singles[b], train).ens)
    assert torch.isfinite(out.ens).all()


# Three trainings with one budget

@pytest.mark.parametrize('epochs,alone,each,together', [(9, 2, 3, 3), (10, 2, 3, 4), (3, 2, 1, 1),
                                                        (9, 1, 3, 6), (9, 0, 3, 9), (1, 2, 1, 1)])
def test_thirds(epochs, alone, each, together): assert share_epochs(epochs, alone) == (each, together)


def steps_in(folder):
    with open(folder/'steps.csv', newline='') as f: return len([*csv.reader(f)]) - 1


def test_total_of_the_steps_and_a_folder_of_logs_each(tmp_path):
    learn, singles = train_joined(framework(), pairs(24), pairs(8, seed=1), SHORT, 6, folder=tmp_path,
                                  precision='fp32')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['joint', 'lr', 'sr']
    assert [steps_in(tmp_path/k) for k in ('lr', 'sr', 'joint')] == [8, 8, 8] # 6 epochs of 4 steps in all
    assert all((p/'log.csv').is_file() for p in tmp_path.iterdir())
    assert ([singles[b].config['inputs'] for b in BRANCHES] == ['LR', 'SR']
            and learn.model.joined == ('lr', 'sr'))


def test_branches_from_outside_are_checked_first_and_get_no_steps(tmp_path, monkeypatch):
    model, train, valid = framework(), pairs(24), pairs(8, seed=1)
    lr = train_branch(model, 'lr', train, valid, SHORT, 1, precision='fp32')
    before = {k: v.clone() for k, v in lr.state_dict().items()}
    _, singles = train_joined(model, train, valid, SHORT, 6, {'lr': lr}, folder=tmp_path, precision='fp32')
    assert singles['lr'] is lr and [steps_in(tmp_path/k) for k in ('sr', 'joint')] == [8, 16]
    assert not (tmp_path/'lr').exists() and all(torch.equal(v, before[k]) for k, v in lr.state_dict().items())
    monkeypatch.setattr(joint_training, 'train_diagnosis',
                        lambda *_, **__: pytest.fail('trained before it looked'))
    for b, other in (('sr', lr), ('lr', model), ('lr', single_of(framework(width=4), 'lr'))):
        with pytest.raises(ModelError): train_joined(framework(), train, valid, SHORT, 6, {b: other})


def test_twins_differ(monkeypatch):
    seeds, real = [], joint_training.train_diagnosis
    def noted(*args, seed, **kw):
        seeds.append(seed)
        return real(*args, seed=seed, **kw)
    monkeypatch.setattr(joint_training, 'train_diagnosis', noted)
    _, singles = train_joined(framework('LR+LR'), pairs(24), pairs(8, seed=1), SHORT, 3, seed=5,
                              precision='fp32')
    assert seeds == [5, 6, 5]
    a, b = (singles[b].network.branch.conv1.weight for b in BRANCHES)
    assert a.shape == b.shape and (a - b).abs().max() > 0.05


@pytest.mark.parametrize('changes', [dict(mode='solo', both_ways=True), dict(mode='solo', solo_share=0.5),
                                     dict(mode='context', mutual='printed'), dict(sai=False)])
def test_the_joined_start_is_kept_where_training_does_not_improve(changes):
    model, train, valid = framework('LR+ILR', **changes), pairs(24), pairs(8, seed=1)
    spoilt = Recipe(3e-3, 6, steps=4, branch_factor=0.)
    learn, singles = train_joined(model, train, valid, spoilt, 6, precision='fp32', references=[0, 1, 2, 3])
    keep, = learn.cbs.filter(lambda cb: isinstance(cb, KeepBest))
    start = {b: answers(singles[b], valid).ens for b in BRANCHES}
    rewards = iter([2., *[0.]*9]) # nothing is as good as the start
    model = framework('LR+ILR', **changes)
    real = KeepBest.offer
    def offer(self, model, value, epoch): real(self, model, next(rewards), epoch)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(KeepBest, 'offer', offer)
        join(model, singles['lr'], singles['sr'], train)
        train_diagnosis(model, train, valid, spoilt, 2, references=[0, 1, 2, 3], precision='fp32')
    out = answers(model, valid)
    for b in BRANCHES: same(getattr(out, b), start[b])
    assert keep.best >= -1e-6


def test_groups_and_their_rates():
    model, train = framework(), pairs(12)
    assert len(parameter_groups(model)) == 2 and rate_factors(model, SHORT) == (0.01, 1.)
    join(model, single_of(model, 'lr'), single_of(model, 'sr'), train)
    groups, names = parameter_groups(model), {id(p): name for name, p in model.named_parameters()}
    assert rate_factors(model, replace(SHORT, branch_factor=0.3)) == (0.01, 0.3, 1.)
    first = [{names[id(p)].removeprefix('network.').split('.')[0] for p in g} for g in groups]
    assert (first == [{'sr_network'}, {'branch_sr', 'branch_lr', 'head_sr', 'head_lr'},
                      {'interactions', 'ensemble'}])
    assert sum(map(len, groups)) == len(names)
    model.sr_network.requires_grad_(False)
    assert rate_factors(model, replace(SHORT, branch_factor=0.3)) == (0.3, 1.)
    assert len(parameter_groups(model)) == 2


# With and without affinity on the same batch

def test_both_ways_in_one_pass():
    model, x, y = framework('LR+ILR').eval(), as_float(pairs(6).lr), torch.arange(6) % 2
    with torch.no_grad(): both, batch, solo = (model(x, mode=m) for m in ('both', 'batch', 'solo'))
    assert len(both.ens) == 12 and both.mutual[0].shape == (6, 6)
    for head in ('ens', 'sr', 'lr', 'aux', 'gate'):
        same(getattr(both, head), torch.cat([getattr(batch, head), getattr(solo, head)]))
    loss, terms = DiagnosisLoss(norm='mean_square'), []
    for out in (both, batch, solo):
        loss(out, y)
        terms.append({k: float(v) for k, v in loss.components.items()})
    for k in ('ce', 'rank'): assert terms[0][k] == pytest.approx((terms[1][k] + terms[2][k])/2, abs=1e-4)
    for k in ('sac', 'sar'): assert terms[0][k] == pytest.approx(terms[1][k], abs=1e-4) and terms[2][k] == 0


def test_solo_does_not_care_who_else_is_there():
    model, part = framework('LR+ILR', mode='solo', both_ways=True), pairs(9, seed=2)
    train_diagnosis(model, pairs(24), pairs(8, seed=1), SHORT, 1, precision='fp32')
    all_at_once = predict(model, part.lr, ['a', 'b']).probabilities['ens']
    alone = np.concatenate([predict(model, x[None], ['a', 'b']).probabilities['ens'] for x in part.lr])
    assert np.abs(all_at_once - alone).max() < 1e-5


# Folders

def save_single(folder, inputs='LR', classes=('healthy', 'ill'), **changes):
    # of a network that fits `labelled`
    torch.manual_seed(3)
    plain = dict(lr_stem='3x3', sr_stem='3x3', sr=SR, width=8, mode='solo')
    model = SREnhancedDiagnosis(len(classes), inputs=inputs, **dict(scale=2) | plain | changes)
    return save_model(folder, model, ModelInfo('a branch', 'hr', None, [8, 8], list(classes)))


@pytest.fixture
def argv(labelled, tmp_path, tiny_diagnosis):
    "A function: options → those of a training of a framework of width 8 into tmp_path/x"
    def argv(*more):
        return ['train-diagnosis', '--data', labelled, '--out', tmp_path/'x', '--images', 'hr', '--width', 8,
                '--mode', 'solo', *tiny_diagnosis, *more]
    return argv


@pytest.fixture(scope='module')
def joined(labelled, models, tmp_path_factory, tiny_diagnosis, succeeds):
    "A framework and its branches, trained by the command; tests may read it"
    out = tmp_path_factory.mktemp('joined')/'x'
    printed = succeeds('train-diagnosis', '--data', labelled, '--out', out, '--images', 'hr', '--sr',
                       models.sr, '--width', 8, *tiny_diagnosis, '--epochs', 3)
    return out, printed


def test_branches_are_models_of_their_own(joined, labelled, tile, tmp_path, succeeds):
    out, printed = joined
    assert ('The LR branch alone (LR), 1 epoch' in printed and 'The SR branch alone (SR), 1 epoch' in printed
            and 'Both branches together, 1 epoch' in printed)
    for b in ('LR', 'SR'):
        model, info = load_model(folder := out/'branches'/b, 'diagnosis')
        assert (model.config['inputs'] == b and info.metrics['n'] and info.calibration
                and info.training['seconds'] > 0)
        assert {'README.md', 'split.csv', 'log.csv', 'steps.csv'} <= {p.name for p in folder.iterdir()}
        assert f'# {b}, healthy / ill' in (folder/'README.md').read_text()
        assert read_split(folder).equals(read_split(out).drop(columns='reference', errors='ignore')
                                         [read_split(folder).columns])
        said = succeeds('evaluate', '--model', folder, '--data', labelled, '--device', 'cpu')
        assert f'accuracy {info.metrics["accuracy"]:.3f}' in said
        succeeds('predict', labelled/'ill', '--model', folder, '--out', tmp_path/b, '--images', 'hr')
        assert [*(tmp_path/b).rglob('*.csv')]
    _, info = load_model(out)
    assert info.training['epochs_of_branches'] == 2 and info.training['epochs'] == 1
    assert info.training['lr_branch'] == info.training['sr_branch'] == 'trained alone first'


def test_branches_from_folders(joined, argv, tmp_path, succeeds):
    theirs = joined[0]/'branches'
    printed = succeeds(*argv('--lr-branch', theirs/'LR', '--sr-branch', theirs/'SR', '--epochs', 2))
    assert 'alone' not in printed and 'Both branches together, 2 epochs' in printed
    assert not (tmp_path/'x'/'branches').exists()
    _, info = load_model(tmp_path/'x')
    assert info.training['lr_branch'] == str(theirs/'LR') and info.training['epochs_of_branches'] == 0
    printed = succeeds(*argv('--lr-branch', theirs/'LR', '--sr-branch', 'scratch', '--overwrite'))
    assert 'alone' not in printed and 'Both branches together' in printed


def test_branches_from_scratch_are_not_joined(argv, tmp_path, succeeds):
    printed = succeeds(*argv('--lr-branch', 'scratch', '--sr-branch', 'scratch', '--inputs', 'LR+ILR'))
    assert 'alone' not in printed and 'together' not in printed
    assert not (tmp_path/'x'/'branches').exists()
    assert load_model(tmp_path/'x')[1].training['lr_branch'] == 'scratch'


def test_a_branch_that_has_seen_the_test_part(joined, argv, succeeds):
    lr = joined[0]/'branches'/'LR'
    assert 'flatter' not in succeeds(*argv('--inputs', 'LR+ILR', '--lr-branch', lr, '--sr-branch', 'scratch'))
    said = succeeds(*argv('--inputs', 'LR+ILR', '--lr-branch', lr, '--sr-branch', 'scratch', '--seed', 3,
                          '--overwrite'))
    assert 'of the test part, which will flatter the result' in said


def test_from_imagenet(labelled, tmp_path, argv, succeeds, refused):
    state = resnet18().state_dict()
    torch.save(state, tmp_path/'a.pth')
    imagenet = f'imagenet:{tmp_path/"a.pth"}'
    refused(*argv('--sr-branch', imagenet), naming=['64 channels wide, not 8', 'scratch'])
    refused(*argv('--width', 64, '--sr-branch', 'imagenet:'), naming=['names no file'])
    refused(*argv('--width', 64, '--sr-branch', f'imagenet:{tmp_path/"b.pth"}'), naming=['There is no file'])
    made = {}
    real = command.start_branch
    def noted(branch, file):
        made['kernel'] = real(branch, file).layer4[1].conv2.weight.clone()
        return branch
    with pytest.MonkeyPatch.context() as m:
        m.setattr(command, 'start_branch', noted)
        succeeds(*argv('--width', 64, '--inputs', 'LR+ILR', '--lr-branch', imagenet, '--sr-branch',
                       'scratch'))
    assert torch.equal(made['kernel'], state['layer4.1.conv2.weight'])
    assert load_model(tmp_path/'x'/'branches'/'LR')[1].training['start'] == 'imagenet'


# What does not fit is said before anything is trained or written

@pytest.fixture
def nothing_trains(monkeypatch):
    monkeypatch.setattr(command, 'train_diagnosis', lambda *_, **__: pytest.fail('trained before it looked'))


@pytest.mark.parametrize('option,single,words', [('lr', dict(classes=('a', 'b')),
                                                  ['knows the classes a, b', 'healthy, ill']),
                                                 ('lr', dict(classes=('ill', 'healthy')), ['same order']),
                                                 ('lr', dict(classes=('healthy', 'ill', 'unclear')),
                                                  ['unclear']),
                                                 ('lr', dict(channels=1), ['channels is 1, but 3']),
                                                 ('lr', dict(width=16), ['width is 16, but 8']),
                                                 ('lr', dict(lr_stem='7x7'), ['stem is 7x7, but 3x3']),
                                                 ('lr', dict(inputs='ILR'), ['input is ILR, but LR']),
                                                 ('lr', dict(inputs='LR+ILR'),
                                                  ['not a network with one branch', 'reads LR alone']),
                                                 ('sr', dict(), ['input is LR, but SR']),
                                                 ('sr', dict(inputs='LR+SR'),
                                                  ['not a network with one branch']),
                                                 ('sr', dict(inputs='SR', channels=1),
                                                  ['channels is 1, but 3']),
                                                 ('sr', dict(inputs='SR', scale=4), ['scale is 4, but 2']),
                                                 ('sr', dict(inputs='SR', sr_stem='3x3s2'),
                                                  ['stem is 3x3s2, but 3x3'])])
def test_a_branch_that_does_not_fit(argv, tmp_path, refused, nothing_trains, option, single, words):
    folder = save_single(tmp_path/'single', **single)
    refused(*argv(f'--{option}-branch', folder), naming=[folder, *words])
    assert not (tmp_path/'x').exists()


def test_models_in_each_others_place(argv, tmp_path, models, refused, nothing_trains):
    single = save_single(tmp_path/'single')
    refused(*argv('--lr-branch', models.sr), naming=[models.sr, 'a model for sr, but one for diagnosis'])
    refused(*argv('--sr', single), naming=[single, 'a model for diagnosis, but one for sr'])
    refused(*argv('--lr-branch', tmp_path/'none'), naming=[tmp_path/'none'])
    refused(*argv('--inputs', 'LR', '--lr-branch', single), naming=['LR is a single branch', '--lr-branch'])
    refused(*argv('--inputs', 'SR', '--sr-branch', 'scratch'),
            naming=['SR is a single branch', '--sr-branch'])
    sr = save_single(tmp_path/'sr', 'SR')
    refused(*argv('--sr', models.sr, '--sr-branch', sr), naming=[sr, 'leave out --sr'])


def test_the_same_in_python(labelled, tmp_path, nothing_trains, snapshot):
    options = RunOptions(1, device='cpu', precision='fp32')
    folder, before = save_single(tmp_path/'single', width=16), snapshot(tmp_path)
    for kw, words in ((dict(lr_branch=str(folder)), 'width is 16'),
                      (dict(inputs='ILR', lr_branch='scratch'), 'a single branch')):
        settings = FrameworkSettings(**dict(inputs='LR+ILR', scale=2, images='hr', width=8) | kw)
        with pytest.raises((DataError, ModelError), match=words):
            command.train_diagnosis_command(labelled, tmp_path/'x', settings, options=options)
    assert snapshot(tmp_path) == before


# What was trained is kept, and what is the user's is left alone

@pytest.fixture
def interrupted(argv, tmp_path, run_cli, monkeypatch):
    "tmp_path/x after somebody pressed Ctrl-C while both branches were trained together"
    real = command.train_diagnosis
    def until_joined(model, *args, **kw):
        if model.two: raise KeyboardInterrupt
        return real(model, *args, **kw)
    with monkeypatch.context() as m:
        m.setattr(command, 'train_diagnosis', until_joined)
        try: code = run_cli(*argv('--inputs', 'LR+ILR'))[0]
        except KeyboardInterrupt: code = 130
        assert code
    return tmp_path/'x'


def test_after_an_interruption(interrupted, argv, refused, succeeds, snapshot):
    before = snapshot(interrupted)
    for b, inputs in (('LR', 'LR'), ('SR', 'ILR')):
        assert load_model(interrupted/'branches'/b)[0].config['inputs'] == inputs
    refused(*argv('--inputs', 'LR+ILR'), naming=[interrupted, '--overwrite'])
    assert snapshot(interrupted) == before
    succeeds(*argv('--inputs', 'LR+ILR', '--lr-branch', interrupted/'branches'/'LR', '--sr-branch',
                   interrupted/'branches'/'SR', '--overwrite')) # the work of the branches is not lost
    assert load_model(interrupted)[0].two
    kept = {k: v for k, v in snapshot(interrupted).items() if k.startswith('branches/')}
    assert kept == {k: v for k, v in before.items() if k.startswith('branches/')}
    succeeds(*argv('--inputs', 'LR+ILR', '--overwrite'))


def test_foreign_files(interrupted, argv, tmp_path, refused, succeeds, nothing_trains, monkeypatch):
    (interrupted/'notes.txt').write_text('mine')
    (interrupted/'branches'/'notes.txt').write_text('mine')
    shutil.rmtree(interrupted/'branches'/'SR')
    (interrupted/'branches'/'SR').mkdir()
    (interrupted/'branches'/'SR'/'thesis.txt').write_text('mine')
    refused(*argv('--inputs', 'LR+ILR', '--overwrite'),
            naming=[interrupted/'branches'/'SR', 'was not made by srdiag'])
    shutil.rmtree(interrupted/'branches'/'SR')
    monkeypatch.undo()
    succeeds(*argv('--inputs', 'LR+ILR', '--overwrite'))
    for p in (interrupted, interrupted/'branches'): assert (p/'notes.txt').read_text() == 'mine'
    (tmp_path/'y').mkdir()
    (tmp_path/'y'/'notes.txt').write_text('mine')
    refused(*argv('--inputs', 'LR+ILR', '--out', tmp_path/'y', '--overwrite'),
            naming=['was not made by srdiag'])


# Models of before

def test_old_folders_mean_the_old_behaviour(diagnosis_model, joined, tmp_path):
    torch.manual_seed(1)
    # all that is new: as it was
    old = SREnhancedDiagnosis(2, 2, lr_stem='3x3', sr_stem='3x3', sr=SR, mode='solo')
    save_model(tmp_path/'old', old.eval(), ModelInfo('old', 'hr', None, [8, 8], ['a', 'b']))
    config = json.loads((tmp_path/'old'/'config.json').read_text())
    for key in ('width', 'statistics', 'gate_norm', 'both_ways', 'batch_size'): del config['network'][key]
    (tmp_path/'old'/'config.json').write_text(json.dumps(config))
    again, part = load_model(tmp_path/'old', 'diagnosis')[0], pairs(5, 3)
    assert again.network.branch_lr.widths == (64, 128, 256, 512) and not again.both_ways
    assert 'network.normalise_sr.mean' not in again.state_dict()
    a, b = (predict(m, part.lr, ['a', 'b']).probabilities['ens'] for m in (old, again))
    assert np.array_equal(a, b)


def test_recipes_know_the_rate_of_joined_branches():
    assert {r.branch_factor for r in DIAGNOSIS_RECIPES.values()} == {1.}


def test_narrow_branches_learn_at_a_higher_rate_and_mrcnet_does_not():
    full = diagnosis_recipe('fast')
    for width in (8, 16, 48, 128):
        recipe = diagnosis_recipe('fast', width)
        assert recipe.lr == pytest.approx(full.lr*64/width)
        assert recipe.lr*recipe.sr_factor == pytest.approx(full.lr*full.sr_factor)
        assert diagnosis_recipe('published', width) == DIAGNOSIS_RECIPES['published']


def test_the_command_trains_narrow_branches_at_their_rate(tmp_path, monkeypatch):
    data, seen = write_lesion_folder(tmp_path/'lesions', 4), []
    class Seen(Exception): pass
    def spy(model, train, valid, recipe, *args, **kwargs):
        seen.append(recipe.lr)
        raise Seen
    monkeypatch.setattr(command, 'train_diagnosis', spy)
    for width in (16, 64):
        settings = FrameworkSettings('LR', scale=2, images='hr', width=width)
        with pytest.raises(Seen):
            command.train_diagnosis_command(data, tmp_path/f'model{width}', settings,
                                            options=RunOptions(device='cpu', precision='fp32'))
    assert seen == pytest.approx([0.004, 0.001])
