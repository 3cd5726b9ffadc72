"""A generator brought in as ONNX is served as it was meant, or refused with the way out."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn
from toy_foreign import CHANNELS, CLASSES, HEIGHT, WIDTH, Z_DIM, Foreign

from models.errors import InvalidValue, VersionExists
from models.golden import Golden
from models.manifest import GOLDEN_FILE, GRAPH_FILE
from models.sampling import latents_from_seeds
from models.store import Artifact, Store
from training.__main__ import main
from training.errors import GraphRefused
from training.graph_session import GraphSession
from training.importing import Choices, import_graph
from training.pixels import check_values
from training.verify import render_artifact, verify

ROOT = Path(__file__).parents[2]


def bring(model: onnx.ModelProto, folder: Path, **choices: object) -> Artifact:
    """Save `model` and import it into `folder`/store."""
    path = folder / "foreign.onnx"
    onnx.save(model, path)
    return import_graph(path, Store(folder / "store"), name="toy", choices=Choices(**choices)).artifact


def refusal(model: onnx.ModelProto, folder: Path, **choices: object) -> str:
    """The sentence with which `model` is refused; nothing is left in the store."""
    with pytest.raises((GraphRefused, InvalidValue)) as refused:
        bring(model, folder, **choices)
    assert not list((folder / "store").rglob("*"))
    return str(refused.value)


def rows_of(artifact: Artifact, count: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    latents = latents_from_seeds(range(count), Z_DIM, artifact.manifest.prior)
    return latents, np.arange(count) % CLASSES, np.resize([1, 0.7, 0], count).astype(np.float32)


def pixels_of(artifact: Artifact) -> np.ndarray:
    return GraphSession(artifact.file(GRAPH_FILE)).render(*rows_of(artifact))


def assert_serves(artifact: Artifact, foreign: Foreign, levels: int = 0) -> None:
    """The artifact gives the pixels that `foreign` means, to `levels` grey levels."""
    wanted = foreign.pixels(*rows_of(artifact))
    assert np.abs(pixels_of(artifact).astype(int) - wanted).max() <= levels


# What is taken in


def test_an_imported_generator_is_an_artifact_with_its_proof_and_its_card(tmp_path: Path) -> None:
    artifact = bring(Foreign().model(), tmp_path)

    names = sorted(path.name for path in artifact.path.iterdir())
    assert names == ["CARD.md", "golden.npz", "manifest.json", "model.onnx", "preview.png"]
    assert (artifact.manifest.z_dim, artifact.manifest.img_shape) == (Z_DIM, (HEIGHT, WIDTH, CHANNELS))
    assert (artifact.manifest.num_classes, artifact.manifest.truncation) == (0, "none")
    assert len(list(verify(Store(tmp_path / "store"), "toy"))) == 3
    golden = Golden.load(artifact.file(GOLDEN_FILE), artifact.manifest)
    assert golden.largest_difference(GraphSession(artifact.file(GRAPH_FILE)).render, artifact.manifest) == 0
    assert_serves(artifact, Foreign())


@pytest.mark.parametrize(
    "foreign",
    [
        Foreign(batch=1),
        Foreign(batch=4),
        Foreign(z_rank=4),
        Foreign(z_rank=4, batch=1),
        Foreign(classes="int64"),
        Foreign(classes="int32"),
        Foreign(classes="column"),
        Foreign(classes="column", batch=1),
        Foreign(psi="vector"),
        Foreign(psi="column", classes="int32", batch=2),
        Foreign(opset=7),
        Foreign(opset=8, batch=1, psi="column"),
        Foreign(opset=9),
        Foreign(opset=10, classes="int64", psi="vector", batch=1),
        Foreign(opset=13),
    ],
    ids=str,
)
def test_every_common_interface_is_found_or_named_and_gives_the_meant_pixels(
    foreign: Foreign, tmp_path: Path
) -> None:
    artifact = bring(foreign.model(), tmp_path, truncation_input="psi" if foreign.psi else None)

    assert artifact.manifest.num_classes == (CLASSES if foreign.classes else 0)
    assert artifact.manifest.truncation == ("z" if foreign.psi else "none")
    assert_serves(artifact, foreign)


@pytest.mark.parametrize(
    "foreign", [Foreign(classes="one_hot"), Foreign(classes="one_hot", batch=1)], ids=str
)
def test_one_hot_classes_are_made_of_class_idx(foreign: Foreign, tmp_path: Path) -> None:
    artifact = bring(foreign.model(), tmp_path, latents_input="z", class_input="y")

    assert artifact.manifest.num_classes == CLASSES
    assert_serves(artifact, foreign)


@pytest.mark.parametrize(
    ("elem_type", "levels"), [(TensorProto.DOUBLE, 0), (TensorProto.FLOAT16, 3)], ids=["double", "float16"]
)
def test_other_floats_are_cast_at_both_ends(elem_type: int, levels: int, tmp_path: Path) -> None:
    foreign = Foreign(z_type=elem_type, classes="one_hot", psi="column")

    artifact = bring(foreign.model(), tmp_path, latents_input="z", class_input="y", truncation_input="psi")

    assert_serves(artifact, foreign, levels)
    assert artifact.manifest.export["precision"] == {TensorProto.DOUBLE: "fp64"}.get(elem_type, "fp16")


@pytest.mark.parametrize("value_range", ["0,1", "0,255"])
def test_the_range_scales_to_the_same_pixels(value_range: str, tmp_path: Path) -> None:
    artifact = bring(Foreign(value_range=value_range).model(), tmp_path, value_range=value_range)

    assert_serves(artifact, Foreign(), levels=1)  # 0.5 + x/2 rounds elsewhere than x does


@pytest.mark.parametrize(
    ("layout", "flag"), [("NHWC", None), ("NHWC", "NHWC"), ("flat", f"flat:{CHANNELS}x{HEIGHT}x{WIDTH}")]
)
def test_the_layout_is_turned_to_nhwc(layout: str, flag: str | None, tmp_path: Path) -> None:
    artifact = bring(Foreign(layout=layout).model(), tmp_path, layout=flag)

    assert_serves(artifact, Foreign())


def test_an_output_of_bytes_is_taken_as_it_is(tmp_path: Path) -> None:
    to_bytes = helper.make_node("Cast", ["x"], ["bytes"], to=TensorProto.UINT8)
    model = Foreign(value_range="0,255").model(to_bytes)
    model.graph.output[0].name = "bytes"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8

    artifact = bring(model, tmp_path)

    floors = GraphSession(artifact.file(GRAPH_FILE)).render(*rows_of(artifact)).astype(int)
    assert np.abs(floors - Foreign().pixels(*rows_of(artifact))).max() <= 1


def test_a_chosen_output_drops_what_only_the_others_need(tmp_path: Path) -> None:
    noise = helper.make_node("RandomNormalLike", ["x"], ["noise"])
    noisy = helper.make_node("Add", ["x", "noise"], ["noisy"])
    model = Foreign().model(noise, noisy, outputs=("noisy",))

    artifact = bring(model, tmp_path, output="x")

    assert_serves(artifact, Foreign())
    assert "Random" not in str(onnx.load(artifact.file(GRAPH_FILE)).graph.node)


def test_truncation_in_w_is_told_from_truncation_in_z(tmp_path: Path) -> None:
    foreign = Foreign(psi="vector", truncation="w")

    artifact = bring(foreign.model(), tmp_path, truncation_input="psi")

    assert artifact.manifest.truncation == "w"
    assert_serves(artifact, foreign)


def test_the_prior_is_what_seeds_draw_from(tmp_path: Path) -> None:
    artifact = bring(Foreign().model(), tmp_path, prior="uniform")

    uniform = np.random.RandomState(7).uniform(-1, 1, (1, Z_DIM)).astype(np.float32)
    assert np.array_equal(render_artifact(artifact, [7]), Foreign().pixels(uniform))
    assert "RandomState(seed).uniform(-1, 1)" in artifact.file("CARD.md").read_text()


def test_an_open_width_of_the_latents_is_asked_for_and_taken(tmp_path: Path) -> None:
    model = Foreign().model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"

    sentence = refusal(model, tmp_path)
    artifact = bring(model, tmp_path, z_dim=Z_DIM)

    assert "the width of the latents must be a number, it is open in z (float NxN): give --z-dim" in sentence
    assert_serves(artifact, Foreign())


def test_names_that_serving_uses_may_mean_something_else_in_the_file(tmp_path: Path) -> None:
    model = Foreign(psi="vector").model()
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [
                {"features": "images", "psi": "latents", "z": "truncation_psi"}.get(n, n) for n in names
            ]
    model.graph.input[0].name, model.graph.input[1].name = "truncation_psi", "latents"

    artifact = bring(model, tmp_path, latents_input="truncation_psi", truncation_input="latents")

    assert_serves(artifact, Foreign(psi="vector"))


def test_a_branch_inside_the_graph_keeps_what_it_reads_from_outside(tmp_path: Path) -> None:
    def branch(operator: str) -> onnx.GraphProto:
        node = helper.make_node(operator, ["x", "half"], ["chosen"])
        output = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)
        return helper.make_graph([node], operator, [], [output])

    choose = helper.make_node("If", ["always"], ["y"], then_branch=branch("Mul"), else_branch=branch("Div"))
    model = Foreign().model(choose)
    for name, value in (("always", np.array(True)), ("half", np.float32(0.5)), ("unused", np.float32(1))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.output[0].name = "y"

    artifact = bring(model, tmp_path)

    z = rows_of(artifact)[0]
    halved = (Foreign().pixels(z).astype(float) / 127.5 - 1) / 2
    assert np.abs(pixels_of(artifact) - (halved + 1) * 127.5).max() <= 1
    assert "unused" not in str(onnx.load(artifact.file(GRAPH_FILE)))


def test_a_shape_that_is_computed_for_the_batch_alone_becomes_a_constant(tmp_path: Path) -> None:
    model = Foreign().model(
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    )
    for name, values in (("zero", [0]), ("rest", [CHANNELS, WIDTH, HEIGHT])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 6, 4]))

    artifact = bring(model, tmp_path)

    operators = {node.op_type for node in onnx.load(artifact.file(GRAPH_FILE)).graph.node}
    assert operators & {"Shape", "Gather", "Concat"} == set()
    nchw = Foreign().pixels(rows_of(artifact)[0]).transpose(0, 3, 1, 2)
    assert np.array_equal(pixels_of(artifact), nchw.reshape(-1, 3, WIDTH, HEIGHT).transpose(0, 2, 3, 1))


def test_functions_of_the_files_own_are_written_out(tmp_path: Path) -> None:
    model = Foreign().model(helper.make_node("Halve", ["x"], ["y"], domain="mine"))
    half = helper.make_node("Constant", [], ["half"], value_float=0.5)
    mul = helper.make_node("Mul", ["a", "half"], ["b"], name="in_function")
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("mine", "Halve", ["a"], ["b"], [half, mul], opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.output[0].name = "y"

    artifact = bring(model, tmp_path)

    assert len(onnx.load(artifact.file(GRAPH_FILE)).functions) == 0
    assert pixels_of(artifact).std() < 0.6 * Foreign().pixels(rows_of(artifact)[0]).std()


def test_large_images_are_checked_and_shown_a_few_at_a_time(tmp_path: Path) -> None:
    sizes = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest")
    model = Foreign(batch=1).model(sizes)
    model.graph.initializer.append(
        numpy_helper.from_array(np.array([1, CHANNELS, 520, 600], np.int64), "sizes")
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 520, 600]))

    artifact = bring(model, tmp_path)

    assert artifact.manifest.export["checked_batch_sizes"] == [1, 2, 3]
    with Image.open(artifact.file("preview.png")) as preview:
        assert preview.size == (1200, 1040)


def test_weights_listed_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = Foreign().model()
    model.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [Z_DIM, 72]))
    model.ir_version = 3

    assert_serves(bring(model, tmp_path), Foreign())


def test_external_data_in_the_folder_is_taken_into_the_one_file(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    onnx.save(
        Foreign().model(),
        inside / "g.onnx",
        save_as_external_data=True,
        location="g.weights",
        size_threshold=0,
    )

    artifact = import_graph(inside / "g.onnx", Store(outside), name="toy").artifact
    (inside / "g.weights").unlink()

    assert_serves(artifact, Foreign())
    assert list(artifact.manifest.export["imported_from"]["external_data"]) == ["g.weights"]


def test_the_manifest_and_the_card_say_where_it_came_from_and_never_a_path(tmp_path: Path) -> None:
    secret = "/home/someone/secret"
    model = Foreign().model()
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = secret
    model.graph.node[0].attribute.append(helper.make_attribute("allowzero", 0, doc_string=secret))
    model.graph.input[0].doc_string = model.graph.initializer[0].doc_string = secret
    model.domain = model.graph.name = secret
    for owner in (model, model.graph.node[0], model.graph, model.graph.initializer[0]):
        owner.metadata_props.add(key="source", value=secret)

    artifact = bring(model, tmp_path)

    origin = artifact.manifest.export["imported_from"]
    assert (origin["file"], origin["producer"], origin["opset"]) == ("foreign.onnx", "by hand", 18)
    assert origin["inputs"] == [f"z (float Nx{Z_DIM})"]
    assert artifact.manifest.training == {}
    card = artifact.file("CARD.md").read_text()
    assert f"Imported from foreign.onnx, sha256 {origin['sha256'][:12]}" in card
    for file in artifact.path.iterdir():
        assert b"secret" not in file.read_bytes()
        assert str(tmp_path).encode() not in file.read_bytes()


def test_the_same_file_gives_the_same_digest_and_the_next_version(tmp_path: Path) -> None:
    first, second = (bring(Foreign().model(), tmp_path) for _ in range(2))

    assert (first.manifest.version, second.manifest.version) == (1, 2)
    assert first.digest == second.digest
    with pytest.raises(VersionExists):
        import_graph(tmp_path / "foreign.onnx", Store(tmp_path / "store"), name="toy", version=1)


def test_class_names_name_the_classes(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "e")

    artifact = bring(Foreign(classes="int64").model(), tmp_path, class_names=names)

    assert artifact.manifest.class_names == names


# The batch that a file fixes


def resized(*, batch: int) -> onnx.ModelProto:
    """A fixed batch in each operator that holds one: Reshape with -1 elsewhere, Expand, Resize to sizes."""
    model = Foreign(batch=batch).model()
    graph = model.graph
    constants = {
        "expand_to": [batch, CHANNELS, HEIGHT, WIDTH],
        "sizes": [batch, CHANNELS, 2 * HEIGHT, WIDTH],
        "merged": [batch * CHANNELS, 1, -1, WIDTH],
        "split": [batch, CHANNELS, -1, WIDTH],
    }
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items())
    graph.node.extend(
        [
            helper.make_node("Expand", ["x", "expand_to"], ["expanded"]),
            helper.make_node("Resize", ["expanded", "", "", "sizes"], ["resized"], mode="nearest"),
            helper.make_node("Reshape", ["resized", "merged"], ["one_channel"]),
            helper.make_node("Reshape", ["one_channel", "split"], ["y"]),
        ]
    )
    del graph.output[:]
    shape = [batch, CHANNELS, 2 * HEIGHT, WIDTH]
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    return model


class _Torch(nn.Module):
    """Reshapes by numbers and by sizes, normalises each image, upsamples to a size."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(Z_DIM, 6 * 4 * 4)
            self.norm = nn.InstanceNorm2d(6)
            self.to_image = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(self.linear(z).view(z.size(0), 6, 4, 4))
        batch, channels, height, width = x.shape
        x = x.reshape(batch * channels, 1, height, width).flip(3).reshape(batch, channels, height, width)
        x = nn.functional.interpolate(x, size=(7, 9))
        return torch.tanh(self.to_image(x))


@pytest.mark.parametrize("dynamo", [True, False])
def test_what_torch_exports_for_one_image_is_freed(dynamo: bool, tmp_path: Path) -> None:
    G, path = _Torch().eval(), tmp_path / "g.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one exporter is the old one, the other uses what is deprecated
        torch.onnx.export(G, (torch.randn(1, Z_DIM),), path, dynamo=dynamo, verbose=False)

    artifact = import_graph(path, Store(tmp_path / "store"), name="toy").artifact

    with torch.no_grad():
        images = G(torch.tensor(rows_of(artifact)[0])).permute(0, 2, 3, 1).numpy()
    wanted = np.rint((images + 1) * 127.5)
    assert np.abs(pixels_of(artifact) - wanted).max() <= 1
    assert artifact.manifest.export["imported_from"]["batch_size"] == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_freed_in_reshape_expand_and_resize(batch: int, tmp_path: Path) -> None:
    artifact = bring(resized(batch=batch), tmp_path)

    assert artifact.manifest.img_height == 2 * HEIGHT
    wanted = Foreign().pixels(*rows_of(artifact)).repeat(2, axis=1)
    assert np.array_equal(pixels_of(artifact), wanted)


def test_a_free_input_with_a_fixed_batch_inside_is_freed_too(tmp_path: Path) -> None:
    model = resized(batch=1)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    artifact = bring(model, tmp_path)

    assert len(pixels_of(artifact)) == 9


def test_a_batch_that_cannot_be_freed_is_refused_with_the_node_that_fails(tmp_path: Path) -> None:
    model = Foreign(batch=1).model(
        helper.make_node("Squeeze", ["x", "zero"], ["squeezed"], name="drop_batch"),
        helper.make_node("Unsqueeze", ["squeezed", "zero"], ["y"]),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    model.graph.output[0].name = "y"

    sentence = refusal(model, tmp_path)

    assert "the graph cannot run 3 rows at once, drop_batch (Squeeze) cannot" in sentence
    assert "Export it with a dynamic batch: dynamic_shapes (or dynamic_axes)" in sentence


def test_a_batch_that_is_lost_inside_is_refused_with_the_node_that_loses_it(tmp_path: Path) -> None:
    model = Foreign(batch=1).model(
        helper.make_node("Slice", ["x", "zero", "one"], ["y"], name="first_row"),
    )
    for name, value in (("zero", 0), ("one", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    model.graph.output[0].name = "y"

    sentence = refusal(model, tmp_path)

    assert "the graph must give 3 images for 3 rows, the output's shape is [1, 3, 4, 6]" in sentence
    assert "look at first_row (Slice)" in sentence


# What is refused


def test_a_random_node_is_refused_by_name(tmp_path: Path) -> None:
    model = Foreign().model(
        helper.make_node("RandomNormalLike", ["x"], ["noise"], name="style_noise"),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    )
    model.graph.output[0].name = "y"

    assert "no random node, style_noise is RandomNormalLike: a seed would not name an image" in refusal(
        model, tmp_path
    )


def test_statistics_over_the_batch_are_refused_by_name(tmp_path: Path) -> None:
    model = Foreign().model(
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], name="batch_mean"),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axis"))
    model.graph.output[0].name = "y"

    sentence = refusal(model, tmp_path)

    assert "a row's pixels must not depend on its batch mates" in sentence
    assert sentence.endswith("The node to look at is batch_mean (ReduceMean)")


def test_batch_normalization_in_training_mode_is_refused_by_name(tmp_path: Path) -> None:
    constants = {name: np.ones(CHANNELS, np.float32) for name in ("s", "b", "m", "v")}
    norm = helper.make_node(
        "BatchNormalization", ["x", *constants], ["y", "m2", "v2"], name="norm", training_mode=1
    )
    model = Foreign().model(norm)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model.graph.output[0].name = "y"

    assert "norm (BatchNormalization) is: an image would depend on its batch mates" in refusal(
        model, tmp_path
    )


def test_operators_of_another_domain_are_refused_by_name(tmp_path: Path) -> None:
    model = Foreign().model(helper.make_node("Blur", ["x"], ["y"], name="blur", domain="my.ops"))
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    model.graph.output[0].name = "y"

    assert "blur is Blur of the domain 'my.ops': write it with standard operators" in refusal(model, tmp_path)


def two_outputs() -> onnx.ModelProto:
    return Foreign().model(helper.make_node("Neg", ["x"], ["mask"]), outputs=("mask",))


def with_second_float(name: str = "c") -> onnx.ModelProto:
    model = Foreign().model(
        helper.make_node("ReduceMax", [name, "axes"], ["most"]), helper.make_node("Add", ["x", "most"], ["y"])
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.int64), "axes"))
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]))
    model.graph.output[0].name = "y"
    return model


def with_scalar_psi() -> onnx.ModelProto:
    model = Foreign().model(helper.make_node("Mul", ["x", "psi"], ["y"]))
    model.graph.input.append(helper.make_tensor_value_info("psi", TensorProto.FLOAT, []))
    model.graph.output[0].name = "y"
    return model


def with_integer_latents() -> onnx.ModelProto:
    model = Foreign().model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return model


def with_mask_output() -> onnx.ModelProto:
    model = Foreign().model(helper.make_node("Shape", ["x"], ["y"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, [4]))
    return model


def with_open_width() -> onnx.ModelProto:
    model = Foreign().model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    return model


def not_a_number() -> onnx.ModelProto:
    model = Foreign().model(helper.make_node("Sqrt", ["x"], ["y"]))
    model.graph.output[0].name = "y"
    return model


@pytest.mark.parametrize(
    ("model", "choices", "sentence"),
    [
        (two_outputs(), {}, "several outputs, x (float Nx3x4x6), mask (float without a shape): name the "
         "one of images with --output"),
        (Foreign().model(), {"output": "img"}, "--output must name an output of the graph, got 'img': it has "
         "x (float Nx3x4x6)"),
        (with_mask_output(), {}, "the output must be floats or uint8, it is y (int64 4)"),
        (with_second_float(), {}, "among z (float Nx8), c (float Nx4) there are 2: name a one-hot input of "
         "classes with --class-input, else the latents with --latents-input"),
        (with_integer_latents(), {}, "among z (int64 Nx8) there is none: name the latents with "
         "--latents-input"),
        (with_second_float(), {"latents_input": "z"}, "every input must have a part to play, c (float Nx4) "
         "has none: name it with --class-input or --truncation-input"),
        (Foreign().model(), {"latents_input": "w"}, "--latents-input must name an input that reaches the "
         "output, got 'w': these do: z (float Nx8)"),
        (Foreign().model(), {"class_input": "y"}, "--class-input must name an input that reaches the output"),
        (with_scalar_psi(), {"truncation_input": "psi"}, "--truncation-input must be floats [N], one psi a "
         "row, it is psi (float without a shape)"),
        (Foreign(classes="int64").model(), {"num_classes": 9}, "Gather) cannot: indices element out of data "
         "bounds"),
        (Foreign().model(), {"num_classes": 9}, "--num-classes and --class-names must be left out"),
        (Foreign(classes="one_hot").model(), {"latents_input": "z", "class_input": "y", "num_classes": 9},
         "--num-classes must be 5, the width of y (float Nx5), got 9"),
        (with_open_width(), {"z_dim": 10**9}, "the latents must be at most 65536 numbers wide, they are "
         "1000000000"),
        (Foreign().model(), {"z_dim": 9}, "--z-dim must be 8, the width of z (float Nx8), got 9"),
        (Foreign(layout="flat").model(), {}, "the output must be images with 1 or 3 channels in dimension 1 "
         "(NCHW) or 3 (NHWC), its shape is [N, 72]"),
        (Foreign(layout="flat").model(), {"layout": "NCHW"}, "must have rank 4 for the layout NCHW"),
        (Foreign(layout="flat").model(), {"layout": "flat:3x4x4"}, "flat:3x4x4 has 48 and the output [72] "
         "has 72"),
        (Foreign().model(), {"layout": "NHWC"}, "must have 1 (grey) or 3 (RGB) channels"),
        (Foreign(value_range="0,255").model(), {}, "must be in the range -1,1, but the values of 64 seeds "
         "are between"),
        (Foreign().model(), {"value_range": "0,255"}, "all would be black; give the range -1,1"),
        (Foreign().model(), {"value_range": "0,1"}, "give the range -1,1"),
        (not_a_number(), {}, "the output must be finite, seed 0 gives NaN or infinity"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_the_flag_or_the_way_out(
    model: onnx.ModelProto, choices: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    assert sentence in refusal(model, tmp_path, **choices)


def test_a_number_of_classes_that_is_not_in_the_graph_is_asked_for(tmp_path: Path) -> None:
    foreign = Foreign(classes="column")  # what goes to the table is no longer the input
    model = foreign.model()
    model.graph.node.insert(0, helper.make_node("Mod", ["y", "many"], ["y_mod"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(CLASSES, np.int64), "many"))
    for node in model.graph.node[1:]:
        node.input[:] = ["y_mod" if name == "y" else name for name in node.input]

    sentence = refusal(model, tmp_path)
    artifact = bring(model, tmp_path, num_classes=CLASSES)

    assert (
        "the number of classes of y (int64 Nx1) is not written in the graph: give --num-classes" in sentence
    )
    assert_serves(artifact, foreign)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"value_range": "0,2"}, "range must be one of -1,1; 0,1; 0,255, got '0,2'"),
        ({"layout": "CHW"}, "layout must be NCHW, NHWC or flat:CxHxW (such as flat:3x64x64), got 'CHW'"),
        (
            {"num_classes": 3, "class_names": ("a",)},
            "--class-names must be one name for each of the 3 classes",
        ),
    ],
)
def test_a_choice_that_breaks_its_rule_is_refused(choices: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        Choices(**choices)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not onnx", b"PK\x03\x04 a checkpoint"])
def test_a_file_that_is_no_onnx_is_refused_with_the_way_to_one(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "g.pt"
    path.write_bytes(content)

    with pytest.raises(GraphRefused, match=r"g\.pt is no ONNX file.*must be exported first"):
        import_graph(path, Store(tmp_path / "store"), name="toy")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.dictionaries(st.integers(1, 1_500), st.integers(0, 255), min_size=1, max_size=6))
def test_a_damaged_file_is_imported_or_refused_with_a_sentence(
    damage: dict[int, int], tmp_path: Path
) -> None:
    content = bytearray(Foreign(batch=1, classes="int64").model().SerializeToString())
    for place, byte in damage.items():  # nodes stand at the beginning, inputs and outputs at the end
        content[place if place <= 1_000 else 1_000 - place] = byte
    path = tmp_path / "g.onnx"
    path.write_bytes(content)

    with contextlib.suppress(GraphRefused, InvalidValue):
        import_graph(path, Store(tmp_path / "store"), name="toy")


def test_a_file_above_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse: no disk is used

    with pytest.raises(GraphRefused, match=r"must have at most 2,147,483,647 bytes.*it has 2,147,483,648"):
        import_graph(path, Store(tmp_path / "store"), name="toy")


def test_models_of_the_same_graph_with_more_classes_have_digests_of_their_own(tmp_path: Path) -> None:
    model = Foreign(classes="column").model()
    model.graph.node.insert(0, helper.make_node("Mod", ["y", "many"], ["y_mod"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(CLASSES, np.int64), "many"))
    for node in model.graph.node[1:]:
        node.input[:] = ["y_mod" if name == "y" else name for name in node.input]

    digests = {bring(model, tmp_path, num_classes=many).digest for many in (CLASSES - 2, CLASSES)}

    assert len(digests) == 2  # a seed's class, and so its image, is seed % num_classes


def with_batch(batch: int) -> onnx.ModelProto:
    model = Foreign().model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    return model


def test_a_negative_batch_is_an_open_one(tmp_path: Path) -> None:
    assert_serves(bring(with_batch(-1), tmp_path), Foreign())


def test_a_weight_that_is_no_number_is_refused_though_few_images_would_show_it(tmp_path: Path) -> None:
    model = Foreign(classes="int64").model()
    (table,) = [one for one in model.graph.initializer if list(one.dims)[:1] == [CLASSES]]
    values = numpy_helper.to_array(table).copy()
    values[-1, -1] = np.nan
    table.CopyFrom(numpy_helper.from_array(values, table.name))

    assert refusal(model, tmp_path).startswith(f"the weights must be numbers, '{table.name}' has NaN")


def pointing_at(location: str, folder: Path) -> Path:
    """A file whose weights W lie at `location`."""
    model = Foreign().model()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    folder.mkdir()
    path = folder / "g.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "link.bin", "down/../../secret.bin", "", "a\0b"]
)
def test_external_data_outside_the_files_folder_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4 * Z_DIM * 72))
    path = pointing_at(location, tmp_path / "in")
    (tmp_path / "in" / "link.bin").symlink_to(tmp_path / "secret.bin")

    with pytest.raises(GraphRefused, match=r"external data must lie in the folder of the file, that of W is"):
        import_graph(path, Store(tmp_path / "store"), name="toy")


def test_external_data_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    path = pointing_at("weights.bin", tmp_path / "in")

    with pytest.raises(GraphRefused, match=r"of W, 'weights.bin', is not there: copy it into the folder"):
        import_graph(path, Store(tmp_path / "store"), name="toy")
    with (tmp_path / "in" / "weights.bin").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(GraphRefused, match=r"g\.onnx with its external data must have at most"):
        import_graph(path, Store(tmp_path / "store"), name="toy")


# What is let pass with a word of caution


@pytest.mark.parametrize(
    ("images", "value_range", "caution"),
    [
        (np.linspace(0, 1, 4 * 3 * 4), "-1,1", "none below 0: if 0 is black, the range is 0,1"),
        (np.linspace(-1.1, 1.1, 4 * 3 * 4), "-1,1", "of them outside the range -1,1: they are clamped"),
        (np.tile(np.linspace(-1, 1, 12), 4), "-1,1", "4 seeds give one image"),
        (np.linspace(-1, 1, 4 * 3 * 4), "-1,1", None),
    ],
)
def test_values_that_fit_badly_are_told(images: np.ndarray, value_range: str, caution: str | None) -> None:
    cautions = check_values(images.reshape(4, 2, 2, 3).astype(np.float32), value_range)

    assert len(cautions) == (caution is not None)
    assert caution is None or caution in cautions[0]


# The command


def test_the_command_takes_every_flag_and_says_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = Foreign(classes="one_hot", psi="vector", value_range="0,1", layout="NHWC", batch=1)
    onnx.save(foreign.model(), tmp_path / "g.onnx")
    flags = ["--latents-input", "z", "--class-input", "y", "--truncation-input", "psi", "--output", "x"]
    flags += ["--range", "0,1", "--layout", "NHWC", "--prior", "uniform", "--class-names", "a,b,c,d,e"]
    flags += ["--version", "7", "--licence", "MIT", "--z-dim", "8", "--num-classes", "5"]

    code = main(
        ["import", str(tmp_path / "g.onnx"), "--name", "mine", "--store", str(tmp_path / "store"), *flags]
    )

    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert "published mine:7" in said.out
    assert "largest difference to g.onnx: 0 of 255 grey levels" in said.out
    manifest = Store(tmp_path / "store").resolve("mine").manifest
    assert (manifest.prior, manifest.licence, manifest.class_names[4]) == ("uniform", "MIT", "e")


def test_a_range_that_begins_with_a_minus_is_no_flag(tmp_path: Path) -> None:
    onnx.save(Foreign().model(), tmp_path / "g.onnx")

    assert (
        main(["import", str(tmp_path / "g.onnx"), "--name=a", "--store", str(tmp_path), "--range", "-1,1"])
        == 0
    )


@pytest.mark.parametrize(
    ("file", "code", "sentence"),
    [
        ("nowhere.onnx", 2, "nowhere.onnx: No such file or directory"),
        ("no.onnx", 1, "no.onnx is no ONNX file"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr(
    file: str, code: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no")

    returned = main(["import", str(tmp_path / file), "--name", "a", "--store", str(tmp_path / "store")])

    said = capsys.readouterr().err
    assert (returned, said.count("\n")) == (code, 1)
    assert sentence in said


def test_a_caution_is_told_and_the_generator_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(Foreign(value_range="0,1").model(), tmp_path / "g.onnx")

    code = main(["import", str(tmp_path / "g.onnx"), "--name", "mine", "--store", str(tmp_path)])

    said = capsys.readouterr()
    assert (code, said.err.count("\n")) == (0, 1)
    assert said.err.startswith("gantrain: caution: the values of 64 seeds are between")
    assert "published mine:1" in said.out


def in_a_process_without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `gantrain` where `module` cannot be imported."""
    code = (
        f"import sys\nsys.modules[{module!r}] = None\n"
        f"from training.__main__ import main\nsys.exit(main({list(arguments)!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_import_needs_no_torch_and_names_the_extra_it_needs(tmp_path: Path) -> None:
    onnx.save(Foreign(batch=1).model(), tmp_path / "g.onnx")
    arguments = ("import", str(tmp_path / "g.onnx"), "--name", "mine", "--store", str(tmp_path / "store"))

    without_torch = in_a_process_without("torch", *arguments)
    without_onnx = in_a_process_without("onnx", *arguments)

    assert (without_torch.returncode, without_torch.stderr) == (0, "")
    assert without_onnx.returncode == 2
    assert "this needs onnx, which is not installed: pip install -e '.[onnx]'" in without_onnx.stderr
