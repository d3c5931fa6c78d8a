#!/usr/bin/env bash
# transformers 5.23.0: where a chat template has `{% generation %}` inside a macro, return_assistant_tokens_mask marks other tokens than
# those between the two tags.
#
# Guess before it was run: what stands between the tags is marked, wherever in the template they stand.
# Seen on 2026-11-30, of `user : hi there assistant : hello you user : bye assistant : yes`, the same text from both templates:
#
#     the tags in the loop                   hello you yes
#     the tags in a macro, called in it      assistant assistant
#
# The places are counted from the text that was put out before, which a macro adds to only when it is done. A chat model fine-tuned by
# such a mask learns the headings of the turns, and none of the answers.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
cat > "$folder/try.py" <<'PYTHON'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = "[UNK] user assistant : hi there hello you bye yes".split()
made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
said = [("user", "hi there"), ("assistant", "hello you"), ("user", "bye"), ("assistant", "yes")]
conversation = [{"role": role, "content": content} for role, content in said]
turn = (
    "{{ m.role }} : {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %} "
)
templates = {
    "in the loop": "{% for m in messages %}" + turn + "{% endfor %}",
    "in a macro": "{% macro turn(m) %}" + turn + "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
}
found, texts = {}, set()
for name, template in templates.items():
    rows = tokenizer.apply_chat_template(
        conversation, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens = tokenizer.convert_ids_to_tokens(rows["input_ids"])
    texts.add(" ".join(tokens))
    found[name] = " ".join(token for token, marked in zip(tokens, rows["assistant_masks"]) if marked)
    print(f"{name:12}{found[name]}", flush=True)
if len(texts) > 1 or found != {"in the loop": "hello you yes", "in a macro": "assistant assistant"}:
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
