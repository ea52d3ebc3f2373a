"""What the engines run with: what is given goes before what was tuned, and that before the default."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime import engine_options
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import DecoderFacts, KvType
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings, Host, huge_pages_on_request, resolve
from dasheng_edge.runtime.errors import DeviceError
from dasheng_edge.runtime.machine.devices import Device

HOST = Host(2, x86=True, huge_pages=True)
TUNED = EngineSettings(decode_threads=2, kv_type="q8_0", weights="mapped", huge_pages=True)


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)


@pytest.fixture
def decoder(tiny_bundle: Path) -> DecoderFacts:
    facts = Bundle.open(tiny_bundle, check_sha256=False).decoder_facts
    return facts.model_copy(update={"precision": "Q4_K_M", "kv_type": "q4_0"})


def test_the_default(decoder: DecoderFacts) -> None:
    default = resolve(EngineOptions(), decoder, HOST)
    assert default == EngineSettings("cpu", 2, 2, 2, "q4_0", "repacked", huge_pages=True)
    assert resolve(EngineOptions(), None, HOST) == EngineSettings("cpu", 2, 2, 2, "f16", "mapped", huge_pages=False)
    assert resolve(default, None, replace(HOST, cores=1)) == default  # nothing is left open


@pytest.mark.parametrize(
    ("precision", "x86", "weights"),
    [("F16", True, "mapped"), ("Q8_0", True, "mapped"), ("Q4_0", True, "repacked"), ("F16", False, "mapped"),
     ("Q8_0", False, "repacked")],
)  # fmt: skip
def test_weights_are_repacked_where_llama_cpp_has_a_layout(
    decoder: DecoderFacts, precision: str, x86: bool, weights: str
) -> None:
    facts = decoder.model_copy(update={"precision": precision})
    for huge_pages in (False, True):
        settings = resolve(EngineOptions(), facts, Host(1, x86, huge_pages))
        assert (settings.weights, settings.huge_pages) == (weights, huge_pages and weights == "repacked")


def test_what_was_tuned_goes_before_the_default(decoder: DecoderFacts) -> None:
    assert resolve(EngineOptions(), decoder, HOST, TUNED) == TUNED
    assert resolve(EngineOptions(kv_type="f16"), decoder, HOST, TUNED) == replace(TUNED, kv_type="f16")
    # Pages are tuned for one layout.
    assert resolve(EngineOptions(weights="mapped"), decoder, HOST, TUNED) == replace(
        TUNED, huge_pages=False, packed=False
    )
    assert resolve(EngineOptions(weights="repacked"), decoder, HOST, TUNED) == replace(TUNED, weights="repacked")


@pytest.mark.parametrize(
    "options", [EngineOptions("cuda"), EngineOptions(decode_threads=1), EngineOptions().changed(threads=1)]
)
def test_it_does_not_count_on_another_device_or_with_threads(decoder: DecoderFacts, options: EngineOptions) -> None:
    assert not options.may_be_tuned
    assert resolve(options, decoder, HOST, TUNED) == resolve(options, decoder, HOST)


@pytest.mark.parametrize(
    ("options", "warms_up"),
    [
        (EngineOptions(), False), (EngineOptions(warm_up=True), False), (EngineOptions("cuda"), True),
        (EngineOptions("cuda", weights="mapped"), False), (EngineOptions("cuda", warm_up=False), False),
        (EngineOptions("cuda", weights="mapped", warm_up=True), True), (EngineOptions(decoder_device="cuda"), True),
    ],
)  # fmt: skip
def test_what_is_on_a_gpu_is_run_once_when_it_opens_but_for_few_clips(
    decoder: DecoderFacts, options: EngineOptions, warms_up: bool
) -> None:
    assert resolve(options, decoder, HOST).warm_up is warms_up


@pytest.mark.parametrize(("device", "decoder_device", "of_text"), [
    ("cpu", None, "cpu"), ("cuda", None, "cuda"), ("cuda", "cpu", "cpu"), ("cpu", "cuda", "cuda"),
])  # fmt: skip
def test_the_decoder_is_where_the_others_are_unless_it_is_said(
    decoder: DecoderFacts, device: Device, decoder_device: Device | None, of_text: Device
) -> None:
    options = EngineOptions(device, decoder_device=decoder_device)
    assert (options.text_device, resolve(options, decoder, HOST).text_device) == (of_text, of_text)
    assert options.may_be_tuned is (device == of_text == "cpu")
    assert options.changed(device="cuda").text_device == "cuda"


def test_changes() -> None:
    options = EngineOptions("cuda", kv_type="q8_0")
    assert options.changed() == options
    assert options.changed(device="cpu", threads=3) == EngineOptions("cpu", 3, 3, 3, "q8_0")
    assert options.changed(weights="mapped") == replace(options, weights="mapped")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "tpu"}, "unknown device 'tpu'"), ({"decoder_device": "npu"}, "unknown device 'npu'"),
      ({"encoder_threads": 0}, "cannot run on 0 threads"),
     ({"prefill_threads": 9}, "expected 1 to 8"), ({"decode_threads": -1}, "cannot run on -1 threads")],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        EngineOptions(**options)


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such pages")
@pytest.mark.parametrize(("says", "on_request"), [("always [madvise] never", True), ("[always] madvise never", False)])
def test_the_kernel_says_who_gets_huge_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, on_request: bool
) -> None:
    (tmp_path / "enabled").write_text(says)
    monkeypatch.setattr(engine_options, "_HUGE_PAGES", tmp_path / "enabled")
    assert huge_pages_on_request() is on_request


def test_systems_without_huge_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_options, "_HUGE_PAGES", tmp_path / "none")
    assert not huge_pages_on_request()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not huge_pages_on_request()


def test_a_captioner_runs_with_what_is_given(tiny_bundle: Path, tmp_path: Path) -> None:
    options = EngineOptions(prefill_threads=1, weights="mapped", huge_pages=True, cache=tmp_path / "prompts")
    with Captioner.open(tiny_bundle, options=options, threads=1) as captioner:
        captioner.caption((np.sin(np.arange(3200, dtype=np.float32)), 16_000), max_new_tokens=1)
        want = EngineSettings(huge_pages=True, cache=tmp_path / "prompts", packed=False)
        assert captioner.parts.decoder.settings == want
    assert list((tmp_path / "prompts").rglob("*.kv"))


@pytest.mark.parametrize("tuned", [None, TUNED])
@pytest.mark.parametrize(("stored", "low"), [("f16", "q8_0"), ("q8_0", "q8_0"), ("q4_0", "q4_0")])
def test_low_memory_is_small_unless_something_else_is_said(
    decoder: DecoderFacts, stored: KvType, low: KvType, tuned: EngineSettings | None
) -> None:
    facts = decoder.model_copy(update={"kv_type": stored})
    tuned = tuned and replace(tuned, kv_type=stored)
    settings = resolve(EngineOptions(memory="low"), facts, HOST, tuned)
    assert (settings.memory, settings.weights, settings.huge_pages) == ("low", "mapped", False)
    assert (settings.kv_type, settings.batch, settings.packed) == (low, 1, False)
    assert resolve(settings, facts, HOST) == settings
    said = EngineOptions(memory="low", kv_type="f16", batch=4, packed=True, decode_threads=1)
    settings = resolve(said, facts, HOST, tuned)
    assert (settings.kv_type, settings.batch, settings.packed, settings.decode_threads) == ("f16", 4, True, 1)


@pytest.mark.parametrize(
    ("options", "packed"),
    [
        (EngineOptions(), True), (EngineOptions(weights="repacked"), True), (EngineOptions(weights="mapped"), False),
        (EngineOptions(weights="mapped", warm_up=True), True), (EngineOptions(warm_up=False), False),
        (EngineOptions(weights="mapped", packed=True), True), (EngineOptions(packed=False), False),
    ],
)  # fmt: skip
def test_weights_are_packed_where_much_is_to_come(options: EngineOptions, packed: bool) -> None:
    assert resolve(options, None, HOST).packed == packed
