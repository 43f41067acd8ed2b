//! The suite of `memcache-testkit` over every device, and what only the twin does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_device::{
    Copy, Device, DeviceError, Direction, HostDevice, Keep, Space, TwinCost, TwinDevice, TwinFault, TwinOptions,
    TwinTime,
};
use memcache_testkit::device_suite;
use memcache_testkit::rng::pattern;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn twin(options: TwinOptions) -> TwinDevice {
    TwinDevice::new(options).unwrap()
}

fn quick() -> TwinOptions {
    TwinOptions { time: TwinTime::Virtual, ..TwinOptions::default() }
}

#[test]
fn host() {
    device_suite::run(&(Arc::new(HostDevice) as Arc<dyn Device>));
}

#[test]
fn twin_in_real_time() {
    device_suite::run(&(Arc::new(twin(TwinOptions::default())) as Arc<dyn Device>));
}

#[test]
fn twin_with_narrow_limits() {
    let options = TwinOptions { batch_copies_max: 3, copy_bytes_max: 4096, align: 64, ..quick() };
    device_suite::run(&(Arc::new(twin(options)) as Arc<dyn Device>));
}

#[test]
fn twins_with_a_link() {
    let beside = |options: TwinOptions| Arc::new(twin(TwinOptions { ordinal: 1, ..options })) as Arc<dyn Device>;
    device_suite::run_linked(&(Arc::new(twin(quick())) as Arc<dyn Device>), &beside(quick()));
    let narrow = TwinOptions { batch_copies_max: 3, copy_bytes_max: 4096, align: 64, ..quick() };
    device_suite::run_linked(&(Arc::new(twin(narrow)) as Arc<dyn Device>), &beside(narrow));
    let alone = twin(TwinOptions { links: false, ..quick() });
    let memory = alone.allocate(Space::Device, 4096).unwrap();
    assert!(!alone.links_devices());
    assert!(matches!(alone.export(&memory), Err(DeviceError::Unsupported { .. })));
}

/// A batch of one copy from pinned memory, recorded.
fn one_copy(device: &TwinDevice, keep: Keep) -> (Box<dyn memcache_device::Queue>, memcache_device::Event) {
    let source = device.allocate(Space::Pinned, 4096).unwrap();
    let target = device.allocate(Space::Device, 4096).unwrap();
    let mut queue = device.open_queue().unwrap();
    let copy = Copy { source: source.address(), target: target.address(), bytes: 4096 };
    let keep: Keep = Arc::new((keep, source.keep(), target.keep()));
    // SAFETY: the keep holds both ends, and nobody else knows them.
    unsafe { queue.submit(Direction::HostToDevice, &[copy], keep) }.unwrap();
    let event = queue.record().unwrap();
    (queue, event)
}

#[test]
fn a_copy_that_fails_stops_what_is_behind_it_until_the_queue_is_cancelled() {
    let device = twin(quick());
    device.inject([TwinFault::Fail]);
    let (mut queue, event) = one_copy(&device, Arc::new(()));
    assert!(matches!(event.wait(soon()), Err(DeviceError::Failed { .. })));
    assert!(matches!(queue.record().unwrap().wait(soon()), Err(DeviceError::Failed { .. })));
    // A queue that waits for it fails with it.
    let mut other = device.open_queue().unwrap();
    other.wait_for(&event).unwrap();
    assert!(matches!(other.record().unwrap().wait(soon()), Err(DeviceError::Failed { .. })));
    queue.cancel(soon()).unwrap();
    queue.record().unwrap().wait(soon()).unwrap();
}

#[test]
fn a_stalled_engine_is_a_timeout_and_stops_when_cancelled() {
    let device = twin(quick());
    device.inject([TwinFault::Stall]);
    let (mut queue, event) = one_copy(&device, Arc::new(()));
    let asked = Instant::now();
    assert!(matches!(event.wait(asked + Duration::from_millis(30)), Err(DeviceError::Timeout { .. })));
    assert!(asked.elapsed() < Duration::from_secs(5));
    queue.cancel(soon()).unwrap();
    assert!(matches!(event.wait(soon()), Err(DeviceError::Cancelled { .. })));
}

#[test]
fn a_wedged_engine_is_lost_and_keeps_what_it_may_still_write() {
    let device = twin(quick());
    device.inject([TwinFault::Wedge]);
    let token = Arc::new(());
    let (mut queue, event) = one_copy(&device, Arc::clone(&token) as Keep);
    assert!(event.wait(Instant::now() + Duration::from_millis(10)).is_err());
    let lost = queue.cancel(Instant::now() + Duration::from_millis(30));
    assert!(matches!(lost, Err(DeviceError::Lost { .. })), "{lost:?}");
    assert_eq!(Arc::strong_count(&token), 2, "let go of memory that is still written to");
    device.unwedge();
    queue.cancel(soon()).unwrap();
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn time_is_what_the_costs_say() {
    let cost = TwinCost { batch_ns: 1_000, copy_ns: 100, bytes_per_s: 1_000_000_000 };
    let device = twin(TwinOptions { costs: [cost; 7], ..quick() });
    let (near, far) = (device.allocate(Space::Device, 8192).unwrap(), device.allocate(Space::Device, 8192).unwrap());
    let copy = Copy { source: near.address(), target: far.address(), bytes: 4096 };
    let pair = [copy, Copy { source: copy.source + 4096, target: copy.target + 4096, bytes: 4096 }];
    let (mut one, mut two) = (device.open_queue().unwrap(), device.open_queue().unwrap());
    let keep = || Arc::new((near.keep(), far.keep())) as Keep;
    // SAFETY: the keep holds both ends.
    unsafe { one.submit(Direction::Local, &pair, keep()) }.unwrap();
    let first = one.record().unwrap();
    // One engine a direction: the second queue's batch comes after the first one's.
    two.wait_for(&first).unwrap();
    // SAFETY: as above.
    unsafe { two.submit(Direction::Local, &pair, keep()) }.unwrap();
    two.record().unwrap().wait(soon()).unwrap();
    assert_eq!(device.now_ns(), 2 * (1_000 + 200 + 8192));
    assert_eq!(device.submitted(Direction::Local), (2, 4));
}

#[test]
fn one_twin_reaches_anothers_memory() {
    let (here, there) = (twin(quick()), twin(TwinOptions { ordinal: 1, ..quick() }));
    let (mine, theirs) = (here.allocate(Space::Device, 4096).unwrap(), there.allocate(Space::Device, 4096).unwrap());
    there.plant(theirs.address(), &pattern(9, 4096));
    let reach = here.import(&there.export(&theirs).unwrap()).unwrap();
    let source = reach.address();
    let mut queue = here.open_queue().unwrap();
    let copy = Copy { source, target: mine.address(), bytes: 4096 };
    // SAFETY: both ends are held until the wait is over.
    unsafe { queue.submit(Direction::LinkToDevice, &[copy], reach.keep()) }.unwrap();
    queue.record().unwrap().wait(soon()).unwrap();
    assert!(here.inspect(mine.address(), 4096) == pattern(9, 4096));
}

#[test]
fn memory_comes_back_and_runs_out_by_name() {
    let device = twin(TwinOptions { arena_bytes: 2 << 20, ..quick() });
    let half = device.allocate(Space::Device, 1 << 20).unwrap();
    let error = device.allocate(Space::Device, 2 << 20).unwrap_err();
    assert!(error.to_string().contains("1048576 of 2097152 bytes are in use"), "{error}");
    drop(half);
    assert_eq!(device.used_bytes(), 0);
    device.allocate(Space::Device, 2 << 20).unwrap();
}
