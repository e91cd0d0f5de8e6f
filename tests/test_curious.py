"""A curious change must not be punished. Somebody changes a number in a cell and runs the page to its end: it
must get there, or stop with a sentence that says what usually holds and what to try, never with a bare
AssertionError or an exception from deep inside."""

import contextlib
import io
import json
import os
import re
import warnings
from pathlib import Path

import pytest

from srdiag.core.errors import SrdiagError

NBS = Path(__file__).parents[1] / 'nbs'
WORDS = 6  # of a message, at least

CHANGES = [  # what it is, page, old text, new text
    ('scale 3', 'data/degradation', 'scale = 4\n', 'scale = 3\n'),
    ('fewer steps', 'sr/layers', 'steps=120', 'steps=20'),
    ('scale 4', 'sr/layers', 'def __init__(self, n=12, scale=2)', 'def __init__(self, n=12, scale=4)'),
    ('another seed', 'sr/convlstm', 'torch.manual_seed(0)\nimage', 'torch.manual_seed(7)\nimage'),
    ('ten recursions', 'sr/convlstm', '(right, net.scale)[None], 6', '(right, net.scale)[None], 10'),
    ('two epochs', 'training/loop', 'epochs = 8\n', 'epochs = 2\n'),
    (
        'a batch of three',
        'diagnosis/losses',
        'torch.rand(8, 1, 16, 16), torch.arange(8)%3',
        'torch.rand(3, 1, 16, 16), torch.arange(3)%3',
    ),
    ('T = 10', 'diagnosis/losses', 'DiagnosisLoss()\nout', 'DiagnosisLoss(temperature=10.)\nout'),
    ('a margin of 0.2', 'diagnosis/losses', '0.60, 0.05', '0.60, 0.2'),
    (
        'a softmax in the gate',
        'diagnosis/gate',
        '[[*scores.values()]]).tanh().clamp(min=0)',
        '[[*scores.values()]]).softmax(1)',
    ),
    ('all heads shut', 'diagnosis/gate', 'sr=1.5, lr=0.3, aux=-0.8', 'sr=-1.5, lr=-0.3, aux=-0.8'),
    (
        'three patients',
        'diagnosis/sai',
        'torch.randn(6, 8, 12, 12), torch.randn(6, 8, 3, 3)',
        'torch.randn(3, 8, 12, 12), torch.randn(3, 8, 3, 3)',
    ),
    ('other sizes', 'sr/rcf', 'n, H, W = 6, 5, 7', 'n, H, W = 8, 5, 5'),
    ('B = 3', 'sr/mrc', 'n, x = 8, torch.randn(1, 8, 12, 16)', 'n, x = 8, torch.randn(3, 8, 12, 16)'),
    ('neighbours unlike each other', 'diagnosis/sai', '0.3*torch.randn(32', '3*torch.randn(32'),
]
LONG = [  # the same on pages that train for longer
    ('two short epochs', 'sr/training', 'Schedule(epochs=6, steps=40', 'Schedule(epochs=2, steps=10'),
    ('eight epochs', 'sr/distillation', 'Schedule(epochs=4, steps=20', 'Schedule(epochs=8, steps=10'),
    ('eight epochs', 'diagnosis/training', 'epochs=6, loss=loss', 'epochs=8, loss=loss'),
]


def cells(page):
    notebook = json.loads((NBS / f'{page}.ipynb').read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and not re.search(r'^#\| *eval: *false', source, flags=re.M):
            yield source


@contextlib.contextmanager
def at_home(page):  # in the folder of the page, with everything that it switches on switched off again
    import matplotlib.pyplot as plt
    import torch

    before, threads = os.getcwd(), torch.get_num_threads()
    os.chdir((NBS / page).parent)
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
        plt.close('all')


def run(page, old, new):  # → the exception with which the page stopped, its cell, or None
    sources = list(cells(page))
    names, changed = {'__name__': '__main__'}, False
    with at_home(page):
        for source in sources:
            if not changed and old in source:
                source, changed = source.replace(old, new), True
            try:
                exec(compile(source, page, 'exec'), names)
            except Exception as e:
                assert changed, f'{page} fails before the change: {e!r} in {source[:200]}'
                return e, source
    return None


def is_a_sentence(error):
    if not isinstance(error, (AssertionError, SrdiagError)):
        return False
    return len(str(error).split()) >= WORDS


@pytest.mark.parametrize(
    'what, page, old, new',
    [*CHANGES, *(pytest.param(*change, marks=pytest.mark.nightly) for change in LONG)],
    ids=[f'{what} in {page}' for what, page, *_ in CHANGES + LONG],
)
def test_a_curious_change_is_not_punished(what, page, old, new):
    stopped = run(page, old, new)
    if stopped is not None:
        error, source = stopped
        assert is_a_sentence(error), f'{page}, {what}: {type(error).__name__}: {error}\nin the cell\n{source}'


def test_twelve_changes_and_each_still_finds_its_place():
    assert len({change[1:] for change in CHANGES}) == len(CHANGES) >= 12
    for what, page, old, _ in CHANGES + LONG:
        assert any(old in source for source in cells(page)), f'{page} no longer has {old!r} ({what}).'
