"""Random checkpoints that transformers builds, and the float32 logits that it computes from them.

For:    make_parity.py (stored cases), fuzz_configs.py (random cases), check_convert.py.
Needs:  torch, transformers, safetensors, numpy.
"""
import json
import os
import shutil
import warnings

import torch
import transformers
from safetensors.torch import save_file

torch.set_num_threads(2)
warnings.filterwarnings("ignore", category=FutureWarning)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
F8_BLOCK = 128
# Of a model's matrices, those that an FP8 checkpoint keeps as they are.
NOT_F8 = ("embed_tokens", "lm_head", "mlp.gate.weight", "norm")


def make_config(architecture, fields):
    """The transformers configuration of an architecture; `fields` as config.json spells them."""
    cls = getattr(transformers, architecture).config_class
    known = dict(fields)
    return cls(**known)


def fill_random(model, seed):
    """Weights that keep activations near 1: matrices of variance gain / fan-in, norms near 1, biases that matter."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in list(model.named_parameters()) + list(model.named_buffers()):
            if "rotary" in name or "inv_freq" in name:
                continue
            noise = torch.randn(t.shape, generator=g)
            if "e_score_correction_bias" in name:
                t.copy_(0.2 * noise)
            elif "norm" in name and t.dim() == 1:
                t.copy_(1 + 0.2 * noise)
            elif t.dim() == 1:
                t.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                t.copy_(noise)
            else:
                t.copy_(noise * (1.5 / t.shape[-1]) ** 0.5)


def round_to(model, dtype):
    """Every weight to a value that the stored type holds, computed with in float32; what transformers keeps in float32
    (gate weights, correction biases) too, as published checkpoints store gates in the common type."""
    if dtype == torch.float32:
        return
    with torch.no_grad():
        for name, t in list(model.named_parameters()) + list(model.named_buffers()):
            if "rotary" not in name and "e_score_correction_bias" not in name:
                t.copy_(t.to(dtype).float())


def use_dense_layers(model, freq, first_dense):
    """moe_layer_freq, which DeepSeek's own code heeds and transformers' does not: layers that it skips become dense."""
    for i, layer in enumerate(model.model.layers):
        if i >= first_dense and i % freq:
            dense = type(layer.mlp.shared_experts)(model.config)
            layer.mlp = dense.to(torch.float32)


def to_f8(w):
    """(e4m3 values, block scales [ceil(rows / 128), ceil(cols / 128)]) of a matrix."""
    rows, cols = w.shape
    br, bc = -(-rows // F8_BLOCK), -(-cols // F8_BLOCK)
    values = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    scales = torch.empty(br, bc)
    for i in range(br):
        for j in range(bc):
            part = (slice(i * F8_BLOCK, (i + 1) * F8_BLOCK), slice(j * F8_BLOCK, (j + 1) * F8_BLOCK))
            scales[i, j] = w[part].abs().max() / 448
            values[part] = (w[part] / scales[i, j]).to(torch.float8_e4m3fn)
    return values, scales


def from_f8(values, scales):
    wide = scales.repeat_interleave(F8_BLOCK, 0).repeat_interleave(F8_BLOCK, 1)
    return values.float() * wide[: values.shape[0], : values.shape[1]]


def saved_tensors(model, folder):
    """The tensors as save_pretrained() names and splits them (experts one by one)."""
    from safetensors import safe_open

    model.save_pretrained(folder)
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(folder, name), "pt") as f:
                tensors.update({k: f.get_tensor(k) for k in f.keys()})
    return tensors


def write_checkpoint(model, folder, dtype="bf16", config_extra=None, config_drop=(), f8=False, mtp=False, shards=1):
    """Writes the model's folder as published checkpoints are laid out. With f8 the model's own weights become what the
    f8 values and scales stand for, so compute logits after this."""
    shutil.rmtree(folder, ignore_errors=True)
    tensors = saved_tensors(model, folder)
    config = json.load(open(os.path.join(folder, "config.json")))
    for name in os.listdir(folder):
        os.remove(os.path.join(folder, name))
    out = {}
    for name, t in tensors.items():
        if f8 and t.dim() == 2 and not any(s in name for s in NOT_F8):
            values, scales = to_f8(t.float())
            out[name], out[name + "_scale_inv"] = values, scales
            tensors[name] = from_f8(values, scales)
        else:
            out[name] = t.clone() if "e_score_correction_bias" in name else t.to(DTYPES[dtype])
    if f8:
        load_wide(model, tensors)
    if mtp:
        n = config["num_hidden_layers"]
        last = {k: v for k, v in out.items() if k.startswith("model.layers.%d." % (n - 1))}
        out.update({k.replace("layers.%d." % (n - 1), "layers.%d." % n): v.clone() for k, v in last.items()})
        out["model.layers.%d.eh_proj.weight" % n] = torch.zeros(4, 8, dtype=DTYPES[dtype])
    config.pop("transformers_version", None)
    config.update({"dtype": {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[dtype]})
    config.update(config_extra or {})
    for key in config_drop:
        config.pop(key, None)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1, sort_keys=True)
        f.write("\n")
    write_files(out, folder, shards)


def write_files(tensors, folder, shards):
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        file = "model-%05d-of-%05d.safetensors" % (i + 1, shards)
        part = {k: tensors[k] for k in names[i::shards]}
        save_file(part, os.path.join(folder, file), metadata={"format": "pt"})
        weight_map.update({k: file for k in part})
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": weight_map}, f, indent=0, sort_keys=True)


def load_wide(model, tensors):
    """The model's weights from tensors named as saved; fused experts are put together."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in tensors:
                p.copy_(tensors[name])
            elif name.endswith("experts.gate_up_proj"):
                stem = name[: -len("gate_up_proj")]
                for i in range(p.shape[0]):
                    both = [tensors["%s%d.%s_proj.weight" % (stem, i, s)] for s in ("gate", "up")]
                    p[i].copy_(torch.cat(both))
            elif name.endswith("experts.down_proj"):
                stem = name[: -len("down_proj")]
                for i in range(p.shape[0]):
                    p[i].copy_(tensors["%s%d.down_proj.weight" % (stem, i)])
            elif not name.endswith("lm_head.weight"):
                raise ValueError("no tensor for " + name)


def build(architecture, fields, seed, dtype="bf16", freq=1):
    """A random model in float32 whose weights the stored type holds exactly."""
    torch.manual_seed(seed)
    config = make_config(architecture, fields)
    config._attn_implementation = config._experts_implementation = "eager"
    model = getattr(transformers, architecture)(config).float().eval()
    if freq > 1:
        use_dense_layers(model, freq, fields["first_k_dense_replace"])
    fill_random(model, seed)
    round_to(model, DTYPES[dtype])
    return model.eval()


@torch.no_grad()
def run(model, prompt, n_decode):
    """(tokens, logits [len(tokens), vocab]): the prompt at once, then greedy tokens one by one through the cache."""
    tokens = list(prompt)
    out = model(torch.tensor([tokens]), use_cache=True)
    logits = [out.logits[0].float()]
    for _ in range(n_decode):
        tokens.append(int(logits[-1][-1].argmax()))
        out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0].float())
    return tokens, torch.cat(logits)


def make_prompt(vocab, n, seed):
    return torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
