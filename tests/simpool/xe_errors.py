"""How xe words a failure of the API (xapi: ocaml/idl/datamodel_errors.ml, cli_util.ml).

A code that the data model documents is printed as its sentence and a line per parameter, any
other (every SR_BACKEND_FAILURE_n, CLIENT_ERROR, VDI_IO_ERROR, ...) as the code and the parameters.
"""

BUSY = ('Another operation involving the object is currently in progress', 'class object')

ERRORS = {
    'INTERNAL_ERROR': (
        'The server failed to handle your request, due to an internal error. The given message '
        'may give details useful for debugging the problem.', 'message'),
    'MESSAGE_REMOVED': ('This function is no longer available.', ''),
    'NOT_IMPLEMENTED': ('The function is not implemented', 'function'),
    'UUID_INVALID': ('The uuid you supplied was invalid.', 'type uuid'),
    'HANDLE_INVALID': (
        'You gave an invalid object reference. The object may have recently been deleted. The '
        'class parameter gives the type of reference given, and the handle parameter echoes the '
        'bad value given.', 'class handle'),
    'MAP_DUPLICATE_KEY': (
        'You tried to add a key-value pair to a map, but that key is already there.',
        'type param_name uuid key'),
    'MESSAGE_METHOD_UNKNOWN': (
        'You tried to call a method that does not exist. The method name that you used is '
        'echoed.', 'method'),
    'MESSAGE_PARAMETER_COUNT_MISMATCH': (
        'You tried to call a method with the incorrect number of parameters. The fully-qualified '
        'method name that you used, and the number of received and expected parameters are '
        'returned.', 'method expected received'),
    'INVALID_VALUE': ('The value given is invalid', 'field value'),
    'VALUE_NOT_SUPPORTED': (
        'You attempted to set a value that is not supported by this implementation. The '
        'fully-qualified field name and the value that you tried to set are returned. Also '
        'returned is a developer-only diagnostic reason.', 'field value reason'),
    'FIELD_TYPE_ERROR': ('The value specified is of the wrong type', 'field'),
    'OPERATION_NOT_ALLOWED': ('You attempted an operation that was not allowed.', 'reason'),
    'OPERATION_BLOCKED': (
        'You attempted an operation that was explicitly blocked (see the blocked_operations field '
        'of the given object).', 'ref code'),
    'UNIMPLEMENTED_IN_SM_BACKEND': (
        'You have attempted a function which is not implemented', 'message'),
    'SESSION_INVALID': (
        'You gave an invalid session reference. It may have been invalidated by a server restart, '
        'or timed out. You should get a new session handle, using one of the session.login_ '
        'calls. This error does not invalidate the current connection. The handle parameter '
        'echoes the bad value given.', 'handle'),
    'DEVICE_ALREADY_ATTACHED': ('The device is already attached to a VM', 'device'),
    'DEVICE_ALREADY_DETACHED': ('The device is not currently attached', 'device'),
    'DEVICE_ALREADY_EXISTS': (
        'A device with the name given already exists on the selected VM', 'device'),
    'DEVICE_NOT_ATTACHED': (
        'The operation could not be performed because the VBD was not connected to the VM.',
        'VBD'),
    'INVALID_DEVICE': ('The device name is invalid', 'device'),
    'ILLEGAL_VBD_DEVICE': (
        'The specified VBD device is not recognized: please use a non-negative integer',
        'vbd device'),
    'VBD_CDS_MUST_BE_READONLY': ('Read/write CDs are not supported', ''),
    'VBD_IS_EMPTY': ('Operation could not be performed because the drive is empty', 'vbd'),
    'VBD_NOT_EMPTY': ('Operation could not be performed because the drive is not empty', 'vbd'),
    'VM_BAD_POWER_STATE': (
        'You attempted an operation on a VM that was not in an appropriate power state at the '
        'time; for example, you attempted to start a VM that was already running. The parameters '
        "returned are the VM's handle, and the expected and actual VM state at the time of the "
        'call.', 'vm expected actual'),
    'VM_IS_TEMPLATE': ('The operation attempted is not valid for a template VM', 'vm'),
    'VM_CANNOT_DELETE_DEFAULT_TEMPLATE': (
        'You cannot delete the specified default template.', 'vm'),
    'VM_MISSING_PV_DRIVERS': (
        'You attempted an operation on a VM which requires PV drivers to be installed but the '
        'drivers were not detected.', 'vm'),
    'VM_REQUIRES_SR': (
        "You attempted to run a VM on a host which doesn't have access to an SR needed by the VM. "
        'The VM has at least one VBD attached to a VDI in the SR.', 'vm sr'),
    'VM_HAS_VUSBS': ('The operation is not allowed when the VM has VUSBs.', 'vm'),
    'DUPLICATE_VM': ('Cannot restore this VM because it would create a duplicate', 'vm'),
    'DUPLICATE_MAC_SEED': ('This MAC seed is already in use by a VM in the pool', 'seed'),
    'VM_TO_IMPORT_IS_NOT_NEWER_VERSION': (
        'The VM cannot be imported unforced because it is either the same version or an older '
        'version of an existing VM.', 'vm existing_version version_to_import'),
    'NO_HOSTS_AVAILABLE': (
        'There were no servers available to complete the specified operation.', ''),
    'HOST_NOT_ENOUGH_FREE_MEMORY': (
        'Not enough server memory is available to perform this operation.', 'needed available'),
    'HOST_STILL_BOOTING': ('The host toolstack is still initialising. Please wait.', ''),
    'HOST_OFFLINE': (
        'You attempted an operation which involves a host which could not be contacted.', 'host'),
    'HOST_IN_EMERGENCY_MODE': (
        'Cannot perform operation as the host is running in emergency mode.', ''),
    'HOST_IS_SLAVE': (
        'You cannot make regular API calls directly on a supporter. Please pass API calls via the '
        'coordinator host.', 'Master_IP_address'),
    'NOT_SUPPORTED_DURING_UPGRADE': (
        'This operation is not supported during an upgrade.', ''),
    'SR_NO_PBDS': ('The SR has no attached PBDs', 'sr'),
    'SR_NOT_ATTACHED': ('The SR is not attached.', 'sr'),
    'SR_FULL': ('The SR is full. Requested new size exceeds the maximum size',
                'requested maximum'),
    'SR_OPERATION_NOT_SUPPORTED': (
        "The SR backend does not support the operation (check the SR's allowed operations)", 'sr'),
    'VDI_READONLY': ('The operation required write access but this VDI is read-only', 'vdi'),
    'VDI_TOO_SMALL': (
        'The VDI is too small. Please resize it to at least the minimum size.',
        'vdi minimum_size'),
    'VDI_TOO_LARGE': ('The VDI is too large.', 'vdi maximum_size'),
    'VDI_IN_USE': (
        'This operation cannot be performed because this VDI is in use by some other operation',
        'vdi operation'),
    'VDI_NOT_AVAILABLE': (
        'This operation cannot be performed because this VDI could not be properly attached to '
        'the VM.', 'vdi'),
    'VDI_LOCATION_MISSING': (
        'This operation cannot be performed because the specified VDI could not be found in the '
        'specified SR', 'sr location'),
    'VDI_MISSING': (
        'This operation cannot be performed because the specified VDI could not be found on the '
        'storage substrate', 'sr vdi'),
    'VDI_NOT_MANAGED': (
        'This operation cannot be performed because the system does not manage this VDI', 'vdi'),
    'VDI_IS_NOT_ISO': (
        'This operation can only be performed on CD VDIs (iso files or CDROM drives)', 'vdi type'),
    'VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION': (
        "This operation is not permitted on VDIs in the 'on-boot=reset' mode, or on VMs having "
        'such VDIs.', ''),
    'IMPORT_INCOMPATIBLE_VERSION': (
        'The import failed because this export has been created by a different (incompatible) '
        'product version', ''),
    'IMPORT_ERROR': ('The VM could not be imported.', 'msg'),
    'IMPORT_ERROR_PREMATURE_EOF': (
        'The VM could not be imported; the end of the file was reached prematurely.', ''),
    'IMPORT_ERROR_SOME_CHECKSUMS_FAILED': (
        'Some data checksums were incorrect; the VM may be corrupt.', ''),
    'IMPORT_ERROR_CANNOT_HANDLE_CHUNKED': ('Cannot import VM using chunked encoding.', ''),
    'IMPORT_ERROR_FAILED_TO_FIND_OBJECT': (
        'The VM could not be imported because a required object could not be found.', 'id'),
    'IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND': (
        'The VM could not be imported because attached disks could not be found.', ''),
    'IMPORT_ERROR_UNEXPECTED_FILE': (
        'The VM could not be imported because the XVA file is invalid: an unexpected file was '
        'encountered.', 'filename_expected filename_found'),
    'TASK_CANCELLED': ('The request was asynchronously canceled.', 'task'),
    'TOO_MANY_PENDING_TASKS': (
        'The request was rejected because there are too many pending tasks on the server.', ''),
}
SPACED = {'Master_IP_address', 'minimum_size', 'maximum_size'}


def documented(code, parameters, version):
    """(sentence, lines 'label: value') of a documented code, else None. `version` is xapi's,
    'major.minor': a newer one names four parameters of OTHER_OPERATION_IN_PROGRESS (25.27)."""
    sentence, labels = ERRORS.get(code, ('', ''))
    if code == 'OTHER_OPERATION_IN_PROGRESS':
        sentence, labels = BUSY
        if tuple(int(part) for part in version.split('.')[:2]) >= (25, 27):
            labels += ' operation_type operation_ref'
    if not sentence:
        return None
    names = [name.replace('_', ' ') if name in SPACED else name for name in labels.split()]
    lines = ['%s: %s' % pair for pair in zip(names, parameters)]
    lines += ['%s: <unknown>' % name for name in names[len(parameters):]]
    lines += ['<extra>: %s' % value for value in parameters[len(names):]]
    return sentence, lines
