"""The bundle that is kept for the tests of the runtime is the one that the exporter writes now, but for what is newer.

It is of schema 3, and stays so: what older bundles give must not change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import GOLDEN, GOLDEN_FLAT, Bundle
from dasheng_edge.runtime.bundle.manifest import SCHEMA_VERSION
from tests.fixtures.places import SMALLEST_BUNDLE
from tests.fixtures.smallest_bundle import write_smallest_bundle


@pytest.mark.slow
def test_the_kept_bundle_is_what_the_exporter_writes(tmp_path: Path) -> None:
    kept, made = Bundle.open(SMALLEST_BUNDLE), Bundle.open(write_smallest_bundle(tmp_path / "tiny"))
    assert sum(file.bytes for file in kept.manifest.files.values()) < 2_000_000
    newer = made.manifest.front_end.model_copy(update={"pads_below": None})  # it pads its first clip to 3200 samples
    as_kept = made.manifest.model_copy(update={"schema_version": 3, "front_end": newer, "program": None})
    assert (made.manifest.schema_version, made.manifest.front_end.pads_below) == (SCHEMA_VERSION, 3_040)
    facts = [
        manifest.model_dump(exclude={"files", "provenance", "tolerances"}) for manifest in (kept.manifest, as_kept)
    ]
    assert facts[0] == facts[1]
    assert {*kept.manifest.files, GOLDEN_FLAT} == made.manifest.files.keys()
    with np.load(kept.path(GOLDEN)) as old, np.load(made.path(GOLDEN)) as new:
        assert set(old) == set(new)
        for name in old:
            if name.endswith("_0") and name not in ("waveform_0", "prompt_0"):
                continue
            if old[name].dtype == np.float32:
                np.testing.assert_allclose(new[name], old[name], rtol=1e-3, atol=1e-3, err_msg=name)
            else:
                np.testing.assert_array_equal(new[name], old[name], err_msg=name)
