"""Which tokens NVIDIA/kvpress keeps, as goldens for kvista's rules.

    python -m venv venv && venv/bin/pip install kvpress==0.5.5
    venv/bin/python tests/kvpress/goldens.py src/model/demo tests/kvpress

Writes random.json (tensors from the generator below, which the test repeats) and demo.json (the embedded model over a
prompt, all layers). Each case holds, per KV head, the kept positions in order and the relative gap between the last
kept and the first lost score: where that gap is below 1e-5, the order of floating-point sums decides.
"""
import json
import math
import sys
from types import SimpleNamespace

import kvpress
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb, repeat_kv

RATIOS = (0.5, 0.75, 0.875)
SHAPES = ((8, 2, 16, 96), (4, 4, 32, 72), (6, 1, 16, 128), (12, 4, 8, 65))


def numbers(seed, count):
    """Uniform in [-2, 2): x(n+1) = 1664525 x(n) + 1013904223 mod 2^32, the upper 24 bits."""
    out = []
    for _ in range(count):
        seed = (seed * 1664525 + 1013904223) % 2**32
        out.append((seed >> 8) / 2**22 - 2)
    return torch.tensor(out, dtype=torch.float32)


def presses(window):
    small = dict(window_size=window, kernel_size=5)
    return {
        "knorm": kvpress.KnormPress(),
        "streaming": kvpress.StreamingLLMPress(n_sink=4),
        "observed": kvpress.ObservedAttentionPress(),
        "tova": kvpress.TOVAPress(),
        "snapkv": kvpress.SnapKVPress(**small),
        "pyramidkv": kvpress.PyramidKVPress(**small),
        "keydiff": kvpress.KeyDiffPress(),
        "expected": kvpress.ExpectedAttentionPress(),
        "adakv+snapkv": kvpress.AdaKVPress(kvpress.SnapKVPress(**small)),
        "adakv+knorm": kvpress.AdaKVPress(kvpress.KnormPress()),
    }


def kept(press, ratio, module, hidden, keys, values, attentions):
    """Kept positions per KV head, and the gap at the cut."""
    press.compression_ratio = ratio
    scorer = getattr(press, "press", press)
    # AdaKV refuses eager attention, whose probabilities its scorers then compute themselves.
    given = None if isinstance(press, kvpress.AdaKVPress) else attentions
    positions = module.rotary_emb(values, torch.arange(keys.shape[2])[None])
    args = (module, hidden, keys, values, given, dict(position_embeddings=positions))
    scores = scorer.score(*args)[0]
    heads, length = scores.shape
    if isinstance(press, kvpress.AdaKVPress):
        press.compress(*args)
        _, lost_heads, lost = module.masked_key_indices
        mask = torch.ones(heads, length, dtype=torch.bool)
        mask[lost_heads, lost] = False
        rows = [mask[h].nonzero()[:, 0].tolist() for h in range(heads)]
        # Two cuts: what each head is sure of, and what is lost of the rest in the whole layer.
        scores = scorer.score(*args)[0]
        count = kvpress.utils.compute_n_kept(length, ratio)
        safe = max(1, int(count * press.alpha_safeguard))
        order = scores.sort(dim=-1, descending=True)
        sure = torch.zeros_like(mask).scatter_(1, order.indices[:, :safe], True)
        low = scores[mask & ~sure].min().item() if (mask & ~sure).any() else math.inf
        high = scores[~mask].max().item()
        across = abs(low - high) / max(abs(high), 1e-30)
        a, b = order.values[:, safe - 1], order.values[:, safe]
        floor = ((a - b).abs() / a.abs().clamp_min(1e-30)).tolist()
        return rows, [min(across, gap) for gap in floor]
    if isinstance(press, kvpress.PyramidKVPress):
        count = press.get_layer_budget(module, length)
    else:
        count = kvpress.utils.compute_n_kept(length, ratio)
    order = scores.sort(dim=-1, descending=True)
    rows = [sorted(r.tolist()) for r in scores.topk(count, dim=-1).indices]
    gaps = []
    for h in range(heads):
        a, b = order.values[h][count - 1].item(), order.values[h][min(count, length - 1)].item()
        gaps.append(abs(a - b) / max(abs(a), 1e-30) if count < length else 1.0)
    return rows, gaps


def cases(label, module, hidden, keys, values, attentions, window):
    out = []
    for name, press in presses(window).items():
        for ratio in RATIOS:
            rows, gaps = kept(press, ratio, module, hidden, keys, values, attentions)
            out.append(dict(label, rule=name, ratio=ratio, window=window, kept=rows, gaps=[float(f"{g:.3g}") for g in gaps]))
    return out


def random_cases():
    out = []
    for index, (heads, kv_heads, size, length) in enumerate(SHAPES):
        config = LlamaConfig(
            hidden_size=heads * size, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=size,
            num_hidden_layers=4, rope_theta=1e4, max_position_embeddings=8192, intermediate_size=8, vocab_size=8)
        config._attn_implementation = "sdpa"
        rotary = LlamaRotaryEmbedding(config)
        hidden = numbers(100 + index, length * heads * size).view(1, length, heads * size)
        k = numbers(200 + index, length * kv_heads * size).view(1, length, kv_heads, size).transpose(1, 2)
        v = numbers(300 + index, length * kv_heads * size).view(1, length, kv_heads, size).transpose(1, 2)
        q = hidden.view(1, length, heads, size).transpose(1, 2)
        cos, sin = rotary(v, torch.arange(length)[None])
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        scores = q @ repeat_kv(k, heads // kv_heads).transpose(2, 3) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        attentions = scores.softmax(-1)
        projection = nn.Linear(heads * size, heads * size, bias=False)
        projection.weight.data = torch.eye(heads * size)
        for layer in (0, 3):
            module = SimpleNamespace(
                config=config, head_dim=size, layer_idx=layer, q_proj=projection, rotary_emb=rotary)
            label = dict(shape=index, heads=heads, kv_heads=kv_heads, size=size, length=length, layer=layer)
            every = cases(label, module, hidden, k, v, attentions, 16)
            out += every if layer == 0 else [c for c in every if c["rule"] == "pyramidkv"]
    return out


def demo_cases(folder):
    golden = json.load(open(folder + "/golden.json"))
    ids = torch.tensor([golden["prompt_ids"]])
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    hidden, hooks = {}, []
    for i, layer in enumerate(model.model.layers):
        take = lambda module, args, kwargs, i=i: hidden.__setitem__(i, kwargs["hidden_states"].detach())
        hooks.append(layer.self_attn.register_forward_pre_hook(take, with_kwargs=True))
        layer.self_attn.rotary_emb = model.model.rotary_emb
    out = model(ids, use_cache=True, output_attentions=True)
    model.config._attn_implementation = "sdpa"
    rows = []
    for i, layer in enumerate(model.model.layers):
        cache = out.past_key_values.layers[i]
        rows += cases(dict(layer=i), layer.self_attn, hidden[i], cache.keys, cache.values, out.attentions[i], 32)
    return rows


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    folder, out = sys.argv[1:3]
    for name, rows in (("random", random_cases()), ("demo", demo_cases(folder))):
        with open(f"{out}/{name}.json", "w") as file:
            file.write("[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]\n")
        close = sum(g < 1e-5 for r in rows for g in r["gaps"])
        print(f"{name}: {len(rows)} cases, {close} heads with a gap below 1e-5")
