"""What a task may do to its process: no other item pays for it, and the worker goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from aggregating_worker.local import LocalEndpoint
from tests.conftest import Caller, MakeWorker, Serve, off_runpod
from tests.tasks.deadly import DEATHS, HANGS
from tests.test_local_mode import serving

SETTINGS = {"ITEM_TIMEOUT": "0.3", "BATCH_SIZE": "32"}


@pytest.fixture(scope="module")
def deadly(shared: Serve) -> Callable[[str], Caller]:
    def find(task: str) -> Caller:
        concurrency = {} if task == "deadly_batch" else {"ITEM_CONCURRENCY": "4"}
        return shared(task, **SETTINGS, **concurrency)

    return find


def outcomes(state: dict[str, Any]) -> list[Any]:
    return [each["result"] if each["success"] else each["failure"]["type"] for each in state["output"]]


def eventually(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(caller: Caller, job_id: str) -> dict[str, Any]:
    eventually(lambda: caller.status(job_id)["status"] not in ("IN_QUEUE", "IN_PROGRESS"))
    return caller.status(job_id)


def check_one_of_eight(caller: Caller, bad: str, kind: str) -> None:
    made = outcomes(ended(caller, caller.run([0, 1, 2, bad, 4, 5, 6, 7])))
    assert made.pop(3) == kind
    assert [str(item).removeprefix("part ") for item in made] == [*"0124567"]


@pytest.mark.parametrize("bad", DEATHS)
@pytest.mark.parametrize("task", ["deadly", "deadly_batch", "deadly_parts", "deadly_async", "deadly_async_parts"])
def test_an_item_that_ends_its_process_costs_no_other_its_result(
    deadly: Callable[[str], Caller], task: str, bad: str
) -> None:
    check_one_of_eight(deadly(task), bad, "ProcessDied")


@pytest.mark.parametrize(
    ("task", "bad"),
    [
        *(("deadly", bad) for bad in HANGS),
        *(("deadly_batch", bad) for bad in ("hold the GIL", "rest")),
        *(("deadly_parts", bad) for bad in ("match", "turn")),
        *(("deadly_async", bad) for bad in ("calculate", "turn")),
    ],
)
def test_an_item_that_never_returns_costs_no_other_its_result(
    deadly: Callable[[str], Caller], task: str, bad: str
) -> None:
    check_one_of_eight(deadly(task), bad, "TimeoutError")


@pytest.mark.parametrize("bad", ["segfault", "rest"])
def test_a_job_that_shares_a_call_with_a_bad_item_has_all_its_results(shared: Serve, bad: str) -> None:
    caller = shared("deadly_batch", **SETTINGS, BATCH_WAIT="0.5")
    jobs = [caller.run([0, bad, 2]), caller.run([3, 4])]
    found = [outcomes(ended(caller, job_id)) for job_id in jobs]
    assert found == [[0, "ProcessDied" if bad in DEATHS else "TimeoutError", 2], [3, 4]]


def do(what: str, value: Any = None) -> dict[str, Any]:
    return {"do": what, "value": value}


def worker_process(caller: Caller) -> psutil.Process:
    [worker] = caller.endpoint.workers.running
    return psutil.Process(worker.process.pid)


def notes(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "notes").read_text().splitlines()]


@pytest.fixture(scope="module")
def own(serve: Serve) -> Caller:
    return serve("processes")


def test_the_worker_never_runs_the_task(own: Caller) -> None:
    [pid] = outcomes(own.runsync([do("pid")]))
    worker = worker_process(own)
    assert pid in [child.pid for child in worker.children(recursive=True)]
    first_to_die = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    assert first_to_die > int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())


def test_a_caller_is_told_what_ended_the_process(own: Caller) -> None:
    state = own.runsync([do("die")])
    assert state["output"][0]["failure"] == {
        "type": "ProcessDied",
        "message": "The process that ran it was killed by SIGKILL.",
    }


def test_what_chance_has_ended_is_tried_again(own: Caller, tmp_path: Path) -> None:
    assert outcomes(own.runsync([do("die once", str(tmp_path / "died"))])) == [str(tmp_path / "died")]


def test_results_with_files_in_them_are_kept_beside_an_item_that_ends_its_process(own: Caller) -> None:
    """They are encoded after their call has ended, and the next suspects wait for that."""
    items = [do("picture", 1_000), do("die"), do("picture", 1_000), do("picture", 1_000)]
    made = outcomes(ended(own, own.run(items)))
    assert [each if isinstance(each, str) else each["content_type"] for each in made] == [
        "image/png",
        "ProcessDied",
        "image/png",
        "image/png",
    ]


def test_what_a_process_has_started_ends_with_it(own: Caller) -> None:
    """A server lets go of its port, and a child that was forked does not hold up the news of its parent's end."""
    [[port], [child]] = [outcomes(own.runsync([do(what)])) for what in ("server", "fork")]
    socket.create_connection(("127.0.0.1", port)).close()
    own.runsync([do("die")])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    eventually(lambda: not psutil.pid_exists(child))


def test_a_process_whose_end_nobody_reports_is_replaced(serve: Serve) -> None:
    """What forks it has been stopped."""
    caller = serve("processes")
    caller.runsync([do("say", 1)])
    [server] = [child for child in worker_process(caller).children() if child.children()]
    server.suspend()
    assert outcomes(ended(caller, caller.run([do("say", 1), do("die"), do("say", 2)]))) == [1, "ProcessDied", 2]


def test_a_blocking_function_that_runs_one_call_at_a_time_does_so_where_it_was_loaded(serve: Serve) -> None:
    caller = serve("processes", ITEM_CONCURRENCY="1")
    assert outcomes(caller.runsync([do("where")])) == [{"main": True, "database": [1]}]


def test_an_async_load_and_unload_run_on_the_loop_of_the_calls(serve: Serve, tmp_path: Path) -> None:
    caller = serve("loop_bound", STATE=str(tmp_path / "unloaded"))
    assert outcomes(caller.runsync([1, 2])) == ["loaded", "loaded"]
    [worker] = caller.endpoint.workers.running
    worker.process.send_signal(signal.SIGTERM)
    assert worker.exited.result(20) == 0
    assert (tmp_path / "unloaded").read_text() == "loaded"


def test_a_process_is_loaded_once_and_unloaded_at_the_end(serve: Serve, tmp_path: Path) -> None:
    """Its own handler for SIGTERM keeps nothing alive."""
    caller = serve("processes", STATE=str(tmp_path))
    assert outcomes(caller.runsync([do("say", 1)])) == [1]
    [worker] = caller.endpoint.workers.running
    worker.process.send_signal(signal.SIGTERM)
    assert worker.exited.result(20) == 0
    assert notes(tmp_path) == ["load", "say", "unload"]


@pytest.mark.parametrize("items", [[], [do("sleep", 1_000)]], ids=["idle", "busy"])
@pytest.mark.parametrize("task", ["processes", "deadly"])
def test_a_worker_that_is_killed_leaves_nothing_behind(serve: Serve, items: list[Any], task: str) -> None:
    """Also where the GIL is held, so that nothing in the process can notice."""
    caller = serve(task)
    caller.runsync([do("say", 1)] if task == "processes" else [1])
    if items:
        caller.run(items if task == "processes" else ["hold the GIL"])
        time.sleep(0.3)
    worker = worker_process(caller)
    children = worker.children(recursive=True)
    assert len(children) >= 2
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    caller.endpoint.kill()


def test_processes_run_side_by_side_and_one_that_is_busy_holds_up_no_other(serve: Serve) -> None:
    caller = serve("deadly", PROCESSES="2", ITEM_CONCURRENCY="1", ITEM_TIMEOUT="3")
    caller.runsync([0])
    held = caller.run(["hold the GIL"])
    began = time.monotonic()
    assert outcomes(caller.runsync([*range(20)])) == [*range(20)]
    assert caller.post(f"/cancel/{held}").json()["status"] == "CANCELLED"
    assert time.monotonic() < began + 2


def test_each_process_has_its_own_gpus_and_its_share_of_the_cores(serve: Serve) -> None:
    caller = serve("processes", CUDA_VISIBLE_DEVICES="GPU-a,GPU-b", ITEM_CONCURRENCY="1")
    with ThreadPoolExecutor(2) as callers:
        found = [outcomes(state) for state in callers.map(caller.runsync, [[do("device"), do("sleep", 0.2)] * 2] * 2)]
    seen = {made["CUDA_VISIBLE_DEVICES"] for each in found for made in each if isinstance(made, dict)}
    assert seen == {"GPU-a", "GPU-b"}
    assert {made["OMP_NUM_THREADS"] for each in found for made in each if isinstance(made, dict)} == {
        str(max(1, len(os.sched_getaffinity(0)) // 2))
    }


def test_a_cuda_error_is_tried_once_more_in_a_new_process_and_then_fails(serve: Serve, tmp_path: Path) -> None:
    caller = serve("processes", ITEM_CONCURRENCY="1")
    once = str(tmp_path / "lost")
    made = outcomes(caller.runsync([do("lose the GPU once", once), do("lose the GPU"), do("use the GPU", 1)]))
    assert made == [once, "RuntimeError", 1]


def test_one_cuda_error_costs_no_call_beside_it_its_result(serve: Serve) -> None:
    """They all meet it, and are tried again, by halves."""
    caller = serve("processes", ITEM_CONCURRENCY="4")
    items = [do("use the GPU", 0), do("lose the GPU"), *(do("use the GPU", number) for number in range(2, 8))]
    assert outcomes(ended(caller, caller.run(items))) == [0, "RuntimeError", *range(2, 8)]


@pytest.mark.parametrize("bad", [do("signal", 40), do("garbage")], ids=["a signal without a name", "garbage"])
def test_whatever_a_process_does_to_end_the_worker_hears_of_it(own: Caller, bad: dict[str, Any]) -> None:
    assert outcomes(ended(own, own.run([do("say", 1), bad, do("say", 2)]))) == [1, "ProcessDied", 2]


def test_what_is_logged_in_a_process_that_the_task_forks_ends_nothing(own: Caller) -> None:
    assert outcomes(own.runsync([do("log in a fork", 7)])) == [7]
    assert "said in a fork" in own.log.read_text()


@pytest.mark.parametrize(
    "line",
    [
        "socket.setdefaulttimeout(0.1)",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "threading.Thread(target=time.sleep, args=(1_000,), daemon=True).start()",
    ],
)
def test_what_a_task_sets_when_it_is_imported_ends_no_process(
    make_worker: MakeWorker, tmp_path: Path, line: str
) -> None:
    folder = make_worker("processes")
    with (folder / "task.py").open("a") as task:
        task.write(f"\n\nimport socket\n\n{line}\n")
    with (
        (tmp_path / "log").open("wb") as output,
        LocalEndpoint(cwd=folder, log=output) as endpoint,
        Caller(endpoint, tmp_path / "log") as caller,
    ):
        state = ended(caller, caller.run([do("sleep", 0.5), do("die"), do("say", 2)]))
        assert outcomes(state) == [0.5, "ProcessDied", 2]
        assert state["output"][1]["failure"]["message"].endswith("was killed by SIGKILL.")


def test_a_process_that_always_ends_before_it_has_a_call_ends_the_worker(
    make_worker: MakeWorker, tmp_path: Path
) -> None:
    folder = make_worker("processes")
    with (folder / "task.py").open("a") as task:
        task.write("\n\ndef load() -> None:\n    threading.Timer(0.05, os._exit, (7,)).start()\n")
    with (tmp_path / "log").open("wb") as output, LocalEndpoint(cwd=folder, log=output) as endpoint:
        [worker] = endpoint.workers.running
        assert worker.exited.result(20) == 1
    assert "its process ended with status 7" in (tmp_path / "log").read_text()


def test_an_item_that_says_so_gets_a_new_process_for_the_others(own: Caller) -> None:
    [pid] = outcomes(own.runsync([do("pid")]))
    state = own.runsync([do("restart")])
    assert state["output"][0]["failure"] == {"type": "Broken", "message": "broken", "details": {"code": 7}}
    [other] = outcomes(own.runsync([do("pid")]))
    assert pid != other


def test_a_broken_worker_ends_and_leaves_its_jobs_to_another(serve: Serve) -> None:
    """After a success, everything fails alike, in a fresh process, too."""
    caller = serve("processes")
    caller.runsync([do("say", 1)])
    [worker] = caller.endpoint.workers.running
    states = [caller.runsync([do("full disk")]) for _ in range(6)]
    assert worker.exited.result(20) == 1
    assert [state["output"][0]["failure"]["type"] for state in states[:5]] == ["OSError"] * 5
    assert "in a fresh process, too" in caller.log.read_text()


def test_an_item_that_cannot_go_to_another_process_is_invalid_and_options_that_cannot_refuse_the_job(
    own: Caller,
) -> None:
    state = own.runsync([do("say", 1), do("stay"), do("say", 2)])
    assert outcomes(state) == [1, "InvalidItem", 2]
    assert state["output"][1]["failure"]["message"].startswith("A Item cannot be handed to the task's process: ")
    state = own.runsync([do("say", 1)], lock=True)
    assert state["status"] == "FAILED"
    assert state["error"].startswith("The job's options cannot be handed to the task's process: ")


def test_lines_of_the_task_are_whole_and_what_it_logs_is_under_its_job_and_item(serve: Serve) -> None:
    caller = serve("processes", PROCESSES="2", PYTHONUNBUFFERED="1")
    caller.runsync([do("print", 500)] * 8)
    lines = [line for line in caller.log.read_text().splitlines() if "four parts" in line]
    assert lines == ["a line of four parts"] * 4_000
    state = caller.runsync([do("say"), do("log", 7)])
    caller.wait_for_log(state["id"], "Item 1: said 7")


def test_load_is_tried_three_times_and_then_the_worker_ends_with_the_reason(serve: Serve) -> None:
    caller = serve("unloadable")
    [worker] = caller.endpoint.workers.running
    assert worker.exited.result(20) == 1
    assert caller.log.read_text().count("load() in task.py failed\\nTraceback") == 1
    assert caller.log.read_text().count("FileNotFoundError: the model is not there") >= 3


def test_a_timer_that_rings_while_the_worker_was_stopped_does_not_count(serve: Serve) -> None:
    caller = serve("processes", ITEM_TIMEOUT="1.5")
    caller.runsync([do("say", 1)])
    worker = worker_process(caller)
    job_id = caller.run([do("sleep", 0.8)])
    time.sleep(0.4)
    for process in (worker, *worker.children(recursive=True)):
        process.suspend()
    time.sleep(3)
    for process in (*worker.children(recursive=True), worker):
        process.resume()
    assert outcomes(ended(caller, job_id)) == [0.8]


def test_a_hundred_crashes_leave_nothing_behind(serve: Serve) -> None:
    caller = serve("processes")
    caller.runsync([do("die")])
    worker = worker_process(caller)

    def holds() -> tuple[int, int, int]:
        return worker.num_fds(), worker.num_threads(), len(worker.children(recursive=True))

    before = holds()
    made = outcomes(caller.runsync([do("die")] * 25))
    assert made == ["ProcessDied"] * 25
    eventually(lambda: holds() <= before)


BREAK = """
from typing import Any

from pydantic import BaseModel

class Input(BaseModel):
    items: list[Any]

def load() -> None:
    pass

{function}:
    breakpoint()
    return {returned}
"""


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        ("def process(item, job)", "item"),
        ("async def process(item, job)", "item"),
        ("def process_batch(items, job)", "items"),
    ],
)
@pytest.mark.parametrize("processes", ["0", "1"])
def test_a_debugger_has_the_terminal_where_the_task_runs_in_the_worker(
    make_worker: MakeWorker, function: str, returned: str, processes: str
) -> None:
    folder = make_worker("hostile")
    (folder / "task.py").write_text(BREAK.format(function=function, returned=returned))
    finished = subprocess.run(
        [sys.executable, "handler.py", "--test_input", '{"input": {"items": [41]}}'],
        cwd=folder,
        env=off_runpod(PROCESSES=processes),
        input="p 'in the debugger'\nc\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    if processes == "0":
        assert "(Pdb) 'in the debugger'" in finished.stdout
        assert "'result': 41" in finished.stdout
    else:
        assert finished.stderr.startswith("1 of 1 item failed. Item 0: RuntimeError: breakpoint() needs PROCESSES=0")


def test_the_sdks_other_servers_survive_a_crash_of_the_task(make_worker: MakeWorker, free_port: int) -> None:
    folder = make_worker("deadly_async")
    job = {"id": "1", "input": {"items": [0, "exit", 2]}}
    with serving(folder, free_port, "--rp_serve_api", f"--rp_api_port={free_port}") as client:
        assert outcomes(client.post("/runsync", json=job).json()) == [0, "ProcessDied", 2]
    with serving(folder, free_port, RUNPOD_REALTIME_PORT=str(free_port), RUNPOD_ENDPOINT_ID="me") as client:
        assert outcomes(client.post("/me/realtime", json=job).json()) == [0, "ProcessDied", 2]
