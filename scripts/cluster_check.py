"""make cluster-check: a real Slurm of one node trains what `make reproduce` trains, to equal bytes.

Needs root on Debian or Ubuntu (it installs slurmctld, slurmd and munge if they are missing, and
nothing into the environment: submitit goes to a temporary folder). The daemons get their own keys,
ports and folders and are stopped at the end. The result goes to benchmarks/results/cluster.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

Check = tuple[str, bool, str]  # what is checked, whether it passed, the figures

CONF = """
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={work}/munge.sock,cred_expire=20
SlurmctldPort={port0}
SlurmdPort={port1}
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""


def install(work: Path) -> None:
    """Debian's Slurm, and submitit in a folder of its own."""
    if os.geteuid() != 0:
        sys.exit(
            "error: make cluster-check starts Slurm's daemons and needs root; "
            "try it in a container: sudo make cluster-check"
        )
    commands = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
    if any(not shutil.which(c) for c in commands):
        if not shutil.which("apt-get"):
            sys.exit(
                "error: Slurm is not installed and there is no apt-get; "
                "install slurmctld, slurmd and munge first"
            )
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        packages = ["slurmctld", "slurmd", "slurm-client", "munge"]
        for words in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", *words], check=True, env=env)
    try:
        import submitit  # noqa: F401
    except ImportError:
        site = str(work / "site")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", site, "submitit"]
        subprocess.run(pip, check=True)
        sys.path.append(site)
        path = [site, os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path).strip(os.pathsep)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def slurm(work: Path) -> Iterator[None]:
    """munged, slurmctld and slurmd of one node; SLURM_CONF tells the commands where they are."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (work / name).mkdir()
    key, conf = work / "munge.key", work / "slurm.conf"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    conf.write_text(
        CONF.format(host=host, work=work, port0=free_port(), port1=free_port()), encoding="utf-8"
    )
    os.environ["SLURM_CONF"] = str(conf)
    files = {"key-file": "key", "socket": "sock", "pid-file": "pid"}
    files |= {"log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={work}/munge.{end}" for option, end in files.items()]
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        with open(work / f"{words[0]}.out", "wb") as log:
            started.append(subprocess.Popen(words, stdout=log, stderr=log))

    try:
        start("munged", "--foreground", "--force", *munge)
        wait_until(lambda: (work / "munge.sock").exists(), 20, "munged does not answer")
        start("slurmctld", "-D", "-i")
        start("slurmd", "-D", "-N", host)
        state, otherwise = ("sinfo", "-h", "-p", "low", "-o", "%T"), "the node does not come up"
        wait_until(lambda: output(*state).strip() == "idle", 60, f"{otherwise}; see {work}")
        yield
    finally:
        subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], capture_output=True)
        subprocess.run(["scancel", "--me"], capture_output=True)
        with contextlib.suppress(RuntimeError):  # no process of a job outlives the check
            wait_until(lambda: not output("squeue", "-h", "--me").strip(), 60, "jobs remain")
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)


def output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout


def wait_until(true: Callable[[], object], seconds: float, otherwise: str) -> None:
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > seconds:
            raise RuntimeError(f"{otherwise} (waited {seconds:.0f} s)")
        time.sleep(0.2)


STEP = "            run.log(step=step"
SLOW = "            __import__('time').sleep(float(__import__('os').environ.get('TOY_SLEEP', 0)))"
CHANGES = (  # of the toy: file, line, what stands there instead
    ("train.py", STEP, f"{SLOW}\n{STEP}"),
    ("protocol.yaml", "extra: {set: {lr: 0.1}}", "extra: {set: {lr: 0.1, crash: 100}}"),
)


def toy(root: Path) -> None:
    """The paper of twenty lines; TOY_SLEEP makes its steps slow; arm `extra` dies at seed 100."""
    import toy as toy_paper

    toy_paper.write(root)
    for file, old, new in CHANGES:
        path = root / "toy" / file
        assert old in path.read_text(encoding="utf-8")
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.reproduce", "toy", "--scale", "cpu", *words]


def hashes(root: Path) -> dict[str, tuple[str, str]]:
    """Finished runs, {folder: sha256 of the trained tensors and of the predictions}."""
    pairs = {}
    for path in sorted((root / "runs").glob("*/*/*/*/*/record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["status"] == "finished":
            pair = (record["state_sha256"], record.get("predictions_sha256", ""))
            pairs[str(path.parent.relative_to(root / "runs"))] = pair
    return pairs


def equal_runs(ours: Path, others: Path) -> tuple[int, int]:
    """Runs of `ours` that have the same hashes in `others`, and all of `ours`."""
    a, b = hashes(ours), hashes(others)
    return sum(pair == b.get(name) for name, pair in a.items()), len(a)


def logs(root: Path, text: str) -> int:
    return sum(
        p.read_text(encoding="utf-8").count(text)
        for p in (root / "runs").glob("toy/*/*/*/*/log.txt")
    )


def running() -> list[str]:
    return output("squeue", "--me", "-h", "-r", "-t", "RUNNING", "-p", "low", "-o", "%i").split()


def in_the_middle(root: Path) -> bool:
    """Some run has made a few of its steps and is not finished."""
    metrics = (root / "runs").glob("toy/*/*/*/*/metrics.jsonl")
    return any(
        2 <= len(p.read_text(encoding="utf-8").splitlines()) <= 12
        and not (p.parent / "record.json").exists()
        for p in metrics
    )


def disturbed(root: Path) -> list[Check]:
    """9 runs met by a requeue, a time limit's signal and preemption, against undisturbed ones."""
    local, log = root.parent / "local", root.parent / "slurm.log"
    toy(local)
    subprocess.run(command("--seeds", "2"), cwd=local, check=True, capture_output=True)
    env = {**os.environ, "TOY_SLEEP": "0.5"}
    words = command("--seeds", "2", "--jobs", "4", "--executor", "slurm", "--time", "30m")
    with open(log, "w", encoding="utf-8") as stream:
        grid = subprocess.Popen(words, cwd=root, env=env, stdout=stream, stderr=subprocess.STDOUT)
    high = ["sbatch", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"]
    disturbances: dict[str, Callable[[], list[str]]] = {
        "scontrol requeue": lambda: ["scontrol", "requeue", running()[0]],
        "SIGUSR2, as before a time limit": lambda: ["scancel", "--signal=USR2", running()[-1]],
        "preemption by a job of a higher partition": lambda: high,
    }
    rows = [disturb(root, grid, name, words) for name, words in disturbances.items()]
    grid.wait(1200)
    lines = [line.strip() for line in log.read_text(encoding="utf-8").strip().splitlines()]
    whole = grid.returncode == 0 and any("[9/9]" in line for line in lines)
    rows.append(("the grid ends as a local one does", whole, lines[-1][:200]))
    stops, again = logs(root, "stopped after step"), logs(root, "continues at step")
    figures = f"{stops} stops, {again} continuations"
    rows.append(("requeued runs continue at their checkpoints", again == stops > 0, figures))
    same, of = equal_runs(local, root)
    title = "trained tensors and predictions have the sha256 of the local runs"
    passed = same == of == len(hashes(root)) == 9
    rows.append((title, passed, f"{same} of {of} runs equal"))
    arrays = [line for line in lines if "submitted" in line]
    rows.append(("one array per level, stages first", len(arrays) == 2, "; ".join(arrays)))
    busy = next((line for line in lines if "workers busy" in line), "")
    rows.append(("scheduling efficiency is printed", bool(busy), busy))
    return rows


def disturb(
    root: Path, grid: subprocess.Popen[bytes], name: str, words: Callable[[], list[str]]
) -> Check:
    """Give the command `words()` while some run is in its middle: does it stop at a checkpoint?"""

    def ready() -> bool:
        return grid.poll() is not None or bool(running() and in_the_middle(root))

    wait_until(ready, 600, f"no run in the middle for {name}")
    before = logs(root, "stopped after step")
    done = subprocess.run(words(), capture_output=True, text=True)
    with contextlib.suppress(RuntimeError):
        wait_until(lambda: logs(root, "stopped after step") > before, 30, name)
    stopped = logs(root, "stopped after step") - before
    time.sleep(2)
    figures = f"{stopped} run(s) stopped {done.stderr.strip()}".strip()
    return f"{name}: a run finishes its step and checkpoints", stopped > 0, figures


def time_limit(root: Path) -> list[Check]:
    """A run of 160 s in jobs of two minutes: Slurm's own signal before its own limit."""
    title = "runs longer than the time limit (160 s, 2 minutes) end in later jobs"
    env = {**os.environ, "TOY_SLEEP": "8"}
    words = ["--seeds", "1", "--only", "noisy", "--executor", "slurm", "--time", "2m"]
    done = subprocess.run(command(*words), cwd=root, env=env, capture_output=True, text=True)
    stops, again = logs(root, "stopped after step"), logs(root, "continues at step")
    same, of = equal_runs(root, root.parent / "local")
    passed = done.returncode == 0 and again == stops > 0 and same == of == 2
    figures = f"{stops} stops, {again} continuations, {same} of {of} runs equal"
    return [(f"{title} with the local sha256", passed, figures)]


def crash(root: Path) -> list[Check]:
    """A process that dies without a word at one seed."""
    title = "a job that dies is given twice and recorded as crashed; the others finish"
    words = ["--seeds", "2", "--only", "extra", "--executor", "slurm", "--time", "30m"]
    done = subprocess.run(command(*words), cwd=root, capture_output=True, text=True)
    result = json.loads((root / "runs/toy/cpu/preview.json").read_text(encoding="utf-8"))
    ends = {(r["task"], r["seed"]): (r["status"], r["attempts"]) for r in result["runs"]}
    outcomes = {100: ("crashed", 2), 101: ("finished", 1)}
    expected = {(task, seed): outcomes[seed] for task in ("line", "plane") for seed in outcomes}
    passed = ends == expected and done.returncode == 1
    return [(f"{title}; exit status 1", passed, f"exit {done.returncode}; {ends}")]


def real_paper(root: Path) -> list[Check]:
    """Some runs of a real paper's rehearsal, by Slurm and by the local workers."""
    paper, arm = "ts_watermark", "kgw"
    title = f"{paper}: rehearsal of arm {arm} and what it uses, the same sha256 as local runs"
    words = [sys.executable, "-m", "benchmarks.reproduce", paper]
    words += ["--scale", "rehearsal", "--only", arm]
    root.mkdir()
    for name, more in (("local", []), ("slurm", ["--executor", "slurm", "--time", "30m"])):
        env = {**os.environ, "REPRO_RUNS": str(root / name / "runs")}
        done = subprocess.run([*words, *more], cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            return [(f"{paper} rehearsal", False, (done.stdout + done.stderr)[-600:])]
    same, of = equal_runs(root / "local", root / "slurm")
    passed = same == of == len(hashes(root / "slurm")) > 0
    return [(title, passed, f"{same} of {of} runs equal")]


def summary(rows: list[Check], submitit: str, seconds: float) -> dict[str, object]:
    """What benchmarks/results/cluster.json holds."""
    from shared import runs

    versions = {
        "slurm": output("slurmctld", "-V").strip(),
        "munge": output("munged", "--version").split(" (")[0].strip(),
        "submitit": submitit,
        "python": sys.version.split()[0],
    }
    return {
        "command": "make cluster-check",
        "passed": all(passed for _, passed, _ in rows),
        "seconds": round(seconds, 1),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": runs.commit(ROOT),
        "versions": versions,
        "cluster": "one node, 4 CPUs declared, slurmctld and slurmd on the same machine, "
        "no accounting",
        "checks": [{"check": c, "passed": p, "detail": d} for c, p, d in rows],
    }


def main() -> int:
    begun = time.monotonic()
    # An exit, unlike a death by the signal, stops the daemons.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ.update(CUDA_VISIBLE_DEVICES="", REPRO_CHECKPOINT_SECONDS="60")
    os.environ.pop("REPRO_RUNS", None)
    work = Path(tempfile.mkdtemp(prefix="cluster-check-"))
    rows: list[Check] = []
    install(work)
    try:
        submitit = metadata.version("submitit")  # now: its folder is gone at the end
        with slurm(work):
            for part in (disturbed, time_limit, crash, real_paper):
                root = work / part.__name__ / "slurm"
                if part is real_paper:
                    root = work / part.__name__
                else:
                    toy(root)
                if part is time_limit:  # compared with the runs of the first part
                    shutil.copytree(work / "disturbed" / "local", root.parent / "local")
                for row in part(root):
                    rows.append(row)
                    print(f"{'PASS' if row[1] else 'FAIL'}  {row[0]} ({row[2]})", flush=True)
    finally:
        if os.environ.get("KEEP"):
            print(f"not deleted: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    result = summary(rows, submitit, time.monotonic() - begun)
    target = ROOT / "benchmarks" / "results" / "cluster.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    passed = sum(row[1] for row in rows)
    place = os.path.relpath(target)
    print(f"{passed} of {len(rows)} checks pass in {result['seconds']:.0f} s -> {place}")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
