"Every Learner that a training function returns does what fastai's Learners do, and says what it does not."
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from srdiag.core.errors import DataError, ModelError, TrainingError
from srdiag.core.unfinished import Unfinished
from srdiag.data.pairs import LabelledPairs, PairAugment, SRPairs
from srdiag.data.samples import tissue
from srdiag.diagnosis.inference import predict
from srdiag.diagnosis.joint_training import train_joined
from srdiag.diagnosis.losses import DiagnosisLoss
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.diagnosis.targets import TargetLoss, class_weights
from srdiag.diagnosis.training import (
    HeadAccuracy, diagnosis_dataloaders, diagnosis_learner, train_diagnosis)
from srdiag.evaluation.multilabel import multilabel_metrics
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.sr.distillation import distil
from srdiag.sr.inference import super_resolve
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.settings import Schedule
from srdiag.sr.scoring import WholeImages, score_images
from srdiag.sr.training import train_sr
from srdiag.sr.zoo import create_model
from srdiag.training import loop
from srdiag.training.learner import watching
from srdiag.training.options import RunOptions
from srdiag.training.recipes import DIAGNOSIS_RECIPES, SR_RECIPES, Recipe
from srdiag.training.recipes import DIAGNOSIS_RECIPES, SR_RECIPES, fit
from srdiag.training.resume import random_state, set_random_state

# isort: split
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.tensorboard import TensorBoardCallback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback

TISSUE = tissue()
IMAGES = [TISSUE[:, 32*i:32*i+32, :64] for i in range(10)]
PAIRS = SRPairs(IMAGES[:8], 2), SRPairs(IMAGES[8:], 2)
TILES = [TISSUE[:, 32*i:32*i+32, 32*j:32*j+32] for i in range(4) for j in range(4)]
FAST, DIAGNOSIS = SR_RECIPES['fast'], replace(DIAGNOSIS_RECIPES['fast'], batch_size=4)
SCHEDULE = Schedule(1, 2, 32)


def labelled(y=tuple(k % 2 for k in range(16))):
    train = LabelledPairs(TILES[:12], y[:12], 2, 'hr', PairAugment(0))
    return train, LabelledPairs(TILES[12:], y[12:], 2, 'hr')


def network(**more): return MRCNet(2, channels=8, blocks=1, **more)


def framework(inputs, classes=2, **more):
    return SREnhancedDiagnosis(classes, 2, inputs, width=8, lr_stem='3x3', sr_stem='3x3',
                               sr=dict(channels=8, blocks=1), **dict(mode='context') | more)


TRAININGS = dict(
    sr=lambda **kw: train_sr(network(), *PAIRS, FAST, SCHEDULE, **kw),
    distilled=lambda **kw: distil(network(steps=2), *PAIRS, FAST, SCHEDULE, **kw)[1],
    single=lambda **kw: train_diagnosis(framework('LR'), *labelled(), DIAGNOSIS, 1, **kw),
    joined=lambda **kw: train_joined(framework('LR+SR'), *labelled(), DIAGNOSIS, 3, **kw)[0])


@pytest.fixture(scope='module', params=TRAININGS)
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    learn = TRAININGS[request.param](folder=folder)
    learn.path = folder
    return learn, request.param, folder


def logs(folder): return {p: p.read_bytes() for p in sorted(folder.rglob('*.csv'))}


def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


QUIET = dict( # none of these is a training: weights, logs and callbacks stay as they were
    lr_find=lambda learn: learn.lr_find(num_it=12, show_plot=False),
    validate=lambda learn: learn.validate(),
    get_preds=lambda learn: learn.get_preds(with_loss=True, with_decoded=True),
    of_training=lambda learn: learn.get_preds(ds_idx=0, with_input=True),
    summary=lambda learn: learn.summary(),
    show_results=lambda learn: learn.show_results(max_n=2),
    show_batch=lambda learn: learn.dls.show_batch(max_n=2),
    save_and_load=lambda learn: (learn.save('kept'), learn.load('kept')))


@pytest.mark.parametrize('what', QUIET)
def test_what_is_no_training_leaves_weights_and_logs_alone(trained, what):
    learn, _, folder = trained
    before, written, callbacks = weights(learn), logs(folder), sorted(map(str, learn.cbs))
    with learn.no_bar(): QUIET[what](learn)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()), what
    assert logs(folder) == written and sorted(map(str, learn.cbs)) == callbacks


def test_predictions_are_what_the_network_says(trained):
    learn, kind, _ = trained
    with learn.no_bar(): pred, y, losses = learn.get_preds(with_loss=True)
    assert len(pred) == len(y) == len(losses) == len(learn.dls.valid_ds.pairs if kind in ('sr', 'distilled')
                                                     else learn.dls.valid_ds) and torch.isfinite(losses).all()
    if kind in ('sr', 'distilled'):
        torch.testing.assert_close(losses, (pred - y).abs().mean((1, 2, 3)))
        assert all(torch.equal(a, PAIRS[1][i][1]) for i, a in enumerate(y))
        return
    torch.testing.assert_close(pred.sum(1), torch.ones(len(pred)))
    with learn.no_bar(): valid_loss = learn.validate()[0]
    assert abs(losses.mean() - valid_loss) < 1e-3*max(1, valid_loss)
    valid = learn.dls.valid_ds
    assert y.tolist() == valid.labels.tolist() # in the order of the data set
    own = predict(learn.model, valid.lr, ['a', 'b'], valid.hr).probabilities['ens']
    torch.testing.assert_close(pred, torch.as_tensor(own).float(), rtol=2e-2, atol=2e-2)


def test_predictions_of_images_of_several_sizes_come_in_their_order():
    sizes = 64, 48, 64, 48, 64
    pairs = SRPairs([x[:, :, :n] for x, n in zip(IMAGES, sizes)], 2)
    learn = train_sr(network(), PAIRS[0], pairs, FAST, SCHEDULE, precision='fp32')
    with learn.no_bar(): found, truth = learn.get_preds()
    assert [x.shape[-1] for x in found] == list(sizes)
    for i, (sr, hr) in enumerate(zip(found, truth)):
        assert torch.equal(hr, pairs[i][1])
        with torch.no_grad(): own = learn.model(pairs[i][0][None])[0]
        torch.testing.assert_close(sr, own, rtol=1e-4, atol=1e-4)


def test_predictions_that_depend_on_the_batch_are_those_of_the_validation():
    y, batch = torch.arange(16) % 2, []
    class Note(Callback):
        def after_pred(self):
            if not self.training: batch.append((self.yb[0], self.pred.answers(False)[0]['ens']))
    train, valid = LabelledPairs(TILES, y, 2, 'hr', PairAugment(0)), LabelledPairs(TILES, y, 2, 'hr')
    learn = train_diagnosis(framework('LR+SR', mode='batch', mutual='l2'), train, valid, DIAGNOSIS, 1,
                            precision='fp32')
    learn.add_cb(Note())
    with learn.no_bar():
        learn.validate()
        seen = [torch.cat(parts) for parts in zip(*batch)]
        p, truth = learn.get_preds()
        once, _ = learn.get_preds(dl=learn.dls.valid.new(shuffle=False))
    order = torch.tensor(learn.dls.valid.get_idxs())
    assert truth.tolist() == y.tolist() and torch.equal(seen[0], truth[order])
    torch.testing.assert_close(seen[1].float(), p[order])
    assert not torch.allclose(once, p, atol=1e-5), 'neighbours do not matter, so this tests nothing'


NO_GPU = pytest.mark.filterwarnings('ignore:.*CUDA is not available')


class Fails(Callback):
    "Something that ends a step within the network"
    order = 11
    def __init__(self, error): self.error = error
    def before_batch(self): raise self.error


@NO_GPU
@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('out of memory')])
@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_after_an_interrupted_step_nothing_computes_in_low_precision(error, precision, monkeypatch):
    if precision == 'fp16': fp16_here(monkeypatch)
    with pytest.raises(type(error)):
        TRAININGS['sr'](precision='bf16' if precision == 'bf16' else 'auto', cbs=Fails(error))
    left = torch.is_autocast_enabled('cpu')
    torch.set_autocast_enabled('cpu', False)
    assert not left


def fp16_here(monkeypatch): # the way of an older GPU, on the CPU, in bfloat16
    monkeypatch.setattr(loop, 'chosen_precision', lambda *_: 'fp16')
    context = property(lambda self: torch.autocast('cpu', torch.bfloat16), lambda self, value: None)
    monkeypatch.setattr(loop.ScaledAutocast, 'autocast', context, raising=False)


@NO_GPU
@pytest.mark.parametrize('name', [*TRAININGS, 'peer'])
def test_fp16_trains_everything(name, monkeypatch):
    fp16_here(monkeypatch)
    peer = dict(mode='solo', peer='jia')
    learn = (train_diagnosis(SREnhancedDiagnosis(2, 2, 'LR', **peer), *labelled(), DIAGNOSIS, 1)
             if name == 'peer' else TRAININGS[name]())
    assert isinstance(learn.mixed_precision, MixedPrecision) and len(learn.mixed_precision.name) == 15
    assert all(v == v for v in learn.recorder.values[-1][:2])


@pytest.mark.parametrize('how', ['fit', 'fit_one_cycle'])
def test_a_fit_goes_on_from_an_epoch(trained, how):
    learn, _, folder = trained
    path = folder/'log.csv' if (folder/'log.csv').is_file() else folder/'joint'/'log.csv'
    before = len(pd.read_csv(path))
    with learn.no_bar(): getattr(learn, how)(2, 1e-4, start_epoch=1)
    assert len(pd.read_csv(path)) > before # the log of the first fit has stayed


@pytest.mark.parametrize('make', [
    lambda d: SaveModelCallback(monitor='valid_loss', fname='best'),
    lambda d: EarlyStoppingCallback(monitor='valid_loss', patience=1),
    lambda d: TensorBoardCallback(str(d/'board'), trace_model=False)], ids=['save', 'early', 'board'])
def test_callbacks_of_fastai_work(trained, make, tmp_path):
    learn, *_ = trained
    with learn.no_bar(): learn.fit(2, 1e-4, cbs=make(tmp_path))
    if (tmp_path/'board').exists(): assert list((tmp_path/'board').glob('events*'))


@pytest.mark.parametrize('log', ['tensorboard', 'wandb'])
def test_a_command_logs_elsewhere(log, tmp_path, monkeypatch):
    monkeypatch.delenv('WANDB_MODE', raising=False)
    with watching(RunOptions(log=log, early_stopping=5), 'valid_psnr', tmp_path/'model', 'LR') as cbs:
        assert len(cbs) == 2
        TRAININGS['sr'](cbs=cbs)
    found = list((tmp_path/log).rglob('events*' if log == 'tensorboard' else '*.wandb'))
    assert found and all(p.stat().st_size for p in found) and not (tmp_path/'model').exists()


@pytest.mark.parametrize('mine', [True, False])
def test_a_run_of_wandb_that_a_user_has_opened_stays_open(mine, tmp_path, monkeypatch):
    class Run:
        finished = False
        def finish(self): self.finished = True
    run = Run()
    fake = SimpleNamespace(run=run if mine else None, init=lambda **_: run, Settings=lambda **_: None,
                           Error=RuntimeError)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    monkeypatch.setitem(sys.modules, 'fastai.callback.wandb', SimpleNamespace(WandbCallback=lambda **_: 'cb'))
    with watching(RunOptions(log='wandb'), 'valid_psnr', tmp_path/'model') as cbs: assert cbs == ['cb']
    assert run.finished is not mine


def test_a_missing_library_is_named_with_its_line(tmp_path, monkeypatch):
    for name in ('wandb', 'fastai.callback.tensorboard'): monkeypatch.setitem(sys.modules, name, None)
    for log in ('wandb', 'tensorboard'):
        with pytest.raises(DataError, match='pip install'):
            with watching(RunOptions(log=log), 'valid_psnr', tmp_path/'model'): pass


def test_a_learner_is_not_exported(trained):
    with pytest.raises(TrainingError, match='save_model'): trained[0].export('x.pkl')


class Watch(Callback):
    "Notes rates and the process that reads"
    def before_fit(self): self.rates = []
    def before_batch(self):
        if self.training: self.rates.append(self.opt.hypers[-1]['lr'])


@pytest.mark.parametrize('name', TRAININGS)
def test_callbacks_rate_and_workers_reach_the_learner(name):
    watch = Watch()
    learn = TRAININGS[name](cbs=watch, lr=3e-4, num_workers=1)
    assert watch in list(learn.cbs) and learn.lr == 3e-4
    assert 0 < max(watch.rates) <= 3e-4*(1 + 1e-6)
    assert learn.dls.train.fake_l.num_workers == 1


def test_a_keyword_that_is_not_known_fails():
    with pytest.raises(TypeError): TRAININGS['sr'](leraning_rate=1)


def test_a_search_before_a_training_changes_nothing():
    def trained_after(search):
        torch.manual_seed(0)
        learn = train_sr(network(), *PAIRS, FAST, SCHEDULE)
        if search:
            with learn.no_bar(): learn.lr_find(num_it=6, show_plot=False)
        return weights(learn)
    a, b = trained_after(False), trained_after(True)
    assert all(torch.equal(a[k], b[k]) for k in a)


# --- rates of groups --------------------------------------------------------------------------------------


class Groups(Callback):
    "Notes the rates of all groups"
    def before_fit(self): self.seen = []
    def before_step(self): self.seen.append([h['lr'] for h in self.opt.hypers])


GOING_ON = dict(
    fit=lambda learn, **kw: learn.fit(1, 1e-3, **kw), as_before=lambda learn, **kw: learn.fit(1, **kw),
    anew=lambda learn, **kw: learn.fit(1, 1e-3, reset_opt=True, **kw),
    fit_one_cycle=lambda learn, **kw: learn.fit_one_cycle(1, 1e-3, **kw),
    fit_flat_cos=lambda learn, **kw: learn.fit_flat_cos(1, 1e-3, **kw),
    fit_sgdr=lambda learn, **kw: learn.fit_sgdr(1, 1, 1e-3, **kw),
    recipe=lambda learn, cbs: fit(learn.add_cb(cbs), DIAGNOSIS, 1))


@pytest.fixture(scope='module')
def with_mrcnet():
    model = framework('LR+SR', mode='solo')
    return train_diagnosis(model, *labelled(), DIAGNOSIS, 1)


@pytest.mark.parametrize('how', GOING_ON)
def test_mrcnet_goes_on_at_its_own_rate(with_mrcnet, how):
    groups = Groups()
    with with_mrcnet.no_bar(): GOING_ON[how](with_mrcnet, cbs=groups)
    assert groups.seen
    for sr, others in groups.seen: assert sr == pytest.approx(DIAGNOSIS.sr_factor*others) and others > 1e-12


def test_rates_for_each_group_are_taken_as_they_are(with_mrcnet):
    groups = Groups()
    with with_mrcnet.no_bar():
        with_mrcnet.fit(1, [3e-4, 1e-3], cbs=groups)
        assert groups.seen[0] == [3e-4, 1e-3]
        with_mrcnet.fit(1, slice(1e-4, 1e-3), cbs=groups)
    assert groups.seen[0] == pytest.approx([1e-4, 1e-3])


# --- mixtures ---------------------------------------------------------------------------------------------

def mixed(inputs, cb, y=tuple(k % 2 for k in range(16)), classes=2, kind='lr', **more):
    tiles = [t[:, ::2, ::2] for t in TILES] if kind == 'lr' else TILES
    parts = [LabelledPairs(tiles[a:b], y[a:b], 2, kind) for a, b in ((0, 12), (12, 16))]
    return train_diagnosis(framework(inputs, classes, mode='solo', **more), *parts, DIAGNOSIS, 1, cbs=cb)


@pytest.mark.parametrize('mix, inputs', [(MixUp, 'LR'), (CutMix, 'LR'), (MixUp, 'LR+SR')])
def test_mixtures_train_and_the_loss_has_its_components(mix, inputs):
    truths = []
    class Truths(Callback):
        order = 1 # after it has been mixed
        def before_batch(self): truths.append((self.training, self.yb[0]))
    learn = mixed(inputs, [mix(), Truths()])
    values = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert values['train_ce'] > 0 and values['valid_ce'] > 0 and values['train_accuracy'] >= 0
    for training, y in truths:
        if not training: assert not y.is_floating_point()
        else: torch.testing.assert_close(y.sum(1), torch.ones(len(y)))
    with learn.no_bar(): assert learn.get_preds()[1].dim() == 1


def test_mixtures_of_several_labels_train():
    y = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1]]).repeat(4, 1)
    mixed('LR', MixUp(), y, 3, multilabel=True)


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixtures_of_one_of_two_images_are_refused(mix):
    with pytest.raises(TrainingError, match="kind='lr'"): mixed('LR', mix(), kind='hr')


# --- targets ------------------------------------------------------------------------------------------------

def test_soft_labels_train():
    y = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).repeat(8, 1)
    loss = DiagnosisLoss(targets=TargetLoss(class_weights(y[:12], 2), 0.1, 2.))
    learn, singles = train_joined(framework('LR+SR'), *labelled(y), DIAGNOSIS, 3, loss=loss)
    assert set(learn.recorder.metric_names) >= {'valid_accuracy', 'valid_ce'} and set(singles) == {'lr', 'sr'}
    with learn.no_bar(): assert len(learn.get_preds(with_loss=True)[2]) == 4


@pytest.mark.parametrize('inputs', ['LR', 'LR+SR'])
def test_several_labels_train_are_saved_and_predict(inputs, tmp_path):
    y = torch.tensor([[1., 0., 1.], [0., 0., 0.], [1., 1., 0.], [0., 1., 1.]]).repeat(4, 1)
    model = framework(inputs, 3, multilabel=True)
    if inputs == 'LR': learn = train_diagnosis(model, *labelled(y), DIAGNOSIS, 2)
    else: learn, _ = train_joined(model, *labelled(y), DIAGNOSIS, 3)
    values = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert 0 <= values['valid_accuracy'] <= 1
    save_model(tmp_path/'m', model, ModelInfo('m', classes=list('abc'), lr_size=[16, 16]))
    loaded, info = load_model(tmp_path/'m')
    valid = labelled(y)[1]
    before, after = (predict(m, valid.lr, info.classes, valid.hr) for m in (model, loaded))
    assert (before.probabilities['ens'] == after.probabilities['ens']).all() and after.multilabel
    frame = after.to_frame(range(4))
    assert all(set(label.split('; ')) <= {*'abc', ''} for label in frame.label)
    found = multilabel_metrics(valid.labels, after.probabilities['ens'], info.classes)
    assert found['n'] == 4 and 0 <= found['label_accuracy'] <= 1


def test_a_quantity_is_no_class():
    with pytest.raises(DataError, match='no quantities'):
        train_diagnosis(framework('LR'), *labelled([0.5]*16), DIAGNOSIS, 1)


def test_a_loss_for_other_labels_is_refused():
    with pytest.raises(ValueError, match='multilabel'):
        train_diagnosis(framework('LR'), *labelled(), DIAGNOSIS, 1,
                        loss=DiagnosisLoss(targets=TargetLoss(multilabel=True)))


def test_a_model_of_before_has_one_label():
    config = {k: v for k, v in framework('LR').config.items() if k != 'multilabel'}
    assert SREnhancedDiagnosis(**config).config['multilabel'] is False


# --- going on with an interrupted training ------------------------------------------------------------------

class StopAfter(Callback):
    "An interruption after an epoch"
    order = 101 # when everything has been kept
    def __init__(self, epoch): self.at = epoch
    def after_epoch(self):
        if self.epoch == self.at: raise KeyboardInterrupt


@pytest.mark.parametrize('bar', [True, False])
def test_logs_of_an_interrupted_fit_stay(bar, tmp_path):
    learns, at = [], tmp_path
    class Kept(StopAfter):
        def before_fit(self): learns.append(self.learn)
    with pytest.raises(KeyboardInterrupt):
        train_sr(network(), *PAIRS, FAST, Schedule(4, 2, 32), folder=at, cbs=Kept(1))
    learn, before = learns[0], logs(at)
    learn.remove_cb(Kept)
    assert len(pd.read_csv(at/'log.csv')) == 2 and len(pd.read_csv(at/'steps.csv')) == 4
    if bar: learn.fit(1, 1e-4)
    else:
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    assert all(p.read_bytes().startswith(text) for p, text in before.items())
    assert pd.read_csv(at/'steps.csv').step.tolist() == list(range(6)) and len(pd.read_csv(at/'log.csv')) == 3


def test_logs_of_an_earlier_training_in_the_folder_stay(tmp_path):
    for _ in range(3): TRAININGS['sr'](folder=tmp_path)
    assert {p.name for p in tmp_path.glob('*.csv')} == {
        f'{name}{k}.csv' for name in ('log', 'steps') for k in ('', '.1', '.2')}
    assert all(len(pd.read_csv(p)) == (1 if p.name.startswith('log') else 2) for p in tmp_path.glob('*.csv'))


def test_a_step_is_in_the_log_at_once(tmp_path):
    class Read(Callback):
        order = 56 # after the log
        def after_batch(self):
            if self.training: lines.append(len((tmp_path/'steps.csv').read_text().splitlines()))
    lines = []
    TRAININGS['sr'](folder=tmp_path, cbs=Read())
    assert lines == [2, 3]


def test_random_numbers_of_an_apple_gpu_go_on(monkeypatch):
    place = torch.arange(3, dtype=torch.uint8)
    gpu = SimpleNamespace(get_rng_state=place.clone, set_rng_state=place.copy_)
    monkeypatch.setattr(torch, 'mps', gpu)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    before = random_state()
    place += 1
    set_random_state(before)
    assert place.tolist() == [0, 1, 2]
    set_random_state({k: v for k, v in before.items() if k != 'mps'}) # a state of an earlier version


def test_patience_survives_an_interruption(tmp_path):
    def run(folder, *more):
        place, stop = Unfinished(folder), EarlyStoppingCallback('valid_psnr', min_delta=0.5, patience=3)
        place.claim()
        torch.manual_seed(0)
        how = dict(schedule=Schedule(9, 2, 32), folder=place, cbs=[stop, *more])
        try: return train_sr(network(), *PAIRS, FAST, **how), stop
        finally: place.release()

    whole, first = run(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', StopAfter(1))
    again, second = run(tmp_path/'b')
    assert whole.epoch == again.epoch < 8, 'both end early, in the same epoch'
    assert (first.wait, first.best) == (second.wait, second.best)
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in again.model.state_dict().items())
    logs = [pd.read_csv(tmp_path/x/'.unfinished'/'log.csv').drop(columns='time') for x in 'ab']
    pd.testing.assert_frame_equal(*logs)


# --- what does not fit is said before the first step --------------------------------------------------------

def times4(kind='hr'): return LabelledPairs(TILES, [0, 1]*8, 4, kind)


def grey(): return SRPairs([x[:1] for x in IMAGES], 2)


def train(net, *parts, **how): return train_sr(net, *parts, FAST, SCHEDULE, **how)


UNFIT = {
    'scale of training pairs': (lambda: train(network(), SRPairs(IMAGES, 4), PAIRS[1]), 'scale 4.* 2 times'),
    'scale of validation pairs': (lambda: train(network(), PAIRS[0], SRPairs(IMAGES, 4)),
                                  'scale 4.* 2 times'),
    'border': (lambda: train(network(), PAIRS[0], SRPairs([x[:, :4, :4] for x in IMAGES], 2)), '4×4 px'),
    'channels of a student': (lambda: distil(network(steps=2), grey(), PAIRS[1], FAST, SCHEDULE),
                              '1 channel'),
    'no weights': (lambda: train(create_model('bicubic_x2'), *PAIRS), 'nothing to train'),
    'no recursion': (lambda: train(create_model('edsr_baseline_x2', channels=8, blocks=1), *PAIRS,
                                   supervise_steps=True), 'no recursion steps'),
    'scale': (lambda: train_diagnosis(framework('ILR'), times4(), times4(), DIAGNOSIS, 1),
              '32×32 px large and 8×8 px small.* 2 times'),
    'channels': (lambda: train_diagnosis(framework('LR', channels=1), *labelled(), DIAGNOSIS, 1),
                 '3 channel.* reads 1'),
    'kinds': (lambda: train_diagnosis(framework('LR'), times4('lr'), labelled()[1], DIAGNOSIS, 1),
              "kind 'lr' .* kind 'hr'"),
    'no large images': (lambda: train_diagnosis(framework('HR'), *[times4('lr')]*2, DIAGNOSIS, 1),
                        "with kind='hr'"),
    'epochs': (lambda: train_diagnosis(framework('LR'), *labelled(), DIAGNOSIS, 0), '1 epoch or more, not 0'),
    'halving': (lambda: Recipe(1e-3, 4, 'halving', halve_every=0), 'halve_every is 1'),
    'rate': (lambda: Recipe(float('nan'), 4), 'lr must be positive'),
    'label in every image': (lambda: class_weights([[1, 0], [1, 1]], 2, True), 'label number 0'),
    'unknown label': (lambda: multilabel_metrics([[1, 0], [1, -1]], [[.9, .1], [.8, .2]], ['a', 'b']),
                      'image 1 about b is -1'),
    'missing label': (lambda: multilabel_metrics([[1, None]], [[.9, .1]], ['a', 'b']), 'about b is nan')}


@pytest.mark.parametrize('call,words', UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_a_sentence(call, words):
    with pytest.raises((DataError, ModelError, ValueError), match=words): call()


# --- a network comes back as it was -------------------------------------------------------------------------

def test_frozen_parts_and_training_mode_come_back():
    model, valid = framework('LR').train(), labelled()[1]
    model.network.branch.bn1.eval()
    modes = [m.training for m in model.modules()]
    one = predict(model, valid.lr, ['a', 'b'])
    backwards = predict(model, valid.lr, ['a', 'b'], order=[3, 2, 1, 0])
    assert [m.training for m in model.modules()] == modes
    assert abs(one.probabilities['ens'] - backwards.probabilities['ens']).max() < 1e-6
    model.network.branch.layer1.forward = None
    with pytest.raises(TypeError): predict(model, valid.lr, ['a', 'b'])
    assert [m.training for m in model.modules()] == modes

    net = network().train()
    net.head.eval()
    super_resolve(net, TILES[0], precision='fp32')
    score_images(net, PAIRS[1])
    assert net.training and not net.head.training
    net.head.forward = None
    with pytest.raises(TypeError): score_images(net, PAIRS[1])
    assert net.training and not net.head.training


def test_sizes_are_known_without_reading_the_images():
    class Unread(SRPairs):
        def __getitem__(self, i): raise AssertionError('read')
    assert WholeImages(Unread(IMAGES, 2)).groups == [[*range(10)]]


# --- where double precision is missing, and on another device -----------------------------------------------

class OnApple(torch.Tensor):
    "A tensor that behaves as on Apple's GPU"
    device = property(lambda self: torch.device('mps'))
    def to(self, *args, **kwargs): return self.as_subclass(torch.Tensor).to(*args, **kwargs)
    def cpu(self): return self.as_subclass(torch.Tensor)
    def double(self): raise TypeError("Cannot convert a MPS Tensor to float64")


@pytest.mark.parametrize('inputs', ['LR', 'LR+ILR'])
def test_answers_on_a_device_without_double_precision(inputs):
    x, y = labelled()[1].batch([0, 1, 2, 3])[::2]
    with torch.no_grad(): out = framework(inputs).eval()(x, mode='solo')
    tensors = {k: v for k, v in out._asdict().items() if torch.is_tensor(v)}
    there = out._replace(**{k: v.as_subclass(OnApple) for k, v in tensors.items()})
    p, closed = there.answers()
    assert p['ens'].dtype == torch.float64 and closed.device == p['ens'].device
    assert torch.equal(p['ens'], out.answers()[0]['ens'])
    metric = HeadAccuracy()
    metric.reset()
    metric.accumulate(SimpleNamespace(pred=there, yb=[y.as_subclass(OnApple)], loss_func=None))
    assert 0 <= metric.value <= 1


def test_references_are_where_the_network_is():
    model = framework('LR+ILR').to('meta').remember(labelled()[0].lr[:4])
    assert model.references.lr.device.type == 'meta'
    assert model.eval()(torch.rand(2, 3, 16, 16, device='meta')).ens.shape == (2, 2)


# --- validation in the mode context -------------------------------------------------------------------------

def test_validation_in_context_does_not_depend_on_the_batch():
    train, valid = labelled()
    model = framework('LR+ILR')
    model.network.fit_statistics(train.batch([0, 1, 2, 3])[0])
    model.remember(train.lr[:4]).eval()
    loss, (lr, _, y) = DiagnosisLoss(norm='mean_square'), valid.batch([0, 1, 2, 3])
    found = []
    for n in (1, 4):
        with torch.no_grad():
            parts = []
            for i in range(0, 4, n):
                loss(model(lr[i:i+n]), y[i:i+n])
                parts.append(torch.tensor([float(loss.components[k]) for k in loss.names]))
        found.append(torch.stack(parts).mean(0))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert found[0][3] > 0


def test_references_are_looked_at_once_in_a_validation(monkeypatch):
    train, valid = labelled()
    model, seen, real = framework('LR+ILR'), [], SREnhancedDiagnosis.context
    model.remember(train.lr[:4])
    monkeypatch.setattr(SREnhancedDiagnosis, 'context', lambda self: seen.append(1) or real(self))
    dls = diagnosis_dataloaders(train, valid, 4, valid_batch_size=1)
    learn = diagnosis_learner(dls, model, DIAGNOSIS, precision='fp32')
    with learn.no_bar(), learn.no_logging():
        once = learn.validate()
        assert len(seen) == 1 and 'context' not in vars(model)
        with torch.no_grad():
            for name, value in list(model.named_parameters())[:3]: value.mul_(1.5)
        assert list(learn.validate()) != list(once) and len(seen) == 2, 'it is computed anew'

        class Interrupted(Callback):
            def after_pred(self): raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt): learn.validate(cbs=Interrupted())
        assert 'context' not in vars(model)
