#!/usr/bin/env python3
"""A random bf16 checkpoint of some GiB (24 dense layers of latent attention, 2.4 GiB), to time loading with.

  make_big.py DIR
  TPL_LOAD_MODEL=DIR meson test --benchmark -C build engine/load_time
"""
import json
import os
import struct
import sys

import numpy as np

import tiny_tokenizer

DIM, FFN, LAYERS, VOCAB, HEADS, RANK, NOPE, ROPE, V = 2048, 5632, 24, 32000, 16, 512, 128, 64, 128
CONFIG = dict(
    architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", vocab_size=VOCAB, hidden_size=DIM,
    intermediate_size=FFN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
    hidden_act="silu", max_position_embeddings=8192, rms_norm_eps=1e-6, q_lora_rank=None, kv_lora_rank=RANK,
    qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE, v_head_dim=V, first_k_dense_replace=LAYERS, n_routed_experts=None,
    bos_token_id=0, eos_token_id=1, torch_dtype="bfloat16", rope_theta=10000.0)
LAYER = {
    "input_layernorm": (DIM,), "post_attention_layernorm": (DIM,), "self_attn.q_proj": (HEADS * (NOPE + ROPE), DIM),
    "self_attn.kv_a_proj_with_mqa": (RANK + ROPE, DIM), "self_attn.kv_a_layernorm": (RANK,),
    "self_attn.kv_b_proj": (HEADS * (NOPE + V), RANK), "self_attn.o_proj": (DIM, HEADS * V),
    "mlp.gate_proj": (FFN, DIM), "mlp.up_proj": (FFN, DIM), "mlp.down_proj": (DIM, FFN)}


def shapes():
    yield "model.embed_tokens.weight", (VOCAB, DIM)
    yield "model.norm.weight", (DIM,)
    yield "lm_head.weight", (VOCAB, DIM)
    for i in range(LAYERS):
        for part, shape in LAYER.items():
            yield "model.layers.%d.%s.weight" % (i, part), shape


def values(rng, shape):
    x = rng.standard_normal(int(np.prod(shape)), dtype=np.float32)
    x = 1 + 0.1 * x if len(shape) == 1 else 0.02 * x
    return (x.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    header, at = {}, 0
    for name, shape in shapes():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(1)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, shape in shapes():
            f.write(values(rng, shape))
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(CONFIG, f)
    tiny_tokenizer.write(folder)
    print("%.2f GiB" % (at / 2**30))


if __name__ == "__main__":
    main()
