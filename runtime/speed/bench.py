"""How fast a bundle is on this machine, stage by stage: rounds over the same clips, after a warm-up round.

Its peer is the checkpoint in PyTorch and transformers, with the same clips and prompt, in a process of its own.
"""

from __future__ import annotations

import io
import platform
import tempfile
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import numpy as np

from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.child import Child, ChildError
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import CheckpointError, MissingExtraError
from dasheng_edge.runtime.machine.devices import Device
from dasheng_edge.runtime.machine.gpu import find_gpus
from dasheng_edge.runtime.machine.identity import identify, installed
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.machine.load import Load, wait_for_calm
from dasheng_edge.runtime.machine.meters import EnergyMeter, peak_rss_bytes
from dasheng_edge.runtime.prompt.prompt import Prompt
from dasheng_edge.runtime.tuned import tuned_for

# `Timings` says what each is: all but the first token's are parts of the total, first_token is a sum of some.
STAGES = ("audio_decode", "front_end", "encoder", "projector", "prefill", "first_token", "decode", "total")
SYNTHETIC_S = 10.0
WAIT_S = 10.0  # for other programs to end; then it is measured beside them, and said so
_SYNTHETIC_HZ = 44_100  # so that it is resampled, as most files are
PEER_MODULE = "dasheng_edge.export.reference.bench"  # started by name: the runtime must not import upwards
# Instructions without which bfloat16 is slower than float32.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class BenchOptions:
    """What to measure."""

    bundle: str
    audio: tuple[str | bytes, ...]  # files or their content; none for `synthetic_clip`
    rounds: int
    max_new_tokens: int | None = None  # None: the bundle's default
    checkpoint: Path | None = None  # what the bundle was made of, to be measured in transformers, too
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class Spread:
    """Values over all rounds and clips, in the order in which they were measured."""

    p50: float
    p90: float  # nine of ten are at least as good: of a rate, the tenth percentile
    values: tuple[float, ...]


@dataclass(frozen=True)
class AgainstReport:
    """The same clips, prompt and number of tokens in PyTorch and transformers; reading audio files is not in it."""

    dtype: str
    load_ms: float
    stages_ms: dict[str, Spread]  # no audio_decode and no first_token
    decode_tokens_per_s: Spread | None
    real_time_factor: float
    peak_rss_bytes: int | None
    others_share: float | None  # as in `BenchReport`


@dataclass(frozen=True)
class BenchReport:
    """What was measured."""

    bundle: str
    model: str
    precision: str  # of encoder, decoder and of keys and values
    device: Device
    prefill_threads: int
    decode_threads: int
    tuned: bool  # whether `tune` has chosen the threads
    clips: int
    rounds: int
    audio_s: float  # of all clips, once
    new_tokens: tuple[int, ...]  # of each clip
    load_ms: float  # without the check of the files' content
    stages_ms: dict[str, Spread]
    prefill_tokens_per_s: Spread  # of the rows that were not in the cache from the clip before
    decode_tokens_per_s: Spread | None  # None: no clip got a second token
    real_time_factor: float  # seconds of work per second of audio, over all rounds
    peak_rss_bytes: int | None  # of this process, mapped pages of the bundle's files included
    energy_j: float | None  # per clip, of the processor packages, other programs included
    energy_problem: str  # why `energy_j` is None
    machine: str
    others_share: float | None  # of the machine, that other programs took meanwhile; None where it is not told
    against: AgainstReport | None = None


def bench(options: BenchOptions, say: Callable[[str], None] = lambda _: None) -> BenchReport:
    """Caption the clips in several rounds; then the same in transformers if a checkpoint is given.

    Raises:
        BundleError: the bundle cannot be opened, or has no decoder.
        AudioError: a clip cannot be read, or is too long.
        PromptError, DecoderError, DeviceError, MissingExtraError: as captioning does.
        MissingExtraError, CheckpointError: transformers is not installed, or does not run the checkpoint.
    """
    if options.checkpoint is not None:
        check_transformers()
    say(f"opening {options.bundle}")
    start = perf_counter()
    with Captioner.open(options.bundle, options=options.engine, check_sha256=False) as captioner:
        load_ms = 1000 * (perf_counter() - start)
        clips = options.audio or (synthetic_clip(),)
        say("warming up")
        for clip in clips:
            captioner.caption(clip, max_new_tokens=options.max_new_tokens)
        wait_for_calm(say, WAIT_S)
        energy, load = EnergyMeter(), Load()
        measured = _caption_rounds(captioner, clips, options, say)
        report = _report(options, captioner, measured, energy, load, load_ms)
        bundle, prompt = captioner.bundle, captioner.parts.prompts.build(None)
    if options.checkpoint is None:
        return report
    say(f"the same with {options.checkpoint} in transformers")
    return replace(report, against=_against(bundle, prompt, clips, options.checkpoint, report))


def check_transformers() -> None:
    """Raises MissingExtraError if there is nothing to compare with."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if not missing and (find_spec("dasheng_edge.export") is None or find_spec(PEER_MODULE) is None):
        missing = ["the exporter"]
    if missing:
        raise MissingExtraError(
            f"--against transformers needs {' and '.join(missing)}; run {install_line('export', 'cpu')}"
        )


def _caption_rounds(
    captioner: Captioner, clips: Sequence[str | bytes], options: BenchOptions, say: Callable[[str], None]
) -> list[tuple[Caption, float]]:
    """All rounds over all clips, in their order: each caption, and how many rows a second its prefill took in."""
    captions: list[tuple[Caption, float]] = []
    for index in range(options.rounds):
        say(f"round {index + 1} of {options.rounds}")
        for clip in clips:
            caption = captioner.caption(clip, max_new_tokens=options.max_new_tokens)
            captions.append((caption, 1000 * caption.timings.prefill_rows / caption.timings.prefill_ms))
    return captions


def _report(
    options: BenchOptions,
    captioner: Captioner,
    measured: Sequence[tuple[Caption, float]],
    energy: EnergyMeter,
    load: Load,
    load_ms: float,
) -> BenchReport:
    energy_j, others_share = energy.joules(), load.share()
    captions, used = [caption for caption, _ in measured], captioner.parts.decoder.settings
    manifest, decoder = captioner.bundle.manifest, captioner.bundle.decoder_facts
    times, once = [caption.timings for caption in captions], captions[: len(captions) // options.rounds]
    rates = [timings.tokens_per_s for timings in times if timings.decode_tokens]
    return BenchReport(
        bundle=options.bundle,
        model=manifest.name,
        precision=f"encoder {manifest.encoder.precision}, decoder {decoder.precision}, keys and values {used.kv_type}",
        device=used.device,
        prefill_threads=used.prefill_threads,
        decode_threads=used.decode_threads,
        tuned=options.engine.may_be_tuned and tuned_for(captioner.bundle) is not None,
        clips=len(once),
        rounds=options.rounds,
        audio_s=sum(caption.audio_s for caption in once),
        new_tokens=tuple(caption.timings.decode_tokens + 1 for caption in once),
        load_ms=load_ms,
        stages_ms={stage: _spread([getattr(timings, f"{stage}_ms") for timings in times]) for stage in STAGES},
        prefill_tokens_per_s=_rates([rate for _, rate in measured]),
        decode_tokens_per_s=_rates(rates) if rates else None,
        real_time_factor=sum(timings.total_ms for timings in times)
        / sum(1000 * caption.audio_s for caption in captions),
        peak_rss_bytes=peak_rss_bytes(),
        energy_j=None if energy_j is None else energy_j / len(captions),
        energy_problem=energy.problem,
        machine=machine_line(used.device),
        others_share=others_share,
    )


def _against(
    bundle: Bundle, prompt: Prompt, clips: Sequence[str | bytes], checkpoint: Path, report: BenchReport
) -> AgainstReport:
    """Run the checkpoint on the CPU, in bfloat16 if this CPU computes in it, or else in float32.

    An adapter that is merged into the bundle changes no speed, so the checkpoint is run without.

    Raises:
        CheckpointError: the checkpoint cannot be opened or is not the bundle's, or the process failed; the message has
            its words.
    """
    encoder, decoder, rate_hz = bundle.manifest.encoder, bundle.decoder_facts, bundle.manifest.front_end.sample_rate_hz
    dtype = "bfloat16" if _BFLOAT16_FLAGS & set(identify().cpu_flags) else "float32"
    request = {
        "checkpoint": str(checkpoint),
        "sizes": {
            "embed_dim": encoder.embed_dim, "depth": encoder.depth, "hidden_size": decoder.hidden_size,
            "layers": decoder.layers, "vocab_size": decoder.vocab_size,
        },
        "prompt": prompt.rows(None), "new_tokens": report.new_tokens, "rounds": report.rounds,
        "threads": report.prefill_threads, "dtype": dtype,
    }  # fmt: skip
    waveforms = [np.concatenate(list(read_audio(clip, sample_rate_hz=rate_hz))) for clip in clips]
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "clips.npz"
        np.savez(stored, *waveforms)
        load = Load()
        try:
            with Child(PEER_MODULE) as child:
                measured = child.ask({**request, "clips": str(stored)})
        except ChildError as error:
            raise CheckpointError(
                f"running {checkpoint} in transformers ended with {error.status}: {error.said}"
            ) from error
    times: dict[str, list[float]] = measured["stages_ms"]  # a value for each round and clip
    steps = [count - 1 for count in report.new_tokens] * report.rounds
    rates = [1000 * count / ms for count, ms in zip(steps, times["decode"], strict=True) if count]
    return AgainstReport(
        dtype=dtype,
        load_ms=measured["load_ms"],
        stages_ms={stage: _spread(values) for stage, values in times.items()},
        decode_tokens_per_s=_rates(rates) if rates else None,
        real_time_factor=sum(times["total"]) / (1000 * report.rounds * report.audio_s),
        peak_rss_bytes=measured["peak_rss_bytes"],
        others_share=load.share(),
    )


def _spread(values: Sequence[float], slow: int = 90) -> Spread:
    return Spread(float(np.percentile(values, 50)), float(np.percentile(values, slow)), tuple(values))


def _rates(values: Sequence[float]) -> Spread:
    return _spread(values, slow=10)


def synthetic_clip() -> bytes:
    """A WAV file of SYNTHETIC_S seconds, 16 bit, mono: noise of 30 dB below full scale with a tone of 440 Hz.

    The same samples each time. A model that is asked about it still has to listen to all of it.
    """
    t = np.arange(round(SYNTHETIC_S * _SYNTHETIC_HZ)) / _SYNTHETIC_HZ
    noise = 10 ** (-30 / 20) * np.random.default_rng(0).standard_normal(len(t))
    samples = (32767 * np.clip(noise + 0.2 * np.sin(2 * np.pi * 440 * t), -1, 1)).round().astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, _SYNTHETIC_HZ, len(samples), "NONE", "not compressed"))
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def machine_line(device: Device = "cpu") -> str:
    """What the numbers were measured on, in one line, with the GPU if that is where; no host name."""
    machine = identify()
    memory = "" if machine.memory_gib is None else f", {machine.memory_gib:.1f} GiB"
    engines = [f"{name} {version}" for name, version in installed().items()]
    cores = f"{machine.usable_cores} usable core{'s' if machine.usable_cores > 1 else ''}"
    cards = [] if device == "cpu" else [str(card) for card in find_gpus().cards[:1]]
    return ", ".join([*cards, machine.cpu, f"{cores}{memory}", f"{platform.system()} {platform.machine()}", *engines])
