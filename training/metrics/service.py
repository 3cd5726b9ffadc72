"""Images of a running service, over HTTP as any client gets them.

Refuses to own: the service; where its address is that of a model, that model, otherwise its first.
"""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any, Final

import numpy as np

from models.calibration import DEFAULT_PROPOSALS
from models.errors import InvalidValue
from training.errors import ServiceError
from training.metrics.classes import ClassIdx
from training.metrics.extractor import Images
from training.metrics.fakes import Fakes, Wanted, evaluation_seeds, made, sampler_text

_ROWS_A_REQUEST: Final = 512
_TIMEOUT_S: Final = 120
_TRIES: Final = 20
_MODELS: Final = "/v1/models"


def ask_service(url: str, wanted: Wanted, api_key: str | None) -> Fakes:
    """Ask for the images of evaluation's seeds, many a request, as raw pixels.

    Raises InvalidValue for a model that is not served, ServiceError for an answer that is not the service's,
    and where the model changes meanwhile.
    """
    base, _, name = url.rstrip("/").partition(_MODELS)
    name = name.removeprefix("/")
    content, _ = _ask(base + _MODELS, None, api_key)
    try:
        models = json.loads(content)["models"]
        served = {one["name"]: one for one in models}
        facts = served[name] if name in served else models[0]
        label, digest = f"{facts['name']}:{facts['version']}", facts["digest"]
        img_bytes = facts["img_height"] * facts["img_width"] * facts["img_channels"]
        most_rows = min(facts["limits"]["max_rows"], facts["limits"]["max_pixel_bytes"] // img_bytes)
    except (ValueError, KeyError, TypeError, IndexError):
        raise ServiceError(f"{base + _MODELS} does not answer as ganserve does") from None
    if name and name not in served:
        raise InvalidValue(f"the service at {base} serves {', '.join(served)}, not {name}")
    own = (facts.get("discriminator") or {}).get("proposals", DEFAULT_PROPOSALS)
    proposals = 1 if wanted.sampler == "plain" else wanted.proposals or own
    body: dict[str, Any] = {"model": facts["name"], "format": "npy", "priority": "batch"}
    if wanted.truncation_psi != 1:
        body["truncation_psi"] = wanted.truncation_psi
    if wanted.sampler != "plain":
        body |= {"sampler": wanted.sampler, "proposals": proposals}

    def make(seeds: Sequence[int], class_idx: ClassIdx) -> Images:
        answer, found = _ask(f"{base}/v1/samples", body | {"seed": seeds[0], "n": len(seeds)}, api_key)
        if found != digest:
            raise ServiceError(f"{base} began to serve another {facts['name']} meanwhile: try again")
        images: Images = np.load(io.BytesIO(answer), allow_pickle=False)
        return images

    images, class_idx = made(
        make,
        evaluation_seeds(wanted.seed, wanted.n),
        facts["num_classes"],
        rows_a_pass=max(1, min(_ROWS_A_REQUEST, most_rows) // proposals),
    )
    return Fakes(
        label=f"{label} at {base}",
        images=images,
        class_idx=class_idx,
        truncation_psi=wanted.truncation_psi,
        sampler=sampler_text(wanted.sampler, proposals),
    )


def _ask(url: str, body: dict[str, Any] | None, api_key: str | None) -> tuple[bytes, str | None]:
    """The content of an answer and the model's digest; a busy service is asked again when it says."""
    headers = {"content-type": "application/json"} if body is not None else {}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    content = None if body is None else json.dumps(body).encode()
    for trial in range(1, _TRIES + 1):
        try:
            request = urllib.request.Request(url, content, headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                return answer.read(), answer.headers["X-Model-Digest"]
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or trial == _TRIES:
                raise ServiceError(f"{url} answers {error.code}: {_sentence(error)}") from None
            retry_after = error.headers.get("Retry-After", "")
            time.sleep(int(retry_after) if retry_after.isdecimal() else 1)
        except (OSError, HTTPException, ValueError) as error:  # a URLError is an OSError
            raise ServiceError(f"{url} cannot be asked: {getattr(error, 'reason', error)}") from None
    raise AssertionError("the last trial returns or raises")


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)
