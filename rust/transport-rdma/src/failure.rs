//! What a failed work request means.

use std::io;

use memcache_transport::TransportError;

use crate::abi::{
    WC_LOC_LEN_ERR, WC_LOC_PROT_ERR, WC_REM_ACCESS_ERR, WC_REM_INV_REQ_ERR, WC_RESP_TIMEOUT_ERR, WC_RETRY_EXC_ERR,
    WC_RNR_RETRY_EXC_ERR, WC_WR_FLUSH_ERR, WorkCompletion,
};
use crate::library::Verbs;

/// Why a connection is over, and with it everything that was under way on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Deadline,
    PeerGone,
    /// One request failed; the device gave up the others with it.
    Request(TransportError),
}

impl Failure {
    /// What the first completion that is not a success says.
    pub(crate) fn of(completion: &WorkCompletion, verbs: &Verbs) -> Self {
        let status = completion.status;
        let said = format!("{} (status {status}, vendor {:#x})", verbs.status_text(status), completion.vendor_err);
        match status {
            WC_RETRY_EXC_ERR | WC_RNR_RETRY_EXC_ERR | WC_RESP_TIMEOUT_ERR => Self::PeerGone,
            WC_REM_ACCESS_ERR => Self::Request(TransportError::refused(format!(
                "the memory is not lent under this key any more, or not that much of it: {said}"
            ))),
            WC_REM_INV_REQ_ERR => {
                Self::Request(TransportError::refused(format!("its device does not allow this: {said}")))
            }
            WC_LOC_PROT_ERR | WC_LOC_LEN_ERR => {
                Self::Request(broken("local memory", format!("the device may not use a local piece: {said}")))
            }
            WC_WR_FLUSH_ERR => Self::Request(broken("queue pair", format!("it is in its error state: {said}"))),
            _ => Self::Request(broken("work request", said)),
        }
    }

    /// The result of the operation that met the failure.
    pub(crate) fn own(&self) -> TransportError {
        match self {
            Self::Deadline => TransportError::Timeout,
            Self::PeerGone => TransportError::PeerGone,
            Self::Request(error) => error.clone(),
        }
    }

    /// The result of an operation that was under way beside it.
    pub(crate) fn others(&self) -> TransportError {
        match self {
            Self::Deadline | Self::PeerGone => self.own(),
            Self::Request(error) => {
                broken("queue pair", format!("the connection was given up because of another operation: {error}"))
            }
        }
    }
}

/// An error after which the same operation may succeed over a new connection.
pub(crate) fn broken(operation: &'static str, message: String) -> TransportError {
    TransportError::Io { operation, kind: io::ErrorKind::ConnectionAborted, message }
}

#[cfg(test)]
mod tests {
    use std::ffi::{c_char, c_uint};

    use super::*;

    unsafe extern "C" fn name(_: c_uint) -> *const c_char {
        c"what the library says".as_ptr()
    }

    fn failure(status: c_uint) -> Failure {
        // SAFETY: only the one function is called, and that one is put in place.
        let verbs = unsafe {
            let mut verbs = std::mem::MaybeUninit::<Verbs>::uninit();
            (&raw mut (*verbs.as_mut_ptr()).ibv_wc_status_str).write(name);
            verbs
        };
        let completion = WorkCompletion { status, vendor_err: 0x51, ..WorkCompletion::default() };
        // SAFETY: as above; the reference is to memory that lives, of which nothing else is read.
        Failure::of(&completion, unsafe { &*verbs.as_ptr() })
    }

    #[test]
    fn a_peer_that_does_not_answer_is_gone_for_everybody() {
        for status in [WC_RETRY_EXC_ERR, WC_RNR_RETRY_EXC_ERR, WC_RESP_TIMEOUT_ERR] {
            assert_eq!(failure(status), Failure::PeerGone);
        }
        assert_eq!(Failure::PeerGone.others(), TransportError::PeerGone);
    }

    #[test]
    fn a_refused_key_is_final_and_what_stood_beside_it_may_be_tried_again() {
        let failure = failure(WC_REM_ACCESS_ERR);
        let (own, others) = (failure.own(), failure.others());
        assert!(matches!(own, TransportError::Refused { .. }) && !own.is_retryable(), "{own}");
        assert!(own.to_string().contains("what the library says") && own.to_string().contains("0x51"), "{own}");
        assert!(others.is_retryable() && others.to_string().contains("not lent under this key"), "{others}");
    }

    #[test]
    fn every_other_status_is_named_and_may_be_tried_again() {
        for status in [WC_WR_FLUSH_ERR, WC_LOC_PROT_ERR, WC_LOC_LEN_ERR, 19, 4711] {
            let error = failure(status).own();
            assert!(error.is_retryable() && error.to_string().contains(&format!("status {status}")), "{error}");
        }
    }
}
