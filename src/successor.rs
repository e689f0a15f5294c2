//! A node's keys and its voter's promise are replaced together: by a recovery, and where a lost node joins
//! again. What is to replace them is prepared in a directory beside them. One rename puts it in force, and
//! from then on whoever takes the data directory first moves each file to its place. So a crash at any point
//! leaves the node as it was or as it is to be.

use anyhow::Context;
use controller::core::Node;
use controller::pki::files::{self, Access};
use controller::pki::identity::Parts;
use controller::store::{Promise, PromiseStore};
use std::fs::{File, remove_dir_all, rename};
use std::io;
use std::path::{Path, PathBuf};

/// In preparation: nothing of it counts.
const DRAFT: &str = "successor.new";
/// In force, and not yet in its place.
const SUCCESSOR: &str = "successor";
/// What the files that are replaced get behind their names.
const SUFFIX: &str = "suffix";

/// Names in the data directory.
pub(crate) const PROMISE: &str = "configuration";
pub(crate) const NODES: &str = "nodes.json";
const KEYS: &str = "tls";
/// The keys come last: without them no daemon starts.
const PLACES: [&str; 3] = [NODES, PROMISE, KEYS];

/// Called before each step; an error breaks off there as a crash would.
type Step<'a> = &'a mut dyn FnMut() -> io::Result<()>;

/// What a node is to become.
#[derive(Debug)]
pub(crate) struct Successor {
    directory: PathBuf,
    draft: PathBuf,
}

impl Successor {
    /// Begins one, in place of what an interrupted attempt left. The caller holds the directory's lock and
    /// has called [`finish`].
    pub(crate) fn prepare(directory: &Path) -> anyhow::Result<Self> {
        let draft = directory.join(DRAFT);
        remove(&draft)?;
        files::make_directory(&draft)?;
        files::make_directory(&draft.join(KEYS))?;
        Ok(Self {
            directory: directory.into(),
            draft,
        })
    }

    /// Where its keys are written.
    pub(crate) fn keys(&self) -> PathBuf {
        self.draft.join(KEYS)
    }

    /// Writes what it consists of. `suffix` is what the replaced files get behind their names.
    pub(crate) fn fill(
        &self,
        nodes: &[Node],
        promise: &Promise,
        parts: &Parts,
        suffix: &str,
    ) -> anyhow::Result<()> {
        save_nodes(&self.draft.join(NODES), nodes)?;
        PromiseStore::create(&self.draft.join(PROMISE), promise)?;
        files::write(&self.draft.join(SUFFIX), suffix.as_bytes(), Access::Private)?;
        Ok(parts.save(&self.keys())?)
    }

    /// Puts it in force and in its place.
    pub(crate) fn commit(self) -> anyhow::Result<()> {
        self.commit_with(&mut || Ok(()))
    }

    pub(crate) fn commit_with(self, step: Step<'_>) -> anyhow::Result<()> {
        step()?;
        let successor = self.directory.join(SUCCESSOR);
        put(&self.draft, &successor)?;
        finish_with(&self.directory, step)?;
        Ok(())
    }
}

/// Moves a successor that is in force to its place; false: there is none. The caller holds the
/// directory's lock. To be called before anything else in the directory is looked at.
pub(crate) fn finish(directory: &Path) -> anyhow::Result<bool> {
    finish_with(directory, &mut || Ok(()))
}

fn finish_with(directory: &Path, step: Step<'_>) -> anyhow::Result<bool> {
    let successor = directory.join(SUCCESSOR);
    if !exists(&successor)? {
        return Ok(false);
    }
    // Removed last: where it is gone already everything is in its place.
    let suffix = files::read(&successor.join(SUFFIX))?.unwrap_or_default();
    let suffix = String::from_utf8_lossy(&suffix);
    for name in PLACES {
        let next = successor.join(name);
        if exists(&next)? {
            let place = directory.join(name);
            if exists(&place)? {
                step()?;
                put(&place, &free_name(directory, name, &suffix)?)?;
            }
            step()?;
            put(&next, &place)?;
        }
    }
    step()?;
    remove(&successor)?;
    sync(directory)?;
    Ok(true)
}

/// Writes the list of the cluster's nodes.
pub(crate) fn save_nodes(path: &Path, nodes: &[Node]) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(nodes)?;
    Ok(files::write(path, &text, Access::Public)?)
}

/// A name for a file that is replaced: nothing is overwritten.
fn free_name(directory: &Path, name: &str, suffix: &str) -> anyhow::Result<PathBuf> {
    let mut path = directory.join(format!("{name}.{suffix}"));
    let mut number = 2u32;
    while exists(&path)? {
        path = directory.join(format!("{name}.{suffix}.{number}"));
        number += 1;
    }
    Ok(path)
}

fn put(from: &Path, to: &Path) -> anyhow::Result<()> {
    rename(from, to)
        .with_context(|| format!("can't rename {} to {}", from.display(), to.display()))?;
    to.parent().map_or(Ok(()), sync)
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn exists(path: &Path) -> anyhow::Result<bool> {
    // A link that leads nowhere is in the way too.
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("can't look at {}", path.display())),
    }
}

fn sync(directory: &Path) -> anyhow::Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("can't bring {} to stable storage", directory.display()))
}
