"""Pools from descriptions: a dict, or a JSON file with the same in it.

All keys are optional but the names.

    {"name": "",                    of the pool; a fresh one has none
     "password": "password",        of root
     "xapi_version": "26.1",        of the toolstack: decides checksums, task labels, error shapes
     "product": "XCP-ng",           and "product_version": "8.3.0"
     "hosts": ["host1", {"name": "host2", "address": "10.0.0.2"}],      the first is the master
     "networks": ["Pool-wide network associated with eth0"],
     "srs": [{"name": "Local storage", "type": "lvm", "size": "1 TiB", "shared": false,
              "host": "host1", "content": "user", "isos": ["debian-12.iso"]}],
                                    the first is the default SR; one that is not shared is of a host
     "vms": [{"name": "web", "uuid": "...", "description": "", "power_state": "Halted",
              "template": false, "tags": ["prod"], "other_config": {"key": "value"},
              "blocked_operations": {"snapshot": "why"}, "ha_restart_priority": "restart",
              "memory": "256 MiB", "vcpus": 1, "host": "host1", "firmware": "bios",
              "domain_type": "hvm",                 or pv
              "vtpm": true, "usb": true,            a passed-through USB device
              "disks": ["8 MiB", {"size": "8 MiB", "name": "web 0", "description": "", "sr": "...",
                        "fill": 0.5, "seed": "...", "device": "0", "bootable": true, "mode": "RW",
                        "owner": true, "on_boot": "persist", "sharable": false}],
              "cd": "debian-12.iso",                null: an empty drive; without the key: none
              "networks": ["..."],                  a VIF on each (default: one on the first)
              "ran": true,                          its disks have device names, as after a start
              "snapshots": ["before the upgrade"],  oldest first
              "count": 1}],                         so many of them; {n} in the name is the number
     "latency": 0.002,              seconds that every call takes
     "faults": [{"at": "vm-export",             an xe verb or an API method; see faults.py
                 "nth": 2, "times": 1, "do": "refuse",
                 "error": ["VDI_IO_ERROR", "Device I/O errors"], "after": 100000,
                 "seconds": 0.5, "rate": 100000, "stdout": "", "stderr": "", "exit": 0}]}

Sizes are bytes, or texts such as "8 MiB"; an SR without one is endless. In SRs of the kinds `lvm`,
`lvmoiscsi` and `lvmohba` a disk and each of its snapshots takes its whole size at once. `fill` is
the part of a disk that holds data (noise, the same for the same seed); what is left is zeros.
A key that there is not, and a value that makes no sense, is refused with its place.
"""

import contextlib
import json
import os
import re

from .archive import Image
from .database import NULL
from .model import LARGEST_VHD, Pool, XapiError, devices, new_mac, stamp

UNITS = {'': 1, 'B': 1, 'KiB': 1 << 10, 'MiB': 1 << 20, 'GiB': 1 << 30, 'TiB': 1 << 40}
NETWORK = 'Pool-wide network associated with eth0'

KEYS = {thing: words.split() for thing, words in {
    'pool': 'name password xapi_version product product_version hosts networks srs vms latency'
            ' faults',
    'fault': 'at do nth times error stdout stderr exit after seconds rate',
    'host': 'name address',
    'SR': 'name type size shared host content isos',
    'VM': 'name uuid description power_state template tags other_config blocked_operations'
          ' ha_restart_priority memory vcpus host firmware domain_type vtpm usb disks cd networks'
          ' ran snapshots count',
    'disk': 'size name description sr fill seed device bootable mode owner on_boot sharable',
}.items()}
ONE_OF = {'power_state': ('Halted', 'Running', 'Paused', 'Suspended'), 'firmware': ('bios', 'uefi'),
          'domain_type': ('hvm', 'pv'), 'mode': ('RO', 'RW'), 'on_boot': ('persist', 'reset')}

DEMO = {
    'name': 'demo pool',
    'hosts': ['xen1'],
    'networks': [NETWORK, 'backend'],
    'srs': [{'name': 'Local storage', 'type': 'ext', 'size': '100 GiB'},
            {'name': 'NFS storage', 'type': 'nfs', 'size': '500 GiB', 'shared': True},
            {'name': 'ISO library', 'content': 'iso', 'shared': True,
             'isos': ['debian-12.iso', 'rescue.iso']}],
    'vms': [
        {'name': 'web', 'description': 'the web server', 'power_state': 'Running',
         'tags': ['prod'], 'disks': ['8 MiB'], 'snapshots': ['before the upgrade']},
        {'name': 'db', 'description': 'PostgreSQL', 'power_state': 'Running', 'tags': ['prod'],
         'disks': ['6 MiB', {'size': '12 MiB', 'name': 'db data', 'sr': 'NFS storage'},
                   {'size': '4 MiB', 'name': 'db log', 'fill': 0.25}],
         'networks': [NETWORK, 'backend']},
        {'name': 'old-intranet', 'description': 'halted since 2019', 'disks': ['5 MiB']},
        {'name': 'desktop', 'disks': ['4 MiB'], 'cd': None, 'ran': True},
        {'name': 'mail server', 'power_state': 'Running', 'disks': ['6 MiB'],
         'cd': 'debian-12.iso'},
        {'name': 'büro', 'description': 'größer als gedacht', 'disks': ['4 MiB'], 'ran': True},
        {'name': 'web', 'template': True, 'description': 'what web was made from',
         'disks': ['4 MiB']},
    ],
}


def odd_names():
    """Names of VMs that scripts stumble over; each is a legal name for xapi."""
    return ['a,b', 'x$(id)', 'it\'s "x"', '..', '.', 'a/b', '-dash', ' lead', 'trail ', '名前',
            'n' * 255, 'new\nline']


def odd():
    return {'vms': [{'name': name, 'disks': ['1 MiB'], 'ran': True} for name in odd_names()]}


class DescriptionError(ValueError):
    """A description that cannot be understood; the message says where."""


def load(source=None):
    if source is None or isinstance(source, dict):
        return from_description(source or {})
    path = os.fspath(source)
    try:
        with open(path, encoding='utf-8') as file:
            description = json.load(file)
    except OSError as error:
        raise DescriptionError('%s: %s' % (path, error.strerror))
    except UnicodeDecodeError as error:
        raise DescriptionError('%s: not UTF-8: %s' % (path, error))
    except json.JSONDecodeError as error:
        raise DescriptionError('%s, line %d: %s' % (path, error.lineno, error.msg))
    try:
        return from_description(description)
    except DescriptionError as error:
        raise DescriptionError('%s: %s' % (path, error))


def from_description(description):
    with _place('the description'):
        _check(description, 'pool')
        builder = _Builder(description)
        builder.build()
    builder.pool.journal.clear()
    builder.pool.faults.latency = description.get('latency', 0)
    for number, fault in enumerate(description.get('faults', [])):
        with _place('faults[%d]' % number):
            _check(fault, 'fault')
            builder.pool.faults.add(fault['at'], **{
                key: value for key, value in fault.items() if key != 'at'})
    return builder.pool


@contextlib.contextmanager
def _place(where):
    """What goes wrong in here is this part of the description's fault."""
    try:
        yield
    except DescriptionError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, XapiError) as error:
        raise DescriptionError('%s: %s: %s' % (
            where, type(error).__name__, ' '.join(map(str, error.args))))


def _check(thing, kind):
    """Raise ValueError for an object that lacks a name, has an unknown key, or in the place of a
    word another one than there is."""
    if kind in ('SR', 'VM') and not isinstance(thing['name'], str):
        raise ValueError('name: a text is needed')
    for key, value in thing.items():
        if key not in KEYS[kind]:
            raise ValueError('unknown key %r (known: %s)' % (key, ' '.join(KEYS[kind])))
        if value not in ONE_OF.get(key, [value]):
            raise ValueError('%s: one of %s' % (key, ' '.join(ONE_OF[key])))


def size_of(value):
    match = re.match(r'(\d+) *(\w*)$', str(value))
    if not match or match.group(2) not in UNITS:
        raise ValueError('not a size: %r' % (value,))
    return int(match.group(1)) * UNITS[match.group(2)]


class _Builder:
    """Makes the records of a description, one kind after the other."""

    def __init__(self, description):
        self.get = description.get
        self.pool = Pool(self.get('xapi_version', '26.1'), self.get('password', 'password'))
        self.hosts, self.networks, self.srs, self.isos = {}, {}, {}, {}

    def build(self):
        """Make everything: the pool first, its VMs last."""
        self.pool.new('user')
        for number, host in enumerate(self.get('hosts', ['host1']) or ['host1'], 1):
            self.add_host(number, host if isinstance(host, dict) else {'name': host})
        for name in self.get('networks', [NETWORK]):
            self.networks.setdefault(name, self.pool.new(
                'network', name_label=name, bridge='xenbr%d' % len(self.networks)))
        default = [{'name': 'Local storage', 'type': 'ext', 'size': '1 TiB'},
                   {'name': 'ISO library', 'content': 'iso', 'shared': True}]
        for number, sr in enumerate(self.get('srs', default)):
            with _place('srs[%d]' % number):
                _check(sr, 'SR')
                self.add_sr(sr)
        disks = [sr for sr in self.srs.values()
                 if self.pool.tables['SR'][sr]['content_type'] != 'iso']
        self.default_sr = (disks + [NULL])[0]
        self.pool.new('pool', name_label=self.get('name', ''), default_SR=self.default_sr,
                      master=next(iter(self.hosts.values())))
        for name in ('Debian Bookworm 12', 'Windows Server 2022 (64-bit)', 'Other install media'):
            self.pool.add_vm(name_label=name, is_a_template=True, is_default_template=True,
                             other_config={'default_template': 'true', 'install-methods': 'cdrom'})
        for host in self.hosts:
            self.add_control_domain(host)
        for number, vm in enumerate(self.get('vms', [])):
            with _place('vms[%d]' % number):
                self.add_vms(vm)

    def add_host(self, number, host):
        _check(host, 'host')
        name, version = host['name'], self.get('product_version', '8.3.0')
        metrics = self.pool.new('host_metrics', memory_free='549755813888', last_updated=stamp())
        self.hosts[name] = self.pool.new(
            'host', name_label=name, hostname=name, name_description='Default install',
            metrics=metrics, address=host.get('address', '10.0.0.%d' % number),
            API_version_minor='21' if self.pool.version[0] > 1 else '15',
            software_version={
                'product_version': version, 'product_version_text': version,
                'product_brand': self.get('product', 'XCP-ng'), 'build_number': 'cloud',
                'hostname': 'localhost', 'date': '2026-03-02', 'platform_name': 'XCP',
                'platform_version': '3.4.0', 'network_backend': 'openvswitch',
                'xapi': self.pool.xapi_version, 'xapi_build': self.pool.xapi_version + '.0',
                'xen': '4.17.6', 'linux': '4.19.0+1', 'db_schema': '5.786'})

    def add_control_domain(self, host):
        pool, ref = self.pool, self.hosts[host]
        memory = str(2 << 30)
        dom0 = pool.add_vm(
            name_label='Control domain on host: ' + host, is_control_domain=True, domid='0',
            name_description='The domain which manages physical devices and manages other domains',
            power_state='Running', resident_on=ref, affinity=ref, domain_type='pv', domarch='x64',
            HVM_boot_policy='', HVM_boot_params={}, platform={}, has_vendor_device=False,
            hardware_platform_version='0', generation_id='', VCPUs_max='4', VCPUs_at_startup='4',
            memory_static_max=memory, memory_static_min=memory, memory_dynamic_max=memory,
            memory_dynamic_min=memory, memory_target=memory, actions_after_shutdown='destroy',
            actions_after_reboot='destroy', actions_after_crash='destroy',
            other_config={'is_system_domain': 'true'})
        pool.put('host', ref, control_domain=dom0)
        pool.new('console', VM=dom0, protocol='vt100')

    def add_sr(self, sr):
        name, content = sr['name'], sr.get('content', 'user')
        iso = content == 'iso'
        ref = self.pool.new(
            'SR', name_label=name, content_type=content, shared=sr.get('shared', False),
            type=sr.get('type', 'iso' if iso else 'ext'),
            physical_size=str(size_of(sr.get('size', 0))))
        kinds = {record['type'] for record in self.pool.tables['SM'].values()}
        kind = self.pool.tables['SR'][ref]['type']
        if kind not in kinds:
            self.pool.new('SM', name_label=kind, type=kind,
                          driver_filename='/opt/xensource/sm/%sSR' % kind)
        hosts = [sr.get('host', next(iter(self.hosts)))]
        for host in self.hosts if sr.get('shared') else hosts:
            self.pool.new('PBD', SR=ref, host=self.hosts[host],
                          device_config={'location': '/srv/' + name})
        self.srs[name] = ref
        for image in sr.get('isos', []):
            self.isos[image] = self.pool.make_vdi(ref, 1 << 20, name_label=image, read_only=True)
            self.pool.put('VDI', self.isos[image], location=image)

    def add_vms(self, vm):
        _check(vm, 'VM')
        for number in range(vm.get('count', 1)):
            if 'uuid' in vm and vm['uuid'] in {
                    record['uuid'] for record in self.pool.tables['VM'].values()}:
                raise ValueError('another VM has this uuid')
            self.add_vm(vm, vm['name'].replace('{n}', str(number)) if 'count' in vm else vm['name'])

    def add_vm(self, vm, name):
        pool = self.pool
        state = vm.get('power_state', 'Halted')
        ref = pool.add_vm(**self.vm_fields(vm, name))
        for number, disk in enumerate(vm.get('disks', [])):
            self.add_disk(ref, name, number, disk if isinstance(disk, dict) else {'size': disk})
        if 'cd' in vm:
            image = self.isos[vm['cd']] if vm['cd'] else NULL
            pool.new('VBD', VM=ref, VDI=image, empty=image == NULL, type='CD', mode='RO',
                     userdevice=self.cd_device(ref), allowed_operations=['attach', 'insert'])
        for number, network in enumerate(vm.get('networks', list(self.networks)[:1])):
            pool.new('VIF', VM=ref, device=str(number), MAC=new_mac(), MAC_autogenerated=True,
                     network=self.networks[network])
        if vm.get('vtpm'):
            pool.new('VTPM', VM=ref)
        if vm.get('usb'):
            pool.put('VM', ref, VUSBs=[pool.new_ref('VUSB', {})])
        for label in vm.get('snapshots', []):
            pool.call('VM.snapshot', ref, label)
        self.bring_into(ref, state, vm.get('ran') or state != 'Halted',
                        self.hosts[vm['host']] if 'host' in vm else None)

    def cd_device(self, vm):
        """Device 3, as XenCenter does, or the first free one."""
        return self.pool.free_device(vm, ['3'] + [str(each) for each in range(255)])

    def bring_into(self, ref, state, ran, host):
        pool = self.pool
        if ran:
            pool.power_on(ref, host=host)
        if state in ('Running', 'Suspended'):
            pool.put('VM', ref, guest_metrics=pool.new('VM_guest_metrics', last_updated=stamp()))
        if state == 'Paused':
            pool.call('VM.pause', ref)
        elif state == 'Suspended':
            pool.call('VM.suspend', ref)
        elif state == 'Halted' and ran:
            pool.call('VM.hard_shutdown', ref)

    @staticmethod
    def vm_fields(vm, name):
        memory = str(size_of(vm.get('memory', '256 MiB')))
        uefi = vm.get('firmware', 'bios') == 'uefi'
        fields = dict(
            name_label=name, name_description=vm.get('description', ''),
            is_a_template=vm.get('template', False), tags=list(vm.get('tags', [])),
            other_config=dict(vm.get('other_config', {})),
            blocked_operations=dict(vm.get('blocked_operations', {})),
            ha_restart_priority=vm.get('ha_restart_priority', ''),
            ha_always_run=vm.get('ha_restart_priority', '') == 'restart',
            memory_static_max=memory, memory_static_min=memory, memory_dynamic_max=memory,
            memory_dynamic_min=memory, memory_target=memory, VCPUs_max=str(vm.get('vcpus', 1)),
            VCPUs_at_startup=str(vm.get('vcpus', 1)))
        if 'uuid' in vm:
            fields['uuid'] = vm['uuid']
        if uefi:
            fields.update(HVM_boot_params={'order': 'cd', 'firmware': 'uefi'},
                          NVRAM={'EFI-variables': 'QUFBQQ=='})
        if vm.get('domain_type') == 'pv':
            fields.update(domain_type='pv', HVM_boot_policy='', HVM_boot_params={})
        return fields

    def add_disk(self, vm, name, number, disk):
        _check(disk, 'disk')
        size, fill = size_of(disk.get('size', '8 MiB')), disk.get('fill', 0.5)
        pool, device = self.pool, str(disk.get('device', number))
        sr = self.srs[disk['sr']] if 'sr' in disk else self.default_sr
        if pool.record('SR', sr)['content_type'] == 'iso':
            raise ValueError('%r is for ISO images' % disk['sr'])
        if not devices(device) or not pool.taken_devices(vm).isdisjoint(devices(device)):
            raise ValueError('disks[%d]: no device, or another disk is %r' % (number, device))
        label = '%s %d' % (name, number)
        content = Image.sample(size, disk.get('seed', label), fill) if fill else Image(size)
        vdi = pool.make_vdi(
            sr, size, content, used=int(size * fill),
            name_label=disk.get('name', label), name_description=disk.get('description', ''),
            on_boot=disk.get('on_boot', 'persist'), sharable=disk.get('sharable', False),
            sm_config={'image-format': 'qcow2'} if size > LARGEST_VHD else {})
        pool.new('VBD', VM=vm, VDI=vdi, userdevice=device,
                 bootable=disk.get('bootable', number == 0), mode=disk.get('mode', 'RW'),
                 other_config={'owner': ''} if disk.get('owner', True) else {})
