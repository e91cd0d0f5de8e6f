"""The diagnosis model of the package: small, independent, without a patient's image, and right on cells that
it has not seen."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import srdiag
from srdiag.core.errors import ModelError
from srdiag.core.weights import list_pretrained, pretrained_folder
from srdiag.data.degradation import degrade
from srdiag.data.images import as_float, to_uint8
from srdiag.diagnosis.inference import is_independent, predict
from srdiag.models.saving import load_model
from srdiag.models.split import read_split
from srdiag.sr.mrcnet import MRCNet

NAME = 'redcells_x4'


@pytest.fixture(scope='module')
def shipped():
    return load_model(NAME, 'diagnosis')


def test_it_is_small_and_says_what_it_is_for():
    folder = pretrained_folder(NAME)
    assert sum(p.stat().st_size for p in folder.iterdir()) < 12e6
    with safe_open(folder / 'model.safetensors', 'pt') as weights:
        kinds = {weights.get_tensor(k).dtype for k in weights.keys() if weights.get_tensor(k).dim() > 1}
    assert kinds == {torch.float16}
    card = (folder / 'README.md').read_text(encoding='utf-8')
    wanted = 'Not for diagnostic use', 'temperature', 'wanted risk', 'It is not for diagnosis', 'NIH/NLM'
    assert [words for words in wanted if words not in card] == []


def test_it_predicts_each_image_by_itself_and_keeps_none(shipped):
    network, info = shipped
    assert network.mode == 'solo' and is_independent(network) and network.config['references'] is None
    assert network.config['width'] == 16 and info.lr_size == [16, 16]
    torch.manual_seed(0)
    images = torch.rand(6, 3, 16, 16)
    together = predict(network, images, info.classes).probabilities['ens']
    alone = np.concatenate([predict(network, x[None], info.classes).probabilities['ens'] for x in images])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_kinds_of_models_are_told_apart():
    assert NAME in list_pretrained('diagnosis') and NAME not in list_pretrained('sr')
    assert list_pretrained() == sorted(list_pretrained('sr') + list_pretrained('diagnosis'))
    with pytest.raises(ModelError, match='redcells_x4 is no super-resolution network: choose one of'):
        MRCNet.from_pretrained(NAME)
    with pytest.raises(ModelError):
        srdiag.enlarge(torch.rand(3, 16, 16), 'histology_x5')


@pytest.mark.data
def test_cells_of_patients_that_it_has_not_seen():
    root = Path(os.environ['SRDIAG_DATA']) / 'redcells' / 'labelled'
    split = read_split(NAME)
    test = split[split.split == 'test'].sort_values('file')[::6]
    files = [root / f for f in test.file]
    if not files[0].is_file():
        pytest.skip('SRDIAG_DATA holds no red cells in colour')
    small = torch.stack([to_uint8(degrade(as_float(srdiag.read_image(f)[None]), 4))[0] for f in files])
    network, info = load_model(NAME, 'diagnosis')
    said = np.array(info.classes)[predict(network, small, info.classes).labels]
    assert (said == test.label.to_numpy()).mean() > 0.9
