"""Worker processes: what they share, and that neither an error, a death nor a parent's end goes unnoticed."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from bench.training.workers import Template, WorkerError, with_answers
from tests.tiny_runs import ROOT, python


def prepare(value: str) -> dict[str, str]:
    """What the workers of these tests share; also named by the program below."""
    if value == "bad":
        raise ValueError("nothing to\nprepare from")
    return {"value": value, "template": str(os.getpid())}


def serve(prepared, requests, send, suffix: str) -> None:
    """Answers each request with it; raises at "raise"."""
    while True:
        request = requests.get()
        if request == "raise":
            raise RuntimeError("asked\nto")
        send((request, prepared["value"] + suffix, os.getppid() == int(prepared["template"]), os.nice(0), os.getpid()))


@pytest.fixture
def template():
    template = Template(prepare, "shared")
    yield template
    template.close()


def test_workers_answer_in_order_from_what_their_template_prepared(template):
    plain, nice = template.fork("a", serve, "!"), template.fork("b", serve, "?", niceness=7)
    for worker in (plain, nice):
        for number in range(3):
            worker.send(number)
    answers = {worker: [worker.receive()[:4] for _ in range(3)] for worker in (plain, nice)}
    own = os.nice(0)
    assert answers[plain] == [(number, "shared!", True, own) for number in range(3)]
    assert answers[nice] == [(number, "shared?", True, min(19, own + 7)) for number in range(3)]
    nice.send("x")
    assert with_answers([plain, nice], timeout=60) == [nice]


def test_a_worker_that_raises_or_is_killed_gives_one_line_that_names_it(template):
    raising, killed = template.fork("worker one", serve, ""), template.fork("worker two", serve, "")
    raising.send("raise")
    with pytest.raises(WorkerError, match=r"^worker one: RuntimeError: asked to$"):
        raising.receive()
    killed.send("alive")
    os.kill(killed.receive()[-1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"^worker two ended: killed by signal 9, as when memory runs out$"):
        killed.receive()
    assert with_answers([killed], timeout=0) == [killed]  # a dead worker is noticed by those who wait, too
    with pytest.raises(WorkerError, match="worker two"):
        for _ in range(100):  # the first requests may still fit into the pipe
            killed.send("more")


def test_an_error_while_preparing_reaches_every_worker():
    template = Template(prepare, "bad")
    for name in ("first", "second"):
        with pytest.raises(WorkerError, match=f"^{name}: ValueError: nothing to prepare from$"):
            template.fork(name, serve, "").receive()
    template.close()


PARENT = """
import sys, time
from bench.training.workers import Template
from tests.test_workers import prepare, serve
if __name__ == "__main__":
    worker = Template(prepare, "x").fork("w", serve, "")
    worker.send(1)
    print(worker.receive()[-1], flush=True)
    {ending}
"""


@pytest.mark.parametrize("ending", ["time.sleep(100)", "sys.exit(3)", "raise KeyError('no close')"])
def test_workers_end_with_their_parent_however_it_ends(ending, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT.format(ending=ending))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert re.fullmatch(r"\d+\n", parent.stdout.readline())
    if "sleep" in ending:
        parent.kill()
    parent.wait(timeout=60)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(parent.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("worker processes are still there")


def test_an_answer_that_nobody_waits_for_any_more_ends_the_worker_in_silence():
    program = "from multiprocessing import Pipe; from bench.training.workers import _answer; ours, theirs = Pipe()"
    ended = python("-c", f"{program}; theirs.close(); _answer(ours, 1); print('goes on')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")
