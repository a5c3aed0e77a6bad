"""ova.xml, the description of a VM in an exported archive: building it, and reading it for import.

It is one XML-RPC value, without a prolog: the exporter's version, and the objects that make up the
VM, each with its complete record. References to exported objects become `Ref:n`, the numbers
running on from one export to the next.

Structure, order, blanked fields and spelling are those of archives made by xapi 25.6.0, the rest is
from xapi: ocaml/xapi/export.ml. Virtual GPUs and PVS proxies are not exported.
"""
import xmlrpc.client
from typing import Dict, List, NamedTuple
from xml.parsers.expat import ExpatError

from .archive import ArchiveError, import_error
from .database import EPOCH, NEWER, NULL, TEMPLATES
from .wire import to_xml

# In the order of the archive.
CLASSES = 'host VM VM_metrics VM_guest_metrics VBD VIF network VDI SR VTPM'.split()

# What is left out of the exported records, by class.
_BLANK = {
    'host': dict.fromkeys(
        'software_version other_config cpu_configuration logging license_params blobs'
        ' external_auth_configuration'.split(), {}),
    'VM': {'allowed_operations': [], 'current_operations': {}, 'consoles': [], 'crash_dumps': [],
           'blobs': {}, 'protection_policy': NULL, 'is_a_snapshot': False, 'snapshot_of': NULL,
           'snapshots': [], 'parent': NULL, 'snapshot_time': EPOCH,
           'transportable_snapshot_id': ''},
    'VBD': {'allowed_operations': [], 'current_operations': {}, 'metrics': NULL},
    'VIF': {'allowed_operations': [], 'current_operations': {}, 'metrics': NULL},
    'network': {'allowed_operations': [], 'current_operations': {}, 'PIFs': []},
    'VDI': {'allowed_operations': [], 'current_operations': {}, 'crash_dumps': []},
    'SR': {'allowed_operations': [], 'current_operations': {}, 'PBDs': []},
}
_BLANK['host'].update(dict.fromkeys(
    'capabilities supported_bootloaders PIFs crashdumps patches updates PBDs host_CPUs'
    ' ha_statefiles ha_network_peers tags PCIs PGPUs'.split(), []))
_BLANK['host'].update(sched_policy='', external_auth_type='', external_auth_service_name='',
                      metrics=NULL)

# Where the state of the VM is not to be kept.
_POWERED_OFF = {
    'VM': {'power_state': 'Halted', 'suspend_VDI': NULL},
    'VBD': {'currently_attached': False},
    'VIF': {'currently_attached': False},
}
# References that become Ref:n. All others stay as they are and mean nothing to the importer.
_REFERENCES = {
    'host': 'resident_VMs suspend_image_sr crash_dump_sr'.split(),
    'VM': 'VIFs VBDs VGPUs VTPMs resident_on affinity metrics guest_metrics suspend_VDI'.split(),
    'VBD': ['VM', 'VDI'],
    'VIF': ['network', 'VM'],
    'network': ['VIFs'],
    'VDI': ['SR', 'VBDs'],
    'SR': ['VDIs'],
}

VTPM_FIELDS = ('VM', 'uuid', 'is_unique', 'is_protected', 'content')


# Building

def version_info(host, xapi_version):
    software = host['software_version']
    info = {key: software.get(key, '') for key in
            ('hostname', 'date', 'product_version', 'product_brand', 'build_number')}
    info['xapi_major'], info['xapi_minor'] = xapi_version.split('.')[:2]
    info['export_vsn'] = '2'
    return info


def build(tables, vm_ref, numbering, version, preserve_power_state=False):
    """Describe a VM -> (ova.xml as bytes, {VDI ref: 'Ref:n'} of the disks to stream).

    tables     {class: {ref: record}}, from which nothing is changed
    numbering  called for each exported object, gives the next number
    version    the struct that version_info() makes
    Metadata-only exports preserve the power state; no snapshots go with them.
    """
    ids = _Numbering(tables, numbering, preserve_power_state)
    ids.add_vm(vm_ref)
    blanks = [_BLANK] + ([] if preserve_power_state else [_POWERED_OFF])
    objects = [{'class': cls, 'id': ids.known[ref],
                'snapshot': _exported(cls, tables[cls][ref], blanks, ids.known)}
               for cls in CLASSES for ref in _in_order(tables, cls) if ref in ids.known]
    text = to_xml({'version': version, 'objects': objects})
    return text.encode(), _streamed(tables, vm_ref, ids.known, preserve_power_state)


class _Numbering:
    """Walks from a VM to all that is exported with it; `known` is {ref: 'Ref:n'}."""

    def __init__(self, tables, numbering, preserve_power_state):
        self.tables = tables
        self.next_number = numbering
        self.preserve_power_state = preserve_power_state
        self.known = {}

    def add(self, ref):
        """Even the null reference gets a number when it comes up here, as by xapi."""
        if ref not in self.known:
            self.known[ref] = 'Ref:%d' % self.next_number()

    def add_vdi(self, ref):
        self.add(ref)
        self.add(self.tables['VDI'][ref]['SR'])

    def add_vm(self, ref):
        self.add(ref)
        vm = self.tables['VM'][ref]
        for vif in vm['VIFs']:
            self.add(vif)
            self.add(self.tables['VIF'][vif]['network'])
        for vbd in vm['VBDs']:
            self.add(vbd)
            if not self.tables['VBD'][vbd]['empty']:
                self.add_vdi(self.tables['VBD'][vbd]['VDI'])
        for vtpm in vm['VTPMs']:
            self.add(vtpm)
        if self.preserve_power_state and _suspended(self.tables, vm):
            self.add_vdi(vm['suspend_VDI'])
        for field in ('metrics', 'guest_metrics', 'resident_on', 'affinity'):
            self.add(vm[field])


def _suspended(tables, vm):
    return vm['power_state'] == 'Suspended' and vm['suspend_VDI'] in tables['VDI']


def _in_order(tables, cls):
    """Refs as xapi's database lists them: backwards (seen in archives made by xapi 25.6.0)."""
    return sorted(tables.get(cls, {}), reverse=True)


def _exported(cls, record, blanks, known):
    """The record as it is written, its fields in the order of their definition; of a vTPM those
    that an importer needs, under odd names (recorded from xapi 25.33.2 and 26.17.0)."""
    if cls == 'VTPM':
        found = dict(record, VM=known[record['VM']], content='')
        return {"vTPM'_" + name: found[name] for name in VTPM_FIELDS}
    names = list(TEMPLATES[cls]) + sorted(set(record) - set(TEMPLATES[cls]))
    exported = {name: record[name] for name in names if name in record}
    for field in _REFERENCES.get(cls, []):
        exported[field] = _looked_up(record[field], known)
    for blank in blanks:
        exported.update(blank.get(cls, {}))
    return exported


def _looked_up(value, known):
    if isinstance(value, list):
        return [known[ref] for ref in value if ref in known]
    return known.get(value, NULL)


def _streamed(tables, vm_ref, known, preserve_power_state):
    vm = tables['VM'][vm_ref]
    vbds = [tables['VBD'][ref] for ref in vm['VBDs']]
    refs = [vbd['VDI'] for vbd in vbds if vbd['type'] != 'CD' and not vbd['empty']]
    if preserve_power_state and _suspended(tables, vm):
        refs.insert(0, vm['suspend_VDI'])
    return {ref: known[ref] for ref in refs
            if tables['SR'][tables['VDI'][ref]['SR']]['content_type'] != 'iso'}


# Reading

class Object(NamedTuple):
    """One exported object; `id` is what other records call it."""
    cls: str
    id: str
    record: dict


class Ova(NamedTuple):
    version: Dict[str, str]
    objects: List[Object]

    def of(self, cls):
        return [thing for thing in self.objects if thing.cls == cls]

    def record(self, identity):
        for thing in self.objects:
            if thing.id == identity:
                return thing.record
        raise ArchiveError(['IMPORT_ERROR_FAILED_TO_FIND_OBJECT', identity])

    @property
    def disks(self):
        """{id: virtual size} of the disks whose content must be in the archive."""
        vbds = [vbd.record for vbd in self.of('VBD')]
        wanted = {vbd['VDI'] for vbd in vbds if vbd['type'] != 'CD'}
        wanted = {vdi for vdi in wanted
                  if self.record(self.record(vdi)['SR'])['content_type'] != 'iso'}
        return {vdi.id: int(vdi.record['virtual_size']) for vdi in self.of('VDI')
                if vdi.id in wanted or vdi.record['type'] == 'suspend'}


def parse(ova_xml):
    """Read ova.xml -> Ova, or raise ArchiveError as xapi's importer would.

    Every field of every record must be there (xapi: ocaml/idl/ocaml_backend/gen_api.ml; it lets
    pass those that have a default, this does not), and what a VM is made of must be found.
    """
    try:
        ((header,), _) = xmlrpc.client.loads(
            b'<params><param>' + ova_xml + b'</param></params>')
    except (ExpatError, ValueError, xmlrpc.client.ResponseError) as error:
        raise ArchiveError(['IMPORT_ERROR', 'ova.xml cannot be read: %s' % error])
    objects = [Object(entry['class'], entry['id'], entry['snapshot'])
               for entry in _field(header, 'objects')]
    ova = Ova(_field(header, 'version'), objects)
    for thing in objects:
        for name in TEMPLATES.get(thing.cls, []) if thing.cls != 'VTPM' else [
                "vTPM'_" + name for name in VTPM_FIELDS]:
            if name not in NEWER.get(thing.cls, ()):        # an older xapi wrote the archive
                _field(thing.record, name)
    for cls, field in (('VBD', 'VM'), ('VIF', 'VM'), ('VIF', 'network')):
        for thing in ova.of(cls):
            ova.record(thing.record[field])
    ova.disks                       # raises if one, or its SR, is missing
    return ova


def disk_sizes(ova_xml):
    """{directory: virtual size}: what read_xva() is to expect after this ova.xml."""
    return parse(ova_xml).disks


def _field(struct, name):
    if name not in struct:
        raise import_error('Failure("Field %s not present in rpc")' % name)
    return struct[name]


def compatible(version, xapi_version):
    """May xapi of this 'major.minor' import what an exporter of that `version` wrote?

    All refuse what is newer than they are, those of the 1.x series also another major.
    Source: xapi: ocaml/xapi/importexport.ml, assert_compatible, at 26.1 and 1.249.
    """
    theirs = int(version['xapi_major']), int(version['xapi_minor'])
    ours = tuple(int(part) for part in xapi_version.split('.')[:2])
    return theirs <= ours and (ours[0] > 1 or theirs[0] == ours[0])
