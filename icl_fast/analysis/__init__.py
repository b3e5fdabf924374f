"""Everything computed from measurements of many snapshots."""

from icl_fast.analysis.phase_change import PhaseChange, find_phase_change

__all__ = ["PhaseChange", "find_phase_change"]
