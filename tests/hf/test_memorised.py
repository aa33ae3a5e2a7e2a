"""Trained and asked is one sequence: what a run has learnt by heart it says, and so does its export.

One run a family, on three answers: the data's answer, what ``generate`` prints and what ``transformers`` writes from
the exported folder are one text, and ``evaluate`` counts them all right.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import small_run
import tokenizers
from made_folders import CHAT, folder_of

from jaxmm import evaluate, export, generate, train

ANSWERS = {"One?": "a red fox", "Two?": "two dogs", "Three?": "Three pictures"}
CHATML = "<|im_start|>{{ message.role }}\n{{ text.value }}<|im_end|>\n", "<|im_start|>assistant\n"
# What a turn is written as, and the generation prompt; each as its family's.
TURNS = {
    "siglip2 + llama": CHATML,
    "qwen3": (  # with Qwen 3's empty block of thinking
        "<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' and loop.last %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ text.value }}<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "llava, clip": ("{{ message.role.upper() }}: {{ text.value }} ", "ASSISTANT:"),  # which ends no answer
    "qwen2.5-vl": CHATML,
    "qwen3-vl": CHATML,
    "gemma3": (
        "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n{{ text.value | trim }}"
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
}
IMAGE_MARKS = {
    "llava, clip": "<image>\n", "qwen2.5-vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3-vl": "<|vision_start|><|image_pad|><|vision_end|>", "gemma3": "<start_of_image>",
}  # fmt: skip
CHOSEN = ("llava, clip", "gemma3")  # without an end of answers, and with one
SPECIAL = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")
SETTINGS = (
    "--config.steps=80", "--config.optimizer.warmup=5", "--config.optimizer.rate=4e-3", "--config.batch_size=8",
    "--config.seq_len=64", "--config.log.every=20", "--config.eval.every=0", "--config.checkpoint.every=1000",
    "--config.log.tensorboard=False", "--config.optimizer.freeze=vision", "--config.optimizer.schedule=constant",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("whole_transformers")


def chat_template(name: str) -> str:
    if name == "internvl":
        return CHAT
    turn, prompt = TURNS[name]
    mark = IMAGE_MARKS.get(name, "<image>")
    return (
        "{% for message in messages %}{% set text = namespace(value='') %}{% if message.content is string %}"
        "{% set text.value = message.content %}{% else %}{% for part in message.content %}{% set text.value = "
        "text.value + ('" + mark.replace("\n", "\\n") + "' if part.type == 'image' else part.text) %}{% endfor %}"
        "{% endif %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + prompt + "{% endif %}"
    )  # fmt: skip


def started_from(name: str, folder: Path) -> Path:
    """A family's folder of random weights, whose tokenizer has a chat template like the family's."""
    import transformers

    made = folder_of(name, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    if name != "internvl":
        tokenizer.add_tokens([word for word in SPECIAL if word not in tokenizer.get_vocab()], special_tokens=True)
        thinking = [tokenizers.AddedToken(word, special=False, normalized=False) for word in ("<think>", "</think>")]
        tokenizer.add_tokens(thinking)
        tokenizer.chat_template = chat_template(name)
        tokenizer.save_pretrained(made)
    return made


def memorised(name: str, tmp_path: Path) -> Path:
    """A run that has learnt the answers by heart."""
    said = [(("user", question), ("assistant", answer)) for question, answer in ANSWERS.items()]
    records = [{"messages": [{"role": r, "content": c} for r, c in turns]} for turns in said]
    data = tmp_path / "said.json"
    data.write_text(json.dumps(records))
    start = started_from(name, tmp_path / "folder")
    run = tmp_path / "run"
    places = [f"--config.data.path={data}", f"--config.eval.path={data}", f"--config.data.cache={tmp_path / 'cache'}"]
    arguments = [f"--config={small_run.ROOT / 'configs/base.py'}", *SETTINGS, *places, f"--config.init_from={start}"]
    assert train.main([*arguments, f"--workdir={run}"]) == 0
    return run


def asked(run: Path, tmp_path: Path, capsys) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": q}) for q in ANSWERS))
    capsys.readouterr()
    assert generate.main([f"--workdir={run}", f"--prompts={prompts}", "--max_tokens=40"]) == 0
    return [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]


def written_by_transformers(folder: Path) -> list[str]:
    import torch
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = []
    for question in ANSWERS:
        asked = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )  # fmt: skip
        with torch.no_grad():
            found = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        answer = tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(answer.replace("<think>\n\n</think>\n\n", "").strip(" "))
    return answers


def check(name: str, tmp_path: Path, capsys) -> Path:
    run = memorised(name, tmp_path)
    assert evaluate.main([f"--workdir={run}"]) == 0
    assert json.loads((run / "eval.json").read_text())["said"]["answer_accuracy"] == 1.0
    assert asked(run, tmp_path, capsys) == list(ANSWERS.values())
    return run


@pytest.mark.slow
def test_what_is_learnt_by_heart_is_said(tmp_path, capsys):
    check("qwen3", tmp_path, capsys)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in CHOSEN else pytest.mark.full) for name in (*TURNS, "internvl")],
)
def test_what_is_learnt_by_heart_is_said_by_the_export_too(name, tmp_path, capsys):
    assert importlib.util.find_spec("torch")
    run = check(name, tmp_path, capsys)
    assert export.main([f"--workdir={run}", f"--output={tmp_path / 'out'}"]) == 0
    assert written_by_transformers(tmp_path / "out") == list(ANSWERS.values())
