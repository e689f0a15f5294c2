//! An operator's own certificates for NBD: an authority, the server's certificate, a client's, and one of
//! a client that another authority vouches for. In the layout of files that libnbd and QEMU expect.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::path::{Path, PathBuf};

/// The files; they go with it.
pub(crate) struct Certificates {
    directory: tempfile::TempDir,
}

fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).expect("an authority").pem();
    (Issuer::new(params, key), certificate)
}

/// Certificate and key for the names, PEM.
fn issue(issuer: &Issuer<'static, KeyPair>, names: &[&str]) -> [String; 2] {
    let key = KeyPair::generate().expect("a key");
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, "nbd");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    [certificate.pem(), key.serialize_pem()]
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("it can be made");
            std::fs::write(path, text).expect("the file can be written");
        };
        let (ours, ca) = authority("operator");
        let (theirs, _) = authority("stranger");
        let [certificate, key] = issue(&ours, &["127.0.0.1", "localhost"]);
        write("server.crt", &certificate);
        write("server.key", &key);
        write("ca.crt", &ca);
        for (who, issuer) in [
            ("client", Some(&ours)),
            ("stranger", Some(&theirs)),
            ("nobody", None),
        ] {
            // All of them trust the server.
            write(&format!("{who}/ca-cert.pem"), &ca);
            if let Some(issuer) = issuer {
                let [certificate, key] = issue(issuer, &["client"]);
                write(&format!("{who}/client-cert.pem"), &certificate);
                write(&format!("{who}/client-key.pem"), &key);
            }
        }
        Self { directory }
    }

    /// A new certificate for the server, of another authority: `renewed` are clients that trust it.
    pub(crate) fn renew(&self) {
        let (authority, ca) = authority("another operator");
        let [certificate, key] = issue(&authority, &["127.0.0.1", "localhost"]);
        let trusting = self.path("renewed");
        std::fs::create_dir_all(&trusting).expect("a directory");
        for (path, text) in [
            (self.path("server.crt"), &certificate),
            (self.path("server.key"), &key),
            (trusting.join("ca-cert.pem"), &ca),
        ] {
            std::fs::write(path, text).expect("the file can be written");
        }
    }

    /// The server's certificate is one no more.
    pub(crate) fn spoil(&self) {
        std::fs::write(self.path("server.crt"), "nothing").expect("the file can be written");
    }

    /// `client`, `stranger`, `nobody` or `renewed`: a directory as clients take it.
    pub(crate) fn of(&self, who: &str) -> PathBuf {
        self.path(who)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The section of the configuration file.
    pub(crate) fn section(&self, mode: &str, clients_prove: bool) -> String {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let mut section = format!(
            "\n[nbd_tls]\nmode = \"{mode}\"\ncertificate = {}\nkey = {}\n",
            quoted(&self.path("server.crt")),
            quoted(&self.path("server.key")),
        );
        if clients_prove {
            section += &format!("client_ca = {}\n", quoted(&self.path("ca.crt")));
        }
        section
    }
}
