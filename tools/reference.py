"""The reference, read from the exported cells of the notebooks. Nothing is imported or run: a new exported
function appears by itself.

It knows the comments of this project: one behind each parameter (or above it), one behind the closing
bracket for what is returned, and one behind a header of a single line (`def forward(self, y): # B×n×H×W →
B×out×sH×sW`) for the whole."""
import ast
import io
import re
import tokenize
from dataclasses import dataclass, field


@dataclass
class Parameter:
    "One parameter of a function, or one field of a dataclass or named tuple"
    name: str # with * or ** in front if it takes many
    type: str # as written, '' if there is none
    default: str|None # as written; None: there is none
    meaning: str # the comment


@dataclass
class Symbol:
    "What one exported name is"
    name: str
    kind: str # class, function, data, method, property
    doc: str = '' # docstring; the comment of a constant
    parameters: list = field(default_factory=list)
    bases: list = field(default_factory=list) # of a class
    returns: tuple = ('', '') # type and meaning
    note: str = '' # comment behind a header of one line: shapes
    value: str = '' # of a constant
    errors: set = field(default_factory=set) # names of exceptions
    members: list = field(default_factory=list) # methods and properties of a class that say what they do
    cell: int = 0 # where in the notebook
    is_classmethod: bool = False


class Comments(dict):
    "The comments of a piece of Python: line number, from 1 → comment"
    def __init__(self,
        source: str, # Python
    ):
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        found = [t for t in tokens if t.type == tokenize.COMMENT]
        super().__init__({t.start[0]: t.string.lstrip('#').strip() for t in found})
        self.alone = {t.start[0] for t in found if not t.line[:t.start[1]].strip()} # with nothing before them

    def above(self, line): # comments on lines of their own, right above
        first = line
        while first - 1 in self.alone and not self[first - 1].startswith('|'): first -= 1
        return ' '.join(self[n] for n in range(first, line))

    def of(self, first, last): # of what lies on these lines: behind its end, or else above it
        return self.get(last) or self.above(first)


def _text(node): return ast.unparse(node) if node is not None else ''


def _type(node): # 'MRCNet' in quotes is a type that is defined later
    return re.sub(r"^'(.*)'$", r'\1', _text(node))


def _errors(node):
    "Exceptions that the docstring names, or that the body raises itself"
    raised = [n.exc.func if isinstance(n.exc, ast.Call) else n.exc
              for n in ast.walk(node) if isinstance(n, ast.Raise)]
    names = ({n.id for n in raised if isinstance(n, ast.Name)}
             | set(re.findall(r'\b[A-Z]\w*Error\b', ast.get_docstring(node) or '')))
    return {name for name in names if name.endswith('Error')}


def _parameters(node, comments):
    "Parameters of a function in order; a comment belongs to the last parameter that ends on its line"
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [None]*(len(positional) - len(a.defaults)) + a.defaults
    rows = [('', p, d) for p, d in zip(positional, defaults)]
    if a.vararg: rows.append(('*', a.vararg, None))
    rows += [('', p, d) for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: rows.append(('**', a.kwarg, None))
    ends = [(d or p).end_lineno for _, p, d in rows]
    # a header of one line: its comment is for the whole
    header = node.body[0].lineno if ends and ends[-1] == node.lineno else 0
    found = []
    for i, (star, p, d) in enumerate(rows):
        last = i + 1 == len(rows) or ends[i+1] > ends[i]
        meaning = comments.of(p.lineno, ends[i]) if last and not header else ''
        found.append(Parameter(star + p.arg, _type(p.annotation), None if d is None else _text(d), meaning))
    return found, max(ends, default=node.lineno)


def read_function(
    node: ast.FunctionDef, # of a module or a class
    comments: Comments, # of the cell
    lines: list, # of the cell
    method: bool = False, # drop self or cls
) -> Symbol: # with everything but its cell
    "A function or method as its source describes it"
    parameters, last = _parameters(node, comments)
    note, returns = '', ''
    if last == node.lineno: note = comments.get(last, '')
    closing = [n for n in range(last + 1, node.body[0].lineno + 1) if lines[n-1].strip().startswith(')')]
    if closing: returns = comments.get(closing[0], '')
    decorators = {_text(d) for d in node.decorator_list}
    if method and 'staticmethod' not in decorators: parameters = parameters[1:]
    kind = 'property' if decorators & {'property', 'cached_property'} else 'method' if method else 'function'
    return Symbol(node.name, kind, ast.get_docstring(node) or '', parameters,
                  returns=(_type(node.returns), returns), note=note, errors=_errors(node),
                  is_classmethod='classmethod' in decorators)


def _fields(node, comments):
    "Fields of a dataclass or named tuple that its constructor takes"
    rows = [n for n in node.body if isinstance(n, ast.AnnAssign) and 'init=False' not in _text(n.value)]
    return [Parameter(n.target.id, _type(n.annotation), None if n.value is None else _text(n.value),
                      comments.of(n.lineno, n.end_lineno)) for n in rows]


def read_class(
    node: ast.ClassDef, # of a module
    comments: Comments, # of the cell
    lines: list, # of the cell
) -> Symbol: # with the methods that have a docstring or a comment
    "A class as its source describes it"
    functions = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    symbol = Symbol(node.name, 'class', ast.get_docstring(node) or '', bases=[_text(b) for b in node.bases])
    symbol.errors = set(re.findall(r'\b[A-Z]\w*Error\b', symbol.doc))
    has_fields = ('NamedTuple' in symbol.bases
                  or any(_text(d).startswith('dataclass') for d in node.decorator_list))
    if has_fields: symbol.parameters = _fields(node, comments)
    elif '__init__' in functions:
        symbol.parameters = read_function(functions['__init__'], comments, lines, method=True).parameters
    for name in {'__init__', '__post_init__'} & functions.keys(): symbol.errors |= _errors(functions[name])
    for name, f in functions.items():
        if name.startswith('_') and name != '__call__': continue
        member = read_function(f, comments, lines, method=True)
        if member.doc or member.note or member.returns[1] or any(p.meaning for p in member.parameters):
            symbol.members.append(member)
    return symbol


def read_cell(
    source: str, # of an exported cell
    cell: int = 0, # its number
) -> list[Symbol]: # public names only
    "What a cell defines"
    comments, lines, found = Comments(source), source.split('\n'), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef): found.append(read_class(node, comments, lines))
        if isinstance(node, ast.FunctionDef): found.append(read_function(node, comments, lines))
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            flat = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
            names = [n.id for n in flat if isinstance(n, ast.Name)]
            value = _text(node.value) if len(names) == 1 else ''
            found += [Symbol(name, 'data', comments.of(node.lineno, node.end_lineno), value=value)
                      for name in names]
    for symbol in found: symbol.cell = cell
    return [symbol for symbol in found if not symbol.name.startswith('_')]


# --- as MyST ----------------------------------------------------------------------------------------------

def escape(
    text: str, # a comment or docstring
) -> str: # markdown that shows the same characters; `code` stays code
    "Plain text as markdown"
    parts = re.split(r'(`[^`\n]+`)', text)
    return ''.join(p if i % 2 else re.sub(r'([\\*_\[\]<>{}$|#~^])', r'\\\1', p) for i, p in enumerate(parts))


def _code(text): return f'`{text}`' if text else ''


def _table(parameters, link):
    "Parameters as a table; a column that would be empty is left out"
    rows = [(_code(p.name), link(_code(p.type)), _code(p.default), link(escape(p.meaning)))
            for p in parameters]
    heads = 'parameter', 'type', 'default', 'meaning'
    keep = [k for k in range(4) if k == 0 or any(row[k] for row in rows)]
    cells = [[row[k].replace('\n', ' ') for k in keep] for row in rows]
    cells = [[re.sub(r'(?<!\\)\|', r'\\|', c) for c in row] for row in cells]
    lines = [[heads[k] for k in keep], ['---']*len(keep), *cells]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _signature(symbol):
    if symbol.kind in ('data', 'property'): return symbol.name
    shown = ', '.join(p.name if p.default is None else f'{p.name}={p.default}' for p in symbol.parameters)
    return f'{symbol.name}({shown})'


def as_myst(
    symbol: Symbol, # to describe
    link, # text → text with links to names
    source: str = '', # a link to where it is explained
    depth: int = 2, # how deep directives may still nest
) -> str: # a directive of Sphinx's Python domain
    "One entry of the reference"
    fence = '`'*(3 + depth)
    parts = [f'{fence}{{py:{symbol.kind}}} {_signature(symbol)}'
             + ('\n:classmethod:' if symbol.is_classmethod else '')]
    if symbol.doc: parts.append(link(escape(symbol.doc)))
    if symbol.value:
        short = len(symbol.value) <= 300
        parts.append(f'```python\n{symbol.value}\n```' if short else f'```text\n{symbol.value[:300]} …\n```')
    if symbol.bases: parts.append('A kind of ' + ', '.join(link(_code(b)) for b in symbol.bases) + '.')
    if symbol.note: parts.append(f'*{escape(symbol.note)}*')
    if symbol.parameters and any(p.type or p.meaning for p in symbol.parameters):
        parts.append(_table(symbol.parameters, link))
    if any(symbol.returns):
        said = link(_code(symbol.returns[0])), link(escape(symbol.returns[1]))
        parts.append('**Returns** ' + ': '.join(filter(None, said)))
    if symbol.errors: parts.append('**Raises** ' + ', '.join(link(_code(e)) for e in sorted(symbol.errors)))
    if source: parts.append(f'**Source** {source}')
    parts += [as_myst(member, link, depth=depth-1) for member in symbol.members]
    return '\n\n'.join([*parts, fence])
