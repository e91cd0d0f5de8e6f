"The wheel holds the library and nothing else, and works away from the repository."
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
COMMANDS = ['demo', 'train-sr', 'distill', 'train-diagnosis', 'evaluate', 'predict', 'export', 'cost',
            'benchmark', 'build', 'import']
SOURCES = ['nbs', 'srdiag', 'tests'] # with the files beside them: what a source distribution is made of

USE = '''
import sys
from pathlib import Path
target = Path(sys.argv[1])

import srdiag
assert Path(srdiag.__file__).is_relative_to(target), f'srdiag was imported from {srdiag.__file__}'

import torch
from srdiag import ModelInfo, load_model, save_model
from srdiag.sr.mrcnet import MRCNet

torch.manual_seed(0)
network = MRCNet(2, channels=8, blocks=1).eval()
save_model('model', network, ModelInfo('A network that has not been trained'))
again, info = load_model('model', kind='sr', scale=2)
image = torch.rand(1, 3, 16, 20)
with torch.inference_mode(): enlarged = again(image)
assert enlarged.shape == (1, 3, 32, 40) and torch.isfinite(enlarged).all()
assert torch.equal(enlarged, network(image)), 'the saved network computes something else'
assert info.made['srdiag'] == srdiag.__version__

from srdiag.core.weights import list_pretrained, pretrained_folder
assert list_pretrained(), 'no trained network came with the package'
for name in list_pretrained(): assert pretrained_folder(name).is_relative_to(target)
for name in list_pretrained('sr'):
    trained = MRCNet.from_pretrained(name)
    with torch.inference_mode(): assert torch.isfinite(trained(image)).all()
assert list_pretrained('diagnosis'), 'no trained diagnosis came with the package'
for name in list_pretrained('diagnosis'):
    trained, known = load_model(name, 'diagnosis')
    with torch.inference_mode(): assert torch.isfinite(trained(torch.rand(2, 3, *known.lr_size)).ens).all()
print('works')
'''


def run(*command, **kwargs):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, (f'{" ".join(map(str, command))} '
                                  f'failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}')
    return done.stdout


def can_build_here():
    """True if this environment has what [build-system] in pyproject.toml asks for, so that nothing need be
    fetched"""
    try: return Version(metadata.version('setuptools')) >= Version('77')
    except metadata.PackageNotFoundError: return False


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a source distribution, which is built from a copy: the repository stays as it is"
    copy, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for name in SOURCES:
        shutil.copytree(ROOT/name, copy/name,
                        ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for p in ROOT.iterdir():
        if p.is_file() and not p.name.startswith('.'): shutil.copy(p, copy)
    run('-m', 'build', '--outdir', out, *(['--no-isolation'] if can_build_here() else []), copy, cwd=out)
    assert len(list(out.glob('*.tar.gz'))) == 1
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def target(wheel, tmp_path_factory):
    "A folder with the installed wheel, and nothing else"
    folder = tmp_path_factory.mktemp('installed')
    run('-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-index', '--no-deps',
        '--target', folder, wheel, cwd=folder)
    return folder


def away(target, tmp_path):
    # another folder to work in, and `target` first on the path, before the editable install of the
    # repository
    env = {k: os.environ[k] for k in ('PATH', 'HOME', 'TMPDIR', 'SYSTEMROOT') if k in os.environ}
    return dict(cwd=tmp_path, env=env | {'PYTHONPATH': str(target)})


def test_wheel_holds_the_library_and_its_files(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith('/')}
    library = {n for n in names if n.startswith('srdiag/')}
    files = [p for p in (ROOT/'srdiag').rglob('*') if p.is_file() and '__pycache__' not in p.parts]
    assert library == {p.relative_to(ROOT).as_posix() for p in files}
    for folder, ending in (('published', '.csv'), ('styles', '.mplstyle'), ('templates', '.html'),
                           ('templates', '.j2'), ('pretrained', '.safetensors')):
        assert any(n.startswith(f'srdiag/{folder}/') and n.endswith(ending) for n in library), (
            f'The wheel has no {folder}/*{ending}.')


def test_wheel_holds_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    others = [n for n in names if not n.startswith('srdiag/') and not n.split('/')[0].endswith('.dist-info')]
    assert not others, f'The wheel also holds {others[:5]}.'
    assert not [n for n in names if n.endswith('.ipynb') or 'test' in n], (
        'The wheel holds notebooks or tests.')
    assert any(n.endswith('/LICENSE') for n in names), 'The wheel lacks the licence.'


def test_wheel_saves_loads_and_enlarges_away_from_the_repository(target, tmp_path):
    assert run('-c', USE, target, **away(target, tmp_path)).split() == ['works']


def test_wheel_has_all_commands(target, tmp_path):
    where = run('-c', 'from srdiag.commands import cli; print(cli.__file__)', **away(target, tmp_path))
    assert Path(where.strip()).is_relative_to(target)
    text = run('-m', 'srdiag.commands.cli', '--help', **away(target, tmp_path))
    missing = [c for c in COMMANDS if not re.search(rf'(?<![\w-]){c}(?![\w-])', text)]
    assert not missing, f'srdiag --help does not list {missing}.'
