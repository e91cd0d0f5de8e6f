"""The face of the package: what `import srdiag` offers, images of every kind and models in every form,
mistakes as sentences, and old import paths."""

import ast
import copy
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import srdiag
from srdiag.core.errors import DataError, ImageError, ModelError, SrdiagError
from srdiag.core.moved import MOVED, homes_of
from srdiag.data.degradation import degrade
from srdiag.data.images import as_float, read_image, save_png, to_uint8
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.models.apply import NOT_FOR_USE, diagnose, enlarge
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.sr.inference import enlarger, super_resolve
from srdiag.sr.mrcnet import MRCNet

ROOT = Path(__file__).parents[1]
CLASSES = ['calm', 'inflamed']
sr_models = pytest.mark.parametrize('sr', ['histology_x2', 'endoscopy_x4'])


def fresh(code):  # runs in a Python of its own → what it printed
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sentence(call, *kinds):  # the message of the exception, which is one sentence or more
    with pytest.raises(kinds or (SrdiagError, ValueError, TypeError)) as info:
        call()
    text = str(info.value)
    assert text[0].isalpha() or text[0] == '/', text
    assert text.endswith('.') and '\n' not in text, text
    return text


# --- the names --------------------------------------------------------------------------------------------


def test_bare_import_is_light():
    loaded = fresh('import srdiag, sys; print(*sys.modules)').split()
    assert not {'torch', 'numpy', 'PIL', 'pandas', 'fastai', 'scipy'} & set(loaded)
    own = [name for name in loaded if name.startswith('srdiag')]
    assert sorted(own) == ['srdiag', 'srdiag.core', 'srdiag.core.moved']


def test_settings_do_not_wait_for_torch():
    loaded = fresh(
        'import sys; from srdiag import FrameworkSettings, RunOptions, SRSettings, SrdiagError\n'
        'import srdiag.core.words, srdiag.core.records; print(*sys.modules)'
    ).split()
    assert not {'torch', 'numpy'} & set(loaded)


@pytest.mark.parametrize('name', srdiag.__all__)
def test_each_name_is_what_its_module_has(name):
    home = importlib.import_module(f'srdiag.{srdiag._FACE[name]}')
    assert getattr(srdiag, name) is getattr(home, name)
    assert name in home.__all__, f'{name} is not public in {home.__name__}.'
    assert name in dir(srdiag)


def test_editors_are_told_the_same_names():
    tree = ast.parse((ROOT / 'srdiag' / '__init__.py').read_text(encoding='utf-8'))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert told == srdiag._FACE


def test_the_face_defines_access_and_nothing_else():
    body = ast.parse((ROOT / 'srdiag' / '__init__.py').read_text(encoding='utf-8')).body
    assert [node.name for node in body if isinstance(node, ast.FunctionDef)] == ['__getattr__', '__dir__']
    imports = [node for node in body if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imports} == {'typing', 'core.moved'}
    known = ast.FunctionDef, ast.ImportFrom, ast.Assign
    others = [ast.unparse(node) for node in body if not isinstance(node, known)]
    assert [text.split(':')[0] for text in others[1:]] == ['if TYPE_CHECKING', 'MovedFinder.install()']


def test_rooms_are_there_without_an_import():
    rooms = fresh("import srdiag; print(srdiag.sr.__name__, srdiag.core.__name__, 'sr' in dir(srdiag))")
    assert rooms.split() == ['srdiag.sr', 'srdiag.core', 'True']
    folders = {p.parent.name for p in (ROOT / 'srdiag').glob('*/__init__.py')}
    assert set(srdiag._ROOMS) == folders - {'pretrained', 'published', 'styles', 'templates'}


def test_a_name_that_there_is_not():
    with pytest.raises(AttributeError, match="srdiag has no 'enlarg'. Did you mean enlarge?"):
        srdiag.enlarg
    with pytest.raises(AttributeError, match="^srdiag has no 'qqq'.$"):
        srdiag.qqq
    with pytest.raises(ImportError):
        exec('from srdiag import qqq')
    assert not hasattr(srdiag, '__path_of_no_return__')


BLOCKED = '''
import sys
blocked = 'scipy', 'sklearn', 'fastai', 'pandas', 'matplotlib', 'skimage'
class Blocked:
    def find_spec(self, name, *_):
        if name.split('.')[0] in blocked: raise ImportError(name)
sys.meta_path.insert(0, Blocked())
'''


def test_models_are_loaded_and_applied_without_the_libraries_of_training(tmp_path):
    network = SREnhancedDiagnosis(2, 2, 'LR+SR', sr=dict(channels=4, blocks=1))
    calibration = dict_of_a_calibration()
    info = ModelInfo('A', classes=CLASSES, lr_size=[16, 16], calibration=calibration)
    save_model(tmp_path / 'd', network, info)
    fresh(
        BLOCKED
        + f'''
import srdiag, torch
network, info = srdiag.load_model('histology_x2')
assert srdiag.enlarge(torch.rand(3, 16, 16), network).shape == (3, 32, 32)
framework, info = srdiag.load_model({str(tmp_path / 'd')!r})
assert info.calibrated.temperature > 0
assert srdiag.enlarge(torch.rand(3, 16, 16), framework).shape == (3, 32, 32)
with torch.no_grad(): assert framework(torch.rand(2, 3, 16, 16)).ens.shape == (2, 2)
'''
    )


def dict_of_a_calibration():
    from srdiag.evaluation.calibration import calibrate

    p = np.random.default_rng(0).uniform(0.05, 0.95, 60)
    y = (np.random.default_rng(1).uniform(size=60) < 0.3 + 0.4 * (p > 0.5)).astype(int)
    return calibrate(y, np.stack([1 - p, p], 1), CLASSES, risk=0.4).to_dict()


# --- enlarging --------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def piece():  # H×W×3, uint8
    from srdiag.data.samples import tissue

    return tissue()[:, 100:124, 200:220].permute(1, 2, 0).contiguous().numpy()


@pytest.fixture(scope='module')
def loaded():
    return {name: load_model(name) for name in ('histology_x2', 'endoscopy_x4')}


@pytest.fixture(scope='module')
def framework():  # untrained; predicts each image by itself
    torch.manual_seed(0)
    return SREnhancedDiagnosis(2, 2, 'LR+SR', sr=dict(channels=8, blocks=1), mode='solo').eval()


def about(**more):
    return ModelInfo('A coin', **dict(classes=CLASSES, lr_size=[16, 16]) | more)


def expected(network, piece):  # float32 H×W×3
    x = torch.from_numpy(piece).permute(2, 0, 1)
    return super_resolve(network, x).permute(1, 2, 0).numpy()


@sr_models
def test_arrays_of_every_type(sr, loaded, piece):
    network, scale = loaded[sr][0], loaded[sr][0].scale
    right = expected(network, piece)
    kinds = {
        'uint8': piece,
        'uint16': piece.astype(np.uint16) * 257,
        'float16': (piece / 255).astype(np.float16),
        'float32': (piece / 255).astype(np.float32),
        'float64': piece / 255,
    }
    for dtype, image in kinds.items():
        before = image.copy()
        large = enlarge(image, network)
        assert large.dtype == dtype and large.shape == (24 * scale, 20 * scale, 3)
        top = dict(uint8=255, uint16=65535).get(dtype, 1)
        np.testing.assert_allclose(large.astype(float) / top, right, atol=0.02)
        np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(enlarge(piece, network), (right * 255).round().astype(np.uint8))
    flipped = piece[::-1, ::-1]  # negative strides
    assert enlarge(flipped, network).shape == (24 * scale, 20 * scale, 3)


@sr_models
def test_grey_images_stay_grey(sr, loaded, piece):
    network, scale = loaded[sr][0], loaded[sr][0].scale
    grey = piece[..., 1]
    large = enlarge(grey, network)
    assert large.shape == (24 * scale, 20 * scale) and large.dtype == np.uint8
    np.testing.assert_array_equal(enlarge(grey[..., None], network), large[..., None])
    assert enlarge(Image.fromarray(grey), network).mode == 'L'
    assert enlarge(torch.from_numpy(grey)[None], network).shape == (1, 24 * scale, 20 * scale)


@sr_models
def test_pictures_of_every_mode(sr, loaded, piece):
    network, scale = loaded[sr][0], loaded[sr][0].scale
    rgb = Image.fromarray(piece)
    right = enlarge(piece, network)
    np.testing.assert_array_equal(np.asarray(enlarge(rgb, network)), right)
    deep = Image.fromarray(piece[..., 1].astype(np.uint16) * 257)
    for image, mode in (
        (rgb.convert('L'), 'L'),
        (rgb.convert('RGBA'), 'RGB'),
        (rgb.convert('P'), 'RGB'),
        (rgb.convert('CMYK'), 'RGB'),
        (rgb.convert('1'), 'L'),
        (deep, 'I;16'),
    ):
        large = enlarge(image, network)
        assert large.mode == mode and large.size == (20 * scale, 24 * scale)


@sr_models
def test_tensors_keep_their_type(sr, loaded, piece):
    network, scale = loaded[sr][0], loaded[sr][0].scale
    x = torch.from_numpy(piece).permute(2, 0, 1)
    right = super_resolve(network, x)
    assert torch.equal(enlarge(x, network), to_uint8(right))
    assert torch.equal(enlarge(as_float(x), network), super_resolve(network, as_float(x)))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        large = enlarge(as_float(x).to(dtype), network)
        assert large.dtype == dtype and large.shape == (3, 24 * scale, 20 * scale)
    assert not enlarge(as_float(x).requires_grad_(), network).requires_grad


@sr_models
def test_paths(sr, loaded, piece, tmp_path):
    save_png(torch.from_numpy(piece).permute(2, 0, 1), tmp_path / 'a.png')
    Image.fromarray(piece[..., 1].astype(np.uint16) * 257).save(tmp_path / 'deep.png')
    for path in (tmp_path / 'a.png', str(tmp_path / 'a.png')):
        large = enlarge(path, sr)
        np.testing.assert_array_equal(np.asarray(large), enlarge(piece, loaded[sr][0]))
    assert enlarge(tmp_path / 'deep.png', sr).mode == 'I;16'
    large.save(tmp_path / 'large.png')  # and can be saved and read again
    assert read_image(tmp_path / 'large.png').shape[1] == 24 * loaded[sr][0].scale


def test_a_list_gives_a_list(loaded, piece, tmp_path):
    x = torch.from_numpy(piece).permute(2, 0, 1)
    save_png(x, tmp_path / 'a.png')
    mixed = [piece, x, Image.fromarray(piece), tmp_path / 'a.png', piece[:16, :12]]
    large = enlarge(mixed, 'histology_x2')
    assert [type(y) for y in large] == [np.ndarray, torch.Tensor, Image.Image, Image.Image, np.ndarray]
    assert large[4].shape == (32, 24, 3)
    assert isinstance(enlarge((piece,), loaded['histology_x2']), list)


def test_models_in_every_form(loaded, piece, framework, tmp_path):
    network, info = loaded['histology_x2']
    right = enlarge(piece, network)
    folder = save_model(tmp_path / 'mine', network, info)
    for model in ('histology_x2', folder, str(folder), (network, info), [network, info][0]):
        np.testing.assert_array_equal(enlarge(piece, model), right)
    np.testing.assert_array_equal(enlarge(piece, framework), enlarge(piece, framework.sr_network))
    grey = MRCNet(2, channels=4, blocks=1, image_channels=1)
    equal = np.repeat(piece[..., 1:2], 3, 2)
    assert enlarge(equal, grey).shape == (48, 40, 3)  # all channels are the same, so nothing is lost
    assert 'colours' in sentence(lambda: enlarge(piece, grey))


def test_training_mode_is_given_back(piece):
    network = MRCNet(2, channels=4, blocks=1).train()
    enlarge(piece, network)
    assert network.training


@pytest.mark.parametrize('kind, precision', [(torch.float64, 'auto'), (torch.float64, 'bf16'),
                                             (torch.bfloat16, 'fp32'), (torch.float16, 'fp32')])
def test_weights_that_cannot_be_computed_with(kind, precision, piece, framework):
    network = MRCNet(2, channels=4, blocks=1).to(kind)
    for use in (lambda: enlarge(piece, network, precision), lambda: enlarger(network, precision)):
        assert 'call network.float()' in sentence(use, ModelError)
    assert enlarge(piece, network.float(), precision).shape == (2*len(piece), 2*piece.shape[1], 3)
    other = copy.deepcopy(framework).to(kind)
    assert 'call network.float()' in sentence(lambda: diagnose(piece[:16, :16], (other, about())), ModelError)


def test_weights_of_16_bits_compute_in_16_bits(piece):
    network = MRCNet(2, channels=4, blocks=1).bfloat16()
    assert enlarge(piece, network, 'bf16').dtype == piece.dtype


MISTAKES = {
    'empty list': (lambda: [], DataError, 'the list is empty'),
    'missing file': (lambda: 'scan_07.png', ImageError, 'scan_07.png does not exist'),
    'a folder': (lambda: ROOT, ImageError, 'is a folder'),
    'nothing': (lambda: None, TypeError, 'NoneType'),
    'a dictionary': (lambda: dict(image=1), TypeError, 'dict'),
    'outside': (lambda: np.full((16, 16), 1.5), DataError, 'floats lie in'),
    'negative': (lambda: torch.full((3, 16, 16), -0.1), DataError, 'floats lie in'),
    'nan': (lambda: np.full((16, 16, 3), np.nan), DataError, 'NaN'),
    'nan in a tensor': (lambda: torch.full((3, 16, 16), float('nan')), DataError, 'NaN'),
    'infinite': (lambda: torch.full((3, 16, 16), float('inf')), DataError, 'infinite'),
    'integers': (lambda: np.zeros((16, 16), int), DataError, 'int64'),
    'truth values': (lambda: np.zeros((16, 16), bool), DataError, 'bool'),
    'complex': (lambda: np.zeros((16, 16), complex), DataError, 'complex128'),
    'integers in a tensor': (lambda: torch.zeros(3, 16, 16, dtype=torch.int32), DataError, 'int32'),
    'two channels': (lambda: np.zeros((16, 16, 2), np.uint8), DataError, 'transparency'),
    'four channels': (lambda: torch.zeros(4, 16, 16), DataError, 'transparency'),
    'channels first': (lambda: np.zeros((3, 16, 16), np.uint8), DataError, 'put the channels last'),
    'channels last': (lambda: torch.zeros(16, 16, 3), DataError, 'put the channels first'),
    'a batch': (lambda: torch.zeros(2, 3, 16, 16), DataError, 'hand over a list'),
    'a batch of arrays': (lambda: np.zeros((2, 16, 16, 3)), DataError, 'hand over a list'),
    'a row': (lambda: np.zeros(16), DataError, 'shape'),
    'no pixels': (lambda: np.zeros((0, 16), np.uint8), DataError, 'no pixels'),
    'too small': (lambda: np.zeros((4, 4), np.uint8), DataError, 'at least 8'),
    'floats in a picture': (lambda: Image.fromarray(np.zeros((16, 16), np.float32)), ImageError, 'floating'),
}


@pytest.mark.parametrize('what', MISTAKES)
def test_mistakes_are_sentences(what, loaded, framework):
    make, kind, naming = MISTAKES[what]
    assert naming in sentence(lambda: enlarge(make(), loaded['histology_x2']), kind)
    if what == 'too small':
        naming = '16×16 px'  # of the diagnosis model
    assert naming in sentence(lambda: diagnose(make(), (framework, about())), kind)


def test_the_bad_one_of_many_is_named(loaded, piece):
    text = sentence(lambda: enlarge([piece, piece, piece / 100], loaded['histology_x2']))
    assert text.startswith('images[2] has')


@pytest.mark.parametrize(
    'model, kind, naming',
    [
        ('histology_x3', ModelError, 'histology_x2'),
        (None, TypeError, 'NoneType'),
        (3, TypeError, 'int'),
        (torch.nn.Linear(2, 2), ModelError, 'Linear'),
        (('histology_x2', None), TypeError, 'tuple'),
    ],
)
def test_models_that_are_none(model, kind, naming, piece):
    for call in (lambda: enlarge(piece, model), lambda: diagnose(piece, model)):
        assert naming in sentence(call, kind)


def test_arguments_in_the_wrong_order(piece):
    assert 'Images come first' in sentence(lambda: enlarge('histology_x2', piece), TypeError)


def test_a_damaged_file_and_a_damaged_model(tmp_path, loaded, piece):
    (tmp_path / 'cut.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    assert 'cut.png' in sentence(lambda: enlarge(tmp_path / 'cut.png', loaded['histology_x2']), ImageError)
    shutil.copytree(ROOT / 'srdiag' / 'pretrained' / 'histology_x2', tmp_path / 'model')
    (tmp_path / 'model' / 'config.json').write_text('{')
    assert 'config.json' in sentence(lambda: enlarge(piece, tmp_path / 'model'), ModelError)


def test_what_networks_read():
    network, small = MRCNet(2, channels=4, blocks=1), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    framework = SREnhancedDiagnosis(2, 2, 'LR')
    for call in (lambda: network(small), lambda: framework(small), lambda: framework(small.int())):
        assert 'reads floats in [0, 1]' in sentence(call, ValueError)
    for wrong in ('x.png', Image.new('RGB', (16, 16)), np.zeros((1, 3, 16, 16))):
        for reader in (network, framework):
            assert 'reads a tensor' in sentence(lambda: reader(wrong), TypeError)
        text = sentence(lambda: super_resolve(network, wrong), DataError)
        assert type(wrong).__name__ in text and 'srdiag.enlarge' in text


# --- diagnosing -------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tiles(piece):
    return [np.ascontiguousarray(piece[k : k + 16, :16]) for k in range(3)]


def test_one_and_many(framework, tiles):
    answers = diagnose(tiles, (framework, about()))
    assert isinstance(answers, list) and len(answers) == 3
    for k, (tile, answer) in enumerate(zip(tiles, answers)):
        alone = diagnose(tile, (framework, about()))
        assert alone.label == answer.label in CLASSES and answer.name == f'images[{k}]'
        assert list(alone.probabilities) == CLASSES and sum(alone.probabilities.values()) == pytest.approx(1)
        assert alone.probabilities['calm'] == pytest.approx(answer.probabilities['calm'], abs=1e-5)
        assert alone.decision is None and not alone.calibrated
        assert repr(alone).endswith(NOT_FOR_USE)
        assert alone.label in repr(alone) and 'not calibrated' in repr(alone)
    assert repr(answers).count('\n') == 3 and repr(answers).endswith(NOT_FOR_USE)
    frame = answers.to_frame()
    assert list(frame.label) == [a.label for a in answers]
    assert {'file', 'ens_calm', 'gate_sr'} <= set(frame.columns)
    assert len(answers[1].to_frame()) == 1


def test_the_same_answer_for_every_kind_of_image(framework, tiles, tmp_path):
    tile, model = tiles[0], (framework, about())
    x = torch.from_numpy(tile).permute(2, 0, 1)
    save_png(x, tmp_path / 'a.png')
    right = diagnose(tile, model).probabilities
    for image in (x, as_float(x), tile / 255, Image.fromarray(tile), tmp_path / 'a.png'):
        assert diagnose(image, model).probabilities == pytest.approx(right, abs=1e-5)
    assert diagnose(tmp_path / 'a.png', model).name == str(tmp_path / 'a.png')


def test_calibrated_answers(framework, tiles):
    info = about(calibration=dict_of_a_calibration())
    plain, answer = diagnose(tiles[0], (framework, about())), diagnose(tiles[0], (framework, info))
    p = info.calibrated.apply(np.array([list(plain.probabilities.values())]))[0]
    assert list(answer.probabilities.values()) == pytest.approx(p, abs=1e-6)
    assert answer.calibrated and answer.decision in (*CLASSES, 'undecided')
    assert f'decision: {answer.decision}' in repr(answer)


def test_images_are_reduced_as_in_training(framework, tiles):
    info = about(images='hr', lr_size=[8, 8])
    x = torch.from_numpy(tiles[0]).permute(2, 0, 1)
    small = to_uint8(degrade(as_float(x), 2))
    right = diagnose(small, (framework, info)).probabilities  # by its size it needs no reduction
    assert diagnose(x, (framework, info)).probabilities == pytest.approx(right, abs=1e-6)
    as_they_are = framework, about(lr_size=[8, 8])
    assert diagnose(x, as_they_are, resolution='hr').probabilities == pytest.approx(right)
    assert '16×16 px' in sentence(lambda: diagnose(x, as_they_are), DataError)
    wide = torch.nn.functional.pad(x, (3, 3, 1, 1))
    middle = diagnose(wide, (framework, about(images='hr', size=16, lr_size=[8, 8])))
    assert middle.probabilities == pytest.approx(right, abs=1e-6)


def test_a_model_that_reads_the_large_image(tiles):
    torch.manual_seed(0)
    model = SREnhancedDiagnosis(2, 2, 'LR+HR', mode='solo').eval(), about(images='hr', lr_size=[8, 8])
    assert diagnose(tiles[0], model).label in CLASSES
    assert 'high-resolution' in sentence(lambda: diagnose(tiles[0][:8, :8], model), DataError)
    assert 'super-resolution network' in sentence(lambda: enlarge(tiles[0], model), ModelError)


def test_grey_models_and_colours(tiles):
    model = SREnhancedDiagnosis(2, 2, 'LR', channels=1).eval(), about()
    assert diagnose(tiles[0], model).label in CLASSES
    assert diagnose(tiles[0][..., 0], model).label in CLASSES


def test_a_network_without_description(framework, tiles):
    assert diagnose(tiles[0], framework).label in ('class 0', 'class 1')
    assert 'different sizes' in sentence(lambda: diagnose([tiles[0], tiles[1][:8]], framework), DataError)


def test_what_a_diagnosis_refuses(framework, tiles, loaded):
    model = framework, about()
    assert 'use enlarge' in sentence(lambda: diagnose(tiles[0], 'histology_x2'), ModelError)
    assert 'context' in sentence(lambda: diagnose(tiles[0], model, mode='context'), ModelError)
    assert '16×16' in sentence(lambda: diagnose(tiles[0][:15], model), DataError)
    assert 'lr, hr' in sentence(lambda: diagnose(tiles[0], model, resolution='high'), DataError)
    hurried = framework, ModelInfo('In a hurry')
    assert 'classes and lr_size' in sentence(lambda: diagnose(tiles[0], hurried), ModelError)


def test_trained_models_from_their_folders(models, labelled, capsys):
    files = sorted(labelled.rglob('*.png'))[:3]
    answers = diagnose(files, models.diagnosis)
    assert [a.name for a in answers] == [str(f) for f in files] and answers[0].calibrated
    single = diagnose(files[0], models.lr)
    assert single.label in ('healthy', 'ill') and NOT_FOR_USE in repr(single)
    large = enlarge(files, models.diagnosis)
    assert all(y.size == (32, 32) for y in large)
    assert enlarge(files[0], models.sr).size == (32, 32)
    assert 'super-resolution network' in sentence(lambda: enlarge(files[0], models.lr), ModelError)


def test_the_face_says_what_the_command_says(models, labelled, succeeds, tmp_path):
    import pandas as pd

    files = sorted(labelled.rglob('*.png'))[:3]
    succeeds(
        'predict',
        '--model',
        models.diagnosis,
        '--images',
        'hr',
        '--out',
        tmp_path / 'out',
        '--device',
        'cpu',
        *files,
    )
    told = pd.read_csv(tmp_path / 'out' / 'predictions.csv')
    ours = diagnose(files, models.diagnosis, device='cpu').to_frame()
    assert list(told.label) == list(ours.label) and list(told.decision) == list(ours.decision)
    for column in ('ens_ill', 'calibrated_ill', 'gate_sr'):
        np.testing.assert_allclose(told[column], ours[column], atol=1e-4)


# --- old import paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'line, new',
    [
        ('from srdiag.errors import DataError', 'from srdiag.core.errors import DataError'),
        ('from srdiag.runs import placing, check_choice', 'from srdiag.core.settings import check_choice'),
        ('from srdiag.commands import read_labelled', 'from srdiag.datasets.reading import read_labelled'),
        ('from srdiag.commands import RunOptions', 'from srdiag.training.options import RunOptions'),
        ('from srdiag.models import load_model', 'from srdiag.models.saving import load_model'),
        ('from srdiag.weights import list_pretrained', 'from srdiag.core.weights import list_pretrained'),
        ('from srdiag.data.datasets import import_pcam', 'import import_pcam'),
        ('from srdiag.figures import sr_panel', 'from srdiag.show.'),
        ('from srdiag import figures', 'from srdiag.show import figures'),
        ('from srdiag import read_labelled', 'from srdiag.datasets.reading import read_labelled'),
        ('import srdiag.cli', 'from srdiag.commands import cli'),
        ('import srdiag.experiment', 'srdiag.bench'),
        ('import srdiag.benchmark as b', 'srdiag.bench'),
        ('from srdiag.cli import *', 'srdiag.commands'),
        ('from srdiag.benchmark import Budget', 'import SRBudget'),
        ('from srdiag.experiment import Budget', 'import DiagnosisBudget'),
        ('from srdiag.benchmark import CARN', 'from srdiag.bench.entries import CARN_SCRATCH'),
        ('from srdiag.data.slides import Picture', 'from srdiag.datasets.slides import Photograph'),
        ('from srdiag.demo import part_of', 'from srdiag.data.phantom import split_of'),
        ('from srdiag.experiment import METRICS', 'from srdiag.evaluation.diagnostic import METRICS'),
        ('from srdiag.runs import no_such_thing', 'There is no no_such_thing any more'),
    ],
)
def test_an_old_path_says_what_to_write(line, new):
    with pytest.raises(ModuleNotFoundError) as info:
        exec(line)
    assert new in str(info.value) and str(info.value).startswith('srdiag.') and str(info.value).endswith('.')


@pytest.mark.parametrize('old', MOVED)
def test_every_old_module_leads_somewhere(old):
    for place in MOVED[old].split():
        room = place.split('.')[0]
        assert (ROOT / 'srdiag' / room).is_dir(), f'MOVED sends {old} to {room}, which does not exist.'
    path = ROOT / 'srdiag' / old.replace('.', '/')
    if not path.is_dir() and not path.with_suffix('.py').is_file():
        with pytest.raises(ModuleNotFoundError, match='has moved'):
            importlib.import_module(f'srdiag.{old}')


@pytest.mark.parametrize(
    'path, new',
    [
        ('commands.read_labelled', 'datasets.reading'),
        ('models.load_model', 'models.saving'),
        ('experiment', 'srdiag.bench'),
        ('read_labelled', 'datasets.reading'),
    ],
)
def test_old_attributes(path, new):
    with pytest.raises(AttributeError, match=new):
        eval(f'srdiag.{path}')


@pytest.mark.parametrize(
    'line, new',
    [
        ('from srdiag.sr.zoo import SRNetwork', 'from srdiag.sr.'),
        ('from srdiag.sr.zoo import Entry', 'from srdiag.sr.zoo import ZooEntry'),
        ('from srdiag.diagnosis.training import PairAugment', 'from srdiag.data.pairs import PairAugment'),
    ],
)
def test_modules_that_stand_say_what_they_gave_away(line, new):
    with pytest.raises(ImportError, match=new):
        exec(line)
    from srdiag.sr import zoo

    assert not hasattr(zoo, 'nowhere')


def test_what_never_was_fails_as_ever():
    with pytest.raises(ModuleNotFoundError, match="No module named 'srdiag.nowhere'"):
        importlib.import_module('srdiag.nowhere')
    assert importlib.util.find_spec('srdiag.nowhere') is None
    with pytest.raises(AttributeError):
        srdiag.commands.nowhere
    assert homes_of('nowhere') == []


def test_modules_that_stand_are_not_in_the_way():
    fresh(
        'import srdiag.commands.cli, srdiag.models.saving; from srdiag import commands, models\n'
        'from srdiag.models import info'
    )
