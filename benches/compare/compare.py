"""Measures Starlock beside nginx, HAProxy and Caddy: one machine, one run, interleaved rounds. Called by scripts/bench-compare.

The proxy has the first core to itself, load and origin share the last one. What to trust is the proxy's CPU time for each request:
requests a second saturate the load first. Every load is bounded, everything is on loopback, and what was started is stopped.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROXIES = ["starlock", "nginx", "haproxy", "caddy"]
HOST = "localhost"
MIB = 1 << 20
PATIENCE = 120.0
TICK = os.sysconf("SC_CLK_TCK")

# name, what is shown, whether less is better, digits
MEASURES = {
    "h1_cpu": ("CPU a request, h1 (us)", True, 1),
    "h1_rate": ("requests a second, h1", False, 0),
    "h2_cpu": ("CPU a request, h2 (us)", True, 1),
    "h2_rate": ("requests a second, h2", False, 0),
    "shake_cpu": ("CPU a full handshake (us)", True, 0),
    "shake_rate": ("full handshakes a second", False, 0),
    "p50": ("p50 at a fixed rate (us)", True, 0),
    "p99": ("p99 at a fixed rate (us)", True, 0),
    "down_cpu": ("CPU for 100 MiB down (ms)", True, 0),
    "down_rate": ("MiB a second down", False, 0),
    "up_cpu": ("CPU for 100 MiB up (ms)", True, 0),
    "up_rate": ("MiB a second up", False, 0),
    "memory": ("memory at start (MiB)", True, 1),
    "idle": ("memory an idle connection (KiB)", True, 1),
}


def main():
    arguments = parse()
    # More connections than the usual soft limit; the children inherit it.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000) if hard > 0 else 20_000, hard))
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the proxy, one for load and origin")
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory(prefix="compare-") as folder, tempfile.TemporaryDirectory(
        prefix="compare-", dir="/dev/shm"
    ) as shared:
        bench = Bench(arguments, Path(folder), Path(shared), cores[0])
        try:
            bench.run()
        finally:
            bench.stop_all()
        bench.report()


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starlock", required=True, help="the program to measure")
    parser.add_argument("--quick", action="store_true", help="two short rounds, 1,000 certificates: under 4 minutes")
    parser.add_argument("--rounds", type=int, help="default 5, quick 2")
    parser.add_argument("--only", default=",".join(PROXIES), help="some of " + ",".join(PROXIES))
    parser.add_argument("--json", help="a file for every single figure")
    return parser.parse_args()


class Bench:
    def __init__(self, arguments, folder, shared, core):
        self.arguments, self.folder, self.shared, self.core = arguments, folder, shared, core
        self.quick = arguments.quick
        self.rounds = arguments.rounds or (2 if self.quick else 5)
        self.wanted = [name for name in PROXIES if name in arguments.only.split(",")]
        self.requests = 20_000 if self.quick else 60_000
        self.idle = 1_500 if self.quick else 5_000
        self.counts = [1, 1_000] if self.quick else [1, 1_000, 10_000]
        self.figures = {name: {} for name in self.wanted}
        self.starts = {name: {} for name in self.wanted}
        self.running = []
        self.certs = Certificates(folder, max(self.counts))

    def run(self):
        origin = self.start_origin()
        for round_number in range(self.rounds):
            # Another one comes first each time, so that no one always has the warm or the cold machine.
            order = self.wanted[round_number % len(self.wanted):] + self.wanted[: round_number % len(self.wanted)]
            for name in order:
                say(f"round {round_number + 1} of {self.rounds}: {name}")
                self.round(name, origin)
        for count in self.counts:
            for name in self.wanted:
                say(f"start with {count} certificates: {name}")
                self.start_with(name, count, origin)

    def start_origin(self):
        port = free_port()
        (self.shared / "down").write_bytes(os.urandom(MIB) * 100)
        text = fill("origin.conf", ORIGIN=port, DIR=self.folder, SHM=self.shared, KIB="x" * 1024)
        path = self.folder / "origin.conf"
        path.write_text(text)
        os.chmod(self.shared, 0o777)
        self.spawn(["nginx", "-c", str(path), "-p", str(self.folder)], pinned=False)
        until(lambda: connects(port), "the origin does not answer")
        return port

    def round(self, name, origin):
        proxy, port = self.start(name, origin, 1)
        keep = lambda key, value: self.figures[name].setdefault(key, []).append(value)
        url = f"https://{HOST}:{port}"
        keep("memory", memory(proxy) / MIB)
        self.h2load(url + "/small", 2_000, ["--h1", "-c", "16"])
        self.h2load(url + "/small", 2_000, ["-c", "8", "-m", "8"])
        for key, options in (("h1", ["--h1", "-c", "32"]), ("h2", ["-c", "16", "-m", "16"])):
            before = cpu(proxy)
            took = self.h2load(url + "/small", self.requests, options)
            keep(f"{key}_cpu", (cpu(proxy) - before) / self.requests * 1e6)
            keep(f"{key}_rate", self.requests / took)
        before = cpu(proxy)
        count, took = self.handshakes(url + "/small", 2 if self.quick else 4)
        keep("shake_cpu", (cpu(proxy) - before) / count * 1e6)
        keep("shake_rate", count / took)
        p50, p99 = self.latency(url + "/small", 2_000, 3 if self.quick else 6)
        keep("p50", p50)
        keep("p99", p99)
        for key, more in (("down", ["-o", "/dev/null"]), ("up", ["-o", "/dev/null", "-T", str(self.shared / "down")])):
            repeats = 2 if self.quick else 4
            before, took = cpu(proxy), 0.0
            for _ in range(repeats):
                took += self.curl(url + f"/{key}", more)
            keep(f"{key}_cpu", (cpu(proxy) - before) / repeats * 1e3)
            keep(f"{key}_rate", 100 * repeats / took)
        self.stop(proxy)
        # A process of its own: what the loads above left behind is not part of a connection.
        proxy, port = self.start(name, origin, 1)
        keep("idle", self.idle_connections(proxy, port) / 1024)
        self.stop(proxy)

    def start_with(self, name, count, origin):
        begun = time.monotonic()
        proxy, _ = self.start(name, origin, count)
        ready = time.monotonic() - begun
        time.sleep(0.5)  # Go gives memory back, and jemalloc tidies up, only after a while: the same for all.
        self.starts[name][count] = (ready, memory(proxy) / MIB)
        self.stop(proxy)

    def start(self, name, origin, count):
        port = free_port()
        folder = self.folder / f"{name}-{port}"
        folder.mkdir()
        common = {"PORT": port, "ORIGIN": origin, "HOST": HOST, "DIR": folder}
        common |= {"CERT": self.certs.path(0, "crt"), "KEY": self.certs.path(0, "key"), "CRT": self.certs.combined(count)}
        others = range(1, count)
        path = folder / "config"
        environment = dict(os.environ)
        if name == "starlock":
            more = "".join(
                f'[[certificates]]\nnames = ["{host(n)}"]\ncert = "{self.certs.path(n, "crt")}"\nkey = "{self.certs.path(n, "key")}"\n'
                for n in others
            )
            path.write_text(fill("starlock.toml", MORE=more, **common))
            command = [self.arguments.starlock, "run", "--config", str(path)]
        elif name == "nginx":
            more = "".join(
                f"server {{ listen 127.0.0.1:{port} ssl http2; server_name {host(n)}; ssl_certificate {self.certs.path(n, 'crt')}; "
                f"ssl_certificate_key {self.certs.path(n, 'key')}; location / {{ proxy_pass http://origin; }} }}\n"
                for n in others
            )
            path.write_text(fill("nginx.conf", MORE=more, **common))
            command = ["nginx", "-c", str(path), "-p", str(folder)]
        elif name == "haproxy":
            path.write_text(fill("haproxy.cfg", **common))
            command = ["haproxy", "-db", "-f", str(path)]
        else:
            more = "".join(
                f"https://{host(n)}:{port} {{\n\tbind 127.0.0.1\n\ttls {self.certs.path(n, 'crt')} {self.certs.path(n, 'key')}\n"
                f"\treverse_proxy 127.0.0.1:{origin}\n}}\n"
                for n in others
            )
            path.write_text(fill("Caddyfile", MORE=more, **common))
            command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(path)]
            environment |= {"GOMAXPROCS": "1", "HOME": str(folder)}
        proxy = self.spawn(command, pinned=True, environment=environment, log=folder / "output")
        last = HOST if count == 1 else host(count - 1)
        try:
            until(lambda: alive(proxy) and shakes(port, last), f"{name} does not serve {last}")
        except TimeoutError as error:
            sys.exit(f"{error}\n{(folder / 'output').read_text()[-3000:]}")
        return proxy, port

    def spawn(self, command, pinned, environment=None, log=None):
        pin = {self.core} if pinned else os.sched_getaffinity(0)
        output = open(log, "w") if log else subprocess.DEVNULL
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, pin),
        )
        self.running.append(child)
        return child

    def stop(self, child):
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self.running.remove(child)

    def stop_all(self):
        for child in list(self.running):
            self.stop(child)

    def h2load(self, url, requests, options):
        """Sends `requests` and gives the seconds it took; every one must be a 2xx."""
        begun = time.monotonic()
        text = output(["h2load", "-t", "1", "-n", str(requests), *options, url])
        took = time.monotonic() - begun
        line = next((line for line in text.splitlines() if line.startswith("status codes:")), "")
        if not line.startswith(f"status codes: {requests} 2xx"):
            sys.exit(f"not every request was answered well:\n{text}")
        return took

    def handshakes(self, url, seconds):
        """Requests with a connection each: the number of full handshakes, and the seconds they took."""
        begun = time.monotonic()
        text = output(["wrk", "-t", "1", "-c", "32", "-d", f"{seconds}s", "-H", "Connection: close", url])
        took = time.monotonic() - begun
        line = next(line for line in text.splitlines() if " requests in " in line)
        if "Non-2xx" in text:
            sys.exit(f"not every request was answered well:\n{text}")
        return int(line.split()[0]), took

    def latency(self, url, rate, seconds):
        """Microseconds of the median and the 99th percentile, at a rate that all four can do."""
        log = self.folder / "latency"
        log.unlink(missing_ok=True)
        clients = 20
        options = ["--h1", "-c", str(clients), f"--rps={rate / clients}", f"--log-file={log}"]
        self.h2load(url, rate * seconds, options)
        times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
        return times[len(times) // 2], times[len(times) * 99 // 100]

    def curl(self, url, more):
        text = output(["curl", "-sSk", "--http1.1", "--fail", "-w", "%{time_total} %{size_download} %{size_upload}", *more, url])
        seconds, down, up = (float(part) for part in text.split()[-3:])
        if max(down, up) != 100 * MIB:
            sys.exit(f"{url}: {max(down, up)} bytes instead of 100 MiB")
        return seconds

    def idle_connections(self, proxy, port):
        """Bytes of the proxy for each of many connections that have made one request and wait."""
        context = ssl.create_default_context(cafile=self.certs.root)
        ask = f"GET /small HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()

        def connect(number):
            # Four source addresses: more than enough ports.
            raw = socket.create_connection(("127.0.0.1", port), source_address=(f"127.0.1.{1 + number % 4}", 0))
            stream = context.wrap_socket(raw, server_hostname=HOST)
            stream.sendall(ask)
            got = b""
            while not got.endswith(b"x" * 64):
                piece = stream.recv(4096)
                if not piece:
                    sys.exit(f"a connection was closed before its answer: {got[:200]}")
                got += piece
            return stream

        first = [connect(n) for n in range(50)]
        time.sleep(0.3)
        before = memory(proxy)
        held = [connect(n) for n in range(self.idle)]
        time.sleep(1.0)
        used = memory(proxy) - before
        for stream in first + held:
            stream.close()
        return used / self.idle

    def report(self):
        print("\n" + versions(self.arguments.starlock, self.wanted))
        print(f"{self.rounds} rounds, median (least - most), and the ratio to nginx\n")
        head = ["", *self.wanted]
        rows = []
        for key, (label, less, digits) in MEASURES.items():
            row = [label]
            base = statistics.median(self.figures["nginx"][key]) if "nginx" in self.figures else None
            for name in self.wanted:
                values = self.figures[name][key]
                median = statistics.median(values)
                ratio = f"  {median / base:.2f}x" if base else ""
                row.append(f"{median:,.{digits}f} ({min(values):,.{digits}f} - {max(values):,.{digits}f}){ratio}")
            rows.append(row)
        for count in self.counts:
            row = [f"start with {count:,} certificates"]
            for name in self.wanted:
                ready, used = self.starts[name][count]
                row.append(f"{ready:.2f} s, {used:,.1f} MiB")
            rows.append(row)
        table([head, *rows])
        if self.arguments.json:
            document = {"rounds": self.figures, "starts": {n: {str(c): v for c, v in s.items()} for n, s in self.starts.items()}}
            Path(self.arguments.json).write_text(json.dumps(document, indent=1))


class Certificates:
    """A root, and leaves for as many names as wanted; P-256 everywhere."""

    def __init__(self, folder, count):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        self.folder = folder / "certs"
        self.folder.mkdir()
        self.root = str(self.folder / "root.crt")
        say(f"making {count} certificates")
        now = datetime.now(timezone.utc)

        def sign(name, key, issuer, issuer_key, extensions):
            builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key())
            builder = builder.serial_number(x509.random_serial_number())
            builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=90))
            for extension, critical in extensions:
                builder = builder.add_extension(extension, critical)
            return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

        def named(text):
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        root_key = ec.generate_private_key(ec.SECP256R1())
        root = sign(named("bench root"), root_key, named("bench root"), root_key,
                    [(x509.BasicConstraints(ca=True, path_length=None), True)])
        Path(self.root).write_bytes(root)
        for n in range(count):
            key = ec.generate_private_key(ec.SECP256R1())
            name = host(n)
            leaf = sign(named(name), key, named("bench root"), root_key,
                        [(x509.SubjectAlternativeName([x509.DNSName(name)]), False)])
            secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                       serialization.NoEncryption())
            Path(self.path(n, "crt")).write_bytes(leaf)
            Path(self.path(n, "key")).write_bytes(secret)

    def path(self, n, kind):
        return str(self.folder / f"{n}.{kind}")

    def combined(self, count):
        """What HAProxy wants: a directory with chain and key in one file each."""
        folder = self.folder / f"combined-{count}"
        if not folder.exists():
            folder.mkdir()
            for n in range(count):
                text = Path(self.path(n, "crt")).read_text() + Path(self.path(n, "key")).read_text()
                (folder / f"{n}.pem").write_text(text)
        return folder


def host(n):
    return HOST if n == 0 else f"n{n}.bench.test"


def fill(template, **values):
    text = (HERE / template).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text.replace("@MORE@", "")


def output(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def shakes(port, name):
    context = ssl._create_unverified_context()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw, context.wrap_socket(raw, server_hostname=name) as stream:
            return name.encode() in stream.getpeercert(binary_form=True)
    except OSError:
        return False


def until(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.005)


def alive(child):
    if child.poll() is not None:
        raise TimeoutError(f"it ended with {child.returncode}")
    return True


def tree(child):
    """The process and all below it."""
    pids, found = [child.pid], []
    while pids:
        pid = pids.pop()
        found.append(pid)
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(text) for text in (task / "children").read_text().split()]
        except FileNotFoundError:
            continue
    return found


def cpu(child):
    """Seconds of CPU time, of user and system together."""
    ticks = 0
    for pid in tree(child):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def memory(child):
    """Bytes of resident memory, what is shared between processes counted once (PSS)."""
    total = 0
    for pid in tree(child):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def versions(starlock, wanted):
    commands = {"starlock": [starlock, "--version"], "nginx": ["nginx", "-v"], "haproxy": ["haproxy", "-v"], "caddy": ["caddy", "version"]}
    found = []
    for name in wanted:
        done = subprocess.run(commands[name], capture_output=True, text=True)
        found.append((done.stdout + done.stderr).strip().splitlines()[0].split(" https://")[0])
    return "; ".join(found)


def table(rows):
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def say(text):
    print(f"\033[1m{text}\033[0m", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if not shutil.which("h2load"):
        sys.exit("start it by scripts/bench-compare, which installs what it needs")
    main()
