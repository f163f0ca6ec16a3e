//! Floor 3: recordings in and out.
//!
//! A recording is an [MCAP](https://mcap.dev) file (`.mcap`) that any MCAP tool can list. It holds one `/step` message
//! per [`Step`](crate::event::Step) and, on channels of their own, what would be wasteful as JSON:
//!
//! | channel | encoding | content |
//! |---|---|---|
//! | `/step` | `json`, schema attached | the step without its evictions and attention pictures |
//! | `/params` | `json` | `{"step":…, "tuning":[…]}`, also inside the step; here so that other tools can plot it |
//! | `/evict` | [`kvista.evict.v1`](encode_evict) | the decisions of one sequence |
//! | `/attention` | [`kvista.attn.v1`](encode_attention) | the picture of one sequence; may be missing |
//! | `/latency` | [`kvista.latency.v1`](encode_latency) | named cumulative histograms, opaque here |
//! | `/keyframe` | `kvista.keyframe.v1` | the state after the step it is stamped with, opaque here |
//! | `/gap` | `json` | steps that are missing, and why |
//!
//! Within a step the binary messages come first and `/step` last, so a step is whole as soon as its `/step` is there.
//! The writer closes a chunk only between steps: what a killed run leaves behind is whole steps. A message's
//! `sequence` is the step's id, its times are the end of the step.
//!
//! Around the channels stand a metadata record `kvista` (format version), the attachments `run.json`
//! ([`RunInfo`](crate::event::RunInfo)) and `prompt.txt`, and at the end `kvista.index`, which says where each step is.
//! A file without that index, or without any footer, is scanned on opening instead.
//!
//! Reading assumes a hostile file: every length is checked against what is really there before anything is allocated,
//! every chunk's checksum is verified whenever the chunk is read, and a step that is handed out fits the model that
//! the recording describes ([`limits`]).

mod assemble;
mod attention;
mod chunk;
mod error;
mod evict;
mod index;
mod latency;
mod layout;
pub mod limits;
mod recording;
mod repair;
mod scan;
mod source;
mod verify;
mod wire;
mod writer;

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod schema_tests;

pub use attention::{decode_attention, encode_attention};
pub use error::TraceError;
pub use evict::{Evicted, decode_evict, encode_evict};
pub use index::Gap;
pub use latency::{decode_latency, encode_latency};
pub use layout::Ending;
pub use recording::{Histograms, Recording, Steps};
pub use repair::repair;
pub use verify::{Report, verify};
pub use wire::CodecError;
pub use writer::{Summary, Writer};

/// Version of the format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;
/// Extension of a recording's file name.
pub const EXTENSION: &str = "mcap";

/// Name of the metadata record that marks an MCAP file as a recording.
const METADATA: &str = "kvista";
/// Attachment with the run's description.
const RUN_ATTACHMENT: &str = "run.json";
/// Attachment with the prompt as plain text, for people with other tools.
const PROMPT_ATTACHMENT: &str = "prompt.txt";
/// Attachment with the index of steps.
const INDEX_ATTACHMENT: &str = "kvista.index";

/// What a channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Step,
    Params,
    Evict,
    Attention,
    Latency,
    Keyframe,
    Gap,
}

impl Topic {
    const ALL: [Self; 7] =
        [Self::Step, Self::Params, Self::Evict, Self::Attention, Self::Latency, Self::Keyframe, Self::Gap];

    const fn name(self) -> &'static str {
        match self {
            Self::Step => "/step",
            Self::Params => "/params",
            Self::Evict => "/evict",
            Self::Attention => "/attention",
            Self::Latency => "/latency",
            Self::Keyframe => "/keyframe",
            Self::Gap => "/gap",
        }
    }

    const fn encoding(self) -> &'static str {
        match self {
            Self::Step | Self::Params | Self::Gap => "json",
            Self::Evict => "kvista.evict.v1",
            Self::Attention => "kvista.attn.v1",
            Self::Latency => "kvista.latency.v1",
            Self::Keyframe => "kvista.keyframe.v1",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }
}
