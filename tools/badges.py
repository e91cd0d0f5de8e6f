"""Badges for Colab and Binder at the top of the first notebook and the how-tos: `python tools/badges.py`
writes or renews them for the repository that settings.ini names (`git_url`), and `--remove` takes them away
again.

Another repository can be given as OWNER/REPO, for a fork, say."""
import argparse
import re
from pathlib import Path

import nbformat
from facts import facts, repository

NBS = Path(__file__).resolve().parents[1]/'nbs'
MARK = 'Open in Colab'
INSTALL = '#| eval: false\n#| hide\n#@title Only in Colab: fetch the repository and install it'


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
    binder = f'{repository}/{branch}?labpath={path.replace("/", "%2F")}'
    return (f'[{MARK}](https://colab.research.google.com/github/{repository}/blob/{branch}/{path}) · '
            f'[Run on Binder](https://mybinder.org/v2/gh/{binder})')


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
    parser.add_argument('repository', nargs='?', help='OWNER/REPO on GitHub (default: of settings.ini)')
    parser.add_argument('--branch', default='main', help='to show (default: main)')
    parser.add_argument('--remove', action='store_true', help='take the badges away')
    args = parser.parse_args()
    home = None if args.remove else args.repository or repository(facts())
    if not home and not args.remove:
        parser.error('settings.ini does not say where the project lives (git_url): name the repository, or '
                     'say --remove')
    for page in pages():
        nb = nbformat.read(NBS/page, 4)
        mark(nb, page, home, args.branch)
        nbformat.write(nb, NBS/page)


if __name__ == '__main__': main()
