//! Who uses a disk: the clients of this node's exports, in words for people.

use crate::attach;
use replicator::runtime::client::{ClientAddress, OpenClient};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Names clients; looks once at what devices there are.
#[derive(Debug)]
pub(crate) struct Names {
    devices: BTreeMap<u32, PathBuf>,
}

impl Names {
    /// For these clients.
    pub(crate) fn of(clients: &[OpenClient]) -> Self {
        let local = |client: &OpenClient| matches!(client.address, ClientAddress::Process(_));
        let devices = if clients.iter().any(local) {
            attach::kernel_devices()
        } else {
            BTreeMap::new()
        };
        Self { devices }
    }

    /// An address, or the process on this machine and the device that it keeps.
    pub(crate) fn name(&self, address: ClientAddress) -> String {
        match address {
            ClientAddress::Tcp(address) => address.to_string(),
            ClientAddress::Unknown => "somebody on this machine".to_owned(),
            ClientAddress::Process(pid) => {
                let device = self
                    .devices
                    .get(&pid)
                    .map(|path| path.display().to_string());
                let program = || std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
                match device.or_else(|| Some(program()?.trim_end().to_owned())) {
                    Some(name) => format!("{name} (process {pid})"),
                    None => format!("process {pid}"),
                }
            }
        }
    }
}

/// Clients of one resource in a sentence, each once however many connections it has.
pub(crate) fn list(clients: &[OpenClient]) -> String {
    let names = Names::of(clients);
    let mut all: Vec<String> = clients
        .iter()
        .map(|client| {
            let name = names.name(client.address);
            match client.target.volume.0 {
                0 => name,
                volume => format!("{name} (volume {volume})"),
            }
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use replicator::runtime::client::ExportTarget;
    use vocabulary::{ResourceId, VolumeId};

    #[test]
    fn clients_are_named_once_by_address_process_or_device() {
        let client = |volume, address| OpenClient {
            target: ExportTarget {
                resource: ResourceId(1),
                volume: VolumeId(volume),
            },
            address,
        };
        let here = std::process::id();
        let clients = [
            client(0, ClientAddress::Process(here)),
            client(0, ClientAddress::Process(here)),
            client(1, ClientAddress::Tcp("10.0.0.5:700".parse().unwrap())),
        ];
        let said = list(&clients);
        assert!(said.starts_with("10.0.0.5:700 (volume 1), "), "{said}");
        assert!(said.ends_with(&format!(" (process {here})")), "{said}");
        assert_eq!(said.matches("process").count(), 1, "{said}");
        let names = Names {
            devices: BTreeMap::from([(here, "/dev/nbd3".into())]),
        };
        let name = names.name(ClientAddress::Process(here));
        assert_eq!(name, format!("/dev/nbd3 (process {here})"));
        // There is no such process.
        assert_eq!(
            names.name(ClientAddress::Process(u32::MAX)),
            format!("process {}", u32::MAX)
        );
    }
}
