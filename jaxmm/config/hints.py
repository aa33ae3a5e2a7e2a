"""What other programs call a key, and what does it here: for flags, config files and Python alike.

Names are those of LLaMA-Factory, Hugging Face's Trainer, TRL, LLaVA and torchtitan. A hint is a sentence's rest, and
names keys as ``config.GROUP.KEY``. It never names a key that only sounds like the one that was meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from jaxmm.config.keys import KEYS, same_end
from jaxmm.errors import nearest

_RATE = "use config.optimizer.rate"
_PART_RATE = "is a multiple of config.optimizer.rate, not a rate"
_STEPS = "use config.steps"
_EPOCHS = "use config.epochs; above 0 it counts in place of config.steps"
_ROWS = (
    "use config.batch_size: packed rows of the whole batch, over all devices and with all that config.accumulation "
    "splits"
)
_SPLIT = "use config.accumulation: it splits config.batch_size, and does not multiply it"
_LENGTH = "use config.seq_len, positions of a packed row; config.data.long_documents says what becomes of longer texts"
_TEMPLATE = "leave it out: the chat template is that of the folder in config.init_from or config.data.tokenizer"
_WARMUP = "use config.optimizer.warmup"
_DTYPE = "use config.compute.dtype=bfloat16; '' is bfloat16 but on most CPUs, and there is no float16"
_FP8 = "use config.compute.matmul=fp8: inputs and kernels in e4m3, gradients in e5m2, a scale a row"
_FOLDER = "use --workdir"
_MODEL = "use config.init_from: a Hugging Face folder on this machine, or the workdir of a run"
_TOKENIZER = "use config.data.tokenizer, or the folder in config.init_from, which has one"
_DATASET = "use config.data.path=dataset_info.json and config.data.mixture=name:share,name:share"
_MIXTURE = "use config.data.mixture=name:share,name:share, in shares of tokens"
_PACKING = "leave it out: rows are always packed, and documents in a row never see each other"
_EVAL_EVERY = "use config.eval.every, in steps"
_SAVE_EVERY = "use config.checkpoint.every, in steps"
_NEAR = "use config.checkpoint.near_every, in steps"
_BEST = "use config.checkpoint.keep_best, and --step=best where a run is read"
_WORKERS = "use config.data.workers (processes) or config.data.threads"
_MESH = "use config.mesh.fsdp=-1 with config.mesh.data=1: parameters and moments are sharded over all devices"
_ATTENTION = "leave it out, or use config.compute.attention: '' is the best backend there is"
_REMAT = "use config.compute.remat: dots, offload or full"
_RESUME = "leave it out: the same --workdir goes on by itself"
_TRACKER = "use config.log.writers: tensorboard, wandb or both; metrics.jsonl in the workdir has the same"
_REFERENCE = (
    "leave it out: the reference is the model beneath the adapters, or, where whole weights learn, config.init_from, "
    "which `jaxmm reference` asks once"
)
_FROZEN = "use config.optimizer.freeze, with patterns of what does not learn"
_LORA = "use config.adapter.rank above 0, for low-rank adapters; 0 trains whole parts"
_QUANTIZED = (
    "use config.adapter.base_dtype, with adapters: nf4 for 4 bits (QLoRA), int8 for 8; weights that learn are not "
    "quantized"
)
_NF4 = "leave it out: config.adapter.base_dtype=nf4 is the only format of 4 bits, and its constants are quantized too"
_UPLOAD = "use `jaxmm export`, and upload its folder"
_PREPARED = "use config.data.path with a folder that `jaxmm prepare` has written"

HINTS: dict[str, str] = {
    "learning_rate": _RATE, "lr": _RATE, "max_lr": _RATE, "peak_lr": _RATE,
    "min_lr": "use config.optimizer.end_factor, a part of config.optimizer.rate",
    "lr_min": "use config.optimizer.end_factor, a part of config.optimizer.rate",
    "vision_lr": f"config.optimizer.vision_rate {_PART_RATE}",
    "vision_tower_lr": f"config.optimizer.vision_rate {_PART_RATE}",
    "mm_projector_lr": f"config.optimizer.connector_rate {_PART_RATE}",
    "merger_lr": f"config.optimizer.connector_rate {_PART_RATE}",
    "lr_scheduler_type": "use config.optimizer.schedule: cosine, wsd or constant",
    "lr_scheduler": "use config.optimizer.schedule: cosine, wsd or constant",
    "lr_scheduler_kwargs": "use config.optimizer.end_factor and config.optimizer.decay_fraction",
    "warmup_steps": _WARMUP, "num_warmup_steps": _WARMUP,
    "warmup_ratio": f"{_WARMUP}, in steps: the ratio times config.steps",
    "optim": "use config.optimizer.name: muon or adamw",
    "adam_beta1": "use config.optimizer.b1", "beta1": "use config.optimizer.b1",
    "adam_beta2": "use config.optimizer.b2", "beta2": "use config.optimizer.b2",
    "adam_epsilon": "leave it out: it is 1e-8",
    "max_grad_norm": "use config.optimizer.clip", "grad_clip": "use config.optimizer.clip",
    "gradient_clipping": "use config.optimizer.clip",
    "num_train_epochs": _EPOCHS, "num_epochs": _EPOCHS,
    "max_steps": _STEPS, "num_train_steps": _STEPS, "train_steps": _STEPS, "total_steps": _STEPS,
    "per_device_train_batch_size": _ROWS, "train_batch_size": _ROWS, "global_batch_size": _ROWS,
    "micro_batch_size": f"{_ROWS} into microbatches",
    "per_device_eval_batch_size": "leave it out: an evaluation's rows are as many as config.batch_size",
    "gradient_accumulation_steps": _SPLIT, "accumulation_steps": _SPLIT,
    "cutoff_len": _LENGTH, "max_seq_length": _LENGTH, "max_seq_len": _LENGTH, "max_length": _LENGTH,
    "model_max_length": _LENGTH, "block_size": _LENGTH, "sequence_length": _LENGTH,
    "template": _TEMPLATE, "chat_template": _TEMPLATE,
    "fp8": _FP8, "fp8_format": _FP8, "fp8_recipe": _FP8, "enable_float8_linear": _FP8, "use_qwix_quantization": _FP8,
    "bf16": _DTYPE, "fp16": _DTYPE, "pure_bf16": _DTYPE, "torch_dtype": _DTYPE, "mixed_precision": _DTYPE,
    "output_dir": _FOLDER, "work_dir": _FOLDER, "logging_dir": f"{_FOLDER}: all of a run is in one folder",
    "overwrite_output_dir": "give another --workdir: a run never overwrites one",
    "run_name": f"{_FOLDER}, which names the run",
    "model_name_or_path": _MODEL, "model_name": _MODEL, "model_path": _MODEL, "pretrained_model": _MODEL,
    "tokenizer_name": _TOKENIZER, "tokenizer_path": _TOKENIZER, "tokenizer_name_or_path": _TOKENIZER,
    "trust_remote_code": "leave it out: no code of a folder is ever run",
    "export_dir": "use `jaxmm export --output`, with --merge for a whole model",
    "hub_model_id": _UPLOAD, "push_to_hub": _UPLOAD,
    "dataset": _DATASET, "dataset_name": _DATASET, "train_file": "use config.data.path",
    "dataset_dir": "use config.data.path: the folder, or its dataset_info.json", "data_path": "use config.data.path",
    "image_folder": "use config.data.media_dir",
    "dataset_text_field": "use config.data.columns, such as text=content",
    "mix_strategy": _MIXTURE, "interleave_probs": _MIXTURE,
    "max_samples": "use config.data.max_examples=name:count,name:count",
    "tokenized_path": _PREPARED, "streaming": _PREPARED,
    "overwrite_cache": "leave it out: data that has changed is prepared again; config.data.cache says where",
    "preprocessing_num_workers": "use `jaxmm prepare --workers`: train takes one process a core for large data",
    "dataset_num_proc": "use `jaxmm prepare --workers`: train takes one process a core for large data",
    "dataloader_num_workers": _WORKERS, "num_workers": _WORKERS,
    "packing": _PACKING, "neat_packing": _PACKING, "group_by_length": _PACKING,
    "eval_dataset": "use config.eval.path, and config.eval.mixture for some of its sources",
    "validation_file": "use config.eval.path",
    "do_eval": _EVAL_EVERY, "eval_strategy": _EVAL_EVERY, "evaluation_strategy": _EVAL_EVERY,
    "eval_steps": _EVAL_EVERY, "eval_interval": _EVAL_EVERY,
    "save_steps": _SAVE_EVERY, "save_strategy": _SAVE_EVERY, "save_interval": _SAVE_EVERY,
    "save_total_limit": "use config.checkpoint.keep",
    "enable_emergency_checkpoint": _NEAR, "local_checkpoint_period": _NEAR,
    "local_checkpoint_directory": "use config.checkpoint.near_dir",
    "load_best_model_at_end": _BEST, "metric_for_best_model": _BEST,
    "logging_steps": "use config.log.every", "log_interval": "use config.log.every",
    "report_to": _TRACKER, "use_wandb": _TRACKER,
    "plot_loss": "leave it out: curves.png in the workdir has the losses",
    "image_max_pixels": "use config.image.max_pixels", "image_min_pixels": "use config.image.min_pixels",
    "video_max_pixels": "use config.video.max_pixels, of a frame",
    "video_min_pixels": "use config.video.min_pixels, of a frame",
    "video_fps": "use config.video.fps",
    "video_maxlen": "use config.video.max_frames",
    "audio_sampling_rate": "use config.audio.sampling_rate",
    "use_audio_in_video": "a video's sound track is a recording of the same file: name it in audios too, with <audio>",
    "freeze_vision_tower": "use config.optimizer.freeze=vision",
    "freeze_multi_modal_projector": "use config.optimizer.freeze=connector",
    "freeze_language_model": "use config.optimizer.freeze=decoder",
    "tune_mm_vision": "use config.optimizer.freeze, which names the parts that do not learn",
    "tune_mm_mlp": "use config.optimizer.freeze, which names the parts that do not learn",
    "tune_mm_llm": "use config.optimizer.freeze, which names the parts that do not learn",
    "train_mm_proj_only": "use config.optimizer.freeze=vision,decoder",
    "finetuning_type": "use config.adapter.rank: above 0 for lora, 0 for full; for freeze config.optimizer.freeze, "
    "which names what does not learn",
    "freeze_trainable_layers": "use config.optimizer.freeze for whole parts or patterns: layers of a part lie in one "
    "array, and learn or not together",
    "freeze_trainable_modules": _FROZEN, "freeze_extra_modules": _FROZEN,
    "lora_rank": _LORA, "lora_r": _LORA, "use_peft": _LORA,
    "adapter_name_or_path": "use config.adapter.init_from; of preferences config.init_from, with the run or a "
    "merged model",
    "create_new_adapter": "use config.init_from with the run, whose adapters are merged, and config.adapter.rank for "
    "new ones",
    "lora_alpha": "use config.adapter.alpha", "lora_dropout": "use config.adapter.dropout",
    "lora_target": "use config.adapter.targets: the same names, or decoder.blocks for all maps of the decoder",
    "lora_target_modules": "use config.adapter.targets: the same names, or decoder.blocks for all maps of the decoder",
    "target_modules": "use config.adapter.targets: the same names, or decoder.blocks for all maps of the decoder",
    "additional_target": "use config.adapter.modules_to_save", "use_rslora": "use config.adapter.kind=rslora",
    "use_dora": "use config.adapter.kind=dora", "pissa_init": "use config.adapter.init=pissa",
    "pissa_iter": "leave it out: config.adapter.init=pissa takes the exact singular values",
    "pissa_convert": "leave it out: `jaxmm export` writes adapters for the model as it was released",
    "loraplus_lr_ratio": "use config.optimizer.rates=*.lora.out:RATIO",
    "quantization_bit": _QUANTIZED, "load_in_4bit": _QUANTIZED, "load_in_8bit": _QUANTIZED,
    "stage": "use config.data.objective: sft, or pretrain for all text; of preferences config.objective: dpo or kto; "
    "rewards are not trained",
    "pref_beta": "use config.preference.beta", "kto_beta": "use config.preference.beta",
    "pref_loss": "use config.objective: sigmoid is dpo; ipo, orpo and simpo are as they are; kto has judged answers",
    "dpo_beta": "use config.preference.beta", "dpo_label_smoothing": "use config.preference.label_smoothing",
    "dpo_ftx": "use config.preference.sft", "pref_ftx": "use config.preference.sft",
    "kto_ftx": "use config.preference.sft",
    "simpo_gamma": "use config.preference.margin, whose 0 means 1: for no margin set a tiny one",
    "orpo_beta": "use config.preference.beta",
    "kto_chosen_weight": "use config.preference.wanted", "kto_rejected_weight": "use config.preference.unwanted",
    "desirable_weight": "use config.preference.wanted", "undesirable_weight": "use config.preference.unwanted",
    "loss_type": "use config.objective: dpo, ipo, simpo, orpo or kto",
    "rpo_alpha": "use config.preference.sft",
    "pref_bco_weight": "leave it out: BCO is none of the losses of config.objective",
    "ref_adapter_name": _REFERENCE, "ref_model_quantization_bit": _REFERENCE,
    "ref_model": _REFERENCE, "ref_model_adapters": _REFERENCE, "precompute_ref_log_probs": _REFERENCE,
    "quantization_type": _NF4, "double_quantization": _NF4, "bnb_4bit_quant_type": _NF4,
    "bnb_4bit_use_double_quant": _NF4, "bnb_4bit_compute_dtype": _DTYPE,
    "quantization_method": "leave it out: config.adapter.base_dtype=nf4 and int8 are the formats of bitsandbytes",
    "train_on_prompt": "use config.data.learn=prompt", "mask_history": "use config.data.learn=last",
    "assistant_only_loss": "leave it out: config.data.objective=sft learns the assistant's turns alone",
    "completion_only_loss": "leave it out: config.data.objective=sft learns the assistant's turns alone",
    "enable_thinking": "use config.data.thinking: learn, mask or off",
    "resume_from_checkpoint": _RESUME, "resume": _RESUME,
    "deepspeed": _MESH, "fsdp_config": _MESH, "zero_stage": _MESH,
    "data_parallel_shard_degree": "use config.mesh.fsdp", "data_parallel_replicate_degree": "use config.mesh.data",
    "tensor_parallel_degree": "use config.mesh.tensor", "tensor_parallel_size": "use config.mesh.tensor",
    "expert_parallel_degree": "use config.mesh.expert", "expert_parallel_size": "use config.mesh.expert",
    "context_parallel_degree": "use config.mesh.context", "sequence_parallel_size": "use config.mesh.context",
    "flash_attn": _ATTENTION, "attn_implementation": _ATTENTION,
    "gradient_checkpointing": _REMAT, "activation_checkpoint": _REMAT,
    "disable_gradient_checkpointing": "leave it out, as config.compute.remat=none is the default",
    "data_seed": "use config.seed",
    "max_new_tokens": "use --max_tokens of `jaxmm generate`",
    "do_train": "leave it out: the command says what is done",
    "do_predict": "use `jaxmm generate --prompts`",
}  # fmt: skip


def hint(name: str) -> str:
    """What to do in place of a mistaken key or flag that others have, or ''; one nearly so spelled counts."""
    last = name.split(".")[-1].lower().replace("-", "_")
    if name in KEYS or last in HINTS:
        return HINTS.get(last, "")
    close = difflib.get_close_matches(last, HINTS, n=1, cutoff=0.88)
    if close and not difflib.get_close_matches(last, [key.split(".")[-1] for key in KEYS], n=1, cutoff=0.88):
        return HINTS[close[0]]
    return ""


def advice(name: str, known: Iterable[str] = KEYS) -> str:
    """What follows "unknown config key 'NAME'": a hint, else the nearest of ``known``; '' where there is none."""
    if suggestion := hint(name):
        return f": {suggestion}"
    by_end = {key.split(".")[-1]: key for key in known}
    close = difflib.get_close_matches(name.split(".")[-1], by_end, n=1, cutoff=0.8)
    return same_end(name) or nearest(name, known) or nearest(by_end[close[0]] if close else "", known)
