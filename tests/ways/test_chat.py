"""Fine-tuning on conversations: what was learned from text helps, in gpt and in a model of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distdl.data.manifest import read_manifest
from distdl.data.text.tokens import from_record
from tests.conftest import Result
from tests.small import shipped

SHORT = ["runtime.kind=local", "runtime.workers=1", "train.threads_per_worker=1", "parallel.zero=0"]
SHORT += ["track.enabled=false", "train.epochs=null", "evaluate.every_steps=1000", "checkpoint.every_steps=1000"]
CONTEXT = 96


def questions(path: Path, number: int) -> str:
    """Conversations about the sums that `sums` writes down."""
    lines = []
    for i in range(number):
        a, b = 1 + i % 9, 1 + i * 7 % 9
        turns = [("user", f"How much is {a} plus {b}?"), ("assistant", f"{a} plus {b} is {a + b}.")]
        lines.append(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}))
    path.write_text("\n".join(lines))
    return str(path)


def sums(path: Path) -> str:
    path.write_text("".join(f"{1 + i % 9} plus {1 + i * 7 % 9} is {1 + i % 9 + 1 + i * 7 % 9}.\n" for i in range(3000)))
    return str(path)


@pytest.mark.slow
def test_a_gpt_that_has_read_text_learns_to_answer(tmp_path: Path, command: Callable[..., Result]) -> None:
    """With the tokenizer that its text was read with, its weights, and conversations of that tokenizer."""

    def run(name: str, data: Path, *more: object) -> float:
        sizes = ["model.vocabulary=300", f"model.context={CONTEXT}", "model.width=32"]
        where = [f"runs={tmp_path}/runs", f"name={name}", f"data.path={data}", "data.prepare=null"]
        done = command("train", shipped("chat"), *SHORT, *sizes, *where, *more)
        assert done.code == 0, done.stdout + done.stderr
        return float(json.loads((tmp_path / "runs" / name / "summary.json").read_text())["metrics"]["loss"])

    text, chats = tmp_path / "text", tmp_path / "chats"
    options = [f"context={CONTEXT}", "tokenizer=bpe", "vocabulary=300"]
    assert command("data", "prepare", "text", text, f"path={sums(tmp_path / 's.txt')}", *options).code == 0
    options = [f"context={CONTEXT}", f"tokenizer={text}"]
    assert command("data", "prepare", "chat", chats, f"path={questions(tmp_path / 'q.jsonl', 300)}", *options).code == 0
    both = [read_manifest(path).preparation["tokens"] for path in (text, chats)]
    assert both[0]["tokenizer"] == both[1]["tokenizer"] and from_record(both[1]).special["<|user|>"] < 300
    run("read", text, "model.labels=false", "model.documents=false", "train.steps=60")
    tuned = run("tuned", chats, f"start={{weights: {tmp_path}/runs/read}}", "train.steps=8")
    fresh = run("fresh", chats, "train.steps=8")
    assert tuned < fresh - 0.3, (tuned, fresh)


@pytest.mark.slow
def test_a_model_of_transformers_learns_to_answer(tmp_path: Path, command: Callable[..., Result]) -> None:
    """From its folder: weights, tokenizer and template; and back to a folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "model"
    from distdl.data.text.learn import learned

    tokenizer = learned("bpe", lambda: [Path(sums(tmp_path / "s.txt")).read_text()], 300)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": CONTEXT, "eos_token_id": 0, "bos_token_id": 0}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.text)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "pad_token": "<|pad|>"}))
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    chats = tmp_path / "chats"
    options = [f"context={CONTEXT}", f"tokenizer={folder}"]
    assert command("data", "prepare", "chat", chats, f"path={questions(tmp_path / 'q.jsonl', 200)}", *options).code == 0
    assert read_manifest(chats).preparation["tokens"]["template"].startswith(template)
    model = f"model={{family: huggingface, name: {folder}, context: {CONTEXT}, labels: true, documents: true}}"
    where = [f"runs={tmp_path}/runs", f"data.path={chats}", "data.prepare=null", "train.micro_batch=16"]
    losses = []
    for steps in (1, 40):
        done = command("train", shipped("chat"), *SHORT, model, *where, f"name=n{steps}", f"train.steps={steps}")
        assert done.code == 0, done.stdout + done.stderr
        losses.append(json.loads((tmp_path / "runs" / f"n{steps}" / "summary.json").read_text())["metrics"]["loss"])
    assert losses[1] < losses[0] - 1, losses
    done = command("checkpoint", "convert", tmp_path / "runs" / "n40", tmp_path / "back", "--to", "huggingface")
    assert done.code == 0 and (tmp_path / "back" / "chat_template.jinja").is_file(), done.stderr
