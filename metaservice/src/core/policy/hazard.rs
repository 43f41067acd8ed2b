//! How likely objects are to be used again, by how often they were used and how long ago.
//!
//! For each class of objects and each bucket of age: how many entered it unused, and how many were used in it. From that,
//! the value of keeping an object: the most uses a second of keeping that any stopping time gives from its age on (its
//! Gittins index). Ages are those of all objects that are watched, evicted ones included, so what a policy does not keep
//! does not look useless for it.
//!
//! At no age is an object worth less than one that was used less often: see [`Hazards::solve`].

use std::iter::once;

use super::Mark;

/// Classes: by the binary logarithm of the number of uses.
pub(super) const CLASSES: usize = 12;
/// Buckets of age.
pub(super) const BUCKETS: usize = 44;
/// Buckets from one age to twice that.
const BUCKETS_PER_DOUBLING: usize = 3;
/// Where the buckets of one doubling end: powers of the cube root of 2.
const STEPS: [f64; BUCKETS_PER_DOUBLING] = [1.0, 1.259_921_049_894_873, 1.587_401_051_968_199_5];
/// Part of the objects that is used in a bucket of which nothing is known.
const PRIOR: f64 = 0.025;
/// Observations for which a neighbouring class stands in, where all objects are watched.
const PRIOR_WEIGHT: f64 = 500.0;
/// How much a bucket tells about those beside it, and those two away.
const KERNEL: [f64; 3] = [1.0, 0.5, 0.25];
/// Most part of the objects that is used in one bucket.
const HAZARD_MAX: f64 = 0.95;

/// The class of an object of so many uses.
pub(super) fn class_of(uses: Mark) -> usize {
    (uses.max(1).ilog2() as usize).min(CLASSES - 1)
}

/// What was seen, and the values it gives.
#[derive(Debug)]
pub(super) struct Hazards {
    /// Where each bucket begins, in milliseconds; the last has no end.
    edges: [u64; BUCKETS],
    used: [[f64; BUCKETS]; CLASSES],
    entered: [[f64; BUCKETS]; CLASSES],
    values: [[f64; BUCKETS]; CLASSES],
}

impl Hazards {
    pub(super) fn new() -> Self {
        let mut edges = [0; BUCKETS];
        let doublings = (0..).map(|exponent| 1000.0 * f64::from(1u32 << exponent));
        let starts = doublings.flat_map(|base| STEPS.map(|step| base * step));
        for (edge, start) in edges[1..].iter_mut().zip(starts) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 10^3 and 10^8")]
            {
                *edge = start as u64;
            }
        }
        let zeros = [[0.0; BUCKETS]; CLASSES];
        let mut new = Self { edges, used: zeros, entered: zeros, values: zeros };
        new.solve(1.0);
        new
    }

    pub(super) fn bucket_of(&self, age_ms: u64) -> usize {
        self.edges.partition_point(|edge| *edge <= age_ms) - 1
    }

    pub(super) const fn edge(&self, bucket: usize) -> u64 {
        self.edges[bucket]
    }

    /// An object of this class entered a bucket of age.
    pub(super) fn enter(&mut self, class: usize, bucket: usize) {
        self.entered[class][bucket] += 1.0;
    }

    /// An object of this class was used in a bucket of age that it had entered.
    pub(super) fn use_in(&mut self, class: usize, bucket: usize) {
        self.used[class][bucket] += 1.0;
    }

    /// Makes what was seen count this much of what it counts now.
    pub(super) fn fade(&mut self, part: f64) {
        for number in self.used.iter_mut().chain(&mut self.entered).flatten() {
            *number *= part;
        }
    }

    /// Uses a second of keeping an object of this class from this age on.
    pub(super) fn value(&self, class: usize, age_ms: u64) -> f64 {
        self.values[class][self.bucket_of(age_ms)]
    }

    /// Computes the values anew. `watched`: part of all objects that is watched.
    pub(super) fn solve(&mut self, watched: f64) {
        let weight = PRIOR_WEIGHT * watched;
        let mut hazards = [PRIOR; BUCKETS];
        for class in 0..CLASSES {
            let before = hazards;
            for (bucket, hazard) in hazards.iter_mut().enumerate() {
                let (used, entered) = self.smoothed(class, bucket);
                // Classes with little of their own are like the class before them.
                *hazard = ((used + weight * before[bucket]) / (entered + weight)).min(HAZARD_MAX);
            }
            self.values[class] = self.indexes(&hazards);
            if let Some(less_used) = class.checked_sub(1) {
                self.raise(class, less_used);
            }
        }
    }

    /// Makes a class worth at least what another one is, at each age. The blocks of a prompt were last used together, and
    /// its head at least as often as its tail: if the head went first, the tail would take up memory and serve nobody,
    /// and a played cache would count uses of it that the pool has to refuse.
    fn raise(&mut self, class: usize, at_least: usize) {
        let floor = self.values[at_least];
        for (value, least) in self.values[class].iter_mut().zip(floor) {
            *value = value.max(least);
        }
    }

    /// Length of a bucket in seconds; the last counts as long as all before it.
    #[allow(clippy::cast_precision_loss, reason = "numbers far below 2^52")]
    fn seconds(&self, bucket: usize) -> f64 {
        let end = self.edges.get(bucket + 1).copied().unwrap_or(2 * self.edges[bucket]);
        (end - self.edges[bucket]) as f64 / 1e3
    }

    /// What was seen in a bucket, and in its neighbours as if they were as long.
    fn smoothed(&self, class: usize, bucket: usize) -> (f64, f64) {
        let around = (1..KERNEL.len()).flat_map(|far| [(far, bucket.checked_sub(far)), (far, Some(bucket + far))]);
        let around = around.filter_map(|(far, other)| Some((far, other.filter(|other| *other < BUCKETS)?)));
        once((0, bucket)).chain(around).fold((0.0, 0.0), |(used, entered), (far, other)| {
            let scale = (self.seconds(bucket) / self.seconds(other)).min(5.0);
            (used + KERNEL[far] * self.used[class][other] * scale, entered + KERNEL[far] * self.entered[class][other])
        })
    }

    fn indexes(&self, hazards: &[f64; BUCKETS]) -> [f64; BUCKETS] {
        std::array::from_fn(|from| {
            let (mut alive, mut uses, mut kept, mut best) = (1.0, 0.0, 0.0, 0.0f64);
            for (bucket, hazard) in hazards.iter().enumerate().skip(from) {
                uses += alive * hazard;
                kept += alive * self.seconds(bucket) * (1.0 - hazard / 2.0);
                alive *= 1.0 - hazard;
                best = best.max(uses / kept);
            }
            best
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(class: usize, at: usize, part: f64, hazards: &mut Hazards) {
        for bucket in 0..BUCKETS {
            hazards.entered[class][bucket] = 1e6;
            hazards.used[class][bucket] = if bucket == at { part * 1e6 } else { 0.0 };
        }
    }

    #[test]
    fn ages_have_one_bucket_each() {
        let hazards = Hazards::new();
        assert!(hazards.edges.is_sorted_by(|a, b| a < b));
        for (age, bucket) in [(0, 0), (999, 0), (1000, 1), (1999, 3), (2000, 4), (4000, 7), (u64::MAX, BUCKETS - 1)] {
            assert_eq!(hazards.bucket_of(age), bucket, "{age}");
        }
    }

    #[test]
    fn the_value_rises_towards_the_use_and_falls_after_it() {
        let mut hazards = Hazards::new();
        seen(0, 20, 0.5, &mut hazards);
        hazards.solve(1.0);
        let values = hazards.values[0];
        assert!(values[5] < values[15] && values[15] < values[20], "{values:?}");
        assert!(values[25] < values[5] / 10.0, "{values:?}");
        // At age 0 half of the objects are used after some 80 to 100 s, or somewhat later as buckets blur; then keeping
        // stops.
        assert!((0.003..0.008).contains(&values[0]), "{}", values[0]);
    }

    #[test]
    fn classes_that_are_used_more_are_worth_more() {
        let mut hazards = Hazards::new();
        seen(0, 12, 0.1, &mut hazards);
        seen(1, 12, 0.8, &mut hazards);
        hazards.solve(1.0);
        assert!(hazards.value(1, 2000) > 4.0 * hazards.value(0, 2000));
        // Nothing was seen of the next class: it is like the one before it.
        assert!((hazards.value(2, 2000) - hazards.value(1, 2000)).abs() < 1e-3 * hazards.value(1, 2000));
        assert_eq!((class_of(0), class_of(1), class_of(3), class_of(4), class_of(4095)), (0, 0, 1, 2, 11));
    }

    #[test]
    fn what_is_used_more_is_never_worth_less_so_a_tail_goes_before_its_head() {
        let mut hazards = Hazards::new();
        seen(0, 12, 0.8, &mut hazards);
        seen(1, 12, 0.1, &mut hazards);
        seen(2, 25, 0.9, &mut hazards);
        hazards.solve(1.0);
        for (less, more) in hazards.values.iter().zip(&hazards.values[1..]) {
            assert!(less.iter().zip(more).all(|(less, more)| less <= more), "{less:?} {more:?}");
        }
        assert!(hazards.values[2][20] > 2.0 * hazards.values[1][20], "what is known of a class still counts");
    }

    #[test]
    fn with_nothing_seen_the_older_is_worth_less() {
        let hazards = Hazards::new();
        assert!(hazards.values[0][1..].is_sorted_by(|younger, older| younger > older), "{:?}", hazards.values[0]);
    }
}
