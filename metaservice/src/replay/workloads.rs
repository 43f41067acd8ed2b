//! Generated requests of many shapes. The same seed gives the same requests.

use std::collections::HashMap;

use super::trace::{BLOCK_TOKENS, Request, Trace};

/// Shapes that the policies were worked out with.
pub const WORKLOADS: [&str; 5] = ["poisson", "zipf", "scan", "kv", "pareto"];
/// Shapes that were looked at when nothing was to be changed any more.
pub const HELD_OUT: [&str; 7] = ["rag", "agents", "drift", "loop", "mixed", "fixed", "kvscan"];

/// Shapes whose very numbers are drawn from the seed, within wide bounds. Looked at last, too.
pub const VARIED: [&str; 4] = ["any-poisson", "any-zipf", "any-scan", "any-kv"];

/// How long a workload lasts.
const SECONDS: f64 = 3600.0;
/// Longest prompt of a conversation, in blocks.
const PROMPT_BLOCKS_MAX: usize = 400;

/// Numbers that look random (splitmix64).
struct Mix(u64);

impl Mix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 on, below 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From `least` to `most`, each factor as likely.
    fn between(&mut self, least: f64, most: f64) -> f64 {
        least * (most / least).powf(self.unit())
    }

    #[allow(clippy::cast_possible_truncation, reason = "below `end`")]
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.unit()).ln() * mean
    }

    fn lognormal(&mut self, (median, sigma): (f64, f64)) -> f64 {
        let normal = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (self.unit() * std::f64::consts::TAU).cos();
        median * (normal * sigma).exp()
    }

    fn pareto(&mut self, least: f64, alpha: f64) -> f64 {
        least * (1.0 - self.unit()).powf(-1.0 / alpha)
    }
}

/// Ranks of which the first is drawn most often.
struct Zipf(Vec<f64>);

impl Zipf {
    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    fn new(count: usize, exponent: f64) -> Self {
        let weights = (1..=count).map(|rank| (rank as f64).powf(-exponent));
        Self(
            weights
                .scan(0.0, |sum, weight| {
                    *sum += weight;
                    Some(*sum)
                })
                .collect(),
        )
    }

    fn draw(&self, mix: &mut Mix) -> usize {
        let point = mix.unit() * self.0.last().copied().unwrap_or(0.0);
        self.0.partition_point(|sum| *sum < point).min(self.0.len() - 1)
    }
}

/// How people talk to a model.
struct Talk<'a> {
    /// New conversations a second.
    rate: f64,
    /// Part of the turns that have another after them.
    goes_on: f64,
    /// System prompts, the first the most popular.
    systems: &'a [Vec<u64>],
    popularity: &'a Zipf,
    /// Seconds between turns.
    pause: &'a dyn Fn(&mut Mix) -> f64,
    /// Median and sigma of the blocks of the first turn, and of each later one.
    first: (f64, f64),
    later: (f64, f64),
}

struct Generator {
    mix: Mix,
    blocks: u64,
    requests: Vec<(f64, Vec<u64>)>,
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
fn count(blocks: f64, most: usize) -> usize {
    (blocks.ceil() as usize).min(most)
}

impl Generator {
    fn fresh(&mut self, count: usize) -> Vec<u64> {
        let first = self.blocks;
        self.blocks += count as u64;
        (first..self.blocks).collect()
    }

    fn documents(&mut self, documents: usize, blocks: impl Fn(&mut Mix) -> usize) -> Vec<Vec<u64>> {
        (0..documents)
            .map(|_| {
                let count = blocks(&mut self.mix);
                self.fresh(count)
            })
            .collect()
    }

    fn ask(&mut self, at: f64, blocks: Vec<u64>) {
        self.requests.push((at, blocks));
    }

    /// Calls `each` at random times, `mean` seconds apart.
    fn poisson(&mut self, mean: f64, mut each: impl FnMut(&mut Self, f64)) {
        let mut at = self.mix.exponential(mean);
        while at < SECONDS {
            each(self, at);
            at += self.mix.exponential(mean);
        }
    }

    fn talk(&mut self, talk: &Talk<'_>) {
        self.poisson(1.0 / talk.rate, |own, mut at| {
            let mut prompt = talk.systems[talk.popularity.draw(&mut own.mix)].clone();
            let mut new = count(own.mix.lognormal(talk.first), 250);
            while at < SECONDS {
                prompt.extend(own.fresh(new));
                own.ask(at, prompt.clone());
                if prompt.len() > PROMPT_BLOCKS_MAX || own.mix.unit() > talk.goes_on {
                    break;
                }
                at += (talk.pause)(&mut own.mix);
                new = count(own.mix.lognormal(talk.later), 60);
            }
        });
    }

    /// In the order of time, blocks numbered by first use.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times are positive and small")]
    fn trace(mut self) -> Trace {
        self.requests.sort_by(|one, other| one.0.total_cmp(&other.0));
        let mut names = HashMap::new();
        let mut name = |block: u64| {
            let next = names.len() as u64;
            *names.entry(block).or_insert(next)
        };
        let requests = self.requests.into_iter().map(|(at, blocks)| Request {
            at_ms: (at * 1000.0) as u64,
            tokens: blocks.len() as u64 * BLOCK_TOKENS,
            blocks: blocks.into_iter().map(&mut name).collect(),
        });
        Trace { requests: requests.collect() }
    }

    /// Conversations with pauses of 150 s on average and one system prompt: who was silent longest comes back least.
    fn people(&mut self) {
        let systems = [self.fresh(2)];
        let pause = |mix: &mut Mix| mix.exponential(150.0);
        let popularity = &Zipf::new(1, 1.0);
        let (first, later) = ((8.0, 0.8), (3.0, 0.8));
        self.talk(&Talk { rate: 1.2, goes_on: 0.7, systems: &systems, popularity, pause: &pause, first, later });
    }

    /// 400 system prompts by a Zipf law, one turn each.
    fn system_prompts(&mut self) {
        let systems = self.documents(400, |mix| 4 + mix.below(28));
        let popularity = &Zipf::new(400, 0.9);
        let (first, later) = ((3.0, 0.5), (1.0, 0.1));
        self.talk(&Talk { rate: 4.0, goes_on: 0.0, systems: &systems, popularity, pause: &|_| 1.0, first, later });
    }

    /// Conversations, and every 500 s a minute of long prompts that never come back.
    fn scans(&mut self) {
        let systems = self.documents(60, |_| 12);
        let pause = |mix: &mut Mix| mix.lognormal((60.0, 1.0));
        let popularity = &Zipf::new(60, 0.8);
        let (first, later) = ((6.0, 0.6), (2.0, 0.6));
        self.talk(&Talk { rate: 1.0, goes_on: 0.6, systems: &systems, popularity, pause: &pause, first, later });
        self.strangers(500.0, 60.0, 0.4);
    }

    /// Long prompts that never come back: every `every` seconds for `length` seconds, `pause` seconds apart.
    fn strangers(&mut self, every: f64, length: f64, pause: f64) {
        let times = |first: f64, step: f64| (0u32..).map(move |number| first + f64::from(number) * step);
        for begin in times(every * 0.4, every).take_while(|begin| *begin < SECONDS) {
            for at in times(begin, pause).take(count((length / pause).round(), 10_000)) {
                let blocks = self.fresh(40);
                self.ask(at, blocks);
            }
        }
    }

    /// Conversations with memoryless pauses, of any length and pace.
    fn any_people(&mut self) {
        let mean = self.mix.between(20.0, 600.0);
        let pause = |mix: &mut Mix| mix.exponential(mean);
        let prompts = count(self.mix.between(1.0, 30.0), 30);
        let systems = self.documents(prompts, |mix| 1 + mix.below(8));
        let popularity = &Zipf::new(prompts, 1.0);
        let (rate, goes_on) = (self.mix.between(0.4, 3.0), 0.4 + 0.5 * self.mix.unit());
        let first = (self.mix.between(3.0, 20.0), self.mix.between(0.3, 1.0));
        let later = (self.mix.between(1.0, 6.0), self.mix.between(0.3, 1.0));
        self.talk(&Talk { rate, goes_on, systems: &systems, popularity, pause: &pause, first, later });
    }

    /// Any number of system prompts by any Zipf law, few turns each.
    fn any_system_prompts(&mut self) {
        let prompts = count(self.mix.between(20.0, 3000.0), 3000);
        let longest = count(self.mix.between(4.0, 60.0), 60);
        let systems = self.documents(prompts, |mix| 1 + mix.below(longest));
        let popularity = &Zipf::new(prompts, self.mix.between(0.5, 1.4));
        let mean = self.mix.between(5.0, 300.0);
        let pause = |mix: &mut Mix| mix.exponential(mean);
        let (rate, goes_on) = (self.mix.between(1.0, 6.0), 0.4 * self.mix.unit());
        let (first, later) = ((self.mix.between(1.0, 8.0), 0.5), (self.mix.between(1.0, 3.0), 0.3));
        self.talk(&Talk { rate, goes_on, systems: &systems, popularity, pause: &pause, first, later });
    }

    /// One of the two above, with strangers in between.
    fn any_scans(&mut self) {
        if self.mix.unit() < 0.5 {
            self.any_people();
        } else {
            self.any_system_prompts();
        }
        let every = self.mix.between(60.0, 1200.0);
        let (length, pause) = (every * self.mix.between(0.05, 0.5), self.mix.between(0.2, 1.5));
        self.strangers(every, length, pause);
    }

    /// Single objects by any Zipf law, among any part of strangers: what S3-FIFO is made for.
    fn any_objects(&mut self) {
        let known = count(self.mix.between(3000.0, 100_000.0), 100_000);
        let (exponent, mean) = (self.mix.between(0.5, 1.5), self.mix.between(0.02, 0.1));
        let strangers = 0.9 * self.mix.unit();
        self.objects(known, exponent, mean, strangers);
    }

    /// Single objects by a Zipf law; a part of the requests for ones that never come back.
    fn objects(&mut self, count: usize, exponent: f64, mean: f64, strangers: f64) {
        let popularity = Zipf::new(count, exponent);
        let known = self.fresh(count);
        self.poisson(mean, |own, at| {
            let block = known[popularity.draw(&mut own.mix)];
            own.ask(at, vec![block]);
            if own.mix.unit() < strangers {
                let stranger = own.fresh(1);
                own.ask(at, stranger);
            }
        });
    }

    /// Conversations whose pauses follow a power law.
    fn heavy_tails(&mut self) {
        let systems = self.documents(5, |_| 4);
        let pause = |mix: &mut Mix| mix.pareto(5.0, 0.7).min(7200.0);
        let popularity = &Zipf::new(5, 1.0);
        let (first, later) = ((10.0, 0.9), (2.0, 0.7));
        self.talk(&Talk { rate: 0.8, goes_on: 0.75, systems: &systems, popularity, pause: &pause, first, later });
    }

    /// Questions to 1,500 documents.
    fn retrieval(&mut self) {
        let system = self.fresh(3);
        let documents = self.documents(1500, |mix| count(mix.lognormal((10.0, 0.7)), 80));
        let popularity = Zipf::new(1500, 1.0);
        self.poisson(0.35, |own, at| {
            let document = &documents[popularity.draw(&mut own.mix)];
            let question = own.fresh(1);
            own.ask(at, [&system, document, &question].into_iter().flatten().copied().collect());
        });
    }

    /// Agents of about 20 quick turns.
    fn agents(&mut self) {
        let systems = self.documents(20, |_| 16);
        let pause = |mix: &mut Mix| mix.lognormal((8.0, 0.8));
        let popularity = &Zipf::new(20, 0.7);
        let (first, later) = ((4.0, 0.5), (1.0, 0.7));
        self.talk(&Talk { rate: 0.15, goes_on: 0.95, systems: &systems, popularity, pause: &pause, first, later });
    }

    /// Documents whose popularity moves on, one rank every 6 s.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
    fn drift(&mut self) {
        let documents = self.documents(900, |_| 15);
        let popularity = Zipf::new(300, 1.0);
        self.poisson(0.3, |own, at| {
            let mut prompt = documents[(popularity.draw(&mut own.mix) + (at / 6.0) as usize) % 900].clone();
            let new = 1 + own.mix.below(6);
            prompt.extend(own.fresh(new));
            own.ask(at, prompt);
        });
    }

    /// The same documents over and over in the same order, which the order of use is worst at.
    fn rounds(&mut self) {
        let documents = self.documents(400, |_| 20);
        let mut turn = 0;
        self.poisson(0.5, |own, at| {
            own.ask(at, documents[turn % 400].clone());
            turn += 1;
            if own.mix.unit() < 0.3 {
                let blocks = own.fresh(10);
                own.ask(at, blocks);
            }
        });
    }

    /// Two kinds of conversations and single objects.
    fn mixed(&mut self) {
        let systems = self.documents(30, |_| 6);
        let popularity = &Zipf::new(30, 1.0);
        let quick = |mix: &mut Mix| mix.exponential(90.0);
        let slow = |mix: &mut Mix| mix.lognormal((400.0, 0.5));
        let (systems, later) = (systems.as_slice(), (3.0, 0.8));
        self.talk(&Talk { rate: 0.6, goes_on: 0.7, systems, popularity, pause: &quick, first: (8.0, 0.8), later });
        self.talk(&Talk { rate: 0.6, goes_on: 0.3, systems, popularity, pause: &slow, first: (20.0, 0.8), later });
        self.objects(3000, 0.9, 0.2, 0.0);
    }

    /// Conversations with pauses of about a minute, never shorter.
    fn clockwork(&mut self) {
        let systems = [self.fresh(1)];
        let pause = |mix: &mut Mix| 55.0 + 10.0 * mix.unit();
        let popularity = &Zipf::new(1, 1.0);
        let (first, later) = ((10.0, 0.5), (3.0, 0.5));
        self.talk(&Talk { rate: 1.0, goes_on: 0.8, systems: &systems, popularity, pause: &pause, first, later });
    }
}

/// Requests of a shape in [`WORKLOADS`], [`HELD_OUT`] or [`VARIED`]; `None` for any other name.
pub fn workload(name: &str, seed: u64) -> Option<Trace> {
    let mut generator = Generator { mix: Mix(seed), blocks: 0, requests: Vec::new() };
    match name {
        "poisson" => generator.people(),
        "zipf" => generator.system_prompts(),
        "scan" => generator.scans(),
        "kv" => generator.objects(60_000, 0.9, 0.02, 0.0),
        "pareto" => generator.heavy_tails(),
        "rag" => generator.retrieval(),
        "agents" => generator.agents(),
        "drift" => generator.drift(),
        "loop" => generator.rounds(),
        "mixed" => generator.mixed(),
        "fixed" => generator.clockwork(),
        "kvscan" => generator.objects(30_000, 1.1, 0.03, 0.4),
        "any-poisson" => generator.any_people(),
        "any-zipf" => generator.any_system_prompts(),
        "any-scan" => generator.any_scans(),
        "any-kv" => generator.any_objects(),
        _ => return None,
    }
    Some(generator.trace())
}
