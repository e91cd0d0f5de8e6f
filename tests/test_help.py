"help() says what the site says: each comment behind a parameter stands in a docstring."
import inspect
import pydoc
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import srdiag
from srdiag.core.meanings import explained, meanings

FUNCTIONS = [name for name in srdiag.__all__ if inspect.isfunction(getattr(srdiag, name))]
CLASSES = [name for name in srdiag.__all__ if inspect.isclass(getattr(srdiag, name))]


@pytest.mark.parametrize('name', FUNCTIONS)
def test_help_names_each_parameter_of_a_function(name):
    function = getattr(srdiag, name)
    said, told = pydoc.plain(pydoc.render_doc(function)), meanings(function)
    assert all((f'{parameter}: {text}' if parameter else text) in said for parameter, text in told.items())
    wordy = [p for p in inspect.signature(function).parameters if p in told]
    assert wordy or not inspect.signature(function).parameters or '' in told, f'{name} explains nothing.'


@pytest.mark.parametrize('name', CLASSES)
def test_help_names_what_a_class_takes(name):
    cls = getattr(srdiag, name)
    said = pydoc.plain(pydoc.render_doc(cls))
    told = meanings(cls if is_dataclass(cls) else cls.__init__)
    assert all(text in said for text in told.values())
    assert cls.__doc__.count(':') < 4 # commands show it as it is


def test_the_face_agrees_with_the_library_of_docments():
    from fastcore.docments import docments
    for name in FUNCTIONS:
        function = getattr(srdiag, name)
        theirs = {k: v for k, v in docments(function, returns=False).items() if v}
        plain = [p.name for p in inspect.signature(function).parameters.values() if p.kind < p.VAR_KEYWORD]
        assert {k: v for k, v in meanings(function).items() if k in plain} == theirs, name


def test_help_is_said_once_and_costs_nothing_before():
    before = srdiag.enlarge.__doc__
    assert explained(srdiag.enlarge).__doc__ == before and explained(3) == 3
    code = 'import srdiag, sys; print("srdiag.core.meanings" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == 'False'


def test_without_docstrings_there_is_help_all_the_same():
    code = 'import srdiag; print(srdiag.list_pretrained.__doc__)'
    done = subprocess.run([sys.executable, '-OO', '-c', code], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1])
    assert done.stdout.strip() and done.returncode == 0, done.stderr
