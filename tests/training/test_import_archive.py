"""A torch.export archive is served as torch runs it; what could run code is not read unasked."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from models.errors import InvalidValue
from models.manifest import GRAPH_FILE
from models.sampling import latents_from_seeds
from models.store import Artifact, Store
from training.__main__ import main
from training.errors import GraphRefused
from training.graph_session import GraphSession
from training.importing import Choices, import_graph

Z_DIM, CLASSES = 8, 5


class Toy(nn.Module):
    """z, a class and a psi toward a mean; two outputs, of which the second is the images."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(CLASSES, Z_DIM)
            self.linear = nn.Linear(Z_DIM, 3 * 4 * 6)
        self.register_buffer("w_avg", torch.linspace(-1, 1, Z_DIM))
        self.eval()

    def forward(self, z: Tensor, label: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        w = torch.tanh(z + self.embedding(label))
        w = self.w_avg + psi[:, None] * (w - self.w_avg)
        return w, torch.tanh(self.linear(w)).reshape(-1, 3, 4, 6)


class Trains(Toy):
    def forward(self, z: Tensor, label: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        w, images = super().forward(z, label, psi)
        return w, dropout(images, 0.5, training=self.training)


class Measures(Toy):
    """In training mode its BatchNorm normalises by the batch that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(Z_DIM)

    def forward(self, z: Tensor, label: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(self.norm(z), label, psi)


class Draws(Toy):
    def forward(self, z: Tensor, label: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(z + torch.rand_like(z), label, psi)


def save(
    module: nn.Module, path: Path, rows: int = 3, *, dynamic: bool = True, by_name: bool = False
) -> Path:
    """What `torch.export.save` writes of `module`."""
    example = {
        "z": torch.randn(rows, Z_DIM),
        "label": torch.zeros(rows, dtype=torch.int64),
        "psi": torch.ones(rows),
    }
    shapes = {name: {0: torch.export.Dim("rows", min=2, max=32)} for name in example} if dynamic else None
    arguments = ((), example) if by_name else (tuple(example.values()), {})
    torch.export.save(torch.export.export(module, *arguments, dynamic_shapes=shapes), path)
    return path


def bring(path: Path, folder: Path, **choices: object) -> Artifact:
    named = {"truncation_input": "psi", "output": "output1"} | choices
    store = Store(folder / "store")
    return import_graph(path, store, name="toy", choices=Choices(**named), trust=True).artifact


def refusal(path: Path, folder: Path, *, trust: bool) -> str:
    with pytest.raises((GraphRefused, InvalidValue)) as refused:
        import_graph(path, Store(folder / "store"), name="toy", trust=trust)
    assert not list((folder / "store").rglob("*"))
    return str(refused.value)


@pytest.mark.parametrize(
    "saved", [{}, {"rows": 1, "dynamic": False}, {"rows": 4, "dynamic": False, "by_name": True}], ids=str
)
def test_an_archive_gives_the_pixels_of_its_module(saved: dict[str, int], tmp_path: Path) -> None:
    artifact = bring(save(Toy(), tmp_path / "toy.pt2", **saved), tmp_path)

    seeds = range(9)
    latents, class_idx = latents_from_seeds(seeds, Z_DIM), np.arange(9) % CLASSES
    psi = np.resize([1, 0.7, 0], 9).astype(np.float32)
    found = GraphSession(artifact.file(GRAPH_FILE)).render(latents, class_idx, psi)
    with torch.no_grad():
        images = Toy()(*(torch.from_numpy(values) for values in (latents, class_idx, psi)))[1]
    assert np.abs(found - ((images.double() + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()).max() <= 1
    assert (artifact.manifest.num_classes, artifact.manifest.truncation) == (CLASSES, "w")
    origin = artifact.manifest.export["imported_from"]
    assert origin["producer"].startswith("torch.export, translated by pytorch 2.")
    assert origin["batch_size"] == ("dynamic" if not saved else saved["rows"])


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Trains().train(), "nothing in training mode, its forward (Trains) is (aten.dropout.default)"),
        (Measures().train(), "nothing in training mode, norm (BatchNorm1d) is (aten.batch_norm.default)"),
        (Draws(), "must draw no random numbers, its forward (Draws) does (aten.rand_like.default)"),
    ],
)
def test_a_program_that_trains_or_draws_is_refused(module: nn.Module, sentence: str, tmp_path: Path) -> None:
    assert sentence in refusal(save(module, tmp_path / "toy.pt2"), tmp_path, trust=True)


def test_the_command_asks_for_trust_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(Toy(), tmp_path / "toy.pt2")
    command = ["import", str(path), "--name", "toy", "--store", str(tmp_path / "store")]
    command += ["--truncation-input", "psi", "--output", "output1"]

    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "load", lambda path: pytest.fail("it was read"))
        without = main(command), capsys.readouterr().err
    trusted = main([*command, "--trust"]), capsys.readouterr()

    assert without == (
        2,
        "gantrain: toy.pt2 is an archive of torch.export, and reading it can run code that it brings: "
        "give --trust if you trust who made it\n",
    )
    assert (trusted[0], trusted[1].err) == (0, "")
    assert "published toy:1" in trusted[1].out


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("trust", [True, False])
def test_a_pickle_is_refused_unread_with_the_way_out(zipped: bool, trust: bool, tmp_path: Path) -> None:
    for name, content in (
        ("state.pt", Toy().state_dict()),
        ("module.pth", Toy()),
        ("bomb.pt", _Bomb(tmp_path / "ran")),
    ):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)

        sentence = refusal(tmp_path / name, tmp_path, trust=trust)

        assert sentence.startswith(
            f"{name} is a pickle of torch, a state dict or a module: a network is code."
        )
        assert "training.export.publish" in sentence
    assert not (tmp_path / "ran").exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    whole = save(Toy(), tmp_path / "whole.pt2")
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / "half.pt2", "w") as half:
        for name in archive.namelist():
            if not name.endswith("model.json"):
                half.writestr(name, archive.read(name))
    (tmp_path / "cut.pt2").write_bytes(whole.read_bytes()[:-100])
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as other:
        other.writestr("readme.txt", "hello")

    assert "half.pt2 cannot be read by torch 2." in refusal(tmp_path / "half.pt2", tmp_path, trust=True)
    assert "cut.pt2 is no ONNX file and no whole torch.export archive: " in refusal(
        tmp_path / "cut.pt2", tmp_path, trust=True
    )
    assert "other.pt2 is no ONNX file" in refusal(tmp_path / "other.pt2", tmp_path, trust=True)
