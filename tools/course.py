"The order of the course, from nbs/course.yml, and the page nbs/README.md that shows it."
import posixpath
import re
from pathlib import Path

import nbformat
import yaml

NBS = Path(__file__).resolve().parents[1]/'nbs'
SOLUTIONS = 'solutions/' # a folder in nbs/: the solutions are named as their notebooks
WITHIN = 'course', 'workshop', 'how-to' # headings of the sidebar; a chapter is within the course
ALL_CHAPTERS = 'chapters' # in a route: all of them
TIME = re.compile(r'\*\*Time\*\* (\d+) minutes(?:, and (\d+) for the exercises)?\.')


def notebooks(
    nbs: Path = NBS, # folder
) -> list: # 'sr/mrc.ipynb', in alphabetical order
    "All notebooks"
    return [p.relative_to(nbs).as_posix() for p in sorted(nbs.rglob('*.ipynb'))
            if '.ipynb_checkpoints' not in p.parts]


def read_course(path: Path = NBS/'course.yml'): # → dict with routes and parts, each a list of dicts
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def name_of(part): # of `parts` → '3. the convolutional LSTM', or 'how to'
    return f'{part["chapter"]}. {part["part"]}' if 'chapter' in part else part['part']


def within_of(part): return 'course' if 'chapter' in part else part['within']


def course_of(
    parts: list, # of `read_course`
    pages: list, # names of all notebooks
) -> dict: # name of a part → notebooks in order
    """Each notebook once: where it is named, or else at the end of the part of its folder. ValueError for one
    that is named and does not exist, and for one that has no part"""
    course = {name_of(p): [f'{page}.ipynb' for page in p['pages']] for p in parts}
    homes = {p['folder']: name_of(p) for p in parts if 'folder' in p}
    named = [page for part in course.values() for page in part]
    wrong = sorted({page for page in named if page not in pages or named.count(page) > 1})
    if wrong: raise ValueError(f'nbs/course.yml names {wrong[0]}, which does not exist, or twice.')
    for page in sorted({p for p in pages if not p.startswith(SOLUTIONS)} - {*named, 'index.ipynb'}):
        home = homes.get(posixpath.dirname(page) or '.')
        if home is None: raise ValueError(f'nbs/course.yml has no part with the folder of {page}.')
        course[home].append(page)
    return course


def chapters_of(parts): # → pages of all chapters in order
    return [f'{page}.ipynb' for p in parts if 'chapter' in p for page in p['pages']]


def pages_of_route(
    route: dict, # of `read_course`
    parts: list,
) -> list: # of notebooks in order
    "What a route leads through"
    return [page for name in route['pages']
            for page in (chapters_of(parts) if name == ALL_CHAPTERS else [f'{name}.ipynb'])]


def lead_of(nb):
    "Title and summary of a notebook"
    text = next(c.source for c in nb.cells if c.cell_type == 'markdown')
    return re.search(r'^# (.+)$', text, flags=re.M)[1], re.search(r'^> (.+)$', text, flags=re.M)[1]


def minutes_of(nb): # of reading, and of exercises; (0, 0) for a page that does not say
    text = '\n'.join(c.source for c in nb.cells[:4] if c.cell_type == 'markdown')
    found = TIME.search(text)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def title_of(part): # '3. the gate' → '3. The gate'
    return re.sub(r'^((?:\d+\. )?)(\w)', lambda m: m[1] + m[2].upper(), part)


def routes_table(
    course: dict, # of `read_course`
    books: dict, # page → notebook
    link, # function of a page and its title
) -> str: # markdown
    "Three ways through the pages"
    rows = ['| route | what you know afterwards | pages |', '|---|---|---|']
    for route in course['routes']:
        named = [(name, f'{name}.ipynb') for name in route['pages']]
        said = ', '.join('**the ten chapters**' if name == ALL_CHAPTERS else
                         link(page, lead_of(books[page])[0]) for name, page in named)
        rows.append(f'| **{title_of(route["name"])}** | {route["about"]} | {said} |')
    return '\n'.join(rows)


def _spent(read, solve): return f'{read} + {solve}' if solve else f'{read or ""}' # minutes, as in a table


def _table(pages, books): # of one part, with minutes if there are any
    minutes = [minutes_of(books[p]) for p in pages]
    timed = any(map(sum, minutes))
    rows = ['| page | what it is about |', '|---|---|']
    for p in pages:
        title, summary = lead_of(books[p])
        rows.append(f'| [{title}]({p}) | {summary.replace("|", chr(92) + "|")} |')
    if timed:
        last = [' minutes |', '---:|', *(f' {_spent(*m)} |' for m in minutes)]
        rows = [row + cell for row, cell in zip(rows, last)]
    return '\n'.join(rows)


def page() -> str: # markdown
    "nbs/README.md: what somebody sees who looks into the folder"
    course, books = read_course(), {page: nbformat.read(NBS/page, 4) for page in notebooks()}
    link = lambda page, title: f'[{title}]({page})'
    text = ['<!-- Made from nbs/course.yml and the notebooks by tools/readme.py: edit there. -->',
            '# The course',
            'Ten chapters take you through the paper, from the first pixel to the last loss. Three routes '
            'lead through them:', routes_table(course, books, link),
            'Each page explains one part, shows it at work and tests it. A page that exports code has the '
            'name of its module in `srdiag`. Exercises are solved in [solutions](solutions); minutes are for '
            'reading and running, and for the exercises. After the chapters comes the workshop: read there '
            'what you need.']
    for part, pages in course_of(course['parts'], list(books)).items():
        text.append(f'## {title_of(part)}\n\n{_table(pages, books)}')
    return '\n\n'.join(text) + '\n'
