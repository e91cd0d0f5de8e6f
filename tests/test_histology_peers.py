"""Peers for histology: equivariance of the group convolution, its kept bank, counts that Table III does not
print, and trunks of torchvision with weights from a file."""
import copy
from unittest import mock

import pytest
import torch
from torch import nn

from srdiag.core.errors import ModelError
from srdiag.evaluation.cost import count_flops, count_parameters
from srdiag.peers.araujo import POOLS, RULES, Araujo, pools_at, vote
from srdiag.peers.group_convolution import (
    GROUPS, GroupConv, act_on, compose, half_size, inverse, invariant, order_of, turned,
)
from srdiag.peers.kassani import Kassani
from srdiag.peers.resnet101 import ResNet101, start_trunk, trunk_of
from srdiag.peers.veeling import Veeling

groups = pytest.mark.parametrize('group', GROUPS)


def shaken(peer): # batch norms away from their start, in evaluation
    for m in peer.modules():
        if isinstance(m, nn.BatchNorm3d):
            nn.init.uniform_(m.weight, 0.5, 2)
            nn.init.normal_(m.bias)
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return peer.eval()


# --- group convolution --------------------------------------------------------------------------------------

def test_eight_positions_form_a_group():
    x = torch.rand(3, 5, 5)
    for g in range(8):
        assert torch.equal(turned(turned(x, g), inverse(g)), x)
        for h in range(8):
            assert torch.equal(turned(turned(x, h), g), turned(x, compose(g, h)))
            for k in range(8): assert compose(compose(g, h), k) == compose(g, compose(h, k))
    assert len({tuple(turned(x, g).flatten().tolist()) for g in range(8)}) == 8


@groups
@pytest.mark.parametrize('size', [1, 3, 5])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_layers_are_equivariant(group, size, dtype):
    torch.manual_seed(0)
    order = order_of(group)
    lift = GroupConv(2, 3, 3, group, lifting=True).to(dtype)
    conv = GroupConv(3, 4, size, group).to(dtype)
    x = torch.randn(2, 2, 9, 12, dtype=dtype) # neither square nor of one parity
    with torch.no_grad():
        f = lift(x)
        for g in range(order):
            torch.testing.assert_close(lift(turned(x, g)), act_on(f, g), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(conv(act_on(f, g)), act_on(conv(f), g), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(half_size(act_on(f, g)), act_on(half_size(f), g), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(invariant(act_on(f, g)), invariant(f), rtol=1e-5, atol=1e-5)


@groups
def test_images_may_lie_channels_last(group):
    "fastai's ChannelsLast converts every parameter of four or five dimensions"
    torch.manual_seed(0)
    peer, x = Veeling(2, width=3, group=group).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        scores = peer(x).scores
        peer.to(memory_format=torch.channels_last)
        again = peer(x.to(memory_format=torch.channels_last)).scores
        torch.testing.assert_close(again, scores, rtol=1e-4, atol=1e-5)


def test_p1_is_an_ordinary_convolution():
    conv, x = GroupConv(3, 4, group='p1'), torch.randn(2, 3, 1, 7, 8)
    plain = nn.functional.conv2d(x[:, :, 0], conv.filters[:, :, 0], padding='same')
    torch.testing.assert_close(conv(x)[:, :, 0], plain)


def test_the_kept_bank_follows_its_weights():
    torch.manual_seed(0)
    conv, x = GroupConv(2, 3).eval(), torch.randn(1, 2, 8, 6, 6)
    def right(): # what a layer that keeps nothing computes
        bank = conv.expanded()
        return nn.functional.conv2d(x.flatten(1, 2), bank, padding='same').unflatten(1, (-1, 8))
    with torch.no_grad():
        conv(x)
        assert conv.bank() is conv.bank()
        optimiser = torch.optim.SGD(conv.parameters(), 0.1)
    for change in (lambda: optimiser.step(), lambda: conv.weight.data.mul_(2), # as averaged weights come in
                   lambda: conv.load_state_dict(GroupConv(2, 3).state_dict()),
                   lambda: setattr(conv, 'weight', nn.Parameter(torch.randn_like(conv.weight)))):
        conv(x).square().mean().backward() # with gradients the bank is made anew
        change()
        with torch.no_grad(): torch.testing.assert_close(conv(x), right())
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        twin.weight.zero_()
        assert twin(x).abs().max() == 0 and conv(x).abs().max() > 0
    with torch.inference_mode():
        assert GroupConv(2, 3).eval()(x).shape == conv(x).shape
    assert set(conv.state_dict()) == {'weight'}
    assert conv.train().bank().requires_grad


# --- Veeling ------------------------------------------------------------------------------------------------

@groups
@pytest.mark.parametrize('mix', ['channels', 'positions'])
@pytest.mark.parametrize('side', [16, 31, 48])
def test_scores_do_not_change_when_the_section_is_turned(group, mix, side):
    torch.manual_seed(0)
    peer, x = shaken(Veeling(3, width=3, group=group, mix=mix)), torch.rand(2, 3, side, side)
    with torch.no_grad():
        scores = peer(x).scores
        for g in range(peer.order):
            torch.testing.assert_close(peer(turned(x, g)).scores, scores, rtol=1e-5, atol=1e-5)


def test_an_ordinary_network_changes_its_mind():
    torch.manual_seed(0)
    peer, x = Veeling(3, width=8, group='p1'), torch.rand(2, 3, 32, 32)
    with torch.no_grad(): assert (peer(turned(x, 1)).scores - peer(x).scores).abs().max() > 1e-3


def test_veeling_agrees_with_the_printed_flops():
    with torch.device('meta'): peer = Veeling(2)
    assert abs(count_flops(peer, torch.empty(1, 3, 96, 96))/1.68e9 - 1) < 0.03
    assert count_parameters(peer) < 1.3e5


# --- Araujo -------------------------------------------------------------------------------------------------

def test_araujo_is_the_published_one_at_its_own_size():
    assert tuple(pools_at(512)) == POOLS
    convolutions, full = 448 + 4_640 + 18_496 + 36_928 + 18_464, 131_328 + 32_896 + 516
    assert count_parameters(Araujo(4)) == convolutions + full


@pytest.mark.parametrize('side', [16, 17, 48, 79, 80, 95, 96, 130])
def test_araujo_reads_any_side(side):
    x = torch.rand(1, 3, side, side + 3)
    assert Araujo(2)(x).scores.shape == (1, 2)
    unpadded = Araujo(2, pad=False)
    if side >= 80: assert unpadded(x).scores.shape == (1, 2)
    else:
        with pytest.raises(ModelError, match='80 px and more'): unpadded(x)


def test_araujo_as_counted_meets_both_printed_numbers():
    with torch.device('meta'): peer = Araujo(2, hidden=(2048, 4096), pad=False)
    assert abs(count_parameters(peer)/9.3e6 - 1) < 0.03
    assert f'{count_flops(peer, torch.empty(1, 3, 96, 96))/1e9:.2f}' == '0.04'


def test_votes():
    p = torch.tensor([[0.6, 0.4], [0.55, 0.45], [0.02, 0.98]])
    assert [vote(p, rule) for rule in RULES] == [0, 1, 1]
    tie = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    assert vote(tie) == 0


# --- networks of torchvision ------------------------------------------------------------------------------

def test_without_a_network_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path), raising=False)
    for peer in (ResNet101(2, depth=18), Kassani(2, networks=['resnet18', 'mobilenet_v2'], hidden=8)):
        before = copy.deepcopy(peer.state_dict())
        with mock.patch('torch.hub.download_url_to_file', side_effect=OSError('no network')):
            with pytest.raises(ModelError, match='weights of resnet18 .*no network.*start from noise'):
                peer.start_from_imagenet()
        assert all(torch.equal(v, before[k]) for k, v in peer.state_dict().items())


@pytest.mark.parametrize('channels', [1, 3])
def test_weights_in_the_cache_are_taken(channels, tmp_path, monkeypatch):
    from torchvision import models
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path), raising=False)
    torch.manual_seed(0)
    seed = models.resnet18()
    folder = tmp_path/'checkpoints'
    folder.mkdir()
    torch.save(seed.state_dict(), folder/models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition('/')[2])
    peer = ResNet101(2, channels, depth=18).start_from_imagenet().eval()
    seed.fc = nn.Identity()
    x = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(peer.trunk(x), seed.eval()(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match='1 or 3 channels'):
        start_trunk(trunk_of('resnet18', 4)[0], 'resnet18')


@pytest.mark.parametrize('wrong, words', [
    (lambda: GroupConv(2, 2, group='p6'), 'choose p1, p4, p4m'), (lambda: GroupConv(2, 2, 4), 'odd size'),
    (lambda: Veeling(2, mix='all'), "'positions', not 'all'"),
    (lambda: Veeling(2, width=0), 'one channel wide'),
    (lambda: Araujo(2, hidden=(0,)), 'one unit or more'), (lambda: ResNet101(2, depth=19), 'Did you mean'),
    (lambda: Kassani(2, networks=['vgg19']), 'two networks or more'),
    (lambda: Kassani(2, networks='vgg19'), 'two networks or more'),
    (lambda: Kassani(2, hidden=0), 'one hidden unit'),
    (lambda: vote(torch.rand(2, 2), 'x'), 'choose majority')])
def test_what_cannot_be_is_a_sentence(wrong, words):
    with pytest.raises(ModelError, match=words): wrong()


def test_filters_are_made_anew_after_a_fused_step():
    from srdiag.peers.group_convolution import GroupConv
    torch.manual_seed(0)
    layer, x = GroupConv(1, 2, lifting=True), torch.randn(2, 1, 8, 8)
    optimiser = torch.optim.Adam(layer.parameters(), 0.1, fused=True)
    for _ in range(2): # the second time something is kept
        layer.train()
        layer(x).square().mean().backward()
        optimiser.step()
        layer.eval()
        with torch.no_grad(): kept = layer(x)
        torch.testing.assert_close(kept, layer(x).detach(), atol=1e-6, rtol=1e-5)
