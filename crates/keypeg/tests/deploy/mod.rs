//! What `deploy/` ships: the unit, the Debian package, the image and the Kubernetes example are
//! built from the binary under test, and used as an operator uses them.

mod prometheus;
mod proxies;
mod sbom;

use crate::support::{Server, TempDir, binary, keypeg, skipped};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The exit code of a script that cannot run on this machine; its last line says why.
const UNAVAILABLE: i32 = 69;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join("deploy").join(path)).unwrap()
}

/// Runs a script of `deploy/`; `None` if it cannot run here, which is reported.
fn script(test: &str, name: &str, args: &[&str]) -> Option<Output> {
    let output = Command::new(root().join("deploy").join(name)).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(UNAVAILABLE) {
        skipped(test, said.trim_end().lines().last().unwrap_or_default());
        return None;
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{name} {args:?}: {printed}{said}");
    Some(output)
}

/// Returns the values of a setting of the unit, without those that reset it.
fn settings<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let values = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.filter(|value| !value.is_empty()).collect()
}

fn seconds(text: &str) -> u64 {
    match text.strip_suffix("min") {
        Some(minutes) => 60 * minutes.parse::<u64>().unwrap(),
        None => text.trim_end_matches('s').parse().unwrap(),
    }
}

#[test]
fn systemd_finds_the_unit_valid_and_hardened() {
    const NAME: &str = "systemd_finds_the_unit_valid_and_hardened";
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return skipped(NAME, "there is no systemd-analyze");
    }
    let dir = TempDir::new();
    let unit = dir.path().join("keypeg.service");
    let text = text("systemd/keypeg.service");
    std::fs::write(&unit, text.replace("/usr/bin/keypeg", &binary().into_string().unwrap()))
        .unwrap();
    // Exposure 2.0 of 10 at most; the unit had 1.4.
    for args in [
        &["security", "--offline=true", "--no-pager", "--threshold=20"][..],
        &["verify", "--man=no"],
    ] {
        let output = Command::new("systemd-analyze").args(args).arg(&unit).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        assert!(!said.contains("Unknown key") && !said.contains("ignoring"), "{said}");
    }
}

#[test]
fn the_unit_agrees_with_the_server() {
    let unit = text("systemd/keypeg.service");
    let of = |name| settings(&unit, name);
    let timeouts = include_str!("../../src/http/timeouts.rs");
    let (_, drain) = timeouts.split_once("DRAIN_TIME: Duration = Duration::from_secs(").unwrap();
    let drain: u64 = drain.split(')').next().unwrap().parse().unwrap();
    assert!(seconds(of("TimeoutStopSec")[0]) >= drain + 5, "{drain} s");
    let connections: u64 = of("LimitNOFILE")[0].parse().unwrap();
    // With 256 HTTP threads, the listener for operations and a store of 128 shards.
    assert!(connections >= 3 * 10_000 + 64 + 256 * 4 + 20 + 16 + 128 * 24);
    assert_eq!(of("RestartPreventExitStatus"), ["64 65 77 78"]);
    assert_eq!(of("LoadCredential"), ["tokens:keypeg.tokens", "seal-key:keypeg.seal-key"]);
    assert_eq!((of("Type"), of("KillSignal")), (vec!["notify"], vec!["SIGTERM"]));
}

#[test]
fn the_configuration_of_the_package_starts_a_server() {
    let dir = TempDir::new();
    let file = dir.path().join("keypeg.toml");
    let log = dir.path().join("log");
    let packaged = text("debian/keypeg.toml");
    // The options that are commented out are valid too.
    let all = packaged.replace("\n#tokens = ", "\ntokens = ").replace("\n#audit = ", "\naudit = ");
    assert_ne!(all, packaged);
    let tokens = crate::support::tokens::Tokens::new();
    tokens.add("ci", "*", &["admin"], &[]);
    let audit = dir.path().join("audit.log");
    for text in [packaged, all] {
        let text = text
            .replace("/var/lib/keypeg", dir.path().join("data").to_str().unwrap())
            .replace("/etc/keypeg/tokens.toml", tokens.path().to_str().unwrap())
            .replace("/var/log/keypeg/audit.log", audit.to_str().unwrap());
        std::fs::write(&file, text).unwrap();
        let server = Server::logged(&mut keypeg(&["--config", file.to_str().unwrap()]), &log);
        server.client().ask("GET /readyz").is(200, &json!({}));
    }
    assert!(audit.exists());
}

#[test]
fn the_containerfile_makes_the_same_image() {
    let (file, build) = (text("oci/Containerfile"), text("oci/build"));
    for part in [
        "/usr/bin/keypeg",
        "/var/lib/keypeg",
        "KEYPEG_LISTEN=0.0.0.0:8000",
        "KEYPEG_DATA=/var/lib/keypeg",
        "65532",
        "SIGTERM",
        "deploy/sbom",
        "\"serve\"",
    ] {
        assert!(file.contains(part) && build.contains(part), "{part}");
    }
}

#[test]
fn the_kubernetes_example_is_valid_and_agrees_with_the_server() {
    script("the_kubernetes_example_is_valid_and_agrees_with_the_server", "kubernetes/check", &[]);
}

/// What these scripts do includes a restart after which the keys exist: they need a store that keeps
/// its data.
mod durability {
    use super::*;

    #[test]
    fn the_debian_package_installs_upgrades_and_leaves_as_it_should() {
        const NAME: &str = "the_debian_package_installs_upgrades_and_leaves_as_it_should";
        let dir = TempDir::new();
        let [out, binary] = [dir.path().to_str().unwrap(), &binary().into_string().unwrap()];
        let args = ["--binary", binary, "--out", out, "--compression", "gzip"];
        let built = script(NAME, "debian/build", &args);
        let Some(built) = built else { return };
        let package = String::from_utf8(built.stdout).unwrap();
        sbom::names_every_crate(&sbom::of_package(package.trim_end()), &[]);
        script(NAME, "debian/test", &[package.trim_end()]);
    }

    #[test]
    fn the_image_is_reproducible_and_runs_on_a_read_only_root() {
        const NAME: &str = "the_image_is_reproducible_and_runs_on_a_read_only_root";
        let dir = TempDir::new();
        let binary = binary().into_string().unwrap();
        let build = |file: &str| {
            let out = dir.path().join(file);
            let args = ["--binary", &binary, "--out", out.to_str().unwrap()];
            let built = script(NAME, "oci/build", &args)?;
            Some((built.stdout, std::fs::read(&out).unwrap()))
        };
        let Some(first) = build("first.tar") else { return };
        let Some(second) = build("second.tar") else { return };
        assert!(first == second, "two builds have one digest and the same bytes");
        sbom::names_every_crate(
            &sbom::of_image(&dir.path().join("first.tar")),
            &["libc6", "libgcc-s1"],
        );
        script(NAME, "oci/test", &[dir.path().join("first.tar").to_str().unwrap()]);
    }
}
