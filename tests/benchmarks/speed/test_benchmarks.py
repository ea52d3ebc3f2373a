"""The speed benchmarks at work on tiny models: each measures what it says, and its record can be shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import render
from benchmarks.peers import llama_bench
from benchmarks.peers.bundle_worker import answer
from benchmarks.peers.gemms import gemm_feed, matrix_shapes, operations, write_gemms
from benchmarks.peers.llama_bench import PORTABLE, SAME, LlamaBench, Work, find_llama_bench, parse
from benchmarks.peers.llama_cpp_tools import VERSION, pinned_version
from benchmarks.peers.workers import Worker
from benchmarks.places import REPOSITORY
from benchmarks.records.record import BenchmarkError
from benchmarks.speed import busy, decoder, encoder, latency, memory, mtmd, peers, throughput
from benchmarks.speed.decoder import Variants
from benchmarks.speed.encoder import by_operator, profile_graph
from benchmarks.synthetic.noise import GREEDY, RATE_HZ, noise, talkative_noise, write_wav
from benchmarks.synthetic.whisper import LARGE, WhisperShape, whisper_tensors, write_whisper
from dasheng_edge.quant.encoder.quantize import EncoderOptions, quantize_encoder
from dasheng_edge.runtime import Bundle, Captioner
from dasheng_edge.runtime.audio.onnx_session import onnx_session
from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.machine.meters import cpu_use
from dasheng_edge.runtime.text.decoder import Decoder

Run = Callable[..., dict[str, Any]]
TINY_MATRICES = [(64, 192), (64, 64), (64, 256), (256, 64)] * 2


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a benchmark with few threads, shows its record on a page, and gives it with the last line it printed."""

    def measured(main: Callable[[Sequence[str]], int], *arguments: str | Path) -> dict[str, Any]:
        out = tmp_path / "records" / "record.json"
        status = main([*map(str, arguments), "--threads", "1", "--out", str(out)])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        assert render.main(["--results", str(out.parent), "--out", str(tmp_path / "page.md")]) == 0
        capsys.readouterr()
        record: dict[str, Any] = json.loads(out.read_text("utf-8"))
        assert f"{record['benchmark']}-{record['model']}.svg)" in (tmp_path / "page.md").read_text("utf-8")
        last = json.loads(printed.out.splitlines()[-1])
        assert (last["benchmark"], last["model"]) == (record["benchmark"], record["model"])
        return {**record, "last": last}

    return measured


def test_noise_survives_a_file(tmp_path: Path) -> None:
    waveform = noise(0.5, seed=3)
    read = np.concatenate(list(read_audio(write_wav(tmp_path / "clip.wav", waveform))))
    np.testing.assert_array_equal(read, waveform)
    assert 0.29 < np.abs(waveform).max() <= 0.3
    assert not np.array_equal(noise(0.5, seed=4), waveform)


def test_a_talkative_clip_is_one_that_fills_the_caption(captioner: Captioner) -> None:
    waveform = talkative_noise(captioner, 1.0, 3)
    said = captioner.caption((waveform, RATE_HZ), max_new_tokens=3, sampling=GREEDY)
    assert len(said.tokens) == 3


def test_a_model_that_never_says_so_much_is_refused(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioner.parts.decoder, "is_end", lambda _: True)
    with pytest.raises(BenchmarkError, match=r"ends its text before 3 tokens on each of 24 clips of 0\.5 s"):
        talkative_noise(captioner, 0.5, 3)


def test_gemms_are_those_of_the_encoder_and_compute(tiny_bundle: Path, tmp_path: Path) -> None:
    shapes = matrix_shapes(tiny_bundle / ENCODER)
    assert shapes == TINY_MATRICES
    assert operations(shapes, 10) == 2 * 10 * sum(k * n for k, n in TINY_MATRICES)

    write_gemms(tmp_path / "gemms.onnx", [(2048, 3)], rows=2)
    feed = gemm_feed([(2048, 3)], rows=2)
    (corner,) = onnx_session(tmp_path / "gemms.onnx", "cpu", 1).run(None, dict(feed))

    weight = np.frombuffer((tmp_path / "gemms.onnx.data").read_bytes()[: 2048 * 3], np.int8).reshape(2048, 3)
    wanted = (feed["x2048"][0, 0].astype(np.int64) - 128) @ weight[:, 0].astype(np.int64)
    assert corner.shape == (1, 1, 1)
    assert corner.item() == wanted


def test_gemms_in_float32_compute(tmp_path: Path) -> None:
    write_gemms(tmp_path / "gemms.onnx", [(64, 3)], 2, "fp32")
    feed = gemm_feed([(64, 3)], 2, "fp32")
    (corner,) = onnx_session(tmp_path / "gemms.onnx", "cpu", 1).run(None, dict(feed))
    stored = onnx.load(tmp_path / "gemms.onnx").graph.initializer
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in stored}
    assert corner.item() == pytest.approx(float(feed["x64"][0, 0] @ weights["w0"][:, 0]), rel=1e-5)


def test_a_profile_leaves_out_the_first_run() -> None:
    def event(name: str, start: int, microseconds: float, kind: str = "kernel_time") -> dict[str, Any]:
        return {"cat": "Node", "name": f"n_{kind}", "ts": start, "dur": microseconds, "args": {"op_name": name}}

    events = [
        event("MatMul", 30, 2000), event("Add", 40, 1000), event("MatMul", 50, 4000), event("Add", 60, 1000),
        event("MatMul", 10, 9e6), event("Add", 20, 9e6), event("Add", 21, 9e6, "fence_before"),
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 9e6},
    ]  # fmt: skip
    assert by_operator(events, runs=2) == {"MatMul": {"ms": 3.0, "calls": 1.0}, "Add": {"ms": 1.0, "calls": 1.0}}


def test_an_int8_encoder_is_profiled_by_its_operators(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    quantize_encoder(bundle, tmp_path.joinpath, EncoderOptions("int8"), (), 1)
    feed: dict[str, Any] = {"log_mel": np.zeros((1, 64, 400), np.float32), "valid_patches": np.array([100], np.int64)}
    profile = profile_graph(tmp_path / ENCODER, feed, threads=1, runs=2)
    assert sum(row["calls"] for name, row in profile.items() if "Quantize" in name) == len(TINY_MATRICES)
    assert profile["MatMul"]["calls"] == 1  # the patches', in float32
    assert all(row["ms"] > 0 for row in profile.values())


def test_the_decoders_turns_decode_what_they_say(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder.open(tiny_bundle / DECODER, EngineSettings())
    rows: list[int] = []
    decode = Decoder._decode

    def counted(self: Decoder, block: Any, *, outputs: int) -> None:
        rows.append(len(block))
        decode(self, block, outputs=outputs)

    monkeypatch.setattr(Decoder, "_decode", counted)
    try:
        variants = Variants(decoder, prompt=50, generated=4)
        for turn, wanted in (
            (variants.prefill, [1, 50]), (variants.prefill, [1, 50]), (variants.caption, [1, 4, 46]),
            (variants.generate, [1] * 5), (variants.rows, [1] * 6), (variants.prefill, [1, 50]),
        ):  # fmt: skip
            rows.clear()
            assert turn() > 0
            assert rows == wanted
    finally:
        decoder.close()


def test_a_decoder_that_ends_at_once_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder.open(tiny_bundle / DECODER, EngineSettings())
    monkeypatch.setattr(decoder, "is_end", lambda _: True)
    with pytest.raises(BenchmarkError, match="ends its text before 4 tokens after each of 50 tokens"):
        Variants(decoder, prompt=10, generated=4)
    decoder.close()


def test_llama_benchs_answer_is_read_and_another_one_refused() -> None:
    tests = [{"n_prompt": 30, "n_gen": 0, "avg_ts": 300.0}, {"n_prompt": 0, "n_gen": 4, "avg_ts": 40.0}]
    assert parse(tests) == {"prefill": 300.0, "decode": 40.0}
    for wrong in (tests[:1], [tests[0], tests[0]], [*tests, tests[0]]):
        with pytest.raises(BenchmarkError, match="expected a prefill and a generation"):
            parse(wrong)


def test_llama_bench_is_asked_for_what_the_runtime_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_bench, "build_info", lambda: ("AVX2 = 1", False))
    test = Work(Path("m.gguf"), 300, 40, 2)
    assert " ".join(test.options) == "-m m.gguf -p 300 -n 40 -t 2 -r 1 -o json --repack 1"
    kept = Work(Path("m.gguf"), 300, 40, 2, "q8_0").options
    assert "-ctk q8_0 -ctv q8_0 -fa on" in " ".join(kept)
    monkeypatch.setattr(llama_bench, "build_info", lambda: ("AMX_INT8 = 1 | AVX2 = 1", False))
    assert test.options[-1] == "0"  # its kernels end the process on quantized weights


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="llama-bench ended with status 1"):
        LlamaBench(Path(shutil.which("false") or "false"), PORTABLE).speeds(Work(tmp_path / "m.gguf", 1, 1, 1))


def test_without_the_tools_there_is_a_way_to_them(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="is not built; run make llama-tools"):
        find_llama_bench(tmp_path)


def test_without_the_objects_the_portable_program_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "llama-bench").write_text("")
    (tmp_path / "bin" / VERSION).write_text(pinned_version())
    assert find_llama_bench(tmp_path).library == PORTABLE
    for name in llama_bench.OBJECTS:  # there, but nothing that can be linked
        path = tmp_path / f"build-{pinned_version()}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert find_llama_bench(tmp_path).library == PORTABLE


def test_a_worker_that_dies_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="torch_worker ended with status 2 instead of answering"):
        Worker("torch_worker", "--no-such-option")


def test_a_bundle_answers_with_its_prompt_and_with_times(captioner: Captioner, tmp_path: Path) -> None:
    clip = str(tmp_path / "clip.npy")
    segments = answer(captioner, {"segments": True})["segments"]
    assert segments.count(None) == 1
    assert all(isinstance(token, int) for part in segments if part for token in part)
    assert answer(captioner, {"talkative": 1.0, "tokens": 3, "save": clip}) == {}
    said = answer(captioner, {"caption": clip, "prompt": segments, "tokens": 3})
    assert len(said["tokens"]) == 3
    assert 0 < said["audio_s"] < said["first_token_s"] < said["total_s"]


def test_transformers_says_what_the_runtime_says(tiny_checkpoint: Path, captioner: Captioner, tmp_path: Path) -> None:
    import torch

    from benchmarks.peers.torch_worker import captions

    clip = tmp_path / "clip.npy"
    np.save(clip, waveform := talkative_noise(captioner, 2.0, 8))
    request = {"caption": str(clip), "prompt": answer(captioner, {"segments": True})["segments"], "tokens": 8}
    wanted = captioner.caption((waveform, RATE_HZ), max_new_tokens=8, sampling=GREEDY)
    said = captions(tiny_checkpoint, torch.float32)(request)
    assert tuple(said["tokens"]) == wanted.tokens
    assert 0 < said["audio_s"] < said["first_token_s"] < said["total_s"]
    assert len(captions(tiny_checkpoint, torch.bfloat16)({**request, "tokens": 30})["tokens"]) == 30


@pytest.mark.slow
def test_the_encoder_is_measured(run: Run, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    record = run(encoder.main, tiny_checkpoint, tiny_bundle)
    chunk = record["seconds"]["10"]
    assert set(chunk) == {
        encoder.EXACT,
        encoder.INT8,
        encoder.TORCH,
        encoder.TORCH_BF16,
        encoder.PEAK,
        encoder.EXACT_PEAK,
    }
    assert all(len(one["values"]) == 5 for one in chunk.values())
    assert record["patches"] == 252
    snr_db = record["snr_db"]
    assert snr_db[encoder.TORCH] is None
    assert snr_db[encoder.EXACT] > 100 > snr_db[encoder.TORCH_BF16] > 25
    assert snr_db[encoder.INT8] > 25
    assert not list(tiny_bundle.parent.glob(".encoder-*"))


@pytest.mark.parametrize("main", [encoder.main, peers.main])
def test_a_benchmark_without_its_model_says_so(
    main: Callable[[Sequence[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_only_plain_fp32_encoders_are_compared(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(name: str, **facts: Any) -> Path:
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / name))
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        for part, values in facts.items():
            manifest[part] |= values
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        return folder

    for folder, why in (
        (changed("int8", encoder={"precision": "int8"}), "is int8; give a bundle with one in fp32"),
        (changed("adapted", provenance={"adapters": [f"a {'0' * 64}"]}), "holds adapters"),
    ):
        assert encoder.main([str(tiny_checkpoint), str(folder), "--threads", "1"]) == 1
        assert why in capsys.readouterr().err


@pytest.mark.skipif(not (llama_bench.TOOLS / "bin" / "llama-bench").is_file(), reason="run make llama-tools")
def test_the_decoder_is_measured(run: Run, tiny_bundle: Path) -> None:
    record = run(decoder.main, tiny_bundle, "--prompt", "40", "--generated", "3")
    assert set(record["tokens_per_s"]["prefill"]) == {decoder.OURS, decoder.BENCH, decoder.OTHER, decoder.CAPTION}
    assert set(record["tokens_per_s"]["decode"]) == {decoder.OURS, decoder.BENCH, decoder.OTHER, decoder.ROWS}
    assert record["llama_bench"] in (SAME, PORTABLE)
    assert record["last"]["prefill_ratio"] > 0


@pytest.mark.slow
def test_latency_is_measured(run: Run, tiny_bundle: Path) -> None:
    record = run(latency.main, tiny_bundle, "--tokens", "4")
    first, second = (record["clips"][which]["10"] for which in (latency.FIRST, latency.SECOND))
    assert second["prefix_tokens_prefilled"]["values"] == [0] * 5
    assert first["prefix_tokens_prefilled"]["p50"] > 0
    assert first["prefilled_rows"]["p50"] == first["prompt_rows"]["p50"] > second["prefilled_rows"]["p50"]
    assert set(record["start_s"]) == {latency.BARE, latency.RUNTIME, latency.RUNTIME_KEPT, latency.COMMAND}
    assert len(record["import_s"]["numpy"]["values"]) == 7


def test_a_bare_process_that_does_other_work_is_found_out(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_output", lambda _: "-7")
    with pytest.raises(BenchmarkError, match=r"say tokens \['-7'\], not \d+: they do not do the same work"):
        latency.measure_start(captioner.bundle, captioner, 1, 5)


def test_a_process_that_says_nothing_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="and no token"):
        latency._start([sys.executable, "-c", "pass", "x"], {})()
    with pytest.raises(BenchmarkError, match="ended with status 3: oh"):
        latency._output([sys.executable, "-c", "import sys; print('oh', file=sys.stderr); sys.exit(3)"])


@pytest.mark.slow
def test_llama_cpp_hears_with_an_encoder_of_whispers_shape(
    run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = WhisperShape(width=64, depth=2, heads=4)
    monkeypatch.setattr(mtmd, "write_whisper", partial(write_whisper, shape=small))
    record = run(mtmd.main, tiny_bundle)
    for seconds, clips in record["clips"].items():
        assert clips[mtmd.OURS]["rows"]["p50"] == 5 * int(seconds)  # 200 ms each
        assert all(clips[name]["rows"]["p50"] == 750 for name in mtmd.THEIRS)  # of 40 ms, filled up to 30 s
        assert all(0 < found["encoder_s"]["p50"] <= found["seconds"]["p50"] for found in clips.values())


def test_parameters_of_whisper_large() -> None:
    small = WhisperShape(width=64, depth=2, heads=4)
    tensors = dict(whisper_tensors(small, 32))
    encoder_only = sum(values.size for name, values in tensors.items() if not name.startswith("mm."))
    assert small.parameters == encoder_only
    assert LARGE.parameters == 636_968_960


@pytest.mark.slow
def test_throughput_is_measured(run: Run, tiny_bundle: Path) -> None:
    record = run(throughput.main, tiny_bundle, "--clips", "6")
    names = {throughput.ONE, throughput.STATIC_NAME, *map(throughput.size_name, throughput.SIZES)}
    assert set(record["seconds"]) == set(record["first_s"]) == names
    for name in names:
        assert len(record["seconds"][name]["values"]) == 5
        assert 0 < record["first_s"][name]["p50"] <= record["seconds"][name]["p50"]


@pytest.mark.slow
def test_captions_beside_other_programs_are_measured(
    run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "LOADS", (busy.QUIET, busy.Beside(1), busy.Beside(1, nice=5, period_s=0.1)))
    record = run(busy.main, tiny_bundle, "--clips", "2", "--tokens", "3")
    assert set(record["seconds"]) == {"no loops", "1 loop", "1 loop at nice 5, every 0.1 s for 0.1 s"}
    assert set(record["seconds"]["1 loop"]) == {busy.FOLLOW, busy.STAY, busy.ONE, busy.SLEEP}
    assert record["pieces"] >= 2


def test_loops_take_cores_and_are_gone_behind() -> None:
    before = cpu_use()
    with busy.Beside(1, nice=1).running():
        time.sleep(0.3)
    assert cpu_use().own_s - before.own_s > 0.1  # of children that have ended


@pytest.mark.slow
def test_memory_is_measured(run: Run, tiny_bundle: Path) -> None:
    record = run(memory.main, tiny_bundle, "--tokens", "3", "--lengths", "3", "12")
    short, long = record["encode"]["3"], record["encode"]["12"]
    assert (short["audio_tokens"]["p50"], long["audio_tokens"]["p50"]) == (15, 60)
    assert record["caption"]["peak_rss_bytes"]["p50"] > record["bundle_bytes"]
    assert record["caption"]["tokens"]["p50"] <= 3


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--apart", "--dtypes", "bf16")])
def test_peers_are_measured(run: Run, tiny_checkpoint: Path, tiny_bundle: Path, options: tuple[str, ...]) -> None:
    record = run(peers.main, tiny_checkpoint, tiny_bundle, "--tokens", "4", *options)
    assert set(record["variants"]) == {
        "dasheng-edge",
        *(f"transformers {one}" for one in ("fp32", "bf16")[len(options) // 3 :]),
    }
    for one in record["variants"].values():
        assert 0 < one["audio_s"]["p50"] < one["first_token_s"]["p50"] < one["total_s"]["p50"]
    assert record["apart"] is bool(options)


def test_the_targets_of_make_name_the_records_that_are_shown() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    asked = [make, "-n", "-W", "nothing", "bench", "bench-full", "bench-listening"]
    done = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for benchmark, model in {one.record for one in render.outcomes({})}:
        assert any(
            f"benchmarks.speed.{benchmark} " in line and f"/{model}" in line.split(" --")[0]
            for line in done.stdout.splitlines()
        ), (benchmark, model)
