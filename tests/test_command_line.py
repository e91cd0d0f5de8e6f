"The command line is derived from dataclasses: what it offers, what it says about a mistake, what it loads."
import dataclasses
import re
import shutil
import subprocess
import sys

import pytest

from srdiag.bench.settings import DIAGNOSIS_BUDGETS, SR_BUDGETS, Design
from srdiag.commands.cli import COMMANDS, FAMILIES, completion, parse

commands = pytest.mark.parametrize('name', COMMANDS)
OUTPUT = ['--data', 'a', '--out', 'b']
SHELLS = ['bash', 'zsh', 'fish']


def words(text): # without boxes and line breaks
    return ' '.join(re.sub(r'[^\x21-\x7e]|[|+]', ' ', text).split())


def fields_of(kind): # of a command and of the settings in it, as far as they are options
    for f in dataclasses.fields(kind):
        if 'Suppress' in repr(f.type): continue
        if dataclasses.is_dataclass(f.default): yield from fields_of(type(f.default))
        else: yield f


# --- help -------------------------------------------------------------------------------------------------

def test_each_command_and_family_has_its_line(run_cli):
    code, out, err = run_cli('--help')
    assert code == 0 and not err
    assert all(f'  {name.split()[0]} ' in out for name in COMMANDS)
    for family in FAMILIES:
        code, out, err = run_cli(family, '--help')
        assert code == 0 and not err
        assert all(f'  {name.split()[1]} ' in out for name in COMMANDS if name.startswith(family + ' '))


@commands
def test_each_option_is_explained(name, run_cli):
    code, out, err = run_cli(*name.split(), '--help')
    assert code == 0 and not err and words(COMMANDS[name].__doc__) in words(out)
    text = re.sub(r'^ ?[-+|─╭╰].*options.*$', '', out, flags=re.M)
    entries = re.split(r'(?m)^\W{1,4}(?=-h, --help|--[a-z])', text)[1:]
    assert len(entries) > 1
    for entry in entries:
        option, *rest = words(entry).split(' ')
        explained = [w for w in rest if re.search('[a-z]', w) and not w.startswith(('{', '(default:'))]
        assert len(explained) > 1, f'srdiag {name} {option} has no help.'


@commands
def test_every_field_is_an_option(name, run_cli):
    text = words(run_cli(*name.split(), '--help')[1])
    for f in fields_of(COMMANDS[name]):
        if f.name in ('files', 'name'): continue # are written without an option
        own = dict(norm='affinity-norm', start='from') # from is a word of Python
        option = own.get(f.name, f.name.replace('_', '-'))
        assert f'--{"no-" if f.default is True else ""}{option} ' in text + ' ', f.name


@pytest.mark.parametrize('name', ['benchmark sr', 'experiment', 'experiment labels',
                                  'experiment interactions'])
def test_a_comparison_offers_no_option_that_it_does_not_heed(name, run_cli):
    text = run_cli(*name.split(), '--help')[1]
    for option in ('--learning-rate', '--early-stopping', '--log ', '--overwrite', '--resume '):
        assert option not in text, option


def test_defaults_units_and_choices_are_told(run_cli):
    text = words(run_cli('train-diagnosis', '--help')[1])
    for part in ('(default: 0.05)', '{frobenius,mean_square}', '(default: mean_square)',
                 'sac FLOAT 2 of the consistency'):
        assert part in text.replace('λ', '')
    assert 'None' not in text and 'False' not in text and '(default: True)' not in text


def test_the_version(run_cli):
    from srdiag import __version__
    assert run_cli('--version') == (0, f'srdiag {__version__}\n', '')


# --- values -----------------------------------------------------------------------------------------------

def test_without_options_the_settings_are_those_of_the_library():
    from srdiag.diagnosis.settings import Caution, FrameworkSettings
    from srdiag.sr.settings import SRSettings
    from srdiag.training.options import RunOptions
    made = parse(['train-diagnosis', *OUTPUT])
    assert (made.framework, made.caution, made.training) == (FrameworkSettings(), Caution(), RunOptions())
    assert parse(['train-sr', *OUTPUT]).network == SRSettings()
    assert parse(['benchmark', 'sr', *OUTPUT]).budget.decided() == SR_BUDGETS['quick']
    made = parse(['experiment', 'table5', *OUTPUT])
    assert (made.budget.decided(), made.design.decided()) == (DIAGNOSIS_BUDGETS['quick'], Design())


def test_switches_repetitions_and_files_without_an_option():
    made = parse(['train-diagnosis', *OUTPUT, '--no-sai', '--affinity-norm', 'frobenius', '--fixed'])
    assert not made.framework.sai and made.framework.affinity_norm == 'frobenius' and made.framework.fixed
    made = parse(['experiment', 'fig6', *OUTPUT, '--sr', 'one', '--sr', 'two=there', '--mode', 'solo'])
    assert made.sources.sr == ('one', 'two=there') and made.design.decided().train_mode == 'both'
    for argv in (['a', 'b', '--no-images', '--model', 'm', '--out', 'o'],
                 ['--out=o', '--no-images', '--model=m', 'a', 'b'],
                 ['--model', 'm', '--out', 'o', 'a', 'b', '--no-images']):
        made = parse(['predict', *argv])
        assert [str(p) for p in made.files] == ['a', 'b'] and made.no_images and str(made.model) == 'm'
    made = parse(['benchmark', 'sr', *OUTPUT, '--budget', 'smoke', '--steps', '7'])
    assert made.budget.decided() == dataclasses.replace(SR_BUDGETS['smoke'], steps=7)


# --- mistakes ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('argv, near', [
    (['trian-sr'], 'did you mean train-sr'), (['import', 'kvasir'], 'import kvasir-capsule'),
    (['build', 'endsr'], 'build endosr'), (['xyz'], 'choose one of demo'),
    (['benchmark', 'rs'], 'benchmark sr')])
def test_a_misspelt_command(argv, near, run_cli):
    code, out, err = run_cli(*argv)
    assert code == 2 and not out and err.count('\n') == 1 and near in err


@pytest.mark.parametrize('argv', [[], ['build'], ['import']])
def test_half_a_command_is_answered_with_what_there_is(argv, run_cli):
    code, out, err = run_cli(*argv)
    assert code == 2 and not out and 'usage: srdiag' in err and '--help' in err


@pytest.mark.parametrize('argv, near', [
    (['train-sr', *OUTPUT, '--step', '3'], '--steps'),
    (['train-diagnosis', *OUTPUT, '--afinity-norm', 'mean_square'], '--affinity-norm'),
    (['evaluate', '--model', 'm', '--data', 'a', '--spilt', 'all'], '--split')])
def test_a_misspelt_option(argv, near, run_cli):
    code, out, err = run_cli(*argv)
    assert code == 2 and not out and 'Traceback' not in err
    assert argv[-2] in err and near in words(err).partition('Perhaps you meant')[2]


@pytest.mark.parametrize('argv, sentence', [
    (['train-sr', *OUTPUT, '--steps', 0], 'A run needs --steps to be a whole number of 1 or more, not 0.'),
    (['distill', *OUTPUT, '--teacher', 't', '--phase1', 2],
     'A distillation needs --phase1 to be a number from 0 to 1, not 2.0.'),
    (['train-diagnosis', *OUTPUT, '--risk', 1], 'The risk that is wanted lies between 0 and 1, not at 1.0.'),
    (['benchmark', 'sr', *OUTPUT, '--batch-size', -1],
     'The budget needs --batch-size to be a whole number of 1 or more, not -1.')])
def test_values_that_make_no_sense(argv, sentence, refused):
    assert refused(*argv) == f'srdiag {argv[0]}: {sentence}\n'


def test_nothing_to_predict(refused):
    refused('predict', '--model', 'm', '--out', 'o', naming=['images or folders'])


# --- completion -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shell', SHELLS)
def test_completions_know_commands_options_and_choices(shell, run_cli):
    code, script, err = run_cli('--completion', shell)
    assert code == 0 and not err and script.strip() == completion(shell).strip()
    for word in ('train-diagnosis', 'kvasir-capsule', 'affinity-norm', 'no-sai', 'per-slide', 'frobenius'):
        assert word in script, f'{shell} does not complete {word}.'


@pytest.mark.skipif(not shutil.which('bash'), reason='there is no bash')
def test_bash_understands_its_completion(tmp_path):
    (tmp_path/'srdiag.bash').write_text(completion('bash'), encoding='utf-8')
    assert not subprocess.run(['bash', '-n', tmp_path/'srdiag.bash'], capture_output=True).stderr


def test_another_shell(run_cli):
    code, out, err = run_cli('--completion', 'dos')
    assert code == 2 and not out and 'bash, zsh, fish' in err


# --- what is loaded, and what a pipe does -----------------------------------------------------------------

SPY = '''
import contextlib,io,sys
from srdiag.commands.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try: main({argv})
    except SystemExit: pass
print(*[m for m in ('torch','numpy','pandas','fastai','PIL','matplotlib') if m in sys.modules])
'''


@pytest.mark.parametrize('argv', [
    ['--help'], ['build', 'histosr', '--help'], ['experiment', '--help'], ['--completion', 'bash'],
    ['train-sr', *OUTPUT, '--stops', '3'], ['train-sr', *OUTPUT, '--steps', '0']])
def test_help_and_mistakes_load_nothing_heavy(argv):
    done = subprocess.run([sys.executable, '-c', SPY.format(argv=argv)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which('bash'), reason='there is no bash')
def test_a_reader_who_has_enough():
    command = f'"{sys.executable}" -m srdiag.commands.cli train-diagnosis --help | head -n 1'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert 'usage' in done.stdout and not done.stderr
