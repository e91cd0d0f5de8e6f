"The order of the course, from nbs/course.yml, and the page nbs/README.md that shows it."
import posixpath
import re
from pathlib import Path

import nbformat
import yaml

NBS = Path(__file__).resolve().parents[1]/'nbs'
SOLUTIONS = 'solutions/' # a folder in nbs/: the solutions are named as their notebooks
HOWTO = 'how to' # a part that stands apart


def notebooks(
    nbs: Path = NBS, # folder
) -> list: # 'sr/mrc.ipynb', in alphabetical order
    "All notebooks"
    return [p.relative_to(nbs).as_posix() for p in sorted(nbs.rglob('*.ipynb'))
            if '.ipynb_checkpoints' not in p.parts]


def read_parts(path: Path = NBS/'course.yml'): # → list of dicts
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def course_of(
    parts: list, # see `read_parts`
    pages: list, # names of all notebooks
) -> dict: # part → notebooks in order
    """Each notebook once: where it is named, or else at the end of the part of its folder. ValueError for one
    that is named and does not exist, and for one that has no part"""
    course = {p['part']: [f'{page}.ipynb' for page in p['pages']] for p in parts}
    homes = {p['folder']: p['part'] for p in parts}
    named = [page for part in course.values() for page in part]
    wrong = sorted({page for page in named if page not in pages or named.count(page) > 1})
    if wrong: raise ValueError(f'nbs/course.yml names {wrong[0]}, which does not exist, or twice.')
    for page in sorted({p for p in pages if not p.startswith(SOLUTIONS)} - {*named, 'index.ipynb'}):
        home = homes.get(posixpath.dirname(page) or '.')
        if home is None: raise ValueError(f'nbs/course.yml has no part with the folder of {page}.')
        course[home].append(page)
    return course


def lead_of(nb):
    "Title and summary of a notebook"
    text = next(c.source for c in nb.cells if c.cell_type == 'markdown')
    return re.search(r'^# (.+)$', text, flags=re.M)[1], re.search(r'^> (.+)$', text, flags=re.M)[1]


def title_of(part): return f'{part[0].upper()}{part[1:]}'


def page() -> str: # markdown
    "nbs/README.md: what somebody sees who looks into the folder"
    text = ['<!-- Made from nbs/course.yml and the notebooks by tools/readme.py: edit there. -->',
            '# The course', 'Each notebook explains, tests and exports one module of `srdiag`, which has its '
            'name. Begin with [Start here](start.ipynb). Exercises are solved in [solutions](solutions).']
    for part, pages in course_of(read_parts(), notebooks()).items():
        rows = []
        for p in pages:
            title, summary = lead_of(nbformat.read(NBS/p, 4))
            rows.append(f'| [{title}]({p}) | {summary.replace("|", chr(92) + "|")} |')
        head = f'## {title_of(part)}\n\n| notebook | what it is about |\n|---|---|'
        text.append('\n'.join([head, *rows]))
    return '\n\n'.join(text) + '\n'
