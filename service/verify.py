"""`ganserve verify`: read the mark in each image, make the image again, and say whether it is the same.

Nothing in a file is trusted. Reading is bounded; a mark is found by a pattern, never by an XML parser,
and each of its values is checked; a file is decoded only if its size is what the model makes, so that
no header can ask for memory. What a mark claims is believed only as far as the pixels prove it.
"""

from __future__ import annotations

import io
import os
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import IO, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from models.errors import ContractError, DamagedArtifact, InvalidValue, show
from models.store import Artifact, Store
from service.device import Accelerator
from service.encoding import Format, encode_image, encode_walk
from service.generator import Generator
from service.provenance import Mark, Rendering, read_mark
from service.rows import Rows
from service.session import DiscriminatorSession, Session

Verdict = Literal["identical", "same pixels", "differs", "not ours", "cannot tell"]

EXIT_DIFFERS: Final = 1
EXIT_UNKNOWN: Final = 3
"""Nothing differs, but something is not ours, or cannot be told, or there is no image at all."""

_IMAGE_SUFFIXES: Final = {".png", ".jpg", ".jpeg", ".webp"}
_SUFFIXES: Final = _IMAGE_SUFFIXES | {".zip", ".tar"}  # what is looked at in a folder
_MAX_FILE_BYTES: Final = 256 * 2**20  # the largest image a model may make is 192 MiB of pixels
_MAX_EXPANSION: Final = 100  # what an archive holds may be so many times its size
_MICROBATCH: Final = 16
_MAX_PENDING_BYTES: Final = 64 * 2**20  # of files read ahead of a device run
_MAX_SESSIONS: Final = 4


@dataclass(frozen=True)
class Finding:
    """What is true of one file."""

    name: str
    verdict: Verdict
    why: str = ""

    def __str__(self) -> str:
        name = self.name if self.name.isprintable() else ascii(self.name)
        return f"{name}: {self.verdict}" + (f" ({self.why})" if self.why else "")


def exit_status(verdicts: Counter[Verdict]) -> int:
    """0 if there are images and all are proved, EXIT_DIFFERS if one differs, else EXIT_UNKNOWN."""
    if verdicts["differs"]:
        return EXIT_DIFFERS
    proved = verdicts["identical"] + verdicts["same pixels"]
    return 0 if proved and proved == verdicts.total() else EXIT_UNKNOWN


def verify_files(
    paths: Sequence[Path], store: Store, accelerator: Accelerator = "cpu", threads: int = 1
) -> Iterator[Finding]:
    """Yield a finding for each image in `paths`: files, zips, tars, and folders of them.

    Raises InvalidValue for a path that is not there, StartError where no session can be opened.
    """
    if not store.root.is_dir():
        raise InvalidValue(f"store must be a folder of published models, got {store.root}")
    for path in paths:
        if not path.exists():
            raise InvalidValue(f"a file or folder to verify must exist, got {path}")
    makers = _Makers(store, accelerator, threads)
    pending: list[_File] = []
    for found in _files(paths):
        if isinstance(found, Finding):
            yield from _judge(pending, makers)
            pending = []
            yield found
            continue
        pending.append(found)
        if len(pending) == _MICROBATCH or sum(len(one.data) for one in pending) > _MAX_PENDING_BYTES:
            yield from _judge(pending, makers)
            pending = []
    yield from _judge(pending, makers)


def replay_golden(artifact: Artifact, accelerator: Accelerator = "cpu", threads: int = 1) -> tuple[int, str]:
    """Make all golden rows of an artifact again; return the largest grey-level difference and a sentence.

    Where it has a discriminator the sentence says of its logits, too; they change no level.
    """
    session = Session(artifact, accelerator, threads)
    levels = session.golden_difference()
    result = "bit_exact" if levels == 0 else f"differ by up to {levels} of 255 grey levels"
    if artifact.manifest.calibration is not None:
        off = DiscriminatorSession(artifact, accelerator, threads).golden_difference()
        result += ", their realness the same" if off == 0 else f", their realness off by {off:.3f} of a logit"
    return levels, (
        f"{artifact.address} ({artifact.digest[:12]}): golden rows {result} on {session.provider}, "
        f"ONNX Runtime {session.runtime_version}"
    )


# -- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    name: str
    data: bytes


def _files(paths: Iterable[Path]) -> Iterator[_File | Finding]:
    """Every image file, read; a finding where one cannot be. Links to folders are not followed."""
    for path in paths:
        if not path.is_dir():
            yield from _read(path)
            continue
        troubles: list[OSError] = []
        for folder, folders, names in os.walk(path, onerror=troubles.append):
            folders.sort()
            for name in sorted(names):
                if _suffix(name) in _SUFFIXES:
                    yield from _read(Path(folder, name))
        for trouble in troubles:
            yield Finding(str(trouble.filename), "cannot tell", str(trouble.strerror))


def _read(path: Path) -> Iterator[_File | Finding]:
    if not path.is_file():  # a pipe would never end
        yield Finding(str(path), "cannot tell", "it is no regular file")
        return
    try:
        with path.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            if head.startswith(b"PK\x03\x04"):
                yield from _read_archive(str(path), file, _zip_members(file))
            elif head[257:262] == b"ustar":
                yield from _read_archive(str(path), file, _tar_members(file))
            else:
                yield _bounded(str(path), file)
    except OSError as error:
        yield Finding(str(path), "cannot tell", f"it cannot be read: {error.strerror or error}")


def _bounded(name: str, file: IO[bytes], max_bytes: int = _MAX_FILE_BYTES) -> _File | Finding:
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        return Finding(name, "cannot tell", f"it is larger than {max_bytes} bytes")
    return _File(name, data)


def _read_archive(
    name: str, file: IO[bytes], members: Iterator[tuple[str, IO[bytes]]]
) -> Iterator[_File | Finding]:
    """Every image in an archive, as long as they are together no more than _MAX_EXPANSION times its size."""
    left = _MAX_EXPANSION * os.fstat(file.fileno()).st_size
    try:
        for member_name, member in members:
            with member:
                found = _bounded(f"{name}/{member_name}", member, min(left, _MAX_FILE_BYTES))
            left -= len(found.data) if isinstance(found, _File) else _MAX_FILE_BYTES
            if left < 0:
                why = f"it holds more than {_MAX_EXPANSION} times its size, and the rest was not read"
                yield Finding(name, "cannot tell", why)
                return
            yield found
    except Exception as error:  # zipfile, tarfile and zlib raise a dozen unrelated classes on bytes that lie
        yield Finding(name, "cannot tell", f"the archive cannot be read: {_short(error)}")


def _zip_members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if _suffix(entry.filename) in _IMAGE_SUFFIXES:
                yield entry.filename, archive.open(entry)


def _tar_members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=file, mode="r:") as archive:  # never decompressed
        for entry in archive:
            member = archive.extractfile(entry) if entry.isreg() else None
            if member is not None and _suffix(entry.name) in _IMAGE_SUFFIXES:
                yield entry.name, member


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


# -- judging --------------------------------------------------------------------------------------


class _Maker:
    """Makes the images of one digest again."""

    def __init__(self, artifact: Artifact, accelerator: Accelerator, threads: int) -> None:
        self.manifest = artifact.manifest
        self._generator = Generator(artifact, accelerator, threads)

    def rendering(self, mark: Mark) -> Rendering:
        """As it is rendered here, under the name that the mark gives it: a digest may have several."""
        named = replace(self.manifest, name=mark.model)
        session = self._generator.session
        return Rendering(named, session.provider, session.runtime_version, True, session.arithmetic)

    def rows(self, mark: Mark) -> Rows:
        """The rows that a mark names. Raises InvalidValue for parameters that the model does not have."""
        if mark.walk is not None:
            walk = mark.walk
            return Rows.of_walk(
                self.manifest, walk.start, walk.end, walk.frames, mark.class_idx, mark.truncation_psi
            )
        assert mark.seed is not None
        rows = Rows.of_seeds(self.manifest, [mark.seed], mark.class_idx, mark.truncation_psi)
        return rows if mark.proposals == 1 else rows.judged(self.manifest, "mh", mark.proposals)

    def pixels(self, rows: Sequence[Rows]) -> list[npt.NDArray[np.uint8]]:
        """The images [n, H, W, C] of each of `rows`; those of plain rows are made together."""
        plain = [one for one in rows if one.judging is None]
        together = iter(self._plain_pixels(plain) if plain else [])
        return [next(together) if one.judging is None else self._chosen_pixels(one) for one in rows]

    def _chosen_pixels(self, rows: Rows) -> npt.NDArray[np.uint8]:
        images, _ = self._generator.judge_rows(rows)
        return images

    def _plain_pixels(self, rows: Sequence[Rows]) -> list[npt.NDArray[np.uint8]]:
        z_dim = self.manifest.z_dim
        seeds = np.concatenate([one.seeds for one in rows])
        class_idx = np.concatenate([one.class_idx for one in rows])
        truncation_psi = np.concatenate([one.truncation_psi for one in rows])
        latents = np.concatenate(
            [np.empty((len(one), z_dim), np.float32) if one.latents is None else one.latents for one in rows]
        )
        parts = [slice(start, start + _MICROBATCH) for start in range(0, len(seeds), _MICROBATCH)]
        images = [
            self._generator.make(seeds[part], class_idx[part], truncation_psi[part], latents[part])
            for part in parts
        ]
        ends = np.cumsum([len(one) for one in rows])[:-1]
        return np.split(np.concatenate(images), ends)


class _Makers:
    """Makers by digest: the store is looked through once, the last few sessions stay open."""

    def __init__(self, store: Store, accelerator: Accelerator, threads: int) -> None:
        self._accelerator: Accelerator = accelerator
        self._threads = threads
        self._artifacts: dict[str, Artifact] = {}
        for name in store.names():
            for version in store.versions(name):
                try:
                    artifact = store.resolve(f"{name}:{version}")
                except DamagedArtifact:
                    continue  # its images are then of a digest that is not in the store
                self._artifacts[artifact.digest] = artifact
        self._open: dict[str, _Maker] = {}

    def get(self, digest: str) -> _Maker | None:
        """The maker of a digest, None if the store has none. Raises DamagedArtifact, StartError."""
        artifact = self._artifacts.get(digest)
        if artifact is None:
            return None
        maker = self._open.pop(digest, None) or _Maker(artifact, self._accelerator, self._threads)
        if len(self._open) == _MAX_SESSIONS:
            del self._open[next(iter(self._open))]
        self._open[digest] = maker
        return maker


@dataclass(frozen=True)
class _Claim:
    """A file whose mark names what the store can make."""

    file: _File
    mark: Mark
    fmt: Format
    maker: _Maker
    rows: Rows


def _judge(files: Sequence[_File], makers: _Makers) -> Iterator[Finding]:
    """Findings of `files`, in their order; what one model made is made again together."""
    sides = [_claim(file, makers) for file in files]
    claims = sorted((one for one in sides if isinstance(one, _Claim)), key=_made_with)
    findings = {}
    for _, group in groupby(claims, key=_made_with):
        together = list(group)
        pixels = together[0].maker.pixels([claim.rows for claim in together])
        for claim, made in zip(together, pixels, strict=True):
            findings[id(claim)] = _compare(claim, made)
    for side in sides:
        yield side if isinstance(side, Finding) else findings[id(side)]


def _made_with(claim: _Claim) -> tuple[int, int]:
    """Equal for claims whose images are made together: those of one model, but each walk alone."""
    return id(claim.maker), 0 if claim.mark.walk is None else id(claim)


def _claim(file: _File, makers: _Makers) -> _Claim | Finding:
    fmt = _format(file.data)
    if fmt is None:
        return Finding(file.name, "not ours", "it is no PNG, JPEG or WebP image")
    try:
        mark = read_mark(file.data)
    except InvalidValue as error:
        return Finding(file.name, "not ours", f"its mark cannot be ours: {error}")
    if mark is None:
        return Finding(file.name, "not ours", "it has no mark")
    try:
        maker = makers.get(mark.digest)
    except DamagedArtifact as error:
        return Finding(file.name, "cannot tell", str(error))
    if maker is None:
        why = f"the store has no model of digest {mark.digest[:12]}; it says {mark.model}"
        return Finding(file.name, "not ours", why)
    if mark.seed is None and mark.walk is None:
        return Finding(file.name, "cannot tell", "its latents were given, so no seed makes it again")
    try:
        rows = maker.rows(mark)
    except ContractError as error:
        return Finding(file.name, "differs", f"the model cannot have made it: {error}")
    try:
        with _opened(file.data, (len(rows), *maker.manifest.img_shape)):
            return _Claim(file, mark, fmt, maker, rows)
    except InvalidValue as error:
        return Finding(file.name, "differs", str(error))


def _format(data: bytes) -> Format | None:
    """By its first bytes; a name may say anything."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _compare(claim: _Claim, made: npt.NDArray[np.uint8]) -> Finding:
    """Compare a file with `made`, the images [n, H, W, C] that its mark names."""
    mark, name = claim.mark, claim.file.name
    here = claim.maker.rendering(mark)
    if mark.walk is not None:
        walk = mark.walk
        packet = here.walk_mark(
            walk.start, walk.end, walk.frames, walk.frame_ms, mark.class_idx, mark.truncation_psi
        )
        ours = encode_walk(made, walk.frame_ms, packet)
    else:
        class_idx = int(claim.rows.class_idx[0]) if claim.maker.manifest.num_classes else None
        packet = here.mark(mark.seed, class_idx, mark.truncation_psi, mark.proposals)
        ours = encode_image(made[0], claim.fmt, packet)
    if ours == claim.file.data:
        return Finding(name, "identical")
    elsewhere = f"rendered as {mark.render_id}, here as {here.render_id}"
    try:
        levels, count = _difference(ours, claim.file.data, made.shape)
    except InvalidValue as error:
        return Finding(name, "differs", str(error))
    if levels == 0:
        rewritten = "the file's other bytes differ: signed, saved again, cut short or added to"
        return Finding(name, "same pixels", rewritten if mark.render_id == here.render_id else elsewhere)
    why = f"by up to {levels} of 255 levels in {count} of {made[..., 0].size} pixels"
    return Finding(name, "differs", why if mark.render_id == here.render_id else f"{why}; {elsewhere}")


def _difference(ours: bytes, theirs: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
    """Two files' largest difference in levels, and how many pixels differ. Raises as `_frames`."""
    largest = count = 0
    for one, other in zip(_frames(ours, shape), _frames(theirs, shape), strict=True):
        levels = np.abs(one.astype(np.int16) - other).max(axis=-1)  # [H, W]
        largest = max(largest, int(levels.max()))
        count += int(np.count_nonzero(levels))
    return largest, count


def _frames(data: bytes, shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.uint8]]:
    """Each image [H, W, 4] of an image file. Raises InvalidValue unless it holds `shape` [n, H, W, C]."""
    with _opened(data, shape) as image:
        for number in range(shape[0]):
            image.seek(number)
            yield np.asarray(image.convert("RGBA"))


@contextmanager
def _opened(data: bytes, shape: tuple[int, ...]) -> Iterator[Image.Image]:
    """An image file, its header read. Raises InvalidValue unless it holds `shape` [n, H, W, C]."""
    frames, height, width, _ = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow warns of what is too large before it refuses
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                if image.size != (width, height):
                    size = f"{image.width}×{image.height}"
                    raise InvalidValue(f"its size is {size}, the model makes {width}×{height}")
                found = getattr(image, "n_frames", 1)
                if found != frames:
                    raise InvalidValue(f"it holds {found} images, its mark names {frames}")
                yield image
    except InvalidValue:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated classes on bytes that lie
        raise InvalidValue(f"its pixels cannot be decoded: {_short(error)}") from None


def _short(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # it names an object in memory
        return "its header is damaged or cut off"
    return show(str(error) or type(error).__name__)
