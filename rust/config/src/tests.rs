#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::io::Write;
use std::path::PathBuf;

use super::*;

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A file that is gone when the test is over.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("memcache-config-{}-{name}", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn each_layer_goes_over_the_one_before() {
    let file = TempFile::new("layers", "lease_ms = 100\nheartbeat_ms = 200\nlog = \"warn\"\n");
    let environment = pairs(&[("MEMCACHE_META_HEARTBEAT_MS", "300"), ("MEMCACHE_META_LOG", "error"), ("PATH", "x")]);
    let config = MetaConfig::load(Some(&file.0), environment, &pairs(&[("log", "debug")])).unwrap();
    assert_eq!((config.lease_ms, config.heartbeat_ms, config.log.as_str()), (100, 300, "debug"));
    assert_eq!(config.reservation_ttl_ms, MetaConfig::default().reservation_ttl_ms);
}

#[test]
fn keys_may_stand_in_a_section_of_the_component() {
    let file = TempFile::new("section", "[store]\nmeta_address = \"unix:/m\"\nlend_bytes = 1048576\n");
    let config = StoreConfig::load(Some(&file.0), [], &[]).unwrap();
    assert_eq!(config.meta_address, Some(Endpoint::Unix("/m".into())));
    assert_eq!(config.lend_bytes.get(), 1 << 20);
}

#[test]
fn unknown_keys_name_their_origin_and_the_nearest_known_one() {
    let file = TempFile::new("unknown", "leese_ms = 1\n");
    let from_file = MetaConfig::load(Some(&file.0), [], &[]).unwrap_err().to_string();
    assert!(from_file.contains(file.0.to_str().unwrap()), "{from_file}");
    assert!(from_file.contains("\"leese_ms\"") && from_file.contains("\"lease_ms\""), "{from_file}");

    let environment = pairs(&[("MEMCACHE_LOCAL_LEND_BYTE", "1GB")]);
    let from_environment = LocalConfig::load(None, environment, &[]).unwrap_err().to_string();
    assert!(from_environment.contains("MEMCACHE_LOCAL_LEND_BYTE"), "{from_environment}");
    assert!(from_environment.contains("\"lend_bytes\""), "{from_environment}");

    let from_override = StoreConfig::load(None, [], &pairs(&[("meta_adress", "x")])).unwrap_err().to_string();
    assert!(from_override.contains("override") && from_override.contains("\"meta_address\""), "{from_override}");
}

#[test]
fn bad_values_name_the_key_the_value_and_what_is_allowed() {
    for (key, value, allowed) in [
        ("lease_ms", "9", "10 to 600000"),
        ("lease_ms", "soon", "10 to 600000"),
        ("listen", "nowhere", "host:port"),
        ("eviction_high_watermark", "1.5", "up to 1"),
        ("eviction_high_watermark", "NaN", "up to 1"),
    ] {
        let error = MetaConfig::load(None, [], &pairs(&[(key, value)])).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(value) && error.contains(allowed), "{error}");
    }
    for (key, value) in
        [("lend_bytes", "1KB"), ("protocol", "rdma"), ("checksum", "sometimes"), ("huge_pages", "maybe")]
    {
        let error = StoreConfig::load(None, [], &pairs(&[(key, value)])).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(value), "{error}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_in_a_file_is_refused() {
    let file = TempFile::new("kind", "lease_ms = \"1000\"\n");
    assert!(matches!(MetaConfig::load(Some(&file.0), [], &[]), Err(ConfigError::BadValue { key: "lease_ms", .. })));
    let file = TempFile::new("syntax", "lease_ms = = 1\n");
    assert!(matches!(MetaConfig::load(Some(&file.0), [], &[]), Err(ConfigError::Syntax { .. })));
    let missing = PathBuf::from("no/such/file.toml");
    let error = MetaConfig::load(Some(&missing), [], &[]).unwrap_err();
    assert!(error.to_string().contains("no/such/file.toml"), "{error}");
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let low = pairs(&[("eviction_low_watermark", "0.95")]);
    let error = MetaConfig::load(None, [], &low).unwrap_err().to_string();
    assert!(error.contains("eviction_low_watermark") && error.contains("eviction_high_watermark"), "{error}");
    let dead = pairs(&[("node_dead_ms", "1500")]);
    assert!(MetaConfig::load(None, [], &dead).unwrap_err().to_string().contains("heartbeat_ms"));
}

#[test]
fn components_leave_each_others_variables_alone() {
    let environment = pairs(&[
        ("MEMCACHE_META_ADDRESS", "unix:/pool"),
        ("MEMCACHE_META_LISTEN", "127.0.0.1:0"),
        ("MEMCACHE_LOCAL_LEND_BYTES", "2GB"),
        ("MEMCACHE_SERVERS", "somebody else's"),
        ("MEMCACHE_CONFIG", ""),
    ]);
    let meta = MetaConfig::load(None, environment.clone(), &[]).unwrap();
    assert_eq!(meta.listen, Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 });
    let local = LocalConfig::load(None, environment.clone(), &[]).unwrap();
    assert_eq!(local.lend_bytes.get(), 2 << 30);
    let store = StoreConfig::load_or_env_file(None, environment, &[]).unwrap();
    assert_eq!(store.meta_address, Some(Endpoint::Unix("/pool".into())));
}

#[test]
fn a_slip_in_a_variable_of_the_store_is_told() {
    for (variable, key) in [("MEMCACHE_META_ADRESS", "\"meta_address\""), ("MEMCACHE_TIMEOUT_M", "\"timeout_ms\"")] {
        let error = StoreConfig::load(None, pairs(&[(variable, "x")]), &[]).unwrap_err().to_string();
        assert!(error.contains(variable) && error.contains(key), "{error}");
    }
    let error = MetaConfig::load(None, pairs(&[("MEMCACHE_META_LISTN", "x")]), &[]);
    assert!(error.unwrap_err().to_string().contains("\"listen\""));
}

#[test]
fn the_environment_may_name_the_file_of_a_client() {
    let file = TempFile::new("named", "timeout_ms = 77\n");
    let environment = pairs(&[("MEMCACHE_CONFIG", file.0.to_str().unwrap())]);
    assert_eq!(StoreConfig::load_or_env_file(None, environment.clone(), &[]).unwrap().timeout_ms, 77);
    let other = TempFile::new("other", "timeout_ms = 78\n");
    assert_eq!(StoreConfig::load_or_env_file(Some(&other.0), environment, &[]).unwrap().timeout_ms, 78);
}

#[test]
fn entries_load_back_as_overrides() {
    let overrides =
        pairs(&[("meta_address", "[::1]:9"), ("lend_bytes", "3MB"), ("protocol", "host_tcp"), ("huge_pages", "yes")]);
    let config = StoreConfig::load(None, [], &overrides).unwrap();
    let entries: Vec<(String, String)> =
        config.entries().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    assert_eq!(StoreConfig::load(None, [], &entries).unwrap(), config);
}

#[test]
fn the_files_in_conf_hold_exactly_the_defaults() {
    let conf = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../conf");
    let read = |name: &str| std::fs::read_to_string(conf.join(name)).unwrap();
    assert_eq!(read("meta.toml"), MetaConfig::default_toml());
    assert_eq!(read("local.toml"), LocalConfig::default_toml());
    assert_eq!(read("store.toml"), StoreConfig::default_toml());
    assert_eq!(MetaConfig::load(Some(&conf.join("meta.toml")), [], &[]).unwrap(), MetaConfig::default());
    assert_eq!(LocalConfig::load(Some(&conf.join("local.toml")), [], &[]).unwrap(), LocalConfig::default());
    assert_eq!(StoreConfig::load(Some(&conf.join("store.toml")), [], &[]).unwrap(), StoreConfig::default());
}
