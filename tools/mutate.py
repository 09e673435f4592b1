"""Runs quick tests on mutants of modules; prints those that survive.

    pip install cosmic-ray
    python -m tools.mutate [--count N] [--slowest S] MODULES PYTEST_ARGUMENT...

The mutants are cosmic-ray's, N of them spread evenly over each module.  Each
lives in a fork of one process that has imported everything and has made the
session's fixtures, and meets the tests that call the function it is in, the
quickest first.  So a mutant takes a second instead of the half minute that
`cosmic-ray exec` needs to import PyTorch and to render the sample.  A session
fixture that the module itself made hides its mutants: choose other tests.
"""
import argparse
import ast
import cProfile
import collections
import difflib
import importlib
import os
import random
import resource
import sys
import time
import types

import hypothesis
import pytest
from _pytest.runner import runtestprotocol
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

# Where arithmetic stands, these only raise: a waste of time.
BITS = ('_LShift', '_RShift', '_BitAnd', '_BitOr', '_BitXor')
EXAMPLES = '_hypothesis_internal_use_settings'
KILLED, SURVIVED = 0, 7  # exit statuses of a mutant's process


def mutants(source):
    """Returns the line, operator and occurrence of all, in their order."""
    tree, found = get_ast(source), []
    for name in sorted(operator_names()):
        operator = get_operator(name)
        if name.endswith(BITS) or operator.arguments():
            continue
        places = [start for node in ast_nodes(tree)
                  for start, _ in operator().mutation_positions(node)]
        found += [(place, name, number)
                  for number, place in enumerate(places)]
    return [(line, name, number)
            for (line, _), name, number in sorted(found)]


def chosen(items, count):
    """Returns so many items, evenly spread."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def owners(source):
    """Maps the lines of a module to the first one of their function."""
    lines = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno,
                         *(mark.lineno for mark in node.decorator_list)])
            for line in range(first, node.end_lineno + 1):
                # Of nested functions, the outer one, which comes first.
                lines.setdefault(line, first)
    return lines


def plain(value):
    """Returns the function in a property, a static method, a wrapper."""
    value = getattr(value, 'fget', None) or value
    while hasattr(value, '__wrapped__') or hasattr(value, '__func__'):
        value = getattr(value, '__wrapped__', None) or value.__func__
    return value


def transplant(old, new, module):
    """Gives the functions of a namespace their mutants' code.

    Whoever imported them goes on with them; values are set wherever they have
    been imported to.
    """
    for name, value in vars(new).items():
        was = vars(old).get(name)
        if isinstance(value, type):
            if value.__module__ == module.__name__:
                transplant(was, value, module)
            continue
        function, before = plain(value), plain(was)
        if isinstance(function, types.FunctionType):
            if function.__module__ not in (module.__name__,
                                           f'namedtuple_{old.__name__}'):
                continue
            before.__code__ = function.__code__
            before.__defaults__ = function.__defaults__
            if type(was) is type(value) and (was is before) == (
                    value is function):
                continue
            value = before  # its decorator is gone
        elif repr(was) == repr(value) or name.startswith('__'):
            continue
        for place in [old, *sys.modules.values()]:
            if getattr(place, '__dict__', {}).get(name) is was:
                setattr(place, name, value)


class Plugin:
    """Replaces pytest's loop over the tests."""

    def __init__(self, options):
        self.options = options
        self.calls = collections.defaultdict(set)  # tests to functions
        self.seconds = {}
        self.counts = collections.Counter()

    def pytest_configure(self):
        """Makes hypothesis the same each time, and content with a failure."""
        hypothesis.settings.register_profile(
            'mutants', database=None, derandomize=True, phases=(
                hypothesis.Phase.explicit, hypothesis.Phase.generate),
            report_multiple_bugs=False)
        hypothesis.settings.load_profile('mutants')

    def pytest_runtestloop(self, session):
        """Runs all tests once, then those that may kill on each mutant."""
        for item in session.items:
            self.limit_examples(item)
            self.trace(item, session)
            item.repr_failure = lambda *_, **__: ''  # nobody reads it
        tests = sorted((item for item in session.items if 0 <= self.seconds[
            item] <= self.options.slowest), key=self.seconds.get)
        print(f'{len(tests)} of {len(session.items)} tests, '
              f'{sum(map(self.seconds.get, tests)):.1f} s', flush=True)
        work = []
        for name in self.options.modules.split(','):
            module = importlib.import_module(name)
            with open(module.__file__) as file:
                source = file.read()
            if self.survives(session, module, source, tests):
                work += [(module, source, mutant) for mutant in chosen(
                    mutants(source), self.options.count)]
            else:
                print(f'{name}: tests fail without a mutation')
        # So that what ran when you stop it is a sample of all.
        random.Random(0).shuffle(work)
        for module, source, (line, operator, number) in work:
            mutant = mutate_code(source, get_operator(operator)(), number)
            first = owners(source).get(line)
            able = [test for test in tests if first is None
                    or (module.__file__, first) in self.calls[test]]
            self.tell(module.__name__, line, operator, self.survives(
                session, module, mutant, able), changes(source, mutant))
        return True

    def tell(self, name, line, operator, survived, difference):
        """Prints a mutant's fate, and how many have had it."""
        fate = 'survived' if survived else 'killed'
        self.counts[name, fate] += 1
        print(f'{name}:{line} {operator} {fate} '
              f'({self.counts[name, fate]})', flush=True)
        if survived:
            print(*difference, sep='\n', flush=True)

    def limit_examples(self, item):
        """Lets hypothesis try fewer examples than the test says."""
        limits = getattr(item.obj, EXAMPLES, None)
        if limits:
            setattr(item.obj, EXAMPLES, hypothesis.settings(
                limits, max_examples=min(limits.max_examples,
                                         self.options.examples)))

    def trace(self, item, session):
        """Runs a test, and notes its time and the functions it calls."""
        profile, start = cProfile.Profile(builtins=False), time.process_time()
        with profile:
            reports = runtestprotocol(item, log=False, nextitem=session)
        passed = all(report.passed for report in reports)
        self.seconds[item] = time.process_time() - start if passed else -1
        self.calls[item] = {
            (entry.code.co_filename, entry.code.co_firstlineno)
            for entry in profile.getstats()
            if isinstance(entry.code, types.CodeType)}

    def survives(self, session, module, mutant, tests):
        """Runs tests on a mutant in a process of its own."""
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            budget = int(10 + 3 * sum(map(self.seconds.get, tests)))
            resource.setrlimit(resource.RLIMIT_CPU, (budget, budget))
            status = KILLED
            try:
                fresh = types.ModuleType(module.__name__)
                exec(compile(mutant, module.__file__, 'exec'), vars(fresh))
                transplant(module, fresh, module)
                if all(report.passed for test in tests for report in
                       runtestprotocol(test, log=False, nextitem=session)):
                    status = SURVIVED
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(
            os.waitpid(child, 0)[1]) == SURVIVED


def changes(source, mutant):
    """Returns the lines that a mutant has otherwise."""
    return [line for line in difflib.unified_diff(
        source.splitlines(), mutant.splitlines(), n=0, lineterm='')
        if line[:2] not in ('--', '++', '@@')]


def main():
    """Reads the command line and hands the rest of it to pytest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=150)
    parser.add_argument('--slowest', type=float, default=3.0)
    parser.add_argument('--examples', type=int, default=12)
    parser.add_argument('modules', help='names with commas between')
    options, rest = parser.parse_known_args()
    return pytest.main(['-q', '-s', '-p', 'no:cacheprovider', *rest],
                       plugins=[Plugin(options)])


if __name__ == '__main__':
    sys.exit(main())
