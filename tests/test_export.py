"Graphs that run elsewhere say what srdiag says, at any size, and what cannot leave gets a sentence."
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from srdiag.core.errors import DataError, ModelError
from srdiag.core.graphs import Clipped, captured, halved, notes_of, onnx_model, read_onnx
from srdiag.diagnosis.inference import predict
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.evaluation.calibration import calibrate
from srdiag.models import export
from srdiag.models.apply import diagnose
from srdiag.models.deployed import deployable
from srdiag.models.export import export_model, read_graph
from srdiag.models.export_settings import ExportSettings
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.sr.zoo import ARCHITECTURES

onnxruntime = pytest.importorskip('onnxruntime')
ROOT = Path(__file__).parents[1]
SIZES = (1, 16, 16), (2, 17, 33), (3, 9, 40), (1, 31, 31), (2, 48, 37) # batch, height, width
SMALL = dict(
    bicubic={}, srcnn=dict(channels=4), vdsr=dict(channels=4, depth=3), drrn=dict(channels=4, units=2),
    drcn=dict(channels=4, recursions=2, ensemble=True), edsr=dict(channels=4, blocks=1),
    carn=dict(channels=4, blocks=2, units=1), mwcnn=dict(channels=4, levels=2),
    srrfn=dict(channels=4, counts=(1, 1), recursions=2), mrcnet=dict(channels=4, stages=2, blocks=1, steps=2),
    mrcnet2=dict(channels=8, coarse=4, stages=2, blocks=1, coarse_blocks=1),
    rlfn=dict(channels=8, blocks=1), span=dict(channels=8, blocks=1), safmn=dict(channels=8, blocks=1),
    plksr=dict(channels=8, blocks=1, kernel=7))


def images_of(size, channels=3):
    return torch.rand(size[0], channels, *size[1:], generator=torch.Generator().manual_seed(sum(size)))


def largest(a, b): return float(np.abs(np.asarray(a) - np.asarray(b)).max())


# --- networks ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_each_network_of_the_zoo_is_the_same_in_onnx(architecture):
    torch.manual_seed(0)
    scale, channels = (4, 1) if architecture in ('edsr', 'srcnn') else (2, 3)
    network = ARCHITECTURES[architecture](scale=scale, image_channels=channels, **SMALL[architecture])
    made = deployable(network, ModelInfo('tiny'))
    graph = onnx_model(made.module, made.example, made.dynamic, made.names)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for size in SIZES:
        image = images_of(size, channels)
        with torch.no_grad(): ours = made.module(image)
        theirs, = session.run(None, dict(image=image.numpy()))
        assert theirs.shape == ours.shape and largest(theirs, ours) < 1e-4
        assert theirs.min() >= 0 and theirs.max() <= 1


def test_openvino_enlarges_alike(tmp_path):
    torch.manual_seed(0)
    network = Clipped(ARCHITECTURES['mrcnet'](scale=2, **SMALL['mrcnet'])).eval()
    (tmp_path/'sr.onnx').write_bytes(onnx_model(network, torch.rand(2, 3, 12, 10)).SerializeToString())
    openvino = pytest.importorskip('openvino')
    model = openvino.compile_model(str(tmp_path/'sr.onnx'), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    for size in SIZES:
        with torch.no_grad(): ours = network(images_of(size))
        assert largest(model([images_of(size).numpy()])[0], ours) < 1e-4


def test_odd_sides_in_the_format_of_pytorch(tmp_path):
    torch.manual_seed(0)
    network = Clipped(ARCHITECTURES['mrcnet'](scale=2, **SMALL['mrcnet'])).eval()
    torch.export.save(captured(network, torch.rand(2, 3, 14, 12)), tmp_path/'sr.pt2')
    module = torch.export.load(tmp_path/'sr.pt2').module()
    for size in SIZES:
        with torch.no_grad(): assert largest(module(images_of(size)), network(images_of(size))) < 1e-6


def test_several_labels_leave_as_several_labels(tmp_path):
    model = framework('solo', multilabel=True)
    made = deployable(model, ModelInfo('several', lr_size=[16, 16], classes=CLASSES))
    lr = (images_of((3, 16, 16))*255).round()/255
    with torch.no_grad(): ours = made.module(lr)[0]
    theirs = predict(model, lr, CLASSES).probabilities['ens']
    assert largest(ours, theirs) < 1e-5 and not np.allclose(theirs.sum(1), 1)
    save_model(tmp_path/'model', model, ModelInfo('several', lr_size=[16, 16], classes=CLASSES))
    with pytest.raises(ModelError, match='several labels'):
        export_model(tmp_path/'model', tmp_path/'x', ExportSettings('wsinfer', spacing=0.5))


def test_a_graph_leaves_the_network_alone_and_tells_no_paths():
    network = ARCHITECTURES['edsr'](scale=2, **SMALL['edsr']).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    graph = onnx_model(Clipped(network), torch.rand(2, 3, 9, 8))
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not re.search(rb'File \\?"|\.py', graph.SerializeToString())


def test_weights_of_16_bits_must_fit():
    network = ARCHITECTURES['edsr'](scale=2, **SMALL['edsr'])
    graph = onnx_model(Clipped(network), torch.rand(2, 3, 9, 8))
    assert halved(graph).ByteSize() < graph.ByteSize()
    with torch.no_grad(): network.head.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ModelError, match='half precision can hold: leave them in full'):
        halved(onnx_model(Clipped(network), torch.rand(2, 3, 9, 8)))


def test_a_missing_extra_is_named_with_the_line_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    for to in ('onnx', 'openvino'):
        with pytest.raises(DataError, match=rf"onnxscript, which is not .*: pip install 'srdiag\[{to}\]'"):
            export_model('redcells_x4', tmp_path/'red', ExportSettings(to))
    monkeypatch.delitem(sys.modules, 'onnxscript')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(DataError, match=r"openvino, which is not .*: pip install 'srdiag\[openvino\]'"):
        export_model('redcells_x4', tmp_path/'red', ExportSettings('openvino'))
    assert not list(tmp_path.iterdir())


# --- the framework ----------------------------------------------------------------------------------------

CLASSES = ['healthy', 'ill', 'unsure']


def framework(mode='context', **more):
    "Untrained, but with statistics, references and a calibration; its three heads differ"
    torch.manual_seed(1)
    model = SREnhancedDiagnosis(3, 2, width=2, lr_stem='3x3', sr_stem='3x3', mode=mode,
                                sr=dict(channels=4, stages=1, blocks=1), **more)
    images = (images_of((4, 16, 16))*255).to(torch.uint8)
    model.network.fit_statistics(images/255)
    if mode == 'context': model.remember(images)
    with torch.no_grad():
        for p in model.network.parameters(): p.add_(0.1*torch.randn_like(p))
    return model.eval()


def description(**more):
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(3), 60)
    known = calibrate(p.argmax(1), p, CLASSES, positive='ill', risk=0.3)
    facts = dict(lr_size=[16, 16], classes=CLASSES, calibration=known.to_dict())
    return ModelInfo('A small framework', **facts | more)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp('framework')/'small', framework(), description())


@pytest.fixture(scope='module')
def graphs(folder, tmp_path_factory):
    "Target and mode → file, of the framework"
    out, pairs = tmp_path_factory.mktemp('graphs'), [('onnx', 'context'), ('onnx', 'solo'),
                                                     ('openvino', 'context'), ('torch', 'solo')]
    with pytest.MonkeyPatch.context() as m: # OpenVINO's files are made of the same graph: once is enough
        m.setattr(export, 'onnx_model', lambda *a: known.setdefault(a[-1]['mode'], None) or made(*a))
        known, real = {}, onnx_model
        def made(*a):
            known[a[-1]['mode']] = real(*a)
            return known[a[-1]['mode']]
        return {(to, mode): export_model(folder, out/f'{to}_{mode}', ExportSettings(to, mode))
                for to, mode in pairs}


def run_onnx(path):
    session = onnxruntime.InferenceSession(path)
    return lambda image: session.run(None, dict(image=image.numpy()))


def run_openvino(path):
    openvino = pytest.importorskip('openvino')
    core = openvino.Core()
    core.set_property('CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    compiled = core.compile_model(str(path), 'CPU')
    return lambda image: [compiled([image.numpy()])[k] for k in range(2)]


def run_torch(path):
    module = torch.export.load(path).module()
    return lambda image: [x.numpy() for x in module(image)]


RUNNERS = dict(onnx=run_onnx, openvino=run_openvino, torch=run_torch)


@pytest.mark.parametrize('to, mode', [('onnx', 'context'), ('onnx', 'solo'), ('openvino', 'context'),
                                      ('torch', 'solo')])
def test_the_framework_says_the_same_at_five_sizes(to, mode, graphs, folder):
    network, info = load_model(folder)
    module, run = deployable(network, info, ExportSettings(mode=mode)).module, RUNNERS[to](graphs[to, mode])
    for size in SIZES:
        image = images_of(size)
        with torch.no_grad(): p, shut = module(image)
        theirs, theirs_shut = run(image)
        assert largest(theirs, p) < 1e-4 and np.array_equal(theirs_shut, shut.numpy())
        assert np.allclose(theirs.sum(1), 1, atol=1e-5) and 0.05 < theirs.min() # nothing is saturated


@pytest.mark.parametrize('mode', ['context', 'solo'])
def test_the_graph_says_what_diagnose_says(mode, graphs, folder):
    "Bytes of any size: the model resizes them as predict --resize does; calibrated in its own mode alone"
    network, info = load_model(folder)
    run = run_onnx(graphs['onnx', mode])
    for size in SIZES:
        images = (images_of(size)*255).to(torch.uint8)
        ours = diagnose(list(images), (network, replace(info, resize=True)), mode)
        theirs = run(images/255)[0]
        assert largest(theirs, [list(d.probabilities.values()) for d in ours]) < 1e-4
        assert all(d.calibrated == (mode == 'context') for d in ours)


def test_the_notes_say_all_that_a_user_needs(graphs, folder):
    notes, config = read_graph(graphs['onnx', 'context']), json.loads((folder/'config.json').read_text())
    assert notes.classes == CLASSES and notes.mode == 'context' and notes.kind == 'diagnosis'
    assert notes.weights_sha256 == config['weights_sha256'] and 'not for diagnostic use' in notes.notice
    assert notes.card == (folder/'README.md').read_text(encoding='utf-8')
    known = ModelInfo(**config['info']).calibrated
    assert notes.thresholds == dict(temperature=known.temperature, abstain_below=known.abstention.threshold,
                                    positive='ill', positive_from=known.operating.threshold)
    assert notes.preprocessing == dict(channels=3, images='lr', fit='resize', height=16, width=16, least=2,
                                       scale=2)
    assert read_graph(graphs['openvino', 'context']) == notes
    assert read_graph(graphs['torch', 'solo']) == replace(notes, mode='solo', thresholds={})


def test_reference_images_stay_behind(graphs, folder):
    "Their features go along; an image may show a patient"
    images = load_model(folder)[0].references.lr.numpy()
    for path in (graphs['onnx', 'context'], graphs['openvino', 'context'].with_suffix('.bin'),
                 graphs['torch', 'solo']):
        data = path.read_bytes()
        for pixels in (images[0], images[0].astype('float32')/255): assert pixels.tobytes() not in data


def test_where_the_gate_is_shut_the_heads_are_averaged(tmp_path):
    model = framework('solo')
    with torch.no_grad(): model.network.ensemble.gate[-1].bias.fill_(-100.)
    info = description(calibration={})
    with torch.no_grad(): p, shut = deployable(model, info).module(images_of((2, 16, 16)))
    ours = diagnose(list((images_of((2, 16, 16))*255).round().to(torch.uint8)), (model, info))
    assert shut.all() and largest(p, [list(d.probabilities.values()) for d in ours]) < 1e-6


@pytest.mark.parametrize('fit, images, size, sides', [
    ('exact', 'hr', None, (32, 32)), ('cut', 'hr', 33, (40, 35)), ('cut', 'lr', 16, (17, 16))])
def test_what_goes_in_is_prepared_as_diagnose_does(fit, images, size, sides):
    "Large files are reduced, and middles are cut, by the same rule"
    model, info = framework('solo'), description(images=images, size=size)
    made = deployable(model, info, ExportSettings(fit=fit))
    bytes_ = (images_of((2, *sides))*255).to(torch.uint8)
    with torch.no_grad(): p, _ = made.module(bytes_/255)
    ours = diagnose(list(bytes_), (model, info), resolution=images)
    assert largest(p, [list(d.probabilities.values()) for d in ours]) < 1e-5
    captured(made.module, made.example, made.dynamic) # and it is a list of operations


# --- WSInfer ----------------------------------------------------------------------------------------------

def test_wsinfer_reads_the_description_and_takes_the_softmax(folder, tmp_path):
    path = export_model(folder, tmp_path/'slides', ExportSettings('wsinfer', spacing=0.5))
    config = json.loads(path.read_text())
    assert config == dict(spec_version='1.0', architecture='srdiag', num_classes=3, class_names=CLASSES,
                          patch_size_pixels=16, spacing_um_px=0.5, transform=[dict(name='ToTensor')])
    script = torch.jit.load(path.with_suffix('.pt'))
    module = deployable(*load_model(folder)).module
    for n in (1, 5):
        image = images_of((n, 16, 16))
        with torch.no_grad(): assert largest(script(image).softmax(1), module(image)[0]) < 1e-5
    assert read_graph(path).mode == 'context'


def test_wsinfer_is_for_square_pieces_in_colour(sr_model, tmp_path):
    with pytest.raises(ModelError, match='this model enlarges images: use --to onnx'):
        export_model(sr_model, tmp_path/'x', ExportSettings('wsinfer', spacing=0.5))
    with pytest.raises(DataError, match='--spacing 0.5'): ExportSettings('wsinfer')
    with pytest.raises(DataError, match='leave --spacing out'): ExportSettings(spacing=0.5)
    assert not list(tmp_path.iterdir())


# --- what cannot be ---------------------------------------------------------------------------------------

def test_a_model_that_needs_its_batch_is_refused(tmp_path):
    folder = save_model(tmp_path/'batch', framework('batch'), description())
    with pytest.raises(ModelError, match='others of its batch, as published.*--mode solo'):
        export_model(folder, tmp_path/'x')
    with pytest.raises(ModelError, match='no reference images to compare with.*choose --mode solo'):
        export_model(folder, tmp_path/'x', ExportSettings(mode='context'))
    assert [p.name for p in tmp_path.iterdir()] == ['batch']


def test_nothing_of_a_user_is_replaced(sr_model, tmp_path, snapshot):
    "Neither a graph without --overwrite, nor another file with it"
    theirs = tmp_path/'theirs.pt2'
    theirs.write_bytes(b'my thesis')
    for overwrite, words in ((False, '--overwrite'), (True, 'was not exported by srdiag')):
        with pytest.raises(DataError, match=words):
            export_model(sr_model, theirs, ExportSettings('torch', overwrite=overwrite))
    ours = export_model(sr_model, tmp_path/'ours', ExportSettings('torch'))
    before = ours.stat().st_mtime_ns
    with pytest.raises(DataError, match='exists: choose another name'):
        export_model(sr_model, ours, ExportSettings('torch'))
    assert ours.stat().st_mtime_ns == before
    assert export_model(sr_model, ours, ExportSettings('torch', overwrite=True)).stat().st_mtime_ns > before
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ours.pt2', 'theirs.pt2']


@pytest.mark.parametrize('to, second', [('openvino', 'mine.bin'), ('wsinfer', 'mine.pt')])
def test_a_file_of_a_user_beside_the_first_is_not_replaced_either(to, second, sr_model, folder, tmp_path):
    (tmp_path/second).write_bytes(b'my thesis')
    with pytest.raises(DataError, match='was not exported by srdiag'):
        export_model(folder if to == 'wsinfer' else sr_model, tmp_path/'mine',
                     ExportSettings(to, overwrite=True, spacing=0.5 if to == 'wsinfer' else None))
    assert (tmp_path/second).read_bytes() == b'my thesis' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('place', ['', '.', 'models'])
def test_a_folder_is_no_name_for_a_file(place, sr_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'models').mkdir()
    with pytest.raises(DataError, match='is a folder: name a file in it'):
        export_model(sr_model, place, ExportSettings('torch'))


def test_a_failure_on_the_way_leaves_nothing(sr_model, tmp_path, monkeypatch):
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(export.torch.export, 'save', full)
    with pytest.raises(OSError): export_model(sr_model, tmp_path/'new'/'x', ExportSettings('torch'))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_graph_of_ours_is_named(tmp_path, graphs):
    graph = read_onnx(graphs['onnx', 'solo'])
    assert notes_of(graph)['format'] == 'srdiag graph 1'
    def refused(path, words):
        with pytest.raises(ModelError, match=words): read_graph(path)
    for name in ('a.onnx', 'a.pt2', 'a.xml'):
        refused(tmp_path/name, 'There is no file')
        (tmp_path/name).write_bytes(b'\x00\x01 nothing')
        refused(tmp_path/name, 'export')
    refused(tmp_path/'a.png', 'of no kind that srdiag exports')
    graph.opset_import[0].version = 11
    (tmp_path/'old.onnx').write_bytes(graph.SerializeToString())
    refused(tmp_path/'old.onnx', 'opset 11, but srdiag writes and reads 18')
    graph.opset_import[0].version = 18
    del graph.metadata_props[:]
    (tmp_path/'foreign.onnx').write_bytes(graph.SerializeToString())
    refused(tmp_path/'foreign.onnx', 'no graph that this version of srdiag made')


# --- the command, and the page ----------------------------------------------------------------------------

def test_the_command_says_what_the_graph_takes(sr_model, tmp_path, succeeds, run_cli):
    out = succeeds('export', sr_model, '--to', 'torch', '--out', tmp_path/'sr')
    assert 'takes RGB images in [0, 1] of 8 px or more on each side' in out and (tmp_path/'sr.pt2').is_file()
    for words, reason in ((['--to', 'tensorflow'], 'tensorflow'), (['--half', '--to', 'torch'], '--half'),
                          (['--to', 'onnx', '--out', tmp_path/'sr.pt2'], 'ends in .pt2')):
        code, _, err = run_cli('export', sr_model, *words)
        assert code == 2 and reason in err and 'Traceback' not in err
    assert [p.name for p in tmp_path.iterdir()] == ['sr.pt2']


def runner_of_the_page():
    "The cell of the how-to that runs a graph with numpy and onnxruntime alone"
    cells = json.loads((ROOT/'nbs/howto/exporting.ipynb').read_text(encoding='utf-8'))['cells']
    cell, = [''.join(c['source']) for c in cells if 'class Runner' in ''.join(c['source'])]
    return f'import json\n\nimport numpy as np\nimport onnxruntime\n\n{cell}'


def test_the_runner_of_the_page_needs_neither_torch_nor_srdiag(graphs, folder, tmp_path):
    "On bytes of real shapes it says and decides what diagnose does"
    (tmp_path/'runner.py').write_text(runner_of_the_page(), encoding='utf-8')
    shutil.copy(graphs['onnx', 'context'], tmp_path/'small.onnx')
    images = (images_of((6, 61, 48))*255).to(torch.uint8)
    np.save(tmp_path/'images.npy', images.permute(0, 2, 3, 1).numpy())
    code = ("import sys; sys.modules |= {n: None for n in ('torch', 'srdiag', 'pandas', 'onnx', 'PIL')}\n"
            'import json, numpy as np\nfrom runner import Runner\n'
            "print(json.dumps(Runner('small.onnx')(np.load('images.npy'))))")
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs, (network, info) = json.loads(done.stdout), load_model(folder)
    ours = diagnose(list(images), (network, replace(info, resize=True)))
    for a, b in zip(theirs, ours, strict=True):
        assert (a['label'], a['decision']) == (b.label, b.decision)
        assert largest(list(a['probabilities'].values()), list(b.probabilities.values())) < 1e-4
