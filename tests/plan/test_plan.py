"""The plan: batch arithmetic, steps, DeepSpeed JSON, refusals, and that it is a pure function."""

from __future__ import annotations

import builtins
import dataclasses
import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from distdl.config.deepspeed_keys import ALLOWED, DERIVED, ZERO_ALLOWED
from distdl.config.load import config_from_dict
from distdl.config.schema import Config
from distdl.errors import InputError
from distdl.plan.batch import split_batch
from distdl.plan.deepspeed_json import DEEPSPEED_BUCKET
from distdl.plan.facts import DataFacts, Hardware, ModelFacts
from distdl.plan.plan import Plan, make_plan
from tests.conftest import python
from tests.small import shipped, small_config

MODEL = ModelFacts("mlp", 1000, 900, 800, "accuracy", "higher", ("torch", "zero0", "zero1", "zero2", "zero3"), ())
DATA = DataFacts("data/x", "f00d", 1000, 200)
MACHINE = Hardware("cpu", 8, 0)


def config(**changes: Any) -> Config:
    """Two workers under ZeRO-1, a global batch of 64; `changes` are `section__key=value`."""
    values = small_config("mlp", "data/x", "", train__global_batch=64, train__steps=10, runtime__workers=2)
    values |= {"parallel": {"engine": "deepspeed"}, "evaluate": {}, "checkpoint": {}}
    for path, value in changes.items():
        section, _, key = path.partition("__")
        values[section] = values[section] | {key: value} if key else value
    return config_from_dict(values)


def plan(data: DataFacts = DATA, model: ModelFacts = MODEL, machine: Hardware = MACHINE, **changes: Any) -> Plan:
    return make_plan(config(**changes), model, data, machine)


def refusal(**changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        plan(**changes)
    return str(caught.value)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_every_split_adds_up_and_every_refusal_is_right() -> None:
    """All global batches to 96, worlds to 9, micro-batches to 12; what the message proposes does work."""
    splits = refusals = 0
    for total in range(1, 97):
        for world in range(1, 10):
            for micro in (None, *range(1, 13)):
                share = total // world
                fits = micro is None or micro >= share or share % micro == 0
                possible = total % world == 0 and fits
                try:
                    split = split_batch(total, world, micro)
                except InputError as error:
                    assert not possible
                    _check_proposals(total, world, micro, error)
                    refusals += 1
                    continue
                assert possible
                assert split.world * split.micro_batch * split.accumulate == total == split.global_batch
                assert split.micro_batch == min(micro or total, total // world)
                splits += 1
    assert splits > 1000 and refusals > 1000


def _check_proposals(total: int, world: int, micro: int | None, error: InputError) -> None:
    (problem,) = error.problems
    proposals = {
        key: [int(n) for n in re.findall(r"\d+", values)]
        for key, values in re.findall(r"(train\.\w+|runtime\.workers)=((?:\d+(?:, | or )?)+)", problem.fix)
    }
    assert proposals, problem.fix
    assert all(n % world == 0 and n > 0 for n in proposals.get("train.global_batch", []))
    assert all(total % n == 0 for n in proposals.get("runtime.workers", []))
    assert all(split_batch(total, world, n) for n in proposals.get("train.micro_batch", []))


def test_impossible_batches_are_explained_in_words() -> None:
    assert refusal(runtime__workers=7) == (
        "a global batch of 64 samples cannot be shared evenly by 7 workers (64 / 7 = 9.14 each)\n"
        "    allowed: train.global_batch = a multiple of the number of data-parallel workers\n"
        "    fix: train.global_batch=63 or 70, or runtime.workers=2, 4, 8"
    )
    assert refusal(train__micro_batch=12) == (
        "each of 2 workers has 32 of the 64 samples of a step, and that is no whole number of micro-batches of 12\n"
        "    allowed: train.micro_batch = a divisor of 32\n"
        "    fix: train.micro_batch=8, 16, 32, or null"
    )
    assert "train.global_batch=3, or" in refusal(train__global_batch=2, runtime__workers=3)


def test_the_numbers_of_a_plan() -> None:
    p = plan(train__micro_batch=8, runtime__workers=4, train__threads_per_worker=0)
    assert (p.world, p.global_batch, p.micro_batch, p.accumulate) == (4, 64, 8, 2)
    assert (p.layout, p.device, p.threads_per_worker) == ("zero1", "cpu", 2)
    assert p.eval_batch == 8 and plan(evaluate__batch=50).eval_batch == 50
    assert plan(train__threads_per_worker=3).threads_per_worker == 3
    assert plan(runtime__workers=16).threads_per_worker == 1  # more workers than cores
    assert plan(machine=Hardware("cuda", 8, 2, 80 * 2**30)).device == "cuda"


def test_more_workers_than_gpus_are_refused_before_ray_waits_for_them() -> None:
    one = Hardware("cuda", 8, 1, 80 * 2**30)
    assert refusal(machine=one) == ("2 workers need 2 GPUs and this machine has 1\n    fix: runtime.workers=1")
    assert plan(machine=Hardware("cuda", 8, 1, 80 * 2**30, workers_elsewhere=True)).device == "cuda"


# -- steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last_batch", "epochs", "steps", "per_epoch"),
    [
        ("wrap", 1, 16, 1000 / 64),  # 15.625
        ("wrap", 2, 32, 1000 / 64),  # 31.25: the last step runs into the third epoch
        ("wrap", 8, 125, 1000 / 64),  # exactly
        ("wrap", 0.001, 1, 1000 / 64),
        ("drop", 1, 15, 15),
        ("drop", 3, 45, 15),
        ("drop", 0.5, 8, 15),
        ("pad", 1, 16, 16),
        ("pad", 3, 48, 16),
    ],
)
def test_steps_of_epochs(last_batch: str, epochs: float, steps: int, per_epoch: float) -> None:
    p = plan(train__steps=None, train__epochs=epochs, data__last_batch=last_batch)
    assert (p.steps, p.steps_per_epoch) == (steps, per_epoch)


@pytest.mark.slow
def test_whole_epochs_are_exact_for_wrap() -> None:
    """Floating point must not add a step: rows / batch * epochs lands on a whole number here, or just beside it."""
    checked = rounded_up = 0
    for batch in range(1, 200):
        for epochs in range(1, 40):
            if 1000 * epochs % batch == 0:
                p = plan(train__global_batch=batch, train__steps=None, train__epochs=epochs, runtime__workers=1)
                assert p.steps == 1000 * epochs // batch
                checked += 1
                rounded_up += math.ceil(1000 / batch * epochs) > p.steps
    assert checked > 500 and rounded_up > 0  # some of these would be one too many


def test_steps_are_taken_as_given_and_do_not_depend_on_the_workers() -> None:
    assert plan(train__steps=123).steps == 123
    assert {plan(train__steps=None, train__epochs=3, runtime__workers=w).steps for w in (1, 2, 4, 8, 64)} == {47}


def test_cadences() -> None:
    p = plan(train__steps=500)  # 15.6 steps an epoch
    assert [step for step in range(1, 51) if p.due(step, p.evaluate_every_steps)] == [16, 32, 47]
    p = plan(train__steps=500, evaluate__every_steps=0, checkpoint__every_steps=7)
    assert (p.evaluate_every_steps, p.checkpoint_every_steps) == (0, 7)
    assert [step for step in range(1, 22) if p.due(step, 7)] == [7, 14, 21] and not any(p.due(s, 0) for s in range(99))


@pytest.mark.parametrize("last_batch", ["wrap", "drop", "pad"])
@pytest.mark.parametrize(("rows", "batch"), [(200, 140), (1000, 64), (64, 64), (1000, 7), (999, 1000)])
def test_once_an_epoch_is_at_its_true_end(rows: int, batch: int, last_batch: str) -> None:
    """Ten times in ten epochs, with the step that takes an epoch's last sample."""
    if rows < batch and last_batch != "wrap":
        return  # refused
    changes = {"train__global_batch": batch, "data__last_batch": last_batch, "runtime__workers": 1}
    p = plan(DataFacts("x", "f", rows, rows), train__steps=None, train__epochs=10, **changes)
    ends = [step for step in range(1, p.steps + 1) if p.due(step, p.evaluate_every_steps)]
    if last_batch == "wrap":
        assert ends == sorted({-(-rows * epoch // batch) for epoch in range(1, 11)})
    else:
        assert ends == [epoch * p.steps // 10 for epoch in range(1, 11)]
    assert len(ends) == 10


# -- refusals and notes ------------------------------------------------------------------------------------------------


def test_a_layout_that_is_not_proven_is_refused() -> None:
    shy = dataclasses.replace(MODEL, layouts=("torch", "zero0", "zero1"))
    assert plan(model=shy).layout == "zero1"
    assert refusal(model=shy, parallel__zero=3) == (
        "the family mlp is not proven on the layout zero3: it uses weights outside the pass that learns them, when ZeRO-3 "
        "has let go of them\n    allowed: torch, zero0, zero1\n"
        "    fix: set parallel.engine and parallel.zero to one of these"
    )


def test_refusals_come_together() -> None:
    text = refusal(
        data=DataFacts("data/x", "f", 0, 0),
        model=dataclasses.replace(MODEL, layouts=("torch",)),
        data__last_batch="drop",
    )
    assert "not proven on the layout zero1" in text
    assert "a global batch of 64 is more than the 0 samples of an epoch" in text
    assert "the split 'train' of data/x has no samples" in text


def test_an_optimizer_and_something_to_optimize_belong_together() -> None:
    rules, none = dataclasses.replace(MODEL, trainable=0), {"name": "none"}
    text = refusal(model=rules)
    assert "learns without a gradient: nothing would use the adamw" in text and "fix: optimizer: {name: none}" in text
    assert f"{MODEL.trainable:,} trainable parameters and optimizer.name is none" in refusal(optimizer=none)
    text = refusal(model=rules, optimizer=none, train__micro_batch=8)
    assert "not cut into micro-batches" in text and "train.micro_batch: null" in text
    assert plan(model=rules, optimizer=none).state_bytes_per_worker["optimizer"] == 0


def test_a_family_whose_micro_batches_are_coupled_says_so_when_they_are_cut() -> None:
    coupled = dataclasses.replace(MODEL, batch_coupled=True)
    assert plan(model=coupled).notes == plan(train__micro_batch=8).notes == ()
    (note,) = plan(model=coupled, train__micro_batch=8).notes
    assert "couples the 16 samples that the workers take at a time" in note


@pytest.mark.parametrize("last_batch", ["drop", "pad"])
def test_a_batch_larger_than_an_epoch(last_batch: str) -> None:
    text = refusal(data=DataFacts("x", "f", 63, 0), data__last_batch=last_batch)
    assert "a global batch of 64 is more than the 63 samples of an epoch" in text and "last_batch: wrap" in text
    assert plan(DataFacts("x", "f", 63, 0)).steps == 10  # wrap can


def test_notes() -> None:
    assert plan().notes == ()
    assert plan(train__steps=3).notes == ("the warm-up of 3 steps lasts the whole run of 3 steps",)
    assert plan(runtime__workers=16).notes == ("16 workers share 8 cores: expect them to take turns",)
    assert plan(DataFacts("x", "f", 1000, 0)).notes == ("nothing is evaluated: data.eval_split is null",)


@pytest.mark.parametrize(
    ("zero", "precision", "optimizer", "weights", "gradients", "states"),
    [  # 1000 parameters, 900 of them trained, on 2 workers: bytes by Rajbhandari et al. 2020, table 1
        (0, "fp32", "adamw", 4000, 3600, 7200),
        (1, "fp32", "adamw", 4000, 3600, 3600),
        (2, "fp32", "adamw", 4000, 1800, 3600),
        (3, "fp32", "adamw", 2000, 1800, 3600),
        (1, "bf16", "adamw", 2000, 3600, 5400),  # and fp32 master weights; gradients are summed in fp32
        (3, "bf16", "lion", 1000, 1800, 3600),
        (0, "bf16", "adamw", 4000, 3600, 7200),  # weights stay fp32 under autocast
        (1, "fp32", "sgd", 4000, 3600, 0),
    ],
)
def test_memory_of_the_model_state(
    zero: int, precision: str, optimizer: str, weights: int, gradients: int, states: int
) -> None:
    values = small_config("mlp", "x", "", train__global_batch=64, train__precision=precision, runtime__workers=2)
    values |= {"optimizer": {"name": optimizer, "lr": 0.1}, "parallel": {"engine": "deepspeed", "zero": zero}}
    found = make_plan(config_from_dict(values), MODEL, DATA, MACHINE).state_bytes_per_worker
    assert found == {"weights": weights, "gradients": gradients, "optimizer": states}


# -- DeepSpeed's JSON --------------------------------------------------------------------------------------------------


def test_the_json_says_everything_that_deepspeed_would_guess() -> None:
    json_ = plan(train__micro_batch=8, train__clip_norm=0.5, parallel__zero=2).deepspeed
    assert json_ is not None
    bucket = json_["zero_optimization"].pop("reduce_bucket_size")
    assert json_ == {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 2, "allgather_bucket_size": bucket, "reduce_scatter": False},
        "bf16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    assert (
        900 <= bucket < 2048 and bucket % 2 == 0
    )  # the model's size, not DeepSpeed's 2 GB; it insists on even numbers
    large = plan(model=dataclasses.replace(MODEL, trainable=7 * 10**9)).deepspeed
    assert large and large["zero_optimization"]["reduce_bucket_size"] == DEEPSPEED_BUCKET
    assert plan(parallel__engine="torch").deepspeed is None


def test_gradient_clipping_is_always_written() -> None:
    """Left out, DeepSpeed clips at 1.0."""
    for stage in range(4):
        json_ = plan(train__clip_norm=None, parallel__zero=stage).deepspeed
        assert json_ and json_["gradient_clipping"] == 0.0


def test_stages_and_precision() -> None:
    found = [plan(parallel__zero=z, train__precision="bf16").deepspeed for z in range(4)]
    assert [f["bf16"]["enabled"] for f in found if f] == [False, True, True, True]
    assert [f["zero_optimization"]["stage"] for f in found if f] == [0, 1, 2, 3]
    thresholds = [f["zero_optimization"].get("stage3_param_persistence_threshold") for f in found if f]
    assert thresholds == [None, None, None, 0]
    # Sums of half-precision gradients, over micro-batches and over ranks; at stage 0 everything is fp32.
    sums = [(f.get("data_types"), f.get("communication_data_type")) for f in found if f]
    assert sums == [(None, None), *3 * [({"grad_accum_dtype": "fp32"}, "fp32")]]
    told = plan(parallel__zero=2, train__precision="bf16", parallel__deepspeed={"communication_data_type": "bf16"})
    assert told.deepspeed and told.deepspeed["communication_data_type"] == "bf16"


def test_keys_of_the_users_are_taken_over() -> None:
    extra = {"wall_clock_breakdown": True, "zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 10}}
    json_ = plan(parallel__deepspeed=extra).deepspeed
    assert json_ and json_["wall_clock_breakdown"] is True
    assert json_["zero_optimization"]["overlap_comm"] is True and json_["zero_optimization"]["stage"] == 1
    assert json_["zero_optimization"]["reduce_bucket_size"] == 10
    with pytest.raises(InputError, match="is a mapping of keys"):
        plan(parallel__deepspeed={"zero_optimization": 2})


def test_misspelt_and_derived_keys_are_refused_together() -> None:
    extra = {
        "zero_optimisation": {"stage": 3},
        "fp16": {"enabled": True},
        "train_batch_size": 3,
        "zero_optimization": {"stage": 2, "overlap_com": True},
    }
    lines = refusal(parallel__deepspeed=extra).replace("config.json: ", "").splitlines()
    assert lines == [
        "parallel.deepspeed.zero_optimisation is not a key of DeepSpeed's JSON",
        "    fix: did you mean 'zero_optimization'?",
        "parallel.deepspeed.fp16 is derived by distdl",
        "    fix: set train.precision instead",
        "parallel.deepspeed.train_batch_size is derived by distdl",
        "    fix: set train.global_batch instead",
        "parallel.deepspeed.zero_optimization.stage is derived by distdl",
        "    fix: set parallel.zero instead",
        "parallel.deepspeed.zero_optimization.overlap_com is not a key of DeepSpeed's zero_optimization",
        "    fix: did you mean 'overlap_comm'?",
    ]
    extra = {"zero_optimization": {"round_robin_gradients": True}}
    assert "round_robin_gradients is refused: DeepSpeed 0.19 loses track of which" in refusal(parallel__deepspeed=extra)
    for key, instead in DERIVED.items():
        assert f"fix: set {instead} instead" in refusal(parallel__deepspeed={key: 1})
        section, _, field = instead.partition(".")
        kind = Config.model_fields[section].annotation
        assert not field or field in kind.model_fields  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "extra",
    [
        {"data_types": {"grad_accum_dtype": "bf16"}},
        {"bf16": {"immediate_grad_update": True}},
        {"bf16": {"bf16_master_weights_and_grads": True}},
        {"fp16": {"fp16_master_weights_and_grads": True}},
        {"torch_autocast": {"enabled": True}},
        {"optimizer": {"type": "OneBitAdam"}},
        {"zero_force_ds_cpu_optimizer": True},
        {"zero_optimization": {"zenflow": {}}},
        {"zero_optimization": {"offload_optimizer": {"device": "cpu", "super_offload": True}}},
        {"zero_optimization": {"legacy_stage1": True}},
    ],
)
def test_keys_that_would_give_another_class_of_optimizer_are_refused(extra: dict[str, Any]) -> None:
    (key,) = extra.get("zero_optimization", extra)
    assert f".{key} " in refusal(parallel__deepspeed=extra)


class Recorder(dict):
    """A mapping that notes which keys are asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[Any] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def keys(self) -> Recorder:  # type: ignore[override]
        return self  # `key in config.keys()` is noted, too


def test_every_allowed_key_is_read_by_the_installed_deepspeed() -> None:
    """Its own config class is given a mapping that notes what is asked for."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    asked = Recorder({"train_batch_size": 1, "zero_optimization": {"stage": 1}})
    DeepSpeedConfig(asked)
    assert [key for key in ALLOWED if key not in asked.asked] == []
    assert [key for key in DERIVED if key not in asked.asked] == []
    assert "zero_optimisation" not in asked.asked and "zero_optimization" in asked.asked
    fields = DeepSpeedZeroConfig.model_fields
    names = {alias for name, field in fields.items() for alias in (name, field.alias) if alias}
    assert [key for key in ZERO_ALLOWED if key not in names] == []
    deprecated = {name for name, field in fields.items() if (field.json_schema_extra or {}).get("deprecated")}
    assert not deprecated & set(ZERO_ALLOWED)


# -- purity ------------------------------------------------------------------------------------------------------------


def test_a_plan_survives_json() -> None:
    for p in (plan(train__steps=3), plan(parallel__engine="torch"), plan(parallel__zero=3, train__precision="bf16")):
        again = Plan.from_dict(json.loads(json.dumps(p.to_dict())))
        assert again == p and again.notes == p.notes and isinstance(again.model.layouts, tuple)
        assert config_from_dict(again.config).model_dump(mode="json") == p.config


def test_a_plan_names_a_familys_file_beside_it_and_a_reader_says_where_that_is(tmp_path: Path) -> None:
    """So it moves with its run: the worker takes the run's copy, and nothing in the plan changes for it."""
    text = "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Config:\n    hidden: int = 3\n"
    for folder in ("mine", "run"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(text)
    told_all = config(
        train__precision="fp32", train__vocabulary_multiple=1, train__channels_last=False
    )  # all is decided
    values = told_all.model_dump(mode="json") | {"model": {"family": str(tmp_path / "mine" / "own.py")}}
    mine = make_plan(config_from_dict(values), MODEL, DATA, MACHINE)
    told = json.loads(json.dumps(mine.to_dict()))
    assert told["config"]["model"] == {"family": "./own.py", "hidden": 3} and "beside" not in told
    there = Plan.from_dict(told, tmp_path / "run")
    assert there == mine and there.config == mine.config
    assert mine.settings.model["family"] == str(tmp_path / "mine" / "own.py")
    assert there.settings.model["family"] == str(tmp_path / "run" / "own.py")
    assert there.settings == config_from_dict(values | {"model": {"family": str(tmp_path / "run" / "own.py")}})


def test_equal_inputs_give_equal_plans_and_no_file_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(parallel__deepspeed={"zero_optimization": {"overlap_comm": True}})

    def closed(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"make_plan opened {args}")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", closed)
        patch.setattr("os.open", closed)
        patch.setattr("os.listdir", closed)
        patch.setattr("os.sched_getaffinity", closed)
        first, second = (make_plan(settings, MODEL, DATA, MACHINE) for _ in range(2))
    assert first == second and first is not second
    assert settings.parallel.deepspeed == {"zero_optimization": {"overlap_comm": True}}  # nothing was changed in place


def test_making_a_plan_imports_no_torch(tmp_path: Path) -> None:
    script = f"""
import sys
from distdl.config.load import config_from_dict
from distdl.plan.facts import DataFacts, Hardware, ModelFacts
from distdl.plan.plan import make_plan

plan = make_plan(config_from_dict({config().model_dump(mode="json")!r}), {MODEL!r}, {DATA!r}, {MACHINE!r})
assert plan == make_plan(config_from_dict(plan.config), {MODEL!r}, {DATA!r}, {MACHINE!r})
print(plan.steps, sorted({{"torch", "numpy", "deepspeed", "ray", "mlflow", "pyarrow"}} & set(sys.modules)))
"""
    code, out, err = python("-c", script, cwd=tmp_path)
    assert (code, out) == (0, "10 []\n"), err


# -- what the survey finds ---------------------------------------------------------------------------------------------

COUNTS = {
    61_706: {"family": "lenet5"},
    124_439_808: {"family": "gpt"},
    238_510: {"family": "mlp", "inputs": [784], "hidden": [300]},
    669_706: {"family": "mlp", "inputs": [1, 28, 28], "hidden": [512, 512]},
    650: {"family": "mlp", "inputs": [1, 8, 8], "hidden": []},  # softmax regression
}


@pytest.mark.parametrize("count", COUNTS)
def test_exact_parameter_counts_without_memory(count: int) -> None:
    from distdl.train.survey import model_facts

    facts = model_facts(config_from_dict({**small_config("mlp", "x", ""), "model": COUNTS[count]}))
    assert facts.parameters == facts.trainable == count
    if facts.family == "lenet5":
        assert count - facts.matrices == 6 + 16 + 120 + 84 + 10  # all but the biases


def test_data_that_does_not_fit_is_told_by_shape(digits: str, text: str) -> None:
    from distdl.train.survey import data_facts

    values = small_config("mlp", digits, text)
    facts = data_facts(config_from_dict(values))
    assert (facts.train_rows, facts.eval_rows, facts.path) == (1438, 359, digits) and len(facts.fingerprint) == 64
    values["model"]["inputs"] = [1, 28, 28]
    assert _survey_refusal(values) == (
        f"{digits}: the family mlp expects 'image' of shape [1, 28, 28] for a sample; the data set has [1, 8, 8]\n"
        "    fix: change the model's shape to [1, 8, 8], or prepare the data in the expected shape"
    )
    values["model"]["inputs"] = [64]  # as many numbers, another shape
    assert "of shape [64] for a sample; the data set has [1, 8, 8]" in _survey_refusal(values)
    values["model"] |= {"inputs": [1, 8, 8], "column": "picture"}
    assert _survey_refusal(values) == (
        f"{digits}: the family mlp reads a column 'picture', and the data set has none\n"
        "    allowed: the columns of the data set: image [1, 8, 8], label []"
    )
    gpt = small_config("gpt", digits, text)
    gpt["model"]["context"] = 32
    assert "expects 'tokens' of shape [33] for a sample; the data set has [17]" in _survey_refusal(gpt)


def test_data_that_is_not_there(digits: str, tmp_path: Path) -> None:
    values = small_config("mlp", digits, "")
    values["data"]["eval_split"] = "tets"
    assert "no split 'tets'" in _survey_refusal(values) and "did you mean 'test'?" in _survey_refusal(values)
    values["data"]["eval_split"] = None
    from distdl.train.survey import data_facts

    assert data_facts(config_from_dict(values)).eval_rows == 0
    values["data"]["path"] = str(tmp_path / "nowhere")
    assert "nowhere" in _survey_refusal(values) and "distdl data prepare" in _survey_refusal(values)


def _survey_refusal(values: dict[str, Any]) -> str:
    from distdl.train.survey import data_facts

    with pytest.raises(InputError) as caught:
        data_facts(config_from_dict(values))
    return str(caught.value)


def test_a_column_of_any_length_fits(monkeypatch: pytest.MonkeyPatch, digits: str) -> None:
    """`None` in a family's column accepts every size of that dimension, and no other number of dimensions."""
    from distdl.families import load_family
    from distdl.learner import Column
    from distdl.train.survey import data_facts

    settings = config_from_dict(small_config("mlp", digits, ""))
    for shape, fits in (((1, None, None), True), ((None, 8, 7), False), ((None,), False), ((None,) * 4, False)):
        monkeypatch.setattr(load_family("mlp"), "columns", staticmethod(lambda c, s=shape: {"image": Column(s)}))
        if fits:
            assert data_facts(settings).train_rows == 1438
        else:
            with pytest.raises(InputError, match="expects 'image' of shape"):
                data_facts(settings)


@pytest.mark.slow
def test_the_plan_of_mnist(data_folder: Path, tmp_path: Path) -> None:
    """configs/families/lenet5.yaml on the real files: 60,000 and 10,000 pictures."""
    from distdl.config.load import load_config
    from distdl.data.prepare import prepare_dataset
    from distdl.train.survey import survey

    prepare_dataset("idx", str(tmp_path / "mnist"), {"path": str(data_folder / "mnist")})
    p = survey(load_config(str(shipped("lenet5")), [f"data.path={tmp_path / 'mnist'}"]).config)
    assert (p.data.train_rows, p.data.eval_rows) == (60_000, 10_000)
    assert (p.steps, p.model.parameters) == (math.ceil(3 * 60_000 / 128), 61_706)
