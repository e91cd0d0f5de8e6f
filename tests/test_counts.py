"Parameters and FLOPs as `srdiag cost` writes them, against those that the paper prints."

import csv
import json
from pathlib import Path

import pytest

import srdiag

PUBLISHED = Path(srdiag.__file__).parent / 'published' / 'counts.csv'
CLAIMED = {
    ('MRC-Net', 4),
    ('MRC-Net', 2),
    ('Stack', 4),
    ('Framework WCE', 4),
    ('Framework WCE w/o SAI', 4),
    ('Framework PCam', 2),
}
CONTRADICTORY = {
    ('Recursive', 4, 'flops'),
    ('Recursive w/o RCF', 4, 'flops'),
    ('Recursive w/o LSTM', 4, 'flops'),
    ('Recursive w/o LSTM', 4, 'parameters'),
}
PEERS = {(name, scale) for name in ('VDSR', 'CARN', 'EDSR-baseline', 'MWCNN') for scale in (4, 2)} | {
    ('DRCN', 4),
    ('DRRN', 4),
    ('SRRFN', 4),
}
TOLERANCE, PEER_TOLERANCE = 0.02, 0.03


def rows():
    return list(csv.DictReader(PUBLISHED.open(encoding='utf-8')))


@pytest.fixture(scope='module')
def counted(succeeds, tmp_path_factory):
    "(what was printed, what was written)"
    path = tmp_path_factory.mktemp('cost') / 'costs.json'
    return succeeds('cost', '--json', path), json.loads(path.read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def off(counted):
    "(name, scale, quantity) → relative difference from the published count"
    ours = {(r['name'], r['scale']): r for r in counted[1]}
    return {
        (r['name'], int(r['scale']), q): ours[r['name'], int(r['scale'])][q] / float(r[q]) - 1
        for r in rows()
        for q in ('parameters', 'flops')
    }


def test_every_network_is_written(counted):
    printed, written = counted
    assert [(r['name'], r['scale'], r['input_size']) for r in written] == [
        (r['name'], int(r['scale']), int(r['input_size'])) for r in rows()
    ]
    for r in written:
        assert list(r) == ['name', 'scale', 'input_size', 'parameters', 'flops']
        assert type(r['parameters']) is int and type(r['flops']) is int
        assert r['name'] in printed


@pytest.mark.parametrize('name, scale', sorted(CLAIMED))
def test_the_papers_own_networks_cost_what_it_says(name, scale, off):
    for quantity in ('parameters', 'flops'):
        assert abs(off[name, scale, quantity]) < TOLERANCE


@pytest.mark.parametrize('name, scale', sorted(PEERS))
def test_the_networks_it_compares_with_cost_what_it_says(name, scale, off):
    for quantity in ('parameters', 'flops'):
        assert abs(off[name, scale, quantity]) < PEER_TOLERANCE


def test_every_row_of_the_tables_is_tested():
    assert {(r['name'], int(r['scale'])) for r in rows()} == CLAIMED | PEERS | {
        (name, scale) for name, scale, _ in CONTRADICTORY
    }


def test_published_rows_are_those_of_the_tables():
    printed = {r['name']: r for r in rows() if r['scale'] == '4'}
    assert (
        float(printed['MWCNN']['flops']),
        float(printed['DRCN']['flops']),
        float(printed['SRRFN']['parameters']),
    ) == (5.43e11, 5.57e12, 4.21e6)
    assert {r['input_size'] for r in rows() if r['scale'] == '4'} == {'128'} and {
        r['input_size'] for r in rows() if r['scale'] == '2'
    } == {'96'}


@pytest.mark.parametrize('name', ['Recursive', 'Recursive w/o RCF'])
def test_the_variants_have_as_many_parameters_as_it_says(name, off):
    assert abs(off[name, 4, 'parameters']) < TOLERANCE


def test_only_the_known_contradictions_differ(off):
    assert {k for k, v in off.items() if abs(v) >= TOLERANCE} == CONTRADICTORY


def test_recursion_adds_no_parameters(counted):
    ours = {(r['name'], r['scale']): r for r in counted[1]}
    assert (
        ours['Recursive', 4]['parameters'] == ours['MRC-Net', 4]['parameters']
        and ours['Recursive', 4]['flops'] > ours['MRC-Net', 4]['flops']
    )
