"""The torch file of Dasheng's authors: the same model as the Hugging Face folder, and nothing else is opened."""

from __future__ import annotations

import json
import zipfile
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.files.torch_file import read_torch_file
from dasheng_edge.runtime.errors import (
    CheckpointError,
    CheckpointFileError,
    CheckpointNotFoundError,
    CheckpointVariantError,
)
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint, write_tiny_dasheng_torch
from tests.fixtures.tiny_model import stored_buffers

MAE_PARTS = {  # of a whole masked autoencoder, in the Hugging Face names
    "decoder.input_proj.weight": (32, 64), "decoder.mask_token": (1, 1, 32), "decoder.blocks.0.attn.qkv.bias": (96,),
    "decoder.norm.weight": (32,), "decoder.outputlayer.weight": (256, 32), "outputlayer.1.weight": (7, 64),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "dasheng-tiny", variant="dasheng")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "torch").mkdir()
    return write_tiny_dasheng_torch(tmp_path / "torch" / "dasheng_tiny.pt")


def test_the_torch_file_holds_the_model_of_the_folder(folder: Path, file: Path) -> None:
    one, other = open_checkpoint(folder), open_checkpoint(file)

    assert one.sources.keys() == other.sources.keys()
    assert all(name.startswith("audio_encoder.") for name in one.sources)
    for name, source in one.sources.items():
        rows = other.rows(name, 0, source.shape[0])
        assert rows.dtype == torch.float32
        assert torch.equal(rows, one.rows(name, 0, source.shape[0]))
    assert (one.encoder, one.front_end, one.variant) == (other.encoder, other.front_end, other.variant)
    assert other.decoder is None
    assert (one.name, other.name, other.files) == ("dasheng-tiny", "dasheng_tiny", (file,))
    assert other.ignored == ("init_bn.1.num_batches_tracked", *stored_buffers(""))


def test_rows_of_a_torch_file_are_copies(file: Path) -> None:
    opened = open_checkpoint(file)
    name = "audio_encoder.blocks.1.mlp.fc1.weight"
    opened.rows(name, 3, 5).zero_()

    assert opened.rows(name, 3, 5).abs().max() > 0


def test_a_folder_with_one_torch_file_is_opened(file: Path) -> None:
    assert open_checkpoint(file.parent).name == "dasheng_tiny"
    write_tiny_dasheng_torch(file.with_name("other.pth"))
    with pytest.raises(
        CheckpointNotFoundError, match=r"several torch files \(dasheng_tiny\.pt, other\.pth\); give one"
    ):
        open_checkpoint(file.parent)


def test_what_inference_does_not_need_is_ignored_and_listed(tmp_path: Path) -> None:
    extra = {**MAE_PARTS, **stored_buffers("encoder.")}
    opened = open_checkpoint(write_tiny_checkpoint(tmp_path / "mae", variant="dasheng", extra=extra))

    assert set(opened.ignored) == {*extra, "encoder.init_bn.1.num_batches_tracked"}
    assert opened.sources.keys() == open_checkpoint(write_tiny_dasheng_torch(tmp_path / "dasheng.pt")).sources.keys()


def test_a_layer_that_is_not_implemented_is_refused(tmp_path: Path) -> None:
    for name in ("blocks.0.ls1.gamma", "cls_token"):
        path = write_tiny_dasheng_torch(tmp_path / "dasheng.pt", extra={name: (64,)})
        with pytest.raises(CheckpointVariantError, match=rf"1 are unexpected \({name}\)"):
            open_checkpoint(path)


def test_heads_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "dasheng.pt"
    assert open_checkpoint(write_tiny_dasheng_torch(path, num_heads=4)).encoder.num_heads == 4
    with pytest.raises(CheckpointFileError, match=r'"config" in dasheng\.pt does not say num_heads, and no published'):
        open_checkpoint(write_tiny_dasheng_torch(path, embed_dim=64))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 3, "num_heads": 2}, r"encoder\.depth = 3, but the tensors .* have 2"),
        ({"num_heads": 2, "pad_last": "no"}, r'"config" in dasheng\.pt: pad_last is .no., expected a valid boolean'),
        ({"num_heads": 2, "patch_size": (16, 16)}, r"patch_size = \[16, 16\], but .* have \[64, 4\]"),
        ({"num_heads": 2, "hop_size": 0}, r'"config" in dasheng\.pt: hop_size is 0, expected greater than 0'),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(CheckpointFileError, match=message):
        open_checkpoint(write_tiny_dasheng_torch(tmp_path / "dasheng.pt", **config))


def test_the_spectrogram_is_read_where_it_is_stated(folder: Path, tmp_path: Path) -> None:
    path = write_tiny_dasheng_torch(
        tmp_path / "dasheng.pt", num_heads=2, win_size=400, hop_size=200, patch_size=(64, 4)
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 64, "win_size": 400, "hop_size": 200}))
    for opened in (open_checkpoint(path), open_checkpoint(folder)):
        assert (opened.front_end.n_fft, opened.front_end.win_length, opened.front_end.hop_length) == (512, 400, 200)


def test_the_file_is_mapped_and_not_read(file: Path) -> None:
    opened = open_checkpoint(file)
    opened.rows("audio_encoder.norm.weight", 0, 64)

    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(file) in maps.read_text()


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    rows=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_views_are_read_as_torch_reads_them(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], order: Any, dtype: torch.dtype, rows: tuple[int, int]
) -> None:
    """Tensors that share a storage: a part of one, with its axes in another order, some expanded."""
    whole = torch.randn([2 + size for size in shape]).to(dtype)
    axes = list(range(len(shape)))
    order.shuffle(axes)
    view = whole[tuple(slice(1, 1 + size) for size in shape)].permute(axes)
    stored = {"view": view, "whole": whole, "expanded": whole[:1].expand(3, *whole.shape[1:]), "strided": whole[::2]}
    path = tmp_path_factory.mktemp("views") / "views.pt"
    torch.save({"model": stored, "config": {}}, path)
    _, sources = read_torch_file(path)

    for name, tensor in stored.items():
        start, stop = sorted(rows)
        got = sources[name].rows(start, stop)
        assert got.dtype == torch.float32
        assert torch.equal(got, tensor[start:stop].float())


def repacked(file: Path, compression: int) -> None:
    """What a program that knows nothing of torch's alignment makes of the archive."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def big_endian(content: Any, file: Path) -> None:
    """As a machine of the other byte order writes it."""
    swapped = {
        name: torch.from_numpy(tensor.numpy().byteswap()) if tensor.shape else tensor
        for name, tensor in content["model"].items()
    }
    torch.save({**content, "model": swapped}, file)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, b"big" if name.endswith("/byteorder") else data)


@pytest.mark.parametrize("how", ["the oldest format", "packed again", "compressed", "of the other byte order"])
def test_other_archives_and_formats_hold_the_same(file: Path, how: str) -> None:
    content = torch.load(file, weights_only=True)
    name = "audio_encoder.blocks.1.mlp.fc1.weight"
    expected = open_checkpoint(file).rows(name, 3, 64)
    if how == "the oldest format":
        torch.save(content, file, _use_new_zipfile_serialization=False)
    elif how == "of the other byte order":
        big_endian(content, file)
    else:
        repacked(file, zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED)
    opened = open_checkpoint(file)

    assert torch.equal(opened.rows(name, 3, 64), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(3)}, r"holds keys \['weight'\], expected the published Dasheng file"),
        ([torch.zeros(3)], "holds list, expected"),
        ({"model": {"weight": 3}, "config": {}}, 'no mapping of dense tensors under "model"'),
        ({"model": torch.zeros(3), "config": {}}, 'no mapping of dense tensors under "model"'),
        ({"model": {"x": torch.eye(3).to_sparse()}, "config": {}}, 'no mapping of dense tensors under "model"'),
        ({"model": {}, "config": {"embed_dim": torch.tensor(64)}}, "has a tensor in 'embed_dim' of its \"config\""),
        ({"model": {}, "config": {"patch": {"size": (1, torch.zeros(3))}}}, "has a tensor in 'patch' of its"),
        ({"model": {}, "config": {"patch": {torch.float32: 3}}}, "no model of the Dasheng family"),
        ({"model": {}, "config": [1]}, 'a list under "config"'),
        ({"model": {}, "config": partial(print)}, "is a pickle of other things than tensors, which is not opened"),
        (torch.nn.Linear(2, 2), "is a pickle of other things than tensors, which is not opened"),
    ],
)
def test_other_torch_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "dasheng.pt")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "dasheng.pt")


@pytest.mark.parametrize("keep", [0, 100, -500])
def test_a_truncated_torch_file_is_refused(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointFileError, match=r"dasheng_tiny\.pt is broken"):
        open_checkpoint(file)


def test_paths_of_dashengs_training_are_text(tmp_path: Path) -> None:
    """Whatever system it ran on: its train.py stores the paths that it was given."""
    paths: dict[str, Any] = {"data": Path("/data/train.tsv"), "out": [PurePosixPath("a"), PureWindowsPath("C:/b")]}
    config, _ = read_torch_file(write_tiny_dasheng_torch(tmp_path / "dasheng.pt", num_heads=2, **paths))
    assert config == {"num_heads": 2, "data": "/data/train.tsv", "out": ["a", "C:\\b"]}


@pytest.mark.parametrize("wrapped", [False, True])
def test_tensors_alone_are_a_model(file: Path, wrapped: bool) -> None:
    content = torch.load(file, weights_only=True)
    tensors = {"encoder." * wrapped + name: tensor for name, tensor in content["model"].items()}
    torch.save({"model": tensors} if wrapped else tensors, file)
    config, sources = read_torch_file(file)
    assert (config, sources.keys()) == ({}, tensors.keys())
    with pytest.raises(CheckpointFileError, match="does not say num_heads, and no published encoder"):
        open_checkpoint(file)  # of this size


class Calls:
    """Unpickled, it calls a function that weights_only allows."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def itself() -> list[object]:
    content: list[object] = []
    content.append(content)
    return content


def laughs() -> list[object]:
    """Ten to the fifteenth values in a few hundred bytes."""
    content: list[object] = [1] * 10
    for _ in range(15):
        content = [content] * 10
    return content


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ({"x": torch.zeros(1).expand(1 << 40)}, {}, "which is no model"),
        ({"x": torch.zeros(3, device="meta")}, {}, "no mapping of dense tensors"),
        ({}, {"x": itself()}, "more in 'x' of its \"config\" than a configuration has"),
        ({}, {"x": laughs()}, "more in 'x' of its \"config\" than a configuration has"),
        ({}, {"x": Calls(bytearray, 1 << 50)}, "is broken, or is a pickle of other things"),
        ({}, {"x": Calls(PurePosixPath, 3)}, "is broken, or is a pickle of other things"),
        ({}, {"x": Calls(eval, "1")}, "is broken, or is a pickle of other things"),
    ],
)  # fmt: skip
def test_what_states_more_than_it_holds_is_refused(tmp_path: Path, model: object, config: object, message: str) -> None:
    torch.save({"model": model, "config": config}, tmp_path / "dasheng.pt")
    with pytest.raises(CheckpointFileError, match=message):
        open_checkpoint(tmp_path / "dasheng.pt")


def test_a_compressed_bomb_is_refused_before_it_is_read(file: Path) -> None:
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/bomb", bytes(1 << 26))
    with pytest.raises(CheckpointFileError, match=r"bytes and says that it holds .*, which is no model"):
        open_checkpoint(file)
