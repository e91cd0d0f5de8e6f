"Networks that came after the paper: counts, fusing, sizes, and the ways in which they are used."
import json

import pytest
import torch
from torch import nn

from srdiag.core.errors import ModelError
from srdiag.core.graphs import captured, fuse
from srdiag.core.weights import read_config
from srdiag.bench.entries import PRESETS, entries_of
from srdiag.bench.sr_speed import build_entry
from srdiag.data.degradation import upsample
from srdiag.data.samples import tissue
from srdiag.evaluation.cost import count_flops, count_parameters, measure_cost
from srdiag.models.export import export_model, read_graph
from srdiag.models.export_settings import ExportSettings
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.sr.inference import enlarger, super_resolve
from srdiag.sr.lean import RLFN, SPAN, Conv3XC, hd_input, later_counts
from srdiag.sr.farsighted import PLKSR, SAFMN
from srdiag.sr.zoo import create_model, traits

SMALL = dict(rlfn=dict(channels=8, blocks=1), span=dict(channels=8, blocks=1),
             safmn=dict(channels=8, blocks=1), plksr=dict(channels=8, blocks=1, kernel=7))
each = pytest.mark.parametrize('name', SMALL)


def small(name, scale=2, **config):
    torch.manual_seed(0)
    return create_model(f'{name}_x{scale}', **(SMALL[name] | config)).eval()


def awake(net): # every layer says something
    for m in net.modules():
        if isinstance(m, nn.Conv2d): nn.init.normal_(m.weight, std=0.3/m.weight[0].numel()**0.5)
        if isinstance(m, nn.Conv2d): nn.init.normal_(m.bias, std=0.1)
    return net.eval()


# --- counts -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('row', later_counts(), ids=lambda r: f'{r["name"]}_x{r["scale"]}')
def test_counts_are_those_of_their_papers(row):
    lean = dict(fused=True) if row['network'] == 'span' else {}
    with torch.device('meta'):
        net = create_model(f'{row["network"]}_x{row["scale"]}', channels=row['channels'], **lean)
    assert abs(count_parameters(net)/row['parameters'] - 1) < 0.01
    if row['multiply_adds']:
        ours = count_flops(net, hd_input(row['scale']))/2
        digit = 1e9 if row['multiply_adds'] % 1e9 == 0 else 0.1e9 # the last that is printed
        assert abs(ours - row['multiply_adds']) < digit or abs(ours/row['multiply_adds'] - 1) < 0.01
    assert row['source'] and ',' in row['source']


@pytest.mark.parametrize('name, parameters', [('plksr_x4', 7_386_096), ('plksr_tiny_x4', 2_370_544)])
def test_plksr_has_the_weights_of_the_released_configurations(name, parameters):
    with torch.device('meta'): assert count_parameters(create_model(name)) == parameters


# --- fusing -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('n_in, n_out, gain', [(3, 8, 2), (8, 8, 2), (5, 4, 3), (4, 4, 1)])
def test_a_fused_layer_says_the_same(n_in, n_out, gain):
    torch.manual_seed(0)
    wide, x = Conv3XC(n_in, n_out, gain), torch.randn(2, n_in, 7, 6)
    nn.init.normal_(wide.widen.bias) # seen at the border, if anywhere
    with torch.no_grad(): assert (wide.fused()(x) - wide(x)).abs().max() < 1e-5


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_a_fused_network_says_the_same_and_stays_what_it_is(scale, tmp_path):
    wide, lr = awake(small('span', scale, blocks=3)), torch.rand(1, 3, 11, 9)
    before = {k: v.clone() for k, v in wide.state_dict().items()}
    lean = fuse(wide)
    with torch.no_grad(): wanted, ours = wide(lr), lean(lr)
    assert (ours - wanted).abs().max() < 1e-5
    assert not any(isinstance(m, Conv3XC) for m in lean.modules()) and not lean.training
    assert all(torch.equal(v, wide.state_dict()[k]) for k, v in before.items())
    assert fuse(lean) is lean and fuse(nn.Sequential(wide))[0].config['fused'] is False
    save_model(tmp_path/'lean', lean, ModelInfo('Lean'))
    again, _ = load_model(tmp_path/'lean')
    with torch.no_grad(): assert torch.equal(again(lr), ours)
    assert read_config(tmp_path/'lean')['network']['fused'] is True


def test_wherever_a_network_is_used_it_is_lean(monkeypatch):
    net, image = awake(small('span')), torch.rand(3, 16, 16)
    with torch.no_grad(): wanted = net(image[None]).clamp(0, 1)
    cost, lean = measure_cost('SPAN', net, 2, 16), SPAN(2, channels=8, blocks=1, fused=True)
    assert cost.parameters == count_parameters(lean) < count_parameters(net)
    monkeypatch.setattr(Conv3XC, 'forward', None) # whoever calls the wide form fails
    assert (super_resolve(net, image, precision='fp32')[None] - wanted).abs().max() < 1e-5
    assert (enlarger(net, 'fp32')(image[None]).clamp(0, 1) - wanted).abs().max() < 1e-5
    captured(net, torch.rand(2, 3, 16, 16))
    assert [p.shape for p in net.parameters()] == [p.shape for p in small('span').parameters()]


def test_training_goes_on_after_a_fusion():
    net, lr = small('span').train(), torch.rand(2, 3, 8, 8)
    fuse(net)
    net(lr).mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


# --- sizes, tiles, context --------------------------------------------------------------------------------

@pytest.mark.parametrize('side', [(1, 1), (5, 14), (14, 30), (15, 15)])
def test_rlfn_reads_images_smaller_than_its_map(side):
    net, lr = small('rlfn'), torch.rand(1, 3, *side)
    with torch.no_grad(): sr = net(lr)
    assert sr.shape == (1, 3, 2*side[0], 2*side[1]) and torch.isfinite(sr).all()
    repeated = nn.functional.pad(lr, (0, max(0, 15 - side[1]), 0, max(0, 15 - side[0])), mode='replicate')
    with torch.no_grad(): larger = net(repeated) - upsample(repeated, 2)
    wanted = larger[..., :2*side[0], :2*side[1]] + upsample(lr, 2)
    torch.testing.assert_close(sr, wanted, rtol=0, atol=1e-5)


def test_the_grid_of_rlfn_depends_on_the_size_of_the_image():
    net, image = awake(small('rlfn')).double(), torch.rand(1, 3, 20, 90).double()
    with torch.no_grad(): assert not torch.allclose(net(image)[..., -20:], net(image[..., 40:])[..., -20:])
    assert traits(net).reach is None and traits(net).global_context


@pytest.mark.parametrize('name', ['span', 'safmn', 'plksr'])
def test_tiles_are_exact(name):
    net = awake(small(name))
    whole, tiled = (super_resolve(net, tissue()[:, :130, :150], precision='fp32', tile=t) for t in (None, 64))
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-5)


def test_safmn_is_the_published_one_where_its_grid_fits():
    net, x = SAFMN(2, channels=8, blocks=1), torch.rand(1, 8, 16, 24)
    safm = net.blocks[0].look
    parts = []
    for k, (part, conv) in enumerate(zip(x.chunk(4, 1), safm.groups)):
        small = nn.functional.adaptive_max_pool2d(part, (16//2**k, 24//2**k))
        parts.append(nn.functional.interpolate(conv(small), size=(16, 24), mode='nearest'))
    wanted = nn.functional.gelu(safm.mix(torch.cat(parts, 1)))*x
    torch.testing.assert_close(safm(x), wanted)


@pytest.mark.parametrize('cls, config, words', [
    (SAFMN, dict(channels=10), 'groups'), (PLKSR, dict(kernel=4), 'odd'),
    (PLKSR, dict(channels=3), 'at least 4'),
    (RLFN, dict(blocks=0), 'at least 1'), (SPAN, dict(fused=1), 'True or False')])
def test_senseless_settings_are_refused(cls, config, words):
    with pytest.raises(ValueError, match=words): cls(2, **config)


# --- saved, exported, compared ----------------------------------------------------------------------------

@each
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_saved_and_loaded(name, channels, tmp_path):
    net, lr = awake(small(name, image_channels=channels)), torch.rand(1, channels, 9, 17)
    save_model(tmp_path/'m', net, ModelInfo(name))
    again, info = load_model(tmp_path/'m')
    with torch.no_grad(): assert torch.equal(again(lr), net(lr))
    assert json.loads((tmp_path/'m'/'config.json').read_text())['network'] == net.config


@each
@pytest.mark.parametrize('side', [(20, 33), (7, 6)])
def test_onnx_says_the_same(name, side, tmp_path):
    pytest.importorskip('onnxscript')
    ort = pytest.importorskip('onnxruntime')
    net, lr = awake(small(name)), torch.rand(1, 3, *side)
    save_model(tmp_path/'m', net, ModelInfo(name))
    path = export_model(tmp_path/'m', tmp_path/'net.onnx', ExportSettings(to='onnx'))
    assert read_graph(path).kind == 'sr'
    session = ort.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    out = torch.from_numpy(session.run(None, {'image': lr.numpy()})[0])
    with torch.no_grad(): assert (out - net(lr).clamp(0, 1)).abs().max() < 1e-4


@each
def test_openvino_says_the_same(name):
    for package in ('openvino', 'onnx', 'onnxscript'): pytest.importorskip(package)
    net, image = awake(small(name)), tissue()[:, 100:148, 60:117]
    theirs, ours = (super_resolve(net, image, precision='fp32', runtime=r) for r in ('torch', 'openvino'))
    assert (ours - theirs).abs().max() < 1e-4


def test_the_modern_preset_sets_mrcnet_beside_them():
    labels = [e.label for e in entries_of(2, 'modern')]
    assert {'MRC-Net', 'Scratch', 'Scratch, double', 'RLFN', 'SPAN', 'SAFMN', 'PLKSR-tiny'} <= {*labels}
    with torch.device('meta'):
        for e in PRESETS['modern']: assert build_entry(e, 4).scale == 4
    with pytest.raises(ModelError, match='modern'): entries_of(2, 'modem')
