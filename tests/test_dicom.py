"""DICOM, on the files that pydicom ships for its own tests, and on some that are written here. Where the
extra is not installed, only its sentence is tested."""
import importlib.util
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from srdiag.core.errors import DataError, ImageError, SrdiagError
from srdiag.data import decoding, dicom, images, layout
from srdiag.data.decoding import quietly
from srdiag.data.dicom import is_dicom, patient_of, read_dicom, window_sentence, windowed
from srdiag.data.groups import groups_from_names
from srdiag.data.images import find_images, is_image_file, read_image, read_images, unread_files

from conftest import TINY_DIAGNOSIS, TINY_SR

installed = importlib.util.find_spec('pydicom') is not None
needs_pydicom = pytest.mark.skipif(not installed, reason="pydicom is not there: pip install 'srdiag[dicom]'")

if installed:
    import pydicom
    SHIPPED = Path(pydicom.__file__).parent/'data/test_files'
    FILES = sorted(p for p in SHIPPED.glob('*.dcm') if is_dicom(p))
else: FILES = []


def test_a_sentence_without_pydicom(tmp_path, monkeypatch):
    for module in (decoding, dicom, images): monkeypatch.setattr(module, 'has_reader', lambda: False)
    monkeypatch.setattr(layout, 'find_spec', lambda name: None)
    (tmp_path/'a.dcm').write_bytes(bytes(128) + b'DICM')
    with pytest.raises(ImageError, match=r"pip install 'srdiag\[dicom\]'"): read_image(tmp_path/'a.dcm')
    assert 'srdiag[dicom]' in unread_files(tmp_path) and '1 .dcm' in unread_files(tmp_path)
    with pytest.raises(DataError, match='There is no image'): find_images(tmp_path)
    with pytest.raises(DataError, match='pydicom is missing'): groups_from_names([tmp_path/'a.dcm'], 'dicom')


@needs_pydicom
@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_every_file_is_read_or_named(path):
    with quietly():
        try: a = read_dicom(path)
        except ImageError as e:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            for tag in ('PatientName', 'PatientID'):
                assert not str(ds.get(tag, '')) or str(ds.get(tag)) not in e.why
            return
    assert a.ndim == 3 and a.shape[2] in (1, 3) and a.dtype in (np.uint8, np.float32)
    assert a.dtype == np.uint8 or 0 <= a.min() <= a.max() <= 1


@needs_pydicom
def test_most_files_are_read():
    with quietly():
        good = sum(not isinstance(x, ImageError) for x in map(_or_error, FILES))
    assert good >= 35


def _or_error(path):
    try: return read_dicom(path)
    except ImageError as e: return e


@needs_pydicom
@pytest.mark.parametrize('name, words', [
    ('rtplan', 'without an image'), ('test-SR', 'without an image'), ('examples_ybr_color', '30 frames'),
    ('rtdose_1frame', '32-bit'), ('SC_rgb_rle_32bit', '32-bit'), ('MR_truncated', 'truncated'),
    ('JPEGLSNearLossless_08', 'pylibjpeg'), ('JPEG-lossy', 'pylibjpeg'), ('badVR', 'cannot be decoded')])
def test_what_is_refused_and_how(name, words):
    with quietly(), pytest.raises(ImageError, match=words): read_dicom(SHIPPED/f'{name}.dcm')


@needs_pydicom
def test_compressions_and_byte_orders_give_the_same_image():
    with quietly():
        plain = read_dicom(SHIPPED/'MR_small.dcm')
        for other in ('RLE', 'bigendian', 'implicit', 'jp2klossless'):
            assert np.array_equal(plain, read_dicom(SHIPPED/f'MR_small_{other}.dcm')), other
        rgb = read_dicom(SHIPPED/'SC_rgb_dcmtk_+eb+cr.dcm').astype(int)
        for other in ('SC_rgb_dcmtk_+eb+cy+np', 'SC_ybr_full_422_uncompressed', 'SC_rgb_rle',
                      'SC_rgb_gdcm_KY'):
            assert abs(rgb - read_dicom(SHIPPED/f'{other}.dcm')).mean() < 12, other


@pytest.fixture
def write(tmp_path):
    "A function: pixels, elements of the header → a file"
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    def write(a, name='a.dcm', **more):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = '1.2.840.10008.5.1.4.1.1.7'
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.Rows, ds.Columns = a.shape[:2]
        ds.SamplesPerPixel = 1 if a.ndim == 2 else 3
        ds.PhotometricInterpretation = 'MONOCHROME2' if a.ndim == 2 else 'RGB'
        if a.ndim == 3: ds.PlanarConfiguration = 0
        ds.BitsAllocated = ds.BitsStored = 8*a.itemsize
        ds.PixelRepresentation = int(a.dtype.kind == 'i')
        for key, value in more.items(): setattr(ds, key, value)
        ds.HighBit = ds.BitsStored - 1
        ds.PixelData = a.tobytes()
        path = tmp_path/name
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)
        return path
    return write


RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)


@needs_pydicom
def test_slope_window_and_monochrome1(write):
    a = read_dicom(write(RAMP*16, BitsStored=12))[..., 0]
    assert a.dtype == np.float32 and a.max() == pytest.approx(4080/4095) # its own range
    a = read_dicom(write(RAMP, BitsStored=12, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100.5,
                         WindowWidth=101))[..., 0]
    units = 2.*RAMP - 100
    assert np.allclose(a, ((units - 100)/100 + 0.5).clip(0, 1), atol=1e-6)
    b = read_dicom(write(RAMP, BitsStored=12, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[100.5, 0],
                         WindowWidth=[101, 5], PhotometricInterpretation='MONOCHROME1'))[..., 0]
    assert np.allclose(a + b, 1, atol=1e-6)
    bytes_ = read_dicom(write(RAMP.astype(np.uint8)))[..., 0]
    assert bytes_.dtype == np.uint8 and np.array_equal(bytes_, RAMP)
    wide = read_dicom(write(RAMP, WindowCenter=128, WindowWidth=256, VOILUTFunction='SIGMOID'))
    assert wide.min() > 0.1 and wide.max() < 0.9


@needs_pydicom
@pytest.mark.parametrize('width, how', [(0, 'LINEAR'), (0.5, 'LINEAR'), (-100, 'LINEAR'), (0, 'LINEAR_EXACT'),
                                        (-1, 'LINEAR_EXACT'), (0, 'SIGMOID'), (-1, 'SIGMOID')])
def test_a_window_that_shows_nothing(write, width, how):
    with pytest.raises(ImageError, match=f'a window of the width {width:g}, but {how} needs'):
        read_dicom(write(RAMP, WindowCenter=100, WindowWidth=width, VOILUTFunction=how))
    with pytest.raises(ValueError, match=f'{how} needs'): windowed(RAMP, 100, width, how)
    assert read_dicom(write(np.stack([RAMP*257]*3, -1), WindowCenter=100, WindowWidth=width)).max() == 1


@needs_pydicom
@pytest.mark.parametrize('slope', ['0.000001', '0.00002', '1', '1000'])
def test_units_do_not_matter_without_a_window(write, slope):
    a = RAMP.astype(np.int16) - 100
    got = read_dicom(write(a, RescaleSlope=slope, RescaleIntercept=0))[..., 0]
    assert np.allclose(got, RAMP/255, atol=1e-6)


@needs_pydicom
def test_signed_numbers_of_the_whole_range(write):
    a = (RAMP.astype(np.int32)*257 - 32768).astype(np.int16)
    assert np.allclose(read_dicom(write(a))[..., 0], RAMP/255, atol=1e-6)
    assert not read_dicom(write(np.full((4, 4), 7, np.int16))).any()


@needs_pydicom
def test_colour_of_16_bits(write):
    a = read_dicom(write(np.stack([RAMP*257]*3, -1)))
    assert a.dtype == np.float32 and a.shape == (16, 16, 3) and a.max() == 1


@needs_pydicom
def test_images_without_a_window_are_said(write, capsys):
    path = write(RAMP.astype(np.int16) - 100)
    found = read_images([path])
    assert found.images[0].min() == 0 and found.images[0].max() == 1
    assert '1 DICOM file names no window' in capsys.readouterr().out
    assert window_sentence([write(RAMP, BitsStored=12)]) == ''


@needs_pydicom
def test_claims_are_bounded(write, tmp_path):
    path = write(RAMP, Rows=60000, Columns=60000)
    with pytest.raises(ImageError, match='60000×60000'): read_dicom(path)
    with pytest.raises(ImageError): read_dicom(write(RAMP, Rows=6000, Columns=6000))
    for size in (132, 140, 300):
        (tmp_path/'cut.dcm').write_bytes((SHIPPED/'MR_small.dcm').read_bytes()[:size])
        with quietly(), pytest.raises(ImageError): read_dicom(tmp_path/'cut.dcm')


@needs_pydicom
@pytest.mark.parametrize('name', ['MR_small', 'MR_small_RLE', 'MR_small_jp2klossless',
                                  'SC_rgb_small_odd_jpeg', 'examples_palette'])
def test_damaged_files(name, tmp_path):
    "40 of each, the same each time: read, or a sentence"
    rng, whole = random.Random(name), (SHIPPED/f'{name}.dcm').read_bytes()
    for _ in range(40):
        data, start = bytearray(whole), time.perf_counter()
        for _ in range(rng.choice((1, 5, 40))):
            end = len(data) if rng.random() < 0.3 else min(len(data), 1500)
            data[rng.randrange(132, end)] = rng.randrange(256)
        if rng.random() < 0.3: del data[rng.randrange(140, len(data)):]
        (tmp_path/'a.dcm').write_bytes(data)
        try: assert read_images([tmp_path/'a.dcm']).images[0].dim() == 3
        except SrdiagError as e: assert str(e).endswith('.') and '\n' not in str(e), e
        assert time.perf_counter() - start < 5


@needs_pydicom
def test_names_of_files_do_not_matter(tmp_path):
    for name in ('x.dcm', 'IM000001', 'CT.1.2.840.113619', 'y.IMA'):
        shutil.copy(SHIPPED/'MR_small.dcm', tmp_path/name)
    for name in ('README', 'b.dcm', 'c.txt'): (tmp_path/name).write_text('no image')
    shutil.copy(SHIPPED/'MR_small.dcm', tmp_path/'d.doc')
    assert len(find_images(tmp_path)) == 4 and is_image_file(tmp_path/'IM000001')
    assert '4 files' in unread_files(tmp_path) and 'does not begin like it' in unread_files(tmp_path)
    assert read_image(tmp_path/'d.doc').shape == (1, 64, 64) # named, so it is opened


@needs_pydicom
def test_a_study_in_dicom(write, tmp_path, tile, succeeds):
    "Patients in both classes; their names and numbers stand nowhere in what is written"
    for k in range(24):
        a = tile(k, 32).float().mean(0).mul(16).numpy().astype(np.uint16)
        write(a, f'data/{"ill" if k % 2 else "healthy"}/IM{k:03}', BitsStored=12, PatientID=f'ID{k//2:05}Q',
              PatientName='Doe^Jane')
    said = succeeds('train-diagnosis', '--data', tmp_path/'data', '--inputs', 'LR', '--out', tmp_path/'m',
                    *TINY_DIAGNOSIS, '--width', 16, '--group-pattern', 'dicom')
    split = pd.read_csv(tmp_path/'m/split.csv')
    assert split.group.nunique() == 12 and (split.groupby('group').split.nunique() == 1).all()
    succeeds('predict', '--model', tmp_path/'m', '--out', tmp_path/'o', tmp_path/'data/ill')
    written = ''.join(p.read_text(encoding='utf-8') for folder in ('m', 'o')
                      for p in (tmp_path/folder).glob('*') if p.suffix in ('.csv', '.json', '.md'))
    for secret in ('Doe', 'Jane', 'ID000', 'Q"'): assert secret not in written + said
    assert patient_of(tmp_path/'data/ill/IM001') == split.group[split.file == 'ill/IM001'].item()


@needs_pydicom
def test_super_resolution_of_dicom(write, tmp_path, tile, succeeds):
    for k in range(4):
        write(tile(k, 32).float().mean(0).mul(16).numpy().astype(np.uint16), f'data/{k}.dcm', BitsStored=12)
    succeeds('train-sr', '--data', tmp_path/'data', '--out', tmp_path/'m', *TINY_SR)
    succeeds('predict', '--model', tmp_path/'m', '--out', tmp_path/'o', tmp_path/'data')
    assert len([*(tmp_path/'o/sr').glob('*.png')]) == 4
