use super::*;

fn register(core: &mut Core, scope: &str, fields: &[(&str, &str)]) -> Vec<(String, String, String)> {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let differences = core.register_fingerprint(scope.to_owned(), fields).unwrap();
    differences.into_iter().map(|difference| (difference.name, difference.ours, difference.theirs)).collect()
}

fn core() -> Core {
    Core::new(SETTINGS, Epoch::new(1), Millis::new(0))
}

#[test]
fn equal_fingerprints_differ_in_nothing() {
    let mut core = core();
    assert_eq!(register(&mut core, "s", &[("model", "m"), ("dtype", "bf16")]), []);
    assert_eq!(register(&mut core, "s", &[("dtype", "bf16"), ("model", "m")]), []);
    assert_eq!(register(&mut core, "other", &[("model", "x")]), [], "scopes are apart");
}

#[test]
fn differences_are_told_field_by_field_against_the_closest() {
    let mut core = core();
    register(&mut core, "s", &[("a", "9"), ("b", "9"), ("c", "9")]);
    register(&mut core, "s", &[("a", "1"), ("b", "2"), ("only", "theirs")]);
    let told = register(&mut core, "s", &[("a", "1"), ("b", "3"), ("new", "ours")]);
    let differ = |name: &str, ours: &str, theirs: &str| (name.to_owned(), ours.to_owned(), theirs.to_owned());
    assert_eq!(told, [differ("b", "3", "2"), differ("new", "ours", ""), differ("only", "", "theirs")]);
}

#[test]
fn fingerprints_are_bounded() {
    let mut core = core();
    for number in 0..2 * limits::SCOPE_FINGERPRINTS_MAX {
        register(&mut core, "s", &[("n", &number.to_string())]);
    }
    for number in 0..2 * limits::SCOPES_MAX {
        register(&mut core, &number.to_string(), &[]);
    }
    assert_eq!(register(&mut core, "s", &[("n", "x")]), [], "the scope longest unused was forgotten");
    let refused = |fields: Vec<(String, String)>| {
        let mut core = Core::new(SETTINGS, Epoch::new(1), Millis::new(0));
        core.register_fingerprint("s".to_owned(), fields).unwrap_err().to_string()
    };
    let field = |name: usize, bytes: usize| (name.to_string(), "x".repeat(bytes));
    assert!(refused((0..65).map(|name| field(name, 1)).collect()).contains("fields of the fingerprint"));
    assert!(refused(vec![field(0, 4097)]).contains("bytes of a fingerprint field"));
    assert!(refused((0..5).map(|name| field(name, 4096)).collect()).contains("bytes of the fingerprint"));
    let scope = core.register_fingerprint("x".repeat(1025), []).unwrap_err();
    assert!(scope.to_string().contains("bytes of the scope"), "{scope}");
}
