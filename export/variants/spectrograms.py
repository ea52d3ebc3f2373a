"""The mel front ends in PyTorch, step by step as torchaudio's MelSpectrogram and AmplitudeToDB compute them.

The filterbank is HTK's (The HTK Book, section 5.6). The spectra are computed in float64: the published float32 STFT
carries rounding noise of its own in quiet bins (about 1e-7 of the frame's amplitude), and a reference should not be
made of noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec


def mel_filterbank(spec: FrontEndSpec | AcousticSpec, sample_rate_hz: int = 16_000) -> Tensor:
    """Triangular filters on the HTK mel scale, without normalisation.

    Returns float64 [n_fft // 2 + 1, n_mels]. mel(f) = 2595 log10(1 + f / 700).
    """

    def to_mel(hz: Tensor) -> Tensor:
        return 2595.0 * torch.log10(1.0 + hz / 700.0)

    bins_hz = torch.linspace(0, sample_rate_hz / 2, spec.n_fft // 2 + 1, dtype=torch.float64)
    low, high = to_mel(torch.tensor([spec.f_min_hz, spec.f_max_hz], dtype=torch.float64))
    edges_mel = torch.linspace(float(low), float(high), spec.n_mels + 2, dtype=torch.float64)
    edges_hz = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    width_hz = edges_hz.diff()
    slope = edges_hz[None, :] - bins_hz[:, None]  # [bins, n_mels + 2]
    rising = -slope[:, :-2] / width_hz[:-1]
    falling = slope[:, 2:] / width_hz[1:]
    return torch.minimum(rising, falling).clamp(min=0)


class _Mel(nn.Module):
    window: Tensor
    filterbank: Tensor

    def __init__(self, spec: FrontEndSpec | AcousticSpec, hop_length: int) -> None:
        super().__init__()
        self._sizes = spec.n_fft, hop_length, spec.win_length
        # Not persistent: old checkpoints store both (some rounded to bf16), new ones do not; always recomputed.
        window = torch.hann_window(spec.win_length, periodic=True, dtype=torch.float64)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filterbank", mel_filterbank(spec), persistent=False)

    def spectrum(self, waveform: Tensor) -> Tensor:
        """Waveform float32 [batch, samples] -> complex128 [batch, bins, frames]."""
        return torch.stft(
            waveform.double(), *self._sizes, self.window, center=True, pad_mode="reflect", return_complex=True
        )


class LogMel(_Mel):
    """Waveform float32 [batch, samples] at 16 kHz, in [-1, 1] -> log-mel float32 [batch, n_mels, frames], in dB.

    The top_db floor is relative to the loudest bin of each clip, not of the batch.
    """

    def __init__(self, spec: FrontEndSpec | None = None) -> None:
        spec = spec or FrontEndSpec()
        super().__init__(spec, spec.hop_length)
        self.spec = spec

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = self.spectrum(waveform)
        mel = self.filterbank.T @ (spectrum.real.square() + spectrum.imag.square())
        decibel = 10.0 * mel.clamp(min=self.spec.log_floor).log10()
        loudest = decibel.amax(dim=(-2, -1), keepdim=True)
        return torch.maximum(decibel, loudest - self.spec.top_db).float()


class AcousticMel(_Mel):
    """Waveform float32 [batch, samples] at 16 kHz -> mel magnitudes float32 [batch, n_mels, frames], in nepers.

    ln(max(mel, floor)), as torchaudio's MelSpectrogram with power 1 gives it. It has as many frames as the log-mel:
    same hop, same centring.
    """

    def __init__(self, spec: AcousticSpec, hop_length: int = 160) -> None:
        super().__init__(spec, hop_length)
        self.spec = spec

    def forward(self, waveform: Tensor) -> Tensor:
        mel = self.filterbank.T @ self.spectrum(waveform).abs()
        return mel.clamp(min=self.spec.log_floor).log().float()


def noise_mel(
    generator: np.random.Generator, shape: tuple[int, int, int], mean: float, deviation: float
) -> npt.NDArray[np.float32]:
    """Spectrograms of noise, float32 [chunks, bands, frames], to try a graph with."""
    return generator.normal(mean, deviation, shape).clip(-100, 40).astype(np.float32)
