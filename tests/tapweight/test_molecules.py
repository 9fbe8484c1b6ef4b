"""Molecules: docs/papers/tapweight.md, section 11, check 13."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.sources import MissingInput
from tapweight import images, molecules, rehearsal
from tapweight.config import Config

INSTALL = "RDKit: pip install rdkit"


def test_13_scaffold_split_rule():
    parts = molecules.scaffold_split(["a"] * 6 + ["b"] * 2 + ["c", "d"])
    assert [p.tolist() for p in parts] == [[0, 1, 2, 3, 4, 5, 6, 7], [9], [8]]


def test_13_reading_counts_what_it_drops(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    rehearsal.write_data(tmp_path)
    lines = []
    tox21 = molecules.read("tox21", rehearsal.made_up(), lines.append)
    assert len(tox21.smiles) == 20 and tox21.rejected == 1 and tox21.labels.shape == (20, 12)
    assert "1 of 21 rows" in lines[0] and "[20]" in lines[0]
    path = tmp_path / "molecules" / "BBBP.csv"
    for content, text in {
        "smiles,BBBP\nno molecule,1\nnone either,0\n": "none of its 2 rows",
        "smiles,other\nCCO,1\n": "lacks the columns",
        "smiles,BBBP\nCCO,\nCCC,yes\n": "'yes' is not a number",
    }.items():
        path.write_text(content)
        with pytest.raises(ValueError, match=text):
            molecules.read("bbbp", rehearsal.made_up(), lines.append)
    for column in ("BBBP", "p_np"):  # the second is DeepChem's own name for it
        path.write_text(f"num,name,{column},smiles\n1,one,1,CCO\n2,two,0,CCC\n")
        bbbp = molecules.read("bbbp", rehearsal.made_up(), lines.append)
        assert sorted(bbbp.labels[:, 0].tolist()) == [0.0, 1.0]
    with pytest.raises(ValueError, match="did you mean 'bbbp'"):
        molecules.read("bbpb", rehearsal.made_up())


def test_a_missing_rdkit_is_an_error_with_its_install_line(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *more, **keys):
        if name.startswith("rdkit"):
            raise ImportError("No module named 'rdkit'")
        return real(name, *more, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingInput, match="pip install rdkit"):
        molecules.rdkit()
    with pytest.raises(MissingInput, match="pip install rdkit"):
        rehearsal.chemistry("gpu", print)
    lines = []
    assert rehearsal.chemistry("rehearsal", lines.append).name == "made up"
    assert "pip install rdkit" in lines[0]


def test_13_textbook_molecules_with_rdkit():
    pytest.importorskip("rdkit", reason=INSTALL)
    chemistry = molecules.rdkit()
    smiles = [chemistry.canonical(s) for s in rehearsal.TEXTBOOK]
    assert None not in smiles and len(set(smiles)) == 20
    assert chemistry.canonical("no molecule") is None
    picture = chemistry.drawing(smiles[3], 64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert 0 < (picture < 128).mean() < 0.5
    assert np.array_equal(picture, chemistry.drawing(smiles[3], 64))
    assert chemistry.fingerprint(smiles[3]).shape == (167,)
    assert chemistry.scaffold(smiles[3]) == "c1ccccc1" and chemistry.scaffold(smiles[0]) == ""


@pytest.mark.parametrize("name, rejected, sizes", [
    ("bbbp", 11, (1631, 204, 204)), ("bace", 0, (1210, 151, 152)), ("clintox", 4, (1184, 148, 148)),
    ("sider", 0, (1141, 143, 143)), ("esol", 0, (902, 113, 113)), ("freesolv", 0, (513, 64, 65)),
    pytest.param("tox21", 8, (6258, 782, 783), marks=pytest.mark.slow),
    pytest.param("lipophilicity", 0, (3360, 420, 420), marks=pytest.mark.slow),
])  # fmt: skip
def test_13_scaffold_sizes_of_real_files(name, rejected, sizes, repro_data, monkeypatch):
    """Rejected rows and sizes of the split are those of docs/papers/tapweight.md, section 6."""
    pytest.importorskip("rdkit", reason=INSTALL)
    monkeypatch.setenv("REPRO_DATA", str(repro_data))
    chemistry = molecules.rdkit()
    rows = molecules.read(name, chemistry)
    scaffolds = [chemistry.scaffold(s) for s in rows.smiles]
    parts = molecules.scaffold_split(scaffolds)
    assert rows.rejected == rejected and tuple(map(len, parts)) == sizes
    again = molecules.scaffold_split(scaffolds)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    groups = [{scaffolds[i] for i in part} for part in parts]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


@pytest.mark.parametrize("task, kind", [("bbbp", "classification"), ("freesolv", "regression")])
def test_the_molecule_domain(task, kind, tmp_path, monkeypatch):
    """Shapes, the five losses, augmentation, both kinds of labels; on made-up drawings."""
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rehearsal, "chemistry", lambda scale, say: rehearsal.made_up())
    monkeypatch.setattr(rehearsal, "write_models", lambda root, files: root.mkdir(parents=True))
    small = {"image": 24, "width": 2, "clusters": (2, 3, 4)}
    config = Config(scale="rehearsal", task=task, job="tapweight", **small)
    domain = images.Images(config, torch.device("cpu"), lambda _: None)
    assert domain.kind == kind and not set(domain.items["test"]) & set(domain.items["train"])
    losses = domain.losses(torch.arange(4), 0, 0)
    assert len(losses) == 5 and all(torch.isfinite(x) and x.requires_grad for x in losses)
    head = domain.head(0, "head")
    for part in ("train", "validation", "labelled"):
        assert torch.isfinite(domain.task_loss(domain.encoder, head, part, torch.arange(2)))
    domain.encoder.eval()
    with torch.no_grad():
        outputs = [domain.outputs(head, "test", rows) for rows in domain.batches("test")]
    predictions = domain.predictions("test", torch.cat(outputs))
    assert {len(x) for x in predictions.values()} == {len(domain.items["test"])}
    domain.export(head, tmp_path / task)
    assert (tmp_path / task / "encoder.safetensors").exists()
