"""BERT with the heads of pre-training, of masked words alone, or of classes. Its decoder is tied to the word embedding.

https://huggingface.co/docs/transformers/model_doc/bert
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from distdl.checkpoint.dialects import Dialect, Rule, Values, column, flat
from distdl.checkpoint.dialects._encoder import SIZES, classes_of, encoder_config, encoder_model, encoder_rules, labels


def _config(ours: Any) -> Values:
    classes = {"pretrain": "BertForPreTraining", "mask": "BertForMaskedLM", "classify": "BertForSequenceClassification"}
    return {
        "architectures": [classes[ours.task]],
        **encoder_config(ours),
        "attention_probs_dropout_prob": ours.attention_dropout,
        "max_position_embeddings": ours.places or ours.context,
        "pad_token_id": 0,
        **(labels(ours.classes) if ours.task == "classify" else {}),
    }


def _model(config: Values, names: Collection[str]) -> Values:
    classify = {"task": "classify", "classes": classes_of(config)}
    task: Values = {"task": "pretrain" if "cls.seq_relationship.weight" in names else "mask"}
    marks = {} if int(config["vocab_size"]) > 103 else {"mask": 3, "marks": [1, 2]}  # no WordPiece vocabulary
    return {
        **(classify if "classifier.weight" in names else task),
        "context": int(config["max_position_embeddings"]),
        **encoder_model(config),
        "attention_dropout": float(config.get("attention_probs_dropout_prob", 0.1)),
        **marks,
    }


DIALECT = Dialect(
    family="bert",
    title="BERT",
    model_type="bert",
    prefix="bert.",
    rules=(
        *encoder_rules("bert.encoder.layer.*", "attention.self", "attention.output.LayerNorm", "output.LayerNorm"),
        Rule("embeddings.word", "bert.embeddings.word_embeddings"),
        Rule("embeddings.place", "bert.embeddings.position_embeddings"),
        Rule("embeddings.segment", "bert.embeddings.token_type_embeddings"),
        Rule("embeddings.ln", "bert.embeddings.LayerNorm"),
        Rule("pooler", "bert.pooler.dense"),
        Rule("words.dense", "cls.predictions.transform.dense"),
        Rule("words.ln", "cls.predictions.transform.LayerNorm"),
        Rule("words.bias.weight", "cls.predictions.bias", column, flat),
        Rule("head", "cls.seq_relationship", when=lambda ours: ours.task == "pretrain"),
        Rule("head", "classifier", when=lambda ours: ours.task == "classify"),
    ),
    sizes={"vocabulary": "vocab_size", **SIZES},
    fixed={
        "hidden_act": ("gelu",),
        "layer_norm_eps": (1e-12,),
        "type_vocab_size": (2,),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    to_config=_config,
    to_model=_model,
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=r"embeddings\.position_ids",
)
