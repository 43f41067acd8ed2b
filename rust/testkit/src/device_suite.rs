//! What every device must do, whether the CPU may touch its memory or not.
//!
//! An implementation runs all of it from its own tests. Nothing here follows a device address.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_device::{
    Allocation, Copy, Device, DeviceError, Direction, EXPORT_BYTES_MAX, HostRange, Keep, Queue, Space, StagingPool,
};
use memcache_memory::{Segment, SegmentOptions};

use crate::rng::{Rng, pattern};

/// Least device memory the suite needs, in bytes.
pub const DEVICE_BYTES_MIN: u64 = 16 << 20;

/// A rule, and the check of it.
type Case = (&'static str, fn(&Arc<dyn Device>));

const CASES: [Case; 9] = [
    ("bytes go in, move inside and come out", round_trip),
    ("batches of a queue run in order", in_order),
    ("a queue waits for another's event", across_queues),
    ("what a peer shares is read and written", peers),
    ("limits are enforced, and name value and limit", limits),
    ("memory that is no such memory is refused", wrong_memory),
    ("what copies use is held until they are over", keeps),
    ("a cancelled queue moves nothing more and works again", cancelling),
    ("staging is bounded and comes back", staging),
];

/// Runs the suite on devices with at least [`DEVICE_BYTES_MIN`] bytes. Panics with the first thing that is not as it
/// should be.
pub fn run(device: &Arc<dyn Device>) {
    assert!(device.capabilities().batch_copies_max >= 1 && device.capabilities().copy_bytes_max >= 64);
    for (name, case) in CASES {
        tell(&**device, name);
        case(device);
    }
}

/// What two devices with a link between them must do. Panics with the first thing that is not as it should be.
pub fn run_linked(one: &Arc<dyn Device>, other: &Arc<dyn Device>) {
    assert!(one.links_devices() && other.links_devices());
    for (near, far) in [(one, other), (other, one)] {
        tell(&**near, "what another device exports is read and written");
        linked(&**near, &**far);
        tell(&**near, "bytes that are no export are refused");
        wrong_exports(&**near, &**far);
    }
}

#[allow(clippy::print_stderr, reason = "the test harness keeps it for failures")]
fn tell(device: &dyn Device, name: &str) {
    eprintln!("{}: {name}", device.id());
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn nothing() -> Keep {
    Arc::new(())
}

/// Pinned memory with these bytes.
fn pinned(device: &dyn Device, bytes: &[u8]) -> Allocation {
    let memory = device.allocate(Space::Pinned, bytes.len() as u64).expect("pinned memory");
    write_host(memory.address(), bytes);
    memory
}

fn write_host(address: u64, bytes: &[u8]) {
    let target = std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(address).expect("an address"));
    // SAFETY: pinned memory of this length, allocated by the caller and not in use by a copy.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) }
}

fn read_host(memory: &Allocation) -> Vec<u8> {
    assert_eq!(memory.space(), Space::Pinned);
    let mut bytes = vec![0; usize::try_from(memory.bytes()).expect("a length")];
    let source = std::ptr::with_exposed_provenance::<u8>(usize::try_from(memory.address()).expect("an address"));
    // SAFETY: pinned memory of this length, not in use by a copy.
    unsafe { std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) }
    bytes
}

/// Submits copies in batches as long as the device takes.
fn submit(device: &dyn Device, queue: &mut dyn Queue, direction: Direction, copies: &[Copy], keep: &Keep) {
    for batch in copies.chunks(device.capabilities().batch_copies_max.min(copies.len().max(1))) {
        // SAFETY: all callers pass live allocations that nobody else uses meanwhile.
        unsafe { queue.submit(direction, batch, Arc::clone(keep)) }.expect("a batch within the limits");
    }
}

fn finish(queue: &mut dyn Queue) {
    queue.record().expect("an event").wait(soon()).expect("copies that end well");
}

/// The bytes of device memory, through the device.
fn download(device: &dyn Device, queue: &mut dyn Queue, memory: &Allocation) -> Vec<u8> {
    let out = device.allocate(Space::Pinned, memory.bytes()).expect("pinned memory");
    let copies = cut(memory.address(), out.address(), memory.bytes(), device);
    submit(device, queue, Direction::DeviceToHost, &copies, &nothing());
    finish(queue);
    read_host(&out)
}

/// One long copy in as many as the device wants.
fn cut(source: u64, target: u64, bytes: u64, device: &dyn Device) -> Vec<Copy> {
    let limits = device.capabilities();
    let step = (limits.copy_bytes_max / limits.align * limits.align).max(limits.align);
    (0..bytes.div_ceil(step))
        .map(|at| at * step)
        .map(|at| Copy { source: source + at, target: target + at, bytes: step.min(bytes - at) })
        .collect()
}

fn round_trip(device: &Arc<dyn Device>) {
    let align = device.capabilities().align;
    let mut rng = Rng::new(1);
    let mut queue = device.open_queue().expect("a queue");
    for (pieces, piece_max) in [(1u64, 100_000u64), (7, 5000), (300, 700), (64, 40_000)] {
        let lengths: Vec<u64> = (0..pieces).map(|_| (1 + rng.below(piece_max / align)) * align).collect();
        let total: u64 = lengths.iter().sum();
        let object = pattern(pieces, usize::try_from(total).expect("short"));
        let source = pinned(&**device, &object);
        let staging = device.allocate(Space::Device, total).expect("device memory");
        let tensors = device.allocate(Space::Device, total + pieces * align * 3).expect("device memory");
        submit(
            &**device,
            &mut *queue,
            Direction::HostToDevice,
            &cut(source.address(), staging.address(), total, &**device),
            &nothing(),
        );
        // Pieces in another order, with gaps.
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        rng.shuffle(&mut order);
        let starts: Vec<u64> = lengths.iter().scan(0, |at, bytes| Some(std::mem::replace(at, *at + bytes))).collect();
        let mut at = tensors.address();
        let mut places = vec![0; lengths.len()];
        let mut scatter = Vec::new();
        for piece in order {
            at += align * rng.below(3);
            places[piece] = at;
            scatter.extend(cut(staging.address() + starts[piece], at, lengths[piece], &**device));
            at += lengths[piece];
        }
        submit(&**device, &mut *queue, Direction::Local, &scatter, &nothing());
        let out = device.allocate(Space::Pinned, total).expect("pinned memory");
        let gather: Vec<Copy> = (0..lengths.len())
            .flat_map(|piece| cut(places[piece], out.address() + starts[piece], lengths[piece], &**device))
            .collect();
        submit(&**device, &mut *queue, Direction::DeviceToHost, &gather, &nothing());
        finish(&mut *queue);
        assert!(read_host(&out) == object, "{pieces} pieces came back otherwise");
        assert!(read_host(&source) == object, "a copy changed its source");
    }
}

fn in_order(device: &Arc<dyn Device>) {
    let mut queue = device.open_queue().expect("a queue");
    let memory = device.allocate(Space::Device, 64 << 10).expect("device memory");
    let mut last = Vec::new();
    for round in 0..50u64 {
        last = pattern(round, 64 << 10);
        let source = pinned(&**device, &last);
        let copies = cut(source.address(), memory.address(), 64 << 10, &**device);
        submit(&**device, &mut *queue, Direction::HostToDevice, &copies, &source.keep());
    }
    assert!(download(&**device, &mut *queue, &memory) == last, "not the last batch's bytes");
}

fn across_queues(device: &Arc<dyn Device>) {
    let (mut first, mut second) = (device.open_queue().expect("a queue"), device.open_queue().expect("another"));
    let bytes = 1 << 20;
    let (near, far) = (device.allocate(Space::Device, bytes), device.allocate(Space::Device, bytes));
    let (near, far) = (near.expect("device memory"), far.expect("device memory"));
    for round in 0..20 {
        let object = pattern(round, 1 << 20);
        let source = pinned(&**device, &object);
        submit(
            &**device,
            &mut *first,
            Direction::HostToDevice,
            &cut(source.address(), near.address(), bytes, &**device),
            &source.keep(),
        );
        second.wait_for(&first.record().expect("an event")).expect("queues of one device wait for each other");
        submit(
            &**device,
            &mut *second,
            Direction::Local,
            &cut(near.address(), far.address(), bytes, &**device),
            &nothing(),
        );
        assert!(download(&**device, &mut *second, &far) == object, "round {round}: copied before it was there");
    }
}

fn peers(device: &Arc<dyn Device>) {
    if !device.capabilities().reaches_peers {
        return;
    }
    let options = SegmentOptions { huge_pages: false, prefault: false };
    let segment = Arc::new(Segment::create(2 << 20, &options).expect("a segment"));
    let range = HostRange { base: segment.base(), bytes: segment.bytes() };
    // SAFETY: the segment is kept by the reach itself.
    let reach = unsafe { device.reach(range, Arc::clone(&segment) as Keep) }.expect("a mapped segment");
    let object = pattern(5, 1 << 20);
    segment.region().sub(1 << 20, 1 << 20).expect("inside").write_from(&object);
    let mut queue = device.open_queue().expect("a queue");
    let memory = device.allocate(Space::Device, 1 << 20).expect("device memory");
    let inward = cut(reach.address() + (1 << 20), memory.address(), 1 << 20, &**device);
    submit(&**device, &mut *queue, Direction::PeerToDevice, &inward, &reach.keep());
    let outward = cut(memory.address(), reach.address(), 1 << 20, &**device);
    submit(&**device, &mut *queue, Direction::DeviceToPeer, &outward, &reach.keep());
    finish(&mut *queue);
    let mut found = vec![0; 1 << 20];
    segment.region().read_into(&mut found);
    assert!(found == object, "other bytes than the peer shared");
    let holders = Arc::strong_count(&segment);
    drop(reach);
    assert!(Arc::strong_count(&segment) < holders, "a dropped reach still holds the segment");
}

fn linked(near: &dyn Device, far: &dyn Device) {
    let bytes = 1 << 20;
    let object = pattern(11, 1 << 20);
    // Something before and behind it, so that a place is told, not a whole memory.
    let around = [(); 2].map(|()| far.allocate(Space::Device, 4096).expect("device memory"));
    let theirs = far.allocate(Space::Device, 2 * bytes).expect("device memory");
    let (mut queue, mut their_queue) = (near.open_queue().expect("a queue"), far.open_queue().expect("a queue"));
    let source = pinned(far, &object);
    submit(
        far,
        &mut *their_queue,
        Direction::HostToDevice,
        &cut(source.address(), theirs.address() + bytes, bytes, far),
        &source.keep(),
    );
    finish(&mut *their_queue);
    let export = far.export(&theirs).expect("its own memory");
    assert!(export.len() <= EXPORT_BYTES_MAX, "an export of {} bytes", export.len());
    let link = near.import(&export).expect("what a device exported");
    assert_eq!(link.bytes(), theirs.bytes());
    let mine = near.allocate(Space::Device, bytes).expect("device memory");
    let inward = cut(link.address() + bytes, mine.address(), bytes, near);
    submit(near, &mut *queue, Direction::LinkToDevice, &inward, &link.keep());
    let outward = cut(mine.address(), link.address(), bytes, near);
    submit(near, &mut *queue, Direction::DeviceToLink, &outward, &link.keep());
    finish(&mut *queue);
    assert!(download(near, &mut *queue, &mine) == object, "read otherwise over the link");
    let found = download(far, &mut *their_queue, &theirs);
    assert!(found[..1 << 20] == object, "written otherwise over the link");
    assert!(found[1 << 20..] == object, "a copy over the link changed its source");
    // Linked memory is no host's, and ends where it was said to.
    let align = near.capabilities().align;
    let past = Copy { source: link.address() + 2 * bytes, target: mine.address(), bytes: align };
    let within = Copy { source: link.address(), ..past };
    for (direction, copy) in [(Direction::LinkToDevice, past), (Direction::PeerToDevice, within)] {
        // SAFETY: refused before anything is touched, which is what is checked.
        let found = unsafe { queue.submit(direction, &[copy], nothing()) };
        assert!(matches!(found, Err(DeviceError::InvalidCopy { .. })), "{direction:?}: {found:?}");
    }
    let gone = link.address();
    drop((link, around));
    let late = Copy { source: gone, target: mine.address(), bytes: align };
    // SAFETY: as above.
    assert!(unsafe { queue.submit(Direction::LinkToDevice, &[late], nothing()) }.is_err(), "a link that was dropped");
}

fn wrong_exports(near: &dyn Device, far: &dyn Device) {
    let pinned = far.allocate(Space::Pinned, 4096).expect("pinned memory");
    assert!(far.export(&pinned).is_err(), "host memory was exported");
    let theirs = far.allocate(Space::Device, 4096).expect("device memory");
    let export = far.export(&theirs).expect("its own memory");
    let mut rng = Rng::new(7);
    for length in 0..export.len() {
        assert!(near.import(&export[..length]).is_err(), "{length} bytes of {}", export.len());
    }
    for _ in 0..500 {
        let mut broken = export.clone();
        let at = rng.index(broken.len());
        broken[at] ^= 1 << rng.below(8);
        // Whatever it leads to, it is no crash, and a refusal says why.
        if let Err(error) = near.import(&broken) {
            assert!(matches!(error, DeviceError::BadExport { .. }), "{error}");
        }
    }
}

fn limits(device: &Arc<dyn Device>) {
    let limits = *device.capabilities();
    let mut queue = device.open_queue().expect("a queue");
    let (near, far) = (device.allocate(Space::Device, 4096), device.allocate(Space::Device, 4096));
    let (near, far) = (near.expect("device memory"), far.expect("device memory"));
    let mut refused = |copies: &[Copy]| {
        // SAFETY: live allocations that nobody else uses.
        let error = unsafe { queue.submit(Direction::Local, copies, nothing()) }.expect_err("past a limit");
        assert!(matches!(error, DeviceError::InvalidCopy { .. }), "{error}");
        error.to_string()
    };
    let short = Copy { source: near.address(), target: far.address(), bytes: limits.align };
    if limits.batch_copies_max < 1 << 20 {
        let said = refused(&vec![short; limits.batch_copies_max + 1]);
        assert!(said.contains(&format!("the limit is {}", limits.batch_copies_max)), "{said}");
    }
    if limits.copy_bytes_max < u64::MAX - 4096 {
        let said = refused(&[Copy { bytes: limits.copy_bytes_max + limits.align, ..short }]);
        assert!(said.contains(&limits.copy_bytes_max.to_string()), "{said}");
    }
    if limits.align > 1 {
        let said = refused(&[short, Copy { source: short.source + 1, ..short }]);
        assert!(said.contains("copy 1") && said.contains(&limits.align.to_string()), "{said}");
    }
    refused(&[Copy { source: u64::MAX - limits.align + 1, target: far.address(), bytes: 2 * limits.align }]);
}

fn wrong_memory(device: &Arc<dyn Device>) {
    if device.capabilities().cpu_touches {
        return; // every address is memory of every kind
    }
    let mut queue = device.open_queue().expect("a queue");
    let memory = device.allocate(Space::Device, 4096).expect("device memory");
    let mut plain = vec![7u64; 512];
    let address = plain.as_mut_ptr().expose_provenance() as u64 / 256 * 256;
    for (direction, source, target) in [
        (Direction::HostToDevice, address, memory.address()),
        (Direction::DeviceToHost, memory.address(), address),
        (Direction::Local, address, memory.address()),
        (Direction::PeerToDevice, address, memory.address()),
        (Direction::DeviceToPeer, memory.address(), address),
        (Direction::Local, memory.address(), memory.address() + (1 << 40)),
    ] {
        // SAFETY: refused before anything is touched, which is what is checked.
        let found = unsafe { queue.submit(direction, &[Copy { source, target, bytes: 256 }], nothing()) };
        assert!(matches!(found, Err(DeviceError::InvalidCopy { .. })), "{direction:?}: {found:?}");
    }
    let gone = memory.address();
    drop(memory);
    let other = device.allocate(Space::Pinned, 4096).expect("pinned memory");
    let late = Copy { source: other.address(), target: gone, bytes: 256 };
    // SAFETY: as above.
    assert!(unsafe { queue.submit(Direction::HostToDevice, &[late], nothing()) }.is_err(), "memory that was freed");
}

fn keeps(device: &Arc<dyn Device>) {
    let mut queue = device.open_queue().expect("a queue");
    let memory = device.allocate(Space::Device, 1 << 20).expect("device memory");
    let source = pinned(&**device, &pattern(1, 1 << 20));
    let token = Arc::new(());
    let keep: Keep = Arc::clone(&token) as Keep;
    submit(
        &**device,
        &mut *queue,
        Direction::HostToDevice,
        &cut(source.address(), memory.address(), 1 << 20, &**device),
        &keep,
    );
    drop(keep);
    finish(&mut *queue);
    let until = soon();
    while Arc::strong_count(&token) > 1 {
        assert!(Instant::now() < until, "still held after the copies are over");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn cancelling(device: &Arc<dyn Device>) {
    let mut queue = device.open_queue().expect("a queue");
    let memory = device.allocate(Space::Device, 4 << 20).expect("device memory");
    let source = pinned(&**device, &pattern(2, 4 << 20));
    let copies = cut(source.address(), memory.address(), 4 << 20, &**device);
    for _ in 0..20 {
        submit(&**device, &mut *queue, Direction::HostToDevice, &copies, &source.keep());
    }
    let event = queue.record().expect("an event");
    queue.cancel(soon()).expect("a healthy device stops");
    assert!(event.is_done(), "an event outlived its queue's work");
    let before = download(&**device, &mut *queue, &memory);
    assert_eq!(before.len(), 4 << 20);
    let object = pattern(3, 4 << 20);
    let source = pinned(&**device, &object);
    let copies = cut(source.address(), memory.address(), 4 << 20, &**device);
    submit(&**device, &mut *queue, Direction::HostToDevice, &copies, &source.keep());
    assert!(download(&**device, &mut *queue, &memory) == object, "something cancelled came later");
}

fn staging(device: &Arc<dyn Device>) {
    for space in [Space::Device, Space::Pinned] {
        let pool = StagingPool::new(Arc::clone(device), space, 1 << 16, 2, 2);
        let (one, two) = (pool.take(soon()).expect("a set"), pool.take(soon()).expect("another"));
        assert_ne!(one.address(0), two.address(0));
        assert_eq!(one.address(1), one.address(0) + pool.slot_bytes());
        assert_eq!(one.address(2), one.address(0), "slots go round");
        let refused = pool.take(Instant::now() + Duration::from_millis(20));
        assert!(matches!(refused, Err(DeviceError::Timeout { .. })), "a third set of two: {refused:?}");
        let keep = one.keep();
        drop(one);
        assert_eq!(pool.in_use(), 2, "a copy still uses it");
        drop(keep);
        assert_eq!(pool.in_use(), 1);
        drop(pool.take(soon()).expect("the one that came back"));
        drop(two);
        assert_eq!(pool.in_use(), 0);
    }
}
