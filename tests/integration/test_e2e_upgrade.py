"""An upgrade with a standby: the service that runs ends, and a new one of a group goes on."""

from __future__ import annotations

import signal
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.integration.conftest import Program, Stage, eventually
from tests.integration.standby import GROUP, Group

ROOT = Path(__file__).resolve().parents[2]
BEFORE_GROUPS = "3d64154"
"""The last version that knows of no group."""
LATER_FIELD = "clock_ahead_s"
"""What the status of that version does not have."""


def older_version(folder: Path) -> Path:
    """The package as it was before groups; skips where the history does not go back that far."""
    command = ["git", "-C", str(ROOT), "archive", BEFORE_GROUPS, "mdservice"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the commit {BEFORE_GROUPS} is not in this copy of the repository")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    assert not (folder / "mdservice" / "app" / "group.py").exists()
    return folder


def waits_for(standby: Program, other: Program) -> bool:
    """Whether the standby says that it waits for the end of the other service."""
    ready, reasons = standby.ready()
    return not ready and f"process {other.pid}" in "".join(reasons)


def replace(group: Group) -> None:
    """Replace a service without a group by one of a group, and check that nothing is lost."""
    (old,) = group.members
    group.more()
    new = group.start(MDSERVICE_GROUP=GROUP, PYTHONPATH="").wait_answers()
    eventually(lambda: waits_for(new, old), within=60, what=lambda: (new.ready(), new.said))
    assert new.status()["state"] == "standby"
    group.more()
    assert old.ready()[0], old.status()["reasons"]
    assert group.recording.writers == [], "the group has written already"
    group.members.append(new)
    assert old.end(signal.SIGTERM) == 0
    assert group.leader() is new
    group.more()
    group.finish()
    assert {epoch for epoch, _ in group.recording.writers} == {1}


def test_a_service_without_a_group_is_replaced_and_nothing_is_lost(stage: Stage) -> None:
    group = Group(stage, size=1, MDSERVICE_GROUP="")
    assert LATER_FIELD in group.members[0].status()
    replace(group)


def test_an_older_version_is_replaced_and_nothing_is_lost(stage: Stage, tmp_path: Path) -> None:
    before = older_version(tmp_path)
    group = Group(stage, size=1, MDSERVICE_GROUP="", PYTHONPATH=str(before))
    assert LATER_FIELD not in group.members[0].status()  # it does run the older code
    replace(group)


def old_and_waiting(stage: Stage) -> tuple[Group, Program, Program]:
    """A service without a group, and a member of a group that waits for its end."""
    group = Group(stage, size=1, MDSERVICE_GROUP="")
    (old,) = group.members
    group.more()
    new = group.start(MDSERVICE_GROUP=GROUP).wait_answers()
    eventually(lambda: waits_for(new, old), within=60, what=lambda: (new.ready(), new.said))
    group.members.append(new)
    return group, old, new


def test_a_service_without_a_group_that_was_killed_is_replaced(stage: Stage) -> None:
    group, old, new = old_and_waiting(stage)
    old.process.kill()
    assert group.leader() is new
    group.more()
    group.finish()


def test_a_service_without_a_group_that_hung_and_goes_on_is_reported_by_both(stage: Stage) -> None:
    group, old, new = old_and_waiting(stage)
    old.process.send_signal(signal.SIGSTOP)
    try:  # it leads, although Alpaca still holds the other one's connection
        eventually(lambda: new.status()["state"] != "standby", within=60, what=lambda: new.said)
    finally:
        old.process.send_signal(signal.SIGCONT)

    def both_report() -> bool:
        return all(
            f"process {other.pid}" in "".join(one.status()["reasons"])
            for one, other in ((old, new), (new, old))
        )

    eventually(both_report, within=60, what=lambda: [m.status()["reasons"] for m in (old, new)])
    assert old.end(signal.SIGTERM) == 0
    assert group.leader() is new
    eventually(lambda: new.status()["reasons"] == [], within=60, what=new.status)
