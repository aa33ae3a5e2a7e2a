"""Chat templates that an export writes: of our own format, and what goes before one that knows text alone."""

from __future__ import annotations

from jaxmm.data.text.own_format import END, IMAGE, OURS, OURS_MARK, ROLE_MARKERS
from jaxmm.data.text.template import Template
from jaxmm.hf.families.family import Family, HearingFamily
from jaxmm.hf.families.registry import OWN

# Before a decoder's own chat template, which knows text alone: parts of a message become one text. Recordings have
# their number in ``flat.heard``.
FLAT = (
    "{%- set flat = namespace(messages=[], heard=0) %}{%- for message in messages %}"
    "{%- set text = namespace(value='') %}{%- if message.content is string or message.content is none %}"
    "{%- set text.value = message.content %}{%- else %}{%- for part in message.content %}"
    "MEDIA{%- set text.value = text.value + (part.text | default('')) %}"
    "{%- endfor %}{%- endif %}{%- set flat.messages = flat.messages + [dict(message, content=text.value)] %}"
    "{%- endfor %}{%- set messages = flat.messages %}"
)
IMAGE_PART = "{%- if part.type == 'image' %}{%- set text.value = text.value + 'IMAGE' %}{%- endif %}"
AUDIO_PART = (
    "{%- if part.type == 'audio' %}{%- set flat.heard = flat.heard + 1 %}{%- set text.value = text.value + AUDIO %}"
    "{%- endif %}"
)


def with_media(template: Template, family: Family, hears: HearingFamily | None) -> str:
    """What stands before a decoder's own chat template.

    Args:
      family: whose image tokens are written; if it only hears, none are.
      hears: whose audio tokens are written.
    """
    media = IMAGE_PART.replace("IMAGE", _written(template).replace("\n", "\\n")) if family.pictures else ""
    return FLAT.replace("MEDIA", media + (AUDIO_PART.replace("AUDIO", _heard(hears)) if hears else ""))


def _written(template: Template) -> str:
    """What a chat template writes for an image: the processor adds our own marks, not a family's."""
    before, after = ("", "") if template.markup == OURS else template.markup[:2]
    return f"{before}{IMAGE}{after}"


def _heard(family: HearingFamily) -> str:
    """What a chat template writes for a recording, as an expression of Jinja; ``flat.heard`` is its number."""
    before, _, after = family.markup.before.partition("{number}")
    rest = f"{after}{family.audio_token}{family.markup.after}".replace("\n", "\\n")
    return f"('{before}' ~ flat.heard ~ '{rest}')" if "{number}" in family.markup.before else f"'{before}{rest}'"


def chat_template(template: Template, family: Family = OWN, hears: HearingFamily | None = None) -> str:
    """Our conversation format, in Jinja; arguments as of ``with_media``."""
    count, parts = "", []
    if family.pictures:
        parts.append("if part['type'] == 'image' %}" + _written(template))
    if hears:
        count = "{%- set flat = namespace(heard=0) %}"
        heard = "{% set flat.heard = flat.heard + 1 %}{{ " + _heard(hears) + " }}"
        parts.append("if part['type'] == 'audio' %}" + heard)
    parts.append("if part['type'] == 'text' %}{{ part['text'] }}{% endif %}")
    markers = "".join(
        f"{{% {'elif' if i else 'if'} message['role'] == '{role}' %}}{marker}"
        for i, (role, marker) in enumerate(ROLE_MARKERS.items())
    )
    return "".join([
        OURS_MARK, count, template.tokenizer.bos_token or "",
        "{% for message in messages %}", markers, "{% endif %}",
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}",
        "{% for part in message['content'] %}{% ", "{% el".join(parts), "{% endfor %}{% endif %}", END,
        "{% endfor %}{% if add_generation_prompt %}", ROLE_MARKERS["assistant"], "{% endif %}",
    ])  # fmt: skip
