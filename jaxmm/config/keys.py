"""Every key of a config, in one table: its default, what it is for, and the values it may have.

``configs/base.py`` is the same keys as a recipe, and a test keeps the two in step. What a config lacks, a file of one's
own or the ``config.json`` of an older version's run, is the default; what the table does not have is no key.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxmm.batch import ROLES
from jaxmm.clip_spec import AFTER, SAMPLINGS
from jaxmm.config.address import parse_address
from jaxmm.config.key import Form, Key
from jaxmm.config.shares import (
    parse_mixture,
    parse_names,
    parse_numbers,
    parse_patterns,
    parse_rates,
    parse_schedule,
)

PARTS = ("vision", "connector", "audio", "audio_connector", "decoder")
OWN_PARTS = ("vision", "connector", "decoder")  # of a model that the config has the sizes of
CLIPS = ("video", "audio")  # media that need more of a model than pictures do
WRITERS = ("tensorboard", "wandb")  # of figures, as training/trackers.py has them
DEMOS = ("pictures", *CLIPS)
OBJECTIVES = ("dpo", "ipo", "simpo", "orpo", "kto")  # of preferences, as training/preference.py has them
LARGEST = 2**31 - 1  # steps and pixels are counted in 32 bits

PATTERNS = Form("parts or patterns, comma between them", lambda text, key: parse_patterns(text, key, PARTS))
RATES = Form("pattern:number,pattern:number", lambda text, key: parse_rates(text, key, PARTS))
SHARES = Form("name:share,name:share", parse_mixture)
STAGES = Form("shares [@STEP shares]", lambda text, _: parse_schedule(text))
NUMBERS = Form("name:number,name:number", parse_numbers)
WEIGHTS = Form("name:number,name:number", functools.partial(parse_numbers, least=-1e-9))
COUNTS = Form("name:count,name:count", functools.partial(parse_numbers, least=0.5))

KEYS: dict[str, Key] = {
    "seed": Key(0, "of fresh parameters, the order of data, and jitter", least=0, most=2**63 - 1),
    "steps": Key(560, "batches that the run trains on", least=0, most=LARGEST),
    "epochs": Key(
        0.0, "above 0, the run ends when each source has been seen so often, whatever the steps", least=0, most=1e5
    ),
    "batch_size": Key(8, "rows in a global batch", least=1, most=2**24),
    "seq_len": Key(512, "text and soft tokens in a row", least=2, most=2**24),
    "patch_budget": Key(0, "patches in a row; 0 picks it from the data", least=0, most=2**24),
    "target_budget": Key(0, "predicted tokens in a row; 0 picks it from the data", least=0, most=2**24),
    "accumulation": Key(1, "microbatches a global batch is computed in", least=1, most=2**16),
    "init_from": Key("", "workdir of a run, a model's folder, or vision:DIR,audio:DIR,decoder:DIR (one tower or both)"),
    "objective": Key(
        "", 'of preferences: "dpo", "ipo", "simpo", "orpo", "kto"; "" learns targets, see data.objective',
        choices=("", *OBJECTIVES),
        elsewhere=(
            ("sigmoid", "that is dpo"), ("sft", "leave it out, and set config.data.objective=sft"),
            ("pretrain", "leave it out, and set config.data.objective=pretrain"),
            *((name, "answers are not sampled and judged while it trains") for name in ("ppo", "grpo", "rlhf")),
            *((name, "there is no such loss here; dpo is the nearest") for name in ("hinge", "rm")),
        ),
    ),
    "data.path": Key("", 'dataset_info.json, data file, folder or pattern, or prepared data; "" is the demo'),
    "data.demo": Key(DEMOS[0], 'or "video", "audio": which demo', choices=DEMOS),
    "data.mixture": Key(
        "", 'name:share,name:share (shares of tokens) [@STEP other shares]; "" is all, by size', form=STAGES
    ),
    "data.max_epochs": Key("", "name:epochs,name:epochs; then a source's share goes to the others", form=NUMBERS),
    "data.max_examples": Key("", "name:count,name:count: no more of its examples than these are used", form=COUNTS),
    "data.loss_weight": Key("", "name:weight,name:weight of its targets in the loss; 1 where not named", form=WEIGHTS),
    "data.media_dir": Key("", 'folder that paths of images and clips count from; "" is that of the data'),
    "data.follow_outside": Key(False, "whether records may name files outside the data's folder and media_dir"),
    "data.columns": Key("", '"image=img,video=clip,response=answer": what records hold where; "" is by name'),
    "data.split": Key("", 'of a folder with several; "" is train, and of eval.path validation or test'),
    "data.val_size": Key(
        0.0, 'part of the examples, by a hash of each, kept for an eval.path of "" or data.path', least=0, below=1
    ),
    "data.placeholder": Key("<image>", 'what stands for a picture in a text; "" is nothing, and text is only text'),
    "data.video_placeholder": Key("<video>", "what stands for a video; the same as a picture's where data has either"),
    "data.audio_placeholder": Key("<audio>", "what stands for a recording"),
    "data.bare_placeholder": Key(
        "stop", 'or "text": what one is in a record without its picture or clip',
        choices=("stop", "text"),
    ),
    "data.allow_urls": Key(False, "whether pictures and clips that records name by URL are fetched"),
    "data.url_hosts": Key("", "host,host: addresses of private networks that may be asked too"),
    "data.on_error": Key(
        "stop", 'or "skip": records that make no sense are left out and listed', choices=("stop", "skip")
    ),
    "data.max_skipped": Key(0.05, "part of a source's documents that may be left out; one always may", least=0, most=1),
    "data.drop_image": Key(False, "whether a dead picture or clip leaves its page, or the page is left out"),
    "data.boxes": Key(
        "", 'in "pixels" as resized, "thousandths" of sides, or the way of the "model"; "" leaves texts',
        choices=("", "pixels", "thousandths", "model"),
    ),
    "data.objective": Key(
        "sft", '"sft": assistant turns are targets; "pretrain": all text is', choices=("sft", "pretrain")
    ),
    "data.learn": Key(
        "all", 'answers; or the "last" of a conversation, or with the "prompt", what users say too',
        choices=("all", "last", "prompt"),
    ),
    "data.thinking": Key(
        "learn", 'or "mask": read, not learnt; or "off": left out of data and prompts', choices=("learn", "mask", "off")
    ),
    "data.special_tokens": Key(
        "", 'that data may write: name,name or /pattern/ or "grounding"; others are letters'
    ),
    "data.special_tokens_in": Key(
        "assistant,document", "whose text may: of document, system, user, assistant, tool",
        form=Form("roles, comma between them", lambda text, key: parse_names(text, key, ROLES, "role")),
    ),
    "data.long_documents": Key(
        "split", 'what becomes of those longer than a row: or "truncate", "drop"',
        choices=("split", "truncate", "drop"),
    ),
    "data.jitter": Key(
        -1.0, "part of a side that edges of pictures and frames move, from pass 5 on; -1 is automatic",
        least=0, below=0.5, also=(-1.0,),
    ),
    "data.fast_decode": Key(False, "JPEGs at a smaller scale, for models that start from random weights"),
    "data.image_tokens": Key(0, "size of the codebook of discrete image tokens; 0 is none", least=0, most=2**24),
    "data.predict_image_tokens": Key(False, "whether they are targets where text in their place is"),
    "data.tokenizer": Key("", 'folder of a transformers tokenizer; "" is ByT5\'s bytes'),
    "data.media": Key(
        "", 'beside pictures, that a model from random weights takes: "video,audio"; "" is by its data, or init_from',
        form=Form("media, comma between them", lambda text, key: parse_names(text, key, CLIPS, "medium")),
    ),
    "data.allow_change": Key(False, "go on with other data than the run has seen so far"),
    "data.cache": Key("", 'where prepared data is kept; "" is $XDG_CACHE_HOME/jaxmm'),
    "data.threads": Key(1, "threads that make batches ahead", least=0, most=1024),
    "data.workers": Key(0, "processes that make them, instead of threads", least=0, most=1024),
    "image.patch_size": Key(8, "side of a patch in pixels", least=1, most=1024),
    "image.merge": Key(2, "merge x merge patches become one soft token", least=1, most=64),
    "image.min_pixels": Key(0, "0 is the folder's own, for random weights 48 * 48", least=0, most=LARGEST),
    "image.max_pixels": Key(0, "0 is the folder's own, for random weights 96 * 96", least=0, most=LARGEST),
    "video.frames": Key(0, "frames of a temporal patch; 0 is the folder's own, for random weights 2", least=0, most=64),
    "video.fps": Key(0.0, "frames a second that are taken; 0 is the folder's own, else 2", least=0, most=1000),
    "video.min_frames": Key(0, "fewest frames; 0 is the folder's own, else 4", least=0, most=LARGEST),
    "video.max_frames": Key(0, "most frames; 0 is the folder's own, else 32", least=0, most=LARGEST),
    "video.min_pixels": Key(0, "of a frame; 0 is the folder's own, else that of pictures", least=0, most=LARGEST),
    "video.max_pixels": Key(0, "of a frame; 0 is the folder's own, else that of pictures", least=0, most=LARGEST),
    "video.total_pixels": Key(0, "of all frames together; 0 is the folder's own, else no limit", least=0, most=LARGEST),
    "video.sampling": Key(
        "", 'which frames: "stride", "ends", "even", "steps" or "dynamic"; "" is the family\'s',
        choices=("", *SAMPLINGS),
    ),
    "video.after": Key(
        "", 'text after a video of a Qwen2.5-VL goes on after its largest row or column, or "all" axes',
        choices=("", *AFTER),
    ),
    "audio.sampling_rate": Key(
        0, "samples a second; 0 is the folder's own, else 16000", least=1000, most=10**6, also=(0,)
    ),
    "audio.mels": Key(0, "bands of a log-mel frame; 0 is the folder's own, for random weights 80", least=0, most=4096),
    "audio.pool": Key(0, "tower positions of 20 ms in a soft token; 0 is the folder's own, else 4", least=0, most=1000),
    "audio.chunk": Key(
        0.0, "seconds of a clip that hear each other; 0 is the folder's own, for random weights 30", least=0.1,
        most=3600, also=(0.0,),
    ),
    "audio.max_seconds": Key(
        0.0, "of a clip that are taken, from its start; 0 is all of it", least=0.1, most=1e6, also=(0.0,)
    ),
    "audio.width": Key(96, "of the audio tower's layers", least=4, most=2**17),
    "audio.layers": Key(2, "of the audio tower", least=1, most=1000),
    "audio.heads": Key(3, "of its attention", least=1, most=4096),
    "audio.mlp": Key(288, "width of its MLPs", least=1, most=2**20),
    "vision.width": Key(96, "of the tower's layers", least=1, most=2**17),
    "vision.layers": Key(2, "of the tower", least=1, most=1000),
    "vision.heads": Key(3, "of its attention", least=1, most=4096),
    "vision.mlp": Key(288, "width of its MLPs", least=1, most=2**20),
    "vision.positions": Key(12, "side of the square of position embeddings", least=1, most=4096),
    "connector.mlp": Key(256, "width of its MLP; 0 is one projection", least=0, most=2**20),
    "decoder.width": Key(128, "of the decoder's layers", least=1, most=2**17),
    "decoder.layers": Key(4, "of the decoder", least=1, most=1000),
    "decoder.heads": Key(4, "of its attention", least=1, most=4096),
    "decoder.kv_heads": Key(2, "heads of keys and values, which so many others share", least=1, most=4096),
    "decoder.head_dim": Key(32, "width of a head, an even number", least=2, most=2**14),
    "decoder.mlp": Key(384, "width of its MLPs", least=1, most=2**20),
    "decoder.rope_theta": Key(10000.0, "base of the rotary positions", least=1, most=1e15),
    "decoder.norm_eps": Key(1e-5, "added to squares before norms take their root", least=1e-12, most=0.1),
    "decoder.tie_embeddings": Key(False, "the vocabulary projection is the embedding"),
    "decoder.qk_norm": Key(False, "queries and keys are normed, as Qwen 3's"),
    "optimizer.name": Key(
        "muon", '"muon" for linear maps, AdamW for all else; or "adamw" for everything', choices=("muon", "adamw")
    ),
    "optimizer.rate": Key(4e-3, "the learning rate, at its peak", least=0, most=100),
    "optimizer.warmup": Key(40, "steps in which the rate rises to it", least=0, most=LARGEST),
    "optimizer.schedule": Key("cosine", 'of the rate: or "wsd", "constant"', choices=("cosine", "wsd", "constant")),
    "optimizer.end_factor": Key(0.02, "what part of the rate is left at the end", least=0, most=1),
    "optimizer.decay_fraction": Key(0.2, 'of the steps, for "wsd"', above=0, most=1),
    "optimizer.b1": Key(0.9, "of AdamW; Muon's momentum is 0.95", least=0, most=0.999999),
    "optimizer.b2": Key(0.98, "of AdamW", least=0, most=0.999999),
    "optimizer.weight_decay": Key(0.05, "of matrices, times the rate", least=0, most=100),
    "optimizer.clip": Key(1.0, "largest norm of the whole gradient; 0 does not clip", least=0, most=1e9),
    "optimizer.moments": Key(
        "float32", 'what the moments are held as: or "bfloat16", "float8"', choices=("float32", "bfloat16", "float8")
    ),
    "optimizer.z_loss": Key(1e-4, "weight of the squared log of the vocabulary's normaliser", least=0, most=1),
    "optimizer.balance_loss": Key(
        -1.0, "weight of what keeps the loads of experts even; -1 is the model's own", least=0, most=100,
        also=(-1,),
    ),
    "optimizer.router_z_loss": Key(
        -1.0, "weight of the squared log of the routers' normaliser; -1 is the model's own", least=0, most=100,
        also=(-1,),
    ),
    "optimizer.router_bias_rate": Key(
        0.0, "how far a step moves the bias by which routers choose; 0 leaves it", least=0, most=1
    ),
    "optimizer.freeze": Key(
        "", "parts (vision, connector, audio, audio_connector, decoder) or patterns of paths: decoder.embedding,*.bias",
        form=PATTERNS,
    ),
    "optimizer.rates": Key("", "pattern:multiple of the rate,... ; of several that mean it, the last", form=RATES),
    "optimizer.vision_rate": Key(1.0, "multiple of the rate", least=0, most=1e6),
    "optimizer.connector_rate": Key(1.0, "multiple of the rate", least=0, most=1e6),
    "optimizer.audio_rate": Key(1.0, "multiple of the rate", least=0, most=1e6),
    "optimizer.audio_connector_rate": Key(1.0, "multiple of the rate", least=0, most=1e6),
    "optimizer.decoder_rate": Key(1.0, "multiple of the rate", least=0, most=1e6),
    "adapter.rank": Key(0, "of low-rank adapters; 0 is none: what is not frozen is trained whole", least=0, most=2**16),
    "adapter.alpha": Key(0.0, "the update is scaled by alpha / rank; 0 is twice the rank", least=0, most=1e6),
    "adapter.targets": Key(
        "decoder.blocks",
        "linear maps: patterns of paths, or names of the model's family, as q_proj,v_proj; and the tables "
        "decoder.embedding and decoder.head",
    ),
    "adapter.kind": Key(
        "lora", 'or "rslora" (alpha / root of the rank), "dora"', choices=("lora", "rslora", "dora")
    ),
    "adapter.dropout": Key(0.0, "part of what goes into the factors that is dropped in training", least=0, below=1),
    "adapter.init": Key(
        "", 'of the first factor: "" uniform as PEFT\'s, "gaussian", "pissa"', choices=("", "gaussian", "pissa")
    ),
    "adapter.init_from": Key(
        "", "adapters to go on from: a PEFT folder, or a run (RUN@STEP) of the same model"
    ),
    "adapter.base_dtype": Key(
        "", 'what frozen weights are held as: "" float32, "bfloat16", "int8", "nf4" (QLoRA)',
        choices=("", "bfloat16", "int8", "nf4"),
    ),
    "adapter.modules_to_save": Key(
        "", "what is trained whole beside adapters: parts or patterns, as connector", form=PATTERNS
    ),
    "preference.beta": Key(
        0.0, "how little the model may leave the reference; 0 is 0.1, of simpo 2", least=0, most=1e4
    ),
    "preference.margin": Key(0.0, "of simpo, gamma: what the chosen answer is to be ahead; 0 is 1", least=0, most=1e4),
    "preference.label_smoothing": Key(
        0.0, "of dpo and simpo, part of the pairs that may be the other way round", least=0, below=0.5
    ),
    "preference.sft": Key(
        0.0, "weight of the chosen answer's own loss, a mean over its tokens, which is added", least=0, most=1e4
    ),
    "preference.length_normalised": Key(
        False, "of dpo and kto, whether an answer counts by the mean over its tokens, as of the others always"
    ),
    "preference.reference": Key(
        "", 'what is beneath the adapters; or "asked": once, by `jaxmm reference`, as where more than they learn',
        choices=("", "asked"),
    ),
    "preference.wanted": Key(1.0, "of kto, weight of answers that people want", least=0, most=1e4),
    "preference.unwanted": Key(1.0, "of kto, weight of those that they do not", least=0, most=1e4),
    "compute.dtype": Key(
        "", 'of activations; "" is bfloat16, on most CPUs float32', choices=("", "float32", "bfloat16")
    ),  # float16 would need a scaled loss
    "compute.matmul": Key(
        "", 'what linear maps of layers multiply in: "" is compute.dtype, or "fp8"', choices=("", "fp8"),
        elsewhere=(
            ("float8", "that is fp8"), ("bf16", "leave it out, and set config.compute.dtype=bfloat16"),
            ("bfloat16", "leave it out, and set config.compute.dtype=bfloat16"),
            *((name, "fp8 is what there is") for name in ("mxfp8", "nvfp4", "int8")),
        ),
    ),
    "compute.attention": Key(
        "",
        'best of "blocks", "splash" (TPUs), "fused" (GPUs); or hopper, tokamax, flash3',
        choices=("", "blocks", "splash", "fused", "hopper", "tokamax", "flash3"),
    ),
    "compute.remat": Key(
        "none", 'what is computed again in the backward pass: or "dots", "offload", "full"',
        choices=("none", "dots", "offload", "full"),
    ),
    "compute.unroll": Key(
        0, "layers a scan iteration runs; 0 is all of them on CPU, 1 elsewhere", least=0, most=1000
    ),
    "mesh.data": Key(-1, "-1 takes the devices the others leave", least=1, most=2**20, also=(-1,)),
    "mesh.fsdp": Key(1, "devices that share parameters, and rows of a batch", least=1, most=2**20, also=(-1,)),
    "mesh.expert": Key(1, "devices that share experts, and rows of a batch", least=1, most=2**20, also=(-1,)),
    "mesh.tensor": Key(1, "devices that share matrices", least=1, most=2**20, also=(-1,)),
    "mesh.context": Key(1, "devices that share a row", least=1, most=2**20, also=(-1,)),
    "eval.path": Key("", 'held-out data, in the same way as data.path; "" is the demo\'s, for the demo'),
    "eval.mixture": Key("", "which of its sources", form=SHARES),
    "eval.split": Key("", "as data.split"),
    "eval.every": Key(280, "steps; 0 is only at the end", least=0, most=LARGEST),
    "eval.examples": Key(1000, "at most, of each source", least=1, most=LARGEST),
    "checkpoint.every": Key(280, "steps", least=0, most=LARGEST),
    "checkpoint.keep": Key(2, "newest ones", least=1, most=LARGEST),
    "checkpoint.keep_best": Key(1, "by evaluation loss", least=0, most=LARGEST),
    "checkpoint.near_every": Key(
        0, "steps from one near checkpoint, on each node, to the next; 0 is none", least=0, most=LARGEST
    ),
    "checkpoint.near_dir": Key("", 'folder on the node, such as a RAM disk; "" is in the temporary one'),
    "monitor.attention_every": Key(
        0, "steps from one look at attention to the next; 0 is at evaluations, -1 never", least=1, most=LARGEST,
        also=(0, -1),
    ),
    "monitor.queries": Key(128, "target positions of a row that are looked at", least=1, most=LARGEST),
    "monitor.heatmaps": Key(
        8, "held-out samples of a source with maps of attention, drawn at evaluations; 0 is none", least=0, most=LARGEST
    ),
    "log.every": Key(15, "steps", least=0, most=LARGEST),
    "log.writers": Key(
        "tensorboard", "trackers that get the figures of metrics.jsonl: tensorboard, wandb",
        form=Form("names, comma between them", lambda text, key: parse_names(text, key, WRITERS, "writer")),
    ),
    "log.tensorboard": Key(True, "False takes tensorboard out of log.writers"),
    "log.prometheus": Key(
        "", 'PORT or HOST:PORT at which the first process serves its figures to Prometheus; "" is nowhere',
        form=Form("PORT or HOST:PORT", parse_address),
    ),
}  # fmt: skip


def flat(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested groups by their dotted keys; lists, which JSON has for tuples, as tuples."""
    by_key: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            by_key |= flat(value, f"{prefix}{name}.")
        else:
            by_key[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
    return by_key


def completed(values: Mapping[str, Any], keys: Mapping[str, Key] = KEYS) -> dict[str, Any]:
    """What a run of before was given, by dotted keys: what it lacks is the default, numbers are of their keys' types.

    Keys and values that this version does not know stay as they are.
    """
    whole = {name: key.default for name, key in keys.items()} | flat(values)
    for name in keys:
        try:
            whole[name] = keys[name].settled(whole[name])
        except ValueError:
            continue
    return whole


def same_end(name: str) -> str:
    """``"; did you mean 'x'?"`` for the key whose last name a mistaken one has too, or ''."""
    same = [key for key in KEYS if key.split(".")[-1] == name.split(".")[-1]]
    return f"; did you mean '{same[0]}'?" if same else ""
