"""What a worker writes into a slot: files where they are asked for and fit, else pixels."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy import publish_toy

from models.store import Artifact
from service.batching import Segment
from service.channel import Run
from service.encoding import FORMATS
from service.errors import DeviceLost
from service.generator import Generator
from service.microbatch import Microbatch
from service.provenance import Rendering
from service.slots import LATENTS_GIVEN, Slot, SlotLayout, create_memory, map_slots
from service.worker import _Loaded, _run, write_made


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return publish_toy(tmp_path_factory.mktemp("store"))


@pytest.fixture
def slot(artifact: Artifact) -> Slot:
    layout = SlotLayout.of(artifact.manifest, rows=5)
    fd = create_memory(layout, 1)
    (slot,) = map_slots(fd, layout, 1)
    os.close(fd)
    slot.seeds[:] = [7, 8, LATENTS_GIVEN, 10, 11]
    slot.class_idx[:] = [0, 1, 2, 3, 4]
    slot.truncation_psi[:] = 0.5
    return slot


@pytest.fixture
def images(artifact: Artifact) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (5, *artifact.manifest.img_shape), dtype=np.uint8)


def test_each_row_becomes_the_file_that_the_api_process_would_make_of_it(
    artifact: Artifact, slot: Slot, images: np.ndarray
) -> None:
    rendering = Rendering(artifact.manifest, "CPUExecutionProvider", "1", marks=True)
    slot.formats[:] = [1, 2, 3, 4, 0]

    write_made(images, slot, rendering)

    for row, (fmt, seed) in enumerate(zip(FORMATS, (7, 8, None, 10), strict=True)):
        assert slot.made[row, : slot.file_bytes[row]].tobytes() == rendering.encode(
            images[row], fmt, seed, class_idx=row, truncation_psi=0.5
        )
        assert slot.encode_s[row] > 0
    assert slot.file_bytes[4] == 0
    assert (slot.images[4] == images[4]).all()


def test_a_file_that_has_no_room_stays_pixels(artifact: Artifact, slot: Slot, images: np.ndarray) -> None:
    class Verbose(Rendering):
        def mark(self, seed: int | None, *parameters: Any) -> bytes | None:
            return b"x" * 5000 if seed == 8 else None

    slot.formats[:] = 1

    write_made(images, slot, Verbose(artifact.manifest, "CPUExecutionProvider", "1", marks=True))

    assert (slot.file_bytes > 0).tolist() == [True, False, True, True, True]
    assert (slot.images[1] == images[1]).all()


def test_the_api_process_takes_files_and_pixels_out_for_the_rows_they_belong_to(
    artifact: Artifact, slot: Slot, images: np.ndarray
) -> None:
    first: Any = SimpleNamespace(fmt="png")
    second: Any = SimpleNamespace(fmt="png")
    rendering = Rendering(artifact.manifest, "CPUExecutionProvider", "1", marks=True)
    slot.formats[:] = [1, 1, 1, 0, 1]
    write_made(images, slot, rendering)
    line: Any = SimpleNamespace(judges=False)

    portions = Microbatch(line, [Segment(first, 0, 2), Segment(second, 10, 13)]).take(slot)

    assert [(one.ticket, one.start, len(one.images)) for one in portions] == [
        (first, 0, 2),
        (second, 10, 1),
        (second, 11, 1),
        (second, 12, 1),
    ]
    assert portions[0].images == [rendering.encode(images[row], "png", 7 + row, row, 0.5) for row in (0, 1)]
    assert (np.asarray(portions[2].images) == images[3]).all()


@pytest.mark.parametrize(("error", "answer"), [(RuntimeError("no"), "failed"), (DeviceLost("no"), None)])
def test_a_microbatch_that_fails_is_told_and_a_device_that_is_lost_ends_the_worker(
    artifact: Artifact, slot: Slot, monkeypatch: pytest.MonkeyPatch, error: Exception, answer: str | None
) -> None:
    def run(*_: Any) -> None:
        raise error

    loaded = _Loaded(Generator(artifact), [slot])
    monkeypatch.setattr(loaded.generator.session, "run", run)
    order = Run(run=7, line=0, slot=0, rows=5, judged=0)

    if answer is None:
        with pytest.raises(DeviceLost):
            _run(order, loaded)
    else:
        told = _run(order, loaded)
        assert isinstance(told, dict)
        assert told[answer] == 7
