"""How often the rules are wrong: 2,000 simulated papers each, item interval on the mean's side."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.rules import (
    claim_verdict,
    control_outcome,
    holm,
    reported_verdict,
    sign_flip,
    spread_differences,
    t_interval,
    t_test,
)

PAPERS = 2000


def numbers(d, material=None):
    p_for, p_against = t_test(d)
    flip_for, flip_against = sign_flip(d)
    p_within = flip_within = None
    if material is not None:
        p_within = max(t_test(d, -material)[0], t_test(d, material)[1])
        flip_within = [1.0, 1.0]  # of what the t-test has settled they only cost time
        if p_within <= 0.025:
            flip_within = [sign_flip(d, -material)[0], sign_flip(d, material)[1]]
    return SimpleNamespace(
        p_within=p_within,
        flip_within=flip_within,
        n=len(d),
        effect=float(np.mean(d)),
        ci95=t_interval(d),
        p_for=p_for,
        p_against=p_against,
        flip_for=flip_for,
        flip_against=flip_against,
    )


def verdicts(family, kind="difference"):
    """Words for the claims of one paper: `family` holds an array of d per claim."""
    shown = [numbers(d) for d in family]
    adjusted = list(zip(holm([f.p_for for f in shown]), holm([f.p_against for f in shown])))
    return [
        claim_verdict(f, 0.0, p, None, items=False, kind=kind)[0] for f, p in zip(shown, adjusted)
    ]


def rates(papers, kind="difference"):
    """Share of papers with any SUPPORTED, and with any CONTRADICTED."""
    words = [verdicts(family, kind) for family in papers]
    return [
        float(np.mean([word in paper for paper in words])) for word in ("SUPPORTED", "CONTRADICTED")
    ]


@pytest.mark.parametrize("n", [5, 10])
def test_null_claim(n):
    rng = np.random.default_rng(n)
    supported, contradicted = rates(rng.normal(size=(PAPERS, 1, n)))
    assert supported <= 0.035 and contradicted <= 0.035
    assert supported + contradicted > 0  # the rules can fire


@pytest.mark.parametrize("n", [5, 10])
def test_null_claim_with_a_seed_effect_shared_by_four_tasks(n):
    rng = np.random.default_rng(100 + n)
    of_seed, of_task = rng.normal(size=(PAPERS, 1, n, 1)), rng.normal(size=(PAPERS, 1, n, 4))
    d = (np.sqrt(0.5) * of_seed + np.sqrt(0.5) * of_task).mean(axis=-1)
    supported, contradicted = rates(d)
    assert supported <= 0.035 and contradicted <= 0.035


def test_tasks_as_replicates_would_be_wrong():
    """Why tasks are averaged first: 5 seeds x 4 tasks taken as 20 pairs fire far too often."""
    rng = np.random.default_rng(0)
    of_seed, of_task = rng.normal(size=(PAPERS, 5, 1)), rng.normal(size=(PAPERS, 5, 4))
    pairs = (np.sqrt(0.5) * (of_seed + of_task)).reshape(PAPERS, 20)
    assert np.mean([t_test(d)[0] <= 0.025 for d in pairs]) > 0.08


@pytest.mark.parametrize("n", [5, pytest.param(10, marks=pytest.mark.slow)])
def test_eight_null_claims_sharing_the_method_arm(n):
    rng = np.random.default_rng(8)
    method, opponents = rng.normal(size=(PAPERS, 1, n)), rng.normal(size=(PAPERS, 8, n))
    supported, contradicted = rates(method - opponents)
    assert supported <= 0.035 and contradicted <= 0.035


@pytest.mark.parametrize("tails", ["normal", "t3"])
def test_spread_of_equally_steady_arms(tails):
    rng = np.random.default_rng(3)
    draw = rng.normal if tails == "normal" else lambda size: rng.standard_t(3, size=size)
    a, b = draw(size=(10, PAPERS)), draw(size=(10, PAPERS))
    supported, contradicted = rates(spread_differences(a, b).T[:, None, :], "spread")
    assert supported <= 0.035 and contradicted <= 0.035


def test_reported_numbers():
    rng = np.random.default_rng(14)
    noise = rng.normal(scale=0.93, size=(PAPERS, 5))
    far = [reported_verdict(80.0, 80.0 + 2.0 + d, 1.0)[0] for d in noise]
    near = [reported_verdict(80.0, 80.0 + d, 1.0)[0] for d in noise]
    assert np.mean([word == "REPRODUCED" for word in far]) <= 0.02
    assert np.mean([word == "NOT REPRODUCED" for word in near]) <= 0.01
    steady = [reported_verdict(80.0, 80.0 + d, 1.0)[0] for d in 0.3 * noise]
    assert np.mean([word == "REPRODUCED" for word in steady]) > 0.95


def test_a_clear_effect_is_found():
    rng = np.random.default_rng(2)
    supported, contradicted = rates(rng.normal(2.0, 1.0, size=(PAPERS, 1, 8)))
    assert supported >= 0.95 and contradicted == 0


@pytest.mark.parametrize(
    ("effect", "n", "least", "most"),
    [
        (1.0, 8, 0.0, 0.035),
        pytest.param(1.0, 24, 0.0, 0.035, marks=pytest.mark.slow),
        pytest.param(0.0, 24, 0.95, 1.0, marks=pytest.mark.slow),
    ],
)
def test_no_material_difference(effect, n, least, most):
    """A true effect of exactly m is rarely called immaterial; none at all, at sd m / 2, mostly."""
    noise = np.random.default_rng(16).normal(effect, 0.5, size=(PAPERS, n))
    words = []
    for d in noise:
        shown = numbers(d, material=1.0)
        more = {"material": 1.0, "p_holm_within": shown.p_within}
        words.append(claim_verdict(shown, 0.0, (1.0, 1.0), None, items=False, **more)[0])
    rate = np.mean([word == "NO MATERIAL DIFFERENCE" for word in words])
    assert least <= rate <= most and (rate > 0 or effect)


def test_a_beaten_control_is_not_called_unbeaten():
    rng = np.random.default_rng(4)
    d = rng.normal(1.0, 1.0, size=(PAPERS, 5))
    outcomes = [control_outcome(numbers(x), None, 1.0, items=False) for x in d]
    assert np.mean([outcome == "NOT BEATEN" for outcome in outcomes]) <= 0.04
    assert set(outcomes) == {"BEATEN", "NOT BEATEN", "OPEN"}
