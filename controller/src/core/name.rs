//! Names of nodes and resources. They appear in file names, NBD export names and on command lines,
//! so only characters that are safe in all three are allowed.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest name, in bytes: leaves room for a suffix in a file name (255) and in an NBD export name.
pub const MAX_NAME_BYTES: usize = 64;

/// A name: 1 to 64 of `a-z A-Z 0-9 _ - .`, beginning with a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a word is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{word}\" is not a name: 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' and '.', beginning with a letter or a digit"
)]
pub struct NameError {
    /// The word, cut to a length that can be shown.
    pub word: String,
}

impl Name {
    /// The word as a name.
    ///
    /// # Errors
    /// When it is empty, too long, or holds a character that is not allowed.
    pub fn new(word: &str) -> Result<Self, NameError> {
        let good = word.len() <= MAX_NAME_BYTES
            && word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if good {
            Ok(Self(word.to_owned()))
        } else {
            Err(NameError {
                word: word.chars().take(MAX_NAME_BYTES).collect(),
            })
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(word: String) -> Result<Self, NameError> {
        Self::new(&word)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(word: &str) -> Result<Self, NameError> {
        Self::new(word)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Name {
    /// The name that a node goes by before its own is known.
    #[must_use]
    pub fn of_node(node: vocabulary::NodeId) -> Self {
        Self(format!("node{node}"))
    }
}
