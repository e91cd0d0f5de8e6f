"""What settings.ini says about the project, for the tools. The address of the repository is said there and
nowhere else."""
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def facts(
    path: Path = ROOT/'settings.ini', # to read
): # the section, by key; every value is text
    "The facts about the project"
    settings = ConfigParser(delimiters=['='], inline_comment_prefixes=(';',))
    settings.read(path, encoding='utf-8')
    return settings['DEFAULT']


def repository(
    about, # see `facts`
) -> str|None: # 'owner/name', None: nobody has said where the project lives
    "The repository on GitHub"
    return '/'.join(about['git_url'].split('/')[-2:]) if about['git_url'] else None


def absolute(
    path: str, # of a file or folder in the repository: 'nbs/start.ipynb', 'results/sr'
    about, # see `facts`
    picture: bool = False, # shown, not opened
) -> str: # the same path as long as the project has no address
    "Where a reader outside of the repository finds a file: on the site if it is a notebook, else on GitHub"
    path, _, part = path.partition('#')
    part = part and f'#{part}'
    if about['doc_url'] and path.startswith('nbs/') and path.endswith('.ipynb'):
        return f'{about["doc_url"]}/{path[len("nbs/"):-len(".ipynb")]}.html{part}'
    if not about['git_url']: return path + part
    kind = 'raw' if picture else 'blob' if '.' in path.rsplit('/', 1)[-1] else 'tree'
    return f'{about["git_url"]}/{kind}/{about["branch"]}/{path}{part}'
