"The grammar of the notebooks, as far as it can be measured."
import re
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).parents[1]/'nbs'
FILES = {p.relative_to(NBS).as_posix(): p for p in sorted(NBS.rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts}
MAX_BYTES,MAX_LINES = 500_000,40

# Exceptions by name, each with its reason.
NO_EXERCISES = {'index.ipynb': 'the way in: it sends the reader on'}
NO_MODULE = {'index.ipynb': 'becomes the README, exports nothing'}
MAY_SHOW_PATHS = {}

ABSOLUTE_PATH = re.compile(r'(?<![\w.~*}])(/home/|/root/|/tmp/|/work/|/Users/)|\b[CD]:\\(?=[A-Z])')


@pytest.fixture(params=FILES)
def name(request): return request.param


@pytest.fixture
def nb(name): return nbformat.read(FILES[name], as_version=4)


def code(nb): return [c for c in nb.cells if c.cell_type == 'code' and c.source.strip()]


def prose(nb): # without what stands between code fences
    return re.sub(r'^```.*?^```', '', '\n\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown'), flags=re.M | re.S)


def directives(cell): return {line[2:].split()[0].rstrip(':') for line in cell.source.splitlines() if re.match(r'#\|\s*\S', line)}


def exported(cell): return cell.cell_type == 'code' and bool(directives(cell) & {'export', 'exports', 'exporti'})


def where(cell): return repr(next((line for line in cell.source.splitlines() if line.strip() and not line.startswith('#|')), ''))


def texts(cell):
    "The text in a cell's outputs"
    for out in cell.get('outputs', []):
        if out.output_type == 'stream': yield out.text
        for kind,value in out.get('data', {}).items():
            if kind.startswith('text/') or kind == 'image/svg+xml': yield re.sub(r'base64,[A-Za-z0-9+/=\s]+', '', value)


def test_exceptions_name_notebooks_that_exist():
    gone = (NO_EXERCISES.keys() | NO_MODULE.keys() | MAY_SHOW_PATHS.keys()) - FILES.keys()
    assert not gone, f'tests/test_notebooks.py makes exceptions for {gone}, which do not exist.'


def test_starts_with_title_and_summary_line(name, nb):
    first = next((c.source for c in nb.cells if c.cell_type == 'markdown'), '')
    assert re.match(r'# \S', first), f'{name}: the first markdown cell has no title (# ...).'
    assert re.search(r'^> \S', first, flags=re.M), f'{name}: no one-line summary (> ...) under the title.'


def test_names_its_module(name, nb):
    if name in NO_MODULE: return
    module = name.removesuffix('.ipynb').replace('/', '.')
    assert nb.cells[0].source.split('\n')[0] == f'#| default_exp {module}', f'{name}: the first cell is not `#| default_exp {module}`.'


def test_prose_before_each_exported_cell(name, nb):
    bare = [where(cell) for before,cell in zip(nb.cells, nb.cells[1:]) if exported(before) and exported(cell)]
    assert not bare, f'{name}: two exported cells without prose between them; the second starts with {", ".join(bare)}.'


def test_exported_cells_are_short(name, nb):
    def size(cell): return sum(bool(line.strip()) and not line.startswith('#|') for line in cell.source.splitlines())
    sizes = {where(c): size(c) for c in nb.cells if exported(c)}
    long = [f'{cell} has {n}' for cell,n in sizes.items() if n > MAX_LINES]
    assert not long, f'{name}: exported cells of more than {MAX_LINES} lines: {"; ".join(long)}.'


def test_ends_with_summary_and_exercises(name, nb):
    if name in NO_EXERCISES: return
    headings = re.findall(r'^## +(.+?)\s*$', prose(nb), flags=re.M)
    assert headings[-2:] == ['Summary', 'Exercises'], f'{name}: ends with {headings[-2:]}, not with Summary and Exercises.'
    items = re.findall(r'^\d+\. +\S', re.split(r'^## +Exercises\s*$', prose(nb), flags=re.M)[-1], flags=re.M)
    assert 3 <= len(items) <= 6, f'{name}: {len(items)} numbered exercises; 3 to 6 are due.'


def test_is_small(name):
    size = FILES[name].stat().st_size
    assert size < MAX_BYTES, f'{name} has {size/1000:.0f} KB: use smaller figures or fewer.'


def test_was_run_from_top_to_bottom(name, nb):
    due = [c for c in code(nb) if not directives(c) & {'cuda', 'eval'}]
    missing = [where(c) for c in due if c.execution_count is None]
    assert not missing, f'{name}: cells that were not run: {", ".join(missing[:3])}. Restart the kernel, run all cells and save.'
    counts = [c.execution_count for c in code(nb) if c.execution_count is not None]
    assert counts == sorted(set(counts)), f'{name}: cells were run out of order. Restart the kernel, run all cells and save.'


def test_outputs_are_saved_and_none_is_an_error(name, nb):
    outputs = [out for c in code(nb) for out in c.outputs]
    assert outputs, f'{name}: no saved outputs.'
    errors = [where(c) for c in code(nb) if any(out.output_type == 'error' for out in c.outputs)]
    assert not errors, f'{name}: saved error in {", ".join(errors)}. Show a failure with try and print.'


def test_no_absolute_paths(name, nb):
    if name in MAY_SHOW_PATHS: return
    for cell in nb.cells:
        for text in (cell.source, *texts(cell)):
            found = ABSOLUTE_PATH.search(text)
            assert not found, f'{name}: absolute path near {text[max(0, found.start()-30):found.end()+30]!r}.'
