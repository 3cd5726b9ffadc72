"""`ganserve verify`: what was made here is proved, what was changed is told, and no file is trusted."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from toy import publish_toy

from models.errors import InvalidValue
from service.__main__ import main
from service.encoding import IMAGE_FORMATS
from service.provenance import read_mark

Verify = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def verify(toy_store: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Run the command: `verify(path, …)` gives the exit status and what it printed, paths shortened."""

    def run(*arguments: Path | str, store: Path = toy_store) -> tuple[int, list[str]]:
        capsys.readouterr()
        status = main(["verify", "--store", str(store), *map(str, arguments)])
        said = capsys.readouterr()
        return status, (said.out + said.err).splitlines()

    return run


@pytest.fixture
def made(toy_store: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make one image offline: `made(seed=7, fmt="png")` gives its path."""

    def make(seed: int = 7, fmt: str = "png", *flags: str, model: str = "toy") -> Path:
        with tempfile.TemporaryDirectory(dir=tmp_path, prefix=".") as out:  # a folder holds one set
            arguments = ["--model", model, "--seeds", str(seed), "--format", fmt, "--out", out, *flags]
            assert main(["sample", "--store", str(toy_store), *arguments]) == 0
            (tmp_path / "made").mkdir(exist_ok=True)
            name = f"seed{seed:010d}.{fmt}"
            return Path(out, name).rename(tmp_path / "made" / name)

    return make


def test_a_path_that_cannot_be_is_a_sentence(verify: Verify) -> None:
    assert verify("a" * 300)[0] == 2
    assert verify("a" * 300)[1][0].endswith("File name too long")


def test_an_image_that_claims_to_be_a_long_walk_costs_no_device_work(
    verify: Verify, made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(7, "webp")
    walk = b'ganserve:from="0" ganserve:to="1" ganserve:frames="240" ganserve:frameMs="10"'
    with Image.open(path) as image:
        packet = image.info["xmp"].replace(b'ganserve:seed="7"', walk)
        image.save(path, lossless=True, xmp=packet)

    def make(*rows: object) -> None:
        raise AssertionError("nothing may be made")

    monkeypatch.setattr("service.generator.Generator.make", make)
    status, said = verify(path)
    assert (status, said[0]) == (1, f"{path}: differs (it holds 1 images, its mark names 240)")


def mark_of(path: Path) -> bytes:
    with Image.open(path) as image:
        return bytes(image.info["xmp"])


def save_png(path: Path, pixels: np.ndarray, mark: bytes) -> Path:
    """Another program's PNG of `pixels` with a mark."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", mark.decode())
    Image.fromarray(pixels).save(path, pnginfo=text)
    return path


REWRITTEN = "the file's other bytes differ: signed, saved again, cut short or added to"


@pytest.mark.parametrize("fmt", IMAGE_FORMATS)
@pytest.mark.parametrize(
    ("model", "flags"), [("toy", ["--truncation-psi", "0.7", "--class-idx", "3"]), ("plain", [])]
)
def test_what_was_made_here_is_identical(
    verify: Verify, made: Callable[..., Path], fmt: str, model: str, flags: list[str]
) -> None:
    path = made(7, fmt, *flags, model=model)

    assert verify(path) == (0, [f"{path}: identical", "1 image: 1 identical"])


def test_a_file_saved_again_with_its_mark_has_the_same_pixels(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made()
    again = save_png(tmp_path / "again.png", np.asarray(Image.open(path)), mark_of(path))

    status, (line, _) = verify(again)

    assert again.read_bytes() != path.read_bytes()
    assert (status, line) == (0, f"{again}: same pixels ({REWRITTEN})")


def test_a_file_with_bytes_behind_it_or_without_its_last_has_the_same_pixels_and_is_not_called_identical(
    verify: Verify, made: Callable[..., Path]
) -> None:
    path = made()
    data = path.read_bytes()
    for changed in (data + b"more", data[:-12]):
        path.write_bytes(changed)

        assert verify(path) == (0, [f"{path}: same pixels ({REWRITTEN})", "1 image: 1 same pixels"])


def test_a_damaged_header_is_told_in_the_same_words_each_time(
    verify: Verify, made: Callable[..., Path]
) -> None:
    path = made()
    data = bytearray(path.read_bytes())
    data[12] ^= 0xFF  # the first chunk's name
    path.write_bytes(data)

    status, (line, _) = verify(path)

    why = "its pixels cannot be decoded: its header is damaged or cut off"
    assert (status, line) == (1, f"{path}: differs ({why})")


def test_a_mark_that_a_metadata_program_wrote_as_elements_is_read(made: Callable[..., Path]) -> None:
    mark = mark_of(made()).decode()
    fields = ("model", "digest", "renderId", "seed", "classIdx", "truncationPsi")
    values = {name: mark.split(f'ganserve:{name}="')[1].split('"')[0] for name in fields}
    elements = "\n".join(f"  <ganserve:{name}>{value}</ganserve:{name}>" for name, value in values.items())
    quoted = " ".join(f"ganserve:{name}='{value}'" for name, value in values.items())
    opening = "<rdf:Description rdf:about='' xmlns:ganserve='urn:x-ganserve:mark/1/'"

    wanted = read_mark(mark.encode())

    assert wanted is not None
    assert read_mark(f"{opening}>\n{elements}</rdf:Description>".encode()) == wanted
    assert read_mark(f"{opening} {quoted}/>".encode()) == wanted


def test_one_changed_level_differs(verify: Verify, made: Callable[..., Path], tmp_path: Path) -> None:
    path = made()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[3, 4, 1] ^= 2
    flipped = save_png(tmp_path / "flipped.png", pixels, mark_of(path))

    status, (line, summary) = verify(flipped)

    assert (status, summary) == (1, "1 image: 1 differs")
    assert line == f"{flipped}: differs (by up to 2 of 255 levels in 1 of 144 pixels)"


def test_a_mark_that_names_another_seed_differs(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made()
    lie = save_png(
        tmp_path / "lie.png",
        np.asarray(Image.open(path)),
        mark_of(path).replace(b'seed="7"', b'seed="8"'),
    )

    status, (line, _) = verify(lie)

    assert (status, line.split(" (")[0]) == (1, f"{lie}: differs")


def test_an_image_rendered_elsewhere_is_told_so(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made()
    here = mark_of(path).split(b'renderId="')[1][:16]
    elsewhere = save_png(
        tmp_path / "elsewhere.png",
        np.asarray(Image.open(path)),
        mark_of(path).replace(here, b"0123456789abcdef"),
    )

    status, (line, _) = verify(elsewhere)

    assert status == 0
    assert line == f"{elsewhere}: same pixels (rendered as 0123456789abcdef, here as {here.decode()})"


def test_without_a_mark_or_its_model_an_image_is_not_ours(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made()
    stripped = tmp_path / "stripped.jpg"
    Image.open(path).save(stripped)
    publish_toy(tmp_path / "others", weights_seed=1)

    assert verify(stripped) == (
        3,
        [f"{stripped}: not ours (it has no mark)", "1 image: 1 not ours"],
    )
    status, (line, _) = verify(path, store=tmp_path / "others")
    assert status == 3
    assert "not ours (the store has no model of digest" in line
    assert "it says toy" in line


def test_what_one_version_made_is_proved_where_only_another_holds_its_graph(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made()
    for _ in range(2):
        again = publish_toy(tmp_path / "renumbered")
    shutil.rmtree(again.path.parent / "1")

    assert verify(path, store=tmp_path / "renumbered") == (0, [f"{path}: identical", "1 image: 1 identical"])


def test_given_latents_and_damaged_models_cannot_be_told(
    verify: Verify, made: Callable[..., Path], toy_store: Path, tmp_path: Path
) -> None:
    path = made()
    given = save_png(
        tmp_path / "given.png",
        np.asarray(Image.open(path)),
        mark_of(path).replace(b' ganserve:seed="7"', b""),
    )
    damaged = publish_toy(tmp_path / "damaged")
    damaged.file("model.onnx").write_bytes(b"cut")

    assert verify(given)[1][0] == f"{given}: cannot tell (its latents were given, so no seed makes it again)"
    status, (line, _) = verify(path, store=tmp_path / "damaged")
    assert status == 3
    assert "cannot tell (toy:1: model.onnx is not the file that was published" in line


def test_a_digest_published_under_another_name_still_gives_the_bytes(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made()
    publish_toy(tmp_path / "renamed", "same-weights")

    assert verify(path, store=tmp_path / "renamed")[1][0] == f"{path}: identical"


def test_folders_zips_and_tars_are_looked_through(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    path, other = made(7), made(8)
    with zipfile.ZipFile(tmp_path / "made/images.zip", "w") as zipped:
        zipped.write(path, "seven.png")
        zipped.writestr("manifest.json", "{}")
    with tarfile.open(tmp_path / "made/images.tar", "w") as tarred:
        tarred.add(other, "eight.png")
    (tmp_path / "made/deeper").mkdir()
    other.rename(tmp_path / "made/deeper/other.png")
    (tmp_path / "made/notes.txt").write_text("no image")

    status, lines = verify(tmp_path / "made")

    assert status == 0
    assert [line.removeprefix(f"{tmp_path}/made/") for line in lines] == [
        "images.tar/eight.png: identical",
        "images.zip/seven.png: identical",
        "seed0000000007.png: identical",
        "deeper/other.png: identical",
        "4 images: 4 identical",
    ]


@pytest.mark.parametrize("names", [[], ["seed0000000007.npy", "notes.txt"]], ids=["empty", "no images"])
def test_a_folder_without_an_image_proves_nothing(verify: Verify, tmp_path: Path, names: list[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"no image")

    assert verify(folder) == (3, [f"no image in {folder}"])


def test_more_images_than_a_microbatch_come_in_their_order(
    verify: Verify, toy_store: Path, tmp_path: Path
) -> None:
    for folder, model, seeds in (("1", "toy", "0-20"), ("2", "plain", "30-49")):
        main(
            [
                "sample",
                "--store",
                str(toy_store),
                "--model",
                model,
                "--seeds",
                seeds,
                "--out",
                str(tmp_path / "made" / folder),
            ]
        )

    status, lines = verify(tmp_path / "made")

    names = [f"1/seed{seed:010d}" for seed in range(21)] + [f"2/seed{seed:010d}" for seed in range(30, 50)]
    assert status == 0
    assert [line for line in lines if "seed" in line] == [
        f"{tmp_path}/made/{name}.png: identical" for name in names
    ]


BAD_VALUES = [
    (b'seed="7"', b'seed="99999999999999999999"', "seed must be an integer between 0 and 4294967295"),
    (b'seed="7"', b'seed="4294967296"', "seed must be an integer between 0 and 4294967295"),
    (b'seed="7"', b'seed="-1"', "seed must be"),
    (b'seed="7"', b'seed="7" ganserve:seed="8"', "seed must be named once, got '7' and"),
    (b'truncationPsi="1"', b'truncationPsi="nan"', "truncationPsi must be between 0 and 2"),
    (b'truncationPsi="1"', b'truncationPsi="3"', "truncationPsi must be between 0 and 2"),
    (b'model="toy"', b'model="../toy"', "name must be"),
    (b'model="toy"', b'model="&x;"', "name must be"),
    (b'digest="', b'digest="../', "digest must be 64 hexadecimal digits"),
]


@pytest.mark.parametrize(
    ("true", "false", "sentence"), BAD_VALUES, ids=[one[1].decode() for one in BAD_VALUES]
)
def test_a_mark_with_values_that_cannot_be_is_a_sentence(
    verify: Verify, made: Callable[..., Path], tmp_path: Path, true: bytes, false: bytes, sentence: str
) -> None:
    path = made()
    bad = save_png(tmp_path / "bad.png", np.zeros((2, 2), np.uint8), mark_of(path).replace(true, false))

    status, (line, _) = verify(bad)

    assert status == 3
    assert "not ours (its mark cannot be ours: " in line
    assert sentence in line


def test_parameters_that_the_model_does_not_have_differ(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made(7, "png", model="plain")
    mark = mark_of(path).replace(b'truncationPsi="1"', b'classIdx="3" ganserve:truncationPsi="1"')
    claims = save_png(tmp_path / "claims.png", np.asarray(Image.open(path)), mark)

    status, (line, _) = verify(claims)

    assert status == 1
    assert "the model cannot have made it: class_idx must be left out" in line


def test_entities_are_never_expanded(verify: Verify, made: Callable[..., Path], tmp_path: Path) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "' + b"ha" * 99 + b'"><!ENTITY b "' + b"&a;" * 9999 + b'">]>'
    path = made()
    mark = mark_of(path).replace(b"<x:xmpmeta", bomb + b"<x:xmpmeta").replace(b'seed="7"', b'seed="&b;"')
    bad = tmp_path / "bomb.png"
    bad.write_bytes(path.read_bytes()[:33] + b"\0" + mark)

    status, (line, _) = verify(bad)

    assert status == 3
    assert "seed must be an integer" in line or "cannot tell" in line


def test_headers_that_ask_for_memory_get_none(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    """A PNG that says 60,000 × 60,000, and a zip that would grow a thousandfold."""
    data = bytearray(made().read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "huge.png").write_bytes(data)
    data[16:24] = struct.pack(">II", 13, 12)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "wide.png").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "wide.png", "wide.png")
        archive.writestr("zeros.png", bytes(20 * 2**20))
        archive.write(tmp_path / "wide.png", "after.png")

    assert "its pixels cannot be decoded: " in verify(tmp_path / "huge.png")[1][0]
    assert "its size is 13×12, the model makes 12×12" in verify(tmp_path / "wide.png")[1][0]
    _, (wide, bomb, summary) = verify(tmp_path / "bomb.zip")
    assert "bomb.zip/wide.png: differs (its size is 13×12" in wide
    assert "bomb.zip: cannot tell (it holds more than 100 times its size, and the rest was not read)" in bomb
    assert summary == "2 images: 1 differs, 1 cannot tell"


def test_no_change_of_bytes_is_a_traceback(verify: Verify, made: Callable[..., Path], tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    out = tmp_path / "changed"
    out.mkdir()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(made(7), "7.png")
    sources = {fmt: made(7, fmt).read_bytes() for fmt in IMAGE_FORMATS} | {"zip": archive.getvalue()}
    for fmt, original in sources.items():
        for number in range(60):
            data = bytearray(original)
            for _ in range(random.randint(1, 5)):
                data[random.randint(len(data))] = random.randint(256)
            if number % 4 == 0:
                data = data[: random.randint(len(data))]
            (out / f"{number}.{fmt}").write_bytes(data)

    status, lines = verify(out)

    verdicts = ("identical", "same pixels", "differs", "not ours", "cannot tell")
    assert status == 1
    assert len(lines) >= 240
    for line in lines[:-1]:
        assert line.split(": ", 1)[1].startswith(verdicts), line


def test_what_cannot_be_read_is_a_line_not_an_end(
    verify: Verify, made: Callable[..., Path], tmp_path: Path
) -> None:
    folder = made().parent
    os.mkfifo(folder / "pipe.png")
    (folder / "line\nbreak.png").write_bytes(b"")

    status, lines = verify(folder)

    assert status == 3
    assert f"{folder}/pipe.png: cannot tell (it is no regular file)" in lines
    assert f"'{folder}/line\\nbreak.png': not ours (it is no PNG, JPEG or WebP image)" in lines
    assert f"{folder}/seed0000000007.png: identical" in lines


def test_deep_replays_every_golden_row(verify: Verify, tmp_path: Path) -> None:
    publish_toy(tmp_path / "store", "spoiled", golden_off_by=2)

    status, (line,) = verify("--deep", "toy")
    assert status == 0
    assert line.startswith("toy:1 (")
    assert "golden rows bit_exact on CPUExecutionProvider, ONNX Runtime 1." in line
    status, (line,) = verify("--deep", "spoiled", store=tmp_path / "store")
    assert status == 1
    assert "golden rows differ by up to 2 of 255 grey levels" in line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "verify needs a FILE or DIR, or --deep, got neither"),
        (("/nowhere.png",), "a file or folder to verify must exist, got /nowhere.png"),
        (("--deep", "nobody"), "no model named 'nobody'"),
        (("--deep", "toy", "--threads", "0"), "threads must be between 1 and 256, got 0"),
    ],
)
def test_a_mistake_in_what_was_asked_for_is_a_sentence_and_status_2(
    verify: Verify, arguments: tuple[str, ...], sentence: str
) -> None:
    status, (line,) = verify(*arguments)

    assert status == 2
    assert sentence in line


def test_a_file_without_our_namespace_has_no_mark() -> None:
    assert read_mark(b"\x89PNG\r\n\x1a\n" + bytes(1000)) is None
    with pytest.raises(InvalidValue, match="name must be"):
        read_mark(b"urn:x-ganserve:mark/1/")
