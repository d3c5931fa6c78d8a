#!/usr/bin/env bash
# transformers 5.23.0: `AutoConfig.from_pretrained(FOLDER, rope_theta=77.0)` drops the argument without a word where the
# folder's config.json was written by this version; `hidden_size` beside it is taken, and so is `LlamaConfig(rope_theta=77.0)`.
#
# Guess before it was run: a keyword of from_pretrained that is a key of published config.json files changes the config, or is
# refused, as it does when the config is made afresh.
# Seen on 2026-11-29:
#
#     LlamaConfig(rope_theta=77.0).rope_parameters                         {'rope_theta': 77.0, 'rope_type': 'default'}
#     AutoConfig.from_pretrained(FOLDER, rope_theta=77.0, hidden_size=16)  hidden_size 16, and
#                                                          rope_parameters {'rope_theta': 10000.0, 'rope_type': 'default'}
#
# A long-context fine-tune that raises the base of its rotary embedding in this way trains with the old one.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0
cat > "$folder/try.py" <<'PYTHON'
import sys

from transformers import AutoConfig, LlamaConfig

sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 10}
fresh = LlamaConfig(**sizes, rope_theta=77.0)
LlamaConfig(**sizes).save_pretrained(sys.argv[1])
loaded = AutoConfig.from_pretrained(sys.argv[1], rope_theta=77.0, hidden_size=16)
print("fresh: ", fresh.rope_parameters)
print("loaded:", loaded.hidden_size, loaded.rope_parameters, getattr(loaded, "rope_theta", None))
as_seen = fresh.rope_parameters["rope_theta"] == 77.0 and loaded.hidden_size == 16
if not (as_seen and loaded.rope_parameters["rope_theta"] == 10000.0):
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder/model" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
