//! Certificate authorities made for one test, and what they sign.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// OpenSSL's own default differs from one system to the next.
const REQUEST: &str = "[req]\nprompt = no\ndistinguished_name = name\n[name]\nCN = for one test\n";
const AUTHORITY: &str = "[extensions]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n\
                         subjectKeyIdentifier = hash\n";

/// A self-signed authority, in a folder of its own.
pub struct Authority {
    folder: TempDir,
}

/// A certificate and its private key, both PEM.
pub struct Identity {
    pub certificate: PathBuf,
    /// PKCS #8, encrypted if a password was given.
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("request.cnf"), REQUEST).expect("a file");
        fs::write(at("authority.cnf"), format!("{REQUEST}{AUTHORITY}")).expect("a file");
        openssl(folder.path(), &KEY, &["-out", "ca.key"]);
        let signing = ["req", "-x509", "-new", "-key", "ca.key", "-days", "2", "-out", "ca.pem"];
        openssl(folder.path(), &signing, &["-config", "authority.cnf", "-extensions", "extensions"]);
        Self { folder }
    }

    /// The authority's certificate: what a client is told to trust.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Signs a certificate for the DNS name `host`, and for no address.
    pub fn sign(&self, host: &str) -> Identity {
        let folder = self.folder.path();
        let extensions = format!(
            "subjectAltName = DNS:{host}\nbasicConstraints = CA:FALSE\nkeyUsage = digitalSignature\n\
             extendedKeyUsage = serverAuth, clientAuth\nauthorityKeyIdentifier = keyid\n"
        );
        fs::write(folder.join(format!("{host}.cnf")), extensions).expect("a file");
        let (key, request, certificate) =
            (format!("{host}.key"), format!("{host}.csr"), format!("{host}.pem"));
        openssl(folder, &KEY, &["-out", &key]);
        openssl(folder, &["req", "-new", "-key", &key, "-config", "request.cnf", "-out", &request], &[]);
        let signing = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2"];
        let extensions = format!("{host}.cnf");
        openssl(folder, &signing, &["-CAcreateserial", "-extfile", &extensions, "-out", &certificate]);
        Identity { certificate: folder.join(certificate), key: folder.join(key) }
    }

    /// As [`sign`](Self::sign), with a key that only `password` opens.
    pub fn sign_with_password(&self, host: &str, password: &str) -> Identity {
        let identity = self.sign(host);
        let encrypted = self.folder.path().join(format!("{host}.encrypted.key"));
        fs::write(self.folder.path().join("password"), password).expect("a file");
        let key = identity.key.to_str().expect("UTF-8");
        let written = encrypted.to_str().expect("UTF-8");
        let encryption = ["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "file:password"];
        openssl(self.folder.path(), &encryption, &["-in", key, "-out", written]);
        Identity { key: encrypted, ..identity }
    }
}

impl Identity {
    /// Key and certificate in one PEM file, as Kafka's brokers want them.
    pub fn keystore(&self) -> PathBuf {
        let path = self.certificate.with_extension("keystore.pem");
        let content = fs::read_to_string(&self.key).and_then(|key| {
            let certificate = fs::read_to_string(&self.certificate)?;
            Ok(key + &certificate)
        });
        fs::write(&path, content.expect("a key and a certificate")).expect("a file");
        path
    }
}

const KEY: [&str; 5] = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

fn openssl(folder: &Path, arguments: &[&str], more: &[&str]) {
    let output = Command::new("openssl").args(arguments).args(more).current_dir(folder).output();
    let output = output.expect("openssl starts; Debian's package is called openssl");
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
