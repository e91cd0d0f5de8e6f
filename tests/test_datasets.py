"""PCam, CAD-CAP and Kvasir-Capsule from tiny files in the formats of their makers: what is imported, and what
is refused."""

import csv
import gzip
import hashlib
import importlib.util
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from srdiag.datasets import capsule, downloads
from srdiag.datasets import pcam as official
from srdiag.datasets.frames import circle_mask, square_frame
from srdiag.datasets.imported import check_set, part_counts, verify_set
from srdiag.datasets.pcam import PCAM_MD5, PCAM_PATCHES
from srdiag.datasets.settings import (
    CadcapSettings,
    FoldOptions,
    ImportOptions,
    KagglePCamSettings,
    KvasirSettings,
    PCamSettings,
)
from srdiag.data.images import read_image
from srdiag.data.labelled import from_csv, load_table, split_table
from srdiag.core.errors import DataError, ImageError

STEM = 'camelyonpatch_level_2_split'


def imported_by(importer, kind, options=FoldOptions, **defaults):
    "The importer with the fields of its two objects as keywords; `side` of frames that are not official"

    def call(source, out, report=None, **kw):
        settings = kind
        if 'side' in kw:
            side = kw.pop('side')
            settings = type('Other', (kind,), dict(frame=side))
            kw['any_size'] = side is None
        named = defaults | {f.name: kw.pop(f.name) for f in fields(options) if f.name in kw}
        return importer(source, out, settings(**kw), options(**named), report)

    return call


import_pcam = imported_by(official.import_pcam, PCamSettings, ImportOptions)
import_kaggle_pcam = imported_by(official.import_kaggle_pcam, KagglePCamSettings)
import_cadcap = imported_by(capsule.import_cadcap, CadcapSettings, folds=4)
import_kvasir_capsule = imported_by(capsule.import_kvasir_capsule, KvasirSettings)


# --- data sets to practise on -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def pixels(tile):
    "A function: (number, side) → real pixels, side×side×3 bytes"
    image = tile(0, 512).permute(1, 2, 0).numpy()

    def pixels(k, side=96):
        return np.ascontiguousarray(np.roll(image, (-17 * k, -29 * k), (0, 1))[:side, :side])

    return pixels


def write_meta(path, y, wsi):
    table = dict(coord_y=0, coord_x=0, tumor_patch=y == 1, center_tumor_patch=y == 1, wsi=wsi)
    pd.DataFrame(table).to_csv(path)


def write_array(path, key, a):
    with h5py.File(path, 'w') as f:
        f[key] = a
    return path


@pytest.fixture(scope='module')
def pcam(pixels, tmp_path_factory):
    "The nine files: 12, 8 and 6 patches of slides with 3, 4 and 3 patches each; labels in an uneven order"
    folder, k = tmp_path_factory.mktemp('pcam') / 'download', 0
    folder.mkdir()
    for part, n in dict(train=12, valid=8, test=6).items():
        y = (
            (np.arange(n) * 7 % n % 2).astype(np.uint8)
            if part != 'test'
            else np.array([1, 0, 0, 1, 1, 0], np.uint8)
        )
        write_array(folder / f'{STEM}_{part}_x.h5', 'x', np.stack([pixels(k + i) for i in range(n)]))
        write_array(folder / f'{STEM}_{part}_y.h5', 'y', y.reshape(-1, 1, 1, 1))
        slides = [f'camelyon16_{part}_{i // (4 if part == "valid" else 3):03d}' for i in range(n)]
        write_meta(folder / f'{STEM}_{part}_meta.csv', y, slides)
        k += n
    return folder


@pytest.fixture
def own(pcam, tmp_path):  # a copy to damage
    return Path(shutil.copytree(pcam, tmp_path / 'own'))


@pytest.fixture
def packed(pcam, tmp_path, monkeypatch):
    "The same as .h5.gz, with the published checksums and numbers replaced by theirs"
    folder = tmp_path / 'packed'
    folder.mkdir()
    for p in pcam.iterdir():
        if p.suffix == '.csv':
            shutil.copy(p, folder)
        else:
            (folder / f'{p.name}.gz').write_bytes(gzip.compress(p.read_bytes(), mtime=0))
    for p in folder.iterdir():
        monkeypatch.setitem(
            PCAM_MD5, p.name.removeprefix(STEM + '_').split('.')[0], hashlib.md5(p.read_bytes()).hexdigest()
        )
    for part, n in dict(train=12, valid=8, test=6).items():
        monkeypatch.setitem(PCAM_PATCHES, part, n)
    return folder


def swap(a, b):
    x, y = a.read_bytes(), b.read_bytes()
    a.write_bytes(y)
    b.write_bytes(x)


@pytest.fixture
def kaggle(pixels, tmp_path):
    "Twelve patches of four slides, and a table of the slides"
    root = tmp_path / 'kaggle'
    (root / 'train').mkdir(parents=True)
    ids = [hashlib.sha1(str(k).encode()).hexdigest() for k in range(12)]
    for k, i in enumerate(ids):
        Image.fromarray(pixels(k)).save(root / 'train' / f'{i}.tif')
    pd.DataFrame(dict(id=ids, label=[k % 2 for k in range(12)])).to_csv(
        root / 'train_labels.csv', index=False
    )
    slides = pd.DataFrame(dict(id=ids, wsi=[f'slide{k // 3}' for k in range(12)]))
    slides.to_csv(tmp_path / 'slides.csv', index=False)
    return SimpleNamespace(
        root=root, ids=ids, labels=root / 'train_labels.csv', slides=tmp_path / 'slides.csv'
    )


@pytest.fixture(scope='module')
def frames(pixels, tmp_path_factory):
    "Three class folders with five frames of 64×64 px each, of five patients"
    root = tmp_path_factory.mktemp('cadcap') / 'frames'
    for c, name in enumerate(['Normal', '02 inflammatory', 'Vascular lesions']):
        (root / name).mkdir(parents=True)
        for k in range(5):
            Image.fromarray(pixels(5 * c + k, 64)).save(root / name / f'patient{k}_{c}.png')
    return root


HEAD = 'filename;video_id;frame_number;finding_category;finding_class;x1;y1;x2;y2;x3;y3;x4;y4'


@pytest.fixture
def kvasir(pixels, tmp_path):
    """Six videos; v2 and v3 in both official halves, one frame with two findings, Polyp in one video and in
    no half"""
    root, lines, halves = tmp_path / 'kvasir', [], ([], [])
    for v in range(6):
        for k, label in enumerate(['Blood - fresh', 'Pylorus'] * 2 + ['Polyp'] * (v == 5)):
            name = f'v{v}_{k}.jpg'
            (root / 'labelled_images' / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(10 * v + k, 48)).save(root / 'labelled_images' / label / name)
            lines.append(f'{name};v{v};{k};Luminal;{label};;;;;;;;')
            if label != 'Polyp':
                halves[k // 2 if v in (2, 3) else v > 2].append(f'{name},{label}')
    lines += [
        'v0_0.jpg;v0;0;Luminal;Pylorus;1;1;2;1;2;2;1;2',
        'v1_0.jpg;v1;0;Luminal;Blood - fresh;1;1;2;1;2;2;1;2',
    ]
    (root / 'metadata.csv').write_text('\n'.join([HEAD, *lines]))
    (root / 'official_splits').mkdir()
    for k in (0, 1):
        (root / f'official_splits/split_{k}.csv').write_text('\n'.join(['filename,label', *halves[k]]))
    return root


def sources(folder):
    return pd.read_csv(folder / 'manifest.csv', keep_default_na=False).set_index('file').source


def says(words, f, *args, kind=DataError, **kwargs):
    "The call must fail with one sentence that holds these words"
    with pytest.raises(kind) as e:
        f(*args, **kwargs)
    text = str(e.value)
    assert text.endswith('.') and '\n' not in text
    for w in [words] if isinstance(words, str) else words:
        assert w in text, f'{w!r} is not in: {text}'


# --- PCam -------------------------------------------------------------------------------------------------


def test_pcam_keeps_pixels_labels_slides_and_parts(pcam, tmp_path):
    made = import_pcam(pcam, tmp_path / 'out', check=False)
    table = verify_set(tmp_path / 'out')
    assert made.table.to_frame().equals(table.to_frame()) and made.warnings == [] and len(table) == 26
    where = sources(tmp_path / 'out')
    for row in table.to_frame().itertuples():
        name, i = where[row.file].split(':')
        part = name.removeprefix(STEM + '_').split('_')[0]
        with h5py.File(pcam / name) as x, h5py.File(pcam / name.replace('_x', '_y')) as y:
            assert torch.equal(
                read_image(tmp_path / 'out' / row.file), torch.from_numpy(x['x'][int(i)]).permute(2, 0, 1)
            )
            assert row.label == ['normal', 'tumour'][y['y'][int(i), 0, 0, 0]]
        assert (
            row.split == part
            and row.group == f'camelyon16_{part}_{int(i) // (4 if part == "valid" else 3):03d}'
        )
        assert Path(row.file).name.startswith(row.group + '__')
    assert part_counts(table).groups.to_dict() == dict(train=4, valid=2, test=2)
    assert {k: len(v) for k, v in split_table(table).items()} == dict(train=12, valid=8, test=6)


def test_few_patches_are_balanced_and_repeatable(pcam, tmp_path, snapshot):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        import_pcam(pcam, tmp_path / name, per_class=2, seed=seed, check=False)
    counts = part_counts(load_table(tmp_path / 'a/labels.csv'))
    assert counts[['normal', 'tumour']].to_numpy().tolist() == [[2, 2]] * 3
    assert snapshot(tmp_path / 'a') == snapshot(tmp_path / 'b')
    assert set(sources(tmp_path / 'a')) != set(sources(tmp_path / 'c'))
    says('whole number', import_pcam, pcam, tmp_path / 'd', per_class=-1, check=False)


def test_blocks_agree_with_the_whole_and_unused_ones_are_not_read(pcam, monkeypatch):
    read, real = [], official._array

    class Counted:
        def __init__(self, a):
            self.a = a

        def __getitem__(self, rows):
            read.append(len(self.a[rows]))
            return self.a[rows]

    class Watched:
        def __init__(self, *args):
            self.inner = real(*args)

        def __enter__(self):
            return Counted(self.inner.__enter__())

        def __exit__(self, *e):
            return self.inner.__exit__(*e)

    files = {'train_x': pcam / f'{STEM}_train_x.h5'}
    rows = pd.DataFrame(dict(split='train', index=[0, 3, 9, 11]), index=[5, 6, 7, 8])
    monkeypatch.setattr(official, '_array', Watched)
    got = dict(official._pcam_pixels(files, rows, block=3))
    # blocks 0, 1 and 3; block 2 holds nothing that was asked for
    assert read == [3, 3, 3] and list(got) == [5, 6, 7, 8]
    with h5py.File(files['train_x']) as f:
        for k, i in zip(rows.index, rows['index']):
            assert torch.equal(got[k], torch.from_numpy(f['x'][i]).permute(2, 0, 1))


def test_packed_files_give_the_same(packed, pcam, tmp_path, snapshot):
    a, b = import_pcam(packed, tmp_path / 'a'), import_pcam(pcam, tmp_path / 'b', check=False)
    assert a.table.to_frame().equals(b.table.to_frame())
    assert snapshot(tmp_path / 'a/images') == snapshot(tmp_path / 'b/images')
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith('.')] == []


def test_torchvisions_folder_is_found(pcam, tmp_path):
    shutil.copytree(pcam, tmp_path / 'root/pcam')
    assert len(import_pcam(tmp_path / 'root', tmp_path / 'out', check=False).table) == 26


@pytest.mark.parametrize('kind', ['x', 'y', 'meta'])
def test_exchanged_files_are_named(packed, tmp_path, kind):
    a, b = (
        packed / f'{STEM}_{part}_{kind}.{"csv" if kind == "meta" else "h5.gz"}' for part in ('valid', 'test')
    )
    swap(a, b)
    says(('checksum of test_' + kind, 'not of valid_' + kind), import_pcam, packed, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_published_checksums_are_the_right_way_round():
    """As torchvision and three users measured them; the list of the data set's page had validation and test
    exchanged"""
    assert PCAM_MD5['valid_x'].startswith('d5b63470') and PCAM_MD5['test_x'].startswith('d8c2d60d')
    assert PCAM_MD5['valid_y'].startswith('2b85f58b') and PCAM_MD5['test_y'].startswith('60a70357')
    assert (
        len(set(PCAM_MD5.values())) == 9
        and all(len(v) == 32 for v in PCAM_MD5.values())
        and sum(PCAM_PATCHES.values()) == 327680
    )


def test_unpacked_exchange_is_found_by_the_table(own, monkeypatch, tmp_path):
    for part, n in dict(train=12, valid=8, test=6).items():
        monkeypatch.setitem(PCAM_PATCHES, part, n)
    y = np.array([0, 1, 0, 1, 1, 0], np.uint8)  # two of six differ from the table
    write_array(own / f'{STEM}_test_y.h5', 'y', y.reshape(-1, 1, 1, 1))
    says(('disagree about 2 of 6', '_test_meta.csv'), import_pcam, own, tmp_path / 'out')


def spoil(name, change):
    def spoilt(own):
        path = own / f'{STEM}_{name}'
        change(path)

    return spoilt


def zeros(*shape, kind=np.uint8):
    return np.zeros(shape, kind)


def meta(*slides):
    return lambda p: write_meta(p, zeros(len(slides)), slides)


BAD_PCAM = {
    'page': (
        spoil('test_x.h5', lambda p: p.write_text('\n<!doctype HTML><html>Quota exceeded</html>')),
        ('test_x.h5', 'web page', 'quota'),
    ),
    'page for gz': (
        spoil('test_y.h5', lambda p: p.rename(p.with_name(p.name + '.gz')).write_text('<html>')),
        ('test_y.h5.gz', 'web page'),
    ),
    'page for meta': (
        spoil('train_meta.csv', lambda p: p.write_text('<!DOCTYPE html><html>')),
        ('train_meta.csv', 'web page'),
    ),
    'empty': (spoil('train_y.h5', lambda p: p.write_bytes(b'')), ('train_y.h5', '0 bytes')),
    'truncated': (
        spoil('train_x.h5', lambda p: p.write_bytes(p.read_bytes()[:-4000])),
        ('train_x.h5', 'truncated'),
    ),
    'no HDF5': (
        spoil('valid_x.h5', lambda p: p.write_bytes(b'PK\3\4' + bytes(600))),
        ('valid_x.h5', 'not an HDF5 file'),
    ),
    'dtype': (
        spoil('train_x.h5', lambda p: write_array(p, 'x', zeros(12, 96, 96, 3, kind=np.float32))),
        ('train_x.h5', 'float32', 'uint8'),
    ),
    'shape': (
        spoil('train_x.h5', lambda p: write_array(p, 'x', zeros(12, 3, 96, 96))),
        ('12×3×96×96', 'N×96×96×3'),
    ),
    'flat labels': (spoil('train_y.h5', lambda p: write_array(p, 'y', zeros(12))), ('train_y.h5', 'N×1×1×1')),
    'other array': (spoil('train_y.h5', lambda p: write_array(p, 'mask', zeros(12))), ('no array y', 'mask')),
    'lengths': (
        spoil('test_y.h5', lambda p: write_array(p, 'y', zeros(5, 1, 1, 1))),
        ('6 patches', '5 labels'),
    ),
    'label 2': (
        spoil('test_y.h5', lambda p: write_array(p, 'y', zeros(6, 1, 1, 1) + 2)),
        ('label 2', '0 and 1'),
    ),
    'one class': (
        spoil('test_y.h5', lambda p: write_array(p, 'y', zeros(6, 1, 1, 1))),
        ('the test part', 'class tumour'),
    ),
    'no meta': (spoil('valid_meta.csv', lambda p: p.unlink()), ('valid_meta.csv', 'missing', '--no-meta')),
    'no x': (spoil('valid_x.h5', lambda p: p.unlink()), ('valid_x.h5', 'missing', '--download')),
    'meta without wsi': (
        spoil('test_meta.csv', lambda p: p.write_text('a,b\n1,2\n')),
        ('test_meta.csv', 'no column wsi'),
    ),
    'meta with gap': (spoil('test_meta.csv', meta('s', 's', '', 's', 's', 's')), ('empty wsi in line 4',)),
    'meta too short': (spoil('test_meta.csv', meta(*['s'] * 5)), ('5 rows for 6',)),
    'slide in two parts': (
        spoil('test_meta.csv', meta(*['camelyon16_train_001'] * 6)),
        ('camelyon16_train_001', 'more than one part'),
    ),
}


@pytest.mark.parametrize('name', BAD_PCAM)
def test_bad_pcam(name, own, tmp_path, refused):
    change, words = BAD_PCAM[name]
    change(own)
    refused('import', 'pcam', '--data', own, '--out', tmp_path / 'out', '--no-check', naming=words)


def test_truncated_and_damaged_gzip(packed, tmp_path):
    path = packed / f'{STEM}_train_x.h5.gz'
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    says(('train_x.h5.gz', 'MD5'), import_pcam, packed, tmp_path / 'out')
    says(('train_x.h5.gz', 'truncated'), import_pcam, packed, tmp_path / 'out', check=False)
    path.write_bytes(whole[:2000] + bytes(2000) + whole[4000:])
    says(('train_x.h5.gz', 'damaged'), import_pcam, packed, tmp_path / 'out', check=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['packed']


def test_excerpts_need_permission(own, tmp_path):
    says(('12 patches', '262144', '--no-check'), import_pcam, own, tmp_path / 'out')


def test_without_slides(own, tmp_path):
    for p in own.glob('*.csv'):
        p.unlink()
    made = import_pcam(own, tmp_path / 'out', meta=False, check=False)
    assert (
        made.table.groups is None
        and 'Slides are unknown' in made.warnings[0]
        and 'Warning: Slides are unknown' in str(made)
    )


def test_download_calls_torchvision(pcam, tmp_path, monkeypatch):
    import torchvision.datasets

    calls = []

    def fetch(root, split, download):
        calls.append((split, download))
        for p in pcam.glob(f'*_{dict(val="valid").get(split, split)}_*.h5'):
            shutil.copy(p, Path(root) / 'pcam')

    monkeypatch.setattr(torchvision.datasets, 'PCAM', fetch)
    says(
        ('train_meta.csv', '3 such tables', 'first'),
        import_pcam,
        tmp_path / 'd',
        tmp_path / 'out',
        download=True,
        check=False,
    )
    assert not calls  # said before anything is fetched
    (tmp_path / 'd/pcam').mkdir(parents=True)
    for p in pcam.glob('*.csv'):
        shutil.copy(p, tmp_path / 'd/pcam')
    made = import_pcam(tmp_path / 'd', tmp_path / 'out', download=True, check=False)
    assert calls == [('train', True), ('val', True), ('test', True)] and len(made.table) == 26


def test_download_that_fails(tmp_path, monkeypatch):
    import torchvision.datasets

    def fail(*args, **kwargs):
        raise ValueError('Too many users have viewed or downloaded this file recently.\nTry later')

    monkeypatch.setattr(torchvision.datasets, 'PCAM', fail)
    says(
        ('could not be downloaded', 'Too many users', 'with a browser'),
        import_pcam,
        tmp_path / 'd',
        tmp_path / 'out',
        meta=False,
        download=True,
    )


def test_real_torchvision_fetches_nothing_that_is_there(pcam, tmp_path):
    shutil.copytree(pcam, tmp_path / 'd/pcam')
    assert len(import_pcam(tmp_path / 'd', tmp_path / 'out', check=False, download=True).table) == 26


@pytest.mark.skipif(
    importlib.util.find_spec('gdown') is not None, reason='gdown is installed: this would download'
)
def test_real_torchvision_asks_for_gdown(tmp_path):
    says('gdown', import_pcam, tmp_path / 'd', tmp_path / 'out', meta=False, download=True)


# --- the Kaggle folder ------------------------------------------------------------------------------------


def test_kaggle_says_that_groups_are_unknown(kaggle, tmp_path):
    made = import_kaggle_pcam(kaggle.root, tmp_path / 'out')
    assert (
        made.table.groups is None
        and 'groups are unknown' in made.warnings[0]
        and part_counts(made.table).loc['all'].tolist() == [6, 6, -1]
    )
    label = pd.read_csv(kaggle.labels).set_index('id').label
    for row in made.table.to_frame().itertuples():
        i = Path(sources(tmp_path / 'out')[row.file]).stem
        assert row.label == ['normal', 'tumour'][label[i]]
        assert torch.equal(
            read_image(tmp_path / 'out' / row.file), read_image(kaggle.root / 'train' / f'{i}.tif')
        )


def test_kaggle_with_slides_and_folds(kaggle, tmp_path):
    made = import_kaggle_pcam(kaggle.root, tmp_path / 'out', groups=kaggle.slides, folds=3)
    assert made.warnings == [] and part_counts(made.table).groups.tolist() == [4]
    tested = []
    for k in range(3):
        fold = load_table(tmp_path / f'out/fold{k}.csv')
        parts = split_table(fold)
        assert not set(fold.groups[parts['train']]) & set(fold.groups[parts['test']]) and set(parts) == {
            'train',
            'valid',
            'test',
        }
        tested += fold.to_frame().file[fold.split == 'test'].tolist()
    assert sorted(tested) == sorted(made.table.to_frame().file)


def change_rows(path, change):
    rows = path.read_text().splitlines()
    path.write_text('\n'.join(change(rows)) + '\n')


BAD_KAGGLE = {
    'missing file': (
        lambda k: (k.root / 'train' / f'{k.ids[2]}.tif').unlink(),
        lambda k: (k.ids[2], 'train_labels.csv', '1 of 12'),
    ),
    'unknown id': (lambda k: change_rows(k.labels, lambda r: [*r, 'ffff,1']), lambda k: ('ffff.tif',)),
    'twice': (lambda k: change_rows(k.labels, lambda r: [*r, r[1]]), lambda k: (k.ids[0], 'twice')),
    'label 3': (
        lambda k: change_rows(k.labels, lambda r: [*r[:-1], f'{k.ids[-1]},3']),
        lambda k: ("label '3'",),
    ),
    'no labels': (lambda k: k.labels.unlink(), lambda k: ('train_labels.csv', 'cannot be read')),
    'no column': (
        lambda k: change_rows(k.labels, lambda r: ['name,label', *r[1:]]),
        lambda k: ('no column id',),
    ),
    'no rows': (lambda k: change_rows(k.labels, lambda r: r[:1]), lambda k: ('no rows',)),
    'one class': (
        lambda k: change_rows(k.labels, lambda r: [r[0], *(row[:-1] + '0' for row in r[1:])]),
        lambda k: ('class normal', 'two classes'),
    ),
    'size': (
        lambda k: Image.new('RGB', (100, 96)).save(k.root / 'train' / f'{k.ids[4]}.tif'),
        lambda k: (k.ids[4], '96×100', '96×96'),
    ),
    'unknown slide': (
        lambda k: change_rows(k.slides, lambda r: r[:-1]),
        lambda k: ('slides.csv', '1 of 12', k.ids[-1]),
    ),
    'no folder': (lambda k: shutil.rmtree(k.root / 'train'), lambda k: ('train.zip',)),
}


@pytest.mark.parametrize('name', BAD_KAGGLE)
def test_bad_kaggle(name, kaggle, tmp_path, refused):
    change, words = BAD_KAGGLE[name]
    change(kaggle)
    refused(
        'import',
        'kaggle-pcam',
        '--data',
        kaggle.root,
        '--out',
        tmp_path / 'out',
        '--groups',
        kaggle.slides,
        naming=words(kaggle),
    )


def test_kaggle_leaves_out_files_without_a_row_and_damaged_ones(kaggle, tmp_path, pixels):
    Image.fromarray(pixels(50)).save(kaggle.root / 'train/extra.tif')
    path = kaggle.root / 'train' / f'{kaggle.ids[1]}.tif'
    path.write_bytes(path.read_bytes()[:3000])
    made = import_kaggle_pcam(kaggle.root, tmp_path / 'out', groups=kaggle.slides)
    assert (
        len(made.table) == 11
        and [Path(p).name for p, _ in made.skipped] == [path.name]
        and '1 file of train' in made.warnings[0]
    )
    assert '1 image could not be read' in str(made) and path.name in (tmp_path / 'out/README.md').read_text()
    says(path.name, import_kaggle_pcam, kaggle.root, tmp_path / 'strict', strict=True, kind=ImageError)
    assert not (tmp_path / 'strict').exists()


def test_a_check_sees_copies_in_grey_and_in_colour(tmp_path, pixels):
    for k in range(4):
        folder = tmp_path / 'data' / ('healthy', 'ill')[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(pixels(k, 16)).convert('L')
        grey.save(folder / f'{k}.png')
        grey.convert('RGB').save(folder / f'{k}-again.png')
    assert any('4 pictures are there more than once' in w for w in check_set(tmp_path / 'data').warnings)


# --- CAD-CAP ----------------------------------------------------------------------------------------------


def test_cadcap_is_reduced_masked_and_folded(frames, tmp_path):
    made = import_cadcap(frames, tmp_path / 'out', size=32, side=64)
    assert (
        made.table.classes == ['inflammatory', 'normal', 'vascular']
        and 'groups are unknown' in made.warnings[0]
    )
    for row in made.table.to_frame().itertuples():
        x, _ = square_frame(read_image(frames / sources(tmp_path / 'out')[row.file], 3), 32)
        assert torch.equal(read_image(tmp_path / 'out' / row.file), x * circle_mask(32))
    tests = [
        load_table(tmp_path / f'out/fold{k}.csv').to_frame().query('split == "test"').file.tolist()
        for k in range(4)
    ]
    assert (
        sorted(sum(tests, [])) == sorted(made.table.to_frame().file)
        and not (tmp_path / 'out/fold4.csv').exists()
    )


def test_cadcap_of_the_real_size_and_default(tmp_path, pixels):
    for c in ('normal', 'inflammatory', 'vascular'):
        (tmp_path / 'in' / c).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(np.tile(pixels(k, 288), (2, 2, 1))).save(tmp_path / 'in' / c / f'{k}.png')
    made = import_cadcap(tmp_path / 'in', tmp_path / 'out')
    assert read_image(made.table.files[0]).shape == (3, 128, 128) and len(made.table) == 12


def test_cadcap_of_12_bits_is_not_imported_black_and_litter_is_no_class(tmp_path):
    for c in ('normal', 'inflammatory', 'vascular'):
        (tmp_path / 'in' / c).mkdir(parents=True)
        for k in range(2):
            x = np.random.default_rng(k).integers(500, 4096, (48, 48)).astype(np.uint16)
            Image.fromarray(x).save(tmp_path / 'in' / c / f'{k}.png')
    (tmp_path / 'in/@eaDir').mkdir()
    made = import_cadcap(tmp_path / 'in', tmp_path / 'out', size=48, side=48, mask='none', folds=0)
    assert all(read_image(p).max() > 250 for p in made.table.files)


def test_cadcap_with_patients(frames, tmp_path):
    made = import_cadcap(
        frames, tmp_path / 'out', size=32, side=64, mask='none', group_pattern=r'(patient\d+)_'
    )
    assert made.warnings == [] and set(made.table.groups) == {f'patient{k}' for k in range(5)}
    assert read_image(made.table.files[0])[:, 0, 0].any()
    for k in range(4):
        fold = load_table(tmp_path / f'out/fold{k}.csv')
        assert not set(fold.groups[fold.split == 'train']) & set(fold.groups[fold.split == 'test'])


BAD_CADCAP = {
    'class missing': (lambda p: shutil.rmtree(p / 'Normal'), (), ('0 folders', 'class normal')),
    'class twice': (lambda p: (p / 'normal2').mkdir(), (), ('2 folders', 'class normal')),
    'other class': (lambda p: (p / 'polyps').mkdir(), (), ('polyps', 'no class of CAD-CAP')),
    'empty class': (lambda p: [f.unlink() for f in (p / 'Normal').iterdir()], (), ('no image in', 'Normal')),
    'too small': (lambda p: None, ('--any-size', '--size', 65), ('not enlarged', '64 or less')),
    'pattern': (lambda p: None, ('--any-size', '--group-pattern', '(nobody)'), ('(nobody)',)),
    'official size': (lambda p: None, (), ('64×64', '576×576', '--any-size')),
}


@pytest.mark.parametrize('name', BAD_CADCAP)
def test_bad_cadcap(name, frames, tmp_path, refused):
    change, options, words = BAD_CADCAP[name]
    data = Path(shutil.copytree(frames, tmp_path / 'frames'))
    change(data)
    refused(
        'import', 'cadcap', '--data', data, '--out', tmp_path / 'out', '--size', 32, *options, naming=words
    )


def test_cadcap_of_mixed_sizes_needs_permission(frames, tmp_path):
    data = Path(shutil.copytree(frames, tmp_path / 'frames'))
    Image.new('RGB', (64, 60)).save(data / 'Normal/odd.png')
    says(('odd.png', '60×64', '--any-size'), import_cadcap, data, tmp_path / 'out', size=32, side=64)
    made = import_cadcap(data, tmp_path / 'out', size=32, side=None)
    assert len(made.table) == 16 and all(read_image(p).shape == (3, 32, 32) for p in made.table.files)


# --- Kvasir-Capsule ---------------------------------------------------------------------------------------


def test_kvasir_is_grouped_by_video(kvasir, tmp_path):
    made = import_kvasir_capsule(kvasir, tmp_path / 'out', size=32, side=48)
    df = made.table.to_frame()
    assert made.table.classes == ['Blood - fresh', 'Pylorus'] and made.table.split is None and len(df) == 23
    # two classes
    assert 'v0_0.jpg' in made.warnings[0] and not any('v0_0' in s for s in sources(tmp_path / 'out'))
    assert any('v1_0' in s for s in sources(tmp_path / 'out'))  # two findings of one class
    assert 'fewer than 3 videos' in made.warnings[1] and 'Polyp (1)' in made.warnings[1]
    for row in df.itertuples():
        assert Path(sources(tmp_path / 'out')[row.file]).name.split('_')[0] == row.group
    parts = split_table(made.table)
    assert not set(made.table.groups[parts['train']]) & set(made.table.groups[parts['test']])
    thumb = kvasir / 'labelled_images/@eaDir/v1_1.jpg/SYNOPHOTO_THUMB_M.jpg'
    thumb.parent.mkdir(parents=True)
    thumb.write_bytes(b'x')
    linked = (kvasir / 'labelled_images/Pylorus').rename(tmp_path / 'Pylorus')
    (kvasir / 'labelled_images/Pylorus').symlink_to(linked)
    every = import_kvasir_capsule(kvasir, tmp_path / 'all', size=32, side=48, min_videos=1)
    assert len(every.table) == 24 and not any('does not name them' in w for w in every.warnings)
    assert 'Polyp' in every.table.classes


@pytest.mark.parametrize('half', [0, 1])
def test_official_halves_share_no_video_afterwards(kvasir, tmp_path, half):
    made = import_kvasir_capsule(kvasir, tmp_path / 'out', official_test=half, size=32, side=48)
    t = made.table
    assert set(t.groups[t.split == 'train']) == ({'v4', 'v5'}, {'v0', 'v1'})[half]
    with open(kvasir / f'official_splits/split_{half}.csv') as f:
        official = {row['filename'] for row in csv.DictReader(f)}
    tested = {Path(sources(tmp_path / 'out')[n]).name for n in t.to_frame().file[t.split == 'test']}
    assert tested == official - {'v0_0.jpg'}  # whole, but for the frame with two labels
    text = ' '.join(made.warnings)
    assert 'share 2 videos: v2, v3' in text and '4 frames' in text and 'Polyp' in text
    split_table(t)


def in_metadata(change):
    return lambda k: change_rows(k / 'metadata.csv', change)


def in_half(n, change):
    return lambda k: change_rows(k / f'official_splits/split_{n}.csv', change)


def no_pylorus_in_v0_and_v1(rows):
    return [x for x in rows if x[:2] not in ('v0', 'v1') or 'Pylorus' not in x]


BAD_KVASIR = {
    'column': (
        in_metadata(lambda r: [HEAD.replace('video_id', 'video'), *r[1:]]),
        ('no column video_id', 'semicolons'),
    ),
    'commas': (in_metadata(lambda r: [row.replace(';', ',') for row in r]), ('no column filename',)),
    'page': (lambda k: (k / 'metadata.csv').write_text('<!DOCTYPE html>'), ('metadata.csv', 'web page')),
    'Latin-1': (
        lambda k: (k / 'metadata.csv').write_bytes((k / 'metadata.csv').read_bytes() + b'\xe9'),
        ('UTF-8',),
    ),
    'no table': (lambda k: (k / 'metadata.csv').unlink(), ('metadata.csv', 'cannot be read')),
    'part of a class': (
        lambda k: (k / 'labelled_images/Pylorus/v3_1.jpg').unlink(),
        ('1 frame of', 'v3_1.jpg', 'Unpack'),
    ),
    'nothing unpacked': (lambda k: shutil.rmtree(k / 'labelled_images'), ('No frame of',)),
    'no half': (lambda k: (k / 'official_splits/split_1.csv').unlink(), ('split_1.csv',)),
    'frame in both halves': (in_half(1, lambda r: [*r, 'v0_1.jpg,Pylorus']), ('v0_1.jpg', 'both halves')),
    'two videos': (
        in_metadata(lambda r: [*r, 'v0_1.jpg;v9;1;L;Pylorus;;;;;;;;']),
        ('v0_1.jpg', 'two videos'),
    ),
    'class only in shared videos': (
        in_half(0, no_pylorus_in_v0_and_v1),
        ('the train part', 'class Pylorus', '--official-test'),
    ),
}


@pytest.mark.parametrize('name', BAD_KVASIR)
def test_bad_kvasir(name, kvasir, tmp_path, refused):
    change, words = BAD_KVASIR[name]
    change(kvasir)
    refused(
        'import',
        'kvasir-capsule',
        '--data',
        kvasir,
        '--out',
        tmp_path / 'out',
        '--size',
        32,
        '--any-size',
        '--official-test',
        1,
        naming=words,
    )


def test_kvasir_class_that_was_not_unpacked(kvasir, tmp_path):
    shutil.rmtree(kvasir / 'labelled_images/Polyp')
    made = import_kvasir_capsule(kvasir, tmp_path / 'out', size=32, side=48)
    assert 'Polyp' in made.warnings[1] and 'unpack' in made.warnings[1] and len(made.table) == 23
    says('two ways to split', import_kvasir_capsule, kvasir, tmp_path / 'x', official_test=0, folds=2)


# --- the folder that is made ------------------------------------------------------------------------------


def test_changes_are_found(pcam, tmp_path):
    import_pcam(pcam, tmp_path / 'out', check=False)
    file = next((tmp_path / 'out/images').rglob('*.png'))
    whole = file.read_bytes()
    file.write_bytes(whole + b'x')
    says((file.name, 'has changed'), verify_set, tmp_path / 'out')
    file.unlink()
    says((file.name, 'is missing'), check_set, tmp_path / 'out')
    file.write_bytes(whole)
    verify_set(tmp_path / 'out')
    text = (tmp_path / 'out/labels.csv').read_text()
    (tmp_path / 'out/labels.csv').write_text(text.replace(',tumour,', ',normal,', 1))
    says('labels.csv has changed', verify_set, tmp_path / 'out')
    (tmp_path / 'out/labels.csv').write_text(text)
    (tmp_path / 'out/notes.txt').write_text('mine')
    says('notes.txt is not in the manifest', verify_set, tmp_path / 'out')
    says('not a data set made by srdiag import', verify_set, pcam)


def test_nothing_is_replaced_unasked(pcam, tmp_path, refused, succeeds, snapshot):
    argv = 'import', 'pcam', '--data', pcam, '--out', tmp_path / 'out', '--no-check', '--per-class', 2
    succeeds(*argv)
    refused(*argv, naming=('--overwrite',))
    before = snapshot(tmp_path / 'out')
    succeeds(*argv, '--overwrite')
    assert snapshot(tmp_path / 'out') == before
    (tmp_path / 'out/notes.txt').write_text('mine')
    refused(*argv, '--overwrite', naming=('notes.txt',))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.txt').write_text('mine')
    refused(
        'import',
        'pcam',
        '--data',
        pcam,
        '--out',
        tmp_path / 'mine',
        '--no-check',
        '--overwrite',
        naming=('not made by srdiag',),
    )


def test_what_appears_in_the_place_during_an_import_stays(frames, tmp_path, snapshot):
    def put(done, images):
        (tmp_path / 'out').mkdir(exist_ok=True)
        if done == 3:
            (tmp_path / 'out/thesis.txt').write_text('important')

    says('exists and is not empty', import_cadcap, frames, tmp_path / 'out', size=32, side=64, report=put)
    assert snapshot(tmp_path).keys() == {'out', 'out/thesis.txt'}
    (tmp_path / 'out/thesis.txt').unlink()
    import_cadcap(frames, tmp_path / 'out', size=32, side=64)
    before = snapshot(tmp_path)
    says(
        'holds thesis.txt',
        import_cadcap,
        frames,
        tmp_path / 'out',
        size=48,
        side=64,
        overwrite=True,
        report=put,
    )
    (tmp_path / 'out/thesis.txt').unlink()
    assert snapshot(tmp_path) == before


def test_of_two_imports_into_one_place_the_first_stays(frames, tmp_path):
    def other(done, images):
        if done == 3:
            import_cadcap(frames, tmp_path / 'out', size=48, side=64)

    says('exists and is not empty', import_cadcap, frames, tmp_path / 'out', size=32, side=64, report=other)
    assert read_image(verify_set(tmp_path / 'out').files[0]).shape == (3, 48, 48)


def test_what_a_killed_import_left_is_named_and_kept(packed, tmp_path, monkeypatch):
    names = []  # also the folder that the archives are unpacked in

    def killed(path, folder):
        names.append(folder.name)
        return real(path, folder)

    real = official._unpack
    monkeypatch.setattr(official, '_unpack', killed)
    import_pcam(packed, tmp_path / 'out')
    (tmp_path / names[0]).mkdir()
    made = import_pcam(packed, tmp_path / 'out', overwrite=True)
    assert f'{names[0]} is left of a run that was stopped' in str(made) and (tmp_path / names[0]).is_dir()
    assert names[0] not in (tmp_path / 'out/README.md').read_text()


def test_no_mask_is_made_where_no_frame_is_large_enough(frames, tmp_path, monkeypatch):
    sides = []
    monkeypatch.setattr(downloads, 'circle_mask', lambda side: sides.append(side) or circle_mask(side))
    says(
        'not enlarged to 9000: ask for a size of 64 or less',
        import_cadcap,
        frames,
        tmp_path / 'out',
        size=9000,
        side=64,
    )
    assert not sides
    import_cadcap(frames, tmp_path / 'out', size=32, side=64)
    assert set(sides) == {32}


def test_out_and_data_lie_apart(frames, tmp_path):
    data = Path(shutil.copytree(frames, tmp_path / 'in'))
    says('lie in one another', import_cadcap, data, data / 'out', side=64)
    says('does not exist', import_cadcap, tmp_path / 'gone', tmp_path / 'out')


def test_an_interruption_leaves_nothing(pcam, tmp_path):
    def stop(done, images):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_pcam(pcam, tmp_path / 'out', check=False, report=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_card_tells_counts_options_and_warnings(kvasir, tmp_path):
    import_kvasir_capsule(kvasir, tmp_path / 'out', official_test=1, size=32, side=48)
    card = (tmp_path / 'out/README.md').read_text()
    for words in (
        '# Kvasir-Capsule',
        '| train | 3 | 4 | 2 |',
        '| official_test | 1 |',
        'share 2 videos: v2, v3',
    ):
        assert words in card
    assert str(tmp_path) not in card


def test_any_folder_or_table_is_checked(labelled, tmp_path, succeeds, refused):
    assert check_set(labelled).warnings == [] and part_counts(check_set(labelled / 'labels.csv').table).loc[
        'all'
    ].tolist() == [12, 12, 12]
    assert '24 images' in succeeds('import', 'check', '--data', labelled)
    data = Path(shutil.copytree(labelled, tmp_path / 'data'))
    # each class in one part, each group in both
    table = pd.read_csv(data / 'labels.csv').assign(split=['train'] * 12 + ['test'] * 12)
    table.to_csv(data / 'leaky.csv', index=False)
    refused('import', 'check', '--data', data / 'leaky.csv', naming=('leaky.csv', 'more than one part', 'p0'))
    few = pd.concat([table[table.label == 'healthy'], table[table.label == 'ill'][:1]])
    few.drop(columns=['group', 'split']).to_csv(data / 'few.csv', index=False)
    text = succeeds('import', 'check', '--data', data / 'few.csv', '--group-pattern', 'none')
    assert '12 times' in text and 'Groups are unknown' in text
    refused('import', 'check', '--data', tmp_path / 'gone', naming=('gone',))


# --- from download to metrics -----------------------------------------------------------------------------


def test_import_train_evaluate(pcam, tmp_path, succeeds, tiny_diagnosis):
    text = succeeds(
        'import', 'pcam', '--data', pcam, '--out', tmp_path / 'set', '--no-check', '--per-class', 3
    )
    assert (
        'tumour' in text
        and 'groups' in text
        and f'train-diagnosis --data {tmp_path / "set/labels.csv"}' in text
    )
    succeeds(
        'train-diagnosis',
        '--data',
        tmp_path / 'set/labels.csv',
        '--out',
        tmp_path / 'model',
        '--size',
        16,
        '--inputs',
        'LR',
        *tiny_diagnosis,
    )
    table = from_csv(tmp_path / 'set/labels.csv').to_frame()
    used = pd.read_csv(tmp_path / 'model/split.csv')
    # the official parts were followed
    assert used[['file', 'group', 'split']].equals(table[['file', 'group', 'split']])
    text = succeeds(
        'evaluate',
        '--model',
        tmp_path / 'model',
        '--data',
        tmp_path / 'set/labels.csv',
        '--out',
        tmp_path / 'metrics',
    )
    assert 'test, 6 images' in text and 'bootstrap over 2 groups' in text
    assert set(pd.read_csv(tmp_path / 'metrics/predictions.csv').file) == set(
        table.file[table.split == 'test']
    )


def test_a_fold_trains_the_framework(frames, tmp_path, succeeds, tiny_diagnosis):
    succeeds(
        'import',
        'cadcap',
        '--data',
        frames,
        '--out',
        tmp_path / 'set',
        '--size',
        16,
        '--any-size',
        '--folds',
        2,
    )
    text = succeeds(
        'train-diagnosis', '--data', tmp_path / 'set/fold1.csv', '--out', tmp_path / 'model', *tiny_diagnosis
    )
    assert f'test, {(load_table(tmp_path / "set/fold1.csv").split == "test").sum()} images' in text
