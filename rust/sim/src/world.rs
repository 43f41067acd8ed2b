//! The world: one book, nodes and clients, and the loop that lets things happen one after the other.

use memcache_meta::core::{Core, Millis};
use memcache_meta::wire;
use memcache_proto::pb::drain::Mode;
use memcache_proto::pb::{self, failure, reply, request};
use memcache_types::Epoch;

use crate::client::{Client, Reach, keys_to_wire};
use crate::clock::WallClock;
use crate::invariants::{Violation, damage, hold, replicas, settled, tables};
use crate::ledger::Ledger;
use crate::memory::Memories;
use crate::net::{Actor, Event, Net, WAY_MS};
use crate::node::Node;
use crate::rng::Rng;
use crate::scenario::{Sabotage, Scenario};
use crate::truth::Truth;

/// Pause between two looks of the book at its clock.
const TICK_MS: u64 = 25;

/// How long everybody gets to put and get when all is calm.
const PROBE_MS: u64 = 600;

/// Everything there is.
#[derive(Debug)]
pub struct World {
    net: Net,
    memories: Memories,
    truth: Truth,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    book: Option<Core>,
    ledger: Ledger,
    /// How far the book's clock is ahead.
    ahead: u64,
    clock: WallClock,
    /// Answers remembered for [`Sabotage::LocateRemembered`].
    remembered: Vec<(Option<pb::Keys>, pb::LocateReply)>,
    keys: Vec<u64>,
}

/// How a world ended.
#[derive(Debug)]
pub struct Ended {
    /// Sum over everything that happened.
    pub digest: u64,
    /// The rule that did not hold.
    pub violation: Option<Violation>,
    /// What happened, in words, if they were kept.
    pub trace: Vec<String>,
    /// Reads that were hits.
    pub hits: u64,
    /// Reads that only the checksum turned into misses.
    pub caught_by_checksum: u64,
    /// Copies that became replicas.
    pub copied: u64,
    /// Most replicas at a time that nobody had asked for.
    pub extras: u64,
    /// Removals whose remover was told success.
    pub forgotten: u64,
    /// Objects that nodes told of in vain when removals were forgotten.
    pub doubtful: u64,
    /// Objects that nodes told of and that are readable again.
    pub listed: u64,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, sabotage: Sabotage, keep_trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut scenario = Scenario::draw(&mut rng, sabotage);
        scenario.add_tables(seed);
        scenario.add_more(seed);
        let mut net = Net::new(scenario.clone(), rng, keep_trace);
        net.note(format_args!("{scenario:?}"));
        let nodes: Vec<Node> = (0..scenario.nodes).zip(0..).map(|(_, index)| Node::new(index)).collect();
        let mut clients: Vec<Client> = (0..scenario.clients).zip(0..).map(|(_, index)| Client::new(index)).collect();
        for index in 0..nodes.len() {
            net.after(0, Event::NodeUp(index));
        }
        for client in &mut clients {
            client.start(&mut net);
        }
        net.after(0, Event::BookUp);
        net.after(TICK_MS, Event::Tick);
        if scenario.fault_every > 0 {
            net.after(scenario.fault_every, Event::Fault);
        }
        net.after(scenario.calm_at, Event::Calm);
        let keys = (0..scenario.keys).chain(clients.iter().map(Client::probe_key)).collect();
        let ledger = Ledger::new(scenario.settings, scenario.set_back, 0);
        let clock = WallClock::new(seed, scenario.set_back);
        let exact = !scenario.checksum;
        let (memories, truth) = (Memories::default(), Truth { files: scenario.files, exact, ..Truth::default() });
        Self { net, memories, truth, nodes, clients, book: None, ledger, ahead: 0, clock, remembered: Vec::new(), keys }
    }

    /// Lets everything happen, up to the end or to the first rule that does not hold.
    pub fn run(mut self) -> Ended {
        let mut violation = None;
        while let Some(event) = self.net.pop() {
            if matches!(event, Event::End) {
                violation = settled::check_service(&self.clients)
                    .and_then(|()| damage::check(&self.ledger, &self.truth))
                    .and_then(|()| self.check_tables())
                    .err();
                break;
            }
            if let Err(found) = self.happen(event) {
                violation = Some(found);
                break;
            }
            if self.truth.is_lost {
                break;
            }
        }
        Ended {
            digest: self.net.trace.digest(),
            violation,
            trace: self.net.trace.into_lines(),
            hits: self.truth.hits,
            caught_by_checksum: self.truth.caught_by_checksum,
            copied: self.truth.copied,
            extras: self.truth.extras,
            forgotten: self.truth.forgotten,
            doubtful: self.truth.doubtful,
            listed: self.truth.listed,
        }
    }

    fn check_tables(&mut self) -> Result<(), Violation> {
        let (records, now) = (self.net.scenario.records, self.book_now());
        let nodes: Vec<u64> = self.nodes.iter().map(Node::id).collect();
        match &mut self.book {
            Some(core) if records > 0 && !self.net.scenario.checksum => {
                tables::check(core, now, &self.keys, &nodes, records)
            }
            _ => Ok(()),
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        let mut reach = Reach { net: &mut self.net, memories: &mut self.memories, truth: &mut self.truth };
        match event {
            Event::Wake(Actor::Node(index), wake) => {
                self.nodes[index].on_wake(&mut self.net, &mut self.memories, wake);
            }
            Event::Wake(Actor::Client(index), wake) => self.clients[index].on_wake(&mut reach, &self.ledger, wake)?,
            Event::Reply(Actor::Node(index), answer) => {
                self.nodes[index].on_reply(&mut reach, &self.ledger.segments, &answer);
            }
            Event::Reply(Actor::Client(index), answer) => self.clients[index].on_reply(&mut reach, answer),
            Event::Request(from, life, request) => {
                if life == self.net.book_life && self.book.is_some() {
                    self.serve(from, request)?;
                }
            }
            Event::Tick => {
                self.net.after(TICK_MS, Event::Tick);
                self.tick()?;
            }
            Event::Fault => self.fault(),
            Event::BookUp => self.start_book(),
            Event::NodeUp(index) => self.start_node(index),
            Event::Calm => self.calm(),
            Event::Healed => self.cancel_drains(),
            Event::Settled => {
                if let (Some(infos), Some(status)) = self.look()? {
                    settled::check_leaks(&status, self.nodes.len())?;
                    let high = self.net.scenario.settings.high_watermark_ppm;
                    // Where late writers may damage objects there may be nothing to copy from.
                    let sound = !self.net.scenario.checksum;
                    for (key, info) in self.keys.iter().zip(&infos.keys).filter(|_| sound) {
                        replicas::check_restored(&self.ledger, *key, info, high)?;
                    }
                }
                for client in &mut self.clients {
                    client.start_probe(&mut self.net);
                }
                self.net.after(PROBE_MS, Event::End);
            }
            Event::End => {}
        }
        Ok(())
    }

    fn book_now(&self) -> u64 {
        self.net.now + self.ahead
    }

    /// The time the core is told.
    fn told_now(&self) -> Millis {
        let stopped = self.net.scenario.sabotage == Sabotage::ClockStopped;
        Millis::new(if stopped { 0 } else { self.book_now() })
    }

    fn start_book(&mut self) {
        let settings = self.net.scenario.settings;
        let repeated = self.net.scenario.sabotage == Sabotage::EpochRepeated;
        let epoch = self.clock.draw_epoch(if repeated { 0 } else { self.book_now() });
        self.book = Some(Core::new(settings, Epoch::new(epoch), self.told_now()));
        self.ledger = Ledger::new(settings, self.net.scenario.set_back, self.truth.issued_so_far());
        self.hide_earlier_lives();
    }

    /// Where clocks were set back, it matters whom the book meets first: often those who cannot tell it of an earlier life.
    fn hide_earlier_lives(&mut self) {
        let count = self.nodes.len();
        let Some((first, ms)) = self.clock.draw_newcomer(count).filter(|_| !self.net.calm) else { return };
        for index in (0..count).filter(|index| *index != first) {
            self.net.cut_off.insert(Actor::Node(index), self.net.now + ms);
        }
        if self.net.scenario.node_faults && !self.net.scenario.files && self.nodes[first].up {
            self.nodes[first].stop(&mut self.net, false);
            let place = self.nodes[first].place(&self.net);
            self.memories.destroy(place);
            self.truth.drop_memory(place);
            self.start_node(first);
        }
    }

    fn start_node(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if !node.up {
            node.start(&mut self.net, &mut self.memories, &mut self.clock);
        }
    }

    fn serve(&mut self, from: Actor, mut request: pb::Request) -> Result<(), Violation> {
        let (now, told, client, id) = (self.book_now(), self.told_now(), request.client, request.request_id);
        let Some(core) = &mut self.book else { return Ok(()) };
        self.ledger.note_turns(core.removals_noted());
        self.ledger.advance(now);
        let asked = request.body.clone();
        if let (Sabotage::LifeHidden, Some(request::Body::Join(join))) = (self.net.scenario.sabotage, &mut request.body)
        {
            join.previous_epoch = join.previous_epoch.min(1);
        }
        let mut reply = wire::serve(core, told, request, &mut Vec::new());
        self.ledger.note_forgotten(core.removals_noted().1);
        self.ledger.sweeps = core.sweeps();
        if let Some(body) = &mut reply.body {
            lie(self.net.scenario.sabotage, core, told, client, asked.as_ref(), body, &mut self.remembered);
        }
        if let (Some(asked), Some(answered)) = (&asked, &reply.body) {
            if let reply::Body::Failure(refused) = answered {
                // A listing may come late, when its segment is not lent any more.
                let late = matches!(asked, request::Body::Holdings(_));
                let stale = refused.code == i32::from(failure::Code::Stale);
                hold("refused", late || stale, || format!("{asked:?}: {refused:?}"))?;
            }
            match asked {
                request::Body::Remove(asked) => self.ledger.note_removal(&mut self.truth, id, asked),
                request::Body::RemoveAll(_) => self.ledger.note_removal_of_all(&mut self.truth, id),
                _ => {}
            }
            let real_now = (!self.net.scenario.jumps).then_some(self.net.now);
            self.ledger.note(&mut self.truth, real_now, client, asked, answered)?;
        }
        self.audit()?;
        self.net.reply(from, reply);
        Ok(())
    }

    fn tick(&mut self) -> Result<(), Violation> {
        let (now, told) = (self.book_now(), self.told_now());
        if let Some(core) = &mut self.book {
            self.ledger.note_turns(core.removals_noted());
            self.ledger.advance(now);
            core.tick(told, &mut Vec::new());
            self.ledger.sweeps = core.sweeps();
        }
        self.audit()
    }

    /// Asks the book for everything.
    fn look(&mut self) -> Result<(Option<pb::InfoReply>, Option<pb::StatusReply>), Violation> {
        let told = self.told_now();
        let Some(core) = &mut self.book else { return Ok((None, None)) };
        let mut ask = |body| {
            let request = pb::Request { request_id: 0, client: 0, body: Some(body) };
            wire::serve(core, told, request, &mut Vec::new()).body
        };
        let infos = ask(request::Body::Info(pb::Info { keys: keys_to_wire(&self.keys) }));
        let status = ask(request::Body::Status(pb::Status {}));
        match (infos, status) {
            (Some(reply::Body::Info(infos)), Some(reply::Body::Status(status))) => Ok((Some(infos), Some(status))),
            other => Err(Violation { rule: "refused", what: format!("a look was answered with {other:?}") }),
        }
    }

    fn audit(&mut self) -> Result<(), Violation> {
        if let (Some(infos), Some(status)) = self.look()? {
            self.ledger.audit(&mut self.truth, &self.keys, &infos, &status)?;
        }
        Ok(())
    }

    fn fault(&mut self) {
        if self.net.calm {
            return;
        }
        let every = self.net.scenario.fault_every;
        self.net.after(every, Event::Fault);
        let Scenario { node_faults, restarts, jumps, nodes, clients, .. } = self.net.scenario;
        let rng = &mut self.net.rng;
        let ms = rng.between(20, 300);
        let index = usize::try_from(rng.below(nodes)).unwrap_or(0);
        let client = usize::try_from(rng.below(clients)).unwrap_or(0);
        let until = self.net.now + ms;
        match rng.below(8) {
            leaves @ 0..=1 if node_faults && self.nodes[index].up => {
                self.nodes[index].stop(&mut self.net, leaves == 1);
                if !self.net.scenario.files {
                    let place = self.nodes[index].place(&self.net);
                    self.memories.destroy(place);
                    self.truth.drop_memory(place);
                }
                self.net.after(ms, Event::NodeUp(index));
            }
            2 | 3 if node_faults => {
                self.net.cut_off.insert(Actor::Node(index), until);
            }
            4 if node_faults => {
                self.net.slow.insert(Actor::Node(index), until);
            }
            5 => {
                self.net.cut_off.insert(Actor::Client(client), until);
            }
            6 if restarts && self.book.is_some() => {
                self.book = None;
                self.net.book_life += 1;
                self.net.after(ms / 3, Event::BookUp);
            }
            7 if jumps => self.ahead += ms * 4,
            7 if node_faults => {
                let mode = [Mode::Move, Mode::Evict, Mode::Drop, Mode::Cancel][usize::try_from(ms % 4).unwrap_or(0)];
                self.drain(index, mode);
            }
            _ => {}
        }
    }

    /// Somebody has a node emptied, or no longer.
    fn drain(&mut self, index: usize, mode: Mode) {
        let drain = pb::Drain { node: self.nodes[index].id(), mode: mode.into() };
        self.net.ask(Actor::Client(0), 0, request::Body::Drain(drain));
    }

    fn calm(&mut self) {
        self.net.calm = true;
        self.cancel_drains();
        self.net.cut_off.clear();
        self.net.slow.clear();
        for index in 0..self.nodes.len() {
            self.start_node(index);
        }
        let settings = self.net.scenario.settings;
        let ms = 10 * u64::from(settings.reservation_ttl_ms) + 3 * u64::from(settings.lease_ms) + 500;
        self.net.after(ms, Event::Settled);
        // An order to empty a node that was sent before may arrive, a second time even, after this.
        self.net.after(WAY_MS + 1, Event::Healed);
    }

    fn cancel_drains(&mut self) {
        for index in 0..self.nodes.len() {
            self.drain(index, Mode::Cancel);
        }
    }
}

/// Breaks a rule in the name of the book.
fn lie(
    sabotage: Sabotage,
    core: &mut Core,
    now: Millis,
    client: u64,
    asked: Option<&request::Body>,
    body: &mut reply::Body,
    remembered: &mut Vec<(Option<pb::Keys>, pb::LocateReply)>,
) {
    match (sabotage, asked, body) {
        (Sabotage::NoRest, _, reply::Body::Reserve(reply)) => reply.ttl_ms *= 3,
        (Sabotage::WorkNotTold, _, reply::Body::Heartbeat(reply)) => reply.work = false,
        (Sabotage::UntoldHidden, _, reply::Body::Remove(reply)) => reply.untold.clear(),
        (Sabotage::OffsetsLost, _, reply::Body::Reserve(reply)) => reply.offsets.fill(0),
        (Sabotage::LeasesForgotten, _, reply::Body::Locate(reply)) => {
            let release = request::Body::Release(pb::Release { leases: vec![reply.lease] });
            let request = pb::Request { request_id: 0, client, body: Some(release) };
            wire::serve(core, now, request, &mut Vec::new());
        }
        (Sabotage::LocateRemembered, Some(request::Body::Locate(asked)), reply::Body::Locate(reply)) => {
            match remembered.iter().find(|(keys, _)| *keys == asked.keys) {
                Some((_, old)) => *reply = pb::LocateReply { lease: 0, ..old.clone() },
                None if reply.lease != 0 => remembered.push((asked.keys.clone(), reply.clone())),
                None => {}
            }
        }
        _ => {}
    }
}
