"""The site: what the converter does to a notebook, the reference against the library, the commands of the
how-to pages, and every page in a browser."""
import ast
import base64
import functools
import html
import http.server
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import badges
import course
import docs
import extras
import facts
import live as live_page
import readme
import reference
from examples import Book

PAGES = {page.removesuffix('.ipynb'): ROOT/'nbs'/page for page in course.notebooks()}
MODULES = {page.replace('/', '.'): p for page, p in PAGES.items()
           if '"#| default_exp' in p.read_text(encoding='utf-8')}
SOLUTIONS = [page for page in PAGES if page.startswith('solutions/')]


def source_of(module): return (ROOT/'srdiag'/f'{module.replace(".", "/")}.py').read_text(encoding='utf-8')


def exports_of(module):
    import nbformat
    return docs.symbols_of(nbformat.read(MODULES[module], 4))


# --- reading code -----------------------------------------------------------------------------------------

CELL = '''
LARGEST = 8 # px, the largest side

def enlarge(
    lr:torch.Tensor, # B×C×H×W in [0, 1]
    scale:int=4, # 2 or 4
    *names, # of images
    skip:bool|None=None, # add the small image
) -> torch.Tensor: # B×C×sH×sW
    "Make it large (Eq. 1); DataError if it cannot be"
    if scale == 3: raise ValueError('no')
    return lr # as it was

def _inner(x): return x

class Net(nn.Module):
    "A network"
    def __init__(self,
        n:int, # features
    ): self.n = n

    def forward(self, x): # B×C×H×W → B
        return x

    def plain(self): return 1
'''


def test_a_cell_is_read():
    data, function, net = reference.read_cell(CELL, 7)
    assert (data.name, data.value, data.doc, data.cell) == ('LARGEST', '8', 'px, the largest side', 7)
    assert ([(p.name, p.type, p.default, p.meaning) for p in function.parameters] == [
                ('lr', 'torch.Tensor', None, 'B×C×H×W in [0, 1]'), ('scale', 'int', '4', '2 or 4'),
                ('*names', '', None, 'of images'), ('skip', 'bool | None', 'None', 'add the small image')])
    assert (function.returns == ('torch.Tensor', 'B×C×sH×sW')
            and function.errors == {'DataError', 'ValueError'} and not function.note)
    assert [(p.name, p.meaning) for p in net.parameters] == [('n', 'features')] and net.bases == ['nn.Module']
    assert [(m.name, m.note) for m in net.members] == [('forward', 'B×C×H×W → B')], (
        'methods that say nothing are left out')


def test_a_comment_may_stand_above_what_it_is_about():
    f, limit = reference.read_cell('def f(\n    # px, of the\n    # large image\n    side: int,\n'
                                   '    n=1, # behind wins\n): return n\n\n# in px\nLIMIT = 3')
    assert [p.meaning for p in f.parameters] == ['px, of the large image', 'behind wins']
    assert limit.doc == 'in px'


def test_fields_of_records_are_parameters():
    both = reference.read_cell('@dataclass(frozen=True)\nclass A:\n    x:int # px\n    '
                               'y:list=field(init=False)\nclass B(NamedTuple):\n    z: "A" = None # of A')
    assert ([[(p.name, p.type, p.meaning) for p in s.parameters] for s in both] == [
                    [('x', 'int', 'px')], [('z', 'A', 'of A')]])


def test_text_keeps_its_characters():
    assert reference.escape('F_SR * [0, 1] `a_b`') == r'F\_SR \* \[0, 1\] `a_b`'
    assert (r'`int \| None`' in reference.as_myst(reference.read_cell(
                                                       'def f(\n    a:int|None, # x|y\n): pass')[0],
                                                   lambda t: t))


@pytest.mark.parametrize('module', MODULES)
def test_reference_has_exactly_what_the_module_exports(module):
    listed = next(ast.literal_eval(n.value) for n in ast.parse(source_of(module)).body
                  if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
    names = [s.name for s in exports_of(module)]
    assert sorted(names) == sorted(set(listed)), f'The reference of srdiag.{module} is not its __all__.'


@pytest.mark.parametrize('module', ['sr.mrcnet', 'sr.inference', 'evaluation.image_quality', 'data.splits'])
def test_reference_agrees_with_docments(module):
    from fastcore.docments import docments
    loaded, compared = importlib.import_module(f'srdiag.{module}'), 0
    for s in exports_of(module):
        if s.kind == 'data' or 'NamedTuple' in s.bases or not s.parameters: continue
        theirs = docments(getattr(loaded, s.name), returns=False)
        ours = {p.name.lstrip('*'): p.meaning or None for p in s.parameters}
        assert ours == {k: v for k, v in theirs.items() if k != 'self'}, s.name
        compared += len(ours)
    assert compared > 5


# --- pages ------------------------------------------------------------------------------------------------

@pytest.fixture
def names():
    return docs.Names({'sr.net': reference.read_cell(CELL),
                       'fit': reference.read_cell('def fit(a): pass\ndef LARGEST2(): pass')})


def test_names_become_links(names):
    assert names.link('a `Net` and `Net.forward()`') == (
        'a {py:obj}`Net <srdiag.sr.net.Net>` and {py:obj}`Net.forward() <srdiag.sr.net.Net.forward>`')
    # plain words mean the page's own functions only
    assert names.link('`fit`') == '`fit`' and names.link('`fit`', 'fit') == '{py:obj}`fit <srdiag.fit.fit>`'
    for kept in ('# A `Net`', '```python\n`Net`\n```', '[`Net`](x.md)', '`Net.nothing`', '`unknown`',
                 '{py:obj}`Net`'):
        assert names.link(kept) == kept


@pytest.mark.parametrize('page, link, moved', [
    ('nbs/index.ipynb', '../results/run', 'results/run/index.md'),
    ('nbs/index.ipynb', '../results/README.md', 'results/index.md'),
    ('nbs/index.ipynb', '../CITATION.cff', 'CITATION.cff'),
    ('nbs/index.ipynb', '../CONTRIBUTING.md', 'project/contributing.md'),
    ('nbs/index.ipynb', 'README.md', 'course/index.md'),
    ('nbs/index.ipynb', 'sr/x.ipynb#part', 'sr/x.ipynb#part'),
    ('nbs/index.ipynb', 'https://a.b', 'https://a.b'),
    ('nbs/sr/y.ipynb', '../../results/run/gains.csv', '../results/run/gains.csv'),
    ('nbs/sr/y.ipynb', '../x.ipynb', '../x.ipynb'),
    ('results/README.md', 'sr/README.md', 'sr/index.md'),
    ('results/README.md', '../nbs/paper.ipynb', '../paper.ipynb'),
    ('results/sr/README.md', 'run/README.md', 'run/index.md'),
    ('CONTRIBUTING.md', 'nbs/howto/deploy.ipynb', '../howto/deploy.ipynb')])
def test_links_lead_to_the_same_thing_on_the_site(page, link, moved):
    assert docs.relink(f'see [a `b`]({link}).', page) == f'see [a `b`]({moved}).'


def test_a_link_to_what_the_site_has_not_becomes_text_or_an_address(monkeypatch):
    text = 'see [the Makefile](../Makefile)'
    assert docs.relink(text, 'nbs/index.ipynb') == 'see the Makefile'
    known = dict(git_url='https://example.org/o/r', doc_url='', branch='main')
    monkeypatch.setattr(docs, 'facts', lambda: known)
    address = 'https://example.org/o/r/tree/main/Makefile'
    assert docs.relink(text, 'nbs/index.ipynb') == f'see [the Makefile]({address})'


def test_links_of_the_first_page_are_absolute_once_the_project_has_an_address():
    text = ('![p](images/p.png) [s](start.ipynb) [r](../results/README.md#speed) [c](https://a.b) '
            '[l](../CITATION.cff)')
    nowhere = dict(git_url='', doc_url='', branch='main')
    assert readme.relink(text, nowhere) == ('![p](nbs/images/p.png) [s](nbs/start.ipynb) '
                                            '[r](results/README.md#speed) [c](https://a.b) [l](CITATION.cff)')
    git = nowhere | dict(git_url='https://example.org/o/r')
    assert readme.relink(text, git).split() == [
        '![p](https://example.org/o/r/raw/main/nbs/images/p.png)',
        '[s](https://example.org/o/r/blob/main/nbs/start.ipynb)',
        '[r](https://example.org/o/r/blob/main/results/README.md#speed)', '[c](https://a.b)',
        '[l](https://example.org/o/r/blob/main/CITATION.cff)']
    both = git | dict(doc_url='https://example.org/site')
    assert '[s](https://example.org/site/start.html)' in readme.relink(text, both)
    assert facts.repository(git) == 'o/r' and facts.repository(nowhere) is None


def test_a_notebook_is_converted(names):
    shown = [new_output('stream', text='1\n')]
    nb = new_notebook(cells=[new_code_cell('#| default_exp sr.net'),
                             new_markdown_cell('# Title\n\n> What it is about.'),
                             new_markdown_cell('A `Net`.\n\n> said'),
                             new_code_cell('#| export\nclass Net: pass'),
                             new_code_cell('#| hide\nassert True'),
                             new_code_cell('#| echo: false\nprint(1)', outputs=shown),
                             new_code_cell('print(1)', outputs=shown)])
    cells = docs.convert(nb, 'sr/net.ipynb', names).cells
    assert ([c.source for c in cells] == ['# Title\n\n{.lead}\nWhat it is about.',
                                          'A {py:obj}`Net <srdiag.sr.net.Net>`.\n\n> said',
                                          '(source-sr.net-3)=', 'class Net: pass', 'print(1)', 'print(1)'])
    assert [c.metadata.tags for c in cells if c.cell_type == 'code'] == [['exported'], ['remove-input'], []]
    assert cells[-1].outputs == shown


def test_an_unknown_directive_is_an_error():
    with pytest.raises(ValueError, match='column'): docs.directives_of('#| column: margin\n1')


PARTS = [dict(part='the way in', within='course', folder='.', pages=['start']),
         dict(chapter=1, part='data', folder='data', pages=['data/a']),
         dict(part='use', within='workshop', folder='use', pages=['use/x', 'data/c']),
         dict(part='how to', within='how-to', folder='howto', pages=[])]


def test_the_course_has_each_notebook_once():
    pages = ['index.ipynb', 'start.ipynb', 'paper.ipynb', 'data/a.ipynb', 'data/b.ipynb', 'data/c.ipynb',
             'use/x.ipynb', 'howto/h.ipynb', 'solutions/use/x.ipynb']
    assert course.course_of(PARTS, pages) == {
        'the way in': ['start.ipynb', 'paper.ipynb'], '1. data': ['data/a.ipynb', 'data/b.ipynb'],
        'use': ['use/x.ipynb', 'data/c.ipynb'], 'how to': ['howto/h.ipynb']}


def test_a_notebook_without_a_place_and_a_place_without_a_notebook_are_said():
    there = ['start.ipynb', 'data/a.ipynb', 'data/c.ipynb', 'use/x.ipynb']
    with pytest.raises(ValueError, match='use/x.ipynb, which does not exist'):
        course.course_of(PARTS, there[:3])
    with pytest.raises(ValueError, match='no part with the folder of attic/y.ipynb'):
        course.course_of(PARTS, [*there, 'attic/y.ipynb'])


def test_solutions_stand_last_and_apart():
    parts = {'data': ['data/a.ipynb'], 'use': ['x.ipynb']}
    page = docs.solutions_page(parts, {p: (p.upper(), '') for p in ['data/a.ipynb', 'x.ipynb',
                                                                    'solutions/x.ipynb']})
    assert '**Use:** [X.IPYNB](../solutions/x.ipynb)' in page and 'Data' not in page
    assert '\nX.IPYNB <../solutions/x>\n' in page


def test_solutions_know_the_names_of_their_notebook():
    names = docs.Names({'fit': reference.read_cell('def fit(a): pass')})
    nb = new_notebook(cells=[new_markdown_cell('# Solutions: Fit\n\n> All.'), new_markdown_cell('`fit`')])
    assert docs.convert(nb, 'solutions/fit.ipynb', names).cells[1].source == '{py:obj}`fit <srdiag.fit.fit>`'


def test_tables_of_results(tmp_path):
    (tmp_path/'long.csv').write_text('a,b\n' + '1.23456789,x|y\n'*3, encoding='utf-8')
    assert docs.csv_table(tmp_path/'long.csv').splitlines()[3] == r'| 1.235 | x\|y |'
    (tmp_path/'wide.csv').write_text(','.join('abcdefghij') + '\n' + ','.join('0123456789') + '\n',
                                     encoding='utf-8')
    assert (docs.csv_table(tmp_path/'wide.csv').splitlines()[1:4] == [
                '| a | 0 |', '| --- | --- |', '| b | 1 |'])
    (tmp_path/'huge.csv').write_text('a\n' + '1\n'*100, encoding='utf-8')
    assert docs.csv_table(tmp_path/'huge.csv') == ''


# --- the how-to notebooks ---------------------------------------------------------------------------------

def prose_of(page):
    import nbformat
    return '\n\n'.join(c.source for c in nbformat.read(PAGES[page], 4).cells if c.cell_type == 'markdown')


HOWTO = [page for page in PAGES if page.startswith('howto/')]


@pytest.mark.parametrize('page', HOWTO)
def test_commands_that_a_howto_shows_exist(page):
    "What the notebooks run is tested by running them; this is what stands in their text"
    from srdiag.commands.cli import parse
    text, shown = prose_of(page), []
    for block in re.findall(r'^```bash\n(.*?)^```', text, flags=re.M | re.S):
        shown += re.findall(r'\bsrdiag ([a-z].*?)(?= 2?> | +#|$)', block, flags=re.M)
    shown += re.findall(r'`srdiag ([a-z][^`]* --data [^`]*)`', text) # an option alone is not a command
    for command in shown:
        if '...' not in command: parse(shlex.split(re.sub(r'\$\w+', '1', command)))
    if page in ('howto/reproducing_table', 'howto/several_gpus', 'howto/deploy'): assert shown


def test_reading_results_explains_every_file_and_column(tmp_path, succeeds, labelled, models):
    succeeds('evaluate', '--model', models.diagnosis, '--data', labelled, '--out', tmp_path/'evaluation')
    text = prose_of('howto/reading_results')
    files = [p.name for p in (tmp_path/'evaluation').iterdir() if not p.name.startswith('.')]
    table = (tmp_path/'evaluation'/'predictions.csv').read_text(encoding='utf-8').splitlines()[0]
    columns = [re.sub('^(ens|sr|lr|aux|calibrated)_.*$', r'\1_…', name) for name in table.split(',')]
    missing = [name for name in [*files, *columns] if f'`{name}`' not in text]
    assert files and columns and not missing, f'reading_results does not explain {missing}.'


@pytest.mark.parametrize('page', [f'{page}.ipynb' for page in ['start', *HOWTO]])
def test_badges_come_and_go(page):
    import nbformat
    assert page in badges.pages()
    nb = nbformat.read(PAGES[page.removesuffix('.ipynb')], 4)
    badges.mark(nb, page, None)
    plain = nbformat.writes(nb)
    badges.mark(nb, page, 'owner/repo')
    once = nbformat.writes(nb)
    badges.mark(nb, page, 'owner/repo')
    assert nbformat.writes(nb) == once != plain
    assert f'(https://colab.research.google.com/github/owner/repo/blob/main/nbs/{page})' in nb.cells[0].source
    assert (f'%cd -q repo/{Path("nbs", page).parent.as_posix()}' in nb.cells[1].source
            and 'google.colab' in nb.cells[1].source)
    badges.mark(nb, page, None)
    assert nbformat.writes(nb) == plain
    with pytest.raises(ValueError): badges.mark(nb, page, 'https://somewhere')


def test_binder_installs_the_tested_versions():
    lines = (ROOT/'binder'/'requirements.txt').read_text(encoding='utf-8').splitlines()
    assert '-c ../constraints.txt' in lines and '.[notebooks]' in lines


# --- the site ---------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built as `make docs` builds it, with warnings as errors"
    root = tmp_path_factory.mktemp('site')
    done = subprocess.run([sys.executable, ROOT/'tools'/'docs.py', '--out', root/'html', '--work',
                           root/'work'], capture_output=True, text=True)
    assert done.returncode == 0, f'The site cannot be built:\n{done.stdout}\n{done.stderr}'
    return root/'html'


def pages_of(site):
    names = sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html'))
    return [name for name in names if not name.startswith('_')]


def test_every_notebook_and_module_has_a_page(site):
    pages = set(pages_of(site))
    assert {f'{page}.html' for page in PAGES} <= pages
    # what only registers tasks has no name to refer to
    assert {f'reference/{m}.html' for m in MODULES if exports_of(m)} <= pages
    assert {f'{name}.html' for name in (*SOLUTIONS, 'course/solutions')} <= pages
    assert {f'results/{p.parent.name}/index.html' for p in (ROOT/'results').glob('*/README.md')} <= pages
    assert {'results/index.html', 'course/index.html', 'project/contributing.html'} <= pages


def test_no_page_loads_anything_from_elsewhere(site):
    for page in pages_of(site):
        text = (site/page).read_text(encoding='utf-8')
        found = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//[^"]*"'
                           r'|<link\b[^>]*\bhref="(?:https?:)?//[^"]*"', text)
        assert not found, f'{page} loads {found[0]}'


@pytest.fixture(scope='module')
def browser(request, chromium):
    "Chromium, and a server that shows the site"
    site = request.getfixturevalue('site') # not built in vain

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(open=chromium.new_context, base=f'http://127.0.0.1:{server.server_port}/')
    server.shutdown()


@pytest.fixture
def watched(browser):
    "A function: options of a context → a page, and the list of what went wrong on it"
    contexts = []
    def watched(**options):
        context, trouble = browser.open(**options), []
        contexts.append(context)
        page = context.new_page()
        (page.on('console',
                 lambda m: trouble.append(f'{page.url} says {m.text}') if m.type == 'error' else None))
        page.on('pageerror', lambda e: trouble.append(f'{page.url} fails: {e}'))
        page.on('request', lambda r: None if r.url.startswith(
                    (browser.base, 'data:', 'blob:')) else trouble.append(f'{page.url} asks for {r.url}'))
        (page.on('response',
                 lambda r: trouble.append(f'{page.url} lacks {r.url}') if r.status >= 400 else None))
        return page, trouble
    yield watched
    for context in contexts: context.close()


FACTS = '''() => ({
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    maths: document.querySelectorAll('.math').length,
    drawn: document.querySelectorAll('.math mjx-container').length,
    wrong: [...document.querySelectorAll('mjx-merror')].map(e => e.getAttribute('title') || e.textContent),
    raw: [...document.querySelectorAll('article p, article li, article td')].map(e => {
        e = e.cloneNode(true)
        e.querySelectorAll('code, pre').forEach(c => c.remove())
        return e.textContent
    }).filter(t => /\\$\\$|\\{py:obj\\}|\\{ref\\}|\\]\\(|#\\| |\\|---/.test(t)),
})'''


def test_every_page_in_a_browser_without_network(site, browser, watched):
    page, trouble = watched(viewport=dict(width=1300, height=900))
    pages, facts = pages_of(site), {}
    for name in pages:
        page.set_viewport_size(dict(width=1300, height=900))
        page.goto(browser.base + name)
        if page.locator('.math').count(): page.evaluate('() => MathJax.startup.promise')
        f = facts[name] = page.evaluate(FACTS)
        if f['wrong']: trouble.append(f'{name}: MathJax does not understand {f["wrong"]}')
        if f['drawn'] < f['maths']:
            trouble.append(f'{name}: {f["maths"] - f["drawn"]} of {f["maths"]} equations are not drawn')
        if f['raw'] and name != 'search.html': trouble.append(f'{name} shows markup: {f["raw"][0][:200]!r}')
        page.set_viewport_size(dict(width=400, height=800))
        width = page.evaluate('() => document.documentElement.scrollWidth')
        if width > 400: trouble.append(f'{name} is {width} px wide on a screen of 400')
    assert sum(f['maths'] for f in facts.values()) > 100
    for name, f in facts.items():
        for link in {link for link in f['links'] if link.startswith(browser.base)}:
            target, fragment = urldefrag(link.removeprefix(browser.base))
            target = target.partition('?')[0] or 'index.html'
            if not (site/unquote(target)).is_file():
                trouble.append(f'{name} links to {target}, which does not exist')
            elif fragment and target in facts and unquote(fragment) not in facts[target]['ids']:
                trouble.append(f'{name} links to {target}#{fragment}, which does not exist')
    assert not trouble, '\n'.join(trouble)


def test_search_finds_a_class(browser, watched):
    page, trouble = watched()
    page.goto(browser.base + 'index.html')
    page.fill('input[name=q]', 'SampleAffinityInteraction')
    page.press('input[name=q]', 'Enter')
    first = page.locator('ul.search li a').first
    first.wait_for()
    assert first.inner_text() == 'srdiag.diagnosis.sai.SampleAffinityInteraction'
    first.click()
    assert (page.url.split('?')[0].endswith('reference/diagnosis.sai.html')
            or '#srdiag.diagnosis.sai.SampleAffinityInteraction' in page.url)
    assert page.locator('[id="srdiag.diagnosis.sai.SampleAffinityInteraction"]').is_visible()
    assert not trouble, '\n'.join(trouble)


CONTRAST = '''() => {
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
    const rgba = c => {
        paint.clearRect(0, 0, 1, 1)
        paint.fillStyle = c
        paint.fillRect(0, 0, 1, 1)
        return [...paint.getImageData(0, 0, 1, 1).data]
    }
    const linear = v => v <= 0.03928 ? v/12.92 : ((v + 0.055)/1.055)**2.4
    const weights = [0.2126, 0.7152, 0.0722]
    const light = c => c.slice(0, 3).map(v => linear(v/255)).reduce((s, v, k) => s + v*weights[k], 0)
    const behind = e => {
        for (; e; e = e.parentElement) {
            const c = rgba(getComputedStyle(e).backgroundColor)
            if (c[3] > 250) return c
        }
        return [255, 255, 255, 255]
    }
    const kinds = ['p', 'li', 'h1', 'h2', 'pre', 'pre span', 'td', 'th', 'dt', 'a', 'code']
    const low = []
    for (const e of document.querySelectorAll(kinds.map(k => `article ${k}`).join(', '))) {
        const words = [...e.childNodes].filter(n => n.nodeType == 3).map(n => n.textContent).join('').trim()
        if (!words || !e.getClientRects().length) continue
        const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))]
        const ratio = (Math.max(a, b) + 0.05)/(Math.min(a, b) + 0.05)
        if (ratio < 3) low.push(`${e.tagName} ${e.className} ${words.slice(0, 40)}: ${ratio.toFixed(2)}`)
    }
    return {low, page: light(behind(document.querySelector('article')))}
}'''


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_stands_out_in_light_and_dark(browser, watched, scheme):
    page, trouble = watched(color_scheme=scheme)
    for name in ('index.html', 'diagnosis/losses.html', 'sr/zoo.html', 'data/labelled.html',
                 'reference/sr.mrcnet.html', 'howto/deploy.html', 'results/bloodsmear/index.html'):
        page.goto(browser.base + name)
        found = page.evaluate(CONTRAST)
        assert (found['page'] < 0.1) == (scheme == 'dark'), f'{name} is not {scheme}'
        if found['low']: trouble.append(f'{name}: text is hard to read: {found["low"][:5]}')
    assert not trouble, '\n'.join(trouble)


# --- what the site says about itself ----------------------------------------------------------------------

def test_each_page_describes_itself_and_no_two_alike(site):
    found = {}
    for page in pages_of(site):
        if page in ('search.html', 'genindex.html', 'py-modindex.html'): continue
        text = (site/page).read_text(encoding='utf-8')
        said = re.findall(r'<meta name="description" content="([^"]*)"', text)
        assert len(said) == 1 and 10 < len(html.unescape(said[0])) <= 160, f'{page} describes itself: {said}.'
        found.setdefault(said[0], []).append(page)
    # a module and its notebook are about the same
    alike = [pages for pages in found.values() if len(pages) > 2]
    assert len(alike) < 5, f'These pages have one description: {alike}.'


ABOUT = dict(git_url='', doc_url='https://example.org/docs', branch='main')


def test_a_site_with_an_address_has_a_map(tmp_path):
    for name in ('index.html', 'sr/mrc.html', '404.html', 'search.html'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text('<html><head></head></html>', encoding='utf-8')
    assert 'doc_url' in extras.sitemap(tmp_path, ABOUT | dict(doc_url=''))
    assert not (tmp_path/'sitemap.xml').exists()
    assert extras.sitemap(tmp_path, ABOUT) == 'sitemap.xml names 2 pages.'
    listed = {e.text for e in ElementTree.parse(tmp_path/'sitemap.xml').findall('.//{*}loc')}
    assert listed == {f'https://example.org/docs/{p}' for p in ('index.html', 'sr/mrc.html')}
    extras.finish_not_found(tmp_path, ABOUT)
    assert '<base href="https://example.org/docs/">' in (tmp_path/'404.html').read_text(encoding='utf-8')


def test_the_site_has_a_page_for_what_there_is_not(site):
    text = (site/'404.html').read_text(encoding='utf-8')
    assert 'There is no such page' in text and 'href="course/index.html"' in text


def test_the_gallery_leads_to_the_code_of_its_figures(site):
    text = (site/'gallery.html').read_text(encoding='utf-8')
    links = re.findall(r'href="([\w/-]+\.html#figure-[\w-]+)"', text)
    assert len(set(links)) > 50 and len(re.findall(r'<img alt="A figure of [^"]+"', text)) == len(set(links))
    for link in set(links):
        page, _, part = link.partition('#')
        assert f'id="{part}"' in (site/page).read_text(encoding='utf-8'), link


# --- the example on a page of the reference ---------------------------------------------------------------

BOOK = [new_code_cell('#| default_exp sr.net'), new_code_cell('#| export\nfrom math import pi\nimport torch'),
        new_code_cell('#| export\ndef _hidden(): pass\nclass Net:\n    def __init__(self, n): self.n = n\n'
                      'class Part: pass'),
        new_code_cell('import sys; size = 3\nsize = 4 # px\nother = 5'), new_code_cell('Part()'),
        new_code_cell('try: Net()\nexcept TypeError as e: print(e)'), new_code_cell('_hidden(), Net(1)'),
        new_code_cell('torch.manual_seed(0)\nnet = Net(size)'), new_code_cell('print(net.n, pi)')]


def example_of(cells):
    return Book(new_notebook(cells=cells), 'sr.net', ['Net', 'Part'], docs.directives_of).example()


def test_an_example_has_all_that_it_needs_and_no_more():
    assert example_of(BOOK).source == ('import torch\nfrom srdiag.sr.net import Net\n\nsize = 4 # px\n\n'
                                       'torch.manual_seed(0)\nnet = Net(size)')
    chosen = example_of([*BOOK, new_markdown_cell('## In use'), new_code_cell('print(net.n, pi)')])
    assert chosen.source == ('import torch\nfrom math import pi\nfrom srdiag.sr.net import Net\n\n'
                             'size = 4 # px\ntorch.manual_seed(0)\nnet = Net(size)\n\nprint(net.n, pi)')
    assert example_of(BOOK[:4]) is None


@functools.cache
def example_on(module):
    import nbformat
    names = [s.name for s in exports_of(module)]
    return Book(nbformat.read(MODULES[module], 4), module, names, docs.directives_of).example()


def test_nearly_every_page_of_the_reference_begins_with_an_example(site):
    from pyflakes import checker
    found = {m: example_on(m) for m in MODULES if example_on(m)}
    assert len(found) > 0.95*len(MODULES), sorted(set(MODULES) - set(found))
    for module, example in found.items():
        said = [m.message % m.message_args for m in checker.Checker(ast.parse(example.source)).messages]
        assert not said, f'The example of srdiag.{module}: {said}'
        text = (site/'reference'/f'{module}.html').read_text(encoding='utf-8')
        assert 0 < text.index('>In use<') < text.index('<dl class="py')
    assert 'MRCNet(' in found['sr.mrcnet'].source.split('Head(')[0]


@pytest.mark.parametrize('module', ['sr.mrcnet', 'sr.zoo', 'sr.inference', 'data.images', 'data.degradation',
                                    'diagnosis.losses', 'evaluation.image_quality', 'evaluation.diagnostic'])
def test_an_example_gives_what_the_page_shows(module, tmp_path, monkeypatch, capsys):
    example = example_on(module)
    monkeypatch.chdir(tmp_path)
    exec(compile(example.source, module, 'exec'), {})
    shown = ''.join(o.text for o in example.outputs if o.output_type == 'stream')
    def words(text): return re.sub(r'\d+\.\d+(e-?\d+)?', '#', text).split() # machines round differently
    assert words(capsys.readouterr().out) == words(shown)


# --- finding ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('word', ['backbone', 'timm', 'imagenet', 'fine-tune', 'dicom', 'onnx', 'tensorboard',
                                  'grayscale'])
def test_search_finds_the_words_of_others(site, browser, watched, word):
    "The first results lead to the page that docs/words.yml names, and the word stands there"
    home = {k.lower(): page for k, page in extras.read_words().items()}[word]
    page, trouble = watched()
    page.goto(f'{browser.base}search.html?q={word}')
    page.get_by_text(re.compile('Search finished|did not match')).wait_for()
    links = page.eval_on_selector_all('ul.search li a', 'all => all.map(a => a.href)')[:5]
    assert any(link.removeprefix(browser.base).startswith(f'{home}.html') for link in links), links
    text = re.sub(r'<[^>]+>', ' ', (site/f'{home}.html').read_text(encoding='utf-8'))
    assert re.search(rf'\b{re.escape(word)}\b', text, flags=re.I) and not trouble


def test_words_of_others_lead_to_pages_that_exist():
    words = extras.read_words()
    assert {*words.values()} <= {*PAGES}
    assert extras.also('a', dict(x='a', y='b', z='a')).endswith('Also looked for as: x, z.')
    assert extras.also('c', dict(x='a')) == ''


# --- reading on a screen ----------------------------------------------------------------------------------

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_comments_in_code_can_be_read(browser, watched, scheme):
    page, trouble = watched(color_scheme=scheme, viewport=dict(width=1280, height=900))
    weak = CONTRAST.replace('ratio < 3', "ratio < 4.5 && /^c\\d?$|^sd$/.test(e.className)")
    for name in ('data/images.html', 'sr/mrcnet.html', 'howto/deploy.html', 'reference/sr.zoo.html'):
        page.goto(browser.base + name)
        low = page.evaluate(weak)['low']
        cut = page.evaluate('() => [...document.querySelectorAll(".cell_input pre")]'
                            '.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)')
        if low or cut: trouble.append(f'{name}: {low} {cut}')
    assert not trouble, '\n'.join(trouble)


TABLES = '''() => [...document.querySelectorAll('article table')].map(t => {
    let box = t.parentElement
    while (box && !['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) box = box.parentElement
    const first = t.rows[t.rows.length - 1]?.cells[0]
    return {wide: t.getBoundingClientRect().width, scrolls: box ? box.clientWidth : 0,
            stays: first ? getComputedStyle(first).position == 'sticky' : true,
            first: first ? first.getBoundingClientRect().width : 0}
}).filter(t => t.wide > 380 && (!t.scrolls || t.scrolls > 400 || !t.stays || t.first > 200))'''


def test_tables_can_be_used_on_a_small_screen(browser, watched):
    "What is wider than the screen scrolls in its own box, under a first column that stays"
    page, trouble = watched(viewport=dict(width=400, height=800))
    for name in ('results/index.html', 'results/bloodsmear/index.html', 'reference/models.apply.html',
                 'reference/index.html', 'sr/zoo.html', 'words.html', 'diagnosis/network.html'):
        page.goto(browser.base + name)
        trouble += [f'{name}: {t}' for t in page.evaluate(TABLES)]
    assert not trouble, '\n'.join(trouble)


# --- the live page ----------------------------------------------------------------------------------------

@pytest.fixture
def live(site, browser, watched):
    "A function: options of a context → the live page, ready, and the list of what went wrong on it"
    if why := json.loads((site/'_static'/'live'/'live.json').read_text(encoding='utf-8'))['missing']:
        pytest.skip(f'The live page shows a picture only: {why}.')
    def open_(**options):
        page, trouble = watched(**options)
        page.goto(f'{browser.base}live.html')
        page.locator('#live button[data-model]').first.wait_for()
        return page, trouble
    return open_


def status_of(page): return page.locator('#live [role=status]').inner_text()


def enlarged(page, act):
    "What the page shows after `act`: PIL images of the bicubic enlargement and of MRC-Net's"
    before = page.evaluate('() => document.getElementById("live").dataset.done || 0')
    act()
    page.wait_for_function('n => (document.getElementById("live").dataset.done || 0) != n '
                           '|| document.querySelector("#live .wrong")', arg=before, timeout=120_000)
    urls = page.eval_on_selector_all('#live canvas', 'all => all.map(c => c.toDataURL())')
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2]))).convert('RGB') for url in urls]


def furthest(shown, ours): # grey levels
    theirs = np.asarray(ours.convert('RGB'), dtype=int)
    assert shown.size == ours.size
    return abs(np.asarray(shown, dtype=int) - theirs).max()


def python_says(path, model): # PIL images: bicubic, MRC-Net
    import torch

    import srdiag
    from srdiag.data.images import as_float, read_image, to_uint8
    torch.set_num_threads(1)
    large = srdiag.enlarge(path, model, precision='fp32')
    small = srdiag.upsample(as_float(read_image(path)), 2 if model.endswith('2') else 4, clip=True)
    plain = to_uint8(small).permute(1, 2, 0).numpy()
    return Image.fromarray(plain[..., 0] if plain.shape[2] == 1 else plain), large


@pytest.mark.parametrize('name, model', [('tissue', 'histology_x2'), ('retina', 'endoscopy_x4'),
                                         ('microaneurysms', 'histology_x2')])
def test_a_sample_is_enlarged_in_the_browser_as_in_python(site, live, name, model):
    page, trouble = live()
    button = page.locator(f'#live button:has(img[src$="{name}.png"])')
    pictures = enlarged(page, lambda: (button.focus(), page.keyboard.press('Enter')))
    expected = python_says(site/'_static'/'live'/f'{name}.png', model)
    assert [furthest(a, b) <= 1 for a, b in zip(pictures, expected)] == [True, True]
    assert 'became' in status_of(page) and not page.locator('[data-live-static]').is_visible()
    assert not trouble, '\n'.join(trouble)


def odd_image(folder, kind):
    "A file of 43×59 px: a photograph that lies on its side, grey, or transparent"
    from skimage import data
    x = Image.fromarray(data.immunohistochemistry()[200:243, 100:159])
    if kind == 'grey.png': x.convert('L').save(folder/kind)
    elif kind == 'clear.png': (x.putalpha(Image.linear_gradient('L').resize(x.size)), x.save(folder/kind))
    else:
        exif = Image.Exif()
        exif[274] = 6 # to be turned by a right angle
        x.save(folder/kind, exif=exif, quality=95, subsampling=0)
    return folder/kind


@pytest.mark.parametrize('kind, apart', [('turned.jpg', 1), ('grey.png', 1), ('clear.png', 3)])
def test_an_own_image_of_odd_size_is_enlarged_as_in_python(live, tmp_path, kind, apart):
    path = odd_image(tmp_path, kind)
    page, trouble = live()
    page.locator('#live input[value=endoscopy_x4]').check()
    pictures = enlarged(page, lambda: page.set_input_files('#live-file', path))
    expected = python_says(path, 'endoscopy_x4')
    assert expected[1].size == ((172, 236) if kind == 'turned.jpg' else (236, 172))
    apart_by = [furthest(a, b) for a, b in zip(pictures, expected)]
    assert max(apart_by) <= apart, apart_by
    assert not trouble, '\n'.join(trouble)


def test_what_cannot_be_enlarged_gives_a_sentence(live, tmp_path):
    page, trouble = live()
    broken = dict(name='scan.png', mimeType='image/png', buffer=b'\x89PNG\r\n\x1a\nno more')
    buffer = io.BytesIO()
    Image.new('RGB', (5, 40)).save(buffer, 'PNG')
    tiny = dict(name='tiny.png', mimeType='image/png', buffer=buffer.getvalue())
    for file, said in ((broken, 'scan.png cannot be read: it is damaged'),
                       (tiny, 'tiny.png has 5×40 px, but the network needs at least 8 px')):
        page.set_input_files('#live-file', file)
        page.locator('#live .wrong').filter(has_text=said).wait_for()
        assert page.locator('[data-live-static]').is_visible()
    assert not trouble, '\n'.join(trouble)


def test_of_a_large_image_the_middle_is_enlarged(live, tmp_path):
    from skimage import data
    x = Image.fromarray(data.immunohistochemistry()[:301, :40])
    x.save(tmp_path/'long.png')
    x.crop((0, 22, 40, 278)).save(tmp_path/'middle.png')
    page, trouble = live()
    pictures = enlarged(page, lambda: page.set_input_files('#live-file', tmp_path/'long.png'))
    expected = python_says(tmp_path/'middle.png', 'histology_x2')
    assert max(furthest(a, b) for a, b in zip(pictures, expected)) <= 1
    assert 'Of 40×301 px this is the middle, 40×256 px.' in status_of(page) and not trouble


def test_the_live_page_works_by_keyboard_in_the_dark_on_a_small_screen(live):
    page, trouble = live(viewport=dict(width=400, height=800), color_scheme='dark')
    button = page.locator('#live button[data-model]').nth(2)
    enlarged(page, lambda: (button.focus(), page.keyboard.press('Space')))
    slider = page.get_by_label('How much of the width is bicubic')
    slider.focus()
    for _ in range(3): page.keyboard.press('ArrowRight')
    assert slider.get_attribute('aria-valuetext') == '53 % bicubic on the left, the rest MRC-Net'
    assert page.locator('#live .compare').evaluate('e => e.style.getPropertyValue("--share")') == '53%'
    assert page.get_by_role('img', name='Enlargement by MRC-Net of Grey retina, 204×204 px').is_visible()
    with page.expect_download() as saved: page.get_by_text('Save the image').press('Enter')
    assert saved.value.suggested_filename == 'Grey retina_histology_x2.png'
    assert page.evaluate('() => document.documentElement.scrollWidth') <= 400
    found = page.evaluate(CONTRAST.replace("['p',", "['label', 'legend', 'button', '[role=status]', 'p',"))
    assert found['page'] < 0.1 and not found['low'] and not trouble, (found, trouble)


@pytest.mark.parametrize('name', ['cell', 'cell_dark'])
def test_the_browser_says_of_a_red_cell_what_python_says(site, live, name):
    import srdiag
    page, trouble = live()
    button = page.locator(f'#live-cells button:has(img[src$="{name}.png"])')
    button.focus()
    page.keyboard.press('Enter')
    page.wait_for_function('() => document.getElementById("live-cells").dataset.done', timeout=120_000)
    shown = json.loads(page.locator('#live-cells').get_attribute('data-done'))[1:]
    says = srdiag.diagnose(site/'_static'/'live'/f'{name}.png', 'redcells_x4')
    assert says.calibrated and np.allclose(shown, [*says.probabilities.values()], atol=1e-3)
    status = page.locator('#live-cells [role=status]').inner_text()
    assert f'Decision: {says.decision}. Not for diagnostic use.' in status
    assert f'parasitized {shown[0]:.2f}, uninfected {shown[1]:.2f} (calibrated)' in status
    assert 'calibration error of 893 cells' in page.locator('[data-live=cell-note]').inner_text()
    page.set_input_files('#live-cell-file', dict(name='c.png', mimeType='image/png', buffer=b'no'))
    page.locator('#live-cells .wrong').filter(has_text='c.png cannot be read').wait_for()
    assert page.locator('#live-cells [data-live="cell-result"]').is_hidden() # it was another picture's
    assert not trouble, '\n'.join(trouble)


def test_without_a_runtime_the_page_says_how_and_shows_a_picture(browser, watched):
    page, trouble = watched()
    page.route('**/live.json', lambda route: route.fulfill(
        json=dict(runtime='', missing='npm was not there: install Node.js and build the site again')))
    page.goto(f'{browser.base}live.html')
    page.locator('#live [role=status]').filter(has_text='npm was not there').wait_for()
    assert page.locator('[data-live-static] img').is_visible()
    assert not page.locator('#live button[data-model]').first.is_visible() and not trouble


def test_what_is_missing_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(live_page.shutil, 'which', lambda name: None)
    assert live_page.fill(tmp_path/'live', tmp_path/'cache').startswith('npm was not there')
    facts = json.loads((tmp_path/'live'/'live.json').read_text(encoding='utf-8'))
    assert facts['missing'].endswith('build the site again') and (tmp_path/'live'/'live.js').is_file()
    monkeypatch.setattr(live_page, 'find_spec', lambda name: None)
    with pytest.raises(live_page.Missing, match=r'pip install "srdiag\[onnx\]"'): live_page.graphs(tmp_path)
