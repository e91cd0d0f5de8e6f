"""Whole slides: pieces of tissue, their places, a map and polygons; and progress on one huge image."""
import csv
import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data as skdata

from srdiag.core import progress
from srdiag.models.saving import load_model
from srdiag.sr.inference import super_resolve


def rows(path): return list(csv.DictReader(path.open(encoding='utf-8')))


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    "A folder with two pyramids of 512×768 px, stained tissue on the right, and one that is cut off"
    folder = tmp_path_factory.mktemp('scans')
    rng = np.random.default_rng(0)
    for name in 'ab':
        glass = rng.normal(242, 2, (512, 768, 3)).astype('uint8')
        glass[:, 256:] = skdata.immunohistochemistry()
        with tifffile.TiffWriter(folder/f'{name}.tif') as tif:
            for k in range(3):
                kind = dict(subifds=2) if k == 0 else dict(subfiletype=1)
                tif.write(glass[::2**k, ::2**k].copy(), tile=(64, 64), photometric='rgb', compression='zlib',
                          **kind)
    whole = (folder/'a.tif').read_bytes()
    (folder/'cut.svs').write_bytes(whole[:len(whole)//2])
    return folder


def test_a_folder_of_slides(scans, models, tmp_path, succeeds):
    out = tmp_path/'out'
    said = succeeds('predict', scans, '--model', models.lr, '--images', 'hr', '--out', out, '--device', 'cpu')
    assert 'not for diagnostic use' in said and '1 of 3 images was skipped: cut.svs' in said
    assert [r['file'] for r in rows(out/'skipped.csv')] == [str(scans/'cut.svs')]
    table, side = rows(out/'predictions.csv'), 16 # 8 px at low resolution, scale 2
    of_a = [r for r in table if r['file'] == str(scans/'a.tif')]
    assert len(of_a) == len(table)/2 and 500 < len(of_a) <= 32*32
    for r in of_a:
        assert int(r['left']) >= 256 - side and int(r['width']) == int(r['height']) == side
        assert int(r['left']) % side == int(r['top']) % side == 0 and float(r['tissue']) >= 0.5
        assert float(r['ens_healthy']) + float(r['ens_ill']) == pytest.approx(1, abs=1e-5)
    page = json.loads((out/'slides/a.geojson').read_text(encoding='utf-8'))
    assert page['type'] == 'FeatureCollection' and len(page['features']) == len(of_a)
    for feature, r in zip(page['features'], of_a):
        ring, about = feature['geometry']['coordinates'][0], feature['properties']
        x, y = int(r['left']), int(r['top'])
        assert ring == [[x, y], [x+side, y], [x+side, y+side], [x, y+side], [x, y]]
        assert about['objectType'] == 'tile' and about['classification']['name'] == r['label']
        assert len(about['classification']['color']) == 3 and 'probability ill' in about['measurements']
    with Image.open(out/'slides/b.png') as im: assert min(im.size) > 300
    assert sorted(p.name for p in (out/'slides').iterdir()) == ['a.geojson', 'a.png', 'b.geojson', 'b.png']


def test_slides_replace_images_as_a_whole(scans, models, labelled, tmp_path, succeeds):
    out = tmp_path/'out'
    argv = '--model', models.lr, '--images', 'hr', '--out', out, '--device', 'cpu', '--overwrite'
    succeeds('predict', scans/'a.tif', *argv, '--level', 1)
    first = rows(out/'predictions.csv')
    assert {r['width'] for r in first} == {'32'}
    succeeds('predict', labelled, *argv)
    assert not list((out/'slides').iterdir()) if (out/'slides').exists() else True
    assert len(rows(out/'predictions.csv')) == 24


def test_shards_of_slides(scans, models, tmp_path, succeeds):
    argv = 'predict', scans/'a.tif', scans/'b.tif', '--model', models.lr, '--images', 'hr', '--device', 'cpu'
    succeeds(*argv, '--out', tmp_path/'out', '--shard', '2/2')
    assert {r['file'] for r in rows(tmp_path/'out/predictions-2-of-2.csv')} == {str(scans/'b.tif')}
    assert (tmp_path/'out/slides-2-of-2/b.geojson').is_file()


def test_what_does_not_go_together(scans, models, sr_folder, tmp_path, refused):
    refused('predict', scans, '--model', models.sr, '--out', tmp_path/'out',
            naming=['whole slide', 'train-diagnosis'])
    refused('predict', scans, sr_folder, '--model', models.lr, '--out', tmp_path/'out',
            naming=['3 whole slides', '6 other images', 'apart'])
    refused('predict', scans/'a.tif', '--model', models.lr, '--images', 'hr', '--out', tmp_path/'out',
            '--level', 9, naming=['3 levels', 'no level 9'])


def test_one_huge_image_shows_progress(models, monkeypatch, capsys):
    monkeypatch.setattr(progress, 'SILENT_FOR', 0)
    network, _ = load_model(models.sr)
    super_resolve(network, torch.zeros(3, 128, 128, dtype=torch.uint8), tile=32, dtype=torch.uint8)
    said = capsys.readouterr().out.splitlines()
    assert 8 <= len(said) <= 9 and said[-1].endswith('of 16 tiles.')


def test_a_missing_file_beside_a_slide(scans, models, tmp_path, refused):
    refused('predict', scans/'a.tif', scans/'missing.svs', '--model', models.lr, '--out', tmp_path/'out',
            naming=['missing.svs', 'does not exist'])


def test_nothing_stays_of_a_slide_that_breaks_off(scans, models, tmp_path, monkeypatch, succeeds):
    from srdiag.commands import predict_slides
    from srdiag.core.errors import ImageError
    whole = predict_slides.slide_rows
    def broken(task, slide): # after two batches
        for k, frame in enumerate(whole(task, slide)):
            if k == 2 and slide.path.name == 'b.tif': raise ImageError(slide.path, 'is damaged')
            yield frame
    monkeypatch.setattr(predict_slides, 'slide_rows', broken)
    argv = ('predict', scans/'a.tif', scans/'b.tif', '--model', models.lr, '--device', 'cpu', '--out',
            tmp_path/'out')
    said = succeeds(*argv, '--images', 'hr', '--size', 64)
    assert '--images, --size have no effect on whole slides' in said and 'b.tif is damaged' in said
    assert {r['file'] for r in rows(tmp_path/'out/predictions.csv')} == {str(scans/'a.tif')}
    assert sorted(p.name for p in (tmp_path/'out/slides').iterdir()) == ['a.geojson', 'a.png']
    monkeypatch.undo()
    assert 'no effect' not in succeeds(*argv, '--overwrite')
    assert (tmp_path/'out/slides/b.png').is_file()


def test_pieces_are_made_small_as_in_the_training(models):
    from types import SimpleNamespace
    from srdiag.commands.predict_slides import _frame_of
    from srdiag.datasets.fitting import small_of
    from srdiag.diagnosis.inference import predict
    network, info = load_model(models.lr)
    info.degradation = dict(degradation='realistic', noise=[0.1, 0.2])
    pieces = list(torch.from_numpy(skdata.immunohistochemistry()).permute(2, 0, 1)[:, :64, :16].split(16, 1))
    found = _frame_of(SimpleNamespace(network=network, info=info, mode=None, calibration=None), pieces)
    def by(how):
        lr = torch.stack([small_of(x, 2, 'hr', how) for x in pieces])
        return predict(network, lr, info.classes).probabilities['ens'][:, 1]
    assert np.allclose(found.ens_ill, by(info.reduction), atol=1e-5)
    assert not np.allclose(found.ens_ill, by(None), atol=1e-5)


def test_pieces_have_no_partner(scans, models):
    from types import SimpleNamespace
    from srdiag.commands.predict_slides import check_for_slides
    from srdiag.core.errors import DataError
    network = SimpleNamespace(network=None, large='HR', config=dict(multilabel=False))
    check_for_slides(network, [scans/'a.tif'], [], SimpleNamespace(images='hr'))
    with pytest.raises(DataError, match='both images of a pair'):
        check_for_slides(network, [scans/'a.tif'], [], SimpleNamespace(images='lr'))


def test_several_labels_have_no_map(scans):
    from types import SimpleNamespace
    from srdiag.commands.predict_slides import check_for_slides
    from srdiag.core.errors import DataError
    network = SimpleNamespace(network=None, large='SR', config=dict(multilabel=True))
    with pytest.raises(DataError, match='several labels'): check_for_slides(network, [scans/'a.tif'], [])
