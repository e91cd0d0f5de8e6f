"""Settings given from Python: what makes no sense is refused as it is given, before an image is read or a
folder made."""

import math
from pathlib import Path

import numpy as np
import pytest

from srdiag.bench.rows import Row
from srdiag.bench.settings import Design, DiagnosisBudget, SRBudget
from srdiag.commands.train_diagnosis import train_diagnosis_command
from srdiag.commands.train_sr import train_sr_command
from srdiag.core.errors import DataError
from srdiag.datasets.settings import EndoSRSettings, FoldOptions, HistoSRSettings, PCamSettings
from srdiag.diagnosis.losses import DiagnosisLoss
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.diagnosis.settings import Caution, FrameworkSettings
from srdiag.sr.settings import DistilSettings, Schedule, SRSettings
from srdiag.training.options import RunOptions

NAN = float('nan')


@pytest.mark.parametrize(
    'wrong, naming',
    [
        (dict(epochs=0), 'epochs to be a whole number of 1 or more, not 0'),
        (dict(epochs=2.5), 'not 2.5'),
        (dict(epochs='3'), "not '3'"),
        (dict(epochs=True), 'not True'),
        (dict(epochs=None), 'not None'),
        (dict(epochs=10**400, recipe='x'), 'recipe'),
        (dict(recipe='fats'), 'fast, published'),
        (dict(seed=-1), 'from 0 to'),
        (dict(seed=2**32), 'from 0 to'),
        (dict(precision='half'), 'bf16, fp16, fp32'),
        (dict(channels='green'), 'auto, rgb, grey'),
        (dict(size=0), 'size to be a whole number of 1 or more'),
        (dict(strict='yes'), "A run needs strict to be true or false, not 'yes'"),
        (dict(overwrite=1), 'overwrite to be true or false, not 1'),
        (dict(device=3), 'device to be a text, not 3'),
        (dict(device=None), 'device to be a text, not None'),
    ],
)
def test_options_of_a_run(wrong, naming):
    with pytest.raises(DataError, match=naming):
        RunOptions(**wrong)


@pytest.mark.parametrize('make', [SRBudget, DiagnosisBudget])
@pytest.mark.parametrize(
    'wrong', [dict(epochs=0), dict(seeds=1.5), dict(batch_size='8'), dict(recipe='quick')]
)
def test_budgets(make, wrong):
    with pytest.raises(DataError, match=f'{next(iter(wrong))}.*{next(iter(wrong.values()))}'):
        make(**wrong)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(images='sr'),
        dict(scale=3),
        dict(scale=2.0),
        dict(split_seed=-1),
        dict(valid_share=0),
        dict(valid_share=1.0),
        dict(valid_share=2),
        dict(mutual='sum'),
        dict(mode='alone'),
        dict(solo_share=-0.1),
        dict(references=0),
        dict(norm='l1'),
        dict(rank=-1),
        dict(sac=NAN),
        dict(sar=math.inf),
    ],
)
def test_designs(wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        Design(**wrong)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(inputs='SR+LR'),
        dict(inputs='LR', sai=True),
        dict(inputs='LR+SR', sai=True, scale=3),
        dict(inputs='LR+SR', sar=False),
        dict(inputs='HR', fixed=True),
        dict(inputs='SR', start='warm'),
    ],
)
def test_rows(wrong):
    with pytest.raises(ValueError):
        Row('a row', **wrong)


@pytest.mark.parametrize(
    'wrong, naming',
    [
        (dict(batch_size=1), 'at least 2'),
        (dict(batch_size=0), 'batch_size.* of 2'),
        (dict(solo_share=2), 'solo_share.* from 0 to 1'),
        (dict(solo_share=NAN), 'solo_share'),
        (dict(mutual='x'), 'printed, l2, mean'),
        (dict(mode='x'), 'context, solo, batch'),
        (dict(inputs='x'), 'LR, ILR'),
        (dict(scale=5), '2, 3, 4, 8'),
        (dict(images='x'), 'lr, hr'),
        (dict(references=0), 'references'),
        (dict(sac=-1), 'sac to be a number of 0 or more'),
        (dict(affinity_norm='l1'), 'frobenius'),
        (dict(sac='high'), "not 'high'"),
        (dict(sai='no'), "sai to be true or false, not 'no'"),
        (dict(fixed='false'), "fixed to be true or false, not 'false'"),
        (dict(sr=3), 'sr to be a text, not 3'),
    ],
)
def test_settings_of_a_framework(wrong, naming):
    with pytest.raises(DataError, match=naming):
        FrameworkSettings(**wrong)


def test_a_text_may_be_a_path():
    assert FrameworkSettings(sr=Path('a folder')).sr == Path('a folder')


@pytest.mark.parametrize(
    'make, naming',
    [
        (lambda: HistoSRSettings(per_slide='x'), "per_slide to be a whole number of 1 or more, not 'x'"),
        (lambda: HistoSRSettings(per_slide=0), '1 crop or more'),
        (lambda: HistoSRSettings(mpp='a'), "mpp to be a number.*, not 'a'"),
        (lambda: HistoSRSettings(mpp=-1), 'more than 0'),
        (lambda: HistoSRSettings(tissue='all'), "tissue.*, not 'all'"),
        (lambda: HistoSRSettings(crop='96'), "crop.*, not '96'"),
        (lambda: EndoSRSettings(test_fraction=None), 'test_fraction.*, not None'),
        (lambda: EndoSRSettings(test_fraction=1), 'between 0 and 1, but is 1'),
        (lambda: EndoSRSettings(scale=0), 'scale to be a whole number of 1 or more'),
        (lambda: FoldOptions(folds='2'), "folds.*, not '2'"),
        (lambda: FoldOptions(folds=-1), 'folds'),
        (lambda: FoldOptions(folds=1), '2 folds or more'),
        (lambda: PCamSettings(meta='no'), "meta to be true or false, not 'no'"),
    ],
)
def test_settings_of_data_sets(make, naming):
    with pytest.raises(DataError, match=naming):
        make()


@pytest.mark.parametrize(
    'wrong, naming',
    [
        (dict(options=RunOptions(device='cpu', precision='fp16')), 'fp16 needs a CUDA GPU'),
        (dict(options=RunOptions(device='tpu')), "'tpu'"),
    ],
)
def test_training_for_diagnosis_reads_nothing_first(tmp_path, wrong, naming):
    with pytest.raises(DataError, match=naming):
        train_diagnosis_command(tmp_path / 'not there', tmp_path / 'out', **wrong)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    'make, naming',
    [
        (lambda: SRSettings(steps=0), 'steps'),
        (lambda: SRSettings(scale=5), '2, 3, 4, 8'),
        (lambda: DistilSettings(steps=0), 'steps'),
        (lambda: DistilSettings(phase1=1.5), 'phase1.* from 0 to 1'),
        (lambda: DistilSettings(weight=-1), 'weight.* of 0 or more'),
        (lambda: DistilSettings(weight=NAN), 'weight'),
        (lambda: Schedule(epochs=0), 'epochs'),
    ],
)
def test_settings_of_super_resolution(make, naming):
    with pytest.raises(DataError, match=naming):
        make()


@pytest.mark.parametrize(
    'wrong, naming',
    [
        (dict(settings=SRSettings(patch=3)), 'multiple of 4'),
        (dict(settings=SRSettings(patch=4)), 'too small to learn from'),
        (dict(options=RunOptions(device='cpu', precision='fp16')), 'fp16'),
    ],
)
def test_training_for_super_resolution_reads_nothing_first(tmp_path, wrong, naming):
    with pytest.raises(DataError, match=naming):
        train_sr_command(tmp_path / 'not there', tmp_path / 'out', **wrong)
    assert not any(tmp_path.iterdir())


def test_numbers_of_other_libraries_become_pythons_own():
    made = (
        RunOptions(epochs=np.int64(3), size=np.int32(64)),
        Design(references=np.int64(4), solo_share=np.float32(0.5)),
    )
    numbers = made[0].epochs, made[0].size, made[1].references, made[1].solo_share
    assert [type(x) for x in numbers] == [int, int, int, float]


@pytest.mark.parametrize(
    'wrong', [dict(risk=0), dict(risk=1), dict(risk='low'), dict(sensitivity=2), dict(sensitivity=NAN)]
)
def test_caution(wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        Caution(**wrong)


@pytest.mark.parametrize(
    'make',
    [
        lambda: DiagnosisLoss(sar=-1),
        lambda: DiagnosisLoss(rank=NAN),
        lambda: DiagnosisLoss(norm='l1'),
        lambda: SREnhancedDiagnosis(2, 2, mutual='x'),
        lambda: SREnhancedDiagnosis(2, 2, solo_share=2),
    ],
)
def test_networks_and_losses_say_what_there_is(make):
    with pytest.raises(ValueError):
        make()
