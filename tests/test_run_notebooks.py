"How `make test` runs the notebooks: a failing one fails the run with its name and its error."
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import run_notebooks
KERNEL = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
PROJECT = '''
[project]
name = "small"
version = "1"
[tool.nbdev]
lib_path = "small"
nbs_path = "nbs"
tst_flags = "slow cuda"
'''
OWN_CLASS = '''import torch
class Own(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return i''' # workers of a DataLoader must find it
GOOD = ["from pathlib import Path", "#| slow\nPath('slow.txt').write_text('ran')",
        "import os\nassert os.environ['IN_TEST'] == '1'", "Path('ran.txt').write_text('in its own folder')",
        OWN_CLASS, "assert len(list(torch.utils.data.DataLoader(Own(), 2, num_workers=1))) == 2"]
BAD = ["apples = 3", "assert apples == 4, 'an apple is missing'"]
KILLED = ["import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"]


@pytest.fixture
def project(tmp_path):
    (tmp_path/'pyproject.toml').write_text(PROJECT)
    (tmp_path/'nbs'/'part').mkdir(parents=True)
    for name, cells in {'part/good': GOOD, 'bad': BAD, 'killed': KILLED}.items():
        cells = [new_markdown_cell('# Title'), *map(new_code_cell, cells)]
        write(new_notebook(cells=cells, metadata=KERNEL), tmp_path/'nbs'/f'{name}.ipynb')
    return tmp_path


def run(*args):
    return subprocess.run([sys.executable, ROOT/'tools'/'run_notebooks.py', *map(str, args)],
                          capture_output=True, text=True)


@pytest.mark.skipif(sys.platform == 'win32', reason='no signals there')
def test_a_notebook_that_fails_or_dies_fails_the_run_and_says_why(project):
    done = run(project/'nbs')
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stdout + done.stderr
    assert lines[-1].startswith('1 passed, 2 failed') and lines[-2] == 'Failed: bad.ipynb, killed.ipynb'
    assert 'an apple is missing' in done.stdout and 'killed by SIGKILL' in done.stdout
    assert (project/'nbs'/'part'/'ran.txt').exists() and not (project/'nbs'/'part'/'slow.txt').exists()


def test_flags_are_honoured_and_success_is_said(project):
    done = run('--flags', 'slow', '--workers', '1', project/'nbs'/'part'/'good.ipynb')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith('1 passed, 0 failed')
    assert (project/'nbs'/'part'/'slow.txt').read_text() == 'ran'


def test_the_longest_comes_first_and_large_ones_wait_for_each_other(tmp_path):
    known = dict(long=(60, 1.5), large=(30, 1.6), small=(5, 0.2))
    paths = {name: tmp_path/name for name in ('small', 'new', 'large', 'long')}
    for path in paths.values(): path.touch()
    waiting = list(run_notebooks.in_order(paths, known))
    assert waiting == ['long', 'large', 'new', 'small']
    assert run_notebooks.next_of(waiting[1:], ['long'], known, 2.4) == 'new'
    assert run_notebooks.next_of(['large'], ['long'], known, 2.4) is None
    assert run_notebooks.next_of(['large'], [], known, 1.) == 'large' # alone it may always run
