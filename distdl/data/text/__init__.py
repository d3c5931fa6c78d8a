"""Text for language models: documents, tokenizers, conversations, and how their tokens are laid into rows.

    documents.py   files, folders, JSON lines -> texts, each with the place that it came from
    tokens.py      a text -> numbers, and back; what is kept of it with the data set
    load.py        a tokenizer from `tokenizer.json`, a model's folder, or another data set
    learn.py       a tokenizer from the training texts
    template.py    a conversation -> a text, and which part of it is the answers
    packing.py     documents -> rows of one length

The sources `text` and `chat` put them together, with `rows.py`.
"""
