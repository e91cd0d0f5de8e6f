"""The second step as published, by one switch; and each choice that the paper leaves open, as an option that
arrives where it acts."""
import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from srdiag.bench.answers import diagnosis_results
from srdiag.bench.diagnosis_report import diagnosis_limits
from srdiag.bench.diagnosis_store import DiagnosisStore
from srdiag.bench.rows import TABLES
from srdiag.bench.settings import Design
from srdiag.bench.store import compare
from srdiag.bench.settings import diagnosis_budget
from srdiag.commands.cli import parse
from srdiag.commands.comparisons import Rows
from srdiag.core.errors import DataError
from srdiag.data.pairs import LabelledPairs
from srdiag.diagnosis.evaluation import diagnosis_sentence, evaluate_labelled
from srdiag.diagnosis.gate import GatedEnsemble
from srdiag.diagnosis.inference import batch_of, predict
from srdiag.diagnosis.losses import DiagnosisLoss, SampleAffinityRegularizationLoss, loss_of
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.diagnosis.sai import affinity, weigh_rows
from srdiag.diagnosis.settings import FrameworkSettings
from srdiag.diagnosis.training import train_diagnosis
from srdiag.evaluation.calibration import calibrate
from srdiag.evaluation.diagnostic import averages_sentence, diagnostic_metrics, positive_class
from srdiag.models.saving import load_model
from srdiag.training.recipes import DIAGNOSIS_RECIPES, Recipe

TRAIN = ['train-diagnosis', '--data', 'cells', '--out', 'model']
SCRATCH = ['--images', 'hr', '--scale', 2, '--inputs', 'LR+ILR', '--width', 8, '--lr-branch', 'scratch',
           '--sr-branch', 'scratch', '--epochs', 1, '--device', 'cpu', '--precision', 'fp32']
SMALL = dict(channels=1, lr_stem='3x3', sr_stem='3x3s2', width=8)


# The switch

def test_the_switch_says_what_the_paper_says():
    made = parse([*TRAIN, '--as-published'])
    assert made.framework == FrameworkSettings.as_published() and made.training.recipe == 'published'
    f = made.framework
    assert (f.batch_size, f.mutual, f.affinity_norm, f.mode, f.trains, f.solo) == (
        8, 'printed', 'frobenius', 'batch', 'batch', 0)
    assert f.batch_size == DIAGNOSIS_RECIPES['published'].batch_size
    assert repr(loss_of(f)) == repr(DiagnosisLoss()) and loss_of(f).weights == dict(rank=1, sac=100, sar=100)


def test_without_it_nothing_changes():
    made = parse(TRAIN)
    assert made.framework == FrameworkSettings() and made.training.recipe == 'fast' and not made.as_published


@pytest.mark.parametrize('words, name, value', [
    (['--mode', 'context'], 'mode', 'context'), (['--batch-size', 16], 'batch_size', 16),
    (['--mutual', 'mean'], 'mutual', 'mean'),
    (['--affinity-norm', 'mean_square'], 'affinity_norm', 'mean_square'),
    (['--train-mode', 'both'], 'train_mode', 'both'), (['--inputs', 'LR+ILR'], 'inputs', 'LR+ILR')])
@pytest.mark.parametrize('switch', ['--as-published', '--as_published'])
def test_an_option_beside_the_switch_wins(words, name, value, switch):
    for order in ([switch, *words], [*words, switch]): # even where it is our own default
        made = parse([*TRAIN, *map(str, order)]).framework
        assert made == replace(FrameworkSettings.as_published(), **{name: value})


def test_the_recipe_beside_the_switch_wins():
    assert parse([*TRAIN, '--as-published', '--recipe', 'fast']).training.recipe == 'fast'


def test_a_share_without_affinity_contradicts_the_switch(tmp_path, refused):
    refused('train-diagnosis', '--data', tmp_path, '--out', tmp_path/'x', '--as-published',
            '--solo-share', 0.5, naming=['--train-mode alternate', 'not for batch'])


def test_an_experiment_as_published():
    made = parse('experiment table5 --out runs --data cells --as-published'.split())
    budget, design = made.budget.decided(), made.design.decided()
    assert budget == diagnosis_budget('paper') and (budget.batch_size, budget.recipe) == (8, 'published')
    printed = FrameworkSettings.as_published()
    assert (design.mutual, design.norm, design.mode, design.train_mode, design.solo_share) == (
        printed.mutual, printed.affinity_norm, printed.mode, printed.train_mode, 0)


def test_a_shorter_experiment_is_still_as_published():
    words = 'experiment table5 --out runs --as-published --budget quick --affinity-norm mean_square'
    made = parse(words.split())
    budget = made.budget.decided()
    assert budget == replace(diagnosis_budget('quick'), batch_size=8, recipe='published')
    assert made.design.norm == 'mean_square' and made.design.mutual == 'printed'


def test_an_experiment_as_published_needs_its_name(run_cli):
    code, _, err = run_cli('experiment', '--as-published')
    assert code == 2 and 'NAME' in err and 'Traceback' not in err


@pytest.mark.parametrize('changes', [dict(inputs='LR+ILR'), dict(batch_size=4), dict(mode='solo'), {}])
def test_the_preset_in_python_takes_changes(changes):
    made = FrameworkSettings.as_published(**changes)
    assert all(getattr(made, k) == v for k, v in changes.items())
    assert made.mutual == 'printed'


def test_required_options_stay_required(run_cli):
    code, _, err = run_cli('train-diagnosis', '--as-published')
    assert code == 2 and '--data' in err and '--out' in err and 'Traceback' not in err


# Batches of the training's size

@pytest.fixture(scope='module')
def published(labelled, succeeds, tmp_path_factory):
    "A framework trained in batches of 8 as published, its folder, and what the command printed"
    out = tmp_path_factory.mktemp('published')/'model'
    said = succeeds(*TRAIN[:1], '--data', labelled/'labels.csv', '--out', out, *SCRATCH, '--as-published')
    return out, said


def test_the_command_says_what_was_asked_for(published):
    assert 'As published in section IV-A.' in published[1] and 'its batch of 8' in published[1]


def test_the_model_keeps_the_batch_size(published):
    network, info = load_model(published[0])
    assert network.config['batch_size'] == 8 == batch_of(network, 'batch') and network.mode == 'batch'
    assert info.metrics['batch_size'] == 8 and 'batches of 8 in random order' in info.metrics['convention']
    assert 'batches of 8' in (published[0]/'README.md').read_text(encoding='utf-8')
    assert batch_of(network, 'solo') == 32 # there it is a matter of speed alone


def test_evaluate_and_predict_take_batches_of_that_size(published, labelled, succeeds, tmp_path):
    said = succeeds('evaluate', '--model', published[0], '--data', labelled/'labels.csv', '--split', 'all',
                    '--device', 'cpu', '--out', tmp_path/'evaluation')
    assert 'its batch of 8' in said
    found = json.loads((tmp_path/'evaluation'/'metrics.json').read_text(encoding='utf-8'))
    assert found['batch_size'] == 8 and found['positive'] == 'ill'
    assert 'its batch of 8' in (tmp_path/'evaluation'/'report.html').read_text(encoding='utf-8')
    said = succeeds('predict', labelled, '--model', published[0], '--out', tmp_path/'predicted', '--images',
                    'hr', '--device', 'cpu', '--no-images')
    assert 'batch of 8' in said


def test_a_prediction_takes_the_training_s_batches(published):
    network, _ = load_model(published[0])
    images = torch.rand(20, 3, 8, 8)
    own, eight, all_ = (predict(network, images, ['healthy', 'ill'], batch_size=n).probabilities['ens']
                        for n in (None, 8, 20))
    assert np.array_equal(own, eight) and not np.allclose(own, all_, atol=1e-4)


def test_an_old_model_means_batches_of_32(published, tmp_path):
    config = {k: v for k, v in load_model(published[0])[0].config.items() if k != 'batch_size'}
    assert batch_of(SREnhancedDiagnosis(**config), 'batch') == 32


@pytest.mark.parametrize('wrong', [0, -1, 2.5, '8', None, True])
def test_a_batch_size_that_cannot_be(wrong):
    with pytest.raises(ValueError, match='batch_size'):
        SREnhancedDiagnosis(2, 2, 'LR+ILR', batch_size=wrong, **SMALL)


def toy(n, seed): # a bright or a dark square in noise, 8×8 px
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n)%2
    images = 0.4 + 0.1*torch.rand(n, 1, 8, 8, generator=g)
    images[:, :, 2:6, 2:6] += 0.15*y[:, None, None, None]
    return LabelledPairs(list(images), y, 2, 'lr')


def test_training_and_test_meet_batches_of_one_size():
    torch.manual_seed(0)
    model = SREnhancedDiagnosis(2, 2, 'LR+ILR', **SMALL)
    train, test = toy(96, 0), toy(64, 1)
    seen = []
    model.register_forward_pre_hook(lambda m, args: seen.append((m.training, len(args[0]))))
    train_diagnosis(model, train, test, Recipe(1e-3, 8), 3, precision='fp32',
                    loss=loss_of(FrameworkSettings.as_published()))
    assert {n for _, n in seen} == {8} # validation during training, too
    seen.clear()
    m, _ = evaluate_labelled(model, test, ['dark', 'bright'])
    assert {n for _, n in seen} == {8} and m['batch_size'] == 8 and m['accuracy'] > 0.8
    assert 'batch of 8' in diagnosis_sentence(m)


def test_a_training_part_smaller_than_a_batch_is_one_batch():
    model = SREnhancedDiagnosis(2, 2, 'LR+ILR', **SMALL)
    train_diagnosis(model, toy(6, 0), toy(6, 1), Recipe(1e-3, 8), 1, precision='fp32')
    assert batch_of(model, 'batch') == 6


# M with rows of length one, in Eq. (11) as well

def mutual_of(n=4, size=8):
    torch.manual_seed(0)
    return [affinity(x)@affinity(y).T for x, y in torch.rand(n, 2, size, 5, 3, 3)]


def test_regularization_sees_rows_of_length_one():
    M = mutual_of()
    def soft(m): return weigh_rows(m, 'l2').softmax(1)
    by_hand = sum((torch.linalg.matrix_norm(soft(deep) - soft(low))
                   + torch.linalg.matrix_norm(soft(deep.T) - soft(low.T)))/2
                  for low, deep in zip(M[:-1], M[1:]))
    l2 = SampleAffinityRegularizationLoss(mutual='l2')(M)
    torch.testing.assert_close(l2, by_hand)
    assert l2 != SampleAffinityRegularizationLoss()(M)


def test_other_readings_see_the_raw_one():
    M = mutual_of()
    assert SampleAffinityRegularizationLoss(mutual='mean')(M) == SampleAffinityRegularizationLoss()(M)
    with pytest.raises(ValueError, match='l1'): SampleAffinityRegularizationLoss(mutual='l1')


@pytest.mark.parametrize('mutual', ['printed', 'l2', 'mean'])
def test_the_reading_comes_from_the_settings(mutual):
    assert loss_of(FrameworkSettings(mutual=mutual)).sar.mutual == mutual


def test_no_affinity_is_no_regularization():
    assert SampleAffinityRegularizationLoss(mutual='l2')([torch.eye(4)]*4) == 0


# Which class sensitivity is of

@pytest.mark.parametrize('classes, expected', [
    (['normal', 'tumour'], 'tumour'), (['parasitized', 'uninfected'], 'parasitized'),
    (['cancer', 'benign'], 'cancer'), (['a', 'b'], 'b'), (['Positive', 'Negative'], 'Positive'),
    (['no_tumour', 'tumour'], 'tumour'),
    (['bleeding', 'Normal mucosa'], 'bleeding'), (['abnormal', 'normal'], 'abnormal'), ([0, 1], 1),
    (['healthy', 'normal'], 'normal'), (['a', 'b', 'c'], None)])
def test_the_rule_for_the_positive_class(classes, expected): assert positive_class(classes) == expected


def test_a_named_class_wins_and_must_exist():
    assert positive_class(['normal', 'tumour'], 'normal') == 'normal'
    assert positive_class(['a', 'b', 'c'], 'a') is None # macro averages, whatever must not be missed
    with pytest.raises(ValueError, match='sick'): positive_class(['normal', 'tumour'], 'sick')


def test_two_classes_are_binary_and_more_are_macro():
    y, p = np.array([0]*10 + [1]*10), np.full((20, 2), 0.5)
    p[:, 1] = [0.2]*8 + [0.7]*2 + [0.8]*5 + [0.1]*5
    p[:, 0] = 1 - p[:, 1]
    found = diagnostic_metrics(y, p, ['ill', 'healthy'], positive=positive_class(['ill', 'healthy']))
    assert (found['sensitivity'], found['specificity']) == (0.8, 0.5)
    three = np.eye(3)[[0, 1, 2, 2]]*0.9 + 0.1/3
    macro = diagnostic_metrics([0, 1, 2, 1], three, list('abc'), positive=positive_class(list('abc')))
    assert macro['sensitivity'] == pytest.approx((1 + 0.5 + 1)/3)
    assert averages_sentence(None) == 'macro averages'


def test_an_evaluation_says_of_which_class():
    torch.manual_seed(0)
    model, data = SREnhancedDiagnosis(2, 2, 'LR', channels=1, width=8), toy(40, 0)
    model(torch.rand(8, 1, 8, 8))
    def of(**kw): return evaluate_labelled(model, data, ['ill', 'healthy'], **kw)
    (m, p), (other, _) = of(), of(positive='healthy')
    y, said = data.labels.numpy(), p.labels
    assert m['positive'] == 'ill' and 'sensitivity and specificity of ill' in m['convention']
    assert m['sensitivity'] == (said == 0)[y == 0].mean() and m['specificity'] == (said == 1)[y == 1].mean()
    assert (other['positive'], other['sensitivity']) == ('healthy', m['specificity'])
    c = calibrate(y, p.probabilities['ens'], ['ill', 'healthy'], positive='healthy', sensitivity=0.5)
    if c is not None and c.operating is not None: assert of(calibration=c)[0]['positive'] == 'healthy'


# Options that the equations leave open

def test_each_option_of_the_loss_arrives():
    words = '--temperature 0.5 --margin 0.1 --rank-on logits --ens-weight 2 --mutual l2'
    made = parse([*TRAIN, *words.split()])
    loss = loss_of(made.framework)
    assert (loss.sac.temperature, loss.sar.temperature, loss.rank.margin, loss.rank.on, loss.ens_weight) == (
        0.5, 0.5, 0.1, 'logits', 2) and loss.sar.mutual == 'l2'


@pytest.mark.parametrize('words, naming', [
    (['--temperature', 0], '--temperature'), (['--temperature', 'nan'], '--temperature'),
    (['--margin', -1], '--margin'), (['--ens-weight', -1], '--ens-weight')])
def test_numbers_of_the_loss_that_cannot_be(tmp_path, refused, words, naming):
    refused('train-diagnosis', '--data', tmp_path, '--out', tmp_path/'x', *words, naming=[naming])


def test_the_gate_as_printed_has_no_batch_norm():
    made = parse([*TRAIN, '--no-gate-norm', '--no-standardise']).framework
    assert not made.gate_norm and not made.standardise
    kinds = [type(m).__name__ for m in GatedEnsemble(16, 3, norm=False).gate]
    assert kinds == ['Linear', 'Identity', 'ReLU', 'Linear', 'Identity']
    usual = GatedEnsemble(16, 3)
    assert sum(p.numel() for p in usual.parameters()) - sum(
        p.numel() for p in GatedEnsemble(16, 3, norm=False).parameters()) == 70
    x, y = torch.randn(2, 1, 16), torch.randn(2, 1, 3)
    assert GatedEnsemble(16, 3, norm=False).train()(*x, *y).ens.shape == (1, 3) # a single sample will do


def test_options_of_the_network_arrive(labelled, succeeds, tmp_path):
    succeeds('train-diagnosis', '--data', labelled/'labels.csv', '--out', tmp_path/'model', *SCRATCH,
             '--no-gate-norm', '--no-standardise', '--temperature', 2, '--batch-size', 8)
    network, info = load_model(tmp_path/'model')
    assert not network.config['gate_norm'] and network.config['statistics'] == 'none'
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in network.network.ensemble.modules())
    x = torch.rand(2, 3, 8, 8)
    for norm in network.network.normalisers: assert torch.equal(norm(x), x)
    assert info.training['loss']['temperature'] == 2


# Experiments

def test_the_design_hands_its_options_on():
    row = TABLES['table5'][-1]
    chosen = dict(temperature=0.5, margin=0.1, rank_on='logits', ens_weight=2., gate_norm=False,
                  standardise=False, width=16, train_mode='both')
    s = Design(**chosen).settings(row)
    assert {k: getattr(s, k) for k in chosen} == chosen and s.trains == 'both'
    ways = [Design(solo_share=share).settings(row).trains for share in (0., 0.5)]
    assert ways == ['batch', 'alternate']
    with pytest.raises(DataError, match='leave solo_share or train_mode out'):
        Design(solo_share=0.5, train_mode='both')


def test_the_command_line_decides_how_batches_go_through():
    assert Rows().decided() == Design()
    assert Rows(mode='solo').decided() == Design(mode='solo', train_mode='both')
    assert Rows(solo_share=0.25).decided() == Design(solo_share=0.25)


OLD = dict(folds=2, epochs=1, batch_size=8, scale=4, recipe='fast', mode='context', mutual='mean',
           norm='mean_square', solo_share=0., references=32, images='hr', valid_share=0.15, precision='fp32',
           device='cpu')
ABOUT = dict(data='a/b', classes=['ill', 'healthy'], images=dict(healthy=2, ill=2), grouped=True, groups=2)


@pytest.fixture
def old(tmp_path):
    "A store of a time before these options, with one run whose averages are macro ones"
    run = tmp_path/'runs'/'LR-x4'/'seed0'/'fold0'
    for folder in (run, tmp_path/'setup'): folder.mkdir(parents=True)
    head = dict(format='srdiag experiment 1', fixed=OLD, about=ABOUT)
    (tmp_path/'setup'/'config.json').write_text(json.dumps(head))
    pd.DataFrame(dict(file=list('abcd'), group=list('ppqq'), fold=[0]*4)).to_csv(tmp_path/'setup'/'split.csv')
    said = [0.9, 0.8, 0.3, 0.6] # of being ill; the third is missed, the last one an alarm for nothing
    answers = dict(file=list('abcd'), group=list('ppqq'), true=['ill', 'ill', 'ill', 'healthy'], ens_ill=said,
                   ens_healthy=[1 - x for x in said])
    pd.DataFrame(answers).to_csv(run/'predictions.csv', index=False)
    scores = dict(accuracy=0.5, f1=0.4, sensitivity=1/3, specificity=1/3, kappa=-0.3, mcc=-0.3, auc=0.6, n=4)
    found = dict(row=asdict(TABLES['table5'][0]), seed=0, fold=0, metrics=scores, mode='solo',
                 modes=dict(solo=scores), gate_closed=0, seconds=1., made={}, config={})
    (run/'metrics.json').write_text(json.dumps(found))
    return DiagnosisStore(tmp_path)


def test_an_old_store_means_the_defaults(old):
    fixed = old.head()['fixed']
    names = 'temperature', 'gate_norm', 'train_mode', 'width'
    assert [fixed[name] for name in names] == [1, True, 'batch', 64]
    assert compare(old, OLD | dict(temperature=1., rank_on='probabilities'))['temperature'] == 1
    with pytest.raises(DataError, match='temperature was 1.0, now it is 0.5'):
        compare(old, OLD | dict(temperature=0.5))


def test_its_single_predictions_tell_the_binary_rates(old):
    found = diagnosis_results(old, [TABLES['table5'][0]]).iloc[0]
    assert (found.sensitivity, found.specificity) == (pytest.approx(2/3), 0) and found.accuracy == 0.5
    assert 'those of ill' in diagnosis_limits(old.head(), 1, positive=old.positive)


def test_without_them_it_stays_as_it_was_made(old):
    (old.path(TABLES['table5'][0], 0, 0)/'predictions.csv').unlink()
    found = diagnosis_results(old, [TABLES['table5'][0]]).iloc[0]
    assert found.sensitivity == found.specificity == pytest.approx(1/3)
    assert 'sensitivity and specificity are over classes' in diagnosis_limits(old.head(), 1)


def test_a_positive_class_that_the_data_does_not_have(labelled, tmp_path, refused):
    refused('experiment', 'table5', '--data', labelled/'labels.csv', '--out', tmp_path/'x', '--scale', 2,
            '--only', 'LR-x2', '--sr', 'histology_x2', '--device', 'cpu', '--positive', 'sick',
            naming=["'sick'", 'healthy, ill'])
