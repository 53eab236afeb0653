"""The books: what the workers have done to each row, and what each of them must therefore see.

In most tables each worker writes to a column of its own, and only upwards: then a lost, a doubled and an unseen update
look different, and what a worker has seen once it must see for ever.  In a table of accounts everyone writes to the
same column; there only sums count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from adapm.simulator.invariants import Row, Violation
from adapm.tables import Table

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]


@dataclass(eq=False)
class Doubt:
    """An update that may, but need not, be where rows and frames are looked for: it is between worker and node.

    Attributes:
        least, most: by row, how far the sum may be from the total: int64 [row_len].
    """

    least: dict[Row, Int] = field(default_factory=dict)
    most: dict[Row, Int] = field(default_factory=dict)


class Ledger:
    """The books of a whole run.

    Args:
        tables: all tables, whose rows begin with zeros.
        workers: how many there are.

    Attributes:
        totals: of each table, everything that was pushed or set: int64 [rows, row_len].
    """

    def __init__(self, tables: Sequence[Table], workers: int) -> None:
        self.totals: list[Int] = [np.zeros((table.rows, table.row_len), np.int64) for table in tables]
        self._doubts: dict[Row, list[Doubt]] = defaultdict(list)
        self._arrivals: list[list[Int]] = []  # of each barrier: the totals of each table, as workers arrived at it
        self._at: list[int] = [0] * workers  # the next barrier of each worker

    # ---- updates

    def pushed(self, table: int, keys: Int, amounts: Int) -> Doubt:
        """These amounts, int64 [n, row_len], are about to be pushed; the doubt ends when the node has taken them."""
        np.add.at(self.totals[table], keys, amounts)
        doubt = Doubt()
        for key, amount in zip(keys.tolist(), amounts, strict=True):
            row = table, key
            zero = np.zeros_like(amount)
            doubt.least[row] = doubt.least.get(row, zero) - np.maximum(amount, 0)
            doubt.most[row] = doubt.most.get(row, zero) - np.minimum(amount, 0)
        return self._doubtful(doubt)

    def set(self, table: int, key: int, column: int, value: int) -> Doubt:
        """The column, which nobody else writes to, is about to be set upwards; the doubt ends when that is complete."""
        total = self.totals[table][key]
        least = np.zeros_like(total)
        least[column] = total[column] - value
        total[column] = value
        return self._doubtful(Doubt({(table, key): least}, {(table, key): np.zeros_like(total)}))

    def settled(self, doubt: Doubt) -> None:
        """It is no doubt any more; may be said twice."""
        for row in doubt.least:
            doubts = self._doubts[row]
            if doubt in doubts:
                doubts.remove(doubt)
                if not doubts:
                    del self._doubts[row]

    def _doubtful(self, doubt: Doubt) -> Doubt:
        for row in doubt.least:
            self._doubts[row].append(doubt)
        return doubt

    def check(self, row: Row, found: npt.NDArray[np.float64]) -> None:
        """What was found of a row, everywhere together, is what was made.

        Raises:
            Violation: something is lost, or there twice.
        """
        total = self.totals[row[0]][row[1]]
        if np.array_equal(found, total):
            return
        doubts = self._doubts.get(row, ())
        least = total + sum(doubt.least[row] for doubt in doubts)
        most = total + sum(doubt.most[row] for doubt in doubts)
        wrong = np.flatnonzero((found < least) | (found > most))
        if len(wrong):
            column = int(wrong[0])
            span = f"{least[column]} to {most[column]}" if doubts else f"{total[column]}"
            raise Violation(f"{row}: updates in column {column} add up to {found[column]:g} instead of {span}", row)

    # ---- barriers

    def arrives(self, worker: int, columns: Iterable[tuple[int, slice]]) -> int:
        """A worker is about to call a barrier; returns the barrier's number.

        Args:
            worker: its id.
            columns: the tables in which it has columns of its own, with these.
        """
        barrier = self._at[worker]
        self._at[worker] += 1
        if barrier == len(self._arrivals):
            self._arrivals.append([np.zeros_like(total) for total in self.totals])
        for table, own in columns:
            self._arrivals[barrier][table][:, own] = self.totals[table][:, own]
        return barrier

    def before(self, barrier: int) -> list[Int]:
        """Of each table, what had been pushed before that barrier by everyone who came to it."""
        return self._arrivals[barrier]


class Eyes:
    """What one worker must see: its own updates, and what it has seen before.

    Args:
        ledger: everyone's books.
        worker: its id, which is its column.
        tables: all tables; None in the place of one in which sums alone count.
    """

    def __init__(self, ledger: Ledger, worker: int, tables: Sequence[Table | None]) -> None:
        self._ledger = ledger
        self._worker = worker
        self._seen: list[Float | None] = [
            None if table is None else np.zeros((table.rows, table.row_len), np.float32) for table in tables
        ]
        self._applied: list[Int] = [np.zeros(0 if table is None else table.rows, np.int64) for table in tables]

    def pushed(self, table: int, keys: Int, amounts: Int | int = 1) -> None:
        """A push of these amounts is complete: it sees it from now on. Others, earlier too, may still be under way."""
        if self._seen[table] is not None:
            np.add.at(self._applied[table], keys, amounts)
        self._owns(table, keys)

    def set(self, table: int, key: int, value: int) -> None:
        """A set is complete, and there was nothing else under way."""
        self._applied[table][key] = value
        self._owns(table, np.array([key]))

    def _owns(self, table: int, keys: Int) -> None:
        seen = self._seen[table]
        if seen is not None:
            np.maximum.at(seen[:, self._worker], keys, self._applied[table][keys].astype(np.float32))

    def expected(self, table: int, keys: Int) -> Float | None:
        """What a pull that begins now must see at least; None in a table where that is not said."""
        seen = self._seen[table]
        return None if seen is None else seen[keys]

    def sees(self, table: int, keys: Int, rows: Float, expected: Float | None) -> None:
        """A pull is complete.

        Raises:
            Violation: it saw less than it must, or more than there can be.
        """
        if (rows != np.rint(rows)).any():
            raise Violation(
                f"worker {self._worker} pulled {rows.tolist()}: there are no fractions", (table, int(keys[0]))
            )
        seen = self._seen[table]
        if seen is None or expected is None:
            return
        self._compare(table, keys, rows < expected, rows, expected, "it has seen")
        most = self._ledger.totals[table][keys]
        self._compare(table, keys, rows > most, rows, most, "there can be no more than")
        np.maximum.at(seen, keys, rows)

    def passed_barrier(self, barrier: int) -> None:
        """From now on it sees every push made before that barrier."""
        for seen, before in zip(self._seen, self._ledger.before(barrier), strict=True):
            if seen is not None:
                np.maximum(seen, before, out=seen, casting="unsafe")

    def must_see(self, rows: Sequence[Float]) -> None:
        """From now on it sees what these rows of each table contain."""
        for seen, these in zip(self._seen, rows, strict=True):
            if seen is not None:
                np.maximum(seen, these, out=seen)

    def _compare(
        self, table: int, keys: Int, wrong: npt.NDArray[np.bool_], rows: Float, bound: npt.NDArray[np.generic], why: str
    ) -> None:
        if wrong.any():
            i, column = (int(place) for place in np.argwhere(wrong)[0])
            row = table, int(keys[i])
            found, limit = rows[i, column], bound[i, column]
            raise Violation(
                f"worker {self._worker} sees {found:g} updates of worker {column} in {row}, {why} {limit:g}", row
            )
