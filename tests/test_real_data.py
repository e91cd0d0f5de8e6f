"""Every command once on a few of the real images that SRDIAG_DATA names: grey cells, stained tissue,
colonoscopy."""

import csv
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from srdiag.models.saving import load_model

pytestmark = pytest.mark.data


@dataclass
class Case:
    "A data set and the options it needs"

    name: str
    classes: tuple
    scale: int
    channels: int
    sr_group: str  # regular expression for the groups of the unlabelled images
    images: str  # what the labelled files are
    side: int  # of the low-resolution images that the diagnosis reads
    patch: int
    size: int | None = None  # files are cut to it

    def options(self):
        return ['--device', 'cpu', '--precision', 'fp32', *(['--size', self.size] if self.size else [])]


CASES = [
    Case('bloodsmear', ('parasitized', 'uninfected'), 4, 1, '(P[0-9]+)__', 'hr', 12, 48, 48),
    Case('histology', ('normal', 'oscc'), 2, 3, '__(.+?)__', 'lr', 96, 32),
    Case('endoscopy', ('normal_mucosa', 'polyp'), 4, 3, '(g[0-9]+)__', 'hr', 44, 32),
]


def rows(path):
    return list(csv.DictReader(path.open(encoding='utf-8')))


def some(folder, pattern, groups, each):
    "The first files of each of some groups, spread over the sorted list of groups"
    files = defaultdict(list)
    for p in sorted(folder.iterdir()):
        files[re.search(pattern, p.name)[1]].append(p)
    names = sorted(files)
    return [p for g in names[:: max(1, len(names) // groups)][:groups] for p in files[g][:each]]


def link(files, folder):
    folder.mkdir(parents=True)
    for p in files:
        (folder / p.name).symlink_to(p)


@pytest.fixture(scope='module', params=CASES, ids=[c.name for c in CASES])
def run(request, succeeds, tmp_path_factory):
    """(case, folder): sr/ and labelled/ hold the images; teacher, student, model, tested and predicted what
    the commands made of them"""
    case, source, root = (
        request.param,
        Path(os.environ['SRDIAG_DATA']) / request.param.name,
        tmp_path_factory.mktemp(request.param.name),
    )
    link(some(source / 'sr', case.sr_group, 6, 2), root / 'sr')
    for label in case.classes:
        link(some(source / 'labelled' / label, '(.+?)__', 6, 1), root / 'labelled' / label)
    sr = [
        '--data',
        root / 'sr',
        '--epochs',
        1,
        '--steps',
        1,
        '--patch',
        case.patch,
        '--group-pattern',
        case.sr_group,
        *case.options(),
    ]
    succeeds('train-sr', *sr, '--out', root / 'teacher', '--scale', case.scale, '--recursions', 2)
    succeeds('distill', *sr, '--out', root / 'student', '--teacher', root / 'teacher')
    succeeds(
        'train-diagnosis',
        '--data',
        root / 'labelled',
        '--out',
        root / 'model',
        '--sr',
        root / 'student',
        '--fixed',
        '--scale',
        case.scale,
        '--images',
        case.images,
        '--epochs',
        1,
        '--batch-size',
        4,
        *case.options(),
    )
    succeeds(
        'evaluate',
        '--data',
        root / 'labelled',
        '--model',
        root / 'model',
        '--out',
        root / 'tested',
        '--device',
        'cpu',
    )
    succeeds(
        'evaluate',
        '--data',
        root / 'sr',
        '--model',
        root / 'student',
        '--out',
        root / 'tested_sr',
        '--device',
        'cpu',
    )
    succeeds(
        'predict',
        root / 'labelled',
        '--model',
        root / 'model',
        '--out',
        root / 'predicted',
        '--images',
        case.images,
        '--device',
        'cpu',
    )
    yield case, root
    for p in root.glob('*/model.safetensors'):
        p.unlink()  # 100 MB each


def test_no_group_is_in_two_parts(run):
    case, root = run
    for model, pattern in (('teacher', case.sr_group), ('model', '([^/]+?)__')):
        table, where = rows(root / model / 'split.csv'), defaultdict(set)
        for r in table:
            assert r['group'] == re.search(pattern, r['file'])[1]
            where[r['group']].add(r['split'])
        assert {len(v) for v in where.values()} == {1} and set.union(*where.values()) == {
            'train',
            'valid',
            'test',
        }
    assert {r['label'] for r in rows(root / 'model/split.csv') if r['split'] == 'train'} == set(case.classes)


def test_the_student_follows_the_split_of_its_teacher(run):
    _, root = run
    assert (root / 'student/split.csv').read_bytes() == (root / 'teacher/split.csv').read_bytes()


def test_the_models_fit_the_images(run):
    case, root = run
    for name in ('teacher', 'student'):
        network, _ = load_model(root / name, 'sr', case.scale)
        assert network.config['image_channels'] == case.channels and network.config['steps'] == (
            2 if name == 'teacher' else 1
        )
    model, info = load_model(root / 'model', 'diagnosis')
    assert model.config['channels'] == model.sr_network.config['image_channels'] == case.channels
    assert (info.lr_size, tuple(info.classes), info.images) == ([case.side] * 2, case.classes, case.images)


def test_the_test_part_was_tested(run):
    _, root = run
    for model, tested in (('model', 'tested'), ('student', 'tested_sr')):
        test = [r['file'] for r in rows(root / model / 'split.csv') if r['split'] == 'test']
        assert f'"n": {len(test)}' in (root / tested / 'metrics.json').read_text(encoding='utf-8')
    assert {r['file'] for r in rows(root / 'tested/predictions.csv')} == {
        r['file'] for r in rows(root / 'model/split.csv') if r['split'] == 'test'
    }


def test_every_image_was_predicted_and_enlarged(run):
    case, root = run
    table = rows(root / 'predicted/predictions.csv')
    assert len(table) == 12 and {r['label'] for r in table} <= set(case.classes)
    for r in table:
        with Image.open(root / 'predicted' / r['sr_image']) as im:
            assert (im.size, im.mode) == ((case.scale * case.side,) * 2, 'L' if case.channels == 1 else 'RGB')
