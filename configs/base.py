"""The embedded default: a small vision-language model from random weights, on the demo or your own data, in minutes."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 560
    config.epochs = 0.0  # above 0, the run ends when each source has been seen so often, whatever the steps
    config.batch_size = 8  # rows in a global batch
    config.seq_len = 512  # text and soft tokens in a row
    config.patch_budget = 0  # patches in a row; 0 picks it from the data
    config.target_budget = 0  # predicted tokens in a row; 0 picks it from the data
    config.accumulation = 1  # microbatches a global batch is computed in
    config.objective = ""  # of preferences: "dpo", "ipo", "simpo", "orpo", "kto"; "" learns targets, see data.objective
    config.init_from = ""  # workdir of a run, a model's folder, or vision:DIR,audio:DIR,decoder:DIR (one tower or both)

    config.data = ConfigDict()
    config.data.path = ""  # dataset_info.json, data file, folder or pattern, or prepared data; "" is the demo
    config.data.demo = "pictures"  # or "video", "audio": which demo
    config.data.mixture = ""  # name:share,name:share (shares of tokens) [@STEP other shares]; "" is all, by size
    config.data.max_epochs = ""  # name:epochs,name:epochs; then a source's share goes to the others
    config.data.max_examples = ""  # name:count,name:count: no more of its examples than these are used
    config.data.loss_weight = ""  # name:weight,name:weight of its targets in the loss; 1 where not named
    config.data.media_dir = ""  # folder that paths of images and clips count from; "" is that of the data
    config.data.follow_outside = False  # whether records may name files outside the data's folder and media_dir
    config.data.columns = ""  # "image=img,video=clip,response=answer": what records hold where; "" is by name
    config.data.split = ""  # of a folder with several; "" is train, and of eval.path validation or test
    config.data.val_size = 0.0  # part of the examples, by a hash of each, kept for an eval.path of "" or data.path
    config.data.placeholder = "<image>"  # what stands for a picture in a text; "" is nothing, and text is only text
    config.data.video_placeholder = "<video>"  # what stands for a video; the same as a picture's where data has either
    config.data.audio_placeholder = "<audio>"  # what stands for a recording
    config.data.bare_placeholder = "stop"  # or "text": what one is in a record without its picture or clip
    config.data.allow_urls = False  # whether pictures and clips that records name by URL are fetched
    config.data.url_hosts = ""  # host,host: addresses of private networks that may be asked too
    config.data.on_error = "stop"  # or "skip": records that make no sense are left out and listed
    config.data.max_skipped = 0.05  # part of a source's documents that may be left out; one always may
    config.data.drop_image = False  # whether a dead picture or clip leaves its page, or the page is left out
    config.data.boxes = ""  # in "pixels" as resized, "thousandths" of sides, or the way of the "model"; "" leaves texts
    config.data.objective = "sft"  # "sft": assistant turns are targets; "pretrain": all text is
    config.data.learn = "all"  # answers; or the "last" of a conversation, or with the "prompt", what users say too
    config.data.thinking = "learn"  # or "mask": read, not learnt; or "off": left out of data and prompts
    config.data.special_tokens = ""  # that data may write: name,name or /pattern/ or "grounding"; others are letters
    config.data.special_tokens_in = "assistant,document"  # whose text may: of document, system, user, assistant, tool
    config.data.long_documents = "split"  # what becomes of those longer than a row: or "truncate", "drop"
    config.data.jitter = -1.0  # part of a side that edges of pictures and frames move, from pass 5 on; -1 is automatic
    config.data.fast_decode = False  # JPEGs at a smaller scale, for models that start from random weights
    config.data.image_tokens = 0  # size of the codebook of discrete image tokens; 0 is none
    config.data.predict_image_tokens = False  # whether they are targets where text in their place is
    config.data.tokenizer = ""  # folder of a transformers tokenizer; "" is ByT5's bytes
    config.data.media = (
        ""  # beside pictures, that a model from random weights takes: "video,audio"; "" is by its data, or init_from
    )
    config.data.allow_change = False  # go on with other data than the run has seen so far
    config.data.cache = ""  # where prepared data is kept; "" is $XDG_CACHE_HOME/jaxmm
    config.data.threads = 1  # threads that make batches ahead
    config.data.workers = 0  # processes that make them, instead of threads

    config.image = ConfigDict()
    config.image.patch_size = 8
    config.image.merge = 2  # merge x merge patches become one soft token
    config.image.min_pixels = 0  # 0 is the folder's own, for random weights 48 * 48
    config.image.max_pixels = 0  # 0 is the folder's own, for random weights 96 * 96

    config.video = ConfigDict()
    config.video.frames = 0  # frames of a temporal patch; 0 is the folder's own, for random weights 2
    config.video.fps = 0.0  # frames a second that are taken; 0 is the folder's own, else 2
    config.video.min_frames = 0  # fewest frames; 0 is the folder's own, else 4
    config.video.max_frames = 0  # most frames; 0 is the folder's own, else 32
    config.video.min_pixels = 0  # of a frame; 0 is the folder's own, else that of pictures
    config.video.max_pixels = 0  # of a frame; 0 is the folder's own, else that of pictures
    config.video.total_pixels = 0  # of all frames together; 0 is the folder's own, else no limit
    config.video.sampling = ""  # which frames: "stride", "ends", "even", "steps" or "dynamic"; "" is the family's
    config.video.after = ""  # text after a video of a Qwen2.5-VL goes on after its largest row or column, or "all" axes

    config.audio = ConfigDict()
    config.audio.sampling_rate = 0  # samples a second; 0 is the folder's own, else 16000
    config.audio.mels = 0  # bands of a log-mel frame; 0 is the folder's own, for random weights 80
    config.audio.pool = 0  # tower positions of 20 ms in a soft token; 0 is the folder's own, else 4
    config.audio.chunk = 0.0  # seconds of a clip that hear each other; 0 is the folder's own, for random weights 30
    config.audio.max_seconds = 0.0  # of a clip that are taken, from its start; 0 is all of it
    config.audio.width = 96  # of the audio tower's layers
    config.audio.layers = 2
    config.audio.heads = 3
    config.audio.mlp = 288

    config.vision = ConfigDict()
    config.vision.width = 96
    config.vision.layers = 2
    config.vision.heads = 3
    config.vision.mlp = 288
    config.vision.positions = 12

    config.connector = ConfigDict()
    config.connector.mlp = 256

    config.decoder = ConfigDict()
    config.decoder.width = 128
    config.decoder.layers = 4
    config.decoder.heads = 4
    config.decoder.kv_heads = 2
    config.decoder.head_dim = 32
    config.decoder.mlp = 384
    config.decoder.rope_theta = 10000.0
    config.decoder.norm_eps = 1e-5
    config.decoder.tie_embeddings = False
    config.decoder.qk_norm = False  # queries and keys are normed, as Qwen 3's

    config.optimizer = ConfigDict()
    config.optimizer.name = "muon"  # "muon" for linear maps, AdamW for all else; or "adamw" for everything
    config.optimizer.rate = 4e-3
    config.optimizer.warmup = 40
    config.optimizer.schedule = "cosine"  # of the rate: or "wsd", "constant"
    config.optimizer.end_factor = 0.02
    config.optimizer.decay_fraction = 0.2  # of the steps, for "wsd"
    config.optimizer.b1 = 0.9  # of AdamW; Muon's momentum is 0.95
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 1.0
    config.optimizer.moments = "float32"  # what the moments are held as: or "bfloat16", "float8"
    config.optimizer.z_loss = 1e-4
    config.optimizer.balance_loss = -1.0  # weight of what keeps the loads of experts even; -1 is the model's own
    config.optimizer.router_z_loss = -1.0  # weight of the squared log of the routers' normaliser; -1 is the model's own
    config.optimizer.router_bias_rate = 0.0  # how far a step moves the bias by which routers choose; 0 leaves it
    # parts (vision, connector, audio, audio_connector, decoder) or patterns of paths: decoder.embedding,*.bias
    config.optimizer.freeze = ""
    config.optimizer.rates = ""  # pattern:multiple of the rate,... ; of several that mean it, the last
    config.optimizer.vision_rate = 1.0  # multiple of the rate
    config.optimizer.connector_rate = 1.0
    config.optimizer.audio_rate = 1.0
    config.optimizer.audio_connector_rate = 1.0
    config.optimizer.decoder_rate = 1.0

    config.adapter = ConfigDict()
    config.adapter.rank = 0  # of low-rank adapters; 0 is none: what is not frozen is trained whole
    config.adapter.alpha = 0.0  # the update is scaled by alpha / rank; 0 is twice the rank
    # linear maps: patterns of paths, or names of the model's family, as q_proj,v_proj; and the tables decoder.embedding
    # and decoder.head
    config.adapter.targets = "decoder.blocks"
    config.adapter.kind = "lora"  # or "rslora" (alpha / root of the rank), "dora"
    config.adapter.dropout = 0.0  # part of what goes into the factors that is dropped in training
    config.adapter.init = ""  # of the first factor: "" uniform as PEFT's, "gaussian", "pissa"
    config.adapter.init_from = ""  # adapters to go on from: a PEFT folder, or a run (RUN@STEP) of the same model
    config.adapter.base_dtype = ""  # what frozen weights are held as: "" float32, "bfloat16", "int8", "nf4" (QLoRA)
    config.adapter.modules_to_save = ""  # what is trained whole beside adapters: parts or patterns, as connector

    config.preference = ConfigDict()
    config.preference.beta = 0.0  # how little the model may leave the reference; 0 is 0.1, of simpo 2
    config.preference.margin = 0.0  # of simpo, gamma: what the chosen answer is to be ahead; 0 is 1
    config.preference.label_smoothing = 0.0  # of dpo and simpo, part of the pairs that may be the other way round
    config.preference.sft = 0.0  # weight of the chosen answer's own loss, a mean over its tokens, which is added
    # of dpo and kto, whether an answer counts by the mean over its tokens, as of the others always
    config.preference.length_normalised = False
    # what is beneath the adapters; or "asked": once, by `jaxmm reference`, as where more than they learn
    config.preference.reference = ""
    config.preference.wanted = 1.0  # of kto, weight of answers that people want
    config.preference.unwanted = 1.0  # of kto, weight of those that they do not

    config.compute = ConfigDict()
    config.compute.dtype = ""  # of activations; "" is bfloat16, on most CPUs float32
    config.compute.matmul = ""  # what linear maps of layers multiply in: "" is compute.dtype, or "fp8"
    config.compute.attention = ""  # best of "blocks", "splash" (TPUs), "fused" (GPUs); or hopper, tokamax, flash3
    config.compute.remat = "none"  # what is computed again in the backward pass: or "dots", "offload", "full"
    config.compute.unroll = 0  # layers a scan iteration runs; 0 is all of them on CPU, 1 elsewhere

    config.mesh = ConfigDict()
    config.mesh.data = -1  # -1 takes the devices the others leave
    config.mesh.fsdp = 1
    config.mesh.expert = 1
    config.mesh.tensor = 1
    config.mesh.context = 1

    config.eval = ConfigDict()
    config.eval.path = ""  # held-out data, in the same way as data.path; "" is the demo's, for the demo
    config.eval.mixture = ""
    config.eval.split = ""  # as data.split
    config.eval.every = 280  # steps; 0 is only at the end
    config.eval.examples = 1000  # at most, of each source

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 280  # steps
    config.checkpoint.keep = 2  # newest ones
    config.checkpoint.keep_best = 1  # by evaluation loss
    config.checkpoint.near_every = 0  # steps from one near checkpoint, on each node, to the next; 0 is none
    config.checkpoint.near_dir = ""  # folder on the node, such as a RAM disk; "" is in the temporary one

    config.monitor = ConfigDict()
    config.monitor.attention_every = 0  # steps from one look at attention to the next; 0 is at evaluations, -1 never
    config.monitor.queries = 128  # target positions of a row that are looked at
    config.monitor.heatmaps = 8  # held-out samples of a source with maps of attention, drawn at evaluations; 0 is none

    config.log = ConfigDict()
    config.log.every = 15  # steps
    config.log.writers = "tensorboard"  # trackers that get the figures of metrics.jsonl: tensorboard, wandb
    config.log.tensorboard = True  # False takes tensorboard out of log.writers
    # PORT or HOST:PORT at which the first process serves its figures to Prometheus; "" is nowhere
    config.log.prometheus = ""
    return config
