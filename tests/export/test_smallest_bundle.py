"""The bundle that is kept for the tests of the runtime is the one that the exporter writes now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import GOLDEN, Bundle
from tests.fixtures.places import SMALLEST_BUNDLE
from tests.fixtures.smallest_bundle import write_smallest_bundle


@pytest.mark.slow
def test_the_kept_bundle_is_what_the_exporter_writes(tmp_path: Path) -> None:
    kept, made = Bundle.open(SMALLEST_BUNDLE), Bundle.open(write_smallest_bundle(tmp_path / "tiny"))
    assert sum(file.bytes for file in kept.manifest.files.values()) < 2_000_000
    facts = [bundle.manifest.model_dump(exclude={"files", "provenance"}) for bundle in (kept, made)]
    assert facts[0] == facts[1]
    assert kept.manifest.files.keys() == made.manifest.files.keys()
    with np.load(kept.path(GOLDEN)) as old, np.load(made.path(GOLDEN)) as new:
        assert set(old) == set(new)
        for name in old:
            if old[name].dtype == np.float32:
                np.testing.assert_allclose(new[name], old[name], rtol=1e-3, atol=1e-3, err_msg=name)
            else:
                np.testing.assert_array_equal(new[name], old[name], err_msg=name)
