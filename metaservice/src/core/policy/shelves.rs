//! Idle objects, by class and by time of last use.

use super::Mark;
use crate::core::Millis;
use crate::core::list::{Linked, List, unlink_inner};
use crate::core::slab::{Slab, Slot};

/// An item that can stand on [`Shelves`].
pub(in crate::core) trait Shelved: Linked {
    /// Number of its last use; greater is later.
    fn used(&self) -> u64;
    fn mark(&self) -> Mark;
    fn set_mark(&mut self, mark: Mark);
    /// Length of its extent.
    fn bytes(&self) -> u64;
}

/// [`Shelved`] for an item that has all of it in fields.
macro_rules! shelved {
    ($item:ty) => {
        impl $crate::core::policy::Shelved for $item {
            fn used(&self) -> u64 {
                self.used
            }

            fn mark(&self) -> $crate::core::policy::Mark {
                self.mark
            }

            fn set_mark(&mut self, mark: $crate::core::policy::Mark) {
                self.mark = mark;
            }

            fn bytes(&self) -> u64 {
                self.bytes
            }
        }
    };
}
pub(super) use shelved;

/// Objects of one class that were used about the same time, from newest to oldest.
#[derive(Debug)]
struct Span<T> {
    from: Millis,
    /// Number of the use with which it began.
    first: u64,
    list: List<T>,
}

/// Shortest span.
const SPAN_MS_MIN: u64 = 1000;
/// A span is no longer than one part in so many of its age.
const SPAN_PARTS: u64 = 5;

/// Spans from oldest to newest, and what they hold.
#[derive(Debug)]
struct Shelf<T> {
    spans: Vec<Span<T>>,
    bytes: u64,
}

/// A victim that is likely to be the best for a while.
#[derive(Clone, Copy, Debug)]
struct Choice {
    until: Millis,
    version: u64,
    shelf: usize,
    first: u64,
    value: f64,
}

/// How long a choice may stand.
const CHOICE_MS: u64 = 250;

/// Shelves from class 0 on. Spans of old objects are joined as they age, so there are few, at no cost an object.
#[derive(Debug)]
pub(in crate::core) struct Shelves<T> {
    rows: Vec<Shelf<T>>,
    shelf_of: fn(Mark) -> usize,
    ages: bool,
    choice: Option<Choice>,
}

impl<T: Shelved> Shelves<T> {
    pub(super) const fn new(shelf_of: fn(Mark) -> usize, ages: bool) -> Self {
        Self { rows: Vec::new(), shelf_of, ages, choice: None }
    }

    /// Puts an item that is in no list at the newest end of its shelf. Its last use is later than any there.
    pub(in crate::core) fn push(&mut self, slab: &mut Slab<T>, slot: Slot<T>, now: Millis) {
        let number = (self.shelf_of)(slab[slot].mark());
        while self.rows.len() <= number {
            self.rows.push(Shelf { spans: Vec::new(), bytes: 0 });
        }
        let row = &mut self.rows[number];
        row.bytes += slab[slot].bytes();
        let current = row.spans.last().is_some_and(|span| !self.ages || now.since(span.from) < SPAN_MS_MIN);
        if !current {
            row.join_spans(slab, now);
            self.choice = None;
            // Without ages the numbers need not rise: there is one span, and it holds them all.
            let first = if self.ages { slab[slot].used() } else { 0 };
            row.spans.push(Span { from: now, first, list: List::new() });
        }
        if let Some(span) = row.spans.last_mut() {
            span.list.push(slab, slot);
        }
    }

    /// Takes an item out.
    pub(in crate::core) fn unlink(&mut self, slab: &mut Slab<T>, slot: Slot<T>) {
        let row = &mut self.rows[(self.shelf_of)(slab[slot].mark())];
        row.bytes -= slab[slot].bytes();
        // Most items stand among others, and then it does not matter in which span.
        if unlink_inner(slab, slot) {
            return;
        }
        let used = slab[slot].used();
        let position = row.spans.partition_point(|span| span.first <= used);
        // Every item stands in the last span that began with its use or before it.
        if let Some(span) = row.spans[..position].last_mut() {
            span.list.unlink(slab, slot);
        }
    }

    pub(super) fn bytes_of(&self, number: usize) -> u64 {
        self.rows.get(number).map_or(0, |shelf| shelf.bytes)
    }

    /// The longest unused item of one shelf.
    pub(super) fn oldest_of(&self, number: usize) -> Option<Slot<T>> {
        self.rows.get(number)?.spans.iter().find_map(|span| span.list.oldest())
    }

    fn all_bytes(&self) -> u64 {
        self.rows.iter().map(|shelf| shelf.bytes).sum()
    }

    /// The longest unused item of all shelves from one on.
    pub(super) fn least_recently_used(&self, slab: &Slab<T>, from: usize) -> Option<Slot<T>> {
        (from..self.rows.len()).filter_map(|number| self.oldest_of(number)).min_by_key(|slot| slab[*slot].used())
    }

    /// The items of one shelf, the longest unused ones first.
    pub(super) fn iter_oldest_of<'a>(&'a self, number: usize, slab: &'a Slab<T>) -> impl Iterator<Item = Slot<T>> + 'a {
        let spans = self.rows.get(number).into_iter().flat_map(|shelf| &shelf.spans);
        spans.flat_map(|span| span.list.iter_oldest(slab))
    }

    /// The longest unused item of the first shelf, while that holds one part in `part` of the bytes or more; else that of
    /// the others.
    pub(super) fn once_first(&self, slab: &Slab<T>, part: u64) -> Option<Slot<T>> {
        let first = self.oldest_of(0);
        let goes = first.filter(|_| self.bytes_of(0) >= self.all_bytes() / part);
        goes.or_else(|| self.least_recently_used(slab, 1)).or(first)
    }

    /// All items, as [`Shelves::once_first`] would take them one after the other.
    pub(super) fn by_once_first<'a>(&'a self, slab: &'a Slab<T>, part: u64) -> impl Iterator<Item = Slot<T>> + 'a {
        let (mut first, mut others) = (self.iter_oldest_of(0, slab), self.by_use(slab, 1));
        let (mut first_bytes, mut bytes) = (self.bytes_of(0), self.all_bytes());
        std::iter::from_fn(move || {
            let goes = if first_bytes >= bytes / part { first.next() } else { None };
            if let Some(slot) = goes {
                first_bytes -= slab[slot].bytes();
            }
            let slot = goes.or_else(|| others.next()).or_else(|| first.next())?;
            bytes -= slab[slot].bytes();
            Some(slot)
        })
    }

    /// All items of the shelves from one on, the longest unused ones first.
    pub(super) fn by_use<'a>(&'a self, slab: &'a Slab<T>, from: usize) -> impl Iterator<Item = Slot<T>> + 'a {
        let mut shelves: Vec<_> =
            (from..self.rows.len()).map(|number| self.iter_oldest_of(number, slab).peekable()).collect();
        std::iter::from_fn(move || {
            let heads =
                shelves.iter_mut().filter_map(|items| items.peek().map(|slot| slab[*slot].used()).zip(Some(items)));
            heads.min_by_key(|(used, _)| *used).and_then(|(_, items)| items.next())
        })
    }

    /// All items, those of the spans with the least value first, and of each span the longest unused ones first.
    pub(super) fn by_value<'a>(
        &'a self,
        slab: &'a Slab<T>,
        now: Millis,
        value: impl Fn(usize, u64) -> f64,
    ) -> impl Iterator<Item = Slot<T>> + 'a {
        let mut spans: Vec<(f64, u64, &Span<T>)> = Vec::new();
        for (number, shelf) in self.rows.iter().enumerate() {
            let held = shelf.spans.iter().filter_map(|span| span.list.oldest().map(|oldest| (span, oldest)));
            spans.extend(held.map(|(span, oldest)| (value(number, now.since(span.from)), slab[oldest].used(), span)));
        }
        spans.sort_unstable_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
        spans.into_iter().flat_map(|(_, _, span)| span.list.iter_oldest(slab))
    }

    /// Any item; the same one for the same calls.
    pub(in crate::core) fn any(&self) -> Option<Slot<T>> {
        (0..self.rows.len()).find_map(|number| self.oldest_of(number))
    }

    /// All items, from the greatest class down, each class from newest to oldest.
    pub(in crate::core) fn iter<'a>(&'a self, slab: &'a Slab<T>) -> impl Iterator<Item = Slot<T>> + 'a {
        let spans = self.rows.iter().rev().flat_map(|shelf| shelf.spans.iter().rev());
        spans.flat_map(|span| span.list.iter(slab))
    }

    /// The longest unused item of the span with the least value, and that. The choice of the span stands for a while, if
    /// `version` stays.
    pub(super) fn least(
        &mut self,
        slab: &Slab<T>,
        now: Millis,
        version: u64,
        value: impl Fn(usize, u64) -> f64,
    ) -> Option<(f64, Slot<T>)> {
        if let Some(choice) = self.choice
            && choice.version == version
            && now <= choice.until
            && let Ok(position) = self.rows[choice.shelf].spans.binary_search_by_key(&choice.first, |span| span.first)
            && let Some(slot) = self.rows[choice.shelf].spans[position].list.oldest()
        {
            return Some((choice.value, slot));
        }
        let mut best: Option<(f64, u64, Slot<T>)> = None;
        self.choice = None;
        for (number, shelf) in self.rows.iter().enumerate() {
            for span in &shelf.spans {
                let Some(slot) = span.list.oldest() else { continue };
                let (own, used) = (value(number, now.since(span.from)), slab[slot].used());
                if best.is_none_or(|(least, earliest, _)| own < least || (own <= least && used < earliest)) {
                    best = Some((own, used, slot));
                    let until = now.plus(CHOICE_MS);
                    self.choice = Some(Choice { until, version, shelf: number, first: span.first, value: own });
                }
            }
        }
        best.map(|(value, _, slot)| (value, slot))
    }
}

impl<T: Shelved> Shelf<T> {
    /// Joins neighbours that are short for their age, and forgets empty ones.
    fn join_spans(&mut self, slab: &mut Slab<T>, now: Millis) {
        self.spans.retain(|span| span.list.oldest().is_some());
        let mut index = 0;
        while index + 1 < self.spans.len() {
            // The younger one ends where the one after it begins.
            let end = self.spans.get(index + 2).map_or(now, |after| after.from);
            if end.since(self.spans[index].from) * SPAN_PARTS <= now.since(end) {
                let younger = self.spans.remove(index + 1);
                self.spans[index].list.append_newer(slab, &younger.list);
            } else {
                index += 1;
            }
        }
    }
}
