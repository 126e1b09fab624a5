#!/usr/bin/env python3
"""Makes tests/data/tokenizer-*: small tokenizers with the component sets of real checkpoints, and what the reference
implementations (tokenizers, tiktoken) do with a fixed set of hard strings.

    pip install tokenizers==0.23.3 tiktoken==0.14.0
    python3 tools/vectors/make_tokenizer_vectors.py        # from the project root; takes about ten seconds

Every line of tokenizer-<set>.jsonl is {"text", "ids"[, "decoded"][, "plain"]} or {"ids", "decoded"[, "plain"]}:
decoded is left out where it equals the text, plain (decoded without special tokens) where it equals decoded.
tokenizer-variants.jsonl has one tokenizer a line: its parts beside the model, and cases [text, ids, decoded].
"""

import base64
import json
import os
import random
import shutil

import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

DATA = "tests/data"
HELDOUT = "datasets/worldlet/heldout.txt"
VOCAB = 600

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]
KIMI_UPPER, KIMI_LOWER = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]")
KIMI_START, KIMI_END = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI = "|".join(
    [
        r"[\p{Han}]+",
        KIMI_START + KIMI_UPPER + "*" + KIMI_LOWER + "+" + KIMI_END,
        KIMI_START + KIMI_UPPER + "+" + KIMI_LOWER + "*" + KIMI_END,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# ---- strings -------------------------------------------------------------------------------------------------------

FIXED = [
    "",
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    " \n ",
    "\n\n\n",
    "a",
    " a",
    "a ",
    "  a  b   c    ",
    "Hello, world!",
    "I'll say they're right; we've DONE IT'S 'twas 'Tis y'all'd've",
    "it's IT'S It'S it’s o'clock 'LL 'Re",
    "1234567890",
    "3.14159 -2e10 0x1F 1,000,000 ½ ² ③ Ⅷ ٣٤٥ 五",
    "v1.2.3-rc4+build.56",
    "2024-02-29T23:59:59Z",
    "def f(x):\n    return x * 2  # comment\n\n\nclass A:\n\tpass\n",
    "for(int i=0;i<10;++i){a[i]+=b[i]<<2;}",
    'if (a && !b || c != d) { return "x\\n"; }',
    "SELECT * FROM t WHERE id='1';--",
    '<div class="x">&nbsp;</div>',
    "https://example.com/a/b?c=d&e=%20f#g",
    "user.name+tag@mail.example.org",
    "C:\\Users\\me\\file.txt",
    "你好，世界。今天天气很好！",
    "こんにちは世界、カタカナとひらがな",
    "한국어 텍스트입니다",
    "中文English混排123测试 test",
    "繁體字與简体字",
    "Привет, мир! Как дела?",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Γειά σου Κόσμε",
    "Xin chào thế giới",
    "😀😃😄",
    "👨‍👩‍👧‍👦 family",
    "👍🏽 👩🏿‍🚀",
    "🇩🇪🇫🇷🇯🇵",
    "❤️‍🔥 ♥️",
    "#️⃣ 1️⃣",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "é e\u0301 \u0301a",
    "a\u0323\u0307 a\u0307\u0323",
    "Å \u212b A\u030a",
    "\u1e9b\u0323 ﬁ ﬀ",
    "각 \u1100\u1161\u11a8",
    "\u0958 क़",
    "naïve café résumé coöperate",
    "ﬆ ß ſ İ ı K",
    "Ǆ ǅ ǆ ª º ʰ",
    "x\u200by\u200cz\u200d.",
    "\u00a0\u2003\u3000\u2028\u2029\u0085|",
    "\u180e a\u180eb",
    "\ufeffBOM",
    "a\u0000b",
    "\x01\x02\x1f\x7f",
    "\u00ad soft\u00adhyphen",
    "zero\u2060width",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "𠀀𠀁𪜶",
    "\U0010fffd",
    "Ω≈ç√∫˜µ≤≥÷",
    "…—–“”‘’«»‹›",
    "→⇒↔∀∃∈",
    "$€£¥₹ 50%",
    "``` code ```",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!!!!!!!!????",
    "----====____",
    "camelCaseString PascalCase snake_case SCREAMING_CASE kebab-case HTTPServer2XML",
    "don'T Can'T WON'T",
    "\n  indented\n    more\n\ttab \n   \n",
    "trailing   \n",
    "   \n\n  x",
    "a\r\nb\rc\n\rd",
    "\t\t x \t y",
    "x\u3000\u3000y",
    "▁ underscore ▁▁ a▁b",
    "Ġ is a letter Ċ",
    "<0x41> <0x0A> <0xE4>",
    "<unk> <s> </s>",
    "[INST] hi [/INST]",
    "<|endoftext|>",
    "a<|endoftext|>b",
    "<|endoftext|><|endoftext|>",
    " <|endoftext|> ",
    "<|endoftext",
    "<|endoftext|",
    "|>",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    '<tool_call>{"a": 1}</tool_call>',
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are.<|eot_id|>",
    "<｜begin▁of▁sentence｜>You<｜User｜>hi<｜Assistant｜><think>\nok</think><｜end▁of▁sentence｜>",
    "<｜User ｜>",
    "<s>Hello</s> <s> x </s>y",
    "<s>",
    "<s> ",
    "[BOS]x[EOS]<|im_user|>user<|im_middle|>q<|im_end|>",
    "<|reserved_token_610|>",
    "<mask> a<mask>b <mask>. x<mask>",
    "  <strip>  both  <left>  <right>  <both>  ",
    "cafe\u0301<norm\u0301> <norḿ>",
    "<|a|><|a|>b<|ab|>",
    "<<|endoftext|>>",
    "l'été l'e\u0301te\u0301",
]

WORDS = [
    "the",
    "model",
    " of ",
    "Laura",
    "value",
    "total",
    "join_wund",
    "(",
    ")",
    " = ",
    "\n",
    "\n    ",
    "  ",
    " ",
    "\t",
    "0",
    "17",
    "2048",
    "你好",
    "世界",
    "の",
    "カ",
    "한",
    "Привет",
    "é",
    "e\u0301",
    "😀",
    "👩‍🚀",
    "'s",
    "'LL",
    "!",
    "...",
    "—",
    "\r\n",
    "<|endoftext|>",
    "<|im_end|>",
    "<s>",
    "▁",
    "\u00a0",
    "ß",
    "ﬁ",
    "½",
    "٣",
    "\u0323",
    "\u0307",
    "ا",
    "ä",
    "_",
    "#",
    "//",
    "🇩🇪",
    "Ｆ",
    "HTTP",
    "Server",
    "ing",
    "tion",
    " a",
    "x",
    "Q",
    "\u200d",
    "\u3000",
    "[",
    "]",
    "{",
    "}",
    '"',
    "\\",
    "$",
    "€",
]


def world_lines(n, rng):
    text = open(HELDOUT, encoding="utf-8").read()
    at = [rng.randrange(len(text) - 200) for _ in range(n)]
    return [text[i : i + rng.randrange(20, 160)] for i in at]


def strings():
    rng = random.Random(20240607)
    out = list(FIXED)
    out += ["".join(rng.choice(WORDS) for _ in range(rng.randrange(2, 18))) for _ in range(150)]
    alphabet = "".join(FIXED)
    out += ["".join(rng.choice(alphabet) for _ in range(rng.randrange(3, 30))) for _ in range(50)]
    out += world_lines(24, rng)
    return out


def corpus():
    rng = random.Random(7)
    text = open(HELDOUT, encoding="utf-8").read()
    return (
        [text[i : i + 4000] for i in range(0, min(len(text), 80000), 4000)]
        + FIXED * 6
        + ["".join(rng.choice(WORDS) for _ in range(200)) for _ in range(40)]
    )


# ---- small tokenizers ----------------------------------------------------------------------------------------------


def train(tok, specials, byte_level=True, vocab=VOCAB, **model):
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=sorted(alphabet),
        special_tokens=specials,
        show_progress=False,
        limit_alphabet=10000 if byte_level else 150,
    )
    tok.train_from_iterator(corpus(), trainer)
    return tok


def special(content, **kw):
    return AddedToken(content, special=True, normalized=False, **kw)


def byte_level(split, normalizer=None, ignore_merges=False):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated", invert=False) for p in split]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    return train(tok, [])


def llama3():
    tok = byte_level([LLAMA3], ignore_merges=True)
    tok.add_special_tokens(
        [
            special(s)
            for s in ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        ]
    )
    return tok


def qwen2():
    tok = byte_level([QWEN2], normalizer=normalizers.NFC())
    tok.add_special_tokens([special(s) for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tok.add_tokens(
        [
            AddedToken("<tool_call>", normalized=False),
            AddedToken("</tool_call>", normalized=False),
            AddedToken("<norm\u0301>", normalized=True),
            AddedToken("<mask>", single_word=True, normalized=False),
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True),
            special("<strip>", rstrip=True),
        ]
    )
    return tok


def deepseek3():
    tok = byte_level(DEEPSEEK)
    tok.add_special_tokens([special("<｜begin▁of▁sentence｜>"), special("<｜end▁of▁sentence｜>")])
    tok.add_tokens([AddedToken(s, normalized=True) for s in ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")])
    return tok


BYTES = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]


def sentencepiece(pre=None, norm=None):
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if norm:
        tok.normalizer = norm
    # Trained on pieces, as merges across words are not wanted; then used as the real files have it.
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    train(tok, BYTES, byte_level=False, vocab=VOCAB + 150)
    tok = Tokenizer.from_str(drop_added(tok.to_str(), 3))
    tok.pre_tokenizer = pre if pre else pre_tokenizers.Sequence([])
    spec = json.loads(tok.to_str())
    if pre is None:
        spec["pre_tokenizer"] = None
    tok = Tokenizer.from_str(json.dumps(spec))
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tok


def drop_added(spec, keep):
    spec = json.loads(spec)
    spec["added_tokens"] = spec["added_tokens"][:keep]
    return json.dumps(spec)


def llama2():
    return sentencepiece(norm=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))


def mistral():
    return sentencepiece(pre=pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False))


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        f.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def save(name, tok):
    folder = f"{DATA}/tokenizer-{name}"
    os.makedirs(folder, exist_ok=True)
    write_json(f"{folder}/tokenizer.json", json.loads(tok.to_str()))


# ---- vectors -------------------------------------------------------------------------------------------------------


def line(text, ids, decoded, plain):
    row = {} if text is None else {"text": text}
    row["ids"] = ids
    if decoded != text:
        row["decoded"] = decoded
    if plain != decoded:
        row["plain"] = plain
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def write_vectors(name, vocab, encode, decode):
    rng = random.Random(len(name))
    with open(f"{DATA}/tokenizer-{name}.jsonl", "w", encoding="utf-8") as f:
        for s in strings():
            ids = encode(s)
            f.write(line(s, ids, decode(ids, False), decode(ids, True)) + "\n")
        for _ in range(60):
            ids = [rng.randrange(vocab) for _ in range(rng.randrange(1, 12))]
            f.write(line(None, ids, decode(ids, False), decode(ids, True)) + "\n")


def vectors(name, tok):
    write_vectors(
        name,
        tok.get_vocab_size(),
        lambda s: tok.encode(s, add_special_tokens=False).ids,
        lambda ids, skip: tok.decode(ids, skip_special_tokens=skip),
    )


# ---- Kimi's tiktoken layout ----------------------------------------------------------------------------------------


def char_bytes():
    keep = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    table, extra = {chr(b): b for b in keep}, 0
    for b in range(256):
        if b not in keep:
            table[chr(256 + extra)] = b
            extra += 1
    return table


def kimi():
    table = char_bytes()
    trained = json.loads(byte_level([KIMI]).to_str())["model"]
    tokens = [bytes([b]) for b in range(256)]
    for a, b in trained["merges"]:
        tokens.append(bytes(table[c] for c in a + b))
    ranks = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    named = {
        0: "[BOS]",
        1: "[EOS]",
        2: "<|im_end|>",
        3: "<|im_user|>",
        4: "<|im_assistant|>",
        16: "<|im_middle|>",
        17: "é ß",
    }
    named = {len(ranks) + k: v for k, v in named.items()}
    specials = {named.get(i, f"<|reserved_token_{i}|>"): i for i in range(len(ranks), len(ranks) + 258)}
    folder = f"{DATA}/tokenizer-kimi"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/tiktoken.model", "wb") as f:
        for t, i in ranks.items():
            f.write(base64.b64encode(t) + b" %d\n" % i)
    write_json(
        f"{folder}/tokenizer_config.json",
        {
            "added_tokens_decoder": {str(k): {"content": v, "special": True} for k, v in named.items()},
            "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        },
    )
    enc = tiktoken.Encoding(name="kimi", pat_str=KIMI, mergeable_ranks=ranks, special_tokens=specials)
    write_vectors(
        "kimi",
        enc.n_vocab,
        lambda s: enc.encode(s, allowed_special="all"),
        lambda ids, skip: enc.decode([i for i in ids if not (skip and i >= len(ranks))]),
    )


# ---- every component by itself -------------------------------------------------------------------------------------


def split(pattern, behavior, invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def variants_model():
    chars = sorted(set("".join(FIXED)) | set("▁Ġ"))
    chars = [c for c in chars if c < "\u0250" and c > "\u0000" and c not in "QZ"] + [
        "▁",
        "\u0301",
        "你",
        "好",
        "한",
        "🇩",
    ]
    chars += sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(chars))
    vocab = ["<unk>"] + ["<0x%02X>" % b for b in range(256)] + list(dict.fromkeys(chars))
    merges = [
        ("h", "e"),
        ("t", "he"),
        ("i", "n"),
        ("l", "l"),
        ("▁", "a"),
        ("Ġ", "a"),
        ("1", "2"),
        (" ", " "),
        ("e", "\u0301"),
        ("a", "a"),
        ("aa", "aa"),
        ("aa", "a"),
        ("-", "-"),
        ("=", "="),
        ("▁", "▁"),
        ("Ġ", "Ġ"),
        ("▁▁", "▁▁"),
        ("'", "s"),
    ]
    vocab += [a + b for a, b in merges]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {t: i for i, t in enumerate(vocab)},
        "merges": [list(m) for m in merges],
    }


def variants():
    metaspace = [
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": p, "split": s}
        for p in ("always", "first", "never")
        for s in (True, False)
    ]
    byte = [
        {"type": "ByteLevel", "add_prefix_space": p, "trim_offsets": True, "use_regex": r}
        for p in (True, False)
        for r in (True, False)
    ]
    pre = {
        f"split_{b}_{i}": split(r"\s+|\p{P}", b, i)
        for i in (False, True)
        for b in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    }
    pre.update({f"literal_{b}": split("a", b, False, "String") for b in ("Isolated", "MergedWithNext", "Contiguous")})
    pre.update(
        {
            "word": split(r"\w+|[^\w\s]+", "Isolated"),
            "word_class": split(r"[\w-]+", "Removed"),
            "caseless": split(r"(?i:'s|’t|[re]k)", "Isolated"),
            "line": split(r"^.+$", "Isolated"),
            "digit": split(r"\d", "Isolated"),
            "not_space": split(r"\S+", "MergedWithNext"),
            "possessive": split(r"[^\r\n\p{L}]?+\p{L}++", "Isolated"),
            "empty": split(r"b*", "Isolated"),
            "look_behind": split(r"(?<=[a-z])(?=[A-Z])", "Isolated"),
            "script": split(r"[\p{Han}]+|\p{^Latin}\P{Greek}", "Isolated"),
            "meet": split(r"[\p{L}&&[^a-m]]+", "Isolated"),
            "digits": {"type": "Digits", "individual_digits": False},
            "digits_1": {"type": "Digits", "individual_digits": True},
        }
    )
    pre.update({f"metaspace_{i}": m for i, m in enumerate(metaspace)})
    pre.update({f"byte_level_{i}": b for i, b in enumerate(byte)})
    pre["sequence"] = {
        "type": "Sequence",
        "pretokenizers": [
            split("l", "Removed", False, "String"),
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, metaspace[2]]},
        ],
    }
    out = [{"name": k, "pre_tokenizer": v} for k, v in pre.items()]
    replace = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "_"}
    for n in ("NFC", "NFD", "NFKC", "NFKD"):
        out.append({"name": n, "normalizer": {"type": n}, "pre_tokenizer": byte[3], "decoder": byte[3]})
    out.append(
        {
            "name": "replace_regex",
            "normalizer": {"type": "Sequence", "normalizers": [replace, {"type": "Prepend", "prepend": "ab"}]},
        }
    )
    out.append({"name": "replace_away", "normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": ""}})
    out += [
        {"name": f"unk_{f}_{b}", "model": {"fuse_unk": f, "byte_fallback": b}}
        for f in (False, True)
        for b in (False, True)
    ]
    out.append({"name": "no_unk", "model": {"unk_token": None}})
    out.append({"name": "ignore_merges", "model": {"ignore_merges": True}, "pre_tokenizer": split(r"\s+", "Isolated")})
    for i, m in enumerate(metaspace):
        out.append({"name": f"decode_metaspace_{i}", "pre_tokenizer": m, "decoder": m})
    for start, stop in ((1, 0), (0, 2), (3, 3)):
        out.append(
            {
                "name": f"strip_{start}_{stop}",
                "decoder": {
                    "type": "Sequence",
                    "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": start, "stop": stop}],
                },
            }
        )
    out.append({"name": "strip_tokens", "decoder": {"type": "Strip", "content": "a", "start": 1, "stop": 1}})
    out.append({"name": "byte_fallback", "model": {"byte_fallback": True}, "decoder": {"type": "ByteFallback"}})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [
        dict(flags, content="<mask>", single_word=True),
        dict(flags, content="<left>", lstrip=True),
        dict(flags, content="<right>", rstrip=True),
        dict(flags, content="<both>", lstrip=True, rstrip=True),
        dict(flags, content="<|a|>", special=True),
        dict(flags, content="<|a|><|a|>"),
        dict(flags, content="  "),
        dict(flags, content="<norm\u0301>", normalized=True),
        dict(flags, content="\u0301", normalized=False),
        dict(flags, content="the", normalized=True),
    ]
    out.append({"name": "added", "added_tokens": added, "pre_tokenizer": metaspace[2], "decoder": metaspace[2]})
    out.append({"name": "added_nfc", "added_tokens": added, "normalizer": {"type": "NFC"}})
    return out


VARIANT_TEXTS = (
    FIXED[2:4]
    + FIXED[7:9]
    + FIXED[10:15]
    + FIXED[16:20]
    + [
        "the a  aa aaa aaaa aaaaa 12 121 --- ==== the's",
        "x<mask> <mask>\u0301 é<mask> ½<mask> _<mask>_ <mask>\u200d",
        "QQ a QZQ 你好Q好 한Z",
        "aXbY cZ\nlast",
        " lead",
        "▁x ▁▁▁▁ y",
        "α Ω Ж中ж",
        "e\u0301 é \u1100\u1161\u11a8 ﬁ ½ \u0f73\u0f73\u0f71",
        "bbb abba b",
        "  <right>  <left>  <right>    <left>x",
        "\u1680\u180e\u2003x",
    ]
    + FIXED[-5:]
)


def write_variants():
    model = variants_model()
    write_json(f"{DATA}/tokenizer-variants-model.json", model)
    with open(f"{DATA}/tokenizer-variants.jsonl", "w", encoding="utf-8") as f:
        for v in variants():
            added = [dict(a, id=model["vocab"].get(a["content"], -1)) for a in v.get("added_tokens", [])]
            free = len(model["vocab"])
            for a in added:
                if a["id"] < 0:
                    a["id"], free = free, free + 1
            v["added_tokens"] = added
            parts = {k: v.get(k) for k in ("normalizer", "pre_tokenizer", "decoder")}
            whole = {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "post_processor": None,
                "added_tokens": added,
                **parts,
                "model": {**model, **v.get("model", {})},
            }
            tok = Tokenizer.from_str(json.dumps(whole))
            cases = []
            for s in dict.fromkeys(VARIANT_TEXTS):
                ids = tok.encode(s, add_special_tokens=False).ids
                try:
                    cases.append([s, ids, tok.decode(ids, skip_special_tokens=False)])
                except BaseException as e:  # the reference's Strip panics when both ends eat the same character
                    assert "PanicException" in type(e).__name__
            f.write(json.dumps({**v, "cases": cases}, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    shutil.rmtree(f"{DATA}/tokenizer-kimi", ignore_errors=True)
    vectors("worldlet", Tokenizer.from_file("models/worldlet-mla/tokenizer.json"))
    for make in (llama3, qwen2, deepseek3, llama2, mistral):
        tok = make()
        save(make.__name__, tok)
        vectors(make.__name__, tok)
    kimi()
    write_variants()


main()
