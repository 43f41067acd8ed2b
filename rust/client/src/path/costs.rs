//! What the legs cost here: measured when first needed, kept in a file of this machine, corrected by what transfers take.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use memcache_device::Device;
use memcache_transport::plan::{CORRECTION_UNIT, CostModel, Leg, LegCost, PlannedGroup};
use memcache_transport::{Link, Protocol};
use parking_lot::Mutex;
use thiserror::Error;
use toml::{Table, Value};

use super::measure::measure;
use super::state::DeviceState;

/// Older measurements are made again.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// One transfer moves a correction by this part of what it was off.
const LEARN_SHARE: u64 = 16;
/// Corrections stay within these, in thousandths: past them the costs are wrong, not the weather.
const CORRECTIONS: std::ops::RangeInclusive<u64> = CORRECTION_UNIT / 4..=CORRECTION_UNIT * 4;
/// Transfers shorter than this say more about the scheduler than about the legs.
const LEARN_MIN: Duration = Duration::from_micros(500);
/// Transfers that took so many times as long as predicted met something else: first touches of memory, other programs.
const LEARN_FACTOR_MAX: u32 = 3;

/// Why a file of costs cannot be used.
#[derive(Debug, Error)]
#[error("costs in {}: {why}", file.display())]
pub struct CostsError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// Where costs come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CostSource {
    /// Measured here, and kept in the user's cache folder.
    #[default]
    Measured,
    /// A file as the cache holds it; what it does not name has its default. Nothing is measured.
    File(PathBuf),
    /// These, for every link and device.
    Fixed(Box<CostModel>),
}

/// Costs by link and device, such as `host_shm twin:0`, and `host_shm twin:0 relay twin:1` where the owner relays.
#[derive(Debug)]
pub struct Costs {
    source: CostSource,
    /// The cache of this machine, where there is a folder for it.
    file: Option<PathBuf>,
    known: Mutex<BTreeMap<String, CostModel>>,
}

impl Costs {
    /// Costs from this source.
    pub fn open(source: &CostSource) -> Result<Self, CostsError> {
        let (file, known) = match source {
            CostSource::Fixed(_) => (None, BTreeMap::new()),
            CostSource::File(file) => (None, read(file)?),
            CostSource::Measured => {
                let file = cache_file();
                let known = file.as_deref().filter(|file| is_fresh(file)).map(read).transpose();
                // A cache that cannot be read is measured again.
                (file, known.unwrap_or_default().unwrap_or_default())
            }
        };
        Ok(Self { source: source.clone(), file, known: Mutex::new(known) })
    }

    /// All that are known, by link and device.
    pub fn known(&self) -> BTreeMap<String, CostModel> {
        self.known.lock().clone()
    }

    /// The costs over this protocol as far as they are known, to any owner that relays or to one that does not; nothing
    /// is measured.
    pub(crate) fn named(&self, protocol: Protocol, device: &dyn Device, relay: bool) -> CostModel {
        if let CostSource::Fixed(costs) = &self.source {
            return **costs;
        }
        self.found(protocol, device, relay).map_or_else(CostModel::default, |(_, costs)| costs)
    }

    fn found(&self, protocol: Protocol, device: &dyn Device, relay: bool) -> Option<(String, CostModel)> {
        let known = self.known.lock();
        let plain = format!("{protocol} {}", device.id());
        let over_relay = known.iter().find(|(name, _)| relay && name.starts_with(&format!("{plain} relay ")));
        over_relay.or_else(|| known.get_key_value(&plain)).map(|(name, costs)| (name.clone(), *costs))
    }

    /// Where [`named`](Self::named) takes its costs from, in words.
    pub(crate) fn origin(&self, protocol: Protocol, device: &dyn Device, relay: bool) -> String {
        let file = match &self.source {
            CostSource::Fixed(_) => return "given".to_owned(),
            CostSource::File(file) => Some(file),
            CostSource::Measured => self.file.as_ref(),
        };
        let Some(file) = file.map(|file| file.display()) else {
            return "defaults: there is no folder to keep measured ones in".to_owned();
        };
        match self.found(protocol, device, relay) {
            Some((name, _)) => format!("\"{name}\" of {file}"),
            None => format!("defaults: {file} has none for \"{protocol} {}\"", device.id()),
        }
    }

    /// The costs between a link and a device; measured now if they are not known.
    pub(crate) fn between(&self, link: &Arc<dyn Link>, state: &DeviceState) -> CostModel {
        let name = name(link, state);
        // Held while measuring: two at a time would measure each other.
        let mut known = self.known.lock();
        if let Some(costs) = known.get(&name) {
            return *costs;
        }
        let costs = match &self.source {
            CostSource::Fixed(costs) => **costs,
            CostSource::File(_) => CostModel::default(),
            CostSource::Measured => measure(link, state),
        };
        known.insert(name, costs);
        if let (CostSource::Measured, Some(file)) = (&self.source, &self.file) {
            // What a test double costs is nobody else's business.
            let kept = known.iter().filter(|(name, _)| !name.contains("twin:"));
            if let Err(error) = save(file, kept) {
                tracing::debug!(%error, file = %file.display(), "measured costs are not kept");
            }
        }
        costs
    }

    /// Corrects the costs of a path by what a get took.
    pub(crate) fn learn(&self, link: &Arc<dyn Link>, state: &DeviceState, group: &PlannedGroup, took: Duration) {
        let predicted = Duration::from_nanos(group.predicted_ns);
        if took < LEARN_MIN || took > predicted * LEARN_FACTOR_MAX || matches!(self.source, CostSource::Fixed(_)) {
            return;
        }
        let mut known = self.known.lock();
        if let Some(costs) = known.get_mut(&name(link, state)) {
            let before = costs.correction(group.path);
            let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            *costs = costs.corrected(group.path, corrected(before, group.predicted_ns, took));
        }
    }
}

/// The correction after a transfer that was predicted with `before` to take `predicted_ns`.
fn corrected(before: u64, predicted_ns: u64, took_ns: u64) -> u64 {
    let seen = u128::from(before) * u128::from(took_ns) / u128::from(predicted_ns.max(1));
    let seen = u64::try_from(seen).unwrap_or(u64::MAX).clamp(*CORRECTIONS.start(), *CORRECTIONS.end());
    // Rounded towards what was seen, so that small differences count too.
    let step = before.abs_diff(seen).div_ceil(LEARN_SHARE);
    if seen >= before { before + step } else { before - step }
}

fn name(link: &Arc<dyn Link>, state: &DeviceState) -> String {
    let plain = format!("{} {}", link.protocol(), state.device.id());
    match link.relay() {
        Some(relay) if state.device.links_devices() => format!("{plain} relay {}", relay.device()),
        _ => plain,
    }
}

/// A file of this user and this machine: folders may be shared between machines.
fn cache_file() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let uname = rustix::system::uname();
    Some(folder.join("memcache").join(format!("costs-{}.toml", uname.nodename().to_string_lossy())))
}

fn is_fresh(file: &FilePath) -> bool {
    let modified = fs::metadata(file).and_then(|found| found.modified());
    modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < AGE_MAX))
}

fn read(file: &FilePath) -> Result<BTreeMap<String, CostModel>, CostsError> {
    let bad = |why: String| CostsError { file: file.to_owned(), why };
    let text = fs::read_to_string(file).map_err(|error| bad(error.to_string()))?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| bad(error.to_string()))?;
    table
        .iter()
        .map(|(name, legs)| {
            let legs = legs.as_table().ok_or_else(|| bad(format!("{name:?} is no table of legs")))?;
            let costs = legs.iter().try_fold(CostModel::default(), |costs, (leg, cost)| {
                let found = Leg::from_name(leg).ok_or_else(|| bad(format!("{name:?}: unknown leg {leg:?}")))?;
                Ok(costs.with(found, leg_cost(cost).map_err(|why| bad(format!("{name:?}.{leg}: {why}")))?))
            })?;
            Ok((name.clone(), costs))
        })
        .collect()
}

fn leg_cost(value: &Value) -> Result<LegCost, String> {
    let number = |key: &str, least: u64| {
        let found = value.get(key).and_then(Value::as_integer).and_then(|number| u64::try_from(number).ok());
        found.filter(|number| *number >= least).ok_or_else(|| format!("want {key}, a whole number of at least {least}"))
    };
    Ok(LegCost {
        batch_ns: number("batch_ns", 0)?,
        piece_ns: number("piece_ns", 0)?,
        bytes_per_s: number("bytes_per_s", 1)?,
    })
}

fn save<'a>(file: &FilePath, known: impl Iterator<Item = (&'a String, &'a CostModel)>) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let draft = file.with_extension(format!("{}.new", std::process::id()));
    fs::write(&draft, text_of(known))?;
    fs::rename(&draft, file)
}

/// Costs as a file has them.
fn text_of<'a>(known: impl Iterator<Item = (&'a String, &'a CostModel)>) -> String {
    let mut text =
        "# What the legs of transfers cost on this machine: measured, made again when a month old.\n".to_owned();
    for (name, costs) in known {
        for leg in Leg::ALL {
            let LegCost { batch_ns, piece_ns, bytes_per_s } = costs.leg(leg);
            let bytes_per_s = (*bytes_per_s).min(u64::MAX / 2);
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\n[\"{name}\".{}]\nbatch_ns = {batch_ns}\npiece_ns = {piece_ns}\nbytes_per_s = {bytes_per_s}\n",
                leg.name()
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read_again() {
        let folder = std::env::temp_dir().join(format!("memcache-costs-{}", std::process::id()));
        let file = folder.join("costs.toml");
        let cost = LegCost { batch_ns: 1, piece_ns: 2, bytes_per_s: 3 };
        let known = BTreeMap::from([("host_shm twin:0".to_owned(), CostModel::default().with(Leg::Relay, cost))]);
        save(&file, known.iter()).unwrap();
        assert_eq!(read(&file).unwrap(), known);
        for (text, said) in [
            ("[\"a b\".no_leg]\nbatch_ns = 1", "no_leg"),
            ("[\"a b\".relay]\nbatch_ns = -1", "batch_ns"),
            ("[\"a b\".relay]\nbatch_ns = 1\npiece_ns = 1\nbytes_per_s = 0", "bytes_per_s"),
            ("a = 1", "table"),
            ("[", "costs in"),
        ] {
            fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn corrections_follow_what_is_seen_slowly_and_within_bounds() {
        let mut correction = CORRECTION_UNIT;
        assert_eq!(corrected(correction, 1000, 1000), CORRECTION_UNIT);
        for _ in 0..200 {
            // The legs say 1000, the truth is 2000.
            let predicted = 1000 * correction / CORRECTION_UNIT;
            let next = corrected(correction, predicted, 2000);
            assert!(next.abs_diff(correction) <= CORRECTION_UNIT / 8, "one transfer changed it much");
            correction = next;
        }
        assert!(correction.abs_diff(2 * CORRECTION_UNIT) < 20, "{correction}");
        assert_eq!(corrected(4 * CORRECTION_UNIT, 1, u64::MAX), 4 * CORRECTION_UNIT);
    }
}
