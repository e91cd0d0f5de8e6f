"EndoSR and HistoSR from frames and slides: sizes, groups, hashes, and what is refused."

import csv
import re
from dataclasses import fields

import numpy as np
import pytest
import tifffile
import torch

from srdiag.datasets.builders import build_endosr, build_histosr
from srdiag.datasets.frames import circle_mask, square_frame
from srdiag.datasets.manifest import read_manifest, verify_manifest
from srdiag.datasets.settings import BuildOptions, EndoSRSettings, HistoSRSettings
from srdiag.data.degradation import degrade
from srdiag.data.images import as_float, read_image, save_png, to_uint8
from srdiag.datasets.slides import Slide, find_slides, is_slide, level_for
from srdiag.datasets.tissue import sample_places, thumbnail, tissue_mask, tissue_share
from srdiag.core.errors import DataError, ImageError


def built_by(build, kind):
    "The builder with the fields of its two objects as keywords"

    def call(source, out, report=None, **kw):
        options = {f.name: kw.pop(f.name) for f in fields(BuildOptions) if f.name in kw}
        return build(source, out, kind(**kw), BuildOptions(**options), report)

    return call


endosr, histosr = built_by(build_endosr, EndoSRSettings), built_by(build_histosr, HistoSRSettings)


# --- slides to practise on --------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def glass(tile):
    "768×1024 px of pale glass with a piece of tissue of 512×512 at (128, 256)"
    image = np.full((768, 1024, 3), 243, np.uint8) + np.random.default_rng(0).integers(
        -2, 3, (768, 1024, 3)
    ).astype(np.uint8)
    image[128:640, 256:768] = tile(0, 512).permute(1, 2, 0).numpy()
    return image


def half(image):
    return (
        image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)
    )


def write_pyramid(image, path, mpp=0.5, levels=3):
    with tifffile.TiffWriter(path) as tif:
        for k in range(levels):
            kind = dict(subifds=levels - 1) if k == 0 else dict(subfiletype=1)
            tif.write(
                image,
                tile=(128, 128),
                photometric='rgb',
                compression='zlib',
                resolution=(1e4 / mpp / 2**k,) * 2,
                resolutionunit='CENTIMETER',
                **kind,
            )
            image = half(image)
    return path


def write_svs(image, path):
    about = 'Aperio Image Library v11.2.1\r\n1024x768 (256x256) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990'
    small = half(half(image))
    with tifffile.TiffWriter(path) as tif:
        for x, kind in (
            (image, dict(tile=(256, 256))),
            (half(small), dict(rowsperstrip=48)),
            (small, dict(tile=(256, 256))),
        ):
            tif.write(x, photometric='rgb', compression='jpeg', description=about, metadata=None, **kind)
    return path


@pytest.fixture(scope='module')
def slides(glass, tile, tmp_path_factory):
    "A folder with three slides, two photographs, and a truncated, a damaged, an empty and a tiny one"
    folder = tmp_path_factory.mktemp('slides')
    write_pyramid(glass, folder / 'case0.tif')
    write_pyramid(glass[::-1], folder / 'case1.tif')
    write_svs(glass, folder / 'case2.svs')
    (folder / 'photos').mkdir()
    for k in range(2):
        save_png(tile(k, 256), folder / 'photos' / f'field{k}.png')
    whole = (folder / 'case0.tif').read_bytes()
    (folder / 'cut.tif').write_bytes(whole[: len(whole) * 2 // 3])
    (folder / 'damaged.tif').write_bytes(
        whole[:30_000] + bytes(len(whole) // 2) + whole[30_000 + len(whole) // 2 :]
    )
    write_pyramid(
        np.clip(np.random.default_rng(1).normal(242, 2, glass.shape), 0, 255).astype(np.uint8),
        folder / 'blank.tif',
    )
    save_png(tile(3, 128), folder / 'tiny.png')
    return folder


@pytest.fixture(scope='module')
def histo(slides, tmp_path_factory):
    out = tmp_path_factory.mktemp('histo') / 'set'
    return histosr(slides, out, crop=192, per_slide=6, test_fraction=0.3)


@pytest.fixture(scope='module')
def frames(tile, tmp_path_factory):
    "Four videos of two frames each, of odd sizes, and one file that is no image"
    folder = tmp_path_factory.mktemp('frames')
    for v in range(4):
        for k in range(2):
            save_png(tile(v % 4, 256)[:, : 201 + 13 * v, k : k + 233 - 7 * v], folder / f'video{v}__{k}.png')
    (folder / 'video0__broken.png').write_bytes((folder / 'video0__0.png').read_bytes()[:500])
    return folder


@pytest.fixture(scope='module')
def endo(frames, tmp_path_factory):
    return endosr(frames, tmp_path_factory.mktemp('endo') / 'set', size=128, test_fraction=0.3)


def check_pairs(folder, size, scale):
    "What holds for every built set; its rows"
    rows = read_manifest(folder)
    assert verify_manifest(folder) == len(rows) > 0
    groups = {part: {row['group'] for row in rows if row['split'] == part} for part in ('train', 'test')}
    assert groups['train'] and groups['test'] and not groups['train'] & groups['test']
    for row in rows:
        assert row['file'].startswith(f'{row["split"]}/hr/{row["group"]}__') and row['lr'] == row[
            'file'
        ].replace('/hr/', '/lr/')
        hr, lr = read_image(folder / row['file']), read_image(folder / row['lr'])
        assert hr.shape == (3, size, size) and lr.shape == (3, size // scale, size // scale)
        assert torch.equal(lr, to_uint8(degrade(as_float(hr), scale)))
    return rows


# --- EndoSR -----------------------------------------------------------------------------------------------


def test_endosr(endo):
    rows = check_pairs(endo.folder, 128, 4)
    assert sum(endo.pairs.values()) == len(rows) == 8 and sum(endo.groups.values()) == 4
    assert [p.name for p, _ in endo.skipped] == ['video0__broken.png'] and '1 of 9 files was skipped' in str(
        endo
    )
    outside = ~circle_mask(128)
    for row in rows:
        hr = read_image(endo.folder / row['file'])
        assert not hr[:, outside].any() and hr[:, 64, 0].any() and hr[:, 0, 64].any()


def test_boxes_lead_back_to_the_source(endo, frames):
    for row in read_manifest(endo.folder):
        x = read_image(frames / row['source'])
        top, left, height, width = (int(row[k]) for k in ('top', 'left', 'height', 'width'))
        assert (
            height == width == min(x.shape[1:])
            and abs(2 * top + height - x.shape[1]) <= 1
            and abs(2 * left + width - x.shape[2]) <= 1
        )
        hr, _ = square_frame(x[:, top : top + height, left : left + width], 128)
        assert torch.equal(hr * circle_mask(128), read_image(endo.folder / row['file']))


def test_mask_can_be_left_out(frames, tmp_path):
    endosr(frames, tmp_path / 'set', size=64, scale=2, mask='none')
    rows = check_pairs(tmp_path / 'set', 64, 2)
    assert read_image(tmp_path / 'set' / rows[0]['file'])[:, 0, 0].any()


def test_card_and_names_are_what_the_commands_read(endo):
    from srdiag.datasets.reading import read_sr_folder
    from srdiag.training.options import RunOptions

    card = (endo.folder / 'README.md').read_text(encoding='utf-8')
    for words in (
        'EndoSR, 4x',
        '| size | 128 |',
        '| seed | 0 |',
        f'| train | {endo.pairs["train"]} |',
        'degrade',
        'video0__broken.png',
    ):
        assert words in card
    data = read_sr_folder(endo.folder / 'train' / 'hr', 32, RunOptions())
    assert set(data.table.group) == {
        row['group'] for row in read_manifest(endo.folder) if row['split'] == 'train'
    }


def test_frames_are_not_enlarged(frames, tmp_path):
    with pytest.raises(DataError, match=r'not enlarged to 512: ask for a size of \d+ or less'):
        endosr(frames, tmp_path / 'set')
    with pytest.raises(ImageError, match='not enlarged'):
        endosr(frames, tmp_path / 'set', size=212, strict=True)
    built = endosr(frames, tmp_path / 'set', size=212)
    assert len(built.skipped) > 1 and not any(
        'broken' not in p.name and 'enlarged' not in why for p, why in built.skipped
    )


def test_a_frame_of_a_pixel_is_left_out_with_a_sensible_sentence(frames, tile, tmp_path):
    (tmp_path / 'in').mkdir()
    for k in range(2):
        save_png(tile(k, 64), tmp_path / 'in' / f'v{k}__1.png')
    save_png(tile(0, 64)[:, :1, :1], tmp_path / 'in' / 'v2__1.png')
    ((_, why),) = endosr(tmp_path / 'in', tmp_path / 'set', size=64).skipped
    assert why.startswith('is 1×1 pixels') and why.endswith('leave it out')


def test_no_mask_is_made_where_no_frame_is_large_enough(frames, tmp_path, monkeypatch):
    from srdiag.datasets import builders

    sides, real = [], builders.circle_mask
    monkeypatch.setattr(builders, 'circle_mask', lambda size: sides.append(size) or real(size))
    with pytest.raises(DataError, match='not enlarged to 8000'):
        endosr(frames, tmp_path / 'set', size=8000)
    assert not sides
    endosr(frames, tmp_path / 'set', size=64)
    assert set(sides) == {64}


def test_long_names_stay_different_groups(tile, tmp_path):
    (tmp_path / 'in').mkdir()
    patient = lambda k: 'hospital-of-the-long-name-' + 'x' * 100 + f'-patient-{k}'
    for k in range(6):
        save_png(tile(k, 64), tmp_path / 'in' / f'{patient(k // 2)}__{k}.png')
    built = endosr(tmp_path / 'in', tmp_path / 'set', size=64)
    rows = check_pairs(tmp_path / 'set', 64, 4)
    group = {row['source']: row['group'] for row in rows}
    assert (
        sum(built.groups.values()) == 3 == len(set(group.values())) and max(map(len, group.values())) <= 100
    )
    assert all(
        group[f'{patient(k)}__{2 * k}.png'] == group[f'{patient(k)}__{2 * k + 1}.png'] for k in range(3)
    )
    # other files change nothing about a name
    for k in range(6):
        save_png(tile(k, 64), tmp_path / 'in' / f'short{k}__1.png')
    endosr(tmp_path / 'in', tmp_path / 'more', size=64)
    assert group.items() <= {row['source']: row['group'] for row in read_manifest(tmp_path / 'more')}.items()


def test_groups_by_pattern_and_none(frames, tmp_path):
    built = endosr(frames, tmp_path / 'a', size=64, group_pattern=r'video(\d)')
    assert sum(built.groups.values()) == 4 and built.grouped
    built = endosr(frames, tmp_path / 'b', size=64, group_pattern='none')
    assert sum(built.groups.values()) == 8 and 'No groups were found' in str(built)


def test_awkward_names(tile, tmp_path):
    for k, name in enumerate(('a b__1.png', 'a-b__1.png', 'x/c__1.png', 'y/c__1.png', 'd/é__ß__2.png')):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        save_png(tile(k, 64), tmp_path / 'in' / name)
    endosr(tmp_path / 'in', tmp_path / 'set', size=64)
    rows = check_pairs(tmp_path / 'set', 64, 4)
    assert len({row['file'].lower() for row in rows}) == 5 and {row['group'] for row in rows} == {
        'a-b',
        'c',
        'é',
    }


# --- HistoSR ----------------------------------------------------------------------------------------------


def test_histosr(histo, slides):
    rows = check_pairs(histo.folder, 192, 2)
    skipped = {p.name: why for p, why in histo.skipped}
    assert set(skipped) == {'cut.tif', 'damaged.tif', 'blank.tif', 'tiny.png'}
    assert (
        'truncated' in skipped['cut.tif']
        and 'damaged' in skipped['damaged.tif']
        and 'no stained tissue' in skipped['blank.tif']
        and '128×128' in skipped['tiny.png']
    )
    per_source = {
        s: sum(row['source'] == s for row in rows)
        for s in ('case0.tif', 'case1.tif', 'case2.svs', 'photos/field0.png', 'photos/field1.png')
    }
    assert (
        per_source
        == {'case0.tif': 6, 'case1.tif': 6, 'case2.svs': 6, 'photos/field0.png': 1, 'photos/field1.png': 1}
        and len(rows) == 20
    )
    assert not list((histo.folder).rglob('*damaged*'))
    assert {row['group'] for row in rows} == {'case0', 'case1', 'case2', 'photos-field0', 'photos-field1'}


def test_crops_show_tissue_and_lie_where_the_manifest_says(histo, glass):
    rows = [row for row in read_manifest(histo.folder) if row['source'] == 'case0.tif']
    for row in rows:
        top, left = int(row['top']), int(row['left'])
        piece = glass[top : top + 192, left : left + 192]
        assert np.array_equal(read_image(histo.folder / row['file']).permute(1, 2, 0).numpy(), piece)
        assert tissue_mask(torch.from_numpy(piece.copy()).permute(2, 0, 1)).mean() > 0.4
    assert len({(row['top'], row['left']) for row in rows}) == 6


@pytest.mark.parametrize('kw', [dict(level=1), dict(mpp=1.0)])
def test_levels(slides, glass, tmp_path, kw):
    built = histosr(slides, tmp_path / 'set', crop=96, per_slide=3, test_fraction=0.4, **kw)
    rows = check_pairs(tmp_path / 'set', 96, 2)
    assert {row['source'] for row in rows} == {'case0.tif', 'case1.tif'} | (
        {'case2.svs'} if 'level' in kw else set()
    )
    assert 'field0.png' in {p.name for p, _ in built.skipped}
    for row in rows:
        if row['source'] != 'case0.tif':
            continue
        top, left, hr = (
            int(row['top']) // 2,
            int(row['left']) // 2,
            read_image(tmp_path / 'set' / row['file']),
        )
        assert row['level'] == '1' and row['height'] == row['width'] == '192'
        assert np.array_equal(hr.permute(1, 2, 0).numpy(), half(glass)[top : top + 96, left : left + 96])


def test_one_more_slide_changes_nothing_about_the_others(slides, glass, tmp_path):
    for name in ('case0.tif', 'case1.tif'):
        (tmp_path / 'in').mkdir(exist_ok=True)
        (tmp_path / 'in' / name).write_bytes((slides / name).read_bytes())
    places = lambda out: {(r['source'], r['top'], r['left']) for r in read_manifest(out)}
    histosr(tmp_path / 'in', tmp_path / 'two', per_slide=4)
    write_pyramid(glass[:, ::-1], tmp_path / 'in' / 'another.tif')
    histosr(tmp_path / 'in', tmp_path / 'three', per_slide=4)
    assert places(tmp_path / 'two') < places(tmp_path / 'three')


def test_strict(slides, tmp_path):
    with pytest.raises(ImageError, match='blank.tif shows no stained tissue'):
        histosr(slides, tmp_path / 'set', per_slide=2, strict=True)
    assert not list(tmp_path.iterdir())


# --- the promise of the manifest --------------------------------------------------------------------------


def test_same_seed_same_bytes(frames, slides, endo, histo, tmp_path, snapshot):
    endosr(frames, tmp_path / 'endo', size=128, test_fraction=0.3)
    assert snapshot(tmp_path / 'endo') == snapshot(endo.folder)
    histosr(slides, tmp_path / 'histo', crop=192, per_slide=6, test_fraction=0.3)
    assert snapshot(tmp_path / 'histo') == snapshot(histo.folder)
    histosr(slides, tmp_path / 'other', crop=192, per_slide=6, test_fraction=0.3, seed=1)
    assert snapshot(tmp_path / 'other') != snapshot(histo.folder)


@pytest.fixture
def own_endo(frames, tmp_path):
    endosr(frames, tmp_path / 'set', size=64)
    return tmp_path / 'set'


@pytest.mark.parametrize(
    'spoil,words',
    [
        (lambda f, row: (f / row['file']).unlink(), 'is missing'),
        (lambda f, row: (f / row['lr']).write_bytes(b'x'), 'has changed'),
        (lambda f, row: (f / 'train' / 'hr' / 'mine.png').write_bytes(b'x'), 'is not in the manifest'),
    ],
)
def test_verify_manifest_finds(own_endo, spoil, words):
    spoil(own_endo, read_manifest(own_endo)[0])
    with pytest.raises(DataError, match=words):
        verify_manifest(own_endo)


def test_manifest_must_be_one(own_endo):
    (own_endo / 'manifest.csv').write_text('file,lr\na,b\n')
    with pytest.raises(DataError, match='is not a manifest'):
        verify_manifest(own_endo)
    (own_endo / 'manifest.csv').unlink()
    with pytest.raises(DataError, match='cannot be read'):
        verify_manifest(own_endo)


# --- nothing of the user's is lost, nothing is half made --------------------------------------------------


def test_overwriting(frames, own_endo, snapshot):
    before = snapshot(own_endo)
    with pytest.raises(DataError, match='exists and is not empty'):
        endosr(frames, own_endo, size=64)
    (own_endo / 'notes.txt').write_text('mine')
    with pytest.raises(DataError, match='holds notes.txt'):
        endosr(frames, own_endo, size=64, overwrite=True)
    (own_endo / 'notes.txt').unlink()
    assert snapshot(own_endo) == before
    endosr(frames, own_endo, size=128, overwrite=True)
    assert check_pairs(own_endo, 128, 4) and [p.name for p in own_endo.parent.iterdir()] == ['set']


def test_foreign_folders_stay(frames, tmp_path, snapshot):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('important')
    (tmp_path / 'file').write_text('x')
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match='not made by srdiag'):
        endosr(frames, tmp_path / 'mine', size=64, overwrite=True)
    with pytest.raises(DataError, match='is a file'):
        endosr(frames, tmp_path / 'file', size=64, overwrite=True)
    with pytest.raises(DataError, match='lie in one another'):
        endosr(frames, frames / 'out', size=64)
    with pytest.raises(DataError, match='lie in one another'):
        endosr(tmp_path / 'mine', tmp_path, size=64)
    assert snapshot(tmp_path) == before and not (frames / 'out').exists()


@pytest.mark.parametrize(
    'stop,caught,words',
    [
        (KeyboardInterrupt(), KeyboardInterrupt, ''),
        (OSError(28, 'No space left on device'), DataError, 'No space left.*free space'),
    ],
)
@pytest.mark.parametrize('where', ['save_png', '_write_card'])
def test_interrupted_builds_leave_what_was_there(
    frames, own_endo, snapshot, monkeypatch, stop, caught, words, where
):
    from srdiag.datasets import builders

    before, calls, real = snapshot(own_endo.parent), [], getattr(builders, where)

    def failing(*a, **k):
        calls.append(1)
        if len(calls) == (5 if where == 'save_png' else 1):
            raise stop
        return real(*a, **k)

    monkeypatch.setattr(builders, where, failing)
    for out in (own_endo, own_endo.with_name('new')):
        calls.clear()
        with pytest.raises(caught, match=words or None):
            endosr(frames, out, size=128, overwrite=True)
    assert snapshot(own_endo.parent) == before


def test_failure_of_the_last_renaming_brings_the_old_set_back(frames, own_endo, snapshot, monkeypatch):
    from pathlib import Path

    before, real = snapshot(own_endo.parent), Path.rename

    def rename(self, target):
        if Path(target) == own_endo.resolve() and not self.name.endswith('.old'):
            raise OSError(5, 'Input/output error')
        return real(self, target)

    monkeypatch.setattr(Path, 'rename', rename)
    with pytest.raises(DataError, match='What was there is unchanged'):
        endosr(frames, own_endo, size=128, overwrite=True)
    monkeypatch.undo()
    assert snapshot(own_endo.parent) == before


def busy(after, act):  # a `report` that does something when so many files are done, as a neighbour might
    return lambda done, files: act() if done == after else None


def test_what_appears_in_the_place_during_a_build_stays(frames, own_endo, tmp_path, snapshot):
    def put(folder):
        folder.mkdir(exist_ok=True)
        (folder / 'thesis.txt').write_text('important')

    for appears, words in (
        (lambda: put(tmp_path / 'new'), 'exists and is not empty'),
        (lambda: (tmp_path / 'file').write_text('mine'), 'is a file'),
    ):
        out = tmp_path / ('new' if 'exists' in words else 'file')
        with pytest.raises(DataError, match=words):
            endosr(frames, out, size=64, report=busy(3, appears))
    before = snapshot(own_endo)
    with pytest.raises(DataError, match='holds thesis.txt'):
        endosr(frames, own_endo, size=64, overwrite=True, report=busy(3, lambda: put(own_endo)))
    assert snapshot(tmp_path / 'new').keys() == {'thesis.txt'} and (tmp_path / 'file').read_text() == 'mine'
    (own_endo / 'thesis.txt').unlink()
    assert snapshot(own_endo) == before and sorted(p.name for p in tmp_path.iterdir()) == [
        'file',
        'new',
        'set',
    ]


def test_of_two_builds_into_one_place_the_first_stays(frames, tmp_path):
    other = lambda: endosr(frames, tmp_path / 'set', size=128)
    with pytest.raises(DataError, match='exists and is not empty'):
        endosr(frames, tmp_path / 'set', size=64, report=busy(4, other))
    assert check_pairs(tmp_path / 'set', 128, 4) and [p.name for p in tmp_path.iterdir()] == ['set']
    (tmp_path / 'empty').mkdir()  # an empty folder is a place
    endosr(frames, tmp_path / 'empty', size=64)
    assert check_pairs(tmp_path / 'empty', 64, 4)


@pytest.mark.parametrize('moment', ['before', 'after'])
def test_what_appears_in_the_last_moment_stays(frames, own_endo, snapshot, monkeypatch, moment):
    "A file comes just before, or a folder just after, the old set is renamed away"
    from pathlib import Path

    before, real = snapshot(own_endo), Path.rename

    def rename(self, target):
        away = Path(target).name.endswith('.old')
        if away and moment == 'before':
            (own_endo / 'thesis.txt').write_text('important')
        done = real(self, target)
        if away and moment == 'after':
            own_endo.mkdir()
            (own_endo / 'thesis.txt').write_text('important')
        return done

    monkeypatch.setattr(Path, 'rename', rename)
    with pytest.raises(DataError) as e:
        endosr(frames, own_endo, size=128, overwrite=True)
    monkeypatch.undo()
    kept = own_endo
    if moment == 'after':
        (kept,) = own_endo.parent.glob('.set-*.old')
    assert (own_endo / 'thesis.txt').read_text() == 'important' and (
        'holds thesis.txt' if moment == 'before' else str(kept)
    ) in str(e.value)
    (own_endo / 'thesis.txt').unlink()
    assert snapshot(kept) == before


def test_what_a_killed_run_left_is_named_and_kept(frames, tmp_path):
    for name in (
        '.set-0123abcd',
        '.set-89abcdef.old',
        '.set-01234567-ab_cd9ef',
        '.set-mine',
        '.set-training',
        '.other-0123abcd',
    ):
        (tmp_path / name).mkdir()
    built = endosr(frames, tmp_path / 'set', size=64)
    text = str(built)
    assert (
        '.set-0123abcd is left of a run that was stopped: unless one is running now, it can be removed.'
    ) in text
    assert '.set-89abcdef.old is left' in text and 'was in the place before' in text
    assert (
        len(built.notes) == 3
        and '.set-mine' not in text
        and '.set-training' not in text
        and '.other' not in text
        and (tmp_path / '.set-0123abcd').is_dir()
    )
    assert '.set-' not in (tmp_path / 'set' / 'README.md').read_text(encoding='utf-8')


# --- bad options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kw,words',
    [
        (dict(size=510), 'cannot be divided by the scale 4: choose 508'),
        (dict(scale=1), '2 or more'),
        (dict(mask='square'), "'circle' or 'none'"),
        (dict(test_fraction=0), 'between 0 and 1'),
        (dict(test_fraction=1.5), 'between 0 and 1'),
        (dict(group_pattern='('), 'regular expression'),
        (dict(group_pattern='nothing(.)'), 'does not match'),
        (dict(group_pattern='(video)'), 'is one group'),
        (dict(size=400_000), 'more than can be read at once: choose 10000 or less'),
        (dict(size=400_000, scale=400_000), 'choose 10000 or less'),
    ],
)
def test_endosr_refuses(frames, tmp_path, kw, words):
    with pytest.raises(DataError, match=re.escape(words)):
        endosr(frames, tmp_path / 'set', **(dict(size=64) | kw))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'kw,words',
    [
        (dict(crop=191), 'choose 190'),
        (dict(crop=400_000), 'choose 10000 or less'),
        (dict(per_slide=0), '1 crop or more'),
        (dict(tissue=1.1), 'share of tissue'),
        (dict(mpp=0.0), 'more than 0'),
        (dict(crop=4000), 'smaller than the crop'),
    ],
)
def test_histosr_refuses(slides, tmp_path, kw, words):
    with pytest.raises(DataError, match=words):
        histosr(slides, tmp_path / 'set', **kw)
    assert not list(tmp_path.iterdir())


def test_missing_and_empty_sources(tmp_path):
    for build, words in ((endosr, 'no image'), (histosr, 'no slide')):
        with pytest.raises(DataError, match='does not exist'):
            build(tmp_path / 'nowhere', tmp_path / 'set')
        (tmp_path / 'empty').mkdir(exist_ok=True)
        with pytest.raises(DataError, match=words):
            build(tmp_path / 'empty', tmp_path / 'set')


# --- slides by themselves ---------------------------------------------------------------------------------


def test_slide_reads_what_was_written(slides, glass):
    with Slide(slides / 'case0.tif') as slide:
        assert slide.levels == [(768, 1024), (384, 512), (192, 256)] and slide.mpp == pytest.approx(0.5)
        assert np.array_equal(slide.read(100, 200, 50, 60).permute(1, 2, 0).numpy(), glass[100:150, 200:260])
        assert np.array_equal(
            slide.read(100, 200, 50, 60, 1).permute(1, 2, 0).numpy(), half(glass)[50:100, 100:160]
        )
        assert level_for(slide, mpp=2.1) == 2 and thumbnail(slide, 256).shape == (3, 192, 256)
        with pytest.raises(ImageError, match='no level of about 0.25'):
            level_for(slide, mpp=0.25)
        with pytest.raises(ImageError, match='ends before'):
            slide.read(760, 0, 16, 16)
    with Slide(slides / 'case2.svs') as slide:
        assert slide.levels == [(768, 1024), (192, 256)] and slide.mpp == 0.499
    assert is_slide(slides / 'case0.tif') and not is_slide(slides / 'tiny.png')


@pytest.mark.parametrize('name', ['case0.tif', 'case2.svs'])
def test_a_truncated_slide_is_always_refused(slides, tmp_path, name):
    whole = (slides / name).read_bytes()
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.9999):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match=re.escape(name) + '.*copy it again'):
            Slide(tmp_path / name)


PIXELS = np.random.default_rng(5).integers(0, 256, (256, 256, 4)).astype(np.uint8)
PALETTE = np.arange(768).reshape(3, 256).astype(np.uint16) * 80
KINDS = {
    'CMYK': (PIXELS, dict(photometric='separated')),
    'grey with 0 for white': (PIXELS[..., 0], dict(photometric='miniswhite')),
    'palette': (PIXELS[..., 0], dict(photometric='palette', colormap=PALETTE)),
    'YCbCr without JPEG': (PIXELS[..., :3], dict(photometric='ycbcr', compression='zlib')),
    'CIELAB': (PIXELS[..., :3], dict(photometric='cielab')),
    '3 channels': (PIXELS[..., :3], dict(photometric='minisblack', planarconfig='contig')),
    '4 bits': (PIXELS[..., 0] >> 4, dict(photometric='minisblack', bitspersample=4)),
}


@pytest.mark.parametrize('words', KINDS)
def test_colour_types_that_are_not_read_are_refused(tmp_path, words):
    image, kind = KINDS[words]
    tifffile.imwrite(tmp_path / 'kind.tif', image, tile=(128, 128), metadata=None, **kind)
    with pytest.raises(ImageError, match=rf'kind\.tif .*{words}.*: save it'):
        Slide(tmp_path / 'kind.tif')


@pytest.mark.parametrize(
    'image,kind',
    [
        (PIXELS, dict(photometric='rgb', extrasamples=['unassalpha'])),
        (
            np.dstack([np.minimum(PIXELS[..., :3], PIXELS[..., 3:]), PIXELS[..., 3:]]),
            dict(photometric='rgb', extrasamples=['assocalpha']),
        ),
        (PIXELS, dict(photometric='rgb', extrasamples=['unspecified'])),
        (PIXELS[..., 2:], dict(photometric='minisblack', extrasamples=['unassalpha'])),
        (PIXELS[..., 0], dict(photometric='minisblack')),
        (PIXELS[..., :3], dict(photometric='ycbcr', compression='jpeg')),
    ],
    ids=['RGBA', 'RGBa', 'RGBX', 'LA', 'L', 'YCbCr'],
)
def test_slides_have_the_colours_of_read_image(tmp_path, image, kind):
    tifffile.imwrite(tmp_path / 'kind.tif', image, tile=(128, 128), metadata=None, **kind)
    with Slide(tmp_path / 'kind.tif') as slide:
        piece = slide.read(0, 0, 256, 256)
    whole = read_image(tmp_path / 'kind.tif')
    # Pillow rounds twice where colours come multiplied
    assert piece.shape == whole.shape and (piece.int() - whole.int()).abs().max() <= 2


def test_a_name_that_is_not_utf8_is_said_in_a_sentence(tile, tmp_path, refused):
    import os

    name = os.fsencode(tmp_path) + b'/in/caf\xe9__1.png'
    save_png(tile(0, 64), tmp_path / 'good.png')
    (tmp_path / 'in').mkdir()
    try:
        open(name, 'wb').write((tmp_path / 'good.png').read_bytes())
    except OSError:
        pytest.skip('this file system takes no such name')
    for source in (tmp_path / 'in', os.fsdecode(name)):
        with pytest.raises(DataError, match='not UTF-8: rename the file'):
            find_slides(source)
    for what in ('endosr', 'histosr'):
        refused('build', what, '--data', tmp_path / 'in', '--out', tmp_path / 'x', naming=('not UTF-8',))


def test_files_are_closed_also_after_errors(slides):
    import os

    if not os.path.isdir('/proc/self/fd'):
        pytest.skip('counts open files in /proc')
    count = lambda: len(os.listdir('/proc/self/fd'))
    before = count()
    for name in ('case0.tif', 'case2.svs', 'cut.tif', 'damaged.tif', 'blank.tif'):
        try:
            with Slide(slides / name) as slide:
                sample_places(slide, 64, 3), slide.read(0, 0, slide.height, slide.width)
        except ImageError:
            pass
    assert count() == before


def test_places_hold_their_share(slides):
    with Slide(slides / 'case0.tif') as slide:
        places = sample_places(slide, 150, 200, tissue=0.7, seed=3)
        assert places == sample_places(slide, 150, 200, tissue=0.7, seed=3) and len(set(places)) == 200
        mask = tissue_mask(thumbnail(slide))
        top, left = np.array(places).T * mask.shape[0] / slide.height
        side = 150 * mask.shape[0] / slide.height
        assert tissue_share(mask, top, left, side, side).min() >= 0.7 - 1e-9
        with pytest.raises(ImageError, match='smaller than the crop'):
            sample_places(slide, 800, 1)
        with pytest.raises(ImageError, match='lower the share'):
            sample_places(slide, 760, 1, tissue=0.9)


def test_share_of_tissue_is_exact_between_pixels():
    mask = np.random.default_rng(0).random((12, 15)) > 0.5
    fine = np.kron(mask, np.ones((10, 10)))
    top, left = np.array([0.0, 1.3, 5.7]), np.array([0.0, 2.9, 8.1])
    expected = [
        fine[round(10 * a) : round(10 * a) + 62, round(10 * b) : round(10 * b) + 55].mean()
        for a, b in zip(top, left)
    ]
    assert tissue_share(mask, top, left, 6.2, 5.5) == pytest.approx(expected)


def test_empty_glass_has_no_tissue_and_tissue_is_mostly_tissue(tile):
    noise = np.clip(np.random.default_rng(0).normal(242, 3, (3, 200, 200)), 0, 255).astype(np.uint8)
    assert not tissue_mask(torch.from_numpy(noise)).any()
    assert tissue_mask(tile(0, 512)[:, :200, 100:300]).mean() > 0.85


# --- the command line -------------------------------------------------------------------------------------


def test_commands(frames, slides, tmp_path, succeeds, refused):
    text = succeeds(
        'build', 'endosr', '--data', frames, '--out', tmp_path / 'e', '--size', 64, '--test-fraction', 0.3
    )
    assert (
        'train' in text
        and 'skipped' in text
        and 'srdiag train-sr --data' in text
        and check_pairs(tmp_path / 'e', 64, 4)
    )
    text = succeeds(
        'build',
        'histosr',
        '--data',
        slides,
        '--out',
        tmp_path / 'h',
        '--crop',
        64,
        '--per-slide',
        2,
        '--tissue',
        0.3,
        '--seed',
        4,
    )
    assert check_pairs(tmp_path / 'h', 64, 2) and 'cut.tif is truncated' in text
    refused(
        'build', 'endosr', '--data', frames, '--out', tmp_path / 'e', '--size', 64, naming=('--overwrite',)
    )
    refused('build', 'endosr', '--data', tmp_path / 'gone', '--out', tmp_path / 'x', naming=('gone',))
    refused('build', 'histosr', '--data', slides, '--out', tmp_path / 'x', '--mpp', 8, naming=('of about 8',))
    refused('build', 'endosr', '--data', frames, '--out', tmp_path / 'x', naming=('ask for a size of',))


# --- real images ------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_frames(tmp_path):
    import os
    import shutil
    from pathlib import Path

    source = sorted((Path(os.environ['SRDIAG_DATA']) / 'endoscopy' / 'sr').glob('*.jpg'))[:24]
    (tmp_path / 'in').mkdir()
    for p in source:
        shutil.copy(p, tmp_path / 'in')
    with pytest.raises(DataError, match='352×352 pixels, and frames are not enlarged to 512'):
        endosr(tmp_path / 'in', tmp_path / 'set')
    built = endosr(tmp_path / 'in', tmp_path / 'set', size=352)
    assert not built.skipped and len(check_pairs(tmp_path / 'set', 352, 4)) == 24


@pytest.mark.data
def test_real_tissue(tmp_path):
    import os
    import shutil
    from pathlib import Path

    source = sorted((Path(os.environ['SRDIAG_DATA']) / 'histology' / 'sr').glob('*'))[::20]
    (tmp_path / 'in').mkdir()
    for p in source:
        shutil.copy(p, tmp_path / 'in')
    built = histosr(tmp_path / 'in', tmp_path / 'set', group_pattern='__([^_]+)__')
    rows = check_pairs(tmp_path / 'set', 192, 2)
    assert built.files == len(source) and len(rows) > 0.8 * len(source)


def test_training_follows_the_split_of_a_built_set(tmp_path, fill, succeeds, tiny_sr):
    fill(tmp_path / 'frames', n=8, side=64)
    endosr(tmp_path / 'frames', tmp_path / 'set', size=32, scale=2, test_fraction=0.4)
    succeeds('train-sr', '--data', tmp_path / 'set', '--out', tmp_path / 'model', *tiny_sr)
    split = {r['file']: r for r in csv.DictReader((tmp_path / 'model/split.csv').open(encoding='utf-8'))}
    manifest = {r['file']: r for r in read_manifest(tmp_path / 'set')}
    assert split.keys() == manifest.keys(), 'LR images were read, or HR images left out'
    assert {f for f, r in split.items() if r['split'] == 'test'} == {
        f for f, r in manifest.items() if r['split'] == 'test'
    }
    assert all(r['group'] == manifest[f]['group'] for f, r in split.items()) and {
        r['split'] for r in split.values()
    } == {'train', 'valid', 'test'}
    succeeds(
        'evaluate', '--data', tmp_path / 'set', '--model', tmp_path / 'model', '--out', tmp_path / 'tested'
    )
    n = sum(r['split'] == 'test' for r in manifest.values())
    assert f'"n": {n}' in (tmp_path / 'tested/metrics.json').read_text(encoding='utf-8')


# --- what would go wrong in silence ------------------------------------------------------------------------


@pytest.mark.parametrize(
    'build,kw',
    ((endosr, dict(size=32, scale=2, mask='none')), (histosr, dict(crop=32, scale=2, tissue=0.0))),
    ids=('endosr', 'histosr'),
)
def test_files_of_12_bits_are_not_built_black(build, kw, tmp_path):
    (tmp_path / 'in').mkdir()
    for k in range(4):
        x = np.random.default_rng(k).integers(500, 4096, (32, 32)).astype(np.uint16)
        x[0, 0] = 4095
        tifffile.imwrite(tmp_path / 'in' / f'p{k}__0.tif', x)
    made = build(tmp_path / 'in', tmp_path / 'set', **kw)
    hr = [read_image(made.folder / row['file']) for row in read_manifest(made.folder)]
    assert len(hr) == 4 and all(x.max() == 255 and x.float().mean() > 100 for x in hr)
    assert 'read as 12 bits' in (made.folder / 'README.md').read_text(encoding='utf-8')


def copied(folder, fill, n=6):
    "Files a0, a1, ... and a copy of each, b0, b1, ..."
    fill(folder, n=n, side=32)
    for k, p in enumerate(sorted(folder.iterdir())):
        (folder / f'b{k}.png').write_bytes(p.read_bytes())
        p.rename(folder / f'a{k}.png')


def parts_of_pictures(rows, digest):
    "The parts in which each picture lies"
    parts = {}
    for row in rows:
        parts.setdefault(row[digest], set()).add(row['split'])
    return parts.values()


def test_copies_are_built_into_one_part(tmp_path, fill):
    copied(tmp_path / 'in', fill)
    made = endosr(tmp_path / 'in', tmp_path / 'set', size=32, scale=2, test_fraction=0.4)
    parts = parts_of_pictures(read_manifest(made.folder), 'sha256')
    assert len(parts) == 6 and all(len(found) == 1 for found in parts)
    assert '6 pictures are there more than once, under 12 names' in str(made)
    copied(tmp_path / 'one', fill, n=1)
    with pytest.raises(DataError, match='share pictures with one another'):
        endosr(tmp_path / 'one', tmp_path / 'new', size=32, scale=2)


def test_uniform_crops_join_nothing(tmp_path):
    for k in range(3):
        save_png(torch.full((3, 32, 32), 243, dtype=torch.uint8), tmp_path / f'glass{k}.png')
    made = histosr(tmp_path, tmp_path.parent / f'{tmp_path.name}-set', crop=32, scale=2, tissue=0.0)
    assert sum(made.groups.values()) == 3 and not made.notes


def test_copies_in_both_parts_of_an_older_set_are_said(tmp_path, fill, capsys):
    from srdiag.datasets.reading import read_sr_folder
    from srdiag.training.options import RunOptions

    fill(tmp_path / 'in', n=8, side=32)
    made = endosr(tmp_path / 'in', tmp_path / 'set', size=32, scale=2, mask='none', test_fraction=0.4)
    rows = read_manifest(made.folder)
    one, other = (next(r for r in rows if r['split'] == part) for part in ('train', 'test'))
    (made.folder / other['file']).write_bytes((made.folder / one['file']).read_bytes())
    read_sr_folder(made.folder, 16, RunOptions())
    said = ' '.join(''.join(capsys.readouterr()).split())
    assert '1 picture is in more than one part of the split' in said and 'are kept in one part' not in said
