#!/usr/bin/env python3
"""A converted checkpoint against the original, both loaded by transformers in float32.

  check_convert.py ORIGINAL CONVERTED [--tokens N] [--rows N]

Prints the largest logit difference (absolute, and as a part of the logits' deviation), the mean KL divergence in nats and
how often both prefer the same token. Tokens are random ones, or --text FILE is read with the folder's tokenizer.
"""
import argparse

import torch
import transformers

import reference


def load(folder):
    m = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return m.float().eval()


def token_rows(a, vocab):
    if not a.text:
        return [reference.make_prompt(vocab, a.tokens, seed) for seed in range(a.rows)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(a.original)
    ids = tokenizer(open(a.text).read(), add_special_tokens=False)["input_ids"]
    return [ids[i * a.tokens : (i + 1) * a.tokens] for i in range(a.rows)]


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("original")
    p.add_argument("converted")
    p.add_argument("--tokens", type=int, default=512)
    p.add_argument("--rows", type=int, default=4)
    p.add_argument("--text")
    a = p.parse_args()
    one, two = load(a.original), load(a.converted)
    worst = kl = same = n = 0
    values = []
    for row in token_rows(a, one.config.vocab_size):
        x, y = (m(torch.tensor([row])).logits[0].double() for m in (one, two))
        worst = max(worst, float((x - y).abs().max()))
        lx, ly = x.log_softmax(-1), y.log_softmax(-1)
        kl += float((lx.exp() * (lx - ly)).sum())
        same += int((x.argmax(-1) == y.argmax(-1)).sum())
        n += len(row)
        values.append(x)
    deviation = float(torch.cat(values).std())
    print("max_logit_diff,max_diff_of_deviation,kl_nats,same_top1_frac")
    print("%.6g,%.6g,%.6g,%.6g" % (worst, worst / deviation, kl / n, same / n))


if __name__ == "__main__":
    main()
