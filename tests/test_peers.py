"""Networks of other groups: each learns, is saved and comes back, costs what was printed; and each way in
says what does not fit."""
import json
from dataclasses import replace
from typing import get_args

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from srdiag.bench.diagnosis_store import DiagnosisStore
from srdiag.bench.rows import TABLES, Row, pairs_of, rows_of
from srdiag.bench.settings import Design
from srdiag.core.errors import DataError, ModelError
from srdiag.diagnosis.losses import DiagnosisLoss
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.diagnosis.settings import FrameworkSettings, NetworkName
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.peers.stage import Peer, PeerOutput, check_side
from srdiag.peers.zoo import PEERS, UNLIKE, create_peer, peer_cost
from srdiag.sr.zoo import create_model

# lighter ones of the same shape, for tests that train: name → settings
LIGHT = {'fan': dict(fc=64, outputs=32), 'jia': dict(widths=(16, 16, 32), fc=32),
         'yuan': dict(growth=8, depths=(2, 2, 2, 2)), 'guo': dict(growth=8, stem=16, depths=(2, 2, 2, 2)),
         'resnet101': dict(depth=18), 'veeling': dict(width=4),
         'kassani': dict(networks=['resnet18', 'mobilenet_v2'], hidden=64)}
peers = pytest.mark.parametrize('name', PEERS)


def light(name, classes=3, channels=3): return create_peer(name, classes, channels, **LIGHT.get(name, {}))


def side_of(cls): return cls.only_side or max(cls.smallest, 32)


def framework(name, **kw): # the smallest one that holds a peer
    own = dict(LIGHT.get(name, {}))
    return SREnhancedDiagnosis(3, 2, inputs='LR', peer=name, peer_config=own, mode='solo', **kw)


# --- what a peer is ---------------------------------------------------------------------------------------

def test_the_settings_name_every_peer_and_no_other():
    assert set(get_args(NetworkName)) == {'framework', *PEERS}


@peers
def test_counts_are_those_of_table_iii(name):
    cost = peer_cost(name)
    assert cost.apart < 0.03 or name in UNLIKE, cost
    assert PEERS[name].title in cost.title and PEERS[name].reference and PEERS[name].year


@peers
def test_it_overfits_a_batch(name):
    torch.manual_seed(0)
    model, loss = framework(name), DiagnosisLoss()
    target, side = torch.arange(6)%3, side_of(PEERS[name])
    x = (torch.rand(6, 3, side, side) + F.one_hot(target, 3)[:, :, None, None])/2
    model.network.fit_statistics(x)
    optimiser, first = torch.optim.Adam(model.parameters(), 1e-3), None
    for _ in range(60):
        value = loss(model.train()(x), target)
        first = first if first is not None else value.item()
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimiser.step()
        if value.item() < 0.2*first and (model(x).ens.argmax(1) == target).all(): break
    assert value.item() < 0.5*first
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert (model.train()(x).ens.argmax(1) == target).float().mean() > 0.8


@peers
def test_it_is_saved_and_comes_back_to_the_bit(name, tmp_path):
    torch.manual_seed(0)
    model, side = framework(name).eval(), side_of(PEERS[name])
    save_model(tmp_path/'m', model, ModelInfo('test', lr_size=[side, side], classes=['a', 'b', 'c']))
    again, _ = load_model(tmp_path/'m', 'diagnosis')
    x = torch.rand(2, 3, side, side)
    with torch.no_grad(): assert torch.equal(model(x).ens, again.eval()(x).ens)
    assert again.config == model.config and 'Not for diagnostic use' in (tmp_path/'m/README.md').read_text()
    assert create_peer(name, **again.network.branch.config).config == again.network.branch.config


@peers
def test_its_own_loss_is_a_finite_number_with_a_gradient_where_it_has_one(name):
    torch.manual_seed(0)
    model, side = framework(name).train(), side_of(PEERS[name])
    out, target = model(torch.rand(4, 3, side, side)), torch.tensor([0, 1, 2, 0])
    own = out.own(target)
    assert own.dim() == 0 and torch.isfinite(own)
    has_one = PEERS[name].own_loss is not Peer.own_loss
    assert own.requires_grad or not has_one
    loss = DiagnosisLoss()
    loss(out, target)
    assert float(loss.components['own']) == pytest.approx(float(own))
    assert model.eval()(torch.rand(2, 3, side, side)).own is None


@peers
def test_too_small_too_grey_and_too_few_are_sentences(name):
    cls = PEERS[name]
    peer = light(name)
    wrong = (cls.only_side or cls.smallest) - 1
    with pytest.raises(ModelError, match=f'{wrong}×{wrong} px'):
        peer(torch.rand(1, 3, wrong, wrong))
    with pytest.raises(ValueError, match='B×3×H×W'): peer(torch.rand(1, 1, side_of(cls), side_of(cls)))
    with pytest.raises(ModelError, match='two classes'): create_peer(name, 1)
    with pytest.raises(ModelError, match='no setting depht'): create_peer(name, 2, depht=3)
    smallest = side_of(replace_smallest(cls))
    peer.eval()(torch.rand(1, 3, smallest, smallest)) # what it says it reads, it reads


def replace_smallest(cls): # the smallest side that it allows, as a class that says so
    return type('Smallest', (), dict(only_side=cls.only_side or cls.smallest, smallest=cls.smallest))


@peers
def test_grey_images_and_five_classes(name):
    peer, side = light(name, 5, 1).eval(), side_of(PEERS[name])
    assert peer(torch.rand(2, 1, side, side)).scores.shape == (2, 5)


@peers
def test_it_has_four_stages_to_look_at(name):
    from srdiag.show.saliency import grad_cam
    torch.manual_seed(0)
    model, side = framework(name), side_of(PEERS[name])
    assert len(model.network.branch.stages) == 4
    heat = grad_cam(model, torch.rand(2, 3, side, side))
    assert heat.lr.shape == (2, side, side) and heat.sr is None


@peers
def test_scores_of_an_image_do_not_depend_on_its_neighbours(name):
    torch.manual_seed(0)
    peer, side = light(name).eval(), side_of(PEERS[name])
    x = torch.rand(3, 3, side, side)
    with torch.no_grad(): torch.testing.assert_close(peer(x).scores[:1], peer(x[:1]).scores, rtol=1e-3,
                                                     atol=1e-4)


# --- the ways to one --------------------------------------------------------------------------------------

def test_names_are_looked_up():
    assert type(create_model('jia', classes=2)) is PEERS['jia']
    assert [create_model(name).config['classes'] for name in ('jia', 'araujo')] == [3, 2] # as in Table III
    for wrong, words in ((lambda: create_model('jia_x4', classes=2), 'enlarges nothing'),
                         (lambda: create_peer('jai', 2), 'Did you mean jia')):
        with pytest.raises(ModelError, match=words): wrong()


def test_one_side_only():
    class Fixed(Peer):
        title, only_side = 'Fixed', 96
    with pytest.raises(ModelError, match='96×96 px, not 64×64'): check_side(Fixed, 64)
    check_side(Fixed, 96)


@pytest.mark.parametrize('change, words', [
    (dict(), 'reads one image'), (dict(inputs='LR+ILR'), 'reads one image'),
    (dict(inputs='LR', width=16), '--width 16'), (dict(inputs='LR', sai=False), '--no-sai'),
    (dict(inputs='SR', backbone='timm/resnet50'), '--backbone timm/resnet50'),
    (dict(inputs='LR', gate_norm=False), '--no-gate-norm')])
def test_options_of_our_branches_do_not_go_with_a_peer(change, words):
    with pytest.raises(DataError, match=words): FrameworkSettings(network='jia', **change)


def test_a_framework_refuses_the_same():
    for change in (dict(inputs='LR+SR'), dict(inputs='LR', width=16), dict(inputs='LR', backbone='timm/x')):
        with pytest.raises(ValueError, match='jia'): SREnhancedDiagnosis(2, 2, peer='jia', **change)


def test_its_own_loss_reaches_the_weights():
    "A peer that only has a loss of its own learns from it"
    class Drawn(Peer):
        title, smallest = 'Drawn', 1
        def __init__(self, classes, channels=3):
            super().__init__(dict(classes=classes, channels=channels))
            self.a = torch.nn.Linear(channels, classes)
        def forward(self, x):
            y = self.a(x.mean((2, 3)))
            return PeerOutput(y.detach(), dict(y=y))
        def views(self, x): return x.flip(-1)
        def own_loss(self, output, target, again=None):
            assert again is not None and torch.allclose(again.scores, output.scores, atol=1e-5)
            return output.features['y'].square().mean()
    PEERS['drawn'] = Drawn
    try:
        model = SREnhancedDiagnosis(3, 2, inputs='LR', peer='drawn', mode='solo').train()
        DiagnosisLoss()(model(torch.rand(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
        assert model.network.branch.a.weight.grad.abs().sum() > 0
    finally: del PEERS['drawn']


# --- rows and tables --------------------------------------------------------------------------------------

def test_rows_of_tables_iii_and_iv():
    assert {r.peer for r in TABLES['table3']} == {*PEERS, None}
    four = TABLES['table4']
    assert {r.inputs for r in four if r.peer} == {'LR', 'ILR', 'SR'} and four[-1].label == 'LR, Ours'
    assert not [r for r in rows_of('all', Design(), [('mrcnet', 4)]) if r.peer]
    of_jia = {(a.key, b.key) for a, b in pairs_of(four) if 'jia' in (a.peer, b.peer) and b.peer}
    assert ('ILR-jia-x4', 'LR-jia-x4') in of_jia and ('ILR-jia-x4', 'ILR-fan-x4') not in of_jia
    with pytest.raises(ValueError, match='one image'): Row('x', 'LR+SR', peer='jia')
    with pytest.raises(ValueError, match='no peer'): Row('x', 'LR', peer='jai')


def test_printed_labels_are_those_of_the_paper():
    from srdiag.bench.published import published_diagnosis
    for table, numeral in (('table3', 'III'), ('table4', 'IV')):
        printed = set(published_diagnosis(numeral).row)
        assert {r.label for r in TABLES[table]} <= printed


def test_rows_of_a_peer_are_as_published_in_a_narrow_design():
    row = Row('Jia', 'LR', scale=2, peer='jia')
    s = Design(scale=2, width=16).settings(row)
    assert (s.network, s.width, s.inputs) == ('jia', 64, 'LR')
    assert Design(scale=2, width=16).settings(replace(row, peer=None)).width == 16


def test_table_iii_through_the_bench(labelled, sr_model, succeeds, tmp_path):
    out = tmp_path/'bench'
    succeeds('experiment', 'table3', '--data', labelled/'labels.csv', '--sr', sr_model, '--out', out,
             '--budget', 'smoke', '--images', 'lr', '--scale', 2, '--width', 16, '--references', 4, '--only',
             'LR-jia-x2,LR+SR-sai-x2', '--device', 'cpu', '--precision', 'fp32')
    store = DiagnosisStore(out)
    row = next(r for r in rows_of('table3', store.design(store.head()), [('mrcnet', 2)]) if r.peer == 'jia')
    m = store.metrics(row, 0, 0)
    assert m['row']['peer'] == m['config']['peer'] == 'jia'
    succeeds('experiment', 'table3', '--data', labelled/'labels.csv', '--sr', sr_model, '--out', out,
             '--budget', 'smoke', '--images', 'lr', '--scale', 2, '--width', 16, '--references', 4, '--only',
             'LR-jia-x2,LR+SR-sai-x2', '--device', 'cpu', '--precision', 'fp32') # nothing is left to do
    succeeds('experiment', 'table3', '--out', out, '--report-only')
    text = (out/'table3.md').read_text(encoding='utf-8')
    assert 'Jia et al. [44]' in text and '80.52' in text and 'Ours' in text
    assert 'Jia et al. [44]' in (out/'report.html').read_text(encoding='utf-8')
    assert set(pd.read_csv(out/'results.csv').key) == {'LR-jia-x2', 'LR+SR-sai-x2'}


def test_images_that_a_peer_cannot_read_are_said_before_anything_is_written(labelled, sr_model, refused,
                                                                            tmp_path):
    refused('experiment', 'table3', '--data', labelled/'labels.csv', '--sr', sr_model, '--out', tmp_path/'b',
            '--budget', 'smoke', '--images', 'lr', '--scale', 2,
            naming=('43 px and more', '16×16', '--only'))


# --- the command line -------------------------------------------------------------------------------------

def test_train_predict_and_evaluate(labelled, succeeds, tiny_diagnosis, tmp_path):
    model = tmp_path/'jia'
    said = succeeds('train-diagnosis', '--data', labelled, '--network', 'jia', '--inputs', 'LR', '--scale', 2,
                    '--out', model, *tiny_diagnosis)
    assert 'Saved' in said
    config = json.loads((model/'config.json').read_text())
    assert config['network']['peer'] == 'jia' and config['info']['title'].startswith('Jia et al. [44] on LR')
    assert 'train_own' in pd.read_csv(model/'log.csv').columns
    succeeds('predict', '--model', model, '--out', tmp_path/'p', labelled/'ill')
    assert len(pd.read_csv(tmp_path/'p/predictions.csv')) == 12
    succeeds('evaluate', '--model', model, '--data', labelled)


def test_on_enlarged_images(labelled, sr_model, succeeds, tiny_diagnosis, tmp_path):
    succeeds('train-diagnosis', '--data', labelled, '--network', 'jia', '--inputs', 'SR', '--sr', sr_model,
             '--scale', 2, '--out', tmp_path/'jia', *tiny_diagnosis)
    assert load_model(tmp_path/'jia', 'diagnosis')[0].sr_network is not None


@pytest.mark.parametrize('options, words', [
    ((), ('reads one image', 'LR+SR (the default)', '--inputs LR for', '--inputs SR --sr FOLDER')),
    (('--inputs', 'LR', '--width', 16), ('--width 16',)),
    (('--inputs', 'LR', '--lr-branch', 'scratch'), ('single branch',)),
    (('--inputs', 'LR', '--images', 'hr'), ('15 px and more', '8×8'))])
def test_what_does_not_go_together(options, words, labelled, refused, tmp_path):
    refused('train-diagnosis', '--data', labelled, '--network', 'jia', '--scale', 2, '--out', tmp_path/'m',
            *options, naming=words)


def test_a_model_is_fine_tuned_by_its_own_network_only(labelled, succeeds, run_cli, tiny_diagnosis, tmp_path):
    common = ('train-diagnosis', '--data', labelled, '--inputs', 'LR', '--scale', 2, *tiny_diagnosis)
    succeeds(*common, '--network', 'jia', '--out', tmp_path/'a')
    assert '--network jia' in succeeds(*common, '--from', tmp_path/'a', '--out', tmp_path/'b')
    code, _, err = run_cli(*common, '--network', 'araujo', '--from', tmp_path/'a', '--out', tmp_path/'c')
    assert code == 2 and '--network' in err


def test_options_of_our_framework_mean_nothing_to_a_peer():
    with pytest.raises(DataError, match='--mode solo, --sac 1.0'):
        FrameworkSettings(network='yuan', inputs='LR', sac=1., mode='solo')
    with pytest.raises(DataError, match='--focal 2.0'):
        FrameworkSettings(network='guo', inputs='LR', focal=2.)
    assert FrameworkSettings(network='fan', inputs='LR', focal=2.).peer == 'fan'
    assert FrameworkSettings.as_published(network='fan', inputs='LR').mode == 'batch'
    ours = Design(mode='solo', ens_weight=2., width=16)
    assert {ours.settings(r).ens_weight for r in TABLES['table3'] if r.peer} == {1.}
