"""Planted bugs: each one-line change to the hypergradient library must make a fast test fail.

Every mutant is a copy of shared/ with one line replaced; the tests of the library run against it in
a process of their own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = "tests/shared/test_"
TESTS = {
    "hypergrad.py": [f"{HERE}hypergrad.py", f"{HERE}hypergrad_state.py"],
    "unrolled.py": [f"{HERE}hypergrad_inner.py"],
    "inverse.py": [f"{HERE}hypergrad_inner.py"],
    "evaluation.py": [f"{HERE}hypergrad_training.py", f"{HERE}hypergrad_refusals.py"],
    "multilevel.py": [f"{HERE}multilevel.py"],
    "vectors.py": [f"{HERE}vectors.py"],
}
ALL = list(dict.fromkeys(test for tests in TESTS.values() for test in tests))
SLOWEST = (
    f"{HERE}hypergrad.py::test_two_processes_equal_one"  # for the bugs that need two processes
)

# what goes wrong: (file, the line's text, what it becomes)
MUTANTS = {
    "sign of the implicit term": (
        "hypergrad.py", "None if x is None else -factor * x", "None if x is None else factor * x",
    ),
    "learning rate missing": ("hypergrad.py", "factor, d = lr, v", "factor, d = 1.0, v"),
    "rates per tensor missing in the direction": (
        "hypergrad.py", "v if lr is None else vectors.scaled(v, lr)", "v",
    ),
    "difference divided by eps instead of 2 eps": (
        "hypergrad.py", "(a - b) / (2 * eps)", "(a - b) / eps",
    ),
    "second probe on the same side": (
        "hypergrad.py", "vectors.shift_(call.theta, call.base, d, -eps)",
        "vectors.shift_(call.theta, call.base, d, eps)",
    ),
    "one-sided difference": (
        "hypergrad.py", "vectors.shift_(call.theta, call.base, d, -eps)",
        "vectors.shift_(call.theta, call.base, d, 0.0)",
    ),
    "probes around the stepped point": ("hypergrad.py", 'if around == "stepped":', "if True:"),
    "stepped convention ignored": ("hypergrad.py", 'if around == "stepped":', "if False:"),
    "mixed product at the stepped point": (
        "hypergrad.py", "    if not isinstance(method, (FiniteDifference, *STILL)):\n"
        "        vectors.copy_(call.theta, call.base)\n", "",
    ),
    "look-ahead uphill": (
        "hypergrad.py", "vectors.add_(call.theta, g, -lr)", "vectors.add_(call.theta, g, lr)",
    ),
    "no look-ahead": (
        "hypergrad.py", "if look_ahead and not isinstance", "if False and not isinstance",
    ),
    "look-ahead also where switched off": (
        "hypergrad.py", "if look_ahead and not isinstance", "if not isinstance",
    ),
    "direct term lost": (
        "hypergrad.py", "grads = [a + b for a, b in zip(direct, implicit)]",
        "grads = [b for a, b in zip(direct, implicit)]",
    ),
    "radius of float32 in float64": ("hypergrad.py", "return 1e-4 if all", "return 1.0 if all"),
    "bf16 radius as in float32": ("hypergrad.py", "        return 1e-1\n", "        return 1e-3\n"),
    "kept graph at the wrong point": (
        "hypergrad.py", 'keep_graph=around == "theta"', "keep_graph=True",
    ),
    "detached dependence not reported": (
        "hypergrad.py", "if relative_error <= tolerance or", "if relative_error <= 1e9 or",
    ),
    "first-order method looks ahead": (
        "hypergrad.py", "STILL = (FirstOrder, Neumann", "STILL = (Neumann",
    ),
    "vector of the caller overwritten": (
        "inverse.py", "vectors.zeros_like(v), vectors.clone(v), vectors.clone(v)",
        "vectors.zeros_like(v), v, vectors.clone(v)",
    ),
    "unrolling: learning rate missing on the way back": (
        "unrolled.py", "return v[0], -rate * v[0], []", "return v[0], -v[0], []",
    ),
    "conjugate gradients: one iteration too few": (
        "inverse.py", "    for i in range(k):", "    for i in range(k - 1):",
    ),
    "conjugate gradients: old residual in the direction": (
        "inverse.py", "        vectors.add_(p, r)\n        rr = new",
        "        vectors.add_(p, old)\n        rr = new",
    ),
    "conjugate gradients: inverted ratio": (
        "inverse.py", "vectors.scale_(p, new / rr)", "vectors.scale_(p, rr / new)",
    ),
    "conjugate gradients: damping dropped": ("inverse.py", "vectors.add_(hp, p, damping)", "pass"),
    "conjugate gradients: residuals not kept orthogonal": (
        "inverse.py", "        if reorthogonalise:", "        if False:",
    ),
    "neumann: one term too few": (
        "inverse.py", "    for _ in range(k):", "    for _ in range(k - 1):",
    ),
    "neumann: rate missing outside": (
        "inverse.py", "return vectors.scale_(total, rate)", "return total",
    ),
    "unrolling: momentum not carried back": ("unrolled.py", "[self.momentum * v_b]", "[0 * v_b]"),
    "unrolling: off by one in Adam's correction": (
        "unrolled.py", "x, state, rate, t + 1)", "x, state, rate, t + 2)",
    ),
    "unrolling: theta of the wrong step": (
        "unrolled.py", "        vectors.copy_(call.theta, step.theta)\n", "",
    ),
    "unrolling: identity path lost": (
        "unrolled.py", "x if y is None else x + y for x, y", "x if y is None else y for x, y",
    ),
    "unrolling: first losses for all steps": (
        "unrolled.py", "method.losses[t] if", "method.losses[0] if",
    ),
    "unrolling: root of zero": (
        "unrolled.py", "torch.where(s > 0, torch.where(s > 0, s / (1 - b**t), 1.0).sqrt(), 0.0)",
        "(s / (1 - b**t)).sqrt()",
    ),
    "theta not put back": ("vectors.py", "        copy_(self.theta, self.values)\n", ""),
    "theta put back with rounding": (
        "vectors.py", "        copy_(theta, before)\n", "        add_(theta, v, -alpha)\n",
    ),
    "random state not put back": ("vectors.py", "torch.set_rng_state(self._random[0])", "pass"),
    "different dropout masks in the probes": (
        "evaluation.py", "        self.snapshot.rewind()\n", "",
    ),
    "buffers not put back": ("vectors.py", "buffer.data.copy_(value)", "pass"),
    ".grad lost": ("vectors.py", "            p.grad = grad\n", ""),
    ".grad of the caller filled": (
        "vectors.py", "            p.grad = None  #", "            pass  #",
    ),
    "graphs of the caller invalidated": (
        "vectors.py", "torch._foreach_copy_([x.data for x in v]",
        "torch._foreach_copy_([x.detach() for x in v]",
    ),
    "weights stay frozen": ("vectors.py", "            p.requires_grad_(requires_grad)\n", ""),
    "norm of the first tensor alone": (
        "vectors.py", "for p in parts]).norm().item()", "for p in parts[:1]]).norm().item()",
    ),
    "micro-batches added instead of averaged": (
        "evaluation.py", "yield out if len(micro) == 1 else out / len(micro)", "yield out",
    ),
    "autocast left on in the probes": (
        "evaluation.py", "enabled=probe_dtype is not None",
        "enabled=torch.is_autocast_enabled(device.type)",
    ),
    "stale casts of moved weights": (
        "evaluation.py", "        torch.clear_autocast_cache()  # theta may",
        "        pass  # theta may",
    ),
    "non-finite losses accepted": ("evaluation.py", "if not math.isfinite(value):", "if False:"),
    "overlap accepted": ("evaluation.py", "a + size > b for", "a + size > b + 10**18 for"),
    "gradients not averaged over processes": ("processes.py", "dist.all_reduce(flat)", "pass"),
    "gradients added over processes": ("processes.py", "flat.div_(world_size())", "flat"),
    "chain: lower level skipped": (
        "multilevel.py", "for i in reversed(range(len(levels))):",
        "for i in reversed(range(1, len(levels))):",
    ),
    "chain: path through the level above lost": (
        "multilevel.py", "flow[j] = [plus(x, next(back)) for x in flow[j]]",
        "flow[j] = [(next(back), x)[1] for x in flow[j]]",
    ),
    "chain: direct path overwritten": (
        "multilevel.py", "flow[j] = [plus(x, next(back)) for x in flow[j]]",
        "flow[j] = [next(back) for x in flow[j]]",
    ),
    "chain: level differentiated where it ended": (
        "multilevel.py", "vectors.copy_(thetas[i], before[i])", "pass",
    ),
    "chain: upper levels see unstepped lower ones": (
        "multilevel.py", "vectors.copy_(theta, after)", "pass",
    ),
    "chain: levels walked from below": (
        "multilevel.py", "for i in reversed(range(len(levels))):", "for i in range(len(levels)):",
    ),
}  # fmt: skip
NEED_TWO_PROCESSES = {"gradients not averaged over processes", "gradients added over processes"}
# The old residual must exist under a name to be used; the two lines before it are part of that bug.
EXTRA = {
    "conjugate gradients: old residual in the direction": (
        "inverse.py", "        vectors.add_(r, hp, -rr / curvature)",
        "        old = vectors.clone(r)\n        vectors.add_(r, hp, -rr / curvature)",
    ),
}  # fmt: skip


def run_tests(tmp_path, changes, arguments):
    """The library's tests against a changed copy of shared/; the exit status and the output."""
    for name in ("shared", "tests", "benchmarks/hypergradients"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.json")
        )
    shutil.copy(ROOT / "benchmarks" / "__init__.py", tmp_path / "benchmarks")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, old, new in changes:
        path = tmp_path / "shared" / file
        text = path.read_text()
        assert text.count(old) == 1, (
            f"{file} holds {old!r} {text.count(old)} times: bring this list up to date"
        )
        path.write_text(text.replace(old, new))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600
    )
    return done.returncode, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_unchanged_library_passes(tmp_path):
    status, output = run_tests(tmp_path, [], [*ALL, f"--deselect={SLOWEST}"])
    assert status == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("bug", MUTANTS)
def test_planted_bug_is_found(tmp_path, bug):
    changes = [MUTANTS[bug], *([EXTRA[bug]] if bug in EXTRA else [])]
    first = TESTS.get(changes[0][0], [])  # the file's own tests: most bugs are found there
    rest = [test for test in ALL if test not in first]
    if bug in NEED_TWO_PROCESSES:
        arguments = [SLOWEST]
    else:
        arguments = [*first, *rest, f"--deselect={SLOWEST}"]
    status, output = run_tests(tmp_path, changes, arguments)
    assert status == 1, f"no test noticed: {bug}\n{output}"
