"""What comes in as a model: every kind of broken folder is named, whatever root it came through."""

import hashlib
import os
import re
from pathlib import Path

import model_folders
import pytest
from model_folders import BROKEN

from shared import sources
from shared.protocol import BadInput

NAME = "some/model"


@pytest.fixture
def rooted(tmp_path, monkeypatch):
    """make(root, how to break it) -> the name by which the model comes in through that root."""
    for variable in ("REPRO_MODELS", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("REPRO_MODELS", str(tmp_path / "models"))
    cached = tmp_path / "hf" / "hub" / "models--some--model" / "snapshots" / "abc"
    places = {"path": tmp_path / "ein Ordner", "folder": tmp_path / "models" / NAME}
    places["cache"] = cached

    def make(root, broken=lambda folder: None):
        broken(model_folders.write(places[root]))
        return str(places[root]) if root == "path" else NAME

    return make


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_named(case, rooted):
    breaks, message = BROKEN[case]
    with pytest.raises(BadInput, match=rf"(?s){message}") as error:
        sources.find_model(rooted("path", breaks))
    assert "\n  remedy:  " in str(error.value)


@pytest.mark.parametrize("root", ["path", "folder", "cache"])
@pytest.mark.parametrize(
    "case", ["pickle", "adapter", "cut weights", "missing shard", "no tokenizer", "config is cut"]
)
def test_every_root_has_the_same_door(root, case, rooted):
    breaks, message = BROKEN[case]
    with pytest.raises(BadInput, match=rf"(?s){message}"):
        sources.find_model(rooted(root, breaks))


@pytest.mark.parametrize("root", ["path", "folder", "cache"])
@pytest.mark.parametrize("breaks", [lambda folder: None, model_folders.shard])
def test_every_file_of_a_whole_model_is_hashed(root, breaks, rooted):
    name = rooted(root, breaks)
    with sources.recording() as log:
        folder, how = sources.find_model(name)
    assert how == root
    files = {entry.name: entry for entry in os.scandir(folder)}
    place = "/".join(Path(name).parts[-2:])
    assert set(log) == {f"{place}/{file}" for file in files}
    for file, entry in files.items():
        with open(entry.path, "rb") as content:
            sha = hashlib.sha256(content.read()).hexdigest()
        assert log[f"{place}/{file}"]["sha256"] == sha


def test_a_whole_copy_in_the_cache_is_taken_before_a_broken_newer_one(rooted, tmp_path):
    rooted("cache")
    newer = tmp_path / "hf" / "hub" / "models--some--model" / "snapshots" / "def"
    (model_folders.write(newer) / "model.safetensors").unlink()
    assert sources.find_model(NAME)[0].endswith("abc")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.gguf", "is a GGUF file"),
        ("model.bin", "is a pickle"),
        ("model.safetensors", "is one file of weights, not a model folder"),
        ("notes.md", "is a file, not a model folder"),
    ],
)
def test_a_file_in_place_of_a_folder(file, message, tmp_path):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(BadInput, match=message):
        sources.find_model(str(tmp_path / file))


def test_links(rooted, tmp_path):
    folder = rooted("path")
    (tmp_path / "link").symlink_to(folder)
    assert sources.find_model(str(tmp_path / "link"))[1] == "path"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BadInput, match="link that leads nowhere"):
        sources.find_model(str(tmp_path / "loop"))


def test_a_model_below_the_folder_is_pointed_at(rooted, tmp_path):
    folder = rooted("path")
    with pytest.raises(BadInput, match=re.escape(f"give {folder}")):
        sources.find_model(str(tmp_path))


@pytest.mark.parametrize("name", ["../nowhere", "/no/where", "a/b/c", "", "x y", "~nobody/x"])
def test_names_that_are_neither_folder_nor_hub_id(name, rooted):
    with pytest.raises(sources.MissingInput, match="no such folder"):
        sources.find_model(name)


def test_hidden_files_and_other_formats_do_not_matter(rooted):
    folder = rooted("path")
    for name in ("._model.safetensors", ".DS_Store", "pytorch_model.bin", "x.gguf", "README.md"):
        model_folders.puts(name, "x")(Path(folder))
    model_folders.puts("notes.txt", "")(Path(folder))
    with sources.recording() as log:
        sources.find_model(folder)
    assert len(log) == 3


def test_only_what_is_needed_is_asked_for(rooted):
    name = rooted("path", model_folders.lacks("tokenizer.json"))
    assert sources.find_model(name, ("weights",))[1] == "path"
    with pytest.raises(BadInput, match="has no tokenizer"):
        sources.find_model(name, ("tokenizer",))


def test_masks_of_older_checkpoints_are_no_weights(rooted):
    name = "gpt_neox.layers.0.attention.bias"
    mask = model_folders.header(name, dtype="BOOL", data_offsets=[0, 8], shape=[8])
    sources.find_model(rooted("path", model_folders.puts("model.safetensors", mask)))
