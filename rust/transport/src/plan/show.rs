//! Plans as people read them.

use std::fmt;

use super::request::Considered;
use super::{Path, TransferPlan};

impl fmt::Display for TransferPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.considered {
            write!(f, "{one}")?;
        }
        writeln!(
            f,
            "{:<20} {:<9} {:>8} {:>7} {:>8} {:>9} {:>14} {:>12}",
            self.way, "path", "objects", "steps", "parts", "copies", "bytes", "predicted us"
        )?;
        for group in &self.groups {
            let name = self.considered.iter().find(|one| one.peer == group.peer).map_or("?", |one| &one.peer_name);
            let parts: usize = group.steps.iter().map(|step| step.parts.len()).sum();
            let copies: usize = group.steps.iter().map(|step| step.copies.len()).sum();
            let bytes: u64 = group.steps.iter().map(super::Step::bytes).sum();
            let (objects, steps) = (group.objects.len(), group.steps.len());
            writeln!(
                f,
                "{name:<20} {:<9} {objects:>8} {steps:>7} {parts:>8} {copies:>9} {bytes:>14} {:>12}",
                group.path,
                Micros(group.predicted_ns)
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Considered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { objects, pieces, payload_bytes, peer_name, local_name, .. } = self;
        writeln!(f, "{objects} x {payload_bytes} bytes in {pieces} pieces, {peer_name} <-> {local_name}")?;
        for path in Path::ALL {
            let mark = match (self.chosen == path, self.is_forced) {
                (true, true) => "  <- forced",
                (true, false) => "  <- chosen",
                (false, _) => "",
            };
            match &self.times_ns[path.number()] {
                Ok(ns) => writeln!(f, "  path {path:<9} {:>12} us{mark}", Micros(*ns))?,
                Err(why) => writeln!(f, "  path {path:<9} {:>12}     {why}", "-")?,
            }
        }
        Ok(())
    }
}

/// Nanoseconds as microseconds with one decimal.
struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.0 / 1000, self.0 / 100 % 10))
    }
}
