"Model folders that somebody edited, splits that are none, networks of the zoo where another is needed."
import inspect
import json
import shutil

import pytest
import torch

from srdiag.data.degradation import degrade
from srdiag.data.pairs import SRPairs
from srdiag.core.errors import ModelError, TrainingError
from srdiag.models.saving import load_model
from srdiag.sr.training import score_images
from srdiag.sr.zoo import ARCHITECTURES, create_model


@pytest.fixture(scope='module')
def carn(sr_folder, succeeds, tiny_sr, tmp_path_factory):
    "A CARN x2 that was trained for a moment"
    folder = tmp_path_factory.mktemp('zoo')/'carn'
    succeeds('train-sr', '--data', sr_folder, '--out', folder, '--model', 'carn', *tiny_sr)
    return folder


@pytest.fixture
def copy_of(tmp_path):
    "A function: model folder, change → a copy whose config.json was changed by it"
    def copy_of(model, change):
        shutil.copytree(model, tmp_path/'edited')
        path = tmp_path/'edited'/'config.json'
        config = json.loads(path.read_text(encoding='utf-8'))
        change(config)
        path.write_text(json.dumps(config), encoding='utf-8')
        return tmp_path/'edited'
    return copy_of


@pytest.fixture
def edited(sr_model, copy_of): return lambda change: copy_of(sr_model, change)


@pytest.mark.parametrize('part,key,value', [('network', 'skip', 'lanczos'), ('network', 'scale', 2.),
                                            ('network', 'steps', 1.5), ('network', 'image_channels', True),
                                            ('network', 'image_channels', 0), ('network', 'channels', -3),
                                            ('network', 'stages', 0), ('network', 'rcf', 1),
                                            ('info', 'size', 'abc'), ('info', 'data', None),
                                            ('info', 'images', 'mr')])
def test_changed_values_are_refused_when_loading(edited, part, key, value):
    folder = edited(lambda c: c[part].update({key: value}))
    with pytest.raises(ModelError, match='does not describe'): load_model(folder)


def test_a_number_that_python_does_not_read(edited):
    folder = edited(lambda c: None)
    path = folder/'config.json'
    path.write_text(path.read_text(encoding='utf-8').replace('"scale": 2', '"scale": ' + '9'*5000),
                    encoding='utf-8')
    with pytest.raises(ModelError, match='not readable as JSON'): load_model(folder)


def test_an_architecture_that_does_not_exist(edited):
    with pytest.raises(ModelError, match='does not describe'):
        load_model(edited(lambda c: c.update(architecture='swinir')))


COUNTS = ([(name, key) for name, cls in ARCHITECTURES.items() for key,
           p in inspect.signature(cls).parameters.items()
           if type(p.default) is int and key not in ('scale', 'image_channels')])


@pytest.mark.parametrize('name,key', COUNTS)
def test_networks_refuse_settings_below_one(name, key):
    for wrong in (0, -3, 1.5, True):
        with pytest.raises(ValueError, match=key): ARCHITECTURES[name](**{'scale': 2, key: wrong})


@pytest.mark.parametrize('content', ['', 'a,b\n1,2\n', '\0\0'])
def test_a_split_that_is_none(models, sr_folder, tmp_path, run_cli, tiny_sr, content):
    short = ['--epochs', 1, '--steps', 1, '--patch', 16]
    distill = ['distill', '--teacher', tmp_path/'teacher', '--out', tmp_path/'out', *short]
    evaluate = ['evaluate', '--model', tmp_path/'sr', '--split', 'test']
    for name, args in (('teacher', distill), ('sr', evaluate)):
        shutil.copytree(getattr(models, name), tmp_path/name)
        (tmp_path/name/'split.csv').write_text(content)
        code, _, err = run_cli(*args, '--data', sr_folder)
        assert code == 2 and 'split.csv' in err and 'Traceback' not in err, err


def test_distilling_from_a_folder_without_split_says_so(models, sr_folder, tmp_path, succeeds):
    shutil.copytree(models.teacher, tmp_path/'teacher')
    (tmp_path/'teacher/split.csv').unlink()
    said = succeeds('distill', '--data', sr_folder, '--teacher', tmp_path/'teacher', '--out', tmp_path/'out',
                    '--epochs', 1, '--steps', 1, '--patch', 16, '--device', 'cpu')
    assert 'a new split is drawn' in said


@pytest.mark.parametrize('args,words', [(['--model', 'carn_x2'], 'leave the ending'),
                                        (['--model', 'bicubic'], 'nothing to train'),
                                        (['--model', 'carn', '--recursions', 3], 'leave --recursions'),
                                        (['--model', 'cran'], 'carn_x'),
                                        (['--patch', 4, '--scale', 4], 'use at least 8')])
def test_train_sr_says_what_does_not_fit(sr_folder, tmp_path, refused, args, words):
    refused('train-sr', '--data', sr_folder, '--out', tmp_path/'out', *args, naming=[words])


def test_a_seed_too_large_for_the_generators(sr_folder, tmp_path, run_cli):
    code, _, err = run_cli('train-sr', '--data', sr_folder, '--out', tmp_path/'out', '--seed', 2**32)
    assert code == 2 and 'whole number from 0' in err


def test_a_network_of_the_zoo_is_used_like_any_other(carn, sr_folder, fill, tmp_path, succeeds, run_cli):
    assert type(load_model(carn, 'sr', 2)[0]) is ARCHITECTURES['carn']
    assert 'network' in succeeds('evaluate', '--data', sr_folder, '--model', carn)
    succeeds('predict', sr_folder, '--model', carn, '--out', tmp_path/'predicted')
    assert len(list((tmp_path/'predicted/sr').iterdir())) == 6
    code, _, err = run_cli('distill', '--data', sr_folder, '--teacher', carn, '--out', tmp_path/'student')
    assert code == 2 and 'not recursive' in err


def test_small_images_are_skipped_by_name_before_ssim_fails(carn, fill, tmp_path, run_cli):
    fill(tmp_path/'tiny', n=3, side=10)
    code, out, err = run_cli('evaluate', '--data', tmp_path/'tiny', '--model', carn, '--split', 'all')
    assert code == 2 and 'slide0__tile.png' in err and '15 pixels' in err and 'Traceback' not in err


def test_the_framework_takes_any_network_of_the_zoo(carn, labelled, tmp_path, succeeds, tiny_diagnosis):
    succeeds('train-diagnosis', '--data', labelled, '--sr', carn, '--out', tmp_path/'out', '--images', 'hr',
             *tiny_diagnosis)
    network, _ = load_model(tmp_path/'out')
    assert type(network.sr_network).__name__ == 'CARN' and network.config['sr_architecture'] == 'carn'
    own, _ = load_model(carn)
    # it started from these weights
    assert max((a-b).abs().max() for a, b in zip(own.parameters(), network.sr_network.parameters())) < 1e-2


# A framework that somebody edited

@pytest.fixture
def edited_framework(models, copy_of): return lambda change: copy_of(models.diagnosis, change)


CHANGES = { # what is wrong → change of config.json, words of the sentence
    'references of another size': (lambda c: c['network'].update(references=[4, 3, 9, 9]),
                                   ['wrong shape', 'references.lr']),
    'no references': (lambda c: c['network'].update(references=None), ['unknown', 'references.lr']),
    'a mode that is none': (lambda c: c['network'].update(mode='crowd'), ['no mode', 'crowd']),
    'classes that the calibration does not know': (lambda c: c['info'].update(classes=['cat', 'dog']),
                                                   ['calibration', 'cat, dog']),
    'a misspelt threshold': (lambda c: c['info']['calibration'].update(treshold=0.5),
                             ['calibration', 'treshold']),
    'a temperature of nought': (lambda c: c['info']['calibration'].update(temperature=0),
                                ['temperature', 'positive']),
    'a calibration that is a text': (lambda c: c['info'].update(calibration='good'), ['calibration', 'good']),
}


@pytest.mark.parametrize('name', CHANGES)
def test_a_framework_that_somebody_edited(name, edited_framework):
    change, words = CHANGES[name]
    with pytest.raises(ModelError) as e: load_model(edited_framework(change))
    for word in words: assert word in str(e.value), str(e.value)


def test_a_model_for_other_classes(models, fill_labelled, tmp_path, refused):
    data = fill_labelled(tmp_path/'others', classes=('benign', 'malign'))
    refused('evaluate', '--model', models.diagnosis, '--data', data,
            naming=['benign, malign', 'healthy, ill'])


def test_a_mode_that_a_model_cannot_do(models, labelled, tmp_path, refused, edited_framework, succeeds,
                                       tiny_diagnosis):
    succeeds('train-diagnosis', '--data', labelled, '--out', tmp_path/'published', '--images', 'hr', '--mode',
             'batch', '--sr', models.sr, *tiny_diagnosis)
    refused('predict', labelled, '--model', tmp_path/'published', '--images', 'hr', '--out', tmp_path/'out',
            '--mode', 'context', naming=['context', 'no reference images'])


@pytest.mark.parametrize('options,words', [(['--risk', 0], ['risk', 'between 0 and 1']),
                                           (['--sensitivity', 1.5], ['sensitivity', 'between 0 and 1']),
                                           (['--positive', 'sick'], ['sick', 'healthy, ill'])])
def test_thresholds_that_cannot_be(options, words, labelled, tmp_path, refused, tiny_diagnosis):
    refused('train-diagnosis', '--data', labelled, '--out', tmp_path/'out', '--inputs', 'LR', '--images',
            'hr', *tiny_diagnosis, *options, naming=words)


def test_an_empty_table_of_predictions_does_not_stop_the_next(sr_model, sr_folder, tmp_path, succeeds):
    out = tmp_path/'predicted'
    out.mkdir(); (out/'.srdiag').touch(); (out/'predictions.csv').touch()
    succeeds('predict', sr_folder, '--model', sr_model, '--out', out, '--overwrite', '--no-images')
    assert (out/'predictions.csv').read_text().startswith('file,')


def test_a_network_that_has_become_nan(tile):
    network = create_model('srcnn_x2', channels=4)
    for p in network.parameters(): p.data.fill_(float('nan'))
    with pytest.raises(TrainingError, match='smaller learning rate'):
        score_images(network, SRPairs([tile(0)], 2))


@pytest.mark.parametrize('bad,words', [(float('nan'), 'NaN'), (float('inf'), 'infinite'), (255., 'divide'),
                                       (-1., 'divide')])
def test_degrade_takes_images_only(bad, words):
    with pytest.raises(ValueError, match=words): degrade(torch.full((3, 8, 8), bad), 2)
    if words == 'divide':
        assert torch.equal(degrade(torch.full((3, 8, 8), bad), 2, clip=False).round(),
                           torch.full((3, 4, 4), bad))
