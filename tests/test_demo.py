"`srdiag demo --quick`: everything once, in seconds, and a report that stands alone."
import json
import re

import pytest

from srdiag.core.errors import DataError
from srdiag.data.phantom import Lesion, TileSettings, blocks, darkness, lesion_tiles
from srdiag.models.saving import load_model


@pytest.fixture(scope='module')
def demo(succeeds, tmp_path_factory):
    "(the output folder, what was printed)"
    out = tmp_path_factory.mktemp('demo')/'run'
    return out, succeeds('demo', '--quick', '--out', out, '--device', 'cpu')


@pytest.fixture(scope='module')
def html(demo): return (demo[0]/'report.html').read_text(encoding='utf-8')


def test_it_says_where_the_report_is(demo):
    out, printed = demo
    assert str(out/'report.html') in printed and 'Not for diagnostic use' in printed


def test_the_report_needs_nothing_else(html):
    "No script, style sheet, image or font from elsewhere"
    links = re.findall(r'(?:src|href|data|action|poster|srcset)\s*=\s*["\']?([^"\'\s>]+)', html)
    assert [a for a in links if not a.startswith(('data:', '#'))] == []
    assert not re.search(r'@import|url\(\s*["\']?(?!data:|#)', html) and '<script src' not in html
    assert 'base64,' in html or '<svg' in html


def test_the_report_says_what_it_is_not_for(html):
    assert html.lstrip().lower().startswith('<!doctype html>') and 'Not for diagnostic use' in html
    for image in re.findall(r'<img\b[^>]*>', html):
        assert re.search(r'alt="[^"]+"', image), 'an image without a description'


def test_the_first_thing_to_see_is_the_picture_with_the_bars(html):
    body = html.index('<main>')
    assert body < html.index('<img', body) < html.index('<h2', body)
    assert 'Lesions as LR, bicubic, SR and HR, and bars of accuracy' in html


def test_the_results_are_json(demo):
    def fail(name): raise AssertionError(f'{name} is not JSON')
    results = json.loads((demo[0]/'results.json').read_text(encoding='utf-8'), parse_constant=fail)
    rows = results['diagnosis']
    assert len(rows) == 2 and all(set(r) == {'LR', 'ILR', 'SR', 'LR+SR', 'HR'} for r in rows.values())
    assert set(results['joined']) == set(rows)


def test_every_model_can_be_used(demo):
    folders = [p for p in (demo[0]/'models').iterdir() if p.is_dir()]
    kinds = {load_model(p)[0].__class__.__name__ for p in folders}
    assert kinds == {'MRCNet', 'SREnhancedDiagnosis'}
    for p in folders: assert 'Not for diagnostic use' in (p/'README.md').read_text(encoding='utf-8')


def test_it_runs_again_only_if_allowed(demo, run_cli):
    code, _, err = run_cli('demo', '--quick', '--out', demo[0])
    assert code == 2 and '--overwrite' in err


@pytest.mark.nightly
def test_the_bars_stand_in_order(tmp_path):
    "Five demonstrations: LR < ILR < SR in each, and LR < ILR < SR ≤ LR+SR, HR in their mean, with margin"
    from srdiag.commands.demo import demo
    seen = {}
    for seed in range(5):
        for n, rows in demo(tmp_path/f'run{seed}', seed=seed, device='cpu')['diagnosis'].items():
            got = {name: m['accuracy'] for name, m in rows.items()}
            assert got['LR'] + 0.03 < got['ILR'] and got['ILR'] + 0.01 < got['SR'], (seed, n, got)
            assert got['SR'] - 0.015 <= got['LR+SR'], (seed, n, got)
            seen.setdefault(n, []).append(got)
    for n, runs in seen.items():
        mean = {name: sum(got[name] for got in runs)/len(runs) for name in runs[0]}
        assert mean['LR'] + 0.1 < mean['ILR'] < mean['SR'] - 0.03, (n, mean)
        assert mean['SR'] - 0.005 <= min(mean['LR+SR'], mean['HR']), (n, mean)


def test_lesions_and_tiles_that_do_not_fit():
    with pytest.raises(DataError, match='jitter of at most 4'): TileSettings(side=8, jitter=40.)
    with pytest.raises(DataError, match='200 px does not fit into an image of 112×112'):
        lesion_tiles(blocks()['train'], 1, tile=TileSettings(side=200))
    with pytest.raises(DataError, match='outside of a picture'): darkness('disc', Lesion(), (50, 5), (9, 9))
    for seed in range(20): lesion_tiles(blocks()['train'], 8, Lesion(radius=1), TileSettings(8, 4.), seed)
