//! What a mailbox promises, with both ends in one process and with an end that lies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use memcache_mailbox::{Change, End, MAILBOX_BYTES, MailboxError, RING_BYTES, pass, receive, ring};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::pwrite;

/// Shared words, by what they say, as they lie in memory.
const WORDS: [u64; 8] = [0, 128, 256, 384, 512, 640, 768, 896];

/// Longer than any wait of a test that goes well.
const LONG: Duration = Duration::from_secs(20);

fn both() -> (OwnedFd, End, End) {
    let (memory, service) = End::create().unwrap();
    let client = End::attach(&memory).unwrap();
    (memory, service, client)
}

/// Bytes that differ from their neighbours, so that one in the wrong place shows.
fn pattern(start: usize, count: usize) -> Vec<u8> {
    (start..start + count).map(|place| u8::try_from(place * 31 % 251).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_stream_arrives_whole_in_order_and_wraps_around(
        steps in prop::collection::vec((0usize..100_000, 1usize..100_000), 1..30),
    ) {
        let (_memory, mut service, mut client) = both();
        let (mut written, mut read) = (0, 0);
        for (write, take) in steps {
            let sent = client.write(&pattern(written, write)).unwrap();
            prop_assert_eq!(sent, write.min(RING_BYTES - (written - read)), "room is used, and no more");
            written += sent;
            prop_assert_eq!(service.is_there(Change::BYTES), written > read);
            prop_assert_eq!(client.is_there(Change::ROOM), written - read < RING_BYTES);
            let mut target = vec![0; take];
            let arrived = service.read(&mut target).unwrap();
            prop_assert!(arrived > 0 || written == read);
            prop_assert_eq!(&target[..arrived], &pattern(read, arrived)[..]);
            read += arrived;
        }
    }

    #[test]
    fn whatever_the_other_end_scribbles_ends_in_bytes_or_an_error(
        scribbles in prop::collection::vec(
            (0..WORDS.len(), prop_oneof![any::<u64>(), 0..200_000u64, Just(u64::MAX), Just(1 << 63)], 0usize..100_000),
            1..40,
        ),
    ) {
        let (memory, mut service, _client) = both();
        let mut target = vec![0; 2 * RING_BYTES];
        for (word, value, bytes) in scribbles {
            pwrite(&memory, &value.to_ne_bytes(), WORDS[word]).unwrap();
            for outcome in [service.write(&pattern(0, bytes)), service.read(&mut target)] {
                match outcome {
                    Ok(count) => prop_assert!(count <= RING_BYTES),
                    Err(MailboxError::Corrupt { claimed, .. }) => prop_assert!(claimed > RING_BYTES as u64),
                    Err(other) => prop_assert!(false, "{}", other),
                }
            }
            service.is_there(Change::BYTES.or(Change::ROOM));
            service.lie_down(Change::BYTES);
            service.get_up();
            service.shares_processor();
            let _ = service.must_ring(Change::BYTES);
        }
    }
}

#[test]
fn who_lies_down_is_rung_for_once_and_only_for_what_it_wants() {
    let (_memory, mut service, mut client) = both();
    assert!(!client.must_ring(Change::BYTES), "nobody sleeps yet");
    assert!(service.lie_down(Change::BYTES));
    assert!(client.is_peer_asleep());
    assert!(!client.must_ring(Change::ROOM), "it waits for bytes");
    client.write(b"x").unwrap();
    assert!(client.must_ring(Change::BYTES));
    assert!(!client.must_ring(Change::BYTES), "once");
    assert!(!service.lie_down(Change::BYTES), "there is something to read");
    assert!(!client.is_peer_asleep());
    service.read(&mut [0; 8]).unwrap();
    assert!(client.lie_down(Change::BYTES));
    assert!(!service.must_ring(Change::ROOM));
    client.get_up();
    assert!(!service.must_ring(Change::BYTES), "it got up");
    while client.write(&[7; 5000]).unwrap() > 0 {}
    assert!(client.lie_down(Change::ROOM) && !service.lie_down(Change::BYTES));
    service.read(&mut [0; 100]).unwrap();
    assert!(service.must_ring(Change::ROOM));
}

/// Writes and reads so much, sleeping whenever there is nothing to do and never looking twice.
fn sleepily(mut end: End, mut socket: UnixStream, total: usize, chunk: usize) {
    socket.set_read_timeout(Some(LONG)).unwrap();
    let (mut written, mut read) = (0, 0);
    let mut target = vec![0; 3 * chunk];
    while written < total || read < total {
        let mut changed = Change::NONE;
        let sent = end.write(&pattern(written, chunk.min(total - written))).unwrap();
        let arrived = end.read(&mut target).unwrap();
        assert_eq!(target[..arrived], pattern(read, arrived)[..]);
        if sent > 0 {
            changed = changed.or(Change::BYTES);
        }
        if arrived > 0 {
            changed = changed.or(Change::ROOM);
        }
        (written, read) = (written + sent, read + arrived);
        if changed != Change::NONE {
            if end.must_ring(changed) {
                ring(&socket).unwrap();
            }
            continue;
        }
        let mut wanted = if read < total { Change::BYTES } else { Change::NONE };
        if written < total {
            wanted = wanted.or(Change::ROOM);
        }
        if end.lie_down(wanted) {
            let woken = socket.read(&mut [0; 64]).expect("a wake-up was lost");
            assert!(woken > 0 || (written == total && read == total), "the other end left too early");
            end.get_up();
        }
    }
    // Whoever is behind may sleep for what was changed last; it was rung for. Stay until it is done.
    drop(socket.shutdown(std::net::Shutdown::Write));
    let mut rest = Vec::new();
    drop(socket.read_to_end(&mut rest));
}

#[test]
fn no_wake_up_is_lost_between_ends_that_sleep_whenever_they_can() {
    for (total, chunk) in [(60_000, 1), (200_000, 7), (20_000_000, 5000), (30_000_000, 64 << 10), (30_000_000, 100_000)]
    {
        let (_memory, service, client) = both();
        let (here, there) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| sleepily(service, here, total, chunk));
            sleepily(client, there, total, chunk);
        });
    }
}

/// One asks, the other answers, each asleep until it is rung: the order of an exchange.
#[test]
fn no_wake_up_is_lost_in_exchanges() {
    fn wait(end: &End, mut socket: &UnixStream) {
        while !end.is_there(Change::BYTES) {
            if end.lie_down(Change::BYTES) {
                assert!(socket.read(&mut [0; 64]).expect("a wake-up was lost") > 0);
                end.get_up();
            }
        }
    }
    let (_memory, mut service, mut client) = both();
    let (here, there) = UnixStream::pair().unwrap();
    here.set_read_timeout(Some(LONG)).unwrap();
    there.set_read_timeout(Some(LONG)).unwrap();
    let turns = 30_000u32;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut word = [0; 4];
            for _ in 0..turns {
                wait(&service, &here);
                assert_eq!(service.read(&mut word).unwrap(), 4);
                assert_eq!(service.write(&word).unwrap(), 4);
                if service.must_ring(Change::BYTES) {
                    ring(&here).unwrap();
                }
            }
        });
        for turn in 0..turns {
            assert_eq!(client.write(&turn.to_le_bytes()).unwrap(), 4);
            if client.must_ring(Change::BYTES) {
                ring(&there).unwrap();
            }
            wait(&client, &there);
            let mut word = [0; 4];
            client.read(&mut word).unwrap();
            assert_eq!(u32::from_le_bytes(word), turn);
        }
    });
}

#[test]
fn memory_that_could_shrink_or_has_another_size_is_refused() {
    let memfd = |bytes: usize, seals: SealFlags| {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, bytes as u64).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    };
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    for foreign in [
        memfd(MAILBOX_BYTES, SealFlags::GROW),
        memfd(MAILBOX_BYTES - 1, sealed),
        memfd(MAILBOX_BYTES + 4096, sealed),
        memfd(0, sealed),
        std::fs::File::open("/proc/self/exe").unwrap().into(),
    ] {
        let refused = End::attach(&foreign);
        assert!(matches!(refused, Err(MailboxError::Foreign(_))), "{refused:?}");
    }
    assert!(End::attach(&memfd(MAILBOX_BYTES, sealed)).is_ok());
}

#[test]
fn memory_is_handed_over_with_the_bytes_it_belongs_to() {
    let (memory, mut service) = End::create().unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    pass(&here, b"hello", &memory).unwrap();
    drop(memory);
    let mut bytes = [0; 16];
    let (count, fd) = receive(&there, &mut bytes).unwrap();
    assert_eq!(&bytes[..count], b"hello");
    let mut client = End::attach(&fd.unwrap().as_fd()).unwrap();
    service.write(b"through memory").unwrap();
    assert_eq!(client.read(&mut bytes).unwrap(), 14);
    assert_eq!(&bytes[..14], b"through memory");
    assert!(receive(&there, &mut bytes).is_err(), "it does not wait");
}
