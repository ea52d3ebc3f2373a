"""Asks a server (`dasheng-edge serve`) with OpenAI's Python package: `pip install openai`, then `python client.py AUDIO`."""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

audio = Path(sys.argv[1])
client = OpenAI(base_url=os.environ.get("SERVER", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("KEY", "none"))
model = client.models.list().data[0].id

print("caption:", client.audio.transcriptions.create(file=audio, model=f"{model}:caption").text)

part = {"data": base64.b64encode(audio.read_bytes()).decode(), "format": audio.suffix.lstrip(".")}
question = [{"type": "input_audio", "input_audio": part}, {"type": "text", "text": "Which labels describe the sound?"}]
print("labels: ", end="")
for chunk in client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
