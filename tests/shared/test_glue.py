"""GLUE and SuperGLUE: layouts, checks with row numbers, samples."""

import json

import numpy as np
import pytest
import torch

from shared import glue, sources


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


# --- layouts


@pytest.mark.parametrize("task", glue.SPECS)
def test_samples_are_read_by_the_same_loader(task, tmp_path):
    glue.write_sample(tmp_path, task, 12, stream())
    parts = ("train", "validation") + (("validation_mismatched",) if task == "mnli" else ())
    with sources.recording() as log:
        read = glue.load(task, parts)
    assert len(log) == len(parts) and all(len(entry["sha256"]) == 64 for entry in log.values())
    assert all(entry["path"].startswith("REPRO_DATA/") for entry in log.values())
    made = glue.sample(task, 12, stream())
    train = read["train"]
    if task in ("multirc", "record"):
        assert len(train) == 24 and np.bincount(train.groups).tolist() == [2] * 12
        assert train.labels.tolist() == [1, 0] * 12 or task == "record"
    else:
        assert train.texts == made.texts and train.labels.tolist() == made.labels.tolist()
    assert read["validation"].texts != train.texts


@pytest.mark.parametrize(
    "task", ["rte", "stsb", "mnli", "cola", "boolq", "multirc", "record", "wsc"]
)
@pytest.mark.parametrize("layout", ["parquet", "arrow"])
def test_hub_layout_gives_the_same_split(task, layout, tmp_path):
    datasets = pytest.importorskip("datasets")
    spec = glue.SPECS[task]
    folder = glue.write_sample(tmp_path, task, 6, stream())
    want = glue.load(task)["validation"]
    (original,) = folder.glob(glue._stem(task, "validation") + ".*")
    rows = []
    if spec.tsv:
        for text, label in zip(want.texts, want.labels):
            rows.append(dict(zip(spec.hub, [*text, label.item()])))
    else:
        for _, row in glue._json_rows(original, task):
            rows.append(
                {**row, "idx": {"passage": 0, "query": len(rows)}}
                if task == "record"
                else row | {"label": int(row["label"])}
            )
    for path in folder.iterdir():
        path.unlink()
    part = glue._hub_part(task, "validation")
    if layout == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(folder / f"{part}-00000-of-00001.parquet"))
    else:
        datasets.DatasetDict({part: datasets.Dataset.from_list(rows)}).save_to_disk(str(folder))
    got = glue.load(task, ("validation",))["validation"]
    assert got.texts == want.texts and got.labels.tolist() == want.labels.tolist()
    if want.groups is not None:
        assert got.groups.tolist() == want.groups.tolist()
    if want.values is not None:
        assert got.values.tolist() == want.values.tolist()


def test_hub_is_asked_only_without_a_folder(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_dict(
            {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1], "idx": [0, 1]}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert glue.load("rte")["train"].texts == [("a", "c"), ("b", "d")]
    assert asked == [("nyu-mll/glue", "rte", "train"), ("nyu-mll/glue", "rte", "validation")]
    glue.write_sample(tmp_path, "rte", 4, stream())
    assert len(glue.load("rte")["train"]) == 4 and len(asked) == 2


def test_hub_failure_is_a_missing_input(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(sources.MissingInput, match=r"(?s)glue/RTE.*hf download.*no route"):
        glue.load("rte")


def test_quirks_of_the_published_files(tmp_path):
    write(tmp_path, "glue/CoLA/train.tsv", 'gj04\t1\t\tHe said "go.\ngj04\t0\t*\tGo he "said.\n')
    cola = glue.load("cola", ("train",))["train"]
    assert cola.texts == [('He said "go.',), ('Go he "said.',)] and cola.labels.tolist() == [1, 0]
    write(tmp_path, "glue/CoLA/test.tsv", "index\tsentence\n0\tWhat now?\n")
    assert glue.load("cola", ("test",))["test"].texts == [("What now?",)]
    write(
        tmp_path,
        "glue/MRPC/train.tsv",
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t1\t2\t" a\tb\r\n',
    )
    mrpc = glue.load("mrpc", ("train",))["train"]
    assert mrpc.texts == [('" a', "b")] and mrpc.labels.tolist() == [1]
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    write(
        tmp_path,
        "glue/QQP/train.tsv",
        header + "1\t2\t3\ta?\tb?\t1\nbroken\n4\t5\t6\t\tb?\t0\n7\t8\t9\tc?\td?\t0\n",
    )
    assert glue.load("qqp", ("train",))["train"].texts == [("a?", "b?"), ("c?", "d?")]


@pytest.mark.parametrize(
    "task, sizes",
    [
        ("cola", (8551, 1043)),
        ("sst2", (67349, 872)),
        ("stsb", (5749, 1500)),
        ("rte", (2490, 277)),
        ("wnli", (635, 71)),
    ],
)
def test_original_glue_files(task, sizes, repro_data, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(repro_data))
    parts = glue.load(task)
    assert (len(parts["train"]), len(parts["validation"])) == sizes
    test = glue.load(task, ("test",))["test"].labels
    assert np.all(np.isnan(test)) if task == "stsb" else set(test.tolist()) == {-1}


@pytest.mark.parametrize("task", glue.SUPER_GLUE)
def test_original_super_glue_files(task, repro_data, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(repro_data))
    train = glue.load(
        task, ("train",), folder=glue.SPECS[task].folder.replace("super_glue", "fewglue")
    )["train"]
    questions = train.groups.max() + 1 if train.groups is not None else len(train)
    assert questions == 32 and set(np.unique(train.labels)) <= set(
        range(len(glue.SPECS[task].labels))
    )


# --- bad input: the row, the value, the remedy


RTE = "index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (RTE + "0\ta\tb\tentailment\n1\ta\tb\n", r"row 3: 3 columns, expected 4 .*Remedy"),
        (
            RTE + "0\ta\tb\tentailment\n1\tentailment\tb\ta\n",
            r"row 3: label 'a' is not one of entailment.*swapped",
        ),
        (RTE + "0\ta\tb\t-1\n", r"row 2: label '-1' .*test part"),
        (RTE + "0\ta\t\tentailment\n", r"row 2: column 'sentence2' is empty"),
        (RTE + "0\ta\tb\t\n", r"row 2: label '' .*test part"),
        ("index\tsentence1\tsentence2\n0\ta\tb\n", r"row 2: no column 'label'; columns: index"),
        ("index\tpremise\tsentence2\tlabel\n0\ta\tb\t0\n", r"row 2: no column 'sentence1'"),
        (RTE, "no rows"),
        ("", "no rows"),
    ],
)
def test_bad_tables_are_refused_with_the_row(text, message, tmp_path):
    write(tmp_path, "glue/RTE/train.tsv", text)
    with pytest.raises(ValueError, match=message):
        glue.load("rte", ("train",))


def test_other_bad_input(tmp_path):
    write(tmp_path, "glue/STS-B/train.tsv", "sentence1\tsentence2\tscore\na\tb\t4.5\na\tb\t5.1\n")
    with pytest.raises(ValueError, match=r"row 3: score '5.1' is not a number from 0 to 5"):
        glue.load("stsb", ("train",))
    write(tmp_path, "glue/CoLA/train.tsv", "gj04\tBill left.\t\t1\n")
    with pytest.raises(ValueError, match=r"row 1: label 'Bill left.' is not one of"):
        glue.load("cola", ("train",))
    write(
        tmp_path,
        "super_glue/CB/train.jsonl",
        '{"premise": "a", "hypothesis": "b", "label": "neutral"}\n{"premise"\n',
    )
    with pytest.raises(ValueError, match=r"row 2: not JSON"):
        glue.load("cb", ("train",))
    write(tmp_path, "super_glue/MultiRC/train.jsonl", '{"idx": 1, "passage": {"text": "a"}}\n')
    with pytest.raises(ValueError, match=r"row 1: no 'questions'"):
        glue.load("multirc", ("train",))
    with pytest.raises(ValueError, match=r"unknown task 'rtee'; tasks: cola, "):
        glue.load("rtee")
    (tmp_path / "glue" / "RTE").mkdir(parents=True)
    with pytest.raises(
        sources.MissingInput, match=r"no file for part 'train'.*nothing(?s:.*)needs train.tsv"
    ):
        glue.load("rte")
    with pytest.raises(sources.MissingInput, match=r"'glue/WNLI' are missing(?s:.*)fetch:"):
        glue.load("wnli")


def test_json_sample_has_the_schema_of_super_glue(tmp_path):
    row = json.loads((glue.write_sample(tmp_path, "wsc", 1, stream()) / "train.jsonl").read_text())
    assert set(row) == {"text", "target", "idx", "label"} and isinstance(row["label"], bool)
