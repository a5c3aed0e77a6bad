"""What xe shows of a record: the fields of each class, in the order in which they are defined.

A line of a table is `name access [source]`. The access is what stands behind the name in a
listing, RO or RW with S for a set and M for a map, then H for a field that only filters and
selections know, D for a deprecated one, E for one that is too expensive for a list, I where a
filter ignores case. The source is the field of the API's record (the name with `_`, if none is
given); through a reference, `metrics.hvm`; `@` shows the uuid of what it refers to, `@name` its
name-label; `~kind` translates; `,` joins with commas instead of semicolons; `()` takes the values
of a map; `!word` computes.

Order, names and access are those recorded from xapi 25.6.0 (`vm-list params=all`), and for the
classes not recorded those of ocaml/xapi-cli-server/records.ml.
"""
from typing import Any, Callable, NamedTuple

NULL = 'OpaqueRef:NULL'
ABSENT = '<not in database>'
EXPENSIVE = '<expensive field>'
UNKNOWN = '<unknown>'

VM = '''
uuid RO
name-label RW
name-description RW
user-version RW
is-a-template RW
is-default-template RW
is-a-snapshot RO
snapshot-of RO snapshot_of@
snapshots RO snapshots@
snapshot-time RO
transportable-snapshot-id ROH
snapshot-info RO
parent RO parent@
children RO children@
is-control-domain RO
power-state RO power_state~lower
memory-actual RO metrics.memory_actual
memory-target ROE
memory-overhead RO
memory-static-max RW
memory-dynamic-max RW
memory-dynamic-min RW
memory-static-min RW
suspend-VDI-uuid RW suspend_VDI@
suspend-SR-uuid RW suspend_SR@
VCPUs-params MRW
VCPUs-max RW
VCPUs-at-startup RW
actions-after-shutdown RW actions_after_shutdown~action
actions-after-softreboot RW actions_after_softreboot~action
actions-after-reboot RW actions_after_reboot~action
actions-after-crash RW actions_after_crash~action
console-uuids SRO consoles@
hvm RO metrics.hvm
nomigrate ROH metrics.nomigrate
nested-virt ROH metrics.nested_virt
platform MRW
allowed-operations SRO
current-operations SRO current_operations()
blocked-operations MRW
allowed-VBD-devices SROE
allowed-VIF-devices SROE
possible-hosts ROE
domain-type RW domain_type~dashes
current-domain-type RO metrics.current_domain_type~dashes
HVM-boot-policy RW
HVM-boot-params MRW
HVM-shadow-multiplier RW
NVRAM MRWH
PV-kernel RW
PV-ramdisk RW
PV-args RW
PV-legacy-args RW
PV-bootloader RW
PV-bootloader-args RW
last-boot-CPU-flags RO
last-boot-record ROE last_booted_record
resident-on RO resident_on@
affinity RW affinity@
other-config MRW
dom-id RO domid
recommendations RO
xenstore-data MRW
ha-always-run RWD
ha-restart-priority RW
blobs RO
start-time RO metrics.start_time
install-time RO metrics.install_time
VCPUs-number RO metrics.VCPUs_number
VCPUs-utilisation MROE metrics.VCPUs_utilisation
os-version MRO guest_metrics.os_version
netbios-name MRO guest_metrics.netbios_name
PV-drivers-version MRO guest_metrics.PV_drivers_version
PV-drivers-up-to-date ROD guest_metrics.PV_drivers_up_to_date
memory MRO guest_metrics.memory
disks MRO guest_metrics.disks
VBDs SRO VBDs@
networks MRO guest_metrics.networks
PV-drivers-detected RO guest_metrics.PV_drivers_detected
other MRO guest_metrics.other
live RO guest_metrics.live
guest-metrics-last-updated RO guest_metrics.last_updated
can-use-hotplug-vbd RO guest_metrics.can_use_hotplug_vbd~tristate
can-use-hotplug-vif RO guest_metrics.can_use_hotplug_vif~tristate
cooperative RODE
tags SRW tags,
appliance RW appliance@
groups RW groups@
snapshot-schedule RW snapshot_schedule@
is-vmss-snapshot RO
start-delay RW
shutdown-delay RW
order RW
version RO
generation-id RO
hardware-platform-version RO
has-vendor-device RW
requires-reboot RO
reference-label RO
bios-strings MRO
pending-guidances RO
vtpms RO VTPMs@
pending-guidances-recommended RO
pending-guidances-full RO
'''

VDI = '''
uuid RO
name-label RW
name-description RW
is-a-snapshot RO
snapshot-of RO snapshot_of@
snapshots RO snapshots@
snapshot-time RO
allowed-operations SRO
current-operations SRO current_operations()
sr-uuid RO SR@
sr-name-label RO SR@name
vbd-uuids SRO VBDs@
crashdump-uuids SRO crash_dumps@
virtual-size RO
physical-utilisation RO
location RO
type RO type~vdi
sharable RO
read-only RO
storage-lock RO
managed RO
parent ROD parent@
missing RO
is-tools-iso RO
other-config MRW
xenstore-data MRO
sm-config MRO
on-boot RW
allow-caching RW
metadata-latest RO
metadata-of-pool RO metadata_of_pool@
tags SRW tags,
cbt-enabled RO
'''

VBD = '''
uuid RO
vm-uuid RO VM@
vm-name-label RO VM@name
vdi-uuid RO VDI@
vdi-name-label RO !disk_name
allowed-operations SRO
current-operations SRO current_operations()
empty RO
device RO
userdevice RW
bootable RW
mode RW
type RW
unpluggable RW
currently-attached RO
attachable ROE
storage-lock RO
status-code RO
status-detail RO
qos_algorithm_type RW
qos_algorithm_params MRW
qos_supported_algorithms SRO
other-config MRW
io_read_kbs ROE
io_write_kbs ROE
'''

VIF = '''
uuid RO
vm-uuid RO VM@
vm-name-label RO VM@name
allowed-operations SRO
current-operations SRO current_operations()
device RO
MAC ROI
MAC-autogenerated RO
MTU RO
currently-attached RO
qos_algorithm_type RW
qos_algorithm_params MRW
qos_supported_algorithms SRO
other-config MRW
network-uuid RO network@
network-name-label RO network@name
io_read_kbs ROE
io_write_kbs ROE
locking-mode RW
ipv4-allowed SRW
ipv6-allowed SRW
ipv4-configuration-mode RO
ipv4-addresses RO
ipv4-gateway RO
ipv6-configuration-mode RO
ipv6-addresses RO
ipv6-gateway RO
'''

SR = '''
uuid RO
name-label RW
name-description RW
host RO !only_host
allowed-operations SRO allowed_operations~sr
current-operations SRO current_operations()
VDIs SRO VDIs@
PBDs SRO PBDs@
virtual-allocation RO
physical-utilisation RO
physical-size RO
type RO
content-type RO
shared RW
introduced-by RO introduced_by@
is-tools-sr RO
other-config MRW
sm-config MRO
blobs RO
local-cache-enabled RO
tags SRW tags,
clustered RO
'''

PBD = '''
uuid RO
host ROD host@
host-uuid RO host@
host-name-label RO host@name
sr-uuid RO SR@
sr-name-label RO SR@name
device-config MRO
currently-attached RO
other-config MRW
'''

NETWORK = '''
uuid RO
name-label RW
name-description RW
VIF-uuids SRO VIFs@
PIF-uuids SRO PIFs@
MTU RW
bridge RO
managed RO
other-config MRW
blobs RO
tags SRW tags,
default-locking-mode RW
purpose SRW purpose,
'''

HOST = '''
uuid RO
name-label RW
name-description RW
allowed-operations SRO
current-operations SRO current_operations()
enabled RO
display RO
API-version-major RO
API-version-minor RO
API-version-vendor RO
API-version-vendor-implementation MRO
logging MRW
suspend-image-sr-uuid RW suspend_image_sr@
crash-dump-sr-uuid RW crash_dump_sr@
software-version MRO
capabilities SRO
other-config MRW
cpu_info MRO
chipset-info MRO
hostname RO
address RO
https-only RW
supported-bootloaders SRO
blobs RO
memory-overhead RO
memory-total RO metrics.memory_total
memory-free RO metrics.memory_free
memory-free-computed ROE
host-metrics-live RO metrics.live
patches SROD patches@,
updates SRO updates@,
ha-statefiles RO
ha-network-peers RO
external-auth-type RO
external-auth-service-name RO
external-auth-configuration MRO
edition RO
license-server MRO
power-on-mode RO
power-on-config MRO
local-cache-sr RO local_cache_sr@
tags SRW tags,
ssl-legacy RW
guest_VCPUs_params MRW
virtual-hardware-platform-versions SRO
control-domain-uuid RO control_domain@
resident-vms SRO resident_VMs@
updates-requiring-reboot SRO updates_requiring_reboot@
features SRO features@
iscsi_iqn RW
multipathing RW
uefi-certificates RWH
pending-guidances RO
tls-verification-enabled RO
last-software-update RO
'''

POOL = '''
uuid RO
name-label RW
name-description RW
master RO master@
default-SR RW default_SR@
crash-dump-SR RW crash_dump_SR@
suspend-image-SR RW suspend_image_SR@
supported-sr-types ROE
other-config MRW
allowed-operations SRO
current-operations SRO current_operations()
ha-enabled RO
ha-configuration RO
ha-statefiles RO
ha-host-failures-to-tolerate RW
ha-plan-exists-for RO
ha-allow-overcommit RW
ha-overcommitted RO
blobs RO
wlb-url RO
wlb-username RO
wlb-enabled RW
wlb-verify-cert RW
igmp-snooping-enabled RW
gui-config MRW
health-check-config MRW
vswitch-controller ROH
restrictions RO
tags SRW tags,
ha-cluster-stack RO
guest-agent-config MRW
cpu_info MRO
policy-no-vendor-device RW
live-patching-disabled RW
uefi-certificates RWH
tls-verification-enabled RO
client-certificate-auth-enabled RO
client-certificate-auth-name RO
repositories SRW repositories@
repository-proxy-url RO
repository-proxy-username RO
'''

TASK = '''
uuid RO
name-label RO
name-description RO
subtask_of RO subtask_of@
subtasks RO subtasks@
resident-on RO resident_on@
status RO
progress RO
type RO
result RO
created RO
finished RO
error_info RO
allowed_operations RO
current_operations RO current_operations()
other-config MRW
'''

TRANSLATE = {
    'lower': str.lower,
    'dashes': lambda word: word.replace('_', '-'),
    'action': lambda word: word.capitalize().replace('_', ' ').replace('Coredump', 'Core dump'),
    'tristate': lambda word: {'yes': 'true', 'no': 'false'}.get(word, word),
    'vdi': lambda word: {'ha_statefile': 'HA statefile', 'pvs_cache': 'PVS cache', 'rrd': 'rrd',
                         'cbt_metadata': 'CBT metadata'}.get(
                             word, word.capitalize().replace('_', ' ')),
    'sr': lambda word: word.replace('vdi_', 'VDI.').replace('pbd_', 'PBD.'),
}

INTEGERS = {'user-version', 'VCPUs-max', 'VCPUs-at-startup', 'start-delay', 'shutdown-delay',
            'order', 'MTU', 'ha-host-failures-to-tolerate'}
SIZES = {'memory-static-max', 'memory-dynamic-max', 'memory-dynamic-min', 'memory-static-min'}
REFERRED = {'suspend-VDI-uuid': 'VDI', 'suspend-SR-uuid': 'SR', 'affinity': 'host',
            'default-SR': 'SR', 'crash-dump-SR': 'SR', 'suspend-image-SR': 'SR',
            'suspend-image-sr-uuid': 'SR', 'crash-dump-sr-uuid': 'SR'}


class Field(NamedTuple):
    """One field of a class. `value` takes (tables, record) and gives what the API has."""
    name: str
    access: str
    flags: str
    source: str
    comma: bool
    value: Callable[[Any, Any], Any]

    @property
    def label(self):
        kind = self.access if len(self.access) == 3 else ' ' + self.access
        return '%s (%s)%s' % (self.name, kind, ' [DEPRECATED]' if 'D' in self.flags else '')

    def is_set(self):
        return self.access[0] == 'S'

    def is_map(self):
        return self.access[0] == 'M'

    def text(self, tables, record):
        value = self.value(tables, record)
        if isinstance(value, list):
            return (', ' if self.comma else '; ').join(value)
        if isinstance(value, dict):
            return '; '.join('%s: %s' % pair for pair in value.items())
        return value


def plain(value):
    """A value of the API in the words of xe; lists and maps stay what they are."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, float):
        return '%.3f' % value
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value if isinstance(value, str) else value.value


def find(tables, ref):
    if ref == NULL:
        return None
    return next((table[ref] for table in tables.values() if ref in table), None)


def uuid_of(tables, ref):
    record = find(tables, ref)
    return record['uuid'] if record else ABSENT


def name_of(tables, ref):
    record = find(tables, ref)
    return record.get('name_label', ABSENT) if record else ABSENT


def disk_name(tables, vbd):
    return '<EMPTY>' if vbd['empty'] else name_of(tables, vbd['VDI'])


def only_host(tables, sr):
    if len(sr['PBDs']) > 1:
        return '<shared>'
    return name_of(tables, tables['PBD'][sr['PBDs'][0]]['host']) if sr['PBDs'] else ABSENT


COMPUTED = {'disk_name': disk_name, 'only_host': only_host}


def reader(source, default=None):
    """The function that reads what a source of the tables above describes. With a default the
    API's record may lack the field."""
    if source.startswith('!'):
        return COMPUTED[source[1:]]
    source = source.rstrip(',')
    path, _, kind = source.partition('~')
    path, at, what = path.partition('@')
    values, path = path.endswith('()'), path.replace('()', '')
    through, _, name = path.rpartition('.')
    translate = TRANSLATE.get(kind, lambda word: word)
    refer = name_of if what == 'name' else uuid_of

    def read(tables, record):
        if through:
            record = find(tables, record[through])
            if record is None:
                return 'false' if name == 'hvm' else ABSENT
        value = record[name] if default is None else record.get(name, default)
        if at:
            refs = value if isinstance(value, list) else [value]
            shown = [refer(tables, ref) for ref in refs]
            return shown if isinstance(value, list) else shown[0]
        value = plain(list(value.values()) if values else value)
        return [translate(word) for word in value] if isinstance(value, list) else (
            translate(value) if isinstance(value, str) else value)

    return read


def fields(table):
    found = {}
    for line in table.split('\n'):
        if not line:
            continue
        name, access, source = (line.split() + [''])[:3]
        source = source or name.replace('-', '_')
        width = 3 if access[0] in 'SM' else 2
        found[name] = Field(name, access[:width], access[width:], source, source.endswith(','),
                            reader(source, UNKNOWN if 'E' in access else None))
    return found


class Kind(NamedTuple):
    """A class of records as xe knows it: `xe <kind>-list` and the others."""
    cls: str
    fields: Any
    filters: Any
    columns: Any


def kinds():
    """{the word before `-list`: Kind}. A snapshot's columns `snapshot_of` and `snapshot_time`
    are no names of fields, so the real one does not show them either."""
    vm = fields(VM)
    label = ['uuid', 'name-label', 'name-description']
    return {
        'vm': Kind('VM', vm, [('is-a-template', 'false')], ['uuid', 'name-label', 'power-state']),
        'template': Kind('VM', vm, [('is-a-template', 'true'), ('is-a-snapshot', 'false')], label),
        'snapshot': Kind('VM', vm, [('is-a-snapshot', 'true')],
                         label + ['snapshot_of', 'snapshot_time', 'is-vmss-snapshot']),
        'vdi': Kind('VDI', fields(VDI), [],
                    label + ['sr-uuid', 'virtual-size', 'sharable', 'read-only']),
        'vbd': Kind('VBD', fields(VBD), [],
                    ['uuid', 'vm-uuid', 'vm-name-label', 'vdi-uuid', 'device', 'empty']),
        'vif': Kind('VIF', fields(VIF), [], ['uuid', 'device', 'vm-uuid', 'network-uuid']),
        'sr': Kind('SR', fields(SR), [], label + ['host', 'type', 'content-type']),
        'pbd': Kind('PBD', fields(PBD), [], ['uuid', 'host-uuid', 'sr-uuid', 'device-config',
                                             'currently-attached']),
        'network': Kind('network', fields(NETWORK), [], label + ['bridge']),
        'host': Kind('host', fields(HOST), [], label),
        'pool': Kind('pool', fields(POOL), [], label + ['master', 'default-SR']),
        'task': Kind('task', fields(TASK), [], label + ['status', 'progress']),
    }
