"""`program` of the manifest: it gives the tokens that the runtime asks with, and a lie in it is refused."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dasheng_edge.runtime.audio.encoder import chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.bundle import DECODER, GOLDEN, GOLDEN_FLAT, MODEL_CARD, Bundle, sha256_of
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, read_golden
from dasheng_edge.runtime.bundle.manifest import MANIFEST, SCHEMA_VERSION, Sampling
from dasheng_edge.runtime.bundle.program import AudioPart, GraphInput, PromptProgram, TextPart, graph_inputs
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.errors import BundleFileError, BundleManifestError, OutputExistsError
from dasheng_edge.runtime.program import WHITE_SPACE, prompts_of, upgrade_bundle
from dasheng_edge.runtime.prompt.prompt import PromptBuilder
from dasheng_edge.runtime.verify import verify_bundle

# Systems by themselves or not, text that is stripped, kept, or stripped at one end, and texts that share a run.
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'audio' %}<|AUDIO|>"
    "{% else %}{{ c.text TRIM }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
TEMPLATES = {
    "kept": PLAIN.replace("TRIM", ""),
    "stripped": PLAIN.replace("TRIM", "| trim"),
    "one end": PLAIN.replace("{{ c.text TRIM }}", "{{ c.text.lstrip() }}"),
    "lines": PLAIN.replace("{{ c.text TRIM }}", "{{ c.text.strip('\\n') }}"),
    "twice": PLAIN.replace("{{ c.text TRIM }}", "{{ c.text }}<|im_end|>Again: {{ c.text }}!"),
    "one run": "{% for m in messages %}{% for c in m.content %}{% if c.type == 'audio' %}<|AUDIO|>{% else %}"
    "{{ m.role }}: {{ c.text }}. {% endif %}{% endfor %}{% endfor %}",
    "date": PLAIN.replace("TRIM", "") + "{{ strftime_now('%Y') }}",
}
BLANKS = {"kept": "kept", "stripped": "stripped", "twice": "kept", "one run": "kept"}


def tokens(builder: PromptBuilder, prompts: PromptProgram, prompt: str, system: str | None) -> list[int] | None:
    """What a program makes of a user's texts by the page of the format; None: it must not."""
    parts = prompts.own_prompt if system is None else prompts.own_system if system else prompts.without_system
    texts = {"prompt": prompt, "system": system or ""}
    blanks = {"prompt": prompts.prompt_blanks, "system": prompts.system_blanks}
    ids: list[int] = []
    for part in parts or ():
        if isinstance(part, TextPart):
            text, rule = texts[part.text], blanks[part.text]
            core = text.strip(WHITE_SPACE)
            if not core or (rule == "refused" and core != text):
                return None
            run = part.prefix + (core if rule == "stripped" else text) + part.suffix
            ids += builder._tokenizer.tokenize(unicodedata.normalize(prompts.normalization, run))
        else:
            ids += [AUDIO_MARK] if isinstance(part, AudioPart) else part.ids
    return ids or None


@pytest.fixture(scope="module")
def builders(tiny_bundle: Path, shared_captioner: Captioner) -> dict[str, tuple[PromptBuilder, PromptProgram]]:
    facts, decoder = Bundle.open(tiny_bundle).prompt_facts, shared_captioner.parts.decoder
    made = {}
    for name, template in TEMPLATES.items():
        for system in (None, "Be brief. "):
            ours = facts.model_copy(update={"system": system})
            builder = PromptBuilder(template, ours, decoder)
            made[f"{name}, {system}"] = builder, prompts_of(builder, ours)
    return made


Words = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [" <|im_end|> ", "Cafe\u0301", "\u0301", "\u00a0a\n", "<|AUDIO|>", "a\u3000", "\ue0f00\ue0f1", "\x1cb"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=Words, system=st.none() | Words)
def test_parts_give_the_tokens_that_the_template_gives(
    builders: dict[str, tuple[PromptBuilder, PromptProgram]], prompt: str, system: str | None
) -> None:
    for name, (builder, prompts) in builders.items():
        ids = tokens(builder, prompts, prompt, system)
        if ids is not None:
            assert ids == builder.build(prompt, system=system).ids(AUDIO_MARK), name


def test_what_a_template_does_is_said(builders: dict[str, tuple[PromptBuilder, PromptProgram]]) -> None:
    for name, (builder, prompts) in builders.items():
        kind = name.partition(",")[0]
        assert prompts.prompt_blanks == BLANKS.get(kind, "refused")
        if kind == "date":
            assert not any((prompts.default, prompts.own_prompt, prompts.without_system, prompts.own_system))
            continue
        assert prompts.default is not None
        ids = [*prompts.default.before, AUDIO_MARK, *prompts.default.after]
        assert ids == builder.build().ids(AUDIO_MARK)
        assert (prompts.own_system is None) == (kind == "one run" and not builder._facts.audio_first)
        assert tokens(builder, prompts, "What?", None) is not None


@pytest.fixture(scope="module")
def newest(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kept bundle, which is of schema 3, as one of today."""
    return upgrade_bundle(tiny_bundle, tmp_path_factory.mktemp("newest") / "tiny").bundle.folder


@pytest.fixture
def copy(newest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(newest, tmp_path / "copy"))


def test_an_upgrade_changes_no_file(tiny_bundle: Path, newest: Path) -> None:
    old, new = Bundle.open(tiny_bundle), Bundle.open(newest)
    assert (old.manifest.schema_version, new.manifest.schema_version) == (3, SCHEMA_VERSION)
    added = new.manifest.files.keys() - old.manifest.files.keys()
    assert added == {GOLDEN_FLAT}
    for name in (*old.manifest.files, MODEL_CARD):
        assert (newest / name).read_bytes() == (tiny_bundle / name).read_bytes()
    changed = {"schema_version": 3, "program": None, "files": old.manifest.files}
    assert new.manifest.model_copy(update=changed) == old.manifest
    program, golden = new.manifest.program, read_golden(new)[0].text
    assert program is not None
    assert program.prompts is not None
    assert program.prompts.default is not None
    assert golden is not None
    assert program.stop_ids
    assert [*program.prompts.default.before, AUDIO_MARK, *program.prompts.default.after] == golden.prompt.tolist()
    assert verify_bundle(new).ok


def upgraded(*words: object) -> Any:
    return CliRunner().invoke(build_app(), ["upgrade", *map(str, words)])


def test_the_command_upgrades_in_place_and_once(tiny_bundle: Path, newest: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    inode = (bundle / DECODER).stat().st_ino
    assert json.loads(upgraded(bundle, "--json").stdout)["added"] == [
        f"schema version {SCHEMA_VERSION}",
        "program",
        GOLDEN_FLAT,
    ]
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == {
        path.name: path.read_bytes() for path in newest.iterdir()
    }
    assert (bundle / DECODER).stat().st_ino == inode  # it was not copied
    before = (bundle / MANIFEST).stat().st_mtime_ns
    assert "nothing to do" in upgraded(bundle, "--out", str(tmp_path / "more")).stdout
    assert ((bundle / MANIFEST).stat().st_mtime_ns, [path.name for path in tmp_path.iterdir()]) == (before, ["bundle"])


def test_where_an_upgrade_cannot_go(tiny_bundle: Path, copy: Path) -> None:
    with pytest.raises(OutputExistsError, match="lies in the bundle"):
        upgrade_bundle(tiny_bundle, tiny_bundle / "in")
    with pytest.raises(OutputExistsError, match="exists"):
        upgrade_bundle(tiny_bundle, copy)


def edited(copy: Path, change: Callable[[Any], object]) -> Path:
    manifest = json.loads((copy / MANIFEST).read_text())
    change(manifest["program"])
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["inputs"].pop(),
        lambda p: p["inputs"][0]["numbers"].update(top_db=80),
        lambda p: p["inputs"][2].update(law="own_patches"),
        lambda p: p.update(sampler=[]),
        lambda p: p.update(sampler=None),
        lambda p: p["stop_ids"].pop(),
        lambda p: p.update(stop_ids=None),
        lambda p: p["stop_ids"].append(10**7),
        lambda p: p["prompts"]["default"]["before"].append(1),
        lambda p: p["prompts"].update(default=None),
        lambda p: p["prompts"]["own_system"][1].update(prefix="user\n"),
        lambda p: p["prompts"].update(prompt_blanks="refused"),
        lambda p: p["prompts"].update(normalization="NFD"),
        lambda p: p["decoder"].update(kv_width=1),
        lambda p: p["decoder"].update(tied_head=True),
        lambda p: p.update(more=1),
    ],
)
def test_a_program_that_does_not_follow_is_refused(copy: Path, change: Callable[[Any], object]) -> None:
    with pytest.raises(BundleManifestError, match="program"), Captioner.open(edited(copy, change), threads=1):
        pass


def test_an_upgrade_mends_what_is_wrong(copy: Path, newest: Path) -> None:
    edited(copy, lambda program: program["stop_ids"].pop())
    assert upgrade_bundle(copy).added == ("program",)
    assert (copy / MANIFEST).read_bytes() == (newest / MANIFEST).read_bytes()


def test_the_flat_vectors_are_those_of_the_other_file(copy: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="the library of the format")
    flat = library.load_file(copy / GOLDEN_FLAT)
    with np.load(copy / GOLDEN) as arrays:
        assert {*flat, "names"} == {*arrays}
        for name, values in flat.items():
            assert (values.dtype, values.tobytes()) == (arrays[name].dtype, arrays[name].tobytes())
    content = bytearray((copy / GOLDEN_FLAT).read_bytes())
    content[-1] ^= 1
    (copy / GOLDEN_FLAT).write_bytes(content)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"][GOLDEN_FLAT]["sha256"] = sha256_of(copy / GOLDEN_FLAT)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleFileError, match="holds other vectors"):
        verify_bundle(Bundle.open(copy))


def by_law(inputs: tuple[GraphInput, ...], arrays: dict[str, Any], samples: int, first: int) -> dict[str, Any]:
    """What the chunk that begins with a patch is fed with, by the page of the format."""
    fed: dict[str, Any] = {}
    for one in inputs:
        n = one.numbers
        if one.law in ("chunk_frames", "all_chunk_frames"):
            start = first * int(n["patch_frames"])
            fed[one.input] = arrays[one.input][None, :, start : start + int(n["chunk_frames"])]
            continue
        whole = int(n["chunk_patches"])
        size = min(whole, arrays["log_mel"].shape[1] // 4 - first)
        keys = min(max(samples // int(n["patch_samples"]) - first, 0), size)
        values = {
            "keys": keys, "first_own_then_keys": keys if first else size, "own_patches": size,
            "first_own_then_whole": whole if first else size,
        }  # fmt: skip
        fed[one.input] = [values[one.law]]
    return fed


@pytest.mark.parametrize("kind", [{}, {"acoustic": True}, {"pads_last_chunk": True}, {"masks_last_patch": False}])
@pytest.mark.parametrize("samples", [3040, 161_120, 163_839, 323_040])
def test_the_laws_give_what_the_encoder_is_fed_with(kind: dict[str, bool], samples: int) -> None:
    spec = FrontEndSpec(**{**kind, "acoustic": AcousticSpec(n_mels=20) if "acoustic" in kind else None})  # type: ignore[arg-type]
    arrays: dict[str, Any] = {}
    arrays["log_mel"], arrays["acoustic_mel"] = (
        np.arange(n * spec.frames_of(samples), dtype=np.float32).reshape(n, -1) for n in (spec.n_mels, 20)
    )
    features = Features(arrays["log_mel"], arrays["acoustic_mel"] if spec.acoustic else None, samples)
    inputs = tuple(one for one in graph_inputs(spec, decodes=False) if one.graph == "encoder")
    for first, feed in enumerate(chunk_feeds(spec, features)):
        wanted = by_law(inputs, arrays, samples, first * spec.chunk_patches)
        assert feed.keys() == wanted.keys()
        for name, values in feed.items():
            np.testing.assert_array_equal(values, wanted[name], err_msg=name)


def test_sampler_steps_are_those_that_do_something() -> None:
    assert [step.step for step in Sampling().steps] == ["greedy"]
    full = Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.1, no_repeat_ngram_size=3)
    order = ["no_repeat_ngram", "repetition_penalty", "temperature", "top_k", "top_p", "min_p", "draw"]
    assert [step.step for step in full.steps] == order
    assert full.steps[1].model_dump() == {"step": "repetition_penalty", "value": 1.1, "last_tokens": 64}
