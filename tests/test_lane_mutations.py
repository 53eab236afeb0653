"""The checks have teeth: kernels with one rule of the protocol taken out are caught.

It compiles one kernel per rule, so it runs on demand only: ADAPM_TEST_MUTATIONS=1, or `tox -e mutations`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.environ.get("ADAPM_TEST_MUTATIONS") != "1", reason="set ADAPM_TEST_MUTATIONS=1")

TESTS = Path(__file__).resolve().parent
NATIVE = TESTS.parent / "native"
SEEDS = 200  # most are caught within ten
CAUGHT = 3

PATCHED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("adapm._kernel", sys.argv[1])
sys.modules["adapm._kernel"] = kernel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
"""
SCHEDULES = """
import test_lane_random, test_lane_sets
from adapm.errors import AdapmError

for seed in range(int(sys.argv[2])):
    for tests in (test_lane_random, test_lane_sets):
        try:
            world = tests.run_schedule(seed)
            world.drain()
            world.check_rest()
            world.close()
        except (AssertionError, AdapmError) as error:
            print(f"{tests.__name__}, seed {seed}: {error!r}")
            sys.exit(int(sys.argv[3]))
"""
DECISIONS = """
import pytest
tests = ["test_lane.py", "test_pace.py", "test_lane_trouble.py", "test_lane_sight.py"]
outcome = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests])
sys.exit(int(sys.argv[3]) if outcome == pytest.ExitCode.TESTS_FAILED else int(outcome))
"""
TECHNIQUES = DECISIONS.replace("*tests", '"test_lane_techniques.py"')


@dataclass(frozen=True)
class Mutation:
    """A place in the kernel as it is, and without one of its rules; and who is to notice."""

    file: str
    rule: str
    without: str
    by: str = SCHEDULES
    also: tuple[str, str] = ("", "")


MUTATIONS = {
    "nothing at all": Mutation("holder.c", "", ""),
    "nothing at all, in decisions": Mutation("holder.c", "", "", by=DECISIONS),
    "a drop brings the last delta": Mutation(
        "holder.c",
        "if (changed(t, m, val)) extract(l, p, table, m, val); /* whatever",
        "/* whatever",
        also=("    if (refresh) round_deltas(l, p, &budget);\n", ""),
    ),
    "a drop is cancelled by a new intent": Mutation(
        "holder.c", "if (row_wanted(&l->tables[ref_table(ref)], m) && !(m->flags & META_PARKED)) {", "if (0) {"
    ),
    "a row stays for an intent in sight": Mutation(
        "lane.h", " || (t->foreseen && t->foreseen[m->row]);", ";", by=DECISIONS
    ),
    "an intent that is acted on is in sight no longer": Mutation(
        "intents.c", "if (up && l->foresees) unforesee_key(l, i->table, row);", ""
    ),
    "more active intents of a row than a byte counts are counted": Mutation(
        "intents.c", "uint32_t more = *n == ACTIVE_MOST ? ", "uint32_t more = *n == ACTIVE_MOST + 1 ? ", by=DECISIONS
    ),
    "a row whose last intent in sight is forgotten may go": Mutation(
        "intents.c", "if (m) holder_interest_ends(l, i->table, m);", "(void)m;", by=DECISIONS
    ),
    "the end of a worker forgets what was in sight": Mutation(
        "intents.c", "        forget_intent(l, i);\n        if (!i->done) {", "        if (!i->done) {", by=DECISIONS
    ),
    "a refresh leaves DIRTY alone": Mutation(
        "holder.c",
        "p->round_moment);\n    adapm_unlock(e, word);",
        "p->round_moment);\n    adapm_unlock(e, word & ~ADAPM_DIRTY);",
    ),
    "the first state leaves DIRTY alone": Mutation(
        "holder.c", "adapm_unlock(e, word | ADAPM_READ); /*", "adapm_unlock(e, (word | ADAPM_READ) & ~ADAPM_DIRTY); /*"
    ),
    "own updates are added to a refreshed row": Mutation(
        "holder.c",
        "adapm_row_rebase(slot_row(t, adapm_slot(word)), base_row(t, m), state, t->shape->row_len);",
        "memcpy(slot_row(t, adapm_slot(word)), state, 4ull * t->shape->row_len);"
        " memcpy(base_row(t, m), state, 4ull * t->shape->row_len);",
    ),
    "a want waits for the answers to pushes": Mutation(
        "holder.c", "if (map_get(&l->in_flight, ref)) continue;", "", by=DECISIONS
    ),
    "one round is unanswered at a time": Mutation("holder.c", "if (p->round_open || p->lost) return false;", ""),
    "a stale holder gets the row itself": Mutation("owner.c", "!pending && !h->stale &&", "!pending &&"),
    "a dirty row is granted with its value": Mutation("owner.c", "&& !(word & ADAPM_DIRTY);", ";", by=DECISIONS),
    "who gets a state is a holder": Mutation("owner.c", "if (add) holder_add(l, table, m, to);\n    else", "if (!add)"),
    "a shared row is tracked": Mutation("owner.c", "adapm_unlock(e, word | ADAPM_TRACK);", "adapm_unlock(e, word);"),
    "a delta makes the other holders stale": Mutation(
        "owner.c",
        "owner_changed(l, m, p->id, l->now);\n    l->stats->deltas_in++;",
        "l->stats->deltas_in++;",
    ),
    "a holder may be nudged again after its round": Mutation("owner.c", "p->nudged = false;", ""),
    "a reply that refreshes brings what is not marked yet": Mutation(
        "owner.c", "if (refresh) owner_drain_dirty(l);", "", by=DECISIONS
    ),
    "a refresh that a peer asked for is not repeated": Mutation(
        "pace.h", "    l->oldest = pace_oldest(l);\n", "", by=DECISIONS
    ),
    "a sync makes rounds go": Mutation("pace.h", "l->refresh |= l->nsyncs != 0;", "", by=DECISIONS),
    "hints are replaced by larger counters only": Mutation(
        "lane.c", "|| counter <= row_hint_counter(l, table, row)) return;", ") return;", by=DECISIONS
    ),
    "a pull waits for what was accumulated": Mutation(
        "remote.c",
        "if (m && (m->flags & META_WANT_SENT || l->technique.copies || dirty_pending(t, row))) {",
        "if (0) {",
    ),
    "an answer tells nothing that the replica here lacks": Mutation(
        "remote.c",
        "if (err) memcpy(dst, value, 4ull * o->col_len);",
        "memcpy(dst, value, 4ull * o->col_len);",
        by=DECISIONS,
    ),
    "sets that were parked keep their order": Mutation(
        "remote.c",
        "take_parked(l, row_ref(table, m->row)), next;",
        "map_get(&l->parked_of, row_ref(table, m->row)), next = (map_put(&l->parked_of, row_ref(table, m->row), 0), 0);",  # noqa: E501
    ),
    "a set comes behind the last delta": Mutation(
        "holder.c", "if (changed(t, m, val)) extract(l, p, s->table, m, val);", ""
    ),
    "all that a dead worker held is released": Mutation(
        "lane.c", "i < ADAPM_HELD && i < w->hold_rows;", "i < 1 && i < w->hold_rows;", by=DECISIONS
    ),
    "what a dead worker has half written is undone": Mutation(
        "lane.c",
        "if (saved) adapm_row_copy(slot_row(t, adapm_slot(word)), saved, t->shape->row_len);",
        "(void)saved;",
        by=DECISIONS,
    ),
    "what a dead worker has not saved is left alone": Mutation(
        "lane.c", "i < w->hold_saved ? undo", "1 ? undo", by=DECISIONS
    ),
    "a new owner tells the home": Mutation(
        "holder.c", "if (home == l->node || home == p->id) return 0;", "if (home < l->nnodes) return 0;"
    ),
    "a state is added to what was accumulated": Mutation(
        "holder.c", "if (word & ADAPM_DIRTY) adapm_row_add(val, state, len);\n    else adapm", "(void)word;\n    adapm"
    ),
    "an update from elsewhere makes the holders stale": Mutation(
        "remote.c",
        "adapm_unlock(e, word);\n        owner_changed(l, meta, l->node, l->now);",
        "adapm_unlock(e, word);",
    ),
    "a row that its owner wants is not granted": Mutation(
        "owner.c", "&& !h->next && !row_wanted(&l->tables[table], m);", "&& !h->next;"
    ),
    "a row that several hold is not granted": Mutation(
        "owner.c",
        "&& !h->next && !row_wanted(&l->tables[table], m);",
        "&& !row_wanted(&l->tables[table], m);",
        by=DECISIONS,
    ),
    "a set makes the other holders stale": Mutation(
        "owner.c", "stale_remove(l, h);\n    owner_changed(l, m, p->id, l->now);", "stale_remove(l, h);"
    ),
    "who drops a row is no holder any more": Mutation(
        "owner.c", "holder_remove(l, m, h);\n    owner_maybe_grant", "owner_maybe_grant"
    ),
    "wait_sync waits for intents": Mutation(
        "sync.c", "if (calendar_next(&l->workers[s->worker].calendar) <= s->clock) return false;", ""
    ),
    "wait_sync waits for dirty and pending rows": Mutation("sync.c", "if (s->n) return false;", ""),
    "wait_sync waits for answers": Mutation(
        "sync.c", "return rounds_answered(l, s);", "return rounds_answered(l, s) || 1;"
    ),
    "nothing at all, in techniques": Mutation("holder.c", "", "", by=TECHNIQUES),
    "intents that do not count are not written down": Mutation(
        "worker.c", "technique.ignores_intents)", "technique.ignores_intents && 0)", by=TECHNIQUES
    ),
    "intents are acted on at once where they are to be": Mutation(
        "calendar.c", "in->at_once ? ALWAYS : ", "", by=TECHNIQUES
    ),
    "who replicates grants nothing": Mutation(
        "owner.c", "if (l->technique.on_want != ADAPM_DECIDE || m->state", "if (m->state", by=TECHNIQUES
    ),
    "a row that is relocated away leaves its intents": Mutation(
        "owner.c",
        "    row_vanish(t, m, e, word);\n",
        "    t->active[row] = 0;\n    row_vanish(t, m, e, word);\n",
        by=TECHNIQUES,
    ),
    "a new intent brings back what was relocated away": Mutation(
        "holder.c", "!(first || l->technique.on_want == ADAPM_RELOCATE)", "!first", by=TECHNIQUES
    ),
    "a row is relocated at the tick": Mutation(
        "owner.c",
        "*FIFO_PUSH(&l->asked, struct asked) = (struct asked){table, (uint32_t)row, from};\n        return 0;",
        "return grant(l, table, m, from, true);",
        by=TECHNIQUES,
    ),
    "hot rows are not relocated": Mutation("owner.c", " && !(m->flags & META_FOR_GOOD)) {", ") {", by=TECHNIQUES),
    "a pull looks how old a copy is": Mutation("rows.c", "return stamp <= oldest;", "return false;", by=TECHNIQUES),
    "a copy is as old as what it answers": Mutation(
        "holder.c",
        "stamp_row(t, adapm_slot(word), p->round_moment);\n    p->replicas++;",
        "stamp_row(t, adapm_slot(word), l->moment);\n    p->replicas++;",
        by=TECHNIQUES,
    ),
    "a pull takes no copy that was asked for too early": Mutation(
        "remote.c", "if (o->kind == ADAPM_PULL && m->state == ROW_REPLICA && stamp", "if (0 && stamp", by=TECHNIQUES
    ),
    "a copy that is too old is asked for again": Mutation(
        "holder.c", "if (m->flags & META_PARKED) ask_again(l, table, m, e, word);\n    else row", "row", by=TECHNIQUES
    ),
    "a copy ends with its clocks": Mutation(
        "holder.c",
        "    if (l->technique.ages) expire(l, table, row, worker);\n    else m->",
        "    m->",
        by=TECHNIQUES,
    ),
}


def plant(mutation: Mutation, folder: Path) -> Path:
    """The kernel's sources without the rule; where they are."""
    shutil.copytree(NATIVE, folder / "native")
    source = folder / "native" / mutation.file
    text = source.read_text()
    for rule, without in ((mutation.rule, mutation.without), mutation.also):
        assert not rule or text.count(rule) == 1, f"{mutation.file} has changed: find {rule} again"
        text = text.replace(rule, without) if rule else text
    source.write_text(text)
    return folder / "native"


def build(mutation: Mutation, folder: Path) -> Path:
    """Compiles the kernel without the rule; its path."""
    plant(mutation, folder)
    (folder / "adapm").mkdir()
    subprocess.run([sys.executable, folder / "native" / "build.py"], check=True, capture_output=True)
    return next((folder / "adapm").glob("_kernel*.so"))


@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_missing_rule_is_noticed(rule: str, tmp_path: Path) -> None:
    mutation = MUTATIONS[rule]
    seeds = SEEDS if mutation.rule else 20
    command = [sys.executable, "-c", PATCHED + mutation.by, build(mutation, tmp_path), str(seeds), str(CAUGHT)]
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    hunt = subprocess.run(command, cwd=TESTS, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    print(hunt.stdout, hunt.stderr)
    assert hunt.returncode == (CAUGHT if mutation.rule else 0)
