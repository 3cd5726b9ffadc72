"""`ganserve sample`: from flags to a request, and from what came of it to a sentence and an exit status."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import cast

from models.calibration import check_realness
from models.errors import InvalidValue, show
from models.sampling import SeedRanges
from models.store import Artifact, Store
from service.offline.checking import check, held_job
from service.offline.errors import EXIT_INCOMPLETE, WrongDigest
from service.offline.job import IMAGE_FORMATS, MAX_SHARD_SIZE, ImageFormat
from service.offline.places import open_place
from service.offline.progress import Style
from service.offline.records import MANIFEST_NAME, Records
from service.offline.sampling import Request, Share, sample, seal
from service.offline.sources import ClassRule, RowSource, read_seeds_file
from service.settings import SignFiles
from service.signing import ImageSigner

_HAS_IMAGES = ("webdataset", "zip", "parquet")


def run(arguments: argparse.Namespace) -> int:
    """Do what the flags of `ganserve sample` ask for; return the exit status. Raises as `sample` does."""
    store = Store(arguments.store)
    if arguments.check is not None:
        return _check(arguments, store)
    if arguments.merge is not None:
        return _merge(arguments, store)
    signal.signal(signal.SIGTERM, _end)  # as process 1 of a container there is no other way out
    request = _request(arguments, store)
    style: Style = "json" if arguments.json else "bar" if sys.stderr.isatty() else "lines"
    outcome = sample(request, style)
    where = f"{request.artifact.address} ({request.artifact.digest[:12]}) in {arguments.out}"
    if arguments.json:
        facts = {
            "event": "end",
            "made": outcome.made,
            "kept": outcome.kept,
            "complete": outcome.complete,
            **({} if request.min_realness is None else {"rejected": outcome.rejected}),
            "out": arguments.out,
        }
        print(json.dumps(facts), flush=True)
        return 0
    rejected = "" if request.min_realness is None else f", {outcome.rejected} rejected"
    if outcome.complete and outcome.kept and not outcome.made:
        print(f"{_images(outcome.kept)} of {where} were there already{rejected}")
    else:
        kept = f", {outcome.kept} kept" if outcome.kept else ""
        rest = "" if outcome.complete else "; other shards of the set are not there yet"
        print(f"{_images(outcome.made)} of {where}{kept}{rejected}{rest}")
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _request(arguments: argparse.Namespace, store: Store) -> Request:
    if arguments.out is None:
        raise InvalidValue("--out must name a folder or an address")
    seeds = (
        SeedRanges.parse(arguments.seeds)
        if arguments.seeds_file is None
        else read_seeds_file(arguments.seeds_file)
    )
    for name, least, most in (("shard_size", 1, MAX_SHARD_SIZE), ("workers", 1, 1024)):
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise InvalidValue(f"{name} must be between {least} and {most}, got {value}")
    sign_files = _sign_files(arguments)
    artifact = store.resolve(arguments.model)
    _check_digest(arguments.digest, artifact)
    _check_min_realness(arguments.min_realness, artifact)
    artifact.verify()
    return Request(
        store=arguments.store,
        artifact=artifact,
        source=RowSource(
            artifact.manifest,
            seeds,
            _class_rule(arguments.class_idx),
            arguments.truncation_psi,
            sampler=arguments.sampler,
            proposals=arguments.proposals,
            realness=arguments.realness or arguments.min_realness is not None,
        ),
        out=arguments.out,
        format=arguments.format,
        image_format=_image_format(arguments),
        shard_size=arguments.shard_size,
        share=Share.parse(arguments.shards),
        marks=arguments.marks,
        sign_files=sign_files,
        accelerator=arguments.accelerator,
        threads=arguments.threads,
        workers=arguments.workers,
        realness=arguments.realness,
        min_realness=arguments.min_realness,
    )


def _class_rule(text: str | None) -> ClassRule:
    if text is None:
        return None
    if text in ("balanced", "random"):
        return cast(ClassRule, text)
    if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) is None:
        raise InvalidValue(f"class_idx must be an integer, balanced or random, got {show(text)}")
    return int(text)


def _image_format(arguments: argparse.Namespace) -> ImageFormat:
    """What an image is inside the set: what the format says, or `--images`."""
    if arguments.format in _HAS_IMAGES:
        images: ImageFormat = arguments.images or "png"
        return images
    if arguments.images is not None:
        raise InvalidValue(
            f"images must be left out where format is {arguments.format}, got {show(arguments.images)}"
        )
    return arguments.format if arguments.format in IMAGE_FORMATS else "raw"


def _check_digest(wanted: str | None, artifact: Artifact) -> None:
    if wanted is None:
        return
    if re.fullmatch(r"[0-9a-f]{12,64}", wanted, re.ASCII) is None:
        raise InvalidValue(f"digest must be 12 to 64 hexadecimal digits, got {show(wanted)}")
    if not artifact.digest.startswith(wanted):
        raise WrongDigest(
            f"digest must be that of {artifact.address}, {artifact.digest[: len(wanted)]}, got {wanted}"
        )


def _check_min_realness(value: float | None, artifact: Artifact) -> None:
    if value is None:
        return
    if not 0 <= value <= 1:  # also refuses NaN
        raise InvalidValue(f"min_realness must be between 0 and 1, got {value}")
    manifest = artifact.manifest
    check_realness(manifest.calibration, "min_realness", value, manifest.why_no_calibration)


def _sign_files(arguments: argparse.Namespace) -> SignFiles | None:
    cert_file: Path | None = arguments.sign_cert_file
    key_file: Path | None = arguments.sign_key_file
    if not arguments.sign:
        if cert_file or key_file:
            raise InvalidValue(f"--sign must be given with {cert_file or key_file}")
        return None
    if cert_file is None or key_file is None:
        raise InvalidValue("--sign needs --sign-cert-file and --sign-key-file")
    if _image_format(arguments) == "raw":
        raise InvalidValue(f"--sign must be left out where format is {arguments.format}")
    files = SignFiles(cert_file, key_file, arguments.sign_algorithm)
    ImageSigner(files).check()
    return files


def _check(arguments: argparse.Namespace, store: Store) -> int:
    found = check(arguments.check, store, arguments.accelerator, arguments.threads)
    if arguments.json:
        print(json.dumps({"event": "check", **found.__dict__}))
    else:
        for sentence in found.damaged:
            print(sentence)
        print(
            f"{_images(found.images)} in {found.shards} shard{'s' * (found.shards != 1)}: "
            f"{len(found.damaged)} damaged; {found.remade} made again and compared"
        )
    return EXIT_INCOMPLETE if found.damaged else 0


def _merge(arguments: argparse.Namespace, store: Store) -> int:
    place = open_place(arguments.merge)
    job, _, source = held_job(place, store)
    if seal(place, source):
        print(f"{_images(job.images)} in {job.shards} shards: {arguments.merge} has its {MANIFEST_NAME}")
        return 0
    lacking = sorted(set(range(job.shards)) - Records(place).receipts())
    some = ", ".join(map(str, lacking[:8])) + (", …" if len(lacking) > 8 else "")
    print(f"{arguments.merge} lacks {len(lacking)} of {job.shards} shards: {some}", file=sys.stderr)
    return EXIT_INCOMPLETE


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
