"""The house rules: who may have which effect, how long things may be, which Python is spoken.

Each rule is a function from a Source to complaints, a line of text each. The tests ask for none in
the repository's files, and for the right ones in small samples that break the rule.
"""

import ast
import fnmatch
import glob
import os
import re
import symtable
import sys
import textwrap
import unittest
from typing import NamedTuple, Tuple

from tests import ROOT

TOP = ROOT

TOP_LEVEL = {'VmBackup.py', 'XenAPI.py', 'example.cfg', 'README.md', 'LICENSE', 'tests'}


class Effect(NamedTuple):
    """Something that only some sections of VmBackup.py may do, and the names that do it."""
    what: str
    sections: Tuple[str, ...]
    names: str
    function: str = None        # the one function there that may


EFFECTS = (
    Effect('starts or kills processes', ('Processes',), '''
        subprocess multiprocessing pty os.fork os.forkpty os.kill os.killpg os.exec* os.spawn*
        os.posix_spawn* os.popen os.system'''),
    Effect('talks to the pool', ('Pool',), 'XenAPI xmlrpc'),
    Effect('sends mail', ('Reports',), 'smtplib'),
    Effect('uses the network', ('Pool', 'Reports'), '''
        socket.socket socket.create_connection http.client urllib.request'''),
    Effect('locks', ('Store',), 'fcntl.flock fcntl.lockf os.lockf'),
    Effect('touches files', (
        'Settings', 'Files', 'Backups', 'Store', 'Metadata', 'Formats', 'Verification',
        'Exporters', 'Reports'), '''
        open io.open os.open os.fdopen os.mkdir os.makedirs os.rename os.renames os.replace
        os.unlink os.remove os.rmdir os.removedirs os.link os.symlink os.readlink os.chmod os.chown
        os.utime os.truncate os.mkfifo os.listdir os.scandir os.walk os.stat os.lstat os.statvfs
        os.access os.path.exists os.path.lexists os.path.isfile os.path.isdir os.path.islink
        os.path.ismount os.path.getsize os.path.getmtime os.path.realpath os.path.samefile
        shutil.rmtree shutil.copy* shutil.move shutil.disk_usage shutil.chown tempfile glob
        pathlib.Path'''),
    Effect('asks the clock', ('Console',), '''
        datetime.datetime.now datetime.datetime.today datetime.datetime.utcnow datetime.date.today
        time.time time.time_ns time.localtime time.gmtime time.ctime time.asctime time.strftime''',
           function='now'),
)

# Sections that do nothing at all, and what they may use.
PURE = ('Selection', 'Retention')
PURE_MODULES = '''bisect calendar collections datetime enum fnmatch functools itertools math
    operator re string textwrap typing unicodedata'''.split()
FURTHER_EFFECTS = '''print input exec eval __import__ sys.stdout sys.stderr sys.stdin sys.exit
    os.environ os.getenv os.putenv os.chdir os.umask os._exit logging signal threading
    time.sleep random'''

LINES, SECTION_LINES, FUNCTION_LINES, PARAMETERS, LEVELS, COLUMNS = 8000, 800, 60, 6, 4, 100

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

NEW_NODES = ('NamedExpr', 'Match', 'TryStar', 'TypeAlias', 'TemplateStr')

RULE = re.compile(r'^#( ?[-=#~]){20,}\s*$')
BANNER = re.compile(r'^# (\d+)\. (\w[\w -]*?)(: .+)?$')
MAP_ENTRY = re.compile(r'^\s*(\d+)[.:]? +([A-Z]\w*(?: \w+)*)(?:$|  +\S|: \S)')


class Source:
    """A Python file, parsed, with its sections."""

    def __init__(self, name, text):
        self.name = name
        self.text = text
        self.lines = text.splitlines()
        self.tree = ast.parse(text, name)
        self.sections = [(number, int(found.group(1)), found.group(2))
                         for number, found in enumerate(map(BANNER.match, self.lines), 1)
                         if found and self._is_rule(number - 1) and self._is_rule(number + 1)]
        self.modules = dict(self._imports())

    def _is_rule(self, number):
        return 1 <= number <= len(self.lines) and RULE.match(self.lines[number - 1])

    def _imports(self):
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    whole = name.name if name.asname else name.name.split('.')[0]
                    yield name.asname or whole, whole
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for name in node.names:
                    yield name.asname or name.name, '%s.%s' % (node.module, name.name)

    def section(self, line):
        """Title of the section that a line is in; '' above the first."""
        return max((start, title) for start, _, title in [(0, 0, '')] + self.sections
                   if start <= line)[1]

    def dotted(self, node):
        """What a name or a chain of attributes stands for, imports resolved; else None."""
        if isinstance(node, ast.Name):
            return self.modules.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return base and '%s.%s' % (base, node.attr)
        return None

    def walk(self, tree=None):
        """All nodes of a tree that have a line, in the order of lines."""
        nodes = [node for node in ast.walk(tree or self.tree) if hasattr(node, 'lineno')]
        return sorted(nodes, key=lambda node: node.lineno)

    def names(self, tree=None):
        """(node, what it stands for) of all names and chains of attributes in a tree."""
        named = [(node, self.dotted(node)) for node in self.walk(tree)
                 if isinstance(getattr(node, 'ctx', None), ast.Load)]
        return [(node, name) for node, name in named if name]

    def functions(self):
        """Every function and method, nested ones too."""
        return [node for node in ast.walk(self.tree) if isinstance(node, FUNCTION)]

    def definitions(self):
        """{name: statement} of what the module defines itself, the last one of each name."""
        return {name: node for node in self.tree.body for name in bound(node)}

    def complaint(self, node, text):
        """One line that an editor can jump to."""
        line = node if isinstance(node, int) else node.lineno
        return '%s:%d: %s' % (self.name, line, text)


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try)


def bound(node):
    """Names that a statement of a module binds, other than by import."""
    if isinstance(node, FUNCTION + (ast.ClassDef,)):
        return [node.name]
    if isinstance(node, COMPOUND):
        inner = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
        return [name for part in inner for name in bound(part)]
    targets = getattr(node, 'targets', [getattr(node, 'target', None)])
    return [part.id for target in targets if target
            for part in ast.walk(target) if isinstance(part, ast.Name)]


def matches(name, patterns):
    """Whether a dotted name is one of the patterns, or something inside of one."""
    return any(fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern + '.')
               for pattern in patterns.split())


# The rules.

def sections(source):
    """Numbers ascend, and the module docstring's map lists exactly the sections."""
    found = [(number, title) for _, number, title in source.sections]
    if not found:
        return [source.complaint(1, 'no banner: a rule line, "# 1. Title: ...", a rule line')]
    complaints = [source.complaint(line, 'banner is not between rule lines')
                  for line, text in enumerate(source.lines, 1) if BANNER.match(text)
                  and line not in [start for start, _, _ in source.sections]]
    numbers = [number for number, _ in found]
    if numbers != sorted(set(numbers)):
        complaints.append(source.complaint(1, 'section numbers do not ascend: %s' % numbers))
    listed = docstring_map(ast.get_docstring(source.tree) or '')
    if listed != found:
        complaints.append(source.complaint(
            1, 'the docstring maps %s, the banners are %s' % (listed, found)))
    return complaints


def docstring_map(text):
    """[(number, title)]: the longest block of lines like ' 5 Selection  which VMs ...'."""
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
    complaints = []
    homes = {id(node): function.name for function in source.functions()
             for node in ast.walk(function)}
    for node, name in source.names():
        section = source.section(node.lineno)
        for effect in EFFECTS:
            right = section in effect.sections and effect.function in (
                None, homes.get(id(node)))
            if matches(name, effect.names) and not right:
                complaints.append(source.complaint(node, '%s %s: %s' % (
                    section or 'the head', effect.what, name)))
    return complaints


def impurities(source):
    """The pure sections use pure modules, and nothing that has an effect."""
    tainted, complaints = effectful(source), []
    for node, name in source.names():
        section = source.section(node.lineno)
        if section not in PURE:
            continue
        root = name.split('.')[0]
        if root in source.modules.values() and root not in PURE_MODULES:
            complaints.append(source.complaint(node, '%s uses %s' % (section, name)))
        elif matches(name, FURTHER_EFFECTS) or name in tainted:
            complaints.append(source.complaint(node, '%s has an effect: %s' % (section, name)))
    return complaints


def effectful(source):
    """Names of the module's own functions and classes that have an effect, directly or not."""
    patterns = ' '.join([effect.names for effect in EFFECTS] + [FURTHER_EFFECTS])
    uses = {name: {used for _, used in source.names(node)}
            for name, node in source.definitions().items()}
    tainted = {name for name, used in uses.items() if any(matches(u, patterns) for u in used)}
    grown = True
    while grown:
        more = {name for name, used in uses.items() if used & tainted} - tainted
        grown = bool(more)
        tainted |= more
    return tainted


def order(source):
    """A section uses only what it, or a section above it, defines."""
    starts = {title: number for number, (_, _, title) in enumerate(source.sections, 1)}
    homes = {name: source.section(node.lineno) for name, node in source.definitions().items()}
    complaints = []

    def visit(table):
        here = source.section(table.get_lineno())
        for symbol in table.get_symbols():
            home = homes.get(symbol.get_name())
            if (table.get_type() == 'function' and symbol.is_global() and symbol.is_referenced()
                    and home and starts[home] > starts.get(here, 0)):
                complaints.append(source.complaint(table.get_lineno(), '%s uses %s of %s' % (
                    here or 'the head', symbol.get_name(), home)))
        for child in table.get_children():
            visit(child)
    visit(symtable.symtable(source.text, source.name, 'exec'))
    return complaints


def budgets(source):
    """Lengths of the file, of its sections and of functions; parameters, levels."""
    complaints = []
    if len(source.lines) > LINES:
        complaints.append(source.complaint(LINES, '%d lines' % len(source.lines)))
    starts = [start for start, _, _ in source.sections] + [len(source.lines) + 1]
    for (start, _, title), end in zip(source.sections, starts[1:]):
        if end - start > SECTION_LINES:
            complaints.append(source.complaint(start, '%s has %d lines: divide it' % (
                title, end - start)))
    for function in source.functions():
        last = max(getattr(node, 'end_lineno', None) or getattr(node, 'lineno', 0)
                   for node in ast.walk(function))
        for count, most, what in (
                (last - function.lineno + 1, FUNCTION_LINES, 'lines'),
                (parameters(function), PARAMETERS, 'parameters'),
                (levels(function.body), LEVELS, 'levels')):
            if count > most:
                complaints.append(source.complaint(function, '%s has %d %s' % (
                    function.name, count, what)))
    return complaints


def parameters(function):
    """How many a function takes, self and cls not counted."""
    own = function.args
    names = [part.arg for part in ast.walk(own) if isinstance(part, ast.arg)]
    inner = [part.arg for default in own.defaults + own.kw_defaults if default
             for part in ast.walk(default) if isinstance(part, ast.arg)]
    return len(names) - len(inner) - (names[:1] in (['self'], ['cls']))


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


def wide(source):
    """No line is over 100 columns."""
    return [source.complaint(number, '%d columns' % len(line))
            for number, line in enumerate(source.lines, 1) if len(line) > COLUMNS]


def grammar(source):
    """The grammar and the names of Python 3.6, and nothing that newer ones have lost."""
    complaints = []
    if sys.version_info >= (3, 8):
        try:
            ast.parse(source.text, source.name, feature_version=(3, 6))
        except SyntaxError as error:
            complaints.append(source.complaint(error.lineno or 1, error.msg))
    for node in source.walk():
        complaints += [source.complaint(node, 'not in every Python from 3.6 on: %s' % word)
                       for word in sorted(set(foreign_words(source, node)))]
    return complaints


def foreign_words(source, node):
    """What one node says that 3.6 does not know or new Pythons have lost."""
    if type(node).__name__ in NEW_NODES:
        yield type(node).__name__
    if isinstance(node, FUNCTION) and getattr(node.args, 'posonlyargs', None):
        yield 'positional-only parameters'
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        module = getattr(node, 'module', None)
        for name in node.names:
            whole = '%s.%s' % (module, name.name) if module else name.name
            yield from (FOREIGN | GONE_MODULES) & set(whole.split('.'))
            if matches(whole, FOREIGN_NAMES):
                yield whole
    elif isinstance(node, ast.Call):
        words = {keyword.arg for keyword in node.keywords}
        yield from FOREIGN & words
        if 'text' in words and (source.dotted(node.func) or '').startswith('subprocess.'):
            yield 'text='
    elif isinstance(node, (ast.Name, ast.Attribute)):
        yield from FOREIGN & {getattr(node, 'id', None), getattr(node, 'attr', None)}
        if matches(source.dotted(node) or '', FOREIGN_NAMES):
            yield source.dotted(node)
    elif isinstance(node, ast.FormattedValue) and sys.version_info >= (3, 12):
        # Older ones refuse it above, or have no exact position of what is in an f-string.
        line = source.lines[node.value.end_lineno - 1].encode()
        if re.match(rb'[\s)]*=', line[node.value.end_col_offset:]):
            yield 'an f-string with ='


def imports(source):
    """Only the standard library and XenAPI."""
    known = set(sys.stdlib_module_names) | {'XenAPI'} | GONE_MODULES
    return ['%s: imports %s' % (source.name, module)
            for module in sorted(set(source.modules.values()))
            if module.split('.')[0] not in known]


def silence(source):
    """No error vanishes without a word, no shell."""
    complaints = []
    for node in source.walk():
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                complaints.append(source.complaint(node, 'bare except'))
            if all(is_nothing(part) for part in node.body):
                complaints.append(source.complaint(node, 'an error is dropped without a word'))
        elif isinstance(node, ast.Call):
            name = source.dotted(node.func)
            if any(keyword.arg == 'shell' and constant(keyword.value) is not False
                   for keyword in node.keywords) or name in ('os.system', 'os.popen'):
                complaints.append(source.complaint(node, 'starts a shell'))
            if name == 'contextlib.suppress' and {'Exception', 'BaseException'} & {
                    source.dotted(argument) for argument in node.args}:
                complaints.append(source.complaint(node, 'suppresses every error'))
    return complaints


def is_nothing(node):
    """Whether a statement does nothing: pass, continue, or a bare constant."""
    return isinstance(node, (ast.Pass, ast.Continue)) or (
        isinstance(node, ast.Expr) and constant(node.value) is not node.value)


def constant(node):
    """The value of a constant, whichever node this Python makes of it; else the node."""
    if type(node).__name__ == 'Ellipsis':
        return ...
    for field in ('value', 's', 'n') if type(node).__name__ in (
            'Constant', 'NameConstant', 'Str', 'Num', 'Bytes') else ():
        if hasattr(node, field):
            return getattr(node, field)
    return node


def docstrings(source):
    """Every public function, class and method says what it is for."""
    complaints = [] if ast.get_docstring(source.tree) else [source.complaint(1, 'no docstring')]

    def visit(body, prefix):
        for node in body:
            if isinstance(node, FUNCTION + (ast.ClassDef,)) and not node.name.startswith('_'):
                if not ast.get_docstring(node):
                    complaints.append(source.complaint(
                        node, '%s%s has no docstring' % (prefix, node.name)))
                if isinstance(node, ast.ClassDef):
                    visit(node.body, node.name + '.')
    visit(source.tree.body, '')
    return complaints


# The repository.

def read(name):
    """Source of a file of the repository."""
    with open(os.path.join(TOP, name), encoding='utf-8') as file:
        return Source(name, file.read())


def python_files():
    """Names of all Python files, programs first."""
    tests = glob.glob(os.path.join(glob.escape(TOP), 'tests', '**', '*.py'), recursive=True)
    return ['VmBackup.py', 'XenAPI.py'] + sorted(os.path.relpath(path, TOP) for path in tests)


class Rules(unittest.TestCase):
    """What the repository's files are held to."""

    maxDiff = None

    def assert_none(self, complaints):
        """No complaint; each has its line in the message."""
        if complaints:
            self.fail('\n' + '\n'.join(complaints))

    def assert_holds(self, *rules, names):
        """The rules hold in the files."""
        for name in names:
            with self.subTest(name):
                source = read(name)
                self.assert_none([line for rule in rules for line in rule(source)])

    def test_sections_are_numbered_and_mapped(self):
        self.assert_none(sections(read('VmBackup.py')))

    def test_effects_stay_in_their_sections(self):
        self.assert_none(effects(read('VmBackup.py')))

    def test_decisions_are_pure(self):
        self.assert_none(impurities(read('VmBackup.py')))

    def test_sections_use_only_sections_above(self):
        self.assert_none(order(read('VmBackup.py')))

    def test_sizes_are_within_budget(self):
        self.assert_none(budgets(read('VmBackup.py')))

    def test_public_things_have_docstrings(self):
        self.assert_holds(docstrings, names=['VmBackup.py', 'XenAPI.py'])

    @unittest.skipUnless(hasattr(sys, 'stdlib_module_names'),
                         'needs the list of standard modules of Python 3.10')
    def test_programs_need_only_the_standard_library(self):
        self.assert_holds(imports, names=['VmBackup.py', 'XenAPI.py'])

    def test_every_file_speaks_python_3_6(self):
        self.assert_holds(grammar, names=python_files())

    def test_lines_are_at_most_100_columns(self):
        self.assert_holds(wide, names=python_files())

    def test_no_error_is_dropped_and_no_shell_is_used(self):
        self.assert_holds(silence, names=python_files())

    def test_top_level_holds_only_what_it_should(self):
        found = {name for name in os.listdir(TOP)
                 if not name.startswith('.') and name != '__pycache__'}
        self.assertEqual(sorted(found - TOP_LEVEL), [])


def sample(text):
    """Source of a piece of Python."""
    return Source('sample.py', textwrap.dedent(text).lstrip('\n'))


def room(number, title, body):
    """A section with its banner."""
    rule = '# ' + '-' * 98
    return '%s\n# %d. %s: about it\n%s\n%s\n' % (rule, number, title, rule, textwrap.dedent(body))


class RulesBroken(unittest.TestCase):
    """Samples that break a rule, and what the rule says to them."""

    def assert_complaints(self, complaints, *texts):
        """As many complaints as texts, each with its text."""
        self.assertEqual(len(complaints), len(texts), complaints)
        for complaint, text in zip(complaints, texts):
            self.assertIn(text, complaint)

    def test_map_that_is_not_the_banners(self):
        good = ('"""A program.\n\n 1 Defaults  what may be edited,\n'
                '             and what not\n 2 Command line  main\n\n0 All is well\n"""\n')
        rooms = [room(1, 'Defaults', ''), room(2, 'Command line', '')]
        self.assertEqual(sections(sample(good + ''.join(rooms))), [])
        self.assert_complaints(sections(sample(good + rooms[0])), 'the docstring maps')
        self.assert_complaints(sections(sample(good + rooms[1] + rooms[0])),
                               'do not ascend', 'the docstring maps')
        self.assert_complaints(sections(sample(good)), 'no banner')
        self.assert_complaints(sections(sample(good + ''.join(rooms) + '# 3. Lost: no rule\n')),
                               'not between rule lines')

    def test_effects_in_the_wrong_section(self):
        imports_ = ('import datetime, os, subprocess\nfrom os import rename as move\n'
                    'from datetime import datetime as dt\n')
        found = effects(sample(imports_ + room(3, 'Console', '''
            def now():
                return dt.now()
            def later():
                return dt.now()
            ''') + room(4, 'Settings', '''
            def read(path):
                with open(path) as file:
                    return file.read()
            ''') + room(7, 'Processes', '''
            def stream(argv):
                return subprocess.Popen(argv)
            ''') + room(14, 'Runs', '''
            def run(path):
                os.kill(1, 9)
                move(path, os.path.join(path, 'x'))
                open(path)
            ''')))
        self.assert_complaints(found, 'Console asks the clock: datetime.datetime.now',
                               'Runs starts or kills processes: os.kill',
                               'Runs touches files: os.rename', 'Runs touches files: open')

    def test_decisions_with_effects(self):
        found = impurities(sample('import os, re\n' + room(3, 'Console', '''
            def log(text):
                print(text)
            def shout(text):
                log(text.upper())
            def whisper(text):
                return text.lower()
            ''') + room(5, 'Selection', '''
            def select(names):
                shout('hello')
                print(whisper('x'), os.sep)
                return [name for name in names if re.match('a', name)]
            ''')))
        self.assert_complaints(found, 'effect: shout', 'effect: print', 'uses os.sep', 'uses os')

    def test_use_of_a_later_section(self):
        found = order(sample(room(1, 'Defaults', '''
            LATER = 1
            def early(prune):
                own = prune
                return own, LATER, late(), [late for _ in own]
            ''') + room(2, 'Vocabulary', '''
            def late():
                return early
            def prune():
                return late
            ''')))
        self.assertTrue(found)
        self.assertEqual({line.split(': ', 1)[1] for line in found}, {
            'Defaults uses late of Vocabulary'})

    def test_budgets_that_are_exceeded(self):
        long = 'def long():\n' + '    x = 1\n' * 60
        self.assert_complaints(budgets(sample(long)), 'long has 61 lines')
        self.assert_complaints(budgets(sample('''
            class It:
                def many(self, a, b, c, *, d, e, **f):
                    return lambda g: g
                def too_many(self, a, b, c, d, e, f, g=lambda h: h):
                    pass
            ''')), 'too_many has 7 parameters')
        self.assert_complaints(budgets(sample('''
            def flat(a):
                if a:
                    pass
                elif a:
                    pass
                elif a:
                    for b in a:
                        while b:
                            with b:
                                pass
            def deep(a):
                if a:
                    for b in a:
                        while b:
                            try:
                                pass
                            except ValueError:
                                if b:
                                    pass
            ''')), 'deep has 5 levels')
        self.assert_complaints(budgets(sample('x = 1\n' * (LINES + 1))),
                               '%d lines' % (LINES + 1))
        self.assert_complaints(budgets(sample(room(1, 'Small', '') + room(
            2, 'Large', 'x = 1\n' * SECTION_LINES))), 'Large has %d lines' % (SECTION_LINES + 3))
        self.assert_complaints(wide(sample('x = "%s"\n' % ('y' * 95))), '101 columns')

    @unittest.skipUnless(sys.version_info >= (3, 8), 'needs a Python that can parse this')
    def test_new_grammar(self):
        for text in ('if (a := 1): pass\n', 'def f(a, /): pass\n', 'print(f"{1=}")\n',
                     'print(f"é{(a + b) = !r}")\n'):
            with self.subTest(text):
                self.assertTrue(grammar(sample(text)))

    def test_names_that_some_pythons_do_not_have(self):
        self.assert_complaints(grammar(sample('''
            import imp
            import shlex as s
            import subprocess
            from contextlib import nullcontext
            s.join(['a'])
            subprocess.run(['a'], text=True)
            subprocess.run(['a'], capture_output=True)
            text(text=1).joined
            ''')), 'imp', 'nullcontext', 'shlex.join', 'text=', 'capture_output')

    @unittest.skipUnless(sys.version_info >= (3, 7), 'an error in Python 3.6')
    def test_future_annotations(self):
        self.assert_complaints(grammar(sample('from __future__ import annotations\n')),
                               'annotations')

    @unittest.skipUnless(hasattr(sys, 'stdlib_module_names'),
                         'needs the list of standard modules of Python 3.10')
    def test_imports_from_elsewhere(self):
        self.assert_complaints(imports(sample('import os, XenAPI, yaml.x\n')), 'imports yaml')

    def test_silence_and_shells(self):
        self.assert_complaints(silence(sample('''
            import contextlib, os, subprocess
            for x in ():
                try:
                    x()
                except ValueError:
                    pass
                except KeyError:
                    """It is gone."""
                except OSError:
                    continue
                except TypeError:
                    ...
                except AttributeError:
                    x = 1
            try:
                x()
            except:
                raise
            with contextlib.suppress(Exception):
                os.system('ls')
            subprocess.run('ls', shell=True)
            subprocess.run('ls', shell=False)
            ''')), 'dropped', 'dropped', 'dropped', 'dropped', 'bare', 'suppresses',
                               'starts a shell', 'a shell')

    def test_missing_docstrings(self):
        self.assert_complaints(docstrings(sample('''
            def told():
                """Told."""
                def inner(): pass
            def untold(): pass
            def _own(): pass
            class Untold:
                def method(self): pass
                def __len__(self): pass
            ''')), 'no docstring', 'untold', 'Untold', 'Untold.method')


if __name__ == '__main__':
    unittest.main()
