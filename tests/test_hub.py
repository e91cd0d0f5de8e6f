"""Models on the Hugging Face Hub: a pretended Hub answers in the place of the network, and the cache is a
folder of the test."""
import json
import shutil
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml

import srdiag
from srdiag.core.errors import ModelError
from srdiag.core.hub import HUB_FILES, hub_folder, hub_name
from srdiag.core.weights import list_pretrained, model_folder, pretrained_folder
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.models.front_matter import as_yaml, front_matter
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.zoo import create_model

huggingface_hub = pytest.importorskip('huggingface_hub')
httpx = pytest.importorskip('httpx2')
from srdiag.models.hub import HubModel  # noqa: E402

COMMIT = 'c'*40


class Pretended:
    "A Hub with the repositories of a folder, `root/owner/name`; it notes what it was asked and sent"
    def __init__(self, root):
        self.root, self.asked, self.sent, self.offline, self.refusal = root, [], [], False, None

    def __call__(self, request):
        if self.offline: raise httpx.ConnectError('no route to anywhere', request=request)
        self.asked.append(f'{request.method} {request.url.path}')
        if self.refusal: return self.no(*self.refusal)
        parts = request.url.path.strip('/').split('/')
        if parts[:2] == ['api', 'models'] and len(parts) > 4: return self.api(parts, request)
        if parts[0] == 'api': return httpx.Response(200, json=dict(url='https://huggingface.co/me/mine'))
        return self.file('/'.join(parts[:2]), parts[-1], request)

    def api(self, parts, request):
        repo, what, revision = '/'.join(parts[2:4]), parts[4], parts[5]
        if what == 'preupload':
            files = [dict(path=f['path'], uploadMode='regular', shouldIgnore=False)
                     for f in json.loads(request.content)['files']]
            return httpx.Response(200, json=dict(files=files))
        if what == 'commit':
            self.sent += [json.loads(line) for line in request.read().splitlines()]
            done = dict(commitUrl='https://huggingface.co/me/mine/commit/1', commitOid='1'*40, hookOutput='')
            return httpx.Response(200, json=done)
        if not (self.root/repo).is_dir(): return self.no(404, 'RepoNotFound')
        if revision not in ('main', 'v1', COMMIT): return self.no(404, 'RevisionNotFound')
        files = sorted((self.root/repo).iterdir())
        if what == 'tree': return httpx.Response(200, json=[
            dict(type='file', path=p.name, size=p.stat().st_size, oid='0'*40) for p in files])
        siblings = [dict(rfilename=p.name) for p in files]
        return httpx.Response(200, json=dict(id=repo, sha=COMMIT, siblings=siblings))

    def no(self, code, why): return httpx.Response(code, headers={'X-Error-Code': why}, json={})

    def file(self, repo, name, request):
        content = (self.root/repo/name).read_bytes()
        about = {'X-Repo-Commit': COMMIT, 'ETag': f'"{name}"', 'Content-Length': str(len(content))}
        return httpx.Response(200, headers=about, content=b'' if request.method == 'HEAD' else content)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    pretended = Pretended(tmp_path/'hub')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(pretended)))
    (tmp_path/'hub').mkdir()
    yield pretended
    huggingface_hub.set_client_factory(httpx.Client)


@pytest.fixture
def shared(hub): # lab/histology, with files that nobody needs
    shutil.copytree(pretrained_folder('histology_x2'), hub.root/'lab'/'histology')
    (hub.root/'lab'/'histology'/'train.py').write_text('raise SystemExit("executed")')
    (hub.root/'lab'/'histology'/'old.bin').write_bytes(b'pickle')
    return hub


# names

@pytest.mark.parametrize('text, expected', [
    ('lab/sr', ('lab/sr', None)), ('lab/sr@v1.0', ('lab/sr', 'v1.0')), ('hf:lab/sr', ('lab/sr', None)),
    ('hf://lab/sr@x/y', ('lab/sr', 'x/y')), ('sr', None), ('/lab/sr', None), ('./lab', None),
    ('../lab/sr', None), ('a/b/c', None), ('lab/', None), ('lab/sr\n', None), ('', None), ('~/sr', None),
    ('C:\\lab\\sr', None)])
def test_a_name_is_told_from_a_path(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(text) == expected


def test_what_can_be_a_path_here_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'runs').mkdir()
    assert hub_name('runs/sr') is None and hub_name('hf:runs/sr') == ('runs/sr', None)
    with pytest.raises(ModelError, match='There is no model folder runs/sr'): load_model('runs/sr')
    assert hub_name(f'{"x"*5000}/sr') == (f'{"x"*5000}/sr', None)


# reading

def test_a_model_is_fetched_once_and_read_from_the_cache_afterwards(shared):
    lr = torch.rand(3, 16, 16)
    wanted = srdiag.enlarge(lr, 'histology_x2')
    assert torch.equal(srdiag.enlarge(lr, 'lab/histology'), wanted)
    assert torch.equal(srdiag.enlarge(lr, 'lab/histology'), wanted)
    assert len([line for line in shared.asked if 'GET' in line and 'safetensors' in line]) == 1
    shared.offline = True
    assert torch.equal(srdiag.enlarge(lr, 'lab/histology'), wanted)


def test_only_the_files_of_a_model_are_fetched(shared):
    folder = hub_folder('lab/histology')
    assert {p.name for p in folder.iterdir()} == set(HUB_FILES)
    assert not [line for line in shared.asked if 'train.py' in line or 'old.bin' in line]


def test_the_command_line_takes_a_name(shared, succeeds, tmp_path, fill):
    file = fill(tmp_path/'images', n=1)[0]
    succeeds('predict', '--model', 'lab/histology', '--out', tmp_path/'out', file)
    succeeds('predict', '--model', 'histology_x2', '--out', tmp_path/'same', file)
    assert f'lab/histology@{COMMIT[:12]}' in (tmp_path/'out'/'predictions.csv').read_text()
    name = next((tmp_path/'same'/'sr').iterdir()).name
    assert (tmp_path/'out'/'sr'/name).read_bytes() == (tmp_path/'same'/'sr'/name).read_bytes()


def test_diagnosis_and_split_come_from_the_hub(hub):
    shutil.copytree(pretrained_folder('redcells_x4'), hub.root/'lab'/'cells')
    image = (np.random.default_rng(0).random((16, 16, 3))*255).astype(np.uint8)
    of_hub, own = (srdiag.diagnose(image, name) for name in ('lab/cells', 'redcells_x4'))
    assert of_hub.probabilities == own.probabilities
    assert (model_folder('lab/cells')/'split.csv').is_file()


def test_from_pretrained_takes_names_folders_and_revisions(shared, tmp_path):
    known = MRCNet.from_pretrained('histology_x2').state_dict()
    named = [f'lab/histology{at}' for at in ('', '@v1', f'@{COMMIT}')]
    for name in (*named, shared.root/'lab'/'histology'):
        state = MRCNet.from_pretrained(name).state_dict()
        assert all(torch.equal(state[k], v) for k, v in known.items())
        network, info = HubModel.from_pretrained(name)
        assert info.title == 'MRC-Net x2 for H&E histology, distilled' and not network.training
    model = HubModel.from_pretrained('lab/histology', revision='v1', cache_dir=tmp_path/'other')
    assert (tmp_path/'other').is_dir() and model.info.license == 'mit'
    shared.offline = True
    assert HubModel.from_pretrained('lab/histology', local_files_only=True).network.scale == 2


def test_a_class_refuses_the_network_of_another(tmp_path):
    save_model(tmp_path/'edsr', create_model('edsr_baseline_x2', channels=8, blocks=1), ModelInfo('EDSR'))
    with pytest.raises(ModelError, match='holds a network of the kind edsr: load it with srdiag.load_model'):
        MRCNet.from_pretrained(tmp_path/'edsr')


@pytest.mark.parametrize('change', [dict(channels=4096), dict(blocks=100), dict(steps=10**9),
                                    dict(stages=-10**9)])
def test_a_strangers_folder_gets_no_memory_that_its_weights_do_not_explain(change, tmp_path):
    folder = shutil.copytree(pretrained_folder('histology_x2'), tmp_path/'sr')
    config = json.loads((folder/'config.json').read_text())
    config['network'] |= change
    (folder/'config.json').write_text(json.dumps(config))
    with pytest.raises((ModelError, ValueError)): MRCNet.from_pretrained(folder)


# what goes wrong is a sentence

def sentence(hub, name='lab/histology', **how):
    with pytest.raises(ModelError) as e: hub_folder(name, **how)
    assert '\n' not in str(e.value) and str(e.value).endswith('.')
    return str(e.value)


def test_missing_gated_and_strange_repositories(shared):
    assert 'none on the Hugging Face Hub' in sentence(shared, 'lab/nothing')
    assert 'no such revision' in sentence(shared, 'lab/histology@v9')
    assert 'owner/name, in letters' in sentence(shared, 'lab/a--b')
    for code, why, said in ((403, 'GatedRepo', 'open only to those who have asked'),
                            (401, 'RepoNotFound', 'hf auth login'), (403, '', 'does not answer'),
                            (500, '', 'does not answer')):
        shared.refusal = code, why
        assert said in sentence(shared, 'lab/other')


def test_no_network_and_nothing_in_the_cache(shared):
    shared.offline = True
    assert 'does not answer' in sentence(shared)
    assert 'does not answer' in sentence(shared, local_files_only=True)


def test_a_model_of_another_library_is_told_before_its_weights_are_fetched(hub):
    (hub.root/'lab'/'vit').mkdir(parents=True)
    for text, said in (('{"model_type": "vit"}', 'a model of transformers'), ('{"a": 1}', 'another library'),
                       ('[1]', 'another library'), ('{', 'not readable as JSON')):
        (hub.root/'lab'/'vit'/'config.json').write_text(text)
        (hub.root/'lab'/'vit'/'model.safetensors').write_bytes(b'big')
        shutil.rmtree(hub.root.parent/'cache', ignore_errors=True)
        assert said in sentence(hub, 'lab/vit')
    assert not [line for line in hub.asked if 'safetensors' in line]
    (hub.root/'lab'/'empty').mkdir()
    (hub.root/'lab'/'empty'/'README.md').write_text('# Nothing')
    assert 'it has no config.json' in sentence(hub, 'lab/empty')


def test_weights_that_were_changed_are_refused(shared):
    file = shared.root/'lab'/'histology'/'model.safetensors'
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    for load in (load_model, MRCNet.from_pretrained, HubModel.from_pretrained):
        with pytest.raises(ModelError, match='checksums differ'): load('lab/histology')


def test_a_folder_without_weights_is_none(shared):
    (shared.root/'lab'/'histology'/'model.safetensors').unlink()
    with pytest.raises(ModelError, match='model.safetensors missing'): load_model('lab/histology')


def test_without_the_extra_there_is_its_pip_line(monkeypatch, tmp_path, refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ModelError, match=r"the extra: pip install 'srdiag\[hub\]'\."): load_model('lab/sr')
    refused('predict', '--model', 'lab/sr', '--out', 'out', tmp_path, naming=["pip install 'srdiag[hub]'"])
    monkeypatch.delitem(sys.modules, 'srdiag.models.hub')
    with pytest.raises(ImportError, match=r'srdiag\[hub\]'): import srdiag.models.hub  # noqa: F401


# saving

def test_save_pretrained_replaces_nothing_unless_asked(tmp_path):
    model = HubModel(MRCNet(2, channels=8), ModelInfo('Small'))
    model.save_pretrained(tmp_path/'sr')
    before = {p.name: p.read_bytes() for p in (tmp_path/'sr').iterdir()}
    with pytest.raises(ModelError, match='is not empty'): model.save_pretrained(tmp_path/'sr')
    assert before == {p.name: p.read_bytes() for p in (tmp_path/'sr').iterdir()}
    model.save_pretrained(tmp_path/'sr', overwrite=True)
    assert HubModel.from_pretrained(tmp_path/'sr').network.config == model.network.config


@pytest.mark.parametrize('make', [lambda: create_model('edsr_baseline_x2', channels=8, blocks=1),
                                  lambda: SREnhancedDiagnosis(classes=2, scale=2, width=8, mode='solo')])
def test_push_sends_a_model_folder_without_a_split(hub, make):
    info = ModelInfo('A model', classes=['a', 'b'], lr_size=[16, 16])
    at = HubModel(make(), info).push_to_hub('me/mine', token='none', commit_message='First')
    files = {line['value']['path'] for line in hub.sent if line['key'] == 'file'}
    assert files == {'README.md', 'config.json', 'model.safetensors'} and 'commit' in str(at)
    assert hub.sent[0]['value']['summary'] == 'First'
    with pytest.raises(TypeError): HubModel(make(), info).push_to_hub('me/mine', token='none', privat=True)


def test_images_of_patients_are_not_pushed_to_everybody(hub):
    framework = SREnhancedDiagnosis(classes=2, scale=2, width=8)
    framework.remember(*(torch.zeros(4, 3, side, side, dtype=torch.uint8) for side in (16, 32)))
    model = HubModel(framework, ModelInfo('Compares', classes=['a', 'b'], lr_size=[16, 16]))
    for private in (None, False):
        with pytest.raises(ModelError, match='keeps 4 reference images'):
            model.push_to_hub('me/mine', token='none', private=private)
    assert not hub.asked
    model.push_to_hub('me/mine', token='none', private=True)
    assert hub.sent


def test_a_push_that_is_refused_is_a_sentence(hub):
    hub.refusal = 403, ''
    with pytest.raises(ModelError, match='You may not do this with me/mine'):
        HubModel(MRCNet(2, channels=8), ModelInfo('Small')).push_to_hub('me/mine', token='none')


# cards

def head(text): return yaml.safe_load(text.split('---\n')[1])


@pytest.mark.parametrize('name', list_pretrained())
def test_cards_of_the_package_have_the_head_of_their_configuration(name):
    folder = pretrained_folder(name)
    config = json.loads((folder/'config.json').read_text(encoding='utf-8'))
    text = (folder/'README.md').read_text(encoding='utf-8')
    assert text.startswith(front_matter(config) + '# ')
    card = huggingface_hub.ModelCard(text)
    assert card.data.library_name == 'srdiag' and 'not-for-diagnostic-use' in card.data.tags
    assert card.data.license in ('mit', 'other') and len(card.data.eval_results) > 1
    scores = {r.metric_type: r.metric_value for r in card.data.eval_results}
    key = 'psnr' if config['kind'] == 'sr' else 'accuracy'
    assert scores[key] == pytest.approx(config['info']['metrics'][key], abs=1e-4)
    assert card.data.pipeline_tag == ('image-to-image' if config['kind'] == 'sr' else 'image-classification')


HOSTILE = ['---\nlicense: mit\n---', 'a: b', '!!python/object/apply:os.system ["x"]', '"', "'", '\\',
           '*a &b %c', '\x85\u2028\ufeff\x7f\x00\x1b', 'Zellen: grün 🧫', '- x', '{{ jinja }}', '', ' ',
           '#']


@pytest.mark.parametrize('text', HOSTILE)
def test_names_that_are_yaml_stay_names(text, tmp_path):
    info = ModelInfo(text, classes=[text, 'other'], lr_size=[16, 16], data=dict(name=text),
                     metrics=dict(f1=0.5, convention=f'positive is {text}'), license=text)
    save_model(tmp_path/'model', SREnhancedDiagnosis(classes=2, scale=2, inputs='LR', width=8), info)
    read = head((tmp_path/'model'/'README.md').read_text(encoding='utf-8'))
    assert read.keys() <= {'license', 'license_name', 'library_name', 'pipeline_tag', 'tags', 'model-index'}
    assert read['model-index'][0]['name'] == text and read.get('license_name', '') == text
    assert text in read['model-index'][0]['results'][0]['metrics'][0]['name']
    assert load_model(tmp_path/'model')[1].classes == [text, 'other']


def test_a_card_without_scores_has_no_index_and_an_unknown_licence():
    config = dict(kind='sr', network=dict(scale=4), architecture='carn',
                  info=asdict(ModelInfo('A', metrics=dict(psnr=float('inf'), ssim='high'))))
    read = head(front_matter(config))
    assert 'model-index' not in read and read['license'] == 'unknown' and 'carn' in read['tags']
    old = dict(config, info={k: v for k, v in config['info'].items() if k != 'license'})
    assert front_matter(old) == front_matter(config)


def test_numbers_stay_numbers():
    for value in (0.0001, 1e-5, 1e20, -3, True, None, [1.5, 'x'], {'a': 'b'}): assert as_yaml(value)
    read = yaml.safe_load(as_yaml([round(0.00012, 4), 28.9309, 55]))
    assert read == [0.0001, 28.9309, 55]


def test_nothing_is_asked_before_a_name_is(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert srdiag.enlarge(torch.rand(3, 16, 16), 'histology_x2').shape == (3, 32, 32)
