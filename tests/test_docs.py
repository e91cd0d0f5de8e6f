"""The site: what the converter does to a notebook, the reference against the library, the commands of the
how-to pages, and every page in a browser."""
import ast
import functools
import http.server
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import badges
import course
import docs
import facts
import readme
import reference

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


PARTS = [dict(part='the thread', folder='.', pages=['start']),
         dict(part='data', folder='data', pages=['data/a']),
         dict(part='use', folder='use', pages=['use/x', 'data/c']),
         dict(part='how to', folder='howto', pages=[])]


def test_the_course_has_each_notebook_once():
    pages = ['index.ipynb', 'start.ipynb', 'paper.ipynb', 'data/a.ipynb', 'data/b.ipynb', 'data/c.ipynb',
             'use/x.ipynb', 'howto/h.ipynb', 'solutions/use/x.ipynb']
    assert course.course_of(PARTS, pages) == {
        'the thread': ['start.ipynb', 'paper.ipynb'], 'data': ['data/a.ipynb', 'data/b.ipynb'],
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
    assert {f'reference/{m}.html' for m in MODULES} <= pages
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
def browser(request):
    "Debian's Chromium, which reaches nothing but a server that shows the site"
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not path:
        pytest.skip('there is no Chromium here: apt-get install chromium, to see the pages in a browser')
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: make venv')
    site = request.getfixturevalue('site') # not built in vain

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
             '--disable-background-networking', '--disable-component-update', '--disable-sync',
             '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1']
    with api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, headless=True, args=flags)
        yield SimpleNamespace(open=chromium.new_context, base=f'http://127.0.0.1:{server.server_port}/')
        chromium.close()
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
