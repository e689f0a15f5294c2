//! The cluster's certificate authority: one key, made by `init`, that signs nodes' certificates. It
//! stays on the node that made it (and in its backup); the others need only its certificate.

use super::files::{self, Access};
use super::{PkiError, member_name};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SignatureAlgorithm, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use vocabulary::{ClusterId, NodeId};

/// An Ed25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// When certificates are valid, in years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    from: i32,
    until: i32,
}

impl Validity {
    /// What nodes get. From before the beginning of a clock that was reset, to a year that nobody
    /// will have to think of: a cluster must not fall apart on a date.
    pub const NODE: Self = Self {
        from: 1970,
        until: 2200,
    };

    /// For tests of what is refused.
    #[cfg(test)]
    pub(crate) const fn years(from: i32, until: i32) -> Self {
        Self { from, until }
    }
}

/// A private key and its public half.
#[derive(Debug)]
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<Self, PkiError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ED25519)?))
    }

    /// The one in this text.
    ///
    /// # Errors
    /// There is none.
    pub fn from_pem(text: &[u8]) -> Result<Self, PkiError> {
        let text = std::str::from_utf8(text).map_err(|_| PkiError::NotAKey)?;
        let key = KeyPair::from_pem(text).map_err(|_| PkiError::NotAKey)?;
        if key.is_compatible(&PKCS_ED25519) {
            Ok(Self(key))
        } else {
            Err(PkiError::NotAKey)
        }
    }

    /// As text.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// As the TLS library takes it.
    pub(super) fn der(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        rustls::pki_types::PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        // An Ed25519 key has 32 bytes.
        if let Some(raw) = self.0.public_key_raw().first_chunk() {
            bytes = *raw;
        }
        PublicKey(bytes)
    }
}

/// The authority.
#[derive(Debug)]
pub struct Authority {
    cluster: ClusterId,
    issuer: rcgen::Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// A new one for a new cluster.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn create(cluster: ClusterId) -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let params = authority_params(cluster);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self {
            cluster,
            issuer: rcgen::Issuer::new(params, key),
            certificate,
        })
    }

    /// The one whose key is in this directory; `None` where there is none.
    ///
    /// # Errors
    /// Its files can't be read or are damaged.
    pub fn load(directory: &Path, cluster: ClusterId) -> Result<Option<Self>, PkiError> {
        let path = directory.join(files::CA_KEY);
        let Some(text) = files::read(&path)? else {
            return Ok(None);
        };
        let NodeKey(key) = NodeKey::from_pem(&text).map_err(files::damaged(&path))?;
        let certificate = load_certificate(&directory.join(files::CA_CERTIFICATE))?;
        Ok(Some(Self {
            cluster,
            issuer: rcgen::Issuer::new(authority_params(cluster), key),
            certificate,
        }))
    }

    /// Writes key and certificate.
    ///
    /// # Errors
    /// [`PkiError::Io`].
    pub fn save(&self, directory: &Path) -> Result<(), PkiError> {
        let key = self.issuer.key().serialize_pem();
        files::write(
            &directory.join(files::CA_KEY),
            key.as_bytes(),
            Access::Private,
        )
    }

    /// Its certificate.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for a node with this key.
    ///
    /// # Errors
    /// Signing failed.
    pub fn issue(&self, node: NodeId, key: PublicKey) -> Result<CertificateDer<'static>, PkiError> {
        self.issue_for(self.cluster, node, key, Validity::NODE)
    }

    pub(crate) fn issue_for(
        &self,
        cluster: ClusterId,
        node: NodeId,
        key: PublicKey,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, PkiError> {
        let name = member_name(cluster, node);
        let mut params = CertificateParams::new([name.clone()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(validity.from, 1, 1);
        params.not_after = date_time_ymd(validity.until, 1, 1);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        Ok(params.signed_by(&key, &self.issuer)?.der().clone())
    }
}

fn authority_params(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("lockstep cluster {cluster}"));
    params.not_before = date_time_ymd(Validity::NODE.from, 1, 1);
    params.not_after = date_time_ymd(Validity::NODE.until, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Reads a certificate.
///
/// # Errors
/// It can't be read or is none; [`PkiError::NoIdentity`] where the file is missing.
pub(super) fn load_certificate(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    let text = files::read(path)?.ok_or_else(|| PkiError::NoIdentity { path: path.into() })?;
    CertificateDer::from_pem_slice(&text)
        .map_err(|_| PkiError::NotACertificate)
        .map_err(files::damaged(path))
}

/// A certificate as text (RFC 7468).
pub(super) fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::member_of;

    #[test]
    fn a_certificate_says_whose_it_is_and_an_authority_that_is_loaded_signs_like_the_first_one() {
        let (dir, cluster) = (tempfile::tempdir().unwrap(), ClusterId(7));
        let authority = Authority::create(cluster).unwrap();
        assert!(Authority::load(dir.path(), cluster).unwrap().is_none());
        authority.save(dir.path()).unwrap();
        std::fs::write(
            dir.path().join(files::CA_CERTIFICATE),
            certificate_pem(authority.certificate()),
        )
        .unwrap();
        let loaded = Authority::load(dir.path(), cluster).unwrap().unwrap();
        assert_eq!(loaded.certificate(), authority.certificate());
        let key = NodeKey::generate().unwrap();
        let node = NodeId::new(31).unwrap();
        for authority in [&authority, &loaded] {
            let certificate = authority.issue(node, key.public()).unwrap();
            assert_eq!(member_of(&certificate).unwrap(), (cluster, node));
        }
        assert!(matches!(
            member_of(authority.certificate()),
            Err(PkiError::NotANode)
        ));
    }

    #[test]
    fn a_damaged_key_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(files::CA_KEY), "what").unwrap();
        let error = Authority::load(dir.path(), ClusterId(1)).unwrap_err();
        assert!(error.to_string().contains("ca.key is damaged"), "{error}");
    }
}
