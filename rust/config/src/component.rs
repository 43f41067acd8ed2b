//! What all components have in common: a table of keys, and one way to load them.

use crate::error::ConfigError;

/// One key of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its name in files and in code.
    pub name: &'static str,
    /// What it means, with its unit.
    pub doc: &'static str,
    /// What it may be.
    pub allowed: &'static str,
}

/// A value as one of the layers gives it.
pub(crate) enum Given<'a> {
    Value(&'a toml::Value),
    Text(&'a str),
}

/// A struct of settings.
pub(crate) trait Component: Default {
    /// Name of the section its keys may stand in, and of its file in `conf/`.
    const NAME: &'static str;
    /// What its environment variables begin with.
    const ENV_PREFIX: &'static str;
    /// First line of its file in `conf/`.
    const HEADING: &'static str;
    /// Its keys in order.
    const KEYS: &'static [KeyInfo];

    /// Sets one key. `None`: the value is not allowed. The key is one of [`Self::KEYS`].
    fn set(&mut self, key: &str, given: &Given<'_>) -> Option<()>;

    /// One key as it would stand in a file.
    fn value(&self, key: &str) -> toml::Value;

    /// Rules over several keys.
    fn check(&self) -> Result<(), ConfigError>;
}

/// Declares a component: its struct, defaults and table of keys.
macro_rules! component {
    (
        $(#[$doc:meta])*
        $component:ident, $name:literal, $prefix:literal, $heading:literal;
        $(
            #[doc = $key_doc:literal]
            $key:ident: $type:ty = $default:expr, $allowed:literal, $accept:expr;
        )+
    ) => {
        $(#[$doc])*
        #[allow(clippy::doc_markdown, reason = "the same texts stand in the files of conf/")]
        #[derive(Clone, Debug, PartialEq)]
        pub struct $component {
            $(
                #[doc = $key_doc]
                #[doc = ""]
                #[doc = concat!("Allowed: `", $allowed, "`.")]
                pub $key: $type,
            )+
        }

        impl Default for $component {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl $crate::component::Component for $component {
            const NAME: &'static str = $name;
            const ENV_PREFIX: &'static str = $prefix;
            const HEADING: &'static str = $heading;
            const KEYS: &'static [$crate::component::KeyInfo] = &[
                $($crate::component::KeyInfo {
                    name: stringify!($key),
                    doc: $key_doc.trim_ascii(),
                    allowed: $allowed,
                },)+
            ];

            fn set(&mut self, key: &str, given: &$crate::component::Given<'_>) -> Option<()> {
                match key {
                    $(stringify!($key) => {
                        let value = match given {
                            $crate::component::Given::Value(value) => <$type as $crate::setting::Setting>::from_value(value),
                            $crate::component::Given::Text(text) => <$type as $crate::setting::Setting>::from_text(text),
                        };
                        let accept: fn(&$type) -> bool = $accept;
                        self.$key = value.filter(accept)?;
                    })+
                    _ => return None,
                }
                Some(())
            }

            fn value(&self, key: &str) -> toml::Value {
                match key {
                    $(stringify!($key) => $crate::setting::Setting::to_value(&self.$key),)+
                    _ => toml::Value::String(String::new()),
                }
            }

            fn check(&self) -> Result<(), $crate::error::ConfigError> {
                self.check_together()
            }
        }

        impl $component {
            /// Loads settings: defaults, then `file`, then `environment` (variables that begin with
            #[doc = concat!("`", $prefix, "`), then `overrides` (key and value as text).")]
            ///
            /// Errors name the file, variable or override at fault, the key, and what would be accepted.
            pub fn load(
                file: Option<&std::path::Path>,
                environment: impl IntoIterator<Item = (String, String)>,
                overrides: &[(String, String)],
            ) -> Result<Self, $crate::error::ConfigError> {
                $crate::layers::load(file, environment, overrides)
            }

            /// Its keys, in the order of its file.
            pub const fn keys() -> &'static [$crate::component::KeyInfo] {
                <Self as $crate::component::Component>::KEYS
            }

            /// Every key and its value as text that [`Self::load`] takes back as overrides.
            pub fn entries(&self) -> Vec<(&'static str, String)> {
                $crate::layers::entries(self)
            }

            /// A commented file that holds exactly the defaults: what stands in `conf/`.
            pub fn default_toml() -> String {
                $crate::layers::default_toml::<Self>()
            }
        }
    };
}
pub(crate) use component;
