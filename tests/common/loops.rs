//! Block devices for tests: loop devices over sparse files, gone when the test ends, however it ends.

use super::command::text;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device.
#[derive(Debug)]
pub(crate) struct Loop {
    device: PathBuf,
    file: PathBuf,
}

fn losetup(arguments: &[&std::ffi::OsStr]) -> String {
    let mut command = Command::new("losetup");
    command.args(arguments);
    let output = command.output().expect("losetup is installed");
    assert!(
        output.status.success(),
        "{command:?} (needs root and loop devices): {}",
        text(&output)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Loop {
    /// A device of this size over a new file.
    pub(crate) fn new(file: &Path, size_bytes: u64) -> Self {
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(file)
            .expect("a file can be made");
        made.set_len(size_bytes).expect("a sparse file");
        let device = losetup(&["--find".as_ref(), "--show".as_ref(), file.as_os_str()]);
        Self {
            device: device.into(),
            file: file.to_owned(),
        }
    }

    /// As a word of a command line.
    pub(crate) fn path(&self) -> &str {
        self.device.to_str().expect("a plain name")
    }

    /// The device becomes larger under whoever uses it.
    pub(crate) fn grow(&self, size_bytes: u64) {
        let file = OpenOptions::new()
            .write(true)
            .open(&self.file)
            .expect("the device's file");
        file.set_len(size_bytes).expect("it can be made longer");
        losetup(&["--set-capacity".as_ref(), self.device.as_os_str()]);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Goes when its last user has closed it; nothing to be done about an error here.
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.device)
            .status();
    }
}
