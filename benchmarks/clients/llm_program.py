"""The program `llm`, with a model of its file of further OpenAI models; it attaches audio."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from .cells import BASE, CLIP, QUESTION, run, same

MODELS = f"""\
- model_id: micro
  model_name: micro
  api_base: {BASE}
  can_stream: true
  audio: true
"""


def llm(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "extra-openai-models.yaml").write_text(MODELS, "utf-8")
        wav = Path(folder) / "clip.wav"  # the kinds that it attaches: WAV and MP3
        subprocess.run(["ffmpeg", "-v", "error", "-i", str(CLIP), str(wav)], check=True)
        environ = os.environ | {"LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
        done = subprocess.run(
            ["llm", "-m", "micro", "-a", str(wav), *words], env=environ, capture_output=True, text=True, check=False
        )
    if check and done.returncode:
        raise AssertionError(done.stderr)
    return done


def chat() -> None:
    same("guitar" in llm(QUESTION, "--no-stream").stdout, True)  # it puts the question before the clip


def chat_stream() -> None:
    same(llm(QUESTION).stdout, llm(QUESTION, "--no-stream").stdout)


def error() -> None:
    done = llm(QUESTION, "-o", "presence_penalty", "1", check=False)
    same((done.returncode != 0, "presence_penalty" in done.stderr), (True, True))


if __name__ == "__main__":
    run({"chat": chat, "chat stream": chat_stream, "error": error})
