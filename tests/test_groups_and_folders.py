"""Nothing in silence: who an image is from, the same picture twice, and folders with a past. Each test makes
its own small folder."""
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from srdiag.core.errors import DataError
from srdiag.data.groups import groups_from_names, looks_like_group, units_of
from srdiag.data.images import find_images, read_images, unread_files
from srdiag.data.labelled import load_table, split_table
from srdiag.data.layout import is_litter, split_part, walk
from srdiag.data.samples import tissue
from srdiag.data.splits import grouped_folds, grouped_split
from srdiag.datasets.imported import check_set
from srdiag.datasets.reading import read_labelled, read_sr_folder
from srdiag.training.options import RunOptions

PICTURE = tissue().permute(1, 2, 0).numpy()


def put(path, k, side=32, **how): # piece k of the micrograph
    path.parent.mkdir(parents=True, exist_ok=True)
    r, c = divmod(k, PICTURE.shape[1]//side)
    Image.fromarray(PICTURE[side*r:side*(r+1), side*c:side*(c+1)].copy()).save(path, **how)
    return path


def patients(root, n=12, each=3, name='patient{:02}__{}.png'): # half of them ill
    for p in range(n):
        for k in range(each): put(root/('ill' if p % 2 else 'healthy')/name.format(p, k), 16*p + k)
    return root


def torn(frame, of): # how many values of a column are in more than one part
    return int((frame.groupby(of).split.nunique() > 1).sum())


def patient_of(frame): return frame.file.str.split('/').str[-1].str.split('__').str[0]


@pytest.fixture
def data(tmp_path): return patients(tmp_path/'data')


# Groups

@pytest.mark.parametrize('pattern', ['auto', r'^(patient\d+)_'])
@pytest.mark.parametrize('strays', [['ill/overview.png'], ['ill/a.png', 'healthy/a.png', 'ill/__b.png']])
def test_a_stray_name_is_a_group_of_its_own(data, pattern, strays, capsys):
    for k, name in enumerate(strays): put(data/name, 200 + k)
    options = RunOptions(group_pattern=pattern)
    frame = read_labelled(data, None, options).split(0).frame()
    said = capsys.readouterr().out
    assert f'{len(strays)} of {36 + len(strays)} file names ha' in said and 'Groups are unknown' not in said
    assert torn(frame[frame.file.str.contains('patient')].assign(p=patient_of), 'p') == 0
    assert frame.group.nunique() == 12 + len(strays)
    sr = read_sr_folder(data, 16, options).table
    assert torn(sr[sr.file.str.contains('patient')].assign(p=patient_of), 'p') == 0
    assert f'{len(strays)} of' in capsys.readouterr().out


def test_strays_of_one_name_stay_apart(tmp_path):
    files = [tmp_path/n for n in ('a/x.png', 'b/x.png', 'a/P__1.png', 'b/P__2.png')]
    assert groups_from_names(files, 'auto').tolist() == ['a/x.png', 'b/x.png', 'P', 'P']
    with pytest.raises(DataError, match='nor any other'): groups_from_names(files, r'(slide)')


def test_unknown_groups_are_said_before_training(tmp_path, capsys):
    root = patients(tmp_path/'data', name='{}_{}.png')
    read_labelled(root, None, RunOptions())
    said = capsys.readouterr().out
    assert 'Groups are unknown' in said and '36 images' in said and '--group-pattern' in said
    read_sr_folder(root, 16, RunOptions())
    assert 'Groups are unknown' in capsys.readouterr().out
    read_labelled(root, None, RunOptions(group_pattern='none')), read_sr_folder(
        root, 16, RunOptions(group_pattern='none'))
    assert 'Groups' not in capsys.readouterr().out


@pytest.mark.parametrize('column', ['patient_id', 'Patient ID', 'PatientID', 'CASE', 'slide', 'SubjectNo',
                                    'study', 'StudyInstanceUID', 'patients', 'wsi_id'])
def test_columns_that_look_like_a_group_are_named(data, column, capsys):
    files = sorted(p.relative_to(data).as_posix() for p in data.rglob('*.png'))
    table = pd.DataFrame(dict(file=files, label=[f.split('/')[0] for f in files], age=5))
    table[column] = table.file.str.split('__').str[0]
    flat = dict(group_pattern='none')
    table.to_csv(data/'meta.csv', index=False)
    notes = load_table(data/'meta.csv', **flat).notes
    assert len(notes) == 1 and 'to group' in notes[0]
    assert f'The column {column.lower()} (12 values' in notes[0]
    assert load_table(data/'meta.csv').notes == () # names say the same
    table.assign(group=table[column]).to_csv(data/'meta.csv', index=False)
    assert load_table(data/'meta.csv', **flat).notes == ()
    table.assign(group=files).to_csv(data/'meta.csv', index=False)
    assert 'instead' in load_table(data/'meta.csv', **flat).notes[0] # finer groups tear it
    assert any(column.lower() in w for w in check_set(data/'meta.csv').warnings)


def test_other_columns_are_left_alone():
    others = 'age', 'patient_age', 'case_type', 'study_date', 'id', 'name', 'video_fps'
    assert not any(map(looks_like_group, others))


def test_a_group_or_a_label_that_is_missing():
    labels, groups = ['ill', 'fit']*10, [f'p{k//2}' for k in range(20)]
    for nothing in (None, np.nan, pd.NA):
        gap = np.array([*groups[:-1], nothing], object)
        with pytest.raises(DataError, match='1 image of 20 has no group'): grouped_split(labels, gap)
        with pytest.raises(DataError, match='1 image of 20 has no group'): grouped_folds(labels, gap)
        with pytest.raises(DataError, match='2 images of 20 have no label'):
            grouped_split([*labels[:-2], nothing, nothing], groups)


@pytest.mark.parametrize('fractions', [(0.7, np.nan, 0.3), (0.5, 0.5, 0), (0.5, 0.6), (np.inf, 0.5)])
def test_fractions_that_are_none(fractions):
    with pytest.raises(DataError, match='positive and sum to 1'): grouped_split([0, 1]*10, None, fractions)


def test_commas_in_cells(tmp_path):
    "Empty cells at the end do not matter, one within quotes neither, and the line of any other is named"
    put(tmp_path/'a.png', 0)
    put(tmp_path/'b.png', 1)
    head, right = 'file,label,group', 'a.png,"ill, or\nnearly",p1'
    for end in ('', ',', ',,', ' , '):
        (tmp_path/'t.csv').write_text(f'{head}\n{right}{end}\n\nb.png,fit,p2{end}\n')
        table = load_table(tmp_path/'t.csv')
        assert table.groups.tolist() == ['p1', 'p2'] and len(table.classes) == 2
    (tmp_path/'t.csv').write_text(f'{head}\n{right}\n\nb.png,fit, well,p2\n')
    with pytest.raises(DataError, match='line 5 has 4 cells for 3 columns'): load_table(tmp_path/'t.csv')


@pytest.mark.parametrize('table', [False, True])
def test_groups_that_make_a_split_impossible_name_their_rule(tmp_path, table):
    root = patients(tmp_path/'data', n=2)
    if table: load_table(root).to_frame().to_csv(root/'t.csv', index=False)
    with pytest.raises(DataError) as e: split_table(load_table(root/'t.csv' if table else root))
    assert ('column group of t.csv' if table else 'double underscore') in str(e.value)
    assert '--group-pattern none' in str(e.value) and '2 groups' in str(e.value)
    if not table:
        with pytest.raises(DataError, match='double underscore.*--group-pattern none'):
            read_sr_folder(root, 16, RunOptions())
        assert split_table(load_table(root, group_pattern='none'))


# The same picture twice

def test_copies_join_their_groups(data, capsys):
    shutil.copy(data/'ill/patient01__0.png', data/'ill/patient03__9.png') # one picture of two patients
    Image.open(data/'ill/patient05__0.png').save(data/'ill/patient07__9.bmp') # in another format
    found = read_labelled(data, None, RunOptions())
    said = capsys.readouterr().out
    assert '2 pictures are there more than once, under 4 names' in said and 'more than one label' not in said
    for seed in range(8):
        frame = found.split(seed).frame().assign(p=patient_of)
        part = frame.groupby('p').split.first()
        assert torn(frame, 'p') == 0 and part.patient01 == part.patient03 and part.patient05 == part.patient07
    assert found.table.groups is not None and set(found.table.groups) == {f'patient{k:02}' for k in range(12)}
    table = read_sr_folder(data, 16, RunOptions()).table.assign(p=patient_of)
    part = table.groupby('p').split.first()
    assert torn(table, 'p') == 0 and part.patient01 == part.patient03
    assert '2 pictures' in capsys.readouterr().out


def test_copies_without_groups_and_with_two_labels(tmp_path, capsys):
    root = patients(tmp_path/'data', name='{}_{}.png')
    shutil.copy(root/'ill/1_0.png', root/'healthy/other.png')
    found = read_labelled(root, None, RunOptions())
    said = capsys.readouterr().out
    assert '1 picture has more than one label' in said and 'healthy/other.png' in said
    assert found.table.groups is None
    for seed in range(8):
        frame = found.split(seed).frame()
        assert torn(frame, 'sha256') == 0


def test_uniform_images_are_nobodys_copies(data, capsys):
    for k in (1, 3, 5): Image.new('RGB', (32, 32), 'white').save(data/f'ill/patient{k:02}__white.png')
    found = read_labelled(data, None, RunOptions())
    assert 'more than once' not in capsys.readouterr().out and (found.table.units == found.table.groups).all()


def test_a_chain_of_copies_is_one_unit():
    keys = np.array(['a', 'b', 'b', 'c', 'c', 'd', 'e'])
    assert units_of(np.array(list('PPQQRRS')), keys).tolist() == ['P']*6 + ['S']


def test_copies_in_two_parts_of_a_given_split(tmp_path, capsys):
    for part in ('train', 'val', 'test'): patients(tmp_path/'data'/part, n=4, each=2, name=part + '{}_{}.png')
    for k, part in enumerate(('train', 'val', 'test')): # else the three would be the same pictures
        for p in (tmp_path/'data'/part).rglob('*.png'): put(p, 16*int(p.stem[-3]) + int(p.stem[-1]) + 3*k)
    shutil.copy(tmp_path/'data/test/ill/test1_0.png', tmp_path/'data/train/ill/again.png')
    found = read_labelled(tmp_path/'data', None, RunOptions()).split(0)
    assert '1 picture is there more than once' in capsys.readouterr().out
    assert torn(found.frame(), 'sha256') == 0
    assert {k: len(v) for k, v in found.parts.items()} == dict(train=10, valid=8, test=7)


# Folders

@pytest.mark.parametrize('words', [('train', 'val', 'test'), ('Train', 'Valid', 'Test'),
                                   ('training', 'validation', 'testing'), ('train', 'dev', 'test_set')])
@pytest.mark.parametrize('inner', [False, True])
def test_folders_that_are_a_split(tmp_path, words, inner, capsys):
    for p in range(12):
        part, label = words[(0, 0, 1, 2)[p % 4]], 'ill' if p < 6 else 'healthy'
        folder = tmp_path/'data'/(f'{label}/{part}' if inner else f'{part}/{label}')
        for k in range(2): put(folder/f'P{p:02}__{k}.png', 16*p + k)
    put(tmp_path/'data/overview.png', 250)
    found = read_labelled(tmp_path/'data', None, RunOptions()).split(0)
    said = capsys.readouterr().out
    assert found.classes == ['healthy', 'ill'] and '12 train, 6 valid, 6 test' in said
    assert {k: len(v) for k, v in found.parts.items()} == dict(train=12, valid=6, test=6)
    assert '1 image in' in said and 'overview.png' in said
    if not inner:
        table = read_sr_folder(tmp_path/'data', 16, RunOptions()).table
        assert table.split.value_counts().to_dict() == dict(train=12, valid=6, test=6, unused=1)


def test_parts_without_a_test_or_validation_folder(tmp_path):
    for words in (('train', 'val'), ('train', 'test')):
        root = tmp_path/words[1]
        for p in range(12): put(root/words[p % 3 == 0]/('ill' if p % 2 else 'healthy')/f'P{p}__0.png', 16*p)
        parts = split_table(load_table(root))
        assert len(parts['test']) == 4 and len(parts['valid']) > 0
        assert len(parts['train']) + len(parts['valid']) == 8


def test_parts_without_classes_are_refused_and_a_test_group_is_a_class(tmp_path):
    for part in ('train', 'test'): put(tmp_path/'bare'/part/'a.png', 3)
    with pytest.raises(DataError, match='look like parts'): load_table(tmp_path/'bare')
    for k, name in enumerate(('control', 'test')): put(tmp_path/'study'/name/'a.png', k)
    assert load_table(tmp_path/'study').classes == ['control', 'test']


def test_folders_that_tear_a_group_name_the_rule(tmp_path):
    for k, part in enumerate(('train', 'train', 'val', 'test')):
        for c in ('ill', 'healthy'): put(tmp_path/'data'/part/c/f'{c}P__{k}.png', 2*k + (c == 'ill'))
    with pytest.raises(DataError, match='group .*P is in .*--group-pattern none'):
        split_table(load_table(tmp_path/'data'))
    with pytest.raises(DataError, match='group .*P is in .*--group-pattern none'):
        read_sr_folder(tmp_path/'data', 16, RunOptions())
    assert split_table(load_table(tmp_path/'data', group_pattern='none'))


@pytest.mark.parametrize('word', ['val', 'VALID', 'validation', 'dev', ' Val '])
def test_words_in_the_split_column(data, word):
    table = load_table(data).to_frame()
    table['split'] = [('train', word, 'Test')[int(p[-2:]) // 2 % 3] for p in table.group]
    table.to_csv(data/'t.csv', index=False)
    assert set(load_table(data/'t.csv').split) == {'train', 'valid', 'test'} and split_part(word) == 'valid'
    table.assign(split='later').to_csv(data/'t.csv', index=False)
    with pytest.raises(DataError, match="'later': only train, valid and test"): load_table(data/'t.csv')


def test_litter_is_no_image_and_no_class(data):
    before = find_images(data)
    for name in ('ill/@eaDir/p.png/SYNOPHOTO_THUMB_M.png', '__MACOSX/ill/a.png', '.ipynb_checkpoints/x.png',
                 'ill/.ipynb_checkpoints/x.png', 'ill/._patient01__0.png', '@eaDir/x.png', '#recycle/a.png',
                 '$RECYCLE.BIN/a.png'): put(data/name, 7)
    for name in ('Thumbs.db', 'ill/THUMBS.DB', '.DS_Store', 'healthy/desktop.ini'):
        (data/name).write_bytes(b'x')
    assert find_images(data) == before and unread_files(data) == ''
    table = load_table(data)
    assert table.classes == ['healthy', 'ill'] and len(table) == 36 and not table.notes
    assert is_litter('@EADIR') and not is_litter('eadir')


def test_slides_are_found_through_links_and_without_litter(tmp_path):
    from srdiag.datasets.slides import find_slides
    put(tmp_path/'in/a.png', 0)
    put(tmp_path/'elsewhere/b.png', 1)
    for name in ('@eaDir/a.png/SYNOPHOTO_THUMB_M.png', '#recycle/old.png'): put(tmp_path/'in'/name, 2)
    (tmp_path/'in/linked').symlink_to(tmp_path/'elsewhere')
    assert find_slides(tmp_path/'in') == find_images(tmp_path/'in')
    assert [p.name for p in find_slides(tmp_path/'in')] == ['a.png', 'b.png']


def test_what_a_desktop_makes_again_is_no_file_of_the_user(tmp_path):
    from srdiag.datasets.folders import check_content, not_listed
    (tmp_path/'@eaDir').mkdir()
    for name in ('.DS_Store', '._a.png', 'Thumbs.db', '@eaDir/a.jpg'): (tmp_path/name).write_bytes(b'x')
    check_content(tmp_path, tmp_path, False, None)
    (tmp_path/'#recycle').mkdir()
    for name in ('a.png', '.env', '#recycle/thesis.txt'): (tmp_path/name).write_bytes(b'x')
    assert not_listed(tmp_path, {'a.png'}) == ['#recycle/thesis.txt', '.env']


def test_files_of_other_kinds_are_counted(data, capsys):
    for name in ('ill/a.svs', 'ill/b.SVS', 'healthy/c.dcm', 'LICENCE'): (data/name).write_bytes(b'x')
    for read in (read_labelled, read_sr_folder):
        read(data, None if read is read_labelled else 16, RunOptions())
        said = capsys.readouterr().out
        assert '4 files' in said and '2 .svs' in said and '1 .dcm' in said and '1 without an ending' in said


def test_other_formats_of_pillow_are_read(tmp_path):
    kinds = dict(gif='GIF', jp2='JPEG2000', j2k='JPEG2000', jfif='JPEG', jpe='JPEG', ppm='PPM')
    for k, (ending, kind) in enumerate(kinds.items()): put(tmp_path/f'a/{k}.{ending}', k, format=kind)
    one, two = (Image.open(put(tmp_path/f'{k}.png', k)) for k in (1, 2))
    one.save(tmp_path/'a/film.gif', save_all=True, append_images=[two])
    found = read_images(find_images(tmp_path/'a'), channels=3)
    assert len(found) == 7 and not found.skipped and {tuple(x.shape) for x in found.images} == {(3, 32, 32)}
    film = found.images[[p.name for p in found.paths].index('film.gif')].permute(1, 2, 0).numpy().astype(int)
    assert abs(film - np.asarray(one)).mean() < 10 < abs(film - np.asarray(two)).mean()


def test_links_are_followed_or_named(data, tmp_path, capsys):
    for k in range(3): put(tmp_path/f'far/P9__{k}.png', 230 + k)
    os.symlink(tmp_path/'far', data/'ill/more')
    os.symlink(tmp_path/'far/P9__0.png', data/'healthy/P9__linked.png')
    os.symlink('gone.png', data/'ill/lost.png')
    os.symlink(tmp_path/'nowhere', data/'lost_class')
    os.symlink(data, data/'ill/around')
    table = load_table(data)
    assert len(table) == 40 and sum('far' in p.as_posix() or 'more' in p.as_posix() for p in table.files) == 3
    note = next(n for n in table.notes if 'cannot be followed' in n)
    assert '2 places' in note and 'ill/lost.png' in note and 'lost_class' in note
    assert len(walk(data).files) == len({p.resolve() for p in walk(data).files}) + 1
    read_labelled(data, None, RunOptions())
    assert '1 picture has more than one label' in capsys.readouterr().out


# On the command line

def test_training_says_it_before_it_trains(data, tmp_path, succeeds, tiny_diagnosis):
    put(data/'ill/overview.png', 222)
    (data/'ill/x.dcm').write_bytes(b'x')
    hr = '--images', 'hr'
    out = succeeds('train-diagnosis', '--data', data, '--out', tmp_path/'m', *hr, '--inputs', 'LR',
                   *tiny_diagnosis)
    assert out.index('1 of 37 file names') < out.index('test, ') and '1 .dcm' in out
    out = succeeds('predict', '--model', tmp_path/'m', *hr, '--no-images', '--out', tmp_path/'o', data)
    assert '1 .dcm' in out
    put(data/'ill/odd.png', 3, side=48)
    put(data/'ill/twin.png', 3, side=48)
    out = succeeds('predict', '--model', tmp_path/'m', *hr, '--no-images', '--out', tmp_path/'p', data)
    assert '2 of 39 images were skipped: odd.png is 48×48 pixels' in out and '37 images, written' in out
