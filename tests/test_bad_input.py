"Whatever a user gets wrong ends in one sentence that names it, with status 2, and nothing written or lost."
import csv
import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from srdiag.data.images import save_png
from srdiag.core.errors import DataError, ModelError
from srdiag.core.words import counted
from srdiag.models.saving import load_model
from srdiag.core.weights import list_pretrained


def rows(path): return list(csv.DictReader(path.open(encoding='utf-8')))


def write(path, text):
    path.write_text(text, encoding='utf-8')
    return path


def damage(folder):
    "Three files that look like images and are none; their names"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder/'notes__1.png', 'stained on Monday')
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder/'cut__1.png')
    whole = (folder/'cut__1.png').read_bytes()
    (folder/'cut__1.png').write_bytes(whole[:len(whole)//2])
    (folder/'empty__1.png').touch()
    return 'notes__1.png', 'cut__1.png', 'empty__1.png'


# Images

def commands(models, data, out, tiny_sr, tiny_diagnosis):
    "Every command that reads a folder of images, ready to run"
    return {'train-sr': ['train-sr', '--data', data, '--out', out, *tiny_sr],
            'distill': ['distill', '--data', data, '--teacher', models.teacher, '--out', out, '--epochs', 1,
                        '--steps', 1, '--patch', 16], 'train-diagnosis': [
                    'train-diagnosis', '--data', data, '--out', out, '--images', 'hr', '--inputs', 'LR',
                    *tiny_diagnosis],
            'evaluate': ['evaluate', '--data', data, '--model', models.sr, '--out', out],
            'evaluate diagnosis': ['evaluate', '--data', data, '--model', models.lr, '--out', out],
            'predict': ['predict', data, '--model', models.sr, '--out', out],
            'predict diagnosis': ['predict', data, '--model', models.lr, '--out', out, '--images', 'hr']}


COMMANDS = ['train-sr', 'distill', 'train-diagnosis', 'evaluate', 'evaluate diagnosis', 'predict',
            'predict diagnosis']


@pytest.fixture
def command(models, tmp_path, tiny_sr, tiny_diagnosis):
    "A function: (name, data) → arguments; output goes to tmp_path/out"
    return lambda name, data: commands(models, data, tmp_path/'out', tiny_sr, tiny_diagnosis)[name]


@pytest.fixture
def readable(tmp_path, fill, fill_labelled):
    "A function: name of a command → a folder it can use, to which a test adds what it cannot, and where"
    def readable(name):
        if 'diagnosis' in name: return fill_labelled(tmp_path/'data'), tmp_path/'data'/'ill'
        return fill(tmp_path/'data')[0].parent, tmp_path/'data'
    return readable


@pytest.mark.parametrize('name', COMMANDS)
def test_damaged_images_are_skipped_named_and_counted(name, command, readable, succeeds):
    data, place = readable(name)
    n = len(list(data.rglob('*.png')))
    bad = damage(place)
    printed = succeeds(*command(name, data))
    assert f'3 of {n+3} images were skipped' in printed
    for file in bad: assert file in printed


@pytest.mark.parametrize('name', COMMANDS)
def test_damaged_images_are_fatal_if_strict(name, command, readable, refused):
    data, place = readable(name)
    damage(place)
    err = refused(*command(name, data), '--strict')
    assert any(file in err for file in ('notes__1.png', 'cut__1.png', 'empty__1.png'))


def test_skipped_images_are_not_in_the_predictions(models, tmp_path, fill, succeeds):
    fill(tmp_path/'data', 3)
    damage(tmp_path/'data')
    succeeds('predict', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'out')
    assert ([os.path.basename(r['file']) for r in rows(tmp_path/'out/predictions.csv')] == [
                    f'slide{k}__tile.png' for k in range(3)])
    assert len(list((tmp_path/'out/sr').iterdir())) == 3


def test_only_damaged_images(command, tmp_path, refused):
    damage(tmp_path/'data')
    refused(*command('predict', tmp_path/'data'),
            naming=['None of the images can be used', 'cut__1.png', 'truncated'])


def mixed(folder, tile, side=32, start=0):
    "One tile in each of the forms that images come in"
    folder.mkdir(parents=True, exist_ok=True)
    a = [tile(start+k, side).permute(1, 2, 0).numpy() for k in range(8)]
    rgba = Image.fromarray(a[2]).convert('RGBA')
    rgba.putalpha(128)
    Image.fromarray(a[0]).save(folder/'rgb__1.png')
    Image.fromarray(a[1]).convert('L').save(folder/'grey__1.png')
    rgba.save(folder/'rgba__1.png')
    Image.fromarray(a[3]).quantize(16).save(folder/'palette__1.png')
    Image.fromarray(a[4][..., 0].astype(np.uint16)*257).save(folder/'grey16__1.png')
    tifffile.imwrite(folder/'rgb16__1.tif', a[5].astype(np.uint16)*257, photometric='rgb')
    Image.fromarray(a[6]).convert('LA').save(folder/'greyalpha__1.png')
    Image.fromarray(a[7]).save(folder/'photo__1.JPG', quality=95)
    return folder


def test_all_kinds_of_images_are_predicted(models, tmp_path, tile, succeeds):
    mixed(tmp_path/'data', tile)
    printed = succeeds('predict', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'out')
    assert 'skipped' not in printed and len(rows(tmp_path/'out/predictions.csv')) == 8
    for p in (tmp_path/'out/sr').iterdir():
        with Image.open(p) as im: assert (im.mode, im.size) == ('RGB', (64, 64))


def test_all_kinds_of_images_are_diagnosed(models, tmp_path, tile, succeeds):
    mixed(tmp_path/'data', tile, 16)
    said = succeeds('predict', tmp_path/'data', '--model', models.lr, '--out', tmp_path/'out', '--images',
                    'hr')
    assert 'skipped' not in said
    assert len(rows(tmp_path/'out/predictions.csv')) == 8


def test_all_kinds_of_images_are_trained_on(tmp_path, tile, succeeds, tiny_sr):
    mixed(tmp_path/'data', tile)
    assert 'skipped' not in succeeds('train-sr', '--data', tmp_path/'data', '--out', tmp_path/'out', *tiny_sr)
    assert load_model(tmp_path/'out')[0].config['image_channels'] == 3


def test_all_kinds_of_labelled_images_are_trained_on(tmp_path, tile, succeeds, tiny_diagnosis):
    for k, label in enumerate(('healthy', 'ill')): mixed(tmp_path/'data'/label, tile, 16, 8*k)
    printed = succeeds('train-diagnosis', '--data', tmp_path/'data', '--out', tmp_path/'out', '--images',
                       'hr', '--inputs', 'LR', *tiny_diagnosis)
    assert 'skipped' not in printed and len(rows(tmp_path/'out/split.csv')) == 16


def test_grey_images_make_a_grey_network(tmp_path, tile, succeeds, tiny_sr):
    (tmp_path/'data').mkdir()
    for k in range(4): save_png(tile(k)[:1], tmp_path/'data'/f'{k}.png')
    succeeds('train-sr', '--data', tmp_path/'data', '--out', tmp_path/'out', *tiny_sr)
    assert load_model(tmp_path/'out')[0].config['image_channels'] == 1
    succeeds('predict', tmp_path/'data', '--model', tmp_path/'out', '--out', tmp_path/'seen')
    with Image.open(tmp_path/'seen/sr/0.png') as im: assert (im.mode, im.size) == ('L', (64, 64))


def test_an_image_smaller_than_the_network_allows(models, tmp_path, fill, tile, refused, succeeds):
    (tmp_path/'data').mkdir()
    save_png(tile(0, 6), tmp_path/'data'/'tiny.png')
    refused('predict', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'out',
            naming=['tiny.png', '6×6', '8 pixels'])
    refused('evaluate', '--data', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'out',
            naming=['tiny.png', '6×6', '16 pixels'])
    fill(tmp_path/'data', 2)
    printed = succeeds('predict', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'out')
    assert '1 of 3 images was skipped: tiny.png is 6×6' in printed


def test_labelled_images_smaller_than_the_network_allows(models, tmp_path, fill_labelled, refused):
    data = fill_labelled(tmp_path/'data', side=8)
    for argv in (['train-diagnosis', '--data', data, '--images', 'hr', '--scale', 2],
                 ['evaluate', '--data', data, '--model', models.diagnosis]):
        refused(*argv, '--out', tmp_path/'out', naming=['p0__0.png', '8×8', '16 pixels'])


def test_images_smaller_than_the_patch(tmp_path, sr_folder, refused):
    refused('train-sr', '--data', sr_folder, '--out', tmp_path/'out',
            naming=['None of the images', '32×32', '64 pixels'])


def test_a_patch_that_does_not_fit_the_scale(tmp_path, sr_folder, refused):
    refused('train-sr', '--data', sr_folder, '--out', tmp_path/'out', '--patch', 30, '--scale', 4,
            naming=['30', '4', 'multiple'])


def test_too_few_images(tmp_path, fill, refused, tiny_sr):
    fill(tmp_path/'data', 2)
    refused('train-sr', '--data', tmp_path/'data', '--out', tmp_path/'out', *tiny_sr,
            naming=['2 usable images', 'at least 3'])


def test_too_few_groups(tmp_path, tile, refused, tiny_sr):
    (tmp_path/'data').mkdir()
    for k in range(6): save_png(tile(k), tmp_path/'data'/f'slide{k//3}__{k}.png')
    refused('train-sr', '--data', tmp_path/'data', '--out', tmp_path/'out', *tiny_sr,
            naming=['2 groups', '3 parts'])


@pytest.mark.parametrize('pattern, words', [('(', 'not a regular expression'),
                                            ('slide', 'one pair of parentheses'),
                                            ('(patient.)', 'does not match')])
def test_group_patterns(pattern, words, tmp_path, sr_folder, refused, tiny_sr):
    refused('train-sr', '--data', sr_folder, '--out', tmp_path/'out', *tiny_sr, '--group-pattern', pattern,
            naming=[pattern, words])


@pytest.mark.parametrize('name', COMMANDS)
def test_an_empty_folder(name, command, tmp_path, refused):
    (tmp_path/'data').mkdir()
    refused(*command(name, tmp_path/'data'), naming=[tmp_path/'data'])


@pytest.mark.parametrize('name', COMMANDS)
def test_a_folder_that_does_not_exist(name, command, tmp_path, refused):
    refused(*command(name, tmp_path/'data'), naming=[tmp_path/'data', 'does not exist', 'check the path'])


# Labels

@pytest.fixture
def train_labelled(tmp_path, tiny_diagnosis):
    "A function: data → arguments of train-diagnosis"
    return lambda data, *more: ['train-diagnosis', '--data', data, '--out', tmp_path/'out', '--images', 'hr',
                                '--inputs', 'LR', *tiny_diagnosis, *more]


def test_one_class_only(tmp_path, fill_labelled, train_labelled, refused):
    data = fill_labelled(tmp_path/'data', ['healthy'])
    refused(*train_labelled(data), naming=['healthy', 'at least two classes'])
    refused(*train_labelled(data/'labels.csv'), naming=['healthy', 'at least two classes'])


def test_one_class_left_after_skipping(tmp_path, fill_labelled, train_labelled, refused):
    data = fill_labelled(tmp_path/'data', ['healthy'])
    damage(data/'ill')
    refused(*train_labelled(data), naming=['ill', '0 images'])


def test_class_folders_are_missing(tmp_path, fill, train_labelled, refused):
    fill(tmp_path/'data')
    refused(*train_labelled(tmp_path/'data'), naming=[tmp_path/'data', 'no sub-folders'])


def test_one_class_folder_is_empty(tmp_path, fill_labelled, train_labelled, refused):
    data = fill_labelled(tmp_path/'data')
    (data/'unclear').mkdir()
    refused(*train_labelled(data), naming=[data/'unclear', 'no image'])


TABLES = {
    'file,label\nhealthy/p0__0.png,healthy\nill/p99__0.png,ill\n': ['labels.csv', 'p99__0.png', 'not exist'],
    'file,class\nhealthy/p0__0.png,healthy\n': ['labels.csv', 'no column label', 'file, class'],
    'name,label\nhealthy/p0__0.png,healthy\n': ['labels.csv', 'no column file'],
    'file;label\nhealthy/p0__0.png;healthy\n': ['labels.csv', 'commas'],
    '': ['labels.csv', 'not a table'],
    'file,label,group\nhealthy/p0__0.png,healthy, old,p0\nill/p0__0.png,ill, young,p1\n':
        ['labels.csv', 'line 2 has 4 cells for 3 columns', 'comma in quotes'],
    'file,label\n': ['labels.csv', 'no rows'],
    'file,label\nhealthy/p0__0.png,\n': ['labels.csv', 'empty label', 'line 2'],
    'file,label\nhealthy/p0__0.png,healthy\nhealthy/p0__0.png,ill\n': ['labels.csv', 'p0__0.png', 'twice'],
    'file,label,split\nhealthy/p0__0.png,healthy,training\nill/p0__0.png,ill,test\n':
        ['labels.csv', 'training', 'train, valid and test'],
    'file,label,split\nhealthy/p0__0.png,healthy,train\nill/p0__0.png,ill,train\n': ['split column', 'test']}


@pytest.mark.parametrize('table', TABLES, ids=['missing file', 'no label', 'no file column', 'semicolons',
                                               'empty', 'comma', 'no rows', 'empty label', 'twice',
                                               'split value', 'no test part'])
def test_tables_of_labels(table, tmp_path, fill_labelled, train_labelled, refused):
    data = fill_labelled(tmp_path/'data')
    write(data/'labels.csv', table)
    refused(*train_labelled(data, '--labels', data/'labels.csv'), naming=TABLES[table])


def test_the_table_does_not_exist(tmp_path, labelled, train_labelled, refused):
    refused(*train_labelled(labelled, '--labels', tmp_path/'gone.csv'), naming=['gone.csv', 'does not exist'])


def with_split(data, split):
    "labels.csv with a split column: `split` is a function of (label, group, row)"
    table = rows(data/'labels.csv')
    with open(data/'labels.csv', 'w', newline='', encoding='utf-8') as f:
        out = csv.writer(f)
        out.writerow(['file', 'label', 'group', 'split'])
        for k, r in enumerate(table):
            out.writerow([r['file'], r['label'], r['group'], split(r['label'], r['group'], k)])
    return data/'labels.csv'


PART = dict(p0='train', p1='train', p2='train', p3='train', p4='valid', p5='test')


def test_a_part_without_a_class_is_said(tmp_path, fill_labelled, train_labelled, succeeds):
    table = with_split(fill_labelled(tmp_path/'data', groups=6), lambda label, group, k: PART[group])
    (write(table, '\n'.join(r for r in table.read_text(encoding='utf-8').splitlines()
                            if not r.endswith(',ill,p4,valid')) + '\n'))
    printed = succeeds(*train_labelled(table))
    assert 'the valid part has no image of ill' in printed and 'the test part' not in printed


def test_a_class_seen_in_test_but_not_in_training(tmp_path, fill_labelled, train_labelled, refused):
    table = (with_split(fill_labelled(tmp_path/'data', ['healthy', 'ill', 'rare'], groups=6),
                        lambda label, group, k: 'test' if group == 'p5' else 'train'))
    text = table.read_text(encoding='utf-8').splitlines()
    write(table, '\n'.join(r for r in text if not (',rare,' in r and r.endswith('train'))) + '\n')
    refused(*train_labelled(table), naming=['rare', 'test part', 'not in the train part'])


def test_a_group_in_two_parts(tmp_path, fill_labelled, train_labelled, refused):
    table = (with_split(fill_labelled(tmp_path/'data', groups=6, each=2),
                        lambda label, group, k: 'test' if k == 0 else PART[group]))
    refused(*train_labelled(table), naming=['group p0', 'train part', 'test part'])


def test_a_class_in_one_group_only(tmp_path, fill_labelled, train_labelled, refused):
    data = fill_labelled(tmp_path/'data', groups=1)
    refused(*train_labelled(data), naming=['1 group', '3 parts'])


def test_a_test_part_of_one_group_has_no_interval(tmp_path, fill_labelled, train_labelled, succeeds):
    table = with_split(fill_labelled(tmp_path/'data', groups=6, each=2), lambda label, group, k: PART[group])
    assert 'accuracy' in succeeds(*train_labelled(table))
    assert {r['group'] for r in rows(tmp_path/'out/split.csv') if r['split'] == 'test'} == {'p5'}
    succeeds('evaluate', '--model', tmp_path/'out', '--data', table)


def test_images_of_different_sizes(tmp_path, fill_labelled, tile, train_labelled, refused):
    data = fill_labelled(tmp_path/'data')
    for k in range(6): save_png(tile(k, 32), data/'ill'/f'p0__9{k}.png')
    refused(*train_labelled(data), naming=['different sizes', '--size'])


def test_one_image_of_another_size(tmp_path, fill_labelled, tile, train_labelled, refused, succeeds):
    data = fill_labelled(tmp_path/'data')
    save_png(tile(0, 32), data/'ill'/'p0__9.png')
    refused(*train_labelled(data), '--strict', naming=['p0__9.png', '32×32', '--size'])
    said = succeeds(*train_labelled(data))
    assert '1 of 25 images was skipped: p0__9.png is 32×32 pixels' in said and '--size' in said


def test_images_that_are_no_multiple_of_the_scale(tmp_path, fill_labelled, train_labelled, refused):
    refused(*train_labelled(fill_labelled(tmp_path/'data', side=17)),
            naming=['17×17', 'multiple of 2', '--size'])


@pytest.mark.parametrize('option, value', [('--size', 0), ('--size', -3), ('--seed', -1), ('--epochs', 0),
                                           ('--steps', 'many'), ('--patch', -1), ('--scale', 5)])
def test_options_out_of_range(option, value, tmp_path, sr_folder, run_cli):
    code, out, err = run_cli('train-sr', '--data', sr_folder, '--out', tmp_path/'out', '--epochs', 1,
                             '--steps', 1, '--patch', 16, f'{option}={value}')
    assert code == 2 and 'Traceback' not in err, err
    assert option in err and str(value) in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize('inputs', ['HR', 'LR+HR'])
def test_high_resolution_input_from_low_resolution_files(inputs, labelled, tmp_path, refused):
    refused('train-diagnosis', '--data', labelled, '--out', tmp_path/'out', '--scale', 2, '--inputs', inputs,
            naming=[inputs, '--images hr'])


def test_an_sr_model_for_a_network_without_one(models, labelled, tmp_path, refused, train_labelled):
    refused(*train_labelled(labelled, '--sr', models.sr), naming=[models.sr, '--inputs'])


def test_batches_of_one_image(labelled, refused, train_labelled):
    refused(*train_labelled(labelled, '--batch-size', 1), naming=['batch', 'at least 2'])


# Use of models on other data

def test_wrong_sizes_in_predict(models, tmp_path, labelled, refused):
    refused('predict', labelled, '--model', models.diagnosis, '--out', tmp_path/'out',
            naming=['16×16', '8×8', '24 such files', '--images hr'])


def test_wrong_sizes_in_evaluate(models, tmp_path, fill_labelled, refused):
    refused('evaluate', '--data', fill_labelled(tmp_path/'data', side=32), '--model', models.lr, '--out',
            tmp_path/'out', naming=['16×16', '8×8', '--size'])


@pytest.mark.parametrize('classes', [['benign', 'malignant'], ['healthy', 'ill', 'unclear']])
def test_a_model_of_other_classes(classes, models, tmp_path, fill_labelled, refused):
    refused('evaluate', '--data', fill_labelled(tmp_path/'data', classes), '--model', models.lr, '--out',
            tmp_path/'out', naming=[', '.join(classes), 'healthy, ill'])


def test_a_test_part_of_other_data(models, tmp_path, fill, refused):
    fill(tmp_path/'data', 3, start=50)
    for p in sorted((tmp_path/'data').iterdir()): p.rename(p.with_name('new_' + p.name))
    refused('evaluate', '--data', tmp_path/'data', '--model', models.sr, '--split', 'test',
            naming=[models.sr, '--split all'])


@pytest.mark.parametrize('device', ['tpu', 'cpu:x', 'cuda:99', 'cuda'])
def test_a_device_that_does_not_exist(device, models, sr_folder, tmp_path, refused, tiny_sr):
    if device == 'cuda' and torch.cuda.is_available(): pytest.skip('there is one')
    refused('predict', sr_folder, '--model', models.sr, '--out', tmp_path/'out', '--device', device,
            naming=[device, 'cpu'])
    refused('train-sr', '--data', sr_folder, '--out', tmp_path/'out', *tiny_sr, '--device', device,
            naming=[device, 'cpu'])
    refused('demo', '--quick', '--out', tmp_path/'out', '--device', device, naming=[device, 'cpu'])


def test_fp16_without_a_gpu(sr_folder, tmp_path, refused, tiny_sr):
    refused('train-sr', '--data', sr_folder, '--out', tmp_path/'out', *tiny_sr, '--precision', 'fp16',
            naming=['fp16', 'bf16'])


# Model folders

def reweigh(folder, change):
    "Change the dictionary of weights, with a matching checksum"
    state = load_file(folder/'model.safetensors')
    save_file(change(state), folder/'model.safetensors')
    sign(folder)


def sign(folder):
    digest = hashlib.sha256((folder/'model.safetensors').read_bytes()).hexdigest()
    reconfigure(folder, lambda c: c | dict(weights_sha256=digest))


def reconfigure(folder, change):
    write(folder/'config.json',
          json.dumps(change(json.loads((folder/'config.json').read_text(encoding='utf-8')))))


def rename_first(state):
    k = sorted(state)[0]
    return {('renamed' if n == k else n): v for n, v in state.items()}


def truncate(folder, signed):
    data = (folder/'model.safetensors').read_bytes()
    (folder/'model.safetensors').write_bytes(data[:len(data)//2])
    if signed: sign(folder)


def with_network(folder, **changes): # of config.json
    reconfigure(folder, lambda c: c | dict(network=c['network'] | changes))


WRONG_MODELS = { # what is wrong → how it comes about, words of the sentence
    'no weights': (lambda f: (f/'model.safetensors').unlink(), ['model.safetensors missing']),
    'no config': (lambda f: (f/'config.json').unlink(), ['config.json missing']),
    'not JSON': (lambda f: write(f/'config.json', 'scale = 2'), ['config.json', 'not readable as JSON']),
    'not text': (lambda f: (f/'config.json').write_bytes(b'\xff\xfe\x00'),
                 ['config.json', 'not readable as JSON']),
    'a list': (lambda f: write(f/'config.json', '[]'), ['config.json', 'not a configuration']),
    'lacks a key': (lambda f: reconfigure(f, lambda c: {k: v for k, v in c.items() if k != 'kind'}),
                    ['config.json', 'kind']),
    'unknown kind': (lambda f: reconfigure(f, lambda c: c | dict(kind='segmentation')),
                     ['config.json', 'segmentation']),
    'odd kind': (lambda f: reconfigure(f, lambda c: c | dict(kind=['sr'])), ['config.json']),
    'unknown option': (lambda f: with_network(f, colour=3), ['config.json', 'colour']),
    'odd network': (lambda f: reconfigure(f, lambda c: c | dict(network=[2])), ['config.json']),
    'odd number': (lambda f: with_network(f, channels=-3), ['config.json']),
    'odd info': (lambda f: reconfigure(f, lambda c: c | dict(info=c['info'] | dict(colour=3))),
                 ['config.json', 'colour']),
    'renamed weight': (lambda f: reweigh(f, rename_first), ['model.safetensors', 'lacks', 'another network']),
    'missing weight': (lambda f: reweigh(f, lambda s: dict(list(s.items())[1:])),
                       ['model.safetensors', 'lacks', 'another network']),
    'more weights': (lambda f: reweigh(f, lambda s: s | dict(extra=torch.zeros(2))),
                     ['model.safetensors', 'unknown extra', 'another network']),
    'other shape': (lambda f: with_network(f, image_channels=1),
                    ['model.safetensors', 'wrong shape', 'another network']),
    'truncated': (lambda f: truncate(f, False), ['model.safetensors', 'damaged', 'checksums']),
    'truncated and signed': (lambda f: truncate(f, True), ['model.safetensors', 'damaged', 'copy'])}


@pytest.mark.parametrize('case', WRONG_MODELS)
def test_damaged_model_folders(case, models, sr_folder, tmp_path, refused):
    change, words = WRONG_MODELS[case]
    shutil.copytree(models.sr, tmp_path/'model')
    change(tmp_path/'model')
    refused('predict', sr_folder, '--model', tmp_path/'model', '--out', tmp_path/'out',
            naming=[tmp_path/'model', *words])


def test_no_model_folder(sr_folder, labelled, tmp_path, refused, tiny_diagnosis):
    gone = tmp_path/'gone'
    refused('predict', sr_folder, '--model', gone, '--out', tmp_path/'out', naming=[gone, 'check the path'])
    refused('evaluate', '--data', sr_folder, '--model', gone, '--out', tmp_path/'out',
            naming=[gone, 'check the path'])
    refused('distill', '--data', sr_folder, '--teacher', gone, '--out', tmp_path/'out',
            naming=[gone, 'check the path'])
    refused('train-diagnosis', '--data', labelled, '--sr', gone, '--out', tmp_path/'out', '--images', 'hr',
            *tiny_diagnosis, naming=[gone, 'check the path'])


def test_a_model_of_another_scale(models, fill_labelled, tmp_path, refused):
    data = fill_labelled(tmp_path/'data', side=32)
    refused('train-diagnosis', '--data', data, '--out', tmp_path/'out', '--sr', models.sr, '--scale', 4,
            '--images', 'hr', naming=[models.sr, 'enlarges 2 times', 'scale 4'])


def test_a_model_of_another_kind(models, labelled, sr_folder, tmp_path, refused, tiny_diagnosis):
    words = [models.lr, 'diagnosis', 'sr is needed']
    refused('train-diagnosis', '--data', labelled, '--out', tmp_path/'out', '--sr', models.lr, '--images',
            'hr', *tiny_diagnosis, naming=words)
    refused('distill', '--data', sr_folder, '--teacher', models.lr, '--out', tmp_path/'out', naming=words)


def test_a_model_of_other_channels(models, tile, tmp_path, refused, tiny_diagnosis):
    for label in ('healthy', 'ill'):
        (tmp_path/'data'/label).mkdir(parents=True)
        for k in range(4): save_png(tile(k, 16)[:1], tmp_path/'data'/label/f'{k}.png')
    refused('train-diagnosis', '--data', tmp_path/'data', '--out', tmp_path/'out', '--sr', models.sr,
            '--images', 'hr', *tiny_diagnosis, naming=[models.sr, '3 channel', '--channels'])


def test_a_teacher_that_is_not_recursive(models, sr_folder, tmp_path, refused):
    refused('distill', '--data', sr_folder, '--teacher', models.sr, '--out', tmp_path/'out', '--patch', 16,
            naming=[models.sr, 'not recursive', '--recursions 3'])


def test_a_teacher_of_other_data(models, fill, tmp_path, refused):
    for p in fill(tmp_path/'data', 4): p.rename(p.with_name('new_' + p.name))
    refused('distill', '--data', tmp_path/'data', '--teacher', models.teacher, '--out', tmp_path/'out',
            '--patch', 16, naming=[tmp_path/'data', 'part train'])


# Training that ends early

def break_training(monkeypatch, loss_class, steps, how):
    "After `steps` training steps the loss becomes NaN, or `how` is raised"
    forward, seen = loss_class.forward, [0]
    def broken(self, *args):
        loss = forward(self, *args)
        if not loss.requires_grad: return loss
        seen[0] += 1
        if seen[0] <= steps: return loss
        if how is not None: raise how
        return loss*float('nan')
    monkeypatch.setattr(loss_class, 'forward', broken)


def train_two_epochs(kind, sr_folder, labelled, out, *more):
    if kind == 'train-sr':
        return ['train-sr', '--data', sr_folder, '--out', out, '--scale', 2, '--epochs', 2, '--steps', 2,
                '--patch', 16, '--device', 'cpu', *more]
    return ['train-diagnosis', '--data', labelled, '--out', out, '--scale', 2, '--epochs', 2, '--images',
            'hr', '--inputs', 'LR', '--batch-size', 8, '--device', 'cpu', *more]


def loss_of(kind):
    from srdiag.diagnosis.losses import DiagnosisLoss
    from srdiag.sr.training import SRLoss
    return SRLoss if kind == 'train-sr' else DiagnosisLoss


@pytest.mark.parametrize('kind', ['train-sr', 'train-diagnosis'])
@pytest.mark.parametrize('how, status, words', [(None, 2, 'The loss became nan in epoch 1'),
                                                (KeyboardInterrupt(), 130, 'interrupted')],
                         ids=['NaN', 'Ctrl-C'])
def test_the_model_of_the_last_good_epoch_is_kept(
        kind, how, status, words, sr_folder, labelled, tmp_path, run_cli, succeeds, monkeypatch):
    with monkeypatch.context() as m:
        break_training(m, loss_of(kind), 2, how)
        code, _, err = run_cli(*train_two_epochs(kind, sr_folder, labelled, tmp_path/'out'))
    assert code == status and words in err and 'Traceback' not in err and err.count('\n') == 1, err
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    _, info = load_model(tmp_path/'out')
    assert info.metrics['epoch'] == 0 and 'not finished' in info.notes
    assert (tmp_path/'out/steps.csv').is_file()
    parts = [r['split'] for r in rows(tmp_path/'out/split.csv')]
    printed = (succeeds('evaluate', '--model', tmp_path/'out', '--data',
                        sr_folder if kind == 'train-sr' else labelled))
    assert counted(parts.count('test'), 'image') in printed, 'it must be tested on its test part'


@pytest.mark.parametrize('kind', ['train-sr', 'train-diagnosis'])
def test_a_loss_that_is_never_finite_leaves_nothing(
        kind, sr_folder, labelled, tmp_path, refused, monkeypatch):
    break_training(monkeypatch, loss_of(kind), 0, None)
    refused(*train_two_epochs(kind, sr_folder, labelled, tmp_path/'out'),
            naming=['The loss became nan in epoch 0 at step 0', 'smaller learning rate'])
    (tmp_path/'out').mkdir()
    refused(*train_two_epochs(kind, sr_folder, labelled, tmp_path/'out'), naming=['The loss became nan'])


def test_a_loss_that_is_never_finite_leaves_the_old_model(
        models, sr_folder, labelled, tmp_path, refused, monkeypatch):
    shutil.copytree(models.sr, tmp_path/'out')
    break_training(monkeypatch, loss_of('train-sr'), 0, None)
    refused(*train_two_epochs('train-sr', sr_folder, labelled, tmp_path/'out', '--overwrite'),
            naming=['The loss became nan'])
    load_model(tmp_path/'out')


@pytest.mark.parametrize('function', ['train_sr.train_sr', 'predict.super_resolve'])
def test_keyboard_interrupt(function, models, sr_folder, tmp_path, run_cli, monkeypatch, tiny_sr):
    def interrupt(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr('srdiag.commands.' + function, interrupt)
    argv = (['train-sr', '--data', sr_folder, '--out', tmp_path/'out', *tiny_sr] if 'train_sr' in function
            else ['predict', sr_folder, '--model', models.sr, '--out', tmp_path/'out'])
    code, _, err = run_cli(*argv)
    assert code == 130 and 'interrupted' in err and 'Traceback' not in err and err.count('\n') == 1


# Outputs

OUTPUTS = ['train-sr', 'distill', 'train-diagnosis', 'evaluate', 'evaluate diagnosis', 'predict',
           'predict diagnosis', 'demo']


@pytest.fixture
def output(command, sr_folder, labelled, tmp_path):
    "A function: name of a command → its arguments with good data; output goes to tmp_path/out"
    def output(name):
        return (['demo', '--quick', '--out', tmp_path/'out'] if name == 'demo'
                else command(name, labelled if 'diagnosis' in name else sr_folder))
    return output


@pytest.mark.parametrize('name', OUTPUTS)
def test_an_existing_output_folder(name, output, tmp_path, refused):
    (tmp_path/'out').mkdir()
    write(tmp_path/'out'/'thesis.txt', 'three years of work')
    refused(*output(name), naming=[tmp_path/'out', 'not empty', '--overwrite'])
    refused(*output(name), '--overwrite',
            naming=[tmp_path/'out', 'not made by srdiag', 'another output folder'])


@pytest.mark.parametrize('name', OUTPUTS)
def test_the_output_is_a_file(name, output, tmp_path, refused):
    write(tmp_path/'out', 'three years of work')
    for more in ([], ['--overwrite']): refused(*output(name), *more, naming=[tmp_path/'out', 'is a file'])


@pytest.mark.parametrize('name', OUTPUTS)
def test_the_output_lies_below_a_file(name, output, tmp_path, refused, run_cli):
    write(tmp_path/'thesis', 'three years of work')
    argv = [tmp_path/'thesis'/'sub'/'out' if a == tmp_path/'out' else a for a in output(name)]
    refused(*argv, naming=[tmp_path/'thesis'])
    assert 'epoch' not in run_cli(*argv)[1], 'it must be refused before training'


@pytest.mark.parametrize('name', OUTPUTS)
def test_the_output_may_not_be_written(name, output, tmp_path, refused, run_cli):
    (tmp_path/'locked').mkdir(mode=0o555)
    if os.access(tmp_path/'locked', os.W_OK): pytest.skip('root may write everywhere')
    argv = [tmp_path/'locked'/'out' if a == tmp_path/'out' else a for a in output(name)]
    refused(*argv, naming=[tmp_path/'locked'])
    assert 'epoch' not in run_cli(*argv)[1], 'it must be refused before training'


def test_overwrite_keeps_other_files(models, sr_folder, tmp_path, run_cli, succeeds, tiny_sr):
    shutil.copytree(models.sr, tmp_path/'out')
    write(tmp_path/'out'/'notes.txt', 'the good one')
    (tmp_path/'out'/'plots').mkdir()
    write(tmp_path/'out'/'plots'/'loss.txt', 'falls')
    before = (tmp_path/'out/model.safetensors').read_bytes()
    succeeds('train-sr', '--data', sr_folder, '--out', tmp_path/'out', *tiny_sr, '--seed', 5, '--overwrite')
    assert ((tmp_path/'out/notes.txt').read_text() == 'the good one'
            and (tmp_path/'out/plots/loss.txt').read_text() == 'falls')
    assert (tmp_path/'out/model.safetensors').read_bytes() != before
    assert load_model(tmp_path/'out')[1].training['seed'] == 5
    assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_overwrite_replaces_predictions(models, sr_folder, tmp_path, succeeds):
    argv = ['predict', sr_folder, '--model', models.sr, '--out', tmp_path/'out']
    succeeds(*argv)
    first = rows(tmp_path/'out/predictions.csv')
    succeeds(*argv, '--overwrite')
    assert rows(tmp_path/'out/predictions.csv') == first and len(first) == 6


def test_predictions_of_other_files_do_not_mix(models, tmp_path, fill, succeeds):
    fill(tmp_path/'monday', 2)
    for p in fill(tmp_path/'tuesday', 2, start=10): p.rename(p.with_name('new_' + p.name))
    for day in ('monday', 'tuesday'):
        succeeds('predict', tmp_path/day, '--model', models.sr, '--out', tmp_path/'out', '--overwrite')
    assert (sorted(p.name for p in (tmp_path/'out/sr').iterdir()) == [
                'new_slide0__tile.png', 'new_slide1__tile.png'])


def test_predictions_are_not_predicted(models, tmp_path, fill, succeeds):
    fill(tmp_path/'data', 3)
    for more in ([], ['--overwrite']):
        succeeds('predict', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'data'/'out', *more)
        assert len(rows(tmp_path/'data/out/predictions.csv')) == 3


def test_a_model_is_readable_by_others(models):
    for name in ('model.safetensors', 'config.json', 'README.md'):
        assert (models.sr/name).stat().st_mode & 0o777 == 0o666 & ~current_umask(), name


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_cost_keeps_its_file(tmp_path, refused):
    write(tmp_path/'costs.json', '[]')
    refused('cost', '--json', tmp_path/'costs.json', naming=[tmp_path/'costs.json', '--overwrite'])


@contextmanager
def full_disk(room):
    "No file may grow beyond `room` bytes"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('name', ['train-sr', 'train-diagnosis'])
def test_a_full_disk_while_saving_a_new_model(name, output, tmp_path, refused):
    with full_disk(100_000):
        refused(*output(name), naming=[tmp_path/'out', 'could not be saved', 'free some space'])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_replacing_a_model(models, output, tmp_path, snapshot, run_cli):
    shutil.copytree(models.sr, tmp_path/'out')
    before = snapshot(tmp_path)
    with full_disk(100_000): code, out, err = run_cli(*output('train-sr'), '--seed', 5, '--overwrite')
    assert code == 2 and 'could not be saved' in err and 'What was there is unchanged' in err, err
    assert 'Traceback' not in err, err
    assert snapshot(tmp_path) == before
    load_model(tmp_path/'out')


def test_a_disk_that_fills_between_the_epochs_and_the_end(
        models, sr_folder, tmp_path, run_cli, monkeypatch, tiny_sr):
    "The model of the best epoch was saved, its last metrics could not be: what is there can be used"
    saved = []
    def save(state, path):
        if saved: raise OSError(errno.ENOSPC, 'No space left on device')
        saved.append(path)
        save_file(state, path)
    monkeypatch.setattr('srdiag.models.saving.save_file', save)
    code, _, err = run_cli('train-sr', '--data', sr_folder, '--out', tmp_path/'out', *tiny_sr)
    assert code == 2 and 'No space left' in err and 'Traceback' not in err, err
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    assert 'not finished' in load_model(tmp_path/'out')[1].notes


@pytest.mark.parametrize('name, room', [('predict', 1000), ('predict diagnosis', 100), ('evaluate', 10),
                                        ('evaluate diagnosis', 10), ('train-sr', 0)])
def test_a_full_disk_while_writing_results(name, room, output, run_cli):
    with full_disk(room): code, _, err = run_cli(*output(name))
    assert code == 2 and 'Traceback' not in err and err.count('\n') == 1, err
    assert 'space' in err


def test_weights_that_are_not_finite_are_not_saved(models, tmp_path):
    from srdiag.models.saving import save_model
    network, info = load_model(models.sr)
    with torch.no_grad(): next(network.parameters()).view(-1)[0] = float('inf')
    with pytest.raises(ModelError, match='non-finite weights'): save_model(tmp_path/'out', network, info)
    assert not list(tmp_path.iterdir())


def test_a_weight_too_large_for_half_precision_leaves_the_old_model(models, tmp_path):
    from srdiag.models.saving import save_model
    network, info = load_model(models.sr)
    save_model(tmp_path/'out', network, info)
    with torch.no_grad(): next(network.parameters()).view(-1)[0] = 7e4
    with pytest.raises(ModelError, match='reach 7e[+]04, more than half precision can hold'):
        save_model(tmp_path/'out', network, info, overwrite=True, half=True)
    assert next(load_model(tmp_path/'out')[0].parameters()).max() < 100
    save_model(tmp_path/'out', network, info, overwrite=True) # in full it can be kept
    assert next(load_model(tmp_path/'out')[0].parameters()).max() == 7e4


# Names

def test_spaces_and_other_alphabets(tmp_path, fill, fill_labelled, succeeds, tiny_sr, tiny_diagnosis):
    home = tmp_path/'Bilder aus Köln 組織 (1)'
    for k, p in enumerate(fill(home/'Schnitte & Proben')):
        p.rename(p.with_name(f'Schnitt {k}  größer, später 🔬.png'))
    data = fill_labelled(home/'Fälle', ['krank – ja', '健康'])
    succeeds('train-sr', '--data', home/'Schnitte & Proben', '--out', home/'Netz ×2', *tiny_sr)
    succeeds('train-diagnosis', '--data', data, '--labels', data/'labels.csv', '--out', home/'Befund ß',
             '--inputs', 'LR', '--images', 'hr', *tiny_diagnosis)
    succeeds('evaluate', '--data', data, '--model', home/'Befund ß', '--out', home/'Prüfung')
    succeeds('predict', home/'Schnitte & Proben', '--model', home/'Netz ×2', '--out', home/'Ergebnis 1')
    succeeds('predict', data, '--model', home/'Befund ß', '--out', home/'Ergebnis 2', '--images', 'hr')
    assert (home/'Ergebnis 1/sr/Schnitt 0  größer, später 🔬.png').is_file()
    assert ({r['label']
              for r in json.loads((home/'Ergebnis 2/predictions.json').read_text(encoding='utf-8'))} <= {
                     'krank – ja', '健康'})
    assert 'ens_健康' in rows(home/'Ergebnis 2/predictions.csv')[0]


def test_a_name_that_is_not_text(models, tmp_path, fill, run_cli):
    "Linux allows file names that are not UTF-8"
    fill(tmp_path/'data', 2)
    try: os.rename(tmp_path/'data'/'slide0__tile.png', os.fsencode(tmp_path/'data') + b'/caf\xe9.png')
    except OSError: pytest.skip('this file system does not')
    code, _, err = run_cli('predict', tmp_path/'data', '--model', models.sr, '--out', tmp_path/'out')
    assert code in (0, 2) and 'Traceback' not in err, err


def test_the_same_name_in_two_folders(models, tmp_path, fill, succeeds):
    fill(tmp_path/'monday', 2)
    fill(tmp_path/'tuesday', 2, start=10)
    succeeds('predict', tmp_path/'monday', tmp_path/'tuesday', '--model', models.sr, '--out', tmp_path/'out')
    table = rows(tmp_path/'out/predictions.csv')
    assert len(table) == 4 == len({r['sr_image'] for r in table}) == len(list((tmp_path/'out/sr').iterdir()))
    for r in table:
        with Image.open(tmp_path/'out'/r['sr_image']) as sr, Image.open(r['file']) as lr:
            small = np.asarray(sr.resize(lr.size, Image.Resampling.BOX), float)
            assert np.abs(small - np.asarray(lr, float)).mean() < 8, (
                'each row must name the image of its own file')


def test_a_folder_and_one_of_its_files(models, tmp_path, fill, succeeds):
    first = fill(tmp_path/'data', 2)[0]
    succeeds('predict', tmp_path/'data', first, '--model', models.sr, '--out', tmp_path/'out')
    assert len(rows(tmp_path/'out/predictions.csv')) == 2


# The real command

def test_the_installed_command(tmp_path):
    "One process of its own: nothing but the sentence on stderr, and the status"
    argv = ['predict', tmp_path/'gone.png', '--model', tmp_path/'gone', '--out', tmp_path/'out']
    p = subprocess.run([sys.executable, '-m', 'srdiag.commands.cli', *argv], capture_output=True, text=True,
                       encoding='utf-8')
    assert p.returncode == 2 and p.stdout == '' and not list(tmp_path.iterdir())
    assert p.stderr == (f'srdiag predict: There is no model folder {tmp_path/"gone"}: check the path, or '
                        f'name one of the package: {", ".join(list_pretrained())}.\n')


def test_a_degradation_for_images_that_are_small_already_is_refused(labelled, tmp_path):
    from srdiag.commands.train_diagnosis import train_diagnosis_command
    from srdiag.training.options import Degradation, RunOptions
    with pytest.raises(DataError, match='--images hr'):
        train_diagnosis_command(labelled, tmp_path/'model', options=RunOptions(
            reduction=Degradation(degradation='realistic')))
    assert not (tmp_path/'model').exists()
