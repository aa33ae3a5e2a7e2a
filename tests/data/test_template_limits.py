"""A chat template gets so much time and memory, and writes within them what it always wrote."""

from __future__ import annotations

import time

import pytest
from transformers.utils import chat_template_utils

from jaxmm.data.text import template_limits
from jaxmm.data.text.chat import ChatFormat, Markup
from jaxmm.errors import UserError

MESSAGES = [{"role": "user", "content": " What? "}, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in [1] %}{% endfor %}{% endfor %}{% endfor %}"


def rendered(source: str, **given) -> str:
    template_limits.install()
    return chat_template_utils._compile_jinja_template(source).render(messages=MESSAGES, **given)


@pytest.mark.parametrize(
    "source",
    [
        LOOPS,
        "{% macro f(n) %}{% if n<99 %}{% set a = f(n + 1) %}{% set b = f(n+1) %}{% endif %}{% endmacro %}{{ f(0) }}",
    ],
)  # fmt: skip
def test_what_never_ends_is_ended(source, monkeypatch):
    monkeypatch.setattr(template_limits, "SECONDS", 0.2)
    with pytest.raises(UserError, match=r"did not come to its end within 0.2 s"):
        rendered(source)


def test_time_in_which_the_process_stands_still_does_not_count(monkeypatch):
    monkeypatch.setattr(template_limits, "SECONDS", 0.2)
    assert rendered("{% for i in range(3) %}{{ pause(0.1) }}{% endfor %}", pause=time.sleep) == "None" * 3


TWICE = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = ns.x %s ns.x %%}{%% endfor %%}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'x' * 10 ** 10 }}", "more than 268435456 letters"),
        ("{{ 10 ** 10 * [1] }}", "more than 268435456 letters"),
        (TWICE % ("'x'", "~"), "more than 268435456 letters"),
        (TWICE % ("'x'", "+"), "more than 268435456 letters"),
        (TWICE % ("[1]", "+"), "more than 268435456 letters"),
        (TWICE % ("7", "*"), "too many digits"),
        ("{{ 10 ** 10 ** 10 * 0 + 10 ** (10 ** 10) }}", "too many digits"),
        ("{{ 'x' | center(10 ** 10) }}", "a width of 10000000000"),
        ("{{ 'x'.center(10 ** 10) }}", "a width of 10000000000"),
        ("{{ '%010000000000d' % 1 }}", "a width of millions"),
        ("{{ '%*d' % (10 ** 10, 1) }}", "a width of 10000000000"),
        ("{{ '{:>10000000000}'.format(1) }}", "a width of millions"),
        ("{{ '%010000000000d' | format(1) }}", "a width of millions"),
        ("{{ ('a' * 99999).replace('a', 'b' * 99999) }}", "more than 268435456 letters"),
        ("{{ ('a' * 99999) | replace('a', 'b' * 99999) }}", "more than 268435456 letters"),
        ("{{ (['a' * 99999] * 99999) | join }}", "more than 268435456 letters"),
        ("{{ ''.join(['a' * 99999] * 99999) }}", "more than 268435456 letters"),
        ("{{ messages | tojson(indent=10 ** 9) }}", "a width of 1000000000"),
        ("{{ messages | tojson(indent='x' * 999999) }}", "indents by more than"),
        ("{% set x = 'y' * 999999 %}{% for i in range(99999) %}{{ x }}{% endfor %}", "more than 268435456 letters"),
        ("{% set x %}{% for i in range(9999) %}{{ 'y' * 99999 }}{% endfor %}{% endset %}", "more than 268435456"),
    ],
)  # fmt: skip
def test_what_takes_too_much_memory_is_not_made(source, message):
    with pytest.raises(UserError, match=message):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ m.role ~ ': ' ~ m['content'] }}"
        "{% if not loop.last %}, {% endif %}{% endfor %}",
        "{% for m in messages recursive %}{{ m.role }}{% if loop.depth<2 %}{{ loop(messages) }}{% endif %}{% endfor %}",
        "{% for k, v in {'a': 1, 'b': 0}.items() if v %}{{ k }}{% else %}none{% endfor %}{% for x in no %}{% endfor %}",
        "{% for a in range(3) %}{% if a == 1 %}{% continue %}{% endif %}{{ a }}{% endfor %}",
        "{% generation %}{{ 'a' + 'b' }}{% endgeneration %}{{ messages | map(attribute='role') | join(', ') }}",
        "{{ '%s %d' % ('a', 7) }}{{ '{} {x}'.format(1, x=2) }}{{ 2 ** 10 }}{{ [1] + [2] }}{{ 'ab' * 3 }}{{ 7 % 4 }}",
        "{{ {'t': 1700000000} | tojson }}{{ 1700000000 | string }}{{ messages | tojson(indent=2) }}{{ 2.5 * 2 }}",
        "{% macro say(x) %}<{{ x | trim }}>{% endmacro %}{{ say(' a ') }}{{ ' b '.strip().split('b') }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ messages[0].content.replace('W', 'w') | replace('t', 'd') | center(20) }}{{ ('a', 'b') + ('c',) }}",
    ],
)  # fmt: skip
def test_what_a_template_writes_is_the_same(source):
    template = chat_template_utils._cached_compile_jinja_template(source)
    assert rendered(source) == template.render(messages=MESSAGES)


def test_the_limits_are_a_renderings_own():
    for _ in range(4):
        assert len(rendered("{{ 'x' * 10 ** 8 }}")) == 10**8


def test_a_tokenizers_template_that_never_ends_is_one_line(monkeypatch):
    from test_chat import byte_level

    monkeypatch.setattr(template_limits, "SECONDS", 0.2)
    with pytest.raises(UserError, match=r"its chat template does not write .*: it did not come to its end"):
        ChatFormat(byte_level(LOOPS), Markup("", ""))
