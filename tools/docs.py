"""Build the site from the notebooks with Sphinx: `python tools/docs.py` writes _site/, a warning fails.

The pages are made in build/docs: notebooks where they lie in nbs/ (so their links to each other hold), one
page per part of the course (see course.py), per module (see reference.py) and per folder of results/.
Sphinx then reads nothing else."""
import argparse
import base64
import csv
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parent))
from course import (
    SOLUTIONS, WITHIN, course_of, lead_of, name_of, notebooks, read_course, routes_table, title_of, within_of)
from examples import Book
from extras import (
    NOT_FOUND, also, figure_label, figure_of, finish_not_found, gallery, read_words, sitemap, words_page)
from facts import ROOT, absolute, facts
from reference import as_myst, read_cell

PROJECT = 'CONTRIBUTING.md', 'CHANGELOG.md' # files of the root that are pages of the site
DIRECTIVES = {'default_exp', 'export', 'exporti', 'exports', 'hide', 'echo', 'eval', 'slow', 'cuda'}


# --- notebooks --------------------------------------------------------------------------------------------

def directives_of(
    source: str, # of a code cell
) -> dict: # {'export': '', 'echo': 'false'}
    "The `#|` lines of a cell; ValueError for one that the site would not know how to show"
    found = dict(re.findall(r'^#\|\s*(\w+):?[ \t]*(.*?)\s*$', source, flags=re.M))
    strange = found.keys() - DIRECTIVES
    if strange:
        raise ValueError(f'The directive #| {min(strange)} is new to tools/docs.py: say there what becomes '
                         'of such a cell.')
    return found


def outside_code(
    change, # text → text
    text: str, # markdown
) -> str: # with everything changed but fenced code and headings
    "Apply `change` where names and links may be replaced"
    parts = re.split(r'(^```.*?^```[ \t]*$|^#+ [^\n]*$)', text, flags=re.M | re.S)
    return ''.join(p if i % 2 else change(p) for i, p in enumerate(parts))


class Names:
    "The exported names, and which of them a word between backticks means"
    def __init__(self,
        modules, # dotted module without `srdiag.` → its symbols, see reference.py
    ):
        self.full, self.short = {}, {}
        for module, symbols in modules.items():
            self.full[f'srdiag.{module}'] = module
            for s in symbols:
                for name in [s.name, *(f'{s.name}.{m.name}' for m in s.members)]:
                    self.full[f'srdiag.{module}.{name}'] = module
                    self.short.setdefault(name, []).append(module)

    def target(self,
        word: str, # 'MRCNet', 'MRCNet.features', 'srdiag.sr.mrcnet'
        module: str = '', # of the page
    ) -> str|None: # 'srdiag.sr.mrcnet.MRCNet'
        """A plain word such as `fit` means the function on the page of its own module only; elsewhere it may
        be a command or a variable"""
        if word in self.full: return word
        homes = self.short.get(word, [])
        if module in homes: return f'srdiag.{module}.{word}'
        telling = re.search(r'[A-Z]|\w_\w|\w\.\w', word)
        return f'srdiag.{homes[0]}.{word}' if len(homes) == 1 and telling else None

    def link(self,
        text: str, # markdown
        module: str = '', # of the page
    ) -> str: # markdown with roles
        "Make `Name` a link to the reference"
        def role(m):
            target = self.target(m[1], module)
            return f'{{py:obj}}`{m[1]}{m[2] or ""} <{target}>`' if target else m[0]
        name = r'(?<![\w`\[}])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])'
        return outside_code(lambda t: re.sub(name, role, t), text)


def on_site(
    path: str, # of a file or folder in the repository
) -> str|None: # of its page or file on the site; None: it is not there
    "Where something in the repository lies on the site"
    if path == 'nbs/README.md': return 'course/index.md'
    if path == 'docs/live/live.md': return 'live.md'
    if path.startswith('nbs/'): return path.removeprefix('nbs/')
    if re.fullmatch(r'results(/[\w-]+)*(/README\.md)?', path):
        return f'{path.removesuffix("/README.md")}/index.md'
    if path.startswith('results/') or path == 'CITATION.cff': return path
    return f'project/{path.lower()}' if path in PROJECT else None


def relink(
    text: str, # markdown
    page: str, # in the repository: 'nbs/sr/mrcnet.ipynb', 'results/sr/README.md'
) -> str: # markdown for the page on the site
    """What lies elsewhere in the repository lies elsewhere on the site, too. A link to what is not there
    becomes an address, or plain text if the project has none"""
    here = posixpath.dirname(on_site(page))
    def moved(m):
        path, _, part = m[2].partition('#')
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        to = on_site(inside)
        if to: return f'{m[1]}({posixpath.relpath(to, here or ".")}{part and "#" + part})'
        address = absolute(inside, facts())
        return f'{m[1]}({address})' if address != inside else m[1][1:-1]
    return outside_code(lambda t: re.sub(r'(!?\[[^]]*\])\((?!\w+:|#)([^)\s]+)\)', moved, t), text)


def convert(
    nb, # notebook
    page: str, # 'sr/mrcnet.ipynb'
    names: Names, # to link
) -> nbformat.NotebookNode: # for myst-nb
    """A notebook of nbdev as a page: no directives, no hidden cells, the summary as lead, names as links, a
    label before each exported cell"""
    module, cells = module_of(page.removeprefix(SOLUTIONS)), []
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == 'markdown':
            text = cell.source
            if text.startswith('# '): text = re.sub(r'^> (.*)$', r'{.lead}\n\1', text, flags=re.M)
            cells.append(nbformat.v4.new_markdown_cell(names.link(relink(text, f'nbs/{page}'), module)))
            continue
        if cell.cell_type != 'code': continue
        told = directives_of(cell.source)
        source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip('\n')
        if 'hide' in told or 'default_exp' in told or not source: continue
        if 'export' in told: cells.append(nbformat.v4.new_markdown_cell(f'({label(module, i)})='))
        if figure_of(cell): cells.append(nbformat.v4.new_markdown_cell(f'({figure_label(page, i)})='))
        tags = ['exported']*('export' in told) + ['remove-input']*(told.get('echo') == 'false')
        cells.append(nbformat.v4.new_code_cell(source, outputs=cell.outputs,
                                               execution_count=cell.execution_count, metadata={'tags': tags}))
    for i, cell in enumerate(cells): cell['id'] = f'c{i}'
    return nbformat.v4.new_notebook(cells=cells, metadata=nb.metadata)


def module_of(page): return page.removesuffix('.ipynb').replace('/', '.')


def page_of(module): return module.replace('.', '/') + '.ipynb'


def label(module, cell): return f'source-{module}-{cell}'


def symbols_of(nb):
    "What a notebook exports"
    return [s for i, c in enumerate(nb.cells)
            if c.cell_type == 'code' and 'export' in directives_of(c.source)
            for s in read_cell(c.source, i)]


# --- pages that are made ----------------------------------------------------------------------------------

def toctree(entries, caption=''):
    return '\n'.join(['```{toctree}', ':hidden:', *([f':caption: {caption}'] if caption else []), '',
                      *entries, '```'])


def rows_of(pages, leads): # notebooks with their summaries
    return [f'[{leads[p][0]}](../{p})\n: {leads[p][1]}' for p in pages]


def part_page(part, pages, leads):
    "A part of the course"
    lead = f'{{.lead}}\nIn this part: {", ".join(leads[p][0] for p in pages)}.'
    return '\n\n'.join([f'# {title_of(part)}', lead, *rows_of(pages, leads),
                        toctree([f'../{p.removesuffix(".ipynb")}' for p in pages])]) + '\n'


def course_page(course, leads, routes):
    "The routes, and all notebooks, part by part"
    parts = [[f'## {title_of(part)}', *rows_of(pages, leads)] for part, pages in course.items()]
    lead = ('{.lead}\nTen chapters take you through the paper, from the first pixel to the last loss. '
            'Begin with [Start here](../start.ipynb).')
    return '\n\n'.join(['# The course', lead, routes, *(row for part in parts for row in part)]) + '\n'


def solutions_page(course, leads):
    "All solutions, in the order of the course"
    parts = ['# Solutions', '{.lead}\nWorked and executed answers to the exercises. Try them first: '
             'most take a quarter of an hour.']
    pages = []
    for part, books in course.items():
        solved = [p for p in books if f'{SOLUTIONS}{p}' in leads]
        links = ', '.join(f'[{leads[p][0]}](../{SOLUTIONS}{p})' for p in solved)
        if solved: parts.append(f'**{title_of(part)}:** {links}')
        pages += solved
    tree = toctree([f'{leads[p][0]} <../{SOLUTIONS}{p.removesuffix(".ipynb")}>' for p in pages])
    return '\n\n'.join([*parts, tree]) + '\n'


def outputs_as_myst(outputs, name, save): # name of a picture; save: function of a name and its base64
    "What the cell of an example gave"
    parts = []
    for k, output in enumerate(outputs):
        data = output.get('data', {})
        text = output.get('text') if output.output_type == 'stream' else data.get('text/plain')
        if 'image/png' in data:
            parts.append(f'![What the example draws](examples/{name}-{k}.png)')
            save(f'examples/{name}-{k}.png', data['image/png'])
        elif text and not text.startswith('<'): parts.append(f'```text\n{text.rstrip()}\n```')
    return parts


def in_use(example, module, lead, save):
    "The example at the top of a page of the reference"
    if example is None: return []
    said = f'From [{lead[0]}](../{page_of(module)}), which makes the files that it reads, if any.'
    return ['## In use', f'```python\n{example.source}\n```',
            *outputs_as_myst(example.outputs, module, save), said]


def module_page(module, symbols, lead, headings, names, use=()):
    "The reference of a module; use: see `in_use`"
    page = page_of(module)
    parts = [f'# srdiag.{module}', f'{{.lead}}\n{lead[1]}',
             f'Explained and tested in [{lead[0]}](../{page}).', f'```{{py:module}} srdiag.{module}\n```',
             *use, *(['## All names'] if use else [])]
    for s in symbols:
        source = f'{{ref}}`{lead[0]}, {headings[s.cell]} <{label(module, s.cell)}>`'
        parts.append(as_myst(s, lambda text: names.link(text, module), source))
    return '\n\n'.join(parts) + '\n'


def headings_of(nb):
    "The heading above each cell"
    found, last = {}, 'its first lines'
    for i, c in enumerate(nb.cells):
        if c.cell_type == 'markdown':
            prose = re.sub(r'^```.*?^```', '', c.source, flags=re.M | re.S)
            last = (re.findall(r'^#+ (.+?)\s*$', prose, flags=re.M) or [last])[-1]
        found[i] = re.sub(r'[`<>*$\\]', '', last)
    return found


def reference_index(modules, leads):
    "All modules, room by room"
    text = ['# Reference', 'Every exported name with its parameters, shapes, units and errors. It is read '
            'from the notebooks: to change a sentence here, change the comment there.']
    for room in dict.fromkeys(m.partition('.')[0] for m in modules):
        rows = [f'| [srdiag.{m}]({m}.md) | {leads[page_of(m)][1]} |' for m in modules
                if m.partition('.')[0] == room]
        text.append('\n'.join([f'## srdiag.{room}', '', '| module | what it holds |', '|---|---|', *rows]))
    return '\n\n'.join([*text, toctree([f'{m} <{m}>' for m in modules])]) + '\n'


def shown_number(text):
    "A cell of a table: numbers to four digits"
    try: value = float(text)
    except ValueError: return re.sub(r'([|*_$<`\[])', r'\\\1', text)
    return text if float(value).is_integer() or len(text) < 7 else f'{value:.4g}'


def csv_table(
    path: Path, # CSV with a header
    most: int = 40, # rows; longer files are only linked
) -> str: # markdown
    "A CSV as a table; on its side if it is wider than long"
    with open(path, newline='', encoding='utf-8') as f:
        rows = [[shown_number(v) for v in row] for row in csv.reader(f)]
    if not 1 < len(rows) <= most: return ''
    if len(rows[0]) > max(len(rows), 8): rows = [list(r) for r in zip(*rows)]
    lines = [rows[0], ['---']*len(rows[0]), *rows[1:]]
    return '\n'.join(['{.values}', *('| ' + ' | '.join(row) + ' |' for row in lines)])


def results_page(
    folder: Path, # results/name
    names: Names, # to link
    root: Path = ROOT, # of the project
) -> str: # markdown
    "README and tables of one folder of results; folders in it that have a README are pages below it"
    readme = folder/'README.md'
    text = readme.read_text(encoding='utf-8').strip() if readme.is_file() else f'# {folder.name}'
    parts = [names.link(relink(text, f'{folder.relative_to(root).as_posix()}/README.md'))]
    below = [*(f'{p.parent.name}/index' for p in sorted(folder.glob('*/README.md'))),
             *(p.stem for p in sorted(folder.glob('*.md')) if p != readme)]
    if below: parts.append(toctree(below))
    for path in sorted(folder.glob('*.csv')):
        parts.append(f'## {path.name}\n\nThe file: [{path.name}]({path.name})\n\n{csv_table(path)}')
    return '\n\n'.join(parts) + '\n'


# --- the site ---------------------------------------------------------------------------------------------

def entry_of(part, pages): # of the sidebar: a chapter of one page is that page
    if len(pages) > 1: return f'course/{part_file(part)}'
    return f'{title_of(part)} <{pages[0].removesuffix(".ipynb")}>'


def entries_of(parts, course): # heading of the sidebar → entries
    found = {heading: [] for heading in WITHIN}
    for p in parts:
        if not (pages := course[name_of(p)]): continue
        if within_of(p) == 'how-to': entries = [page.removesuffix('.ipynb') for page in pages]
        else: entries = [entry_of(name_of(p), pages)]
        found[within_of(p)] += entries
    return found


def sidebar(parts, course, results):
    "The tables of contents of the first page"
    entries = entries_of(parts, course)
    return '\n\n'.join([
        toctree(['Getting started <self>', 'live', 'gallery']),
        toctree(['course/index', *entries['course'], 'course/solutions'], 'Course'),
        toctree(entries['workshop'], 'Workshop'),
        toctree(entries['how-to'], 'How-to'),
        toctree(['reference/index', 'words'], 'Reference'),
        toctree(['results/index', *(f'results/{name}/index' for name in results)], 'Results'),
        toctree([on_site(name).removesuffix('.md') for name in PROJECT], 'Project')])


LIVE = ('[Try it in your browser](live.md), on an image of your own or a sample, with nothing to install and '
        'nothing uploaded. [The gallery](gallery.md) shows what the notebooks draw.')


def write_notebooks(src, books, names, contents, words): # contents: see `sidebar`
    for page, nb in books.items():
        page_nb = convert(nb, page, names)
        def add(at, text, name): page_nb.cells.insert(at, nbformat.v4.new_markdown_cell(text, id=name))
        if found := also(page.removesuffix('.ipynb'), words): add(1, found, 'also')
        if page == 'index.ipynb':
            title, lead, rest = page_nb.cells[0].source.split('\n\n', 2)
            page_nb.cells[0].source = '\n\n'.join([title, lead, LIVE, rest])
            add(len(page_nb.cells), contents, 'toc')
        (src/page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page_nb, src/page)


def write_course(write, parts, course, leads, routes): # write: function of a page and its text
    for p in parts:
        part, pages = name_of(p), course[name_of(p)]
        if len(pages) > 1 and within_of(p) != 'how-to':
            write(f'course/{part_file(part)}.md', part_page(part, pages, leads))
    write('course/index.md', course_page(course, leads, routes))
    write('course/solutions.md', solutions_page(course, leads))


def write_reference(write, books, modules, leads, names):
    def save(name, picture): write(f'reference/{name}', base64.b64decode(picture))
    write('reference/index.md', reference_index(modules, leads))
    for module, symbols in modules.items():
        page = page_of(module)
        example = Book(books[page], module, [s.name for s in symbols], directives_of).example()
        write(f'reference/{module}.md',
              module_page(module, symbols, leads[page], headings_of(books[page]), names,
                          in_use(example, module, leads[page], save)))


def write_results(write, src, root, results, names):
    for name in results:
        shutil.copytree(root/'results'/name, src/'results'/name, ignore=shutil.ignore_patterns('README.md'))
    below = [p.parent for p in (root/'results').glob('*/**/README.md') if p.parent.parent != root/'results']
    for folder in [*(root/'results'/name for name in results), *below]:
        write(f'{folder.relative_to(root).as_posix()}/index.md', results_page(folder, names, root))
    text = (root/'results'/'README.md').read_text(encoding='utf-8')
    write('results/index.md', names.link(relink(text, 'results/README.md')))


def write_pages(
    src: Path, # empty folder
    root: Path = ROOT, # of the project
) -> None:
    "Everything that Sphinx is to read"
    def write(page, text):
        (src/page).parent.mkdir(parents=True, exist_ok=True)
        (src/page).write_bytes(text if isinstance(text, bytes) else text.encode('utf-8'))
    books = {page: nbformat.read(root/'nbs'/page, 4) for page in notebooks(root/'nbs')}
    leads = {page: lead_of(nb) for page, nb in books.items()}
    modules = {module_of(page): symbols_of(nb) for page, nb in books.items()}
    modules = {module: symbols for module, symbols in modules.items() if symbols}
    names, told = Names(modules), read_course(root/'nbs'/'course.yml')
    course = course_of(told['parts'], list(books))
    routes = routes_table(told, books, lambda page, title: f'[{title}](../{page})')
    results = [p.name for p in sorted((root/'results').iterdir()) if p.is_dir() and any(p.iterdir())]

    words = read_words()
    write_notebooks(src, books, names, sidebar(told['parts'], course, results), words)
    write('gallery.md', gallery(src, books, course, leads, directives_of))
    write('words.md', words_page(words, leads))
    write('live.md', (root/'docs'/'live'/'live.md').read_text(encoding='utf-8'))
    write('404.md', NOT_FOUND)
    write_course(write, told['parts'], course, leads, routes)
    write_reference(write, books, modules, leads, names)
    write_results(write, src, root, results, names)
    for name in PROJECT: write(on_site(name), relink((root/name).read_text(encoding='utf-8'), name))
    shutil.copytree(root/'nbs'/'images', src/'images')
    shutil.copy(root/'CITATION.cff', src)


def part_file(part): return part.replace('. ', '-').replace(' ', '-').lower()


def build(
    out: Path, # folder of the site, made anew
    src: Path, # folder for the pages in between, made anew
) -> int: # exit status: 0 if there was no warning
    "From notebooks to HTML"
    from sphinx.cmd.build import build_main
    for folder in (src, out): shutil.rmtree(folder, ignore_errors=True)
    src.mkdir(parents=True)
    # PyTorch takes its time with the graphs, beside Sphinx
    live = subprocess.Popen([sys.executable, Path(__file__).parent/'live.py', src/'live'])
    write_pages(src/'pages')
    status = build_main(['-q', '-b', 'html', '-W', '--keep-going', '-c', str(ROOT/'docs'), '-d',
                         str(src/'doctrees'), str(src/'pages'), str(src/'html')])
    status = live.wait() or status
    if status: return status
    # myst-nb leaves a folder beside what it builds: not here
    shutil.copytree(src/'html', out, ignore=shutil.ignore_patterns('.buildinfo', '_sources'))
    shutil.copytree(src/'live', out/'_static'/'live')
    finish_not_found(out, facts())
    print(sitemap(out, facts()))
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT/'_site',
                        help='folder of the site, made anew (default: _site)')
    parser.add_argument('--work', type=Path, default=ROOT/'build'/'docs',
                        help='folder for what lies in between, made anew (default: build/docs)')
    args = parser.parse_args()
    status = build(args.out, args.work)
    if not status:
        print(f'The site is in {os.path.relpath(args.out)}; look at it with: python -m http.server -d '
              f'{os.path.relpath(args.out)}')
    return status


if __name__ == '__main__': sys.exit(main())
