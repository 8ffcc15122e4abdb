"""The load test of examples/serve.py: clients that ask at once, for a minute, on the loopback.

    python scripts/measure/load.py --model runs/bottle/model.onnx --images data/mvtec/bottle/test

The script starts uvicorn on a free port. Every client sends image after image over one connection, and the scores have
to be those that `predict` gives. It prints counts and latencies as a line of JSON, and ends with 1 if a request failed.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from padim import Runtime, predict

ROOT = Path(__file__).parents[2]
LONGEST = 60  # seconds that a start or an answer may take


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="what padim-export wrote")
    parser.add_argument("--images", type=Path, required=True, help="a folder of them")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="processes of the service")
    options = parser.parse_args()
    predictions = predict(Runtime.load(options.model), options.images, strict=True)
    images = [(prediction.path.read_bytes(), prediction.score or 0.0) for prediction in predictions]
    with service(options.model.resolve(), options.workers) as port, ThreadPoolExecutor(options.clients) as pool:
        start = time.perf_counter()
        clients = [pool.submit(ask, port, images, start + options.seconds, seed) for seed in range(options.clients)]
        answers = [latency for client in clients for latency in client.result()]
        seconds = time.perf_counter() - start
    latencies = [latency for latency in answers if latency is not None]
    percentiles = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("inf")] * 99
    line = {"clients": options.clients, "workers": options.workers, "seconds": round(seconds, 1)}
    line |= {"requests": len(answers), "failed": answers.count(None)}
    line |= {"requests_per_second": round(len(latencies) / seconds, 1)}
    line |= {f"p{share}_ms": round(1e3 * percentiles[share - 1], 1) for share in (50, 99)}
    print(json.dumps(line))
    return 1 if line["failed"] or not answers else 0


@contextmanager
def service(model: Path, workers: int) -> Iterator[int]:
    """The service on a free port of the loopback, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "examples.serve:app", "--log-level", "error"]
    command += ["--port", str(port), "--workers", str(workers)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PADIM_MODEL": str(model)})
    try:
        end = time.monotonic() + LONGEST
        while True:
            try:
                with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)) as connection:
                    connection.request("GET", "/openapi.json")
                    connection.getresponse()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(LONGEST)


def ask(port: int, images: list[tuple[bytes, float]], end: float, seed: int) -> list[float | None]:
    """The seconds that each request of one client took until its time was up; None for one that failed."""
    shuffled = random.Random(seed).sample(images, len(images))
    latencies: list[float | None] = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)) as connection:
        for content, score in itertools.cycle(shuffled):
            start = time.perf_counter()
            if start > end:
                return latencies
            try:
                connection.request("POST", "/predict", content)
                answer = json.load(connection.getresponse())
                if not math.isclose(answer["score"], score, rel_tol=1e-4):
                    raise ValueError(f"a score of {answer['score']} instead of {score}")
                latencies.append(time.perf_counter() - start)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                print(f"failed: {error!r}", file=sys.stderr)
                latencies.append(None)
                connection.close()
    raise AssertionError("there are no images")


if __name__ == "__main__":
    sys.exit(main())
