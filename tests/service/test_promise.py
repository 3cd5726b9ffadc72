"""The promise: a seed with its parameters is one image, whatever is made beside it and on any threads."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.sampling import LatentSampler
from models.store import SHIPPED_STORE, Store
from service.provenance import Rendering
from service.session import Session

Row = tuple[int, int, float]  # seed, class_idx, truncation_psi

ARTIFACT = Store(SHIPPED_STORE).resolve("fashion-mnist")
MANIFEST = ARTIFACT.manifest
ROWS = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(0, MANIFEST.num_classes - 1), st.sampled_from([1.0, 0.7, 0.0, 2.0])
)


@cache
def session(threads: int) -> Session:
    return Session(ARTIFACT, threads=threads)


def files(rows: list[Row], threads: int) -> list[bytes]:
    """The rows' PNG files, made in one microbatch."""
    seeds, classes, psis = zip(*rows, strict=True)
    latents = LatentSampler(MANIFEST.z_dim, MANIFEST.prior).draw(np.array(seeds, dtype=np.int64))
    one = session(threads)
    pixels = one.run(latents, np.array(classes, dtype=np.int64), np.array(psis, dtype=np.float32))
    rendering = Rendering(MANIFEST, one.provider, one.runtime_version, marks=True)
    return [rendering.encode(image, "png", *row) for image, row in zip(pixels, rows, strict=True)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(ROWS, min_size=1, max_size=33), data=st.data())
def test_a_rows_bytes_do_not_depend_on_its_batch_its_place_in_it_or_the_threads(
    rows: list[Row], data: st.DataObject
) -> None:
    alone = {row: files([row], threads=1)[0] for row in rows}

    order = data.draw(st.permutations(rows))
    cuts = data.draw(st.sets(st.integers(1, len(rows))))
    threads = data.draw(st.sampled_from([1, 2, 3]))
    made: list[bytes] = []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(rows)], strict=True):
        made += files(order[start:stop], threads) if stop > start else []

    assert made == [alone[row] for row in order]
