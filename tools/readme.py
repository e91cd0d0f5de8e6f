"""Make the pages that others are read from: `python tools/readme.py` writes them, `--check` fails if one is
out of date.

README.md comes from nbs/index.ipynb, nbs/README.md from nbs/course.yml and the notebooks, results/README.md
from tools/results.md and the data files. If settings.ini says where the project lives, links of README.md
are absolute, because PyPI shows it, too."""
import re
import sys

import course
import results
from facts import ROOT, absolute, facts
from fastcore.nbio import read_nb


def cell_text(cell):
    """Markdown of one cell: prose as it is, outputs of code as tables or text; the code itself stays in the
    notebook"""
    source = ''.join(cell.source)
    if cell.cell_type == 'markdown': return source.strip()
    if cell.cell_type != 'code' or '#| hide' in source: return ''
    parts = []
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        text = ''.join(data.get('text/markdown', '') or o.get('text', ''))
        if text: parts.append(text.strip() if 'text/markdown' in data else f'```\n{text.rstrip()}\n```')
    return '\n\n'.join(parts)


def relink(
    text: str, # markdown of a notebook in nbs/
    about, # see `facts`
) -> str: # with links from the root of the repository, or with addresses
    "Links of nbs/ as seen from outside"
    def moved(m):
        path = m[2][3:] if m[2].startswith('../') else f'nbs/{m[2]}'
        return f'{m[1]}({absolute(path, about, picture=m[1].startswith("!"))})'
    return re.sub(r'(!?\[[^]]*\])\((?!https?:|#)([^)]+)\)', moved, text)


def readme(about): # see `facts` → markdown
    "The first page"
    texts = map(cell_text, read_nb(ROOT/'nbs'/'index.ipynb').cells)
    return ('<!-- Made from nbs/index.ipynb by tools/readme.py: edit there. -->\n\n'
            + relink('\n\n'.join(t for t in texts if t), about) + '\n')


def pages(): # path → text
    return {ROOT/'README.md': readme(facts()), ROOT/'nbs'/'README.md': course.page(),
            ROOT/'results'/'README.md': results.page()}


def is_current(path, text): return path.is_file() and path.read_text(encoding='utf-8') == text


if __name__ == '__main__':
    stale = {path: text for path, text in pages().items() if not is_current(path, text)}
    if '--check' in sys.argv and stale:
        sys.exit(', '.join(p.relative_to(ROOT).as_posix() for p in stale)
                 + ' out of date: run python tools/readme.py.')
    for path, text in stale.items(): path.write_text(text, encoding='utf-8')
