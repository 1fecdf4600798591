//! Whom this server believes when it asks others over TLS: whoever a certificate
//! of this machine vouches for.

use mortise_types::{Error, Result};
use std::sync::{Arc, OnceLock};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// The certificates of this machine, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`;
/// read once, on first use.
///
/// # Errors
/// `NotReady` when there are none.
fn certificates() -> Result<&'static [CertificateDer<'static>]> {
    static FOUND: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "certificates of this machine cannot be read");
        }
        found.certs
    });
    if found.is_empty() {
        return Err(Error::not_ready(
            "this machine has no certificates to know other servers by: install its package of \
             them (Debian: ca-certificates), or name a PEM file in SSL_CERT_FILE",
        ));
    }
    Ok(found)
}

/// The same, for connections of hyper.
///
/// # Errors
/// As [`certificates`].
pub(crate) fn roots() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // What cannot be used vouches for nobody.
    roots.add_parsable_certificates(certificates()?.iter().cloned());
    Ok(roots)
}

/// Believes `roots` alone.
///
/// # Errors
/// `Internal` when no version of TLS is left.
pub(crate) fn client_config(roots: RootCertStore) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal(format!("no TLS version is left: {error}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// For requests of ureq to `url`. Where plain HTTP leads on to TLS, the same
/// certificates count.
///
/// # Errors
/// As [`certificates`], when `url` asks for TLS.
pub(crate) fn agent_config(url: &str) -> Result<TlsConfig> {
    let is_secure = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
    let known = match certificates() {
        Err(error) if is_secure => return Err(error),
        found => found.unwrap_or_default(),
    };
    let known = known.iter().map(|found| Certificate::from_der(found).to_owned()).collect();
    Ok(TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(known))).build())
}
