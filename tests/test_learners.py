"Every Learner that a training function returns does what fastai's Learners do, and says what it does not."
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

from srdiag.core.errors import DataError, TrainingError
from srdiag.core.unfinished import Unfinished
from srdiag.data.pairs import LabelledPairs, PairAugment, SRPairs
from srdiag.data.samples import tissue
from srdiag.diagnosis.inference import predict
from srdiag.diagnosis.joint_training import train_joined
from srdiag.diagnosis.losses import DiagnosisLoss
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.diagnosis.targets import TargetLoss, class_weights
from srdiag.diagnosis.training import train_diagnosis
from srdiag.evaluation.multilabel import multilabel_metrics
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.sr.distillation import distil
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.settings import Schedule
from srdiag.sr.training import train_sr
from srdiag.training.learner import watching
from srdiag.training.options import RunOptions
from srdiag.training.recipes import DIAGNOSIS_RECIPES, SR_RECIPES

# isort: split
from fastai.callback.core import Callback
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
    return SREnhancedDiagnosis(classes, 2, inputs, width=8, lr_stem='3x3', sr_stem='3x3', mode='context',
                               sr=dict(channels=8, blocks=1), **more)


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
    assert len(pred) == len(y) == len(losses) and torch.isfinite(losses).all()
    if kind in ('sr', 'distilled'):
        torch.testing.assert_close(losses, (pred - y).abs().mean((1, 2, 3)))
        return
    torch.testing.assert_close(pred.sum(1), torch.ones(len(pred)))
    with learn.no_bar(): valid_loss = learn.validate()[0]
    assert abs(losses.mean() - valid_loss) < 1e-3*max(1, valid_loss)
    valid = learn.dls.valid_ds
    assert y.tolist() == valid.labels.tolist() # in the order of the data set
    own = predict(learn.model, valid.lr, ['a', 'b'], valid.hr).probabilities['ens']
    torch.testing.assert_close(pred, torch.as_tensor(own).float(), rtol=2e-2, atol=2e-2)


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
