"""Chat templates: Jinja, as transformers renders it, by somebody whose work is bounded in size, steps and time.

A template comes with a checkpoint or a bundle, so it may be anybody's. It cannot reach anything (Jinja's sandbox), and
it cannot take long: everything that it does costs something, in proportion to the texts and lists that it is done
with, and rendering ends with an error where `MAX_COST` is spent. What cannot be counted is not there: inheritance,
includes, recursive loops, powers, widths in formats, and filters that no chat template needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2 import meta, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from dasheng_edge.runtime.errors import PromptError
from dasheng_edge.runtime.gguf.check import MAX_TEMPLATE_LENGTH

from .template_meter import (
    MAX_PADDING,
    Meter,
    MeteredContext,
    TemplateBoundError,
    filters,
    paid_method,
    pay_for_format,
    tests,
)

# Two code points for private use around a number, to which no template or tokenizer gives a meaning. Python's repr
# escapes them: a template that prints a whole list of parts loses them, which gives it away.
MARK = "\ue0f0{}\ue0f1"
MARKS = re.compile("[\ue0f0\ue0f1]")
_TIME_WIDTH = re.compile(r"%[-_0^#+]*[1-9]")

_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Break, nodes.Continue, nodes.Macro,
    nodes.CallBlock, nodes.With, nodes.Scope, nodes.Assign, nodes.AssignBlock, nodes.ExprStmt, nodes.Name, nodes.NSRef,
    nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Getattr, nodes.Getitem,
    nodes.Slice, nodes.Call, nodes.Filter, nodes.Test, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.Concat,
    nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv,
    nodes.Mod, nodes.ExtensionAttribute,
)  # fmt: skip


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template, with the settings and functions that transformers gives it.

    Raises:
        PromptError: it is not valid Jinja, or uses something that cannot be bounded.
    """
    environment = _Environment()
    try:
        tree = _Bounds().bounded(_parsed(environment, source))
        return environment.from_string(tree, globals=dict(_FUNCTIONS))
    except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise PromptError(
            f"the bundle's chat template is not valid: {_short(error)}; correct it in the checkpoint and export again"
        ) from error


def template_names(source: str) -> frozenset[str]:
    """Names that a chat template takes from outside, such as `messages` and `eos_token`.

    Raises:
        jinja2.TemplateError: it is not valid Jinja.
    """
    try:
        return frozenset(meta.find_undeclared_variables(_parsed(_Environment(), source)))
    except RecursionError as error:
        raise TemplateBoundError("it is nested too deeply") from error


def render_chat(
    template: jinja2.Template,
    messages: Sequence[Mapping[str, object]],
    special_tokens: Mapping[str, str | list[str]],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """What transformers renders of messages; like there, what was not asked for is None, not undefined.

    Raises what the template does, and TemplateBoundError where it does too much.
    """
    return template.render(
        special_tokens, messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt
    )


def _parsed(environment: jinja2.Environment, source: str) -> nodes.Template:
    if len(source) > MAX_TEMPLATE_LENGTH:
        raise TemplateBoundError(f"it has {len(source)} characters, expected at most {MAX_TEMPLATE_LENGTH}")
    try:
        return environment.parse(source)
    except (RecursionError, ValueError) as error:  # the latter: a number of thousands of digits
        raise TemplateBoundError(f"it cannot be parsed: {_short(error)}") from error


def _short(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`: marks what an assistant said for training; rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  # declared as an attribute of the instance by Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja in its sandbox, where every operator, call, filter and test pays first."""

    context_class = MeteredContext
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        # Not optimized: that would compute constant expressions before anything is counted.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag], optimized=False
        )
        self.globals = {"range": safe_range, "namespace": Namespace, "dict": dict}
        self.filters = filters()
        self.filters |= {_WEIGHED: _weighed, _CONCATENATED: _concatenated, _COUNTED: _counted, _BEGUN: _begun}
        self.tests = tests()

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = context.meter
        meter.weigh(args, kwargs)
        if isinstance(called, BuiltinMethodType | MethodType) and not isinstance(called.__self__, _GenerationTag):
            args = paid_method(meter, called.__self__, called.__name__, args)
        elif not isinstance(called, Macro | Undefined | MethodType) and called not in _CALLED:
            raise TemplateBoundError(f"{called!r:.80} cannot be called")
        result = super().call(context, called, *args, **kwargs)
        meter.weigh(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter: Meter = context.meter
        meter.weigh(left, right)
        if operator == "%" and isinstance(left, str):
            pay_for_format(meter, left, right)
        if operator == "*":
            for count, other in ((left, right), (right, left)):
                if isinstance(count, int) and isinstance(other, str | list | tuple):
                    meter.spend(max(count, 0) * (len(other) + 1))
            if isinstance(left, int) and isinstance(right, int):
                meter.spend(left.bit_length() * right.bit_length() // 64)
        return super().call_binop(context, operator, left, right)


# What `_Bounds` puts into a template, under names that no template can write.


@pass_context
def _weighed(context: MeteredContext, value: object) -> object:
    context.meter.weigh(value)
    return value


@pass_context
def _concatenated(context: MeteredContext, parts: Sequence[object]) -> str:
    context.meter.weigh(parts)
    return "".join(map(str, parts))


@pass_context
def _counted(context: MeteredContext, items: Iterable[object], cost: int) -> Iterator[object]:
    for item in items:
        context.meter.spend(cost)
        yield item


@pass_context
def _begun(context: MeteredContext, nothing: str, cost: int) -> str:
    context.meter.spend(cost)
    return nothing


_WEIGHED, _CONCATENATED, _COUNTED, _BEGUN = "=weighed", "=concatenated", "=counted", "=begun"


def _paid(node: Any, how: str, *args: int) -> nodes.Filter:
    return nodes.Filter(node, how, [nodes.Const(arg) for arg in args], [], None, None, lineno=node.lineno)


class _Bounds(NodeTransformer):
    """Refuses what cannot be bounded, and lets the rest pay where Jinja itself asks nobody."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}  # by the identity of a node: it, all that is in it, and their characters

    def bounded(self, tree: nodes.Template) -> nodes.Template:
        """The tree, changed."""
        self._measure(tree)
        bounded: nodes.Template = self.visit(tree)
        return bounded

    def _measure(self, node: nodes.Node) -> int:
        if not isinstance(node, _NODES):
            raise TemplateBoundError(f"line {node.lineno}: {type(node).__name__} is not supported")
        text = (
            node.value if isinstance(node, nodes.Const) else node.data if isinstance(node, nodes.TemplateData) else ""
        )
        if isinstance(text, str) and MARKS.search(text):
            raise TemplateBoundError(f"line {node.lineno}: it has U+E0F0 or U+E0F1, which mark what users wrote")
        size = 1 + (len(text) if isinstance(text, str) else 0)
        size += sum(self._measure(child) for child in node.iter_child_nodes())
        self._sizes[id(node)] = size
        return size

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802  # as Jinja calls them, here and below
        self.generic_visit(node)
        node.nodes = [part if isinstance(part, nodes.TemplateData) else _paid(part, _WEIGHED) for part in node.nodes]
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise TemplateBoundError(f"line {node.lineno}: recursive loops are not supported, a macro can do the same")
        cost = self._sizes[id(node)]
        self.generic_visit(node)
        node.iter = _paid(node.iter, _COUNTED, cost)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:  # noqa: N802
        cost = self._sizes[id(node)]
        self.generic_visit(node)
        begun = _paid(nodes.Const("", lineno=node.lineno), _BEGUN, cost)
        node.body.insert(0, nodes.Output([begun], lineno=node.lineno))
        return node

    visit_CallBlock = visit_Macro  # noqa: N815

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        if node.node is None:
            raise TemplateBoundError(f"line {node.lineno}: a block cannot be filtered, only a value")
        return self.generic_visit(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _paid(node.expr, _WEIGHED)
        for operand in node.ops:
            operand.expr = _paid(operand.expr, _WEIGHED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _paid(nodes.List(node.nodes, lineno=node.lineno), _CONCATENATED)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _paid(node, _WEIGHED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _paid(node, _WEIGHED) if node.ctx == "load" else node

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _paid(node, _WEIGHED)

    visit_Dict = visit_List  # noqa: N815


def _strftime_now(pattern: str) -> str:
    if len(pattern) > MAX_PADDING or _TIME_WIDTH.search(pattern):
        raise TemplateBoundError(f"the time {pattern[:40]!r} is not supported, only formats without widths")
    return datetime.now().strftime(pattern)  # noqa: DTZ005  # local time, as in transformers


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


_FUNCTIONS = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
_CALLED = (safe_range, Namespace, dict, *_FUNCTIONS.values())
