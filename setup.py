"Packaging: every fact comes from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=['='], inline_comment_prefixes=(';',))
settings.read(here/'settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']

CLASSIFIERS = [
    'Development Status :: 4 - Beta',
    'Intended Audience :: Education',
    'Intended Audience :: Science/Research',
    'Operating System :: OS Independent',
    *(f'Programming Language :: Python :: {v}' for v in ('3', '3 :: Only', *cfg['python_versions'].split())),
    'Topic :: Education',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
    'Topic :: Scientific/Engineering :: Image Processing',
    'Topic :: Scientific/Engineering :: Medical Science Apps.',
    'Typing :: Typed',
]


def lines(key): return [line.strip() for line in cfg[key].splitlines() if line.strip()]


def extras(): # name → what it asks for; `all`: those of users together
    found = {key.removesuffix('_requirements'): lines(key) for key in cfg if key.endswith('_requirements')}
    users = [name for name in found if name not in ('notebooks', 'dev', 'docs')]
    return found | {'all': sorted({line for name in users for line in found[name]})}


def addresses(): # what PyPI shows beside the package; nothing as long as the project has no address
    git, doc = cfg['git_url'], cfg['doc_url']
    pages = {'Source': git, 'Issues': git and f'{git}/issues', 'Documentation': doc,
             'Changelog': git and f'{git}/blob/{cfg["branch"]}/CHANGELOG.md'}
    return {name: url for name, url in pages.items() if url}


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    license_expression=cfg['license'], keywords=cfg['keywords'].split(), classifiers=CLASSIFIERS,
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown', project_urls=addresses(),
    packages=find_packages(include=['srdiag', 'srdiag.*']),
    # Said here and nowhere else: folders of trained networks hold files, and are no packages.
    include_package_data=False,
    package_data={'srdiag': ['py.typed'], 'srdiag.published': ['*.csv'], 'srdiag.styles': ['*.mplstyle'],
                  'srdiag.templates': ['*'], 'srdiag.pretrained': ['*/*']},
    python_requires=f'>={cfg["min_python"]}', install_requires=lines('requirements'),
    extras_require=extras(),
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['srdiag=srdiag._modidx:d']})
