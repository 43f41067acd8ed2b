//! Recorded requests.

use memcache_types::limits::BATCH_KEYS_MAX;
use serde::Deserialize;

/// Tokens of a block in a trace.
pub const BLOCK_TOKENS: u64 = 512;

/// One request: its prompt as blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it came, in milliseconds since the trace began.
    pub at_ms: u64,
    /// Tokens of the prompt.
    pub tokens: u64,
    /// Its blocks from the first on. Equal numbers are equal prefixes.
    pub blocks: Vec<u64>,
}

/// Requests in the order of their time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The requests.
    pub requests: Vec<Request>,
}

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A line is not a request.
    #[error("line {line}: not a request {{\"timestamp\": ms, \"input_length\": tokens, \"hash_ids\": [...]}}: {error}")]
    Line {
        /// Its number, from 1 on.
        line: usize,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// A request has too few or too many blocks for its tokens.
    #[error("line {line}: {tokens} tokens take {want} blocks of {BLOCK_TOKENS}, found {found} hash_ids")]
    Blocks {
        /// Its number, from 1 on.
        line: usize,
        /// Its tokens.
        tokens: u64,
        /// Blocks for so many tokens.
        want: u64,
        /// Blocks it has.
        found: usize,
    },
    /// A request has more blocks than a call may have keys.
    #[error("line {line}: {found} hash_ids; a request may have {BATCH_KEYS_MAX}")]
    Long {
        /// Its number, from 1 on.
        line: usize,
        /// Blocks it has.
        found: usize,
    },
    /// Time goes backwards.
    #[error("line {line}: timestamp {at_ms} is before that of the line before, {before_ms}")]
    Order {
        /// Its number, from 1 on.
        line: usize,
        /// Its time.
        at_ms: u64,
        /// The time of the request before.
        before_ms: u64,
    },
}

/// A line of a trace; other fields are passed over.
#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    input_length: u64,
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads JSON lines as those of the Mooncake traces.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut requests: Vec<Request> = Vec::new();
        for (number, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let line: Line = serde_json::from_str(text).map_err(|error| TraceError::Line { line: number, error })?;
            let (tokens, found) = (line.input_length, line.hash_ids.len());
            let want = tokens.div_ceil(BLOCK_TOKENS);
            if found > BATCH_KEYS_MAX {
                return Err(TraceError::Long { line: number, found });
            }
            if found as u64 != want {
                return Err(TraceError::Blocks { line: number, tokens, want, found });
            }
            let before_ms = requests.last().map_or(0, |before| before.at_ms);
            if line.timestamp < before_ms {
                return Err(TraceError::Order { line: number, at_ms: line.timestamp, before_ms });
            }
            requests.push(Request { at_ms: line.timestamp, tokens, blocks: line.hash_ids });
        }
        Ok(Self { requests })
    }

    /// How many different blocks there are.
    pub fn distinct_blocks(&self) -> usize {
        let all = self.requests.iter().flat_map(|request| request.blocks.iter().copied());
        all.collect::<std::collections::HashSet<_>>().len()
    }
}
