"mrcnet2: no dearer than MRC-Net, and at home wherever a network of the zoo is."

import pytest
import torch
from torch import nn

from srdiag.core.errors import ModelError
from srdiag.core.graphs import captured
from srdiag.evaluation.cost import measure_cost
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.sr.inference import super_resolve
from srdiag.sr.mrcnet2 import Down, MRCNet2, QuietBlock, Stage, Up
from srdiag.sr.zoo import create_model, describe, list_models, traits

SIDES = {2: 96, 4: 128}  # as in Table I
SMALL = dict(channels=16, coarse=12, stages=2, blocks=1, coarse_blocks=1)
COUNTS = {2: (680_787, 9_579_921_408), 4: (717_779, 22_202_548_224)}


def loud(net):
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
    return net


@pytest.mark.parametrize('scale', SIDES)
def test_it_costs_no_more_than_mrcnet(scale):
    names = 'mrcnet', 'mrcnet2'
    old, new = (measure_cost(n, create_model(f'{n}_x{scale}'), scale, SIDES[scale]) for n in names)
    assert (new.parameters, new.flops) == COUNTS[scale]
    assert new.parameters <= old.parameters and new.flops <= old.flops


def test_it_has_names_and_says_that_it_is_not_of_the_paper():
    assert list_models('mrcnet2*') == ['mrcnet2_x2', 'mrcnet2_x3', 'mrcnet2_x4', 'mrcnet2_x8']
    facts = describe('mrcnet2_x4')
    assert facts.reference is None and facts.table_row is None and not facts.global_context
    with pytest.raises(ModelError, match='channels, coarse, stages, blocks'):
        create_model('mrcnet2_x4', width=3)


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_every_weight_gets_a_gradient(scale):
    net = loud(MRCNet2(scale, **SMALL)).double()
    net(torch.rand(2, 3, 12, 12).double()).square().sum().backward()
    assert not [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_global_path_is_alive():
    torch.manual_seed(0)
    net, lr = MRCNet2(2, **SMALL), torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        before = net.body(lr)
        for stage in net.stages:
            nn.init.zeros_(stage.to_local[0].weight)
        assert not torch.allclose(before, net.body(lr), atol=1e-5)


@pytest.mark.parametrize('size', [(8, 8), (9, 8), (8, 11), (13, 15)])
def test_odd_sizes_are_rounded_up_and_cut(size):
    x, coarse = torch.rand(1, 4, *size), [(n + 1) // 2 for n in size]
    g = Down(4, 6)(x)
    assert list(g.shape[2:]) == coarse and Up(4, 6)(g, x).shape == x.shape
    a, b = Stage(4, 6, 5, 1, 1)(x, g)
    assert a.shape == x.shape and b.shape == g.shape
    assert Stage(4, 6, 5, 1, 1, last=True)(x, g)[1] is None


def test_an_untrained_block_is_nearly_the_identity():
    torch.manual_seed(0)
    net, x = MRCNet2(2), torch.randn(1, 64, 16, 16)
    blocks = [m for m in net.stages.modules() if isinstance(m, QuietBlock) and m.conv1.in_channels == 64]
    assert len(blocks) == 6
    with torch.no_grad():
        assert all((b(x) - x).std() < 0.2 for b in blocks)


def test_tiles_give_what_one_piece_gives():
    torch.manual_seed(0)
    net = loud(MRCNet2(2, **SMALL)).eval()
    net.to_image[-1].weight.data.mul_(0.02)
    lr, reach = torch.rand(3, 70, 90), traits(net).reach
    overlap = reach + reach % 2
    whole = super_resolve(net, lr, precision='fp32', tile=90)
    tiles = super_resolve(net, lr, precision='fp32', tile=32, overlap=overlap)
    torch.testing.assert_close(tiles, whole, rtol=0, atol=1e-5)


def test_it_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    net, lr = loud(MRCNet2(4, image_channels=1, **SMALL)).eval(), torch.rand(1, 1, 9, 10)
    save_model(tmp_path / 'model', net, ModelInfo('mrcnet2, untrained'))
    again, _ = load_model(tmp_path / 'model', 'sr', 4)
    assert type(again) is MRCNet2 and again.config == net.config
    with torch.no_grad():
        torch.testing.assert_close(again(lr), net(lr), rtol=0, atol=0)


def test_one_graph_serves_every_size():
    torch.manual_seed(0)
    net = loud(MRCNet2(2, **SMALL)).eval()
    graph = captured(net, torch.rand(2, 3, 12, 14)).module()
    for size in ((8, 8), (9, 15), (20, 11)):
        lr = torch.rand(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(graph(lr), net(lr), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('wrong', [dict(contrast=0.0), dict(contrast=float('nan')), dict(channels=1)])
def test_settings_that_make_no_network_are_refused(wrong):
    with pytest.raises(ValueError, match='MRCNet2 needs'):
        MRCNet2(2, **wrong)
