"tools/collect_runs.py never costs an original its runs, nor an earlier copy its files."
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
import collect_runs
from collect_runs import collect


@pytest.fixture
def original(tmp_path):
    "A benchmark with a run, as far as it is copied"
    run = tmp_path/'runs'/'bench'/'runs'/'carn'/'seed0'
    (run/'model').mkdir(parents=True)
    (run.parents[2]/'run.json').write_text(json.dumps(dict(format='srdiag benchmark 1')))
    (run.parents[2]/'README.md').write_text('# Found\n')
    for name in ('metrics.json', 'log.csv', 'panel.png', 'model/model.safetensors'):
        (run/name).write_text('{}')
    return run.parents[2]


def test_a_copy_holds_what_was_found_and_replaces_an_earlier_one(original, tmp_path, snapshot):
    copy = tmp_path/'results'/'bench'
    collect(original, copy)
    first = snapshot(copy)
    assert {'run.json', 'README.md', 'runs/carn/seed0/metrics.json', 'runs/carn/seed0/log.csv'} == {
        name for name, what in first.items() if what != 'folder'}
    (original/'README.md').write_text('# Found more\n')
    collect(original, copy)
    assert (copy/'README.md').read_text() == '# Found more\n'
    assert [p.name for p in copy.parent.iterdir()] == ['bench'], 'nothing is left beside it'


@pytest.mark.parametrize('mishap', ['swapped', 'the same', 'the same by another name', 'inside', 'around'])
def test_runs_are_never_deleted(mishap, original, tmp_path, snapshot):
    copy = tmp_path/'results'/'bench'
    collect(original, copy)
    (tmp_path/'link').symlink_to(original)
    before = snapshot(tmp_path)
    places = {'swapped': (copy, original), 'the same': (original, original),
              'the same by another name': (original, tmp_path/'link'),
              'inside': (original, original/'copy'), 'around': (original, original.parent)}
    with pytest.raises(SystemExit) as e: collect(*places[mishap])
    assert isinstance(e.value.code, str) and snapshot(tmp_path) == before


@pytest.mark.parametrize('file', ['runs/k/seed0/fold0/predictions.csv',
                                  'networks/mrcnet_x4/model.safetensors'])
def test_an_experiment_with_what_no_copy_has_is_an_original(file, original, tmp_path, snapshot):
    other = tmp_path/'other'
    collect(original, other)
    (other/file).parent.mkdir(parents=True)
    (other/file).write_text('found once')
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit, match='original'): collect(original, other)
    assert snapshot(tmp_path) == before


def test_a_copy_that_fails_leaves_the_earlier_one(original, tmp_path, snapshot, monkeypatch):
    copy = tmp_path/'results'/'bench'
    collect(original, copy)
    before = snapshot(tmp_path)
    def full(*_): raise OSError('No space left on device')
    monkeypatch.setattr(collect_runs.shutil, 'copyfile', full)
    with pytest.raises(SystemExit, match='No space left on device'): collect(original, copy)
    assert snapshot(tmp_path) == before
