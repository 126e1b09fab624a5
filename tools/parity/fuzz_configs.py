#!/usr/bin/env python3
"""Random valid configurations against transformers, through `tplabench logits`.

Each draw is a family, sizes and features from one seed; the checkpoint is built by transformers, its float32 logits are
compared with the engine's at every tp that fits (prefill, then decode; experts split both ways). A failure prints its
seed; put the configuration into cases.py once it is mended. A sliding window of 1 is not drawn: there transformers'
cached decoding disagrees with its own forward pass without a cache.

  fuzz_configs.py --tplabench build/cli/tplabench --n 200
  fuzz_configs.py --tplabench build/cli/tplabench --family deepseek-v3 --first 57 --n 1 --keep
"""
import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile

import numpy as np

import reference
import tiny_tokenizer

TOLERANCE = 1e-3


def pick_rope(r, context, kinds):
    kind = r.choice(kinds)
    rope = dict(rope_type=kind, rope_theta=r.choice([100.0, 10000.0, 50000.0, 1e6]))
    if kind == "default":
        return rope
    rope["factor"] = r.choice([1.0, 2.0, 4.0, 8.0, 40.0])
    rope["original_max_position_embeddings"] = r.choice([8, 16, context // 4, context])
    if kind == "llama3":
        rope.update(low_freq_factor=r.choice([1.0, 2.0]), high_freq_factor=r.choice([4.0, 8.0]))
        return rope
    if r.random() < 0.5:
        rope.update(beta_fast=r.choice([32.0, 16.0, 4.0]), beta_slow=r.choice([1.0, 2.0]))
    if r.random() < 0.3:
        rope["truncate"] = r.random() < 0.5
    if r.random() < 0.5:
        rope.update(mscale=r.choice([0.707, 1.0, 1.5]), mscale_all_dim=r.choice([0.707, 1.0, 0.5]))
    elif r.random() < 0.3:
        rope["attention_factor"] = r.choice([0.8, 1.2])
    return rope


def common(r):
    context = r.choice([32, 64, 128])
    return dict(vocab_size=r.randint(256, 330), hidden_size=r.randint(3, 40) * 2, intermediate_size=r.randint(1, 80),
                num_hidden_layers=r.randint(1, 3), max_position_embeddings=context, tie_word_embeddings=r.random() < 0.3,
                rms_norm_eps=r.choice([1e-5, 1e-6, 1e-3]), bos_token_id=0, eos_token_id=1)


def gqa(r, kinds=("default", "llama3", "yarn"), even_hidden=False):
    f = common(r)
    kv = r.choice([1, 1, 2, 3, 4, 5])
    f.update(num_key_value_heads=kv, num_attention_heads=kv * r.choice([1, 1, 2, 3, 4]), head_dim=2 * r.randint(1, 12))
    if even_hidden:
        f["hidden_size"] = f["num_attention_heads"] * r.choice([2, 4, 6])
    f["rope_parameters"] = pick_rope(r, f["max_position_embeddings"], kinds)
    return f


def window(r, f):
    if r.random() < 0.6:
        f.update(use_sliding_window=True, sliding_window=r.choice([2, 3, 5, 16]), max_window_layers=r.randint(0, 3))
        if r.random() < 0.4:
            f["layer_types"] = [r.choice(["sliding_attention", "full_attention"]) for _ in range(f["num_hidden_layers"])]


def llama(r):
    f = gqa(r, even_hidden=True)
    f.update(attention_bias=r.random() < 0.4, mlp_bias=r.random() < 0.4)
    if r.random() < 0.4:
        f.pop("head_dim")
    return "LlamaForCausalLM", f


def mistral(r):
    f = gqa(r)
    f["sliding_window"] = r.choice([None, 2, 3, 8, 200])
    return "MistralForCausalLM", f


def qwen2(r):
    f = gqa(r)
    window(r, f)
    return "Qwen2ForCausalLM", f


def qwen3(r):
    f = gqa(r)
    f["attention_bias"] = r.random() < 0.4
    window(r, f)
    return "Qwen3ForCausalLM", f


def mla(r):
    f = common(r)
    heads = r.choice([1, 2, 3, 4, 5, 6, 8])
    f.update(num_attention_heads=heads, num_key_value_heads=heads, q_lora_rank=r.choice([None, r.randint(1, 40)]),
             kv_lora_rank=r.randint(1, 48), qk_nope_head_dim=r.randint(1, 20), qk_rope_head_dim=2 * r.randint(1, 8),
             v_head_dim=r.randint(1, 20), attention_bias=r.random() < 0.3)
    f["rope_parameters"] = pick_rope(r, f["max_position_embeddings"], ("default", "yarn", "yarn"))
    return f


def moe(r, f, group_min):
    group = r.choice([1, 1, 2, 4])
    per_group = r.randint(group_min, 5)
    chosen = r.randint(1, group)
    f.update(n_routed_experts=group * per_group, n_group=group, topk_group=chosen,
             num_experts_per_tok=r.randint(1, min(6, chosen * per_group)), n_shared_experts=r.randint(1, 3),
             moe_intermediate_size=r.choice([4, 8, 12, 17]), first_k_dense_replace=r.randint(0, f["num_hidden_layers"]),
             routed_scaling_factor=r.choice([1.0, 2.5, 16.0]), norm_topk_prob=r.random() < 0.5)


def deepseek_v2(r):
    f = mla(r)
    f["hidden_size"] = 2 * f["num_attention_heads"] * r.randint(1, 6)
    for key in ("kv_lora_rank", "qk_nope_head_dim"):  # transformers views pairs as complex numbers
        f[key] += f[key] % 2
    moe(r, f, 1)
    f.update(topk_method=r.choice(["greedy", "group_limited_greedy"]), mlp_bias=r.random() < 0.3)
    return "DeepseekV2ForCausalLM", f


def deepseek_v3(r):
    f = mla(r)
    moe(r, f, 2)
    f["rope_interleave"] = r.random() < 0.7
    return "DeepseekV3ForCausalLM", f


FAMILIES = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3, "deepseek-v2": deepseek_v2,
            "deepseek-v3": deepseek_v3}


def tps(f):
    """The tp among 1, 2, 3, 4 that the engine can split this model by."""
    sizes = [f["num_attention_heads"], f["num_key_value_heads"], f["intermediate_size"]]
    if "n_routed_experts" in f:
        sizes.append(f["moe_intermediate_size"])
    return [tp for tp in (1, 2, 3, 4) if all(n % tp == 0 for n in sizes)]


def engine_logits(program, folder, tokens, n_decode, options, out):
    command = [program, "logits", "--model", folder, "--tokens", ",".join(map(str, tokens)), "--decode", str(n_decode),
               "--out", out, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr.strip()
    rows = np.loadtxt(out, delimiter=",", skiprows=1)
    return rows[:, 2].reshape(len(tokens), -1), ""


def runs(f):
    """Option lists: every tp, and for models with experts or a latent the other ways to split."""
    for tp in tps(f):
        yield ["--tp", str(tp)]
        if tp > 1 and "n_routed_experts" in f:
            yield ["--tp", str(tp), "--experts", "ep"]
        if tp > 1 and "kv_lora_rank" in f:
            yield ["--tp", str(tp), "--variant", "mla-dcp"]


def one(family, seed, program, folder):
    """A list of complaints."""
    r = random.Random(family + str(seed))
    architecture, f = FAMILIES[family](r)
    dtype = r.choice(["f32", "bf16", "f16"])
    model = reference.build(architecture, f, seed, dtype)
    write = dict(f8="hidden_size" in f and r.random() < 0.15)
    if write["f8"]:
        write["config_extra"] = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    reference.write_checkpoint(model, folder, dtype, shards=r.choice([1, 1, 2]), **write)
    tiny_tokenizer.write(folder)
    prompt = reference.make_prompt(f["vocab_size"], r.randint(1, 24), seed)
    n_decode = r.randint(0, 4)
    tokens, want = reference.run(model, prompt, n_decode)
    want = want.numpy().astype(np.float64)
    if not np.isfinite(want).all():
        return ["reference is not finite"]
    bad, scale = [], want.std()
    for options in runs(f):
        got, why = engine_logits(program, folder, tokens, n_decode, options, os.path.join(folder, "out.csv"))
        if got is None:
            bad.append("%s: %s" % (" ".join(options), why))
            continue
        worst = np.abs(got - want).max() / scale
        if not worst <= TOLERANCE or (got.argmax(1) != want.argmax(1)).any():
            bad.append("%s: differs by %.3g" % (" ".join(options), worst))
    return bad


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--tplabench", required=True)
    p.add_argument("--family", choices=FAMILIES)
    p.add_argument("--n", type=int, default=200)
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--keep", action="store_true", help="leave the last folder and print its path")
    a = p.parse_args()
    failed = 0
    folder = tempfile.mkdtemp(prefix="parity-")
    for family in [a.family] if a.family else FAMILIES:
        n_bad = 0
        for seed in range(a.first, a.first + a.n):
            bad = one(family, seed, a.tplabench, folder)
            for b in bad:
                print("%s seed %d: %s" % (family, seed, b), flush=True)
            n_bad += bool(bad)
        print("%-12s %d of %d agree" % (family, a.n - n_bad, a.n), flush=True)
        failed += n_bad
    if a.keep:
        print(folder)
    else:
        shutil.rmtree(folder)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
