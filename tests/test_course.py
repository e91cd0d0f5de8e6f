"The course: its order, its routes, and the form of the pages of its chapters."
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'tools'))
import course

TOLD = course.read_course()
BOOKS = {page: nbformat.read(ROOT/'nbs'/page, 4) for page in course.notebooks()}
ORDER = [page for part in course.course_of(TOLD['parts'], list(BOOKS)).values() for page in part]
CHAPTERS = course.chapters_of(TOLD['parts'])
PAGES = [*CHAPTERS, 'lessons/map.ipynb', 'lessons/capstone.ipynb'] # of the form of a chapter
TWO_DAYS = 14*60 # minutes, with the easy exercises
HINTS = re.compile(r'\*\*(Easy|Medium|Hard), (\d+) minutes\.\*\* \S')
FOLDED = '<details><summary>{}</summary>\n\n   '


def texts(page): return [c.source for c in BOOKS[page].cells if c.cell_type == 'markdown']


def section(page, title): # what stands under a heading
    found = re.search(rf'^## {title}\s*\n(.*?)(?=^## |\Z)', '\n\n'.join(texts(page)), flags=re.M | re.S)
    assert found, f'{page} has no section {title}.'
    return found[1]


def items_of(text): # numbered, each with what is indented below it
    return re.findall(r'^\d+\. .*?(?=^\d+\. |\Z)', text, flags=re.M | re.S)


def test_ten_chapters_in_order():
    assert [p['chapter'] for p in TOLD['parts'] if 'chapter' in p] == list(range(1, 11))
    assert all(p.get('within', 'course') in course.WITHIN for p in TOLD['parts'])
    first = next(i for i, p in enumerate(TOLD['parts']) if course.within_of(p) != 'course')
    assert all(course.within_of(p) != 'course' for p in TOLD['parts'][first:]), 'the workshop comes later'


def test_the_routes_lead_somewhere_and_only_forward():
    assert [route['name'] for route in TOLD['routes']] == ['two hours', 'two days', 'a week']
    for route in TOLD['routes']:
        pages = course.pages_of_route(route, TOLD['parts'])
        assert set(pages) <= set(BOOKS) and len(set(pages)) == len(pages)
        of_chapters = [p for p in pages if p in CHAPTERS]
        assert of_chapters == [p for p in CHAPTERS if p in of_chapters], f'{route["name"]} jumps back.'


def test_the_routes_take_as_long_as_their_names_say():
    pages = {route['name']: course.pages_of_route(route, TOLD['parts']) for route in TOLD['routes']}
    read = {name: sum(course.minutes_of(BOOKS[p])[0] for p in of) for name, of in pages.items()}
    assert read['two hours'] <= 130
    easy = [int(m) for p in PAGES for level, m in HINTS.findall('\n\n'.join(texts(p))) if level == 'Easy']
    assert 5*60 <= read['two days'] + sum(easy) <= TWO_DAYS, (read, sum(easy))


def test_the_minutes_of_exercises_add_up():
    for page in set(PAGES) - {'lessons/capstone.ipynb'}:
        minutes = sum(int(m) for _, m in HINTS.findall(section(page, 'Exercises')))
        said = course.minutes_of(BOOKS[page])[1]
        assert abs(minutes - said) <= 20, f'{page}: its exercises take {minutes} minutes, it says {said}.'


@pytest.mark.parametrize('page', PAGES)
def test_a_chapter_opens_with_what_for_what_before_and_a_question(page):
    opening = next((t for t in texts(page) if t.startswith('**After this page you can** ')), '')
    assert opening, f'{page} does not say what you can do after it.'
    assert texts(page).index(opening) <= 1, f'{page}: the opening is not the cell after the title.'
    need, question = (re.search(rf'^\*\*{head}\*\* (.+)', opening, flags=re.M)
                      for head in ('You need', r'A question to begin with\.'))
    assert need and question and '?' in question[1], f'{page}: needs or question are missing.'
    read, solve = course.minutes_of(BOOKS[page])
    assert 5 <= read <= 90 and solve <= 120, f'{page}: {read} and {solve} minutes.'


@pytest.mark.parametrize('page', PAGES)
def test_what_a_chapter_needs_comes_before_it(page):
    opening = next(t for t in texts(page) if t.startswith('**After this page you can** '))
    line = re.search(r'^\*\*You need\*\* (.+?)\*\*Time', opening, flags=re.M)[1]
    for link in re.findall(r'\]\(([^)#]+\.ipynb)', line):
        needed = (ROOT/'nbs'/page).parent.joinpath(link).resolve().relative_to(ROOT/'nbs').as_posix()
        if needed in CHAPTERS and page in CHAPTERS:
            assert CHAPTERS.index(needed) < CHAPTERS.index(page), f'{page} needs {needed}, which comes later.'


@pytest.mark.parametrize('page', PAGES)
def test_a_chapter_ends_with_five_lines_and_five_questions(page):
    lines = re.findall(r'^- \S', section(page, 'Summary'), flags=re.M)
    assert len(lines) == 5, f'{page}: {len(lines)} lines in its summary, five are due.'
    questions = items_of(section(page, 'Questions'))
    assert len(questions) == 5, f'{page}: {len(questions)} questions, five are due.'
    for text in questions:
        folded = FOLDED.format('Answer') in text and '\n   </details>' in text
        assert folded, f'{page}: no answer in {text!r}.'


@pytest.mark.parametrize('page', [p for p in PAGES if p != 'lessons/capstone.ipynb'])
def test_exercises_say_how_hard_and_how_long_they_are(page):
    exercises = items_of(section(page, 'Exercises'))
    assert 3 <= len(exercises) <= 6
    heads = [HINTS.match(re.sub(r'^\d+\. ', '', text)) for text in exercises]
    assert all(heads), (f'{page}: exercise {heads.index(None) + 1} does not begin like **Easy, 5 minutes.**, '
                        'then a sentence.')
    levels = [('Easy', 'Medium', 'Hard').index(head[1]) for head in heads]
    assert levels == sorted(levels), f'{page}: exercises do not get harder.'
    assert any(FOLDED.format('Hint') in text for text in exercises), f'{page}: no exercise has a hint.'


def figures_without_words(page): # numbers of code cells with a picture, and no sentence after it
    cells = BOOKS[page].cells
    for i, cell in enumerate(cells):
        if cell.cell_type != 'code' or 'method_map(' in cell.source: continue
        if not any('image/png' in o.get('data', {}) for o in cell.get('outputs', [])): continue
        if i + 1 == len(cells) or cells[i+1].cell_type != 'markdown': yield i
        elif cells[i+1].source.lstrip().startswith('#'): yield i


@pytest.mark.parametrize('page', PAGES)
def test_each_figure_is_followed_by_what_to_see(page):
    bare = [re.sub(r'\s+', ' ', BOOKS[page].cells[i].source)[-60:] for i in figures_without_words(page)]
    assert not bare, f'{page}: no sentence says what to see after … {bare[0]}'
