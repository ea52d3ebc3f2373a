"""The user's settings: what files and variables mean, what is refused, and that changes keep everything else."""

from __future__ import annotations

import string
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as some

from dasheng_edge.runtime.config.settings import KEYS, MAX_BYTES, Value, change_config, read_config, settings, variable
from dasheng_edge.runtime.errors import ConfigError, OutputWriteError

OF_A_KIND: dict[type, some.SearchStrategy[Value]] = {
    str: some.text(some.characters(exclude_categories=["Cs"]), max_size=20),
    int: some.integers(-(2**60), 2**60),
    float: some.floats(allow_nan=False, allow_infinity=False),
    bool: some.booleans(),
}
A_SETTING = some.sampled_from([*KEYS]).flatmap(lambda key: some.tuples(some.just(key), OF_A_KIND[KEYS[key].kind]))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "config.toml"
    monkeypatch.setenv("DASHENG_EDGE_CONFIG", str(path))
    return path


def write(file: Path, text: str | bytes) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def values(file: Path) -> dict[str, Value]:
    return {key: setting.value for key, setting in read_config(file).items()}


def test_the_environment_beats_the_file(file: Path) -> None:
    write(file, "# mine\n\nthreads = 2\nwindow = 30\nprompt = 'what?'")
    found = settings({"DASHENG_EDGE_THREADS": "4", "DASHENG_EDGE_PROMPT": "", "DASHENG_EDGE_CACHE": "/x"})
    assert {key: (setting.value, setting.origin) for key, setting in found.items()} == {
        "threads": (4, "$DASHENG_EDGE_THREADS"),
        "window": (30.0, f"{file}, line 4"),
        "prompt": ("what?", f"{file}, line 5"),
    }


def test_no_file_sets_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings({}) == {}
    monkeypatch.setenv("DASHENG_EDGE_CONFIG", "off")
    assert settings({}) == {}
    with pytest.raises(OutputWriteError, match="DASHENG_EDGE_CONFIG is off"):
        change_config("threads", 1)


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_kind_is_refused(file: Path, key: str) -> None:
    wrong = {str: "3", int: "2.5", float: '"x"', bool: "1"}[KEYS[key].kind]
    for text in (wrong, "[1]", "{a = 1}", "2026-01-01", "true" if wrong != "1" else '"true"'):
        with pytest.raises(ConfigError) as error:
            read_config(write(file, f"# first\n{key} = {text}\n"))
        assert str(error.value).startswith(f"{file}, line 2: {key}: got ")
        assert KEYS[key].expected in str(error.value)
    file.unlink()
    if KEYS[key].kind is not str:
        with pytest.raises(ConfigError, match=rf"\${variable(key)}: {key}: got 'much', expected {KEYS[key].expected}"):
            settings({variable(key): "much"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("threads = 1\nthraeds = 2", "line 2: there is no setting 'thraeds'; did you mean threads?"),
        ("max-new-tokens = 2", "line 1: there is no setting 'max-new-tokens'; did you mean max_new_tokens?"),
        ("[caption]\nthreads = 2", "line 1: there is no setting 'caption'"),
        ("'a b' = 1", "line 1: there is no setting 'a b'"),
        ("a.b = 1", "line 1: there is no setting 'a'"),
        ("device = cuda", "line 1: 'device = cuda' is no setting"),
        ("threads = 1\n\ndevice cuda\n", "line 3: 'device cuda' is no setting"),
        ("threads = 1\nthreads = 2\n", "line 2: 'threads = 2' is no setting"),
        ("threads = [1,\n", "line 1: 'threads = [1,' is no setting"),
        (f"prompt = {'[' * 5000}", "line 1: 'prompt = [[[[[[[[["),
        (b"threads = 1\nprompt = '\xff'", "line 2: expected UTF-8"),
        ("hop = 5", "line 1: hop: it says how windows follow each other; set window too"),
        ("\x00", "line 1: "),
        ("#" * (MAX_BYTES + 1), "has more than"),
    ],
)
def test_what_cannot_be_understood_is_named_with_its_line(file: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(write(file, text))
    assert said in str(error.value)
    assert str(error.value).startswith(str(file))
    assert len(str(error.value)) < 600


def test_a_file_that_cannot_be_read(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot read the settings in .*config.toml: .*DASHENG_EDGE_CONFIG"):
        settings({})
    with pytest.raises(ConfigError):
        change_config("threads", 1)


@given(some.binary(max_size=60) | some.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@budget(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_file_costs_more_than_a_sentence(file: Path, content: bytes) -> None:
    with suppress(ConfigError):
        read_config(write(file, content))


@given(some.lists(A_SETTING, max_size=6))
@budget(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_set_is_read_again_and_comments_stay(file: Path, changes: list[tuple[str, Value]]) -> None:
    write(
        file,
        "# kept\n\nwindow = 30 # half a minute\nthreads   = 1# cores # of mine\r\n'prompt' = 'a # b'   # kept, too",
    )
    expected: dict[str, Value] = {"window": 30.0, "threads": 1, "prompt": "a # b"}
    for key, value in changes:
        assert change_config(key, value) == file
        expected[key] = value
        assert values(file) == expected
    text = file.read_text("utf-8")
    assert all(kept in text for kept in ("# kept\n", "# half a minute\n", "# cores # of mine", "# kept, too"))
    for key in expected.keys() - {"window"}:
        change_config(key, None)
    assert values(file) == {"window": expected["window"]}


def test_lines_of_many_lines_are_left_to_people(file: Path) -> None:
    for before in ('prompt = """a\nb"""\n', "[other]\nx = 1\n"):
        write(file, before)
        with pytest.raises(ConfigError, match="edit it by hand"):
            change_config("prompt", "c")
        assert file.read_text("utf-8") == before


def test_an_unknown_key_can_be_removed_but_not_set(file: Path) -> None:
    write(file, "old = 1\nthreads = 2\n")
    change_config("old", None)
    assert values(file) == {"threads": 2}
    for value in (None, 1):
        with pytest.raises(ConfigError, match="there is no setting 'old'"):
            change_config("old", value)


def test_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    real = write(tmp_path / "dotfiles" / "mine.toml", "")
    file.parent.mkdir()
    file.symlink_to(real)
    change_config("threads", 3)
    assert file.is_symlink()
    assert values(real) == {"threads": 3}


def test_what_cannot_be_written_stays_as_it_was(file: Path, tmp_path: Path) -> None:
    write(file, "threads = 2\n")
    with pytest.raises(OutputWriteError, match="cannot write"):
        change_config("prompt", "\udcff")  # what Python makes of bytes that are no UTF-8
    assert file.read_text("utf-8") == "threads = 2\n"
    assert [path.name for path in file.parent.iterdir()] == ["config.toml"]


def test_names_of_keys_are_plain() -> None:
    assert not {*"".join(KEYS)} - {*string.ascii_lowercase, *string.digits, "_"}
