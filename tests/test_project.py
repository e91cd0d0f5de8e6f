"The project files agree with each other: one version, one list of requirements, one set of commands."
import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try: import tomllib
except ModuleNotFoundError: import tomli as tomllib

ROOT = Path(__file__).parents[1]
LISTS = re.findall(r'^(\w*requirements) =$', (ROOT/'settings.ini').read_text(encoding='utf-8'), flags=re.M)
WORKERS = 'notebooks', 'dev', 'docs' # extras for who works on srdiag; the others are for users


def read(name): return (ROOT/name).read_text(encoding='utf-8')


def settings():
    config = ConfigParser(delimiters=['='], inline_comment_prefixes=(';',))
    config.read_string(read('settings.ini'))
    return config['DEFAULT']


def listed(key): return [line.strip() for line in settings()[key].splitlines() if line.strip()]


def required(): return [Requirement(line) for key in LISTS for line in listed(key)]


def commented(key):
    "The lines of a list in settings.ini as written, with their comments"
    section = re.search(rf'^{key} =\n((?:[ \t]+\S.*\n)+)', read('settings.ini'), flags=re.M)
    assert section, f'settings.ini has no list {key}.'
    return [line.strip() for line in section[1].splitlines()]


def pins():
    "constraints.txt as {name: version}"
    lines = [line.split('#')[0].strip() for line in read('constraints.txt').splitlines()]
    pairs = [line.split('==') for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs), 'Each line of constraints.txt is name==version.'
    assert len({canonicalize_name(name) for name, _ in pairs}) == len(pairs), (
        'constraints.txt names a package twice.')
    return {canonicalize_name(name): version for name, version in pairs}


def requirement_of(line): # "fastai>=2.8; extra == 'dev'" → what the line demands, written in one way
    r = Requirement(line)
    return canonicalize_name(r.name), str(r.specifier), re.sub(r'[\'" ]', '', str(r.marker or ''))


# --- one version ------------------------------------------------------------------------------------------

def test_setup_reports_the_version_of_settings():
    out = subprocess.run([sys.executable, 'setup.py', '--version'], cwd=ROOT, capture_output=True, text=True,
                         check=True).stdout
    assert out.split()[-1] == settings()['version']


def test_library_has_the_version_of_settings():
    tree = ast.parse(read('srdiag/__init__.py'))
    values = [node.value.value for node in tree.body
              if isinstance(node, ast.Assign) and node.targets[0].id == '__version__']
    assert values == [settings()['version']], (
        'srdiag/__init__.py and settings.ini disagree about the version.')


def test_citation_has_version_date_and_paper():
    citation = yaml.safe_load(read('CITATION.cff'))
    version, date = settings()['version'], str(citation['date-released'])
    assert str(citation['version']) == version, 'CITATION.cff has another version than settings.ini.'
    assert f'## [{version}] - {date}' in read('CHANGELOG.md'), (
        f'CHANGELOG.md lacks a section for {version} of {date}.')
    assert citation['license'] == settings()['license']
    assert [(r['type'], r['year']) for r in citation['references']] == [('article', 2021)], (
        'CITATION.cff names the paper.')


def test_licence_is_the_one_of_settings():
    assert read('LICENSE').startswith(f'{settings()["license"]} License')
    assert settings()['author'] in read('LICENSE')


# --- one place for everything else ------------------------------------------------------------------------

def test_pyproject_agrees_with_settings():
    config, own = tomllib.loads(read('pyproject.toml')), settings()
    project, nbdev = config['project'], config['tool']['nbdev']
    assert project['name'] == own['lib_name']
    assert (nbdev['lib_path'], nbdev['nbs_path']) == (own['lib_path'], own['nbs_path'])
    written = set(project) - {'name', 'dynamic'}
    assert not written, f'pyproject.toml gives {written}, which belongs in settings.ini alone.'


@pytest.fixture(scope='module')
def installed():
    try: dist = metadata.distribution('srdiag')
    except metadata.PackageNotFoundError: pytest.fail('srdiag is not installed: run make venv.')
    assert dist.version == settings()['version'], 'srdiag is installed in an older version: run make venv.'
    return dist


def test_console_scripts_are_installed(installed):
    scripts = {e.name: e.value for e in installed.entry_points if e.group == 'console_scripts'}
    assert scripts == dict(line.split('=') for line in listed('console_scripts'))
    assert 'srdiag' in scripts


def test_installed_requirements_are_those_of_settings(installed):
    extras = {key: key.removesuffix('requirements').rstrip('_') for key in LISTS}
    expected = {requirement_of(line + (f"; extra == '{name}'" if name else ''))
                for key, name in extras.items() for line in listed(key)}
    expected |= {requirement_of(f"{line}; extra == 'all'") for key, name in extras.items()
                 if name and name not in WORKERS for line in listed(key)}
    assert {requirement_of(line) for line in installed.requires} == expected, (
        'settings.ini has changed: run make venv.')


# --- requirements -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('key', LISTS)
def test_each_requirement_has_a_bound_and_a_reason(key):
    for line in commented(key):
        requirement, _, reason = line.partition(';')
        assert Requirement(requirement.strip()).specifier, f'{key}: {line!r} has no bound.'
        assert len(reason.split()) >= 2, f'{key}: {line!r} does not say why it is bounded so.'


def test_constraints_satisfy_each_requirement():
    pinned = pins()
    for r in required():
        name = canonicalize_name(r.name)
        assert name in pinned, f'constraints.txt does not pin {name}.'
        assert pinned[name] in r.specifier, (f'constraints.txt pins {name}=={pinned[name]}, but settings.ini '
                                             f'asks for {r.specifier}.')


def test_environment_satisfies_each_requirement():
    for r in required():
        version = metadata.version(r.name)
        fits = r.specifier.contains(version, prereleases=True)
        assert fits, (f'{r.name} {version} is installed, but settings.ini asks for {r.specifier}: run make '
                      'venv.')


# --- commands ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('command', ['make demo', 'make test'])
def test_readme_gives_the_command_and_make_knows_it(command):
    assert command in read('README.md'), f'README.md does not mention `{command}`.'
    assert re.search(rf'^{command.split()[1]}:', read('Makefile'), flags=re.M), (
        f'Makefile has no target for `{command}`.')


def test_continuous_integration_runs_make_test():
    script = ROOT/'.ci/run'
    assert script.stat().st_mode & 0o100, '.ci/run is not executable.'
    assert 'make test' in script.read_text(encoding='utf-8').splitlines()[-1]


# --- the first page ---------------------------------------------------------------------------------------

def test_made_pages_are_what_they_are_made_from():
    "README.md from nbs/index.ipynb, nbs/README.md from nbs/course.yml, results/README.md from the data files"
    done = subprocess.run([sys.executable, str(ROOT/'tools'/'readme.py'), '--check'], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_first_page_is_read_in_a_minute_and_says_what_this_is_not_for():
    page = read('README.md').split('-->', 1)[1]
    assert len(page.split()) <= 700
    assert 'for teaching and research, not for diagnostic use' in page.lower()


@pytest.mark.parametrize('page', ['README.md', 'nbs/README.md', 'results/README.md', 'CONTRIBUTING.md'])
def test_links_of_the_first_pages_lead_somewhere(page):
    for link in re.findall(r'\]\((?!\w+:|#)([^)#]+)', read(page)):
        assert ((ROOT/page).parent/link).exists(), f'{page} links to {link}, which does not exist.'


def test_the_code_of_the_first_page_runs(tmp_path):
    make = "import srdiag; x = srdiag.tissue()[:, :24, :32]; srdiag.save_png(x, 'tile.png')"
    code = re.search(r'^```python\n(.*?)^```', read('README.md'), flags=re.M | re.S)[1]
    look = "print(srdiag.read_image('enlarged.png').shape)"
    done = subprocess.run([sys.executable, '-c', f'{make}\n{code}\n{look}'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n')[-2] == 'torch.Size([3, 48, 64])'


# --- workflows --------------------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT/'.github'/'workflows').glob('*.yml'))


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda p: p.stem)
def test_workflow_says_when_it_runs_and_what_it_may(path):
    workflow = yaml.safe_load(path.read_text(encoding='utf-8'))
    assert workflow[True] and workflow['permissions']['contents'] == 'read' # YAML reads `on` as true
    for job in workflow['jobs'].values():
        assert job['timeout-minutes'] <= 90 and all('uses' in s or 'run' in s for s in job['steps'])
        for step in job['steps']:
            for script in re.findall(r'python (\S+\.py)', step.get('run', '')):
                assert (ROOT/script).is_file(), f'{path.name} runs {script}, which does not exist.'


def test_workflows_test_each_python_that_is_promised_on_three_systems():
    test = yaml.safe_load(read('.github/workflows/test.yml'))['jobs']['test']['strategy']['matrix']
    assert test['python'] == settings()['python_versions'].split()
    assert test['python'][0] == settings()['min_python'] and len(test['os']) == 3


def test_hooks_before_a_commit_are_named_and_exist():
    repos = yaml.safe_load(read('.pre-commit-config.yaml'))['repos']
    hooks = {hook['id'] for repo in repos for hook in repo['hooks']}
    assert {'nbdev-clean', 'nbdev-export', 'end-of-file-fixer', 'ruff-check'} <= hooks
