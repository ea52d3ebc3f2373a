"""Every error that dasheng-edge raises on purpose; that of `child` is one more, which its callers translate.

Each message says what was attempted, what was got, what was expected and how to fix it.
A leaf also inherits the builtin that a caller would catch.
"""

from __future__ import annotations


class DashengEdgeError(Exception):
    """Root of the tree: catch it to catch everything that this package raises on purpose."""

    exit_code = 1  # of a command that ends with it


class AudioError(DashengEdgeError, ValueError):
    """What was given as audio cannot be used."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """There is no such file, or it is a folder."""


class AudioDecodeError(AudioError):
    """The bytes are not audio, or break off in a way that cannot be read."""


class AudioEmptyError(AudioError):
    """The audio holds no sample."""


class AudioTooLongError(AudioError):
    """The audio needs more tokens than the decoder's context has room for."""


class PromptError(DashengEdgeError, ValueError):
    """The prompt cannot be rendered, or does not fit the decoder's context."""


class BundleError(DashengEdgeError):
    """The bundle cannot be used."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no bundle at this path."""


class BundleManifestError(BundleError, ValueError):
    """The manifest is not readable, or not of a schema that this version knows."""


class BundleFileError(BundleError, ValueError):
    """A file of the bundle is missing, truncated, altered or lies outside the bundle."""


class BundleKindError(BundleError, ValueError):
    """The bundle holds an encoder only, and what was asked for needs a decoder."""


class BundleVerifyError(BundleError):
    """A seam differs from the golden vectors by more than the manifest allows; the exit code says why."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ConfigError(DashengEdgeError, ValueError):
    """The user's settings, in a file or the environment, cannot be understood."""


class CheckpointError(DashengEdgeError, ValueError):
    """The checkpoint cannot be exported."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at this path."""


class CheckpointFileError(CheckpointError):
    """A shard is missing, truncated or not safetensors, or a side file does not parse."""


class CheckpointVariantError(CheckpointError):
    """The tensors are not those of a variant that the exporter knows."""


class AdapterError(DashengEdgeError, ValueError):
    """The adapter cannot be read, or does not fit the checkpoint."""


class ExportError(DashengEdgeError, RuntimeError):
    """A step of the export failed, or differs too much from its source."""


class QuantizeError(DashengEdgeError, RuntimeError):
    """A bundle cannot be quantized as asked, or loses more by it than the precision explains."""


class LlamaQuantizeError(ExportError, QuantizeError):
    """llama.cpp's quantizer failed, in an export or in a quantization."""


class ClipsError(DashengEdgeError, ValueError):
    """A manifest of clips, an importance matrix or a comparison's folder cannot be used."""


class SubtitleError(DashengEdgeError, ValueError):
    """Subtitles cannot be made of what was given, or not be put into this video."""


class LanguageError(SubtitleError):
    """What was given as a language is none that is known."""


class DownloadError(DashengEdgeError, ConnectionError):
    """The hub cannot be reached, refuses, or sends something else than it says."""


class MachineBusyError(DashengEdgeError, RuntimeError):
    """Other programs use the machine, so that what is measured says nothing about it."""


class OutputExistsError(DashengEdgeError, FileExistsError):
    """The output is already there, and overwriting was not asked for."""


class OutputWriteError(DashengEdgeError, OSError):
    """The output cannot be written: no space, read-only, no permission."""


class DeviceError(DashengEdgeError, RuntimeError):
    """The device that was asked for is not there or does not work."""


class DecoderError(DashengEdgeError, RuntimeError):
    """llama.cpp refused to load the model or to decode."""


class ClipFailedError(DashengEdgeError, RuntimeError):
    """A clip of several failed in a way that nobody foresaw; `__cause__` is how."""


class MemoryShortError(DashengEdgeError, MemoryError):
    """There is not enough memory, by a limit of this process or in the machine."""


class GgufError(DecoderError, ValueError):
    """A GGUF file is damaged, or holds something that llama.cpp is not given."""


class CaptionerBusyError(DashengEdgeError, RuntimeError):
    """A Captioner or Embedder was used from two threads at once, or after it was closed."""


class ForkedError(CaptionerBusyError):
    """A Captioner or Embedder was used in a process that was forked from the one that opened it."""


class MissingExtraError(DashengEdgeError, ImportError):
    """An optional dependency is not installed; the message holds the pip line."""


# What ends the work on all clips, since it would fail for each: what is asked, or with what.
NOT_OF_A_CLIP = (PromptError, BundleError, CaptionerBusyError, OutputWriteError)


def clip_error(name: str, error: BaseException) -> DashengEdgeError:
    """The error of one clip, so that the others go on; what is none of ours gets a sentence and stays its cause.

    Raises it again where it is not the clip's: see `NOT_OF_A_CLIP`.
    """
    if isinstance(error, NOT_OF_A_CLIP):
        raise error
    failed: DashengEdgeError
    if isinstance(error, MemoryError):
        failed = MemoryShortError(
            f"{name}: {str(error) or 'there is not enough memory; free some, or caption shorter clips'}"
        )
    elif isinstance(error, DashengEdgeError):
        return error
    else:
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        failed = ClipFailedError(
            f"{name} failed in a way that dasheng-edge does not know ({what}); convert it to a WAV file, and please "
            "report this error with the file"
        )
    failed.__cause__ = error
    return failed


class BoardError(DashengEdgeError, ValueError):
    """A board is not known, or its file is none of a board."""
