"""Tiny models and data under the names that a protocol gives, in the hub's layout.

    content = Content(protocol, folder, protocol.inputs("paper", nodes))

folder/hub is what `hub_server.Hub` serves; folder/data is REPRO_DATA for what no hub has.
A name that nothing here knows stops the test with that name.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared import cifar, glue, runs, sources
from shared.protocol import Protocol

ROWS = 64  # of every part
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PART = r"(?:c4-)?(train|dev|valid|validation|test)(_matched|_mismatched)?\b"
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass
class Content:
    """inputs: ("model" or "data", name) of what is written, as `Protocol.inputs` has them."""

    paper: Protocol
    folder: Path
    inputs: Iterable[tuple[str, str]]

    def __post_init__(self) -> None:
        self.hub, self.data = self.folder / "hub", self.folder / "data"
        self.data.mkdir(parents=True)
        for kind, name in self.inputs:
            if kind == "model":
                model(self.hub / "models" / name, name)
                continue
            layout = sources.layout_of(name)
            known = layout and next((f for f in WRITERS if layout.folder.startswith(f)), None)
            assert layout and known, f"hub_content.py: what does the data set '{name}' look like?"
            WRITERS[known](self, name, layout.source)
        for folder in sorted((self.hub / "datasets").glob("*/*")):
            card(folder)

    def dataset(self, source: str) -> Path:
        return self.hub / "datasets" / source


# --- models ---------------------------------------------------------------------------------------


def model(folder: Path, name: str) -> None:
    """Two random layers of width 32 of the class that the name says, sharded from 7 B on."""
    import transformers as hf

    kind, settings = next((make for word, make in FAMILIES if re.search(word, name)), (None, {}))
    assert kind, f"hub_content.py: of which class is the model '{name}'?"
    words = tokenizer(kind)
    config = getattr(hf, f"{kind}Config")(
        **{"vocab_size": len(words), "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        | {key: value for key, value in settings.items() if key != "head"}
    )
    runs.seed_global(0, "hub", name)
    hf.utils.logging.disable_progress_bar()
    made = getattr(hf, f"{kind}{settings['head']}")(config)
    sharded = {"max_shard_size": "40KB"} if re.search("7b|xxl", name.lower()) else {}
    made.save_pretrained(folder, **sharded)
    if re.search("chat|Instruct", name):
        words.chat_template = CHAT
    words.save_pretrained(folder)


READS = {**SIZE, "intermediate_size": 64}
BERT = {**READS, "max_position_embeddings": 514, "head": "ForMaskedLM"}
# What a name holds -> class, settings. The first that fits counts.
FAMILIES: list[tuple[str, tuple[str, dict[str, Any]]]] = [
    ("simcse", ("Roberta", BERT | {"head": "Model"})),
    ("deberta-v3", ("DebertaV2", BERT | {"relative_attention": True, "position_buckets": 8,
                    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
                    "type_vocab_size": 0, "norm_rel_ebd": "layer_norm", "share_att_key": True})),
    ("roberta", ("Roberta", BERT)),
    ("bert", ("Bert", BERT | {"head": "ForPreTraining"})),
    ("gpt2", ("GPT2", {"n_positions": 1024, "n_embd": 32, "n_layer": 2, "n_head": 2,
                       "head": "LMHeadModel"})),
    ("opt-", ("OPT", {**SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32, "head": "ForCausalLM",
                      "max_position_embeddings": 2048})),
    ("[Ll]lama", ("Llama", READS | {"max_position_embeddings": 4096, "head": "ForCausalLM"})),
    ("Qwen2", ("Qwen2", READS | {"num_key_value_heads": 1, "max_position_embeddings": 4096,
                                 "head": "ForCausalLM"})),
    ("mpt", ("Mpt", {"d_model": 32, "n_heads": 2, "n_layers": 2, "expansion_ratio": 2,
                     "max_seq_len": 2048, "head": "ForCausalLM"})),
    ("dipper|t5", ("T5", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2,
                          "decoder_start_token_id": 1, "head": "ForConditionalGeneration"})),
]  # fmt: skip


def tokenizer(kind: str) -> Any:
    """Byte-level pieces of made-up sentences with RoBERTa's special tokens, in the class that goes
    with the model where a paper asks the class for more."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    texts = glue.sample("sst2", 200, runs.stream(0, "hub words")).texts
    core.train_from_iterator((text for row in texts for text in row), trainer)
    if kind in ("Bert", "Roberta", "DebertaV2"):
        ends = ("</s>", 2), ("<s>", 0)
        core.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    special = dict(zip(names, SPECIAL)) | {"cls_token": "<s>", "sep_token": "</s>"}
    own = {"Roberta": transformers.RobertaTokenizerFast}
    cls = own.get(kind, transformers.PreTrainedTokenizerFast)
    columns = ["input_ids", "attention_mask"]
    return cls(tokenizer_object=core, model_input_names=columns, **special)


# --- data -----------------------------------------------------------------------------------------


def card(folder: Path) -> None:
    """README.md, whose head says which files are which part of which configuration."""
    lines, configs = ["---", "configs:"], dict[str, dict[str, str]]()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, inside = re.match(PART, path.name), path.relative_to(folder)
        assert name, f"{path}: of which part?"
        part = {"dev": "validation", "valid": "validation"}.get(name[1], name[1])
        config = "default" if inside.parent.name in ("", "data") else inside.parent.name
        pattern = re.sub(r"\d{5}-of-\d{5}", "*", inside.as_posix())
        configs.setdefault(config, {})[part + (name[2] or "")] = pattern
    for config, parts in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for part, pattern in parts.items():
            lines += [f"  - split: {part}", f"    path: {pattern}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# made up", ""]), "utf-8")


def table(
    folder: Path, part: str, rows: Sequence[dict[str, Any]], images: str = "", like: Any = None
) -> Any:
    """The rows as parquet files of two shards, as `push_to_hub` writes them; types of the columns.

    images: a column. like: the types, where rows alone do not say them (empty lists)."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(list(rows), features=like)
    if images:
        whole = whole.cast_column(images, datasets.Image())
    for k in range(2):
        shard = whole.shard(2, k, contiguous=True)
        shard.to_parquet(folder / f"{part}-{k:05d}-of-00002.parquet")
    return whole.features


def benchmark(content: Content, name: str, source: str) -> None:
    """GLUE's and SuperGLUE's tables: one configuration each."""
    suite, folder = name.split("/")
    plain = sources._plain
    task = next(t for t, s in glue.SPECS.items() if plain(s.folder) == plain(f"{suite}/{folder}"))
    spec = glue.spec(task)
    parts = ["train", "validation", "test"]
    if task == "mnli":
        parts = ["train", *(f"{p}_{m}" for p in parts[1:] for m in ("matched", "mismatched"))]
    types = None
    for part in parts:
        made = glue.sample(task, ROWS, runs.stream(0, "hub", task, part))
        rows = hub_rows(task, made)
        for row in rows if part.startswith("test") else ():  # what is secret there
            row |= {"answers": []} if task == "record" else {"label": -1 if spec.labels else -1.0}
        types = table(content.dataset(source) / spec.config, part, rows, like=types)


def hub_rows(task: str, made: sources.Split) -> list[dict[str, Any]]:
    """Flat rows with numbers for labels."""
    spec = glue.spec(task)
    if spec.tsv:
        texts = zip(made.texts, made.labels.tolist())
        names = spec.hub
        return [dict(zip(names, [*text, y])) | {"idx": i} for i, (text, y) in enumerate(texts)]
    nested = [json.loads(line) for line in glue._sample_json(task, made)]
    rows = [flat for row in nested for flat in glue._flatten(row, task)]
    for i, row in enumerate(rows):
        row.pop("target", None)
        if "label" in row:
            label = row["label"]
            known = label in spec.labels
            row["label"] = spec.labels.index(label) if known else int(label)
        if task == "record":
            row["idx"] = {"passage": i, "query": i}
    return rows


def small_images(content: Content, name: str, source: str) -> None:
    label = {"cifar10": "label", "cifar100": "fine_label"}[name]
    for part in ("train", "test"):
        n = max(ROWS, 2 * cifar.CLASSES[name])
        made = cifar.sample(name, n, runs.stream(0, "hub", name, part))
        pixels = made.images.permute(0, 2, 3, 1)
        rows = [{"img": png(x), label: int(y)} for x, y in zip(pixels, made.labels)]
        table(content.dataset(source) / "plain_text", part, rows, "img")


def photographs(content: Content, name: str, source: str) -> None:
    stream = runs.stream(0, "hub", name)
    for part in ("train", "validation"):
        rows = []
        for k in range(24):
            pixels = torch.randint(256, (40, 48, 3), generator=stream, dtype=torch.uint8)
            rows.append({"image": png(pixels), "label": k % 4})
        table(content.dataset(source) / "data", part, rows, "image")


def png(pixels: torch.Tensor) -> dict[str, Any]:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def labelled_texts(content: Content, name: str, source: str) -> None:
    """Sets of task-adaptive pretraining: JSON lines with names, or tables with numbers."""
    from tapweight import data

    task = next(t for t, (folder, *_) in data.TAP.items() if folder == name)
    _, _, dev, classes = data.TAP[task]
    for part in ("train", *([dev] if dev else []), "test"):
        texts = glue.sample("sst2", ROWS, runs.stream(0, "hub", task, part)).texts
        rows = [{"text": t, "label": k % classes} for k, (t,) in enumerate(texts)]
        if labels := data.LABEL.get(task):
            named = ({**row, "label": labels[row["label"]].lower()} for row in rows)
            lines(content.dataset(source) / f"{part}.jsonl", named)
        else:
            table(content.dataset(source) / "data", part, rows)


def lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def tagged(content: Content, name: str, source: str) -> None:
    from autolora import corpora

    made = corpora.sample_files(name, ROWS, runs.stream(0, "hub", name))
    for file, text in made.items():
        path = content.dataset(source) / Path(file).relative_to(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def news(content: Content, name: str, source: str) -> None:
    """C4's shards; texts of six sentences, which a rehearsal's filter of lengths lets pass."""
    for part in ("train", "validation"):
        texts = glue.sample("sst2", 6 * ROWS, runs.stream(0, "hub", name, part)).texts
        joined = [" ".join(t for (t,) in texts[k::ROWS]) for k in range(ROWS)]
        rows = [{"text": t, "timestamp": "2019-04-22T00:00:00Z", "url": "x"} for t in joined]
        for k in range(2):
            file = f"c4-{part}.{k:05d}-of-00002.json.gz"
            lines(content.dataset(source) / "realnewslike" / file, rows[k::2])


# --- what no hub has ------------------------------------------------------------------------------


def generated(content: Content, name: str, source: str) -> None:
    from autolora import corpora

    task = next(task for task, folder in corpora.GENERATION.items() if folder == name)
    for file, text in corpora.sample_files(task, ROWS, runs.stream(0, "hub", name)).items():
        (content.data / file).parent.mkdir(parents=True, exist_ok=True)
        (content.data / file).write_text(text, "utf-8")


def chemistry(content: Content, name: str, source: str) -> None:
    from tapweight import rehearsal

    made = content.folder / "made"
    rehearsal.write_data(made)
    shutil.move(made / "molecules", content.data / "molecules")
    shutil.rmtree(made)


def folders_of_classes(content: Content, name: str, source: str) -> None:
    from mlo_mae import rehearsal

    rehearsal.write_sample(content.data, name, 24)


def networks(content: Content, name: str, source: str) -> None:
    """The watermark's published networks, untrained, at the strengths that the protocol names."""
    from ts_watermark import stand_ins

    words = " ".join(str(arm.at) + str(arm.set) for arm in content.paper.document.arms.values())
    for folder in sorted(set(re.findall(rf"{re.escape(name)}[\w/]+", words))):
        path = content.data / folder / "init_0.25_1.75_default.pth"
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        stand_ins.checkpoint(path, SIZE["hidden_size"])


# The beginning of a folder in `sources.LAYOUTS` -> who writes it.
WRITERS: dict[str, Callable[[Content, str, str], None]] = {
    "glue": benchmark,
    "super_glue": benchmark,
    "cifar": small_images,
    "imagenet": photographs,
    "tap/": labelled_texts,
    "bionlp2004": tagged,
    "c4": news,
    "nlg/": generated,
    "molecules": chemistry,
    "cub": folders_of_classes,
    "cars": folders_of_classes,
    "inat2019": folders_of_classes,
    "official/TS_watermark": networks,
}
