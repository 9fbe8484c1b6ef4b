"""Where inputs come from: the order, what is said when one is missing, what is written down."""

import hashlib
import http.server
import os
import threading

import model_folders
import pytest

from shared import sources
from shared.protocol import BadInput
from shared.sources import Hub, MissingInput


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch, tmp_path):
    """No folders, no cache, no network."""
    for name in (
        "REPRO_DATA",
        "REPRO_MODELS",
        "HF_HUB_CACHE",
        "HF_DATASETS_CACHE",
        "TRANSFORMERS_OFFLINE",
        "HF_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(sources, "_silent_hub", set())


# --- data


def test_folder_comes_first_and_spelling_is_forgiven(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    for name in ("glue/SST-2", "glue/sst2", "GLUE/sst_2"):
        assert sources.find_data(name, "nyu-mll/glue") == tmp_path / "glue" / "SST-2"
    (tmp_path / "glue" / "sst2").mkdir()
    assert sources.find_data("glue/sst2") == tmp_path / "glue" / "sst2"  # the exact name wins


def test_pointed_at_leaves_the_variables_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", "before")
    with (
        pytest.raises(ZeroDivisionError),
        sources.pointed_at(REPRO_DATA=tmp_path, REPRO_MODELS=tmp_path),
    ):
        assert os.environ["REPRO_DATA"] == os.environ["REPRO_MODELS"] == str(tmp_path)
        1 / 0  # noqa: B018
    assert os.environ["REPRO_DATA"] == "before" and "REPRO_MODELS" not in os.environ


def test_then_the_hub_if_it_may_be_asked_or_has_a_copy(tmp_path, monkeypatch):
    with pytest.raises(MissingInput):
        sources.find_data("glue/rte", Hub("nyu-mll/glue", "rte"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert sources.find_data("glue/rte", Hub("nyu-mll/glue", "rte")) == Hub("nyu-mll/glue", "rte")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = tmp_path / "hf" / "datasets" / "nyu-mll___glue" / "rte"
    cached.mkdir(parents=True)
    (cached / "x.arrow").write_bytes(b"")
    assert sources.find_data("glue/rte", "nyu-mll/glue") == Hub("nyu-mll/glue")
    assert sources.available("data", "glue/rte") == "cache"


@pytest.mark.parametrize("layout", sources.LAYOUTS, ids=lambda layout: layout.folder)
def test_every_missing_folder_is_explained(layout):
    with pytest.raises(MissingInput) as error:
        sources.find_data(layout.folder)
    for part in (
        layout.folder,
        layout.what,
        layout.files,
        layout.source,
        layout.licence,
        layout.fetch,
        "REPRO_DATA",
    ):
        assert part and part in str(error.value)


def test_layouts_cover_the_seven_papers():
    folders = {layout.folder for layout in sources.LAYOUTS}
    names = (
        "glue super_glue cifar10 cifar100 imagenet cub cars inat2019 bioner bionlp2004 "
        "nlg/e2e nlg/webnlg nlg/dart molecules text c4 nasbench201.csv.gz "
        "tap/rct tap/agnews tap/imdb"
    )
    assert folders >= set(names.split())
    assert len(folders) == len(sources.LAYOUTS)
    assert (
        sources.layout_of("glue/rte").folder == "glue"
        and sources.layout_of("super_glue/rte").folder == "super_glue"
    )
    assert sources.layout_of("glued") is None and sources.layout_of("nyu-mll/glue").folder == "glue"


def test_unknown_folder_lists_the_known_ones():
    with pytest.raises(
        MissingInput, match=r"\$REPRO_DATA/glued; folders with a known layout: glue, super_glue"
    ):
        sources.find_data("glued")


def test_a_wrong_root_is_an_error_not_a_miss(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(MissingInput, match=r"REPRO_DATA=.*nowhere is not a folder"):
        sources.find_data("glue")


def test_a_folder_with_a_readme_alone_is_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    (tmp_path / "c4" / ".cache").mkdir(parents=True)
    (tmp_path / "c4" / "README.md").write_text("# card")
    with pytest.raises(MissingInput, match=r"c4 holds nothing but a README.md(?s:.*)fetch:"):
        sources.find_data("c4")
    assert sources.available("data", "c4") == ""
    with monkeypatch.context() as online:
        online.setenv("HF_HUB_OFFLINE", "0")
        assert sources.find_data("c4", "allenai/c4") == Hub("allenai/c4")
    (tmp_path / "c4" / "part.json.gz").write_bytes(b"")
    assert sources.find_data("c4") == tmp_path / "c4"
    assert sources.available("data", "c4") == "folder"


def test_e2e_is_asked_of_the_hub_though_its_files_come_from_elsewhere(hub, monkeypatch):
    layout = sources.layout_of("nlg/e2e")
    assert sources.layout_of("tuetschek/e2e_nlg") == layout
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert sources.available("data", "nlg/e2e") == ""
    assert hub == ["/api/datasets/tuetschek/e2e_nlg"]
    assert sources.available("data", "nlg/webnlg") == "" and len(hub) == 1


# --- models


def test_models_from_folder_then_cache(tmp_path, monkeypatch):
    name = "FacebookAI/roberta-base"
    with pytest.raises(
        MissingInput,
        match=r"(?s)REPRO_MODELS is not set.*HF_HUB_OFFLINE.*hf download FacebookAI/roberta-base",
    ):
        sources.find_model(name)
    assert sources.available("model", name) == ""
    cached = model_folders.write(
        tmp_path / "hf" / "hub" / "models--FacebookAI--roberta-base" / "snapshots" / "abc"
    )
    with sources.recording() as log:
        assert sources.find_model(name) == (str(cached), "cache")
    weights = (cached / "model.safetensors").read_bytes()
    assert log[f"{name}/model.safetensors"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert log[f"{name}/model.safetensors"]["path"].startswith("cache/models--")
    assert sources.available("model", name) == "cache"
    monkeypatch.setenv("REPRO_MODELS", str(tmp_path / "models"))
    given = model_folders.write(tmp_path / "models" / "FacebookAI" / "roberta-base")
    assert sources.find_model(name) == (str(given), "folder")
    assert sources.available("model", name) == "folder"


def test_model_is_fetched_from_the_hub(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    fetched = model_folders.write(tmp_path / "fetched")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(fetched))
    assert sources.find_model("a/b") == (str(fetched), "hub")

    def refused(name, **_):
        raise OSError("403 gated")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(MissingInput, match=r"(?s)model 'a/c' is missing.*403 gated") as error:
        sources.find_model("a/c")
    assert "accept its terms" in str(error.value) and "hf auth login" in str(error.value)

    def lost(name, **_):
        raise OSError("404 not found")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lost)
    with pytest.raises(MissingInput, match="404 not found") as error:
        sources.find_model("a/c")
    assert "terms" not in str(error.value)


def test_pickled_weights_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_MODELS", str(tmp_path))
    folder = model_folders.write(tmp_path / "a" / "b")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"a/b is not usable: pytorch_model.bin .*safetensors"):
        sources.find_model("a/b")


# --- choosing a scale


@pytest.fixture
def hub(monkeypatch):
    """A hub that has one model and one data set, and counts the questions."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(
                200 if self.path in ("/api/models/a/b", "/api/datasets/nyu-mll/glue") else 404
            )
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "*")
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_available_asks_the_hub_only_if_allowed(hub, monkeypatch):
    assert sources.available("model", "a/b") == "" and hub == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert sources.available("model", "a/b") == "hub" and sources.available("model", "a/z") == ""
    assert sources.available("data", "glue/rte") == "hub"
    assert (
        sources.available("data", "molecules") == "" and sources.available("data", "bioner/x") == ""
    )
    assert hub == ["/api/models/a/b", "/api/models/a/z", "/api/datasets/nyu-mll/glue"]


def test_a_silent_hub_is_asked_once(monkeypatch):
    calls = []

    def silent(*args, **kwargs):
        calls.append(kwargs["timeout"])
        raise TimeoutError

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("urllib.request.urlopen", silent)
    assert (
        sources.available("model", "a/b", hub_timeout=0.5)
        == ""
        == sources.available("data", "glue/rte")
    )
    assert calls == [0.5]
    with pytest.raises(ValueError, match="kind 'thing'"):
        sources.available("thing", "a/b")


def test_available_finds_folders_by_hub_id_too(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    (tmp_path / "glue").mkdir()
    assert (
        sources.available("data", "nyu-mll/glue") == "folder" == sources.available("data", "glue")
    )
    assert sources.available("data", "glue/rte") == ""  # the folder of that task is not there


# --- what was read


def test_notes_reach_the_log_and_every_open_recording(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    path = tmp_path / "x.csv"
    path.write_bytes(b"one")
    with sources.recording() as outer:
        with sources.recording() as inner:
            sources.note("x", path)
        sources.note("y", "0" * 64, "bundled")
    sources.note("z", "1" * 64)  # nobody records
    one = {"sha256": hashlib.sha256(b"one").hexdigest(), "path": "REPRO_DATA/x.csv"}
    assert inner == {"x": one} and outer == {"x": one, "y": {"sha256": "0" * 64, "path": "bundled"}}
    path.write_bytes(b"other")
    assert sources.note("x", path) == hashlib.sha256(b"other").hexdigest()


def test_records_name_no_folder_of_this_machine(tmp_path):
    path = tmp_path / "secret" / "x.csv"
    path.parent.mkdir()
    path.write_bytes(b"")
    with sources.recording() as log:
        sources.note("elsewhere", path)
    assert log["elsewhere"]["path"] == "x.csv"
