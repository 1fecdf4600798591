//! API keys and TLS: who may ask, and certificates that are replaced while the
//! server runs. The certificates are made by `openssl`, the peer by `curl`:
//! neither shares code with the server.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::{Deployment, Options, Server, infer, onnx, paths, wait};
use serde_json::json;

/// Makes an authority, and certificates for the server and one client.
fn make_certificates(folder: &Path) -> Result<()> {
    let args =
        format!("req -x509 {NEW_KEY} -days 2 -keyout ca.key -out ca.pem -subj /CN=authority");
    openssl(folder, &args)?;
    make_certificate(folder, "server", "/CN=first")?;
    make_certificate(folder, "client", "/CN=client")
}

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

fn make_certificate(folder: &Path, name: &str, subject: &str) -> Result<()> {
    fs::write(folder.join("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")?;
    let files = format!("-keyout {name}.key -out {name}.csr");
    openssl(folder, &format!("req {NEW_KEY} {files} -subj {subject}"))?;
    let signer = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san";
    openssl(folder, &format!("x509 -req -in {name}.csr {signer} -out {name}.pem"))
}

/// Arguments are separated by spaces.
fn openssl(folder: &Path, args: &str) -> Result<()> {
    let output = Command::new("openssl").args(args.split(' ')).current_dir(folder).output();
    let output = output.context("openssl is needed (Debian: apt install openssl)")?;
    ensure!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Whether curl was answered, and what it printed: the status, and the subject
/// of the server's certificate.
fn curl(folder: &Path, url: &str, args: &[&str]) -> Result<(bool, String)> {
    let told = "status %{http_code} version %{http_version}";
    let output = Command::new("curl")
        .args(["--silent", "--verbose", "--max-time", "10", "--cacert", "ca.pem"])
        .args(["--output", "/dev/null", "--write-out", told])
        .args(args)
        .arg(url)
        .current_dir(folder)
        .output()
        .context("curl is needed (Debian: apt install curl)")?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

fn tls_server(folder: &Path, extra: &str) -> Result<(Server, String)> {
    let file = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n{extra}",
        file("server.pem"),
        file("server.key")
    );
    let server = Server::start_with(Options { config, ..Options::default() })?;
    let url = format!("https://{}/v2/health/live", server.http);
    Ok((server, url))
}

#[test]
fn certificates_are_replaced_without_a_restart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    make_certificates(folder.path())?;
    let (server, url) = tls_server(folder.path(), "")?;
    for (version, args) in [("1.1", ["--http1.1"]), ("2", ["--http2"])] {
        let (ok, text) = curl(folder.path(), &url, &args)?;
        assert!(ok && text.contains(&format!("status 200 version {version}")), "{text}");
        assert!(text.contains("CN=first"), "{text}");
    }
    // A broken file leaves the old certificate.
    let good = fs::read(folder.path().join("server.pem"))?;
    fs::write(folder.path().join("server.pem"), "nothing")?;
    wait::until("the change to be refused", Duration::from_secs(10), || {
        Ok(server.log().contains("stays as it was"))
    })?;
    assert!(curl(folder.path(), &url, &[])?.0);
    fs::write(folder.path().join("server.pem"), good)?;
    make_certificate(folder.path(), "server", "/CN=second")?;
    wait::until("the new certificate", Duration::from_secs(10), || {
        Ok(curl(folder.path(), &url, &[])?.1.contains("CN=second"))
    })?;
    // Plain HTTP is no TLS, and disturbs nobody.
    assert!(server.client().get("/v2/health/live").is_err());
    assert!(curl(folder.path(), &url, &[])?.0);
    Ok(())
}

/// Upstreams and webhooks over TLS, of a server that only some know.
#[test]
fn other_servers_are_known_by_their_certificates() -> Result<()> {
    let folder = tempfile::tempdir()?;
    make_certificates(folder.path())?;
    let (other, _) = tls_server(folder.path(), "")?;
    let model = |tag: f32| Deployment::onnx(onnx::tagged_sum(tag));
    other.admin()?.deploy("sum", &model(5.0))?;
    let over = |scheme: &str, address| {
        Deployment::of(Part::upstream_over(scheme, address).set("model", "sum"))
    };

    let stranger = Server::start()?;
    let refusal = stranger.admin()?.deploy_refused("sum", &over("https", other.http))?;
    ensure!(refusal.message.contains("certificate"), "{refusal}");

    let env = vec![("SSL_CERT_FILE", folder.path().join("ca.pem"))];
    let collector = format!("https://{}/v1/traces", other.http);
    let config = format!("[tracing]\nendpoint = \"{collector}\"\nsample_every = 1\n");
    let server = Server::start_with(Options { env, config, ..Options::default() })?;
    let mut admin = server.admin()?;
    for (scheme, address) in [("https", other.http), ("grpcs", other.grpc)] {
        admin.deploy(scheme, &over(scheme, address))?;
        let body = infer::json_fp32("x", 1, &[0.0]);
        let reply = server.client().send("POST", &infer::path(scheme), &[], &body)?.ok()?.json()?;
        assert_eq!(reply["outputs"][0]["data"][0], 5.0, "{scheme}: {reply}");
    }

    // The other server has no such page, and says so over TLS; of the hook below
    // as well.
    let refused = || {
        let log = server.log();
        Ok(log.contains("traces cannot be exported") && log.contains("404"))
    };
    wait::until("the traces to be refused", Duration::from_secs(20), refused)?;

    admin.deploy("sum", &model(1.0))?;
    let hook = json!({"url": format!("https://{}/hook", other.http), "confirm": true});
    let strategy = Part::builtin("canary").set("interval", "0.1s").set("min_samples", 0);
    let rollout = Rollout { hook: Some(hook), ..Rollout::of(strategy) };
    admin.deploy("sum", &model(2.0).rollout(rollout))?;
    wait::until("the hook to be asked", Duration::from_secs(20), || {
        Ok(admin.rollout("sum")?["error"].as_str().is_some_and(|error| error.contains("404")))
    })
}

#[test]
fn clients_show_certificates_where_they_must() -> Result<()> {
    let folder = tempfile::tempdir()?;
    make_certificates(folder.path())?;
    let authority = folder.path().join("ca.pem");
    let extra = format!("client_ca = \"{}\"\n", authority.display());
    let (_server, url) = tls_server(folder.path(), &extra)?;
    let (ok, text) = curl(folder.path(), &url, &[])?;
    assert!(!ok, "a client without a certificate was served: {text}");
    let (ok, text) = curl(folder.path(), &url, &["--cert", "client.pem", "--key", "client.key"])?;
    assert!(ok && text.contains("status 200"), "{text}");
    Ok(())
}

fn keys(action: &str, name: &str, file: &Path) -> Result<String> {
    let output =
        Command::new(paths::mortise()).args(["keys", action, name, "--file"]).arg(file).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[test]
fn keys_open_the_data_plane_until_they_are_removed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("keys.txt");
    let key = keys("add", "ann", &file)?;
    let config = format!("[auth]\napi_keys = \"{}\"\n", file.display());
    let server = Server::start_with(Options { config, ..Options::default() })?;
    let status = |name: &str, value: &str, path: &str| -> Result<u16> {
        Ok(server.client().with_header(name, value).get(path)?.status)
    };
    assert_eq!(server.client().get("/v2/health/ready")?.status, 200);
    let refused = server.client().get("/v2")?;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
    assert!(refused.text().contains("X-API-Key"), "{}", refused.text());
    assert_eq!(status("x-api-key", &key, "/v2")?, 200);
    assert_eq!(status("authorization", &format!("Bearer {key}"), "/v2")?, 200);
    assert_eq!(status("x-api-key", "mk_0", "/v2")?, 401);
    assert_eq!(status("authorization", &format!("Basic {key}"), "/v2")?, 401);
    keys("remove", "ann", &file)?;
    wait::until("the removed key to be refused", Duration::from_secs(10), || {
        Ok(status("x-api-key", &key, "/v2")? == 401)
    })
}
