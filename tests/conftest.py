"""What the tests share: small real images, tiny models made by the commands themselves, and the command line
within this process."""
import contextlib
import csv
import hashlib
import io
import os
import shutil
import socket
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault('MPLBACKEND', 'agg')

TINY_SR = ['--epochs', 1, '--steps', 2, '--patch', 16, '--scale', 2, '--device', 'cpu', '--precision', 'fp32']
TINY_DIAGNOSIS = ['--epochs', 1, '--batch-size', 8, '--scale', 2, '--device', 'cpu', '--precision', 'fp32']


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def pytest_collection_modifyitems(items):
    "Tests marked `data` need the folder of real images; those marked `nightly` need time"
    why = dict(data=('SRDIAG_DATA', 'it names the folder with bloodsmear, histology and endoscopy'),
               nightly=('SRDIAG_NIGHTLY', 'it runs what takes longer than a test may'))
    for mark, (variable, meaning) in why.items():
        if os.environ.get(variable): continue
        skip = pytest.mark.skip(reason=f'{variable} is not set: {meaning}')
        for item in items:
            if item.get_closest_marker(mark): item.add_marker(skip)


@pytest.fixture(scope='session', autouse=True)
def no_graphs_of_the_user(tmp_path_factory):
    "Whether somebody has compiled a network before must not change what the tests see"
    before = os.environ.get('SRDIAG_CACHE')
    os.environ['SRDIAG_CACHE'] = str(tmp_path_factory.mktemp('graphs'))
    yield
    os.environ.pop('SRDIAG_CACHE')
    if before is not None: os.environ['SRDIAG_CACHE'] = before


# The command line

def _run(*argv):
    from srdiag.commands.cli import main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = main([str(a) for a in argv])
        except SystemExit as e: code = e.code
        except Exception:
            traceback.print_exc(file=err)
            code = 1
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope='session')
def run_cli():
    """A function: arguments of `srdiag` → (exit status, stdout, stderr); what main lets through counts as a
    crash with status 1"""
    return _run


@pytest.fixture(scope='session')
def succeeds():
    "A function: run `srdiag`, insist on success, return what it printed"
    def succeeds(*argv):
        code, out, err = _run(*argv)
        assert code == 0, err
        return out
    return succeeds


@pytest.fixture(scope='session')
def snapshot():
    "A function: folder → every path in it with the hash of its content"
    def snapshot(folder):
        def content(p): return hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else 'folder'
        return {p.relative_to(folder).as_posix(): content(p) for p in Path(folder).rglob('*')}
    return snapshot


@pytest.fixture
def refused(tmp_path, snapshot):
    """A function: `srdiag` must end with status 2 and one sentence that holds each of `naming`; nothing under
    tmp_path may change"""
    def refused(*argv, naming=(), ending='.'):
        before = snapshot(tmp_path)
        code, out, err = _run(*argv)
        assert 'Traceback' not in err, err
        assert code == 2, (code, out, err)
        assert err.startswith(f'srdiag {argv[0]}: ') and err.endswith(ending + '\n'), err
        assert err.count('\n') == 1, err
        for words in naming: assert str(words) in err, f'{words!r} is not in: {err}'
        assert snapshot(tmp_path) == before, 'something was written or lost'
        return err
    return refused


# Images

@pytest.fixture(scope='session')
def tile():
    """A function: (number, side) → a piece of stained tissue, uint8 3×side×side; the pieces of one side do
    not overlap"""
    from srdiag.data.samples import tissue
    image = tissue()
    def tile(k, side=32):
        row, column = divmod(k, 512//side)
        return image[:, row*side:(row+1)*side, column*side:(column+1)*side].clone()
    return tile


@pytest.fixture(scope='session')
def fill(tile):
    "A function: write `n` tiles to a folder as slide0__tile.png, slide1__tile.png, ..."
    from srdiag.data.images import save_png
    def fill(folder, n=6, side=32, start=0):
        Path(folder).mkdir(parents=True, exist_ok=True)
        return [save_png(tile(start+k, side), Path(folder)/f'slide{k}__tile.png') for k in range(n)]
    return fill


@pytest.fixture(scope='session')
def fill_labelled(tile):
    """A function: write class folders with p0__0.png, p1__0.png, ... and a labels.csv with file, label and
    group"""
    from srdiag.data.images import save_png
    def fill_labelled(folder, classes=('healthy', 'ill'), groups=12, each=1, side=16):
        rows, k = [], 100
        for label in classes:
            (folder/label).mkdir(parents=True, exist_ok=True)
            for g in range(groups):
                for i in range(each):
                    save_png(tile(k, side), folder/label/f'p{g}__{i}.png')
                    rows, k = rows + [(f'{label}/p{g}__{i}.png', label, f'p{g}')], k+1
        with open(folder/'labels.csv', 'w', newline='', encoding='utf-8') as f:
            csv.writer(f).writerows([('file', 'label', 'group'), *rows])
        return folder
    return fill_labelled


@pytest.fixture(scope='session')
def sr_folder(fill, tmp_path_factory):
    "Six tiles of 32×32 px"
    return fill(tmp_path_factory.mktemp('images')/'slides')[0].parent


@pytest.fixture(scope='session')
def labelled(fill_labelled, tmp_path_factory):
    "Two classes, twelve groups with a tile of 16×16 px in each class, and labels.csv"
    return fill_labelled(tmp_path_factory.mktemp('labelled')/'tissue')


# Models: tests may read them; a test that changes one copies it first

@pytest.fixture(scope='session')
def models(sr_folder, labelled, succeeds, tmp_path_factory):
    """Folders of tiny trained models: sr (x2), teacher (recursive), lr and diagnosis (single branch;
    framework with sr), and what training printed"""
    root = tmp_path_factory.mktemp('models')
    hr = ['--images', 'hr', *TINY_DIAGNOSIS]
    def made(name, command, data, *more): # what the training printed
        return succeeds(command, '--data', data, '--out', root/name, *more)
    printed = dict(sr=made('sr', 'train-sr', sr_folder, *TINY_SR),
                   teacher=made('teacher', 'train-sr', sr_folder, '--recursions', 2, *TINY_SR),
                   lr=made('lr', 'train-diagnosis', labelled, '--inputs', 'LR', *hr),
                   diagnosis=made('diagnosis', 'train-diagnosis', labelled, '--sr', root/'sr', *hr))
    return SimpleNamespace(printed=printed, **{name: root/name for name in printed})


@pytest.fixture(scope='session')
def sr_model(models):
    "A single-forward MRC-Net x2"
    return models.sr


@pytest.fixture(scope='session')
def diagnosis_model(models):
    "A framework LR+SR x2 for files of 16×16 px that are reduced to 8×8"
    return models.diagnosis


@pytest.fixture(scope='session')
def tiny_sr():
    "Options of a training of seconds"
    return TINY_SR


@pytest.fixture(scope='session')
def tiny_diagnosis():
    "Options of a training of seconds"
    return TINY_DIAGNOSIS


@pytest.fixture(scope='module')
def chromium():
    "Debian's Chromium, which reaches nothing but this machine"
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not path:
        pytest.skip('there is no Chromium here: apt-get install chromium, to see the pages in a browser')
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: make venv')
    flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
             '--disable-background-networking', '--disable-component-update', '--disable-sync',
             '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1']
    with api.sync_playwright() as p:
        started = p.chromium.launch(executable_path=path, headless=True, args=flags)
        yield started
        started.close()
