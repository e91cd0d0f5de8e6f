"""Files that somebody made to do harm, or that a disk has damaged: each is read or ends in a sentence,
soon and in little memory."""
import hashlib
import io
import json
import random
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from srdiag.core.errors import ImageError, ModelError, SrdiagError
from srdiag.core.words import as_cell, as_it_was, as_plain, csv_text, from_cell
from srdiag.data.decoding import FORMATS
from srdiag.data.images import find_images, read_image, read_images
from srdiag.models.info import ModelInfo, model_card
from srdiag.models.saving import load_model, save_model
from srdiag.models.split import read_split
from srdiag.sr.zoo import create_model


# Formats

STRANGERS = dict(
    EPS=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n',
    BLP=b'BLP2' + bytes(160), DDS=b'DDS ' + bytes(124), ICNS=b'icns' + bytes(60),
    FLI=bytes(4) + b'\x11\xaf' + bytes(122),
    WMF=b'\xd7\xcd\xc6\x9a\0\0' + bytes(60), PCX=b'\n\5\1\x08' + bytes(124),
    XPM=b'/* XPM */\nstatic char * a[] = {\n',
    SGI=b'\x01\xda' + bytes(510), PSD=b'8BPS\0\1' + bytes(60))


@pytest.mark.parametrize('kind', STRANGERS)
@pytest.mark.parametrize('name', ['patient1.png', 'patient1.tif'])
def test_only_our_formats_are_decoded(kind, name, tmp_path, monkeypatch):
    from PIL import EpsImagePlugin
    def started(*_, **__): raise AssertionError('Ghostscript was started')
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', started)
    (tmp_path/name).write_bytes(STRANGERS[kind])
    with pytest.raises(ImageError, match='not an image of a kind that is read'): read_image(tmp_path/name)


def test_every_format_of_ours_is_still_read(tmp_path, tile):
    image = Image.fromarray(tile(0).permute(1, 2, 0).numpy())
    for k, kind in enumerate(FORMATS):
        image.save(tmp_path/f'{k}.png', format=kind)
        assert read_image(tmp_path/f'{k}.png').shape == (3, 32, 32), kind


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK'])
def test_tiffs_that_lie_on_their_side(mode, tmp_path, tile):
    "Pillow maps uncompressed ones to memory, with height and width exchanged too early"
    image = Image.fromarray(tile(0).permute(1, 2, 0).numpy()).crop((0, 0, 24, 32)).convert(mode)
    for code in range(1, 9):
        exif = Image.Exif()
        exif[274] = code
        image.save(tmp_path/'plain.tif', exif=exif)
        image.save(tmp_path/'packed.tif', exif=exif, compression='tiff_lzw')
        plain, packed = (read_image(tmp_path/f'{name}.tif') for name in ('plain', 'packed'))
        assert plain.shape[1:] == ((24, 32) if code > 4 else (32, 24)) and torch.equal(plain, packed), code


# Weights and settings

@pytest.fixture
def changed(tmp_path):
    "A function: change of the weights, change of config.json → a model folder whose checksum is right"
    def changed(weights=lambda state: None, config=lambda c: None):
        torch.manual_seed(0)
        folder = tmp_path/'model'
        save_model(folder, create_model('srcnn_x2', channels=4), ModelInfo('A model'), overwrite=True)
        state = load_file(folder/'model.safetensors')
        c = json.loads((folder/'config.json').read_text(encoding='utf-8'))
        weights(state)
        save_file(state, folder/'model.safetensors')
        c['weights_sha256'] = hashlib.sha256((folder/'model.safetensors').read_bytes()).hexdigest()
        config(c)
        (folder/'config.json').write_text(json.dumps(c), encoding='utf-8')
        return folder
    return changed


def first(state): return next(k for k, v in sorted(state.items()) if v.dim() > 1)


@pytest.mark.parametrize('bad, words', [(float('nan'), 'NaN'), (float('inf'), 'infinite'),
                                        (-float('inf'), 'infinite')])
def test_weights_that_are_no_numbers(bad, words, changed):
    def change(state): state[first(state)].view(-1)[3] = bad
    with pytest.raises(ModelError, match=words): load_model(changed(change))


@pytest.mark.parametrize('kind', [torch.int8, torch.int64, torch.bool])
def test_weights_that_are_whole_numbers(kind, changed):
    def change(state): state[first(state)] = state[first(state)].to(kind)
    with pytest.raises(ModelError, match='where weights are needed'): load_model(changed(change))


def test_weights_of_half_precision_are_fine(changed):
    def change(state): state[first(state)] = state[first(state)].half()
    load_model(changed(change))


@pytest.fixture(scope='module')
def recursive(tmp_path_factory):
    "A small MRC-Net, all of whose settings can be made large"
    folder = tmp_path_factory.mktemp('mrcnet')/'model'
    save_model(folder, create_model('mrcnet_x2', channels=4, blocks=1), ModelInfo('A model'))
    return folder


@pytest.mark.parametrize('size', [4000, 10**6, 10**9, 10**30, -10**6])
@pytest.mark.parametrize('key', ['channels', 'stages', 'blocks', 'modules', 'steps', 'scale',
                                 'image_channels'])
def test_settings_that_ask_for_all_memory(size, key, recursive, tmp_path):
    shutil.copytree(recursive, tmp_path/'model')
    path = tmp_path/'model'/'config.json'
    config = json.loads(path.read_text(encoding='utf-8'))
    config['network'][key] = size
    path.write_text(json.dumps(config), encoding='utf-8')
    start = time.perf_counter()
    if key == 'steps' and size == 4000: # slow, and it fits
        load_model(tmp_path/'model')
        return
    with pytest.raises(ModelError) as e: load_model(tmp_path/'model')
    assert time.perf_counter() - start < 5 and len(str(e.value)) < 1000


def test_names_of_200000_letters(changed, run_cli, tmp_path, fill):
    long = 'x'*200_000
    folder = changed(lambda state: state.update({long: torch.zeros(1)}))
    with pytest.raises(ModelError) as e: load_model(folder)
    assert 'unknown' in str(e.value) and len(str(e.value)) < 1000
    for change in (lambda c: c.update(kind=long), lambda c: c.update(format='srdiag ' + long),
                   lambda c: c['network'].update({long: 1}),
                   lambda c: c['info'].update(classes=[long, long])):
        with pytest.raises(ModelError) as e: load_model(changed(config=change))
        assert len(str(e.value)) < 2000
    with pytest.raises(ModelError): load_model(long)
    with pytest.raises(SrdiagError) as e: find_images(long)
    assert len(str(e.value)) < 1000
    data = fill(tmp_path/'data', 1)[0]
    for argv in ((data, '--model', long, '--out', tmp_path/'o'),
                 (long, '--model', folder, '--out', tmp_path/'o'),
                 (data, '--model', changed(), '--out', tmp_path/long)):
        code, _, err = run_cli('predict', *argv)
        assert code == 2 and 'Traceback' not in err and len(err) < 5000


# Tables

CELLS = ['=cmd|" /C calc"!A0', '+1+1', '-2+3', '@SUM(A1)', '\tx', '\r=1', "'=1", "''@", "'fine'", '-0.5',
         '+3e-7', 'a=b', '']


def test_cells_that_a_spreadsheet_would_run():
    for cell in CELLS:
        safe = as_cell(cell)
        assert from_cell(safe) == cell
        assert safe in ('-0.5', '+3e-7') or not safe.startswith(('=', '+', '-', '@', '\t', '\r'))
    for number in (-1, -0.5, float('-inf'), None, True): assert as_cell(number) is number


def test_tables_come_back_as_they_were():
    table = pd.DataFrame({'file': CELLS, '=label': CELLS[::-1], 'score': np.linspace(-1, 1, len(CELLS)),
                          'n': range(len(CELLS))})
    text = io.StringIO(csv_text(table, index=False), newline='')
    again = as_it_was(pd.read_csv(text, keep_default_na=False, dtype={'file': str, "'=label": str}))
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    assert "\n'=1" in csv_text(table.set_index('file').iloc[6:7].rename(index={"'=1": '=1'}))


def test_files_with_names_like_commands(tmp_path, fill, succeeds, sr_model):
    for k, p in enumerate(fill(tmp_path/'data', 4)): p.rename(p.with_name(f'{"=+-@"[k]}1__{k}.png'))
    out = tmp_path/'out'
    for _ in range(2): # the second removes what the first has listed
        succeeds('predict', tmp_path/'data', '--model', sr_model, '--out', out, '--overwrite')
    lines = (out/'predictions.csv').read_text(encoding='utf-8').splitlines()
    assert not any(cell.startswith(tuple('=+-@')) for line in lines for cell in line.split(','))
    assert len(list((out/'sr').iterdir())) == 4


def test_a_split_with_names_like_commands(tmp_path, fill, succeeds, tiny_sr):
    for k, p in enumerate(fill(tmp_path/'data')): p.rename(p.with_name(f'=p{k}__{k}.png'))
    succeeds('train-sr', '--data', tmp_path/'data', '--out', tmp_path/'m', *tiny_sr)
    assert "'=p0__0.png" in (tmp_path/'m'/'split.csv').read_text(encoding='utf-8')
    assert sorted(read_split(tmp_path/'m').file) == sorted(p.name for p in (tmp_path/'data').iterdir())
    assert 'changed' not in succeeds('evaluate', '--data', tmp_path/'data', '--model', tmp_path/'m')


@pytest.mark.parametrize('known', [None, 'text', {}, {'split.csv': 'abc'}])
def test_a_split_that_was_changed_is_said(known, changed, capsys):
    def change(config): config['files_sha256'] = known
    folder = changed(config=change)
    (folder/'split.csv').write_text('file,split\na.png,train\n')
    assert list(read_split(folder).file) == ['a.png']
    assert ('was changed after' in capsys.readouterr().out) == (known == {'split.csv': 'abc'})


# Cards

NAMES = ['**ill**', '`ill`', '![](https://example.org/a.png)', '[ill](https://example.org)', '<img src=a>',
         'a|b', 'a\nb', '<script>', '@someone', 'www.example.org', r'a\|b', '~~ill~~', '$x$', '# ill',
         '&lt;b&gt;', '_ill_']


@pytest.mark.parametrize('name', NAMES)
def test_a_class_is_only_a_name_in_a_card(name):
    import html
    info = ModelInfo(f'Of {name}', classes=[name, 'b'], data=dict(name=name))
    card = model_card('framework', dict(scale=2), info)
    rows = [line for line in card.splitlines() if line.startswith('| classes') or line.startswith('| name')]
    assert len(rows) == 2 and all(row.replace('\\|', '').count('|') == 3 for row in rows)
    for bad in ('**ill', '`', '](', '<', '://', '@', 'www.', '~~', '$', '_ill'):
        assert bad not in as_plain(name)
    assert html.unescape(as_plain(name)).replace('\u200b', '') == ' '.join(name.split())


# Chance

def damaged(rng, data): # a few bytes changed, or the end cut off
    data = bytearray(data)
    if rng.random() < 0.3: return bytes(data[:rng.randrange(len(data))])
    for _ in range(rng.choice((1, 3, 20))):
        data[rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 200))] = rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF', 'BMP', 'WEBP'])
def test_damaged_images(kind, tile, tmp_path):
    "40 of each kind, the same each time; deep ones among them"
    rng, colour = random.Random(kind), tile(0).permute(1, 2, 0).numpy()
    sources = [Image.fromarray(colour)]
    if kind in ('PNG', 'TIFF'): sources.append(Image.fromarray(colour[..., 0].astype('uint16')*16))
    for k in range(40):
        whole = io.BytesIO()
        sources[k % len(sources)].save(whole, format=kind)
        path = tmp_path/f'{k}.{kind.lower()}'
        path.write_bytes(damaged(rng, whole.getvalue()))
        start = time.perf_counter()
        try: assert read_images([path]).images[0].dim() == 3
        except SrdiagError as e: assert str(e).endswith('.') and '\n' not in str(e), e
        assert time.perf_counter() - start < 5


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_damaged_models(name, changed):
    "100 of each file, the same each time, with a checksum that is right"
    rng, folder = random.Random(name), changed()
    whole, config = (folder/name).read_bytes(), json.loads((folder/'config.json').read_text(encoding='utf-8'))
    size = int.from_bytes(whole[:8], 'little') + 8 if name == 'model.safetensors' else len(whole)
    for _ in range(100):
        bad = damaged(rng, whole[:size]) + whole[size:]
        (folder/name).write_bytes(bad)
        if name == 'model.safetensors':
            config['weights_sha256'] = hashlib.sha256(bad).hexdigest()
            (folder/'config.json').write_text(json.dumps(config), encoding='utf-8')
        start = time.perf_counter()
        try: load_model(folder)
        except SrdiagError as e: assert len(str(e)) < 3000, e
        assert time.perf_counter() - start < 5
