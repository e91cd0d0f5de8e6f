"Another engine than PyTorch: it stays as good, shares the context of tiles, and is not taken unasked."
import json
import os

import numpy as np
import pytest
import torch
from torch import nn

import srdiag
from srdiag.commands.options import SlideReading
from srdiag.core import compiled
from srdiag.core.errors import DataError
from srdiag.data.degradation import degrade
from srdiag.data.images import save_png
from srdiag.data.samples import tissue
from srdiag.evaluation.image_quality import convention, psnr
from srdiag.sr import runtime
from srdiag.sr.inference import super_resolve
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.rcf import RefinedContextFusion
from srdiag.sr.runtime import PAYS, Runner, chosen_runtime, is_prepared
from srdiag.sr.zoo import create_model


@pytest.fixture(scope='module')
def openvino():
    for name in ('openvino', 'onnx', 'onnxscript'): pytest.importorskip(name)


@pytest.fixture(scope='module')
def network(): return MRCNet.from_pretrained('histology_x2')


@pytest.fixture(scope='module')
def pair(): # a real image and its reduction, B×C×H×W
    hr = tissue()[:, 60:220, 40:264][None].float()/255
    return degrade(hr, 2).clamp(0, 1), hr


def quality(sr, hr): return psnr(sr[None].clamp(0, 1), hr, convention(2)).item()
def decibel(a, b): return -10*(a.double() - b.double()).square().mean().log10().item()


# --- as good as single precision --------------------------------------------------------------------------

@pytest.mark.parametrize('precision, loss', [('fp32', 1e-4), ('bf16', 0.02), ('auto', 0.02)])
@pytest.mark.parametrize('tile', [None, 48])
def test_psnr_is_that_of_single_precision(openvino, network, pair, precision, loss, tile):
    lr, hr = pair
    exact = quality(super_resolve(network, lr[0], precision='fp32', runtime='torch'), hr)
    ours = quality(super_resolve(network, lr[0], precision=precision, tile=tile, runtime='openvino'), hr)
    assert abs(ours - exact) <= loss


@pytest.mark.parametrize('side', [(8, 8), (9, 31), (40, 25), (65, 64)])
def test_any_size_odd_ones_included(openvino, network, side):
    x = torch.rand(1, 3, *side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): wanted = network(x)
    assert (Runner(network, 'fp32')(x) - wanted).abs().max() < 1e-5


def test_int8_costs_less_than_a_tenth_of_a_decibel(openvino, network, pair):
    pytest.importorskip('nncf')
    lr, hr = pair
    exact = quality(super_resolve(network, lr[0], precision='fp32', runtime='torch'), hr)
    for tile in (None, 48):
        eight = super_resolve(network, lr[0], precision='int8', tile=tile) # by openvino, unasked
        assert abs(quality(eight, hr) - exact) < 0.1
        assert not torch.equal(eight, super_resolve(network, lr[0], precision='fp32', runtime='torch'))


def test_tiles_share_the_context_of_their_image(openvino):
    torch.manual_seed(0)
    leaning = MRCNet(2, channels=8, blocks=1, steps=2)
    for m in leaning.modules():
        if isinstance(m, RefinedContextFusion): nn.init.normal_(m.value[-1].weight, std=1)
    image = tissue()[:, 100:196, 60:156].clone()
    image[:, :, 50:] = 235 + image[:, :, 50:]//16
    theirs, ours = (super_resolve(leaning, image, precision='fp32', tile=48, runtime=r)
                    for r in ('torch', 'openvino'))
    assert (ours - theirs).abs().max() < 1e-4
    alone = Runner(leaning.eval(), 'fp32')(image[None, :, :48, :48].float()/255)[0].clamp(0, 1)
    assert (alone[:, :32, :32] - ours[:, :32, :32]).abs().max() > 1e-4 # it has pooled over itself


@pytest.mark.parametrize('name', ['edsr_baseline_x2', 'vdsr_x2', 'mrcnet_recursive_no_rcf_x2'])
def test_networks_without_context(openvino, name):
    torch.manual_seed(0)
    other = create_model(name).eval()
    image = tissue()[:, 100:148, 60:116]
    theirs, ours = (super_resolve(other, image, precision='fp32', tile=32, runtime=r)
                    for r in ('torch', 'openvino'))
    assert (ours - theirs).abs().max() < 1e-4


def test_bytes_and_grey(openvino):
    torch.manual_seed(0)
    grey = MRCNet(2, channels=8, blocks=1, image_channels=1)
    image = tissue()[:1, :40, :48]
    ours, theirs = (super_resolve(grey, image, precision='fp32', dtype=torch.uint8, runtime=r)
                    for r in ('openvino', 'torch'))
    assert ours.dtype == torch.uint8 and (ours.int() - theirs.int()).abs().max() <= 1
    assert grey.training # as it was


# --- who is chosen ----------------------------------------------------------------------------------------

def test_auto_takes_openvino_once_its_graph_is_there(openvino, monkeypatch, tmp_path):
    monkeypatch.setenv('SRDIAG_CACHE', str(tmp_path))
    torch.manual_seed(0)
    fresh = MRCNet(2, channels=8, blocks=1)
    image = tissue()[:, :24, :24]
    super_resolve(fresh, image)
    assert not any(tmp_path.iterdir()) and chosen_runtime(fresh, 24*24, precision='bf16') == 'torch'
    assert chosen_runtime(fresh, PAYS, precision='bf16') == 'torch' or compiled.has_openvino()
    super_resolve(fresh, image, runtime='openvino')
    assert is_prepared(fresh)
    monkeypatch.setattr(runtime, 'chosen_precision', lambda *_: 'bf16') # as on a processor that has it
    assert chosen_runtime(fresh, 24*24) == 'openvino'
    with torch.no_grad(): next(fresh.parameters()).add_(1e-3) # one step of training
    assert not is_prepared(fresh) and chosen_runtime(fresh, 24*24) == 'torch'


def test_auto_leaves_single_precision_to_torch(openvino, network):
    assert chosen_runtime(network, PAYS, precision='fp32') == 'torch'


def test_without_the_extra_auto_is_torch_and_openvino_a_sentence(network, monkeypatch):
    monkeypatch.setattr(runtime, 'has_openvino', lambda: False)
    monkeypatch.setattr(runtime, 'chosen_precision', lambda *_: 'bf16')
    assert chosen_runtime(network, PAYS) == 'torch'
    def missing(name, extra, purpose): raise DataError(f"{purpose} needs … pip install 'srdiag[{extra}]'.")
    monkeypatch.setattr(compiled, 'of_extra', missing)
    with pytest.raises(DataError, match=r"pip install 'srdiag\[openvino\]'"):
        super_resolve(network, tissue()[:, :16, :16], runtime='openvino')


@pytest.mark.parametrize('options, says', [
    (dict(runtime='tensorrt'), "There is no runtime 'tensorrt': choose one of auto, torch, openvino."),
    (dict(runtime=None), 'There is no runtime None'),
    (dict(runtime='torch', precision='int8'), "'int8' is computed by OpenVINO"),
])
def test_what_there_is_not_gets_a_sentence(network, options, says):
    with pytest.raises(DataError, match=says): super_resolve(network, tissue()[:, :16, :16], **options)


def test_a_misspelt_option_is_refused(network):
    with pytest.raises(TypeError, match='overlaps'): super_resolve(network, tissue()[:, :16, :16], overlaps=4)


def test_a_cache_that_cannot_be_written_gets_a_sentence(openvino, monkeypatch, tmp_path):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('SRDIAG_CACHE', str(tmp_path/'file'))
    with pytest.raises(DataError, match='SRDIAG_CACHE'):
        Runner(MRCNet(2, channels=8, blocks=1), 'fp32')(torch.rand(1, 3, 16, 16))


def test_the_cache_lies_with_the_user(monkeypatch):
    monkeypatch.delenv('SRDIAG_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', os.path.join(os.sep, 'elsewhere'))
    assert compiled.graphs_folder().parts[-2:] == ('srdiag', 'graphs')


# --- through the doors ------------------------------------------------------------------------------------

def test_enlarge_takes_the_runtime(openvino, network):
    image = tissue()[:, :32, :40].permute(1, 2, 0).numpy()
    ours, theirs = (srdiag.enlarge(image, network, runtime=r) for r in ('openvino', 'torch'))
    assert ours.shape == (64, 80, 3) and np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2
    with pytest.raises(DataError, match='There is no runtime'): srdiag.enlarge(image, network, runtime='gpu')


def test_predict_takes_the_runtime_and_records_it(openvino, tmp_path, succeeds, run_cli):
    save_png(tissue()[:, :24, :32], tmp_path/'a.png')
    common = 'predict', tmp_path/'a.png', '--model', 'histology_x2', '--device', 'cpu', '--out'
    for name in ('openvino', 'torch'):
        succeeds(*common, tmp_path/name, '--runtime', name, '--precision', 'fp32')
        record = json.loads((tmp_path/name/'.predictions.json').read_text(encoding='utf-8'))
        assert record['about']['enlarged_by'] == f'{name} fp32'
    assert (tmp_path/'openvino/sr/a.png').is_file()
    code, _, err = run_cli(*common, tmp_path/'c', '--runtime', 'torch', '--precision', 'int8')
    assert code == 2 and 'computed by OpenVINO' in err and not (tmp_path/'c').exists()


def test_options_are_checked():
    assert SlideReading().runtime == SlideReading().precision == 'auto'
    with pytest.raises(DataError, match='runtime'): SlideReading(runtime='fast')


def test_speed_knows_the_runtimes(openvino, network):
    from srdiag.evaluation.speed import Setup, forward_call
    setup = Setup(runtime='openvino', threads=1)
    assert str(setup) == '1 CPU thread, fp32, channels last, batch of 1, OpenVINO'
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (forward_call(network, (1, 3, 16, 16), setup)() - network(x)).abs().max() < 1e-4
    with pytest.raises(DataError, match='There is no runtime'): Setup(runtime='onnx')
    with pytest.raises(ValueError, match='computes on the CPU'): Setup('cuda', 'fp32', runtime='openvino')


def test_weights_in_half_precision_stay_with_torch(openvino, network):
    import copy
    half = copy.deepcopy(network).bfloat16()
    assert chosen_runtime(half, PAYS) == 'torch'
    with pytest.raises(DataError, match='reads weights in float32'): chosen_runtime(half, PAYS, 'openvino')


def test_eight_bits_are_for_grey_and_colour(openvino):
    with pytest.raises(DataError, match='reads 5 channels'):
        super_resolve(MRCNet(2, image_channels=5, channels=8), torch.rand(5, 20, 20), runtime='openvino',
                      precision='int8')
