"""What `bench` measures adds up, and the command prints all of it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings
from dasheng_edge.runtime.errors import AudioNotFoundError, BundleKindError, MissingExtraError
from dasheng_edge.runtime.machine.devices import usable_cores
from dasheng_edge.runtime.machine.gpu import Gpus
from dasheng_edge.runtime.speed import bench as bench_module
from dasheng_edge.runtime.speed.bench import SYNTHETIC_S, BenchOptions, BenchReport, bench, machine_line, synthetic_clip
from dasheng_edge.runtime.tuned import store_tuned
from tests.fixtures.audio_files import Format, sine, write_audio
from tests.fixtures.bundle_kinds import write_encoder_bundle
from tests.fixtures.fake_gpu import H200

WAV = Format("wav", "wav", "pcm_s16le", 16_000)
TOKENS = 4


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DASHENG_EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_audio(tmp_path / "clip.wav", sine(440, 1, 16_000), WAV)


def measured(bundle: Path, *audio: Path, rounds: int = 2, checkpoint: Path | None = None) -> BenchReport:
    names = tuple(map(str, audio))
    return bench(BenchOptions(str(bundle), names, rounds, TOKENS, checkpoint, EngineSettings()))


def test_the_synthetic_clip_is_the_same_each_time_and_not_silent() -> None:
    assert synthetic_clip() == synthetic_clip()
    samples = np.concatenate(list(read_audio(synthetic_clip(), sample_rate_hz=16_000)))
    assert len(samples) == pytest.approx(16_000 * SYNTHETIC_S, abs=2)
    assert np.abs(samples).max() < 0.99
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() == pytest.approx(440 * SYNTHETIC_S, abs=1)
    assert np.median(spectrum) > spectrum.max() / 10_000  # all other pitches are heard too


def test_stages_add_up_and_are_counted_once_per_round_and_clip(tiny_bundle: Path, clip: Path) -> None:
    report = measured(tiny_bundle, clip, clip, rounds=3)
    assert (report.clips, report.rounds, report.audio_s) == (2, 3, 2.0)
    assert {len(spread.values) for spread in report.stages_ms.values()} == {6}
    stages = {name: np.array(spread.values) for name, spread in report.stages_ms.items()}
    parts = sum(stages[name] for name in ("audio_decode", "front_end", "encoder", "projector", "prefill"))
    assert np.all(parts <= stages["first_token"])
    np.testing.assert_allclose(stages["first_token"] + stages["decode"], stages["total"])
    assert report.real_time_factor == pytest.approx(stages["total"].sum() / 6000)
    for spread in report.stages_ms.values():
        assert min(spread.values) <= spread.p50 <= spread.p90 <= max(spread.values)
    rate = report.prefill_tokens_per_s
    assert min(rate.values) <= rate.p90 <= rate.p50 <= max(rate.values)
    assert report.peak_rss_bytes is None or report.peak_rss_bytes > 20e6
    assert (report.energy_j is None) == bool(report.energy_problem)
    assert (report.prefill_threads, report.decode_threads, report.tuned) == (1, 1, False)
    assert all(1 <= count <= TOKENS for count in report.new_tokens)


def test_one_new_token_has_no_rate(tiny_bundle: Path, clip: Path) -> None:
    report = bench(BenchOptions(str(tiny_bundle), (str(clip),), 1, 1, engine=EngineSettings()))
    assert report.decode_tokens_per_s is None
    assert report.new_tokens == (1,)


def test_it_says_that_threads_are_tuned(tiny_bundle: Path, clip: Path) -> None:
    cores = usable_cores()
    options = BenchOptions(str(tiny_bundle), (str(clip),), 1, 1)
    assert not bench(options).tuned
    store_tuned(Bundle.open(tiny_bundle), EngineSettings(prefill_threads=cores))
    assert bench(options).tuned
    assert not bench(replace(options, engine=EngineOptions().changed(threads=cores))).tuned  # they are given


def test_what_cannot_be_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioNotFoundError):
        measured(tiny_bundle, tmp_path / "none.wav")
    encoder = write_encoder_bundle(tiny_bundle, tmp_path / "encoder")
    with pytest.raises(BundleKindError, match="holds a Dasheng encoder only"):
        measured(encoder)


def test_the_machine_is_named_without_its_host() -> None:
    import platform

    line = machine_line()
    assert "usable core" in line
    assert "llama-cpp-python" in line
    assert platform.node() not in line.split()


def test_the_gpu_is_named_where_it_is_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "find_gpus", lambda: Gpus((H200, H200), ""))
    assert machine_line("cuda") == f"{H200}, {machine_line('cpu')}"


def run(*args: str | Path, stdin: bytes | None = None) -> Result:
    command = ["bench", *map(str, args), "--threads", "1", "--rounds", "2", "--max-new-tokens", str(TOKENS)]
    return CliRunner().invoke(build_app(), command, input=stdin, prog_name="dasheng-edge")


def test_the_command_prints_a_table(tiny_bundle: Path) -> None:
    result = run(tiny_bundle)
    assert result.exit_code == 0
    for text in ("audio decode", "front end", "p50", "p90", "real-time factor", "peak memory", "energy", "usable core"):
        assert text in result.stdout
    assert "{" not in result.stdout
    assert "round 2 of 2" in result.stderr


def test_the_command_prints_json_alone(tiny_bundle: Path, clip: Path) -> None:
    (line,) = run(tiny_bundle, "--json").stdout.splitlines()
    report = json.loads(line)
    assert report["audio_s"] == SYNTHETIC_S
    assert report["against"] is None
    (line,) = run(tiny_bundle, "-", clip, "--json", stdin=clip.read_bytes()).stdout.splitlines()
    assert json.loads(line)["clips"] == 2


@pytest.mark.parametrize("energy", [(3.25, ""), (None, "it cannot be read")])
def test_energy_is_printed_or_why_there_is_none(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, energy: tuple[float | None, str]
) -> None:
    class Meter:
        problem = energy[1]

        def joules(self) -> float | None:
            return energy[0]

    monkeypatch.setattr(bench_module, "EnergyMeter", Meter)
    shown = run(tiny_bundle).stdout
    assert ("energy: 1.62 J per clip" if energy[0] else "energy: unknown, it cannot be read") in shown


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (0.03, "\nother programs took 3% of"),
        (0.5, "\nBUSY: other programs took 50% of"),
        (None, "\nother programs took an unknown part of"),
    ],
)
def test_it_says_what_others_took(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, share: float | None, says: str
) -> None:
    waits = list[float]()
    monkeypatch.setattr(bench_module, "Load", lambda: SimpleNamespace(share=lambda: share))
    monkeypatch.setattr(bench_module, "wait_for_calm", lambda _, wait_s: waits.append(wait_s))
    assert says in run(tiny_bundle).stdout
    assert json.loads(run(tiny_bundle, "--json").stdout)["others_share"] == share
    assert waits == [bench_module.WAIT_S] * 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--against", "transformers"], "--checkpoint"),
        (["--checkpoint", "x"], "--against"),
        (["--against", "nothing"], "transformers"),
        (["-", "-"], "only once"),
        (["--device", "tpu"], "expected one of cpu, cuda, auto"),
    ],
)
def test_wrong_usage(tiny_bundle: Path, args: list[str], said: str) -> None:
    result = run(tiny_bundle, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.replace("\u2502", " ").split())


@pytest.mark.parametrize("missing", ["torch", "transformers", "dasheng_edge.export", bench_module.PEER_MODULE])
def test_without_the_exporter_there_is_nothing_to_compare_with(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(bench_module, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"--against transformers needs .*pip install .*\[export,cpu\]"):
        measured(tiny_bundle, checkpoint=tmp_path)
