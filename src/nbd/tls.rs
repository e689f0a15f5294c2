//! The operator's certificates for NBD, as the data plane uses them: TLS 1.3 and 1.2.

use crate::config::NbdTls;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFilesError {
    #[error("{}: {source}", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{} holds no certificate (PEM, BEGIN CERTIFICATE)", path.display())]
    Empty { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Authority {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error("{}: {source}", path.display())]
    Clients {
        path: PathBuf,
        source: VerifierBuilderError,
    },
    #[error("{} and {} are no pair: {source}", certificate.display(), key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFilesError> {
    let wrap = |source| TlsFilesError::Pem {
        path: path.into(),
        source,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(wrap)?.collect();
    let found = found.map_err(wrap)?;
    if found.is_empty() {
        return Err(TlsFilesError::Empty { path: path.into() });
    }
    Ok(found)
}

/// What the files held when they were last read. Clones are one and the same.
#[derive(Clone, Debug)]
pub(crate) struct CurrentTls {
    files: NbdTls,
    config: Arc<Mutex<Arc<ServerConfig>>>,
}

impl CurrentTls {
    /// Reads the files.
    pub(crate) fn load(files: &NbdTls) -> Result<Self, TlsFilesError> {
        Ok(Self {
            files: files.clone(),
            config: Arc::new(Mutex::new(load(files)?)),
        })
    }

    /// For a new connection.
    pub(crate) fn get(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config())
    }

    /// Reads the files anew. After an error all is as it was.
    pub(crate) fn reload(&self) -> Result<(), TlsFilesError> {
        let new = load(&self.files)?;
        *self.config() = new;
        Ok(())
    }

    fn config(&self) -> MutexGuard<'_, Arc<ServerConfig>> {
        self.config
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

fn load(files: &NbdTls) -> Result<Arc<ServerConfig>, TlsFilesError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pair = |source| TlsFilesError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(pair)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|source| TlsFilesError::Authority {
                        path: path.clone(),
                        source,
                    })?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(|source| TlsFilesError::Clients {
                path: path.clone(),
                source,
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsFilesError::Pem {
        path: files.key.clone(),
        source,
    })?;
    let config = builder.with_single_cert(chain, key).map_err(pair)?;
    Ok(Arc::new(config))
}
