"""What counts in a row of transformers' models, the balance of their experts, their special tokens, keys and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.config.load import config_from_dict
from distdl.data.manifest import Column
from distdl.data.write import DatasetWriter
from distdl.errors import InputError
from distdl.families import build
from distdl.run.folder import RunFolder
from distdl.train import worker
from distdl.train.survey import survey
from tests.conftest import Result
from tests.families.common import made
from tests.ranks import run_ranks
from tests.small import BASE, layout
from tests.small import curves as curves_of

transformers = pytest.importorskip("transformers", reason="the optional extra huggingface")

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PERCEPTRON = {**SIZES, "intermediate_size": 32}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BALANCED = {"output_router_logits": True, "router_aux_loss_coef": 10.0}
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": {**PERCEPTRON, "num_key_value_heads": 1, "pad_token_id": 0},
    "mixtral": {**PERCEPTRON, "num_key_value_heads": 1, "num_local_experts": 4, "pad_token_id": 0, **BALANCED},
    "qwen2_moe": {
        **PERCEPTRON,
        **SPARSE,
        "shared_expert_intermediate_size": 16,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        **BALANCED,
    },
}
T, PAD, NONE = 12, 0, -100


def of(architecture: str, task: str = "causal", overrides: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    told = {"task": task, "architecture": architecture, "context": T, "target_length": 8, **more}
    return {"family": "huggingface", **told, "overrides": CAUSAL.get(architecture) if overrides is None else overrides}


def rows(n: int) -> dict[str, torch.Tensor]:
    """Texts of unequal length, a third of each the prompt."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(3, 40, (n, T + 1), generator=generator)
    length = torch.randint(3, T + 2, (n, 1), generator=generator)
    place = torch.arange(T + 1)
    tokens[place >= length] = PAD
    labels = tokens.masked_fill((place >= length) | (place < length // 3), NONE)
    return {"tokens": tokens, "labels": labels, "id": torch.arange(n), "position": torch.arange(n)}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("texts") / "texts"
    columns = {name: Column("int64", (T + 1,)) for name in ("tokens", "labels")}
    data = {name: x.numpy() for name, x in rows(96).items() if name in columns}
    with DatasetWriter(folder, columns, "test", {}) as writer:
        writer.write("train", {name: x[:64] for name, x in data.items()})
        writer.write("test", {name: x[64:] for name, x in data.items()})
    return str(folder)


def values(texts: str, model: dict[str, Any], **train: Any) -> dict[str, Any]:
    told = {**json.loads(json.dumps(BASE)), "name": "texts", "model": model}
    told["data"]["path"] = texts
    told["train"] |= {"threads_per_worker": 1, **train}
    return told


# -- what counts, and the balance --------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_the_loss_is_theirs_with_padding_prompts_and_balance(architecture: str, labels: bool) -> None:
    """Value and gradient; a mixture's balance loss is in both, times its coefficient, and padding is not in it."""
    learner, batch = made(of(architecture, labels=labels)).train(), rows(6)
    row = batch["tokens"]
    goal = batch["labels"][:, 1:].contiguous() if labels else row[:, 1:].masked_fill(row[:, 1:] == PAD, NONE)
    inputs = {"input_ids": row[:, :-1], "attention_mask": (row[:, :-1] != PAD).long()}
    theirs = learner.model(**inputs, labels=goal, shift_labels=goal, use_cache=False)
    loss, metrics = learner.loss(batch, 0)
    torch.testing.assert_close(loss, theirs.loss)
    parameters = list(learner.parameters())
    ours, wanted = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (loss, theirs.loss))
    for a, b in zip(ours, wanted):
        torch.testing.assert_close(a, b)
    assert learner.counted(batch) == (goal != NONE).sum() < goal.numel() * 0.6
    with torch.no_grad():
        told = learner.eval().evaluate(batch)["loss"]
    assert told.count == int((goal != NONE).sum())
    if architecture == "llama":
        assert not learner.batch_coupled and not metrics
        assert float(told.total) / told.count == pytest.approx(loss.item(), rel=1e-6)
    else:  # held-out loss is of tokens alone
        balance = metrics["balance_loss"].total
        assert learner.batch_coupled and balance == pytest.approx(theirs.aux_loss.item()) and balance > 1.5
        assert float(told.total) / told.count == pytest.approx(loss.item() - 10 * float(balance), rel=1e-4)


@pytest.mark.slow
def test_layouts_agree_on_what_counts(texts: str) -> None:
    """Micro-batches and ranks with unequally much padding: the mean is over the tokens of the whole global batch; a balance
    over those that the ranks take at a time."""
    llama, mixtral = of("llama", labels=True), of("mixtral")
    alone = {name: values(texts, model, steps=6) for name, model in (("llama", llama), ("mixtral", mixtral))}
    both = {"llama": layout(values(texts, llama, steps=6, micro_batch=4), "zero2", 2)}
    both |= {"mixtral": layout(alone["mixtral"], "zero1", 2)}
    alone |= {"accumulated": values(texts, llama, steps=6, micro_batch=2)}
    one, two = run_ranks(curves_of, 1, alone)[0], run_ranks(curves_of, 2, both)[0]
    for name, told in {**two, "accumulated": one["accumulated"]}.items():
        wanted = one[name] if name in both and told is two.get(name) else one["llama"]
        assert told["loss"] == pytest.approx(wanted["loss"], abs=1e-5), name
        assert told["norm"] == pytest.approx(wanted["norm"], rel=1e-4), name
        assert told["evaluation"] == pytest.approx(wanted["evaluation"], abs=1e-5), name
    assert one["mixtral"]["loss"][0] > 20  # 3.7 of the tokens, and 10 x 2 of the balance


def test_a_plan_says_that_the_balance_depends_on_what_is_taken_at_a_time(texts: str) -> None:
    (note,) = survey(config_from_dict(values(texts, of("mixtral"), micro_batch=4))).notes
    assert "couples the 4 samples" in note and "another accumulation gives other numbers" in note
    assert survey(config_from_dict(values(texts, of("llama"), micro_batch=4))).notes == ()


def test_padding_stands_at_the_ends_of_a_row() -> None:
    """Where the token of padding also ends a text, the text's own end counts; within a row it is no padding."""
    row = torch.tensor([[5, 0, 6, 7, 0, 0], [0, 0, 5, 6, 7, 8], [0, 0, 0, 0, 0, 0], [5, 6, 7, 8, 9, 0]])
    apart = made(of("llama")).tokens
    assert apart.real(row).int().tolist() == [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0] * 6, [1, 1, 1, 1, 1, 0]]
    also_end = made(of("llama", overrides={**CAUSAL["llama"], "eos_token_id": 0})).tokens
    assert also_end.real(row).int().tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1], [0] * 6, [1] * 6]
    also_begin = made(of("llama", overrides={**CAUSAL["llama"], "bos_token_id": 0})).tokens
    assert also_begin.real(row)[1].int().tolist() == [0, 1, 1, 1, 1, 1]
    none = made(of("llama", pad="none")).tokens
    assert none.real(row).all()


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_row_of_padding_alone_and_padding_in_front_give_numbers(architecture: str) -> None:
    learner, batch = made(of(architecture)).train(), rows(3)
    batch["tokens"][0], batch["tokens"][1, :4] = PAD, PAD
    loss, _ = learner.loss(batch, 0)
    loss.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in learner.parameters())
    nothing = {name: x[:1] for name, x in batch.items()}
    assert learner.counted(nothing) == 0 and bool(torch.isfinite(learner.loss(nothing, 0)[0]))


@pytest.mark.parametrize(
    ("architecture", "task"), [("roberta", "masked"), ("modernbert", "masked"), ("t5", "seq2seq"), ("bart", "seq2seq")]
)
def test_other_tasks_count_tokens_as_theirs_do(architecture: str, task: str) -> None:
    sizes: dict[str, Any] = {"t5": {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1}}.get(
        architecture, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **PERCEPTRON}
    )
    if architecture == "bart":
        ends = {f"{side}_{key}": 1 for side in ("encoder", "decoder") for key in ("layers", "attention_heads")}
        sizes = {
            "vocab_size": 40,
            "d_model": 16,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "pad_token_id": 0,
            **ends,
        }
    if architecture == "modernbert":
        sizes |= {"cls_token_id": 1, "sep_token_id": 2}
    learner = made(of(architecture, task, sizes, labels=task == "masked", **({"mask": 3} if task == "masked" else {})))
    text = rows(4)
    real = text["tokens"][:, :T] != PAD
    if task == "masked":  # tokens that are hidden already: the column says what was there
        batch = {**text, "tokens": text["tokens"][:, :T], "labels": text["labels"][:, :T].contiguous()}
        theirs = learner.eval().model(batch["tokens"], attention_mask=real.long(), labels=batch["labels"])
    else:
        batch = {**text, "source": text["tokens"][:, :T], "target": text["tokens"][:, :9]}
        goal = batch["target"][:, 1:].masked_fill(batch["target"][:, 1:] == PAD, NONE)
        given = {"decoder_input_ids": batch["target"][:, :-1], "labels": goal}
        theirs = learner.eval().model(batch["source"], attention_mask=real.long(), **given)
    torch.testing.assert_close(learner.loss(batch, 0)[0], theirs.loss)


# -- special tokens ----------------------------------------------------------------------------------------------------


def with_tokenizer(folder: Path, model: Any) -> Path:
    """A model with a tokenizer, a chat template and generation settings, and with what is never copied."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    names = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(35)), "<mask>"]
    vocabulary = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    special = {
        "bos": "<s>",
        "eos": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "mask": "<mask>",
        "cls": "<s>",
        "sep": "</s>",
    }
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, **{f"{name}_token": token for name, token in special.items()}
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"max_new_tokens": 77,\n "do_sample": true, "temperature": 0.6}')
    (folder / "modeling_evil.py").write_text("raise SystemExit('it ran')\n")
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    return folder


def test_special_tokens_are_the_models_own(tmp_path: Path) -> None:
    sizes = {**PERCEPTRON, "max_position_embeddings": 40}
    theirs = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**sizes))
    section = {"name": str(with_tokenizer(tmp_path / "roberta", theirs)), "task": "masked", "context": T}
    found = made({"family": "huggingface", **section}).tokens
    assert (found.pad, found.mask, found.marks) == (1, 39, (0, 1, 2, 39))  # not 0, 103 and 101, 102 of one BERT
    assert made({"family": "huggingface", **section, "pad": 1, "mask": 39, "marks": [0, 1, 2, 39, 7]}).tokens.mask == 39
    assert "model.pad is 0, and the padding of this roberta is the token 1" in refusal(**section, pad=0)
    assert "the mask of this roberta is the token 39" in refusal(**section, mask=7)
    assert "would have special tokens of the model hidden: [0, 2]" in refusal(**section, marks=[7])
    assert "at most 38" in refusal(**{**section, "context": 39})  # its places begin behind that of padding
    bare = {"task": "masked", "context": T, "architecture": "bert", "overrides": PERCEPTRON}
    message = refusal(**bare)
    assert (
        "model.mask: neither the config of the bert nor a tokenizer says it" in message and "model.mask=103" in message
    )
    assert "model.marks" in refusal(**bare, mask=3)
    assert "model.mask: there is no token 103" in refusal(**bare, mask=103, marks=[1]) and "0 to 39" in refusal(
        **bare, mask=103, marks=[1]
    )


# -- keys of their config ----------------------------------------------------------------------------------------------


def refusal(**model: Any) -> str:
    with pytest.raises(InputError) as caught:
        build({"family": "huggingface", **model})
    return str(caught.value)


def test_overrides_are_the_keys_of_published_configs(tmp_path: Path) -> None:
    """Fields of the config's class, keys that the model's code reads besides, and old names: fresh, and over a folder."""
    qwen = {**PERCEPTRON, **SPARSE, "num_key_value_heads": 1}
    width = made(of("qwen3_moe", overrides={**qwen, "head_dim": 24})).model.model.layers[0].self_attn.q_proj.weight
    assert width.shape == (48, 16)
    theta = made(of("llama", overrides={**CAUSAL["llama"], "rope_theta": 77.0})).model.config.rope_parameters
    assert theta["rope_theta"] == 77.0
    for kind, sizes in (("qwen3_moe", qwen), ("llama", CAUSAL["llama"])):
        transformers.AutoConfig.for_model(kind, **sizes).save_pretrained(tmp_path / kind)
    fresh = {"family": "huggingface", "from_scratch": True, "context": T}
    over = {"name": str(tmp_path / "qwen3_moe"), "overrides": {"head_dim": 24}}
    assert made({**fresh, **over}).model.model.layers[0].self_attn.q_proj.weight.shape == (48, 16)
    over = {"name": str(tmp_path / "llama"), "overrides": {"rope_theta": 77.0}}
    assert made({**fresh, **over}).model.config.rope_parameters == {"rope_theta": 77.0, "rope_type": "default"}
    over["overrides"] = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert made({**fresh, **over}).model.config.rope_parameters["rope_theta"] == 10000.0
    message = refusal(**of("qwen3_moe", overrides={**qwen, "head_dims": 24}))
    assert "model.overrides.head_dims: a qwen3_moe has no such key" in message
    assert "no such key" in refusal(**of("llama", overrides={"save_pretrained": 1}))
    assert "train.precision" in refusal(**of("llama", overrides={"torch_dtype": "bfloat16"}))
    assert "model.overrides.output_router_logits: true" in refusal(
        **of("mixtral", overrides={**CAUSAL["mixtral"], "output_router_logits": False})
    )
    assert "the balance loss of a deepseek_v3 is not known" in refusal(
        **of("deepseek_v3", overrides={**PERCEPTRON, "output_router_logits": True, "num_key_value_heads": 2})
    )


def test_what_a_configs_class_dislikes_is_told_with_a_fix() -> None:
    """Whatever it raises: an assertion deep in a network is no message."""
    message = refusal(**of("modernbert", "masked", PERCEPTRON, mask=3))
    assert "pad_token_id 50283, beyond its 40 tokens" in message and "pad_token_id: 0" in message
    for kind, wrong in (
        ("llama", {"num_attention_heads": 0}),
        ("gpt2", {"n_embd": 15}),
        ("bert", {"hidden_act": "no"}),
    ):
        message = refusal(**of(kind, overrides={"vocab_size": 40, **wrong}))
        given = f"model.overrides that fit it (given: vocab_size, {', '.join(wrong)})"
        assert f"model.architecture = '{kind}'" in message and given in message


# -- and back ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tokenizer_and_generation_files_come_back(texts: str, tmp_path: Path, command: Callable[..., Result]) -> None:
    """Byte by byte, and nothing else that lay beside the weights; the result tokenises, and can be replaced."""
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**CAUSAL["llama"], "pad_token_id": 1}))
    start, back = with_tokenizer(tmp_path / "start", theirs), tmp_path / "back"
    config = config_from_dict(values(texts, {"family": "huggingface", "name": str(start), "context": T}, steps=1))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    worker.run(survey(config), folder, 0)
    for more in ((), ("--force",)):
        done = command("checkpoint", "convert", folder.path, back, "--to", "huggingface", *more)
        assert done.code == 0, done.stderr
    copied = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    assert {path.name for path in back.iterdir()} == copied | {"config.json", "model.safetensors"}
    for name in copied:
        assert (back / name).read_bytes() == (start / name).read_bytes(), name
    again = transformers.AutoTokenizer.from_pretrained(back)
    assert again.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False) == "w3"
    assert transformers.AutoModelForCausalLM.from_pretrained(back).generation_config.max_new_tokens == 77
