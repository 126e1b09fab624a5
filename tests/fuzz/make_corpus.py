#!/usr/bin/env python3
"""Writes tests/fuzz/corpus: a few small valid and half-valid inputs for each loader, from stored test data.

  make_corpus.py   (run from anywhere; overwrites files of its own names only)
"""
import base64
import json
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "../data")


def put(target, name, data):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


def safetensors(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def make_safetensors():
    put("safetensors", "two", safetensors({"a": tensor("F32", [2], 0, 8), "b": tensor("BF16", [1, 2], 8, 12)}, bytes(12)))
    put("safetensors", "empty", safetensors({"__metadata__": {"format": "pt"}}))
    put("safetensors", "scalar", safetensors({"s": tensor("F8_E4M3", [], 0, 1)}, b"\x38"))
    put("safetensors", "hole", safetensors({"a": tensor("I64", [1], 4, 12)}, bytes(12)))
    put("safetensors", "huge_shape", safetensors({"a": tensor("F32", [2**40, 2**40], 0, 8)}, bytes(8)))
    put("safetensors", "long_header", struct.pack("<Q", 2**62) + b"{}")
    put("safetensors", "cut", safetensors({"a": tensor("F32", [2], 0, 8)}, bytes(3)))


def make_index():
    put("index", "good", json.dumps({"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    put("index", "swapped", json.dumps({"weight_map": {"x": "b.safetensors"}}))
    put("index", "outside", json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    put("index", "absent", json.dumps({"weight_map": {"x": "c.safetensors"}}))
    put("index", "not_text", json.dumps({"weight_map": {"x": 1}}))


def make_config():
    parity = os.path.join(DATA, "parity")
    for name in sorted(os.listdir(parity)):
        with open(os.path.join(parity, name, "config.json")) as f:
            put("config", name, json.dumps(json.load(f)))
    put("config", "bad_size", json.dumps({"model_type": "llama", "num_hidden_layers": -1}))
    put("config", "cut", '{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, ')


def make_tokenizer():
    vocab = {c: i for i, c in enumerate(["<s>", "T", "h", "e", "\u0120", "Th", "1"])}
    base = {"added_tokens": [{"id": 0, "content": "<s>", "special": True, "single_word": False, "lstrip": False,
                              "rstrip": False, "normalized": False}],
            "normalizer": None, "post_processor": None, "decoder": {"type": "ByteLevel"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "model": {"type": "BPE", "vocab": vocab, "merges": ["T h"], "unk_token": "<s>"}}
    put("tokenizer", "bytelevel", json.dumps(base))
    sp = {**base, "pre_tokenizer": None,
          "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                                             {"type": "Replace", "pattern": {"String": " "},
                                                              "content": "\u2581"}]},
          "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"},
                                                       {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
          "model": {"type": "BPE", "vocab": {**{"<0x%02X>" % i: i + 8 for i in range(256)}, **vocab, "\u2581": 7},
                    "merges": [["T", "h"]], "byte_fallback": True, "fuse_unk": True, "unk_token": "<s>"}}
    put("tokenizer", "bytefallback", json.dumps(sp))
    split = {**base, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|[^\s\p{L}]+|\s+(?!\S)"}, "behavior": "Isolated",
         "invert": False}, {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}, "normalizer": {"type": "NFC"}}
    put("tokenizer", "split", json.dumps(split))
    put("tokenizer", "bad_regex", json.dumps({**base, "pre_tokenizer": {
        "type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False}}))
    put("tokenizer", "unknown", json.dumps({**base, "pre_tokenizer": {"type": "Metaspace2"}}))


def make_tiktoken():
    lines = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))
    lines += base64.b64encode(b"ab") + b" 256\n"
    put("tiktoken", "bytes", lines)
    put("tiktoken", "config", lines + b"\0" + json.dumps({
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "added_tokens_decoder": {"257": {"content": "[BOS]", "special": True}}}).encode())
    put("tiktoken", "bad_base64", b"YQ= 0\n!! 1\n")
    put("tiktoken", "gap", b"YQ== 0\nYg== 7\n")


make_safetensors()
make_index()
make_config()
make_tokenizer()
make_tiktoken()
