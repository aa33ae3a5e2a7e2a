"""Chat templates that an export writes: of our own format, and what goes before one that knows text alone."""

from __future__ import annotations

from jaxmm.data.text.own_format import END, IMAGE, OURS, OURS_MARK, ROLE_MARKERS
from jaxmm.data.text.template import Template
from jaxmm.hf.families.family import Family, HearingFamily
from jaxmm.hf.families.registry import OWN

# Before a decoder's own chat template, which knows text alone: parts of a message become one text.
WITH_IMAGES = (
    "{%- set flat = namespace(messages=[]) %}{%- for message in messages %}"
    "{%- set text = namespace(value='') %}{%- if message.content is string or message.content is none %}"
    "{%- set text.value = message.content %}{%- else %}{%- for part in message.content %}"
    "{%- set text.value = text.value + ('IMAGE' if part.type == 'image' else part.text | default('')) %}"
    "{%- endfor %}{%- endif %}{%- set flat.messages = flat.messages + [dict(message, content=text.value)] %}"
    "{%- endfor %}{%- set messages = flat.messages %}"
)
# The same for recordings, each with its number in ``flat.heard``.
WITH_AUDIO = WITH_IMAGES.replace("namespace(messages=[])", "namespace(messages=[], heard=0)").replace(
    "{%- set text.value = text.value + ('IMAGE' if part.type == 'image' else part.text | default('')) %}",
    "{%- if part.type == 'audio' %}{%- set flat.heard = flat.heard + 1 %}{%- set text.value = text.value + AUDIO %}"
    "{%- else %}{%- set text.value = text.value + (part.text | default('')) %}{%- endif %}",
)


def with_images(template: Template) -> str:
    """What stands before a decoder's own chat template."""
    return WITH_IMAGES.replace("IMAGE", _written(template).replace("\n", "\\n"))


def _written(template: Template) -> str:
    """What a chat template writes for an image: the processor adds our own marks, not a family's."""
    before, after = ("", "") if template.markup == OURS else template.markup[:2]
    return f"{before}{IMAGE}{after}"


def heard(family: HearingFamily) -> str:
    """What a chat template writes for a recording, as an expression of Jinja; ``flat.heard`` is its number."""
    before, _, after = family.markup.before.partition("{number}")
    rest = f"{after}{family.audio_token}{family.markup.after}".replace("\n", "\\n")
    return f"('{before}' ~ flat.heard ~ '{rest}')" if "{number}" in family.markup.before else f"'{before}{rest}'"


def chat_template(template: Template, family: Family = OWN) -> str:
    """Our conversation format, in Jinja."""
    part, count = "{% if part['type'] == 'image' %}" + _written(template), ""
    if isinstance(family, HearingFamily):
        part = "{% if part['type'] == 'audio' %}{% set flat.heard = flat.heard + 1 %}{{ " + heard(family) + " }}"
        count = "{%- set flat = namespace(heard=0) %}"
    markers = "".join(
        f"{{% {'elif' if i else 'if'} message['role'] == '{role}' %}}{marker}"
        for i, (role, marker) in enumerate(ROLE_MARKERS.items())
    )
    return "".join([
        OURS_MARK, count, template.tokenizer.bos_token or "",
        "{% for message in messages %}", markers, "{% endif %}",
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}",
        "{% for part in message['content'] %}", part,
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}", END,
        "{% endfor %}{% if add_generation_prompt %}", ROLE_MARKERS["assistant"], "{% endif %}",
    ])  # fmt: skip


def with_audio(family: HearingFamily) -> str:
    """What stands before a decoder's own chat template in a family that hears."""
    return WITH_AUDIO.replace("AUDIO", heard(family))
