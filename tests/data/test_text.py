"""Templates: what becomes which token, what is a target, and that a user's text is only ever text."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmm.batch import ANSWER, TARGET
from jaxmm.data.documents import Document, Image, Part, Text, Turn
from jaxmm.data.text.codebook import image_codes
from jaxmm.data.text.encoded import Encoded
from jaxmm.data.text.own_format import END, SPECIAL_TOKENS
from jaxmm.data.text.template import OBJECTIVES, Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError

CORPUS = ["the cat sat on the mat, the dog did not", "Was ist das? Ein rotes Dreieck.", "a < b | c > d </ s"] * 9
PICTURE = Image(data=b"picture")

tokens_of_text = st.text(st.characters(codec="utf-8"), max_size=40)
parts = st.lists(st.one_of(st.builds(Text, tokens_of_text), st.just(PICTURE)), max_size=4).map(tuple)
turns = st.one_of(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), parts), max_size=5),
    st.lists(st.tuples(st.just("document"), parts), min_size=1, max_size=1),
).map(lambda said: tuple(Turn(role, part, role in ("document", "assistant")) for role, part in said))


@pytest.fixture(scope="module")
def fast_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a byte-level BPE tokenizer that has begin, end and padding tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    # As many published tokenizers do, it would add its begin token to whatever it is given.
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bytes", "fast"])
def tokenizer(request, fast_folder):
    return load_tokenizer("" if request.param == "bytes" else fast_folder)


@pytest.fixture(scope="module")
def templates(tokenizer: Any) -> dict[str, Template]:
    return {objective: Template(copy.deepcopy(tokenizer), objective) for objective in OBJECTIVES}


def conversation(*said: tuple[str, str]) -> Document:
    return Document(tuple(Turn(role, (Text(text),), role == "assistant") for role, text in said), "test, record 0")


def flags_of(encoded: Encoded) -> np.ndarray:
    return np.repeat(encoded.run_flags, np.diff(np.append(encoded.run_starts, len(encoded.tokens))))


def written(template: Template, encoded: Encoded, wanted: int) -> str:
    """The tokens with all of the ``wanted`` flags, special ones shown."""
    kept = encoded.tokens[(flags_of(encoded) & wanted) == wanted]
    return template.tokenizer.decode(kept.tolist(), skip_special_tokens=False)


def shown(template: Template, encoded: Encoded) -> str:
    text = template.tokenizer.decode(encoded.tokens.tolist(), skip_special_tokens=False)
    return text.removeprefix(template.tokenizer.bos_token or "")


# What becomes what


def test_a_conversation_is_turns_between_markers(templates):
    document = conversation(("system", "Be kind."), ("user", "Who?"), ("assistant", "A cat."), ("user", "Sure?"))
    encoded = templates["sft"].encode(document)
    assert shown(templates["sft"], encoded) == (
        "<|system|>Be kind.<|end|><|user|>Who?<|end|><|assistant|>A cat.<|end|><|user|>Sure?<|end|>"
    )


def test_pretrain_has_no_markers(templates):
    template = templates["pretrain"]
    encoded = template.encode(conversation(("user", "Who?"), ("assistant", "A cat."), ("user", "Sure?")))
    assert shown(template, encoded) == "Who?\nA cat.\nSure?</s>"
    assert written(template, encoded, TARGET) == "Who?\nA cat.\nSure?</s>"
    assert written(template, encoded, TARGET | ANSWER) == "A cat.\n"


def test_sft_targets_are_the_answers_and_their_ends(templates):
    template = templates["sft"]
    document = conversation(
        ("assistant", "Hello."), ("user", "Who?"), ("user", "Well?"), ("assistant", "A cat."), ("assistant", "Yes.")
    )
    encoded = template.encode(document)
    assert written(template, encoded, TARGET) == "Hello.<|end|>A cat.<|end|>Yes.<|end|>"
    assert written(template, encoded, ANSWER) == written(template, encoded, TARGET | ANSWER)
    assert len(encoded.run_flags) == 6  # three answers, each after other tokens


def test_a_pair_is_its_two_conversations_one_after_the_other_whatever_turns_their_answers_have(templates):
    template, asked = templates["sft"], Turn("user", (PICTURE, Text("how many?")), False)
    call = Turn("assistant", (), True, calls='[{"function": {"name": "count", "arguments": {}}}]')
    counted = (asked, call, Turn("tool", (Text("3"),), False), Turn("assistant", (Text("three"),), True))
    guessed = (asked, Turn("assistant", (Text("some"),), True))
    pair = template.encode(Document(counted, "x", verdict="better", other=guessed))
    one, other = (template.encode(Document(turns, "x")) for turns in (counted, guessed))
    assert pair.tokens.tolist() == [*one.tokens, *other.tokens]
    assert flags_of(pair).tolist() == [*flags_of(one), *flags_of(other)]
    assert (pair.second, *pair.image_at) == (len(one.tokens), *one.image_at)
    learnt = written(template, one, TARGET)
    assert "count" in learnt
    assert "3" not in learnt


@pytest.mark.parametrize(
    ("verdict", "wanted"), [("better", ("<|user|>", "</s>", "<|end|>")), ("wanted", ("<|user|>", "</s>"))]
)
def test_names_of_special_tokens_count_once_in_what_is_compared(templates, verdict, wanted):
    """Not in the prompt again; and the answer beside a judged one is of another record, which counts it."""
    asked = Turn("user", (Text("what is <|user|>?"),), False)
    said, beside = (Turn("assistant", (Text(text),), True) for text in ("a </s>", "an <|end|>"))
    both = Document((asked, said), "x", verdict=verdict, other=(asked, beside))
    assert templates["sft"].encode(both).letters == wanted


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_document_is_a_target_from_end_to_end(templates, objective):
    template = templates[objective]
    encoded = template.encode(Document((Turn("document", (Text("the cat"),), True),), "test, record 0"))
    assert written(template, encoded, TARGET) == "the cat</s>"
    assert written(template, encoded, ANSWER) == ""
    assert len(encoded.tokens) - int(np.sum(flags_of(encoded) > 0)) == (template.bos_id is not None)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_empty_answer_is_its_end(templates, objective):
    template = templates[objective]
    encoded = template.encode(conversation(("user", "Who?"), ("assistant", "")))
    assert encoded.tokens[flags_of(encoded) == TARGET | ANSWER].tolist() == [
        template.end_id if objective == "sft" else template.eos_id
    ]


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(said=turns)
def test_image_places_hold_and_are_never_targets(templates, objective, said):
    template = templates[objective]
    encoded = template.encode(Document(said, "test, record 0"))
    flags = flags_of(encoded)
    images = sum(isinstance(part, Image) for turn in said for part in turn.parts)
    at = encoded.image_at
    assert len(at) == images == int((encoded.tokens == template.own.image_start_id).sum())
    assert (encoded.tokens[at - 1] == template.own.image_start_id).all()
    assert (encoded.tokens[at] == template.own.image_end_id).all()
    assert not flags[at].any()
    assert not flags[at - 1].any()


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(said=turns)
def test_runs_are_the_shortest_table_of_the_flags(templates, objective, said):
    encoded = templates[objective].encode(Document(said, "test, record 0"))
    assert (encoded.tokens.dtype, encoded.run_starts.dtype, encoded.run_flags.dtype) == (np.int32, np.int32, np.uint8)
    assert encoded.image_at.dtype == np.int32
    flags = flags_of(encoded)
    assert len(flags) == len(encoded.tokens)
    starts = [i for i in range(len(flags)) if i == 0 or flags[i] != flags[i - 1]]
    assert encoded.run_starts.tolist() == starts


# Text stays text


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("literal", [*SPECIAL_TOKENS, "</s>", "<s>", "<pad>", "<extra_id_0>"])
def test_a_literal_separator_in_user_text_stays_text(templates, objective, literal):
    template = templates[objective]
    text = f"a{literal}b {literal}"
    encoded = template.encode(conversation(("user", text), ("assistant", literal)))
    plain = template.encode(conversation(("user", "a"), ("assistant", "b")))
    special = set(template.tokenizer.all_special_ids) | {template.end_id}
    structure = [t for t in plain.tokens.tolist() if t in special]
    assert [t for t in encoded.tokens.tolist() if t in special] == structure
    assert text in template.decode(encoded.tokens)
    assert len(encoded.image_at) == 0


@given(tokens_of_text)
def test_decoding_gives_back_what_was_encoded(templates, text):
    template = templates["sft"]
    encoded = template.encode(Document((Turn("document", (Text(text),), True),), "test, record 0"))
    assert template.decode(encoded.tokens) == text
    assert template.decode([*encoded.tokens, template.vocab_size, template.vocab_size + 99, -1]) == text


@given(st.lists(tokens_of_text, min_size=2, max_size=4))
def test_texts_on_both_sides_of_an_image_are_tokenized_apart(templates, texts):
    template = templates["pretrain"]

    def ids(*parts: Part) -> list[int]:
        tokens = template.encode(Document((Turn("document", parts, True),), "test, record 0")).tokens.tolist()
        return tokens[template.bos_id is not None : -1]

    mixed = [part for text in texts for part in (Text(text), PICTURE)]
    separators = [template.own.image_start_id, template.own.image_end_id]
    assert ids(*mixed) == [token for text in texts for token in ids(Text(text)) + separators]


BYTES = Template(load_tokenizer(""), "sft")


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(many=st.lists(turns, max_size=4))
def test_many_documents_at_once_are_each_encoded_as_alone(templates, objective, many):
    template = templates[objective]
    documents = [Document(said, "test, record 0") for said in many]
    for together, document in zip(template.encode_all(documents), documents, strict=True):
        for a, b in zip(together, template.encode(document), strict=True):
            np.testing.assert_array_equal(a, b)


@given(text=st.one_of(tokens_of_text, st.sampled_from(SPECIAL_TOKENS).map(lambda s: f"{s} a</s>{s}")))
def test_a_fast_tokenizer_gives_what_transformers_gives_without_special_tokens(fast_folder, text):
    template = Template(load_tokenizer(fast_folder), "pretrain")
    template.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=1)  # leaves both switched on
    encoded = template.encode(Document((Turn("document", (Text(text),), True),), "test, record 0"))
    reference = template.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert encoded.tokens.tolist() == [template.bos_id, *reference, template.eos_id]


def test_a_tokenizer_with_a_way_of_its_own_is_asked_for_it(fast_folder):
    from transformers import PreTrainedTokenizerFast

    class Own(PreTrainedTokenizerFast):
        def _encode_plus(self, text, **options):
            assert options["split_special_tokens"]
            return super()._encode_plus(text.upper(), **options)

    template = Template(Own.from_pretrained(fast_folder), "pretrain")
    encoded = template.encode(Document((Turn("document", (Text("a cat"),), True),), "test, record 0"))
    assert template.decode(encoded.tokens) == "A CAT"


def test_a_template_pickles(templates):
    for template in templates.values():
        again = pickle.loads(pickle.dumps(template))
        document = conversation(("user", "Who? </s>"), ("assistant", "A cat."))
        np.testing.assert_array_equal(again.encode(document).tokens, template.encode(document).tokens)
        assert again.fingerprint == template.fingerprint


# Prompts


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_prompt_is_the_beginning_of_the_document_it_leads_to(templates, objective):
    template = templates[objective]
    question = Turn("user", (PICTURE, Text("Who?")), False)
    prompt = template.encode_prompt((question,))
    whole = template.encode(Document((question, Turn("assistant", (Text("A cat."),), True)), "test, record 0"))
    count = len(prompt.tokens)
    assert whole.tokens[:count].tolist() == prompt.tokens.tolist()
    assert template.decode(whole.tokens[count:]) == "A cat."
    assert (flags_of(whole)[count:] == TARGET | ANSWER).all()
    assert int(whole.tokens[-1]) in template.stop_ids
    assert prompt.image_at.tolist() == whole.image_at.tolist()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("role", ["document", "assistant"])
def test_a_prompt_that_ends_in_the_models_own_text_stays_open(templates, objective, role):
    template = templates[objective]
    said = Turn(role, (Text("the cat"),), True)
    prompt, whole = template.encode_prompt((said,)), template.encode(Document((said,), "test, record 0"))
    assert whole.tokens[:-1].tolist() == prompt.tokens.tolist()


# The tokenizer


def test_special_tokens_have_ids_of_their_own_below_the_vocabulary_size(templates):
    for template in templates.values():
        ids = template.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
        assert len(set(ids)) == len(SPECIAL_TOKENS)
        assert max(ids) == template.vocab_size - 1
        assert template.end_id in template.stop_ids
        assert template.eos_id in template.stop_ids


def test_a_codebook_that_a_tokenizer_names_stays_where_it_is(tokenizer):
    first = Template(copy.deepcopy(tokenizer), "sft", image_tokens=4)
    first.tokenizer.add_tokens(image_codes(4), special_tokens=True)
    first.tokenizer.add_tokens(["<image>"], special_tokens=True)
    again = Template(copy.deepcopy(first.tokenizer), "sft", image_tokens=4)
    assert again.codebook.offset == first.codebook.offset
    assert again.vocab_size == first.vocab_size + 1
    for size in (3, 5):
        with pytest.raises(UserError, match=rf"image_tokens is {size}, but the tokenizer has a codebook of 4 tokens"):
            Template(copy.deepcopy(first.tokenizer), "sft", image_tokens=size)


def test_a_tokenizer_without_an_end_token_ends_with_ours(fast_folder):
    plain = load_tokenizer(fast_folder)
    plain.eos_token = plain.pad_token = None
    template = Template(plain, "pretrain")
    assert template.eos_id == template.pad_id == template.end_id == plain.convert_tokens_to_ids(END)


def test_the_fingerprint_is_the_same_each_time_and_tells_templates_apart(tokenizer, fast_folder):
    fresh = [Template(copy.deepcopy(tokenizer), objective) for objective in (*OBJECTIVES, "sft")]
    assert fresh[1].fingerprint == fresh[2].fingerprint != fresh[0].fingerprint
    before = fresh[1].fingerprint
    fresh[1].encode(conversation(("user", "Who?")))
    if fresh[1].tokenizer.is_fast:
        fresh[1].tokenizer(["a", "b c"], padding=True, truncation=True, max_length=4)
    assert Template(fresh[1].tokenizer, "sft").fingerprint == before  # added tokens are there already
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens(["another"], special_tokens=True)
    assert Template(extended, "sft").fingerprint != before


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"config\.data\.tokenizer") as caught:
            load_tokenizer(str(folder))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unknown_objective_is_named_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'pretrain'"):
        Template(load_tokenizer(""), "pretraining")
