"""Sets of images that do not fit into memory: the same answers, from a file that is mapped."""
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from srdiag.core.errors import DataError
from srdiag.data.images import as_float
from srdiag.data.mapped import ImageRows, channel_statistics, mapped
from srdiag.data.pairs import LabelledPairs, PairAugment
from srdiag.datasets.large import PCAM_FILE, pcam_table
from srdiag.datasets.reading import read_labelled
from srdiag.diagnosis.inference import predict
from srdiag.diagnosis.network import Normalise, SREnhancedDiagnosis
from srdiag.diagnosis.training import diagnosis_dataloaders, train_diagnosis
from srdiag.models.saving import load_model
from srdiag.training.options import RunOptions
from srdiag.training.recipes import DIAGNOSIS_RECIPES

FILE = RunOptions(in_memory=0.)


def test_a_file_gives_what_memory_gives(labelled, capsys):
    near, far = (read_labelled(labelled, None, options).split(0) for options in (RunOptions(), FILE))
    assert isinstance(far.images, ImageRows) and not isinstance(near.images, ImageRows)
    assert near.hash == far.hash and near.digests == far.digests and near.side == far.side == 16
    assert (near.table.twins == far.table.twins).all() and near.classes == far.classes
    for part in near.parts:
        assert (near.parts[part] == far.parts[part]).all()
        for kind in ('lr', 'hr'):
            a, b = (found.pairs(part, 2, kind, PairAugment(3)) for found in (near, far))
            for x, y in zip(a.batch([0, 1]), b.batch([0, 1])): assert torch.equal(x, y)


def test_a_grey_file_and_its_copy_in_rgb_are_one_picture_in_a_file_and_in_memory(tmp_path, tile):
    from PIL import Image
    for k in range(8):
        folder = tmp_path/'data'/('healthy', 'ill')[k%2]
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(tile(k, 16)[0].numpy())
        grey.save(folder/f'{k}.png')
        grey.convert('RGB').save(folder/f'{k}-again.png')
    near, far = (read_labelled(tmp_path/'data', None, options) for options in (RunOptions(), FILE))
    assert len(set(near.table.twins)) == 8 and (near.table.twins == far.table.twins).all()


def test_a_broken_and_an_odd_file_are_left_out(labelled, tmp_path, tile, capsys):
    import shutil
    from srdiag.data.images import save_png
    shutil.copytree(labelled, tmp_path/'data')
    (tmp_path/'data/ill/broken__1.png').write_bytes(b'no image')
    save_png(tile(5, 32), tmp_path/'data/ill/odd__1.png')
    (tmp_path/'data/labels.csv').unlink()
    found = read_labelled(tmp_path/'data', None, FILE)
    assert len(found.images) == len(found.table) == 24 and '2 of 26 images' in found.skipped


def test_statistics_in_one_pass():
    images = torch.randint(256, (3000, 3, 5, 7), dtype=torch.uint8)
    mean, sd = channel_statistics(ImageRows([images[:1200], images[1200:]]))
    double = images.double()/255
    assert torch.allclose(mean, double.mean((0, 2, 3)), atol=1e-12)
    assert torch.allclose(sd, double.std((0, 2, 3)), atol=1e-12)
    one, other = Normalise(3), Normalise(3)
    one.fit(as_float(images))
    other.fit(ImageRows([images]))
    assert torch.allclose(one.mean, other.mean, atol=1e-6) and torch.allclose(one.sd, other.sd, atol=1e-6)


@pytest.fixture
def pairs():
    "A function: what holds the images → LabelledPairs with augmentation"
    images = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    block = mapped(images.shape)
    block[:] = images
    def pairs(large, workers=None):
        found = LabelledPairs(ImageRows([block]) if large else list(images), torch.arange(40)%2, 2, 'hr',
                              PairAugment(1))
        found.workers = workers
        return found
    return pairs


def test_processes_that_read_change_nothing(pairs):
    batches = []
    for workers in (0, 1, 3):
        torch.manual_seed(5)
        import random
        random.seed(5)
        train, _ = diagnosis_dataloaders(pairs(True, workers), pairs(True, workers), 8, device='cpu', steps=7)
        assert train.fake_l.num_workers == workers
        batches.append([b for _ in range(2) for b in train])
    assert len(batches[0]) == 14
    for other in batches[1:]:
        for a, b in zip(batches[0], other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_training_from_a_file(pairs):
    weights = []
    for large, workers in ((False, None), (True, 2)):
        torch.manual_seed(0)
        model = SREnhancedDiagnosis(2, 2, 'LR', width=8)
        recipe = DIAGNOSIS_RECIPES['fast']
        train_diagnosis(model, pairs(large, workers), pairs(large), recipe, 1, seed=3, precision='fp32')
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
        p = predict(model, pairs(large).lr, ['a', 'b'], order=torch.arange(40).flip(0))
        assert len(p) == 40
    assert torch.allclose(*weights, atol=1e-4), (weights[0] - weights[1]).abs().max()


@pytest.fixture
def pcam(tmp_path, tile):
    "The six files of a small PCam"
    folder, rng = tmp_path/'pcam', np.random.default_rng(0)
    folder.mkdir()
    for part, n in (('train', 24), ('valid', 8), ('test', 8)):
        with h5py.File(folder/f'{PCAM_FILE.format(part, "x")}.h5', 'w') as f:
            f['x'] = rng.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)
        with h5py.File(folder/f'{PCAM_FILE.format(part, "y")}.h5', 'w') as f:
            f['y'] = (np.arange(n)%2).astype(np.uint8).reshape(n, 1, 1, 1)
    return folder


def test_pcam_is_trained_on_where_it_lies(pcam, tmp_path, succeeds):
    said = succeeds('train-diagnosis', '--data', pcam, '--out', tmp_path/'m', '--inputs', 'LR', '--scale', 2,
                    '--epochs', 1, '--batch-size', 8, '--device', 'cpu', '--steps', 2)
    assert 'Groups are unknown' in said
    _, info = load_model(tmp_path/'m')
    assert info.classes == ['normal', 'tumour'] and info.data['test'] == 8
    assert 'accuracy' in succeeds('evaluate', '--data', pcam, '--model', tmp_path/'m')


def test_pcam_in_pieces_that_do_not_fit(pcam, tmp_path, refused):
    y = pcam/f'{PCAM_FILE.format("valid", "y")}.h5'
    with h5py.File(y, 'w') as f: f['y'] = np.zeros((5, 1, 1, 1), np.uint8)
    refused('train-diagnosis', '--data', pcam, '--out', tmp_path/'m', '--inputs', 'LR',
            naming=[y.name, '8 patches'])


@pytest.mark.parametrize('text, words', [
    ('<!DOCTYPE html>', 'web page'), ('', '0 bytes'), ('wsi\n"1\n2\n', 'not a table'),
    ('wsi\n' + 'A\n'*7 + '""\n', 'empty wsi in line 9')])
def test_a_damaged_table_of_slides_is_a_sentence(text, words, pcam):
    for part, n in (('train', 24), ('valid', 8), ('test', 8)):
        meta = pcam/f'{PCAM_FILE.format(part, "meta")}.csv'
        meta.write_text(text if part == 'valid' else 'wsi\n' + 'A\n'*n, encoding='utf-8')
    with pytest.raises(DataError, match=words): pcam_table(pcam)


def test_no_room_for_the_file(labelled, monkeypatch, tmp_path, refused):
    import os
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full)
    refused('train-diagnosis', '--data', labelled, '--out', tmp_path/'m', '--inputs', 'LR', '--images', 'hr',
            '--scale', 2, '--in-memory', 0, naming=['No space left', 'TMPDIR'])


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_memory_of_a_large_set_stays_small():
    "Pages of mapped files are the system's to take back, so what counts is the memory without a file"
    code = '''
import torch
from srdiag.data.mapped import ImageRows, channel_statistics, mapped
from srdiag.data.pairs import LabelledPairs
def own(): return int(next(line for line in open("/proc/self/status") if "RssAnon" in line).split()[1])//1024
block = mapped((30_000, 3, 96, 96))
for i in range(0, 30_000, 1000): block[i:i+1000] = i % 251
before = own()
pairs = LabelledPairs(ImageRows([block]).rows(torch.randperm(30_000)), torch.zeros(30_000), 2, 'hr')
channel_statistics(pairs.lr)
for i in range(0, 3000, 64): pairs.batch(list(range(i, i+64)))
print(block.numel()//2**20, own() - before)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, more = map(int, re.findall(r'-?\d+', done.stdout))
    assert size > 750 and more < 150, done.stdout


def test_many_images_of_another_size(labelled, tmp_path, tile, refused):
    import shutil
    from srdiag.data.images import save_png
    shutil.copytree(labelled, tmp_path/'data')
    (tmp_path/'data/labels.csv').unlink()
    for k in range(3): save_png(tile(5, 32)[:, k:], tmp_path/f'data/ill/odd__{k}.png')
    refused('train-diagnosis', '--data', tmp_path/'data', '--out', tmp_path/'m', '--inputs', 'LR',
            '--in-memory', 0, naming=['3 of 27 images', '--size'])


@pytest.mark.parametrize('option', ['--size 32', '--resize --size 96', '--degradation realistic',
                                    '--channels grey', '--lr small'])
def test_pcam_is_taken_as_it_lies(option, pcam, tmp_path, refused):
    refused('train-diagnosis', '--data', pcam, '--out', tmp_path/'m', '--inputs', 'LR', '--images', 'hr',
            *option.split(), naming=['PCam', option.split()[0]])


def test_copies_in_pcam_are_said_with_their_classes(pcam, capsys):
    with h5py.File(pcam/f'{PCAM_FILE.format("valid", "x")}.h5', 'r+') as f: f['x'][1] = f['x'][0]
    read_labelled(pcam, None, RunOptions())
    assert 'normal and tumour' in capsys.readouterr().out


def test_hdf5_that_claims_too_much(pcam, tmp_path):
    from srdiag.core.errors import DataError
    from srdiag.datasets.large import pcam_table
    x, y = (pcam/f'{PCAM_FILE.format("test", kind)}.h5' for kind in 'xy')
    whole = x.read_bytes()
    def refuses(match):
        with pytest.raises(DataError, match=match): pcam_table(pcam)
    with h5py.File(x, 'w') as f: f['x'] = np.zeros((8, 32, 32, 3), np.uint8)
    refuses('32×32×3, and not of 96×96×3')
    with h5py.File(x, 'w') as f:
        f.create_dataset('x', (2**25, 96, 96, 3), np.uint8, chunks=(1, 96, 96, 3))
    refuses('more than any part of PCam')
    with h5py.File(x, 'w') as f:
        f.create_dataset('x', (8, 96, 96, 3), np.uint8, external=[(str(y), 0, h5py.h5f.UNLIMITED)])
    refuses('from other files')
    x.write_bytes(whole)
    with h5py.File(y, 'w') as f: f.create_group('y')
    refuses('holds no labels')


@pytest.fixture
def stack(labelled, tmp_path): # the images of a folder in one HDF5 file, in the order of their names
    from srdiag.data.images import find_images, read_image
    rows = np.stack([read_image(p).permute(1, 2, 0).numpy() for p in find_images(labelled)])
    with h5py.File(tmp_path/'x.h5', 'w') as f: f['x'] = rows
    return tmp_path/'x.h5'


@pytest.mark.parametrize('model', ['sr', 'diagnosis'])
def test_images_in_hdf5_are_predicted_like_files(model, models, labelled, stack, tmp_path, succeeds):
    import pandas as pd
    for place, files in (('files', labelled), ('rows', stack)):
        succeeds('predict', files, '--model', getattr(models, model), '--out', tmp_path/place,
                 '--images', 'hr')
    files, rows = (pd.read_csv(tmp_path/place/'predictions.csv') for place in ('files', 'rows'))
    assert [f'{stack}/{k:07d}' for k in range(len(files))] == rows.file.tolist()
    assert rows.sr_image.iloc[0] == 'sr/x_0000000.png'
    same = [c for c in files if c not in ('file', 'sr_image')]
    pd.testing.assert_frame_equal(files[same], rows[same])
    for a, b in zip(files.sr_image, rows.sr_image):
        assert (tmp_path/'files'/a).read_bytes() == (tmp_path/'rows'/b).read_bytes()


def test_hdf5_without_images_is_named(models, stack, tmp_path, refused):
    with h5py.File(tmp_path/'y.h5', 'w') as f: f['y'] = np.zeros((4, 1, 1, 1), np.uint8)
    with h5py.File(tmp_path/'none.h5', 'w') as f: f['x'] = np.zeros((0, 16, 16, 3), np.uint8)
    for name, why in (('y', 'no array x'), ('none', 'no image')):
        refused('predict', stack, tmp_path/f'{name}.h5', '--model', models.sr, '--out', tmp_path/'out',
                naming=(f'{name}.h5', why))


def test_hdf5_of_other_channels_is_named(models, tmp_path, refused):
    with h5py.File(tmp_path/'x.h5', 'w') as f: f['x'] = np.zeros((3, 16, 16, 5), np.uint8)
    refused('predict', tmp_path/'x.h5', '--model', models.sr, '--out', tmp_path/'out',
            naming=('has 5 channels',))


def test_large_images_for_super_resolution_lie_in_a_file_and_train_the_same(tmp_path, capsys):
    from srdiag.commands.train_sr import train_sr_command
    from srdiag.data.images import save_png
    from srdiag.data.samples import tissue
    from srdiag.sr.settings import SRSettings
    sharp = tissue()
    (tmp_path/'tiles').mkdir()
    for k in range(12): save_png(sharp[:, 7*k:7*k + 61, 5*k:5*k + 50 + k], tmp_path/'tiles'/f'{k:02}.png')
    def trained(name, **how):
        network = SRSettings(scale=2, patch=32, steps=2, model='srcnn')
        train_sr_command(tmp_path/'tiles', tmp_path/name, network, RunOptions(epochs=1, **how))
        return (tmp_path/name/'model.safetensors').read_bytes(), capsys.readouterr().out
    (before, said), (after, told) = trained('memory'), trained('file', in_memory=5e-5)
    assert before == after and 'lie in a file' in told and 'lie in a file' not in said
