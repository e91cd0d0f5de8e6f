"Enlarging by tiles, in reduced precision and by every kind of network."

import copy

import pytest
import torch
from torch import nn

from srdiag.data.degradation import degrade, upsample
from srdiag.data.images import as_float
from srdiag.diagnosis.inference import predict
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.core.errors import DataError, ModelError
from srdiag.evaluation.image_quality import convention, psnr
from srdiag.models.saving import load_model
from srdiag.sr.inference import enlarger, super_resolve, tiles_of
from srdiag.sr.layers import PReLU
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.rcf import RefinedContextFusion
from srdiag.sr.zoo import create_model
from srdiag.core.weights import list_pretrained, pretrained_folder

SMALL = dict(
    carn=dict(channels=8),
    edsr_baseline=dict(channels=8, blocks=2),
    vdsr=dict(channels=8, depth=4),
    mwcnn=dict(channels=8, levels=2),
    srrfn=dict(channels=8, counts=[1, 1], recursions=1),
)


@pytest.fixture
def awake():
    "An MRC-Net x2 whose context branch says something"
    torch.manual_seed(0)
    net = MRCNet(2, channels=8, blocks=1)
    for m in net.modules():
        if isinstance(m, RefinedContextFusion):
            nn.init.normal_(m.value[-1].weight, std=0.2)
    return net


@pytest.fixture(scope='module')
def image(tile):
    "Dense tissue on the left, blank glass on the right"
    x = tile(0, 128).clone()
    x[:, :, 64:] = 240
    return x


@pytest.mark.parametrize(
    'height,width,side,overlap', [(16, 16, 16, 0), (255, 257, 64, 32), (1000, 33, 256, 16), (9, 9, 256, 32)]
)
def test_cores_cover_the_image_once(height, width, side, overlap):
    count = torch.zeros(height, width)
    for t in tiles_of(height, width, side, overlap):
        top, left, bottom, right = t.core
        count[top:bottom, left:right] += 1
        assert bottom - top <= side + 1 and right - left <= side + 1
        assert count[t.seen[0] : t.seen[2], t.seen[1] : t.seen[3]][t.inner(1)].shape == (
            bottom - top,
            right - left,
        )
    assert (count == 1).all()


@pytest.mark.parametrize('side,overlap', [(15, 2), (8, 2), (64, -2), (64, 3)])
def test_tiles_that_make_no_sense(side, overlap):
    with pytest.raises(ValueError, match='multiples of 2'):
        tiles_of(100, 100, side, overlap)


def test_tiles_share_their_context(awake, image):
    whole = super_resolve(awake, image, precision='fp32')
    shared = super_resolve(awake, image, precision='fp32', tile=64)
    alone = torch.cat(
        [
            torch.cat(
                [super_resolve(awake, image[:, y : y + 64, x : x + 64], precision='fp32') for x in (0, 64)], 2
            )
            for y in (0, 64)
        ],
        1,
    )
    assert (shared - whole).abs().max() < 1 / 255
    assert (alone - whole).abs().max() > 3 * (shared - whole).abs().max()
    assert not any('pool' in vars(m) for m in awake.modules())


@pytest.mark.parametrize('name', SMALL)
def test_networks_without_context_are_tiled_exactly(name, image):
    torch.manual_seed(0)
    net = create_model(f'{name}_x2', **SMALL[name])
    for p in net.parameters():
        p.data += 0.01 * torch.randn_like(p)
    if net.reach > 32:
        pytest.skip(f'{name} reaches {net.reach} px')
    whole, tiled = (super_resolve(net, image, precision='fp32', tile=t) for t in (None, 64))
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-5)


def test_tiles_keep_the_grid_of_the_wavelets(tile):
    torch.manual_seed(0)
    net, image = create_model('mwcnn_x2', channels=8), tile(0, 256)[:, :170, :170]
    for p in net.parameters():
        p.data *= 1.5
    whole = super_resolve(net, image, precision='fp32')

    def error(overlap):
        return (
            (super_resolve(net, image, precision='fp32', tile=64, overlap=overlap) - whole).abs().max().item()
        )

    overlap = 4 * (net.reach // 4 + 1)
    assert error(overlap) < 1e-3
    net.align = 2  # as if the wavelets did not care: one tile now starts between their multiples of four
    assert error(overlap) > 0.1


@pytest.mark.parametrize('side', [64, 71, 95])
def test_the_whole_image_in_every_tile_gives_the_whole_result(awake, tile, side):
    # all margins reach the border: nothing is approximated
    image = tile(0, 128)[:, :side, :side]
    whole, tiled = (
        super_resolve(awake, image, precision='fp32'),
        super_resolve(awake, image, precision='fp32', tile=40, overlap=96),
    )
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=2e-5)


def test_bicubic_needs_no_parameters(image):
    torch.testing.assert_close(
        super_resolve(create_model('bicubic_x2'), image), upsample(as_float(image), 2, clip=True)
    )


@pytest.mark.parametrize('name', list_pretrained('sr'))
def test_bfloat16_costs_less_than_two_hundredths_of_a_decibel(name, tile):
    net, info = load_model(name, 'sr')
    assert 'Not for diagnostic use' in (pretrained_folder(name) / 'README.md').read_text(encoding='utf-8')
    hr = as_float(tile(0, 256))
    lr = degrade(hr, net.scale)
    a, b = (
        psnr(super_resolve(net, lr, precision=p), hr, convention(net.scale)).item() for p in ('fp32', 'bf16')
    )
    assert abs(a - b) < 0.02
    if name.startswith('histology'):
        assert a > psnr(upsample(lr, net.scale, clip=True), hr, convention(net.scale)).item() + 0.2


def test_from_pretrained_names_what_there_is():
    with pytest.raises(ModelError, match='histology_x2'):
        MRCNet.from_pretrained('histology')


def test_a_network_stays_trainable_and_in_its_mode(awake, image):
    awake.train()
    super_resolve(awake, image, tile=64)
    assert awake.training
    awake(torch.rand(1, 3, 16, 16)).sum().backward()
    model = SREnhancedDiagnosis(2, 2)
    predict(model, torch.rand(2, 3, 32, 32), ['a', 'b'])
    model(torch.rand(2, 3, 32, 32)).ens.sum().backward()


def test_failure_leaves_nothing_behind(awake, image, monkeypatch):
    monkeypatch.setattr(awake.reconstruction, 'image', lambda y: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        super_resolve(awake.train(), image, tile=64)
    assert awake.training and not any('pool' in vars(m) for m in awake.modules())


def test_bytes_and_floats_agree(awake, image):
    a, b = super_resolve(awake, image, dtype=torch.uint8), super_resolve(awake, image)
    assert torch.equal(a, b.mul(255).round().to(torch.uint8))
    torch.testing.assert_close(super_resolve(awake, as_float(image)), b)


@pytest.mark.parametrize(
    'bad,word',
    [
        (torch.full((3, 16, 16), 2.0), 'outside'),
        (torch.full((3, 16, 16), float('nan')), 'finite'),
        (torch.zeros(3, 4, 40), 'at least'),
        (torch.zeros(1, 16, 16), 'reads 3'),
        (torch.zeros(3, 16, 16, dtype=torch.int16), 'int16'),
        (torch.zeros(1, 3, 16, 16), 'shape'),
    ],
)
def test_what_is_no_image(awake, bad, word):
    with pytest.raises(DataError, match=word):
        super_resolve(awake, bad)


def test_unknown_precision(awake, image):
    with pytest.raises(ValueError, match='half'):
        super_resolve(awake, image, precision='half')
    with pytest.raises(ValueError, match='CUDA'):
        enlarger(awake, 'fp16')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_prelu_is_prelu(dtype):
    torch.manual_seed(0)
    ours, theirs = PReLU(5).to(dtype), nn.PReLU(5).to(dtype)
    nn.init.uniform_(ours.weight, -1, 2)
    theirs.load_state_dict(ours.state_dict())
    for shape in ((2, 5, 7, 3), (4, 5)):
        x, g = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        x[0, 0] = 0
        got = []
        for act in (ours, theirs):
            act.zero_grad()
            y = x.clone().requires_grad_()
            out = act(y)
            out.backward(g)
            got.append((out, y.grad, act.weight.grad))
        for a, b in zip(*got):
            close = {} if dtype != torch.bfloat16 else dict(rtol=2e-2, atol=5e-2)
            torch.testing.assert_close(a, b, **close)


def test_a_copy_in_another_precision_computes_alike(awake, image):
    x = as_float(image)[None, :, :32, :32]
    with torch.no_grad():
        torch.testing.assert_close(
            copy.deepcopy(awake).double()(x.double()).float(), awake(x), rtol=1e-3, atol=1e-4
        )
