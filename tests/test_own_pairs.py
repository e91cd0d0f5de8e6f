"""Pairs that a user has, small images like those of a camera, and images of another size: each test makes its
own small folder."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from srdiag.core.errors import DataError
from srdiag.data.degradation import degrade
from srdiag.data.images import as_float, save_png
from srdiag.data.pairs import LabelledPairs, SRPairs
from srdiag.datasets.own_pairs import own_pairs, read_pairs, resolution_of, shift_of
from srdiag.datasets.reading import read_labelled, read_sr_folder
from srdiag.models.saving import load_model
from srdiag.training.options import Degradation, RunOptions

from conftest import TINY_DIAGNOSIS, TINY_SR


@pytest.fixture
def pair(tile):
    "A function: write one pair; returns the paths of both"
    def pair(hr, lr, k, side=32, scale=2):
        x = tile(k, side)
        for p in (hr, lr): p.parent.mkdir(parents=True, exist_ok=True)
        return save_png(x, hr), save_png(degrade(as_float(x), scale).flip(0), lr) # flipped colours: not ours
    return pair


@pytest.fixture
def pairs(tmp_path, pair):
    "A folder with HR and LR, six pairs"
    for k in range(6): pair(tmp_path/f'pairs/HR/s{k}__a.png', tmp_path/f'pairs/LR/s{k}__a.png', k)
    return tmp_path/'pairs'


@pytest.mark.parametrize('hr, lr', [
    ('HR/a1.png', 'LR/a1.png'), ('hr_x2/a1.png', 'lr_x2/a1.png'),
    ('High Resolution/A1.png', 'low-res/a1.png'),
    ('DIV2K_train_HR/0001.png', 'DIV2K_train_LR_bicubic/X2/0001x2.png'),
    ('train/hr/a1.png', 'train/lr/a1.png'),
    ('HR/a1_HR.png', 'LR/a1_LR.png'), ('HR/ill/a1.png', 'LR/ill/a1-x2.png')])
def test_names_that_people_use(hr, lr, tmp_path, pair):
    made = pair(tmp_path/hr, tmp_path/lr, 0)
    own = own_pairs(tmp_path)
    assert own.partner == dict([made]) and not own.alone


@pytest.mark.parametrize('name', ['high', 'low_grade', 'hrct', 'clear', 'train', 'ill'])
def test_names_that_are_no_resolution(name): assert resolution_of(name) == ''


def test_folders_that_are_no_pairs(tmp_path, fill):
    for name in ('high', 'low'): fill(tmp_path/name, 2)
    assert own_pairs(tmp_path) is None and own_pairs(tmp_path/'high') is None


def test_what_is_alone_or_ambiguous_is_named(pairs, tmp_path, pair, capsys):
    (pairs/'LR/s5__a.png').unlink()
    pair(pairs/'HR/f_x2.png', pairs/'LR/f.png', 7)
    pair(pairs/'HR/f_x4.png', tmp_path/'x.png', 8)
    own = own_pairs(pairs)
    assert len(own) == 5
    read_pairs(own, 16, 2, RunOptions())
    said = capsys.readouterr().out
    assert '5 pairs' in said and '4 files found no partner' in said and 's5__a.png' in said
    assert 'registration' in said


def test_a_pair_of_another_size_or_damaged_is_set_aside(pairs, tile, capsys):
    save_png(tile(50)[:, :15, :16], pairs/'LR/s0__a.png', overwrite=True)
    (pairs/'LR/s1__a.png').write_bytes(b'no image')
    found = read_sr_folder(pairs, 16, RunOptions(), scale=2)
    said = capsys.readouterr().out
    assert len(found.table) == 4 and '2 of 6 images were skipped' in said
    assert 's0__a.png 15×16' in said and 'not exactly 2 times' in said and 'is not an image' in said
    with pytest.raises(DataError, match='2 times as large.*--scale 2'):
        read_sr_folder(pairs, 16, RunOptions(), scale=4)


def test_groups_of_pairs_stay_together(tmp_path, pair):
    rows = []
    for k in range(9):
        hr, lr = pair(tmp_path/f'a/{k}.png', tmp_path/f'b/{k}.png', k)
        rows.append((f'b/{k}.png', f'a/{k}.png', f'P{k//3}'))
    pd.DataFrame(rows, columns=['LR', 'HR', 'Group']).to_csv(tmp_path/'pairs.csv', index=False)
    table = read_sr_folder(tmp_path/'pairs.csv', 16, RunOptions(), scale=2).table
    assert (table.groupby('group').split.nunique() == 1).all() and set(table.group) == {'P0', 'P1', 'P2'}


@pytest.mark.parametrize('smaller, words', [(2, 'at the scale 4'), (8, 'at the scale 4'),
                                            (4, '3 images but 2')])
def test_pairs_of_another_scale_or_number(smaller, words, tile):
    hr = [tile(k) for k in range(3)]
    lr = [x[:, ::smaller, ::smaller] for x in hr][:2 if smaller == 4 else 3]
    with pytest.raises((DataError, ValueError), match=words): SRPairs(hr, 4, lr=lr)


@pytest.mark.parametrize('n', [2, 4])
def test_as_many_labels_as_images(n, tile):
    with pytest.raises(ValueError, match=f'3 images but {n} labels'):
        LabelledPairs([tile(k) for k in range(3)], [0]*n, 2, 'hr')


def test_cells_of_a_table_of_pairs(pairs):
    names = sorted(p.name for p in (pairs/'HR').iterdir())
    rows = [f'HR/{name},LR/{name},p{k}' for k, name in enumerate(names)]
    (pairs/'t.csv').write_text('\n'.join(['hr,lr,group', *(row + ',' for row in rows)]))
    found = own_pairs(pairs/'t.csv')
    assert list(found.column('group', found.hr)) == [f'p{k}' for k in range(len(names))]
    (pairs/'t.csv').write_text('\n'.join(['hr,lr,group', *(row + ', Anna' for row in rows)]))
    with pytest.raises(DataError, match='line 2 has 4 cells for 3 columns'): own_pairs(pairs/'t.csv')


@pytest.fixture
def table_of(tmp_path, pair):
    "A function: write a table of six pairs with one more column; reads it"
    def table_of(column, cells):
        if not (tmp_path/'a').exists():
            for k in range(6): pair(tmp_path/f'a/{k}.png', tmp_path/f'b/{k}.png', k)
        rows = [f'b/{k}.png,a/{k}.png,{cell}' for k, cell in enumerate(cells)]
        (tmp_path/'pairs.csv').write_text('\n'.join([f'lr,hr,{column}', *rows]), encoding='utf-8')
        return read_sr_folder(tmp_path/'pairs.csv', 16, RunOptions(), scale=2).table
    return table_of


def test_a_table_of_pairs_is_split_as_it_says(table_of):
    assert table_of('Split', ['test', 'train', 'val', 'train', 'Test', 'train']).split.tolist() == [
        'test', 'train', 'valid', 'train', 'test', 'train']
    free = table_of('split', ['train', 'test'] + ['train']*4).split.tolist()
    assert free[1] == 'test' and sorted(free) == ['test'] + ['train']*4 + ['valid']
    with pytest.raises(DataError, match='marks no image as test'): table_of('split', ['train']*6)
    with pytest.raises(DataError, match="'later': only train"): table_of('split', ['later']*6)


def test_patients_in_a_table_of_pairs_are_not_overlooked(table_of, capsys):
    table_of('Patient', 'AABBCC')
    assert 'column patient' in capsys.readouterr().out
    with pytest.raises(DataError, match='empty group in line 4'):
        table_of('group', ['A', 'B', '', '', 'C', 'D'])


@pytest.mark.parametrize('shift', [0, 1, 2, 4])
def test_a_shift_is_seen(shift, tile):
    hr = tile(0, 128)
    moved = tile(0, 256)[:, :128, shift:128+shift]
    assert abs(shift_of(hr, degrade(moved/255, 2), 2) - shift/2) < 0.3


def test_a_shift_is_seen_in_a_smooth_image(tile):
    from srdiag.data.realistic import blur
    smooth = blur(tile(0, 256)/255, 15)
    hr = smooth[:, :128, :128]
    assert shift_of(hr, degrade(hr, 2), 2) < 0.3
    assert abs(shift_of(hr, degrade(smooth[:, :128, 4:132], 2), 2) - 2) < 0.5
    noise = 0.02*torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert shift_of(smooth, (degrade(smooth, 2) + noise).clamp(0, 1), 2) < 0.5 # and noise is none


def test_a_built_set_makes_its_small_images(sr_folder, tmp_path, succeeds, refused):
    succeeds('build', 'endosr', '--data', sr_folder, '--out', tmp_path/'set', '--size', 32,
             '--test-fraction', 0.3)
    refused('train-sr', '--data', tmp_path/'set', '--lr', sr_folder, '--out', tmp_path/'m', *TINY_SR,
            naming=['built set', '--lr'])


def test_train_sr_with_pairs_in_all_forms(pairs, tmp_path, succeeds, refused):
    def trained(out, *argv):
        said = succeeds('train-sr', *argv, '--out', tmp_path/out, *TINY_SR)
        info = load_model(tmp_path/out)[1]
        assert info.degradation == dict(degradation='own pairs') and '6 pairs' in said
        card = (tmp_path/out/'README.md').read_text(encoding='utf-8')
        assert 'pairs of the user' in card
        return pd.read_csv(tmp_path/out/'split.csv')
    one = trained('m1', '--data', pairs)
    two = trained('m2', '--data', pairs/'HR', '--lr', pairs/'LR')
    assert one.sha256.tolist() == two.sha256.tolist() and one.lr_sha256.tolist() == two.lr_sha256.tolist()
    said = succeeds('evaluate', '--model', tmp_path/'m2', '--data', pairs/'HR', '--lr', pairs/'LR')
    assert '1 image' in said
    said = succeeds('evaluate', '--model', tmp_path/'m2', '--data', pairs/'HR')
    assert 'name yours with --lr' in said
    refused('train-sr', '--data', pairs/'HR', '--lr', tmp_path/'nowhere', '--out', tmp_path/'m3',
            naming=['nowhere', 'does not exist'])


def test_the_network_sees_the_small_images_of_the_user(pairs):
    found = read_sr_folder(pairs, 16, RunOptions(), scale=2)
    made = read_sr_folder(pairs/'HR', 16, RunOptions(), scale=2)
    lr, hr = found.pairs('train', 2)[0]
    lr_made, hr_made = made.pairs('train', 2)[0]
    assert torch.equal(hr, hr_made) and torch.equal(lr.flip(0), lr_made) and not torch.equal(lr, lr_made)


def test_train_diagnosis_with_pairs(tmp_path, pair, succeeds, refused):
    for label, first in (('healthy', 0), ('ill', 100)):
        for k in range(12):
            pair(tmp_path/f'data/HR/{label}/p{k}__{label}.png', tmp_path/f'data/LR/{label}/p{k}__{label}.png',
                 first + k)
    said = succeeds('train-diagnosis', '--data', tmp_path/'data', '--inputs', 'LR+HR', '--out', tmp_path/'m',
                    *TINY_DIAGNOSIS, '--width', 16, '--lr-branch', 'scratch', '--sr-branch', 'scratch')
    info = load_model(tmp_path/'m')[1]
    assert '24 pairs' in said and info.classes == ['healthy', 'ill'] and info.lr_size == [16, 16]
    assert info.degradation == dict(degradation='own pairs') and info.images == 'lr'
    said = succeeds('evaluate', '--model', tmp_path/'m', '--data', tmp_path/'data', '--out', tmp_path/'e')
    assert len(pd.read_csv(tmp_path/'e/predictions.csv')) < 12
    shutil.move(tmp_path/'data/LR', tmp_path/'small')
    again = succeeds('evaluate', '--model', tmp_path/'m', '--data', tmp_path/'data/HR', '--lr',
                     tmp_path/'small')
    assert again.splitlines()[-1] == next(line for line in said.splitlines() if line.startswith('test'))
    refused('evaluate', '--model', tmp_path/'m', '--data', tmp_path/'data/HR', naming=['both images', '--lr'])


def test_small_images_of_training_are_not_tested_on(tmp_path, pair, succeeds, run_cli):
    for label, first in (('healthy', 0), ('ill', 100)):
        for k in range(8):
            pair(tmp_path/f'data/HR/{label}/{first}{k}.png', tmp_path/f'data/LR/{label}/{first}{k}.png',
                 first + k)
    succeeds('train-diagnosis', '--data', tmp_path/'data', '--inputs', 'LR', '--out', tmp_path/'m',
             *TINY_DIAGNOSIS, '--width', 16)
    split = pd.read_csv(tmp_path/'m/split.csv')
    succeeds('evaluate', '--model', tmp_path/'m', '--data', tmp_path/'data/LR', '--out', tmp_path/'e')
    assert len(pd.read_csv(tmp_path/'e/predictions.csv')) == (split.split == 'test').sum()


# Small images like those of a camera

def test_the_default_is_bicubic_to_the_bit(fill, tmp_path):
    from srdiag.data.realistic import degraded
    x = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(degraded(x, 2, Degradation()), degrade(x, 2))
    fill(tmp_path/'data')
    found = read_sr_folder(tmp_path/'data', 16, RunOptions(), scale=2)
    assert found.degradation == {} and found.lr is None


def test_a_camera_is_reproducible_and_remembered(fill, tmp_path, succeeds):
    fill(tmp_path/'data')
    camera = '--degradation', 'realistic', '--blur', 1, 2, '--noise', 0.01, 0.05, '--noise-kind', 'poisson'
    succeeds('train-sr', '--data', tmp_path/'data', '--out', tmp_path/'m', *TINY_SR, *camera,
             '--jpeg', 50, 90)
    info = load_model(tmp_path/'m')[1]
    how = Degradation('realistic', (1, 2), 'poisson', (0.01, 0.05), (50, 90))
    assert info.reduction == how
    card = (tmp_path/'m/README.md').read_text(encoding='utf-8')
    assert 'Gaussian blur of σ 1 to 2 px' in card and 'poisson noise' in card and 'JPEG of quality 50' in card
    options = RunOptions(reduction=how)
    a, b = (read_sr_folder(tmp_path/'data', 16, options).pairs('test', 2)[0][0] for _ in range(2))
    assert torch.equal(a, b)
    config = json.loads((tmp_path/'m/config.json').read_text(encoding='utf-8'))
    del config['info']['degradation'], config['info']['resize'] # a model of an older version
    (tmp_path/'m/config.json').write_text(json.dumps(config), encoding='utf-8')
    assert load_model(tmp_path/'m')[1].reduction == Degradation()


@pytest.mark.parametrize('wrong', [dict(blur=[1, 99]), dict(noise='much'), dict(degradation='x'),
                                   dict(lens=1)])
def test_a_damaged_degradation_is_a_sentence(wrong):
    from srdiag.models.info import ModelInfo
    with pytest.raises(ValueError, match='degradation cannot be read'):
        ModelInfo('A model', degradation=dict(degradation='realistic') | wrong)


# Images of another size, and depth by hand

@pytest.fixture
def mixed(tmp_path, fill_labelled, tile):
    fill_labelled(tmp_path/'data', side=32)
    (tmp_path/'data/labels.csv').unlink()
    for k in range(8): save_png(tile(k, 64)[:, :48, :64], tmp_path/f'data/ill/q{k}__a.png')
    return tmp_path/'data'


def test_images_are_resized_whole_and_the_model_remembers(mixed, tmp_path, succeeds):
    said = succeeds('train-diagnosis', '--data', mixed, '--inputs', 'LR', '--out', tmp_path/'m',
                    *TINY_DIAGNOSIS, '--width', 16, '--resize')
    assert '8 of 32 images were resized, whole, to 32×32 px (bicubic)' in said
    info = load_model(tmp_path/'m')[1]
    assert info.resize and info.lr_size == [32, 32]
    assert 'resized whole' in (tmp_path/'m/README.md').read_text(encoding='utf-8')
    assert 'resized' in succeeds('evaluate', '--model', tmp_path/'m', '--data', mixed, '--split', 'all')
    said = succeeds('predict', '--model', tmp_path/'m', '--out', tmp_path/'o', mixed/'ill')
    assert len(pd.read_csv(tmp_path/'o/predictions.csv')) == 20 and 'resized' in said
    from srdiag.models.apply import diagnose
    one = diagnose(mixed/'ill/q0__a.png', tmp_path/'m')
    assert abs(one.row['ens_ill'] - pd.read_csv(tmp_path/'o/predictions.csv').set_index('file').ens_ill[
        str(mixed/'ill/q0__a.png')]) < 1e-4


def test_a_model_reduces_as_it_was_trained(fill_labelled, tmp_path, succeeds):
    from srdiag.models.apply import diagnose
    fill_labelled(tmp_path/'data', side=32)
    succeeds('train-diagnosis', '--data', tmp_path/'data/labels.csv', '--inputs', 'LR', '--out', tmp_path/'m',
             *TINY_DIAGNOSIS, '--width', 16, '--images', 'hr', '--degradation', 'realistic',
             '--noise', 0.1, 0.2)
    info = load_model(tmp_path/'m')[1]
    assert info.images == 'hr' and info.reduction.noise == (0.1, 0.2)
    said = succeeds('evaluate', '--model', tmp_path/'m', '--data', tmp_path/'data/labels.csv',
                    '--split', 'all', '--out', tmp_path/'e')
    assert 'test, ' in said
    succeeds('predict', '--model', tmp_path/'m', '--out', tmp_path/'o', tmp_path/'data/ill', '--images', 'hr')
    of = pd.read_csv(tmp_path/'o/predictions.csv').set_index('file').ens_ill
    tested = pd.read_csv(tmp_path/'e/predictions.csv').set_index('file').ens_ill
    for name, p in of.items():
        name = f'ill/{name.split("/")[-1]}'
        assert abs(tested[name] - p) < 1e-4
    one = diagnose(of.index[0], tmp_path/'m')
    assert abs(one.row['ens_ill'] - of.iloc[0]) < 1e-4


def test_resize_with_a_size(mixed):
    found = read_labelled(mixed, None, RunOptions(size=24, resize=True))
    assert {tuple(x.shape) for x in found.images} == {(3, 24, 24)} and len(found.images) == 32
    larger = read_labelled(mixed, None, RunOptions(size=40, resize=True), min_size=36)
    assert len(larger.images) == 32 and larger.side == 40


def test_depth_by_hand(tmp_path):
    for k in range(4):
        a = np.arange(k, k + 256, dtype=np.uint16).reshape(16, 16)
        Image.fromarray(a).save(tmp_path/f'{k}.png')
    found = read_sr_folder(tmp_path, 8, RunOptions(bits=12))
    assert found.bits == 12 and found.parts['train'][0].max() < 0.07
    assert read_sr_folder(tmp_path, 8, RunOptions()).bits == 10
