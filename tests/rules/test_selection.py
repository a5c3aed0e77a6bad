"""Selection: which VMs a config's lines choose, compared with what 3.25 chose."""

import json
import os
import unittest

import VmBackup
from tests import DATA
from tests.simpool import pools


def vms(*names):
    return [VmBackup.Vm('OpaqueRef:%d' % number, 'uuid-%d' % number, name, {})
            for number, name in enumerate(names)]


def rules(*lines):
    return VmBackup.parse_config(lines, 'test.cfg').rules


def select(lines, *names):
    return VmBackup.select(rules(*lines), vms(*names), 4)


def shown(plan, method):
    return sorted([job.shown for job in plan.jobs if job.method == method] +
                  [rule.text for rule in plan.invalid if rule.method == method])


def failures(plan):
    return [(failure.name, failure.status) for failure in plan.failures]


class RecordedSelections(unittest.TestCase):
    """42 configurations and what 3.25 selected for them."""

    def test_every_recorded_case_selects_the_same_vms(self):
        with open(os.path.join(DATA, 'selection-3.25.json'), encoding='utf-8') as stream:
            recorded = json.load(stream)
        self.assertEqual(42, len(recorded['cases']))
        for case in recorded['cases']:
            with self.subTest(case['name']):
                config = VmBackup.parse_config(case['config'], 'test.cfg')
                if case['exclude'] is None:            # 3.25 stopped before it selected
                    self.assertTrue(config.unexpected)
                    continue
                self.assertFalse(config.unexpected)
                plan = VmBackup.select(config.rules, vms(*recorded['vms']),
                                       config.settings.max_backups)
                self.assertEqual(case['exclude'], sorted(plan.excluded))
                self.assertEqual(case['vdi_export'], shown(plan, 'vdi-export'))
                self.assertEqual(case['vm_export'], shown(plan, 'vm-export'))
                stopped = [text for text in case['messages'] if text.startswith('ERROR')]
                self.assertEqual(bool(stopped), bool(plan.errors or config.errors))


UUIDS = ['%08x-0000-4000-8000-000000000000' % (number * 0x11111111) for number in range(1, 5)]


def pool(*names, **tags):
    """VMs of these names, with uuids from UUIDS and tags by name."""
    return [VmBackup.Vm('OpaqueRef:%d' % number, UUIDS[number], name,
                        {'tags': tags.get(name, [])}) for number, name in enumerate(names)]


class Exact(unittest.TestCase):
    """tag: and uuid:, which choose VMs by themselves."""

    def chosen(self, vms, *lines, **more):
        return VmBackup.select(rules(*lines), vms, 4, **more)

    def test_a_tag_chooses_all_that_have_it_and_nothing_else(self):
        vms = pool('web', 'db', 'app', web=['nightly', 'x'], db=['nightly-not'], app=['nightly'])
        plan = self.chosen(vms, 'vm-export=tag:nightly:3', 'exclude=tag:x')
        self.assertEqual(['app:3'], shown(plan, 'vm-export'))
        self.assertEqual((['web'], ['db']), (plan.excluded, plan.uncovered))

    def test_the_last_number_is_the_retention_where_something_remains(self):
        for text, parts in (
                ('tag:2', ('tag', '2', None)), ('tag:daily:3', ('tag', 'daily', 3)),
                ('tag::3', ('tag', ':3', None)), (':3', ('name', '', 3)),
                ('tag:a:b:7', ('tag', 'a:b', 7)), ('tag: a b : 7', ('tag', 'a b ', 7)),
                ('uuid:%s:9' % UUIDS[0], ('uuid', UUIDS[0], 9)),
                ('uuid:%s' % UUIDS[0], ('uuid', UUIDS[0], None)),
                ('tags:3', ('name', 'tags', 3))):
            rule = VmBackup.parse_rule('vm-export', text, '')
            self.assertEqual(parts, (rule.kind, rule.word, rule.keep), text)

    def test_a_kind_without_a_word_is_an_error(self):
        for line in ('exclude=tag:', 'vm-export=uuid: ', 'vdi-export=tag:'):
            self.assertTrue(self.chosen(pool('web'), 'vm-export=web', line).errors, line)

    def test_a_uuid_may_be_written_in_capitals(self):
        vms = [VmBackup.Vm('OpaqueRef:1', 'abcdef00-0000-4000-8000-000000000000', 'web', {})]
        self.assertEqual(['web'], shown(self.chosen(
            vms, 'vm-export=uuid:ABCDEF00-0000-4000-8000-000000000000'), 'vm-export'))

    def test_two_of_one_name_are_told_apart(self):
        vms = pool('twin', 'web', 'twin', 'twin')
        for lines, wanted in (
                (['vm-export=uuid:' + UUIDS[0], 'vm-export=uuid:%s:2' % UUIDS[2]],
                 ['twin~11111111', 'twin~33333333:2']),
                (['vm-export=twin', 'exclude=uuid:' + UUIDS[0], 'exclude=uuid:' + UUIDS[3]],
                 ['twin~33333333']),
                (['vm-export=.*', 'vdi-export=uuid:' + UUIDS[0], 'exclude=uuid:' + UUIDS[2]],
                 ['twin~44444444', 'web'])):
            plan = self.chosen(vms, *lines)
            self.assertEqual((wanted, []), (shown(plan, 'vm-export'), plan.failures))
        for lines in (['vm-export=.*', 'vm-export=uuid:' + UUIDS[0]],
                      ['vm-export=uuid:' + UUIDS[0], 'vm-export=.*']):
            plan = self.chosen(vms, *lines)
            self.assertEqual(['twin~11111111', 'twin~33333333', 'twin~44444444', 'web'],
                             shown(plan, 'vm-export'))
            self.assertEqual(1, len(plan.warnings))
        plan = self.chosen(vms[:3], 'vm-export=twin', 'vm-export=uuid:' + UUIDS[2])
        self.assertEqual((['twin~11111111', 'twin~33333333'], []),
                         (shown(plan, 'vm-export'), plan.warnings))

    def test_tags_of_xen_orchestra_count_where_they_are_honoured(self):
        vms = pool('web', 'db', 'app', web=['xo:no-bak'], db=['xo:no-bak=why'],
                   app=['xo:no-bakery'])
        self.assertEqual(3, len(self.chosen(vms, 'vm-export=.*').jobs))
        plan = self.chosen(vms, 'vm-export=.*', honour_nobak=True)
        self.assertEqual((['app'], []), (shown(plan, 'vm-export'), plan.failures))
        plan = self.chosen(vms, 'vm-export=app', 'vm-export=web', honour_nobak=True)
        self.assertEqual(['NOBAK-TAG'], [failure.status for failure in plan.failures])

    def test_a_vm_that_is_named_as_its_tag_is_not_chosen_by_its_name(self):
        plan = self.chosen(pool('web', 'db', web=['web', 'xo:no-bak'], db=['web']),
                           'vm-export=tag:web', honour_nobak=True)
        self.assertEqual((['db'], []), (shown(plan, 'vm-export'), plan.failures))
        plan = self.chosen(pool('web', 'db', web=['web'], db=['web']), 'vm-export=tag:web',
                           'exclude=web')
        self.assertEqual((['db'], []), (shown(plan, 'vm-export'), plan.messages))


class Patterns(unittest.TestCase):
    def test_a_line_means_a_vm_of_any_name_or_a_regex_with_a_retention_after_its_last_colon(self):
        for text, name, keep in (
                ('a(b', 'a(b', 4), ('x$(id)', 'x$(id)', 4), ('it\'s "x"', 'it\'s "x"', 4),
                ('C++ build [1]', 'C++ build [1]', 4), ('a|b', 'a|b', 4), ('*', '*', 4),
                ('名前', '名前', 4), ('a:b:3', 'a:b', 3), ('web:2:3', 'web:2', 3),
                ('web: 3', 'web', 3), ('web:0', 'web', 4)):
            with self.subTest(text):
                plan = select(['vm-export=' + text], name, '名前2', 'other')
                self.assertEqual(([(name, keep)], []), (
                    [(job.vm.name, job.keep) for job in plan.jobs], plan.errors))

    def test_each_odd_name_that_a_line_can_say_can_be_selected_by_itself(self):
        names = pools.odd_names()
        for name in names:
            if name.strip() == name and '\n' not in name:
                with self.subTest(name):               # . and .. are regexes of any letters
                    text = '\\.{%d}$' % len(name) if name in ('.', '..') else name
                    plan = select(['vm-export=' + text], *names)
                    self.assertEqual(([name], []), ([job.vm.name for job in plan.jobs],
                                                    plan.errors))

    def test_a_newline_in_a_name_is_not_the_end_of_a_simple_name(self):
        self.assertEqual([], select(['vm-export=web'], 'web\n').jobs)

    def test_an_empty_exclude_excludes_nothing(self):
        self.assertEqual(2, len(select(['exclude=', 'vm-export=.*'], 'web', 'db').jobs))

    def test_a_name_of_a_megabyte_does_not_keep_a_regex_busy_for_ever(self):
        plan = select(['vm-export=.*a.*b', 'vm-export=web'], 'a' * 10**6, 'web')
        self.assertEqual(['web'], [job.vm.name for job in plan.jobs])

    def test_catastrophic_numbers_in_a_regex_are_an_invalid_regex(self):
        plan = select(['vm-export=a{99999999999999999999}', 'vm-export=web'], 'web')
        self.assertIn('***ERROR - invalid regex: vm-export=a{99999999999999999999} '
                      '(test.cfg line 1)', plan.messages)
        self.assertTrue(plan.errors)


class Verdicts(unittest.TestCase):
    def test_a_missing_literal_name_is_one_error_and_others_are_backed_up(self):
        for lines in (['vm-export=gone'], ['vm-export=gone', 'vdi-export=gone:2']):
            plan = select(lines + ['vm-export=web'], 'web')
            self.assertEqual(['web'], [job.vm.name for job in plan.jobs])
            self.assertEqual([('gone', 'VM-NOT-FOUND')], failures(plan))
            self.assertEqual([], plan.errors)

    def test_a_missing_literal_name_that_is_excluded_is_a_note(self):
        for exclude in ('exclude=gone', 'exclude=go.*'):
            plan = select(['vm-export=gone', exclude, 'vm-export=web', 'exclude=a(b'], 'web', 'a(b')
            self.assertEqual([], plan.failures)
            self.assertFalse(plan.warnings)
            self.assertIn('***NOTE - vm not found: vm-export=gone (test.cfg line 1)', plan.messages)

    def test_an_exclude_by_name_that_is_no_regex_does_not_keep_others_from_their_backup(self):
        plan = select(['vm-export=web', 'vm-export=gone', 'exclude=foo('], 'web', 'foo(')
        self.assertEqual(['web'], [job.vm.name for job in plan.jobs])
        self.assertEqual([('gone', 'VM-NOT-FOUND')], failures(plan))
        self.assertEqual((['foo('], []), (plan.excluded, plan.errors))

    def test_a_line_with_more_than_a_name_is_told_what_to_write_and_others_are_backed_up(self):
        names = ('web', 'Sun UTM', 'a,b', 'it\'s "x"', '"q"', 'x # y', 'nb\xa0sp', 'c++')
        pool = vms(*names)
        pool[0].record['tags'] = ['web']
        plain = ' (in plain letters and blanks)'
        for line, written in (
                ('"web"', 'web'), ('c++  # x', 'c++'), ("'Sun UTM' ; the mail", 'Sun UTM'),
                ('web  # the site, and more', 'web'), ('"web":3', 'web:3'),
                ('web:3  # x', 'web:3'), ('"web:3"', 'web:3'), ('"w.*"', 'w.*'),
                ('"tag:web"', 'tag:web'), ('tag:web # x', 'tag:web'),
                ('Sun\xa0UTM', 'Sun UTM' + plain), ('Sun\tUTM', 'Sun UTM' + plain),
                ('we\u200bb\xad', 'web' + plain), ('"Sun\xa0UTM" # x', 'Sun UTM' + plain),
                ('web, Sun UTM', 'web and, in a line of its own, {}Sun UTM'),
                ('web:3,"gone":2', 'web:3 and, in a line of its own, {}gone:2'),
                ('"web", "gone"  # x', 'web and, in a line of its own, {}gone')):
            for method in ('vm-export=', 'vdi-export=', 'exclude='):
                if method == 'exclude=' and ':3' in line:      # which keeps no number of backups
                    continue
                with self.subTest(method + line):
                    plan = VmBackup.select(rules(method + line, 'vm-export=a,b'), pool, 4)
                    self.assertIn('***%s - vm not found: %s (test.cfg line 1): write %s' % (
                        'WARNING' if method == 'exclude=' else 'ERROR', method + line,
                        method + written.format(method)), plan.messages)
                    self.assertEqual((['a,b'], []), (shown(plan, 'vm-export'), plan.errors))
                    self.assertEqual(method != 'exclude=', bool(plan.failures))
        for name in names:                             # what is written is tried first
            plan = select(['vm-export=' + name], *names)
            self.assertEqual(([name], []), (shown(plan, 'vm-export'), plan.errors))
        for line in ('"gone"', 'gone # web', '"web', 'web"', '', '""', '# web', ',', '"web" b'):
            plan = select(['vm-export=c++', 'vdi-export=' + line], *names)
            self.assertNotIn('write', ''.join(plan.messages), line)

    def test_a_vm_in_both_lists_is_a_note(self):
        note = '***NOTE - both vm-export and vdi-export (this counts): '
        for lines, named in ((['vm-export=.*', 'vdi-export=db'], 'db'),
                             (['vdi-export=.*', 'vm-export=db', 'vm-export=web'], 'db, web'),
                             (['vdi-export=.*', 'vm-export=web', 'exclude=web'], ''),
                             (['vdi-export=db', 'vm-export=web'], '')):
            plan = select(lines, 'db', 'web')
            self.assertEqual(([note + named] if named else [], []), (
                [text for text in plan.messages if 'both' in text], plan.warnings))

    def test_an_excluded_name_excludes_no_missing_tag_or_uuid(self):
        plan = select(['vm-export=uuid:' + UUIDS[0], 'vm-export=tag:devel', 'vm-export=web',
                       'exclude=.*[0-9]$', 'exclude=.*devel.*'], 'web')
        self.assertEqual(['uuid:' + UUIDS[0]], [failure.name for failure in plan.failures])
        self.assertTrue(plan.warnings)
        self.assertIn('***WARNING - vm not found: vm-export=tag:devel (test.cfg line 2)',
                      plan.messages)
        plan = select(['vm-export=tag:devel', 'vm-export=web', 'exclude=tag:devel'], 'web')
        self.assertFalse(plan.warnings)

    def test_a_regex_without_a_match_is_a_warning_and_an_exclude_without_one_a_note(self):
        plan = select(['vm-export=go.*', 'vm-export=web'], 'web')
        self.assertEqual((['vm not found: vm-export=go.* (test.cfg line 1)'], []),
                         (plan.warnings, plan.failures))
        plan = select(['exclude=gone', 'exclude=go.*', 'vm-export=web'], 'web')
        self.assertFalse(plan.warnings)
        self.assertEqual(['***NOTE - vm not found: exclude=gone (test.cfg line 1)',
                          '***NOTE - vm not found: exclude=go.* (test.cfg line 2)'],
                         list(plan.messages))

    def test_a_second_vm_of_the_name_stops_the_backup_of_none(self):
        plan = select(['vm-export=.*'], 'twin', 'web', 'twin')
        self.assertEqual(['twin', 'web', 'twin'], [job.vm.name for job in plan.jobs])
        self.assertEqual((['more than one vm with the name twin: all are backed up'], []),
                         (plan.warnings, plan.failures))

    def test_a_vm_called_like_a_line_does_not_take_the_place_of_the_vm_that_is_meant(self):
        for line, name in ('web:3', 'web:3'), ('we.*:3', 'we.*:3'):
            plan = select(['vm-export=' + line], 'web', name)
            self.assertIn(('web', 3), [(job.vm.name, job.keep) for job in plan.jobs])

    def test_a_regex_that_overrides_an_explicit_retention_is_pointed_out(self):
        plan = select(['vm-export=web:9', 'vm-export=we.*:2'], 'web')
        self.assertEqual(2, plan.jobs[0].keep)
        self.assertIn('***NOTE - a later regex overrides the retention of web:9', plan.messages)

    def test_a_retention_that_is_no_number_is_an_error(self):
        for line in ('vm-export=web:x', 'vm-export=we.*:x', 'vm-export=web:', 'vm-export=web: y',
                     'vm-export=we.*:+3', 'vm-export=gone:x'):
            plan = select([line, 'vm-export=web'], 'web')
            self.assertEqual(['ERROR: vm_max_backup is invalid - %s (test.cfg line 1)' %
                              line[10:]], list(plan.errors))

    def test_a_pattern_with_a_colon_is_no_retention_that_is_no_number(self):
        for line in ('vm-export=db:.+', 'vm-export=web:.', 'vm-export=a:b.example',
                     'vm-export=web:3.5', 'vm-export=gone: x y'):
            plan = select([line, 'vm-export=web'], 'web')
            found = 'vm not found: %s (test.cfg line 1)' % line
            self.assertEqual((['web'], [found], []), (
                shown(plan, 'vm-export'), plan.warnings, plan.errors))

    def test_the_run_follows_the_order_of_the_lines_with_disks_first(self):
        plan = select(['vm-export=b', 'vm-export=a', 'vdi-export=d'], 'a', 'b', 'd', 'new')
        self.assertEqual(['d', 'b', 'a'], [job.vm.name for job in plan.jobs])
        self.assertEqual(['new'], plan.uncovered)


class Excludes(unittest.TestCase):
    def test_one_may_stand_below_the_lines_that_it_concerns(self):
        for lines in (['vm-export=.*', 'exclude=we.*'], ['exclude=we.*', 'vm-export=.*']):
            plan = select(lines, 'web', 'db')
            self.assertEqual(['db'], [job.vm.name for job in plan.jobs])

    def test_one_of_a_vm_that_is_chosen_by_name_is_a_note(self):
        plan = select(['vm-export=db', 'vm-export=web', 'exclude=web'], 'web', 'db')
        self.assertEqual(['***NOTE - forcing exclude of: web'], list(plan.messages))
        self.assertEqual(([], [], []), (plan.warnings, plan.failures, plan.errors))

    def test_all_that_a_dot_catches_is_shown(self):
        names = ('db1.example.com', 'db1.example.com-replica', 'db1xexample.com')
        for line, excluded in (('exclude=db1.example.com', names),
                               (r'exclude=db1\.example\.com$', names[:1])):
            plan = select(['vm-export=.*', line], 'web', *names)
            self.assertEqual(excluded, tuple(sorted(plan.excluded)))
