//! One layer as arrays: what tests decide on without a model.

pub(crate) mod kvpress;

use super::*;
use crate::event::Position;

/// A layer of KV heads whose whole prompt was fed at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    tokens: usize,
    /// Per KV head, the group-mean probability rows, `[query][token up to the query]`.
    attention: Vec<Vec<Vec<f32>>>,
    /// Per KV head, `[token][head_dim]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// Per query head before RoPE, `[token][head_dim]`.
    queries: Vec<Vec<f32>>,
    head_dim: usize,
    frequencies: Vec<f64>,
    classes: Vec<TokenClass>,
    index: crate::event::Layer,
    layers: crate::event::Layer,
    seed: u64,
    block_size: u32,
}

impl Layer {
    fn new(tokens: usize) -> Self {
        Self { tokens, layers: 1, block_size: 16, ..Self::default() }
    }

    /// From the rows of each KV head: row `q` has `q + 1` probabilities, the mean over the head's query heads.
    pub(crate) fn of_attention(heads: &[Vec<Vec<f32>>]) -> Self {
        Self { attention: heads.to_vec(), ..Self::new(heads[0].len()) }
    }

    /// From the probabilities of all query heads, `[query head][query][token]` in one slice, `tokens` squared per head;
    /// consecutive heads share a KV head.
    pub(crate) fn of_matrices(kv_heads: usize, tokens: usize, probabilities: &[f32]) -> Self {
        let group = probabilities.len() / (tokens * tokens * kv_heads);
        let mean = |h: usize, q: usize, t: usize| {
            let at = |i: usize| probabilities[((h * group + i) * tokens + q) * tokens + t];
            (0..group).map(at).sum::<f32>() / group as f32
        };
        let heads = |h| (0..tokens).map(|q| (0..=q).map(|t| mean(h, q, t)).collect()).collect();
        Self { attention: (0..kv_heads).map(heads).collect(), ..Self::new(tokens) }
    }

    /// From one row per KV head: only the last query pays any attention.
    pub(crate) fn of_last_rows(rows: &[Vec<f32>]) -> Self {
        let head = |row: &Vec<f32>| {
            let mut rows: Vec<Vec<f32>> = (1..=row.len()).map(|n| vec![0.0; n]).collect();
            *rows.last_mut().unwrap() = row.clone();
            rows
        };
        Self { attention: rows.iter().map(head).collect(), ..Self::new(rows[0].len()) }
    }

    /// From keys alone, `[token][head_dim]` per KV head.
    pub(crate) fn of_keys(head_dim: usize, keys: &[Vec<f32>]) -> Self {
        Self { keys: keys.to_vec(), head_dim, ..Self::new(keys[0].len() / head_dim) }
    }

    /// Adds keys, `[token][head_dim]` per KV head.
    pub(crate) fn with_keys(mut self, head_dim: usize, keys: &[Vec<f32>]) -> Self {
        (self.keys, self.head_dim) = (keys.to_vec(), head_dim);
        self
    }

    /// Adds values, as [`with_keys`](Self::with_keys).
    pub(crate) fn with_values(mut self, values: &[Vec<f32>]) -> Self {
        self.values = values.to_vec();
        self
    }

    /// Adds the queries of every query head before RoPE, `[token][head_dim]`, and the frequencies of the rotation.
    pub(crate) fn with_queries(mut self, queries: &[Vec<f32>], frequencies: Vec<f64>) -> Self {
        (self.queries, self.frequencies) = (queries.to_vec(), frequencies);
        self
    }

    pub(crate) fn with_classes(mut self, classes: &[TokenClass]) -> Self {
        self.classes = classes.to_vec();
        self
    }

    pub(crate) fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    pub(crate) fn with_block_size(mut self, block_size: u32) -> Self {
        self.block_size = block_size;
        self
    }

    /// Makes it one of several layers.
    pub(crate) fn at(mut self, index: crate::event::Layer, layers: crate::event::Layer) -> Self {
        (self.index, self.layers) = (index, layers);
        self
    }

    fn kv_heads(&self) -> usize {
        self.attention.len().max(self.keys.len())
    }

    /// The moment at the end of its prompt.
    pub(crate) fn moment(&self) -> Moment {
        Moment {
            when: When::EndOfPrompt,
            layer: self.index,
            layers: self.layers,
            prompt_len: self.tokens as u32,
            span_len: self.tokens as u32,
            next_position: self.tokens as Position,
            block_size: self.block_size,
            step: 0,
            share: None,
            seed: self.seed,
        }
    }

    fn accumulators(&self, needs: Needs, h: usize) -> Accumulators {
        let site = Site {
            seed: self.seed,
            layer: self.index,
            head: h as Head,
            span_len: self.tokens as u32,
            prompt_len: self.tokens as u32,
        };
        let mut acc = Accumulators::at(needs, site);
        for (q, row) in self.attention.get(h).into_iter().flatten().enumerate() {
            acc.observe_decode(&(0..=q as Position).collect::<Vec<_>>(), row);
        }
        acc
    }

    fn moments(&self, skip: u32) -> Vec<QueryMoments> {
        let head = |rows: &Vec<f32>| {
            let mut moments = QueryMoments::default();
            rows.chunks_exact(self.head_dim).skip(skip as usize).for_each(|row| moments.observe(row));
            moments
        };
        self.queries.iter().map(head).collect()
    }

    /// What a policy decides at the end of the prompt.
    pub(crate) fn decide(&self, policy: &Policy) -> Vec<Verdict> {
        let (needs, kv_heads) = (policy.needs(), self.kv_heads());
        let positions: Vec<Position> = (0..self.tokens as Position).collect();
        let accs: Vec<_> = (0..kv_heads).map(|h| self.accumulators(needs, h)).collect();
        let moments = self.moments(needs.queries.unwrap_or(0));
        let group = moments.len() / kv_heads;
        let heads: Vec<_> = accs
            .iter()
            .enumerate()
            .map(|(h, acc)| HeadInputs {
                keys: self.keys.get(h).map_or(&[], |keys| keys),
                values: self.values.get(h).map_or(&[], |values| values),
                classes: &self.classes,
                queries: &moments[h * group..][..group],
                frequencies: &self.frequencies,
                ..HeadInputs::new(&positions, acc)
            })
            .collect();
        let mut out = Vec::new();
        policy.decide(&self.moment(), &heads, &mut out);
        out
    }

    /// Positions that each KV head keeps.
    pub(crate) fn kept(&self, policy: &Policy) -> Vec<Vec<Position>> {
        let mut kept = vec![(0..self.tokens as Position).collect::<Vec<_>>(); self.kv_heads()];
        for verdict in self.decide(policy) {
            let heads = verdict.head.map_or(0..kept.len(), |h| usize::from(h)..usize::from(h) + 1);
            for head in heads {
                kept[head].retain(|p| verdict.victims.binary_search(p).is_err());
                assert_eq!(kept[head].len(), verdict.kept as usize, "{verdict:?}");
            }
        }
        kept
    }
}

/// Positions that each KV head keeps under a spelled policy.
pub(crate) fn kept(policy: &str, layer: &Layer) -> Vec<Vec<Position>> {
    layer.kept(&parse_policy(policy).unwrap())
}
