"""Templates that look into what is said: transformers' ids, and all that a server leaves to the model is learnt."""

from __future__ import annotations

import json
import re

import pytest
import tokenizers
from conftest import picture
from test_chat import byte_level, flags_of, turns_of

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data.documents import Document, Text, Turn
from jaxmm.data.text.byt5 import ByT5Tokenizer
from jaxmm.data.text.chat_options import ChatOptions
from jaxmm.data.text.template import Template
from jaxmm.errors import UserError

HEAD = "<|im_start|>{{ message.role }}\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# As Qwen 3's: the last answer gets a block of thinking, if an empty one; earlier ones lose theirs.
THINKS = (
    "{% for message in messages %}" + HEAD + "{% set content = message.content %}{% set thought = '' %}"
    "{% if message.role == 'assistant' %}{% if message.reasoning_content is string %}"
    "{% set thought = message.reasoning_content %}{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As DeepSeek R1's: the prompt opens a block that no answer of the data has.
OPENS = (
    "{% for message in messages %}{% if message.role == 'user' %}<|im_start|>{{ message.content }}"
    "{% else %}<|im_end|>{{ message.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|><think>\n{% endif %}"
)
# As Nemotron's: what stands in the prompt is written otherwise before an answer without thinking.
PARTS = (
    "{% for message in messages %}" + HEAD + "{% if message.role == 'assistant' %}<think></think>{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# As LLaVA's: nothing ends an answer, and each text has a blank behind it.
ENDLESS = (
    "{% for message in messages %}{{ message.role.upper() }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<image>\n' }}{% else %}{{ part.text + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
PLAIN_ENDLESS = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# As GLM 4.5's: an answer ends where the next turn begins.
OPEN_ENDED = (
    "{% for message in messages %}[INST]{{ message.role }}\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[INST]assistant\n{% endif %}"
)
# As Phi 3's: words like ours, and a token behind the end of a conversation.
PHI = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
TRIMS = "{% for message in messages %}" + HEAD + "{{ message.content | trim }}<|im_end|>\n{% endfor %}" + PROMPT
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ message.content }}\n</tool_response><|im_end|>\n{% else %}" + HEAD + "{{ message.content }}"
    '{% for call in message.tool_calls or [] %}\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}" + PROMPT
)
TEMPLATES = {"thinks": THINKS, "opens": OPENS, "parts": PARTS, "open ended": OPEN_ENDED, "phi": PHI, "trims": TRIMS}
TAKE_IN = ("<|end|>", "<|assistant|>", "<|user|>")  # the blanks behind them, as Phi 3's do


def tokenizer_of(template: str):
    tokenizer = byte_level(template)
    kept = [tokenizers.AddedToken(name, special=True, normalized=False, rstrip=True) for name in TAKE_IN]
    tokenizer.add_tokens([*kept, "<loc_1>", "<loc_12>"], special_tokens=True)
    thinking = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([tokenizers.AddedToken(name, special=False, normalized=False) for name in thinking])
    return tokenizer


def encoded(template: Template, *turns: Turn, tools: str = ""):
    return template.encode(Document(turns, "here", tools=tools))


def shown(template: Template, found) -> str:
    """The text, with what is learnt between guillemets."""
    ends = [*found.run_starts[1:], len(found.tokens)]
    runs = zip(found.run_starts, ends, found.run_flags, strict=True)
    texts = [(template.tokenizer.decode(found.tokens[a:b]), flags & TARGET) for a, b, flags in runs]
    return re.sub("»«", "", "".join(f"«{text}»" if learnt else text for text, learnt in texts))


def theirs(template: str, messages: list[dict], **options) -> list[int]:
    return tokenizer_of(template).apply_chat_template(messages, tokenize=True, **options)["input_ids"]


SAID = {
    "one turn": ("2+3?", "Five."),
    "several": ("2+3?", "Five.", "4+4?", "Eight."),
    "thinking": ("2+3?", "<think>\nadd them\n</think>\n\nFive."),
    "thinking in several": ("2+3?", "<think>\nadd\n</think>\n\nFive.", "4+4?", "<think>\ndouble\n</think>\n\nEight."),
    "blanks": (" 2+3? \n", "\n Five. \n"),
    "the same words": ("a", "a", "a", "a"),
    "words of the template": ("assistant\n", "<tool_response>", "user", "assistant"),
}


@pytest.mark.parametrize("said", SAID.values(), ids=list(SAID))
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_those_of_transformers_for_what_was_truly_said(name, said):
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    found = encoded(Template(tokenizer_of(TEMPLATES[name]), "sft"), *turns_of(*said))
    assert found.tokens.tolist() == theirs(TEMPLATES[name], messages)


@pytest.mark.parametrize(
    ("template", "said", "wanted"),
    [
        (THINKS, SAID["one turn"], "<|im_start|>assistant\n«<think>\n\n</think>\n\nFive.<|im_end|>»\n"),
        (THINKS, SAID["thinking"], "<|im_start|>assistant\n«<think>\nadd them\n</think>\n\nFive.<|im_end|>»\n"),
        (
            THINKS,
            SAID["thinking in several"],
            "<|im_start|>assistant\n«Five.<|im_end|>»\n<|im_start|>user\n4+4?<|im_end|>\n<|im_start|>assistant\n"
            "«<think>\ndouble\n</think>\n\nEight.<|im_end|>»\n",
        ),
        (OPENS, SAID["one turn"], "2+3?<|im_end|>«Five.</s>»"),
        (PARTS, SAID["one turn"], "<think>«</think>Five.<|im_end|>»\n"),
        (OPEN_ENDED, SAID["several"], "[INST]assistant\n«Five.[INST]»user\n4+4?[INST]assistant\n«Eight.»"),
        (PHI, SAID["one turn"], "<|user|>\n2+3?<|end|>\n<|assistant|>\n«Five.<|end|>\n</s>»"),
        (PLAIN_ENDLESS, SAID["several"], "assistant:« Five.</s>» user: 4+4? assistant:« Eight.</s>» "),
        (TRIMS, SAID["blanks"], "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n«Five.<|im_end|>»\n"),
    ],
)  # fmt: skip
def test_all_that_follows_the_generation_prompt_is_learnt(template, said, wanted):
    ours = Template(tokenizer_of(template), "sft")
    text = shown(ours, encoded(ours, *turns_of(*said)))
    if template == PHI:  # its tokens take in the line ends behind them
        text, wanted = text.replace("\n", ""), wanted.replace("\n", "")
    assert text.endswith(wanted)


@pytest.mark.parametrize(("template", "note"), [(OPENS, "'<think>\\n'"), (PARTS, "'\\n'")])
def test_a_prompt_that_stands_before_no_answer_is_told(template, note):
    (line,) = Template(tokenizer_of(template), "sft").notes
    assert note in line
    assert not Template(tokenizer_of(THINKS), "sft").notes


def test_an_answer_is_right_once_the_token_that_ends_writing_is():
    template = Template(tokenizer_of(PHI), "sft")
    found = encoded(template, *turns_of("q", "a"))
    answer = found.tokens[flags_of(found) == TARGET | ANSWER].tolist()
    assert template.tokenizer.decode(answer).split() == ["a<|end|>"]
    assert set(template.tokenizer.convert_ids_to_tokens(list(template.stop_ids))) == {"<|end|>", "</s>"}


@pytest.mark.parametrize("template", [ENDLESS, PLAIN_ENDLESS])
def test_a_template_that_ends_no_answer_is_given_the_tokenizers_end(template):
    ours = Template(tokenizer_of(template), "sft")
    assert "</s> is written after it" in ours.notes[0]
    turns = turns_of("q", "the cat")
    shape = [{"type": "text", "text": "q"}], [{"type": "text", "text": "the cat"}]
    contents = shape if template == ENDLESS else ("q", "the cat")
    messages = [{"role": role, "content": c} for role, c in zip(("user", "assistant"), contents, strict=True)]
    assert encoded(ours, *turns).tokens.tolist() == theirs(ours.tokenizer.chat_template, messages)
    assert "the cat</s>" in shown(ours, encoded(ours, *turns))
    again = tokenizer_of(ours.tokenizer.chat_template)
    assert Template(again, "sft").tokenizer.chat_template == ours.tokenizer.chat_template, "an export starts a run"


def test_a_template_that_ends_only_earlier_answers_is_told():
    template = Template(tokenizer_of(OPEN_ENDED), "sft")
    assert "[INST] follows is learnt from conversations of several answers alone" in template.notes[0]


def test_the_text_that_the_template_puts_before_every_answer_is_known():
    leads = [Template(tokenizer_of(t), "sft").lead for t in (THINKS, PLAIN_ENDLESS, TRIMS, OPENS)]
    assert leads == ["<think>\n\n</think>\n\n", " ", "", ""]


def test_a_pattern_of_ours_in_anothers_template_does_not_make_it_ours():
    template = Template(tokenizer_of(PHI), "sft")
    assert template.chat is not None
    assert template.tokenizer.decode(encoded(template, *turns_of("q", "a")).tokens).replace("\n", "") == (
        "<|user|>q<|end|><|assistant|>a<|end|></s>"
    )


def test_thinking_in_a_key_of_its_own_is_what_the_template_makes_of_it():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "so"}]
    turns = (*turns_of("q"), Turn("assistant", (Text("a"),), True, thinking="so"))
    assert encoded(Template(tokenizer_of(THINKS), "sft"), *turns).tokens.tolist() == theirs(THINKS, messages)
    with pytest.raises(UserError, match=r"leaves out what is thought before an answer .*config.data.thinking=off"):
        encoded(Template(tokenizer_of(TRIMS), "sft"), *turns)
    dropped = Template(tokenizer_of(TRIMS), "sft", chat=ChatOptions(thinking="off"))
    assert shown(dropped, encoded(dropped, *turns)).endswith("«a<|im_end|>»\n")


@pytest.mark.parametrize("name", ["thinks", "trims"])
def test_thinking_is_masked_or_off_alike_in_training_and_asking(name):
    said = SAID["thinking"]
    masked, off = (
        Template(tokenizer_of(TEMPLATES[name]), "sft", chat=ChatOptions(thinking=t)) for t in ("mask", "off")
    )
    assert shown(masked, encoded(masked, *turns_of(*said))).endswith("add them\n</think>\n\n«Five.<|im_end|>»\n")
    text = shown(off, encoded(off, *turns_of(*said)))
    assert "add them" not in text
    assert text.endswith("«Five.<|im_end|>»\n")
    prompt = off.tokenizer.decode(off.encode_prompt(turns_of("2+3?")).tokens)
    assert text.startswith(prompt), "the empty block, where the template writes one, is in both"
    assert off.fingerprint != masked.fingerprint


def test_thinking_in_our_own_format_is_masked_and_dropped_too():
    turns = (*turns_of("q"), Turn("assistant", (Text("a"),), True, thinking="so"))
    texts = []
    for thinking in ("learn", "mask", "off"):
        template = Template(byte_level(""), "sft", chat=ChatOptions(thinking=thinking))
        texts += [shown(template, encoded(template, *t)) for t in (turns, turns_of("q", "<think>so</think>a"))]
    assert [text.rpartition("<|assistant|>")[2] for text in texts] == [
        "«<think>\nso\n</think>\n\na<|end|>»", "«<think>so</think>a<|end|>»",
        "<think>\nso\n</think>\n\n«a<|end|>»", "<think>so</think>«a<|end|>»", "«a<|end|>»", "«a<|end|>»",
    ]  # fmt: skip


TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "<|im_end|>"}}}


def test_tools_calls_and_results_are_the_templates_own():
    messages = [
        {"role": "user", "content": "2+3?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "Five."},
    ]
    turns = (
        *turns_of("2+3?"),
        Turn("assistant", (), True, calls=json.dumps([CALL])),
        Turn("tool", (Text("5"),), False),
        *turns_of("", "Five.")[1:],
    )
    template = Template(tokenizer_of(TOOLS), "sft")
    found = encoded(template, *turns, tools=json.dumps([TOOL]))
    text = shown(template, found)
    rendered = tokenizer_of(TOOLS).apply_chat_template(messages, tools=[TOOL], tokenize=False)
    assert re.sub("[«»]", "", text) == rendered
    special = template.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (found.tokens == special).sum() == rendered.count("<|im_end|>") - 1, "what the call holds stays text"
    assert "«<tool_call>" in text
    assert "</tool_call><|im_end|>»\n<|im_start|>user\n<tool_response>\n5" in text
    assert text.endswith("«Five.<|im_end|>»\n")


def test_a_template_that_knows_no_tools_is_told_of_them_in_words():
    turns = (
        *turns_of("2+3?"),
        Turn("assistant", (), True, calls=json.dumps([CALL])),
        Turn("tool", (Text("5"),), False),
    )
    template = Template(tokenizer_of(TRIMS), "sft")
    text = shown(template, encoded(template, *turns, tools=json.dumps([TOOL])))
    assert text.startswith('<|im_start|>system\nTools, one JSON object a line:\n{"name": "add"')
    assert '«{"name": "add", "arguments": {"a": 2, "b": "<|im_end|>"}}<|im_end|>»' in text
    assert "<|im_start|>user\n5<|im_end|>" in text


def test_special_tokens_that_the_user_names_count_in_what_the_model_says_and_nowhere_else():
    box, other = "at <loc_12> and <loc_1>", "at <|im_end|>"
    for template in (byte_level(""), tokenizer_of(TRIMS)):
        template.add_tokens(["<loc_1>", "<loc_12>"], special_tokens=True)
        ours = Template(template, "sft", chat=ChatOptions(special_tokens="/<loc_\\d+>/"))
        ids = ours.tokenizer.convert_tokens_to_ids(["<loc_12>", "<loc_1>", "<|im_end|>"])
        counts = []
        for turns in (turns_of("q", box), turns_of(box, "a"), turns_of("q", other), turns_of("q", "a")):
            tokens = encoded(ours, *turns).tokens.tolist()
            counts.append([tokens.count(i) for i in ids])
        assert counts[0][:2] == [1, 1]
        assert counts[1][:2] == [0, 0]
        assert counts[2] == counts[3]
        page = ours.encode(Document((Turn("document", (Text(box),), True),), "here")).tokens.tolist()
        assert [page.count(i) for i in ids[:2]] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ChatOptions(special_tokens="<loc_13>"), "'<loc_13>' is no added token of the tokenizer; did you"),
        (ChatOptions(special_tokens="/<x>/"), "the tokenizer has no such token"),
        (ChatOptions(special_tokens="/(/"), "is no regular expression"),
        (ChatOptions(special_tokens="<loc_1>", special_tokens_in="assistent"), "did you mean 'assistant'"),
        (ChatOptions(learn="lst"), "config.data.learn 'lst' is not one of all, last, prompt"),
        (ChatOptions(thinking="mark"), "'mark' is not one of learn, mask, off; did you mean 'mask'"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        Template(tokenizer_of(TRIMS), "sft", chat=options)


@pytest.mark.parametrize(("learn", "wanted"), [("all", "q«x»r«y»"), ("last", "qxr«y»"), ("prompt", "«q»«x»«r»«y»")])
def test_which_turns_are_learnt_can_be_chosen(learn, wanted):
    for tokenizer in (byte_level(""), tokenizer_of(TRIMS)):
        template = Template(tokenizer, "sft", chat=ChatOptions(learn=learn))
        text = shown(template, encoded(template, *turns_of("q", "x", "r", "y")))
        short = re.sub(r"<\|im_start\|>\w+\n|<\|(end|im_end|user|assistant)\|>|\n|<s>", "", text).replace("«»", "")
        assert short.replace("»«", "") == wanted.replace("»«", "")


def test_pictures_in_a_conversation_that_the_template_rewrites_keep_their_places():
    template = Template(tokenizer_of(THINKS), "sft")
    turn = Turn("user", (Text("x "), picture(8, 8), Text(" y")), False)
    found = encoded(template, turn, Turn("assistant", (Text("<think>z</think>a"),), True))
    at = int(found.image_at[0])
    assert found.tokens[at - 1] == template.own.image_start_id
    text = template.tokenizer.decode(found.tokens)
    assert "x <|image_start|><|image_end|> y<|im_end|>" in text


def test_a_turn_keeps_its_weight_where_tools_are_told_in_front_of_it():
    for jinja, tools in ((TRIMS, json.dumps([TOOL])), (TRIMS, ""), (TOOLS, json.dumps([TOOL])), ("", "[{}]")):
        template = Template(tokenizer_of(jinja), "sft")
        asked, first, again, last = turns_of("q", "x", "r", "y")
        found = encoded(template, asked, first._replace(weight=0.5), again, last._replace(weight=2.0), tools=tools)
        learnt = found.run_flags & TARGET > 0
        assert found.run_weights[learnt].tolist() == [0.5, 2.0]
        assert (found.run_weights[~learnt] == 1).all()


def test_an_empty_block_of_thinking_is_learnt_where_thinking_is_masked():
    template = Template(tokenizer_of(THINKS), "sft", chat=ChatOptions(thinking="mask"))
    text = shown(template, encoded(template, *turns_of("2+3?", "Five.")))
    assert text.endswith("assistant\n«<think>\n\n</think>\n\nFive.<|im_end|>»\n"), "the prompt does not have it"


def test_of_several_chat_templates_the_default_is_used():
    tokenizer = tokenizer_of(TRIMS)
    tokenizer.chat_template = {"default": TRIMS, "tool_use": TOOLS}
    template = Template(tokenizer, "sft", chat=ChatOptions(thinking="off"))
    assert "without tool_use" in template.notes[0]
    assert shown(template, encoded(template, *turns_of("q", "a"))).endswith("«a<|im_end|>»\n")
    tokenizer.chat_template = {"tool_use": TOOLS}
    with pytest.raises(UserError, match="none of its chat templates"):
        Template(tokenizer, "sft")


@pytest.mark.parametrize(
    ("jinja", "wanted"),
    [
        (THINKS, "<|im_start|>assistant\n<think>\n\n</think>\n\n«Five.<|im_end|>»\n"),
        (PLAIN_ENDLESS, "assistant: «Five.» "),
    ],
)
def test_a_run_of_version_0_1_goes_on_as_it_learnt(jinja, wanted):
    template = Template(tokenizer_of(jinja), "sft")
    older = template.as_of(template.older[0])
    assert older.fingerprint == template.older[0]
    assert shown(older, encoded(older, *turns_of("2+3?", "Five."))).endswith(wanted)
    assert template.tokenizer.chat_template.endswith(jinja), "the run's own is as it was"


def test_prepared_data_of_version_0_1_is_known_by_its_older_name():
    template = Template(tokenizer_of(THINKS), "sft")
    assert template.older
    assert template.fingerprint not in template.older
    assert not Template(byte_level(""), "sft").older, "our own format is written as ever"


def test_names_of_special_tokens_in_texts_are_counted():
    for made in (lambda: tokenizer_of(TRIMS), lambda: tokenizer_of("")):
        template = Template(made(), "sft", chat=ChatOptions(special_tokens="<loc_1>,<loc_12>"))
        found = encoded(template, *turns_of("<loc_1> <|im_end|>", "<loc_12> <think> </s>"))
        assert (found.letters, found.symbols) == (("<loc_1>", "<|im_end|>", "</s>"), ("<loc_12>",))
    assert encoded(Template(ByT5Tokenizer(), "sft"), *turns_of("a</s>", "b")).letters == ("</s>",)
