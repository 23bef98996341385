"""Short forms of the scripts beside: a soak, and two machines whose cable is cut."""

import sys

import pytest
import soak
import two_machines

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.slow
def test_nothing_leaks_in_200_steps(tmp_path):
    """Handles, threads and checkpoints stay; for memory this is too short to say much."""
    notes = soak.soak(tmp_path, 200)
    assert len(notes) == 10
    assert soak.complaints(notes, kib_per_step=500.0) == []


def test_the_soak_notices_what_grows():
    flat = {"open_files": 9, "threads": 3, "python_threads": 2, "checkpoints_bytes": 1000}
    notes = [{**flat, "step": 20 * i, "memory_kib": 400_000 + i % 3} for i in range(1, 51)]
    assert soak.complaints(notes) == []
    for what, each in (
        ("open_files", 1),
        ("threads", 1),
        ("python_threads", 1),
        ("checkpoints_bytes", 100),
        ("memory_kib", 20 * 5),
    ):
        grown = [{**note, what: note[what] + i * each} for i, note in enumerate(notes)]
        assert len(soak.complaints(grown)) == 1 and what.split("_")[0] in soak.complaints(grown)[0]


@pytest.mark.slow
def test_a_cut_cable_ends_both_machines_with_an_error_and_they_go_on(tmp_path):
    missing = two_machines.why_not()
    if missing:
        pytest.skip(missing)
    assert two_machines.cut_the_cable(tmp_path) < two_machines.SECONDS_TO_END
