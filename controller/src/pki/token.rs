//! The line of text that lets a machine join: where the issuer is, which cluster it is, the
//! fingerprint of the cluster's authority, so that nobody can stand in for it, and a secret that is
//! good for one node. A token is as good as a key to the cluster until it is used or expires.
//!
//! The text is `lsjoin1_` and, in base64url without padding:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 16 | cluster id, little-endian like all numbers |
//! | 16 | 1 | the issuing node |
//! | 17 | 32 | SHA-256 of the authority's certificate (DER) |
//! | 49 | 16 | secret |
//! | 65 | 8 | expires: seconds since 1970 |
//! | 73 | … | the issuer's control addresses, separated by a space |
//! | end - 4 | 4 | crc32c of all before: a token that was cut off or mistyped says so |

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;
use vocabulary::{ClusterId, NodeId};

const PREFIX: &str = "lsjoin1_";
const FAMILY: &str = "lsjoin";
const FIXED_BYTES: usize = 73;
const CRC_BYTES: usize = 4;
/// Longest text that is looked at; addresses of a node fit many times.
const MAX_TEXT_BYTES: usize = 4096;

/// A SHA-256.
pub type Fingerprint = [u8; 32];

/// The SHA-256 of these bytes.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> Fingerprint {
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest(&SHA256, bytes).as_ref());
    fingerprint
}

/// What proves that a machine was let in. Random; shown nowhere but in the token.
#[derive(Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Secret(pub [u8; 16]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node that made it and will take it.
    pub issuer: NodeId,
    /// Of the certificate of the cluster's authority.
    pub authority: Fingerprint,
    /// What it proves.
    pub secret: Secret,
    /// Seconds since 1970.
    pub expires: u64,
    /// Where the issuer's controller listens, `host:port`.
    pub addresses: Vec<String>,
}

impl Token {
    /// Is this the certificate of the authority that is meant?
    #[must_use]
    pub fn names(&self, authority: &CertificateDer<'_>) -> bool {
        fingerprint(authority) == self.authority
    }
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("not a join token: it begins with {PREFIX} and `lockstep token` prints it")]
    NotAToken,
    /// Of another version.
    #[error("a join token of another version of lockstep; use the same version on all nodes")]
    Version,
    /// Not all of it.
    #[error("the join token is damaged: cut off or mistyped; copy the whole line")]
    Damaged,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.cluster.0.to_le_bytes());
        bytes.push(self.issuer.get());
        bytes.extend_from_slice(&self.authority);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.expires.to_le_bytes());
        bytes.extend_from_slice(self.addresses.join(" ").as_bytes());
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if !text.starts_with(FAMILY) || text.len() > MAX_TEXT_BYTES {
            return Err(TokenError::NotAToken);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(TokenError::Version)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| TokenError::Damaged)?;
        decode(&bytes).ok_or(TokenError::Damaged)
    }
}

fn decode(bytes: &[u8]) -> Option<Token> {
    let (bytes, crc) = bytes.split_last_chunk::<CRC_BYTES>()?;
    if crc32c::crc32c(bytes) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (fixed, addresses) = bytes.split_first_chunk::<FIXED_BYTES>()?;
    let (cluster, rest) = fixed.split_first_chunk()?;
    let (&[issuer], rest) = rest.split_first_chunk()?;
    let (authority, rest) = rest.split_first_chunk()?;
    let (secret, expires) = rest.split_first_chunk()?;
    let addresses = std::str::from_utf8(addresses).ok()?;
    let addresses: Vec<String> = addresses.split(' ').map(str::to_owned).collect();
    if addresses.iter().any(String::is_empty) {
        return None;
    }
    Some(Token {
        cluster: ClusterId(u128::from_le_bytes(*cluster)),
        issuer: NodeId::new(issuer)?,
        authority: *authority,
        secret: Secret(*secret),
        expires: u64::from_le_bytes(*expires.first_chunk()?),
        addresses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        Token {
            cluster: ClusterId(1),
            issuer: NodeId::new(2).unwrap(),
            authority: [3; 32],
            secret: Secret([4; 16]),
            expires: 5,
            addresses: vec!["10.0.0.1:7788".to_owned(), "[fd00::1]:7788".to_owned()],
        }
    }

    #[test]
    fn the_text_of_a_token_stays_as_it_is_and_is_one_line() {
        let text = token().to_string();
        assert_eq!(
            text,
            concat!(
                "lsjoin1_AQAAAAAAAAAAAAAAAAAAAAIDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwQEBAQEBAQE",
                "BAQEBAQEBAQFAAAAAAAAADEwLjAuMC4xOjc3ODggW2ZkMDA6OjFdOjc3ODgl1kPz",
            )
        );
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
    }

    #[test]
    fn what_is_not_a_token_is_told_from_one_that_is_damaged_or_newer() {
        let text = token().to_string();
        let newer = text.replacen("lsjoin1_", "lsjoin2_", 1);
        let long = format!("{PREFIX}{}", "A".repeat(MAX_TEXT_BYTES));
        for (bad, expected) in [
            ("", TokenError::NotAToken),
            ("nbd://127.0.0.1", TokenError::NotAToken),
            (long.as_str(), TokenError::NotAToken),
            (newer.as_str(), TokenError::Version),
            (&text[..text.len() - 1], TokenError::Damaged),
            (&text[..20], TokenError::Damaged),
            (PREFIX, TokenError::Damaged),
        ] {
            assert_eq!(bad.parse::<Token>(), Err(expected), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_token_comes_back_as_it_was(
            cluster: u128, issuer in 0..NodeId::LIMIT, authority: [u8; 32], secret: [u8; 16],
            expires: u64,
            addresses in proptest::collection::vec("[a-z0-9.:\\[\\]]{1,20}", 1..4),
        ) {
            let token = Token {
                cluster: ClusterId(cluster),
                issuer: NodeId::new(issuer).unwrap(),
                authority,
                secret: Secret(secret),
                expires,
                addresses,
            };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn a_token_with_one_character_changed_is_refused(at in 8..150usize, with in "[A-Za-z0-9_-]") {
            let text = token().to_string();
            let at = at.min(text.len() - 1);
            let mut changed = text.clone();
            changed.replace_range(at..=at, &with);
            if changed != text {
                prop_assert!(changed.parse::<Token>().is_err());
            }
        }

        #[test]
        fn no_text_and_no_bytes_break_the_parser(text in ".{0,200}", bytes: Vec<u8>) {
            let _ = text.parse::<Token>();
            let _ = format!("{PREFIX}{text}").parse::<Token>();
            let encoded = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
            let _ = encoded.parse::<Token>();
            let crc = crc32c::crc32c(&bytes).to_le_bytes();
            let _ = decode(&[bytes, crc.to_vec()].concat());
        }
    }
}
