"""Sliders where they belong: chapters that link to a page of sliders, and one of these pages in JupyterLab,
in a browser."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import free_port

ROOT = Path(__file__).parents[1]
NBS = ROOT / 'nbs'
EXPLORERS = {
    'sr/convlstm': 'explore_sr',
    'sr/rcf': 'explore_sr',
    'diagnosis/sai': 'explore_diagnosis',
    'diagnosis/gate': 'explore_diagnosis',
    'data/degradation': 'explore_sr',
}
TOKEN = 'only-for-this-test'


@pytest.mark.parametrize('page', EXPLORERS)
def test_the_chapter_links_to_its_sliders(page):
    cells = json.loads((NBS / f'{page}.ipynb').read_text(encoding='utf-8'))['cells']
    prose = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    links = re.findall(r'\]\(([^)]*explore_\w+\.ipynb)', prose)
    wanted = NBS / 'show' / f'{EXPLORERS[page]}.ipynb'
    assert wanted in [(NBS / page).parent.joinpath(link).resolve() for link in links], (
        f'{page} has no link to {wanted.name}, where its sliders are.'
    )


# --- in JupyterLab ----------------------------------------------------------------------------------------


def of_one_explorer(target):  # the page without what trains: imports, exported cells, those of `attention`
    nb = nbformat.read(NBS / 'show' / 'explore_sr.ipynb', as_version=4)
    live = '#| eval: false\nattention.live()'
    starts = ('import ', 'from ', 'histology =', 'attention =', live, '#| export')
    cells = [c for c in nb.cells if c.cell_type == 'code' and c.source.startswith(starts)]
    for cell in cells:
        cell.outputs = []
    first = next(k for k, c in enumerate(cells) if c.source.startswith('histology ='))
    cells.insert(first, nbformat.v4.new_code_cell('image = as_float(tissue())'))
    nb.cells = cells[: 1 + max(k for k, c in enumerate(cells) if 'attention.live()' in c.source)]
    nb.metadata.kernelspec = dict(name='python3', display_name='Python 3 (ipykernel)', language='python')
    nbformat.write(nb, target)


@pytest.fixture
def lab(tmp_path):
    "JupyterLab in a folder of its own → its address"
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed: make venv')
    pytest.importorskip('ipywidgets', reason='ipywidgets is not installed: make venv')
    port = free_port()
    own = {f'JUPYTER_{k}_DIR': str(tmp_path / k) for k in ('CONFIG', 'RUNTIME')} | {'HOME': str(tmp_path)}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    options = [
        '--no-browser',
        '--ServerApp.ip=127.0.0.1',
        f'--ServerApp.port={port}',
        f'--IdentityProvider.token={TOKEN}',
        '--ServerApp.allow_root=True',
        f'--ServerApp.root_dir={tmp_path}',
        '--LabApp.news_url=None',
    ]
    log = open(tmp_path / 'lab.log', 'wb')
    server = subprocess.Popen(
        [sys.executable, '-m', 'jupyterlab', *options],
        cwd=tmp_path,
        stdout=log,
        stderr=log,
        env=os.environ | own | dict(PYTHONPATH=paths, OMP_NUM_THREADS='1'),
    )
    base = f'http://127.0.0.1:{port}'
    try:
        for _ in range(400):
            try:
                urllib.request.urlopen(f'{base}/api?token={TOKEN}', timeout=1)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / 'lab.log').read_text()[-2000:]
                time.sleep(0.25)
        yield base
    finally:
        server.terminate()
        server.wait(60)
        log.close()


PICTURE = '.jupyter-widgets img'


def test_a_slider_moves_the_picture_in_jupyterlab(chromium, lab, tmp_path):
    of_one_explorer(tmp_path / 'explore_sr.ipynb')
    page = chromium.new_page(viewport=dict(width=1200, height=1000))
    page.set_default_timeout(90_000)
    page.goto(f'{lab}/lab/tree/explore_sr.ipynb?token={TOKEN}&reset')
    page.locator('.jp-Notebook .jp-CodeCell').first.wait_for()
    page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()  # before that, it asks for a kernel
    page.locator('.lm-MenuBar-item', has_text='Run').click()
    page.locator('.lm-Menu-item', has_text='Run All Cells').first.click()
    slider, picture = page.locator('.noUi-handle').first, page.locator(PICTURE).first
    slider.wait_for(state='attached')
    picture.wait_for(state='attached')
    before = picture.get_attribute('src')
    slider.focus()
    page.keyboard.press('ArrowRight')
    changed = '([selector, before]) => document.querySelector(selector).src != before'
    page.wait_for_function(changed, arg=[PICTURE, before])
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    page.close()
