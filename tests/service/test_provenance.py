"""Each image says what it is and how to make it again; the render id names what could change its bytes."""

from __future__ import annotations

import io
import timeit
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.manifest import Manifest
from models.store import Store
from service.encoding import IMAGE_FORMATS, Format, encode_image, encode_walk
from service.provenance import SOURCE_TYPE, Rendering, psi_text

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
OURS = "{urn:x-ganserve:mark/1/}"
PIXELS = np.random.RandomState(0).randint(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.fixture
def manifest(toy_store: Path) -> Manifest:
    return Store(toy_store).resolve("toy").manifest


def rendering(manifest: Manifest, provider: str = "CPU", runtime: str = "1", marks: bool = True) -> Rendering:
    return Rendering(manifest, provider, runtime, marks)


def properties(packet: bytes | None) -> dict[str, str]:
    """The properties that any XMP reader finds in a packet."""
    assert packet is not None
    (description,) = ET.fromstring(packet.decode()).iter(f"{RDF}Description")
    return {name: value for name, value in description.attrib.items() if not name.startswith(RDF)}


def test_a_mark_says_generated_and_all_that_makes_the_image_again(manifest: Manifest) -> None:
    here = rendering(manifest)

    assert properties(here.mark(4294967295, 3, 0.7)) == {
        f"{IPTC}DigitalSourceType": SOURCE_TYPE,
        f"{OURS}model": "toy",
        f"{OURS}digest": manifest.digest,
        f"{OURS}renderId": here.render_id,
        f"{OURS}seed": "4294967295",
        f"{OURS}classIdx": "3",
        f"{OURS}truncationPsi": "0.7",
    }


def test_an_image_of_given_latents_is_marked_without_a_seed(manifest: Manifest) -> None:
    said = properties(rendering(manifest).mark(None, None, 1.0))

    assert said[f"{IPTC}DigitalSourceType"] == SOURCE_TYPE
    assert said[f"{OURS}truncationPsi"] == "1"
    assert not {f"{OURS}seed", f"{OURS}classIdx"} & set(said)


def test_a_walk_names_both_ends(manifest: Manifest) -> None:
    said = properties(rendering(manifest).walk_mark(3, 8, 12, 60, None, 1.0))

    assert [said[f"{OURS}{name}"] for name in ("from", "to", "frames", "frameMs")] == ["3", "8", "12", "60"]


@pytest.mark.parametrize("psi", [0.0, 1e-7, 0.1, 0.7, 1 / 3, 1.0, 2.0])
def test_psi_is_written_so_that_the_same_float32_is_read(manifest: Manifest, psi: float) -> None:
    written = properties(rendering(manifest).mark(1, None, float(np.float32(psi))))[f"{OURS}truncationPsi"]

    assert np.float32(written) == np.float32(psi)


@pytest.mark.parametrize("fmt", IMAGE_FORMATS)
def test_every_format_carries_the_mark_beside_the_same_pixels(manifest: Manifest, fmt: Format) -> None:
    mark = rendering(manifest).mark(42, 2, 1.0)

    with Image.open(io.BytesIO(encode_image(PIXELS, fmt, mark))) as marked:
        assert marked.info["xmp"] == mark
        pixels = np.asarray(marked.convert("RGB"))
    with Image.open(io.BytesIO(encode_image(PIXELS, fmt))) as plain:
        assert "xmp" not in plain.info
        assert np.array_equal(np.asarray(plain.convert("RGB")), pixels)


def test_in_a_png_the_mark_stands_before_the_pixels(manifest: Manifest) -> None:
    png = encode_image(PIXELS, "png", rendering(manifest).mark(42, 2, 1.0))

    assert png.index(b"IHDR") < png.index(b"iTXtXML:com.adobe.xmp\0\0\0\0\0<?xpacket") < png.index(b"IDAT")


def test_minus_zero_is_zero_whichever_is_told_first(manifest: Manifest) -> None:
    psi_text.cache_clear()
    minus, plus = (rendering(manifest).walk_mark(1, 2, 2, 60, None, psi) for psi in (-0.0, 0.0))

    assert minus == plus
    assert b'truncationPsi="0"' in plus


def test_a_walk_carries_the_mark(manifest: Manifest) -> None:
    mark = rendering(manifest).walk_mark(3, 8, 2, 60, 1, 1.0)

    with Image.open(io.BytesIO(encode_walk(np.stack([PIXELS, PIXELS[::-1]]), 60, mark))) as walk:
        assert walk.info["xmp"] == mark


def test_with_marks_off_nothing_is_said(manifest: Manifest) -> None:
    silent = rendering(manifest, marks=False)

    assert silent.mark(1, 1, 1.0) is None
    assert silent.walk_mark(1, 2, 2, 60, None, 1.0) is None


def test_the_render_id_names_what_could_change_the_bytes(manifest: Manifest, toy_store: Path) -> None:
    another = Store(toy_store).resolve("plain").manifest  # its name would stand in its marks
    ids = [
        rendering(manifest).render_id,
        rendering(manifest, provider="CUDA").render_id,
        rendering(manifest, runtime="2").render_id,
        rendering(manifest, marks=False).render_id,
        rendering(another).render_id,
    ]

    assert len(set(ids)) == 5
    assert rendering(manifest).render_id == ids[0]
    assert rendering(another, marks=False).render_id == ids[3]


def test_a_graph_published_again_keeps_its_render_id_and_its_bytes(manifest: Manifest) -> None:
    first, second = rendering(manifest), rendering(replace(manifest, version=2))

    assert first.render_id == second.render_id
    assert first.mark(42, 3, 0.7) == second.mark(42, 3, 0.7)
    assert first.walk_mark(1, 2, 3, 60, None, 1.0) == second.walk_mark(1, 2, 3, 60, None, 1.0)


def test_a_mark_costs_microseconds(manifest: Manifest) -> None:
    here = rendering(manifest)

    plain = min(timeit.repeat(lambda: encode_image(PIXELS, "png"), number=200, repeat=5)) / 200
    marked = timeit.repeat(lambda: encode_image(PIXELS, "png", here.mark(7, 7, 1.0)), number=200, repeat=5)

    assert min(marked) / 200 - plain < 25e-6  # 1.3 on a quiet machine
