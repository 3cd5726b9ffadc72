"""C2PA: images signed with the operator's certificate, on request.

A signature is random by nature, so signed bytes are never the same twice: only what asks for it is signed,
no address is, and nothing of it is cached. What is signed is the whole file, mark included; the claim is one
action: created, by a trained model (IPTC's digital source type). No thumbnail, and no verification after
signing: they would cost a hundred times what signing does; one image is signed and read back at start.

Needs the extra `c2pa`, which is imported when the first image is signed.
"""

from __future__ import annotations

import importlib.util
import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from models.errors import show
from service import __version__
from service.encoding import MEDIA_TYPES, Format, encode_image
from service.errors import StartError
from service.provenance import SOURCE_TYPE
from service.settings import SignFiles

_WAY_OUT: Final = "install the extra 'c2pa' beside the others: pip install -e '.[cpu,c2pa]' in a clone"
_CLAIM: Final = json.dumps(
    {
        "claim_generator_info": [{"name": "ganserve", "version": __version__}],
        "assertions": [
            {
                "label": "c2pa.actions",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
            }
        ],
    }
)
_SETTINGS: Final = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"verify_after_sign": False}}


class ImageSigner:
    """Signs image files with one certificate. For use by several threads and, once each, after a fork."""

    def __init__(self, files: SignFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._context: Any = None

    def check(self) -> None:
        """Sign one image and read it back. Raises StartError naming what is wrong with certificate or key."""
        if importlib.util.find_spec("c2pa") is None:
            raise StartError(f"sign_cert_file needs the package c2pa-python; {_WAY_OUT}")
        import c2pa

        try:
            signed = self.sign(encode_image(np.zeros((8, 8, 3), dtype=np.uint8), "png"), "png")
            with c2pa.Reader(MEDIA_TYPES["png"], io.BytesIO(signed)) as reader:
                state = str(reader.get_validation_state())
                failures = reader.get_validation_results()["activeManifest"]["failure"]
        except c2pa.C2paError as error:
            raise StartError(
                "sign_cert_file, sign_key_file and sign_algorithm must fit each other, "
                f"got {self._files.algorithm}: {show(str(error))}"
            ) from None
        finally:
            self.close()
        if state == "Invalid":
            codes = ", ".join(str(one["code"]) for one in failures)
            raise StartError(
                "sign_key_file must be the private key of the first certificate in sign_cert_file, "
                f"and that one valid for signing: {codes}"
            )

    def sign(self, data: bytes, fmt: Format) -> bytes:
        """The image file `data` with a signed C2PA manifest; about 0.3 ms and 3 kB."""
        import c2pa

        with self._lock:
            if self._context is None:
                self._context = self._open()
        signed = io.BytesIO()
        with c2pa.Builder.from_json(_CLAIM, self._context) as builder:
            builder.sign(MEDIA_TYPES[fmt], io.BytesIO(data), signed)
        return signed.getvalue()

    def sign_all(self, files: Sequence[bytes], fmt: Format) -> list[bytes]:
        """The same images, each file signed."""
        return [self.sign(file, fmt) for file in files]

    def close(self) -> None:
        """Let go of the certificate; the next call reads it again."""
        with self._lock:
            if self._context is not None:
                self._context.close()
            self._context = None

    def _open(self) -> Any:
        import c2pa

        certificates = _read("sign_cert_file", self._files.cert_file)
        key = _read("sign_key_file", self._files.key_file)
        info = c2pa.C2paSignerInfo(self._files.algorithm, certificates, key, None)
        return c2pa.Context(c2pa.Settings.from_dict(_SETTINGS), c2pa.Signer.from_info(info))


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"{name} must be a readable file: {error.strerror}, got {path}") from None
