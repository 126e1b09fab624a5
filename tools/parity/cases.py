"""The stored parity cases: every feature that the published checkpoints of these families use, at toy sizes.

Sizes divide by 4, so that every case also runs at tp 2 and 4.
"""
GQA = dict(vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
           num_key_value_heads=4, max_position_embeddings=128, rms_norm_eps=1e-6, bos_token_id=0, eos_token_id=1)
MLA = dict(vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
           num_key_value_heads=8, q_lora_rank=20, kv_lora_rank=24, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=12,
           max_position_embeddings=128, rms_norm_eps=1e-6, bos_token_id=0, eos_token_id=1)
MOE = dict(n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3, moe_intermediate_size=16,
           first_k_dense_replace=1, n_group=1, topk_group=1)


def rope(theta=10000.0, kind="default", **more):
    return dict(rope_type=kind, rope_theta=theta, **more)


def yarn(factor, **more):
    return rope(kind="yarn", factor=factor, original_max_position_embeddings=32, **more)


V3_YARN = yarn(4.0, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0)
LLAMA3 = rope(500000.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)


def case(architecture, base, about, dtype="bf16", freq=1, write=None, **fields):
    return dict(architecture=architecture, about=about, dtype=dtype, freq=freq, write=write or {},
                fields={**base, **fields})


LLAMA, MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"
QWEN2, QWEN3 = "Qwen2ForCausalLM", "Qwen3ForCausalLM"
V2, V3 = "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"
OLD_YARN = {"rope_scaling": {**{k: v for k, v in V3_YARN.items() if k not in ("rope_type", "rope_theta")},
                             "type": "yarn"}, "rope_theta": 10000.0}
FP8 = {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                               "weight_block_size": [128, 128]}}

CASES = {
    "llama": case(LLAMA, GQA, "plain RoPE, f32 weights", dtype="f32", rope_parameters=rope()),
    "llama3-rope": case(LLAMA, GQA, "Llama 3 RoPE scaling, tied embeddings, two shards", write=dict(shards=2),
                        rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama-bias": case(LLAMA, GQA, "attention_bias, mlp_bias, head_dim unlike hidden / heads, f16", dtype="f16",
                       head_dim=10, attention_bias=True, mlp_bias=True, rope_parameters=rope()),
    "llama-mha": case(LLAMA, GQA, "as many KV heads as heads, rms_norm_eps 1e-3", num_key_value_heads=8,
                      rms_norm_eps=1e-3, rope_parameters=rope()),
    "qwen2": case(QWEN2, GQA, "QKV bias, rope_theta 1e6", rope_parameters=rope(1e6)),
    "qwen2-window": case(QWEN2, GQA, "sliding window from layer 1 on", num_hidden_layers=3, use_sliding_window=True, sliding_window=7,
                         max_window_layers=1, rope_parameters=rope()),
    "qwen2-yarn": case(QWEN2, GQA, "YaRN with its attention factor, tied embeddings", tie_word_embeddings=True,
                       rope_parameters=yarn(4.0)),
    "qwen3": case(QWEN3, GQA, "q/k norm, head_dim 16", head_dim=16, rope_parameters=rope(1e6)),
    "qwen3-window": case(QWEN3, GQA, "layer_types, attention_bias", num_hidden_layers=3, head_dim=8, attention_bias=True,
                         use_sliding_window=True, sliding_window=5,
                         layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                         rope_parameters=rope()),
    "mistral": case(MISTRAL, GQA, "sliding window in every layer, head_dim 16", sliding_window=8, head_dim=16,
                    rope_parameters=rope()),
    "mistral-full": case(MISTRAL, GQA, "sliding_window null", sliding_window=None, rope_parameters=rope(1e6)),
    "deepseek-v2-lite": case(V2, {**MLA, **MOE}, "no query latent, softmax greedy, 2 shared experts, mscale 0.707",
                             q_lora_rank=None, n_shared_experts=2, topk_method="greedy",
                             rope_parameters=yarn(40.0, beta_fast=32, beta_slow=1, mscale=0.707,
                                                  mscale_all_dim=0.707)),
    "deepseek-v2": case(V2, {**MLA, **MOE}, "group_limited_greedy, routed_scaling_factor 16",
                        topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=16.0,
                        rope_parameters=yarn(40.0, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0)),
    "deepseek-v2-bias": case(V2, {**MLA, **MOE}, "attention_bias and mlp_bias, every layer MoE", attention_bias=True,
                             mlp_bias=True, first_k_dense_replace=0, rope_parameters=rope()),
    "deepseek-v3": case(V3, {**MLA, **MOE}, "sigmoid, correction bias, groups, YaRN with mscale_all_dim",
                        num_hidden_layers=3, n_group=4, topk_group=2, rope_parameters=V3_YARN),
    "deepseek-v3-dense": case(V3, {**MLA, **MOE}, "dense layers only, f32 weights", dtype="f32",
                              first_k_dense_replace=2, rope_parameters=rope()),
    "deepseek-v3-mscale": case(V3, {**MLA, **MOE}, "mscale unlike mscale_all_dim, norm_topk_prob off, half-split RoPE",
                               norm_topk_prob=False, rope_interleave=False,
                               rope_parameters=yarn(8.0, beta_fast=16, beta_slow=2, mscale=0.5, mscale_all_dim=1.5)),
    "deepseek-v3-bias": case(V3, {**MLA, **MOE}, "attention_bias", attention_bias=True, rope_parameters=rope()),
    "deepseek-v3-freq": case(V3, {**MLA, **MOE}, "moe_layer_freq 2, num_hidden_layers 5", num_hidden_layers=5, freq=2,
                             write=dict(config_extra={"moe_layer_freq": 2}), rope_parameters=rope()),
    "deepseek-v3-mtp": case(V3, {**MLA, **MOE}, "a multi-token-prediction layer in the file, as published",
                            write=dict(mtp=True, config_extra=OLD_YARN,
                                                            config_drop=("rope_parameters",)),
                            rope_parameters=V3_YARN),
    "deepseek-v3-fp8": case(V3, {**MLA, **MOE}, "FP8 e4m3 with 128 x 128 block scales, kv_b included",
                            hidden_size=160, intermediate_size=288, q_lora_rank=136,
                            kv_lora_rank=144, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=256,
                            write=dict(f8=True, config_extra=FP8), rope_parameters=rope()),
    "moonlight": case(V3, {**MLA, **MOE}, "no query latent, rms_norm_eps 1e-5 beside the latents' 1e-6",
                      q_lora_rank=None, n_shared_experts=2, rms_norm_eps=1e-5, routed_scaling_factor=2.446,
                      rope_parameters=rope(50000.0)),
    "kimi-k2": case(V3, {**MLA, **MOE}, "model_type kimi_k2, YaRN with beta_fast 1",
                    write=dict(config_extra={"model_type": "kimi_k2"}), routed_scaling_factor=2.827,
                    rope_parameters=yarn(32.0, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)),
    "transmla": case(V3, {**MLA, **MOE}, "a LLaMA converted to plain MLA by TransMLA", first_k_dense_replace=2,
                     q_lora_rank=None,
                     write=dict(config_extra={"architectures": ["LlamaMLAForCausalLM"], "qk_latent_layernorm": True},
                                config_drop=("n_routed_experts", "first_k_dense_replace", "num_experts_per_tok")),
                     rope_parameters=rope()),
}

# Not committed: the head sizes of the published models, for a look at rounding where sums are long.
LARGE = {
    "large-deepseek-v3": case(V3, {**MLA, **MOE}, "DeepSeek-V3's head sizes", vocab_size=4096, hidden_size=1024,
                              intermediate_size=2048, num_attention_heads=16, num_key_value_heads=16, q_lora_rank=384,
                              kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
                              n_routed_experts=32, num_experts_per_tok=4, n_group=4, topk_group=2,
                              moe_intermediate_size=256, max_position_embeddings=4096,
                              rope_parameters={**V3_YARN, "original_max_position_embeddings": 1024}),
    "large-llama3": case(LLAMA, GQA, "Llama 3's head sizes", vocab_size=4096, hidden_size=1024, intermediate_size=2816,
                         num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=4, head_dim=128,
                         max_position_embeddings=4096,
                         rope_parameters={**LLAMA3, "original_max_position_embeddings": 1024}),
}
