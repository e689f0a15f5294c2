//! Words of the command line: which volume, which device.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A volume of a resource, `RESOURCE` (its volume 0) or `RESOURCE/VOLUME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeName {
    pub(crate) resource: String,
    pub(crate) number: u16,
}

/// A word that names no volume.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a volume: RESOURCE or RESOURCE/NUMBER is wanted, for instance db/1")]
pub(crate) struct VolumeSyntax(String);

impl FromStr for VolumeName {
    type Err = VolumeSyntax;

    fn from_str(word: &str) -> Result<Self, VolumeSyntax> {
        let wrong = || VolumeSyntax(word.to_owned());
        let (resource, number) = match word.split_once('/') {
            None => (word, 0),
            Some((resource, number)) => (resource, number.parse().map_err(|_| wrong())?),
        };
        // As resources may be called; it becomes part of a path here.
        controller::core::Name::new(resource).map_err(|_| wrong())?;
        Ok(Self {
            resource: resource.to_owned(),
            number,
        })
    }
}

impl std::fmt::Display for VolumeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            0 => f.write_str(&self.resource),
            number => write!(f, "{}/{number}", self.resource),
        }
    }
}

impl VolumeName {
    /// The name of its NBD export.
    pub(super) fn export(&self) -> String {
        self.to_string()
    }

    /// What the kernel keeps with a device of ours, in `/sys/block/nbdX/backend`: the volume, and by
    /// what its disk can be told from what it may become.
    pub(super) fn backend(&self, mark: Option<&str>) -> String {
        let volume = format!("lockstep:{}/{}", self.resource, self.number);
        match mark {
            None => volume,
            Some(mark) => format!("{volume}@{mark}"),
        }
    }

    /// Does the device of this backend have the volume?
    pub(super) fn has_backend(&self, backend: &str) -> bool {
        let rest = backend.strip_prefix(&self.backend(None));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
    }

    /// The directory that nbdfuse mounts, under the one for attachments.
    pub(super) fn directory(&self) -> String {
        format!("{}.{}", self.resource, self.number)
    }
}

/// What to detach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attached {
    /// Whatever device a volume has.
    Volume(VolumeName),
    /// A device, `/dev/nbdX` or `/dev/loopX`.
    Device(PathBuf),
}

impl FromStr for Attached {
    type Err = VolumeSyntax;

    fn from_str(word: &str) -> Result<Self, VolumeSyntax> {
        if word.starts_with('/') {
            Ok(Self::Device(word.into()))
        } else {
            word.parse().map(Self::Volume)
        }
    }
}

/// The number of `/dev/PREFIXnumber`.
pub(super) fn device_number(device: &Path, prefix: &str) -> Option<u32> {
    let name = device.strip_prefix("/dev").ok()?.to_str()?;
    name.strip_prefix(prefix)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_named_as_exports_are() {
        for (word, export, backend) in [
            ("db", "db", "lockstep:db/0"),
            ("db/0", "db", "lockstep:db/0"),
            ("db/3", "db/3", "lockstep:db/3"),
        ] {
            let volume: VolumeName = word.parse().unwrap();
            assert_eq!(
                (volume.export().as_str(), volume.backend(None).as_str()),
                (export, backend)
            );
        }
        let volume: VolumeName = "db/1".parse().unwrap();
        assert_eq!(volume.backend(Some("7.epoch-2")), "lockstep:db/1@7.epoch-2");
        assert!(volume.has_backend("lockstep:db/1"));
        assert!(volume.has_backend("lockstep:db/1@7.epoch-2"));
        assert!(!volume.has_backend("lockstep:db/12") && !volume.has_backend("db/1"));
        for word in ["", "/1", "db/", "db/x", "db/99999", "../etc", "a/b/c"] {
            let error = word.parse::<VolumeName>().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{word}\"")), "{error}");
        }
    }

    #[test]
    fn a_path_is_a_device() {
        assert_eq!(
            "/dev/nbd3".parse::<Attached>().unwrap(),
            Attached::Device("/dev/nbd3".into())
        );
        assert_eq!(device_number(Path::new("/dev/nbd3"), "nbd"), Some(3));
        assert_eq!(device_number(Path::new("/dev/nbd3p1"), "nbd"), None);
        assert_eq!(device_number(Path::new("/dev/sda"), "nbd"), None);
    }
}
