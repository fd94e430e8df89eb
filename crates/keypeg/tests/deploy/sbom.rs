//! The list of components that is shipped with the program: it has each crate of the release build.

use super::root;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

/// Returns the list in a Debian package.
pub(super) fn of_package(package: &str) -> Value {
    let mut archive = Command::new("dpkg-deb");
    let archive = archive.args(["--fsys-tarfile", package]).output().unwrap().stdout;
    let packed = member(&["-x"], &archive, "./usr/share/doc/keypeg/sbom.cdx.json.gz");
    serde_json::from_slice(&filtered("gzip", &["-dc"], &packed)).unwrap()
}

/// Returns the list in an image: an archive with one layer, which is an archive too.
pub(super) fn of_image(image: &Path) -> Value {
    let image = std::fs::read(image).unwrap();
    let blob = |digest: &Value| {
        let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        member(&["-x"], &image, &format!("blobs/sha256/{digest}"))
    };
    let parsed = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
    let index = parsed(member(&["-x"], &image, "index.json"));
    let manifest = parsed(blob(&index["manifests"][0]["digest"]));
    let layer = blob(&manifest["layers"][0]["digest"]);
    parsed(member(&["-xz"], &layer, "usr/share/doc/keypeg/sbom.cdx.json"))
}

/// Returns a file of an archive.
fn member(how: &[&str], archive: &[u8], name: &str) -> Vec<u8> {
    filtered("tar", &[how, &["-O", "-f", "-", name]].concat(), archive)
}

/// Returns what a program makes of an input.
fn filtered(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    let pipes = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = pipes.spawn().unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let input = input.to_vec();
    // The program may end before it has read everything.
    let writer = std::thread::spawn(move || drop(std::io::Write::write_all(&mut stdin, &input)));
    let output = process.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{program} {args:?}");
    output.stdout
}

/// Fails unless the list has each crate that a release compiles, these packages and nothing else.
#[track_caller]
pub(super) fn names_every_crate(sbom: &Value, packages: &[&str]) {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(["tree", "--locked", "--package", "keypeg"]);
    command.args(["--edges", "no-dev", "--prefix", "none", "--format", "{p}"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout).unwrap();
    let compiled: BTreeSet<_> = tree.lines().map(name_and_version).collect();
    assert!(compiled.len() > 100, "{compiled:?}");
    let of = |one: &Value| {
        format!("{} {}", one["name"].as_str().unwrap(), one["version"].as_str().unwrap())
    };
    let components = sbom["components"].as_array().unwrap();
    let is_crate = |one: &&Value| one["purl"].as_str().unwrap().starts_with("pkg:cargo/");
    let mut listed: BTreeSet<_> = components.iter().filter(is_crate).map(of).collect();
    listed.insert(of(&sbom["metadata"]["component"]));
    assert_eq!(listed, compiled);
    let others = components.iter().filter(|one| !is_crate(one));
    let others: BTreeSet<_> = others.map(|one| one["name"].as_str().unwrap()).collect();
    assert!(packages.iter().all(|package| others.contains(package)), "{others:?}");
    assert_eq!(packages.is_empty(), others.is_empty(), "{others:?}");
    checks_details(components);
}

/// A published crate has a licence and the checksum of Cargo.lock; one of macros is not shipped.
#[track_caller]
fn checks_details(components: &[Value]) {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let of = |name: &str| components.iter().find(|one| one["name"] == name).expect(name);
    for one in components {
        let name = one["name"].as_str().unwrap();
        let Some(hash) = one["hashes"][0]["content"].as_str() else {
            let is_own = name.starts_with("keypeg-");
            assert!(is_own || one["purl"].as_str().unwrap().starts_with("pkg:deb/"), "{one}");
            continue;
        };
        let version = one["version"].as_str().unwrap();
        let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        let (_, entry) = lock.split_once(&entry).expect(name);
        let (entry, _) = entry.split_once("\n\n").unwrap_or((entry, ""));
        assert!(entry.contains(&format!("checksum = \"{hash}\"")), "{one}");
        assert!(one["licenses"][0]["expression"].is_string(), "{one}");
    }
    for (name, scope) in
        [("redb", "required"), ("rustls", "required"), ("serde_derive", "excluded")]
    {
        assert_eq!(of(name)["scope"], scope, "{name}");
    }
}

fn name_and_version(line: &str) -> String {
    let mut words = line.split(' ');
    let (name, version) = (words.next().unwrap(), words.next().unwrap());
    format!("{name} {}", version.strip_prefix('v').unwrap())
}
