"""Predictions of any number and size of files: constant memory, shards, and results that are whole or not
there, whenever the process is killed."""
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srdiag.core.weights import read_config
from srdiag.data.images import find_images, save_png

ROOM = 'unfinished'


def rows(path): return list(csv.DictReader(path.open(encoding='utf-8')))


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*'))
            if p.is_file() and not p.name.startswith('.')}


def start(*argv):
    "The command in a process of its own"
    return subprocess.Popen([sys.executable, '-m', 'srdiag.commands.cli', *map(str, argv)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def peak(*argv):
    "The largest resident memory of the command in MB"
    code = ('import resource, sys; from srdiag.commands.cli import main; rc = main(sys.argv[1:])\n'
            'print(rc, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)')
    done = subprocess.run([sys.executable, '-c', code, *map(str, argv)], capture_output=True, text=True)
    rc, mb = done.stdout.split()[-2:]
    assert rc == '0', done.stderr
    return int(mb)


# Any number of files

def test_memory_does_not_grow_with_the_number_of_files(models, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    for n in (4, 60):
        (tmp_path/f'{n}').mkdir()
        for k in range(n): picture.save(tmp_path/f'{n}'/f'{k:02d}.jpg', quality=30)
    few, many = (peak('predict', tmp_path/f'{n}', '--model', models.lr, '--out', tmp_path/f'o{n}',
                      '--size', 8) for n in (4, 60))
    assert len(rows(tmp_path/'o60/predictions.csv')) == 60
    assert many - few < 100, f'4 images: {few} MB, 60 images: {many} MB' # together they have 194 MB


def test_rows_are_written_as_they_come(models, sr_folder, tmp_path, monkeypatch, run_cli):
    seen = []
    from srdiag.commands import predict

    def looked(*args, **kwargs):
        table = tmp_path/'out'/ROOM/'predictions.csv'
        seen.append(len(rows(table)) if table.exists() else 0)
        if seen[-1]: json.loads((tmp_path/'out'/ROOM/'predictions.json').read_text())
        return enlarge(*args, **kwargs)
    enlarge = predict.super_resolve
    monkeypatch.setattr(predict, 'super_resolve', looked)
    code, *_ = run_cli('predict', sr_folder, '--model', models.sr, '--out', tmp_path/'out')
    assert code == 0 and seen == [0, 1, 2, 3, 4, 5] and not (tmp_path/'out'/ROOM).exists()


def test_rows_name_the_model(models, sr_folder, tmp_path, succeeds):
    succeeds('predict', sr_folder, '--model', models.sr, '--out', tmp_path/'out', '--no-images')
    digest = read_config(models.sr)['weights_sha256']
    assert {(r['model'], r['weights_sha256']) for r in rows(tmp_path/'out/predictions.csv')} == {
        (models.sr.name, digest)}


def test_files_that_cannot_be_read_are_in_a_table(models, tmp_path, fill, succeeds):
    data = tmp_path/'data'
    fill(data, 3)
    for k in range(7): (data/f'broken{k}.png').write_bytes(b'no image')
    said = succeeds('predict', data, '--model', models.sr, '--out', tmp_path/'out')
    assert '7 of 10 images were skipped' in said and 'and 2 more' in said
    skipped = rows(tmp_path/'out/skipped.csv')
    assert len(skipped) == 7 and skipped[0]['file'] == str(data/'broken0.png') and skipped[0]['why']
    for p in data.glob('broken*'): p.unlink()
    succeeds('predict', data, '--model', models.sr, '--out', tmp_path/'out', '--overwrite')
    assert not (tmp_path/'out/skipped.csv').exists()


def test_a_file_that_vanishes_meanwhile(models, tmp_path, fill, succeeds, monkeypatch):
    from srdiag.commands import predict
    paths = fill(tmp_path/'data', 4)
    monkeypatch.setattr(predict, 'say_unread', lambda files: paths[2].unlink())
    said = succeeds('predict', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'out')
    assert '1 of 4 images was skipped' in said and 'does not exist' in said
    assert len(rows(tmp_path/'out/predictions.csv')) == 3


# Shards

def test_shards_together_are_the_whole(models, labelled, tmp_path, succeeds):
    argv = 'predict', labelled, '--model', models.diagnosis, '--images', 'hr', '--device', 'cpu', '--out'
    succeeds(*argv, tmp_path/'whole')
    for i in (2, 1, 3): succeeds(*argv, tmp_path/'parts', '--shard', f'{i}/3')
    whole = rows(tmp_path/'whole/predictions.csv')
    parts = [r for i in (1, 2, 3) for r in rows(tmp_path/f'parts/predictions-{i}-of-3.csv')]
    assert [r['file'] for r in whole] == [r['file'] for r in parts]
    for a, b in zip(whole, parts):
        assert float(a['ens_ill']) == pytest.approx(float(b['ens_ill']), abs=1e-4)
        assert (tmp_path/'whole'/a['sr_image']).read_bytes() == (tmp_path/'parts'/b['sr_image']).read_bytes()


@pytest.mark.parametrize('shard', ['0/0', '0/4', '5/4', '1', '1/2/3', '-1/4', 'a/b', '1/0', '', '1.5/2'])
def test_shards_that_there_are_not(shard, models, sr_folder, tmp_path, refused):
    refused('predict', sr_folder, '--model', models.sr, '--out', tmp_path/'out', f'--shard={shard}',
            naming=['shard', 'i/n'])
    assert not (tmp_path/'out').exists()


def test_more_shards_than_images(models, sr_folder, tmp_path, refused):
    refused('predict', sr_folder, '--model', models.sr, '--out', tmp_path/'out', '--shard', '1/7',
            naming=['6 images', '7 shards'])


def test_shards_of_a_folder_that_has_changed(models, tmp_path, fill, succeeds, refused):
    fill(tmp_path/'data', 4)
    argv = 'predict', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'out', '--shard'
    succeeds(*argv, '1/2')
    (tmp_path/'data/slide0__tile.png').rename(tmp_path/'data/new.png')
    refused(*argv, '2/2', naming=['changed since', 'begin anew'])
    refused(*argv, '2/3', naming=['2 parts', 'another output folder'])
    refused(*argv[:-1], naming=['not empty'])


# Whole or not at all

@pytest.fixture
def two(models, tmp_path, fill, tile):
    "Arguments of a prediction of four images, and of one of five others"
    fill(tmp_path/'old', 4)
    for k in range(6): save_png(tile(20+k, 32), tmp_path/f'new{k}.png')
    new = [tmp_path/f'new{k}.png' for k in range(6)]
    save_png(tile(30, 32), tmp_path/'slide0__tile.png') # a name that both have
    argv = '--model', models.sr, '--out', tmp_path/'out'
    return ['predict', tmp_path/'old', *argv], ['predict', *new, tmp_path/'slide0__tile.png', *argv]


def check_whole(out, old, new):
    "The old results, the new ones, or no table"
    found = files_in(out)
    assert {k: v for k, v in found.items() if not k.startswith(ROOM)} in (old, new) or (
        'predictions.csv' not in found), sorted(found)


@pytest.mark.parametrize('times', [3, pytest.param(20, marks=pytest.mark.nightly)])
def test_killed_at_random_moments(times, two, tmp_path, succeeds):
    first, second = two
    succeeds(*first)
    old = files_in(tmp_path/'out')
    second = [a if a != tmp_path/'out' else tmp_path/'other' for a in second]
    succeeds(*second)
    new = files_in(tmp_path/'other')
    second = [a if a != tmp_path/'other' else tmp_path/'out' for a in second]
    begin = time.time()
    p = start(*second, '--overwrite')
    p.communicate()
    long, rng = time.time() - begin, random.Random(times)
    assert files_in(tmp_path/'out') == new
    for _ in range(times):
        succeeds(*first, '--overwrite')
        p = start(*second, '--overwrite')
        time.sleep(long*rng.uniform(0.5, 1.05))
        p.send_signal(signal.SIGKILL)
        p.communicate()
        check_whole(tmp_path/'out', old, new)
    succeeds(*second, '--overwrite')
    assert files_in(tmp_path/'out') == new


def test_a_killed_first_run_needs_no_overwrite(two, tmp_path, succeeds):
    first, _ = two
    (tmp_path/'out'/ROOM).mkdir(parents=True)
    for name in ('.srdiag', f'{ROOM}/.lock'): (tmp_path/'out'/name).touch()
    (tmp_path/'out'/ROOM/'predictions.csv').write_text('file\nx\n')
    assert 'stopped before its end' in succeeds(*first)
    assert len(rows(tmp_path/'out/predictions.csv')) == 4 and not (tmp_path/'out'/ROOM).exists()


@pytest.mark.parametrize('skipped', [0, 1])
def test_a_kill_between_any_two_moves_costs_nothing(skipped, tmp_path, monkeypatch):
    import pandas as pd
    from srdiag.commands import results
    class Killed(BaseException): pass
    steps = [(results.os, 'replace'), (Path, 'unlink'), (Path, 'rename'), (Path, 'mkdir')]

    def predicted(out, word, skipped):
        found = results.Results(results.check_place_of_results(out, True),
                                dict(model='m', weights_sha256='w', shards=None, files='f'))
        results.add_rows(found, pd.DataFrame(dict(file=['a', 'b'], word=word)))
        results.add_picture(found, 'a.png', lambda path: path.write_text(word))
        for k in range(skipped): results.add_skipped(found, f'{k}', word)
        return found

    def dies(real): # at the step of that number, and does nothing any more
        def dying(*args, **kwargs):
            count.append(1)
            if len(count) >= step: raise Killed
            return real(*args, **kwargs)
        return dying
    for step in range(1, 100):
        out, count = tmp_path/f'{step}', []
        results.complete(predicted(out, 'old', 1))
        old, killed, kept = files_in(out), False, predicted(out, 'new', skipped)
        with monkeypatch.context() as m:
            for owner, name in steps: m.setattr(owner, name, dies(getattr(owner, name)))
            try: results.complete(kept)
            except Killed: killed = True
        kept._lock.release()
        results.check_place_of_results(out, True)
        record = json.loads((out/'.predictions.json').read_text())
        new = files_in(out)
        assert not (out/ROOM).exists()
        if record['skipped'] == 1 and new == old: continue
        assert set(new) == {'predictions.csv', 'predictions.json', 'sr/a.png', *['skipped.csv'][:skipped]}
        assert all(b'new' in content for content in new.values()) and record['skipped'] == skipped
        if not killed: break
    assert step > 10


def test_a_failure_leaves_the_old_results(two, tmp_path, succeeds, run_cli, monkeypatch):
    first, second = two
    succeeds(*first)
    old = files_in(tmp_path/'out')
    from srdiag.commands import predict
    enlarge, calls = predict.super_resolve, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5: raise error
        return enlarge(*args, **kwargs)
    monkeypatch.setattr(predict, 'super_resolve', fail)
    for error, says in ((OSError(28, 'No space left on device'), 'What was there before is unchanged'),
                        (KeyboardInterrupt(), 'interrupted')):
        calls.clear()
        code, _, err = run_cli(*second, '--overwrite')
        assert code and says in err and 'Traceback' not in err
        assert files_in(tmp_path/'out') == old


def test_a_file_that_a_table_only_lists_is_kept(two, tmp_path, succeeds, refused):
    first, second = two
    succeeds(*first)
    out = tmp_path/'out'
    (out/'sr'/'mine.png').write_bytes(b'mine')
    with open(out/'predictions.csv', 'a') as f: f.write('x,1,1,sr/mine.png,m,0\n')
    (out/'sr'/'slide1__tile.png').write_bytes(b'with an arrow')
    succeeds(*second, '--overwrite')
    assert (out/'sr'/'mine.png').read_bytes() == b'mine'
    assert (out/'sr'/'slide1__tile.png').read_bytes() == b'with an arrow'
    assert not (out/'sr'/'slide2__tile.png').exists()
    refused(*first, '--overwrite', naming=['slide1__tile.png', 'move it away'])
    assert (out/'sr'/'slide1__tile.png').read_bytes() == b'with an arrow'


@pytest.mark.parametrize('name', ['sr', 'predictions.csv', '.srdiag', '.predictions.json'])
def test_links_are_not_written_through(name, two, tmp_path, succeeds, refused):
    first, second = two
    succeeds(*first)
    out = tmp_path/'out'
    if (out/name).is_dir(): (out/name).rename(tmp_path/'theirs')
    else: (out/name).replace(tmp_path/'theirs')
    os.symlink(tmp_path/'theirs', out/name)
    theirs = tmp_path/'theirs'
    before = files_in(theirs) if theirs.is_dir() else theirs.read_bytes()
    refused(*second, '--overwrite', naming=['is a link'])
    assert (files_in(theirs) if theirs.is_dir() else theirs.read_bytes()) == before


def test_results_inside_the_folder_of_images(models, tmp_path, fill, succeeds):
    fill(tmp_path/'data', 4)
    argv = 'predict', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'data'/'out'
    for i in (1, 2): succeeds(*argv, '--shard', f'{i}/2')
    assert [len(rows(tmp_path/f'data/out/predictions-{i}-of-2.csv')) for i in (1, 2)] == [2, 2]
    assert len(find_images(tmp_path/'data')) == 8


def test_two_processes_on_one_folder(two, tmp_path, refused):
    first, _ = two
    from srdiag.commands.results import Results, check_place_of_results
    about = dict(model='m', weights_sha256='0', shards=None, files='0')
    running = Results(check_place_of_results(tmp_path/'out'), about)
    running.room()
    refused(*first, naming=['Another process is writing', 'another output folder'])
    running.leave()
    assert not (tmp_path/'out').exists()
