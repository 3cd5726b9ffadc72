"""Extractors: a file with a known interface, a classifier that is trained, networks of torch."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from gantrain_process import save_toy_zip
from onnx import TensorProto, helper
from torch import nn
from toy_training import toy_dataset

from models.errors import InvalidValue
from training.__main__ import main
from training.data import fashion_mnist, open_dataset
from training.digest import weights_digest
from training.errors import DataError
from training.metrics import open_extractor
from training.metrics.classifier import NETWORKS, OfPixels, save_extractor, train_classifier
from training.metrics.extractor_files import SHIPPED, OnnxExtractor, shipped_names
from training.metrics.measure import accuracy_on
from training.metrics.networks import TorchExtractor, efficientnet_lite0, inception


@pytest.mark.parametrize("network", NETWORKS)
def test_a_classifier_learns_its_data_and_its_file_answers_as_torch_does(network, tmp_path: Path) -> None:
    dataset = toy_dataset(512)
    classifier = train_classifier(dataset, network=network, seed=3, epochs=4)
    file = tmp_path / "halves.onnx"

    save_extractor(classifier, dataset, file)

    extractor = OnnxExtractor(file)
    images = np.ascontiguousarray(dataset.images.transpose(0, 2, 3, 1))  # [N, H, W, C]
    answers = extractor.answers(images)
    with torch.no_grad():
        features, logits = OfPixels(classifier)(torch.from_numpy(images))
    np.testing.assert_allclose(answers.features, features, atol=0.01)  # its weights are float16
    np.testing.assert_allclose(answers.logits, logits, atol=0.05)
    assert (answers.logits.argmax(1) == dataset.class_idx).mean() == 1
    assert (extractor.name, len(extractor.digest), extractor.resize) == ("halves", 64, "none")


def test_the_same_seed_trains_the_same_classifier_and_draws_nothing_from_torchs_own_stream() -> None:
    def trained(seed: int) -> str:
        return weights_digest(train_classifier(toy_dataset(), seed=seed, epochs=1).state_dict())

    state = torch.get_rng_state()
    first, again, other = trained(0), trained(0), trained(1)

    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_classifier_of_data_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="a classifier learns classes, halves has no labels"):
        train_classifier(toy_dataset(labelled=False))


@pytest.mark.parametrize("only", [0, 1])
def test_labels_that_are_all_one_class_are_refused_by_its_number(only: int) -> None:
    dataset = dataclasses.replace(toy_dataset(8), class_idx=np.full(8, only))

    with pytest.raises(DataError, match=f"learns classes, all images of halves are of the class {only}"):
        train_classifier(dataset)


@pytest.mark.parametrize(("count", "epochs", "told"), [(10, 1, [1]), (10, 20, [12, 20]), (192, 2, [1, 2])])
def test_epochs_are_told_to_the_last_and_none_beyond(
    count: int, epochs: int, told: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="training"):
        train_classifier(toy_dataset(count), epochs=epochs)

    assert [one.getMessage().split(":")[0] for one in caplog.records] == [
        f"epoch {epoch} of {epochs}" for epoch in told
    ]


def test_rows_of_an_extractor_do_not_depend_on_how_many_there_are() -> None:
    images = np.random.RandomState(0).randint(0, 256, (230, 32, 32, 1)).astype(np.uint8)
    extractor = open_extractor("fashion-mnist")

    answers = extractor.answers(images)

    np.testing.assert_allclose(
        extractor.answers(images[130:131]).features, answers.features[130:131], atol=1e-4
    )
    assert (answers.features.shape, answers.logits.shape) == ((230, 128), (230, 10))


def test_the_shipped_judge_is_another_network_than_the_extractor() -> None:
    nodes = {
        name: [node.op_type for node in onnx.load(SHIPPED / f"{name}.onnx").graph.node]
        for name in shipped_names()
    }

    assert list(nodes) == ["fashion-mnist", "fashion-mnist-judge"]
    assert "MaxPool" in nodes["fashion-mnist"]
    assert "MaxPool" not in nodes["fashion-mnist-judge"]


@pytest.mark.skipif(
    not fashion_mnist.holds_idx(fashion_mnist.DEBIAN_FOLDER, "test"),
    reason="needs Debian's package dataset-fashion-mnist",
)
@pytest.mark.parametrize(("name", "least"), [("fashion-mnist", 0.88), ("fashion-mnist-judge", 0.91)])
def test_shipped_extractors_know_the_classes_of_images_they_never_saw(name: str, least: float) -> None:
    dataset = open_dataset(None, 32, "test")
    some = dataclasses.replace(dataset, images=dataset.images[:1_000], class_idx=dataset.class_idx[:1_000])

    assert accuracy_on(open_extractor(name), some) > least


def save_graph(
    path: Path, *, source: str = "images", kind: int = TensorProto.UINT8, rows: object = "N"
) -> Path:
    """images [N, 4, 4, 1] -> their values, flat, as features."""
    inputs = [helper.make_tensor_value_info(source, kind, [rows, 4, 4, 1])]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [rows, 16])]
    nodes = [
        helper.make_node("Cast", [source], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["features"]),
    ]
    graph = helper.make_graph(nodes, "flat", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def test_any_file_of_that_interface_is_an_extractor(tmp_path: Path) -> None:
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)

    answers = open_extractor(str(save_graph(tmp_path / "flat.onnx"))).answers(images)

    assert answers.features.tolist() == images.reshape(2, 16).tolist()
    assert answers.logits is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"source": "pixels"}, r"takes pixels tensor\(uint8\)"),
        ({"kind": TensorProto.FLOAT}, r"takes images tensor\(float\)"),
        ({"rows": 1}, r"gives features \[1, 16\] for 1 images"),
    ],
)
def test_a_file_of_another_interface_is_refused_by_what_it_takes(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    file = save_graph(tmp_path / "other.onnx", **changes)

    with pytest.raises(InvalidValue, match=r"an extractor must take images uint8 .*" + sentence):
        open_extractor(str(file))


def test_images_of_another_size_and_names_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="the extractor flat takes images of 4×4×1, got 4×4×3"):
        open_extractor(str(save_graph(tmp_path / "flat.onnx"))).answers(
            np.zeros((2, 4, 4, 3), dtype=np.uint8)
        )
    with pytest.raises(InvalidValue, match=r"one of .*, inception, or an ONNX file, got 'vgg'"):
        open_extractor("vgg")


def test_efficientnet_lite0_gives_the_logits_of_the_network_that_its_weights_were_published_with() -> None:
    """The first logits there of the same noise, at the size at which nothing is resized."""
    images = np.random.RandomState(0).randint(0, 256, (1, 224, 224, 3)).astype(np.uint8)

    answers = efficientnet_lite0().answers(images)

    np.testing.assert_allclose(
        answers.logits[0, :4], [-2.7895143, 0.36923853, 1.0338017, 0.12467766], atol=1e-3
    )
    assert answers.features.shape == (1, 1280)


def test_without_its_weights_efficientnet_names_the_extra_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data = save_toy_zip(tmp_path / "halves.zip")

    code = main(["evaluate", "data:train", f"--data={data}", "--extractor=efficientnet-lite0"])

    assert code == 2
    assert capsys.readouterr().err.endswith("pip install -e '.[metrics]' in a clone of this repository\n")


class Fidelity(nn.Module):
    """The interface of torch-fidelity's Inception: uint8 RGB in, a tuple in the order of the names out."""

    def __init__(self, name: str, features_list: list[str]) -> None:
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.project = nn.Linear(3, 2048)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        features = self.project(x.float().mean((2, 3)))
        return features, features[:, :1008]


def test_inception_is_torch_fidelitys_which_reads_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Fidelity
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules["torch_fidelity"].feature_extractor_inceptionv3 = module

    extractor = open_extractor("inception")

    answers = extractor.answers(np.zeros((3, 8, 8, 1), dtype=np.uint8))  # grey is shown as RGB
    assert (answers.features.shape, answers.logits.shape) == ((3, 2048), (3, 1008))
    assert extractor.is_inception
    assert module.load_state_dict_from_url.keywords == {"weights_only": True, "check_hash": True}


def test_a_network_goes_by_the_digest_of_its_weights() -> None:
    network = Fidelity("", ["2048", "logits_unbiased"])
    before = inception(network)

    with torch.no_grad():
        network.project.bias[0] += 1

    assert inception(network).digest != before.digest
    assert isinstance(before, TorchExtractor)


def test_the_command_writes_a_file_and_says_its_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = save_toy_zip(tmp_path / "halves.zip"), tmp_path / "halves.onnx"

    code = main(["extractor", f"--data={data}", f"--out={out}", "--img-resolution=16", "--epochs=1"])

    assert code == 0
    printed = capsys.readouterr().out
    assert "epoch 1 of 1: loss" in printed
    assert f"sha256 {open_extractor(str(out)).digest[:12]}" in printed


def test_a_place_where_no_file_can_be_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.metrics.classifier.train_classifier", None)  # would be a TypeError
    words = ["extractor", f"--data={save_toy_zip(tmp_path / 'halves.zip')}", "--img-resolution=16"]

    codes = [main([*words, f"--out={path}"]) for path in (tmp_path, tmp_path / "none" / "halves.onnx")]

    errors = capsys.readouterr().err
    assert codes == [2, 2]
    assert f"--out must be a file, {tmp_path} is a folder" in errors
    assert f"--out must be in a folder that is there, {tmp_path / 'none'} is none" in errors
