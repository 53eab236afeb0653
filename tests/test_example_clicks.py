"""examples/click_data.py: events from an archive and from files, and what is said about files that are wrong."""

import bz2
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from adapm.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import click_data

from package_archive import make_archive

LOGGED = "\t".join(["1", *(str(i) for i in range(13)), *(f"{i:08x}" for i in range(26))])
HEADING = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,"
    "carrier,flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour"
)


def written(path, text):
    path.write_bytes(text.encode())
    return str(path)


class TestFlights:
    @pytest.fixture
    def archive(self, tmp_path, monkeypatch):
        """Puts the flights (what is given as text) of ten days into the archive."""
        weather = "origin,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour"
        hours = [f"EWR,{10 * hour},26,59,270,10,NA,0,1012,10,2013-01-01T{hour:02}:00:00Z" for hour in range(24)]
        planes = "tailnum,year,type,manufacturer,model,engines,seats,speed,engine\nN1,2004,x,BOEING,737,2,100,NA,Turbo"

        def make(flights):
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as opened:
                opened.writestr("flights.csv", "\n".join([HEADING, *flights]))
            members = {
                "flights.csv.zip": packed.getvalue(),
                "weather.csv": "\n".join([weather, *hours]),
                "planes.csv": planes,
            }
            make_archive(
                click_data, tmp_path, monkeypatch, {click_data.FOLDER + name: data for name, data in members.items()}
            )

        return make

    @staticmethod
    def flight(day=1, delay="16", tail="N1", origin="EWR", hour=10):
        scheduled = f"2013,1,{day},517,{hour}15,{delay},830,819,11,UA,1545,{tail},{origin},IAH,227,1400,{hour},15"
        return f"{scheduled},2013-01-{day:02}T{hour}:00:00Z"

    def load(self):
        """All events, and where each field is."""
        clicks = click_data.load("flights")
        events = [clicks.train, clicks.test]
        place = {name: column for column, name in enumerate(clicks.fields)}
        return np.concatenate([each.happened for each in events]), clicks.fields, place, events

    def test_late_means_more_than_a_quarter_of_an_hour_and_cancelled_flights_are_left_out(self, archive):
        archive([self.flight(delay=delay) for delay in ("15", "16", "NA", "-3")] + [self.flight(day=2)])
        happened, _, _, _ = self.load()
        assert sorted(happened.tolist()) == [0, 0, 1, 1]

    def test_no_day_is_on_both_sides_and_another_split_has_other_days(self, archive):
        archive([self.flight(day=day, tail=f"N{day}") for day in range(1, 21) for _ in range(3)])
        tested = []
        for split in (0, 1):
            clicks = click_data.load("flights", split)
            tails = clicks.fields.index("tailnum")
            days = [set(events.categories[:, tails].tolist()) for events in (clicks.train, clicks.test)]
            assert (len(days[0]), len(days[1])) == (16, 4)
            assert not days[0] & days[1]
            tested.append(days[1])
        assert tested[0] != tested[1]

    def test_nothing_is_known_that_happens_after_the_hour_of_departure(self, archive):
        """Flights that differ in nothing but what became of them have the same categories."""
        one, other = (
            self.flight(delay="16"),
            self.flight(delay="200").replace(",517,", ",2359,").replace(",830,", ",3,"),
        )
        archive([one, other.replace(",227,", ",300,"), self.flight(day=2)])
        _, _, _, events = self.load()
        same = max(events, key=len).categories
        np.testing.assert_array_equal(same[0], same[1])

    def test_weather_is_that_of_the_hour_before(self, archive):
        """It is measured during an hour; the temperatures of the made hours are 10 degrees apart."""
        archive([self.flight(hour=hour) for hour in (10, 11)] + [self.flight(origin="LGA"), self.flight(day=2)])
        _, _, place, events = self.load()
        measured = max(events, key=len).categories
        temperature = measured[:, place["temp"]].tolist()
        assert temperature[1] == temperature[0] + 1
        assert temperature[2] == 0  # nothing was measured there

    def test_planes_that_are_not_known_are_of_a_kind_of_their_own(self, archive):
        archive([self.flight(tail=tail) for tail in ("N1", "N1", "N7")] + [self.flight(day=2)])
        _, _, place, events = self.load()
        models = max(events, key=len).categories[:, place["plane_model"]].tolist()
        assert models[0] == models[1] != models[2] == 0

    def test_crosses_are_of_fields(self, archive):
        archive([self.flight(day=day) for day in (1, 2)])
        clicks = click_data.load("flights")
        assert {name for cross in clicks.crosses for name in cross} <= set(clicks.fields)


class TestFiles:
    def test_the_end_is_for_the_test(self, tmp_path):
        lines = [LOGGED] * 10 + ["0" + LOGGED[1:]]
        path = tmp_path / "day.tsv.bz2"
        path.write_bytes(bz2.compress("\n".join(lines).encode()))
        clicks = click_data.load(str(path))
        assert clicks.train.happened.tolist() == [1.0] * 9
        assert clicks.test.happened.tolist() == [1.0, 0.0]
        assert clicks.train.categories.shape == (9, len(clicks.fields)) == (9, 39)
        assert (clicks.train.categories.dtype, clicks.train.happened.dtype) == (np.uint32, np.float32)
        assert clicks.train.categories[0, 13:].tolist() == list(range(26))

    def test_numbers_of_about_one_size_are_one_category(self, tmp_path):
        values = ["", "0", "1", "7", "8", "9", "1000", "1001", "2000", "-1", "-1000", "-1001"]
        text = "\n".join("\t".join(["0", value] + [""] * 38) for value in values)
        clicks = click_data.load(written(tmp_path / "a.tsv", text))
        first = np.concatenate([clicks.train.categories, clicks.test.categories])[:, 0].tolist()
        of = dict(zip(values, first, strict=True))
        assert of["1000"] == of["1001"] != of["2000"]
        assert of["-1000"] == of["-1001"] != of["1000"]
        assert len({of[value] for value in ("", "0", "1", "7", "1000", "-1")}) == 6

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("1\t2", "40 fields, found 2"),
            (LOGGED + "\t", "40 fields, found 41"),
            ("", "40 fields, found 1"),
            ("2" + LOGGED[1:], "begins with '2', not with 0 or 1"),
            (LOGGED[1:], "begins with ''"),
            (LOGGED.replace("\t12\t", "\tx\t"), "I13 is no whole number: 'x'"),
            (LOGGED.replace("\t12\t", "\t1.5\t"), "I13 is no whole number: '1.5'"),
            (LOGGED.replace("0000000a", "0000000g"), "C11 is no hexadecimal number of up to 8 digits: '0000000g'"),
            (LOGGED.replace("0000000a", "10000000a"), "C11 is no hexadecimal number"),
            (LOGGED.replace("0000000a", "-a"), "C11 is no hexadecimal number"),
        ],
    )
    def test_bad_line(self, tmp_path, line, reason):
        file = written(tmp_path / "a.tsv", f"{LOGGED}\n{line}\n{LOGGED}\n")
        with pytest.raises(DataError, match=reason) as caught:
            click_data.load(file)
        assert (caught.value.file, caught.value.line) == (file, 2)

    def test_empty_file_and_single_event(self, tmp_path):
        with pytest.raises(DataError, match="holds no event"):
            click_data.load(written(tmp_path / "a.tsv", ""))
        with pytest.raises(DataError, match=r"a\.tsv has 1 event, which cannot be cut"):
            click_data.load(written(tmp_path / "a.tsv", LOGGED))

    def test_unknown_name(self):
        with pytest.raises(DataError, match="no data set and no file 'trains'; give flights, or a file in Criteo's"):
            click_data.load("trains")
