"""LangChain's package for OpenAI. Whoever closes its stream has it read on, so there is no cell for that."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from .cells import BASE, CONTENT, KEY, LABELS, MODEL, QUESTION, SCHEMA, run, same

CHAT: Any = ChatOpenAI(model=MODEL, base_url=BASE, api_key=KEY, max_retries=0)
ASKED = HumanMessage(content=CONTENT)


def chat() -> None:
    same(CHAT.invoke([ASKED]).content, LABELS)


def chat_stream() -> None:
    same("".join(chunk.content for chunk in CHAT.stream([ASKED])), LABELS)


def turns() -> None:
    history: list[Any] = [SystemMessage("Be brief."), ASKED]
    history += [CHAT.invoke(history), HumanMessage(QUESTION)]
    same(type(CHAT.invoke(history).content), str)


def json_schema() -> None:
    wished = CHAT.bind(max_tokens=64).bound.with_structured_output({"title": "x", **SCHEMA}, method="json_schema")
    same(type(wished.invoke([ASKED])["loud"]), bool)


def error() -> None:
    try:
        CHAT.bind(presence_penalty=1.0).invoke([ASKED])
    except openai.BadRequestError as refused:
        same(refused.param, "presence_penalty")
        return
    raise AssertionError("it was not refused")


if __name__ == "__main__":
    run({
        "chat": chat, "chat stream": chat_stream, "turns": turns, "json schema": json_schema, "error": error
    })  # fmt: skip
