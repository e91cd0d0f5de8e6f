"""What files claim is compared with what they hold before memory is taken; tables and cards of imported sets
are safe to open; copies are found by a check."""
import random
import shutil
import time

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from srdiag.core.errors import DataError, ImageError
from srdiag.core.words import as_markdown, as_plain
from srdiag.data.images import find_images, read_image, save_png
from srdiag.data.labelled import load_table
from srdiag.datasets.imported import About, check_set, save_set
from srdiag.datasets.pcam import _array, _read_all
from srdiag.datasets.settings import ImportOptions
from srdiag.diagnosis.evaluation import diagnosis_sentence, never_found


# TIFF

def with_tag(path, name, value): # the file with another number in one of its tags
    with tifffile.TiffFile(path, mode='r+b') as tif:
        tif.pages[0].tags[name].overwrite(value, dtype=tif.pages[0].tags[name].dtype)


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
@pytest.mark.parametrize('tag, value', [('ImageLength', 4000), ('ImageLength', 3), ('RowsPerStrip', 1),
                                        ('RowsPerStrip', 3)])
def test_strips_and_rows_fit_the_height(kind, tag, value, tmp_path):
    path = tmp_path/'a.tif'
    tifffile.imwrite(path, np.arange(64*64, dtype=kind).reshape(64, 64), rowsperstrip=16,
                     photometric='minisblack')
    assert read_image(path).shape == (1, 64, 64)
    with_tag(path, tag, value)
    with pytest.raises(ImageError, match='pieces of pixels where'): read_image(path)


@pytest.mark.parametrize('how', [dict(), dict(rowsperstrip=7), dict(tile=(16, 32)), dict(compression='zlib')])
@pytest.mark.parametrize('shape', [(50, 70), (50, 70, 3), (3, 50, 70)])
def test_honest_tiffs_are_read(how, shape, tmp_path):
    for kind in (np.uint8, np.uint16):
        a = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
        kwargs = dict(planarconfig='separate') if shape[0] == 3 else {}
        kwargs['photometric'] = 'rgb' if len(shape) == 3 else 'minisblack'
        tifffile.imwrite(tmp_path/'a.tif', a, **how, **kwargs)
        assert read_image(tmp_path/'a.tif').shape[1:] == (50, 70)
    b = a.astype(np.uint8) if a.ndim == 2 else np.zeros((50, 70, 3), np.uint8)
    Image.fromarray(b).save(tmp_path/'b.tif')
    assert read_image(tmp_path/'b.tif').shape[1:] == (50, 70)


# HDF5

def test_claims_of_hdf5_are_bounded(tmp_path):
    path = tmp_path/'a.h5'
    def written(**how):
        path.unlink(missing_ok=True)
        with h5py.File(path, 'w') as f: f.create_dataset('y', dtype='uint8', **how)
        return path
    start = time.perf_counter()
    for how in (dict(shape=(2**40, 1, 1, 1), chunks=(2**20, 1, 1, 1)),
                dict(shape=(2**20, 1, 1, 1), chunks=(2**30, 1, 1, 1), maxshape=(None, 1, 1, 1))):
        with pytest.raises(DataError, match='more than any part of PCam'):
            with _array(written(**how), 'y', (1, 1, 1)): pass
    (tmp_path/'other.bin').write_bytes(bytes(100))
    with pytest.raises(DataError, match='from other files'):
        outside = [(str(tmp_path/'other.bin'), 0, 100)]
        with _array(written(shape=(100, 1, 1, 1), external=outside), 'y', (1, 1, 1)): pass
    with _array(written(shape=(100, 1, 1, 1)), 'y', (1, 1, 1)) as y: assert len(y) == 100
    assert time.perf_counter() - start < 5


def test_damaged_hdf5(tmp_path):
    "60 files, the same each time: read, or a sentence"
    rng, path = random.Random(0), tmp_path/'a.h5'
    with h5py.File(path, 'w') as f: f.create_dataset('y', data=np.zeros((300, 1, 1, 1), 'uint8'), chunks=True)
    whole = path.read_bytes()
    for _ in range(60):
        data, start = bytearray(whole), time.perf_counter()
        for _ in range(rng.choice((1, 5, 20))): data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            with _array(path, 'y', (1, 1, 1)) as y: assert len(_read_all(path, y)) <= 2**24
        except DataError as e: assert str(e).endswith('.') and '\n' not in str(e), e
        assert time.perf_counter() - start < 5


# Imported sets

def test_tables_and_cards_of_imported_sets(tmp_path, tile):
    labels = ['=cmd()', '![](https://example.org/a.png)', '=cmd()', '![](https://example.org/a.png)']
    rows = pd.DataFrame(dict(source=[f'+{k}.png' for k in range(4)], name=[f'n{k}' for k in range(4)],
                             label=labels, group=[f'@g{k}' for k in range(4)]))
    about = About('A set', 'From a test.', dict(pattern='<img src=x>|'))
    made = save_set(about, tmp_path/'set', rows, lambda rows: ((k, tile(k)) for k in rows.index),
                    [], ImportOptions())
    assert set(made.table.classes) == set(labels) and '@g0' in made.table.groups
    for name in ('labels.csv', 'manifest.csv'):
        for line in (tmp_path/'set'/name).read_text(encoding='utf-8').splitlines():
            assert not any(cell.startswith(tuple('=+-@')) for cell in line.split(','))
    card = (tmp_path/'set/README.md').read_text(encoding='utf-8')
    assert '![](' not in card and '<img' not in card
    assert set(check_set(tmp_path/'set').table.classes) == set(labels)


def test_a_check_finds_copies_and_damaged_files(tmp_path, fill_labelled):
    fill_labelled(tmp_path/'data')
    (tmp_path/'data/labels.csv').unlink()
    shutil.copy(tmp_path/'data/ill/p0__0.png', tmp_path/'data/healthy/p99__9.png')
    with Image.open(tmp_path/'data/ill/p1__0.png') as im: im.save(tmp_path/'data/ill/p1__copy.bmp')
    (tmp_path/'data/ill/p2__broken.png').write_bytes(b'\x89PNG')
    for k in range(2):
        Image.new('RGB', (16, 16)).save(tmp_path/f'data/ill/p3__black{k}.png')
    said = str(check_set(tmp_path/'data'))
    assert '2 pictures are there more than once' in said and '1 picture has more than one label' in said
    assert '1 image could not be read' in said and 'p2__broken.png' in said, said


def test_a_user_may_have_apostrophes(tmp_path, tile):
    for k in range(4): save_png(tile(k), tmp_path/f"'{k}.png")
    (tmp_path/'t.csv').write_text("file,label\n'0.png,'a'\n'1.png,'a'\n'2.png,'=b\n'3.png,=b\n")
    assert load_table(tmp_path/'t.csv').classes == ["'a'", '=b']


# Words

def test_one_piece_of_markdown():
    assert as_markdown('a|b\n<c>') == r'a\|b &lt;c>' and as_plain('a|b\n<c>') == 'a&#124;b &lt;c>'


# One walk

def test_a_folder_is_walked_once(tmp_path, fill):
    fill(tmp_path, 2)
    (tmp_path/'a.svs').touch()
    said = []
    assert len(find_images(tmp_path, tell=said.append)) == 2 and '1 .svs' in said[0]


# A class that is never found

def test_a_rare_class_is_named_last():
    y = np.array([0]*333 + [1])
    text = never_found(y, y*0, ['healthy', 'ill'])
    assert text == 'Of the class ill the only image was missed: it was never predicted.'
    m = dict(n=334, accuracy=0.997, interval='none', accuracy_low=float('nan'), mode='solo', never_found=text)
    assert diagnosis_sentence(m).endswith(f'{text} Not for diagnostic use.')
    assert 'never' not in diagnosis_sentence({k: v for k, v in m.items() if k != 'never_found'})


def test_a_rare_class_is_on_the_screen_and_in_the_card(tmp_path, tile, succeeds):
    from conftest import TINY_DIAGNOSIS
    for k in range(40):
        label = 'ill' if k % 10 == 0 else 'healthy'
        (tmp_path/'data'/label).mkdir(parents=True, exist_ok=True)
        save_png(tile(k % 16)//4 + k, tmp_path/f'data/{label}/p{k}__0.png')
    said = succeeds('train-diagnosis', '--data', tmp_path/'data', '--out', tmp_path/'m', '--inputs', 'LR',
                    *TINY_DIAGNOSIS, '--width', 16)
    m = pd.read_json(tmp_path/'m/config.json').loc['metrics', 'info']
    if m['accuracy'] == 1: pytest.skip('the network found the rare class')
    card = (tmp_path/'m/README.md').read_text(encoding='utf-8')
    assert ('never_found' in m) == ('never_found' in card) == (' Of the class ' in said.splitlines()[-1])
