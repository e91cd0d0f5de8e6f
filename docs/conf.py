"Sphinx's settings. The pages come from tools/docs.py, the facts about the project from settings.ini."
import html
import importlib.util
import shutil
from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).resolve().parent
_settings = ConfigParser(delimiters=['='], inline_comment_prefixes=(';',))
_settings.read(here.parent/'settings.ini', encoding='utf-8')
_facts = _settings['DEFAULT']

project, author, release = _facts['lib_name'], _facts['author'], _facts['version']
copyright = f'{author}, {_facts["license"]} licence'
extensions = ['myst_nb', 'sphinx.ext.mathjax', 'sphinx_copybutton']
html_theme, html_title = 'furo', project
html_static_path, html_css_files = [str(here/'_static')], ['srdiag.css']
html_favicon = str(here/'_static'/'favicon.svg')
html_copy_source = html_show_sphinx = False
add_module_names = smartquotes = False
maximum_signature_line_length = 80

nb_execution_mode = 'off' # the outputs that the notebooks hold are shown
nb_merge_streams = True
nb_render_markdown_format = 'myst' # tables and equations in what Markdown(...) shows
myst_enable_extensions = ['dollarmath', 'amsmath', 'attrs_block', 'attrs_inline', 'deflist']
myst_dmath_double_inline = True # $$ right after a line of text
myst_dmath_allow_digits = False # "$5 and $7" is no equation
suppress_warnings = ['myst.header'] # a notebook may skip a level of headings

# MathJax lies in a wheel as a folder of 24 MB; the site needs one file of it and the fonts.
_mathjax = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent/'static'/'mathjax'
_script, _fonts = 'tex-chtml-full.js', 'output/chtml/fonts/woff-v2'
mathjax_path = f'mathjax/{_script}'


def copy_mathjax(app, error):
    if error or app.builder.format != 'html': return
    to = Path(app.outdir)/'_static'/'mathjax'
    shutil.copytree(_mathjax/_fonts, to/_fonts, dirs_exist_ok=True)
    shutil.copy2(_mathjax/_script, to)


def description_of(doctree): # the lead of a page, or else its title and its first sentence
    from docutils.nodes import paragraph, title
    found = list(doctree.findall(paragraph))
    lead = [p for p in found if 'lead' in p['classes']]
    parts = lead[:1] or [*list(doctree.findall(title))[:1], *found[:1]]
    text = ' '.join(' – '.join(p.astext() for p in parts).split())
    return text if len(text) <= 160 else f'{text[:157].rsplit(" ", 1)[0]} ...'


def describe(app, pagename, templatename, context, doctree): # for search engines
    text = description_of(doctree) if doctree is not None else ''
    if text: context['metatags'] = (f'<meta name="description" content="{html.escape(text)}">\n'
                                    + context.get('metatags', ''))


def fold(app, pagename, templatename, context, doctree): # the sidebar: open is the branch of the page alone
    whole = context.get('toctree')
    if whole: context['toctree'] = lambda **how: whole(**how | dict(collapse=True))


def setup(app):
    app.connect('html-page-context', fold, priority=400) # before the theme asks, at 500, for all 600 pages
    app.connect('html-page-context', describe)
    app.connect('build-finished', copy_mathjax)
