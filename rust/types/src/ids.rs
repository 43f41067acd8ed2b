//! Identities. Each is a number that only its own kind can be compared with.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The identity with this number.
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The number, for the wire and for logs.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:x})"), self.0)
            }
        }
    };
}

identity! {
    /// One participant that lends memory. Drawn at random by the node, stable over its lives.
    NodeId
}
identity! {
    /// Which life of a node. Grows with every start; a claim made under an older one is stale.
    Incarnation
}
identity! {
    /// One piece of lent memory under one incarnation. Issued by the `MetaService` at join and never
    /// issued twice, so that a stale id can never name newer memory.
    SegmentId
}
identity! {
    /// One client process. Owns the reservations it makes.
    ClientId
}
identity! {
    /// Which life of the `MetaService`. Every reply carries it; anything learnt under another epoch is void.
    Epoch
}
identity! {
    /// Which writing of a piece of memory. Unique over the life of the pool; zero is "nothing valid here".
    Generation
}
identity! {
    /// A write ticket: space that one client may fill until a deadline.
    ReservationId
}
identity! {
    /// A promise that located objects stay in place until a deadline.
    LeaseId
}

impl Generation {
    /// No object: what a trailer holds while its extent is being overwritten.
    pub const NONE: Self = Self(0);
}
