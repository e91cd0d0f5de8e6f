"Packaging: every fact comes from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=['='], inline_comment_prefixes=(';',))
settings.read(here/'settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']


def lines(key): return [line.strip() for line in cfg[key].splitlines() if line.strip()]


setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
      long_description=(here/'README.md').read_text(encoding='utf-8'),
      long_description_content_type='text/markdown', author=cfg['author'], author_email=cfg['author_email'],
      license=cfg['license'], keywords=cfg['keywords'].split(), classifiers=[
              'Programming Language :: Python :: 3', 'Intended Audience :: Education',
              'Intended Audience :: Science/Research',
              'Topic :: Scientific/Engineering :: Medical Science Apps.'],
      packages=find_packages(include=['srdiag', 'srdiag.*']),
      package_data={'srdiag': ['**/*.csv', '**/*.mplstyle', '**/*.html', 'pretrained/*/*']},
      python_requires='>='+cfg['min_python'], install_requires=lines('requirements'),
      extras_require={'notebooks': lines('notebooks_requirements'), 'dev': lines('dev_requirements'),
                      'docs': lines('docs_requirements')},
      entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['srdiag=srdiag._modidx:d']})
