"The tool that says what an enlarging network gives back."
import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from srdiag.evaluation.image_quality import Convention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
import measure_contrast


@pytest.mark.parametrize('colour', [(0.4,), (0.6, 0.1, 0.6)]) # a dark spot; a purple one
def test_a_spot_is_seen_in_the_middle_and_nowhere_else(colour):
    x = torch.full((3, len(colour), 16, 16), 0.9)
    x[1, :, 8, 7] = x[2, :, 1, 1] = torch.tensor(colour)
    assert measure_contrast.contrast(x).tolist() == pytest.approx([0., 0.5, 0.])


def test_fidelity_is_measured_in_all_and_in_the_middle():
    truth = torch.full((1, 1, 16, 16), 0.5)
    wrong = truth.clone()
    wrong[..., 0, :4] += 0.4 # four pixels at the border, 0.16 each
    wrong[..., 8, 8] += 0.2 # one in the middle, 0.04
    found = measure_contrast.fidelity(wrong, truth, Convention(quantised=False))
    assert found['error_outside'] == pytest.approx(0.64/0.68)
    assert found['psnr'] == pytest.approx(10*math.log10(256/0.68), abs=1e-3)
    assert found['psnr_middle'] == pytest.approx(10*math.log10(64/0.04), abs=1e-3)


def test_each_kind_of_image_has_a_row(labelled, models, tmp_path, monkeypatch):
    argv = 'measure_contrast.py', tmp_path/'c.csv', labelled, models.sr
    monkeypatch.setattr(sys, 'argv', [str(a) for a in argv])
    measure_contrast.main()
    table = {r['image']: r for r in csv.DictReader((tmp_path/'c.csv').open(encoding='utf-8'))}
    assert list(table) == ['HR', 'ILR', 'SR'] and table['HR']['psnr'] == ''
    assert all(int(r['images']) == 24 and int(r['side']) == 16 and 0 <= float(r['auc']) <= 1
               for r in table.values())
    assert float(table['HR']['contrast_ill']) > float(table['ILR']['contrast_ill']) # what reducing takes away
    assert json.loads((tmp_path/'c.json').read_text())['command'].startswith('python measure_contrast.py')
