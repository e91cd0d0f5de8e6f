"""Make README.md from nbs/index.ipynb without Quarto: `python tools/readme.py` writes it, `--check` fails if it is out of date."""
import re
import sys
from pathlib import Path

from fastcore.nbio import read_nb

root = Path(__file__).resolve().parent.parent


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


def readme():
    "The whole text, with links made relative to the repository's root"
    cells = read_nb(root/'nbs'/'index.ipynb').cells
    text = '\n\n'.join(t for t in map(cell_text, cells) if t)
    text = re.sub(r'\]\((?!https?:|#|\.\./)([^)]+)\)', r'](nbs/\1)', text)
    text = text.replace('](../', '](')
    return '<!-- Made from nbs/index.ipynb by tools/readme.py: edit there. -->\n\n' + text + '\n'


if __name__ == '__main__':
    path, text = root/'README.md', readme()
    if '--check' in sys.argv:
        if path.read_text(encoding='utf-8') != text:
            sys.exit('README.md is out of date: run python tools/readme.py.')
    else: path.write_text(text, encoding='utf-8')
