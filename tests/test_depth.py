"12 bits in files of 16: recognised from all files together, said, scaled by one rule, remembered by models."
import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from srdiag.core.errors import DataError, ImageError
from srdiag.data.decoding import find_depth
from srdiag.data.images import find_images, luma, read_image, read_images, save_png, to_uint8
from srdiag.models.apply import _pictures, enlarge
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model


@pytest.fixture
def films(tmp_path, tile):
    "A function: folder, bits, n → grey images of 16 bits that hold so many, the first of them dark"
    def films(name='films', bits=12, n=6, side=32):
        (tmp_path/name).mkdir()
        for k in range(n):
            grey = luma(tile(k, side))[0].numpy()/255*(0.2 if k == 0 else 1)
            Image.fromarray((grey*(2**bits - 1)).round().astype('uint16')).save(tmp_path/name/f'p{k}__0.png')
        return tmp_path/name
    return films


@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
def test_the_depth_is_recognised(films, bits, capsys):
    found = read_images(find_images(films(bits=bits)))
    said = capsys.readouterr().out
    assert found.bits == bits and (f'read as {bits} bits' in said) == (bits < 16)
    assert 0.5 < max(x.max() for x in found.images) <= 1


def test_one_depth_for_all(films):
    "The dark one stays five times darker than it would be alone, and eight bits hold all of its grey levels"
    paths = find_images(films())
    together, alone = read_images(paths), read_images(paths[:1])
    assert together.bits == 12 and alone.bits == 10
    assert together.images[0].mean()*3.9 < alone.images[0].mean()
    levels = [len(to_uint8(x).unique()) for x in (together.images[1], read_image(paths[1]))]
    assert levels[0] > 100 > 20 > levels[1]


def test_no_file_says_what_another_holds(films, tmp_path):
    paths = find_images(films())
    tifffile.imwrite(tmp_path/'full.tif', np.full((8, 8), 60000, 'uint16'))
    assert find_depth([*paths, tmp_path/'full.tif']).bits == 16
    Image.fromarray(np.full((8, 8), 255, 'uint8')).save(tmp_path/'eight.png')
    (tmp_path/'none.png').write_text('nothing')
    assert find_depth([tmp_path/'eight.png', tmp_path/'none.png', tmp_path/'gone.png']) is None
    assert find_depth([*paths, tmp_path/'eight.png', tmp_path/'none.png']).bits == 12
    Image.fromarray(np.zeros((8, 8), 'uint16')).save(tmp_path/'black.png')
    assert find_depth([tmp_path/'black.png']).sentence() == ''


@pytest.mark.parametrize('how', [dict(photometric='minisblack'), dict(photometric='miniswhite'),
                                 dict(photometric='minisblack', byteorder='>')])
def test_both_conventions_of_tiff(how, tmp_path):
    a = np.linspace(0, 4095, 64).reshape(8, 8).round().astype('uint16')
    tifffile.imwrite(tmp_path/'a.tif', a, **how)
    want = a/4095 if how['photometric'] == 'minisblack' else 1 - a/4095
    found = read_images([tmp_path/'a.tif'])
    assert found.bits == 12 and np.allclose(found.images[0][0], want, atol=1e-6)


@pytest.mark.parametrize('opaque', [4095, 65535])
def test_colour_with_transparency(opaque, tmp_path):
    a = np.full((4, 4, 4), 2000, 'uint16') # more than 10 bits, less than 12
    a[..., 3] = opaque
    tifffile.imwrite(tmp_path/'a.tif', a, photometric='rgb', extrasamples=['unassalpha'])
    found = read_images([tmp_path/'a.tif'])
    assert found.bits == 12 and torch.allclose(found.images[0], torch.tensor(2000/4095), atol=1e-5)


@pytest.mark.parametrize('kind, want', [('unspecified', 0.2), ('assocalpha', 0.6), ('unassalpha', 0.52)])
@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
def test_only_an_opacity_is_laid_over_white(kind, want, dtype, tmp_path):
    a = (np.array([0.2, 0.2, 0.2, 0.6])*np.iinfo(dtype).max).round().astype(dtype)
    a = np.tile(a, (4, 4, 1))
    tifffile.imwrite(tmp_path/'a.tif', a, photometric='rgb', extrasamples=[kind])
    found = read_image(tmp_path/'a.tif').double()/(255 if dtype == 'uint8' else 1)
    assert found.shape == (3, 4, 4) and (found - want).abs().max() < 1/250


def test_stains_of_which_one_cannot_be_chosen(tmp_path):
    for dtype in ('uint8', 'uint16'):
        for n in (2, 3):
            a = np.full((4, 4, n), 70, dtype)
            tifffile.imwrite(tmp_path/f'{n}.tif', a, photometric='minisblack', planarconfig='contig')
        assert read_image(tmp_path/'2.tif').shape == (1, 4, 4) # the other is left out
        with pytest.raises(ImageError, match='holds 3 channels'): read_image(tmp_path/'3.tif')


def test_12_bits_in_other_files_of_16(tmp_path):
    a = np.linspace(0, 4095, 64).reshape(8, 8).round().astype('uint16')
    Image.fromarray(a).save(tmp_path/'a.jp2')
    Image.fromarray(a).save(tmp_path/'a.j2k')
    (tmp_path/'a.pgm').write_bytes(b'P5 8 8 65535\n' + a.astype('>u2').tobytes())
    for path in find_images(tmp_path):
        found = read_images([path])
        assert found.bits == 12 and np.allclose(found.images[0][0], a/4095, atol=1e-6), path
    (tmp_path/'a.pgm').write_bytes(b'P5 8 8 4095\n' + a.astype('>u2').tobytes()) # says it itself
    Image.fromarray((a//16).astype('uint8')).save(tmp_path/'a.jp2')
    assert find_depth([tmp_path/'a.pgm', tmp_path/'a.jp2']) is None


def test_a_brighter_file_than_the_model_knows_is_named(films):
    paths = find_images(films())
    with pytest.raises(ImageError, match='10 bits'): read_images(paths, bits=10, strict=True)


def test_16_bit_colour_that_pillow_would_ruin(tmp_path):
    codecs = pytest.importorskip('imagecodecs')
    a = np.full((8, 8, 3), 4000, 'uint16')
    for name, image in (('dark', a), ('light', a*16)):
        (tmp_path/f'{name}.png').write_bytes(codecs.png_encode(image))
    with pytest.raises(ImageError, match='16-bit TIFF'): read_image(tmp_path/'dark.png')
    assert read_image(tmp_path/'light.png').shape == (3, 8, 8)


def test_16_bits_are_kept_when_they_are_written(tmp_path):
    x = torch.linspace(0, 1, 4096).reshape(1, 64, 64)
    assert torch.allclose(read_image(save_png(x, tmp_path/'a.png', bits=16)), x, atol=1e-5)
    with pytest.raises(ValueError, match='16 of grey'): save_png(x.repeat(3, 1, 1), tmp_path/'b.png', bits=16)


def test_16_bits_of_half_precision_and_of_no_numbers(tmp_path):
    x = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        path = save_png(x.to(kind), tmp_path/'a.png', overwrite=True, bits=16)
        assert torch.allclose(read_image(path), x.to(kind).float(), atol=1e-5)
    with pytest.raises(ValueError, match='NaN'): save_png(x*torch.nan, tmp_path/'b.png', bits=16)
    assert not (tmp_path/'b.png').exists()


def test_a_model_remembers_its_depth(films, tmp_path, succeeds, tiny_sr):
    data = films()
    said = succeeds('train-sr', '--data', data, '--out', tmp_path/'sr', *tiny_sr)
    assert '6 images of 16 bits' in said and '4095 as white' in said
    assert load_model(tmp_path/'sr')[1].bits == 12
    assert 'hold 12 bits' in (tmp_path/'sr'/'README.md').read_text(encoding='utf-8')
    said = succeeds('predict', data/'p0__0.png', '--model', tmp_path/'sr', '--out', tmp_path/'dark')
    assert 'bits' not in said # the model knows
    with Image.open(tmp_path/'dark'/'sr'/'p0__0.png') as im: large = np.asarray(im)
    with Image.open(data/'p0__0.png') as im: small = np.asarray(im)
    assert large.dtype == np.uint16 and len(np.unique(large)) > 256
    assert abs(large.mean()/65535 - small.mean()/4095) < 0.02
    again = np.asarray(enlarge(data/'p0__0.png', tmp_path/'sr'))
    assert np.abs(again.astype(int) - large).max() < 700 # bfloat16 or not


def test_a_diagnosis_of_12_bits(films, tmp_path, succeeds, tiny_diagnosis):
    for k, p in enumerate(sorted(films(n=24, side=16).iterdir())):
        folder = tmp_path/'xray'/('ill' if k % 2 else 'healthy')
        folder.mkdir(parents=True, exist_ok=True)
        p.rename(folder/f'p{k//2}__{k}.png')
    said = succeeds('train-diagnosis', '--data', tmp_path/'xray', '--out', tmp_path/'m', '--inputs', 'LR',
                    '--images', 'hr', *tiny_diagnosis)
    assert 'read as 12 bits' in said and load_model(tmp_path/'m')[1].bits == 12


def test_arrays_and_pictures_are_read_as_the_files_of_the_model(films):
    file = sorted(films().iterdir())[1]
    with Image.open(file) as im: im.load()
    a, known = np.asarray(im), ModelInfo('A model of 12 bits', bits=12)
    kinds = [file, im, a]
    of_file, of_image, of_array = (p.pixels for p in _pictures(kinds, known)[0])
    assert torch.equal(of_file, of_image) and torch.equal(of_file, of_array) and of_file.max() > 0.5
    # each comes back as what it was: a file with 65535 as white, as ever
    back = [np.asarray(p.back(p.pixels)) for p in _pictures(kinds, known)[0]]
    assert np.array_equal(back[1], a) and np.array_equal(back[2], a)
    assert np.abs(back[0]/65535 - a/4095).max() < 1e-4
    # a network alone knows nothing, so that an array holds 16 bits, whatever the files beside it do
    assert [p.pixels.max() > 0.5 for p in _pictures(kinds)[0]] == [True, False, False]
    for image, kind in ((a*16, DataError), (Image.fromarray(a*16), ImageError)):
        with pytest.raises(kind, match='12 bits, up to 4095'): _pictures(image, known)


def test_a_depth_that_is_none_is_refused_in_a_model(sr_model, tmp_path, succeeds):
    for bits in (0, 17, 12.5, True, 'many'):
        with pytest.raises(ValueError, match='bits'): ModelInfo('A model', bits=bits)
    config = json.loads((sr_model/'config.json').read_text(encoding='utf-8'))
    assert config['info'].pop('bits') is None
    assert ModelInfo(**config['info']).bits is None # a model of an earlier version
