"""A module of anyone's own code is published as it answers, or refused with the way out."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.utils as old
from torch import Tensor, nn
from torch.ao.nn.quantized import dynamic as quantized
from torch.nn.functional import conv2d, dropout, one_hot
from torch.nn.utils import parametrizations

from models.errors import InvalidValue
from models.golden import Golden
from models.manifest import GOLDEN_FILE, GRAPH_FILE
from models.sampling import latents_from_seeds
from models.store import Artifact, Store
from training.card import CARD_FILE
from training.errors import GraphRefused
from training.export import publish
from training.folding import folded
from training.graph_session import GraphSession
from training.servable import Servable
from training.verify import verify

Z_DIM, CLASSES = 8, 3


class Toy(nn.Module):
    """[N, 3, 8, 12] in [-1, 1], with BatchNorm's statistics measured and the norms that `norm` puts on."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old norms say that there are newer ones
            torch.manual_seed(0)
            self.first = norm(nn.Linear(Z_DIM, 6 * 4 * 6))
            self.batch_norm = nn.BatchNorm2d(6)
            self.last = norm(nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1))
            for _ in range(3):
                Toy.forward(self, torch.randn(16, Z_DIM))
        self.eval()

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).reshape(-1, 6, 4, 6)
        return torch.tanh(3 * self.last(torch.relu(self.batch_norm(x))))


class Conditional(Toy):
    """The same with a class and a w, truncated toward a mean, as in StyleGAN's code."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w_avg", torch.linspace(-1, 1, Z_DIM))
        self.embedding = nn.Linear(CLASSES, Z_DIM)
        self.eval()

    def forward(self, z: Tensor, label: Tensor, psi: Tensor) -> Tensor:
        w = torch.tanh(z) + self.embedding(label)
        return super().forward(torch.lerp(self.w_avg, w, psi[:, None]))


def pixels_of(artifact: Artifact, seeds: range, class_idx: object = 0, psi: object = 1.0) -> np.ndarray:
    rows = len(seeds)
    return GraphSession(artifact.file(GRAPH_FILE)).render(
        latents_from_seeds(seeds, Z_DIM, artifact.manifest.prior),
        np.resize(class_idx, rows).astype(np.int64),
        np.resize(psi, rows).astype(np.float32),
    )


@torch.no_grad()
def meant(images: Tensor) -> np.ndarray:
    """Pixels of images [N, C, H, W] in [-1, 1], in float64."""
    levels = (images.double() + 1) * 127.5
    return levels.clamp(0, 255).round().permute(0, 2, 3, 1).numpy()


def assert_pixels(artifact: Artifact, images: Tensor, *rows: object) -> None:
    found = pixels_of(artifact, range(len(images)), *rows)
    assert np.abs(found - meant(images)).max() <= 1
    assert len(np.unique(found)) > 100  # a picture, not one level


def latents(count: int = 9, prior: str = "normal") -> Tensor:
    return torch.from_numpy(latents_from_seeds(range(count), Z_DIM, prior))


def refusal(module: nn.Module, store: Path, **choices: object) -> str:
    """The sentence with which `module` is refused; nothing is left in the store."""
    with pytest.raises((GraphRefused, InvalidValue)) as refused:
        publish(module, store, **{"name": "toy", "z_dim": Z_DIM} | choices)
    assert not list(store.rglob("*"))
    return str(refused.value)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"version": "1"}, "version must be an integer between 1 and 999999999, got '1'"),
        ({"value_range": [-1, 1]}, "range must be one of -1,1; 0,1; 0,255, got [-1, 1]"),
        ({"layout": 5}, "layout must be NCHW, NHWC or flat:CxHxW (such as flat:3x64x64), got 5"),
    ],
)
def test_an_argument_of_another_type_is_a_sentence(
    choices: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    assert refusal(Toy(), tmp_path, **choices) == sentence


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    told = {"data": "a hundred drawings", "kimg": 4000}
    store = tmp_path_factory.mktemp("store")
    return publish(Toy(), store, name="toy", z_dim=Z_DIM, licence="MIT", training=told)


# What is published


def test_a_module_becomes_an_artifact_with_its_proof_and_its_card(artifact: Artifact) -> None:
    names = sorted(path.name for path in artifact.path.iterdir())
    assert names == ["CARD.md", "golden.npz", "manifest.json", "model.onnx", "preview.png"]
    assert artifact.manifest.img_shape == (8, 12, 3)
    assert (artifact.manifest.truncation, artifact.manifest.licence) == ("none", "MIT")
    assert artifact.manifest.export["largest_difference_to_torch_levels"] <= 1
    assert artifact.manifest.export["checked_batch_sizes"] == [1, 2, 3, 7, 64]
    card = artifact.file(CARD_FILE).read_text()
    assert "Published from Toy, a module of 1,599 parameters" in card
    assert "- data: a hundred drawings\n- kimg: 4000" in card
    golden = Golden.load(artifact.file(GOLDEN_FILE), artifact.manifest)
    assert golden.largest_difference(GraphSession(artifact.file(GRAPH_FILE)).render, artifact.manifest) == 0
    assert len(list(verify(Store(artifact.path.parent.parent), "toy:1"))) == 3
    assert_pixels(artifact, Toy()(latents()))


def test_a_module_with_norms_is_published_and_left_as_it_was(tmp_path: Path) -> None:
    module = Toy(parametrizations.spectral_norm)
    before = copy.deepcopy(module.state_dict())

    artifact = publish(module, tmp_path, name="toy", z_dim=Z_DIM)

    assert_pixels(artifact, module(latents()))
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(one.requires_grad for one in module.parameters())
    assert module(latents()).requires_grad


def test_equal_weights_give_equal_digests_and_nothing_is_told_of_this_machine(
    artifact: Artifact, capfd: pytest.CaptureFixture[str]
) -> None:
    module = Toy()
    module.load_state_dict(Toy().state_dict())

    again = publish(module, Store(artifact.path.parent.parent), name="toy", z_dim=Z_DIM)

    assert (artifact.manifest.version, again.manifest.version) == (1, 2)
    assert artifact.digest == again.digest
    for file in again.manifest.files:
        content = again.file(file).read_bytes()
        assert str(Path(torch.__file__).parent.parent).encode() not in content
        assert str(Path(__file__).parent).encode() not in content
    assert capfd.readouterr() == ("", "")


def _other(images: Tensor) -> Tensor:
    """[N, C, H, W] in [-1, 1] as others answer: [N, H, W, C] in [0, 1]."""
    return images.permute(0, 2, 3, 1) / 2 + 0.5


def test_classes_and_a_psi_in_w_reach_the_module_by_the_call_that_is_given(tmp_path: Path) -> None:
    module = Conditional()

    artifact = publish(
        module,
        tmp_path,
        name="toy",
        z_dim=Z_DIM,
        class_names=["a", "b", "c"],
        truncation="w",
        call=lambda G, z, class_idx, psi: _other(G(z, one_hot(class_idx, CLASSES).float(), psi)),
        value_range="0,1",
        prior="uniform",
    )

    psi = torch.tensor([1, 0.7, 0]).repeat(3)
    label = one_hot(torch.tensor([0, 1, 2, 1, 2, 0, 2, 0, 1]), CLASSES)
    assert artifact.manifest.num_classes == 3
    assert (artifact.manifest.truncation, artifact.manifest.prior) == ("w", "uniform")
    assert artifact.manifest.export["published_from"]["layout"] == "NHWC"
    images = module(latents(prior="uniform"), label.float(), psi)
    assert_pixels(artifact, images, label.argmax(1).numpy(), psi.numpy())


@torch.no_grad()
def test_truncation_in_z_is_added_around_the_module() -> None:
    psi = torch.tensor([1, 0.5, 0]).repeat(3)

    pixels = Servable(Toy(), truncation="z")(latents(), psi)

    assert torch.equal(pixels, Servable(Toy())(latents() * psi[:, None]))


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        (lambda images: images.permute(0, 2, 3, 1), {"layout": "NHWC"}),
        (lambda images: images.flatten(1), {"layout": "flat:3x8x12"}),
        (lambda images: images / 2 + 0.5, {"value_range": "0,1"}),
        (lambda images: images * 127.5 + 127.5, {"value_range": "0,255"}),
        (lambda images: images.half(), {}),
    ],
    ids=["NHWC", "flat", "0,1", "0,255", "fp16"],
)
def test_every_layout_and_range_is_the_same_pixels(
    answer: Callable[[Tensor], Tensor], choices: dict[str, str]
) -> None:
    servable = Servable(Toy(), lambda G, z: answer(G(z)), **choices)

    with torch.no_grad():
        pixels = servable(latents()).numpy()

    assert np.abs(pixels.astype(int) - meant(Toy()(latents()))).max() <= 1


# What is folded


@pytest.mark.parametrize(
    "norm",
    [parametrizations.weight_norm, parametrizations.spectral_norm, old.weight_norm, old.spectral_norm],
    ids=["weight", "spectral", "old weight", "old spectral"],
)
def test_norms_of_weights_are_folded_to_the_last_bit(
    norm: Callable[[nn.Module], nn.Module],
) -> None:
    module = Toy(norm)

    plain = folded(module)

    assert torch.equal(plain(latents()), module(latents()))
    assert sorted(plain.state_dict()) == sorted(Toy().state_dict())
    assert torch.equal(module(latents()), Toy(norm)(latents()))  # copying and folding left it alone


# What is refused


class _Drops(Toy):
    def forward(self, z: Tensor) -> Tensor:
        return dropout(super().forward(z), 0.5, training=True)


class _Noisy(Toy):
    def forward(self, z: Tensor) -> Tensor:
        images = super().forward(z)
        return images + torch.randn_like(images)


class _BatchNorm(Toy):
    """Measures in eval mode too: BatchNorm without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm2d(6, track_running_stats=False).eval()


class _FusedModulation(Toy):
    """A kernel for each row, as StyleGAN2's code has it: one convolution with as many groups as rows."""

    def forward(self, z: Tensor) -> Tensor:
        images = super().forward(z)  # [N, 3, 8, 12]
        kernels = z[:, :3].reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
        merged = conv2d(images.reshape(1, -1, 8, 12), kernels, padding=1, groups=3 * z.shape[0])
        return merged.reshape(images.shape)


class _Branches(Toy):
    def forward(self, z: Tensor, psi: Tensor) -> Tensor:
        if psi != 1:
            z = z * psi[:, None]
        return super().forward(z)


class _BranchesOnAny(Toy):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(-z if (z > 3).any() else z)


class _Static(Toy):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).reshape(len(z), 3, 8, 12)


class _Merges(Toy):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).mean(dim=0, keepdim=True)


class _Centres(Toy):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z - z.mean(dim=0))


class _Locked(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("module", "choices", "sentence"),
    [
        ("toy.pt", {}, "module must be a torch.nn.Module, got 'toy.pt'"),
        (nn.LazyLinear(144).eval(), {}, "module must hold its weights, weight has no values yet"),
        (nn.Linear(Z_DIM, 144, device="meta").eval(), {}, "weight has no values yet: load them"),
        (_Locked(), {}, "the module cannot be copied: TypeError: cannot pickle '_thread.lock' object. Take"),
        (Toy(), {"training": [1]}, "training must be facts by name, got [1]"),
        (Toy().train(), {}, "module must be in eval mode, it (Toy) is in training mode: call module.eval()"),
        (_Drops(), {}, "nothing in training mode, its forward (_Drops) is (aten.dropout.default)"),
        (_Noisy(), {}, "draw no random numbers, its forward (_Noisy) does (aten.randn_like.default)"),
        (_BatchNorm(), {}, "nothing in training mode, batch_norm (BatchNorm2d) is (aten.batch_norm.default)"),
        (_FusedModulation(), {}, "for all rows, its forward (_FusedModulation) has as many groups as rows"),
        (Toy(), {"training": {"kimg": {1, 2}}}, "training must be what JSON can hold, got {'kimg': {1, 2}}"),
        (_Branches(), {"truncation": "w"}, "must not decide in Python by the values of its inputs, "
         "test_publish.py line "),
        (_BranchesOnAny(), {}, "`return super().forward(-z if (z > 3).any() else z)`. Write it for each row"),
        (_Static(), {}, "the batch size must stay free, the module's forward fixes it"),
        (_Merges(), {}, "must give an image a row, for 3 rows it gives 1"),
        (_Centres(), {}, "a row's pixels must not depend on its batch mates"),
        (Toy(), {"truncation": "w"}, "takes 2 positional arguments but 3 were given (it was called with "
         "[3, 8], [3])"),
        (Toy(), {"z_dim": 9}, "cannot be multiplied (3x9 and 8x144)"),
        (Toy(), {"z_dim": 0}, "z_dim must be an integer between 1 and 65536, got 0"),
        (Toy(), {"value_range": "0,255"}, "all would be black; give the range -1,1"),
        (Toy(), {"value_range": "0,2"}, "range must be one of -1,1; 0,1; 0,255, got '0,2'"),
        (Toy(), {"layout": "CHW"}, "layout must be NCHW, NHWC or flat:CxHxW"),
        (Toy(), {"layout": "NHWC"}, "must have 1 (grey) or 3 (RGB) channels"),
        (Toy(), {"call": lambda G, z: [G(z)]}, "must give one tensor of images, it gives list"),
        (Toy(), {"name": "../toy"}, "name must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_the_way_out(
    module: nn.Module, choices: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    assert sentence in refusal(module, tmp_path, **choices)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantized_module_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Identity().eval(), quantized.Linear(Z_DIM, 144))
    module.training = False  # as after quantisation of a module in eval mode

    assert "module must compute in floats, 1 (Linear) is quantized: publish the module that" in refusal(
        module, tmp_path
    )


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    module = torch.jit.trace(Toy(), latents())

    assert "module must be Python code, got TorchScript" in refusal(module, tmp_path)


def test_what_is_doubtful_is_warned_of(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="^toy: .* none below 0: if 0 is black, the range is 0,1$"),
        pytest.warns(UserWarning, match="^toy: truncation_psi changes nothing: the output does not depend"),
    ):
        publish(Toy(), tmp_path, name="toy", z_dim=Z_DIM, truncation="w", call=lambda G, z, psi: G(z).abs())


def test_a_refusal_prints_nothing_of_the_tracing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refusal(_BranchesOnAny(), tmp_path)

    assert capfd.readouterr() == ("", "")
