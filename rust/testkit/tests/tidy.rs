//! The laws of the tree, checked by reading it: which crate may name which, how long a file may be, what no file may
//! hold.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 800;

/// Which crates of ours each crate may name. A crate names only crates on lower floors; the two halves of floor 4
/// never see each other; what moves no bytes never links what does.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("memcache-types", &[]),
    ("memcache-config", &["memcache-types"]),
    ("memcache-proto", &["memcache-types"]),
    ("memcache-mailbox", &[]),
    ("memcache-pages", &[]),
    ("memcache-memory", &["memcache-types"]),
    ("memcache-transport", &["memcache-memory", "memcache-types"]),
    ("memcache-device", &["memcache-memory", "memcache-types"]),
    ("memcache-transport-rdma", &["memcache-memory", "memcache-transport", "memcache-types"]),
    (
        "memcache-client",
        &[
            "memcache-config",
            "memcache-device",
            "memcache-mailbox",
            "memcache-memory",
            "memcache-proto",
            "memcache-transport",
            "memcache-transport-rdma",
            "memcache-types",
        ],
    ),
    ("memcache-meta", &["memcache-config", "memcache-mailbox", "memcache-pages", "memcache-proto", "memcache-types"]),
    (
        "memcache-python",
        &[
            "memcache-client",
            "memcache-config",
            "memcache-meta",
            "memcache-proto",
            "memcache-transport",
            "memcache-types",
        ],
    ),
];

/// Foreign crates that stop at one door.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("pyo3", &["memcache-python"]),
    ("numpy", &["memcache-python"]),
    ("rdma-sys", &["memcache-transport-rdma"]),
    ("libloading", &["memcache-transport-rdma"]),
    ("ascend-sys", &[]),
];

/// Crates that move no bytes and therefore hold no unsafe code.
const FORBID_UNSAFE: &[&str] = &["rust/types", "rust/config", "rust/proto", "metaservice"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace is two floors up").to_owned()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

/// Normal and build dependencies of each of our crates.
fn shipped_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let shipped = dependencies
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| dependency["name"].as_str().expect("a name").to_owned())
                .collect();
            (package["name"].as_str().expect("a name").to_owned(), shipped)
        })
        .collect()
}

#[test]
fn arrows_point_down() {
    let all = shipped_dependencies();
    let ours: BTreeSet<&String> = all.keys().collect();
    for (name, dependencies) in &all {
        if name == "memcache-testkit" || name == "memcache-sim" {
            continue;
        }
        let (_, allowed) = MAY_NAME
            .iter()
            .find(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("{name} has no floor yet: add it to MAY_NAME"));
        for dependency in dependencies.iter().filter(|dependency| ours.contains(dependency)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not name {dependency}");
        }
    }
}

#[test]
fn doors_are_kept() {
    for (name, dependencies) in shipped_dependencies() {
        for (foreign, doors) in ONLY_IN {
            assert!(
                !dependencies.contains(*foreign) || doors.contains(&name.as_str()),
                "{name} names {foreign}, which only {doors:?} may"
            );
        }
    }
}

#[test]
fn crates_that_move_no_bytes_forbid_unsafe() {
    for folder in FORBID_UNSAFE {
        let lib = fs::read_to_string(root().join(folder).join("src/lib.rs")).expect("a lib.rs");
        assert!(lib.contains("#![forbid(unsafe_code)]"), "{folder}/src/lib.rs must forbid unsafe code");
    }
}

/// Every tracked text file with its content.
fn sources() -> Vec<(PathBuf, String)> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let output = output.expect("git runs; the tree is a checkout");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sources: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .split('\0')
        .filter(|name| !name.is_empty())
        .filter_map(|name| Some((PathBuf::from(name), fs::read_to_string(root().join(name)).ok()?)))
        .collect();
    assert!(sources.len() > 50, "only {} files are tracked: nothing would be checked", sources.len());
    sources
}

fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    path.extension().is_some_and(|extension| wanted.iter().any(|one| extension == *one))
}

#[test]
fn files_are_short_enough_to_read() {
    for (path, text) in sources() {
        if has_extension(&path, &["rs", "py", "pyi", "proto", "sh"]) {
            let lines = text.lines().count();
            assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines; the limit is {FILE_LINES_MAX}", path.display());
        }
    }
}

#[test]
fn no_file_names_a_home_or_a_registry() {
    // Spelt in parts, so that this file does not find itself.
    let forbidden = [
        ["/ro", "ot/"],
        ["/ho", "me/"],
        ["py", "pi.org"],
        ["crates", ".io"],
        ["pythonhosted", ".org"],
        ["registry.npm", "js"],
    ];
    for (path, text) in sources() {
        if path.ends_with("Cargo.lock") {
            continue;
        }
        for parts in forbidden {
            let needle = parts.concat();
            assert!(!text.contains(&needle), "{} names {needle}", path.display());
        }
    }
}

#[test]
fn every_line_of_a_contract_names_live_tests() {
    let all: Vec<(PathBuf, String)> = sources();
    let live: HashSet<&str> = all.iter().flat_map(|(path, text)| tests_in(path, text)).collect();
    let contracts = all.iter().filter(|(path, _)| path.ends_with("CONTRACT.md"));
    let promises: Vec<&str> = contracts.flat_map(|(_, text)| text.split("\n- ").skip(1)).collect();
    assert!(!promises.is_empty(), "no contract");
    for promise in promises {
        let promise = promise.split("\n\n").next().unwrap_or(promise);
        let named: Vec<&str> = promise.split('`').skip(1).step_by(2).filter(|word| is_test_name(word)).collect();
        assert!(!named.is_empty(), "no test is named: {promise}");
        for test in named {
            assert!(live.contains(test), "no test of this name runs: {test}");
        }
    }
}

/// The tests of a source file that run when nobody names them.
fn tests_in<'a>(path: &Path, text: &'a str) -> Vec<&'a str> {
    let name = |line: &'a str, word| line.strip_prefix(word).and_then(|rest| rest.split('(').next());
    if has_extension(path, &["py"]) {
        let is_test = |name: &&str| name.starts_with("test_");
        return text.lines().filter_map(|line| name(line.trim(), "def ")).filter(is_test).collect();
    }
    let (mut found, mut runs) = (Vec::new(), None);
    for line in text.lines().map(str::trim) {
        if line.ends_with("test]") {
            runs = runs.or(Some(true));
        } else if line.starts_with("#[ignore") {
            runs = Some(false);
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            let named = name(line, "fn ").or_else(|| name(line, "async fn "));
            found.extend(named.filter(|_| runs == Some(true)));
            runs = None;
        }
    }
    found
}

/// Test names have at least three words.
fn is_test_name(word: &str) -> bool {
    word.split('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}
