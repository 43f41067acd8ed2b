//! The owner's side of a relay: one peer's requests, checked and carried out one after the other.

use std::sync::Arc;
use std::time::Instant;

use memcache_memory::{Checksum, RawRegion, Trailer, checksum_combine, checksum_region};
use memcache_types::limits::EXTENT_ALIGN;

use super::{Fetched, RelayHost, RelayLease, RelayRefusal, RelayReply, RelayRequest, RelayRun, RelayStep};
use crate::error::TransportError;
use crate::ops::{check_range, view};
use crate::plan::Way;

/// What one connection has of its owner's relay.
#[derive(Debug)]
pub(crate) struct RelaySession {
    host: Arc<dyn RelayHost>,
    lease: Option<Box<dyn RelayLease>>,
    /// The object that stores have begun and not ended.
    open: Option<Open>,
}

/// An object in parts: they come in order.
#[derive(Clone, Copy, Debug)]
struct Open {
    offset: u64,
    extent_bytes: u64,
    /// Bytes that are there.
    stored: u64,
    /// Their CRC-32C, where all parts so far were summed.
    sum: Option<u32>,
}

impl RelaySession {
    pub(crate) fn new(host: Arc<dyn RelayHost>) -> Self {
        Self { host, lease: None, open: None }
    }

    /// What the host's device says of the time.
    pub(crate) fn clock_ns(&self) -> u64 {
        self.host.clock_ns()
    }

    /// Does what a request that was sent at `clock_ns` asks for; `None` if it wants no answer.
    ///
    /// # Errors
    /// [`TransportError::InvalidOp`] if it makes no sense: then nothing was done.
    pub(crate) fn serve(
        &mut self,
        clock_ns: u64,
        request: &RelayRequest,
        region: RawRegion<'_>,
        deadline: Instant,
    ) -> Result<Option<RelayReply>, TransportError> {
        self.host.hear_clock(clock_ns);
        let done = match request {
            RelayRequest::Offer => Ok(RelayReply::Offer(self.host.offer().clone())),
            RelayRequest::Lease => self.lease(deadline),
            RelayRequest::Fetch(step) => {
                check_step(step, region.bytes(), &*self.host)?;
                self.fetch(step, region, deadline)
            }
            RelayRequest::Store(step) => {
                check_step(step, region.bytes(), &*self.host)?;
                self.check_order(step)?;
                self.store(step, region, deadline)
            }
            RelayRequest::Release => {
                if let Some(lease) = self.lease.take() {
                    lease.release();
                }
                self.open = None;
                return Ok(None);
            }
        };
        Ok(Some(done.unwrap_or_else(|refusal| match refusal {
            RelayRefusal::Busy => RelayReply::Busy,
            RelayRefusal::Failed { why } => RelayReply::Failed { why },
            RelayRefusal::Lost { why } => RelayReply::Lost { why },
        })))
    }

    fn lease(&mut self, deadline: Instant) -> Result<RelayReply, RelayRefusal> {
        if self.lease.is_none() {
            self.lease = Some(self.host.lease()?);
        }
        self.leased(deadline).map(|lease| RelayReply::Lease { set: lease.set() })
    }

    /// The lease, for a request with this deadline. Requests that were sent along with one for a lease fare as it did.
    fn leased(&mut self, deadline: Instant) -> Result<&mut Box<dyn RelayLease>, RelayRefusal> {
        let lease = self.lease.as_mut().ok_or(RelayRefusal::Busy)?;
        lease.rest_until(deadline);
        Ok(lease)
    }

    fn fetch(
        &mut self,
        step: &RelayStep,
        region: RawRegion<'_>,
        deadline: Instant,
    ) -> Result<RelayReply, RelayRefusal> {
        let lease = self.leased(deadline)?;
        lease.begin(Way::Get, step.slot, &step.runs)?;
        // Beside the copies: the device and the processor read the same bytes, and the trailer speaks for both.
        let sums: Vec<u32> = step.runs.iter().map(|run| if step.summed { sum(region, run) } else { 0 }).collect();
        lease.end(deadline)?;
        let found = step.runs.iter().zip(sums).map(|(run, sum)| {
            let trailer = extent(region, run).map_or(Trailer::RETRACTED, RawRegion::load_trailer);
            Fetched { trailer, sum }
        });
        Ok(RelayReply::Fetched(found.collect()))
    }

    fn store(
        &mut self,
        step: &RelayStep,
        region: RawRegion<'_>,
        deadline: Instant,
    ) -> Result<RelayReply, RelayRefusal> {
        // Whatever comes of it: an object that is not ended now begins again.
        let mut open = self.open.take();
        let lease = self.leased(deadline)?;
        for run in step.runs.iter().filter(|run| run.start == 0) {
            if let Ok(extent) = extent(region, run) {
                extent.retract_trailer();
            }
        }
        lease.begin(Way::Put, step.slot, &step.runs)?;
        lease.end(deadline)?;
        for run in &step.runs {
            let sum = step.summed.then(|| sum(region, run));
            let before = open.take().filter(|_| run.start > 0);
            let sum = match (before, sum) {
                (None, sum) => sum,
                (Some(before), Some(sum)) => before.sum.map(|first| checksum_combine(first, sum, run.bytes)),
                (Some(_), None) => None,
            };
            let (offset, extent_bytes, stored) = (run.offset, run.extent_bytes, run.start + run.bytes);
            match &run.trailer {
                None => open = Some(Open { offset, extent_bytes, stored, sum }),
                Some(trailer) => {
                    if let (Ok(extent), Some(trailer)) = (extent(region, run), Trailer::decode(trailer)) {
                        let checksum = sum.map_or(trailer.checksum, Checksum::Crc32c);
                        extent.publish_trailer(&Trailer { checksum, ..trailer }.encode());
                    }
                }
            }
        }
        self.open = open;
        Ok(RelayReply::Stored)
    }

    /// Whether the runs of a store begin and go on as they must.
    fn check_order(&self, step: &RelayStep) -> Result<(), TransportError> {
        let mut open = self.open;
        for run in &step.runs {
            let goes_on = open.is_some_and(|open| {
                (open.offset, open.extent_bytes, open.stored) == (run.offset, run.extent_bytes, run.start)
            });
            if run.start != 0 && !goes_on {
                return Err(TransportError::invalid(format!(
                    "a store goes on at byte {} of extent {}..+{}, which nothing led to",
                    run.start, run.offset, run.extent_bytes
                )));
            }
            if let Some(trailer) = &run.trailer {
                if Trailer::decode(trailer).is_none() {
                    return Err(TransportError::invalid("a store whose trailer is none"));
                }
                open = None;
                continue;
            }
            let (offset, extent_bytes, stored) = (run.offset, run.extent_bytes, run.start + run.bytes);
            open = Some(Open { offset, extent_bytes, stored, sum: None });
        }
        Ok(())
    }
}

/// Whether a step stays inside the region and its slot.
fn check_step(step: &RelayStep, region_bytes: u64, host: &dyn RelayHost) -> Result<(), TransportError> {
    let offer = host.offer();
    if step.slot >= offer.slots {
        return Err(TransportError::invalid(format!("slot {} of {}", step.slot, offer.slots)));
    }
    let mut filled = 0;
    for run in &step.runs {
        check_range(run.offset, run.extent_bytes, run.start.saturating_add(run.bytes), region_bytes)?;
        let end = run.staging_offset.checked_add(run.bytes.next_multiple_of(EXTENT_ALIGN));
        let fits = end.is_some_and(|end| run.staging_offset >= filled && end <= offer.slot_bytes);
        if !fits || !run.staging_offset.is_multiple_of(EXTENT_ALIGN) || !run.start.is_multiple_of(EXTENT_ALIGN) {
            return Err(TransportError::invalid(format!(
                "{} bytes from {} at {} of a slot of {} bytes, of which {filled} are taken",
                run.bytes, run.start, run.staging_offset, offer.slot_bytes
            )));
        }
        filled = run.staging_offset + run.bytes.next_multiple_of(EXTENT_ALIGN);
    }
    Ok(())
}

fn extent<'a>(region: RawRegion<'a>, run: &RelayRun) -> Result<RawRegion<'a>, TransportError> {
    view(region, run.offset, run.extent_bytes)
}

fn sum(region: RawRegion<'_>, run: &RelayRun) -> u32 {
    extent(region, run).and_then(|extent| view(extent, run.start, run.bytes)).map_or(0, checksum_region)
}
