"""Rows of the benchmark: raw files to the first batch, and preparing text beside the tokenizer's own speed."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.media import HEIGHT, QUALITY, WIDTH, encoded
from benchmarks.row import Measured, Row, Settings
from jaxmm import command
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.sources import read_sources
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.measure.pictures import natural
from jaxmm.measure.timing import Figure, in_turns

ROOT = Path(__file__).resolve().parents[2]
RECORDS = 1000
PICTURES = 40  # different ones, each in many files: drawing them takes longer than all that is measured
DOCUMENTS = 16_000
WORDS, VOCABULARY = 20_000, 8_000  # of the text; of the tokenizer trained on it


def first_batch(settings: Settings) -> Measured:
    """All between a config that names raw files and the first batch, with an empty cache each time."""
    from jaxmm.corpus import make_assembler, make_plan, read_budgets
    from jaxmm.recipe import read_data, train_corpus

    load_tokenizer("")  # imports what tokenizers need
    folder = Path(settings.folder)
    path = chats(folder / "raw", settings.count(RECORDS), settings.seed)
    seconds: dict[str, list[float]] = {"raw files to batch": [], "to the index": []}
    for i in range(settings.repeats):
        data_flags = {"path": path, "mixture": "chats", "cache": folder / str(i)}
        flags = [f"--config.data.{key}={value}" for key, value in data_flags.items()]
        config = command.parse([f"--config={ROOT / 'configs/base.py'}", *flags], {}).config
        began = time.perf_counter()
        data = read_data(config)
        corpus = train_corpus(config, data)
        seconds["to the index"].append(time.perf_counter() - began)
        budgets = read_budgets(config, corpus)
        plan = make_plan(config, corpus, budgets)
        loaded = make_assembler(config, data.image, corpus, budgets)(plan.batch(0))
        seconds["raw files to batch"].append(time.perf_counter() - began)
    images = int((loaded.batch.grids_BM3[..., 0] > 0).sum())
    return Measured(
        {name: Figure(samples, "s") for name, samples in seconds.items()},
        [
            f"the first batch has {config.batch_size} rows of {config.seq_len} tokens with {images} images; imports "
            f"and the process's start are not counted; the first sample has what else is done once in a process"
        ],
    )


def chats(folder: Path, records: int, seed: int) -> Path:
    """A dataset_info.json with sharegpt conversations of one picture each, as LLaMA-Factory takes it."""
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True)
    files = [encoded(natural(HEIGHT, WIDTH, rng), "JPEG", quality=QUALITY) for _ in range(min(PICTURES, records))]
    words = list(itertools.islice(pseudo_words(rng), 2000))
    content = []
    for i in range(records):
        (folder / f"pictures/{i}.jpg").write_bytes(files[i % len(files)])
        question, answer = (" ".join(rng.choice(words, int(rng.lognormal(mean, 0.8)) + 1)) for mean in (2, 3.5))
        turns = [{"from": "human", "value": f"<image>{question}?"}, {"from": "gpt", "value": f"{answer}."}]
        content.append({"conversations": turns, "images": [f"pictures/{i}.jpg"]})
    (folder / "chats.json").write_text(json.dumps(content))
    entry = {"file_name": "chats.json", "formatting": "sharegpt", "columns": {"images": "images"}}
    (folder / "dataset_info.json").write_text(json.dumps({"chats": entry}))
    return folder / "dataset_info.json"


def prepare_text(settings: Settings) -> Measured:
    """Reading, tokenizing, writing and indexing text, against tokenizing it alone, both on all cores."""
    folder = Path(settings.folder)
    texts = list(documents(settings.count(DOCUMENTS), settings.seed))
    tokenizer = load_tokenizer(trained_tokenizer(folder / "tokenizer", texts))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (source,) = read_sources(str(folder / "text.jsonl"), [])
    template = Template(tokenizer, "pretrain")
    backend = tokenizer.backend_tokenizer
    caches = (folder / f"cache{i}" for i in itertools.count())
    made: list[Path] = []
    seconds = in_turns(
        {
            "prepare": lambda: made.append(prepare(source, template, next(caches))),
            "encode_batch": lambda: backend.encode_batch(texts, add_special_tokens=False),
        },
        settings.repeats,
    )
    size = sum(len(text.encode()) for text in texts) / 1e6
    rates = {name: [size / each for each in samples] for name, samples in seconds.items()}
    tokens = int(Prepared(made[-1]).tokens_E.sum())
    ratio = [a / b for a, b in zip(rates["prepare"], rates["encode_batch"], strict=True)]
    return Measured(
        {"prepare / encode_batch": Figure(ratio, ""), **{n: Figure(s, "MB/s") for n, s in rates.items()}},
        [f"{size:.1f} MB, {tokens / 1e6:.2f} million tokens, a vocabulary of {template.vocab_size}"],
    )


def pseudo_words(rng: np.random.Generator) -> Iterator[str]:
    """Words of one to four syllables, without end."""
    onsets = [*"bcdfghlmnprstv", "st", "tr", "pl"]
    syllables = [onset + vowel + coda for onset in onsets for vowel in "aeiou" for coda in ("", "", *"nrst")]
    while True:
        yield "".join(rng.choice(syllables, int(rng.integers(1, 5))))


def documents(count: int, seed: int) -> Iterator[str]:
    """Sentences of words whose frequency falls as 1 / rank; lengths lognormal (mean 200 words, sigma 0.8)."""
    rng = np.random.default_rng(seed)
    words = np.array(list(itertools.islice(pseudo_words(rng), WORDS)))
    chance = np.cumsum(1 / np.arange(1, WORDS + 1))
    for length in np.rint(rng.lognormal(np.log(200) - 0.8**2 / 2, 0.8, count)).astype(int).clip(1):
        drawn = words[np.searchsorted(chance, rng.random(length) * chance[-1])].tolist()
        yield " ".join(f"{word}." if i % 12 == 11 else word for i, word in enumerate(drawn)).capitalize()


def trained_tokenizer(folder: Path, texts: list[str]) -> str:
    """A byte-level BPE tokenizer trained on some of the texts, in a folder that ``transformers`` loads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[:2000], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(str(folder))
    return str(folder)


ROWS = [
    Row(
        "first_batch",
        f"{RECORDS:,} sharegpt records of a dataset_info.json, each with a JPEG of {WIDTH} x {HEIGHT} (of {PICTURES} "
        f"pictures with the spectrum of photographs), lognormal questions and answers; configs/base.py",
        {"raw files to batch": "<= 1"},
        first_batch,
    ),
    Row(
        "prepare_text",
        f"{DOCUMENTS:,} lines of JSON with made-up words, frequencies as 1 / rank, lengths lognormal (mean 200 words, "
        f"sigma 0.8); a byte-level BPE of {VOCABULARY:,} trained on it",
        {"prepare / encode_batch": ">= 0.8"},
        prepare_text,
    ),
]
