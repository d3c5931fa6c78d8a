"""Ways of learning: each does better than the same model without it, on the data of its config in configs/."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distdl.cli.main import main
from distdl.config.load import config_from_dict, load_config
from distdl.config.ways import Augment
from distdl.errors import InputError
from distdl.families import load_family
from distdl.layout import noise
from distdl.train.survey import survey
from distdl.ways import assemble, columns_read, learner_class
from distdl.ways.augment import Augmentation
from distdl.ways.start import located
from tests.conftest import REPOSITORY
from tests.families.common import Rehearsal, rows_of
from tests.parity.test_parity import compare
from tests.small import BASE, contract_config, layout, measured, prepared, shipped

DIGITS = {"source": "digits"}
FEW = {"source": "digits", "options": {"train_rows": 100}}
PLAIN = [
    "runtime.kind=local",
    "runtime.workers=1",
    "train.threads_per_worker=1",
    "parallel.engine=torch",
    "track.enabled=false",
]
PLAIN += ["evaluate.every_steps=0", "checkpoint.every_steps=0", "schedule.name=cosine", "schedule.warmup_steps=10"]


class Bench:
    """Runs configs one after the other in this process, in a folder of their own."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data

    def train(self, config: str, *overrides: str, name: str = "") -> dict[str, float]:
        """The last evaluation of `distdl train CONFIG.yaml`, shortened."""
        path = shipped(config)
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["prepare"]
        name = name or config
        of_test = [f"runs={self.folder}", f"name={name}", f"data.path={prepared(recipe, self.data)}"]
        assert main(["train", str(path), *PLAIN, *of_test, "train.epochs=null", *overrides]) == 0
        return dict(json.loads((self.folder / name / "summary.json").read_text())["metrics"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("ways"), small_data)


@pytest.mark.slow
def test_a_distilled_student_beats_one_that_has_labels_alone(bench: Bench) -> None:
    teacher = bench.train("cnn", "train.steps=150")["accuracy"]
    student = bench.train("distill", "train.steps=400")["accuracy"]
    alone = bench.train("distill", "train.steps=400", "way=null", name="alone")["accuracy"]
    assert teacher > 0.95 and student > alone + 0.04, (teacher, student, alone)


@pytest.mark.slow
def test_pseudo_labels_beat_the_hundred_labels_alone(bench: Bench) -> None:
    short = ["train.steps=600", "way.from_step=150", "way.ramp_steps=100"]
    semi, labelled = [], []
    for seed in range(3):
        both = [*short, f"seed={seed}"]
        semi.append(bench.train("pseudo_label", *both, name=f"semi{seed}")["accuracy"])
        labelled.append(bench.train("pseudo_label", *both, "way.weight=0.0", name=f"few{seed}")["accuracy"])
    assert sum(semi) / 3 > sum(labelled) / 3 + 0.015, (semi, labelled)


@pytest.mark.slow
def test_contrastive_pre_training_beats_fresh_weights_with_a_hundred_labels(bench: Bench) -> None:
    bench.train("contrastive", "train.steps=1600")
    tuned, fresh = [], []
    for seed in range(3):
        tuned.append(bench.train("fine_tune", "train.steps=120", f"seed={seed}", name=f"tuned{seed}")["accuracy"])
        alone = ["train.steps=120", f"seed={seed}", "start=null"]
        fresh.append(bench.train("fine_tune", *alone, name=f"fresh{seed}")["accuracy"])
    assert sum(tuned) / 3 > sum(fresh) / 3 + 0.02, (tuned, fresh)


@pytest.mark.slow
def test_masked_images_beat_fresh_weights_with_a_hundred_labels(bench: Bench) -> None:
    bench.train("masked_images", "train.steps=400")
    tuned = bench.train("from_masked_images", "train.steps=120")["accuracy"]
    fresh = bench.train("from_masked_images", "train.steps=120", "start=null", name="unmasked")["accuracy"]
    assert tuned > fresh + 0.03, (tuned, fresh)


@pytest.mark.slow
def test_adversarial_training_withstands_the_attack(bench: Bench) -> None:
    hardened = bench.train("adversarial", "train.steps=150")
    clean = bench.train("adversarial", "train.steps=150", "way.weight=0.0", name="clean")
    assert hardened["robust_accuracy"] > clean["robust_accuracy"] + 0.05, (hardened, clean)
    assert hardened["accuracy"] > 0.95


@pytest.mark.slow
def test_augmentation_makes_for_pictures_that_have_moved(bench: Bench) -> None:
    """Held-out digits that are shifted by up to a pixel and turned by up to 15 degrees."""
    moved = {"shift_pixels": 1, "rotate_degrees": 15}
    accuracy = {}
    for name, augment in (("moved", moved), ("still", None)):
        run, _ = after(values(bench.data, augment=augment), 200)
        rows = rows_of(run.config.data.path, range(359), "test")
        noise.begin(9, rows["position"])
        image = Augmentation(Augment(**moved)).changed(rows["image"])
        noise.begin(0, None)
        with torch.no_grad():
            guess = run.learner.eval().logits({"image": image}).argmax(-1)
        accuracy[name] = float((guess == rows["label"]).float().mean())
    assert accuracy["moved"] > accuracy["still"] + 0.05, accuracy


def after(values: dict[str, Any], steps: int) -> tuple[Rehearsal, dict[str, float]]:
    """A run that has been trained for so many steps, and its evaluation."""
    values["train"] = values["train"] | {"steps": steps}
    run = Rehearsal(values)
    run.train(steps)
    return run, run.evaluate()


@pytest.mark.slow
def test_greedy_pre_training_beats_random_weights_with_few_labels(bench: Bench) -> None:
    """Seventy-two labels of 1,437 pictures, which two layers have seen without any; three seeds."""
    accuracy: dict[int, float] = {150: 0.0, 0: 0.0}
    for pretrain_steps in accuracy:
        for seed in range(3):
            config = contract_config(
                "dbn", bench.data, seed=seed, schedule={"name": "constant"}, train__global_batch=60
            )
            few = {"pretrain_steps": pretrain_steps, "hidden": [64, 32], "label_every": 20}
            config["model"] = config["model"] | few
            accuracy[pretrain_steps] += after(config, 2 * pretrain_steps + 300)[1]["accuracy"] / 3
    assert accuracy[150] > accuracy[0] + 0.03, accuracy


@pytest.mark.slow
def test_an_autoencoder_that_learned_from_damage_repairs_it_better(bench: Bench) -> None:
    error = {}
    for corruption in ("mask", "none"):
        config = contract_config("autoencoder", bench.data)
        wide = {"hidden": [128], "code": 96, "activation": "relu", "tied": False, "penalty": "none"}  # room for a copy
        config["model"] = config["model"] | wide | {"corruption": corruption, "corruption_strength": 0.3}
        config["optimizer"]["lr"] = 2e-3
        run, _ = after(config, 500)
        rows = rows_of(config["data"]["path"], range(300), "test")
        clean = run.learner.samples(rows)
        damaged = clean * (torch.rand(clean.shape, generator=torch.Generator().manual_seed(1)) > 0.3)
        with torch.no_grad():
            repaired = torch.sigmoid(run.learner.decode(run.learner.encode(damaged)[-1]))
        error[corruption] = float((repaired - clean).square().sum(1).mean())
    assert error["mask"] < 0.9 * error["none"], error


@pytest.mark.slow
def test_the_equation_tells_what_the_known_values_do_not(bench: Bench) -> None:
    """Burgers' equation in fp64: the same network, the same 100 values at the edges, with and without points inside."""
    error = {}
    for collocation in (900, 0):
        options = {"equation": "burgers", "values": 100, "collocation": collocation, "grid": 30}
        config = contract_config("pinn", bench.data, schedule={"name": "constant"})
        config["model"] = config["model"] | {"width": 20, "layers": 4}
        config["data"]["path"] = prepared({"source": "pde", "options": options}, bench.data)
        config["train"] = config["train"] | {"global_batch": 100 + collocation, "clip_norm": None, "precision": "fp64"}
        config["optimizer"] = {"name": "lbfgs", "iterations": 20}
        error[collocation] = after(config, 25)[1]["relative_l2_squared"]
    assert error[900] < 0.7 * error[0], error


def test_a_reservoir_reads_more_from_the_past_than_the_input_alone(bench: Bench) -> None:
    """The Mackey-Glass series: the next value, and ten generated ones."""
    told = {}
    for units in (40, 1):
        config = contract_config("esn", bench.data)
        config["model"] = config["model"] | {"units": units}
        told[units] = after(config, 3)[1]
    assert told[40]["loss"] < 0.1 * told[1]["loss"] and told[40]["generated"] < 0.5 * told[1]["generated"]


def test_the_table_of_ways_names_what_is_there() -> None:
    text = (REPOSITORY / "docs" / "ways.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w:,-][^|]*) \| (`configs/[^|]*) \| ([^|]+) \| `([^|]+)` \|$", text, re.MULTILINE)
    assert len(rows) == 29
    for _, configs, _, shown in rows:
        assert (REPOSITORY / shown).exists(), shown
        for name in re.findall(r"`([^`]+)`", configs):
            assert (REPOSITORY / name).exists(), name


# -- what a run starts from ---------------------------------------------------------------------------------------------


UNET = {"family": "unet", "image": [1, 32, 32], "width": 4, "depth": 1}
DBN = {"family": "dbn", "inputs": [1, 8, 8], "hidden": [8, 6]}
MLP = {"family": "mlp", "inputs": [1, 8, 8], "hidden": [12, 8]}


def values(data: Path, **sections: Any) -> dict[str, Any]:
    return {"name": "x", **BASE, "model": MLP, **sections, "data": {"path": prepared(DIGITS, data), "threads": 0}}


@pytest.fixture(scope="module")
def trained(bench: Bench, small_data: Path) -> Path:
    """The folder of a finished run of MLP."""
    assert main(["train", *written(bench.folder, values(small_data, name="first", runs=str(bench.folder)))]) == 0
    return bench.folder / "first"


def written(folder: Path, config: dict[str, Any]) -> list[str]:
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return [str(path)]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    from distdl.checkpoint.load import latest

    checkpoint, _ = latest(run / "checkpoints")
    assert checkpoint is not None
    return {n.partition("/")[2]: checkpoint.read(n) for n in checkpoint.tensors if n.startswith("weights/")}


@pytest.mark.slow
def test_a_run_starts_from_another_runs_weights_and_keeps_the_frozen_ones(bench: Bench, trained: Path) -> None:
    start = {"weights": "first", "fresh": ["net.4.*"], "freeze": ["net.0.*"]}
    of_five_steps = {"train": BASE["train"] | {"steps": 5}, "seed": 4}
    config = values(bench.data, name="second", runs=str(bench.folder), start=start, **of_five_steps)
    assert main(["train", *written(bench.folder, config)]) == 0
    first, second = weights_of(trained), weights_of(bench.folder / "second")
    assert first.keys() == second.keys()
    for name in ("net.0.weight", "net.0.bias"):
        assert torch.equal(first[name], second[name])
    moved = (first["net.2.weight"] - second["net.2.weight"]).abs().max()  # five steps away from where it began
    assert 0 < moved < 0.1 < (first["net.4.weight"] - second["net.4.weight"]).abs().max()
    assert main(["train", *written(bench.folder, config), "train.steps=8"]) == 0  # goes on from its own checkpoint
    third = weights_of(bench.folder / "second")
    assert torch.equal(third["net.0.weight"], first["net.0.weight"])
    assert not torch.equal(third["net.2.weight"], second["net.2.weight"])


def test_weights_come_from_a_checkpoint_folder_or_a_safetensors_file_too(
    bench: Bench, trained: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from distdl.train.worker import build_learner

    save_file(weights_of(trained), tmp_path / "w.safetensors")
    folder = str(next(p for p in (trained / "checkpoints").iterdir() if p.name.startswith("step_")))
    for place in (folder, str(tmp_path / "w.safetensors"), str(trained)):
        learner = build_learner(config_from_dict(values(bench.data, start={"weights": place})), None)
        for name, tensor in weights_of(trained).items():
            assert torch.equal(learner.get_parameter(name), tensor)


def test_workers_in_another_folder_find_what_the_config_names(
    bench: Bench, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray starts them: the plan has absolute paths of checkpoints, the config keeps the names."""
    from distdl.train.worker import build_learner

    monkeypatch.chdir(bench.folder)
    sections = {"start": {"weights": "first"}, "way": {"name": "distill", "teacher": "first"}}
    config = config_from_dict(values(bench.data, runs=".", **sections))
    there = config_from_dict(survey(located(config)).config)
    monkeypatch.chdir(tmp_path)
    learner = build_learner(there, None)
    named = weights_of(trained)
    assert all(torch.equal(learner.get_parameter(name), tensor) for name, tensor in named.items())
    assert torch.equal(dict(learner._teacher[0].named_parameters())["net.0.weight"], named["net.0.weight"])
    assert config.start.weights == "first" and Path(there.way.teacher).parent.parent == trained


@pytest.mark.slow
def test_a_run_goes_on_and_is_evaluated_without_what_it_began_with(
    bench: Bench, trained: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, bench.folder / "gone")
    sections = {"start": {"weights": "gone", "freeze": ["net.0.*"]}, "train": BASE["train"] | {"steps": 4}}
    begun = values(small_data, name="begun", runs=str(bench.folder), **sections)
    taught = values(small_data, name="taught", runs=str(bench.folder), way={"name": "distill", "teacher": "gone"})
    for config in (begun, taught):
        assert main(["train", *written(bench.folder, config), "track.enabled=false"]) == 0
    shutil.rmtree(bench.folder / "gone")
    assert main(["train", *written(bench.folder, begun), "track.enabled=false", "train.steps=6"]) == 0
    capsys.readouterr()
    for name in ("begun", "taught"):
        assert main(["evaluate", str(bench.folder / name), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["loss"] > 0
    assert main(["train", *written(bench.folder, taught), "track.enabled=false", "train.steps=30"]) == 2
    assert "there is no run 'gone'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("start", "model", "words"),
    [
        ({"weights": "nowhere"}, {}, "there is no run 'nowhere'"),
        ({"weights": "x.safetensors"}, {}, "there is no file"),
        ({"weights": "first"}, {"hidden": [12, 9]}, "net.2.weight is [8, 12] there and [9, 12] in the model"),
        ({"weights": "first"}, {"activation": "tanh"}, "was trained with model.activation=relu, and here it is tanh"),
        ({"weights": "first"}, {"hidden": [12]}, "net.4.bias is in the weights alone"),
        ({"weights": "first", "fresh": ["haed.*"]}, {}, "start.fresh: no name fits 'haed.*'"),
        ({"weights": "first", "fresh": ["*"]}, {}, "leaves nothing to carry over"),
        ({"freeze": ["net.7.*"]}, {}, "start.freeze: no parameter fits 'net.7.*'"),
        ({"freeze": ["*"]}, {}, "nothing is left to learn"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(
    bench: Bench, trained: Path, start: dict[str, Any], model: dict[str, Any], words: str
) -> None:
    config = values(bench.data, start=start, runs=str(bench.folder), model=MLP | model)
    with pytest.raises(InputError, match=re.escape(words)):
        survey(config_from_dict(config))


def test_a_module_that_is_frozen_whole_stays_in_evaluation_mode(bench: Bench) -> None:
    net = {"family": "cnn", "image": [1, 8, 8], "stages": [[4, 3, 2]], "dense": [6]}
    config = values(bench.data, model=net, start={"freeze": ["net.0.*", "net.1.*"]})
    learner = assemble(config_from_dict(config)).train()
    assert [m.training for m in learner.net] == [False, False, True, True, True, True, True, True, True, True]
    before = learner.net[1].running_mean.clone()
    learner.loss(rows_of(config["data"]["path"], range(8)), 0)
    assert torch.equal(learner.net[1].running_mean, before)


def test_the_class_of_a_way_and_a_family_tells_where_it_is_made_and_of_what(bench: Bench) -> None:
    from distdl.ways.contrastive import Contrastive

    config = config_from_dict(values(bench.data, way={"name": "contrastive"}, augment={"noise": 0.1}))
    cls = learner_class(config)
    family = load_family(config.model["family"])
    assert repr(cls) == f"<class 'distdl.ways.learner_class.<locals>.Contrastive{family.__name__}'>"
    assert cls.__doc__ == (
        f"distdl.ways.contrastive.Contrastive before {family.__module__}.{family.__name__} in the order of inheritance."
    )
    assert cls.__mro__[1] is Contrastive and cls.Config is family.Config


# -- ways by hand ---------------------------------------------------------------------------------------------------------


def of_way(bench: Bench, **sections: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A learner in training mode and a batch of twelve digits."""
    config = config_from_dict(values(bench.data, **sections))
    torch.manual_seed(0)
    return assemble(config).train(), rows_of(config.data.path, range(12))


def test_the_loss_of_distillation_by_hand(bench: Bench, trained: Path) -> None:
    from distdl.train.worker import build_learner

    way = {"name": "distill", "teacher": "first", "temperature": 3.0, "weight": 0.7}
    config = config_from_dict(values(bench.data, way=way, model=MLP | {"hidden": [5]}, runs=str(bench.folder)))
    student = build_learner(config, None).train()
    batch = rows_of(config.data.path, range(12))
    z, t = student.logits(batch), student.teacher_logits(batch, torch.device("cpu"))
    p, q = (t / 3).softmax(-1), (z / 3).softmax(-1)
    soft = (p * (p.log() - q.log())).sum(-1).mean()
    hard = -z.log_softmax(-1)[torch.arange(12), batch["label"]].mean()
    assert student.loss(batch, 0)[0].item() == pytest.approx((0.3 * hard + 0.7 * 9 * soft).item(), rel=1e-5)
    assert not any("teacher" in name for name, _ in student.named_parameters())
    named = weights_of(trained)
    assert torch.equal(dict(student._teacher[0].named_parameters())["net.0.weight"], named["net.0.weight"])


def test_the_loss_of_pseudo_labels_by_hand(bench: Bench) -> None:
    way = {"name": "pseudo_label", "labelled": 5, "threshold": 0.2, "weight": 0.5, "from_step": 10, "ramp_steps": 4}
    learner, batch = of_way(bench, way=way)
    with torch.no_grad():
        learner.net[-1].weight.mul_(5)  # answers that differ in how sure they are
    batch["label"] = torch.where(
        batch["id"] < 5, batch["label"], torch.full_like(batch["label"], 99)
    )  # never looked at
    logits = learner.logits(batch).detach()
    for step, weight in ((9, 0.0), (12, 0.25), (20, 0.5)):
        total = 0.0
        for i in range(12):
            log_p = logits[i].log_softmax(-1)
            best = int(log_p.argmax())
            if i < 5:
                total -= float(log_p[batch["label"][i]])
            elif float(log_p[best].exp()) >= 0.2:
                total -= weight * float(log_p[best])
        loss, metrics = learner.loss(batch, step)
        assert loss.item() == pytest.approx(total / 12, rel=1e-5)
    assert 0 < float(metrics["pseudo_labelled"].total) < 7


def test_contrastive_batches_are_coupled_and_need_no_label(bench: Bench) -> None:
    """Whatever the family says of itself: its negatives are the other pictures of the micro-batch."""
    net = {"family": "cnn", "image": [1, 8, 8], "stages": [[4, 3, 2]], "dense": [6], "norm": "none"}
    config = config_from_dict(values(bench.data, way={"name": "contrastive"}, augment={"noise": 0.1}, model=net))
    assert assemble(config).batch_coupled
    assert list(columns_read(config)["the family cnn"]) == ["image"]


def test_the_loss_of_contrastive_learning_by_hand(bench: Bench) -> None:
    way = {"name": "contrastive", "temperature": 0.3}
    learner, batch = of_way(bench, way=way, augment={"shift_pixels": 1, "noise": 0.1})
    torch.manual_seed(5)
    one, two = learner.views(batch)
    z = torch.cat([one, two]).double()
    total = 0.0
    for i in range(24):
        similar = {k: float(z[i] @ z[k] / 0.3) for k in range(24) if k != i}
        total += torch.tensor(list(similar.values())).logsumexp(0).item() - similar[(i + 12) % 24]
    torch.manual_seed(5)
    assert learner.loss(batch, 0)[0].item() == pytest.approx(total / 24, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_attack_stays_within_its_bounds_and_raises_the_loss(bench: Bench, steps: int) -> None:
    learner, batch = of_way(bench, way={"name": "adversarial", "epsilon": 0.07, "steps": steps})
    attacked = learner.attacked(batch)
    moved = attacked["image"] - batch["image"].float() / 255
    assert moved.abs().max() <= 0.07 + 1e-6
    assert attacked["image"].min() >= 0 and attacked["image"].max() <= 1
    clean, harmed = (learner.criterion(learner.logits(b), b)[0] for b in (batch, attacked))
    assert harmed > clean + 0.01
    if steps == 1:  # to the corner of the box, but where the picture ends
        inside = (moved.abs() > 1e-6) & (attacked["image"] > 0) & (attacked["image"] < 1)
        assert torch.allclose(moved[inside].abs(), torch.tensor(0.07), atol=1e-6)
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"way": {"name": "contrastive"}}, "augment is null"),
        ({"way": {"name": "distill", "teacher": "nobody"}}, "there is no run 'nobody'"),
        ({"way": {"name": "distill", "teacher": "first"}, "model": MLP | {"classes": 9}}, "knows 10 classes"),
        ({"way": {"name": "adversarial"}, "model": MLP | {"target": "value"}}, "a way for classifiers"),
        ({"way": {"name": "adversarial", "column": "picture"}}, "is no column that the model reads"),
        ({"way": {"name": "pseudo_label"}, "model": MLP | {"loss": "hinge"}}, "model.loss is 'hinge'"),
        ({"augment": {"flip": "both", "column": "label"}}, "the column 'label' of this mlp is none"),
        ({"augment": {"zoom": 0.1}, "model": UNET}, "would move the pictures and leave 'mask', 'border'"),
        ({"start": {"freeze": ["visible*"]}, "model": DBN}, "more than one loss and one optimizer"),
        (
            {
                "augment": {"flip": "both"},
                "parallel": {"zero": 1, "pipeline": 2},
                "runtime": {"kind": "local", "workers": 2},
            },
            "augment is not proven in a pipeline",
        ),
        (
            {"way": {"name": "adversarial"}, "parallel": {"zero": 3}},
            "not proven on the layout zero3",
        ),
    ],
)
def test_ways_that_cannot_be_gone_are_refused(
    bench: Bench, trained: Path, sections: dict[str, Any], words: str
) -> None:
    config = values(bench.data, runs=str(bench.folder), **sections)
    with pytest.raises(InputError, match=re.escape(words)):
        survey(config_from_dict(config))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_way_gives_the_same_numbers_on_every_layout(bench: Bench, trained: Path) -> None:
    """Two real processes against one, for each layout that a way is proven on; augmentation and frozen parts included."""
    net = {"family": "cnn", "image": [1, 8, 8], "stages": [[4, 3, 2]], "dense": [6], "dropout": 0.1}
    moved = {"shift_pixels": 1, "rotate_degrees": 10, "flip": "horizontal", "contrast": 0.2, "noise": 0.1, "erase": 0.2}
    ways: dict[str, dict[str, Any]] = {
        "distill": {"way": {"name": "distill", "teacher": "first"}, "augment": moved},
        "pseudo_label": {"way": {"name": "pseudo_label", "labelled": 200, "threshold": 0.2}, "model": net},
        "contrastive": {"way": {"name": "contrastive"}, "augment": moved, "model": net},
        "adversarial": {"way": {"name": "adversarial"}, "model": net},
        "fine_tune": {"start": {"weights": "first", "fresh": ["net.4.*"], "freeze": ["net.0.*"]}},
    }
    cases = {n: values(bench.data, name=n, runs=str(bench.folder), **sections) for n, sections in ways.items()}
    reference = measured(1, cases)[0]
    laid: dict[str, dict[str, Any]] = {}
    for name, case in cases.items():
        for where in ("torch", "zero0", "zero1", "zero2", "zero3"):
            if (name, where) != ("adversarial", "zero3"):
                laid[f"{name}/{where}"] = layout(case, where, 2)
    compare(reference, measured(2, laid))


# -- augmentation ---------------------------------------------------------------------------------------------------------


def pictures() -> torch.Tensor:
    return torch.rand(6, 2, 9, 7, generator=torch.Generator().manual_seed(2))


def changed(x: torch.Tensor, **settings: Any) -> torch.Tensor:
    noise.begin(3, torch.arange(10, 10 + len(x)))
    try:
        return Augmentation(Augment(**settings)).changed(x)
    finally:
        noise.begin(0, None)


def test_a_shift_moves_the_picture_and_nothing_else() -> None:
    x = torch.zeros(6, 1, 9, 9)
    x[:, :, 4, 4] = 1
    y = changed(x, shift_pixels=3)
    assert torch.allclose(y.sum((1, 2, 3)), torch.ones(6), atol=1e-5)
    grid = torch.arange(9.0)
    row, column = (y.sum((1, 2 + axis)) @ grid - 4 for axis in (1, 0))
    assert row.abs().max() <= 3 and column.abs().max() <= 3 and row.std() > 0.5 and column.std() > 0.5


def test_a_turn_keeps_the_middle_and_the_distances() -> None:
    x = torch.zeros(6, 1, 21, 31)
    x[:, :, 10, 15] = 1
    x[:, :, 10, 25] = 1
    y = changed(x, rotate_degrees=60)
    assert torch.allclose(y[:, 0, 10, 15], torch.ones(6), atol=1e-5)
    rows, columns = torch.meshgrid(torch.arange(21.0), torch.arange(31.0), indexing="ij")
    far = y[:, 0] * ((rows - 10).square() + (columns - 15).square() > 25)
    centre = [(far * places).sum((1, 2)) / far.sum((1, 2)) for places in (rows, columns)]
    distance = ((centre[0] - 10).square() + (centre[1] - 15).square()).sqrt()
    assert torch.allclose(distance, torch.full((6,), 10.0), atol=0.2)
    turned = torch.atan2(centre[0] - 10, centre[1] - 15).abs()
    assert turned.max() < torch.pi / 3 + 0.05 and turned.max() > 0.2


def test_flips_brightness_contrast_noise_and_erasing() -> None:
    x = pictures()
    y = changed(x, flip="horizontal")
    kept = [torch.equal(a, b) for a, b in zip(x, y)]
    assert set(kept) == {True, False} and all(k or torch.equal(a.flip(2), b) for k, a, b in zip(kept, x, y))
    y = changed(x, brightness=0.3)
    added = (y - x).flatten(1)
    assert torch.allclose(added, added[:, :1].expand_as(added), atol=1e-6) and 0.05 < added.abs().max() <= 0.3
    y = changed(x, contrast=0.5)
    assert torch.allclose(y.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-6)
    ratio = y.std((1, 2, 3)) / x.std((1, 2, 3))
    assert 0.5 <= ratio.min() < ratio.max() <= 1.5
    assert (changed(x, noise=0.2) - x).std() == pytest.approx(0.2, rel=0.1)
    y = changed(x, erase=0.4)
    blank = (y == 0).all(1)
    assert torch.equal(blank.sum((1, 2)), torch.full((6,), 4 * 3)) and torch.equal(
        y[~blank[:, None].expand_as(y)], x[~blank[:, None].expand_as(x)]
    )


def test_the_draw_depends_on_seed_and_sample_alone() -> None:
    settings: dict[str, Any] = {
        "shift_pixels": 2,
        "rotate_degrees": 20.0,
        "zoom": 0.2,
        "flip": "both",
        "noise": 0.1,
        "erase": 0.3,
    }
    x = (pictures() * 255).to(torch.uint8)
    whole = changed(x, **settings)
    assert whole.dtype == torch.float32 and whole.min() >= 0 and whole.max() <= 1
    noise.begin(3, torch.arange(13, 16))
    part = Augmentation(Augment(**settings)).changed(x[3:])
    noise.begin(0, None)
    assert torch.equal(part, whole[3:])


def test_torchvisions_transforms_draw_by_the_sample_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of the same interface: torchvision's own build must match torch's."""
    import sys
    import types

    class Jitter:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def __call__(self, picture: torch.Tensor) -> torch.Tensor:
            return picture + self.scale * torch.rand(1)

    module = types.ModuleType("torchvision.transforms.v2")
    module.Jitter = Jitter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", module)
    x = pictures()
    state = torch.random.get_rng_state()
    y = changed(x, torchvision=({"Jitter": {"scale": 1.0}},))
    assert torch.equal(torch.random.get_rng_state(), state)
    added = (y - x)[:, 0, 0, 0]
    assert len(set(added.tolist())) == 6
    assert torch.equal(changed(x, torchvision=({"Jitter": {"scale": 1.0}},)), y)
    with pytest.raises(InputError, match="has no transform 'Jiter'"):
        changed(x, torchvision=({"Jiter": {}},))
    with pytest.raises(InputError, match=r"Jitter: .*unexpected keyword"):
        changed(x, torchvision=({"Jitter": {"size": 1}},))
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(InputError, match="pip install"):
        changed(x, torchvision=({"Jitter": {"scale": 1.0}},))


def test_the_sections_explain_mistakes(tmp_path: Path) -> None:
    path = shipped("cnn")
    for override, words in (
        ("way={name: distil}", "did you mean 'distill'"),
        ("augment={}", "no change is asked for"),
        ("augment={shft_pixels: 1}", "did you mean 'augment.shift_pixels'"),
        ("start={fresh: [a]}", "weights names nothing"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            load_config(str(path), [override])
