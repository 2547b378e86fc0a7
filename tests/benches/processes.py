"""Child processes of the bench, and what processes cost by the kernel's account."""
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


class Child:
    """A process that answers HTTP once it is ready, and ends with the `with` block."""

    def __init__(self, name: str, command: list[str], folder: Path, ready: str, **more: str):
        self.name, self.ready = name, ready
        self.log = (folder / f"{name}.log").open("wb")
        self.process = subprocess.Popen(
            command, cwd=more.pop("cwd", folder), env=os.environ | more, stdout=self.log, stderr=self.log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )

    def __enter__(self):
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.ready, timeout=2)
                return self
            except OSError as error:
                if getattr(error, "code", 503) < 500:
                    return self
                time.sleep(0.1)
        self.__exit__()
        raise SystemExit(f"{self.name} did not become ready; see {self.log.name}")

    def freeze(self):
        """It does nothing from now on, and is still there."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self):
        os.killpg(self.process.pid, signal.SIGCONT)

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            # A frozen one would not hear of it.
            self.thaw()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.log.close()


def cpu_seconds(children: list[Child], data: str) -> dict[str, float]:
    """CPU seconds so far of these children and of the private servers whose data is in the folder, by name."""
    parents, own, commands = {}, {}, {}
    roots = {child.process.pid: child.name for child in children}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        # With the children that have ended and were waited for.
        own[int(entry.name)] = sum(int(field) for field in fields[11:15]) / TICK
    for pid, command in commands.items():
        program = os.path.basename(command.split(" ")[0])
        if program == "postgres" and f"-D {data}/" in command:
            roots[pid] = "postgres"
        elif program == "beam.smp" and data in command:
            roots[pid] = "rabbitmq"
    total: dict[str, float] = {}
    for pid, seconds in own.items():
        ancestor = pid
        while ancestor and ancestor not in roots:
            ancestor = parents.get(ancestor, 0)
        if ancestor:
            total[roots[ancestor]] = total.get(roots[ancestor], 0.0) + seconds
    return total
