"""What the pages say of the paper. `claims_of_the_paper.csv` lists each sentence that begins with "The paper"
and the place in the paper where it was looked up."""

import csv
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1] / 'nbs'
LIST = Path(__file__).with_name('claims_of_the_paper.csv')
PLACE = re.compile(r'Section [IV]+|Eq\. \d+|Table [IVX]+|Fig\. \d|Algorithm 1|References?|nowhere')


def prose(path):  # paragraphs and list items, each in one line
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] != 'markdown':
            continue
        text = re.sub(r'^```.*?^```', '', ''.join(cell['source']), flags=re.M | re.S)
        for part in re.split(r'\n\s*\n|\n(?=\s*(?:[*\-] |\d+\. |#|> |\|))', text):
            yield ' '.join(part.split())


def sentences(path):  # each that begins with "The paper"
    for part in prose(path):
        if part.startswith('#'):
            continue  # a heading claims nothing
        for found in re.split(r'(?<=[.!?])(?<![\s(][A-Z]\.)[*_”"’)]* +(?=[(*_“"`$\[]*[A-ZÄÖÜ])', part):
            found = re.sub(r'^(?:[#>*\-]+ +|\d+\. +|\*\*[^*]+\*\* +)*[(*_“"]*', '', found)
            if re.match(r'The paper\b', found):
                yield found.rstrip('*_')


def pages():
    return {
        p.relative_to(NBS).with_suffix('').as_posix(): p
        for p in sorted(NBS.rglob('*.ipynb'))
        if '.ipynb_checkpoints' not in p.parts
    }


@pytest.fixture(scope='module')
def listed():
    with open(LIST, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def test_each_listed_sentence_still_stands_on_its_page(listed):
    assert list(listed[0]) == ['page', 'sentence', 'place']
    found = {(name, s) for name, path in pages().items() for s in sentences(path)}
    rows = [(row['page'], row['sentence']) for row in listed]
    gone = [f'{page}: {sentence}' for page, sentence in rows if (page, sentence) not in found]
    assert not gone, (
        'Sentences of tests/claims_of_the_paper.csv that have changed or are gone; compare the new ones with '
        'the paper and bring the list up to date:\n' + '\n'.join(gone)
    )


def test_each_sentence_about_the_paper_is_listed(listed):
    known = {(row['page'], row['sentence']) for row in listed}
    new = [f'{n}: {s}' for n, path in pages().items() for s in sentences(path) if (n, s) not in known]
    assert not new, (
        'Sentences that begin with "The paper" and are not in tests/claims_of_the_paper.csv; look them up in '
        'the paper, and list them with their place:\n' + '\n'.join(new)
    )


def test_each_has_a_place_in_the_paper(listed):
    for row in listed:
        assert PLACE.search(row['place']), f'{row["page"]}: {row["place"]!r} names no place in the paper.'
    assert len({(row['page'], row['sentence']) for row in listed}) == len(listed)
    assert listed == sorted(listed, key=lambda row: row['page']), 'The list is sorted by page.'


def test_a_sentence_is_found_wherever_it_stands(tmp_path):
    page = tmp_path / 'a.ipynb'
    source = (
        'We say so. The paper uses four folds. (The paper does not say why.)\n\n* The paper has figures.\n'
        '* **Bold.** The paper, too: it ends.\n\n> The paper\'s second step.\n\n'
        '```\nThe paper in code.\n```\n'
        'As the paper says.'
    )
    page.write_text(json.dumps(dict(cells=[dict(cell_type='markdown', source=source)])), encoding='utf-8')
    assert [s[:15] for s in sentences(page)] == [
        'The paper uses ',
        'The paper does ',
        'The paper has f',
        'The paper, too:',
        "The paper's sec",
    ]
