#!/usr/bin/env bash
# tokenizers 0.23.3: with `encode_special_tokens = True` a text that spells a special token still becomes that token where the
# vocabulary of the model has it as a piece, as Unigram vocabularies do; and saving forgets the setting.
#
# Guess before it was run: with the setting, no text is a special token, whatever the model; and it is a part of tokenizer.json.
# Seen on 2026-11-30, of the text `hi </s> ba`:
#
#     </s> beside the vocabulary    False: the special token    True: other tokens
#     </s> in the vocabulary        False: the special token    True: the special token
#     the setting after to_str() and from_str()                 False
#
# To such a tokenizer a document about tokenizers ends at the first `</s>` that it mentions.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
cat > "$folder/try.py" <<'PYTHON'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers


def found(inside):
    pieces = [("<unk>", 0.0), *([("</s>", 0.0)] if inside else []), *((letter, -5.0) for letter in "▁</s>hiba")]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["</s>"])
    number, is_special = made.token_to_id("</s>"), {}
    for setting in (False, True):
        made.encode_special_tokens = setting
        encoded = made.encode("hi </s> ba")
        is_special[setting] = number in encoded.ids
        print(f"</s> {'in' if inside else 'beside'} the vocabulary, {setting}: {encoded.tokens}", flush=True)
    return is_special, Tokenizer.from_str(made.to_str()).encode_special_tokens


beside, inside = found(False), found(True)
print("after saving:", inside[1])
if (beside, inside) != (({False: True, True: False}, False), ({False: True, True: True}, False)):
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
