//! The two messages with which a connection is agreed on, over TCP. All numbers are little endian.
//!
//! The TCP connection then stays open and silent for as long as the RDMA connection lives: its end is how each side
//! learns that the other's process is gone.

use memcache_memory::checksum_bytes;

/// Length of the asking side's message in bytes.
pub(crate) const HELLO_BYTES: usize = 64;
/// Length of the answer in bytes.
pub(crate) const WELCOME_BYTES: usize = 72;

const HELLO_MAGIC: [u8; 4] = *b"MCVQ";
const WELCOME_MAGIC: [u8; 4] = *b"MCVA";
const VERSION: u16 = 1;

/// One end of a queue pair, as the other end needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) qp_num: u32,
    /// Number of the first packet it sends.
    pub(crate) psn: u32,
    pub(crate) gid: [u8; 16],
    pub(crate) lid: u16,
    /// `enum ibv_mtu`, 1 to 5.
    pub(crate) mtu: u8,
    pub(crate) link_layer: u8,
    /// Reads it has under way at the same time.
    pub(crate) reads: u8,
    /// Reads it answers at the same time.
    pub(crate) answers: u8,
}

/// "I want to reach the region of this token."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) token: u128,
    pub(crate) terms: Terms,
}

/// How an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Welcome,
    /// The token is not that of this region.
    UnknownToken,
    /// As many peers as there may be.
    Full,
    /// InfiniBand meets Ethernet.
    OtherNetwork,
    /// The device refused.
    Failed,
}

/// The answer. Where and under which key the region is, if the verdict is a welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) verdict: Verdict,
    pub(crate) terms: Terms,
    pub(crate) rkey: u32,
    /// Address of the region's first byte in its owner's memory.
    pub(crate) base: u64,
    pub(crate) region_bytes: u64,
}

/// Bytes that are not such a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

impl Terms {
    /// What a refusal carries in place of terms.
    pub(crate) const NONE: Self =
        Self { qp_num: 0, psn: 0, gid: [0; 16], lid: 0, mtu: 1, link_layer: 0, reads: 1, answers: 1 };

    fn put(&self, bytes: &mut [u8]) {
        bytes[0..4].copy_from_slice(&self.qp_num.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.psn.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.gid);
        bytes[24..26].copy_from_slice(&self.lid.to_le_bytes());
        bytes[26..30].copy_from_slice(&[self.mtu, self.link_layer, self.reads, self.answers]);
    }

    fn get<const N: usize>(bytes: &[u8; N], at: usize) -> Result<Self, Malformed> {
        let [mtu, link_layer, reads, answers] = field(bytes, at + 26);
        let terms = Self {
            qp_num: u32::from_le_bytes(field(bytes, at)),
            psn: u32::from_le_bytes(field(bytes, at + 4)),
            gid: field(bytes, at + 8),
            lid: u16::from_le_bytes(field(bytes, at + 24)),
            mtu,
            link_layer,
            reads,
            answers,
        };
        let is_legal =
            terms.qp_num <= 0xff_ffff && terms.psn <= 0xff_ffff && (1..=5).contains(&mtu) && reads > 0 && answers > 0;
        if is_legal { Ok(terms) } else { Err(Malformed("terms no device offers")) }
    }
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        start(&mut bytes, HELLO_MAGIC);
        bytes[8..24].copy_from_slice(&self.token.to_le_bytes());
        self.terms.put(&mut bytes[24..54]);
        seal(&mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Malformed> {
        open(bytes, HELLO_MAGIC)?;
        Ok(Self { token: u128::from_le_bytes(field(bytes, 8)), terms: Terms::get(bytes, 24)? })
    }
}

impl Welcome {
    /// An answer that is no welcome.
    pub(crate) const fn refusal(verdict: Verdict) -> Self {
        Self { verdict, terms: Terms::NONE, rkey: 0, base: 0, region_bytes: 0 }
    }

    pub(crate) fn encode(&self) -> [u8; WELCOME_BYTES] {
        let mut bytes = [0; WELCOME_BYTES];
        start(&mut bytes, WELCOME_MAGIC);
        bytes[6] = match self.verdict {
            Verdict::Welcome => 0,
            Verdict::UnknownToken => 1,
            Verdict::Full => 2,
            Verdict::OtherNetwork => 3,
            Verdict::Failed => 4,
        };
        self.terms.put(&mut bytes[8..38]);
        bytes[40..44].copy_from_slice(&self.rkey.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.base.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.region_bytes.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; WELCOME_BYTES]) -> Result<Self, Malformed> {
        open(bytes, WELCOME_MAGIC)?;
        let verdict = match bytes[6] {
            0 => Verdict::Welcome,
            1 => Verdict::UnknownToken,
            2 => Verdict::Full,
            3 => Verdict::OtherNetwork,
            4 => Verdict::Failed,
            _ => return Err(Malformed("unknown verdict")),
        };
        let (base, region_bytes) = (u64::from_le_bytes(field(bytes, 48)), u64::from_le_bytes(field(bytes, 56)));
        if base.checked_add(region_bytes).is_none() {
            return Err(Malformed("a region past the end of memory"));
        }
        Ok(Self {
            verdict,
            terms: Terms::get(bytes, 8)?,
            rkey: u32::from_le_bytes(field(bytes, 40)),
            base,
            region_bytes,
        })
    }
}

fn start<const N: usize>(bytes: &mut [u8; N], magic: [u8; 4]) {
    bytes[0..4].copy_from_slice(&magic);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
}

/// Puts the checksum of a message in its last four bytes.
fn seal<const N: usize>(bytes: &mut [u8; N]) {
    let checksum = checksum_bytes(&bytes[..N - 4]);
    bytes[N - 4..].copy_from_slice(&checksum.to_le_bytes());
}

fn open<const N: usize>(bytes: &[u8; N], magic: [u8; 4]) -> Result<(), Malformed> {
    if bytes[0..4] != magic {
        return Err(Malformed("wrong magic"));
    }
    if u16::from_le_bytes(field(bytes, 4)) != VERSION {
        return Err(Malformed("another version"));
    }
    if u32::from_le_bytes(field(bytes, N - 4)) != checksum_bytes(&bytes[..N - 4]) {
        return Err(Malformed("damaged message"));
    }
    Ok(())
}

fn field<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    std::array::from_fn(|index| bytes[at + index])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms() -> impl Strategy<Value = Terms> {
        let small = (1u8..=5, any::<u8>(), 1u8.., 1u8..);
        (0u32..1 << 24, 0u32..1 << 24, any::<[u8; 16]>(), any::<u16>(), small).prop_map(
            |(qp_num, psn, gid, lid, (mtu, link_layer, reads, answers))| Terms {
                qp_num,
                psn,
                gid,
                lid,
                mtu,
                link_layer,
                reads,
                answers,
            },
        )
    }

    proptest! {
        #[test]
        fn messages_lose_nothing(token in any::<u128>(), terms in terms(), rkey in any::<u32>(), base in 0u64..1 << 60, region_bytes in 0u64..1 << 60) {
            let hello = Hello { token, terms };
            prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            for verdict in [Verdict::Welcome, Verdict::UnknownToken, Verdict::Full, Verdict::OtherNetwork, Verdict::Failed] {
                let welcome = Welcome { verdict, terms, rkey, base, region_bytes };
                prop_assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
                prop_assert!(Welcome::decode(&Welcome::refusal(verdict).encode()).is_ok());
            }
        }

        #[test]
        fn a_changed_bit_is_noticed(terms in terms(), bit in 0usize..HELLO_BYTES * 8) {
            let mut bytes = Hello { token: 7, terms }.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Hello::decode(&bytes).is_err());
        }

        #[test]
        fn noise_is_no_message(noise in prop::collection::vec(any::<u8>(), WELCOME_BYTES)) {
            prop_assert!(Hello::decode(noise.first_chunk().unwrap()).is_err());
            prop_assert!(Welcome::decode(noise.first_chunk().unwrap()).is_err());
        }
    }

    #[test]
    fn a_whole_message_with_senseless_terms_is_refused() {
        for spoil in [
            |terms: &mut Terms| terms.mtu = 0,
            |terms: &mut Terms| terms.qp_num = 1 << 24,
            |terms: &mut Terms| terms.reads = 0,
        ] {
            let mut terms = Terms { qp_num: 1, ..Terms::NONE };
            spoil(&mut terms);
            assert!(Hello::decode(&Hello { token: 1, terms }.encode()).is_err());
        }
        let far = Welcome { base: u64::MAX, region_bytes: 2, ..Welcome::refusal(Verdict::Welcome) };
        assert!(Welcome::decode(&far.encode()).is_err());
    }
}
