#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0, CPU): two texts in one row whose position_ids start anew do not see each other only where
# use_cache=False is given too, and in OPT and Falcon not even then.
#
# Guess before it was run: a model either takes positions that start anew as the bounds of texts or does not, and a cache that nobody
# reads has no say in it.
# Seen on 2026-11-30, attention "eager", no mask, one call; whether a change to the first text changes what the second one gets:
#
#                                             use_cache as it is    use_cache=False
#     Llama, Mistral, Gemma 3, GPT-2, GPT-NeoX     yes                   no
#     OPT, Falcon                                  yes                   yes
#
# A loop of one's own that packs rows in this way must switch the cache off; the loss falls either way.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$folder/try.py" <<'PYTHON'
import sys

import torch
import transformers as t

own = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
wide = {**own, "num_key_value_heads": 2, "intermediate_size": 32}
configs = {
    "Llama": t.LlamaConfig(**wide),
    "Mistral": t.MistralConfig(**wide),
    "Gemma 3": t.Gemma3TextConfig(**wide, head_dim=16),
    "GPT-2": t.GPT2Config(n_embd=32, n_head=2, n_layer=1, vocab_size=50, bos_token_id=1, eos_token_id=2),
    "GPT-NeoX": t.GPTNeoXConfig(**own, intermediate_size=32),
    "OPT": t.OPTConfig(**own, ffn_dim=32, word_embed_proj_dim=32),
    "Falcon": t.FalconConfig(**own),
}
row = torch.arange(10, 26)[None]
changed = row.clone()
changed[0, 3] = 40
positions = torch.tensor([[*range(8), *range(8)]])
found = {}
for name, config in configs.items():
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    found[name] = []
    for more in ({}, {"use_cache": False}):
        with torch.no_grad():
            one, other = (model(tokens, position_ids=positions, **more).logits[0, 8:] for tokens in (row, changed))
        found[name].append((one - other).abs().max().item() > 1e-6)
    print(f"{name:9} sees the text before: {found[name][0]}, with use_cache=False: {found[name][1]}", flush=True)
if any(seen != [True, name in ("OPT", "Falcon")] for name, seen in found.items()):
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
