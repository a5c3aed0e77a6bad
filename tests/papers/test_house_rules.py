"""The house rules: who may have which effect, how long things may be, which Python is spoken.

Each rule is a function from a Source to complaints, a line of text each. The tests ask for none in
the repository's files, and for the right ones in small samples that break the rule.
"""

import ast
import functools
import glob
import os
import re
import statistics
import symtable
import sys
import textwrap
import unittest
from typing import NamedTuple, Tuple

from tests import ROOT

TOP_LEVEL = {'VmBackup.py', 'XenAPI.py', 'example.cfg', 'README.md', 'LICENSE', 'tests'}


class Effect(NamedTuple):
    """Something that only some sections of VmBackup.py may do, and the names that do it."""
    what: str
    sections: Tuple[str, ...]
    names: str
    function: str = None        # the one function there that may


# What opens a file, for whatever purpose, and what changes files without that.
OPENING = ' open io.open os.open os.fdopen '
BY_PATH = ''' os.mkdir os.makedirs os.rename os.renames os.replace os.unlink os.remove os.rmdir
    os.removedirs os.link os.symlink os.chmod os.chown os.utime os.truncate os.mkfifo os.mknod
    shutil.rmtree shutil.copy* shutil.move shutil.chown tempfile '''
CHANGING = BY_PATH + ' os.write os.fsync fcntl.flock '
EFFECTS = (
    Effect('starts or kills processes', ('Processes',), '''
        subprocess multiprocessing pty os.fork os.forkpty os.kill os.killpg os.exec* os.spawn*
        os.posix_spawn* os.popen os.system'''),
    Effect('talks to the pool', ('Pool',), '''
        XenAPI xmlrpc.server xmlrpc.client.Server* xmlrpc.client.*Transport'''),
    Effect('sends mail', ('Reports',), 'smtplib'),
    Effect('uses the network', ('Pool', 'Reports'), '''
        socket.socket socket.create_connection http.client urllib.request'''),
    Effect('locks', ('Store',), 'fcntl.flock fcntl.lockf os.lockf'),
    Effect('takes a path', ('Settings', 'Files', 'Reports'), '''
        os.readlink os.listdir os.scandir os.walk os.stat os.lstat os.statvfs os.path.lexists
        os.path.islink os.path.ismount os.path.getsize os.path.getmtime os.path.samefile
        shutil.disk_usage glob pathlib.Path''' + OPENING + BY_PATH),
    Effect('looks at files', ('Settings', 'Files', 'Catalogue', 'Store', 'Reports'), '''
        os.access os.path.exists os.path.isfile os.path.isdir os.path.realpath'''),
    Effect('writes', ('Files', 'Store'), 'os.write os.fsync os.pwrite'),
    Effect('asks the clock', ('Console',), '''
        datetime.datetime.now datetime.datetime.today datetime.datetime.utcnow datetime.date.today
        time.time time.time_ns time.localtime time.gmtime time.ctime time.asctime time.strftime''',
           function='now'),
)

# Sections that change no file; they read through a function that does nothing else.
READING = ('Catalogue',)

# Sections that do nothing at all, and what they may use.
PURE = ('Selection', 'Retention')
PURE_MODULES = '''bisect calendar collections datetime enum fnmatch functools itertools math
    operator re string textwrap typing unicodedata'''.split()
FURTHER_EFFECTS = '''print input exec eval __import__ sys.stdout sys.stderr sys.stdin sys.exit
    os.environ os.getenv os.putenv os.chdir os.umask os._exit logging signal threading
    time.sleep random'''
ALL_EFFECTS = ' '.join([effect.names for effect in EFFECTS] + [FURTHER_EFFECTS])

# Ceilings: 8,000 lines beside 475 of constants of help text, 65,000 nodes, 560 functions. A feature
# that needs more pays it back in the same change.
LINES, SECTION_LINES, FUNCTION_LINES, PARAMETERS, LEVELS = 8475, 700, 60, 6, 4
NODES, STATEMENT_NODES, FUNCTIONS, MEDIAN_LINES = 65000, 11.0, 560, 12

# Not in Python 3.6, or no more in new ones, as identifiers wherever they stand.
FOREIGN = set('''dataclasses dataclass capture_output nullcontext ThreadingHTTPServer missing_ok
    fromisoformat removeprefix removesuffix cached_property dirs_exist_ok time_ns monotonic_ns
    addClassCleanup addModuleCleanup enterContext enterClassContext assertNoLogs zoneinfo
    graphlib tomllib contextvars AsyncMock utcnow utcfromtimestamp assertEquals
    assertRegexpMatches assertItemsEqual'''.split())
FOREIGN_NAMES = '''shlex.join functools.cache functools.singledispatchmethod math.prod math.dist
    math.lcm asyncio.run importlib.metadata importlib.resources typing.Final typing.Literal
    typing.Protocol typing.TypedDict typing.ForwardRef typing.OrderedDict itertools.pairwise
    contextlib.chdir datetime.UTC os.posix_spawn ast.unparse __future__.annotations'''
GONE_MODULES = set('''asynchat asyncore cgi cgitb crypt distutils imghdr imp mailcap nntplib pipes
    sndhdr smtpd spwd telnetlib uu xdrlib'''.split())

RULE = re.compile(r'^#( ?[-=#~]){20,}\s*$')
BANNER = re.compile(r'^# (\d+)\. (\w[\w -]*?)(: .+)?$')
MAP_ENTRY = re.compile(r'^\s*(\d+)[.:]? +([A-Z]\w*(?: \w+)*)(?:$|  +\S|: \S)')

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try)
OLD_GRAMMAR = {} if sys.version_info < (3, 8) else {'feature_version': (3, 6)}


class Source:
    """A Python file, parsed, with its sections, its nodes in the order of lines, and `names`:
    what each name and chain of attributes stands for, imports resolved."""

    def __init__(self, name, text):
        self.name = name
        self.lines = text.splitlines()
        self.text = text
        self.too_new = None
        try:
            self.tree = ast.parse(text, name, **OLD_GRAMMAR)
        except SyntaxError as error:
            self.too_new = error
            self.tree = ast.parse(text, name)
        ruled = {number for number, line in enumerate(self.lines, 1) if RULE.match(line)}
        self.sections = [(number, int(found.group(1)), found.group(2))
                         for number, found in enumerate(map(BANNER.match, self.lines), 1)
                         if found and {number - 1, number + 1} <= ruled]
        self.nodes = sorted((node for node in ast.walk(self.tree) if hasattr(node, 'lineno')),
                            key=lambda node: node.lineno)
        self.functions = [node for node in self.nodes if isinstance(node, FUNCTION)]
        self.modules = dict(self._imports())
        self.names = {node: name for node in self.nodes
                      for name in [self._dotted(node)] if name}

    def _imports(self):
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for name in node.names:
                    whole = name.name if name.asname else name.name.split('.')[0]
                    yield name.asname or whole, whole
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for name in node.names:
                    yield name.asname or name.name, '%s.%s' % (node.module, name.name)

    def _dotted(self, node):
        if isinstance(node, ast.Name):
            return self.modules.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            base = self._dotted(node.value)
            return base and '%s.%s' % (base, node.attr)
        return None

    def section(self, node):
        return max((start, title) for start, _, title in [(0, 0, '')] + self.sections
                   if start <= node.lineno)[1]

    def used(self):
        """(node, what it stands for) of all names and chains of attributes that are read."""
        return [(node, name) for node, name in self.names.items()
                if isinstance(node.ctx, ast.Load)]

    def definitions(self):
        return {name: node for node in self.tree.body for name in bound(node)}

    def complaint(self, node, text):
        return '%s:%d: %s' % (self.name, getattr(node, 'lineno', node), text)


def bound(node):
    if isinstance(node, FUNCTION + (ast.ClassDef,)):
        return [node.name]
    if isinstance(node, COMPOUND):
        inner = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
        return [name for part in inner for name in bound(part)]
    targets = getattr(node, 'targets', [getattr(node, 'target', None)])
    return [part.id for target in targets if target
            for part in ast.walk(target) if isinstance(part, ast.Name)]


@functools.lru_cache(None)
def pattern(names):
    """Matches dotted names that are one of these, `*` being any text, or something inside."""
    return re.compile(r'(%s)(\..*)?\Z' % '|'.join(
        re.escape(name).replace(r'\*', '.*') for name in names.split()))


def matches(name, names):
    return pattern(names).match(name) is not None


# The rules.

def sections(source):
    """Numbers ascend, and the module docstring's map lists exactly the sections."""
    found = [(number, title) for _, number, title in source.sections]
    starts = [start for start, _, _ in source.sections]
    for line, text in enumerate(source.lines, 1):
        if BANNER.match(text) and line not in starts:
            yield source.complaint(line, 'banner is not between rule lines')
    numbers = [number for number, _ in found]
    if not numbers or numbers != sorted(set(numbers)):
        yield source.complaint(1, 'section numbers do not ascend: %s' % numbers)
    listed = docstring_map(ast.get_docstring(source.tree) or '')
    if listed != found:
        yield source.complaint(1, 'the docstring maps %s, the banners are %s' % (listed, found))


def docstring_map(text):
    blocks = [[]]
    for line in text.splitlines():
        entry = MAP_ENTRY.match(line)
        if entry:
            blocks[-1].append((int(entry.group(1)), entry.group(2)))
        elif blocks[-1] and not line.startswith(' ' * 8):       # else an entry goes on
            blocks.append([])
    return max(blocks, key=len)


def effects(source):
    """Each kind of effect stays in its sections."""
    homes = {node: function.name for function in source.functions for node in ast.walk(function)}
    return [source.complaint(node, '%s %s: %s' % (source.section(node) or 'the head',
                                                  effect.what, name))
            for node, name in source.used() if matches(name, ALL_EFFECTS)
            for effect in EFFECTS if matches(name, effect.names) and not (
                source.section(node) in effect.sections and
                effect.function in (None, homes.get(node)))]


def impurities(source):
    """The pure sections use pure modules, and nothing that has an effect."""
    tainted = effectful(source)
    for node, name in source.used():
        section, root = source.section(node), name.split('.')[0]
        if section not in PURE:
            continue
        if root in source.modules.values() and root not in PURE_MODULES:
            yield source.complaint(node, '%s uses %s' % (section, name))
        elif matches(name, FURTHER_EFFECTS) or name in tainted:
            yield source.complaint(node, '%s has an effect: %s' % (section, name))


def writers(source):
    """The sections that only read open no file themselves, and use nothing that changes one."""
    tainted = effectful(source, CHANGING)
    for node, name in source.used():
        if source.section(node) in READING and (
                matches(name, OPENING + CHANGING) or name in tainted):
            yield source.complaint(node, '%s may write: %s' % (source.section(node), name))


def effectful(source, effects=ALL_EFFECTS):
    """Names of the module's own functions and classes that have an effect, directly or not."""
    used = dict(source.used())
    uses = {name: {used[part] for part in ast.walk(node) if part in used}
            for name, node in source.definitions().items()}
    more = {name for name, own in uses.items() if any(matches(n, effects) for n in own)}
    tainted = set()
    while more:
        tainted |= more
        more = {name for name, own in uses.items() if own & tainted} - tainted
    return tainted


def order(source):
    """A section uses only what it, or a section above it, defines."""
    starts = {title: number for number, (_, _, title) in enumerate(source.sections, 1)}
    homes = {name: source.section(node) for name, node in source.definitions().items()}

    def visit(table):
        line = table.get_lineno()
        here = source.section(ast.Pass(lineno=line))
        for symbol in table.get_symbols() if table.get_type() == 'function' else ():
            home = homes.get(symbol.get_name())
            if (home and symbol.is_global() and symbol.is_referenced() and
                    starts[home] > starts.get(here, 0)):
                yield source.complaint(line, '%s uses %s of %s' % (
                    here or 'the head', symbol.get_name(), home))
        for child in table.get_children():
            yield from visit(child)
    return visit(symtable.symtable(source.text, source.name, 'exec'))


def budgets(source):
    """Lengths of the file, of its sections and of functions; parameters, levels."""
    if len(source.lines) > LINES:
        yield source.complaint(LINES, '%d lines' % len(source.lines))
    starts = [start for start, _, _ in source.sections] + [len(source.lines) + 1]
    for (start, _, title), end in zip(source.sections, starts[1:]):
        if end - start > SECTION_LINES:
            yield source.complaint(start, '%s has %d lines: divide it' % (title, end - start))
    for function in source.functions:
        last = max(getattr(node, 'end_lineno', None) or getattr(node, 'lineno', 0)
                   for node in ast.walk(function))
        for count, most, what in (
                (last - function.lineno + 1, FUNCTION_LINES, 'lines'),
                (parameters(function), PARAMETERS, 'parameters'),
                (levels(function.body), LEVELS, 'levels')):
            if count > most:
                yield source.complaint(function, '%s has %d %s' % (function.name, count, what))


def sizes(source):
    """How much there is to understand in all, as the newest Python parses it."""
    if sys.version_info < (3, 9):       # other kinds of nodes
        return
    nodes = list(ast.walk(source.tree))
    statements = sum(isinstance(node, ast.stmt) for node in nodes) or 1
    lengths = [node.end_lineno - node.lineno + 1 for node in source.functions] or [0]
    for count, most, what in (
            (len(nodes), NODES, '%d nodes'),
            (len(nodes) / statements, STATEMENT_NODES, '%.1f nodes a statement'),
            (len(lengths), FUNCTIONS, '%d functions'),
            (statistics.median(lengths), MEDIAN_LINES, 'a median function of %d lines')):
        if count > most:
            yield source.complaint(1, what % count)


def parameters(function):
    own = function.args
    names = [part.arg for part in getattr(own, 'posonlyargs', []) + own.args + own.kwonlyargs +
             [own.vararg, own.kwarg] if part]
    return len(names) - (names[:1] in (['self'], ['cls']))


def levels(statements):
    """How deep compound statements are nested; elif is no level of its own."""
    deepest = 0
    for node in statements:
        if not isinstance(node, COMPOUND):
            continue
        handlers = [part for handler in getattr(node, 'handlers', []) for part in handler.body]
        other = getattr(node, 'orelse', [])
        if isinstance(node, ast.If) and len(other) == 1 and isinstance(other[0], ast.If):
            deepest, other = max(deepest, levels(other)), []
        inner = node.body + handlers + other + getattr(node, 'finalbody', [])
        deepest = max(deepest, 1 + levels(inner))
    return deepest


def grammar(source):
    """The grammar and the names of Python 3.6, and nothing that newer ones have lost."""
    if source.too_new:
        yield source.complaint(source.too_new, source.too_new.msg)
    for node in source.nodes:
        for word in sorted(set(foreign_words(source, node))):
            yield source.complaint(node, 'not in every Python from 3.6 on: ' + word)


def foreign_words(source, node):
    """What one node says that 3.6 does not know or new Pythons have lost."""
    if isinstance(node, (ast.Name, ast.Attribute)):
        yield from FOREIGN & {getattr(node, 'id', None), getattr(node, 'attr', None)}
        if matches(source.names.get(node, ''), FOREIGN_NAMES):
            yield source.names[node]
    elif isinstance(node, ast.Call):
        words = {keyword.arg for keyword in node.keywords}
        yield from FOREIGN & words
        if 'text' in words and source.names.get(node.func, '').startswith('subprocess.'):
            yield 'text='
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        module = getattr(node, 'module', None)
        for name in node.names:
            whole = '%s.%s' % (module, name.name) if module else name.name
            yield from (FOREIGN | GONE_MODULES) & set(whole.split('.'))
            if matches(whole, FOREIGN_NAMES):
                yield whole
    elif isinstance(node, ast.FormattedValue) and sys.version_info >= (3, 12):
        # Older ones refuse it above, or have no exact position of what is in an f-string.
        line = source.lines[node.value.end_lineno - 1].encode()
        if re.match(rb'[\s)]*=', line[node.value.end_col_offset:]):
            yield 'an f-string with ='


def imports(source):
    known = set(sys.stdlib_module_names) | {'XenAPI', 'xxhash'} | GONE_MODULES
    return ['%s: imports %s' % (source.name, module)
            for module in sorted(set(source.modules.values()))
            if module.split('.')[0] not in known]


def silence(source):
    """No error vanishes without a word, no shell."""
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield source.complaint(node, 'bare except')
            if all(is_nothing(part) for part in node.body):
                yield source.complaint(node, 'an error is dropped without a word')
        elif isinstance(node, ast.Call):
            name = source.names.get(node.func)
            if name in ('os.system', 'os.popen') or any(
                    keyword.arg == 'shell' and getattr(keyword.value, 'value', None) is not False
                    for keyword in node.keywords):
                yield source.complaint(node, 'starts a shell')
            if name == 'contextlib.suppress' and {'Exception', 'BaseException'} & {
                    source.names.get(argument) for argument in node.args}:
                yield source.complaint(node, 'suppresses every error')


def is_nothing(node):
    """Whether a statement does nothing: pass, continue, or a bare constant, which has another
    class in old Pythons."""
    return isinstance(node, (ast.Pass, ast.Continue)) or (
        isinstance(node, ast.Expr) and type(node.value).__name__ in (
            'Constant', 'NameConstant', 'Str', 'Num', 'Bytes', 'Ellipsis'))


def docstrings(source):
    """Every public function, class and method says what it is for."""
    def visit(node, prefix):
        if not ast.get_docstring(node):
            yield source.complaint(getattr(node, 'lineno', 1), prefix + 'no docstring')
        for part in node.body if not isinstance(node, FUNCTION) else ():
            if isinstance(part, FUNCTION + (ast.ClassDef,)) and not part.name.startswith('_'):
                yield from visit(part, '%s%s: ' % (prefix.replace(': ', '.'), part.name))
    return visit(source.tree, '')


# The repository.

@functools.lru_cache(None)
def read(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        return Source(name, file.read())


def python_files():
    tests = glob.glob(os.path.join(glob.escape(ROOT), 'tests', '**', '*.py'), recursive=True)
    return ['VmBackup.py', 'XenAPI.py'] + sorted(os.path.relpath(path, ROOT) for path in tests)


class Rules(unittest.TestCase):
    """What the repository's files are held to."""

    maxDiff = None

    def test_every_rule_holds(self):
        programs, everything = ['VmBackup.py', 'XenAPI.py'], python_files()
        of_program = sections, effects, writers, impurities, order, budgets, sizes
        held = [(rule, programs[:1]) for rule in of_program]
        held += [(docstrings, programs)]
        held += [(imports, programs)] * hasattr(sys, 'stdlib_module_names')     # from Python 3.10
        held += [(rule, everything) for rule in (grammar, silence)]
        for rule, names in held:
            with self.subTest(rule.__name__):
                self.assertEqual([], [line for name in names for line in rule(read(name))])

    def test_files_in_folders_are_among_them(self):
        self.assertLessEqual({'tests/__init__.py', 'tests/runs/test_was_wrong_in_325.py',
                              'tests/tools/tests/test_runner.py'}, set(python_files()))

    def test_top_level_holds_only_what_it_should(self):
        found = {name for name in os.listdir(ROOT)
                 if not name.startswith('.') and name != '__pycache__'}
        self.assertEqual(sorted(found - TOP_LEVEL), [])


def sample(text):
    return Source('sample.py', textwrap.dedent(text).lstrip('\n'))


def room(number, title, body):
    rule = '# ' + '-' * 98
    return '%s\n# %d. %s: about it\n%s\n%s\n' % (rule, number, title, rule, textwrap.dedent(body))


MAPPED = ('"""A program.\n\n 1 Defaults  what may be edited,\n'
          '             and what not\n 2 Command line  main\n\n0 All is well\n"""\n')
FIRST, SECOND = room(1, 'Defaults', ''), room(2, 'Command line', '')

# (rule, a sample that breaks it or not, what of each complaint)
SAMPLES = (
    (sections, MAPPED + FIRST + SECOND),
    (sections, MAPPED + FIRST, 'the docstring maps'),
    (sections, MAPPED + SECOND + FIRST, 'do not ascend', 'the docstring maps'),
    (sections, MAPPED, 'do not ascend', 'the docstring maps'),
    (sections, 'x = 1', 'do not ascend'),
    (sections, MAPPED + FIRST + SECOND + '# 3. Lost: no rule\n', 'not between rule lines'),
    (effects, '''
import datetime, os, subprocess
from os import rename as move
from datetime import datetime as dt
''' + room(3, 'Console', '''
        def now(): return dt.now()
        def later(): return dt.now()
        ''') + room(4, 'Settings', '''
        with open(path) as file: file.read()
        ''') + room(7, 'Processes', '''
        def stream(argv): return subprocess.Popen(argv)
        ''') + room(14, 'Runs', '''
        os.kill(1, 9)
        move(path, os.path.join(path, 'x'))
        open(path)
        '''), 'Console asks the clock: datetime.datetime.now',
     'Runs starts or kills processes: os.kill', 'Runs takes a path: os.rename',
     'Runs takes a path: open'),
    (impurities, 'import os, re\n' + room(3, 'Console', '''
        def log(text): print(text)
        def shout(text): log(text.upper())
        def whisper(text): return text.lower()
        ''') + room(5, 'Selection', '''
        def select(names):
            shout('hello')
            print(whisper('x'), os.sep)
            return [name for name in names if re.match('a', name)]
        '''), 'effect: shout', 'effect: print', 'uses os.sep', 'uses os'),
    (writers, 'import os\n' + room(9, 'Files', '''
        def read(path): return os.open(path, os.O_RDONLY)
        def write(path): os.rename(path, read(path))
        class Place:
            def put(self): write(self)
        ''') + room(10, 'Catalogue', '''
        def look(path): return os.lstat(path), read(path)
        def spoil(path):
            open(path)
            write(path)
            Place.put(path)
            os.mkdir(path)
        ''') + room(11, 'Store', '''
        def delete(path): os.unlink(path), write(path)
        '''), 'Catalogue may write: open', 'Catalogue may write: write',
     'Catalogue may write: Place', 'Catalogue may write: os.mkdir'),
    (order, room(1, 'Defaults', '''
        LATER = 1
        def early(prune):
            own = prune
            return own, LATER, late()
        ''') + room(2, 'Vocabulary', '''
        def late(): return early
        def prune(): return late
        '''), 'Defaults uses late of Vocabulary'),
    (budgets, 'def long():\n' + '    x = 1\n' * 60, 'long has 61 lines'),
    (budgets, '''
        class It:
            def many(self, a, b, c, *, d, e, **f): return lambda g: g
            def too_many(self, a, b, c, d, e, f, g=lambda h: h): pass
        ''', 'too_many has 7 parameters'),
    (budgets, '''
        def flat(a):
            if a: pass
            elif a: pass
            elif a:
                for b in a:
                    while b:
                        with b: pass
        def deep(a):
            if a:
                for b in a:
                    while b:
                        try: pass
                        except ValueError:
                            if b: pass
        ''', 'deep has 5 levels'),
    (budgets, 'x = 1\n' * (LINES + 1), '%d lines' % (LINES + 1)),
    (budgets, room(1, 'Small', '') + room(2, 'Large', 'x = 1\n' * SECTION_LINES),
     'Large has %d lines' % (SECTION_LINES + 3)),
    (grammar, '''
        import imp
        import shlex as s
        import subprocess
        from contextlib import nullcontext
        s.join(['a'])
        subprocess.run(['a'], text=True)
        subprocess.run(['a'], capture_output=True)
        text(text=1).joined
        ''', 'imp', 'nullcontext', 'shlex.join', 'text=', 'capture_output'),
    (silence, '''
        import contextlib, os, subprocess
        for x in ():
            try: x()
            except ValueError: pass
            except KeyError: "It is gone."
            except OSError: continue
            except TypeError: ...
            except AttributeError: x = 1
        try: x()
        except: raise
        with contextlib.suppress(Exception): os.system('ls')
        subprocess.run('ls', shell=True)
        subprocess.run('ls', shell=False)
        ''', 'dropped', 'dropped', 'dropped', 'dropped', 'bare', 'suppresses', 'starts a shell',
     'a shell'),
    (docstrings, '''
        def told():
            """Told."""
            def inner(): pass
        def untold(): pass
        def _own(): pass
        class Untold:
            def method(self): pass
            def __len__(self): pass
        ''', '1: no docstring', 'untold', 'Untold', 'Untold.method'),
)
if sys.version_info >= (3, 7):
    SAMPLES += (grammar, 'from __future__ import annotations\n', 'annotations'),
if sys.version_info >= (3, 8):
    SAMPLES += tuple((grammar, text, '') for text in (
        'if (a := 1): pass', 'def f(a, /): pass', 'f"{1=}"', 'f"é{(a + b) = !r}"'))
if sys.version_info >= (3, 9):
    SAMPLES += (
        (sizes, 'x = 1\n' * (NODES // 4), '%d nodes' % (NODES // 4 * 4 + 1)),
        (sizes, 'x = %s\n' % '+'.join('1' * 20), 'nodes a statement'),
        (sizes, 'def f(): pass\n' * (FUNCTIONS + 1), '%d functions' % (FUNCTIONS + 1)),
        (sizes, 'def f():\n' + '    x = 1\n' * (MEDIAN_LINES + 1), 'a median function of'))
if hasattr(sys, 'stdlib_module_names'):
    SAMPLES += (imports, 'import os, XenAPI, yaml.x\n', 'imports yaml'),


class RulesBroken(unittest.TestCase):
    """Samples that break a rule, and what the rule says to them."""

    def test_each_rule_tells_what_breaks_it_and_nothing_else(self):
        for rule, text, *words in SAMPLES:
            with self.subTest(rule=rule.__name__, text=text[:200]):
                complaints = list(rule(sample(text)))
                self.assertEqual(len(words), len(complaints), complaints)
                for word, complaint in zip(words, complaints):
                    self.assertIn(word, complaint)
