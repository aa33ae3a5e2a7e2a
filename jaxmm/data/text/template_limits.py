"""Limits on the time and memory of chat templates, which come with models, from anyone.

``transformers`` renders them in a sandbox that keeps them away from files and objects, but not from nested loops or
``'x' * 10 ** 10``. Here is the same environment with a deadline, checked at each item of a loop and each call, and a
limit on the characters that all operations of a rendering may produce together, checked before they are produced where
that is possible. What is rendered is the same.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import Template, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from jaxmm.errors import UserError

SECONDS = 20.0
LETTERS = 1 << 28
LARGEST = 10**6  # of a width, an indent and the like
BITS = 10**5  # of an integer that an operation produces
_WIDTH = re.compile(r"\d{7}")  # in a format string


class _Spent(threading.local):
    until, letters = float("inf"), 0


_spent = _Spent()


def _tick() -> None:
    if time.thread_time() > _spent.until:
        raise UserError(f"it did not come to its end within {SECONDS:g} s")


def _spend(letters: int) -> None:
    _tick()
    _spent.letters += letters
    if _spent.letters > LETTERS:
        raise UserError(f"it would make more than {LETTERS} letters")


def _size(value: Any) -> int:
    """The size of a value in characters of memory; for an integer, in bits."""
    if isinstance(value, str):
        return len(value)
    return 8 * len(value) if isinstance(value, list | tuple) else value.bit_length() if isinstance(value, int) else 1


def _items(values: Iterable[Any]) -> Iterator[Any]:
    """Iterates as a loop does, and checks the deadline at each item."""
    for value in values:
        _tick()
        yield value


def _joined(values: Iterable[Any]) -> str:
    """The result of ``~``, and the joined output of a template."""
    texts = []
    for value in values:
        texts.append(str(value))
        _spend(len(texts[-1]))
    return "".join(texts)


class _Marked(NodeTransformer):
    """Makes loops and ``~`` call our functions."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_items", [], [], None, None).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        pieces = nodes.List(node.nodes).set_lineno(node.lineno)
        return nodes.Filter(pieces, "_joined", [], [], None, None).set_lineno(node.lineno)


class _LimitedTemplate(Template):
    def new_context(self, *args: Any, **kwargs: Any) -> Any:
        _spent.until, _spent.letters = time.thread_time() + SECONDS, 0
        return super().new_context(*args, **kwargs)


class _Limited(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    template_class = _LimitedTemplate
    concat = staticmethod(_joined)  # type: ignore[assignment]

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        marked = _Marked().visit(source)
        marked.set_environment(self)
        return super()._generate(marked, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if _size(left) * (abs(right) if isinstance(right, int | float) else 1) > BITS:
                raise UserError("it makes a number of too many digits")
        elif operator == "*":
            sequence, count = (right, left) if isinstance(right, str | list | tuple) else (left, right)
            if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                _spend(_size(sequence) * max(count, 0))
            elif _size(left) + _size(right) > BITS:
                raise UserError("it makes a number of too many digits")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,), {})
        else:
            _spend(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _tick()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            _check_method(method.__name__, text, args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        _spend(_size(result))
        return result


def _check_method(name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Counts the characters that a string method, or the filter of that name, would produce."""
    if name in ("format", "format_map"):
        _check_format(text, args, kwargs)
    elif name == "join" and args:
        texts = [str(value) for value in args[0]]
        _spend(sum(map(len, texts)) + len(text) * len(texts))
    elif name == "replace" and len(args) > 1:
        _spend(len(text) + text.count(str(args[0])) * len(str(args[1])))
    _check_widths(args, kwargs)


def _check_format(text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = [*args, *kwargs.values()]
    _check_widths(tuple(args) if "*" in text else (), {})
    if _WIDTH.search(text):
        raise UserError("it formats to a width of millions")
    _spend(len(text) + (text.count("%") + text.count("{")) * max((len(str(value)) for value in given), default=0))


def _check_widths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"it asks for a width of {value}")


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if getattr(function, "jinja_pass_arg", None) else 0

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _tick()
        value, others = args[first], args[first + 1 :]
        if name == "join":
            _check_method("join", str(others[0]) if others else "", (value := list(value),), {})
        elif name in ("replace", "format"):
            _check_method(name, str(value), others, kwargs)
        _check_widths(others, kwargs)
        texts = [value for value in (*others, *kwargs.values()) if isinstance(value, str)]
        if name in ("tojson", "indent") and any(len(text) > 100 for text in texts):
            raise UserError("it indents by more than a hundred letters")
        result = function(*args[:first], value, *others, **kwargs)
        _spend(_size(result))
        return result

    return limited


def limited(environment: ImmutableSandboxedEnvironment) -> ImmutableSandboxedEnvironment:
    """Returns a sandbox with the same filters, globals and extensions, whose templates have limits."""
    sandbox = _Limited.__new__(_Limited)
    sandbox.__dict__.update(environment.__dict__)
    sandbox.filters = {name: _limited_filter(name, function) for name, function in environment.filters.items()}
    sandbox.filters |= {"_items": _items, "_joined": _joined}
    return sandbox


def install() -> None:
    """Makes ``transformers`` render all chat templates of this process with limits, from now on."""
    from transformers.utils import chat_template_utils as utils

    of_theirs = utils._compile_jinja_template  # no public name leads there; a test checks that it exists
    if not getattr(of_theirs, "is_limited", False):

        @functools.lru_cache
        def compiled(source: str) -> Template:
            return limited(of_theirs("").environment).from_string(source)

        compiled.is_limited = True  # type: ignore[attr-defined]
        utils._compile_jinja_template = compiled
