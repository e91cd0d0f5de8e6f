"Wrong inputs of the experiment: each ends in one sentence, and the folder stays as it was."
import json
import shutil

import pytest

from srdiag.bench.diagnosis_store import DiagnosisStore, read_predictions
from srdiag.bench.folds import make_folds
from srdiag.bench.networks import networks_of
from srdiag.bench.rows import chosen_rows, rows_of
from srdiag.bench.settings import Design, Sources
from srdiag.core.errors import DataError, ModelError

FORM = 'srdiag experiment 1'
FIXED = dict(folds=2, epochs=1, batch_size=8, scale=2, recipe='fast', mode='context', mutual='mean',
             norm='mean_square', solo_share=0., references=4, images='hr', valid_share=0.15, precision='fp32',
             device='cpu')
ABOUT = dict(data='a/b', classes=['healthy', 'ill'], images=dict(healthy=12, ill=12), grouped=True, groups=12)


@pytest.fixture
def empty(tmp_path):
    "A function: content of setup/config.json → a folder of an experiment without runs"
    def empty(text=json.dumps(dict(format=FORM, fixed=FIXED, about=ABOUT))):
        folder = tmp_path/'x'
        (folder/'setup').mkdir(parents=True)
        (folder/'setup'/'config.json').write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder
    return empty


# Folders

@pytest.mark.parametrize('text,words', [('', 'not readable as JSON'), ('9'*5000, 'not readable as JSON'),
                                        ('{"format": "srd', 'not readable as JSON'),
                                        (b'\xff\xfe\x00', 'not readable as JSON'), ('null', 'not an object'),
                                        ('{}', 'format is missing'), (json.dumps(dict(format=FORM, fixed=[],
                                                                                      about={})),
                                                                      'fixed is not an object'),
                                        (json.dumps(dict(format='srdiag benchmark 1', fixed={}, about={})),
                                         'is of the format')])
def test_a_damaged_configuration_is_named(empty, refused, text, words):
    folder = empty(text)
    refused('experiment', 'table5', '--out', folder, '--report-only',
            naming=[folder/'setup'/'config.json', words, 'restore it from a copy'])


def test_no_runs_make_no_report(empty, refused):
    refused('experiment', 'table5', '--out', empty(), '--report-only', naming=['too few complete runs'])


def test_a_folder_that_is_not_there_is_not_made(tmp_path, refused):
    refused('experiment', 'all', '--out', tmp_path/'none', '--report-only',
            naming=[tmp_path/'none', 'holds no experiment'])


def test_the_name_is_checked_even_where_nothing_is_trained(empty, refused):
    refused('experiment', 'table55', '--out', empty(), '--report-only', naming=['table55', 'table5, table6'])


def test_rows_by_label_with_commas():
    rows = rows_of('table8', Design(), ())
    assert [r.label for r in chosen_rows(rows, 'SAC no, SAR yes')] == ['SAC no, SAR yes']
    assert [r.key for r in chosen_rows(rows, f'{rows[2].key}, {rows[0].key}')] == [rows[0].key, rows[2].key]


def test_what_a_killed_run_leaves_is_no_run(empty):
    folder = empty()
    for name in ('.fold0-12345678', 'fold0-incomplete-12345678'):
        (folder/'runs'/'LR-x4'/'seed0'/name).mkdir(parents=True)
        (folder/'runs'/'LR-x4'/'seed0'/name/'metrics.json').write_text('{}')
    assert DiagnosisStore(folder).complete(rows_of('table5', Design(), ())[0]) == []


@pytest.mark.parametrize('line', ['a,p,ill,nan,0.5', 'a,p,ill,,0.5', 'a,p,,0.5,0.5', 'a,p,ill,0.'])
def test_predictions_without_an_answer_are_refused(tmp_path, line):
    path = tmp_path/'predictions.csv'
    path.write_text('file,group,true,ens_healthy,ens_ill\n' + line + '\n')
    with pytest.raises(DataError, match='predictions.csv is not what srdiag wrote'):
        read_predictions(path, ['healthy', 'ill'])


# Numbers on the command line: refused before anything is read

@pytest.mark.parametrize('option,value', [('--folds', 0), ('--folds', -1), ('--folds', 1.5), ('--epochs', 0),
                                          ('--epochs', '1e3'), ('--batch-size', 0), ('--seeds', 0),
                                          ('--references', 0), ('--solo-share', 2), ('--solo-share', 'nan'),
                                          ('--only-fold', -1), ('--split-seed', 2**32), ('--scale', 3),
                                          ('--mode', 'alone')])
def test_absurd_numbers(tmp_path, run_cli, option, value):
    code, _, err = run_cli('experiment', 'table5', '--data', tmp_path, '--out', tmp_path/'x', option, value)
    assert code == 2 and option in err and 'Traceback' not in err and not (tmp_path/'x').exists()


@pytest.mark.parametrize('args,words', [(['--folds', 1], 'folds to be a whole number of 2 or more'),
                                        (['--batch-size', 1], 'batch_size to be a whole number of 2 or more'),
                                        (['--only', ','], 'not a row'), (['--only-seed', 1], 'only number 0'),
                                        (['--only-fold', 9], 'no fold 9'),
                                        (['--sr', 'none'], 'no model folder')])
def test_budgets_and_names(labelled, tmp_path, refused, args, words):
    refused('experiment', 'table5', '--data', labelled/'labels.csv', '--out', tmp_path/'x', '--device', 'cpu',
            *args, naming=[words])


# Networks

def test_a_framework_is_no_super_resolution_network(labelled, tmp_path, refused):
    model = tmp_path/'framework' # its kind is read before its weights
    model.mkdir()
    (model/'model.safetensors').touch()
    (model/'config.json').write_text(json.dumps(dict(format='srdiag model 1', kind='diagnosis', network={},
                                                     info={}, weights_sha256='')))
    refused('experiment', 'table5', '--data', labelled/'labels.csv', '--out', tmp_path/'x', '--sr', model,
            naming=[model, 'for diagnosis', 'for sr'])


def test_a_network_of_another_scale(labelled, tmp_path, refused):
    refused('experiment', 'table5', '--data', labelled/'labels.csv', '--out', tmp_path/'x', '--sr',
            'histology_x2', '--scale', 4, naming=['scale 4', '--sr'])


# Images

def test_an_output_among_the_images(labelled, tmp_path, refused):
    shutil.copytree(labelled, tmp_path/'images')
    refused('experiment', 'table5', '--data', tmp_path/'images', '--out', tmp_path/'images'/'x', '--sr',
            'histology_x2', '--scale', 2, naming=['lie in one another'])


def test_a_file_in_place_of_the_output(labelled, tmp_path, refused):
    (tmp_path/'x').write_text('mine')
    refused('experiment', 'table5', '--data', labelled/'labels.csv', '--out', tmp_path/'x', '--sr',
            'histology_x2', '--budget', 'smoke', '--scale', 2, '--device', 'cpu', naming=[tmp_path/'x'])


@pytest.mark.parametrize('labels,groups', [(['a']*8 + ['b'], [f'p{k}' for k in range(9)]),
                                           (['a', 'b']*2, ['p', 'p', 'p', 'p']), (['a', 'b'], None)])
def test_folds_that_cannot_be(labels, groups):
    with pytest.raises(DataError): make_folds(labels, groups, 3)


@pytest.mark.parametrize('part,change,words', [('fixed', dict(folds='many'), 'folds'),
                                               ('fixed', dict(mode=3), 'mode'),
                                               ('about', dict(groups=None), 'groups'),
                                               ('about', dict(classes='ill'), 'classes')])
def test_a_setup_that_somebody_edited(part, change, words, empty, refused):
    setup = dict(format=FORM, fixed=FIXED, about=ABOUT)
    setup[part] = setup[part] | change
    refused('experiment', 'table5', '--out', empty(json.dumps(setup)), '--report-only',
            naming=['config.json', words, 'restore it'])


@pytest.mark.parametrize('name', ['fixed', 'scratch', 'nosac', 'Bicubic'])
def test_names_of_networks_that_mean_something_in_a_row(name):
    with pytest.raises(ModelError, match='another name'): networks_of(Sources(sr=[f'{name}=histology_x2']))


PREDICTED = 'file,group,true,ens_healthy,ens_ill,mode_solo_healthy\n'

@pytest.mark.parametrize('rows', ['a,g,ill,0.5,0.5,0.5\na,g,ill,0.5,0.5,0.5\n', 'a,g,ill,-5,6,0.5\n',
                                  'a,g,ill,0.9,0.5,0.5\n', 'a,g,ill,0.5,0.5,x\n', 'a,g,ill,inf,0.5,0.5\n'])
def test_numbers_that_are_no_probabilities(rows, tmp_path):
    (tmp_path/'predictions.csv').write_text(PREDICTED + rows)
    with pytest.raises(DataError, match='remove the folder'):
        read_predictions(tmp_path/'predictions.csv', ['healthy', 'ill'])
