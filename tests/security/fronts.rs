//! What stands between a client and a server in a test.

use super::certificates::Identity;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// Forwards connections for as long as the test's runtime is there.
pub struct Front {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Front {
    /// Ends TLS with `identity` and passes on what is in it, so that `upstream` needs to know none.
    pub async fn tls(identity: &Identity, upstream: SocketAddr, drop_first: usize) -> Self {
        let certificates: Vec<_> = CertificateDer::pem_file_iter(&identity.certificate)
            .expect("a certificate")
            .collect::<Result<_, _>>()
            .expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .expect("a key that belongs to the certificate");
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), upstream, drop_first).await
    }

    /// Passes bytes on as they are.
    pub async fn plain(upstream: SocketAddr, drop_first: usize) -> Self {
        Self::start(None, upstream, drop_first).await
    }

    /// Closes the first `drop_first` connections at once and forwards the others.
    async fn start(tls: Option<TlsAcceptor>, upstream: SocketAddr, drop_first: usize) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if count.fetch_add(1, Ordering::Relaxed) < drop_first {
                    continue;
                }
                let tls = tls.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(upstream).await?;
                    match tls {
                        // A client that does not trust us says so and leaves.
                        Some(tls) => {
                            let mut client = tls.accept(client).await?;
                            tokio::io::copy_bidirectional(&mut client, &mut server).await
                        }
                        None => tokio::io::copy_bidirectional(&mut client, &mut server).await,
                    }
                });
            }
        });
        Self { address, accepted }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections so far, dropped ones included.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}
