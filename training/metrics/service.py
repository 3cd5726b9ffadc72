"""Images of a running service, over HTTP as any client gets them.

Refuses to own: the service; where its address is that of a model, that model, otherwise its first.
"""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request
from typing import Any, Final

import numpy as np

from models.errors import InvalidValue
from training.errors import ServiceError
from training.metrics.counting import counted
from training.metrics.fakes import Fakes, default_classes, evaluation_seeds

_ROWS_A_REQUEST: Final = 512
_TIMEOUT_S: Final = 120
_TRIES: Final = 20
_MODELS: Final = "/v1/models"


def ask_service(url: str, count: int, seed: int, truncation_psi: float, api_key: str | None) -> Fakes:
    """Ask for the images of evaluation's seeds, many a request, as raw pixels.

    Raises ServiceError for an answer that is none, and where the model changes meanwhile.
    """
    base, _, name = url.rstrip("/").partition(f"{_MODELS}/")
    models = json.loads(_ask(base + _MODELS, None, api_key)[0])["models"]
    facts = next((one for one in models if name in ("", one["name"])), None)
    if facts is None:
        known = ", ".join(one["name"] for one in models)
        raise InvalidValue(f"the service at {base} serves {known}, not {name}")
    seeds = evaluation_seeds(seed, count)
    img_bytes = facts["img_height"] * facts["img_width"] * facts["img_channels"]
    limits = facts["limits"]
    rows_a_request = max(1, min(_ROWS_A_REQUEST, limits["max_rows"], limits["max_pixel_bytes"] // img_bytes))
    parts = []
    for first in counted("images", range(0, count, rows_a_request)):
        asked = seeds[first : first + rows_a_request]
        body: dict[str, Any] = {"model": facts["name"], "seed": asked[0], "n": len(asked), "format": "npy"}
        body["priority"] = "batch"
        if truncation_psi != 1:
            body["truncation_psi"] = truncation_psi
        content, digest = _ask(f"{base}/v1/samples", body, api_key)
        if digest != facts["digest"]:
            raise ServiceError(f"the service at {base} serves another {facts['name']} meanwhile: try again")
        parts.append(np.load(io.BytesIO(content), allow_pickle=False))
    return Fakes(
        label=f"{facts['name']}:{facts['version']} at {base}",
        images=np.concatenate(parts),
        class_idx=default_classes(seeds, facts["num_classes"]),
        truncation_psi=truncation_psi,
    )


def _ask(url: str, body: dict[str, Any] | None, api_key: str | None) -> tuple[bytes, str | None]:
    """The content of an answer and the model's digest; a busy service is asked again when it says."""
    headers = {"content-type": "application/json"} if body is not None else {}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    content = None if body is None else json.dumps(body).encode()
    for trial in range(_TRIES):
        try:
            request = urllib.request.Request(url, content, headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                return answer.read(), answer.headers["X-Model-Digest"]
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or trial == _TRIES - 1:
                raise ServiceError(f"{url} answers {error.code}: {_sentence(error)}") from None
            time.sleep(float(error.headers.get("Retry-After", 1)))
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise ServiceError(f"{url} cannot be asked: {getattr(error, 'reason', error)}") from None
    raise AssertionError("the last trial returns or raises")


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError):
        return error.reason
