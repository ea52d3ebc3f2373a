"""`dasheng-edge serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dasheng_edge.runtime.config.default_bundle import bundle_path
from dasheng_edge.runtime.machine.devices import ON_CPU, Placement

from .options import (
    DeviceOption,
    Sha256Option,
    Tf32Option,
    ThreadsOption,
    complete_bundle,
    engine_options,
    load,
    say,
)

if TYPE_CHECKING:
    from dasheng_edge.runtime.embedder import Embedder
    from dasheng_edge.runtime.engine.engine import Engine
    from dasheng_edge.runtime.server.keys import Keys

BundlesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="BUNDLE...",
        default_factory=lambda: None,  # as of `BundleArgument`
        show_default=False,
        parser=bundle_path,
        autocompletion=complete_bundle,
        help="Folders made by `dasheng-edge export`, or their names: each is a model. Default: see `dasheng-edge "
        "config`.",
    ),
]
HostOption = Annotated[str, typer.Option(metavar="ADDRESS", help="What to listen on; 0.0.0.0: every network.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: any that is free.")]
KeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|env",
        help="Answer those alone who send a key: one of a file, on a line each, or of $DASHENG_EDGE_API_KEY.",
    ),
]
OpenOption = Annotated[
    bool,
    typer.Option("--without-key", help="Listen on a network without a key: whoever reaches it may ask."),
]
OriginOption = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Let pages of another site ask, as https://app.example; may be repeated."),
]
AliasOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=MODEL", help="Another name of a model, as whisper-1=NAME:caption; may be repeated."),
]
UploadOption = Annotated[int, typer.Option(min=1, max=1 << 14, metavar="MB", help="Longest audio file.")]
SecondsOption = Annotated[float, typer.Option(min=1, max=86400, metavar="S", help="Longest audio.")]
QueueOption = Annotated[int, typer.Option(min=0, max=10_000, metavar="N", help="Requests that wait at most.")]
TimeoutOption = Annotated[float, typer.Option(min=1, max=86400, metavar="S", help="Longest time for an answer.")]
LogTextOption = Annotated[bool, typer.Option("--log-text", help="Log what is asked and answered, too.")]
BatchOption = Annotated[
    int | None,
    typer.Option(min=1, max=256, metavar="N", help="Answers made together; default: as many as pay here."),
]


def serve(
    bundle: BundlesArgument,
    *,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key: KeyOption = None,
    without_key: OpenOption = False,
    allow_origin: OriginOption = None,
    alias: AliasOption = None,
    max_upload: UploadOption = 200,
    max_seconds: SecondsOption = 3600.0,
    queue: QueueOption = 64,
    timeout: TimeoutOption = 600.0,
    batch: BatchOption = None,
    log_text: LogTextOption = False,
    device: DeviceOption = ON_CPU,
    allow_tf32: Tf32Option = False,
    threads: ThreadsOption = None,
    check_sha256: Sha256Option = True,
) -> None:
    """Serve OpenAI's API: transcriptions, captions, chat and embeddings, for any client that speaks it.

    The first bundle is opened at once, the others when they are asked for; where memory is short, the one that was not
    used for longest is let go of. Nothing is fetched from anywhere. The first Ctrl-C or SIGTERM ends it when what runs
    is answered, the second at once.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        load(module, "serve", "serve")
    from dasheng_edge.runtime.server.app import Server, ServerOptions
    from dasheng_edge.runtime.server.door import Limits
    from dasheng_edge.runtime.server.keys import Keys
    from dasheng_edge.runtime.server.models import Models, Opening
    from dasheng_edge.runtime.server.serving import address_of, bound, run

    keys = Keys.read(api_key)
    _check_host(host, keys, without_key=without_key)
    how = _Opened(device, threads, allow_tf32, check_sha256, batch)
    models = Models(bundle, Opening(how.engine, how.embedder), _aliases(alias or []))
    limits = Limits(max_upload=max_upload << 20, max_seconds=max_seconds, timeout_s=timeout)
    options = ServerOptions(host, keys, tuple(allow_origin or ()), limits, queue, log_text=log_text)
    with bound(host, port) as listening:
        names = ", ".join(model.name for model in models)
        began = f"serving {names} at {address_of(listening)}/v1; Ctrl-C ends it"
        run(Server(models, options), listening, lambda: say(began))
    say("ended")


def _check_host(host: str, keys: Keys, *, without_key: bool) -> None:
    from dasheng_edge.runtime.server.keys import KEY_VARIABLE, is_loopback

    if keys.digests and without_key:
        raise typer.BadParameter("--without-key says that no key is asked for, and there are keys; leave one out")
    if not (is_loopback(host) or keys.digests or without_key):
        raise typer.BadParameter(
            f"whoever reaches {host} could use this server; give it a key (--api-key FILE, or ${KEY_VARIABLE}), or "
            "say --without-key too"
        )


def _aliases(words: list[str]) -> dict[str, str]:
    aliases = {}
    for word in words:
        name, equals, model = word.partition("=")
        if not (name and equals and model):
            raise typer.BadParameter(f"--alias {word!r} is no pair; expected NAME=MODEL, as whisper-1=NAME:caption")
        aliases[name] = model
    return aliases


class _Opened:
    """How bundles are opened."""

    def __init__(
        self, device: Placement | None, threads: int | None, allow_tf32: bool, check_sha256: bool, batch: int | None
    ) -> None:
        self._device, self._threads, self._allow_tf32 = device, threads, allow_tf32
        self._check_sha256, self._batch = check_sha256, batch

    def engine(self, path: Path) -> Engine:
        from dasheng_edge.runtime.engine.engine import Engine

        options = engine_options(path, self._device, self._threads, self._allow_tf32, mapped=True)
        return Engine.open(path, options=options, batch=self._batch, check_sha256=self._check_sha256)

    def embedder(self, path: Path) -> Embedder:
        from dasheng_edge.runtime.embedder import Embedder

        options = engine_options(path, self._device, self._threads, self._allow_tf32)
        return Embedder.open(path, options=options, check_sha256=self._check_sha256)
