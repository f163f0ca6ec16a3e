//! What `benches/device.rs` derives and does not measure: how many sequences a budget holds, what a decode step has to
//! read, and how long that takes at given speeds.

use serde_json::{Value, json};

/// Bytes of a number of weights and pages: f16.
const HALF_BYTES: u64 = 2;
/// Longest context that the made-up models are for.
const LONGEST: u64 = 1 << 17;

/// The sizes of a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_dim: u64,
    pub(crate) intermediate: u64,
    pub(crate) vocab: u64,
}

/// Those that are measured, and a small one to try the measurement itself with.
pub(crate) const SHAPES: [Shape; 3] = [
    Shape {
        name: "llama2-7b",
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        intermediate: 11_008,
        vocab: 32_000,
    },
    Shape {
        name: "llama3-8b",
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        intermediate: 14_336,
        vocab: 128_256,
    },
    Shape { name: "small", layers: 3, heads: 4, kv_heads: 2, head_dim: 16, intermediate: 96, vocab: 700 },
];

impl Shape {
    const fn hidden(&self) -> u64 {
        self.heads * self.head_dim
    }

    /// As `config.json` has it.
    pub(crate) fn config(&self) -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden(),
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab,
            "max_position_embeddings": LONGEST, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": false, "hidden_act": "silu", "bos_token_id": 256,
        })
    }

    /// Bytes of the matrices that a step multiplies with: all but the embedding.
    pub(crate) const fn weight_bytes(&self) -> u64 {
        let (hidden, kv_width) = (self.hidden(), self.kv_heads * self.head_dim);
        let layer = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * self.intermediate;
        HALF_BYTES * (self.layers * layer + self.vocab * hidden)
    }

    /// Bytes of a key, or a value, of all KV heads of a layer.
    const fn row_bytes(&self) -> u64 {
        HALF_BYTES * self.kv_heads * self.head_dim
    }

    /// Layers whose values lie on the device: of the full cache all, of KCache the exempt ones.
    fn layers_with_values(&self, exempt: Option<u64>) -> u64 {
        exempt.map_or(self.layers, |layers| layers.min(self.layers))
    }

    /// Bytes of a token on the device: keys of all layers, and the values that lie there.
    pub(crate) fn device_bytes(&self, exempt: Option<u64>) -> u64 {
        self.row_bytes() * (self.layers + self.layers_with_values(exempt))
    }

    /// Bytes of a token on the host.
    pub(crate) fn host_bytes(&self, exempt: Option<u64>) -> u64 {
        self.row_bytes() * (self.layers - self.layers_with_values(exempt))
    }

    /// Blocks of the cache that sequences of so many tokens take.
    pub(crate) fn blocks(&self, batch: u64, context: u64, block_size: u64) -> u64 {
        batch * context.div_ceil(block_size) * self.layers * self.kv_heads
    }

    /// Bytes that KCache pulls in a step if no two query heads of a group choose the same rows: N of each, and the new
    /// token's.
    pub(crate) fn pulled_bytes(&self, exempt: u64, n: u64, batch: u64, context: u64) -> u64 {
        let rows = (self.heads / self.kv_heads * n + 1).min(context);
        batch * rows * self.host_bytes(Some(exempt))
    }
}

/// Bytes that K and V may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) device: u64,
    pub(crate) host: u64,
}

impl Budget {
    /// Sequences of a context, whole blocks of it, that both sides hold.
    pub(crate) fn batch(&self, shape: &Shape, exempt: Option<u64>, context: u64) -> u64 {
        let of = |bytes: u64, per_token: u64| bytes.checked_div(per_token * context).unwrap_or(u64::MAX);
        of(self.device, shape.device_bytes(exempt)).min(of(self.host, shape.host_bytes(exempt)))
    }
}

/// Bytes per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// Of the device's memory.
    pub(crate) device: f64,
    /// From page-locked memory of the host to the device.
    pub(crate) link: f64,
}

/// What a step has to read on either side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    pub(crate) device_bytes: u64,
    pub(crate) link_bytes: u64,
}

impl Needs {
    /// Weights, and what lies on the device of `context` tokens of every sequence. Probabilities that are written and
    /// read again are not counted: another method might do without.
    pub(crate) fn new(shape: &Shape, exempt: Option<u64>, batch: u64, context: u64, link_bytes: u64) -> Self {
        let device_bytes = shape.weight_bytes() + batch * context * shape.device_bytes(exempt);
        Self { device_bytes, link_bytes }
    }

    /// The least time of a step, in ms, and whether the link makes it so: both sides at once, each at full speed.
    pub(crate) fn bound(&self, rates: Rates) -> (f64, bool) {
        let device = 1e3 * self.device_bytes as f64 / rates.device;
        let link = 1e3 * self.link_bytes as f64 / rates.link;
        (device.max(link), link > device)
    }
}
