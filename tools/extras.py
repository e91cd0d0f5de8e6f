"""Pages of the site that no notebook and no module is: the gallery of figures, the words of other fields, the
page for an address that does not exist; and the map of the site for search engines."""
import base64
import io
import re
from html import escape
from pathlib import Path

import yaml
from PIL import Image

from course import title_of
from facts import ROOT

WIDTH = 360 # px, of a picture in the gallery


# --- the gallery ------------------------------------------------------------------------------------------

def figure_of(cell): # the picture of a cell, a PNG or a JPEG, as bytes, or None
    found = [o.data[kind] for o in cell.get('outputs', []) for kind in ('image/png', 'image/jpeg')
             if kind in o.get('data', {})]
    return base64.b64decode(found[0]) if found else None


def figure_label(page, cell): return f'figure-{page.removesuffix(".ipynb").replace("/", "-")}-{cell}'


def best_figure(nb, told): # number of a cell and its picture, or None; told: source → directives
    "The figure with most to see; the map of the method, which many notebooks show, comes last"
    found = [('method_map(' not in cell.source, len(png), i, png) for i, cell in enumerate(nb.cells)
             if cell.cell_type == 'code' and 'hide' not in told(cell.source) and (png := figure_of(cell))]
    return max(found)[2:] if found else None


def save_small(png, path):
    image = Image.open(io.BytesIO(png))
    if image.mode not in ('RGB', 'L'):
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image.convert('RGBA')).convert('RGB')
    image.thumbnail((WIDTH, WIDTH))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(128).save(path)


def gallery(
    src: Path, # folder of the pages; the pictures are written into it
    books: dict, # page → notebook
    course: dict, # part → pages
    leads: dict, # page → title and summary
    told, # source of a cell → its directives
) -> str: # markdown
    "A figure of each notebook, which leads to the code that drew it"
    parts = ['# Gallery',
             '{.lead}\nA figure of each notebook that draws. A click leads to the code behind it.']
    for part, pages in course.items():
        rows = []
        for page in pages:
            found = best_figure(books[page], told)
            if not found: continue
            name = f'{page.removesuffix(".ipynb").replace("/", "-")}.png'
            save_small(found[1], src/'gallery'/name)
            title, target = leads[page][0], figure_label(page, found[0])
            rows.append(f'- [![A figure of {title}](gallery/{name})](#{target})\n  [{title}](#{target})')
        if rows: parts.append(f'## {title_of(part)}\n\n{{.gallery}}\n' + '\n'.join(rows))
    return '\n\n'.join(parts) + '\n'


# --- words of others --------------------------------------------------------------------------------------

def read_words(path: Path = ROOT/'docs'/'words.yml') -> dict: # word → page, without its ending
    "What readers look for under another name"
    return {word: page for page, words in yaml.safe_load(path.read_text(encoding='utf-8')).items()
            for word in words}


def also(page, words): # markdown under the title of a page: index entries, and a line that is seen
    mine = [word for word, home in words.items() if home == page]
    if not mine: return ''
    said = ', '.join(mine)
    first = ', '.join(f'!{word}' for word in mine) # found before what only mentions it
    return f'```{{index}} {first}\n```\n\n{{.also}}\nAlso looked for as: {said}.'


def words_page(words, leads):
    "All of them"
    rows = [f'| {word} | [{leads[f"{page}.ipynb"][0]}]({page}.ipynb) |'
            for word, page in sorted(words.items(), key=lambda item: item[0].lower())]
    return '\n'.join(['# In other words', '', '{.lead}', 'Many things have several names. Here is what yours '
                      'is called in this project, or the page that it stands on.', '',
                      '| you look for | it stands in |', '|---|---|', *rows]) + '\n'


# --- addresses --------------------------------------------------------------------------------------------

NOT_FOUND = """---
orphan: true
---

# There is no such page

{.lead}
The address is mistyped, or the page has moved.

Begin with [the first page](index.ipynb), with [all notebooks](course/index.md) or with [the
reference](reference/index.md), or use the search on the left.
"""


def finish_not_found(out, about): # about: see facts.facts
    "A server shows the page for addresses at any depth, so its links need the address of the site"
    if not about['doc_url']: return
    path = out/'404.html'
    text = path.read_text(encoding='utf-8')
    base = f'<head><base href="{escape(about["doc_url"])}/">'
    path.write_text(text.replace('<head>', base, 1), encoding='utf-8')


def sitemap(
    out: Path, # folder of the site
    about, # see facts.facts
) -> str: # what was done, as a sentence
    "sitemap.xml, which needs to know where the site is"
    if not about['doc_url']:
        return 'There is no sitemap.xml, and links stay relative: doc_url in settings.ini is empty.'
    pages = sorted(p.relative_to(out).as_posix() for p in out.rglob('*.html'))
    rows = [f'<url><loc>{escape(about["doc_url"])}/{escape(p)}</loc></url>' for p in pages
            if not re.match(r'_|404|search|genindex|py-modindex', p)]
    text = ['<?xml version="1.0" encoding="utf-8"?>',
            '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">', *rows, '</urlset>']
    (out/'sitemap.xml').write_text('\n'.join(text) + '\n', encoding='utf-8')
    return f'sitemap.xml names {len(rows)} pages.'
