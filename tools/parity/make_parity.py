#!/usr/bin/env python3
"""Writes the parity cases: tests/data/parity/CASE/{config.json,*.safetensors,reference.safetensors}.

reference.safetensors holds, for prompt i: tokens.i (prompt and greedy continuation), n_prompt.i, and logits.i, one row a
token, all float32 as transformers computes them on the CPU with eager attention.

  make_parity.py                       # the committed set
  make_parity.py --out /tmp/x --large  # larger ones
  make_parity.py --only deepseek-v3
"""
import argparse
import os

import torch
from safetensors.torch import save_file

import cases
import reference

PROMPTS = (1, 9, 41)
N_DECODE = 5


def make(name, c, folder, seed):
    model = reference.build(c["architecture"], c["fields"], seed, c["dtype"], c["freq"])
    reference.write_checkpoint(model, folder, c["dtype"], **c["write"])
    tensors = {}
    for i, n in enumerate(PROMPTS):
        prompt = reference.make_prompt(c["fields"]["vocab_size"], n, 1000 * seed + i)
        tokens, logits = reference.run(model, prompt, N_DECODE)
        tensors["tokens.%d" % i] = torch.tensor(tokens, dtype=torch.int32)
        tensors["n_prompt.%d" % i] = torch.tensor([n], dtype=torch.int32)
        tensors["logits.%d" % i] = logits
    save_file(tensors, os.path.join(folder, "reference.safetensors"))
    for f in os.listdir(folder):
        os.chmod(os.path.join(folder, f), 0o644)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print("%-22s %8d bytes  logit scale %.3f" % (name, size, float(tensors["logits.2"].std())))
    return size


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", default=os.path.join(here, "../../tests/data/parity"))
    p.add_argument("--large", action="store_true")
    p.add_argument("--only")
    a = p.parse_args()
    total = 0
    for i, (name, c) in enumerate((cases.LARGE if a.large else cases.CASES).items()):
        if not a.only or a.only == name:
            total += make(name, c, os.path.join(a.out, name), seed=17 + i)
    print("%.2f MiB" % (total / 2**20))


if __name__ == "__main__":
    main()
