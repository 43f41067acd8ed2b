//! What is remembered of evicted objects.

use super::Mark;

/// Ghosts of one hash stand in one of these many places.
const WAYS: usize = 4;
/// Fewest places, ten megabytes: an object that comes back after many times as long as it stayed must still be known, or a
/// small pool takes what returns for new.
const PLACES_MIN: usize = 1 << 20;

/// Eight bytes a ghost: part of the hash, number of the eviction, mark.
#[derive(Clone, Copy, Debug, Default)]
struct Ghost {
    hash: u32,
    /// 0: none.
    number: u32,
}

/// As many ghosts as there are objects, or [`PLACES_MIN`], found by hash; the earliest evicted give way. After 2^32 evictions it starts
/// afresh.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    places: Vec<Ghost>,
    marks: Vec<u16>,
    number: u32,
}

#[allow(clippy::cast_possible_truncation, reason = "some of the bits are what is asked for")]
const fn part(hash: u64) -> u32 {
    (hash >> 20) as u32
}

impl Ghosts {
    fn row(&self, hash: u32) -> usize {
        (hash as usize * WAYS) & (self.places.len() - 1)
    }

    /// Remembers an object. `keys`: how many to remember about.
    pub(super) fn add(&mut self, hash: u64, mark: Mark, keys: u64) {
        self.fit(keys);
        self.number = self.number.wrapping_add(1).max(1);
        if self.number == 1 {
            self.places.fill(Ghost::default());
        }
        self.put(Ghost { hash: part(hash), number: self.number }, mark);
    }

    fn put(&mut self, ghost: Ghost, mark: u16) {
        let row = self.row(ghost.hash);
        let earliest = (row..row + WAYS).min_by_key(|place| self.places[*place].number);
        if let Some(place) = earliest {
            self.places[place] = ghost;
            self.marks[place] = mark;
        }
    }

    /// Grows with the book.
    fn fit(&mut self, keys: u64) {
        let wanted = usize::try_from(keys).unwrap_or(usize::MAX >> 2).next_power_of_two().max(PLACES_MIN);
        if self.places.len() >= wanted {
            return;
        }
        let old = std::mem::replace(&mut self.places, vec![Ghost::default(); wanted]);
        let marks = std::mem::replace(&mut self.marks, vec![0; wanted]);
        for (ghost, mark) in old.into_iter().zip(marks).filter(|(ghost, _)| ghost.number > 0) {
            self.put(ghost, mark);
        }
    }

    /// The mark of an object that was among the last `among` to be remembered, which is forgotten.
    pub(super) fn take(&mut self, hash: u64, among: u64) -> Option<Mark> {
        if self.places.is_empty() {
            return None;
        }
        let hash = part(hash);
        let row = self.row(hash);
        let place = (row..row + WAYS).find(|place| {
            let ghost = self.places[*place];
            ghost.number > 0 && ghost.hash == hash
        })?;
        let ghost = std::mem::take(&mut self.places[place]);
        (u64::from(self.number - ghost.number) < among).then_some(self.marks[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ghosts_are_taken_once_and_the_earliest_are_forgotten() {
        let mut ghosts = Ghosts::default();
        let hash = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert_eq!(ghosts.take(hash(1), 100), None);
        for number in 0..1_600_000 {
            ghosts.add(hash(number), 7, 800_000);
        }
        assert_eq!((ghosts.take(hash(1_599_999), 100), ghosts.take(hash(1_599_999), 100)), (Some(7), None));
        assert_eq!(ghosts.take(hash(1_599_000), 100), None, "not among the last hundred");
        let kept = (800_000..1_600_000).filter(|number| ghosts.take(hash(*number), u64::MAX).is_some()).count();
        assert!((600_000..800_000).contains(&kept), "{kept} of the last 800,000");
        let early = (0..400_000).filter(|number| ghosts.take(hash(*number), u64::MAX).is_some()).count();
        assert!(early < 80_000, "{early} of the first 400,000");
    }

    #[test]
    fn a_small_pool_remembers_many_times_what_it_holds() {
        let mut ghosts = Ghosts::default();
        let hash = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for number in 0..400_000 {
            ghosts.add(hash(number), 7, 1000);
        }
        let kept = (0..400_000).filter(|number| ghosts.take(hash(*number), u64::MAX).is_some()).count();
        assert!(kept > 380_000, "{kept} of 400,000");
    }
}
