"""Conversations by a tokenizer's own chat template: the ids that transformers gives, and what of them is learnt."""

from __future__ import annotations

import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
import transformers
from conftest import picture
from made_folders import USER_CHAT, byte_level_tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data.documents import Document, Text, Turn
from jaxmm.data.text.template import Markup, Template
from jaxmm.errors import UserError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% elif message['role'] == 'assistant' %}"
    " {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for message in messages %}{{ 'USER' if message['role'] == 'user' else 'ASSISTANT' }}: "
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
           "<end_of_turn>", "[INST]", "[/INST]"]  # fmt: skip
WORDS = ["user", "assistant", "model", "the", "cat", "sat", "USER", "ASSISTANT", "answer"]


def byte_level(template: str):
    """As Qwen's and Llama 3's."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    inner.train_from_iterator([f"{a} {b}" for a in WORDS for b in WORDS], trainer)
    return finished(inner, template)


def metaspace(template: str, scheme: str):
    """As Llama 2's, whose text begins with a space: of the whole ("first"), or after each special token ("always")."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:.,!?[]|<>_/"
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *letters, "th", "the", "▁x", "▁xa", "SS", "er"]
    merges = [("t", "h"), ("th", "e"), ("▁", "x"), ("▁x", "a"), ("S", "S"), ("e", "r")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return finished(inner, template)


def legacy(template: str):
    """As Gemma's, and Llama 2's before its tokenizer was mended: a normalizer writes spaces."""
    made = metaspace(template, "never")
    made.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def finished(inner, template: str):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


MADE = {
    "chatml": lambda: byte_level(CHATML),
    "llama 3": lambda: byte_level(LLAMA_3),
    "gemma": lambda: metaspace(GEMMA, "never"),
    "mistral": lambda: metaspace(MISTRAL, "first"),
    "mistral, always": lambda: metaspace(MISTRAL, "always"),
    "mistral, legacy": lambda: legacy(MISTRAL),
    "vicuna": lambda: metaspace(VICUNA, "first"),
}


@pytest.fixture(scope="module", params=MADE)
def both(request):
    """A template, and a tokenizer of the same kind that nothing of ours has touched."""
    return Template(MADE[request.param](), "sft"), MADE[request.param]()


def turns_of(*said: str, system: str = "") -> tuple[Turn, ...]:
    turns = [Turn("system", (Text(system),), False)] if system else []
    roles = ("user", "assistant")
    return (*turns, *(Turn(roles[i % 2], (Text(text),), bool(i % 2)) for i, text in enumerate(said)))


def theirs(tokenizer, turns, **options) -> list[int]:
    texts = [(turn.role, "".join(part.text for part in turn.parts)) for turn in turns]
    as_list = "part['type']" in tokenizer.chat_template
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_list else text} for role, text in texts
    ]  # fmt: skip
    found = tokenizer.apply_chat_template(messages, tokenize=True, **options)
    return list(found["input_ids"] if hasattr(found, "keys") else found)


anything = st.text("abc ., é\n😀", max_size=12)
inside = anything.map(lambda text: f"x{text}y")


@hypothesis.given(st.lists(anything, min_size=2, max_size=5))
@hypothesis.settings(max_examples=25)
def test_the_ids_are_those_of_transformers(both, said):
    template, tokenizer = both
    turns = turns_of(*said[: len(said) // 2 * 2])
    encoded = template.encode(Document(turns, "here"))
    assert encoded.tokens.tolist() == theirs(tokenizer, turns)


@hypothesis.given(inside, inside)
@hypothesis.settings(max_examples=10)
def test_a_prompt_is_the_beginning_of_its_conversation(both, question, answer):
    template, tokenizer = both
    prompt = template.encode_prompt(turns_of(question)).tokens.tolist()
    whole = template.encode(Document(turns_of(question, answer), "here"))
    if "ASSISTANT:" not in tokenizer.chat_template:  # there the space after it goes with the answer
        assert whole.tokens.tolist()[: len(prompt)] == prompt
    assert prompt == theirs(tokenizer, turns_of(question), add_generation_prompt=True)


@hypothesis.given(inside, inside, inside)
@hypothesis.settings(max_examples=10)
def test_a_prompt_of_several_turns_is_the_beginning_of_its_conversation(both, first, said, second):
    template, tokenizer = both
    turns = turns_of(first, said, second)
    prompt = template.encode_prompt(turns).tokens.tolist()
    whole = template.encode(Document(turns_of(first, said, second, "answer"), "here"))
    if "ASSISTANT:" not in tokenizer.chat_template:  # as above
        assert whole.tokens.tolist()[: len(prompt)] == prompt
    assert prompt == theirs(tokenizer, turns, add_generation_prompt=True)


def flags_of(encoded) -> np.ndarray:
    lengths = np.diff(np.append(encoded.run_starts, len(encoded.tokens)))
    return np.repeat(encoded.run_flags, lengths)


@hypothesis.given(inside, inside, inside)
@hypothesis.settings(max_examples=10)
def test_what_is_learnt_is_each_answer_with_what_ends_it(both, first, second, question):
    template, _ = both
    encoded = template.encode(Document(turns_of("xq", first, question, second), "here"))
    learnt = flags_of(encoded) == TARGET | ANSWER
    assert (flags_of(encoded)[~learnt] == 0).all()
    runs = np.flatnonzero(np.diff(np.concatenate([[0], learnt, [0]])))
    answers = [encoded.tokens[a:b].tolist() for a, b in runs.reshape(-1, 2)]
    assert [template.decode(ids).strip() for ids in answers] == [first.strip(), second.strip()]
    assert all(ids[-1] in template.stop_ids for ids in answers)


@pytest.mark.parametrize("literal", ["<|im_end|>", "</s>", "<|image_start|>", "[INST]"])
def test_special_tokens_in_what_people_say_stay_text(both, literal):
    template, _ = both
    plain = template.encode(Document(turns_of("x a y", "fine"), "here")).tokens
    found = template.encode(Document(turns_of(f"x {literal} y", "fine"), "here")).tokens
    special = set(template.tokenizer.all_special_ids)
    count = lambda ids: sum(int(i) in special for i in ids)  # noqa: E731
    assert count(found) == count(plain)
    assert literal in template.tokenizer.decode(found.tolist())


def test_images_stand_where_they_were_said(both):
    template, _ = both
    turn = Turn("user", (Text("x"), picture(8, 8), Text("y"), picture(8, 8)), False)
    encoded = template.encode(Document((turn, Turn("assistant", (Text("z"),), True)), "here"))
    assert len(encoded.image_at) == 2
    for at in encoded.image_at:
        assert encoded.tokens[at - 1] == template.own.image_start_id
        assert encoded.tokens[at] == template.own.image_end_id


TRIMMED = (  # as Gemma 3's, which trims each text by itself
    "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] | trim }}{% endfor %}<end_of_turn>\n{% endfor %}"
)
LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


SAID = (("what",), (" a ", "\n", "b\n"), ("\n\na", " b"))


def with_breaks(template: str):
    """Its tokens of two and three line ends are one each, as Gemma 3's; it begins a text with its begin token."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Split("x", "isolated")
    letters = {letter: i for i, letter in enumerate(" \nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:.")}
    vocabulary = letters | {"\n\n": len(letters), "\n\n\n": len(letters) + 1}
    inner.model = models.BPE(vocab=vocabulary, merges=[("\n", "\n"), ("\n\n", "\n")])
    inner.add_special_tokens(["<s>", "</s>", "<image>", "<boi>", "<eoi>", *SPECIAL])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )  # fmt: skip
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("jinja", "markup", "processor", "said"),
    [
        *((TRIMMED, Markup("\n\n<boi>", "<eoi>\n\n"), {"<image>": "\n\n<boi><image><eoi>\n\n"}, said) for said in SAID),
        *((TRIMMED, Markup("<boi>", "<eoi>"), {"<image>": "<boi><image><eoi>"}, said) for said in SAID),
        (LLAVA, Markup("", "\n", True), {"USER": "<s>USER"}, ("what",)),
    ],
)
def test_text_around_images_is_what_a_processor_gives(jinja, markup, processor, said):
    """Which writes the template's text, puts the image's marks into it, and tokenizes it as a whole."""
    parts = [part for text in said for part in (picture(8, 8), Text(text))]
    template, tokenizer = Template(with_breaks(jinja), "sft", markup=markup), with_breaks(jinja)
    encoded = template.encode(Document((Turn("user", tuple(parts), False),), "here"))
    content = [{"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"} for p in parts]
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    for mark, written in processor.items():
        text = text.replace(mark, written)
    theirs = tokenizer.encode(text, add_special_tokens=False)
    image = tokenizer.convert_tokens_to_ids("<image>")
    found = np.insert(encoded.tokens, encoded.image_at, image).tolist()
    assert found == theirs


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_conversation_begins_as_a_text_where_its_template_leaves_that_to_the_tokenizer(scheme):
    tokenizer = metaspace(LLAVA, scheme)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )  # fmt: skip
    wanted = tokenizer.encode("USER: the cat ASSISTANT: sat</s> ")
    template = Template(tokenizer, "sft", markup=Markup("", "\n", True))
    assert template.encode(Document(turns_of("the cat", "sat"), "here")).tokens.tolist() == wanted


@pytest.mark.parametrize("made", [lambda: byte_level(""), lambda: metaspace("", "first"), lambda: legacy("")])
def test_a_conversation_in_our_own_format_has_the_ids_of_its_whole_text(made):
    """As an exported folder's template and tokenizer give them."""
    template = Template(made(), "sft")
    parts = (picture(8, 8), Text("xab c"))
    encoded = template.encode(Document((Turn("user", parts, False), *turns_of("q", "xa")[1:]), "here"))
    whole = "<|user|><|image_start|><|image_end|>xab c<|end|><|assistant|>xa<|end|>"
    template.tokenizer.backend_tokenizer.encode_special_tokens = False
    assert encoded.tokens[1:].tolist() == template.tokenizer.encode(whole, add_special_tokens=False)


def test_a_line_that_both_data_and_template_end_after_an_image_is_ended_once():
    template = Template(with_breaks(LLAVA), "sft", markup=Markup("", "\n", True))
    one, other = (
        template.encode(Document((Turn("user", (picture(8, 8), Text(text)), False),), "here")).tokens.tolist()
        for text in ("what", "\nwhat")
    )
    assert one == other


def test_images_may_have_nothing_around_them(both):
    tokenizer = both[1].__class__(tokenizer_object=both[1].backend_tokenizer, eos_token="</s>", bos_token="<s>")
    tokenizer.chat_template = both[1].chat_template
    template = Template(tokenizer, "sft", markup=Markup("", ""))
    turn = Turn("user", (picture(8, 8), Text("y")), False)
    encoded = template.encode(Document((turn, Turn("assistant", (Text("z"),), True)), "here"))
    assert len(encoded.image_at) == 1
    assert "<|image_start|>" not in tokenizer.get_vocab()


def test_pages_are_written_as_ever_and_pretraining_knows_no_turns(both):
    template, _ = both
    page = template.encode(Document((Turn("document", (Text("a page"),), True),), "here"))
    assert page.tokens[-1] == template.eos_id
    assert (flags_of(page)[-3:] == TARGET).all()
    assert Template(pickle.loads(pickle.dumps(template.tokenizer)), "pretrain").chat is None


def test_many_documents_at_once_are_as_each_alone_and_a_worker_writes_the_same(both):
    template, _ = both
    documents = [Document(turns_of(f"x{i}", "y" * i + "z"), "here") for i in range(4)]
    documents.insert(2, Document((Turn("document", (Text("a page"),), True),), "here"))
    at_once, copy = template.encode_all(documents), pickle.loads(pickle.dumps(template))
    for document, found in zip(documents, at_once, strict=True):
        for one in (template.encode(document), copy.encode(document)):
            np.testing.assert_array_equal(found.tokens, one.tokens)
            np.testing.assert_array_equal(flags_of(found), flags_of(one))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'][:1] }}</s>{% endfor %}", "leaves out, repeats or reorders"),
        (
            "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}</s>{% endfor %}",
            "leaves out, repeats or reorders",
        ),
        ("{{ raise_exception('no such thing') }}", "no such thing"),
    ],
)
def test_a_template_that_does_not_show_what_is_said_is_refused(template, message):
    with pytest.raises(UserError, match=message) as caught:
        Template(byte_level(template), "sft")
    assert "\n" not in str(caught.value)


def test_a_conversation_that_a_template_refuses_is_one_line():
    template = Template(MADE["gemma"](), "sft")
    with pytest.raises(UserError, match="conversation of system, user, assistant: System role not supported"):
        template.encode(Document(turns_of("a", "b", system="c"), "here"))


def test_a_space_before_a_turn_is_left_out_where_it_begins_with_a_picture_of_a_family_that_joins_them():
    """As templates write that look at the type of the first part, which is text for them here."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<end_of_utterance>"], special_tokens=True)
    tokenizer.chat_template = USER_CHAT
    around = "<fake_token_around_image>"
    image = picture(8, 8, 1)
    for parts, wanted in (
        ((image, Text("Why?")), "User:{}Why?"), ((Text("Why?"), image), "User: Why?{}"),
        ((Text("see "), image), "User: see {}"), ((image, image), "User:{}{}"),
    ):  # fmt: skip
        conversation = (Turn("user", parts, False), Turn("assistant", (Text("So."),), True))
        for joins in (True, False):
            template = Template(tokenizer, "sft", markup=Markup(around, around, joins=joins))
            said = tokenizer.decode(template.encode(Document(conversation, "made")).tokens)
            expected = wanted if joins else wanted.replace("User:{}", "User: {}")
            assert f"<|im_start|>{expected.format(*[around * 2] * 2)}<end_of_utterance>\nAssistant: So." in said
    assert Markup(around, "b").key == [around, "b", False], "what was prepared before joins came is still right"
