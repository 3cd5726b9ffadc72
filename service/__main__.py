"""The command `ganserve`: serve, sample, verify, models, bench.

Parses flags and hands over; each verb imports what it needs, so that `--help` is quick and a
worker that is spawned from here imports no second server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from models.errors import ContractError, InvalidValue
from models.store import SHIPPED_STORE, Store
from service import __version__
from service.errors import StartError

if TYPE_CHECKING:
    from service.signing import ImageSigner


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 1 failed, 2 a mistake in what was asked for."""
    try:
        arguments = _parser().parse_args(argv)  # here too, since its imports take a while
        return int(arguments.run(arguments))
    except (ContractError, StartError) as error:
        print(f"ganserve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    from service.settings import SignAlgorithm, add_flags

    parser = argparse.ArgumentParser(
        prog="ganserve", description="Serve trained generators: a seed names an image."
    )
    parser.add_argument("--version", action="version", version=f"ganserve {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    serve = verbs.add_parser(
        "serve",
        allow_abbrev=False,
        help="answer requests over HTTP",
        description="Answer requests over HTTP.",
    )
    add_flags(serve)
    serve.set_defaults(run=_serve)

    sample = verbs.add_parser(
        "sample", allow_abbrev=False, help="write images to a folder", description="Write images to a folder."
    )
    _add_store(sample)
    sample.add_argument(
        "--model", default="fashion-mnist", metavar="NAME[:V]", help="default: fashion-mnist, highest version"
    )
    sample.add_argument(
        "--seeds", required=True, metavar="RANGES", help='such as "0-99,200"; a seed names an image'
    )
    sample.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    sample.add_argument(
        "--class-idx", type=int, metavar="K", help="one class for all; default: seed %% num_classes"
    )
    sample.add_argument(
        "--truncation-psi", type=float, metavar="PSI", help="1 (default) is off, 0 the average image"
    )
    sample.add_argument("--format", default="png", choices=["png", "jpg", "webp", "npy"])
    sample.add_argument(
        "--marks",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write into each image (XMP) that it is generated, and how to make it again",
    )
    sample.add_argument("--sign", action="store_true", help="sign each image (C2PA); needs the extra c2pa")
    sample.add_argument(
        "--sign-cert-file", type=Path, metavar="FILE", help="PEM: signing certificate and its issuers"
    )
    sample.add_argument("--sign-key-file", type=Path, metavar="FILE", help="PEM: its private key")
    sample.add_argument(
        "--sign-algorithm",
        default="es256",
        choices=get_args(SignAlgorithm),
        help="of that key; default: es256",
    )
    sample.add_argument("--accelerator", default="cpu", choices=["cpu", "cuda"])
    sample.add_argument("--threads", type=int, default=1, metavar="N", help="ONNX Runtime threads")
    sample.set_defaults(run=_sample)

    verify = verbs.add_parser(
        "verify",
        allow_abbrev=False,
        help="make images again and compare",
        description="Read the mark in each image, make the image again from the store, and compare. "
        "Exit status: 0 all are identical or have the same pixels; 1 one differs; 2 a mistake in what was "
        "asked for; 3 none differs, but one is not ours or cannot be told, or there is no image.",
    )
    _add_store(verify)
    verify.add_argument(
        "paths", nargs="*", type=Path, metavar="FILE|DIR", help="images, zips and tars of them, folders"
    )
    verify.add_argument(
        "--deep",
        nargs="?",
        const="fashion-mnist",
        metavar="NAME[:V]",
        help="make all golden rows of a model again; default: fashion-mnist, highest version",
    )
    verify.add_argument("--accelerator", default="cpu", choices=["cpu", "cuda"])
    verify.add_argument("--threads", type=int, default=1, metavar="N", help="ONNX Runtime threads")
    verify.set_defaults(run=_verify)

    models = verbs.add_parser(
        "models", allow_abbrev=False, help="list a store", description="List the models of a store."
    )
    _add_store(models)
    models.set_defaults(run=_models)

    bench = verbs.add_parser(
        "bench",
        allow_abbrev=False,
        help="measure a server beside the in-process limit",
        description="Start a server with the settings given, put load on it, and print how fast it was "
        "beside what the same work costs without HTTP. Without --clients and --rate, three usual cases.",
    )
    load = bench.add_argument_group("load")
    load.add_argument("--clients", type=int, metavar="N", help="closed loop of N connections")
    load.add_argument("--rate", type=float, metavar="R", help="open loop of R requests a second")
    load.add_argument("--n", type=int, default=1, metavar="N", help="images a request; default 1")
    load.add_argument("--format", default="png", choices=["png", "jpg", "webp", "npy"])
    load.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of a round; default 5")
    load.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    add_flags(bench)
    bench.set_defaults(run=_bench)
    return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=Path, default=SHIPPED_STORE, metavar="DIR", help="default: the shipped store"
    )


def _serve(arguments: argparse.Namespace) -> int:
    from service.server import serve
    from service.settings import load_settings

    return serve(load_settings(arguments))


def _sample(arguments: argparse.Namespace) -> int:
    from models.sampling import SeedRanges
    from service.offline import sample_to_folder

    seeds = SeedRanges.parse(arguments.seeds)
    _check_threads(arguments.threads)
    artifact = Store(arguments.store).resolve(arguments.model)
    artifact.verify()
    progress = sample_to_folder(
        artifact,
        seeds,
        arguments.out,
        class_idx=arguments.class_idx,
        truncation_psi=arguments.truncation_psi,
        fmt=arguments.format,
        accelerator=arguments.accelerator,
        threads=arguments.threads,
        marks=arguments.marks,
        signer=_signer(arguments),
    )
    written = 0
    for written in progress:
        if sys.stderr.isatty():
            print(f"\r{written}/{len(seeds)} images", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"{_images(written)} of {artifact.address} ({artifact.digest[:12]}) in {arguments.out}")
    return 0


def _signer(arguments: argparse.Namespace) -> ImageSigner | None:
    from service.settings import SignFiles
    from service.signing import ImageSigner

    cert_file, key_file = arguments.sign_cert_file, arguments.sign_key_file
    if not arguments.sign:
        if cert_file or key_file:
            raise InvalidValue(f"--sign must be given with {cert_file or key_file}")
        return None
    if cert_file is None or key_file is None:
        raise InvalidValue("--sign needs --sign-cert-file and --sign-key-file")
    if arguments.format == "npy":
        raise InvalidValue("--sign must be left out where format is npy")
    signer = ImageSigner(SignFiles(cert_file, key_file, arguments.sign_algorithm))
    signer.check()
    return signer


def _bench(arguments: argparse.Namespace) -> int:
    from service.bench import CASES, Case, bench, free_port
    from service.settings import flags_of, load_settings

    for name in ("clients", "rate", "n", "seconds", "rounds"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise InvalidValue(f"{name} must be greater than 0, got {value}")
    if arguments.clients is not None and arguments.rate is not None:
        raise InvalidValue("clients and rate must not be given together: a loop is closed or open")
    if arguments.port is None:
        arguments.port = str(free_port())
    cases: Sequence[Case] = CASES
    if arguments.clients is not None or arguments.rate is not None:
        cases = (Case(arguments.clients or 1, arguments.n, arguments.format, arguments.rate),)
    lines = bench(
        load_settings(arguments),
        flags_of(arguments),
        cases,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
    )
    for line in lines:
        print(line, flush=True)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from collections import Counter

    from service.verify import EXIT_DIFFERS, Verdict, exit_status, replay_golden, verify_files

    if not arguments.paths and arguments.deep is None:
        raise InvalidValue("verify needs a FILE or DIR, or --deep, got neither")
    _check_threads(arguments.threads)
    store = Store(arguments.store)
    status = 0
    if arguments.deep is not None:
        levels, sentence = replay_golden(
            store.resolve(arguments.deep), arguments.accelerator, arguments.threads
        )
        print(sentence, flush=True)
        status = EXIT_DIFFERS if levels else 0
    if arguments.paths:
        verdicts: Counter[Verdict] = Counter()
        for finding in verify_files(arguments.paths, store, arguments.accelerator, arguments.threads):
            print(finding, flush=True)
            verdicts[finding.verdict] += 1
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        if counts:
            print(f"{_images(verdicts.total())}: {counts}")
        else:
            print(f"no image in {', '.join(map(str, arguments.paths))}")
        status = status or exit_status(verdicts)
    return status


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _check_threads(threads: int) -> None:
    if not 1 <= threads <= 256:
        raise InvalidValue(f"threads must be between 1 and 256, got {threads}")


def _models(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    if not store.root.is_dir():
        raise InvalidValue(f"store must be a folder of published models, got {store.root}")
    damaged = 0
    for name in store.names():
        for version in store.versions(name):
            try:
                artifact = store.resolve(f"{name}:{version}")
                artifact.verify()
            except ContractError as error:
                print(f"{name}:{version}  damaged: {error}")
                damaged += 1
                continue
            manifest = artifact.manifest
            classes = f"{manifest.num_classes} classes" if manifest.num_classes else "unconditional"
            size = "x".join(map(str, manifest.img_shape))
            print(f"{artifact.address}  {artifact.digest[:12]}  {size}  z {manifest.z_dim}  {classes}")
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
