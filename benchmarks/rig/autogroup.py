"""One scheduling group for all engines while a lab exists.

With the kernel's automatic groups every engine, a session of its own, gets the same share of the
cores, whatever its threads do: one that polls at the lowest priority in one engine then takes half
of a core from the scheduler of another. Without them priorities count between engines too.

The setting is the whole machine's. What it was stands in a file until it is restored, so that a
killed run's successor, or `clean`, restores it.
"""

from __future__ import annotations

from pathlib import Path

SETTING = Path("/proc/sys/kernel/sched_autogroup_enabled")


def switch_off(memory: Path, setting: Path = SETTING) -> None:
    """Does nothing where the kernel has no such groups, or has them off."""
    if not setting.exists() or memory.exists():
        return
    before = setting.read_text().strip()
    if before != "0":
        memory.write_text(before)
        setting.write_text("0")


def restore(memory: Path, setting: Path = SETTING) -> None:
    """Does nothing where nothing was switched off."""
    if memory.exists():
        setting.write_text(memory.read_text())
        memory.unlink()
