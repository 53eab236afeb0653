"""Fuzzing: lanes and live nodes get frames that no correct node sends.

    python tests/fuzz.py lanes --frames 1000000       lanes alone, under sanitizers (tests/native/fuzz_frames.c)
    python tests/fuzz.py nodes --frames 1000000       three live nodes, one of which has gone astray
    python tests/fuzz.py replay lanes-7.tape          what the first has found, once more
    python tests/fuzz.py minimise lanes-7.tape        the same with fewer and shorter frames

`--seed` begins elsewhere, `--unsanitized` leaves the sanitizers out.  What has been found is written to the current
folder, and the command that repeats it is printed.  Exit status 1: something was found.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct

HERE = Path(__file__).resolve().parent
NATIVE, PROGRAMS = HERE.parent / "native", HERE / "native"
LEFT_OUT = {"bench.c", "call.c", "ucp.c", "ucp_links.c"}  # of the kernel: nothing in a lane calls them
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DADAPM_SANITIZED"]
# Freed memory is kept from reuse for long enough to notice its use, not for ever; leaks are looked for at the end.
OPTIONS = {"ASAN_OPTIONS": "quarantine_size_mb=8", "UBSAN_OPTIONS": "print_stacktrace=1"}
PIECE = 500_000  # frames of one process
TIMEOUT = 600.0  # seconds that one may take
MOST_TRIES = 1_000  # of a minimiser

_HEAD = Struct("<QQ")  # of a tape: the world's seed, bytes that follow
_RECORD = Struct("<IBBBxIxxxx")  # step, from, to, instead, length


def compiler() -> list[str]:
    """The command that compiles C."""
    return shlex.split(os.environ.get("CC", "cc"))


def build(folder: Path, options: list[str], native: Path = NATIVE) -> Path:
    """Compiles the lanes' fuzzer with a kernel.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    program = folder / "fuzz_frames"
    kernel = sorted(path for path in native.glob("*.c") if path.name not in LEFT_OUT)
    names = ("harness", "fuzz_world", "fuzz_mutate", "fuzz_frames")
    sources = [*kernel, *(PROGRAMS / f"{name}.c" for name in names)]
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", *options, f"-I{native}", f"-I{PROGRAMS}", "-pthread", "-lm"]
    command = [*compiler(), *map(str, sources), "-o", str(program), *flags]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


def play(program: Path, *arguments: object, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    """Runs the lanes' fuzzer."""
    command = [str(program), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, env={**os.environ, **OPTIONS}
    )


# ---- tapes


@dataclass(frozen=True)
class Attack:
    """One frame that was handed to a lane, between two steps of its world.

    Attributes:
        step: of the world.
        source, target: nodes.
        instead: whether it took the place of what was first on its link.
        frame: its bytes.
    """

    step: int
    source: int
    target: int
    instead: bool
    frame: bytes


@dataclass(frozen=True)
class Tape:
    """A world and what it was given; see tests/native/fuzz_frames.c."""

    seed: int
    attacks: tuple[Attack, ...]

    @classmethod
    def read(cls, path: Path) -> Tape:
        """From a file as the program leaves it: everything behind what it has used is nothing."""
        data = path.read_bytes()
        seed, used = _HEAD.unpack_from(data)
        attacks, at = [], _HEAD.size
        while at < _HEAD.size + used:
            step, source, target, instead, length = _RECORD.unpack_from(data, at)
            at += _RECORD.size + length
            attacks.append(Attack(step, source, target, bool(instead), data[at - length : at]))
        return cls(seed, tuple(attacks))

    def write(self, path: Path) -> None:
        """To a file that `read` and the program take."""
        parts = [_RECORD.pack(a.step, a.source, a.target, a.instead, len(a.frame)) + a.frame for a in self.attacks]
        body = b"".join(parts)
        path.write_bytes(_HEAD.pack(self.seed, len(body)) + body)

    @classmethod
    def parse(cls, text: str) -> Tape:
        """From lines of text: the seed, then `step source target instead frame`, the frame in hex."""
        seed, *lines = (line for line in text.splitlines() if line and not line.startswith("#"))
        attacks = []
        for line in lines:
            step, source, target, instead, *frame = line.split()
            attacks.append(Attack(int(step), int(source), int(target), instead == "1", bytes.fromhex("".join(frame))))
        return cls(int(seed), tuple(attacks))

    def text(self) -> str:
        """What `parse` reads."""
        lines = [f"{a.step} {a.source} {a.target} {int(a.instead)} {a.frame.hex()}" for a in self.attacks]
        return "\n".join([str(self.seed), *lines, ""])


def minimise(tape: Tape, fails: Callable[[Tape], bool]) -> Tape:
    """A tape that still fails, with as few frames and bytes as leaving out halves, quarters, ... achieves.

    Args:
        tape: one that fails.
        fails: whether a tape does.
    """
    tries = itertools.count()

    def failing(candidates: Iterable[Tape]) -> Tape | None:
        return next((tape for tape in candidates if next(tries) < MOST_TRIES and fails(tape)), None)

    while smaller := failing(
        replace(tape, attacks=tape.attacks[:a] + tape.attacks[b:]) for a, b in _parts(len(tape.attacks))
    ):
        tape = smaller
    for i in range(len(tape.attacks)):
        while smaller := failing(_without(tape, i, a, b) for a, b in _parts(len(tape.attacks[i].frame))):
            tape = smaller
    return tape


def _parts(size: int) -> Iterator[tuple[int, int]]:
    """Where to cut: halves, quarters, ... single ones."""
    chunk = size
    while chunk > 1 or (chunk and size == 1):
        chunk = (chunk + 1) // 2 if size > 1 else 1
        yield from ((begin, min(size, begin + chunk)) for begin in range(0, size, chunk))
        if chunk == 1:
            return


def _without(tape: Tape, i: int, begin: int, end: int) -> Tape:
    frame = tape.attacks[i].frame
    attack = replace(tape.attacks[i], frame=frame[:begin] + frame[end:])
    return replace(tape, attacks=(*tape.attacks[:i], attack, *tape.attacks[i + 1 :]))


# ---- commands


def fuzz_lanes(program: Path, frames: int, seed: int, where: Path) -> bool:
    """So many frames, by one process after the other; False, and a tape in `where`, when something is found."""
    for first in range(0, frames, PIECE):
        tape = where / f"lanes-{seed}.tape"
        ran = play(program, "run", seed, min(PIECE, frames - first), tape)
        print(f"seed {seed}:", ran.stdout or ran.stderr, flush=True)
        if ran.returncode:
            Tape.read(tape).write(tape)  # without the room it had
            print(f"exit status {ran.returncode}; again: python tests/fuzz.py replay {tape}")
            return False
        tape.unlink()
        seed += 1
    return True


def replay(program: Path, path: Path) -> bool:
    """Plays a tape; whether all went well."""
    ran = play(program, "replay", path)
    print(ran.stdout + ran.stderr)
    return ran.returncode == 0


def minimise_file(program: Path, path: Path) -> bool:
    """Writes a smaller tape that fails too, as a file and as the text of a regression test."""
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / "trial"

        def fails(tape: Tape) -> bool:
            tape.write(trial)
            return play(program, "replay", trial).returncode != 0

        smallest = minimise(Tape.read(path), fails)
    small = path.with_suffix(".small.tape")
    smallest.write(small)
    print(f"{smallest.text()}\nagain: python tests/fuzz.py replay {small}")
    return True


def main() -> int:
    """Runs a command; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("command", choices=["lanes", "nodes", "replay", "minimise"])
    parser.add_argument("tape", type=Path, nargs="?", help="of replay and minimise")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transport", default="tcp", help="of nodes")
    parser.add_argument("--unsanitized", action="store_true", help="without ASan and UBSan")
    chosen = parser.parse_args()
    if chosen.command in ("replay", "minimise") and chosen.tape is None:
        parser.error(f"{chosen.command} needs a tape")
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), ["-O2"] if chosen.unsanitized else SANITIZERS)
        if chosen.command == "lanes":
            well = fuzz_lanes(program, chosen.frames, chosen.seed, Path.cwd())
        elif chosen.command == "replay":
            well = replay(program, chosen.tape)
        elif chosen.command == "minimise":
            well = minimise_file(program, chosen.tape)
        else:
            import fuzz_nodes

            well = fuzz_nodes.run(program, chosen)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
