//! Tokens, on the node that has the authority's key: handed out, and each taken once. Kept in a
//! file of which a thief gets nothing, since it holds hashes of the secrets only.

use super::authority::{Authority, PublicKey};
use super::files::{self, Access};
use super::identity::Parts;
use super::token::{Fingerprint, Secret, Token, fingerprint};
use super::{Identity, PkiError};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use vocabulary::NodeId;

/// Most tokens at a time: they are made by hand.
const MAX_TOKENS: usize = 64;
/// Longest life of a token.
pub const MAX_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

/// Hands out tokens and certificates.
#[derive(Debug)]
pub struct Issuer {
    identity: Identity,
    authority: Authority,
    beacons: [u8; 32],
    path: PathBuf,
    tokens: Mutex<Vec<Entry>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    hash: Fingerprint,
    /// Seconds since 1970.
    expires: u64,
    used: Option<Used>,
}

/// For whom a token was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// The machine, by its key.
    pub key: PublicKey,
    /// The id that it was given.
    pub node: NodeId,
}

/// Why a token is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TokenRefused {
    /// Never seen, or so long ago that it was forgotten.
    #[error("the token is unknown here, or was used or expired long ago")]
    Unknown,
    /// Too late.
    #[error("the token has expired")]
    Expired,
    /// Somebody was faster.
    #[error("the token was used already, for node {0}")]
    Used(NodeId),
}

/// Why no token is handed out.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// It can't be remembered.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// There are enough.
    #[error("{MAX_TOKENS} tokens are waiting to be used; wait until some expire")]
    TooMany,
    /// For too long.
    #[error("a token is valid for 1 second to 30 days")]
    Validity,
}

impl Issuer {
    /// The issuer of this node; `None` where it does not have the authority's key.
    ///
    /// # Errors
    /// A file can't be read or is damaged.
    pub fn load(directory: &Path, identity: &Identity) -> Result<Option<Self>, PkiError> {
        let Some(authority) = Authority::load(directory, identity.cluster())? else {
            return Ok(None);
        };
        let path = directory.join(files::TOKENS);
        let tokens = match files::read(&path)? {
            None => Vec::new(),
            Some(text) => serde_json::from_slice(&text)
                .map_err(PkiError::NotALedger)
                .map_err(files::damaged(&path))?,
        };
        Ok(Some(Self {
            identity: identity.clone(),
            authority,
            beacons: Parts::load(directory)?.beacons,
            path,
            tokens: Mutex::new(tokens),
        }))
    }

    fn tokens(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, tokens: &[Entry]) -> Result<(), PkiError> {
        // Plain data: it has a form in JSON.
        let text = serde_json::to_vec_pretty(tokens).unwrap_or_default();
        files::write(&self.path, &text, Access::Private)
    }

    /// A new token. Blocks until it is remembered.
    ///
    /// # Errors
    /// See [`IssueError`].
    pub fn token(
        &self,
        now: SystemTime,
        valid: Duration,
        addresses: Vec<String>,
    ) -> Result<Token, IssueError> {
        if valid < Duration::from_secs(1) || valid > MAX_VALID {
            return Err(IssueError::Validity);
        }
        let secret = Secret(rand::random());
        let expires = seconds(now).saturating_add(valid.as_secs());
        let mut tokens = self.tokens();
        let mut next: Vec<Entry> = tokens
            .iter()
            .filter(|entry| entry.expires > seconds(now))
            .cloned()
            .collect();
        if next.len() >= MAX_TOKENS {
            return Err(IssueError::TooMany);
        }
        next.push(Entry {
            hash: fingerprint(&secret.0),
            expires,
            used: None,
        });
        self.save(&next)?;
        *tokens = next;
        Ok(Token {
            cluster: self.identity.cluster(),
            issuer: self.identity.node(),
            authority: fingerprint(self.identity.authority()),
            secret,
            expires,
            addresses,
        })
    }

    /// Is this a token that a machine with this key may use? Gives the id that it got when it used
    /// the token before: its answer was lost.
    ///
    /// # Errors
    /// See [`TokenRefused`].
    pub fn check(
        &self,
        now: SystemTime,
        secret: Secret,
        key: PublicKey,
    ) -> Result<Option<NodeId>, TokenRefused> {
        let hash = fingerprint(&secret.0);
        let tokens = self.tokens();
        let entry = tokens.iter().find(|entry| entry.hash == hash);
        let entry = entry.ok_or(TokenRefused::Unknown)?;
        match entry.used {
            Some(used) if used.key != key => Err(TokenRefused::Used(used.node)),
            _ if entry.expires <= seconds(now) => Err(TokenRefused::Expired),
            used => Ok(used.map(|used| used.node)),
        }
    }

    /// Notes whom a token was used for, or that it was not after all. Blocks until that is durable.
    ///
    /// # Errors
    /// It can't be written; nothing has changed.
    pub fn mark(&self, secret: Secret, used: Option<Used>) -> Result<(), PkiError> {
        let hash = fingerprint(&secret.0);
        let mut tokens = self.tokens();
        let mut next = tokens.clone();
        for entry in next.iter_mut().filter(|entry| entry.hash == hash) {
            entry.used = used;
        }
        self.save(&next)?;
        *tokens = next;
        Ok(())
    }

    /// The key of the seals on beacons, for a node that joins.
    #[must_use]
    pub const fn beacons(&self) -> [u8; 32] {
        self.beacons
    }

    /// A certificate for a node.
    ///
    /// # Errors
    /// Signing failed.
    pub fn certificate(&self, used: Used) -> Result<CertificateDer<'static>, PkiError> {
        self.authority.issue(used.node, used.key)
    }
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::NodeKey;
    use vocabulary::ClusterId;

    fn issuer(dir: &Path) -> Issuer {
        if super::super::identity::refuse_existing(dir).is_ok() {
            let authority = Authority::create(ClusterId(1)).unwrap();
            let parts = Identity::first(&authority, NodeId::new(0).unwrap()).unwrap();
            authority.save(dir).unwrap();
            parts.save(dir).unwrap();
        }
        Issuer::load(dir, &Identity::load(dir).unwrap())
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_token_is_good_for_one_machine_and_until_it_expires_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let later = now + Duration::from_secs(10);
        let token = issuer(dir.path())
            .token(now, Duration::from_secs(10), vec!["a:1".to_owned()])
            .unwrap();
        let text = std::fs::read_to_string(dir.path().join(files::TOKENS)).unwrap();
        assert!(!text.contains(&format!("{:?}", token.secret.0)));
        let [first, second] = [(); 2].map(|()| NodeKey::generate().unwrap().public());
        let issuer = issuer(dir.path());
        assert_eq!(issuer.check(now, token.secret, first), Ok(None));
        assert_eq!(
            issuer.check(later, token.secret, first),
            Err(TokenRefused::Expired)
        );
        assert_eq!(
            issuer.check(now, Secret([0; 16]), first),
            Err(TokenRefused::Unknown)
        );
        let node = NodeId::new(4).unwrap();
        issuer
            .mark(token.secret, Some(Used { key: first, node }))
            .unwrap();
        let issuer = self::issuer(dir.path());
        // The same machine again: it has not heard the answer.
        assert_eq!(issuer.check(now, token.secret, first), Ok(Some(node)));
        assert_eq!(
            issuer.check(now, token.secret, second),
            Err(TokenRefused::Used(node))
        );
        // Refused for a reason that can be mended: the token is good again.
        issuer.mark(token.secret, None).unwrap();
        assert_eq!(issuer.check(now, token.secret, second), Ok(None));
    }

    #[test]
    fn tokens_are_bounded_in_number_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let issuer = issuer(dir.path());
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        for bad in [Duration::ZERO, MAX_VALID + Duration::from_secs(1)] {
            let error = issuer.token(now, bad, Vec::new()).unwrap_err();
            assert!(matches!(error, IssueError::Validity));
        }
        for _ in 0..MAX_TOKENS {
            issuer
                .token(now, Duration::from_secs(10), Vec::new())
                .unwrap();
        }
        let error = issuer.token(now, Duration::from_secs(10), Vec::new());
        assert!(matches!(error.unwrap_err(), IssueError::TooMany));
        let later = now + Duration::from_secs(10);
        issuer
            .token(later, Duration::from_secs(10), Vec::new())
            .unwrap();
    }

    #[test]
    fn a_node_without_the_authoritys_key_hands_out_nothing() {
        let dir = tempfile::tempdir().unwrap();
        issuer(dir.path());
        std::fs::remove_file(dir.path().join(files::CA_KEY)).unwrap();
        let identity = Identity::load(dir.path()).unwrap();
        assert!(Issuer::load(dir.path(), &identity).unwrap().is_none());
    }
}
