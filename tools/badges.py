"""Badges for Colab and Binder at the top of the first notebook and the how-tos: `python tools/badges.py OWNER/REPO` writes or renews them.

Nothing in the project knows where its repository lies, until somebody says so here: one place, one command, and `--remove` takes them away again."""
import argparse
import re
from pathlib import Path

import nbformat

NBS = Path(__file__).resolve().parents[1]/'nbs'
MARK, INSTALL = ('Open in Colab',
                 "#| eval: false\n#| hide\n#@title Only in Colab: fetch the repository and install it")


def install_cell(
    repository: str, # 'owner/name' on GitHub
    page: str, # 'howto/deploy.ipynb'
) -> str: # source of a cell that does nothing outside of Colab
    "The repository comes along, because notebooks read its results and lie beside each other"
    name, folder = repository.split('/')[1], Path('nbs', page).parent.as_posix()
    return '\n'.join([INSTALL, 'import sys', "if 'google.colab' in sys.modules:",
                      f'    !git clone -q --depth 1 https://github.com/{repository}',
                      f'    %pip install -q ./{name}', f'    %cd -q {name}/{folder}'])


def badge_line(
    repository: str, # 'owner/name' on GitHub
    page: str, # 'howto/deploy.ipynb'
    branch: str = 'main', # to show
) -> str: # markdown: two links in words, for a site that loads nothing from elsewhere
    "Where the notebook can be run without installing anything"
    path = f'nbs/{page}'
    return (f'[{MARK}](https://colab.research.google.com/github/{repository}/blob/{branch}/{path}) · [Run on '
            f'Binder](https://mybinder.org/v2/gh/{repository}/{branch}?labpath={path.replace("/", "%2F")})')


def mark(
    nb, # notebook; its first cell has the title and the summary
    page: str, # 'howto/deploy.ipynb'
    repository: str|None, # None: remove the badges
    branch: str = 'main', # to show
):
    """Write, renew or remove both; running it twice changes nothing. ValueError for a repository that is not
    OWNER/REPO"""
    if repository is not None and not re.fullmatch(r'[\w.-]+/[\w.-]+', repository):
        raise ValueError(f'{repository!r} is not OWNER/REPO.')
    nb.cells = [c for c in nb.cells if not c.source.startswith(INSTALL)]
    title = nb.cells[0]
    title.source = re.sub(rf'\n\n\[{MARK}\][^\n]*', '', title.source)
    if repository is None: return
    title.source += f'\n\n{badge_line(repository, page, branch)}'
    nb.cells.insert(1, nbformat.v4.new_code_cell(install_cell(repository, page), id='colab'))


def pages(): # of nbs/ that bear a badge
    return ['start.ipynb', *(p.relative_to(NBS).as_posix() for p in sorted((NBS/'howto').glob('*.ipynb')))]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('repository', nargs='?', help='OWNER/REPO on GitHub')
    parser.add_argument('--branch', default='main', help='to show (default: main)')
    parser.add_argument('--remove', action='store_true', help='take the badges away')
    args = parser.parse_args()
    if (args.repository is None) != args.remove: parser.error('name the repository, or say --remove')
    for page in pages():
        nb = nbformat.read(NBS/page, 4)
        mark(nb, page, args.repository, args.branch)
        nbformat.write(nb, NBS/page)


if __name__ == '__main__': main()
