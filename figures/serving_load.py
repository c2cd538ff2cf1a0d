"""How fast is `serve`, and does it lose requests? Prints the figures of docs/serving.md.

python figures/serving_load.py [--size atto] [--seconds 10] [--requests 10000]

The server runs in a process of its own, with random weights of a size; the clients run here. The first part measures
latency and pictures a second for 1, 8 and 32 clients, in turns with a loop that calls the model without a server. The
second sends many requests, one in a hundred of them malformed, slow or cut off: each good one has to be answered, and
memory must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

CLIENTS = (1, 8, 32)
ROUNDS = 3
BAD_EVERY = 100
PATIENCE = 120.0  # seconds for one answer


def photo(side: int = 320) -> bytes:
    """A JPEG of a smooth picture with some noise, of about 30 kB."""
    random = np.random.RandomState(0)
    y, x = np.mgrid[0:side, 0:side]
    channels = [128 + 80 * np.sin(x / 29 + phase) * np.cos(y / 23 - phase) for phase in (0, 1, 2)]
    pixels = np.stack(channels, axis=-1) + random.normal(0, 12, (side, side, 3))
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=85)
    return content.getvalue()


def request(body: bytes, close: bool = False) -> bytes:
    lines = ["POST / HTTP/1.1", "Host: localhost", "Content-Type: image/jpeg", f"Content-Length: {len(body)}"]
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and the body of the next answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    return int(head.split(b" ", 2)[1]), await asyncio.wait_for(reader.readexactly(length), PATIENCE)


async def clients(port: int, count: int, seconds: float, body: bytes) -> list[float]:
    """The latencies of all answers to `count` clients, each of which asks again and again on its own connection."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.perf_counter()) < end:
            writer.write(request(body))
            status, content = await answer(reader)
            if status != 200:
                raise SystemExit(f"an answer of status {status}: {content!r}")
            latencies.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(client() for _ in range(count)))
    return latencies


def in_a_loop(folder: str, seconds: float, body: bytes) -> tuple[float, float]:
    """Decode and classify one by one in a process: pictures a second, and milliseconds of a core for each."""
    code = f"""
import io, sys, time
from mlx_convnextv2 import ImageClassifier
body = sys.stdin.buffer.read()
classifier = ImageClassifier({folder!r})
classifier(io.BytesIO(body))
start, work, count = time.perf_counter(), time.process_time(), 0
while time.perf_counter() - start < {seconds}:
    classifier(io.BytesIO(body)); count += 1
print(count / (time.perf_counter() - start), 1000 * (time.process_time() - work) / count)
"""
    result = subprocess.run([sys.executable, "-c", code], input=body, capture_output=True, check=True)
    rate, cost = map(float, result.stdout.split())
    return rate, cost


class Server:
    """`serve` in a process of its own."""

    def __init__(self, folder: str):
        command = [sys.executable, "-m", "mlx_convnextv2.serve", "--model", folder, "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)
        self.port = int(re.search(r":(\d+) \(", self.process.stdout.readline())[1])

    def resident(self) -> float:
        """The server's memory in MB."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def work(self) -> float:
        """The milliseconds of a core that the server has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


async def bad(port: int, kind: int, body: bytes) -> None:
    """A client that sends nonsense (0), leaves in the middle (1), or sends slowly in small parts (2)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if kind == 0:
        writer.write(request(b"no picture " * 50, close=True))
        status, _ = await answer(reader)
        if status != 400:
            raise SystemExit(f"a malformed picture was answered with status {status}")
    elif kind == 1:
        writer.write(request(body)[: len(body) // 2])
        await writer.drain()
    else:
        sent = request(body, close=True)
        for start in range(0, len(sent), len(sent) // 20):
            writer.write(sent[start : start + len(sent) // 20])
            await asyncio.sleep(0.05)
        await answer(reader)
    writer.close()


async def storm(server: Server, total: int, body: bytes) -> tuple[Counter[int], list[float]]:
    """Send `total` requests from 16 clients: the statuses of the good ones, and the server's memory on the way."""
    statuses: Counter[int] = Counter()
    memory: list[float] = []
    numbers = iter(range(total))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for number in numbers:
            if number % (total // 20) == 0:
                memory.append(server.resident())
            if number % BAD_EVERY == 0:
                await bad(server.port, number // BAD_EVERY % 3, body)
                continue
            writer.write(request(body))
            status, _ = await answer(reader)
            statuses[status] += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(16)))
    return statuses, memory


def quantile(values: list[float], share: float) -> str:
    return f"{1000 * float(np.quantile(values, share)):.1f}"


def measure_speed(folder: str, seconds: float, body: bytes) -> None:
    server = Server(folder)
    asyncio.run(clients(server.port, 8, 2, body))  # warm
    rates: dict[int, list[float]] = {count: [] for count in (0, *CLIENTS)}  # 0 for the loop
    costs: dict[int, list[float]] = {count: [] for count in (0, *CLIENTS)}
    latencies: dict[int, list[float]] = {count: [] for count in CLIENTS}
    for _ in range(ROUNDS):
        rate, cost = in_a_loop(folder, seconds, body)
        rates[0].append(rate)
        costs[0].append(cost)
        for count in CLIENTS:
            start, work = time.perf_counter(), server.work()
            got = asyncio.run(clients(server.port, count, seconds, body))
            rates[count].append(len(got) / (time.perf_counter() - start))
            costs[count].append((server.work() - work) / len(got))
            latencies[count] += got
    server.stop()
    print("| clients | median, ms | 95 %, ms | 99 %, ms | pictures/s | to the loop | core time to the loop's |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for count in CLIENTS:
        quantiles = " | ".join(quantile(latencies[count], share) for share in (0.5, 0.95, 0.99))
        speed, cost = ratio(rates[count], rates[0]), ratio(costs[count], costs[0])
        print(f"| {count} | {quantiles} | {statistics.median(rates[count]):.1f} | {speed:.2f} | {cost:.2f} |")
    print(f"\nThe loop: {statistics.median(rates[0]):.1f} pictures/s", flush=True)


def ratio(values: list[float], beside: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(value / other for value, other in zip(values, beside, strict=True))


def measure_storm(folder: str, total: int, body: bytes) -> int:
    server = Server(folder)
    asyncio.run(clients(server.port, 16, 2, body))  # warm
    statuses, memory = asyncio.run(storm(server, total, body))
    status = server.stop()
    good = total - len(range(0, total, BAD_EVERY))
    lost = good - statuses[200]
    settled = memory[len(memory) // 4 :]
    print(f"\n{total:,} requests, 1 % bad: {statuses[200]:,} of {good:,} good ones answered, {lost} lost")
    print(f"Memory: {settled[0]:.0f} MB after a quarter, {settled[-1]:.0f} MB at the end; exit status {status}")
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="atto", help="atto to huge")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients in each round")
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args()
    body = photo()
    with tempfile.TemporaryDirectory() as temporary:
        from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, save
        from mlx_convnextv2.demo import DEMO

        folder = str(Path(temporary) / "model")
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(arguments.size))
        save(model, folder, ConvNextImageProcessor(size=224))
        if arguments.seconds:
            measure_speed(folder, arguments.seconds, body)
        lost = measure_storm(str(DEMO), arguments.requests, body) if arguments.requests else 0
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
