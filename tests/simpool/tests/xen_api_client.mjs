// Drives a pool with the package xen-api from npm, as Xen Orchestra does; prints what came, as JSON.
// Arguments: the package's directory, options of its client as JSON, the name of a VM.
import { pathToFileURL } from 'node:url'

const [directory, options, wanted] = process.argv.slice(2)
const { createClient } = await import(pathToFileURL(`${directory}/index.mjs`))
const came = {}

// What an error says, or what came instead of it.
async function refusal(promise) {
  try {
    return { came: await promise }
  } catch ({ name, code, params, message }) {
    return code === undefined ? { message } : { name, code, params }
  }
}

const xapi = createClient({ watchEvents: false, ...JSON.parse(options) })
await xapi.connect()
try {
  came.pool = xapi.pool.$ref
  const host = await xapi.getRecord('host', xapi.pool.master)
  came.host = [host.hostname, await xapi.call('host.get_software_version', host.$ref)]
  came.types = xapi._types
  const vms = await xapi.getAllRecords('VM')
  came.names = vms.map(vm => vm.name_label)

  const vm = vms.find(each => each.name_label === wanted)
  came.byUuid = (await xapi.getRecordByUuid('VM', vm.uuid)).$ref === vm.$ref
  let vbd
  for (const each of vm.VBDs) {
    const found = await xapi.getRecord('VBD', each)
    vbd = found.userdevice === '0' ? found : vbd
  }
  const disk = await xapi.getRecord('VDI', vbd.VDI)
  came.values = [disk.virtual_size, vbd.userdevice, vm.is_a_template, vm.HVM_shadow_multiplier,
    vm.snapshot_time, await xapi.getField('VDI', disk.$ref, 'virtual_size')]

  const ref = await vm.$call('snapshot', 'été 名 "1" <&>')
  const snapshot = await xapi.getRecord('VM', ref)
  came.snapshot = [snapshot.name_label, snapshot.is_a_snapshot, snapshot.is_a_template,
    snapshot.power_state, snapshot.snapshot_of === vm.$ref]
  came.destroyed = await xapi.call('VM.destroy', ref)
  came.gone = [ref, await refusal(xapi.getRecord('VM', ref))]

  await vm.update_other_config('backup', 'no 名')
  await vm.update_other_config('a/b', '')
  came.set = await xapi.getField('VM', vm.$ref, 'other_config')
  await vm.update_other_config('backup', null)
  await vm.update_other_config('a/b', null)
  came.removed = await xapi.getField('VM', vm.$ref, 'other_config')
  came.twice = await refusal(xapi.call('VM.add_to_other_config', vm.$ref, 'mac_seed', ''))
  came.unknown = await refusal(xapi.call('nosuch.call'))
} finally {
  await xapi.disconnect()
}
console.log(JSON.stringify(came))
