//! A decoder written down plainly: f64, no cache, every position anew. It shares no code with the engine's.

use std::collections::HashMap;

use serde_json::Value;

/// Weights by name, `[out][in]` row after row.
pub(super) type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// What the reference takes from a configuration, by its own reading of it.
pub(super) struct Reference<'a> {
    json: &'a Value,
    weights: &'a Tensors,
    /// Per layer the positions that a query sees, its own included.
    pub(super) windows: Vec<usize>,
    /// Per layer the angle of each pair at position 1.
    pub(super) turns: Vec<Vec<f64>>,
    /// Factor on rotated elements.
    pub(super) amplitude: f64,
}

impl<'a> Reference<'a> {
    pub(super) fn new(json: &'a Value, weights: &'a Tensors) -> Self {
        let layers = json["num_hidden_layers"].as_u64().unwrap() as usize;
        let plain = plain_turns(json["rope_theta"].as_f64().unwrap(), width(json));
        Self { json, weights, windows: vec![usize::MAX; layers], turns: vec![plain; layers], amplitude: 1.0 }
    }

    fn size(&self, field: &str) -> usize {
        self.json[field].as_u64().unwrap() as usize
    }

    fn is_gemma(&self) -> bool {
        self.json["model_type"].as_str().unwrap().starts_with("gemma")
    }

    fn vector(&self, name: &str) -> Option<Vec<f64>> {
        self.weights.get(name).map(|(_, data)| data.iter().map(|&x| f64::from(x)).collect())
    }

    fn project(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, data) = &self.weights[&format!("{name}.weight")];
        assert_eq!(shape[1], x.len(), "{name}");
        let rows =
            data.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum());
        let mut out: Vec<f64> = rows.collect();
        if let Some(bias) = self.vector(&format!("{name}.bias")) {
            out.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
        out
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.vector(&format!("{name}.weight")).unwrap();
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + self.json["rms_norm_eps"].as_f64().unwrap()).sqrt();
        let offset = if self.is_gemma() { 1.0 } else { 0.0 };
        x.iter().zip(weight).map(|(x, w)| x * scale * (w + offset)).collect()
    }

    /// Each head's row through a norm where the family has one, then turned.
    fn heads(&self, norm: &str, row: &[f64], layer: usize, position: usize) -> Vec<Vec<f64>> {
        let half = self.turns[layer].len();
        let head = |head: &[f64]| {
            let is_normed = self.weights.contains_key(&format!("{norm}.weight"));
            let mut head = if is_normed { self.norm(norm, head) } else { head.to_vec() };
            for (i, turn) in self.turns[layer].iter().enumerate() {
                let (sin, cos) = (turn * position as f64).sin_cos();
                let (a, b) = (head[i], head[i + half]);
                head[i] = self.amplitude * (a * cos - b * sin);
                head[i + half] = self.amplitude * (b * cos + a * sin);
            }
            head
        };
        row.chunks_exact(head_dim(self.json)).map(head).collect()
    }

    fn gated(&self, at: &str, x: &[f64]) -> Vec<f64> {
        let (gate, up) = if self.weights.contains_key(&format!("{at}.gate_up_proj.weight")) {
            let both = self.project(&format!("{at}.gate_up_proj"), x);
            let (gate, up) = both.split_at(both.len() / 2);
            (gate.to_vec(), up.to_vec())
        } else {
            (self.project(&format!("{at}.gate_proj"), x), self.project(&format!("{at}.up_proj"), x))
        };
        let gelu = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        };
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let act = |x: f64| if self.is_gemma() { gelu(x) } else { silu(x) };
        let product: Vec<f64> = gate.iter().zip(up).map(|(&g, u)| act(g) * u).collect();
        self.project(&format!("{at}.down_proj"), &product)
    }

    fn attention(&self, layer: usize, at: &str, xs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let d = head_dim(self.json);
        let (heads, kv_heads) = (self.size("num_attention_heads"), self.size("num_key_value_heads"));
        let mut rows = Vec::new();
        for (position, x) in xs.iter().enumerate() {
            let [q, k, v] = if self.weights.contains_key(&format!("{at}.qkv_proj.weight")) {
                let all = self.project(&format!("{at}.qkv_proj"), x);
                let (q, kv) = all.split_at(heads * d);
                [q.to_vec(), kv[..kv_heads * d].to_vec(), kv[kv_heads * d..].to_vec()]
            } else {
                ["q_proj", "k_proj", "v_proj"].map(|part| self.project(&format!("{at}.{part}"), x))
            };
            let q = self.heads(&format!("{at}.q_norm"), &q, layer, position);
            let k = self.heads(&format!("{at}.k_norm"), &k, layer, position);
            rows.push((q, k, v));
        }
        let scalar = self.json.get("query_pre_attn_scalar").map_or(d as f64, |v| v.as_f64().unwrap());
        let cap = self.json.get("attn_logit_softcapping").and_then(Value::as_f64);
        let attend = |p: usize| {
            let mut out = Vec::new();
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let first = (p + 1).saturating_sub(self.windows[layer]);
                let score = |t: usize| {
                    let s = rows[p].0[h].iter().zip(&rows[t].1[kv]).map(|(a, b)| a * b).sum::<f64>()
                        / scalar.sqrt();
                    cap.map_or(s, |cap| cap * (s / cap).tanh()).exp()
                };
                let scores: Vec<f64> = (first..=p).map(score).collect();
                let total: f64 = scores.iter().sum();
                out.extend((0..d).map(|c| {
                    (first..=p).zip(&scores).map(|(t, s)| s / total * rows[t].2[kv * d + c]).sum::<f64>()
                }));
            }
            self.project(&format!("{at}.o_proj"), &out)
        };
        (0..xs.len()).map(attend).collect()
    }

    /// Logits after every position.
    pub(super) fn logits(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let hidden = self.size("hidden_size");
        let scale = if self.is_gemma() { (hidden as f64).sqrt() } else { 1.0 };
        let embedding = &self.weights["model.embed_tokens.weight"].1;
        let embed = |&id: &u32| {
            embedding[id as usize * hidden..][..hidden].iter().map(|&x| f64::from(x) * scale).collect()
        };
        let mut xs: Vec<Vec<f64>> = ids.iter().map(embed).collect();
        let has_post_norms = self.weights.contains_key("model.layers.0.pre_feedforward_layernorm.weight");
        for layer in 0..self.size("num_hidden_layers") {
            let at = |part: &str| format!("model.layers.{layer}.{part}");
            let normed: Vec<Vec<f64>> = xs.iter().map(|x| self.norm(&at("input_layernorm"), x)).collect();
            let attended = self.attention(layer, &at("self_attn"), &normed);
            for (x, attended) in xs.iter_mut().zip(attended) {
                let (attended, before) = if has_post_norms {
                    (self.norm(&at("post_attention_layernorm"), &attended), at("pre_feedforward_layernorm"))
                } else {
                    (attended, at("post_attention_layernorm"))
                };
                x.iter_mut().zip(attended).for_each(|(x, a)| *x += a);
                let mut mlp = self.gated(&at("mlp"), &self.norm(&before, x));
                if has_post_norms {
                    mlp = self.norm(&at("post_feedforward_layernorm"), &mlp);
                }
                x.iter_mut().zip(mlp).for_each(|(x, m)| *x += m);
            }
        }
        let head = if self.weights.contains_key("lm_head.weight") { "lm_head" } else { "model.embed_tokens" };
        let cap = self.json.get("final_logit_softcapping").and_then(Value::as_f64);
        let last = |x: &Vec<f64>| {
            let logits = self.project(head, &self.norm("model.norm", x));
            logits.into_iter().map(|x| cap.map_or(x, |cap| cap * (x / cap).tanh())).collect()
        };
        xs.iter().map(last).collect()
    }
}

pub(super) fn head_dim(json: &Value) -> usize {
    let own = || json["hidden_size"].as_u64().unwrap() / json["num_attention_heads"].as_u64().unwrap();
    json.get("head_dim").map_or_else(own, |d| d.as_u64().unwrap()) as usize
}

/// Elements of a head that turn.
fn width(json: &Value) -> usize {
    (head_dim(json) as f64 * json.get("partial_rotary_factor").map_or(1.0, |f| f.as_f64().unwrap())) as usize
}

/// Angle of each pair at position 1, unscaled.
pub(super) fn plain_turns(theta: f64, width: usize) -> Vec<f64> {
    (0..width / 2).map(|i| 1.0 / theta.powf(2.0 * i as f64 / width as f64)).collect()
}
