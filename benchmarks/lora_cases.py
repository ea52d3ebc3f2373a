"""Random LoRA and DoRA adapters for a small model with the published names, and what peft's own merge makes of them.

Everything is drawn from a `random.Random`, so that a seed gives the same cases again and hypothesis can drive it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from dasheng_edge.export.checkpoint.sizes import EMBEDDING, HEAD

DIM, HIDDEN, WIDE, KV, VOCABULARY, MELS = 12, 16, 24, 8, 40, 6
BLOCKS = LAYERS = 2
ACOUSTIC_MELS = 5

Layout = Literal["published", "renamed", "two branches"]  # what a checkpoint has, and what it calls it
_STORED_ENCODER = "audio_encoder.model"
RENAMES: Mapping[Layout, tuple[tuple[str, str], ...]] = {  # stored module, canonical module
    "published": (),
    "renamed": ((_STORED_ENCODER, "audio_encoder"),),
    "two branches": (  # as DashengTokenizer, whose acoustic modules have the names that are the others' elsewhere
        ("audio_encoder.patch_embed", "audio_encoder.acoustic.patch_embed"),
        ("audio_encoder.norm", "audio_encoder.acoustic.norm"),
        (_STORED_ENCODER, "audio_encoder"),
    ),
}

LINEAR = (
    "qkv",
    "attn.proj",
    "fc1",
    "fc2",
    "net.0",
    "net.2",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "up_proj",
    "down_proj",
)
ENDS = ("embed_tokens", "lm_head", "patch_embed.proj")
REGEXES = (
    r"^.*\.blocks\.\d+\.attn\.(qkv|proj)$|^audio_projector\.net\.(0|2)$|^decoder\..*\.mlp\.(up|gate|down)_proj$",
    r"^(decoder(?=\.).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj))$",
    r".*\.(qkv|fc2|embed_tokens)", r"(?!.*blocks\.1).*\.(attn\.proj|fc1|k_proj)", r".*(lm_head|net\.\d)",
    r".*\.(patch_embed\.proj|q_proj)",
)  # fmt: skip
PATTERNS = ("qkv", r"blocks\.0\..*", "layers.1.self_attn.q_proj", r".*_proj", r"net\.\d", "embed_tokens", "mlp.fc1")
SAVED = ("norm", "lm_head", "embed_tokens", "net.0", "k_proj", "patch_embed", "init_bn", "mlp", "audio_projector")
# Of a model with two branches also these.
ACOUSTIC_TARGETS: tuple[str | list[str], ...] = (
    ["audio_encoder.patch_embed"], ["audio_encoder.patch_embed", "patch_embed.proj", "k_proj"],
    r"audio_encoder\.patch_embed|.*blocks\.\d\.attn\.(qkv|proj)",
)  # fmt: skip
ACOUSTIC_SAVED = ("audio_encoder.norm", "audio_encoder.patch_embed")
EXCLUDED: tuple[str | list[str], ...] = (["lm_head"], ["k_proj", "fc2"], r".*\.layers\.0\..*", r".*blocks\.\d\.mlp.*")


@dataclass(frozen=True)
class RandomAdapter:
    """An adapter, before it is written."""

    arguments: dict[str, Any]  # of LoraConfig
    dtype: torch.dtype
    save_embedding_layers: bool | Literal["auto"]
    seed: int


@dataclass(frozen=True)
class Case:
    """A checkpoint and the adapters that are merged into it, in order."""

    layout: Layout
    tied: bool
    adapters: tuple[RandomAdapter, ...]

    def features(self) -> Iterator[str]:
        """What of the format the case exercises."""
        yield f"{len(self.adapters)} adapters" if len(self.adapters) > 1 else "1 adapter"
        yield from (["tied head"] if self.tied else []) + [f"layout: {self.layout}"]
        found = set()
        for adapter in self.adapters:
            given = adapter.arguments
            found |= {name for name in _FLAGS if given.get(name)} | {str(adapter.dtype).removeprefix("torch.")}
            found.add("target_modules: " + ("regex" if isinstance(given["target_modules"], str) else "list"))
            if given["bias"] != "none":
                found.add(f"bias: {given['bias']}")
        yield from sorted(found)


_FLAGS = (
    "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform",
    "layers_pattern", "modules_to_save", "fan_in_fan_out", "ensure_weight_tying",
)  # fmt: skip


def small_shapes(layout: Layout, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Canonical names of a model with all kinds of layers that adapters meet, in the order of its modules."""
    shapes: dict[str, tuple[int, ...]] = {
        **{f"audio_encoder.init_bn.{name}": (MELS,) for name in ("weight", "bias", "running_mean", "running_var")},
        "audio_encoder.patch_embed.proj.weight": (DIM, 1, MELS, 4),
        "audio_encoder.patch_embed.proj.bias": (DIM,),
    }
    linear = {"attn.qkv": (3 * DIM, DIM), "attn.proj": (DIM, DIM), "mlp.fc1": (WIDE, DIM), "mlp.fc2": (DIM, WIDE)}
    for i in range(BLOCKS):
        for name, shape in {"norm1": (DIM,), **linear}.items():
            shapes |= {f"audio_encoder.blocks.{i}.{name}.{leaf}": shape[:n] for leaf, n in (("weight", 2), ("bias", 1))}
    shapes |= {"audio_encoder.norm.weight": (DIM,), "audio_encoder.norm.bias": (DIM,)}
    if layout == "two branches":
        shapes["audio_encoder.acoustic.patch_embed.weight"] = (DIM, 1, ACOUSTIC_MELS, 4)
        shapes |= {
            f"audio_encoder.acoustic.{name}": (DIM,) for name in ("patch_embed.bias", "norm.weight", "norm.bias")
        }
    for net, columns in ((0, 5 * DIM), (2, HIDDEN)):
        shapes |= {f"audio_projector.net.{net}.weight": (HIDDEN, columns), f"audio_projector.net.{net}.bias": (HIDDEN,)}
    shapes[EMBEDDING] = (VOCABULARY, HIDDEN)
    for layer in (f"decoder.model.layers.{i}" for i in range(LAYERS)):
        for name, rows in (("q_proj", HIDDEN), ("k_proj", KV), ("v_proj", KV)):
            shapes |= {f"{layer}.self_attn.{name}.weight": (rows, HIDDEN), f"{layer}.self_attn.{name}.bias": (rows,)}
        shapes[f"{layer}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (WIDE, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (HIDDEN, WIDE), f"{layer}.input_layernorm.weight": (HIDDEN,)}
    shapes["decoder.model.norm.weight"] = (HIDDEN,)
    return shapes if tied else shapes | {HEAD: (VOCABULARY, HIDDEN)}


def stored_name(name: str, layout: Layout) -> str:
    """What a checkpoint calls a tensor."""
    for stored, canonical in RENAMES[layout]:
        if name.startswith(f"{canonical}."):
            return stored + name.removeprefix(canonical)
    return name


class _Config(dict[str, Any]):
    """As much of a transformers configuration as peft asks for."""

    @property
    def tie_word_embeddings(self) -> bool:
        return bool(self["tie_word_embeddings"])

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        self["tie_word_embeddings"] = value

    def to_dict(self) -> dict[str, Any]:
        return dict(self)


class SmallModel(nn.Module):
    """The layers of a checkpoint under its stored names: as much of the model as peft needs to see."""

    def __init__(self, tensors: Mapping[str, Tensor], *, tied: bool) -> None:
        super().__init__()
        self.config = _Config(model_type="custom", tie_word_embeddings=tied)
        self._tied_weights_keys = [HEAD] if tied else []
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            modules.setdefault(path, {})[leaf] = tensor
        for path, own in modules.items():
            self._place(path, _layer(path, own))
        if tied:
            head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
            head.weight = self.get_input_embeddings().weight
            self._place(HEAD.removesuffix(".weight"), head)

    def _place(self, path: str, layer: nn.Module) -> None:
        *above, leaf = path.split(".")
        parent: nn.Module = self
        for part in above:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, layer)

    def get_input_embeddings(self) -> Any:
        """The embedding, or what peft has put around it."""
        return self.get_submodule(EMBEDDING.removesuffix(".weight"))

    def get_output_embeddings(self) -> Any:
        """The head, or what peft has put around it."""
        return self.get_submodule(HEAD.removesuffix(".weight"))


def _layer(path: str, own: Mapping[str, Tensor]) -> nn.Module:
    weight = own["weight"]
    layer: nn.Module
    if path.endswith("init_bn"):
        layer = nn.BatchNorm1d(len(weight))
    elif path.endswith("embed_tokens"):
        layer = nn.Embedding(weight.shape[0], weight.shape[1])
    elif weight.ndim == 4:
        layer = nn.Conv2d(1, len(weight), (weight.shape[2], weight.shape[3]))
    elif weight.ndim == 2:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in own)
    else:
        layer = nn.LayerNorm(len(weight), bias="bias" in own)
    layer.load_state_dict(own, strict=False)
    return layer


def random_case(random: Random) -> Case:
    """Draw a checkpoint and one to three adapters for it."""
    layouts: tuple[Layout, ...] = ("published", "published", "renamed", "two branches", "two branches")
    tied, layout = random.random() < 0.4, random.choice(layouts)
    modules = [
        stored_name(name, layout).removesuffix(".weight")
        for name, shape in (small_shapes(layout, tied=False)).items()
        if len(shape) > 1
    ]
    count = random.choice((1, 1, 2, 3))
    adapters = [_random_adapter(random, modules, layout, tied=tied) for _ in range(count)]
    for adapter in adapters[:-1]:  # peft cannot put LoRA on a head that it has tied, whose sizes it has exchanged
        adapter.arguments["ensure_weight_tying"] &= not tied
    return Case(layout, tied, tuple(adapters))


def _random_adapter(random: Random, modules: list[str], layout: Layout, *, tied: bool) -> RandomAdapter:
    given = {**_random_targets(random, modules), **_random_scales(random)}
    config = LoraConfig(**{key: given[key] for key in _TARGETS})
    if layout == "two branches" and random.random() < 0.4:
        given |= {**dict.fromkeys(_TARGETS), "target_modules": random.choice(ACOUSTIC_TARGETS)}
        given["modules_to_save"] = random.choice((None, ["norm"], [random.choice(ACOUSTIC_SAVED)]))
        config = LoraConfig(**{key: given[key] for key in _TARGETS})
    if not any(check_target_module_exists(config, module) for module in modules):  # all that was named is left out
        given |= {**dict.fromkeys(_TARGETS), "target_modules": ["net.2"]}
    # Refused: with the vocabulary among the targets, peft's own merge of a tied model is not what was trained.
    may_tie = not tied or not any(end in str(given["target_modules"]) for end in ("embed_tokens", "lm_head"))
    given["ensure_weight_tying"] = may_tie and random.random() < 0.3
    return RandomAdapter(
        given,
        random.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16)),
        random.choice((False, "auto", "auto", True)),
        random.randrange(1 << 30),
    )


_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")


def _random_targets(random: Random, modules: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = dict.fromkeys(_TARGETS)
    kind = random.choice(("regex", "leaves", "leaves", "modules"))
    if kind == "regex":
        given["target_modules"] = random.choice(REGEXES)
    elif kind == "leaves":
        given["target_modules"] = random.sample((*LINEAR, *ENDS), random.randint(1, 4))
        if random.random() < 0.3:
            given["layers_to_transform"] = random.choice((0, 1, [0], [1], [0, 1]))
            given["layers_pattern"] = random.choice((None, None, "layers", ["blocks", "layers"]))
    else:
        given["target_modules"] = random.sample(modules, random.randint(1, 5))
    if random.random() < 0.3:
        given["exclude_modules"] = random.choice(EXCLUDED)
    if random.random() < 0.4:
        given["modules_to_save"] = random.sample(SAVED, random.randint(1, 2))
    if set(given["modules_to_save"] or ()) >= {"net.0", "audio_projector"}:
        given["modules_to_save"] = ["audio_projector"]  # peft cannot wrap a module inside a wrapped one
    return given


def _random_scales(random: Random) -> dict[str, Any]:
    def patterns(highest: int) -> dict[str, int]:
        chosen = random.sample(PATTERNS, random.choice((0, 0, 1, 2)))
        return {pattern: random.randint(1, highest) for pattern in sorted(chosen)}  # the order in which peft saves them

    return {
        "r": random.randint(1, 8),
        "lora_alpha": random.choice((random.randint(1, 32), random.uniform(0.5, 16))),
        "rank_pattern": patterns(8),
        "alpha_pattern": patterns(32),
        "use_rslora": random.random() < 0.3,
        "use_dora": random.random() < 0.35,
        "fan_in_fan_out": random.random() < 0.1,
        "bias": random.choice(("none", "none", "none", "none", "all", "lora_only")),
        "init_lora_weights": random.choice((True, False, "gaussian")),
    }
