"The grammar of the notebooks, as far as it can be measured."
import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).parents[1]/'nbs'
FILES = ({p.relative_to(NBS).as_posix(): p
          for p in sorted(NBS.rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts})
MAX_BYTES = 500_000
MAX_LINES, MEDIAN_LINES = 25, 12 # of an exported cell
MAX_EXPORTED, MAX_COLUMNS = 300, 110 # lines of all exported cells of a notebook; of a line
MAX_METHOD, MAX_CLASS = 15, 45 # a class may be longer than other cells if each of its methods is short

# Rooms of the workshop: what the course stands on. They are explained and tested like all others, but set no
# tasks unless they want to.
WORKSHOP = ('core/', 'datasets/', 'models/', 'bench/', 'commands/', 'training/options', 'sr/settings',
            'diagnosis/settings', 'diagnosis/build', 'diagnosis/evaluation', 'show/')
# Exceptions by name, each with its reason.
NO_EXERCISES = {'index.ipynb': 'the way in: it sends the reader on'}
NO_MODULE = {'index.ipynb': 'becomes the README, exports nothing',
             'start.ipynb': 'the first hour: it uses the library and adds nothing to it',
             'symbols.ipynb': 'a checked table of names',
             'paper.ipynb': 'evidence about the paper, not about code'}
# Pages that add nothing to the library: a task that wants to be done, without exercises; a lesson
HOWTO, LESSONS = 'howto/', 'lessons/'
MAY_SHOW_PATHS = {}

COURSE = [name for name in FILES if not name.startswith('solutions/')]
SOLUTIONS = [name for name in FILES if name.startswith('solutions/')]
MAX_BYTES_OF_SOLUTIONS, MAX_BYTES_OF_HOWTO = 300_000, 200_000

ABSOLUTE_PATH = re.compile(r'(?<![\w.~*}])/(home|root|tmp|work|Users)/|\b[CD]:\\(?=[A-Z])')


@cache # each notebook once for all tests: they only look
def read(name): return nbformat.read(FILES[name], as_version=4)


@pytest.fixture(params=FILES)
def name(request): return request.param


@pytest.fixture
def nb(name): return read(name)


def code(nb): return [c for c in nb.cells if c.cell_type == 'code' and c.source.strip()]


def prose(nb): # without what stands between code fences
    text = '\n\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')
    return re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)


def directives(cell):
    return {line[2:].split()[0].rstrip(':') for line in cell.source.splitlines()
            if re.match(r'#\|\s*\S', line)}


def is_solution(name): return name in SOLUTIONS


def exported(cell):
    return cell.cell_type == 'code' and bool(directives(cell) & {'export', 'exports', 'exporti'})


def where(cell):
    lines = (line for line in cell.source.splitlines() if line.strip() and not line.startswith('#|'))
    return repr(next(lines, ''))


def texts(cell):
    "The text in a cell's outputs"
    for out in cell.get('outputs', []):
        if out.output_type == 'stream': yield out.text
        for kind, value in out.get('data', {}).items():
            if kind.startswith('text/') or kind == 'image/svg+xml':
                yield re.sub(r'base64,[A-Za-z0-9+/=\s]+', '', value)


def test_exceptions_name_notebooks_that_exist():
    gone = (NO_EXERCISES.keys() | NO_MODULE.keys() | MAY_SHOW_PATHS.keys()) - FILES.keys()
    assert not gone, f'tests/test_notebooks.py makes exceptions for {gone}, which do not exist.'


def test_starts_with_title_and_summary_line(name, nb):
    first = next((c.source for c in nb.cells if c.cell_type == 'markdown'), '')
    assert re.match(r'# \S', first), f'{name}: the first markdown cell has no title (# ...).'
    assert re.search(r'^> \S', first, flags=re.M), f'{name}: no one-line summary (> ...) under the title.'


def test_names_its_module(name, nb):
    if name in NO_MODULE or is_solution(name) or name.startswith((HOWTO, LESSONS)): return
    module = name.removesuffix('.ipynb').replace('/', '.')
    assert nb.cells[0].source.split('\n')[0] == f'#| default_exp {module}', (
        f'{name}: the first cell is not `#| default_exp {module}`.')


def test_howtos_and_lessons_export_nothing():
    pages = [n for n in FILES if n.startswith((HOWTO, LESSONS))]
    assert {name.split('/')[0] for name in pages} == {'howto', 'lessons'}
    for name in pages:
        told = {directive for cell in code(read(name)) for directive in directives(cell)}
        assert not told & {'default_exp', 'export', 'exports', 'exporti'}, (
            f'{name}: a how-to or a lesson exports nothing.')


def test_howtos_end_with_a_summary():
    for name in [n for n in FILES if n.startswith(HOWTO)]:
        nb = read(name)
        assert re.findall(r'^## +(.+?)\s*$', prose(nb), flags=re.M)[-1] == 'Summary', (
            f'{name}: does not end with ## Summary.')


def test_prose_before_each_exported_cell(name, nb):
    bare = [where(cell) for before, cell in zip(nb.cells, nb.cells[1:])
            if exported(before) and exported(cell)]
    assert not bare, (f'{name}: two exported cells without prose between them; the second starts with '
                      f'{", ".join(bare)}.')


def size(source): return sum(bool(line.strip()) and not line.startswith('#|') for line in source.splitlines())


def is_class_of_short_methods(cell):
    tree = ast.parse(cell.source)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.ClassDef): return False
    methods = [f for f in tree.body[0].body if isinstance(f, ast.FunctionDef)]
    return size(cell.source) <= MAX_CLASS and all(f.end_lineno - f.lineno < MAX_METHOD for f in methods)


def only_imports(cell): return all(map(is_import, statements(cell)))


def sizes_of(nb): return {where(c): size(c.source) for c in nb.cells if exported(c) and not only_imports(c)}


def test_exported_cells_are_short(name, nb):
    long = [f'{where(c)} has {size(c.source)}' for c in nb.cells
            if exported(c) and size(c.source) > MAX_LINES and not only_imports(c)
            and not is_class_of_short_methods(c)]
    assert not long, f'{name}: exported cells of more than {MAX_LINES} lines: {"; ".join(long)}.'
    total = sum(sizes_of(nb).values())
    assert total <= MAX_EXPORTED, f'{name} exports {total} lines; {MAX_EXPORTED} are enough: split it.'


def test_half_of_the_exported_cells_are_shorter_still():
    sizes = sorted(n for name in COURSE for n in sizes_of(read(name)).values())
    assert sizes[len(sizes)//2] <= MEDIAN_LINES, f'The median exported cell has {sizes[len(sizes)//2]} lines.'


def test_lines_are_short(name, nb):
    long = [line for c in code(nb) for line in c.source.splitlines() if len(line) > MAX_COLUMNS]
    assert not long, f'{name}: {len(long)} lines of more than {MAX_COLUMNS} columns, the first: {long[0]}'


def test_something_runs_after_at_most_three_exported_cells(name, nb):
    run, first = 0, ''
    for cell in code(nb):
        if exported(cell):
            if only_imports(cell): continue
            run, first = run + 1, first if run else where(cell)
            assert run <= 3, f'{name}: from {first} on, more than three exported cells before something runs.'
        elif not directives(cell) & {'hide', 'default_exp'}: run = 0


def test_ends_with_summary_and_exercises(name, nb):
    if name in NO_EXERCISES or is_solution(name) or name.startswith(HOWTO): return
    headings = re.findall(r'^## +(.+?)\s*$', prose(nb), flags=re.M)
    if name.startswith(WORKSHOP) and not exercises_of(nb):
        assert headings[-1] == 'Summary', f'{name}: does not end with ## Summary.'
        return
    if headings[-2:] == ['Summary', 'Questions'] and name.startswith(LESSONS): return # background
    if headings[-2:-1] == ['Questions']: headings = [h for h in headings if h != 'Questions']
    assert headings[-2:] == ['Summary', 'Exercises'], (f'{name}: ends with {headings[-2:]}, not with Summary '
                                                       'and Exercises.')
    items = re.findall(r'^\d+\. +\S', re.split(r'^## +Exercises\s*$', prose(nb), flags=re.M)[-1], flags=re.M)
    assert 3 <= len(items) <= 6, f'{name}: {len(items)} numbered exercises; 3 to 6 are due.'


def test_is_small(name):
    size, most = FILES[name].stat().st_size, MAX_BYTES
    if is_solution(name): most = MAX_BYTES_OF_SOLUTIONS
    if name.startswith(HOWTO): most = MAX_BYTES_OF_HOWTO
    assert size < most, f'{name} has {size/1000:.0f} KB: use smaller figures or fewer.'


def speaks(cell): # prints, or ends with a value
    body = statements(cell)
    if not body: return False
    last = body[-1]
    if isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call):
        return not cell.source.rstrip().endswith(';')
    calls = [s.value for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    return any(isinstance(call.func, ast.Name) and call.func.id == 'print' for call in calls)


def test_was_run(name, nb):
    "`nbdev-clean` removes the counts of executions, so what a cell says must stand under it"
    due = [c for c in code(nb) if not exported(c) and speaks(c)
           and not directives(c) & {'cuda', 'eval', 'default_exp'}]
    missing = [where(c) for c in due if not c.outputs]
    assert not missing, f'{name}: cells that were not run: {", ".join(missing[:3])}. Run all cells and save.'
    counted = [where(c) for c in code(nb) if c.execution_count is not None]
    assert not counted, f'{name} is not clean: run nbdev-clean (pre-commit does).'


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


# --- each cell has a purpose ------------------------------------------------------------------------------

def statements(cell): # of a cell of code; lines for the shell or IPython do not count
    lines = [line for line in cell.source.splitlines() if not re.match(r'\s*[%!]', line)]
    return ast.parse('\n'.join(lines)).body


def is_import(statement): return isinstance(statement, (ast.Import, ast.ImportFrom))


def words(cells): # names in their code, lines of imports apart
    sources = [re.sub(r'^\s*(from|import) .*$', '', c.source, flags=re.M)
               for c in cells if c.cell_type == 'code']
    return {word for source in sources for word in re.findall(r'[^\W\d]\w*', source)}


def bound(cell): # names that a cell makes for the cells after it
    for statement in statements(cell):
        if is_import(statement):
            yield from (alias.asname or alias.name.split('.')[0] for alias in statement.names)
        elif isinstance(statement, (ast.FunctionDef, ast.ClassDef)): yield statement.name
        else: yield from (node.id for node in ast.walk(statement)
                          if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def has_effect(statement):
    # beyond binding a name: a check, a call for its own sake, a change of something that exists
    if isinstance(statement, ast.Expr): return isinstance(statement.value, ast.Call)
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return any(isinstance(t, (ast.Attribute, ast.Subscript)) for t in targets)
    return not (is_import(statement) or isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.Pass)))


def test_no_cell_is_without_a_purpose(name, nb):
    empty = [i for i, c in enumerate(nb.cells) if not c.source.strip()]
    assert not empty, f'{name}: empty cells, counted from 0: {empty}.'
    idle = []
    for i, cell in enumerate(nb.cells):
        if (cell.cell_type != 'code' or exported(cell) or cell.outputs
            or directives(cell) & {'default_exp', 'cuda', 'eval'}):
            continue
        if any(map(has_effect, statements(cell))): continue
        if not set(bound(cell)) & words(nb.cells[i+1:]): idle.append(where(cell))
    assert not idle, (f'{name}: cells that show nothing, check nothing, and make nothing that a later cell '
                      f'uses: {", ".join(idle)}.')


def test_what_is_imported_is_used(name, nb):
    idle = []
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != 'code' or exported(cell): continue
        imports = [s for s in statements(cell) if is_import(s)]
        if not imports: continue
        used = words(nb.cells[i:])
        names = [a.asname or a.name.split('.')[0] for s in imports for a in s.names]
        idle += [n for n in names if n not in used and n != '*']
    assert not idle, f'{name}: imported and never used: {", ".join(idle)}.'


def test_examples_have_their_imports_in_cells_of_their_own(name, nb):
    """`nbdev-docs` runs a cell with an import without the cells before it: what else stands in such a cell
    fails there"""
    if is_solution(name): return
    mixed = [where(c) for c in code(nb) if not exported(c) and len({is_import(s) for s in statements(c)}) > 1]
    assert not mixed, f'{name}: imports and other statements in one cell: {", ".join(mixed)}.'


def test_shows_a_test_and_a_failure(name, nb):
    if name in NO_MODULE or is_solution(name) or name.startswith((HOWTO, LESSONS)): return
    visible = '\n'.join(c.source for c in code(nb) if not exported(c) and not directives(c) & {'hide'})
    assert re.search(r'\bassert\b|\btest_\w+\(|\bassert_\w+\(', visible), (
        f'{name}: no test that a reader can see.')
    assert re.search(r'^\s*except .+ as \w+:', visible, flags=re.M), (
        f'{name}: no failure that a reader can see (try, except ... as e, print).')


# --- solutions --------------------------------------------------------------------------------------------
#
# The solutions to nbs/sr/rcf.ipynb are in nbs/solutions/sr/rcf.ipynb. Each exercise has its heading, its
# text as a quotation, and after it code that was run:
#
#     ## Exercise 1
#
#     > The text of the exercise, word for word.

def exercises_of(nb): # number → text in one line
    text = re.split(r'^## +Exercises\s*$', prose(nb), flags=re.M)
    items = re.findall(r'^(\d+)\. +(.+(?:\n(?!\d+\. |\n).*)*)', text[-1] if len(text) > 1 else '', flags=re.M)
    return {int(number): ' '.join(item.split()) for number, item in items}


def solved_in(nb):
    # number → quoted text in one line, and how many cells of code follow before the next exercise
    solved, number = {}, None
    for cell in nb.cells:
        if cell.cell_type == 'code':
            if number is not None: solved[number][1] += bool(cell.source.strip())
            continue
        for found in re.finditer(r'^## +(.+?)[ \t]*$(?:\n*((?:\n>.*)+))?', cell.source, flags=re.M):
            named = re.fullmatch(r'Exercise (\d+)', found[1])
            number = int(named[1]) if named else None
            if named: solved[number] = [' '.join(re.sub(r'^> ?', '', found[2] or '', flags=re.M).split()), 0]
    return solved


def test_each_exercise_has_its_solution(name, nb):
    if is_solution(name) or not (asked := exercises_of(nb)): return
    solution = f'solutions/{name}'
    assert solution in FILES, f'{name} has exercises, but there is no nbs/{solution}.'
    solved = solved_in(read(solution))
    assert list(solved) == list(asked), (f'{name} has the exercises {list(asked)}; {solution} has headings '
                                         f'(## Exercise 1) for {list(solved)}.')
    for number, text in asked.items():
        quoted, cells = solved[number]
        assert quoted == text, f'{solution}: exercise {number} is quoted as {quoted!r}; {name} has {text!r}.'
        assert cells, f'{solution}: exercise {number} has no cell of code.'
    link = f"({'../'*name.count('/')}{solution})"
    assert link in re.split(r'^## +Exercises\s*$', prose(nb), flags=re.M)[-1], (
        f'{name}: no link to its solutions, {link}, under Exercises.')


@pytest.mark.parametrize('name', SOLUTIONS)
def test_solutions_belong_to_a_notebook_and_export_nothing(name, nb):
    of = name.removeprefix('solutions/')
    assert of in COURSE, f'There is no nbs/{of} that {name} could be the solutions of.'
    title = lambda nb: re.search(r'^# +(.+?)\s*$', prose(nb), flags=re.M)[1]
    assert title(nb) == f'Solutions: {title(read(of))}', (f'{name}: the title is not "Solutions: " and the '
                                                          f'title of {of}.')
    told = {directive for cell in code(nb) for directive in directives(cell)}
    assert not told & {'default_exp', 'export', 'exports', 'exporti'}, f'{name}: solutions export nothing.'


PREPARE = '''
import contextlib,io,os,sys
from pathlib import Path
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import exec_nb
for name in sys.argv[2:]:
    out, to = io.StringIO(), Path(sys.argv[1])/name.replace('/', '.')
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        exec_nb(Path(name), to, FilterDefaults)
    if 'Error' in out.getvalue(): sys.exit(f'{name}: {out.getvalue()[-500:]}')
os._exit(0) # without waiting for the threads of 200 shells
'''

def test_nbdev_prepares_the_notebooks_as_well(tmp_path):
    """`nbdev-docs` does this before it hands them to Quarto, which is not asked for here; it runs cells with
    an import without the cells before them"""
    done = subprocess.run([sys.executable, '-c', PREPARE, tmp_path, *COURSE], cwd=NBS, capture_output=True,
                          text=True, env=os.environ | {'IN_TEST': '1', 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-1500:]
    assert len([*tmp_path.glob('*.ipynb')]) == len(COURSE)


def test_cleaning_changes_nothing(tmp_path):
    "`nbdev-clean`, which runs before each commit, has nothing to do on a fresh clone"
    project = tmp_path/'project'
    shutil.copytree(NBS, project/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', 'images'))
    shutil.copy(NBS.parent/'pyproject.toml', project)
    done = subprocess.run([sys.executable, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean()'],
                          cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    changed = [name for name, path in FILES.items() if (project/'nbs'/name).read_bytes() != path.read_bytes()]
    assert not changed, f'nbdev-clean changes {", ".join(changed)}.'
