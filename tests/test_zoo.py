"The networks that MRC-Net is compared with: sizes, reach, training, and the names by which they are made."

import json

import pytest
import torch
from torch import nn

from srdiag.data.degradation import degrade, upsample
from srdiag.core.errors import ModelError
from srdiag.sr.lean import RLFN
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.pre_upsampling import SRNetwork, haar, inverse_haar
from srdiag.sr.zoo import (
    ARCHITECTURES,
    MODELS,
    architecture_of,
    create_model,
    describe,
    list_models,
    scales_of,
    traits,
)

TINY = {  # settings with which a network of each name takes no time
    'bicubic': {},
    'srcnn': dict(channels=16),
    'vdsr': dict(channels=16, depth=6),
    'carn': dict(channels=16),
    'edsr_baseline': dict(channels=16, blocks=3),
    'mwcnn': dict(channels=8),
    'drcn': dict(channels=16, recursions=6),
    'drrn': dict(channels=16, units=4),
    'srrfn': dict(channels=16, counts=[2, 2], recursions=2),
    'mrcnet': dict(channels=16, stages=1, blocks=1),
    'mrcnet_stack': dict(channels=16, stages=1, blocks=1, modules=2),
    'mrcnet_recursive': dict(channels=16, stages=1, blocks=1, steps=2),
    'mrcnet_recursive_no_lstm': dict(channels=16, stages=1, blocks=1, steps=2),
    'mrcnet_recursive_no_rcf': dict(channels=16, stages=1, blocks=1, steps=1),
    'rlfn': dict(channels=16, blocks=2),
    'safmn': dict(channels=16, blocks=2),
    'span': dict(channels=16, blocks=2),
    'plksr': dict(channels=16, blocks=2, kernel=7),
    'plksr_tiny': dict(channels=16, blocks=2, kernel=5),
    'mrcnet2': dict(channels=16, coarse=12, stages=2, blocks=1, coarse_blocks=1),
}
NAMES = list_models()
every = pytest.mark.parametrize('name', NAMES)
tiled = pytest.mark.parametrize(
    'name',
    [
        n
        for n in NAMES
        if n[:-3]
        in (
            'bicubic',
            *ARCHITECTURES.keys() - {'mrcnet', 'rlfn'},
            'edsr_baseline',
            'plksr_tiny',
            'mrcnet_recursive_no_rcf',
        )
    ],
)


def tiny(name, **config):
    torch.manual_seed(0)
    return create_model(name, **(TINY[name[:-3]] | config))


def loud(net):  # nothing quiet, nothing at zero: differences show
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
    return net.double()


# Networks


@every
def test_builds_on_the_meta_device_and_enlarges(name):
    scale = int(name[-1])
    with torch.device('meta'):
        net = create_model(name)
    assert net.scale == scale and net.config['scale'] == scale and net.config['image_channels'] == 3
    assert net(torch.empty(2, 3, 9, 11, device='meta')).shape == (2, 3, 9 * scale, 11 * scale)


@every
def test_takes_every_size_from_its_smallest_on(name):
    net = tiny(name).eval()
    for h, w in ((0, 0), (0, 5), (1, 2), (4, 3)):
        lr = torch.rand(1, 3, net.min_size + h, net.min_size + w)
        with torch.no_grad():
            sr = net(lr)
        assert sr.shape[2:] == (net.scale * lr.shape[2], net.scale * lr.shape[3]) and torch.isfinite(sr).all()


@every
def test_one_channel(name):
    net = tiny(name, image_channels=1)
    assert net(torch.rand(1, 1, 8, 9)).shape == (1, 1, 8 * net.scale, 9 * net.scale)


@every
def test_config_rebuilds_it(name):
    net = tiny(name).eval()
    config = json.loads(json.dumps(net.config))
    assert config == net.config
    again, lr = ARCHITECTURES[architecture_of(net)](**config).eval(), torch.rand(1, 3, 8, 10)
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net(lr), again(lr))
    assert traits(again) == traits(net)


@every
def test_untrained_it_is_close_to_bicubic(name, tile):
    net = tiny(name)
    hr = tile(0, 32 - 32 % net.scale)[None].float() / 255
    lr = degrade(hr, net.scale)
    with torch.no_grad():
        noise, error = (
            (net(lr) - upsample(lr, net.scale)).square().mean(),
            (upsample(lr, net.scale) - hr).square().mean(),
        )
    # without its gates and memory nothing damps the recursion, and ×3 has one shuffle for nine sub-pixels
    assert noise < (0.5 if name == 'mrcnet_recursive_no_lstm_x3' else 0.25) * error
    assert (noise == 0) == (name[:-3] == 'bicubic')


@pytest.mark.parametrize('name', [n for n in NAMES if not n.startswith('bicubic')])
def test_learns_one_batch(name, tile):
    net = tiny(name)
    hr = torch.stack([tile(k, 32 - 32 % net.scale) for k in (3, 40)]).float() / 255
    lr = degrade(hr, net.scale)
    bicubic = (upsample(lr, net.scale) - hr).abs().mean().item()
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(80):
        adam.zero_grad()
        (net(lr) - hr).abs().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1)
        adam.step()
    with torch.no_grad():
        after = (net(lr) - hr).abs().mean().item()
    assert after < 0.95 * bicubic, f'{name}: {after:.4f}, bicubic {bicubic:.4f}'


@pytest.mark.parametrize('name', [n for n in NAMES if not n.startswith(('bicubic', 'mrcnet'))])
def test_every_weight_gets_a_gradient(name):
    net = loud(tiny(name))
    net(torch.rand(2, 3, 12, 12).double()).square().sum().backward()
    assert not [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]


# Reach


@tiled
def test_nothing_outside_the_reach_matters(name):
    net = loud(tiny(name))
    reach = traits(net).reach
    lr = torch.rand(1, 3, 8, reach + 9).double()
    other = lr.clone()
    other[..., reach + 1 :] = torch.rand(1, 3, 8, 8).double()
    with torch.no_grad():
        a, b = net(lr)[..., : net.scale], net(other)[..., : net.scale]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * a.abs().max().item())


@tiled
def test_a_tile_with_margin_gives_what_the_whole_gives(name):
    net = loud(tiny(name))
    facts = traits(net)
    start = 3 * facts.align
    lr = torch.rand(1, 3, 9, start + facts.reach + 6).double()
    with torch.no_grad():
        whole, part = net(lr), net(lr[..., start:])
    cut = (start + facts.reach) * net.scale
    torch.testing.assert_close(
        part[..., facts.reach * net.scale :], whole[..., cut:], rtol=0, atol=1e-10 * whole.abs().max().item()
    )


@pytest.mark.parametrize('name', ['mrcnet_x2', 'mrcnet_recursive_x4'])
def test_global_context_is_said(name):
    net = loud(tiny(name))
    for m in net.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight)
    lr = torch.rand(1, 3, 8, 200).double()
    other = lr.clone()
    other[..., -1] = 0
    with torch.no_grad():
        assert not torch.equal(net(lr)[..., 0], net(other)[..., 0])
    assert traits(net).global_context and traits(net).reach is None


# Parts


def test_haar_is_orthonormal_and_invertible():
    x = torch.rand(2, 3, 8, 12).double()
    y = haar(x)
    assert y.shape == (2, 12, 4, 6)
    torch.testing.assert_close(inverse_haar(y), x)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    assert haar(torch.ones(1, 2, 4, 4))[:, 2:].abs().max() == 0


def test_drcn_paints_every_recursion():
    net = tiny('drcn_x2', ensemble=True).eval()
    nn.init.kaiming_normal_(net.shared.weight)
    with torch.no_grad():
        net.weights.copy_(torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1]))
        lr = torch.rand(1, 3, 6, 6)
        steps = net.forward_steps(lr)
        assert len(steps) == 6
        torch.testing.assert_close(net(lr), sum(w * s for w, s in zip(net.weights, steps)))


@pytest.mark.parametrize(
    'name', ['srcnn_x2', 'edsr_baseline_x2', 'carn_x2', 'srrfn_x2', 'rlfn_x2', 'safmn_x3', 'span_x2']
)
def test_the_skip_can_be_left_out(name):
    lr = torch.rand(1, 3, 8, 8)
    with_skip, without = tiny(name), tiny(name, skip=False)
    without.load_state_dict(with_skip.state_dict())
    offset, net_scale = 0 if name.startswith('srcnn') else 0.5, with_skip.scale
    with torch.no_grad():
        torch.testing.assert_close(
            with_skip(lr) - upsample(lr, net_scale), without(lr) - offset, rtol=1e-4, atol=1e-5
        )


def test_recursion_shares_its_weights():
    for name, setting in (('drcn_x2', 'recursions'), ('drrn_x2', 'units'), ('srrfn_x2', 'recursions')):
        few, many = tiny(name, **{setting: 2}), tiny(name, **{setting: 5})
        assert [p.shape for p in few.parameters()] == [p.shape for p in many.parameters()]
        many.load_state_dict(few.state_dict())
        lr = torch.rand(1, 3, 8, 8).double()
        torch.manual_seed(1)
        loud(few)
        torch.manual_seed(1)
        loud(many)
        with torch.no_grad():
            assert not torch.allclose(few(lr), many(lr))


# Names


def test_every_architecture_has_a_name_and_every_name_an_architecture():
    assert {e.architecture for e in MODELS.values()} == set(ARCHITECTURES)
    assert NAMES == sorted(f'{base}_x{s}' for base in MODELS for s in scales_of(base))
    assert list_models('carn*') == ['carn_x2', 'carn_x3', 'carn_x4'] and list_models('nothing*') == []


@every
def test_description(name):
    d = describe(name)
    with torch.device('meta'):
        net = create_model(name)
    assert (d.name, d.scale, d.architecture, d.min_size) == (
        name,
        net.scale,
        architecture_of(net),
        net.min_size,
    )
    whole = isinstance(net, RLFN) or (isinstance(net, MRCNet) and net.config['rcf'])
    assert d.global_context == (d.reach is None) == whole
    assert d.table_row in (None, d.title)


def test_the_rows_of_the_tables_are_those_with_published_counts():
    from srdiag.evaluation.cost import published_counts

    rows = {(d.table_row, d.scale) for d in map(describe, NAMES) if d.table_row}
    assert rows == {
        (r['name'], r['scale']) for r in published_counts() if not r['name'].startswith('Framework')
    }


@pytest.mark.parametrize(
    'name, config, words',
    [
        ('edsr_baselin_x4', {}, ['edsr_baselin_x4', 'Did you mean edsr_baseline_x4', 'vdsr_x2']),
        ('', {}, ['vdsr_x2']),
        ('_x2', {}, ['vdsr_x2']),
        ('vdsr_x5', {}, ['scales 2, 3, 4 and 8, not 5', 'vdsr_x4 or vdsr_x8']),
        ('carn_x8', {}, ['scales 2, 3 and 4, not 8']),
        ('vdsr_x', {}, ['scales 2, 3, 4 and 8']),
        ('vdsr_x04', {}, ['vdsr_x4']),
        ('mwcnn', {}, ['scales 2, 3, 4 and 8', 'mwcnn_x4 or mwcnn_x8']),
        ('carn_x2', dict(chanels=3), ['chanels', 'channels, blocks, units, skip']),
        ('carn_x2', dict(scale=4), ['part of its name']),
        ('bicubic_x2', dict(channels=4), ['channels', 'none']),
    ],
)
def test_a_slip_is_answered_with_a_sentence(name, config, words):
    with pytest.raises(ModelError) as e:
        create_model(name, **config)
    for w in words:
        assert w in str(e.value)
    assert str(e.value).endswith('.') and '\n' not in str(e.value)


@pytest.mark.parametrize('cls', [c for c in ARCHITECTURES.values() if c is not MRCNet])
def test_a_class_refuses_what_it_cannot_do(cls):
    with pytest.raises(ValueError, match='no scale 5'):
        cls(scale=5)
    with pytest.raises(ValueError, match='not 0'):
        cls(image_channels=0)
    with pytest.raises(TypeError):
        cls(stepps=3)
    assert issubclass(cls, SRNetwork)


def test_a_strange_network_has_no_architecture():
    class Mine(ARCHITECTURES['vdsr']):
        pass

    for net in (nn.Conv2d(3, 3, 3), Mine(2)):
        with pytest.raises(ModelError, match='is not an architecture'):
            architecture_of(net)
