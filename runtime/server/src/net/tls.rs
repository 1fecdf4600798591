use crate::config::TlsSettings;
use crate::reload::Stamp;
use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

/// TLS of the data plane. Certificates can be replaced while it serves:
/// connections keep the one they began with.
pub(crate) struct Tls {
    settings: TlsSettings,
    current: ArcSwap<ServerConfig>,
    stamp: Mutex<Stamp>,
}

impl Tls {
    /// # Errors
    /// When a file cannot be read, is not PEM, or key and certificate differ.
    pub(crate) fn load(settings: TlsSettings) -> Result<Arc<Self>> {
        // Before reading, so that a change in between is seen next time.
        let stamp = Mutex::new(Stamp::of(settings.files()));
        let current = ArcSwap::from_pointee(server_config(&settings)?);
        Ok(Arc::new(Self { settings, current, stamp }))
    }

    /// The server's side of a handshake.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.current.load_full()).accept(stream).await
    }

    /// Takes new files for the connections to come. Returns whether there were
    /// any.
    ///
    /// # Errors
    /// As [`Tls::load`]; the old certificate then stays.
    pub(crate) fn reload_if_changed(&self) -> Result<bool> {
        let seen = Stamp::of(self.settings.files());
        if !self.stamp.lock().replace(seen) {
            return Ok(false);
        }
        self.current.store(Arc::new(server_config(&self.settings)?));
        Ok(true)
    }
}

fn server_config(settings: &TlsSettings) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .context("no TLS version is left")?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.with_context(|| {
                format!("cannot verify clients with {} (tls.client_ca)", path.display())
            })?)
        }
    };
    let chain = certificates("tls.certificate", &settings.certificate)?;
    let key = private_key(&settings.key)?;
    let mut config = builder.with_single_cert(chain, key).with_context(|| {
        let (certificate, key) = (settings.certificate.display(), settings.key.display());
        format!("the certificate {certificate} and the key {key} do not work together")
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let explain = || format!("cannot read PEM certificates from {} ({key})", path.display());
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .with_context(explain)?
        .collect::<Result<_, _>>()
        .with_context(explain)?;
    anyhow::ensure!(!found.is_empty(), "{} ({key}) holds no PEM certificate", path.display());
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .with_context(|| format!("cannot read a PEM private key from {} (tls.key)", path.display()))
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls.client_ca", path)? {
        roots.add(certificate).with_context(|| {
            format!("{} (tls.client_ca) holds an unusable certificate", path.display())
        })?;
    }
    Ok(roots)
}
