"""Every architecture that the founding documents name is here: a family or a composition, its config, its figure.

The rows are those of the list of architectures that the project was founded on. A row is a family of its own, or an
arrangement of families that a config makes; each has its place in `distdl families`, docs/families.md and the results.
"""

from __future__ import annotations

import json
import re

import pytest
import yaml

from distdl.config.family import family_names
from tests.conftest import REPOSITORY
from tests.small import shipped

FAMILIES_PAGE = (REPOSITORY / "docs" / "families.md").read_text(encoding="utf-8")
RESULTS = json.loads((REPOSITORY / "benchmarks" / "results" / "acceptance.json").read_text(encoding="utf-8"))["cases"]

FAMILIES = {
    "McCulloch-Pitts neuron": "mcp",
    "perceptron": "perceptron",
    "multi-layer perceptron": "mlp",
    "neocognitron": "neocognitron",
    "convolutional network": "cnn",
    "LeNet of 1989": "lenet1989",
    "LeNet-5": "lenet5",
    "AlexNet": "alexnet",
    "DeepDream": "deepdream",
    "U-Net": "unet",
    "fully recurrent network": "frn",
    "Hopfield network": "hopfield",
    "Elman network": "elman",
    "echo state network": "esn",
    "LSTM": "lstm",
    "GRU": "gru",
    "bidirectional recurrent network": "birnn",
    "continuous-time recurrent network": "ctrnn",
    "hierarchical recurrent network": "hrnn",
    "second-order recurrent network": "rnn2",
    "Boltzmann machine": "bm",
    "restricted Boltzmann machine": "rbm",
    "deep belief network": "dbn",
    "convolutional deep belief network": "cdbn",
    "deep Q-network": "dqn",
    "tabular Q-learning, SARSA, TD": "tabular",
    "autoencoder": "autoencoder",
    "generative adversarial network": "gan",
    "diffusion model": "diffusion",
    "self-organising map": "som",
    "Transformer": "transformer",
    "BERT": "bert",
    "GPT": "gpt",
    "Vision Transformer": "vit",
    "Mamba": "mamba",
    "neural field": "neural_field",
    "NeRF": "nerf",
    "physics-informed network": "pinn",
    "spiking network": "snn",
    "memtransistor and electrochemical RAM": "analog",
    "word2vec": "word2vec",
    "recursive network": "recnn",
    "compositional vector grammar": "cvg",
    "recursive autoencoder": "rae",
    "image captioning": "captioner",
    "multi-task network": "mtdnn",
    "customer lifetime value agent": "clv_agent",
    "acoustic model": "dnn_am",
    "DistBelief autoencoder": "distbelief_ae",
}

COMPOSITIONS = {
    "ReLU and dropout acoustic model": ["dnn_am"],
    "object detection by masks": ["object_masks"],
    "recurrent language model": ["rnnlm"],
    "convolutional acoustic model, limited weight sharing": ["dnn_am_cnn"],
    "DNN-HMM": ["dnn_hmm"],
    "BLSTM-CTC": ["birnn_ctc"],
    "ensemble of stacked posteriors": ["ensemble"],
    "Deep Speech": ["deep_speech"],
    "multi-column network": ["mcdnn"],
    "captions to visual concepts": ["concepts"],
    "visual-semantic embedding": ["vse"],
    "bilinear deep belief network": ["bilinear_dbn"],
    "DeepTox": ["deeptox"],
    "cortical array": ["cortical_array"],
    "analog: electrochemical RAM": ["analog_ecram"],
    "analog: memtransistor": ["analog_memtransistor"],
}


@pytest.mark.parametrize("name", sorted(FAMILIES.values()))
def test_every_architecture_is_a_family_with_a_row_and_a_figure(name: str) -> None:
    assert name in family_names()
    assert re.search(rf"^\| `{name}` \|", FAMILIES_PAGE, re.MULTILINE), "no row in the table of families"
    figures = [case for case in RESULTS if case["family"] == name]
    assert figures, "no acceptance figure"
    for case in figures:
        assert {"data", "metric", "required", "reached", "seconds", "commit"} <= case.keys(), case["metric"]
        assert case["met"], f"{case['metric']}: {case['reached']} of {case['required']}"


@pytest.mark.parametrize("name", sorted(COMPOSITIONS))
def test_every_composition_has_its_config(name: str) -> None:
    for config in COMPOSITIONS[name]:
        path = shipped(config)
        family = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["family"]
        assert f"`{path.relative_to(REPOSITORY)}`" in FAMILIES_PAGE and family in family_names()


def test_the_table_of_results_is_what_was_kept() -> None:
    text = (REPOSITORY / "benchmarks" / "results" / "acceptance.md").read_text(encoding="utf-8")
    for case in RESULTS:
        row = f"| `{case['family']}` | {case['data']} | {case['metric']} | {case['reached']:.4g} |"
        assert row in text and case["commit"] and f"| {case['commit']} |" in text
