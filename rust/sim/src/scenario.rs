//! What one seed stands for: how many take part, how the book is set, what goes wrong.

use memcache_meta::core::{EvictionPolicy, SearchLimits, Settings, limits};

use crate::memory::LINE_BYTES;
use crate::rng::Rng;

/// A rule broken on purpose, to see that the checks notice. The product is never changed: the world around it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sabotage {
    /// Everybody keeps to the rules.
    #[default]
    None,
    /// Readers take what they find without looking at the trailer, and take no care of the end of their lease.
    TrailerIgnored,
    /// Clients are told three times the life that their reservations have: the space of late writers does not rest.
    NoRest,
    /// Every lease ends at once, behind the back of its holder.
    LeasesForgotten,
    /// A restarted book counts from where the first one counted.
    EpochRepeated,
    /// The book's clock stands still.
    ClockStopped,
    /// Tickets name the beginning of their segment.
    OffsetsLost,
    /// Nodes are never told that there are copies to make.
    WorkNotTold,
    /// Once found, a key is said to be there for ever.
    LocateRemembered,
    /// Removers are never told that nodes have not told all.
    UntoldHidden,
    /// Readers are never told that memory rests.
    RestHidden,
    /// Nodes do not look again when their memory has rested.
    NotLookedAgain,
    /// Removers clear no records.
    RecordsLeft,
    /// Nodes say that they have told all, and have told nothing.
    NothingListed,
    /// Nobody tells the book of damage.
    DamageUntold,
    /// Who removes everything writes no floors.
    FloorsLeft,
    /// The book hears that memory was lent before, and not under which life of it.
    LifeHidden,
    /// Nodes number their lives by the clock alone.
    LivesByClock,
}

/// One of these decides what goes first.
const POLICIES: [EvictionPolicy; 3] = [EvictionPolicy::Adaptive, EvictionPolicy::Lru, EvictionPolicy::S3Fifo];

/// What one seed stands for. Times in milliseconds.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each kind of fault is there or not, whatever the others are")]
pub struct Scenario {
    /// The rule that is broken.
    pub sabotage: Sabotage,
    /// How the book is set.
    pub settings: Settings,
    /// How many lend memory.
    pub nodes: u64,
    /// How many put and get.
    pub clients: u64,
    /// How many keys they share.
    pub keys: u64,
    /// When everything stops going wrong.
    pub calm_at: u64,
    /// Percentage of messages lost.
    pub drop: u64,
    /// Percentage of messages that arrive twice.
    pub duplicate: u64,
    /// Percentage of messages that arrive late.
    pub delay: u64,
    /// Percentage of the steps of a copy that stall.
    pub stall: u64,
    /// Longest that one write takes.
    pub write_ms_max: u64,
    /// Whether readers compare checksums.
    pub checksum: bool,
    /// Pause between two faults; 0 for none.
    pub fault_every: u64,
    /// Whether nodes crash, leave, fall silent or become slow.
    pub node_faults: bool,
    /// Whether the book starts anew with empty memory.
    pub restarts: bool,
    /// Whether the book's clock jumps ahead of everybody else's.
    pub jumps: bool,
    /// Places in the table of each segment; 0: no tables, and nothing is listed.
    pub records: u32,
    /// Whether the memory of nodes is a file, which outlives their processes.
    pub files: bool,
    /// Objects told in one message.
    pub part: usize,
    /// Percentage of puts without a checksum.
    pub unsummed: u64,
    /// Whether somebody removes everything now and then.
    pub clears: bool,
    /// Whether wall clocks are set back.
    pub set_back: bool,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn draw(rng: &mut Rng, sabotage: Sabotage) -> Self {
        let quiet = rng.chance(10);
        let mut odds = |percent: u64, most: u64| if !quiet && rng.chance(percent) { rng.between(1, most) } else { 0 };
        let (drop, duplicate, delay, stall) = (odds(60, 15), odds(60, 15), odds(60, 20), odds(80, 12));
        let node_faults = odds(60, 1) == 1;
        let restarts = odds(50, 1) == 1;
        let jumps = odds(20, 1) == 1;
        let overlong = odds(20, 1) == 1;
        let reservation_ttl_ms: u32 = if rng.chance(50) { 200 } else { 400 };
        let lease_ms = if rng.chance(50) { 100 } else { 600 };
        let ttl = u64::from(reservation_ttl_ms);
        // Three fences keep late writers from others' bytes. While the book lives and nodes stay, a write may take
        // until its space has rested. Where memory can be lent anew, until a reservation made just before is over.
        let write_ms_max = match (jumps || overlong, node_faults || restarts || delay > 0) {
            (true, _) => 4 * ttl,
            (false, true) => ttl / 2 - 1,
            (false, false) => ttl + ttl * 2 / 5,
        };
        let mut drawn = Self {
            sabotage,
            settings: Settings {
                reservation_ttl_ms,
                lease_ms,
                heartbeat_ms: 20,
                node_dead_ms: 120,
                high_watermark_ppm: 950_000,
                low_watermark_ppm: 800_000,
                hard_pin_ppm: 250_000,
                hot_replica_bytes: 0,
                removals_max: limits::REMOVALS_MAX,
                step: limits::CALL_BURIALS_MAX,
                policy: EvictionPolicy::Adaptive,
                search: SearchLimits::DEFAULT,
            },
            nodes: rng.between(1, 3),
            clients: rng.between(2, 4),
            keys: rng.between(3, 10),
            calm_at: rng.between(600, 2500),
            drop,
            duplicate,
            delay,
            stall,
            write_ms_max,
            checksum: jumps || overlong,
            fault_every: if node_faults || restarts || jumps { rng.between(80, 500) } else { 0 },
            node_faults,
            restarts,
            jumps,
            records: 0,
            files: false,
            part: 1,
            unsummed: 0,
            clears: false,
            set_back: false,
        };
        // Not drawn by itself, so that a seed stands for all else that it stood for.
        drawn.settings.policy = POLICIES[usize::try_from(drawn.calm_at).unwrap_or(0) % POLICIES.len()];
        drawn
    }

    /// Whether keys that are read from afar get extra replicas.
    pub const fn extends(&self) -> bool {
        self.settings.hot_replica_bytes > 0
    }

    /// In some worlds more goes on. None of them ever failed without it.
    pub fn add_more(&mut self, seed: u64) {
        self.clears = matches!(seed % 16, 11 | 15);
        if self.clears {
            self.settings.step = u32::try_from(seed / 16 % 4).unwrap_or(0) + 1;
        }
        if seed % 5 == 3 {
            let mut rng = Rng::new(!seed.rotate_left(16));
            self.settings.removals_max = u32::try_from(rng.between(1, 24)).unwrap_or(1);
        }
        if matches!(seed % 16, 6 | 12) {
            let mut rng = Rng::new(!seed.rotate_left(32));
            self.settings.hot_replica_bytes = LINE_BYTES * rng.between(4, 24);
        }
        if matches!(seed % 16, 13 | 15) {
            self.settings.search = short_search(&mut Rng::new(!seed.rotate_left(16)));
        }
        if seed / 32 % 6 == 5 {
            self.set_back = true;
            self.restarts = true;
            if self.fault_every == 0 {
                self.fault_every = 200;
            }
        }
    }

    /// Some worlds have tables. Those that once failed without are kept as they were, and so is what their seeds stand
    /// for: the rest is drawn from another row of numbers.
    pub fn add_tables(&mut self, seed: u64) {
        if matches!(seed % 8, 2 | 4 | 5) {
            return;
        }
        let mut rng = Rng::new(!seed);
        self.records = u32::try_from(rng.between(4, 40)).unwrap_or(4);
        self.files = rng.chance(50);
        self.part = usize::try_from(rng.between(1, 4)).unwrap_or(1);
        self.unsummed = if rng.chance(40) && !self.checksum { 30 } else { 0 };
        self.restarts |= rng.chance(80);
        if self.fault_every == 0 && self.restarts {
            self.fault_every = rng.between(80, 400);
        }
        if !self.checksum {
            self.write_ms_max = self.write_ms_max.min(u64::from(self.settings.reservation_ttl_ms) / 2 - 1);
        }
    }
}

/// In some worlds the book looks at little to find room: at few objects in the order in which they would go, so that the
/// order in which they lie matters, and it learns that in short steps.
fn short_search(rng: &mut Rng) -> SearchLimits {
    let mut few = |least: u64, most: u64| usize::try_from(rng.between(least, most)).unwrap_or(1);
    SearchLimits { in_order: few(0, 2), looks: few(24, 64), segments: few(1, 2), row_step: few(1, 8) }
}
