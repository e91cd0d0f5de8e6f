"""SAI's rivals: each begins as the identity of its own branch, learns, is saved, loaded and exported;
what does not fit is a sentence."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import ops

from srdiag.bench.interactions import interaction_gains, price_of
from srdiag.bench.labels_answers import Resamples, Tally
from srdiag.bench.labels_rows import INTERACTION_ROWS, LABEL_ROWS, Arm, LabelRow
from srdiag.core.errors import DataError
from srdiag.data.images import as_float
from srdiag.data.pairs import LabelledPairs
from srdiag.diagnosis.companions import (
    EXCHANGES, BatchFormer, NearestReferences, Prototypes, alike, class_means, nearest_weights, shares_of)
from srdiag.diagnosis.inference import is_independent, modes_of, predict
from srdiag.diagnosis.interactions import (
    BlockAttention, DualAttention, Exchange, NonLocal, SqueezeExcitation, attended)
from srdiag.diagnosis.joining import BRANCHES, join, single_of
from srdiag.diagnosis.joint_training import train_branch, train_joined
from srdiag.diagnosis.losses import DiagnosisLoss
from srdiag.diagnosis.network import SREnhancedDiagnosis, StageInteraction
from srdiag.diagnosis.sai import SampleAffinityInteraction
from srdiag.diagnosis.settings import COMPARING, INTERACTIONS, FrameworkSettings, interaction_of
from srdiag.diagnosis.training import recalibrate, train_diagnosis
from srdiag.evaluation.cost import count_flops, count_parameters
from srdiag.models.export import export_model
from srdiag.models.export_settings import ExportSettings
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.training.recipes import Recipe

SHORT = Recipe(3e-3, 6, steps=4)
every = pytest.mark.parametrize('name', INTERACTIONS)
INSIDE = 'se', 'cbam', 'nonlocal', 'dual'


def pairs(n, channels=1, seed=0):
    "Dark and bright noise of 16×16 px, reduced to 8×8"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    images = torch.rand(n, channels, 16, 16, generator=g)*0.5 + 0.3*y.view(-1, 1, 1, 1)
    return LabelledPairs(list(images), y, 2, 'hr')


def framework(name, inputs='LR+ILR', seed=0, **changes):
    torch.manual_seed(seed)
    plain = dict(lr_stem='3x3', sr_stem='3x3s2', width=8, mutual='mean', statistics='each', channels=1,
                 mode='context' if name in COMPARING else 'solo', interaction=name)
    return SREnhancedDiagnosis(2, 2, inputs, **plain | changes)


def ready(name, **changes): # in eval mode, with references where it compares
    model, part = framework(name, **changes), pairs(8, changes.get('channels', 1), 3)
    return (model.remember(part.lr, part.hr, part.labels) if model.mixes else model).eval()


def same(a, b): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# Names

def test_the_two_of_the_paper_are_spelled_as_before():
    for sai, name in ((True, 'sai'), (False, 'concatenation')):
        a, b = framework(None, sai=sai, mode='solo'), framework(name, mode='solo')
        assert a.config == b.config and a.interaction == b.interaction == name
        assert a.config['sai'] == sai and a.config['interaction'] is None
        assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_models_from_before_still_load(tmp_path):
    folder = save_model(tmp_path/'old', framework(None, sai=True, mode='solo'), ModelInfo('old'))
    path = (folder or tmp_path/'old')/'config.json'
    config = json.loads(path.read_text())
    del config['network']['interaction']
    path.write_text(json.dumps(config))
    model, _ = load_model(tmp_path/'old', 'diagnosis')
    assert model.interaction == 'sai' and model.mixes


def test_a_name_that_there_is_not_says_which_are_near():
    for build in (lambda: interaction_of(True, 'cbm'), lambda: framework('cbm'),
                  lambda: StageInteraction(8, interaction='cbm')):
        with pytest.raises(ValueError, match='did you mean cbam'): build()
    with pytest.raises(DataError, match="'prototype': did you mean prototypes"):
        FrameworkSettings(interaction='prototype')
    with pytest.raises(DataError, match="no interaction 'xyzzy': choose one of sai"):
        FrameworkSettings(interaction='xyzzy')


@pytest.mark.parametrize('wrong,said', [
    (dict(inputs='LR', interaction='cbam'), 'LR is a single branch'),
    (dict(sai=False, interaction='se'), 'leave out --interaction se'),
    (dict(sai=False, interaction='sai'), 'switched off'),
    (dict(mode='batch', interaction='prototypes'), '--mode context, not batch'),
    (dict(mode='solo', interaction='prototypes'), '--mode context, not solo'),
    (dict(train_mode='both', interaction='prototypes'), 'batch or alternate, not both'),
    (dict(interaction=3), 'interaction to be a text, not 3')])
def test_options_that_do_not_fit_are_sentences(wrong, said):
    with pytest.raises(DataError, match=said): FrameworkSettings(**wrong)


def test_frameworks_that_do_not_fit_are_sentences():
    with pytest.raises(ValueError, match='single branch'): framework('cbam', 'ILR')
    with pytest.raises(ValueError, match="mode='context'"): framework('prototypes', mode='batch')
    with pytest.raises(ValueError, match='not both_ways'): framework('prototypes', both_ways=True)
    with pytest.raises(ValueError, match='decide for one'): framework('sai', sai=False)
    model = framework('prototypes')
    with pytest.raises(ValueError, match='labels of the references'): model.remember(pairs(4).lr)
    with pytest.raises(ValueError, match='no reference images'): model.eval()(torch.rand(2, 1, 8, 8))


def test_settings_know_who_compares():
    assert {n for n in INTERACTIONS if FrameworkSettings(interaction=n).mixes} == set(COMPARING)
    assert FrameworkSettings().exchange == 'sai' and FrameworkSettings(sai=False).exchange == 'concatenation'
    assert not replace(FrameworkSettings(), inputs='LR').mixes


# The join does no harm

@every
@pytest.mark.parametrize('inputs', ['LR+ILR', 'LR+HR'])
def test_each_head_answers_as_its_network_did(name, inputs):
    model, train, new = framework(name, inputs), pairs(24), pairs(7, seed=9)
    singles = {b: train_branch(model, b, train, pairs(8, 1, 1), SHORT, 2, precision='fp32') for b in BRANCHES}
    join(model, singles['lr'], singles['sr'], train)
    if model.mixes: model.remember(train.lr[:4], train.hr[:4], train.labels[:4])
    x = [as_float(t) for t in (new.lr, new.hr)]
    for mode in modes_of(model):
        with torch.no_grad():
            out = model(*x, mode=mode)
            for b in BRANCHES: same(getattr(out, b), singles[b].eval()(*x).ens)


def test_single_networks_have_no_interaction():
    single = single_of(framework('cbam'), 'lr')
    assert not single.two and single.config['interaction'] is None


# Training and prediction

@every
def test_everything_learns_and_nothing_is_left_without_gradient(name):
    model, part = framework(name).train(), pairs(12)
    if model.mixes: model.remember(part.lr[:6], None, part.labels[:6])
    out = model(as_float(part.lr))
    loss = DiagnosisLoss()
    loss(out, part.labels).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    assert bool(out.mutual) == (name == 'sai') == (loss.components['sac'] > 0)
    assert len(out.ens) == (24 if name == 'batchformer' else 12)


@every
def test_a_batch_is_learned(name):
    model, part = framework(name), pairs(12)
    torch.manual_seed(0)
    model.network.fit_statistics(as_float(part.lr))
    if model.mixes: model.remember(part.lr, None, part.labels) # fewer of a class than neighbours would mix
    optimiser, loss = torch.optim.Adam(model.parameters(), 3e-3), DiagnosisLoss(sac=1, sar=1)
    for _ in range(25):
        optimiser.zero_grad()
        loss(model.train()(as_float(part.lr)), part.labels).backward()
        optimiser.step()
    recalibrate(model, part, 12, mode=None)
    p = predict(model, part.lr, ['dark', 'bright'])
    assert (p.labels == part.labels.numpy()).mean() > 0.9


@every
def test_trained_joined_saved_and_loaded(name, tmp_path):
    model, train, valid = framework(name), pairs(24), pairs(8, 1, 1)
    train_joined(model, train, valid, SHORT, 3, precision='fp32', loss=DiagnosisLoss(sac=1, sar=1))
    new = pairs(5, seed=9)
    before = predict(model, new.lr, ['dark', 'bright'])
    save_model(tmp_path/'model', model, ModelInfo('a rival', classes=['dark', 'bright']))
    again, _ = load_model(tmp_path/'model', 'diagnosis')
    assert again.interaction == name and again.config == model.config
    after = predict(again, new.lr, ['dark', 'bright'])
    for head, p in before.probabilities.items(): assert abs(p - after.probabilities[head]).max() < 1e-6


@every
def test_answers_do_not_depend_on_the_neighbours(name):
    model, new = ready(name), pairs(6, seed=9)
    assert is_independent(model)
    whole = predict(model, new.lr, ['a', 'b']).probabilities['ens']
    for k in range(6):
        assert abs(predict(model, new.lr[k:k+1], ['a', 'b']).probabilities['ens'] - whole[k]).max() < 1e-5


def test_modes():
    assert modes_of(ready('cbam')) == modes_of(ready('batchformer')) == ('solo',)
    assert modes_of(ready('prototypes')) == ('context', 'solo')
    assert set(modes_of(ready('nearest'))) == {'context', 'solo', 'batch'}


def test_nearest_goes_both_ways():
    model, x = framework('nearest', mode='solo', both_ways=True).train(), torch.rand(6, 1, 8, 8)
    assert len(model(x).ens) == 12
    alone = StageInteraction(8, interaction='nearest').eval()
    f = torch.rand(6, 8, 6, 6), torch.rand(6, 8, 3, 3)
    with torch.no_grad():
        both = alone(*[torch.cat([g, g]) for g in f], 'both')[0]
        same(both[:6], alone(*f, 'batch')[0])
        same(both[6:], alone(*f, 'solo')[0])


def test_alternating_batches_train_too():
    for name in ('nearest', 'prototypes'):
        model, part = framework(name, solo_share=0.5), pairs(18)
        train_diagnosis(model, part, pairs(8, 1, 1), SHORT, 1, precision='fp32')
        assert model.mode == 'context' and model.config['references'][0] == 18


# One by one

def test_squeeze_and_excitation_is_that_of_torchvision():
    theirs, ours = ops.SqueezeExcitation(64, 4), SqueezeExcitation(32)
    with torch.no_grad():
        for conv, linear in ((theirs.fc1, ours.volume[0]), (theirs.fc2, ours.volume[2])):
            linear.weight.copy_(conv.weight[..., 0, 0])
            linear.bias.copy_(conv.bias)
        x = torch.randn(3, 64, 5, 5)
        to_sr, to_lr = ours.received(*x.split(32, 1))
    torch.testing.assert_close(torch.cat([to_lr, to_sr], 1), theirs(x))


@pytest.mark.parametrize('kind', [Exchange, SqueezeExcitation, BlockAttention, NonLocal, DualAttention])
def test_inside_an_image_nobody_knows_of_the_others(kind):
    block, f_sr, f_lr = kind((8, 16)).eval(), torch.randn(4, 8, 6, 6), torch.randn(4, 16, 3, 3)
    with torch.no_grad():
        whole, first = block(f_sr, f_lr), block(f_sr[:1], f_lr[:1])
    assert whole.to_sr.shape == f_sr.shape and whole.to_lr.shape == f_lr.shape
    same(whole.to_sr[:1], first.to_sr)
    same(whole.to_lr[:1], first.to_lr)


def test_places_find_each_other():
    key = torch.zeros(1, 4, 2, 2)
    for k in range(4): key[0, k, k//2, k % 2] = 40.
    value = torch.randn(1, 3, 2, 2)
    same(attended(key.flip(2), key, value), value.flip(2))


def test_nearest_and_prototypes_by_hand():
    e = (torch.eye(2)[..., None, None],)*2
    r = torch.tensor([[1., 0.], [1., .1], [0., 1.]])[..., None, None]
    likeness = alike(e, (r, r))
    assert nearest_weights(likeness, 2)[0].tolist() == [1, 1, 0]
    assert nearest_weights(likeness, 9).tolist() == [[1]*3]*2 # fewer references than neighbours
    means = class_means(r, shares_of(torch.tensor([0, 0, 2]), 3)) # nobody is of class 1
    same(means.flatten(1), torch.tensor([[1., 0.05], [0., 1.]]))
    several = shares_of(torch.tensor([[1, 1], [1, 0], [0, 0]]), 2) # several labels, or none
    same(class_means(r, several).flatten(1), torch.tensor([[1., 0.05], [1., 0.]]))
    with pytest.raises(ValueError, match='mode context or solo'):
        Prototypes(2)(torch.rand(2, 2, 4, 4), torch.rand(2, 2, 2, 2), 'batch')


def test_no_neighbours_is_concatenation():
    block, f = NearestReferences(4).eval(), (torch.rand(3, 4, 6, 6), torch.rand(3, 4, 3, 3))
    block.k = 0
    with torch.no_grad():
        for a, b in zip(block(*f, 'batch')[:2], block(*f, 'solo')[:2]): same(a, b)
        same(block(f[0][:1], f[1][:1], 'batch').to_sr, block(f[0][:1], f[1][:1], 'solo').to_sr)


def test_batchformer_is_gone_in_a_prediction():
    model, plain = framework('batchformer'), framework('concatenation')
    kept = {k: v for k, v in model.state_dict().items() if '.formers.' not in k}
    plain.load_state_dict(kept)
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad(): same(model.eval()(x).ens, plain.eval()(x).ens)
    with torch.no_grad(): assert len(model.train()(x, mode='solo').ens) == 4
    assert BatchFormer(6)(torch.rand(5, 6)).shape == (10, 6) # heads divide the width


def test_cost_is_near_that_of_sai():
    x = torch.empty(1, 64, 16, 16), torch.empty(1, 64, 4, 4)
    base = SampleAffinityInteraction(64)
    for name in (*INSIDE, 'nearest', 'prototypes'):
        block = EXCHANGES[name](64)
        assert count_parameters(block) < 1.3*count_parameters(base)
        if name in INSIDE: assert count_flops(block, *x) < 4*count_flops(base, *x)


@pytest.mark.parametrize('name', [*INSIDE, 'batchformer', 'nearest', 'prototypes'])
def test_mixed_precision(name):
    model, x, y = framework(name).train(), torch.rand(6, 1, 8, 8), torch.arange(6) % 2
    if model.mixes: model.remember((255*x).byte(), None, y)
    with torch.autocast('cpu', torch.bfloat16): out = model(x)
    DiagnosisLoss()(out, y).backward()
    assert torch.isfinite(out.ens).all()


# Rows of the experiment

def test_rows_of_the_experiment():
    assert set(INTERACTION_ROWS) == {'LR', 'SR', *(f'LR+SR-{n}' for n in INTERACTIONS)}
    assert {LABEL_ROWS[n].interaction for n in INTERACTION_ROWS if '+' in n} == set(INTERACTIONS)
    assert LABEL_ROWS['LR+SR'].interaction is None and LABEL_ROWS['LR+SR'].mode == 'solo'
    with pytest.raises(DataError, match="no interaction 'cbm'"):
        LabelRow('x', 'SR', joined=True, interaction='cbm')


@pytest.mark.parametrize('name', ['sai', 'nearest', 'prototypes', 'nonlocal'])
def test_frameworks_of_oblong_images_have_a_price(name):
    head = dict(fixed=dict(scale=4, width=8), about=dict(shape=[1, 32, 48], classes=['a', 'b']))
    price = price_of(LABEL_ROWS[f'LR+SR-{name}'], head)
    assert 0 < price['prediction'] <= price['training'] and price['flops'] > 0


def test_rows_without_a_common_run_are_not_compared():
    arms = [Arm(LABEL_ROWS[name], 48) for name in ('SR', 'LR+SR-sai', 'LR+SR-nonlocal')]
    counts = np.array([[[5., 0.], [0., 0.]], [[0., 0.], [5., 5.]], [[5., 5.], [5., 5.]]]) # A×S×G
    answers = SimpleNamespace(
        arms=arms, tallies={a: Tally(n[None]*0.8, n) for a, n in zip(arms, counts)}, draws=Resamples(2, 2),
        arm=lambda name, labels: next((a for a in arms if a.row.name == name), None))
    found = interaction_gains(answers)
    assert {*zip(found.row, found.against)} == {('LR+SR-nonlocal', 'SR'), ('LR+SR-nonlocal', 'LR+SR-sai')}
    assert np.isfinite(found.gain).all()


def test_distances_of_features(): # the cosine of both branches, whatever their size
    f = torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(alike((f, 5*f), (f, f)), F.normalize(f.flatten(1))@F.normalize(f.flatten(1)).T)


# Elsewhere

@pytest.mark.parametrize('name', ['cbam', 'dual', 'nearest', 'prototypes'])
def test_a_graph_says_what_the_framework_says(name, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model, new = ready(name), pairs(6, seed=9)
    save_model(tmp_path/'model', model, ModelInfo('a rival', classes=['dark', 'bright'], lr_size=[8, 8]))
    session = onnxruntime.InferenceSession(export_model(tmp_path/'model', tmp_path/'graph', ExportSettings()))
    ours = predict(model, new.lr, ['dark', 'bright']).probabilities['ens']
    theirs = session.run(None, dict(image=as_float(new.lr).numpy()))[0]
    assert abs(theirs - ours).max() < 1e-4


# The command

@pytest.mark.parametrize('name', ['dual', 'batchformer', 'prototypes'])
def test_train_evaluate_and_predict_by_name(name, labelled, tmp_path, succeeds):
    out = tmp_path/'model'
    succeeds('train-diagnosis', '--data', labelled, '--out', out, '--inputs', 'LR+ILR', '--scale', 2,
             '--interaction', name, '--epochs', 3, '--width', 2, '--batch-size', 4)
    model, info = load_model(out, 'diagnosis')
    assert model.interaction == name and f'with {name}' in info.title
    succeeds('evaluate', '--model', out, '--data', labelled, '--out', tmp_path/'report')
    succeeds('predict', labelled/'ill', '--model', out, '--out', tmp_path/'said')


@pytest.mark.parametrize('options,said', [
    (['--interaction', 'cbm'], 'did you mean cbam'),
    (['--inputs', 'LR', '--interaction', 'cbam'], 'LR is a single branch'),
    (['--no-sai', '--interaction', 'dual'], 'leave out --interaction dual'),
    (['--mode', 'batch', '--interaction', 'prototypes'], '--mode context, not batch')])
def test_the_command_line_says_what_does_not_fit(options, said, labelled, tmp_path, refused):
    refused('train-diagnosis', '--data', labelled, '--out', tmp_path/'m', *options, naming=[said])


def test_fine_tuning_follows_and_wants_the_same_interaction(labelled, tmp_path, succeeds, run_cli):
    common = ['--data', labelled, '--inputs', 'LR+ILR', '--scale', 2, '--epochs', 3, '--width', 2]
    succeeds('train-diagnosis', *common, '--out', tmp_path/'se', '--interaction', 'se')
    succeeds('train-diagnosis', *common, '--out', tmp_path/'plain', '--no-sai')
    succeeds('train-diagnosis', *common, '--out', tmp_path/'next', '--from', tmp_path/'se')
    assert load_model(tmp_path/'next', 'diagnosis')[0].interaction == 'se'
    for start, known in (('se', 'se'), ('plain', 'concatenation')):
        code, _, err = run_cli('train-diagnosis', *common, '--out', tmp_path/'other', '--interaction', 'cbam',
                               '--from', tmp_path/start)
        assert code == 2 and f'interaction {known}, but cbam was asked for: give --interaction' in err, err
