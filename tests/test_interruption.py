"A save, a training, a prediction that is cut short: what was there before is whole, or what is new."
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from srdiag.core import unfinished
from srdiag.core.errors import ModelError
from srdiag.core.together import KEY, SAVED, _mark, left_behind, placed, replacing_all, settle
from srdiag.core.unfinished import differences, progress_of
from srdiag.models import saving
from srdiag.models.saving import ModelSaver, check_output, load_model, save_model
from srdiag.models.info import ModelInfo
from srdiag.models.split import read_split
from srdiag.sr.zoo import create_model
from srdiag.training.resume import Resume

CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT # of a file that is opened
EVENTS = 'open', 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'os.truncate', 'os.link', 'os.symlink'
forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot copy a process')


# Saving

def network(value):
    "A small network all of whose weights are `value`"
    net = create_model('srcnn_x2', channels=4)
    with torch.no_grad():
        for p in net.parameters(): p.fill_(value)
    return net


OLD, NEW = (network(v) for v in (1., 2.))


def save(folder, net, name, **kwargs):
    split = f'file,split\n{name}.png,train\n'
    save_model(folder, net, ModelInfo(name), files={'split.csv': split}, **kwargs)


def found_in(folder):
    "'old' or 'new', if every part of the model is of the same one"
    net, info = load_model(folder)
    weights = {p.unique().tolist()[0] for p in net.parameters()}
    assert weights == {dict(old=1., new=2.)[info.title]}
    assert list(read_split(folder).file) == [f'{info.title}.png']
    return info.title


def in_a_copy(work, at, what):
    """Run `work` in a copy of this process, in which `what` happens at the system call number `at` that
    changes something; how the copy ended: its status, or the signal as a negative number"""
    if child := os.fork(): return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [at]

    def hook(event, args):
        if event not in EVENTS or event == 'open' and not (args[2] or 0) & CHANGES: return
        left[0] -= 1
        if left[0] == -1: what()
    try:
        sys.addaudithook(hook)
        work()
        left[0] = -2
        os._exit(0)
    except ModelError: os._exit(2)
    except BaseException as e:
        print(f'{type(e).__name__}: {e}', file=sys.__stderr__)
        os._exit(1)


def kill(): os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(): raise OSError(errno.ENOSPC, 'No space left on device')


OWN = {'notes.txt': 'mine', 'figures/one.txt': 'mine', 'log.csv': 'epoch'}


def prepared(folder, case):
    if case == 'empty place': return
    save(folder, OLD, 'old')
    for name, text in OWN.items() if case == 'own files' else ():
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_text(text)


@forks
@pytest.mark.parametrize('case, what', [('empty place', kill), ('old model', kill), ('own files', kill),
                                        ('own files', fill_disk)])
def test_a_save_is_cut_short_at_every_system_call(case, what, tmp_path):
    seen, at = [], 0
    while not seen or seen[-1] != 'done':
        folder = tmp_path/f'{at}'/'model'
        prepared(folder, case)
        ended = in_a_copy(lambda: save(folder, NEW, 'new', overwrite=True), at, what)
        assert ended in (0, 2 if what is fill_disk else -signal.SIGKILL)
        if case == 'empty place' and not (folder/'config.json').is_file():
            check_output(folder) # as good as empty: nobody needs --overwrite
            seen.append('nothing')
        else: seen.append(found_in(folder))
        if case == 'own files': assert all((folder/name).read_text() == text for name, text in OWN.items())
        if folder.is_dir(): settle(folder)
        assert not left_behind(folder) and (seen[-1] == 'nothing' or found_in(folder) == seen[-1])
        save(folder, NEW, 'new', overwrite=True)
        assert found_in(folder) == 'new' and set(os.listdir(tmp_path/f'{at}')) == {'model'}
        if ended == 0 and seen[-1] == 'new' and what is kill: seen.append('done')
        if what is fill_disk and at > 20: seen.append('done')
        shutil.rmtree(tmp_path/f'{at}')
        at += 1
    order = {'nothing': 0, 'old': 0, 'new': 1, 'done': 2}
    if what is kill: assert sorted(seen, key=order.get) == seen and at > 8
    assert seen.count('new') > 1


@forks
def test_a_file_that_cannot_grow(tmp_path):
    "A real write that fails, in the middle of the weights"
    save(tmp_path/'model', OLD, 'old')

    import resource

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        save(tmp_path/'model', NEW, 'new', overwrite=True)
    assert in_a_copy(work, -5, kill) == 2
    assert found_in(tmp_path/'model') == 'old' and not left_behind(tmp_path/'model')


def killed_after_the_moment(folder, write, key, monkeypatch):
    "A save whose key is in its place, and nothing else"
    with monkeypatch.context() as m:
        m.setattr('srdiag.core.together._take_places', lambda *_: fill_disk())
        with replacing_all(folder, key) as new: write(new)


def write_files(**texts):
    def write(folder):
        for name, text in texts.items(): (folder/name).write_text(text)
    return write


def test_another_key_leaves_what_is_not_its_own(tmp_path, monkeypatch):
    "A graph in the folder of a model, after a save that was killed; and the other way round"
    model, graph = write_files(**{KEY: 'new', 'weights': 'new'}), write_files(xml='graph', bin='graph')
    for first, key, second, other in ((model, KEY, graph, 'xml'), (graph, 'xml', model, KEY)):
        folder = tmp_path/key
        folder.mkdir()
        write_files(weights='old', bin='old')(folder)
        killed_after_the_moment(folder, first, key, monkeypatch)
        rest = 'weights' if key == KEY else 'bin'
        assert placed(folder, rest, key).read_text() != 'old' == (folder/rest).read_text()
        with replacing_all(folder, other) as new: second(new)
        assert {p.name: p.read_text() for p in folder.iterdir()} == {KEY: 'new', 'weights': 'new',
                                                                     'xml': 'graph', 'bin': 'graph'}


@pytest.mark.parametrize('key', [KEY, 'graph.xml'])
def test_what_earlier_versions_left_takes_its_place(key, tmp_path):
    "They did not name the key"
    (tmp_path/key).write_text('in force')
    waiting, rubbish = tmp_path/f'{SAVED}{_mark(tmp_path, key)}', tmp_path/f'{SAVED}0123456789abcdef'
    for folder in (waiting, rubbish):
        folder.mkdir()
        (folder/'weights').write_text(folder.name)
    settle(tmp_path, key)
    assert not left_behind(tmp_path) and (tmp_path/'weights').read_text() == waiting.name


def test_who_reads_while_it_is_saved_finds_one_model(tmp_path):
    folder, done = tmp_path/'model', threading.Event()
    save(folder, OLD, 'old')

    def go_on():
        while not done.is_set():
            for net, name in ((NEW, 'new'), (OLD, 'old')): save(folder, net, name, overwrite=True)
    writer = threading.Thread(target=go_on)
    writer.start()
    try: seen = {next(net.parameters()).mean().item() == dict(old=1., new=2.)[info.title]
                 for net, info in (load_model(folder) for _ in range(60))}
    finally:
        done.set()
        writer.join()
    assert seen == {True}


def test_a_folder_of_the_user_with_the_name_of_a_file(tmp_path):
    save(tmp_path/'model', OLD, 'old')
    (tmp_path/'model'/'split.csv').unlink()
    (tmp_path/'model'/'split.csv').mkdir()
    (tmp_path/'model'/'split.csv'/'mine.txt').write_text('mine')
    with pytest.raises(Exception, match='split.csv is a folder'):
        save(tmp_path/'model', NEW, 'new', overwrite=True)
    assert (tmp_path/'model'/'split.csv'/'mine.txt').read_text() == 'mine'
    assert load_model(tmp_path/'model')[1].title == 'old'


def test_a_link_is_followed_or_refused(tmp_path):
    save(tmp_path/'far'/'model', OLD, 'old')
    (tmp_path/'model').symlink_to(tmp_path/'far'/'model')
    save(tmp_path/'model', NEW, 'new', overwrite=True)
    assert (tmp_path/'model').is_symlink() and found_in(tmp_path/'far'/'model') == 'new'
    (tmp_path/'nowhere').symlink_to(tmp_path/'gone')
    with pytest.raises(ModelError, match='a link to .*gone, which does not exist'):
        save(tmp_path/'nowhere', NEW, 'new')
    assert not (tmp_path/'gone').exists()


def test_a_linked_file_of_a_model_is_not_written_through(tmp_path):
    save(tmp_path/'model', OLD, 'old')
    (tmp_path/'card.md').write_text("somebody's")
    (tmp_path/'model'/'README.md').unlink()
    (tmp_path/'model'/'README.md').symlink_to(tmp_path/'card.md')
    save(tmp_path/'model', NEW, 'new', overwrite=True)
    assert (tmp_path/'card.md').read_text() == "somebody's"
    assert not (tmp_path/'model'/'README.md').is_symlink()


# Trainings

def test_names_that_occur_twice_hide_nothing():
    run = dict(network=dict(steps=2, width=8), training=dict(steps=100, seed=0))
    def other(**parts): return {k: v | parts.get(k, {}) for k, v in run.items()}
    assert not differences(run, other())
    assert differences(run, other(network=dict(steps=3))) == ['network.steps (2, now 3)']
    assert differences(run, other(training=dict(steps=9, seed=5))) == ['training.steps (100, now 9)',
                                                                       'seed (0, now 5)']
    # earlier versions did not note it
    assert not differences(run, other(training=dict(supervise_steps=True)))
    known = other(training=dict(supervise_steps=True))
    assert differences(known, run) == ['supervise_steps (True, now none)']


class Killed(BaseException):
    "Nobody catches this, as nobody catches a kill"


@pytest.fixture
def killed_at(monkeypatch):
    "A function: a training is killed before it keeps an epoch for the n-th time from now; None: never"
    keep, left = Resume.keep, [None]

    def keep_or_die(self):
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0: raise Killed
        keep(self)
    monkeypatch.setattr(Resume, 'keep', keep_or_die)

    def killed_at(n): left[0] = n
    return killed_at


def weights_of(folder):
    "Every model below a folder: path → weights"
    return {p.relative_to(folder).as_posix(): load_file(p) for p in sorted(folder.rglob('model.safetensors'))}


def same(a, b):
    a, b = weights_of(a), weights_of(b)
    return a.keys() == b.keys() and all(torch.equal(x, b[name][k]) for name in a for k, x in a[name].items())


def rows(path): return pd.read_csv(path).drop(columns='time', errors='ignore')


TINY = ['--device', 'cpu', '--precision', 'fp32', '--scale', 2]


@pytest.fixture(scope='module')
def teacher(sr_folder, succeeds, tiny_sr, tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher')/'model'
    succeeds('train-sr', '--data', sr_folder, '--out', folder, '--recursions', 2, *tiny_sr)
    return folder


@pytest.fixture
def commands(teacher, sr_folder, labelled):
    "name → words of a command without --out, and how many epochs to let pass before each kill"
    few = ['--steps', 3, '--patch', 16, '--device', 'cpu', '--precision', 'fp32', '--data', sr_folder]
    return {'train-sr': (['train-sr', *few, '--scale', 2, '--epochs', 3], [2]),
            'distill': (['distill', *few, '--teacher', teacher, '--epochs', 4, '--two-schedules'], [1, 1]),
            # a distance that remembers its units and trains a regressor
            'hints': (['distill', *few, '--teacher', teacher, '--epochs', 3, '--by', 'hints_regressor'], [1]),
            # two epochs for each branch, two for both
            'train-diagnosis': (['train-diagnosis', '--data', labelled, '--images', 'hr', '--inputs',
                                 'LR+ILR', '--epochs', 6, '--batch-size', 8, '--width', 8, *TINY], [1, 2, 2])}


@pytest.mark.parametrize('name', ['train-sr', 'distill', 'hints', 'train-diagnosis'])
def test_a_killed_training_ends_with_the_same_bits(name, commands, killed_at, tmp_path, run_cli, succeeds,
                                                   monkeypatch):
    (words, kills), whole, out = commands[name], tmp_path/'whole', tmp_path/'out'
    succeeds(*words, '--out', whole)
    clock = iter(range(10**6, 0, -1)) # runs back
    monkeypatch.setattr(time, 'time', lambda: next(clock))
    for n, pause in enumerate(kills):
        killed_at(pause)
        with pytest.raises(Killed): run_cli(*words, '--out', out, *(['--resume'] if n else []))
        code, _, err = run_cli(*words, '--out', out)
        assert code == 2 and 'was interrupted' in err and '--resume' in err
    killed_at(None)
    code, _, err = run_cli(*words, '--out', out, '--resume', '--seed', 5)
    assert code == 2 and ('seed (0, now 5)' in err)
    printed = succeeds(*words, '--out', out, '--resume')
    assert 'Going on after epoch' in printed
    assert same(whole, out) and not progress_of(out) and not list(out.rglob('.unfinished'))
    for log in ('log.csv', 'steps.csv'): assert rows(whole/log).equals(rows(out/log))
    code, _, err = run_cli(*words, '--out', out, '--resume')
    assert code == 2 and 'nothing to resume' in err
    seconds = json.loads((out/'config.json').read_text())['info']['training']['seconds']
    assert seconds >= 0


def test_a_run_with_other_recursions_is_another_run(sr_folder, killed_at, tmp_path, run_cli, succeeds):
    words = ['train-sr', '--data', sr_folder, '--steps', 2, '--patch', 16, '--epochs', 2, '--out',
             tmp_path/'out', *TINY, '--stages', 1, '--blocks', 1]
    killed_at(1)
    with pytest.raises(Killed): run_cli(*words, '--recursions', 2)
    killed_at(None)
    for more, said in (([2, '--supervise-steps'], 'supervise_steps (False, now True)'),
                       ([3], 'network.steps (2, now 3)'), ([1], 'network.steps (2, now 1)')):
        code, _, err = run_cli(*words, '--resume', '--recursions', *more)
        assert code == 2 and 'cannot be gone on with' in err and said in err
    # a run of an earlier version
    known = json.loads((path := tmp_path/'out'/'.unfinished'/'run.json').read_text())
    del known['training']['supervise_steps']
    path.write_text(json.dumps(known))
    code, _, err = run_cli(*words, '--resume', '--recursions', 2, '--supervise-steps')
    assert code == 2 and 'is of another network' in err
    assert 'Going on after epoch' in succeeds(*words, '--resume', '--recursions', 2)


def test_a_run_killed_before_it_had_anything(commands, killed_at, tmp_path, run_cli, succeeds):
    "It needs no --overwrite"
    words, _ = commands['train-diagnosis']
    killed_at(0)
    out = tmp_path/'out'
    for _ in range(2):
        with pytest.raises(Killed): run_cli(*words, '--out', out, '--overwrite')
        # as if it had been killed before the first model was saved
        for p in list(out.rglob('model.safetensors')): shutil.rmtree(p.parent)
    for place in (out, out/'branches'/'LR'): (place/'.unfinished').mkdir(parents=True, exist_ok=True)
    killed_at(None)
    succeeds(*words[:-2], '--scale', 2, '--epochs', 3, '--out', out)


@pytest.fixture
def started(tmp_path):
    "A function: start `srdiag` in a process of its own and wait; it is ended at the end of the test"
    running = []

    def started(*words, until):
        log = open(tmp_path/'said.txt', 'a')
        running.append(subprocess.Popen([sys.executable, '-m', 'srdiag.commands.cli', *map(str, words)],
                                        stdout=log, stderr=log))
        for _ in range(1200):
            if until() or running[-1].poll() is not None: break
            time.sleep(0.1)
        assert running[-1].poll() is None, (tmp_path/'said.txt').read_text()
        return running[-1]
    yield started
    for process in running:
        process.kill()
        process.wait()


def test_a_queue_ends_it_and_a_second_one_waits(sr_folder, tmp_path, started, run_cli, monkeypatch):
    out = tmp_path/'out'
    words = ['train-sr', '--data', sr_folder, '--out', out, '--scale', 2, '--steps', 5, '--patch', 16,
             '--epochs', 5000, '--device', 'cpu']
    process = started(*words, until=lambda: progress_of(out))
    monkeypatch.setattr(unfinished, 'LOCK_PATIENCE', 0.1)
    for more in ('--overwrite', '--resume'):
        code, _, err = run_cli(*words, more)
        assert code == 2 and 'Another process is training into' in err
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    said = (tmp_path/'said.txt').read_text()
    assert 'interrupted after epoch' in said and '--resume' in said and 'Traceback' not in said
    assert progress_of(out) and (out/'log.csv').is_file() and load_model(out)


def test_a_state_that_somebody_has_damaged(sr_folder, tmp_path, run_cli, killed_at):
    words = ['train-sr', '--data', sr_folder, '--out', tmp_path/'out', '--scale', 2, '--steps', 2,
             '--patch', 16, '--epochs', 3, '--device', 'cpu']
    killed_at(1)
    with pytest.raises(Killed): run_cli(*words)
    (tmp_path/'out'/'.unfinished'/'after-1-of-3.pt').write_bytes(b'PK')
    code, _, err = run_cli(*words, '--resume')
    assert code == 2 and 'damaged' in err and '--overwrite' in err and err.count('\n') == 1


def test_several_processes_keep_no_states(sr_folder, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(saving, 'is_together', lambda: True)
    refused('train-sr', '--data', sr_folder, '--out', tmp_path/'out', '--resume', '--patch', 16,
            '--device', 'cpu', naming=['--resume is for one'])


def test_a_model_that_is_replaced_stays_until_there_is_a_better_one(sr_folder, tmp_path, killed_at, run_cli):
    save(tmp_path/'out', OLD, 'old')
    (tmp_path/'out'/'notes.txt').write_text('mine')
    saver = ModelSaver(tmp_path/'out', NEW, True, pd.DataFrame(dict(file=['new.png'], split=['train'])))
    with saver.run:
        saver.take()
        assert found_in(tmp_path/'out') == 'old'
        saver(ModelInfo('new'))
    assert found_in(tmp_path/'out') == 'new' and (tmp_path/'out'/'notes.txt').read_text() == 'mine'
    assert set(os.listdir(tmp_path/'out')) == {'config.json', 'model.safetensors', 'README.md', 'split.csv',
                                               'notes.txt'}


# Each night: kill -9 at random moments

NIGHTLY = { # command → words; `sr`, `labelled`, `teacher`, `model` stand for what is there
    'train-sr': ['--data', 'sr', '--scale', 2, '--steps', 10, '--patch', 16, '--epochs', 12],
    'distill': ['--data', 'sr', '--teacher', 'teacher', '--steps', 10, '--patch', 16, '--epochs', 12],
    'train-diagnosis': ['--data', 'labelled', '--images', 'hr', '--inputs', 'LR+ILR', '--scale', 2,
                        '--width', 8, '--batch-size', 8, '--epochs', 18],
    'evaluate': ['--data', 'sr', '--model', 'teacher', '--split', 'all'],
    'predict': ['sr', '--model', 'teacher']}
TRAIN = 'train-sr', 'distill', 'train-diagnosis'


def run_for(words, seconds=None):
    "Run `srdiag` in a process of its own and kill it after so many seconds; its status"
    process = subprocess.Popen([sys.executable, '-m', 'srdiag.commands.cli', *map(str, words)],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try: said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode


@pytest.mark.nightly
@pytest.mark.parametrize('name', NIGHTLY)
def test_killed_twenty_times(name, sr_folder, labelled, teacher, tmp_path):
    known = dict(sr=sr_folder, labelled=labelled, teacher=teacher)
    words = [name, *(known.get(w, w) for w in NIGHTLY[name]), '--device', 'cpu']
    start = time.monotonic()
    assert run_for([*words, '--out', tmp_path/'whole']) == 0
    takes, out, draw = time.monotonic() - start, tmp_path/'out', random.Random(name)
    trains = name in TRAIN
    shutil.copytree(teacher if trains else tmp_path/'whole', out)
    if trains: (out/'notes.txt').write_text('mine')
    kills = 0
    while kills < 20:
        pause = draw.uniform(0.2, 1)*takes
        kills += run_for([*words, '--out', out, '--overwrite', *(['--resume'] if trains else [])], pause) != 0
        if not trains: continue
        assert load_model(out) and (out/'notes.txt').read_text() == 'mine'
        if not progress_of(out) and load_model(out)[1].notes == '' and kills < 20: # it has come to its end
            shutil.rmtree(out)
            shutil.copytree(teacher, out)
            (out/'notes.txt').write_text('mine')
    assert run_for([*words, '--out', out, '--overwrite', *(['--resume'] if trains else [])]) == 0
    assert not left_behind(out) and not list(out.rglob('.unfinished'))
    if trains: assert same(tmp_path/'whole', out) and (out/'notes.txt').read_text() == 'mine'
    else: assert {p.name for p in out.rglob('*')} == {p.name for p in (tmp_path/'whole').rglob('*')}
