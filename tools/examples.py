"""The example with which a page of the reference begins, taken from the notebook of the module.

A cell that tries an exported name is chosen, and the lines before it on which it depends are put in front:
what the page shows can be copied and run. A notebook chooses itself with a heading `## In use`."""
import ast
import builtins
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from srdiag import __all__ as FACE

LONGEST = 40 # lines of an example
LEAVES = re.compile(r'(^|[._])(save|write|mkdir|touch|copy|dump|copytree|copyfile|chdir|to_csv|symlink)')
# reads files in the folder of the notebook
HERE = re.compile(r"'[\w./-]*\.(png|csv|tif|json)'|'\.\./|Path\('|_command\('")
SEED = re.compile(r'^torch\.manual_seed\(.*\);?$', flags=re.M)


@dataclass
class Example:
    "What a reader can run, and what it gave"
    source: str
    outputs: list # of the cell, as the notebook keeps them
    cell: int # where it ends


def loaded(node): # names that are read somewhere in it
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def bound(node): # names that a statement makes
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(a.asname or a.name).partition('.')[0] for a in node.names}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def root(node): # 'net' of net.layers[0].weight
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def changed(node): # names of things that a statement changes: net.x = 1, net.eval(), torch.manual_seed(0)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return {root(node.value.func)} if isinstance(node.value.func, ast.Attribute) else set()
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
    return {root(t) for t in targets if isinstance(t, (ast.Attribute, ast.Subscript))}


def leaves(node): # names in a statement that writes files, e.g. of the folder
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return set()
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    return loaded(node) if any(LEAVES.search(ast.unparse(c.func)) for c in calls) else set()


def lines_of(source, node): # with the comments behind them
    first = min([node.lineno, *(d.lineno for d in getattr(node, 'decorator_list', []))])
    return '\n'.join(source.split('\n')[first - 1:node.end_lineno])


def without(needed, node): # names that are needed before a statement which makes some of them
    surely = ast.Assign, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.For
    return needed - bound(node) if isinstance(node, surely) else needed


def written(imports): # (module, name) → lines, modules first, this library last
    whole = sorted(f'import {module}' for module, name in imports if not name)
    parts = sorted({module for module, name in imports if name}, key=lambda m: (m.startswith('srdiag'), m))
    return '\n'.join(whole + [f'from {m} import {", ".join(sorted(n for k, n in imports if k == m and n))}'
                              for m in parts])


def plain(source): return re.sub(r'^(#\||%|!).*\n?', '', source, flags=re.M).strip('\n')


class Book:
    "A notebook as statements"
    def __init__(self,
        nb, # notebook
        module: str, # without `srdiag.`
        public: list, # names of the module's reference, in order
        told, # source of a cell → its directives
    ):
        self.module, self.public, self.cells, self.statements = module, public, [], []
        self.hers, self.modules, self.imported = set(), set(), set() # names it exports, and those it imports
        heading = ''
        for i, cell in enumerate(nb.cells):
            if cell.cell_type == 'markdown':
                heading = (re.findall(r'^#+ (.+)$', cell.source, re.M) or [heading])[-1]
            if cell.cell_type == 'code': self._read(i, cell, told(cell.source), heading)

    def _read(self, i, cell, told, heading):
        source = plain(cell.source)
        if 'default_exp' in told or told.get('eval') == 'false': return
        nodes = ast.parse(source).body
        if not told.keys() & {'export', 'exporti', 'exports'}:
            if not told.keys() & {'hide', 'echo'}: self.cells.append((i, source, cell, heading))
            self.statements += [(i, source, n) for n in nodes]
            self._imports(nodes)
            return
        imports = [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
        self.statements += [(i, source, n) for n in imports]
        self._imports(imports)
        for n in nodes:
            if n not in imports: self.hers |= bound(n)

    def _imports(self, nodes):
        self.modules |= {name for n in nodes if isinstance(n, ast.Import) for name in bound(n)}
        self.imported |= {name for n in nodes if isinstance(n, ast.ImportFrom) for name in bound(n)}

    def with_what_it_needs(self, i, source):
        "The source of a cell after the lines that it depends on; None if it needs what is not public"
        needed, kept, imports = set(), [], set() # names, lines, and (module, name); '' is the module itself
        for node in reversed(ast.parse(source).body): needed = without(needed, node) | loaded(node)
        for at, text, node in reversed(self.statements):
            makes, wanted, line = bound(node), needed - self.hers, lines_of(text, node)
            if at >= i or not (makes & wanted or changed(node) & wanted - self.modules or SEED.match(line)
                               or leaves(node) & wanted - self.modules - self.imported): continue
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imports |= self.imports_of(node, wanted)
                needed -= makes
            elif not (SEED.match(line) and self.seeded([source, *kept])):
                needed = without(needed, node) | loaded(node)
                if line not in kept: kept.append(line)
        used = {name for text in [source, *kept] for name in loaded(ast.parse(text))} & self.hers & needed
        unknown = needed - self.hers - {*dir(builtins)} - self._local([source, *kept])
        if unknown or used - {*self.public}: return None
        imports |= {(f'srdiag.{self.module}', name) for name in used}
        return '\n\n'.join(filter(None, [written(imports), '\n'.join(reversed(kept)), source]))

    @staticmethod
    def seeded(sources): # or without chance at all
        text = '\n'.join(sources)
        return SEED.search(text) or not re.search(r'torch\.rand|create_model\(|\b[A-Z]\w+\(', text)

    @staticmethod
    def _local(sources): # names that lie inside of it: parameters, loops, what it binds itself
        trees = [ast.parse(s) for s in sources]
        return {n.arg for t in trees for n in ast.walk(t) if isinstance(n, ast.arg)} | {
            name for t in trees for n in ast.walk(t) for name in bound(n) if isinstance(n, ast.AST)} | {
            n.name for t in trees for n in ast.walk(t) if isinstance(n, ast.ExceptHandler) and n.name}

    @staticmethod
    def imports_of(node, wanted): # (module, name) of what is wanted
        names = [(a.name, f' as {a.asname}' if a.asname else '') for a in node.names
                 if (a.asname or a.name).partition('.')[0] in wanted]
        whole = isinstance(node, ast.Import)
        return {(n + alias, '') if whole else (node.module, n + alias) for n, alias in names}

    def main(self): # the name that the module is about
        last = self.module.split('.')[-1].replace('_', '')
        same = [n for n in self.public if n.lower().replace('_', '') == last]
        return (same or [n for n in self.public if n in FACE] or self.public[::-1])[0]

    def examples(self): # with their ranks
        chosen = [c for c in self.cells if c[3] == 'In use']
        tries = chosen or [c for c in self.cells if loaded(ast.parse(c[1])) & {*self.public}]
        def rank(c):
            _, source, cell, heading = c
            names, fails = loaded(ast.parse(source)), re.search(r'^\s*except\b', source, flags=re.M)
            return bool(fails), bool(HERE.search(source)), self.main() not in names, not cell.outputs
        return [(rank(c), c) for c in tries]

    def example(self) -> Example|None:
        "The shortest of the best cells, with all that it needs"
        found = [(rank, whole.count('\n'), i, whole, cell) for rank, (i, source, cell, _) in self.examples()
                 if (whole := self.with_what_it_needs(i, source)) and whole.count('\n') < LONGEST]
        if not found: return None
        _, _, i, whole, cell = min(found, key=lambda f: f[:3])
        return Example(whole, cell.outputs, i)
